/** What the demo must take away again, however it ends: at its end, on failure, on Ctrl-C. */

export type Ownership = {
  /**
   * Takes a resource over.
   *
   * @throws Error when the demo was interrupted meanwhile; the resource is then disposed at once.
   */
  own<T extends AsyncDisposable>(resource: T): Promise<T>
  /** Ends everything, so that whoever waits for some of it fails, and remembers the exit code. */
  interrupt(code: number): void
  /** The exit code of an interruption. */
  readonly interruptedBy: number | undefined
  /** Settles on an interruption. */
  readonly interrupted: Promise<void>
  /** Disposes everything, once, and waits until that is done. */
  end(): Promise<void>
}

/** Nothing owned yet. */
export function makeOwnership(): Ownership {
  const owned = new AsyncDisposableStack()
  const { promise: interrupted, resolve } = Promise.withResolvers<void>()
  let interruptedBy: number | undefined
  let ended: Promise<void> | undefined
  const end = (): Promise<void> => (ended ??= owned.disposeAsync())
  return {
    async own(resource) {
      if (ended === undefined) return owned.use(resource)
      await resource[Symbol.asyncDispose]()
      throw new Error('interrupted')
    },
    interrupt(code) {
      interruptedBy = code
      resolve()
      // Whoever waits for the end hears of its failure.
      end().catch(() => undefined)
    },
    get interruptedBy() {
      return interruptedBy
    },
    interrupted,
    end,
  }
}
