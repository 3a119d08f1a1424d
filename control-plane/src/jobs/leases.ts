/** Keeps leases: granted once, renewed while their node lives, ended once, never back. */
import { SluiceError } from '@sluice/protocol/errors'
import { isSluiceError } from '@sluice/protocol/errors'
import { type AgentId, leaseId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import type {
  Heartbeat,
  LeaseRef,
  Problem,
  RequestBody,
  RequestReply,
} from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { appendAudit } from '../audit/store.ts'
import type { Queries, Transaction } from '../database/database.ts'
import { wipeCommand } from '../deletion/intent.ts'
import { addObligation, makeDue, obligationsOfJob } from '../deletion/store.ts'
import type { RenewedLeases } from '../fleet/fleet.ts'
import type { Answer, LinkAgent } from '../fleet/link.ts'
import { cancelCommands, enqueueCommand } from '../fleet/store.ts'
import { byAgent, type JobDeps, system } from './deps.ts'
import { failJob } from './fail.ts'
import { afterLease, beforeDeadline, isCurrent, leaseDeadMs } from './rules.ts'
import {
  addLease,
  changeLease,
  changeState,
  endLease,
  hasKey,
  jobById,
  type JobRow,
  leaseOf,
  type LeaseRow,
  openLease,
  openLeasesOfNode,
} from './store.ts'

// ---------------------------------------------------------------- granting

/**
 * Leases a stored job to a node: lease, fence, state, wipe duty, order and audit event at once.
 *
 * @throws SluiceError `request.conflict` when the job is no longer stored.
 */
export async function grantLease(
  deps: JobDeps,
  tx: Transaction,
  grant: { job: JobRow; nodeId: AgentId },
): Promise<LeaseRef> {
  const { job, nodeId } = grant
  const atMs = deps.now()
  const id = newId(leaseId, atMs)
  const fence = job.fence + 1
  await changeState(
    tx,
    {
      jobId: job.id,
      from: 'stored',
      to: 'leased',
      actor: system,
      atMs,
      set: { fence, leaseAttempts: job.leaseAttempts + 1 },
      detail: { leaseId: id, fence, nodeId },
    },
    deps.changes,
  )
  await addLease(tx, {
    id,
    jobId: job.id,
    nodeId,
    fence,
    grantedAtMs: atMs,
    deadlineAtMs: atMs + limits.leaseMs,
  })
  tx.afterCommit(() => void deps.leaseTimes.of(id))
  const wipeObligationId = await addObligation(
    tx,
    {
      jobId: job.id,
      site: job.site,
      kind: 'lease.wipe',
      holder: { kind: 'gpu-lease', id: nodeId },
      agentId: nodeId,
      leaseId: id,
      state: 'waiting',
      atMs,
    },
    deps.changes,
  )
  await enqueueCommand(
    tx,
    {
      agentId: nodeId,
      lane: 'work',
      atMs,
      command: {
        type: 'lease.offer',
        jobId: job.id,
        leaseId: id,
        fence,
        durationMs: limits.leaseMs,
        analyser: job.analyser,
        sealedBytes: job.sealedBytes,
        sealedHeader: job.sealedHeader.toString('base64url'),
        wipeObligationId,
      },
    },
    deps.changes,
  )
  await appendAudit(tx, {
    atMs,
    type: 'lease.granted',
    actor: system,
    site: job.site,
    jobId: job.id,
    agentId: nodeId,
    detail: { leaseId: id, fence },
  })
  return { jobId: job.id, leaseId: id, fence }
}

// ---------------------------------------------------------------- what the lease holder asks

/** @throws SluiceError `lease.stale` for any lease but the job's current one at this very node. */
export async function currentLease(
  sql: Queries,
  node: AgentId,
  ref: LeaseRef,
): Promise<{ lease: LeaseRow; job: JobRow }> {
  const found = await leaseOf(sql, node, ref)
  if (!found || !isCurrent(found.lease, found.job, ref.fence))
    throw new SluiceError('lease.stale', 'this lease does not hold', {
      hint: 'Stop the analysis and wipe what it left.',
    })
  return found
}

function holds({ leaseTimes }: JobDeps, lease: LeaseRow): boolean {
  return beforeDeadline(leaseTimes.of(lease.id), leaseTimes.now())
}

async function livingLease(
  deps: JobDeps,
  sql: Queries,
  node: AgentId,
  ref: LeaseRef,
): Promise<{ lease: LeaseRow; job: JobRow }> {
  const found = await currentLease(sql, node, ref)
  if (!holds(deps, found.lease))
    throw new SluiceError('lease.expired', 'this lease was not renewed in time', {
      hint: 'Stop the analysis and wipe what it left.',
    })
  return found
}

/** Takes a lease up. It holds for a whole duration from now on. */
export async function acceptLease(
  deps: JobDeps,
  agent: LinkAgent,
  ref: LeaseRef,
): Promise<RequestReply<'lease.accept'>> {
  return deps.database.write(async (tx) => {
    const { lease } = await livingLease(deps, tx.sql, agent.id, ref)
    const atMs = deps.now()
    const remainingMs = deps.leaseTimes.renew(lease.id)
    const deadlineAtMs = Math.floor(atMs + remainingMs)
    await changeLease(tx, lease.id, { acceptedAtMs: lease.acceptedAtMs ?? atMs, deadlineAtMs })
    return { remainingMs: Math.floor(remainingMs) }
  })
}

/** Renews the leases a node names, as far as they hold; the others are left out of the answer. */
export async function renewLeases(
  deps: JobDeps,
  agent: LinkAgent,
  heartbeat: Heartbeat,
): Promise<RenewedLeases> {
  return deps.database.write(async (tx) => {
    const atMs = deps.now()
    const renewed: RenewedLeases = []
    for (const ref of heartbeat.leases) {
      const found = await leaseOf(tx.sql, agent.id, ref)
      if (!found || !isCurrent(found.lease, found.job, ref.fence)) continue
      if (!holds(deps, found.lease)) continue
      const remainingMs = deps.leaseTimes.renew(found.lease.id)
      await changeLease(tx, found.lease.id, { deadlineAtMs: Math.floor(atMs + remainingMs) })
      renewed.push({ ...ref, remainingMs: Math.floor(remainingMs) })
    }
    return renewed
  })
}

/**
 * Seals the job key to the lease's own public key. That it was released is durable before the
 * envelope exists; the envelope itself is stored nowhere.
 *
 * @throws SluiceError `lease.stale`, `lease.expired`, `keys.destroyed`, `envelope.bad_input`.
 */
export async function releaseKey(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'key.request'>,
): Promise<Answer> {
  const { publicKey, ...ref } = body
  const { lease, job } = await deps.database.write(async (tx) => {
    const found = await livingLease(deps, tx.sql, agent.id, ref)
    const atMs = deps.now()
    await changeLease(tx, ref.leaseId, {
      keyReleasedAtMs: found.lease.keyReleasedAtMs ?? atMs,
    })
    if (found.lease.keyReleasedAtMs === null)
      await appendAudit(tx, {
        atMs,
        type: 'lease.key-released',
        actor: byAgent(agent.id),
        site: found.job.site,
        jobId: ref.jobId,
        agentId: agent.id,
        detail: { leaseId: ref.leaseId, fence: ref.fence },
      })
    return found
  })
  const attachment = await sealedKey(deps, {
    jobId: job.id,
    nodeId: agent.id,
    leaseId: lease.id,
    fence: lease.fence,
    deadlineAtMs: lease.deadlineAtMs,
    sealedHeader: job.sealedHeader,
    publicKey: Buffer.from(publicKey, 'base64url'),
  })
  // It may have been ended while the key was sealed; then the envelope goes nowhere.
  await deps.database.read((sql) => livingLease(deps, sql, agent.id, ref))
  const reply: RequestReply<'key.request'> = { deadlineAtMs: lease.deadlineAtMs }
  return { body: reply, attachment }
}

async function sealedKey(
  deps: JobDeps,
  request: Parameters<JobDeps['keys']['sealForLease']>[0],
): Promise<Buffer> {
  try {
    return await deps.keys.sealForLease(request)
  } catch (error) {
    // Without its key the job can never be analysed; say so now rather than after the last try.
    if (isSluiceError(error, 'keys.destroyed'))
      await deps.database.write(async (tx) => {
        const job = await jobById(tx.sql, request.jobId)
        const lease = await openLease(tx.sql, request.jobId)
        if (job?.state !== 'leased' || lease?.id !== request.leaseId) return
        if (await hasKey(tx.sql, job.id)) return
        await endTry(deps, tx, { job, lease, reason: 'failed', problem: keyGone })
      })
    throw error
  }
}

const keyGone: Problem = {
  code: 'job.lost',
  message: 'the key of this job no longer exists',
  hint: 'Submit the media again.',
  retry: 'never',
}

/** A short grant to read the sealed archive, for as long as the lease holds. */
export async function readObject(
  deps: JobDeps,
  agent: LinkAgent,
  ref: LeaseRef,
): Promise<RequestReply<'object.read'>> {
  const { job } = await deps.database.read((sql) => livingLease(deps, sql, agent.id, ref))
  const grant = await deps.store.grantRead(job.objectKey, limits.readGrantMs)
  return { grant, sealedBytes: job.sealedBytes }
}

/** The node will not take the lease, or could not finish it. Saying it twice changes nothing. */
export async function giveBack(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'lease.fail'>,
  reason: 'declined' | 'failed',
): Promise<void> {
  const { problem, ...ref } = body
  await deps.database.write(async (tx) => {
    const found = await leaseOf(tx.sql, agent.id, ref)
    if (!found)
      throw new SluiceError('lease.stale', 'this lease does not hold', {
        hint: 'Wipe what it left and confirm it when asked.',
      })
    // One that was wiped already is over all the same, and its job need not wait for the deadline.
    if (!isCurrent({ ...found.lease, wipedAtMs: null }, found.job, ref.fence)) return
    await endTry(deps, tx, { ...found, reason, problem })
  })
}

// ---------------------------------------------------------------- ending

/** A lease that came to nothing: it ends, its wipe is due, and its job waits again or is kept. */
export async function endTry(
  deps: JobDeps,
  tx: Transaction,
  end: {
    job: JobRow
    lease: LeaseRow
    reason: 'declined' | 'failed' | 'expired' | 'revoked'
    problem: Problem
  },
): Promise<void> {
  const { job, lease, reason, problem } = end
  const actor = reason === 'declined' || reason === 'failed' ? byAgent(lease.nodeId) : system
  await closeLease(deps, tx, { job, lease, reason, problem })
  const next = afterLease({
    hasKey: await hasKey(tx.sql, job.id),
    leaseAttempts: job.leaseAttempts,
    // A node that refuses the work says nothing about the job: another one may take it.
    retry: reason === 'failed' ? problem.retry : 'later',
  })
  if (next === 'stored') {
    const change = { jobId: job.id, from: 'leased', to: 'stored', actor, atMs: deps.now() } as const
    await changeState(tx, { ...change, detail: { code: problem.code } }, deps.changes)
    return
  }
  await failJob(deps, tx, {
    job,
    from: 'leased',
    to: next,
    problem: next === 'lost' ? keyGone : problem,
    actor,
  })
}

/** Ends a lease that holds and makes its wipe due; its node is told unless it said so itself. */
export async function closeLease(
  deps: JobDeps,
  tx: Transaction,
  end: {
    job: JobRow
    lease: LeaseRow
    reason: 'finished' | 'declined' | 'failed' | 'expired' | 'revoked'
    problem?: Problem
  },
): Promise<void> {
  const { job, lease, reason } = end
  const atMs = deps.now()
  if (!(await endLease(tx, lease.id, { atMs, reason }))) return
  await appendAudit(tx, {
    atMs,
    type: 'lease.ended',
    actor: reason === 'expired' || reason === 'revoked' ? system : byAgent(lease.nodeId),
    site: job.site,
    jobId: job.id,
    agentId: lease.nodeId,
    detail: {
      leaseId: lease.id,
      fence: lease.fence,
      reason,
      ...(end.problem === undefined ? {} : { code: end.problem.code }),
    },
  })
  const byItself = reason === 'finished' || reason === 'failed'
  await makeDue(
    tx,
    {
      jobId: job.id,
      kinds: ['lease.wipe'],
      leaseId: lease.id,
      atMs,
      // It wipes and confirms by itself; it is only reminded when that takes too long.
      nextTryAtMs: byItself ? atMs + limits.wipeReminderMs : atMs,
    },
    deps.changes,
  )
  if (byItself) return
  await cancelCommands(tx, {
    agentId: lease.nodeId,
    atMs,
    matches: (command) => command.type === 'lease.offer' && command.leaseId === lease.id,
  })
  const owed = await obligationsOfJob(tx.sql, job.id)
  const wipe = owed.find((one) => one.kind === 'lease.wipe' && one.leaseId === lease.id)
  if (!wipe || wipe.state === 'done') return
  await enqueueCommand(
    tx,
    {
      agentId: lease.nodeId,
      lane: 'control',
      atMs,
      command: wipeCommand({
        job,
        lease: { ...lease, endReason: reason },
        wipe,
      }),
    },
    deps.changes,
  )
}

/** Ends a lease that was not renewed, once its grace is over too. */
export async function expireLease(deps: JobDeps, lease: LeaseRow): Promise<void> {
  await deps.database.write(async (tx) => {
    const found = await leaseOf(tx.sql, lease.nodeId, { jobId: lease.jobId, leaseId: lease.id })
    // It may have been renewed or ended since it was looked at.
    if (!found || found.lease.endedAtMs !== null) return
    if (
      found.job.state !== 'leased' ||
      deps.leaseTimes.now() < leaseDeadMs(deps.leaseTimes.of(lease.id))
    )
      return
    await endTry(deps, tx, {
      ...found,
      reason: 'expired',
      problem: {
        code: 'lease.expired',
        message: 'the node did not renew its lease',
        retry: 'later',
      },
    })
  })
}

/** Ends every lease of a node that may not hold one any more. */
export async function revokeLeases(deps: JobDeps, tx: Transaction, node: AgentId): Promise<void> {
  for (const lease of await openLeasesOfNode(tx.sql, node)) {
    const job = await jobById(tx.sql, lease.jobId)
    if (job?.state !== 'leased') continue
    await endTry(deps, tx, {
      job,
      lease,
      reason: 'revoked',
      problem: {
        code: 'identity.revoked',
        message: 'the node of this lease was revoked',
        retry: 'later',
      },
    })
  }
}
