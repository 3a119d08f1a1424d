/** `npm run demo`: real media from capture to certificate with real processes, and proof that nothing is left. */

import { join } from 'node:path'

import type { Fleet } from '../tools/fleet.ts'
import type { DemoArguments } from './arguments.ts'
import { readArguments, usage, UsageError } from './arguments.ts'
import { makeOwnership } from './ownership.ts'
import { progressOn, silence } from './progress.ts'
import { RefusedError } from './stages.ts'
import { tellStory } from './story.ts'
import type { Summary } from './summary.ts'
import { printEnd } from './summary.ts'

/** Log lines of each daemon that are shown when the demo fails. */
const failureLines = 6
/** A second Ctrl-C after this is meant. */
const impatienceMs = 1000

const ownership = makeOwnership()
let fleet: Fleet | undefined

async function main(): Promise<number> {
  const options = readOptions()
  if (typeof options === 'number') return options
  const progress = options.json ? silence : progressOn(process.stdout)
  watchSignals()
  try {
    const onFleet = (started: Fleet) => void (fleet = started)
    const summary = await tellStory({ files: options.files, progress, ownership, onFleet })
    if (options.json) process.stdout.write(`${JSON.stringify(summary, undefined, 2)}\n`)
    else printEnd(progress, summary)
    if (options.keep) await keepUp(summary, options)
    return 0
  } catch (error) {
    if (ownership.interruptedBy !== undefined) return ownership.interruptedBy
    return reportFailure(error)
  } finally {
    await ownership.end()
  }
}

/** @returns An exit code when there is nothing to run. */
function readOptions(): DemoArguments | number {
  try {
    const options = readArguments(process.argv.slice(2))
    if (!options.help) return options
    process.stdout.write(`${usage}\n`)
    return 0
  } catch (error) {
    if (!(error instanceof UsageError)) throw error
    process.stderr.write(`${error.message}\nSee npm run demo -- --help\n`)
    return 2
  }
}

function watchSignals(): void {
  let firstAtMs: number | undefined
  const interrupt = (code: number): void => {
    // Whoever asks twice does not want to wait; but one Ctrl-C may arrive twice, from the terminal
    // and from whoever started this process.
    if (firstAtMs !== undefined && performance.now() - firstAtMs > impatienceMs) process.exit(code)
    firstAtMs ??= performance.now()
    if (ownership.interruptedBy === undefined) ownership.interrupt(code)
  }
  process.on('SIGINT', () => interrupt(130)).on('SIGTERM', () => interrupt(143))
}

/** Leaves everything running and says how to look around, until a signal ends it. */
async function keepUp(summary: Summary, options: DemoArguments): Promise<void> {
  if (fleet === undefined) return
  const { controlPlane, agents, root } = fleet
  const token = await fleet.tokenFile('operator')
  const [job] = summary.jobs
  const capture = agents.find((agent) => agent.role === 'capture')
  const sluice = 'npm run -s sluice --'
  const lines = [
    '',
    'The system stays up until Ctrl-C, and is removed then. Try, in another terminal:',
    `  export SLUICE_CONTEXT=${join(root, 'home', 'your-context.json')}`,
    `  ${sluice} login ${controlPlane.operatorUrl} --token-file ${token}`,
    `  ${sluice} agents list`,
    `  ${sluice} jobs list`,
    `  ${sluice} jobs show ${job?.jobId ?? ''}`,
    `  ${sluice} jobs certificate ${job?.jobId ?? ''}`,
    `  npm run -s sluice-agent -- submit FILE --wait --config ${capture?.configFile ?? ''}`,
    `  ls -R ${root}`,
    '',
  ]
  const stream = options.json ? process.stderr : process.stdout
  stream.write(lines.join('\n'))
  await ownership.interrupted
}

/** What went wrong, and the last thing each daemon had to say. @returns The exit code. */
function reportFailure(error: unknown): number {
  const say = (line: string) => process.stderr.write(`${line}\n`)
  if (error instanceof RefusedError) {
    say(`\n${error.message}`)
    if (error.hint !== undefined) say(error.hint)
    return 3
  }
  say(`\nThe demo failed: ${error instanceof Error ? error.message : String(error)}`)
  for (const daemon of fleet === undefined ? [] : [fleet.controlPlane, ...fleet.agents]) {
    say(`\nLast lines of ${daemon.name}${daemon.isRunning ? '' : ' (not running)'}:`)
    for (const line of daemon.output.trimEnd().split('\n').slice(-failureLines)) say(`  ${line}`)
  }
  return 1
}

process.exit(await main())
