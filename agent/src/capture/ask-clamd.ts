/** Asks clamd one thing over its Unix socket, and waits for the answer no longer than it may take. */
import { type Socket, connect } from 'node:net'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

/**
 * One question and its answer.
 *
 * @param command Such as `PING`, or `INSTREAM` with `content`.
 * @param options.content Streamed; clamd's answer may come before its end.
 * @returns The answer without its closing zero.
 * @throws SluiceError `scan.unavailable` when nobody listens, `scan.failed` when the answer does not
 *   come, is cut short or too long; what `content` throws.
 */
export async function askClamd(
  socketFile: string,
  command: string,
  options: { content?: AsyncIterable<Uint8Array>; wallMs: number; signal?: AbortSignal },
): Promise<string> {
  const { content, wallMs } = options
  const ending = AbortSignal.any([
    AbortSignal.timeout(wallMs),
    ...(options.signal === undefined ? [] : [options.signal]),
  ])
  const socket = await open(socketFile, ending)
  const answered = hear(socket, ending)
  const asked = say(socket, command, content)
  const [answer, question] = await Promise.allSettled([answered, asked])
  // What goes wrong with the source itself comes before anything the scanner made of half of it.
  if (question.status === 'rejected') throw question.reason
  if (answer.status === 'rejected') throw answer.reason
  return answer.value
}

async function open(socketFile: string, ending: AbortSignal): Promise<Socket> {
  const socket = connect(socketFile)
  const abort = () => socket.destroy(new Error('no answer in time'))
  ending.addEventListener('abort', abort, { once: true })
  socket.once('close', () => ending.removeEventListener('abort', abort))
  try {
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve)
      socket.once('error', reject)
      if (ending.aborted) abort()
    })
    return socket
  } catch (cause) {
    socket.destroy()
    throw new SluiceError('scan.unavailable', 'the scanner cannot be reached', {
      retry: 'later',
      hint: 'Start clamd (Debian: systemctl start clamav-daemon), and let the agent use its socket.',
      cause,
    })
  }
}

/** Reads to the zero byte that ends an answer, and closes. */
function hear(socket: Socket, ending: AbortSignal): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = ''
    let broken: Error | undefined
    socket.setEncoding('latin1')
    socket.on('data', (piece: string) => {
      text += piece
      if (text.includes('\0') || text.length > limits.scanReplyBytesMax) socket.destroy()
    })
    // Without an answer this is the reason; with one it is how clamd hangs up on further bytes.
    socket.on('error', (error) => (broken = error))
    socket.on('close', () => {
      const end = text.indexOf('\0')
      if (end >= 0 && end <= limits.scanReplyBytesMax) return resolve(text.slice(0, end))
      const why = ending.aborted ? 'did not answer in time' : 'ended without an answer'
      reject(
        new SluiceError('scan.failed', `the scanner ${why}`, {
          retry: 'later',
          hint: 'Look at the log of clamd; the medium is tried again.',
          ...(broken === undefined ? {} : { cause: broken }),
        }),
      )
    })
  })
}

/** @see clamd(8): `z` before a command that ends with a zero; chunks with a length, 0 at the end. */
async function say(
  socket: Socket,
  command: string,
  content: AsyncIterable<Uint8Array> | undefined,
): Promise<void> {
  try {
    await write(socket, Buffer.from(`z${command}\0`, 'latin1'))
    if (content === undefined) return
    for await (const piece of content) {
      if (piece.length === 0) continue
      if (!socket.writable) return
      await write(socket, lengthOf(piece.length))
      await write(socket, piece)
      piece.fill(0)
    }
    await write(socket, lengthOf(0))
  } catch (error) {
    socket.destroy()
    throw error
  }
}

function lengthOf(bytes: number): Buffer {
  const length = Buffer.alloc(4)
  length.writeUInt32BE(bytes)
  return length
}

/** Resolves once the bytes are out, or the socket is closed: then the answer tells what was wrong. */
function write(socket: Socket, bytes: Uint8Array): Promise<void> {
  return new Promise((resolve) => {
    if (socket.destroyed) return resolve()
    const done = () => {
      socket.off('close', done)
      resolve()
    }
    socket.once('close', done)
    socket.write(bytes, done)
  })
}
