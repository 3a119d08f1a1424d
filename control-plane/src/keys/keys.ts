/** The control plane's keys as its other parts see them: ciphertext, envelopes and public keys only. */
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { AgentId, EpochId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type { Database } from '../database/database.ts'
import { isWriteFailure, writeRetryMs } from '../database/write-failure.ts'
import type { DestructionLevel, EpochKeyLedger } from './epoch-key-store.ts'
import type {
  EscrowRequest,
  LeaseKeyRequest,
  SuppliedReceiveKey,
  WrappedKey,
} from './key-operations.ts'
import type { KeyProcess } from './key-process-link.ts'
import { createOutage, type Outage, type OutageListener } from './outage.ts'
import { makeSupply } from './receive-keys.ts'
import { type Holders, rollOnce } from './roll.ts'
import {
  epochsIn,
  expireReceiveKeys,
  giveUpEpochs,
  jobKeyOf,
  leastLevelSince,
  liveEpochs,
  receiveKeyGone,
  seedOf,
} from './store.ts'

export type { WrappedKey } from './key-operations.ts'

export type Keys = AsyncDisposable & {
  /**
   * Opens an escrow envelope, compares the key with the archive's header, and wraps it. Pass the
   * result to `storeJobKey` (keys/store.ts) in the transaction that writes the job; nothing is
   * stored before that.
   *
   * @throws SluiceError `keys.destroyed` when there is no such receive key of this sender,
   * `envelope.refused`, `envelope.bad_input`, `keys.escrow_mismatch`.
   */
  openEscrow(request: EscrowRequest): Promise<WrappedKey>
  /**
   * Seals the job's key to one lease. The caller has checked that the lease holds.
   *
   * @returns The `job-key-lease` envelope.
   * @throws SluiceError `keys.destroyed` when the job has no key, `envelope.bad_input`.
   */
  sealForLease(request: LeaseKeyRequest): Promise<Buffer>
  /**
   * Makes receive keys for an agent that says it has `stock`, at most
   * `limits.receiveKeysPerMessage` at once; their seeds are durable when this returns.
   */
  supplyReceiveKeys(agentId: AgentId, stock: number): Promise<SuppliedReceiveKey[]>
  /**
   * Makes every key unrecoverable whose row was deleted before this call. Rolls that are asked for
   * within `limits.epochRollCoalesceMs` are one.
   *
   * @param signal Ends the waiting, not the roll.
   * @returns When the old epoch key was destroyed.
   * @throws SluiceError `keys.unavailable` (`later`) when the waiting was ended.
   */
  roll(signal?: AbortSignal): Promise<{ destroyedAtMs: number }>
  /** As `roll`, without waiting for others. */
  rollNow(): Promise<{ destroyedAtMs: number }>
  /** What the destruction of an epoch key may claim here. */
  readonly level: DestructionLevel
  /** The least that may be claimed for a job announced at an instant, wherever its keys have lain. */
  levelSince(announcedAtMs: number): Promise<DestructionLevel>
}

export type KeysParts = {
  database: Database
  /** Where epoch keys lie; it stays the caller's. */
  store: EpochKeyLedger
  /** Starts a process that holds no key yet. */
  startProcess: () => Promise<KeyProcess>
  /** Integer epoch milliseconds. */
  now: () => number
  /** How long unused receive keys live. */
  offlineMsMax: number
  /** Is told of upkeep that failed; it is tried again by itself. */
  report: (problem: SluiceError) => void
  /** Is told when the store of the keys is out of reach, and when it is back. */
  outage?: OutageListener
  /** Somebody has said that the current epoch's key is lost for good: go on without what it opened. */
  acceptLostKeys?: boolean
  coalesceMs?: number
  pageKeys?: number
}

/** How often a request is repeated whose epoch or process ended under it. */
const triesMax = 4

function endedUnder(error: SluiceError): boolean {
  return (
    error.code === 'keys.no_epoch' ||
    (error.retry === 'later' &&
      (error.code === 'keys.destroyed' || error.code === 'keys.unavailable'))
  )
}

/**
 * Takes over the keys: finishes what a crash left, makes the first epoch when there is none, and
 * holds the current one.
 *
 * @throws SluiceError `keys.no_epoch` when database and epoch key store do not belong together;
 * `keys.damaged`, `keys.unavailable`.
 */
export async function createKeys(given: KeysParts): Promise<Keys> {
  const outage = createOutage(given.outage)
  const parts = { ...given, store: watched(given.store, outage) }
  const { database, now } = parts
  const holders = createHolders(parts, outage)
  const rolls = createRolls({ ...parts, holders }, outage)
  await using unfinished = new AsyncDisposableStack()
  unfinished.use(holders)
  await matchStore(parts)
  const [rolling] = await database.read((sql) => epochsIn(sql, 'rolling'))
  const [current] = await database.read((sql) => epochsIn(sql, 'current'))
  const [retired] = await database.read((sql) => epochsIn(sql, 'retired'))
  if (rolling || retired || !current) await rollOnce({ ...parts, holders })
  const [lives] = await database.read((sql) => epochsIn(sql, 'current'))
  // Another store is configured: the keys move into it, and the old key is destroyed where it lay.
  if (lives && lives.store !== parts.store.name) await rollOnce({ ...parts, holders })
  const level = await parts.store.level()
  const receiveKeyAgeMsMax = Math.max(parts.offlineMsMax, limits.offlineMsMaxDefault)
  const running = unfinished.move()
  let upkeep: NodeJS.Timeout
  const keepUpIn = (waitMs: number): void => {
    upkeep = setTimeout(() => void keepUpNow(), waitMs).unref()
  }
  const keepUpNow = async (): Promise<void> => {
    const nextMs = await rolls.keepUp()
    if (nextMs !== undefined) keepUpIn(nextMs)
  }
  keepUpIn(limits.epochAgeMsMax)

  /** Repeats work whose epoch was rolled away between reading a row and using it. */
  async function repeating<T>(work: () => Promise<T>): Promise<T> {
    for (let tries = 1; ; tries += 1) {
      try {
        return await work()
      } catch (error) {
        if (tries >= triesMax || !isSluiceError(error) || !endedUnder(error)) throw error
      }
    }
  }

  return {
    level,
    levelSince: (atMs) =>
      // The receive key that a job key came by may have lain under earlier epochs.
      database.read((sql) => leastLevelSince(sql, atMs - receiveKeyAgeMsMax)),
    roll: (signal) => unlessAborted(rolls.roll(false), signal),
    rollNow: () => rolls.roll(true),

    openEscrow: (request) =>
      repeating(async () => {
        const { receiveKeyId: id, senderId: agentId } = request
        const seed = await database.read((sql) => seedOf(sql, { id, agentId }))
        if (!seed) throw receiveKeyGone()
        const holder = await holders.holding(seed.epochId)
        const { epochId, wrapped } = await holder.openEscrow({ ...request, seed })
        return { epochId, wrapped: Buffer.from(wrapped) }
      }),

    sealForLease: (request) =>
      repeating(async () => {
        const key = await database.read((sql) => jobKeyOf(sql, request.jobId))
        if (!key)
          throw new SluiceError('keys.destroyed', `job ${request.jobId} has no key any more`)
        const holder = await holders.holding(key.epochId)
        return Buffer.from(await holder.sealForLease({ ...request, key }))
      }),

    supplyReceiveKeys: (agentId, stock) =>
      repeating(async () => {
        const holder = await holders.newest()
        const supply = { database, holder, nowMs: now(), offlineMsMax: parts.offlineMsMax }
        return makeSupply(supply, { agentId, stock })
      }),

    async [Symbol.asyncDispose]() {
      clearTimeout(upkeep)
      await rolls[Symbol.asyncDispose]()
      await running.disposeAsync()
    },
  }
}

/**
 * Compares database and key store. Keys that no row knows are destroyed, but only where the current
 * epoch's key shows that the two belong together.
 */
async function matchStore(parts: KeysParts): Promise<void> {
  const { database, store } = parts
  const known = await database.read(async (sql) => [
    ...(await epochsIn(sql, 'current')),
    ...(await epochsIn(sql, 'rolling')),
    ...(await epochsIn(sql, 'retired')),
  ])
  const kept = await store.list()
  const lost = known.filter(({ id }) => !kept.includes(id))
  const missing = lost.some(({ state }) => state === 'current')
  const strange = kept.filter((id) => !known.some((epoch) => epoch.id === id))
  if (missing && parts.acceptLostKeys === true && strange.length === 0) {
    const ids = lost.map(({ id }) => id)
    await store.startAnew()
    await database.write((tx) => giveUpEpochs(tx, { ids, atMs: parts.now() }))
    return
  }
  if (missing || (known.length === 0 && strange.length > 0))
    throw new SluiceError('keys.no_epoch', 'the epoch keys do not belong to this database', {
      hint: 'Put back the epoch folder that was beside this database; with an HSM, the token that it was used with. Without them, no unfinished job can be opened any more: `sluice serve --accept-lost-keys` goes on without these jobs.',
    })
  for (const id of strange) await store.destroy(id)
}

function watched(store: EpochKeyLedger, outage: Outage): EpochKeyLedger {
  return {
    ...store,
    list: () => outage.watch(() => store.list()),
    destroy: (id) => outage.watch(() => store.destroy(id)),
  }
}

/** One process for each epoch that is held; started when asked for, also after a crash. */
function createHolders(
  parts: KeysParts,
  outage: Outage,
): Holders & AsyncDisposable & { newest(): Promise<KeyProcess> } {
  type Held = { process: Promise<KeyProcess>; next: EpochId | undefined }
  const held = new Map<EpochId, Held>()
  let newest: EpochId | undefined

  function start(ids: EpochId[], mayCreate: boolean): Promise<KeyProcess> {
    return outage.watch(async () => {
      const process = await parts.startProcess()
      try {
        for (const epochId of ids) await process.hold({ epochId, mayCreate })
        return process
      } catch (error) {
        await process[Symbol.asyncDispose]()
        throw error
      }
    })
  }

  async function processOf(id: EpochId, mayCreate: boolean): Promise<KeyProcess> {
    const known = held.get(id)
    if (known) {
      // A start that failed is tried again.
      const process = await known.process.catch(() => undefined)
      if (process?.alive) return process
      if (held.get(id) !== known) return processOf(id, mayCreate)
    }
    const ids = known?.next === undefined ? [id] : [id, known.next]
    const entry: Held = { process: start(ids, mayCreate), next: known?.next }
    held.set(id, entry)
    return entry.process
  }

  /** Lets the process of an epoch hold the next one too, or another in its place. */
  async function teach(one: { id: EpochId; next: EpochId; entry: Held }): Promise<KeyProcess> {
    const { id, next, entry } = one
    const process = await entry.process
    try {
      await process.hold({ epochId: next, mayCreate: false })
      entry.next = next
      return process
    } catch (error) {
      if (!isSluiceError(error, 'keys.unavailable') || !process.alive) throw error
    }
    // A token that was away is not seen again by a library that was there before. The old process
    // goes on working until another has taken both keys.
    const fresh = await start([id, next], false)
    if (held.get(id) !== entry) {
      await fresh[Symbol.asyncDispose]()
      return holders.lead(id, next)
    }
    held.set(id, { process: Promise.resolve(fresh), next })
    await process[Symbol.asyncDispose]()
    return fresh
  }

  const holders = {
    async holding(id: EpochId, options = { mayCreate: false }): Promise<KeyProcess> {
      const live = await parts.database.read((sql) => liveEpochs(sql))
      if (!live.includes(id))
        throw new SluiceError('keys.destroyed', `epoch ${id} is over`, { retry: 'later' })
      return processOf(id, options.mayCreate)
    },

    async lead(id: EpochId, next: EpochId): Promise<KeyProcess> {
      const process = await processOf(id, false)
      const entry = held.get(id)
      const leading = entry && entry.next !== next ? await teach({ id, next, entry }) : process
      newest = next
      return leading
    },

    async end(id: EpochId): Promise<void> {
      const entry = held.get(id)
      held.delete(id)
      const process = await entry?.process.catch(() => undefined)
      await process?.[Symbol.asyncDispose]()
    },

    /** The process that new wraps go to. */
    async newest(): Promise<KeyProcess> {
      const live = await parts.database.read((sql) => liveEpochs(sql))
      const id = newest !== undefined && live.includes(newest) ? newest : live[0]
      if (id === undefined) throw new SluiceError('keys.no_epoch', 'there is no epoch yet')
      return processOf(id, false)
    },

    async [Symbol.asyncDispose]() {
      for (const id of held.keys()) await holders.end(id)
    },
  }
  return holders
}

/** Rolls one after another; requests that come while none has begun share the next one. */
function createRolls(
  parts: KeysParts & { holders: Holders },
  outage: Outage,
): AsyncDisposable & {
  roll(hurry: boolean): Promise<{ destroyedAtMs: number }>
  /** @returns When to do it again; undefined when the control plane ends. */
  keepUp(): Promise<number | undefined>
} {
  const coalesceMs = parts.coalesceMs ?? limits.epochRollCoalesceMs
  const ending = new AbortController()
  let tail: Promise<unknown> = Promise.resolve()
  let next: { done: Promise<{ destroyedAtMs: number }>; hurry: () => void } | undefined
  /** Monotonic, so that a clock set back delays no roll. */
  let begunAt = Number.NEGATIVE_INFINITY

  async function rollThrough(): Promise<{ destroyedAtMs: number }> {
    for (;;) {
      const report = await rollOnce(parts)
      outage.end()
      // A roll that was resumed may carry what was deleted after it began: it does not count.
      if (!report.resumed && report.destroyedAtMs !== null)
        return { destroyedAtMs: report.destroyedAtMs }
    }
  }

  async function begin(previous: Promise<unknown>, hurried: Promise<void>) {
    await previous
    const waitMs = begunAt + coalesceMs - performance.now()
    if (waitMs > 0) await Promise.race([hurried, pause(waitMs, ending.signal)])
    // Whoever asks from now on may have deleted something that this roll carries over.
    next = undefined
    ending.signal.throwIfAborted()
    begunAt = performance.now()
    return rollThrough()
  }

  function roll(hurry: boolean): Promise<{ destroyedAtMs: number }> {
    if (!next) {
      const hurried = Promise.withResolvers<void>()
      const done = begin(tail, hurried.promise)
      // The next roll is independent of this one's fate, which its callers hear of.
      tail = done.catch(() => undefined)
      next = { done, hurry: hurried.resolve }
    }
    if (hurry) next.hurry()
    return next.done
  }

  return {
    roll,

    async keepUp() {
      try {
        const expired = await parts.database.write((tx) => expireReceiveKeys(tx, parts.now()))
        const [current] = await parts.database.read((sql) => epochsIn(sql, 'current'))
        // What a roll that failed has left is finished by the next one.
        const [rolling] = await parts.database.read((sql) => epochsIn(sql, 'rolling'))
        const [retired] = await parts.database.read((sql) => epochsIn(sql, 'retired'))
        const old = !current || parts.now() - current.createdAtMs >= limits.epochAgeMsMax
        if (expired > 0 || old || rolling || retired) await roll(false)
      } catch (error) {
        if (ending.signal.aborted) return undefined
        // A full disk is said by the database, and worth another look soon.
        if (isWriteFailure(error)) return writeRetryMs
        if (!isSluiceError(error)) throw error
        parts.report(error)
        if (error.retry === 'later') return ending.signal.aborted ? undefined : limits.keysRetryMs
      }
      return ending.signal.aborted ? undefined : limits.epochAgeMsMax
    },

    async [Symbol.asyncDispose]() {
      const reason = new SluiceError('keys.unavailable', 'the control plane ends', {
        retry: 'later',
      })
      ending.abort(reason)
      await tail
    },
  }
}

/** The outcome of `work`, unless `signal` comes first; then `work` goes on unheard. */
async function unlessAborted<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work
  const aborted = Promise.withResolvers<never>()
  const abort = (): void =>
    aborted.reject(new SluiceError('keys.unavailable', 'no longer waited for', { retry: 'later' }))
  if (signal.aborted) abort()
  signal.addEventListener('abort', abort, { once: true })
  try {
    return await Promise.race([work, aborted.promise])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

/** Waits, or less when `signal` aborts. */
function pause(waitMs: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>()
  const timer = setTimeout(resolve, waitMs)
  signal.addEventListener('abort', () => resolve(), { once: true })
  return promise.finally(() => clearTimeout(timer))
}
