/** The one schema of the control plane's database; migrations are generated from it. */
import { sql } from './drizzle.ts'
import { blob, index, integer, primaryKey, sqliteTable, text, uniqueIndex } from './drizzle.ts'
import type { SanitisationLevel } from '@sluice/protocol/certificate'
import type { ErrorCode } from '@sluice/protocol/errors'
import type {
  AgentId,
  AlertId,
  ApprovalId,
  CommandId,
  ControlPlaneId,
  EpochId,
  FindingId,
  JobId,
  LeaseId,
  LegalHoldId,
  ObligationId,
  PrincipalId,
  PurgeId,
  ReceiveKeyId,
  RevocationId,
  SweepId,
  TokenId,
} from '@sluice/protocol/ids'
import type { JobState, SourcePolicy } from '@sluice/protocol/job'
import type { Command, Lane, NodeOffer } from '@sluice/protocol/messages'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import type { Actor, AuditEventType } from '@sluice/protocol/audit-event'
import type { AlertType } from '@sluice/protocol/alert'
import type { ApprovalOperation } from '@sluice/protocol/approval'
import type { PurgeScope } from '@sluice/protocol/purge'
import type { Holder } from '@sluice/protocol/receipt'
import type { SweepFindingKind } from '@sluice/protocol/sweep'

/** Roles of principals. They do not nest. */
export type Role = 'viewer' | 'operator' | 'security'

const bytes = (name: string) => blob(name, { mode: 'buffer' })

/** Which control plane this is: one row, made once, and in every copy of this database. */
export const controlPlane = sqliteTable('control_plane', {
  id: text().$type<ControlPlaneId>().primaryKey(),
  createdAtMs: integer().notNull(),
})

// ---------------------------------------------------------------- access

export const principals = sqliteTable('principals', {
  id: text().$type<PrincipalId>().primaryKey(),
  name: text().notNull().unique(),
  createdAtMs: integer().notNull(),
  createdBy: text().$type<PrincipalId>(),
})

/** A right is (principal, role, site); site `*` means all. */
export const rights = sqliteTable(
  'rights',
  {
    principalId: text()
      .$type<PrincipalId>()
      .notNull()
      .references(() => principals.id),
    role: text().$type<Role>().notNull(),
    site: text().notNull(),
  },
  (table) => [primaryKey({ columns: [table.principalId, table.role, table.site] })],
)

/** Bearer tokens of principals: only the SHA-256 of the token is stored. */
export const apiTokens = sqliteTable('api_tokens', {
  id: text().$type<TokenId>().primaryKey(),
  principalId: text()
    .$type<PrincipalId>()
    .notNull()
    .references(() => principals.id),
  tokenSha256: bytes('token_sha256').notNull().unique(),
  createdAtMs: integer().notNull(),
  /** Who was handed it when it was made; null for the owner of the data directory. */
  createdBy: text().$type<PrincipalId>(),
  expiresAtMs: integer().notNull(),
  lastUsedAtMs: integer(),
  revokedAtMs: integer(),
})

/** Join tokens: single use, bound to role, site and labels. */
export const joinTokens = sqliteTable('join_tokens', {
  id: text().$type<TokenId>().primaryKey(),
  tokenSha256: bytes('token_sha256').notNull().unique(),
  role: text().$type<'capture' | 'gpu'>().notNull(),
  site: text().notNull(),
  labels: text({ mode: 'json' }).$type<Record<string, string>>().notNull(),
  agentName: text(),
  createdAtMs: integer().notNull(),
  createdBy: text().$type<PrincipalId>(),
  expiresAtMs: integer().notNull(),
  usedAtMs: integer(),
  usedByAgentId: text().$type<AgentId>(),
  revokedAtMs: integer(),
})

/** Answers of POSTs, so that the same `Idempotency-Key` gets the same answer for a day. */
export const idempotencyKeys = sqliteTable(
  'idempotency_keys',
  {
    principalId: text().$type<PrincipalId>().notNull(),
    key: text().notNull(),
    requestSha256: bytes('request_sha256').notNull(),
    /** 0 while it is worked on, and for good when that was cut short by a crash. */
    status: integer().notNull(),
    body: text().notNull(),
    createdAtMs: integer().notNull(),
  },
  (table) => [primaryKey({ columns: [table.principalId, table.key] })],
)

