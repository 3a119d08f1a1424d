/** The main process's end of a child that works with keys: bounded, timed requests, and its sure end. */
import assert from 'node:assert/strict'
import type { ChildProcess } from 'node:child_process'
import { type ErrorCode, SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

export type ChildQuestion = { number: number; operation: string; request: unknown }
export type ChildProblem = {
  code: ErrorCode
  message: string
  retry: 'never' | 'later'
  hint?: string
}
/** Number 0: how its start ended. */
export type ChildAnswer = { number: number; reply?: unknown; problem?: ChildProblem }

/** Disposing it kills the child and waits until it is reaped. */
export type ChildLink = AsyncDisposable & {
  readonly alive: boolean
  readonly pid: number | undefined
  /** @throws SluiceError `keys.unavailable` when the child is gone or late, else what it threw. */
  ask(operation: string, request: unknown): Promise<unknown>
}

type Waiting = {
  resolve: (reply: unknown) => void
  reject: (error: Error) => void
  timer: NodeJS.Timeout
}

/**
 * Waits until a child says that it is ready.
 *
 * @param options.name What it is called in errors.
 * @param options.answerMs For each request; longer, and it is killed.
 * @throws SluiceError `keys.unavailable` when it does not come up, else what stopped its start.
 */
export async function linkTo(
  child: ChildProcess,
  options: { name: string; answerMs: number },
): Promise<ChildLink> {
  const { name, answerMs } = options
  const waiting = new Map<number, Waiting>()
  const exited = Promise.withResolvers<void>()
  let number = 0
  let alive = true

  function unavailable(why: string, cause?: unknown): SluiceError {
    return new SluiceError('keys.unavailable', `${name} ${why}`, { retry: 'later', cause })
  }

  function fail(error: SluiceError): void {
    alive = false
    child.kill('SIGKILL')
    for (const { reject, timer } of waiting.values()) {
      clearTimeout(timer)
      reject(error)
    }
    waiting.clear()
  }

  function answerTo(asked: number, what: string, timeoutMs: number): Promise<unknown> {
    const { promise, resolve, reject } = Promise.withResolvers<unknown>()
    const timer = setTimeout(() => fail(unavailable(`did not ${what} in time`)), timeoutMs)
    waiting.set(asked, { resolve, reject, timer })
    return promise
  }

  child.on('message', (answer: ChildAnswer) => {
    if (!alive) return
    const waiter = waiting.get(answer.number)
    assert(waiter, `${name} answered what nobody asked`)
    waiting.delete(answer.number)
    clearTimeout(waiter.timer)
    const { problem } = answer
    if (!problem) waiter.resolve(answer.reply)
    else waiter.reject(new SluiceError(problem.code, problem.message, problem))
  })
  child.on('error', (cause) => {
    if (child.pid === undefined) exited.resolve()
    fail(unavailable('failed', cause))
  })
  child.on('exit', (code, signal) => {
    exited.resolve()
    fail(unavailable(`ended (${signal ?? `code ${code}`})`))
  })

  const link: ChildLink = {
    get alive() {
      return alive
    },
    pid: child.pid,
    ask(operation, request) {
      if (!alive) return Promise.reject(unavailable('has ended'))
      if (waiting.size >= limits.keyRequestsMax)
        return Promise.reject(
          new SluiceError('keys.unavailable', `too many requests wait for ${name}`, {
            retry: 'later',
          }),
        )
      number += 1
      const question: ChildQuestion = { number, operation, request }
      const answer = answerTo(number, `answer ${operation}`, answerMs)
      child.send(question)
      return answer
    },
    async [Symbol.asyncDispose]() {
      fail(unavailable('was ended'))
      await exited.promise
    },
  }
  try {
    await answerTo(0, 'start', limits.requestTimeoutMs)
  } catch (error) {
    await link[Symbol.asyncDispose]()
    throw error
  }
  return link
}
