/** The one schema of the control plane's database; migrations are generated from it. */
import {
  blob,
  index,
  integer,
  primaryKey,
  sqliteTable,
  text,
  uniqueIndex,
} from 'drizzle-orm/sqlite-core'
import type { ErrorCode } from '@sluice/protocol/errors'
import type {
  AgentId,
  CommandId,
  EpochId,
  JobId,
  LeaseId,
  ObligationId,
  PrincipalId,
  ReceiveKeyId,
  TokenId,
} from '@sluice/protocol/ids'
import type { JobState, SourcePolicy } from '@sluice/protocol/job'
import type { Command, Lane, NodeOffer } from '@sluice/protocol/messages'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import type { Actor, AuditEventType } from '@sluice/protocol/audit-event'
import type { Holder } from '@sluice/protocol/receipt'

/** Roles of principals. They do not nest. */
export type Role = 'viewer' | 'operator' | 'security'

const bytes = (name: string) => blob(name, { mode: 'buffer' })

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
    /** The last command sequence number given out. */
    lastSeq: integer().notNull().default(0),
  },
  (table) => [index('agents_by_site').on(table.site)],
)

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
export type ObligationKind =
  /** A node must confirm that a lease's process, plaintext and key are gone. */
  | 'lease.wipe'
  /** The capture host must confirm that its spool is gone. */
  | 'spool.delete'
  /** Objects, versions, markers and incomplete uploads must be absent. */
  | 'object.delete'
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

export const obligations = sqliteTable(
  'obligations',
  {
    id: text().$type<ObligationId>().primaryKey(),
    jobId: text()
      .$type<JobId>()
      .notNull()
      .references(() => jobs.id),
    kind: text().$type<ObligationKind>().notNull(),
    holder: text({ mode: 'json' }).$type<Holder>(),
    leaseId: text().$type<LeaseId>(),
    state: text().$type<'waiting' | 'due' | 'done'>().notNull(),
    attempts: integer().notNull().default(0),
    nextTryAtMs: integer().notNull(),
    /** Overdue beyond this: alarmed, never dropped. */
    deadlineAtMs: integer().notNull(),
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
  ],
)

/** Receipts as they were signed, one per obligation. */
export const receipts = sqliteTable('receipts', {
  obligationId: text()
    .$type<ObligationId>()
    .primaryKey()
    .references(() => obligations.id),
  jobId: text().$type<JobId>().notNull(),
  /** The DSSE envelope's JSON text, byte for byte. */
  envelope: text().notNull(),
  payloadSha256: text().notNull(),
  signerKeyId: text().notNull(),
  signerPublicKey: bytes('signer_public_key').notNull(),
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