// ---------------------------------------------------------------- fleet

export const agents = sqliteTable(
  'agents',
  {
    id: text().$type<AgentId>().primaryKey(),
    name: text().notNull().unique(),
    role: text().$type<'capture' | 'gpu'>().notNull(),
    site: text().notNull(),
    labels: text({ mode: 'json' }).$type<Record<string, string>>().notNull(),
    /** SubjectPublicKeyInfo (DER) of the Ed25519 identity key. */
    publicKey: bytes('public_key').notNull(),
    publicKeyId: text().notNull().unique(),
    joinedAtMs: integer().notNull(),
    revokedAtMs: integer(),
    /** What the operator allows a GPU node; its offer can only narrow this. Null: any analyser. */
    allowedAnalysers: text({ mode: 'json' }).$type<string[]>(),
    leasesMax: integer().notNull().default(1),
    offer: text({ mode: 'json' }).$type<NodeOffer>(),
    certificateSerial: text(),
    certificateExpiresAtMs: integer(),
    build: text(),
    instanceId: text(),
    connectedAtMs: integer(),
    lastSeenAtMs: integer(),
    clockSkewMs: integer(),
  },
  (table) => [index('agents_by_site').on(table.site)],
)

/** One row: the last number that any command got. Each agent's rise, as all do. */
export const commandNumbers = sqliteTable('command_numbers', {
  id: integer().primaryKey(),
  lastSeq: integer().notNull(),
})

export const commands = sqliteTable(
  'commands',
  {
    id: text().$type<CommandId>().primaryKey(),
    agentId: text()
      .$type<AgentId>()
      .notNull()
      .references(() => agents.id),
    seq: integer().notNull(),
    lane: text().$type<Lane>().notNull(),
    body: text({ mode: 'json' }).$type<Command>().notNull(),
    createdAtMs: integer().notNull(),
    sentAtMs: integer(),
    ackedAtMs: integer(),
    problemCode: text().$type<ErrorCode>(),
    /** Set when the order lost its point before it was acknowledged; it is then never sent again. */
    cancelledAtMs: integer(),
  },
  (table) => [
    uniqueIndex('commands_by_agent_seq').on(table.agentId, table.seq),
    index('commands_open').on(table.agentId, table.ackedAtMs),
  ],
)

// ---------------------------------------------------------------- jobs

export const jobs = sqliteTable(
  'jobs',
  {
    id: text().$type<JobId>().primaryKey(),
    site: text().notNull(),
    captureAgentId: text()
      .$type<AgentId>()
      .notNull()
      .references(() => agents.id),
    analyser: text().notNull(),
    state: text().$type<JobState>().notNull(),
    /** The state it was frozen in, to go back to. */
    frozenFrom: text().$type<JobState>(),
    mediaCount: integer().notNull(),
    sealedBytes: integer().notNull(),
    /** Salt and commitment: the first 56 bytes of the sealed archive. */
    sealedHeader: bytes('sealed_header').notNull(),
    sealedHeaderSha256: text().notNull(),
    spoolSha256: text().notNull(),
    source: text({ mode: 'json' }).$type<SourcePolicy>().notNull(),
    objectKey: text().$type<ObjectKey>().notNull().unique(),
    sealedAtMs: integer().notNull(),
    announcedAtMs: integer().notNull(),
    storedAtMs: integer(),
    analysedAtMs: integer(),
    intentAtMs: integer(),
    keysUnusableAtMs: integer(),
    keysUnrecoverableAtMs: integer(),
    objectsAbsentAtMs: integer(),
    deletedAtMs: integer(),
    stateChangedAtMs: integer().notNull(),
    /** When a failed job's archive goes; null while it is not failed. */
    expiresAtMs: integer(),
    leaseAttempts: integer().notNull().default(0),
    /** The fence of the newest lease; only ever rises. */
    fence: integer().notNull().default(0),
    problemCode: text().$type<ErrorCode>(),
    problemMessage: text(),
    /** Under legal hold since then: nothing but a purge that names held jobs may delete it. */
    heldAtMs: integer(),
    /** Frozen for nothing but its hold: lifting that lets it go on. */
    frozenByHold: integer({ mode: 'boolean' }).notNull().default(false),
    /** A node that was revoked held its key: what it held counts as seen by others. */
    exposedAtMs: integer(),
    /** The purge that deleted it. */
    purgeId: text().$type<PurgeId>(),
  },
  (table) => [
    index('jobs_by_state').on(table.state, table.stateChangedAtMs),
    index('jobs_by_site').on(table.site, table.id),
    index('jobs_by_agent').on(table.captureAgentId, table.id),
  ],
)

