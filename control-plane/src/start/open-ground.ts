/** Opens what the configuration names: data directory, lock, authority, database, keys, stores. */
import type { Log } from '@sluice/protocol/process/log'
import { type Authority, openAuthority } from '../access/authority.ts'
import { raiseAlert } from '../alerts/store.ts'
import { buildVersion } from '../build.ts'
import { type Changes, createChanges } from '../changes.ts'
import type { ControlPlaneConfig } from '../config.ts'
import { type DataDirectory, openDataDirectory } from '../data-directory.ts'
import { type Database, openDatabase } from '../database/database.ts'
import { lockFolder } from '../database/folder-lock.ts'
import { type Evidence, openEvidence } from '../deletion/evidence.ts'
import { createEvents, type Events } from '../events.ts'
import { type AgentListener, type Listener, refuseSecondInstance } from '../http.ts'
import type { EpochKeyLedger } from '../keys/epoch-key-store.ts'
import { epochKeysPlaceOf } from '../keys/epoch-keys-place.ts'
import { startKeyProcess } from '../keys/key-process-link.ts'
import { createKeys, type Keys } from '../keys/keys.ts'
import { openLedger } from '../keys/open-ledger.ts'
import { outageAlert } from '../keys/outage.ts'
import { openStores, type Stores } from '../storage/open-stores.ts'

export type StartOptions = {
  config: ControlPlaneConfig
  log: Log
  now?: () => number
  /** The epoch key is lost for good; jobs that needed it become `lost`. */
  acceptLostKeys?: boolean
  /** Monotonic milliseconds: the clock of leases. */
  monotonicMs?: () => number
}

export type Ground = Omit<Required<StartOptions>, 'log'> &
  Omit<Stores, keyof AsyncDisposable> & {
    events: Events
    build: string
    startedAtMs: number
    directory: DataDirectory
    authority: Authority
    evidence: Evidence
    changes: Changes
    database: Database
    epochKeys: EpochKeyLedger
    keys: Keys
    /** Put in once they are open; nobody asks before. */
    listeners: { agents?: AgentListener; operators?: Listener }
  }

/** @param started Closes what was opened, in the reverse order. */
export async function openGround(
  options: StartOptions,
  started: AsyncDisposableStack,
): Promise<Ground> {
  const { config, log, now = Date.now, acceptLostKeys = false } = options
  const { monotonicMs = () => performance.now() } = options
  const events = createEvents(log)
  const build = buildVersion()
  const startedAtMs = now()

  const { directory } = await openDataDirectory(config.dataDir)
  await refuseSecondInstance(directory.adminSocket)
  // Its socket comes last: two that start at the same moment meet here, before any key is touched.
  started.use(lockFolder(directory.lock))
  const authority = await openAuthority(directory.authority, now)
  const evidence = await openEvidence(directory.evidence)
  const changes = createChanges()
  const database = started.use(
    openDatabase(directory.database, {
      unwritable: (problem) => events.databaseUnwritable(problem),
      writable: () => events.databaseWritable(),
    }),
  )

  const keysAt = epochKeysPlaceOf(config.keys, directory.epoch)
  const epochKeys = started.use(await openLedger(keysAt))
  const keys = started.use(
    await createKeys({
      database,
      store: epochKeys,
      startProcess: () => startKeyProcess(keysAt),
      now,
      offlineMsMax: config.offlineMaxMs,
      report: (problem) => events.workFailed('keys', problem),
      outage: {
        async began(problem) {
          events.keysAway(problem)
          const alert = outageAlert(problem, epochKeys.name, now())
          await database.write((tx) => raiseAlert(tx, alert, changes))
        },
        ended: () => events.keysBack(),
      },
      acceptLostKeys,
    }),
  )

  const listeners: Ground['listeners'] = {}
  const { store, replicas, objects } = started.use(
    await openStores(config.storage, {
      ...{ folder: directory.objects, database, now },
      origin: () => listeners.agents?.origin ?? '',
      report: (problem) => events.workFailed('store', problem),
    }),
  )
  if (store.traits?.locks === true) events.storeLocks()
  for (const [place, { traits }] of replicas) if (traits?.locks === true) events.storeLocks(place)

  return {
    ...{ config, now, acceptLostKeys, monotonicMs, events, build, startedAtMs },
    ...{ directory, authority, evidence, changes, database, epochKeys, keys },
    ...{ store, replicas, objects, listeners },
  }
}
