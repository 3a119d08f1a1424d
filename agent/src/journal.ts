/** What the agent must not forget: one small file, replaced as a whole and durable before a change counts. */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { Low, type Adapter } from 'lowdb'
import { z } from 'zod'
import { SluiceError, errorCodes } from '@sluice/protocol/errors'
import {
  agentId,
  commandId,
  infectionId,
  jobId,
  leaseId,
  obligationId,
  purgeId,
  receiveKeyId,
  submissionId,
} from '@sluice/protocol/ids'
import { jobState, sourcePolicy } from '@sluice/protocol/job'
import { analyserName, scanEngine, sha256Hex } from '@sluice/protocol/manifest'
import { kemPublicKey, scanFinding, sealedHeader } from '@sluice/protocol/messages'
import { memoryLevel } from '@sluice/protocol/receipt'
import { dsseEnvelope } from '@sluice/protocol/sealing/dsse'
import {
  type DurableEffects,
  diskEffects,
  isDiskFull,
  isMissing,
  writeDurably,
} from './durable-file.ts'

const instant = z.int().nonnegative()
const problem = z.strictObject({
  code: z.enum(errorCodes),
  message: z.string(),
  hint: z.string().optional(),
  retry: z.enum(['never', 'later']),
})

/** What tells a source file from another one that took its place. */
export const sourceIdentity = z.strictObject({
  path: z.string(),
  /** As decimal text: device and inode numbers may exceed safe integers. */
  device: z.string(),
  inode: z.string(),
  bytes: z.int().nonnegative(),
  modifiedAtNs: z.string(),
})
export type SourceIdentity = z.infer<typeof sourceIdentity>

/** What is kept of an infected source: hash and reason, nothing else. */
export const infection = z.strictObject({
  sha256: sha256Hex,
  engine: scanEngine,
  finding: scanFinding,
  bytes: z.int().nonnegative(),
})

/** Files someone handed in, before there is a sealed job of them. */
export const submission = z.strictObject({
  submissionId,
  createdAtMs: instant,
  origin: z.enum(['command', 'watch']),
  analyser: analyserName,
  sources: z.array(sourceIdentity).min(1),
  source: sourcePolicy,
  moveTo: z.string().optional(),
  /**
   * `sealing` names the attempt whose spool is thrown away when the process ends before its time;
   * `purged` was dropped by an emergency purge, at whatever step it was.
   */
  state: z.enum(['waiting', 'sealing', 'sealed', 'refused', 'purged']),
  /** Of the current sealing attempt; a new attempt has a new one. */
  jobId: jobId.optional(),
  attempts: z.int().nonnegative(),
  problem: problem.optional(),
})
export type Submission = z.infer<typeof submission>

/** A sealed job of this host, from the complete spool to its end. */
export const captureJob = z.strictObject({
  jobId,
  submissionId,
  analyser: analyserName,
  sources: z.array(sourceIdentity).min(1),
  source: sourcePolicy,
  moveTo: z.string().optional(),
  mediaCount: z.int().min(1),
  /** Of those, passed without the word of a scanner. */
  unscanned: z.int().positive().optional(),
  sealedBytes: z.int().nonnegative(),
  sealedHeader,
  sealedHeaderSha256: sha256Hex,
  spoolSha256: sha256Hex,
  receiveKeyId,
  sealedAtMs: instant,
  /** How far this host has come; each step is durable before the next begins. */
  step: z.enum(['sealed', 'announced', 'stored', 'delivered', 'over']),
  /** The job's state at the control plane, as last heard. */
  remoteState: jobState.optional(),
  problem: problem.optional(),
  /** Where the opened result lies. */
  resultPath: z.string().optional(),
  sealedResultSha256: sha256Hex.optional(),
  /** `delivered` was answered: the control plane knows. */
  deliveryConfirmed: z.boolean(),
  /** The source was handled, or is kept for good. */
  sourceDone: z.boolean(),
  sourceProblem: problem.optional(),
  /** The obligation of this host's spool, once known. */
  spoolObligationId: obligationId.optional(),
  /** The control plane wants the spool gone; from here on nothing else happens to it. */
  spoolDeleteWanted: z.boolean(),
  spoolGone: z.boolean(),
  /** The key for the result was overwritten and removed. */
  seedGone: z.boolean(),
  /** The control plane has no result of this job, and never will. */
  noResult: z.boolean(),
  expiresAtMs: instant.optional(),
  updatedAtMs: instant,
})
export type CaptureJob = z.infer<typeof captureJob>

