/** A child that works with keys: does what its parent asks, one answer each, and ends with it. */
import assert from 'node:assert/strict'
import { isSluiceError } from '@sluice/protocol/errors'
import type { ChildAnswer, ChildProblem, ChildQuestion } from './child-link.ts'

type Work = (request: never) => Promise<unknown>

/**
 * Runs until the parent is gone.
 *
 * @param start Told to the parent when it fails; what it returns is then asked for by name.
 */
export async function answerParent(
  start: (argument: string) => Promise<Readonly<Record<string, Work>>>,
): Promise<void> {
  const argument = process.argv[2]
  assert(argument !== undefined && process.send !== undefined, 'started by hand')

  // The parent decides when this process ends; a signal to the whole group must not come before it.
  process.on('SIGTERM', () => undefined)
  process.on('SIGINT', () => undefined)
  process.on('disconnect', () => process.exit(0))

  async function answer(number: number, work: () => Promise<unknown>): Promise<void> {
    let reply: ChildAnswer
    try {
      reply = { number, reply: await work() }
    } catch (error) {
      reply = { number, problem: problemOf(error) }
    }
    process.send?.(reply)
  }

  await answer(0, async () => {
    const operations = await start(argument)
    process.on('message', ({ number, operation, request }: ChildQuestion) => {
      const work = operations[operation] as ((request: unknown) => Promise<unknown>) | undefined
      assert(work, `nobody does ${operation}`)
      void answer(number, () => work(request))
    })
  })
}

/** A bug ends this process; the parent starts another. */
function problemOf(error: unknown): ChildProblem {
  if (!isSluiceError(error)) throw error
  const { code, message, retry, hint } = error
  return { code, message, retry, ...(hint === undefined ? {} : { hint }) }
}
