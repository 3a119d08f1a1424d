/** ClamAV's clamd as a scanner: its word counts only where it was seen to tell clean from not. */
import { gzipSync } from 'node:zlib'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { askClamd } from './ask-clamd.ts'
import {
  type ClamdSettings,
  readClamdSettings,
  requireSafe,
  signaturesAtMs,
} from './clamd-settings.ts'
import { scanWallMs } from './scan-time.ts'
import type { ScanEngine, Verdict } from './scan-engine.ts'

export type ClamdOptions = {
  configFile: string
  signatureAgeHoursMax: number
  /** How long a scan may take; for tests. */
  wallMs?: (bytes: number) => number
  now?: () => number
}

const hourMs = 3_600_000

export function clamdEngine(options: ClamdOptions): ScanEngine {
  const { configFile, wallMs = scanWallMs, now = Date.now } = options
  let settings: ClamdSettings | undefined
  return {
    name: 'clamd',
    async check() {
      settings = undefined
      const found = await readClamdSettings(configFile)
      await requireSafe(found)
      const version = await ask(found, 'VERSION')
      const madeAtMs = await signaturesAtMs(version, found.databaseFolder)
      requireFresh(madeAtMs, { now: now(), hoursMax: options.signatureAgeHoursMax })
      await requireFinding(found)
      await requireHonesty(found)
      settings = found
      const [, number = 'unknown'] = /^ClamAV ([\w.+-]{1,32})/.exec(version) ?? []
      return { version: number, ...(madeAtMs === undefined ? {} : { signaturesAtMs: madeAtMs }) }
    },
    async scan(source, signal) {
      if (settings === undefined) throw new SluiceError('internal', 'a scanner was not checked')
      if (source.bytes > settings.bytesMax) throw tooLarge(settings.bytesMax)
      const answer = await askClamd(settings.socket, 'INSTREAM', {
        content: source.stream(),
        wallMs: wallMs(source.bytes),
        ...(signal === undefined ? {} : { signal }),
      })
      return verdictOf(answer, settings.bytesMax)
    },
  }
}

/**
 * What an answer to INSTREAM means. Clean is one sentence only; everything else is not.
 *
 * @throws SluiceError `scan.too_large` when a limit kept clamd from looking at all of it,
 *   `scan.failed` for what is no verdict.
 */
export function verdictOf(answer: string, bytesMax: number): Verdict {
  if (answer === 'stream: OK') return { clean: true }
  const [, found] = /^stream: (\S.{0,255}) FOUND$/.exec(answer) ?? []
  if (found?.startsWith('Heuristics.Limits.Exceeded')) throw tooLarge(bytesMax)
  // ClamAV issue 720: a finding without a name is a scan that broke down.
  if (found !== undefined && found !== '(null)') return { clean: false, finding: found }
  if (answer.startsWith('INSTREAM size limit exceeded')) throw tooLarge(bytesMax)
  throw new SluiceError('scan.failed', 'the scanner gave no verdict', {
    retry: 'later',
    hint: 'Look at the log of clamd; the medium is tried again.',
  })
}

function ask({ socket }: ClamdSettings, command: string, content?: Buffer): Promise<string> {
  const wallMs = limits.scanAnswerMs
  return askClamd(socket, command, { wallMs, ...(content && { content: inOnePiece(content) }) })
}

async function* inOnePiece(content: Buffer): AsyncGenerator<Buffer> {
  yield content
}

/** A date in the future is as little worth as an old one: one of the clocks is wrong. */
function requireFresh(
  madeAtMs: number | undefined,
  { now, hoursMax }: { now: number; hoursMax: number },
): void {
  if (madeAtMs === undefined) return
  const ageMs = now - madeAtMs
  if (ageMs <= hoursMax * hourMs && ageMs >= -24 * hourMs) return
  const age = ageMs < 0 ? 'from the future' : `${Math.floor(ageMs / hourMs)} hours old`
  throw new SluiceError('scan.stale', `the signatures of the scanner are ${age}`, {
    retry: 'later',
    hint: 'Look at freshclam and at the clocks, or allow more with "scan.signatureAgeHoursMax".',
  })
}

/**
 * The test file of all scanners, put together here so that no scanner finds it in this program.
 *
 * @see EICAR, "Anti-malware testfile".
 */
export function eicar(): Buffer {
  const halves = ['X5O!P%@AP[4\\PZX54(P^)7CC)7}$', 'EICAR-STANDARD-', 'ANTIVIRUS-TEST-FILE!$H+H*']
  return Buffer.from(halves.join(''), 'latin1')
}

async function requireFinding(settings: ClamdSettings): Promise<void> {
  if (/^stream: \S.* FOUND$/.test(await ask(settings, 'INSTREAM', eicar()))) return
  throw new SluiceError('scan.unsafe', 'the scanner does not find the EICAR test file', {
    retry: 'later',
    hint: 'Load the official signatures of ClamAV (freshclam), then start clamd again.',
  })
}

/** More layers than any limit of clamd lets it open. */
const layers = 200

/** What the running clamd does beyond its limits, whatever its configuration says by now. */
async function requireHonesty(settings: ClamdSettings): Promise<void> {
  let nested: Buffer = Buffer.from('nothing at all', 'latin1')
  for (let layer = 0; layer < layers; layer += 1) nested = gzipSync(nested, { level: 1 })
  const answer = await ask(settings, 'INSTREAM', nested)
  if (/^stream: Heuristics\.Limits\.Exceeded\S* FOUND$/.test(answer)) return
  throw new SluiceError('scan.unsafe', 'clamd calls clean what it did not look at', {
    retry: 'later',
    hint: 'Set "AlertExceedsMax yes" and "ScanArchive yes" in its configuration and start it again.',
  })
}

function tooLarge(bytesMax: number): SluiceError {
  const kibibytes = Math.floor(bytesMax / 1024)
  const most = kibibytes < 1024 ? `${kibibytes} KiB` : `${Math.floor(kibibytes / 1024)} MiB`
  return new SluiceError('scan.too_large', `the scanner looks at ${most} at most`, {
    hint: 'Raise StreamMaxLength, MaxFileSize and MaxScanSize of clamd (2 GiB at most), split the file, or let it pass unscanned with the policy "warn".',
  })
}