/** Every lease there ever was; `endedAtMs` null for the one that holds. */
export const leases = sqliteTable(
  'leases',
  {
    id: text().$type<LeaseId>().primaryKey(),
    jobId: text()
      .$type<JobId>()
      .notNull()
      .references(() => jobs.id),
    nodeId: text()
      .$type<AgentId>()
      .notNull()
      .references(() => agents.id),
    fence: integer().notNull(),
    grantedAtMs: integer().notNull(),
    acceptedAtMs: integer(),
    keyReleasedAtMs: integer(),
    deadlineAtMs: integer().notNull(),
    endedAtMs: integer(),
    endReason: text().$type<
      'finished' | 'failed' | 'declined' | 'expired' | 'revoked' | 'deleted'
    >(),
    wipedAtMs: integer(),
  },
  (table) => [
    uniqueIndex('leases_by_job_fence').on(table.jobId, table.fence),
    index('leases_open').on(table.endedAtMs, table.deadlineAtMs),
    index('leases_by_node').on(table.nodeId, table.endedAtMs),
    index('leases_unwiped').on(table.wipedAtMs, table.nodeId),
  ],
)

/** The sealed result of the lease that finished; opaque to the control plane. */
export const results = sqliteTable('results', {
  jobId: text()
    .$type<JobId>()
    .primaryKey()
    .references(() => jobs.id),
  leaseId: text().$type<LeaseId>().notNull(),
  nodeId: text().$type<AgentId>().notNull(),
  fence: integer().notNull(),
  sealed: bytes('sealed'),
  sealedSha256: text().notNull(),
  sealedBytes: integer().notNull(),
  receivedAtMs: integer().notNull(),
  deliveredAtMs: integer(),
  expiresAtMs: integer().notNull(),
})

// ---------------------------------------------------------------- keys

/** Epochs by id; the keys themselves are in the `EpochKeyStore`, never here. */
export const epochs = sqliteTable('epochs', {
  id: text().$type<EpochId>().primaryKey(),
  createdAtMs: integer().notNull(),
  /** `rolling`: its key is durable, survivors are being re-sealed into it. */
  state: text().$type<'rolling' | 'current' | 'retired' | 'destroyed'>().notNull(),
  destroyedAtMs: integer(),
  /** Where its key lives, and what its destruction may claim: a certificate claims the least. */
  store: text().$type<'file' | 'pkcs11'>().notNull().default('file'),
  level: text().$type<SanitisationLevel>().notNull().default('none'),
  levelReason: text().notNull().default('not recorded'),
})

/** Job keys, wrapped: 12-byte nonce, ciphertext, 16-byte tag; AAD is job id and epoch id. */
export const jobKeys = sqliteTable(
  'job_keys',
  {
    jobId: text()
      .$type<JobId>()
      .primaryKey()
      .references(() => jobs.id),
    epochId: text().$type<EpochId>().notNull(),
    wrapped: bytes('wrapped').notNull(),
  },
  (table) => [index('job_keys_by_epoch').on(table.epochId)],
)

