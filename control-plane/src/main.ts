/** Joins the features of the control plane into one that runs, and ends in the reverse order. */
import { readFile } from 'node:fs/promises'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import { configSha256 } from '@sluice/protocol/process/config'
import type { Log } from '@sluice/protocol/process/log'
import { purgeReceiptPayloadType } from '@sluice/protocol/sealing/verify-purge-receipt'
import { type Executors, expireApproval, type Refusals } from './access/approvals.ts'
import { openAuthority } from './access/authority.ts'
import { renewCertificate } from './access/join.ts'
import { type AccessDeps, accessRoutes, adminRoutes } from './access/routes.ts'
import { hasPrincipal, principalExecutors } from './access/tokens.ts'
import { deliverAlert } from './alerts/deliver.ts'
import { takeInfection } from './alerts/infections.ts'
import { alertRoutes } from './alerts/routes.ts'
import { raiseAlert } from './alerts/store.ts'
import { openWebhook } from './alerts/webhook.ts'
import { exportAudit, keepExporting, viewOfSink } from './audit/export.ts'
import { auditRoutes } from './audit/routes.ts'
import { appendAudit, listAudit } from './audit/store.ts'
import { buildVersion } from './build.ts'
import { createChanges } from './changes.ts'
import { type ControlPlaneConfig, listenAddressOf, publicNamesOf } from './config.ts'
import { type DataDirectory, openDataDirectory, writeDurably } from './data-directory.ts'
import { openDatabase } from './database/database.ts'
import { lockFolder } from './database/folder-lock.ts'
import { isWriteFailure } from './database/write-failure.ts'
import { createObligationEngine } from './deletion/engine.ts'
import { openEvidence } from './deletion/evidence.ts'
import { acceptReceipt } from './deletion/receipts.ts'
import { obligationRoutes } from './deletion/routes.ts'
import type { Obligation } from './deletion/rules.ts'
import { countProgress } from './deletion/store.ts'
import { writeOff } from './deletion/write-off.ts'
import { createEvents } from './events.ts'
import { createFleet } from './fleet/fleet.ts'
import { problemOf } from './fleet/problem.ts'
import { pruneCommands } from './fleet/prune.ts'
import { agentRoutes } from './fleet/routes.ts'
import { recordPresent } from './fleet/store.ts'
import { statusOf } from './health.ts'
import {
  openAdminSocket,
  openAgentListener,
  openOperatorListener,
  operatorApi,
  refuseSecondInstance,
  systemRoutes,
} from './http.ts'
import { failAbsent } from './jobs/absent.ts'
import type { JobDeps } from './jobs/deps.ts'
import { createJobs } from './jobs/jobs.ts'
import { createLeaseTimes } from './jobs/lease-times.ts'
import { liftHold } from './jobs/legal-hold.ts'
import { jobRoutes } from './jobs/routes.ts'
import { createTurns } from './jobs/turns.ts'
import { epochKeysPlaceOf } from './keys/epoch-keys-place.ts'
import { startKeyProcess } from './keys/key-process-link.ts'
import { createKeys } from './keys/keys.ts'
import { openLedger } from './keys/open-ledger.ts'
import { outageAlert } from './keys/outage.ts'
import { openApiDocument } from './openapi.ts'
import { beginApproved, endRefused } from './purge/begin.ts'
import { carryOut, remindAgent } from './purge/carry-out.ts'
import { acceptPurgeReceipt } from './purge/receipts.ts'
import { openReserve } from './purge/reserve.ts'
import { purgeRoutes } from './purge/routes.ts'
import { writeOffPurge } from './purge/write-off.ts'
import {
  remindAdopter,
  resumeRotation,
  retireInTime,
  type RotationDeps,
  takeAdoption,
} from './revocation/authority.ts'
import { revoke, type RevocationDeps } from './revocation/revoke.ts'
import { revocationRoutes } from './revocation/routes.ts'
import { abortRevoked, revokeGrants } from './revocation/settle.ts'
import { type CheckedStore, checkedStore, traitsOf } from './storage/checked-store.ts'
import { type DirectoryStore, openDirectoryStore } from './storage/directory-store.ts'
import type { ObjectStore } from './storage/object-store.ts'
import { ownControlPlaneId } from './storage/store.ts'
import { readS3Credentials } from './storage/s3-credentials.ts'
import { loseFound } from './sweep/losses.ts'
import { orphanWorker } from './sweep/orphans.ts'
import { sweepRoutes } from './sweep/routes.ts'
import { createSweeps } from './sweep/sweep.ts'
import { startUpkeep } from './upkeep.ts'

