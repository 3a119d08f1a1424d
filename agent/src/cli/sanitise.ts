/** `sluice-agent sanitise`: the gate alone, for files and whole folders, to see what would leave this host. */
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Command, Option } from 'commander'
import { type ErrorCode, SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { GateProfile, IsolationLevel, ScanMark } from '@sluice/protocol/manifest'
import { exitCodeOf, exitCodes } from '@sluice/protocol/process/command-line'
import { type Gate, type Passed, openGate, passGate } from '../capture/gate.ts'
import { gatePolicy } from '../capture/gate-policy.ts'
import type { NormalisedMedium } from '../capture/normalised.ts'
import { openPicturePool } from '../capture/picture-pool.ts'
import { createScanner } from '../capture/scan.ts'
import { createTurns } from '../capture/turns.ts'
import { openNewFile, requireFolder, requireFree } from './new-file.ts'
import { barText, createLine, nameText, sizeText } from './output.ts'
import { configOf } from './program.ts'
import {
  type Plan,
  type PlannedFile,
  identitiesOf,
  planSanitise,
  requireExtension,
  requireNoSource,
  targetsOf,
} from './sanitise-plan.ts'

type SanitiseOptions = {
  json?: true
  force?: true
  check?: true
  profile?: GateProfile
  salvage?: true
  config?: string
  isolation?: IsolationLevel
  ffmpeg?: string
}

/** One file that was written, or would be; the facts are those that a manifest would hold. */
type Written = Omit<NormalisedMedium, 'content' | 'extension' | 'source' | 'scan'> & {
  path: string
  bytes: number
}

type Accepted = {
  path: string
  verdict: 'accepted'
  source: NormalisedMedium['source'] | undefined
  scan?: ScanMark
  written: Written[]
}

type Refused = {
  path: string
  verdict: 'refused'
  code: ErrorCode
  message: string
  hint?: string
}

/**
 * The command, for the agent's program to add. Errors leave it as SluiceError.
 *
 * @param print Where answers go, one line or JSON value at a time; standard output by default.
 */
export function sanitiseCommand(
  print: (text: string) => void = (text) => void process.stdout.write(`${text}\n`),
): Command {
  return new Command('sanitise')
    .summary('write what would leave this host')
    .description(
      'Takes a file, or every file of a folder, through the gate and writes the results: decoded,\n' +
        'upright, without metadata. Nothing is sent, and no control plane is needed. The sound of a\n' +
        'film is written beside it.',
    )
    .argument(
      '<in>',
      'image, film or sound, or a folder of them; the content decides, not the name',
    )
    .argument('[out]', 'file to write, or a folder')
    .option('--json', 'print one JSON object')
    .option('--check', 'only judge: nothing is written, and <out> is not needed')
    .option('--force', 'overwrite what is there')
    .addOption(
      new Option('--profile <name>', 'what media become').choices([
        'analysis',
        'faithful',
        'compact',
      ]),
    )
    .option('--salvage', 'take what decodes of a damaged medium')
    .option('--config <file>', 'take policies and scanners from the configuration of an agent')
    .addOption(
      new Option('--isolation <level>', 'how decoders are kept apart').choices([
        'bubblewrap',
        'none',
      ]),
    )
    .option('--ffmpeg <path>', 'the ffmpeg to use')
    .addHelpText(
      'after',
      '\nExit codes: 0 all accepted, 1 something failed, 2 usage, 3 something was refused.\n' +
        '\nExamples:\n  sluice-agent sanitise IMG_0815.JPG clean.jpg\n  sluice-agent sanitise --json holiday/ clean/\n  sluice-agent sanitise --check inbox/',
    )
    .action((input: string, output: string | undefined, options: SanitiseOptions) =>
      sanitise({ input, output, ...options }, print),
    )
}

/** Ctrl-C, the end of a terminal and `kill`: what is under way is broken off, and nothing of it left. */
const endSignals = ['SIGINT', 'SIGHUP', 'SIGTERM'] as const

async function sanitise(
  options: SanitiseOptions & { input: string; output: string | undefined },
  print: (text: string) => void,
): Promise<void> {
  const { input, json = false, check = false } = options
  const output = check ? undefined : options.output
  if (output === undefined && !check)
    throw new SluiceError('usage', 'nowhere to write to', {
      hint: 'Name a file or folder for the result, or say --check to only judge.',
    })
  const plan = await planSanitise(input, output)
  if (output !== undefined) {
    const folder = plan.many ? output : path.dirname(plan.files[0]?.stem ?? output)
    await requireFolder(folder, { make: plan.many })
  }
  const ending = new AbortController()
  const interrupt = () => ending.abort()
  for (const signal of endSignals) process.once(signal, interrupt)
  const line = createLine(process.stderr)
  try {
    const { gate, profile } = await gateFor(options, ending.signal)
    await using pictures = openPicturePool(gate)
    const turns = createTurns(pictures.width)
    const run: Run = {
      ...{ plan, sources: await identitiesOf(plan.files), claimed: new Set() },
      ...{ force: options.force === true, check },
      pass: (file) => turns.take(() => passGate(file, { ...gate, pictures }), ending.signal),
      width: 2 * pictures.width,
    }
    const results: (Accepted | Refused)[] = []
    line.set(`0 of ${plan.files.length}`)
    const tell = (result: Accepted | Refused): void => {
      results.push(result)
      line.clear()
      if (!json && (plan.many || result.verdict === 'accepted')) print(textOf(result, check))
      const { length: done } = results
      line.set(`${barText(done, plan.files.length)}  ${done} of ${plan.files.length}`)
    }
    const failures = plan.unlisted.map(({ error }) => error)
    for (const { folder, error } of plan.unlisted) tell(refusalOf(folder, error))
    try {
      await takeAll(run, failures, { tell, signal: ending.signal })
    } finally {
      // Also when a full disk ends it all: what is there by then was written whole.
      line.clear()
      report({ results, plan, profile, isolation: gate.isolation, check, json }, print)
    }
    const failure = failures[0]
    if (failure !== undefined && !plan.many && !json) throw failure
    process.exitCode = worstOf(failures)
    if (ending.signal.aborted) process.exitCode = exitCodes.failed
  } finally {
    line.clear()
    for (const signal of endSignals) process.off(signal, interrupt)
  }
}

/** Flags count before the configuration, and that before the defaults. */
async function gateFor(options: SanitiseOptions, signal: AbortSignal) {
  const config = options.config === undefined ? undefined : await configOf(options)
  const { scan, ...rules } = config?.gate ?? gatePolicy.parse({})
  const { profile = rules.profile, isolation = config?.isolation } = options
  const ffmpegPath =
    options.ffmpeg === undefined ? config?.ffmpegPath : path.resolve(options.ffmpeg)
  const opened = await openGate({
    ...{ scratchFolder: tmpdir(), profile, salvage: options.salvage ?? rules.salvage, signal },
    ...(isolation === undefined ? {} : { isolation }),
    ...(ffmpegPath === undefined ? {} : { ffmpegPath }),
  })
  const scanner = createScanner({ settings: scan, isolation: opened.isolation, signal })
  const gate: Gate = { ...rules, ...opened, scanner }
  return { gate, profile }
}

type Run = {
  plan: Plan
  sources: ReadonlySet<string>
  force: boolean
  check: boolean
  /** Results of this run: none takes the place of another, whether told to overwrite or not. */
  claimed: Set<string>
  /** Takes a file through the gate when it is its turn. */
  pass: (file: string) => Promise<Passed>
  /** Files on their way at once: some pass while others are written, which waits for the disk. */
  width: number
}

/** @param failures Gets what is refused or fails, in the order it comes. */
async function takeAll(
  run: Run,
  failures: SluiceError[],
  on: { tell: (result: Accepted | Refused) => void; signal: AbortSignal },
): Promise<void> {
  const { plan } = run
  const waiting = [...plan.files]
  let ended = false
  const work = async (): Promise<void> => {
    for (let next = waiting.shift(); next && !on.signal.aborted; next = waiting.shift()) {
      try {
        on.tell(await takeOne(next, run))
      } catch (error) {
        // It was not its turn yet.
        if (on.signal.aborted && error === on.signal.reason) return
        if (!isSluiceError(error) || endsAll(error)) {
          waiting.length = 0
          ended = true
          throw error
        }
        // What is under way when all ends is broken off, which says nothing about the medium.
        if (on.signal.aborted || ended) return
        failures.push(error)
        on.tell(refusalOf(next.file, error))
      }
    }
  }
  const workers = Array.from({ length: Math.min(run.width, waiting.length) }, work)
  // All of them, so that nothing is written any more once the report is.
  for (const worker of await Promise.allSettled(workers))
    if (worker.status === 'rejected') throw worker.reason
}

/** Nothing after it would go better. */
function endsAll({ code }: SluiceError): boolean {
  return code === 'host.disk_full' || code === 'sandbox.missing'
}

async function takeOne(planned: PlannedFile, run: Run): Promise<Accepted> {
  const { plan, force, check } = run
  await using passed = await run.pass(planned.file)
  const { media } = passed
  const targets = targetsOf(planned, media)
  if (plan.named !== undefined) {
    requireExtension(plan.named, media[0])
    targets[0] = plan.named
  }
  if (!check) {
    if (plan.many) await requireFolder(path.dirname(planned.stem), { make: true })
    // Before anything is written, so that a film isn't left without its sound.
    claim(targets, run)
    for (const target of targets) {
      await requireNoSource(target, run.sources)
      await requireFree(target, { force })
    }
  }
  const written: Written[] = []
  for (const [
    place,
    { content, extension: _, source: __, scan: ___, ...facts },
  ] of media.entries()) {
    const target = targets[place] ?? planned.stem
    if (!check) await writeWhole(target, { content, force })
    written.push({ path: check ? path.basename(target) : target, bytes: content.bytes, ...facts })
  }
  const scan = media[0]?.scan
  return {
    path: planned.file,
    verdict: 'accepted',
    source: media[0]?.source,
    ...(scan === undefined ? {} : { scan }),
    written,
  }
}

/** @throws SluiceError `usage` when another source of this run has the name, as a page of it may. */
function claim(targets: readonly string[], { claimed }: Run): void {
  const taken = targets.find((target) => claimed.has(target))
  if (taken !== undefined)
    throw new SluiceError('usage', `${taken} is what another source became`, {
      hint: 'Take this one by itself, and name its result.',
    })
  for (const target of targets) claimed.add(target)
}

async function writeWhole(
  target: string,
  what: Pick<NormalisedMedium, 'content'> & { force: boolean },
): Promise<void> {
  await using file = await openNewFile(target, { force: what.force })
  for await (const piece of what.content.read()) await file.write(piece)
  await file.finish()
}

function refusalOf(file: string, { code, message, hint }: SluiceError): Refused {
  return { path: file, verdict: 'refused', code, message, ...(hint === undefined ? {} : { hint }) }
}

/** A failure is worse than a refusal: it says nothing about the medium. */
function worstOf(failures: readonly SluiceError[]): number {
  const codes = new Set(failures.map(exitCodeOf))
  const worst = [exitCodes.failed, exitCodes.usage, exitCodes.refused].find((code) =>
    codes.has(code),
  )
  return worst ?? exitCodes.ok
}

function report(
  on: {
    results: readonly (Accepted | Refused)[]
    plan: Plan
    profile: GateProfile
    isolation: IsolationLevel
    check: boolean
    json: boolean
  },
  print: (text: string) => void,
): void {
  const { results, plan, profile, isolation, check } = on
  const accepted = results.filter((each) => each.verdict === 'accepted')
  const refused = results.length - accepted.length
  const notReached = plan.files.length + plan.unlisted.length - results.length
  const bytesIn = accepted.reduce((sum, { source }) => sum + (source?.bytes ?? 0), 0)
  const bytesOut = accepted
    .flatMap(({ written }) => written)
    .reduce((sum, { bytes }) => sum + bytes, 0)
  if (on.json) {
    const { skipped } = plan
    const counts = { accepted: accepted.length, refused, skipped, notReached, bytesIn, bytesOut }
    // In the order of their names, however they came.
    const files = results.toSorted((one, other) => (one.path < other.path ? -1 : 1))
    return print(JSON.stringify({ profile, isolation, check, ...counts, files }, null, 2))
  }
  if (!plan.many) return
  const skipped = plan.skipped === 0 ? '' : `, ${plan.skipped} passed over`
  const sizes = `${sizeText(bytesIn)} -> ${sizeText(bytesOut)}`
  const rest = notReached === 0 ? '' : `, ${notReached} not reached`
  print(`${accepted.length} accepted, ${refused} refused${skipped}${rest}; ${sizes}`)
}

function textOf(result: Accepted | Refused, check: boolean): string {
  if (result.verdict === 'refused')
    return `REFUSED  ${nameText(result.path)}: ${nameText(result.message)} (${result.code})`
  const { source, written, scan } = result
  const removed = new Set(written.flatMap((medium) => medium.removed))
  const remarks = [
    ...(source?.nameDisagrees === true
      ? [`its name promises something else than ${source.format}`]
      : []),
    ...(written.some(({ partial }) => partial === true) ? ['damaged: only a part of it'] : []),
    ...(scan === 'unscanned' ? ['not scanned'] : []),
    removed.size === 0 ? 'no metadata found' : `removed: ${[...removed].toSorted().join(', ')}`,
  ]
  const bytes = written.reduce((sum, medium) => sum + medium.bytes, 0)
  const names = written.map((medium) => nameText(medium.path)).join(' ')
  const sizes = `${sizeText(source?.bytes ?? 0)} -> ${sizeText(bytes)}`
  const to = check ? '' : ` -> ${names}`
  return `ok       ${nameText(result.path)}${to}  ${shapeOf(written[0])}  ${sizes}  ${remarks.join('; ')}`
}

function shapeOf(medium: Written | undefined): string {
  if (medium === undefined) return ''
  const { codec, widthPixels, heightPixels, durationMs } = medium
  const size = widthPixels === undefined ? '' : ` ${widthPixels}x${heightPixels}`
  const length = durationMs === undefined ? '' : ` ${(durationMs / 1000).toFixed(1)} s`
  return `${codec}${size}${length}`
}