/** Seeds of one-time receive keys, wrapped like job keys; deleted when used. */
export const receiveKeys = sqliteTable(
  'receive_keys',
  {
    id: text().$type<ReceiveKeyId>().primaryKey(),
    agentId: text()
      .$type<AgentId>()
      .notNull()
      .references(() => agents.id),
    epochId: text().$type<EpochId>().notNull(),
    wrappedSeed: bytes('wrapped_seed').notNull(),
    publicKey: bytes('public_key').notNull(),
    suppliedAtMs: integer(),
    expiresAtMs: integer().notNull(),
  },
  (table) => [
    index('receive_keys_by_agent').on(table.agentId, table.suppliedAtMs),
    index('receive_keys_by_epoch').on(table.epochId),
    index('receive_keys_by_expiry').on(table.expiresAtMs),
  ],
)

// ---------------------------------------------------------------- storage

/** Every upload id there ever was: the row comes before CreateMultipartUpload. */
export const uploads = sqliteTable(
  'uploads',
  {
    id: text().primaryKey(),
    jobId: text()
      .$type<JobId>()
      .notNull()
      .references(() => jobs.id),
    objectKey: text().$type<ObjectKey>().notNull(),
    /** The store's own upload id; null until the store answered. */
    storeUploadId: text(),
    partBytes: integer().notNull(),
    state: text().$type<'creating' | 'open' | 'completed' | 'aborted'>().notNull(),
    createdAtMs: integer().notNull(),
    endedAtMs: integer(),
  },
  (table) => [index('uploads_by_job').on(table.jobId)],
)

// ---------------------------------------------------------------- deletion

/**
 * Everything still owed. `waiting`: known, but not due before its job is deleted; `due`: worked off
 * by the engine; `done`: confirmed, with its receipt where it is a holder's.
 */
export type JobObligationKind =
  /** A node must confirm that a lease's process, plaintext and key are gone. */
  | 'lease.wipe'
  /** The capture host must confirm that its spool is gone. */
  | 'spool.delete'
  /** Objects, versions, markers and incomplete uploads must be absent. */
  | 'object.delete'
  /** The same in a replica of the store; subject: its name. */
  | 'replica.delete'
  /** The job key's row must be gone and its epoch key destroyed. */
  | 'key.destroy'
  /** The sealed result must be delivered, or its time must run out; then it is deleted. */
  | 'result.deliver'
  /** A failed job's archive must go when its time is over. */
  | 'job.expire'
  /** The capture host must be told that the only copy is about to expire. */
  | 'job.expiry-notice'
  /** All receipts are in: the deletion certificate must be written. */
  | 'certificate.issue'

/** Duties about something else than one job; `subjectId` says about what. */
export type SubjectObligationKind =
  /** An agent must confirm that nothing of a purge's scope is left with it; subject: the purge. */
  | 'purge.agent'
  /** Nothing of a purge is owed any more: its certificate or report must be written. */
  | 'purge.conclude'
  /** The store must hold no incomplete upload of a revoked agent; subject: the revocation. */
  | 'uploads.abort'
  /** The store must refuse every grant given out before a revocation; subject: the revocation. */
  | 'grants.revoke'
  /** An agent must trust the newest authority and hold a certificate of it; subject: the revocation. */
  | 'authority.adopt'
  /** The authority that was replaced must not be trusted any more; subject: the revocation. */
  | 'authority.retire'
  /** An approval that nobody decided must end; subject: the approval. */
  | 'approval.expire'
  /** An alert must reach its channel; subject: the alert. */
  | 'alert.deliver'
  /** An orphan in quarantine must be deleted when its time is over; subject: the finding. */
  | 'orphan.delete'
  /** Audit events must reach the sink; subject: the sink. */
  | 'audit.export'

export type ObligationKind = JobObligationKind | SubjectObligationKind

