/** The door for commands on the same host: one JSON line in, JSON lines out, for the owner alone. */
import { chmod, stat, unlink } from 'node:fs/promises'
import { type Socket, connect, createServer } from 'node:net'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { jobId, submissionId } from '@sluice/protocol/ids'
import { sourcePolicy } from '@sluice/protocol/job'
import { analyserName } from '@sluice/protocol/manifest'
import { problem } from '@sluice/protocol/messages'
import { z } from 'zod'
import { isMissing } from './durable-file.ts'
import { errorOf, problemOf } from './problem.ts'

/** What may be asked; one request a connection. */
export const localRequest = z.discriminatedUnion('type', [
  /** Each inner list becomes one job. Paths are absolute. */
  z.strictObject({
    type: z.literal('submit'),
    groups: z
      .array(z.array(z.string().max(4096)).min(1).max(1000))
      .min(1)
      .max(1000),
    analyser: analyserName.optional(),
    source: sourcePolicy.optional(),
    moveTo: z.string().max(4096).optional(),
  }),
  /** Answers with the state of these submissions whenever it changes, until all are settled. */
  z.strictObject({ type: z.literal('follow'), submissionIds: z.array(submissionId).max(1000) }),
  z.strictObject({ type: z.literal('status') }),
  z.strictObject({ type: z.literal('results'), jobId: jobId.optional() }),
])
export type LocalRequest = z.infer<typeof localRequest>

/** The last line of every answer. */
const localEnd = z.union([
  z.strictObject({ end: z.literal(true) }),
  z.strictObject({ end: z.literal(true), problem }),
])

/** A list of paths fits; nothing else needs more. */
const lineBytesMax = 8 * 1024 * 1024

export type LocalSocket = AsyncDisposable

/**
 * Listens. The socket also says that this state directory is in use: a second agent is refused.
 *
 * @param serve Answers one request with any number of lines.
 * @throws SluiceError `request.conflict` when another agent has the folder of the socket.
 */
export async function openLocalSocket(
  file: string,
  serve: (request: LocalRequest, say: (line: object) => void, signal: AbortSignal) => Promise<void>,
): Promise<LocalSocket> {
  await using unfinished = new AsyncDisposableStack()
  unfinished.use(await lockFolder(path.dirname(file)))
  if (await isAnswered(file)) throw inUse()
  await unlink(file).catch((error: unknown) => {
    if (!isMissing(error)) throw error
  })
  const sockets = new Set<Socket>()
  // A caller that closes its half is taken for gone: it keeps the line open while it listens.
  const server = createServer((socket) => {
    sockets.add(socket)
    const ending = new AbortController()
    // A caller that goes away needs no answer.
    socket.on('error', () => socket.destroy())
    socket.on('close', () => {
      sockets.delete(socket)
      ending.abort()
    })
    const say = (line: object) => {
      if (socket.writable) socket.write(`${JSON.stringify(line)}\n`)
    }
    const work = async () => {
      say(await answer(socket, (request) => serve(request, say, ending.signal)))
      socket.end()
    }
    void work()
  })
  // Created 0600 from the first moment: the folder is 0700, and the mask covers the rest.
  const mask = process.umask(0o177)
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(file, resolve)
    })
  } finally {
    process.umask(mask)
  }
  await chmod(file, 0o600)
  const lock = unfinished.move()
  return {
    async [Symbol.asyncDispose]() {
      for (const socket of sockets) socket.destroy()
      await new Promise((done) => void server.close(done))
      await lock.disposeAsync()
    },
  }
}

/**
 * Keeps a folder to one agent: an abstract Unix socket (unix(7)) named after the folder itself. The
 * kernel gives a name once, and frees it with the process, however that ends. Names count within
 * one network namespace; an agent in another one is found by its socket, if not at the same moment.
 */
async function lockFolder(folder: string): Promise<AsyncDisposable> {
  const { dev, ino } = await stat(folder)
  const server = createServer((socket) => socket.destroy())
  try {
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(`\0sluice-agent/${dev}/${ino}`, resolve)
    })
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'EADDRINUSE') throw cause
    throw inUse(cause)
  }
  return {
    async [Symbol.asyncDispose]() {
      await new Promise((done) => void server.close(done))
    },
  }
}

async function answer(
  socket: Socket,
  serve: (request: LocalRequest) => Promise<void>,
): Promise<z.infer<typeof localEnd>> {
  try {
    const parsed = localRequest.safeParse(JSON.parse(await firstLine(socket)))
    if (!parsed.success)
      throw new SluiceError('request.invalid', z.prettifyError(parsed.error).slice(0, 400))
    await serve(parsed.data)
    return { end: true }
  } catch (error) {
    if (error instanceof SyntaxError)
      return { end: true, problem: problemOf(new SluiceError('request.invalid', 'not JSON')) }
    if (!isSluiceError(error)) throw error
    return { end: true, problem: problemOf(error) }
  }
}

function firstLine(socket: Socket): Promise<string> {
  return new Promise((resolve, reject) => {
    let text = ''
    socket.setEncoding('utf8')
    socket.on('data', (piece: string) => {
      text += piece
      const end = text.indexOf('\n')
      if (end >= 0) resolve(text.slice(0, end))
      else if (text.length > lineBytesMax)
        reject(new SluiceError('request.invalid', 'the request is too long'))
    })
    socket.on('end', () => reject(new SluiceError('request.invalid', 'the request is cut short')))
    socket.on('close', () => reject(new SluiceError('channel.closed', 'the caller went away')))
  })
}

async function isAnswered(file: string): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = connect(file, () => {
      socket.destroy()
      resolve(true)
    })
    socket.on('error', () => resolve(false))
  })
}

function inUse(cause?: unknown): SluiceError {
  return new SluiceError('request.conflict', 'an agent is running in this state directory', {
    hint: 'Stop it first, or use another state directory.',
    cause,
  })
}

/**
 * Asks the running agent of a state directory.
 *
 * @param hear Gets every line of the answer but the last.
 * @throws SluiceError `agent.unreachable` when none runs, and what the agent answers.
 */
export async function askAgent(
  file: string,
  request: LocalRequest,
  hear: (line: unknown) => void,
): Promise<void> {
  const unreachable = (cause?: unknown) =>
    new SluiceError('agent.unreachable', 'no agent is running in this state directory', {
      hint: 'Start it with `sluice-agent run`, or name its --state-dir. It answers its own user only.',
      cause,
    })
  const socket = connect(file)
  const failed = new Promise<never>((_resolve, reject) => {
    socket.on('error', (cause) => reject(unreachable(cause)))
  })
  const heard = (async () => {
    socket.write(`${JSON.stringify(request)}\n`)
    for await (const line of createInterface({ input: socket, crlfDelay: Infinity })) {
      const value: unknown = JSON.parse(line)
      const end = localEnd.safeParse(value)
      if (!end.success) hear(value)
      else if ('problem' in end.data) throw errorOf(end.data.problem)
      else return
    }
    throw new SluiceError('agent.unreachable', 'the agent ended before it had answered', {
      hint: 'Look at its log and ask `sluice-agent status`.',
    })
  })()
  try {
    await Promise.race([heard, failed])
  } finally {
    socket.destroy()
    heard.catch(() => {
      // Whatever it was, the caller has it already.
    })
    failed.catch(() => {
      // The same.
    })
  }
}
