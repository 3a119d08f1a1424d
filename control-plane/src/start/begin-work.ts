/** Begins what goes on by itself: duties, sweeps, upkeep, the export of the log, the leasing of jobs. */
import { expireApproval } from '../access/approvals.ts'
import { deliverAlert } from '../alerts/deliver.ts'
import { exportAudit, keepExporting } from '../audit/export.ts'
import { appendAudit, listAudit } from '../audit/store.ts'
import { createObligationEngine } from '../deletion/engine.ts'
import type { Obligation } from '../deletion/rules.ts'
import { pruneCommands } from '../fleet/prune.ts'
import { recordPresent } from '../fleet/store.ts'
import { failAbsent } from '../jobs/absent.ts'
import { carryOut, remindAgent } from '../purge/carry-out.ts'
import { remindAdopter, resumeRotation, retireInTime } from '../revocation/authority.ts'
import { abortRevoked, revokeGrants } from '../revocation/settle.ts'
import { orphanWorker } from '../sweep/orphans.ts'
import { startUpkeep } from '../upkeep.ts'
import type { Features } from './join-features.ts'
import type { Ground } from './open-ground.ts'

const hourMs = 60 * 60 * 1000

/** @param started Ends what was begun, in the reverse order. */
export async function beginWork(
  ground: Ground,
  features: Features,
  started: AsyncDisposableStack,
): Promise<void> {
  const { config, events, database, now, evidence, keys, store, epochKeys } = ground
  const { jobDeps, jobs, fleet, sweeps, purgeDeps, revocationDeps, rotation } = features
  const exports = exportsOf(ground)

  await database.write((tx) =>
    appendAudit(tx, {
      atMs: ground.startedAtMs,
      type: 'control-plane.started',
      actor: { kind: 'system' },
      site: '*',
      detail: { build: ground.build },
    }),
  )
  const engine = started.use(
    createObligationEngine({
      ...jobDeps,
      ...{ keys, store, evidence },
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
        'alert.deliver': (duty, signal) => deliverAlert(features.alertDeps, duty, signal),
        'approval.expire': (duty) => expireApproval(features.accessDeps, duty),
      },
      report: ({ kind }, problem) => events.workFailed(kind, problem),
    }),
  )
  await resumeRotation(rotation)
  engine.start()
  sweeps.start()
  // Finds every job whose key is among the lost ones, and gives it up.
  if (ground.acceptLostKeys)
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
}

function exportsOf({ config, directory, database, changes, now }: Ground) {
  const path = config.auditSink.file
  if (path === undefined) return undefined
  return {
    ...{ database, changes, now },
    sink: {
      path,
      dataDir: directory.root,
      eventsAfter: (afterSeq: number, items: number) => listAudit(database, { afterSeq, items }),
    },
  }
}