export const obligations = sqliteTable(
  'obligations',
  {
    id: text().$type<ObligationId>().primaryKey(),
    /** Null for duties that are about no single job. */
    jobId: text()
      .$type<JobId>()
      .references(() => jobs.id),
    kind: text().$type<ObligationKind>().notNull(),
    /** Who may see it; `*` for what concerns all sites. */
    site: text().notNull(),
    holder: text({ mode: 'json' }).$type<Holder>(),
    leaseId: text().$type<LeaseId>(),
    /** The agent it waits for. */
    agentId: text().$type<AgentId>(),
    /** What it is about where that is no job: a purge, a revocation, an alert, a finding; or a replica. */
    subjectId: text(),
    /** The newest order that asks an agent for it. */
    commandId: text().$type<CommandId>(),
    state: text().$type<'waiting' | 'due' | 'done'>().notNull(),
    attempts: integer().notNull().default(0),
    nextTryAtMs: integer().notNull(),
    /** Overdue beyond this: alarmed, never dropped. */
    deadlineAtMs: integer().notNull(),
    /** Two people gave up on its holder. It stays due: who comes back still wipes and confirms. */
    writtenOffAtMs: integer(),
    /** When it was found overdue; said once. */
    alarmedAtMs: integer(),
    lastErrorCode: text().$type<ErrorCode>(),
    lastError: text(),
    createdAtMs: integer().notNull(),
    doneAtMs: integer(),
  },
  (table) => [
    index('obligations_due').on(table.state, table.nextTryAtMs),
    index('obligations_by_job').on(table.jobId, table.kind),
    index('obligations_by_subject').on(table.subjectId, table.state),
    index('obligations_by_agent').on(table.agentId, table.state),
    index('obligations_by_command')
      .on(table.commandId)
      .where(sql`command_id IS NOT NULL`),
  ],
)

/** Receipts as they were signed, one per obligation. */
export const receipts = sqliteTable('receipts', {
  obligationId: text()
    .$type<ObligationId>()
    .primaryKey()
    .references(() => obligations.id),
  jobId: text().$type<JobId>(),
  /** The DSSE envelope's JSON text, byte for byte. */
  envelope: text().notNull(),
  payloadSha256: text().notNull(),
  signerKeyId: text().notNull(),
  signerPublicKey: bytes('signer_public_key').notNull(),
  /** In which time the agent's identity was good, as known then; null for the evidence key. */
  signerNotBeforeMs: integer(),
  signerNotAfterMs: integer(),
  receivedAtMs: integer().notNull(),
})

export const certificates = sqliteTable('certificates', {
  jobId: text()
    .$type<JobId>()
    .primaryKey()
    .references(() => jobs.id),
  site: text().notNull(),
  envelope: text().notNull(),
  issuedAtMs: integer().notNull(),
})

/** Signed documents besides job certificates, as their exact canonical text. */
export const evidenceDocuments = sqliteTable(
  'evidence_documents',
  {
    id: text().primaryKey(),
    kind: text().$type<'purge-certificate' | 'purge-report' | 'write-off'>().notNull(),
    /** The purge or the job it is about. */
    subjectId: text().notNull(),
    site: text().notNull(),
    envelope: text().notNull(),
    issuedAtMs: integer().notNull(),
  },
  (table) => [uniqueIndex('evidence_by_subject').on(table.subjectId, table.kind)],
)

// ---------------------------------------------------------------- two people

/** What one asked for and another must agree to. The operation is done in the transaction that agrees. */
export const approvals = sqliteTable(
  'approvals',
  {
    id: text().$type<ApprovalId>().primaryKey(),
    operation: text({ mode: 'json' }).$type<ApprovalOperation>().notNull(),
    site: text().notNull(),
    reason: text().notNull(),
    askedBy: text().$type<PrincipalId>().notNull(),
    /** With which token: it ends with that one. */
    askedByToken: text().$type<TokenId>().notNull(),
    /** Nobody else has the role on all of `site`: whoever has it on any site may decide. */
    anySite: integer({ mode: 'boolean' }).notNull().default(false),
    askedAtMs: integer().notNull(),
    expiresAtMs: integer().notNull(),
    state: text().$type<'open' | 'given' | 'refused' | 'expired'>().notNull(),
    decidedBy: text().$type<PrincipalId>(),
    decidedAtMs: integer(),
    /** When the one token was made that a given approval allows. */
    usedAtMs: integer(),
  },
  (table) => [
    index('approvals_by_state').on(table.state, table.expiresAtMs),
    index('approvals_by_token').on(table.askedByToken, table.state),
  ],
)