/** One lease of a GPU node, from its offer on. */
export const leaseRecord = z.strictObject({
  jobId,
  leaseId,
  fence: z.int().positive(),
  wipeObligationId: obligationId,
  sealedHeaderSha256: sha256Hex,
  acceptedAtMs: instant,
  /** Where its plaintext was to live; none when the lease was declined. */
  memoryLevel: memoryLevel.optional(),
  /**
   * `open`: a child may live. `wiping`: nothing may, but that is not checked or not reported yet.
   * `over`: reported and its receipt signed; kept for a while, so that a late order to end it gets
   * the same receipt again.
   */
  state: z.enum(['open', 'wiping', 'over']),
  /** Once it is over: how, what was looked at, and when. */
  wipe: z
    .strictObject({
      method: z.enum(['process-exit', 'never-held']),
      checked: z.array(z.string()).min(1),
      wipedAtMs: instant,
    })
    .optional(),
})
export type LeaseRecord = z.infer<typeof leaseRecord>

const count = z.int().nonnegative()

/** An emergency purge, from the moment its order is durable here. */
export const purgeRecord = z.strictObject({
  purgeId,
  obligationId,
  /** The order as it came, canonical: the receipt names it. */
  orderSha256: sha256Hex,
  everything: z.boolean(),
  /** What it is about, with drafts that only this host knows; emptied once all of it is wiped. */
  jobIds: z.array(jobId),
  leaseIds: z.array(leaseId),
  startedAtMs: instant,
  state: z.enum(['wiping', 'over']),
  /** What there was when the order came. */
  found: z.strictObject({ spools: count, drafts: count, leases: count, results: count }),
  /** Once it is over: what was looked at, and when. */
  wipe: z.strictObject({ checked: z.array(z.string()).min(1), wipedAtMs: instant }).optional(),
})
export type PurgeRecord = z.infer<typeof purgeRecord>

const journalData = z.strictObject({
  schema: z.literal('sluice-journal/1'),
  /** Whose journal it is; another identity does not go on with it. */
  agentId: agentId.optional(),
  submissions: z.record(submissionId, submission),
  jobs: z.record(jobId, captureJob),
  /** One-time public keys, each used for one sealing attempt and then forgotten. */
  receiveKeys: z.array(
    z.strictObject({ receiveKeyId, publicKey: kemPublicKey, expiresAtMs: instant }),
  ),
  /** Commands whose effect is durable, newest last, and the highest sequence number among them. */
  handledCommands: z.array(commandId),
  lastSeq: z.int().nonnegative(),
  leases: z.record(leaseId, leaseRecord),
  /** Signed receipts that the control plane has not accepted yet, by obligation. */
  receipts: z.record(obligationId, dsseEnvelope),
  purges: z.record(obligationId, purgeRecord).default({}),
  /** Jobs whose spool a purge removed together with their record. */
  purgedJobs: z
    .record(
      jobId,
      z.strictObject({
        wipedAtMs: instant,
        /** The control plane may wait for this job's upload: it is to be told that none comes. */
        abandon: z.boolean(),
      }),
    )
    .default({}),
  /** Infected sources of this host, by the hash of their content. */
  quarantine: z
    .record(
      sha256Hex,
      z.strictObject({
        ...infection.omit({ sha256: true }).shape,
        infectionId,
        foundAtMs: instant,
        /** The control plane knows, so that an administrator is told. */
        told: z.boolean(),
      }),
    )
    .default({}),
  /** Contents of watched folders that were taken, by `contentKey`. */
  contents: z
    .record(z.string().max(256), z.strictObject({ submissionId, takenAtMs: instant }))
    .default({}),
  /** When this agent learnt that it was revoked. It does no work from then on. */
  lockedOutAtMs: instant.optional(),
  /** What `watched-files.ts` keeps by now, from an agent before it; taken out at the next start. */
  watched: z.record(z.string(), sourceIdentity).optional(),
})
export type JournalData = z.infer<typeof journalData>

