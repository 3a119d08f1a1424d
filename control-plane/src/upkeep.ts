/** Does what no event asks for, every hour: it looks at rows alone, so a crash forgets none of it. */
import { isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

/** One piece of work, which another run may take up where this one was cut short. */
type Chore = (signal: AbortSignal) => Promise<unknown>

type Upkeep = {
  chores: Readonly<Record<string, Chore>>
  /** Is told which failed; the others go on, and the next run tries again. */
  report: (chore: string, problem: unknown) => void
  firstMs?: number
  everyMs?: number
}

/** Begins; nothing is done before `firstMs`. It ends by being disposed of. */
export function startUpkeep(options: Upkeep): AsyncDisposable {
  const { chores, report, firstMs = limits.upkeepFirstMs, everyMs = limits.upkeepMs } = options
  const ending = new AbortController()
  let running = Promise.resolve()
  let timer: NodeJS.Timeout | undefined

  async function run(): Promise<void> {
    for (const [name, chore] of Object.entries(chores)) {
      if (ending.signal.aborted) return
      try {
        await chore(ending.signal)
      } catch (error) {
        if (!isSluiceError(error)) throw error
        report(name, error)
      }
    }
    if (!ending.signal.aborted) again(everyMs)
  }

  function again(waitMs: number): void {
    timer = setTimeout(() => {
      running = run()
    }, waitMs).unref()
  }

  again(firstMs)
  return {
    async [Symbol.asyncDispose]() {
      ending.abort()
      clearTimeout(timer)
      await running
    },
  }
}
