/** The command line `sluice`: runs the control plane, and steers it from afar. */
import { CommanderError } from 'commander'
import { runCommandLine } from '@sluice/protocol/process/command-line'
import { sluiceProgram } from './commands.ts'
import { remark } from './output.ts'

await runCommandLine({
  argv: process.argv,
  run: (argv) => sluiceProgram().parseAsync(argv),
  isParserEnd: (error) => error instanceof CommanderError,
  remark,
})