const minuteMs = 60 * 1000
const hourMs = 60 * minuteMs

export type ControlPlane = AsyncDisposable & {
  directory: DataDirectory
  agentUrl: string
  operatorUrl: string
  /** SHA-256 of the CA certificate, which agents and operators may compare. */
  caSha256: string
  /** Nobody has a token yet: the owner makes the first one over the admin socket. */
  unclaimed: boolean
}

/**
 * Starts a control plane. It works as soon as this returns, and everything an earlier process left
 * unfinished goes on by itself.
 *
 * @throws SluiceError for a data directory that is unsafe, newer or in use, a port that is taken,
 * or a store that cannot be used; `host.disk_full` when its disk is.
 */
export async function createControlPlane(options: StartOptions): Promise<ControlPlane> {
  try {
    return await start(options)
  } catch (error) {
    throw isFullDisk(error) ? noRoomToStart(options.config.dataDir, error) : error
  }
}

type StartOptions = {
  config: ControlPlaneConfig
  log: Log
  now?: () => number
  /** The epoch key is lost for good; jobs that needed it become `lost`. */
  acceptLostKeys?: boolean
  /** Monotonic milliseconds: the clock of leases. */
  monotonicMs?: () => number
}

/** Nothing is half-done by a start that ends here: the next one begins again from the same rows. */
function noRoomToStart(dataDir: string, cause: unknown): SluiceError {
  return new SluiceError('host.disk_full', `cannot write to the data directory ${dataDir}`, {
    retry: 'later',
    hint: 'Make room on its disk, or look at its health, then start again.',
    cause,
  })
}

function isFullDisk(error: unknown): boolean {
  if (isSluiceError(error)) return error.code === 'host.disk_full'
  const { code } = error as NodeJS.ErrnoException
  return isWriteFailure(error) || ['ENOSPC', 'EDQUOT', 'EFBIG', 'EIO'].includes(code ?? '')
}

