/** Joins the features on their common ground: who answers what, and who is told. Nothing works yet. */
import { SluiceError } from '@sluice/protocol/errors'
import type { AgentId } from '@sluice/protocol/ids'
import { configSha256 } from '@sluice/protocol/process/config'
import { purgeReceiptPayloadType } from '@sluice/protocol/sealing/verify-purge-receipt'
import type { Executors, Refusals } from '../access/approvals.ts'
import { renewCertificate } from '../access/join.ts'
import type { AccessDeps } from '../access/routes.ts'
import { principalExecutors } from '../access/tokens.ts'
import { takeInfection } from '../alerts/infections.ts'
import { openWebhook } from '../alerts/webhook.ts'
import { acceptReceipt } from '../deletion/receipts.ts'
import { writeOff } from '../deletion/write-off.ts'
import { createFleet } from '../fleet/fleet.ts'
import { problemOf } from '../fleet/problem.ts'
import type { JobDeps } from '../jobs/deps.ts'
import { createJobs } from '../jobs/jobs.ts'
import { createLeaseTimes } from '../jobs/lease-times.ts'
import { liftHold } from '../jobs/legal-hold.ts'
import { createTurns } from '../jobs/turns.ts'
import { beginApproved, endRefused } from '../purge/begin.ts'
import { acceptPurgeReceipt } from '../purge/receipts.ts'
import { openReserve } from '../purge/reserve.ts'
import { writeOffPurge } from '../purge/write-off.ts'
import { type RotationDeps, takeAdoption } from '../revocation/authority.ts'
import type { RevocationDeps } from '../revocation/revoke.ts'
import { loseFound } from '../sweep/losses.ts'
import { createSweeps } from '../sweep/sweep.ts'
import type { Ground } from './open-ground.ts'

const minuteMs = 60 * 1000
const hourMs = 60 * minuteMs

export type Features = Awaited<ReturnType<typeof joinFeatures>>

/** @param started Ends what was begun, in the reverse order. */
export async function joinFeatures(ground: Ground, started: AsyncDisposableStack) {
  const { config, events, database, changes, now, authority, evidence, keys } = ground
  const { store, replicas, epochKeys, listeners } = ground

  const jobDeps: JobDeps = {
    ...{ database, changes, now, keys, store },
    leaseTimes: createLeaseTimes(ground.monotonicMs),
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
    ...{ database, changes, now, build: ground.build },
    answer: jobs.answer,
    renewLeases: jobs.renewLeases,
  })
  const isConnected = (agent: AgentId) => fleet.isConnected(agent)

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

  const reserve = started.use(await openReserve(ground.directory.reserve))
  const purgeDeps = {
    ...{ database, changes, now, evidence, keys, reserve, isConnected },
    storeKind: store.kind,
    aloneJobsMax: config.purge.aloneJobsMax,
    configSha256: configSha256(config),
  }

  const refusals: Refusals = { 'purge.begin': endRefused }
  const executors: Executors = {
    'purge.begin': beginApproved(purgeDeps),
    ...principalExecutors,
    'hold.lift': (tx, approved) => liftHold(jobDeps, tx, approved),
    'purge.write-off': (tx, approved) => writeOffPurge(purgeDeps, tx, approved),
    'job.write-off': (tx, approved) => writeOff({ ...jobDeps, evidence }, tx, approved),
    // Complete: what two people may agree to, somebody carries out.
  }
  const accessDeps: AccessDeps = {
    ...{ database, changes, authority, now, refusals, reserve, executors },
    operatorUrl: () => listeners.operators?.origin ?? '',
    agentUrl: () => listeners.agents?.origin ?? '',
  }

  const { url, secretFile, caFile } = config.alerts.webhook
  const channel =
    url === undefined || secretFile === undefined
      ? undefined
      : started.use(await openWebhook({ url, secretFile, caFile, now }))
  const alertDeps = { database, now, channel }

  const revoked = new SluiceError('identity.revoked', 'this agent was revoked')
  const revocationDeps: RevocationDeps = {
    ...{ database, changes, now, store, refusals },
    holdJobs: jobs.holdJobs,
    abortUploads: jobs.abortUploads,
    cutOff: (revokedAgents) => {
      for (const agent of revokedAgents) fleet.disconnect(agent, problemOf(revoked))
      listeners.agents?.cutOff(revokedAgents)
    },
  }
  const rotation: RotationDeps = {
    ...{ database, changes, now, authority, isConnected },
    recertify: async () => {
      await listeners.agents?.recertify()
      await listeners.operators?.recertify()
    },
  }

  return {
    ...{ jobDeps, jobs, fleet, sweeps, reserve },
    ...{ purgeDeps, accessDeps, alertDeps, revocationDeps, rotation },
  }
}