/** Every legal hold there ever was; the one that stands has no `liftedAtMs`. */
export const legalHolds = sqliteTable(
  'legal_holds',
  {
    id: text().$type<LegalHoldId>().primaryKey(),
    jobId: text()
      .$type<JobId>()
      .notNull()
      .references(() => jobs.id),
    reason: text().notNull(),
    setBy: text().$type<PrincipalId>().notNull(),
    setAtMs: integer().notNull(),
    liftAskedBy: text().$type<PrincipalId>(),
    liftedBy: text().$type<PrincipalId>(),
    liftedAtMs: integer(),
  },
  (table) => [index('legal_holds_by_job').on(table.jobId, table.liftedAtMs)],
)

// ---------------------------------------------------------------- purge and revocation

/** Emergency destructions, from the request on. The first of the instants is the durable intent. */
export const purges = sqliteTable(
  'purges',
  {
    id: text().$type<PurgeId>().primaryKey(),
    scope: text({ mode: 'json' }).$type<PurgeScope>().notNull(),
    /** The one site it stays within; `*` for all. */
    site: text().notNull(),
    reason: text().notNull(),
    includingHeld: integer({ mode: 'boolean' }).notNull(),
    state: text().$type<'waiting' | 'running' | 'concluded' | 'refused'>().notNull(),
    requestedBy: text().$type<PrincipalId>().notNull(),
    requestedAtMs: integer().notNull(),
    approvedBy: text().$type<PrincipalId>(),
    breakGlass: integer({ mode: 'boolean' }).notNull().default(false),
    intentAtMs: integer(),
    keysUnusableAtMs: integer(),
    keysUnrecoverableAtMs: integer(),
    ordersDurableAtMs: integer(),
    objectsAbsentAtMs: integer(),
    concludedAtMs: integer(),
    jobs: integer().notNull().default(0),
    heldSkipped: integer().notNull().default(0),
    agents: integer().notNull().default(0),
    receiveKeys: integer().notNull().default(0),
    /** Leases that the intent ended. */
    leases: integer().notNull().default(0),
    /** No key handed out before the intent works on any node after this instant. */
    leasesOverAtMs: integer(),
    /** What the second person decides, where one is needed. */
    approvalId: text().$type<ApprovalId>(),
    /** Ids of held jobs that it skipped, at most `limits.purgeOpenListedMax`. */
    heldSkippedIds: text({ mode: 'json' }).$type<JobId[]>(),
    /** Revoked capture hosts of its scope that had no job in it: nobody could order or ask them. */
    unasked: integer().notNull().default(0),
    /** Their ids, at most `limits.purgeOpenListedMax`. */
    unaskedIds: text({ mode: 'json' }).$type<AgentId[]>(),
    /** SHA-256 over the sorted ids of its jobs, one a line; in the audit event of the intent too. */
    jobsSha256: text(),
  },
  (table) => [
    index('purges_by_state').on(table.state, table.id),
    index('purges_by_intent').on(table.intentAtMs),
  ],
)

/** The jobs a purge deleted. */
export const purgeJobs = sqliteTable(
  'purge_jobs',
  {
    purgeId: text()
      .$type<PurgeId>()
      .notNull()
      .references(() => purges.id),
    jobId: text()
      .$type<JobId>()
      .notNull()
      .references(() => jobs.id),
    /** The state the intent found it in. */
    fromState: text().$type<JobState>().notNull(),
    /** When the duties of its holders became due and its own audit event was written. */
    orderedAtMs: integer(),
  },
  (table) => [primaryKey({ columns: [table.purgeId, table.jobId] })],
)