async function start(options: StartOptions): Promise<ControlPlane> {
  const { config, log, now = Date.now } = options
  const events = createEvents(log)
  const build = buildVersion()
  const startedAtMs = now()
  await using started = new AsyncDisposableStack()

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

  // Known once the listeners are open; nothing asks before.
  const urls = { agent: '', operator: '' }
  const { name, names } = publicNamesOf(config)
  const address = listenAddressOf(config)

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
      acceptLostKeys: options.acceptLostKeys === true,
    }),
  )
  const opened = await openStore(config, { directory, now, origin: () => urls.agent })
  const { objects } = opened
  started.use(opened.store)
  const notThere = (problem: SluiceError): void => events.workFailed('store', problem)
  const id = await ownControlPlaneId(database, now())
  const store = await checkedStore(opened.store, { id, mark: true }, notThere)
  const replicas = new Map<string, ObjectStore & CheckedStore>()
  for (const { name: place, store: copy } of await openReplicas(config.storage, now))
    // Its mark comes with everything else that is copied there.
    replicas.set(place, await checkedStore(started.use(copy), { id, mark: false }, notThere))
  if (store.traits?.locks === true) events.storeLocks()
  for (const [place, { traits }] of replicas) if (traits?.locks === true) events.storeLocks(place)

  const jobDeps: JobDeps = {
    database,
    changes,
    now,
    leaseTimes: createLeaseTimes(options.monotonicMs ?? (() => performance.now())),
    keys,
    store,
    replicas: { stores: replicas, settleMs: config.storage.replicaSettleMinutes * minuteMs },
    failedJobKeepMs: config.failedJobKeepMs,
    turns: createTurns(),
  }
  const jobs = createJobs({
    ...jobDeps,
    acceptReceipt: (agent, { receipt }) =>
      receipt.payloadType === purgeReceiptPayloadType
        ? acceptPurgeReceipt(jobDeps, agent.id, receipt)
        : acceptReceipt(jobDeps, agent.id, receipt),
    takeInventory: (agent, body) => sweeps.takeInventory(agent, body),
    takeInfection: (agent, body) => takeInfection({ database, changes, now }, agent, body),
    takeAdoption: (agent, body) => takeAdoption(rotation, agent.id, body),
    renewCertificate: (agent, body) =>
      renewCertificate({ database, authority, now }, agent.id, Buffer.from(body.csr, 'base64')),
  })
  const fleet = await createFleet({
    database,
    changes,
    now,
    build,
    answer: jobs.answer,
    renewLeases: jobs.renewLeases,
  })

  const sweeps = started.use(
    await createSweeps({
      ...{ database, changes, now, epochKeys },
      places: [
        {
          list: (after) => store.list(after),
          isThere: async ({ objectKey }) => (await store.head(objectKey)) !== undefined,
        },
        ...[...replicas].map(([place, copy]) => ({
          name: place,
          list: (after?: string) => copy.list(after),
          // What a replica lacks is no loss: the store itself has it.
          isThere: async () => true,
        })),
      ],
      connected: () => fleet.connected(),
      lose: (difference) => loseFound(jobDeps, difference),
      everyMs: config.sweep.everyHours * hourMs,
      graceMs: config.sweep.graceHours * hourMs,
      offlineMaxMs: config.offlineMaxMs,
      report: (problem) => events.workFailed('sweep', problem),
    }),
  )
  const reserve = started.use(await openReserve(directory.reserve))
  const purgeDeps = {
    ...{ database, changes, now, evidence, keys, reserve },
    storeKind: store.kind,
    aloneJobsMax: config.purge.aloneJobsMax,
    configSha256: configSha256(config),
    isConnected: (agent: AgentId) => fleet.isConnected(agent),
  }
  const refusals: Refusals = { 'purge.begin': endRefused }
  const accessDeps: AccessDeps = {
    database,
    changes,
    authority,
    now,
    operatorUrl: () => urls.operator,
    agentUrl: () => urls.agent,
    refusals,
    reserve,
    executors: {
      'purge.begin': beginApproved(purgeDeps),
      ...principalExecutors,
      'hold.lift': (tx, approved) => liftHold(jobDeps, tx, approved),
      'purge.write-off': (tx, approved) => writeOffPurge(purgeDeps, tx, approved),
      'job.write-off': (tx, approved) => writeOff({ ...jobDeps, evidence }, tx, approved),
      // Complete: what two people may agree to, somebody carries out.
    } satisfies Executors,
  }
  const { url: alertUrl, secretFile, caFile } = config.alerts.webhook
  const channel =
    alertUrl === undefined || secretFile === undefined
      ? undefined
      : started.use(await openWebhook({ url: alertUrl, secretFile, caFile, now }))
  const exports = config.auditSink.file !== undefined && {
    ...{ database, changes, now },
    sink: {
      path: config.auditSink.file,
      dataDir: directory.root,
      eventsAfter: (afterSeq: number, items: number) => listAudit(database, { afterSeq, items }),
    },
  }
  const alertDeps = { database, now, channel }
  const status = () =>
    statusOf(
      { database, now, countProgress },
      {
        build,
        startedAtMs,
        caSha256: authority.sha256,
        evidenceKeyId: evidence.keyId,
        store: store.kind,
        stores: () => [
          traitsOf(store),
          ...[...replicas].map(([replica, copy]) => ({ replica, ...traitsOf(copy) })),
        ],
        connected: () => fleet.connected().length,
        reserve: reserve.state,
        keys: { store: epochKeys.name, level: keys.level.level },
      },
    )
  const listen = { authority, events, database, now, name, names, address }
  const agents = started.use(
    await openAgentListener({
      ...listen,
      port: config.agentPort,
      attach: (request, socket, head, agent) => fleet.attach(request, socket, head, agent),
      ...(objects === undefined ? {} : { objects }),
    }),
  )
  urls.agent = agents.origin
  // Ends before its listener, which waits for every connection it has let in.
  started.use(fleet)
  const revoked = new SluiceError('identity.revoked', 'this agent was revoked')
  const revocationDeps: RevocationDeps = {
    ...{ database, changes, now, store, refusals },
    holdJobs: jobs.holdJobs,
    abortUploads: jobs.abortUploads,
    cutOff: (revokedAgents) => {
      for (const agent of revokedAgents) fleet.disconnect(agent, problemOf(revoked))
      agents.cutOff(revokedAgents)
    },
  }
  const rotation: RotationDeps = {
    ...{ database, changes, now, authority },
    recertify: async () => {
      await agents.recertify()
      await operators.recertify()
    },
    isConnected: (agent) => fleet.isConnected(agent),
  }
  const api = operatorApi({
    database,
    changes,
    events,
    now,
    routes: [
      systemRoutes({ status, openApi: openApiDocument(build) }),
      accessRoutes(accessDeps),
      agentRoutes({
        database,
        changes,
        now,
        fleet,
        revokeAgent: async ({ agentId, access }) =>
          void (await revoke(revocationDeps, {
            target: { kind: 'agent', agentId },
            reason: 'no reason given',
            access,
          })),
      }),
      jobRoutes(jobDeps),
      purgeRoutes(purgeDeps),
      revocationRoutes({ ...revocationDeps, rotation }),
      sweepRoutes({ database, changes, now, sweeps }),
      obligationRoutes({ database, now }),
      alertRoutes(alertDeps),
      auditRoutes({
        ...{ database, changes, now },
        sink: () => viewOfSink(database, config.auditSink.file),
      }),
    ],
  })
  const operators = started.use(
    await openOperatorListener({
      ...listen,
      api,
      port: config.operatorPort,
      plain: config.insecureLoopbackHttp,
    }),
  )
  urls.operator = operators.origin

  await database.write((tx) =>
    appendAudit(tx, {
      atMs: startedAtMs,
      type: 'control-plane.started',
      actor: { kind: 'system' },
      site: '*',
      detail: { build },
    }),
  )
  const engine = started.use(
    createObligationEngine({
      ...jobDeps,
      keys,
      store,
      evidence,
      expireJob: jobs.expireJob,
      noticeExpiry: jobs.noticeExpiry,
      others: {
        'uploads.abort': (duty) => abortRevoked(revocationDeps, duty),
        'grants.revoke': (duty) => revokeGrants(revocationDeps, duty),
        'purge.agent': (duty) => remindAgent(purgeDeps, duty),
        'purge.conclude': (duty) => carryOut(purgeDeps, duty),
        'authority.adopt': (duty) => remindAdopter(rotation, duty),
        'authority.retire': (duty) => retireInTime(rotation, duty),
        'orphan.delete': orphanWorker({
          ...jobDeps,
          ...{ store, epochKeys, keys },
          lookAgainMs: config.sweep.everyHours * hourMs,
        }),
        ...(exports && {
          'audit.export': (duty: Obligation, signal: AbortSignal) =>
            exportAudit(exports, duty, signal),
        }),
        'alert.deliver': (duty, signal) => deliverAlert(alertDeps, duty, signal),
        'approval.expire': (duty) => expireApproval(accessDeps, duty),
      },
      report: ({ kind }, problem) => events.workFailed(kind, problem),
    }),
  )
  await resumeRotation(rotation)
  engine.start()
  sweeps.start()
  // Finds every job whose key is among the lost ones, and gives it up.
  if (options.acceptLostKeys === true)
    await sweeps.begin({ dryRun: false, trigger: 'asked', actor: { kind: 'system' } })
  started.use(
    startUpkeep({
      chores: {
        'agents.present': () => database.write((tx) => recordPresent(tx, now())),
        'commands.prune': (signal) => pruneCommands({ database, now }, signal),
        'jobs.absent': (signal) => failAbsent(jobDeps, config.offlineMaxMs, signal),
      },
      report: (chore, problem) => events.workFailed(chore, problem),
    }),
  )
  if (exports)
    started.use(
      keepExporting({
        ...exports,
        report: (problem) => events.workFailed('audit.export', problem),
      }),
    )
  started.use(jobs.startDispatch(fleet))
  await writeDurably(
    directory.listeners,
    `${JSON.stringify({
      agentUrl: urls.agent,
      operatorUrl: urls.operator,
      agentPort: agents.port,
      operatorPort: operators.port,
      pid: process.pid,
    })}\n`,
    0o600,
  )
  // Last: whoever finds the socket finds everything else.
  started.use(await openAdminSocket(directory.adminSocket, adminRoutes(accessDeps)))
  events.started({
    agentUrl: urls.agent,
    operatorUrl: urls.operator,
    dataDir: directory.root,
  })

  const running = started.move()
  return {
    directory,
    agentUrl: urls.agent,
    operatorUrl: urls.operator,
    caSha256: authority.sha256,
    unclaimed: !(await hasPrincipal(database)),
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  }
}

