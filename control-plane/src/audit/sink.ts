/** One append-only file with every audit event: only ever continued, and read back before it counts. */
import { constants } from 'node:fs'
import { type FileHandle, link, open, realpath, rm } from 'node:fs/promises'
import { dirname, resolve, sep } from 'node:path'
import { canonicalJson } from '@sluice/protocol/canonical'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { syncFolder } from '../data-directory.ts'
import { type ChainedEvent, type ChainHead, followChain } from './rules.ts'

/** An event is below 64 KiB: its detail is flat and its texts are bounded. */
const lineBytesMax = 64 * 1024

/** What the sink needs of the disk; tests let it fail, or hang. */
export type SinkFiles = {
  /** Opens what is there, for reading and appending, but no link. */
  open(path: string): Promise<FileHandle>
  /** Makes a new one, 0600, in place of what an earlier try left there. */
  create(path: string): Promise<FileHandle>
  /** Gives a file its name, durably. */
  place(from: string, to: string): Promise<void>
}

export type SinkDeps = {
  path: string
  /** Nothing of the control plane's own may be overwritten or filled by it. */
  dataDir: string
  /** Events after `seq`, in their order, at most `items`. */
  eventsAfter: (seq: number, items: number) => Promise<ChainedEvent[]>
  files?: SinkFiles
}

/** The line of an event, as it lies in the file. */
export function lineOf(event: ChainedEvent): string {
  return `${canonicalJson(event)}\n`
}

const noLink = constants.O_RDWR | constants.O_APPEND | constants.O_NOFOLLOW

export const sinkFiles: SinkFiles = {
  open: (path) => open(path, noLink),
  async create(path) {
    await rm(path, { force: true })
    return open(path, noLink | constants.O_CREAT | constants.O_EXCL, 0o600)
  },
  async place(from, to) {
    // Not a rename: what came there meanwhile is not ours to replace.
    await link(from, to)
    await rm(from)
    await syncFolder(dirname(resolve(to)))
  },
}

/**
 * Appends the next events. Without a file, whoever keeps it has moved the old one away, and a new one
 * begins; it gets its name only with its first page in it, so that an empty file is never ours.
 *
 * @param known How far the file is known to reach.
 * @param items At most this many.
 * @param signal Nothing is written any more once it aborts.
 * @returns How far it reaches now; the same as before when nothing is left to append.
 * @throws SluiceError `audit_sink.failed` when it cannot be written, or holds what does not continue
 * the chain, or no longer what it held; nothing of that is ever cut off.
 */
export async function appendPage(
  deps: SinkDeps,
  known: ChainHead,
  items: number,
  signal?: AbortSignal,
): Promise<ChainHead> {
  const { path, files = sinkFiles } = deps
  try {
    await refuseOwnFolder(deps)
    const there = await files.open(path).catch(absent)
    if (there) return await continueFile(there, { deps, known, items, signal })
    const beginning = `${path}.new`
    const head = await continueFile(await files.create(beginning), {
      deps,
      known,
      items,
      signal,
      fresh: true,
    })
    if (head.seq > known.seq) await files.place(beginning, path)
    return head
  } catch (cause) {
    if (isSluiceError(cause)) throw cause
    const { code } = cause as NodeJS.ErrnoException
    if (code === undefined) throw cause
    throw failed(code === 'ELOOP' ? 'it is a link' : code, cause)
  }
}

function absent(error: NodeJS.ErrnoException): undefined {
  if (error.code !== 'ENOENT') throw error
}

async function continueFile(
  file: FileHandle,
  page: {
    deps: SinkDeps
    known: ChainHead
    items: number
    signal: AbortSignal | undefined
    fresh?: boolean
  },
): Promise<ChainHead> {
  const { deps, known, items, signal, fresh = false } = page
  try {
    const facts = await file.stat()
    if (!facts.isFile()) throw failed('it is not a regular file')
    const { head, bytes } = fresh
      ? { head: known, bytes: 0 }
      : await tailOf(file, facts.size, deps, known)
    const events = await deps.eventsAfter(head.seq, items)
    const verdict = followChain(events, head)
    if (!verdict.whole)
      throw failed(`it does not continue at event ${verdict.seq}: ${verdict.reason}`)
    if (events.length === 0) return head
    if (signal?.aborted === true) throw failed('it took too long')
    const lines = Buffer.from(events.map(lineOf).join(''))
    await file.appendFile(lines)
    await file.datasync()
    if (!(await readExactly(file, bytes, lines.length)).equals(lines))
      throw failed('what was read back is not what was written')
    return verdict.head
  } finally {
    await file.close()
  }
}

async function refuseOwnFolder({ path, dataDir }: SinkDeps): Promise<void> {
  const folder = await realpath(dirname(resolve(path)))
  const own = await realpath(dataDir)
  if (folder === own || folder.startsWith(own + sep)) throw failed('it is in the data directory')
}

/** The last event in the file, which must be ours. A last line cut short by a crash is removed. */
async function tailOf(
  file: FileHandle,
  size: number,
  deps: SinkDeps,
  known: ChainHead,
): Promise<{ head: ChainHead; bytes: number }> {
  const from = Math.max(0, size - 2 * lineBytesMax)
  const text = await readExactly(file, from, size - from)
  const end = text.lastIndexOf(0x0a) + 1
  if (end === 0 && from > 0) throw failed('its last line is none of ours')
  if (end === 0 && known.seq > 0) throw failed(`it was emptied: it held event ${known.seq}`)
  const torn = text.subarray(end)
  const lines = text.subarray(0, end)
  const head = end === 0 ? known : await lastEvent(lines, deps)
  if (head.seq < known.seq)
    throw failed(`it ends at event ${head.seq}, but held event ${known.seq} before`)
  if (torn.length > 0) {
    const [next] = await deps.eventsAfter(head.seq, 1)
    const ours = next !== undefined && Buffer.from(lineOf(next)).subarray(0, torn.length)
    if (!ours || !ours.equals(torn)) throw failed('its last line is incomplete and none of ours')
    await file.truncate(from + end)
    await file.datasync()
  }
  return { head, bytes: from + end }
}

async function lastEvent(lines: Buffer, deps: SinkDeps): Promise<ChainHead> {
  const start = lines.lastIndexOf(0x0a, lines.length - 2) + 1
  const line = lines.subarray(start).toString('utf8')
  const seq = Number(/"seq":(\d{1,15})[,}]/.exec(line)?.[1] ?? 0)
  const [event] = seq > 0 ? await deps.eventsAfter(seq - 1, 1) : []
  if (event?.seq !== seq || lineOf(event) !== line)
    throw failed('its last line is not an event of this control plane')
  return { seq, sha256: event.sha256 }
}

async function readExactly(file: FileHandle, position: number, bytes: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes)
  let filled = 0
  while (filled < bytes) {
    const { bytesRead } = await file.read(buffer, filled, bytes - filled, position + filled)
    if (bytesRead === 0) throw failed('it became shorter meanwhile')
    filled += bytesRead
  }
  return buffer
}

function failed(why: string, cause?: unknown): SluiceError {
  return new SluiceError('audit_sink.failed', `the audit sink: ${why}`, {
    retry: 'later',
    hint: 'Look at auditSink.file; move a file that is not ours away, and it begins a new one.',
    ...(cause === undefined ? {} : { cause }),
  })
}
