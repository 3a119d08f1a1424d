/** Every event of an agent that is worth a line: the only place that logs. Ids, counts and codes only. */
import type { SluiceError } from '@sluice/protocol/errors'
import { isSluiceError } from '@sluice/protocol/errors'
import type { LeaseRef } from '@sluice/protocol/messages'
import type { Log, LogFields } from '@sluice/protocol/process/log'
import type { AnalysisEvents } from './analysis/analysis-parts.ts'
import type { CaptureEvents } from './capture/capture-parts.ts'
import type { LinkEvents } from './control-link.ts'
import type { PurgeEvents } from './purge.ts'

export type AgentEvents = LinkEvents &
  CaptureEvents &
  AnalysisEvents &
  PurgeEvents & {
    /** The agent was revoked: it ends its work, and its leases are wiped. */
    lockedOut(): void
    authoritiesAdopted(fields: LogFields): void
    started(fields: LogFields): void
    certificateRenewed(notAfterMs: number): void
    renewalFailed(problem: SluiceError): void
    receiptRefused(obligationId: string, problem: unknown): void
    watchFailed(folder: string, problem: SluiceError): void
    watchDuplicates(count: number): void
    watchHolding(pending: number): void
    isolationNone(): void
    ffmpegFound(found: { version: string; origin: string }): void
    ffmpegMissing(): void
    scannerReady(engine: string, version: string): void
    scannerMissing(problem: SluiceError): void
  }

export function createEvents(log: Log): AgentEvents {
  return {
    started: (fields) => log('info', 'agent.started', fields),
    isolationNone: () => log('warning', 'agent.isolation_none'),
    ffmpegFound: ({ version, origin }) => log('info', 'ffmpeg.found', { version, origin }),
    ffmpegMissing: () => log('warning', 'ffmpeg.missing'),
    scannerReady: (engine, version) => log('info', 'scanner.ready', { engine, version }),
    scannerMissing: (problem) => log('error', 'scanner.missing', saidOf(problem)),
    certificateRenewed: (notAfterMs) =>
      log('info', 'certificate.renewed', { until: new Date(notAfterMs).toISOString() }),
    renewalFailed: (problem) => log('error', 'certificate.not_renewed', saidOf(problem)),
    receiptRefused: (obligationId, problem) =>
      log('error', 'receipt.refused', { obligationId, ...saidOf(problem) }),
    watchDuplicates: (count) => log('info', 'watch.duplicates', { files: count }),
    watchHolding: (pending) => log('warning', 'watch.holding', { pending }),
    watchFailed: (_folder, problem) => log('warning', 'watch.failed', saidOf(problem)),

    purgeOrdered: ({ purgeId, obligationId, everything, jobIds }) =>
      log('warning', 'purge.ordered', { purgeId, obligationId, everything, jobs: jobIds.length }),
    purgeIncomplete: ({ purgeId }, attempt, problem) =>
      log('error', 'purge.incomplete', { purgeId, attempt, code: problem.code }),
    purged: ({ purgeId, obligationId, found }) =>
      log('warning', 'purge.done', { purgeId, obligationId, ...found }),
    lockedOut: () => log('error', 'agent.locked_out'),
    authoritiesAdopted: (fields) => log('info', 'authorities.adopted', fields),

    linkConnected: (build) => log('info', 'link.connected', { build }),
    linkLost: (problem) => log('warning', 'link.lost', saidOf(problem)),
    clockSkewed: (skewMs) => log('warning', 'clock.skewed', { skewMs }),
    commandRefused: (command, problem) =>
      log('warning', 'command.refused', {
        type: command.type,
        jobId: 'jobId' in command ? command.jobId : undefined,
        ...saidOf(problem),
      }),

    submitted: ({ submissionId, sources, origin }) =>
      log('info', 'submission.taken', { submissionId, files: sources.length, origin }),
    sealed: ({ submissionId, jobId, sealedBytes, mediaCount, unscanned }) =>
      log(unscanned ? 'warning' : 'info', 'job.sealed', {
        ...{ submissionId, jobId, sealedBytes, mediaCount, unscanned },
      }),
    submissionRefused: ({ submissionId }, problem) =>
      // Messages of the gate may name a file, and original names stay out of logs.
      log('warning', 'submission.refused', { submissionId, code: problem.code }),
    infected: ({ engine, finding, bytes }) =>
      log('error', 'medium.infected', { engine, finding, bytes }),
    sealingPutOff: ({ submissionId }, problem) =>
      log('warning', 'sealing.put_off', { submissionId, code: problem.code }),
    stored: ({ jobId, sealedBytes }) => log('info', 'job.stored', { jobId, sealedBytes }),
    resultDelivered: ({ jobId }) => log('info', 'result.delivered', { jobId }),
    spoolDeleted: ({ jobId }) => log('info', 'spool.deleted', { jobId }),
    jobOver: ({ jobId }) => log('info', 'job.over', { jobId }),
    jobNotice: ({ jobId, state, problem, expiresAtMs }) =>
      log(problem ? 'warning' : 'info', 'job.notice', {
        ...{ jobId, state, code: problem?.code },
        ...(expiresAtMs === undefined ? {} : { expiresAt: new Date(expiresAtMs).toISOString() }),
      }),
    dutyFailed: (jobId, duty, problem) =>
      log('warning', 'job.duty_failed', { jobId, duty, code: problem.code }),

    leaseAccepted: (lease) => log('info', 'lease.accepted', refOf(lease)),
    leaseDeclined: (lease, problem) =>
      log('warning', 'lease.declined', { ...refOf(lease), code: problem.code }),
    mediumAnalysed: (lease, counts) =>
      log('info', 'medium.analysed', { ...refOf(lease), ...counts }),
    leaseEnded: (lease, problem) =>
      log(problem ? 'warning' : 'info', 'lease.ended', { ...refOf(lease), code: problem?.code }),
    leaseWiped: (lease, wipe) =>
      log('info', 'lease.wiped', { ...refOf(lease), method: wipe.method }),
    wipeIncomplete: (lease, attempt, problem) =>
      log('error', 'lease.wipe_incomplete', { ...refOf(lease), attempt, code: problem.code }),
  }
}

function refOf({ jobId, leaseId, fence }: LeaseRef): LogFields {
  return { jobId, leaseId, fence }
}

function saidOf(problem: unknown): LogFields {
  if (isSluiceError(problem))
    return { code: problem.code, message: problem.message, hint: problem.hint }
  return { code: 'internal', message: problem instanceof Error ? problem.name : 'unknown' }
}