/** The store the configuration asks for; `objects` answers requests when it lives in a directory. */
async function openStore(
  config: ControlPlaneConfig,
  options: { directory: DataDirectory; now: () => number; origin: () => string },
): Promise<{ store: ObjectStore; objects?: DirectoryStore['handleObjectRequest'] }> {
  const { now, origin } = options
  if (config.storage.kind === 'directory') {
    const store = await openDirectoryStore({ folder: options.directory.objects, origin, now })
    return { store, objects: (request, response) => store.handleObjectRequest(request, response) }
  }
  const { endpoint, bucket, credentialsFile, replicas } = config.storage
  if (endpoint === undefined || bucket === undefined || credentialsFile === undefined)
    throw new SluiceError(
      'config.invalid',
      'storage.kind s3 needs endpoint, bucket, credentialsFile',
    )
  const place = { ...config.storage, endpoint, bucket, credentialsFile }
  const copiedTo = replicas.map((replica) => replica.bucket)
  const { grantRoleArn: roleArn, iamEndpoint = endpoint } = config.storage
  const grantRole = roleArn === undefined ? undefined : { roleArn, iamEndpoint }
  return { store: await openBucket(place, { now, copiedTo, grantRole }) }
}

type Replica = ControlPlaneConfig['storage']['replicas'][number]

/** The buckets that the store is replicated to, which may be replicated to each other and back. */
async function openReplicas(
  { bucket, replicas }: ControlPlaneConfig['storage'],
  now: () => number,
): Promise<{ name: string; store: ObjectStore }[]> {
  const copiedTo = [bucket ?? [], replicas.map((replica) => replica.bucket)].flat(2)
  return Promise.all(
    replicas.map(async (replica) => ({
      name: replica.name,
      store: await openBucket(replica, { now, copiedTo }),
    })),
  )
}

async function openBucket(
  place: Omit<Replica, 'name'>,
  options: {
    now: () => number
    copiedTo: readonly string[]
    grantRole?: { roleArn: string; iamEndpoint: string } | undefined
  },
): Promise<ObjectStore> {
  const { endpoint, bucket, region, pathStyle, caFile, credentialsFile } = place
  // Who keeps objects in a directory does not load three clients of S3 at every start.
  const { createS3Store } = await import('./storage/s3-store.ts')
  return createS3Store({
    ...{ endpoint, bucket, region, forcePathStyle: pathStyle },
    ...(caFile === undefined ? {} : { authorities: await readFile(caFile, 'utf8') }),
    credentials: () => readS3Credentials(credentialsFile),
    ...options,
  })
}