/** What was revoked, by whom and why; what is still owed of it are obligations with its id. */
export const revocations = sqliteTable(
  'revocations',
  {
    id: text().$type<RevocationId>().primaryKey(),
    kind: text()
      .$type<'agent' | 'join-token' | 'token' | 'grants' | 'label' | 'authority'>()
      .notNull(),
    /** The id, the label `key=value`, or `*`. */
    target: text().notNull(),
    site: text().notNull(),
    reason: text().notNull(),
    revokedBy: text().$type<PrincipalId>(),
    atMs: integer().notNull(),
    /** What was in force when it returned: facts and counts. */
    detail: text({ mode: 'json' }).$type<Record<string, string | number | boolean>>().notNull(),
  },
  (table) => [index('revocations_by_time').on(table.atMs)],
)

// ---------------------------------------------------------------- sweep

/** Each comparison of what there is with what there should be. */
export const sweeps = sqliteTable('sweeps', {
  id: text().$type<SweepId>().primaryKey(),
  trigger: text().$type<'daily' | 'asked'>().notNull(),
  dryRun: integer({ mode: 'boolean' }).notNull(),
  state: text().$type<'running' | 'ended' | 'failed'>().notNull(),
  startedAtMs: integer().notNull(),
  endedAtMs: integer(),
  problemCode: text().$type<ErrorCode>(),
  /** Places looked at, things seen, orphans, losses, by name. */
  counts: text({ mode: 'json' }).$type<Record<string, number>>().notNull(),
})

/** What a sweep found where it should not be, or not where it should be. */
export const sweepFindings = sqliteTable(
  'sweep_findings',
  {
    id: text().$type<FindingId>().primaryKey(),
    sweepId: text().$type<SweepId>().notNull(),
    kind: text().$type<SweepFindingKind>().notNull(),
    /** What it is: an object key, an upload, a job's spool, a key row. */
    subject: text().notNull(),
    agentId: text().$type<AgentId>(),
    jobId: text().$type<JobId>(),
    /** `kept`: somebody decided that it stays. `gone`: a later look no longer found it. */
    state: text().$type<'quarantined' | 'reported' | 'kept' | 'deleted' | 'gone'>().notNull(),
    firstSeenAtMs: integer().notNull(),
    lastSeenAtMs: integer().notNull(),
    /** An orphan is deleted after this. */
    graceUntilMs: integer(),
    endedAtMs: integer(),
  },
  (table) => [
    uniqueIndex('sweep_findings_by_subject').on(table.kind, table.subject),
    index('sweep_findings_by_state').on(table.state, table.graceUntilMs),
  ],
)

// ---------------------------------------------------------------- alerts and audit

/** What an administrator must hear; delivering it is an obligation. */
export const alerts = sqliteTable(
  'alerts',
  {
    id: text().$type<AlertId>().primaryKey(),
    type: text().$type<AlertType>().notNull(),
    severity: text().$type<'info' | 'warning' | 'critical'>().notNull(),
    site: text().notNull(),
    atMs: integer().notNull(),
    /** One line for a person. */
    summary: text().notNull(),
    detail: text({ mode: 'json' }).$type<Record<string, string | number | boolean>>().notNull(),
    deliveredAtMs: integer(),
  },
  (table) => [index('alerts_by_time').on(table.atMs)],
)

/** How far audit events have reached a sink and were read back from it. */
export const auditExports = sqliteTable('audit_exports', {
  sink: text().primaryKey(),
  lastSeq: integer().notNull(),
  lastSha256: text().notNull(),
  exportedAtMs: integer(),
})

// ---------------------------------------------------------------- audit

export const auditEvents = sqliteTable(
  'audit_events',
  {
    seq: integer().primaryKey(),
    atMs: integer().notNull(),
    type: text().$type<AuditEventType>().notNull(),
    actor: text({ mode: 'json' }).$type<Actor>().notNull(),
    site: text().notNull(),
    jobId: text().$type<JobId>(),
    agentId: text().$type<AgentId>(),
    detail: text({ mode: 'json' }).$type<Record<string, string | number | boolean>>().notNull(),
    previousSha256: text().notNull(),
    sha256: text().notNull(),
  },
  (table) => [
    index('audit_by_job').on(table.jobId, table.seq),
    index('audit_by_site').on(table.site, table.seq),
  ],
)
