/** One append-only file with every audit event: only ever continued, and read back before it counts. */
import { constants } from 'node:fs'
import { type FileHandle, open, realpath } from 'node:fs/promises'
import { dirname, resolve, sep } from 'node:path'
import { canonicalJson } from '@sluice/protocol/canonical'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { type ChainedEvent, type ChainHead, followChain } from './rules.ts'

/** An event is below 64 KiB: its detail is flat and its texts are bounded. */
const lineBytesMax = 64 * 1024

/** What the sink needs of the file; tests let them fail. */
export type OpenFile = (path: string) => Promise<FileHandle>

export type SinkDeps = {
  path: string
  /** Nothing of the control plane's own may be overwritten or filled by it. */
  dataDir: string
  /** Events after `seq`, in their order, at most `items`. */
  eventsAfter: (seq: number, items: number) => Promise<ChainedEvent[]>
  openFile?: OpenFile
}

/** The line of an event, as it lies in the file. */
export function lineOf(event: ChainedEvent): string {
  return `${canonicalJson(event)}\n`
}

const openForAppending: OpenFile = (path) =>
  open(
    path,
    constants.O_RDWR | constants.O_APPEND | constants.O_CREAT | constants.O_NOFOLLOW,
    0o600,
  )

/**
 * Appends the next events.
 *
 * @param known How far the file is known to reach. One that is empty was moved away: it goes on there.
 * @param items At most this many.
 * @returns How far it reaches now; the same as before when nothing is left to append.
 * @throws SluiceError `audit_sink.failed` when it cannot be written, or holds what does not continue
 * the chain; nothing of that is ever cut off.
 */
export async function appendPage(
  deps: SinkDeps,
  known: ChainHead,
  items: number,
): Promise<ChainHead> {
  try {
    await refuseOwnFolder(deps)
    const file = await (deps.openFile ?? openForAppending)(deps.path)
    try {
      const facts = await file.stat()
      if (!facts.isFile()) throw failed('it is not a regular file')
      const { head, bytes } = await tailOf(file, facts.size, deps, known)
      const events = await deps.eventsAfter(head.seq, items)
      const verdict = followChain(events, head)
      if (!verdict.whole)
        throw failed(`it does not continue at event ${verdict.seq}: ${verdict.reason}`)
      if (events.length === 0) return head
      const page = Buffer.from(events.map(lineOf).join(''))
      await file.appendFile(page)
      await file.datasync()
      if (!(await readExactly(file, bytes, page.length)).equals(page))
        throw failed('what was read back is not what was written')
      return verdict.head
    } finally {
      await file.close()
    }
  } catch (cause) {
    if (isSluiceError(cause)) throw cause
    const { code } = cause as NodeJS.ErrnoException
    if (code === undefined) throw cause
    throw failed(code === 'ELOOP' ? 'it is a link' : code, cause)
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