/** A command repeated later than this many others is only ever one whose ack got lost. */
export const handledCommandsMax = 4096

export type Journal = {
  /** The durable state. Never changed in place: take it anew after every wait. */
  readonly data: Readonly<JournalData>
  /**
   * Changes the journal in one durable step; changes run one after the other. `edit` gets a draft,
   * runs without waiting, and by throwing changes nothing.
   *
   * @param options.urgent Goes before all changes that wait, behind earlier urgent ones: for what
   * an emergency orders.
   * @returns What `edit` returned, after the new state is on the disk.
   * @throws SluiceError `host.disk_full`; the state is then the old one, in memory and on the disk.
   */
  change<T>(edit: (draft: JournalData) => T, options?: { urgent?: boolean }): Promise<T>
}

export const journalName = 'journal.json'

/**
 * Opens the journal of a state directory, an empty one on the first start.
 *
 * @throws SluiceError `host.unsafe_file` when the file is there but is no journal of this version.
 * It is never reset: what it holds is what this host still owes.
 */
export async function openJournal(
  stateDir: string,
  effects: DurableEffects = diskEffects,
): Promise<Journal> {
  const file = path.join(stateDir, journalName)
  const low = new Low<JournalData>(fileAdapter(file, effects), emptyJournal())
  await low.read()
  const waiting: { urgent: boolean; run: () => Promise<void> }[] = []
  let running = false
  /** What readers see: never a draft that a power cut could still take back. */
  let durable = low.data
  let text = JSON.stringify(durable)

  async function apply<T>(edit: (draft: JournalData) => T): Promise<T> {
    const draft: JournalData = JSON.parse(text)
    const value = edit(draft)
    const draftText = JSON.stringify(draft)
    if (draftText === text) return value
    low.data = draft
    await low.write()
    durable = draft
    text = draftText
    return value
  }

  async function runWaiting(): Promise<void> {
    running = true
    // Behind the caller's own step, as everything that waits.
    await Promise.resolve()
    for (let next = waiting.shift(); next; next = waiting.shift()) await next.run()
    running = false
  }

  return {
    get data() {
      return durable
    },
    change(edit, { urgent = false } = {}) {
      return new Promise((resolve, reject) => {
        // The next change waits for this one's end, however it ends; its error belongs to its caller.
        const run = () => apply(edit).then(resolve, reject)
        const behind = waiting.findLastIndex((each) => each.urgent)
        waiting.splice(urgent ? behind + 1 : waiting.length, 0, { urgent, run })
        if (!running) void runWaiting()
      })
    },
  }
}

function emptyJournal(): JournalData {
  return {
    schema: 'sluice-journal/1',
    submissions: {},
    jobs: {},
    receiveKeys: [],
    handledCommands: [],
    lastSeq: 0,
    leases: {},
    receipts: {},
    purges: {},
    purgedJobs: {},
    quarantine: {},
    contents: {},
  }
}

function fileAdapter(file: string, effects: DurableEffects): Adapter<JournalData> {
  return {
    async read() {
      let text: string
      try {
        text = await readFile(file, 'utf8')
      } catch (error) {
        if (isMissing(error)) return null
        throw error
      }
      return parseJournal(file, text)
    },
    async write(data) {
      try {
        await writeDurably(file, Buffer.from(JSON.stringify(data)), { effects })
      } catch (cause) {
        if (!isDiskFull(cause)) throw cause
        throw new SluiceError('host.disk_full', 'no room for the journal of the agent', {
          retry: 'later',
          hint: 'Free space on the file system of the state directory; the agent then goes on by itself.',
          cause,
        })
      }
    },
  }
}

function parseJournal(file: string, text: string): JournalData {
  const damaged = (why: string, cause?: unknown) =>
    new SluiceError('host.unsafe_file', `${file} is not a journal of this agent: ${why}`, {
      hint: 'Restore the file. Moving it away makes the agent forget what it still owes.',
      cause,
    })
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (cause) {
    throw damaged('it is not JSON', cause)
  }
  const parsed = journalData.safeParse(value)
  if (parsed.success) return parsed.data
  throw damaged(z.prettifyError(parsed.error).split('\n')[0] ?? 'unknown shape', parsed.error)
}
