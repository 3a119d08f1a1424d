/** One agent's end of the channel: bounded, validated messages over an authenticated socket. */
import type { RawData, WebSocket } from 'ws'
import { z } from 'zod'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { decodeFrame, encodeFrame, type Frame } from '@sluice/protocol/frame'
import type { AgentId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import {
  type Ack,
  type AgentRequest,
  attachmentBytesMax,
  type DownMessage,
  type Heartbeat,
  type Hello,
  type Problem,
  requests,
  type UpMessage,
  upMessage,
} from '@sluice/protocol/messages'
import { expectedFailure, problemOf } from './problem.ts'
import { bucketPauseMs, type MessageBucket, refillBucket, spendMessage } from './rules.ts'

/** Who is at the other end, as its client certificate and our own row say. */
export type LinkAgent = {
  id: AgentId
  role: 'capture' | 'gpu'
  site: string
  /** The link is closed at the end of the certificate it was opened with. */
  certificateExpiresAtMs?: number
}

export type Answer = { body: object; attachment?: Uint8Array }

/** What is done with messages. Only expected failures may come back; anything else is a bug. */
export type LinkWork = {
  now: () => number
  /** Milliseconds without any frame after which the agent is taken for gone. */
  silenceMs: number
  /** Makes the agent present and sends the welcome. @throws SluiceError to refuse it. */
  greet(link: Link, hello: Hello): Promise<void>
  heartbeat(heartbeat: Heartbeat): Promise<DownMessage>
  acknowledge(ack: Ack): Promise<void>
  answer(request: AgentRequest, attachment: Buffer | undefined): Promise<Answer>
  /** Called once, when the link is over. */
  ended(link: Link): Promise<void>
}

export type Link = {
  readonly agent: LinkAgent
  /** When the last frame came. */
  lastSeenAtMs: number
  send(message: DownMessage, attachment?: Uint8Array): void
  /** Says why, closes, and cuts the socket if the other side does not close in turn. */
  close(problem: Problem): void
  /** Whether nothing can be sent any more. */
  readonly closed: boolean
  /** Waits until everything this link had begun is done. */
  settled(): Promise<void>
}

const bucketBounds = { perSecond: limits.messagesPerSecondMax, burst: limits.messagesBurstMax }

/** How long a closed link may take to close on the other side. */
const closingMs = 2000

const requestShape = z.looseObject({
  type: z.literal('request'),
  requestId: z.uuidv7(),
  request: z.enum(Object.keys(requests) as (keyof typeof requests)[]),
})

/** Starts to read from a socket whose other end is `agent`. */
export function acceptLink(socket: WebSocket, agent: LinkAgent, work: LinkWork): Link {
  let phase: 'new' | 'greeted' | 'closed' = 'new'
  let greeting: Promise<void> = Promise.resolve()
  let bucket: MessageBucket = { tokens: limits.messagesBurstMax, atMs: work.now() }
  let restTimer: NodeJS.Timeout | undefined
  let pendingBytes = 0
  const answering = new Set<string>()
  const waiting: (() => void)[] = []
  let atWork = 0
  const tasks = new Set<Promise<void>>()

  const silence = setTimeout(() => {
    // While we leave its frames unread, it is not the agent that is silent.
    if (socket.isPaused) {
      silence.refresh()
      return
    }
    finish()
    socket.terminate()
  }, work.silenceMs)
  silence.unref()

  const link: Link = {
    agent,
    lastSeenAtMs: work.now(),
    get closed() {
      return phase === 'closed'
    },
    send(message, attachment) {
      if (phase === 'closed') return
      socket.send(encodeFrame(message, attachment))
      if (socket.bufferedAmount > limits.linkUnreadBytesMax) {
        finish()
        socket.terminate()
      }
    },
    close(problem) {
      if (phase === 'closed') return
      link.send({ type: 'goodbye', problem })
      finish()
      socket.close(problem.code === 'channel.too_large' ? 1009 : 1008, problem.code)
      setTimeout(() => socket.terminate(), closingMs).unref()
    },
    async settled() {
      while (tasks.size > 0) await Promise.all(tasks)
    },
  }

  function finish(): void {
    if (phase === 'closed') return
    phase = 'closed'
    clearTimeout(silence)
    clearTimeout(restTimer)
    // What is unread stays so, but the end of the connection has to be seen.
    socket.resume()
    for (const next of waiting.splice(0)) next()
    begin(work.ended(link))
  }

  /** Keeps track of work, so that nobody closes the database under it. A bug ends the process. */
  function begin(task: Promise<void>): void {
    const tracked = task.finally(() => {
      tasks.delete(tracked)
      breathe()
    })
    tasks.add(tracked)
  }

  /**
   * Leaves frames unread while too many wait or they come too fast. The agent is held up by the
   * network, not cut: after an outage it may honestly have a lot to say.
   */
  function breathe(): void {
    if (phase === 'closed') return
    const restMs = bucketPauseMs(bucket, limits.messagesPerSecondMax)
    const full = tasks.size >= limits.pendingRequestsMax || pendingBytes > limits.pendingBytesMax
    if (restMs === 0 && !full) {
      socket.resume()
      return
    }
    socket.pause()
    if (restMs === 0 || restTimer) return
    restTimer = setTimeout(() => {
      restTimer = undefined
      // More was read meanwhile, from what had already come in: that is owed too.
      bucket = refillBucket(bucket, work.now(), bucketBounds)
      breathe()
    }, restMs)
    restTimer.unref()
  }

  socket.on('message', (data, isBinary) => {
    if (phase === 'closed') return
    link.lastSeenAtMs = work.now()
    silence.refresh()
    try {
      receive(bytesOf(data), isBinary)
    } catch (error) {
      if (!isSluiceError(error)) throw error
      link.close(problemOf(error))
    }
  })
  // The library has already closed the socket for what it reports here: an oversized frame, or
  // bytes that are no WebSocket.
  socket.on('error', finish)
  socket.on('close', finish)

  function receive(bytes: Buffer, isBinary: boolean): void {
    bucket = spendMessage(bucket, work.now(), bucketBounds)
    if (agent.certificateExpiresAtMs !== undefined && work.now() >= agent.certificateExpiresAtMs)
      throw new SluiceError('identity.expired', 'the certificate of this link has run out', {
        retry: 'later',
        hint: 'Connect again with the renewed certificate.',
      })
    const frame = decodeFrame(bytes, isBinary)
    const message = checkedMessage(frame)
    if (message === undefined) return
    pendingBytes += bytes.length
    begin(workOff(message, frame.attachment).finally(() => void (pendingBytes -= bytes.length)))
    breathe()
  }

  /** The message, or undefined when it is a request whose body was refused with a reply. */
  function checkedMessage(frame: Frame): UpMessage | undefined {
    const parsed = upMessage.safeParse(frame.message)
    if (parsed.success) {
      const message = parsed.data as UpMessage
      checkAttachment(message, frame.attachment)
      if ((message.type === 'hello') !== (phase === 'new'))
        throw new SluiceError('channel.malformed', 'a link opens with exactly one hello')
      return message
    }
    // A single bad request must not cost the link, or an agent would never get past it.
    const shape = requestShape.safeParse(frame.message)
    if (!shape.success || phase === 'new')
      throw new SluiceError('channel.malformed', 'no message of this protocol')
    link.send({
      type: 'reply',
      requestId: shape.data.requestId,
      problem: {
        code: 'request.invalid',
        message: `${shape.data.request}: the body is not of its shape`,
        retry: 'never',
      },
    })
    return undefined
  }

  async function workOff(message: UpMessage, attachment: Buffer | undefined): Promise<void> {
    try {
      switch (message.type) {
        case 'hello': {
          phase = 'greeted'
          greeting = work.greet(link, message)
          await greeting
          return
        }
        case 'heartbeat': {
          await greeting
          link.send(await work.heartbeat(message))
          return
        }
        case 'ack': {
          await greeting
          await work.acknowledge(message)
          return
        }
        case 'request': {
          await greeting
          await answer(message, attachment)
          return
        }
      }
    } catch (error) {
      const failure = expectedFailure(error)
      if (!failure) throw error
      link.close(problemOf(failure))
    }
  }

  async function answer(request: AgentRequest, attachment: Buffer | undefined): Promise<void> {
    // The agent asks again when it is impatient; the one that is under way will answer.
    if (answering.has(request.requestId)) return
    answering.add(request.requestId)
    try {
      await turn()
      if (phase === 'closed') return
      await reply(request, attachment)
    } finally {
      atWork -= 1
      waiting.shift()?.()
      answering.delete(request.requestId)
    }
  }

  /** Waits until fewer than `limits.requestsAtOnceMax` requests of this link are worked on. */
  async function turn(): Promise<void> {
    atWork += 1
    if (atWork > limits.requestsAtOnceMax)
      await new Promise<void>((resolve) => void waiting.push(resolve))
  }

  async function reply(request: AgentRequest, attachment: Buffer | undefined): Promise<void> {
    const { requestId } = request
    try {
      const answered = await work.answer(request, attachment)
      link.send({ type: 'reply', requestId, body: answered.body }, answered.attachment)
    } catch (error) {
      const failure = expectedFailure(error)
      if (!failure) throw error
      link.send({ type: 'reply', requestId, problem: problemOf(failure) })
    }
  }

  return link
}

function checkAttachment(message: UpMessage, attachment: Buffer | undefined): void {
  const bytesMax =
    message.type === 'request' ? attachmentBytesMax.request[message.request] : undefined
  if (attachment === undefined) {
    if (bytesMax !== undefined)
      throw new SluiceError('channel.malformed', 'the message lacks its attachment')
    return
  }
  if (bytesMax === undefined)
    throw new SluiceError('channel.malformed', 'the message may not have an attachment')
  if (attachment.length > bytesMax)
    throw new SluiceError('channel.too_large', `attachment of ${attachment.length} bytes`, {
      hint: `At most ${bytesMax} bytes are taken here.`,
    })
}

function bytesOf(data: RawData): Buffer {
  if (Buffer.isBuffer(data)) return data
  return Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data)
}
