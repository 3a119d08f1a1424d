/** Takes a sealed result from the lease holder and hands it to the capture host; opens it never. */
import { createHash } from 'node:crypto'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { RequestBody, RequestReply } from '@sluice/protocol/messages'
import { appendAudit } from '../audit/store.ts'
import { beginDeletion } from '../deletion/intent.ts'
import { addObligation, bringForward } from '../deletion/store.ts'
import type { Answer, LinkAgent } from '../fleet/link.ts'
import { enqueueCommand } from '../fleet/store.ts'
import { byAgent, type JobDeps } from './deps.ts'
import { closeLease, currentLease } from './leases.ts'
import { addResult, changeState, jobOf, markDelivered, resultOf } from './store.ts'

/**
 * Makes a result durable and begins the deletion of everything else, in one transaction. The same
 * result again is accepted again.
 *
 * @throws SluiceError `lease.stale` for any lease but the current one, however good its result.
 */
export async function takeResult(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'lease.result'>,
  sealed: Buffer,
): Promise<void> {
  const { sealedResultSha256, ...ref } = body
  if (createHash('sha256').update(sealed).digest('hex') !== sealedResultSha256)
    throw new SluiceError('request.invalid', 'the sealed result is not the one announced')
  await deps.database.write(async (tx) => {
    const earlier = await resultOf(tx.sql, ref.jobId)
    const same =
      earlier?.leaseId === ref.leaseId &&
      earlier.nodeId === agent.id &&
      earlier.sealedSha256 === sealedResultSha256
    if (same) return
    const { lease, job } = await currentLease(tx.sql, agent.id, ref)
    const atMs = deps.now()
    const expiresAtMs = atMs + limits.resultKeepMs
    await addResult(tx, {
      jobId: job.id,
      leaseId: lease.id,
      nodeId: agent.id,
      fence: lease.fence,
      sealed,
      sealedSha256: sealedResultSha256,
      sealedBytes: sealed.length,
      receivedAtMs: atMs,
      expiresAtMs,
    })
    await closeLease(deps, tx, { job, lease, reason: 'finished' })
    await changeState(
      tx,
      {
        jobId: job.id,
        from: 'leased',
        to: 'analysed',
        actor: byAgent(agent.id),
        atMs,
        set: { analysedAtMs: atMs, problemCode: null, problemMessage: null },
        detail: { leaseId: lease.id, fence: lease.fence, sealedBytes: sealed.length },
      },
      deps.changes,
    )
    await addObligation(
      tx,
      {
        jobId: job.id,
        site: job.site,
        kind: 'result.deliver',
        state: 'due',
        atMs,
        nextTryAtMs: expiresAtMs,
        deadlineAtMs: expiresAtMs + limits.obligationOverdueMs,
      },
      deps.changes,
    )
    await enqueueCommand(
      tx,
      {
        agentId: job.captureAgentId,
        lane: 'work',
        atMs,
        command: { type: 'result.ready', jobId: job.id },
      },
      deps.changes,
    )
    const deletion = { jobId: job.id, from: 'analysed', reason: 'analysed', atMs } as const
    await beginDeletion(tx, { ...deletion, actor: byAgent(agent.id) }, deps.changes)
  })
}

/** @throws SluiceError `result.not_found` when there is none, or none any more. */
export async function fetchResult(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'result.fetch'>,
): Promise<Answer> {
  const result = await deps.database.read(async (sql) => {
    const job = await jobOf(sql, agent.id, body.jobId)
    return resultOf(sql, job.id)
  })
  if (!result?.sealed)
    throw new SluiceError('result.not_found', `no result of job ${body.jobId} waits here`)
  const reply: RequestReply<'result.fetch'> = {
    lease: { jobId: result.jobId, leaseId: result.leaseId, fence: result.fence },
    nodeId: result.nodeId,
  }
  return { body: reply, attachment: result.sealed }
}

/** The result is durable on the capture host: our copy may go. */
export async function confirmDelivery(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'result.delivered'>,
): Promise<RequestReply<'result.delivered'>> {
  return deps.database.write(async (tx) => {
    const job = await jobOf(tx.sql, agent.id, body.jobId)
    const result = await resultOf(tx.sql, job.id)
    if (!result) throw new SluiceError('result.not_found', `job ${job.id} has no result`)
    if (result.sealedSha256 !== body.sealedResultSha256)
      throw new SluiceError('request.conflict', 'another result was stored for this job')
    const atMs = deps.now()
    if (await markDelivered(tx, job.id, atMs)) {
      await bringForward(tx, { jobId: job.id, kind: 'result.deliver', atMs }, deps.changes)
      await appendAudit(tx, {
        atMs,
        type: 'job.result-delivered',
        actor: byAgent(agent.id),
        site: job.site,
        jobId: job.id,
        agentId: agent.id,
        detail: { sealedResultSha256: body.sealedResultSha256 },
      })
      tx.afterCommit(() => deps.changes.emit('job', job.id))
    }
    return { state: job.state }
  })
}
