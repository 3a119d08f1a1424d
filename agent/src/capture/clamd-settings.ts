/** Reads how clamd is set up, and says what must hold before its word counts. */
import { constants } from 'node:fs'
import { open, readFile, readdir, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { readSwapFacts } from '@sluice/protocol/process/swap'

/** What the gate needs to know of `clamd.conf`. */
export type ClamdSettings = {
  socket: string
  /** Where clamd writes what it is sent while it looks at it. */
  temporaryFolder: string | undefined
  databaseFolder: string
  alertExceedsMax: boolean
  /** Nothing larger is looked at as a whole. */
  bytesMax: number
}

/**
 * Reads a configuration of clamd.
 *
 * @throws SluiceError `scan.unsafe` when it cannot be read or names no socket of this host.
 */
export async function readClamdSettings(file: string): Promise<ClamdSettings> {
  let text: string
  try {
    await using handle = await open(file, constants.O_RDONLY)
    const { size } = await handle.stat()
    if (size > limits.scanConfigBytesMax) throw new RangeError('too large')
    text = await handle.readFile('utf8')
  } catch (cause) {
    throw unsafe(`${file} cannot be read`, 'Name the configuration that clamd runs with.', cause)
  }
  return parseClamdSettings(text, file)
}

/** @see clamd.conf(5): one `Name value` a line, `#` begins a comment, the first one counts. */
export function parseClamdSettings(text: string, file: string): ClamdSettings {
  const values = new Map<string, string>()
  for (const line of text.split('\n')) {
    const [, name, value] = /^\s*([A-Za-z]\w*)\s+(\S.*?)\s*$/.exec(line) ?? []
    if (name !== undefined && value !== undefined && !values.has(name))
      values.set(name, /^"(.*)"$/.exec(value)?.[1] ?? value)
  }
  const socket = values.get('LocalSocket')
  if (socket === undefined || !path.isAbsolute(socket))
    throw unsafe(`${file} names no LocalSocket`, 'Set LocalSocket: media never cross a network.')
  // Unset values: the smallest default that any clamd of the last years had.
  const sizes = [
    sizeOf(values.get('StreamMaxLength') ?? '25M'),
    sizeOf(values.get('MaxFileSize') ?? '25M'),
    sizeOf(values.get('MaxScanSize') ?? '100M'),
  ]
  return {
    socket,
    temporaryFolder: values.get('TemporaryDirectory'),
    databaseFolder: values.get('DatabaseDirectory') ?? '/var/lib/clamav',
    alertExceedsMax: isYes(values.get('AlertExceedsMax')),
    bytesMax: Math.min(limits.scanBytesMax, ...sizes),
  }
}

/** 0 switches a limit off; what cannot be read counts as nothing at all. */
function sizeOf(text: string): number {
  const [, digits, unit = ''] = /^(\d{1,15})([KMG]?)$/i.exec(text) ?? []
  if (digits === undefined) return 1
  if (Number(digits) === 0) return Infinity
  return Number(digits) * { '': 1, K: 1024, M: 1024 ** 2, G: 1024 ** 3 }[unit.toUpperCase()]!
}

function isYes(text: string | undefined): boolean {
  return text !== undefined && /^(?:yes|true|1)$/i.test(text)
}

/**
 * Whether clamd, as it is set up, may be sent a medium: what it writes meanwhile stays in memory, and
 * what it did not look at it does not call clean.
 *
 * @throws SluiceError `scan.unsafe` with what to set.
 */
export async function requireSafe(settings: ClamdSettings): Promise<void> {
  if (!settings.alertExceedsMax)
    throw unsafe(
      'clamd calls clean what it did not look at',
      'Set "AlertExceedsMax yes" in its configuration and start it again.',
    )
  const folder = settings.temporaryFolder
  const hint =
    'Mount a tmpfs with the option noswap, and name it as TemporaryDirectory in the configuration of clamd.'
  if (folder === undefined) throw unsafe('clamd does not say where it writes what it is sent', hint)
  const kind = await statfs(folder).catch((cause: unknown) => {
    throw unsafe('the temporary directory of clamd cannot be looked at', hint, cause)
  })
  if (kind.type === ramfsType) return
  if (kind.type !== tmpfsType) throw unsafe('clamd writes what it is sent to a disk', hint)
  if (readSwapFacts().areas.length > 0 && !(await isNoSwap(folder)))
    throw unsafe('what clamd writes can reach swap', hint)
}

/** @see statfs(2): the magic numbers of file systems that live in memory. */
const tmpfsType = 0x0102_1994
const ramfsType = 0x8584_58f6

/** Whether the tmpfs under a folder was mounted so that it is never swapped. */
async function isNoSwap(folder: string): Promise<boolean> {
  const { dev } = await stat(folder)
  const number = `${(dev >> 8) & 0xfff}:${(dev & 0xff) | ((dev >> 12) & 0xff_ff00)}`
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n')
  const mount = mounts.find((line) => line.split(' ')[2] === number)
  return mount !== undefined && /(?:^|,)noswap(?:,|$)/.test(mount.split(' ').at(-1) ?? '')
}

/**
 * When the signatures were made: as clamd says of the official ones, else when the newest file of
 * its database was written.
 *
 * @param version clamd's answer to `VERSION`.
 * @returns undefined when there are none.
 */
export async function signaturesAtMs(
  version: string,
  databaseFolder: string,
): Promise<number | undefined> {
  const told = Date.parse(/^ClamAV [^/]+\/\d+\/(.{10,40})$/.exec(version)?.[1] ?? '')
  if (!Number.isNaN(told)) return told
  const names = await readdir(databaseFolder).catch((cause: unknown) => {
    throw unsafe('the signatures of clamd cannot be looked at', 'Let the agent list them.', cause)
  })
  const times = await Promise.all(
    names
      .filter((name) => databaseName.test(name))
      .map(async (name) => (await stat(path.join(databaseFolder, name))).mtimeMs),
  )
  return times.length === 0 ? undefined : Math.max(...times)
}

/** @see ClamAV manual, "Database file extensions". */
const databaseName =
  /\.(?:cvd|cld|cud|hdb|hsb|hdu|hsu|mdb|msb|mdu|msu|ndb|ndu|ldb|ldu|idb|cdb|cbc|fp|sfp|pdb|wdb|yar|yara|db)$/

function unsafe(what: string, hint: string, cause?: unknown): SluiceError {
  // Somebody mends the scanner while media wait: it is asked again.
  return new SluiceError('scan.unsafe', what, { retry: 'later', hint, cause })
}
