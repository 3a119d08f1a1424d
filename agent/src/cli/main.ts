#!/usr/bin/env node
/** The command line `sluice-agent`: runs the agent of a host, speaks to it, and has the offline tools. */
import { Command, CommanderError } from 'commander'
import { runCommandLine } from '@sluice/protocol/process/command-line'
import { build } from '../build.ts'
import { remark } from './output.ts'

/**
 * What each command needs is loaded only for it: `seal` must stay small and quick, whatever the
 * agent itself is made of.
 */
const groups: { names: readonly string[]; add: (root: Command) => Promise<void> }[] = [
  {
    names: ['run', 'join', 'config'],
    add: async (root) => (await import('./run.ts')).addRunCommands(root),
  },
  {
    names: ['submit', 'status', 'results'],
    add: async (root) => (await import('./submit.ts')).addSubmitCommands(root),
  },
  {
    names: ['sanitise'],
    add: async (root) => void root.addCommand((await import('./sanitise.ts')).sanitiseCommand()),
  },
  {
    names: ['seal', 'open'],
    add: async (root) => (await import('./seal.ts')).addSealCommands(root),
  },
  {
    names: ['doctor'],
    add: async (root) => (await import('./doctor.ts')).addDoctorCommand(root),
  },
]

async function programFor(name: string | undefined): Promise<Command> {
  const root = new Command('sluice-agent')
    .description('Seal media on the host that captured them, or analyse them in memory.')
    .version(build)
    .showSuggestionAfterError(true)
    .addHelpText(
      'after',
      '\nExit codes: 0 ok, 1 failed, 2 usage, 3 refused.\n\nExample:\n  $ sluice-agent submit --wait photo.jpg',
    )
    .configureOutput({
      outputError: (text, write) => {
        const [line = ''] = text.trim().split('\n')
        write(`${line}\nhint: add --help to see what this command takes\n`)
      },
    })
  const wanted = groups.filter(({ names }) => names.includes(name ?? ''))
  for (const { add } of wanted.length > 0 ? wanted : groups) await add(root)
  for (const command of [root, ...everyCommand(root)]) command.exitOverride()
  return root
}

function everyCommand(command: Command): Command[] {
  return command.commands.flatMap((child) => [child, ...everyCommand(child)])
}

await runCommandLine({
  argv: process.argv,
  run: async (argv) => (await programFor(argv[2])).parseAsync(argv),
  isParserEnd: (error) => error instanceof CommanderError,
  remark,
})
