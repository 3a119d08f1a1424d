/** The command line `sluice`: runs the control plane, and steers it from afar. */
import { CommanderError } from 'commander'
import {
  endWithoutReader,
  errorJson,
  errorLines,
  exitCodeOf,
  exitCodes,
} from '@sluice/protocol/process/command-line'
import { sluiceProgram } from './commands.ts'
import { remark } from './output.ts'

/** Runs one command line; what went wrong becomes two lines and an exit code, never a stack. */
async function run(argv: readonly string[]): Promise<void> {
  try {
    await sluiceProgram().parseAsync(argv)
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode === 0 ? exitCodes.ok : exitCodes.usage
      return
    }
    if (argv.includes('--json')) remark(errorJson(error))
    else for (const line of errorLines(error)) remark(line)
    process.exitCode = exitCodeOf(error)
  }
}

endWithoutReader()
await run(process.argv)
