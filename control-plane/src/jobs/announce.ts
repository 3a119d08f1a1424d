/** Takes a sealed archive into care: its key in escrow, its job written down, its duties owed. */
import { createHash, randomBytes } from 'node:crypto'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { ObligationId } from '@sluice/protocol/ids'
import type { RequestBody, RequestReply } from '@sluice/protocol/messages'
import { objectKeyFrom } from '@sluice/protocol/object-keys'
import { appendAudit } from '../audit/store.ts'
import type { Queries, Transaction } from '../database/database.ts'
import { addObligation, obligationsOfJob } from '../deletion/store.ts'
import type { LinkAgent } from '../fleet/link.ts'
import { agentById } from '../fleet/store.ts'
import type { WrappedKey } from '../keys/keys.ts'
import { storeJobKey } from '../keys/store.ts'
import { byAgent, type JobDeps } from './deps.ts'
import { addJob, jobById, type JobRow } from './store.ts'

/** An epoch may end between the opening of an envelope and the transaction; not three times in a row. */
const escrowTriesMax = 3

type Announcement = RequestBody<'job.announce'>

/**
 * Escrows the job key and writes the job with everything that will once have to be confirmed gone.
 * Announcing the same archive again only tells its state.
 *
 * @param envelope The `job-key-escrow` envelope.
 * @throws SluiceError `request.conflict` when the id is taken by another archive; what
 * `Keys.openEscrow` and `storeJobKey` throw.
 */
export async function announceJob(
  deps: JobDeps,
  agent: LinkAgent,
  announced: Announcement,
  envelope: Buffer,
): Promise<RequestReply<'job.announce'>> {
  const known = await deps.database.read((sql) => knownJob(sql, agent, announced))
  if (known) return known
  const sealedHeader = Buffer.from(announced.sealedHeader, 'base64url')
  for (let tries = 1; ; tries += 1) {
    const key = await deps.keys.openEscrow({
      jobId: announced.jobId,
      senderId: agent.id,
      receiveKeyId: announced.receiveKeyId,
      sealedHeader,
      envelope,
    })
    try {
      return await deps.database.write(async (tx) => {
        const meanwhile = await knownJob(tx.sql, agent, announced)
        return meanwhile ?? (await writeJob(deps, tx, { agent, announced, sealedHeader, key }))
      })
    } catch (error) {
      const epochEnded = isSluiceError(error, 'keys.destroyed') && error.retry === 'later'
      if (!epochEnded || tries >= escrowTriesMax) throw error
    }
  }
}

async function knownJob(
  sql: Queries,
  agent: LinkAgent,
  announced: Announcement,
): Promise<RequestReply<'job.announce'> | undefined> {
  const job = await jobById(sql, announced.jobId)
  if (!job) return undefined
  if (!isSameArchive(job, agent, announced))
    throw new SluiceError('request.conflict', 'this job id belongs to another archive', {
      hint: 'Seal the media again; every sealing has an id of its own.',
    })
  return { state: job.state, spoolObligationId: await spoolDuty(sql, job) }
}

function isSameArchive(job: JobRow, agent: LinkAgent, announced: Announcement): boolean {
  return (
    job.captureAgentId === agent.id &&
    job.sealedHeader.toString('base64url') === announced.sealedHeader
  )
}

async function spoolDuty(sql: Queries, job: JobRow): Promise<ObligationId> {
  const owed = await obligationsOfJob(sql, job.id)
  const duty = owed.find((one) => one.kind === 'spool.delete')
  if (!duty) throw new SluiceError('database.damaged', `job ${job.id} has no spool obligation`)
  return duty.id
}

async function writeJob(
  deps: JobDeps,
  tx: Transaction,
  from: { agent: LinkAgent; announced: Announcement; sealedHeader: Buffer; key: WrappedKey },
): Promise<RequestReply<'job.announce'>> {
  const { agent, announced, sealedHeader, key } = from
  const { jobId } = announced
  // While its key was opened the agent may have been revoked, and its jobs frozen without this one.
  const sender = await agentById(tx.sql, agent.id)
  if (!sender || sender.revokedAtMs !== null)
    throw new SluiceError('identity.revoked', 'this agent was revoked')
  const atMs = deps.now()
  await addJob(tx, {
    id: jobId,
    site: agent.site,
    captureAgentId: agent.id,
    analyser: announced.analyser,
    state: 'announced',
    mediaCount: announced.mediaCount,
    sealedBytes: announced.sealedBytes,
    sealedHeader,
    sealedHeaderSha256: createHash('sha256').update(sealedHeader).digest('hex'),
    spoolSha256: announced.spoolSha256,
    source: announced.source,
    objectKey: objectKeyFrom(randomBytes(16)),
    sealedAtMs: announced.sealedAtMs,
    announcedAtMs: atMs,
    stateChangedAtMs: atMs,
  })
  await storeJobKey(tx, {
    jobId,
    senderId: agent.id,
    receiveKeyId: announced.receiveKeyId,
    key,
  })
  const owed = { jobId, site: agent.site, state: 'waiting', atMs } as const
  const spoolObligationId = await addObligation(
    tx,
    {
      ...owed,
      kind: 'spool.delete',
      holder: { kind: 'capture-spool', id: agent.id },
      agentId: agent.id,
    },
    deps.changes,
  )
  await addObligation(tx, { ...owed, kind: 'object.delete' }, deps.changes)
  for (const name of deps.replicas.stores.keys())
    await addObligation(tx, { ...owed, kind: 'replica.delete', subjectId: name }, deps.changes)
  await addObligation(tx, { ...owed, kind: 'key.destroy' }, deps.changes)
  await appendAudit(tx, {
    atMs,
    type: 'job.state-changed',
    actor: byAgent(agent.id),
    site: agent.site,
    jobId,
    agentId: agent.id,
    detail: {
      to: 'announced',
      analyser: announced.analyser,
      mediaCount: announced.mediaCount,
      sealedBytes: announced.sealedBytes,
    },
  })
  tx.afterCommit(() => deps.changes.emit('job', jobId))
  return { state: 'announced', spoolObligationId }
}
