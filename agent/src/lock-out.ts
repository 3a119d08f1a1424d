/** Takes a revoked agent out by itself: nothing is begun any more, leases end, and sealed spools stay as they are. */
import { SluiceError } from '@sluice/protocol/errors'
import type { ControlLink } from './control-link.ts'
import { isDiskFull } from './durable-file.ts'
import type { Journal } from './journal.ts'

/**
 * Exit status of an agent that was revoked: starting it again changes nothing, and the units say so
 * (`RestartPreventExitStatus`). EX_NOPERM of sysexits(3).
 */
export const lockedOutExitStatus = 77

export type LockOut = {
  /** Aborted once the control plane has said that this agent is revoked. */
  readonly revoked: AbortSignal
  /** Whether a process before this one had learnt it. */
  readonly wasLockedOut: boolean
  /** The control plane said it, on the link or elsewhere. */
  learn(): void
  /**
   * Ends the work of this agent.
   *
   * @param endRole Ends what runs and wipes what is in memory.
   * @throws SluiceError `identity.revoked`, always: an agent that is out does nothing any more.
   */
  end(endRole: () => Promise<void>): Promise<never>
}

/** Watches the link; the word of a control plane counts that TLS has verified. */
export function createLockOut(options: {
  journal: Journal
  link: Pick<ControlLink, 'onState' | 'problem'>
  events: { lockedOut(): void }
  now?: () => number
}): LockOut {
  const { journal, link } = options
  const now = options.now ?? Date.now
  const revoked = new AbortController()
  const wasLockedOut = journal.data.lockedOutAtMs !== undefined
  const learn = (): void => {
    if (revoked.signal.aborted) return
    options.events.lockedOut()
    revoked.abort()
  }
  link.onState((state) => {
    if (state === 'refused' && link.problem?.code === 'identity.revoked') learn()
  })

  /** A full disk is no reason to go on: the next start learns it again. */
  async function remember(): Promise<void> {
    try {
      await journal.change((draft) => void (draft.lockedOutAtMs ??= now()), { urgent: true })
    } catch (error) {
      const full = error instanceof SluiceError && error.code === 'host.disk_full'
      if (!full && !isDiskFull(error)) throw error
    }
  }

  return {
    revoked: revoked.signal,
    wasLockedOut,
    learn,
    async end(endRole) {
      if (wasLockedOut) options.events.lockedOut()
      // Wiping waits for nothing.
      await Promise.all([endRole(), remember()])
      throw new SluiceError('identity.revoked', 'this agent was revoked', {
        hint: 'Ask security. Its sealed spools are kept; the host joins again with an empty state directory.',
      })
    },
  }
}
