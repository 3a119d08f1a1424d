/** Runs one of our own programs as a child that holds what this process must never hold. */
import { fork } from 'node:child_process'
import { SluiceError } from '@sluice/protocol/errors'
import { problem as problemSchema } from '@sluice/protocol/messages'
import { keyChildEnvironment, keyChildFlags } from '@sluice/protocol/process/key-child'
import { z } from 'zod'
import { errorOf, problemOf } from '../problem.ts'

/** Last words of a child that failed. */
const failure = z.strictObject({ type: z.literal('failed'), problem: problemSchema })

/**
 * Gives a child its order and hears its messages until it has ended and was reaped.
 *
 * It gets no environment of ours and no standard streams: what it could print may quote a medium. Only
 * ciphertext, sealed envelopes, public keys and facts cross the channel.
 *
 * @param options.order Sent once; a structured clone, so Buffers arrive as bytes.
 * @param options.hear Gets every message but the failure.
 * @throws SluiceError The child's own problem; `internal` (later) when it was killed or crashed.
 */
export async function runChild(options: {
  script: URL
  order: object
  hear: (message: unknown) => void
  signal: AbortSignal
}): Promise<void> {
  options.signal.throwIfAborted()
  const child = fork(options.script, [], {
    serialization: 'advanced',
    env: keyChildEnvironment(),
    execArgv: keyChildFlags,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  })
  const kill = () => child.kill('SIGKILL')
  options.signal.addEventListener('abort', kill, { once: true })
  let failed: SluiceError | undefined
  child.on('message', (message) => {
    const parsed = failure.safeParse(message)
    if (parsed.success) failed = errorOf(parsed.data.problem)
    else options.hear(message)
  })
  try {
    const ended = new Promise<string>((resolve, reject) => {
      child.on('error', reject)
      child.on('exit', (code, signal) => resolve(signal ?? String(code)))
    })
    // An order that no longer arrives is told by the exit.
    child.send(options.order, () => {})
    const how = await ended
    options.signal.throwIfAborted()
    if (failed) throw failed
    if (how !== '0')
      throw new SluiceError('internal', `a child process ended early (${how})`, { retry: 'later' })
  } finally {
    options.signal.removeEventListener('abort', kill)
  }
}

/**
 * The child's side: waits for the order, works, says how it went, and ends. It also ends, at once,
 * when the parent is gone.
 *
 * @param work `say` sends a message to the parent.
 */
export function serveParent<Order>(
  order: z.ZodType<Order>,
  work: (order: Order, say: (message: object) => void) => Promise<void>,
): void {
  process.on('disconnect', () => process.exit(1))
  const say = (message: object) => void process.send?.(message)
  process.once('message', (message) => {
    work(order.parse(message), say).then(
      () => process.exit(0),
      (error: unknown) => {
        const expected =
          error instanceof SluiceError ? error : new SluiceError('internal', crashText(error))
        process.send?.({ type: 'failed', problem: problemOf(expected) }, () => process.exit(1))
      },
    )
  })
}

/** Where in our code it happened, without the message, which may quote what was worked on. */
function crashText(error: unknown): string {
  if (!(error instanceof Error)) return 'a child process crashed'
  const frame = error.stack?.split('\n').find((line) => line.trimStart().startsWith('at '))
  return `a child process crashed: ${error.name} ${frame?.trim() ?? ''}`
}
