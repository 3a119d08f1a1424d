/** Every message of the channel between agent and control plane, as one versioned union with bounds. */
import { z } from 'zod'
import { errorCodes } from './errors.ts'
import {
  agentId,
  commandId,
  infectionId,
  jobId,
  leaseId,
  obligationId,
  purgeId,
  receiveKeyId,
  revocationId,
  sweepId,
} from './ids.ts'
import { jobState, sourcePolicy } from './job.ts'
import { limits } from './limits.ts'
import { analyserName, isolationLevel, scanEngine, sha256Hex } from './manifest.ts'
import { memoryLevel } from './receipt.ts'
import { dsseEnvelope } from './sealing/dsse.ts'

/** This build speaks these versions; a peer must share one. */
export const protocolVersions = [1] as const

const instant = z.int().nonnegative()
const duration = z.int().nonnegative()
const bytes = z.int().nonnegative()
const fence = z.int().positive()
const text = z.string().max(limits.errorTextCharsMax)
const name = z.string().max(limits.nameCharsMax)
const partNumber = z.int().min(1).max(limits.partsMax)
/** Base64 of the 16 bytes of an MD5, as in `Content-MD5` (RFC 1864). */
const contentMd5 = z.base64().length(24)
const etag = z.string().min(1).max(128)
/** The 56-byte head of a sealed archive (salt and commitment), base64url. */
export const sealedHeader = z.base64url().length(75)
/** An X-Wing public key, 1216 bytes, base64url. Public keys may be text; nothing secret ever is. */
export const kemPublicKey = z.base64url().length(1622)
const requestId = z.uuidv7()
/** Signatures and rules are named by others: one line of plain characters. */
export const scanFinding = z.string().regex(/^[\w .:/@+-]{1,120}$/)

export const lanes = ['emergency', 'control', 'work'] as const
export const lane = z.enum(lanes)
export type Lane = z.infer<typeof lane>

export const problem = z.strictObject({
  code: z.enum(errorCodes),
  message: text,
  hint: text.optional(),
  retry: z.enum(['never', 'later']),
})
export type Problem = z.infer<typeof problem>

/** A presigned URL for one object and one operation. Only `headers` may be sent beside it. */
export const grant = z.strictObject({
  url: z.url({ protocol: /^https$/ }).max(4096),
  headers: z.record(z.string().max(64), z.string().max(512)),
  expiresAtMs: instant,
})
export type Grant = z.infer<typeof grant>

/** One lease as both sides name it. */
export const leaseRef = z.strictObject({ jobId, leaseId, fence })
export type LeaseRef = z.infer<typeof leaseRef>

export const analyserOffer = z.strictObject({ name: analyserName, version: name })

// ---------------------------------------------------------------- requests: agent asks, control plane replies

/**
 * Each request with its reply. An agent repeats a request until it has a reply, so every one is
 * idempotent: the same question in the same state has the same effect as asking once.
 */
export const requests = {
  /** Supplies one-time public keys, at most `limits.receiveKeysPerMessage` a reply. */
  'receive-keys.request': {
    body: z.strictObject({ stock: z.int().nonnegative().max(limits.receiveKeysPerAgent) }),
    reply: z.strictObject({
      keys: z
        .array(z.strictObject({ receiveKeyId, publicKey: kemPublicKey, expiresAtMs: instant }))
        .max(limits.receiveKeysPerMessage),
    }),
  },
  /** Attachment: the job key sealed to the receive key (`job-key-escrow`). */
  'job.announce': {
    body: z.strictObject({
      jobId,
      analyser: analyserName,
      mediaCount: z.int().min(1).max(limits.mediaPerJobMax),
      sealedBytes: bytes.max(limits.sealedBytesMax),
      sealedHeader,
      spoolSha256: sha256Hex,
      receiveKeyId,
      source: sourcePolicy,
      sealedAtMs: instant,
    }),
    reply: z.strictObject({ state: jobState, spoolObligationId: obligationId }),
  },
  /** Opens the upload, or asks which parts the store already holds. */
  'upload.begin': {
    body: z.strictObject({ jobId }),
    reply: z.strictObject({
      state: jobState,
      partBytes: z.int().min(limits.partBytesMin).max(limits.partBytesMax),
      held: z.array(z.strictObject({ part: partNumber, bytes, etag })).max(limits.partsMax),
    }),
  },
  'upload.grants': {
    body: z.strictObject({
      jobId,
      parts: z
        .array(
          z.strictObject({
            part: partNumber,
            bytes: bytes.max(limits.partBytesMax),
            md5: contentMd5,
          }),
        )
        .min(1)
        .max(limits.grantsPerRequestMax),
    }),
    reply: z.strictObject({
      grants: z.array(z.strictObject({ part: partNumber, grant })).max(limits.grantsPerRequestMax),
    }),
  },
  'upload.complete': {
    body: z.strictObject({
      jobId,
      parts: z
        .array(z.strictObject({ part: partNumber, etag }))
        .min(1)
        .max(limits.partsMax),
    }),
    reply: z.strictObject({ state: jobState }),
  },
  /** A read grant on the capture host's own stored object, to compare it with its spool. */
  'upload.verify': {
    body: z.strictObject({ jobId }),
    reply: z.strictObject({ grant }),
  },
  /** The capture host cannot finish what it announced. */
  'job.abandon': {
    body: z.strictObject({ jobId, problem }),
    reply: z.strictObject({ state: jobState }),
  },
  /** What became of jobs, asked after a reconnect; jobs of others are left out. */
  'job.states': {
    body: z.strictObject({ jobIds: z.array(jobId).min(1).max(100) }),
    reply: z.strictObject({
      jobs: z
        .array(z.strictObject({ jobId, state: jobState, problem: problem.optional() }))
        .max(100),
    }),
  },
  /** Reply's attachment: the sealed result. */
  'result.fetch': {
    body: z.strictObject({ jobId }),
    reply: z.strictObject({ lease: leaseRef, nodeId: agentId }),
  },
  'result.delivered': {
    body: z.strictObject({ jobId, sealedResultSha256: sha256Hex }),
    reply: z.strictObject({ state: jobState }),
  },
  /** A signed receipt. The reply means it was checked and is durable. */
  receipt: {
    body: z.strictObject({ receipt: dsseEnvelope }),
    reply: z.strictObject({}),
  },
  'lease.accept': {
    body: leaseRef,
    /** How long the lease still holds, counted by the node from before it asked. */
    reply: z.strictObject({ remainingMs: duration }),
  },
  'lease.decline': {
    body: z.strictObject({ ...leaseRef.shape, problem }),
    reply: z.strictObject({}),
  },
  /** Reply's attachment: the job key sealed to `publicKey` (`job-key-lease`). */
  'key.request': {
    body: z.strictObject({ ...leaseRef.shape, publicKey: kemPublicKey }),
    reply: z.strictObject({ deadlineAtMs: instant }),
  },
  'object.read': {
    body: leaseRef,
    reply: z.strictObject({ grant, sealedBytes: bytes }),
  },
  /** Attachment: the sealed result. */
  'lease.result': {
    body: z.strictObject({ ...leaseRef.shape, sealedResultSha256: sha256Hex }),
    reply: z.strictObject({}),
  },
  'lease.fail': {
    body: z.strictObject({ ...leaseRef.shape, problem }),
    reply: z.strictObject({}),
  },
  /** A PKCS#10 request in DER for the identity key this link is authenticated with. */
  'certificate.renew': {
    body: z.strictObject({ csr: z.base64().max(4096) }),
    reply: z.strictObject({
      /** Leaf first, then its issuer; DER, base64. */
      chain: z.array(z.base64().max(8192)).min(1).max(4),
      /** All authorities to trust from now on; DER, base64. */
      authorities: z.array(z.base64().max(8192)).min(1).max(4),
    }),
  },
  /**
   * One page of what lies on this host, as `inventory` asked for it. A page that comes again says
   * the same; each names every job and lease at most once.
   */
  'inventory.report': {
    body: z.strictObject({
      sweepId,
      /** Folders of the spool by the job their name tells, whether or not the journal knows it. */
      spools: z
        .array(z.strictObject({ jobId, sealedBytes: bytes }))
        .max(limits.inventoryEntriesMax),
      /** Leases that are not wiped yet. */
      leases: z.array(leaseRef).max(limits.inventoryEntriesMax),
      /**
       * On the last page: entries of the spool whose names tell no job; on a node, folders of leases
       * that it does not know.
       */
      unnamed: z.int().nonnegative().optional(),
      last: z.boolean(),
    }),
    reply: z.strictObject({}),
  },
  /** A scanner of the capture host found something; the medium and its hash stay there. */
  'medium.infected': {
    body: z.strictObject({
      infectionId,
      engine: scanEngine,
      /** Name of the signature or rule. */
      finding: scanFinding,
      foundAtMs: instant,
    }),
    reply: z.strictObject({}),
  },
  /** The authorities of an `authorities` command are trusted here, and the certificate is renewed. */
  'authorities.adopted': {
    body: z.strictObject({
      revocationId,
      obligationId,
      /** SHA-256 of each trusted authority's DER, hex. */
      authorities: z.array(sha256Hex).min(1).max(limits.authoritiesMax),
    }),
    reply: z.strictObject({}),
  },
} as const

export type RequestType = keyof typeof requests
export type RequestBody<T extends RequestType> = z.infer<(typeof requests)[T]['body']>
export type RequestReply<T extends RequestType> = z.infer<(typeof requests)[T]['reply']>

/** Requests and replies that carry an attachment, and its greatest size; all others carry none. */
export const attachmentBytesMax: {
  readonly request: Partial<Record<RequestType, number>>
  readonly reply: Partial<Record<RequestType, number>>
} = {
  request: { 'job.announce': 4096, 'lease.result': limits.sealedResultBytesMax },
  reply: { 'key.request': 4096, 'result.fetch': limits.sealedResultBytesMax },
}

// ---------------------------------------------------------------- commands: durable orders to an agent

/**
 * Orders, each a row before it is a frame. Handling one twice has the effect of once: it is known
 * by its command id.
 */
export const command = z.discriminatedUnion('type', [
  /** Holds no key: the node asks for it. `wipeObligationId` is owed from this moment on. */
  z.strictObject({
    type: z.literal('lease.offer'),
    ...leaseRef.shape,
    durationMs: duration,
    analyser: analyserName,
    sealedBytes: bytes.max(limits.sealedBytesMax),
    sealedHeader,
    wipeObligationId: obligationId,
  }),
  /** Stop, wipe, and confirm with a receipt, also for a lease the node no longer knows. */
  z.strictObject({
    type: z.literal('lease.end'),
    ...leaseRef.shape,
    sealedHeaderSha256: sha256Hex,
    wipeObligationId: obligationId,
    reason: z.enum(['finished', 'expired', 'revoked', 'deleted']),
  }),
  z.strictObject({
    type: z.literal('spool.delete'),
    jobId,
    sealedHeaderSha256: sha256Hex,
    obligationId,
  }),
  z.strictObject({ type: z.literal('result.ready'), jobId }),
  /** A job's state changed in a way its capture host should know. */
  z.strictObject({
    type: z.literal('job.notice'),
    jobId,
    state: jobState,
    problem: problem.optional(),
    expiresAtMs: instant.optional(),
  }),
  /**
   * On the lane `emergency`: end and wipe what is named, at once, and confirm with a purge receipt.
   * The receipts of single jobs are ordered by `spool.delete` and `lease.end` as ever. On the lane
   * `control` it names one spool that no job explains; `purgeId` is then the id of what was found.
   */
  z.strictObject({
    type: z.literal('purge'),
    purgeId,
    obligationId,
    /** All of this host, with drafts the control plane never heard of and what waits for sealing. */
    everything: z.boolean(),
    jobIds: z.array(jobId).max(limits.purgeJobsPerCommandMax),
    /** Also drafts whose sealing began in `fromMs ≤ t < untilMs`, by this host's clock. */
    sealed: z.strictObject({ fromMs: instant, untilMs: instant }).optional(),
  }),
  /** For a sweep: tell what lies here, in pages. */
  z.strictObject({ type: z.literal('inventory'), sweepId }),
  /** All authorities to trust from now on; the certificate is to be renewed at once. */
  z.strictObject({
    type: z.literal('authorities'),
    revocationId,
    obligationId,
    /** DER, base64. */
    authorities: z.array(z.base64().max(8192)).min(1).max(limits.authoritiesMax),
  }),
])
export type Command = z.infer<typeof command>
export type CommandType = Command['type']

// ---------------------------------------------------------------- the two directions

/** What a GPU node says it can do. The operator's settings bound it; an offer only narrows them. */
export const nodeOffer = z.strictObject({
  analysers: z.array(analyserOffer).max(64),
  leasesMax: z.int().min(0).max(64),
  memoryLevel,
  isolation: isolationLevel,
})
export type NodeOffer = z.infer<typeof nodeOffer>

const [firstRequest, ...otherRequests] = Object.entries(requests).map(([type, { body }]) =>
  z.strictObject({ type: z.literal('request'), requestId, request: z.literal(type), body }),
)

/** From the agent. Its `type`, and a request's `request`, choose the one schema that is tried. */
export const upMessage = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('hello'),
    versions: z.array(z.int().positive()).min(1).max(8),
    build: name,
    role: z.enum(['capture', 'gpu']),
    atMs: instant,
    /** This process's own id: another one means the agent was started anew. */
    instanceId: z.uuidv7(),
    /** The highest command sequence number it has acknowledged. */
    lastSeq: z.int().nonnegative(),
    offer: nodeOffer.optional(),
  }),
  z.strictObject({
    type: z.literal('heartbeat'),
    atMs: instant,
    leases: z.array(leaseRef).max(64),
  }),
  /** The command's effect, or the duty it became, is durable on the agent. */
  z.strictObject({
    type: z.literal('ack'),
    seq: z.int().positive(),
    commandId,
    problem: problem.optional(),
  }),
  z.discriminatedUnion('request', [firstRequest!, ...otherRequests]),
])

/** From the control plane. */
export const downMessage = z.discriminatedUnion('type', [
  z.strictObject({
    type: z.literal('welcome'),
    version: z.int().positive(),
    build: name,
    agentId,
    atMs: instant,
  }),
  z.strictObject({
    type: z.literal('heartbeat'),
    atMs: instant,
    /** Leases that were renewed. Any other lease the agent named is over. */
    leases: z.array(z.strictObject({ ...leaseRef.shape, remainingMs: duration })).max(64),
  }),
  z.strictObject({
    type: z.literal('command'),
    seq: z.int().positive(),
    commandId,
    lane,
    command,
  }),
  z.strictObject({
    type: z.literal('reply'),
    requestId,
    /** Checked against the request's own reply schema by the asker. */
    body: z.unknown().optional(),
    problem: problem.optional(),
  }),
  /** Sent before the control plane closes the link on purpose. */
  z.strictObject({ type: z.literal('goodbye'), problem }),
])
export type DownMessage = z.infer<typeof downMessage>

export type Hello = Extract<z.infer<typeof upMessage>, { type: 'hello' }>
export type Heartbeat = Extract<z.infer<typeof upMessage>, { type: 'heartbeat' }>
export type Ack = Extract<z.infer<typeof upMessage>, { type: 'ack' }>
export type AgentRequest = {
  [T in RequestType]: { type: 'request'; requestId: string; request: T; body: RequestBody<T> }
}[RequestType]
export type UpMessage = Hello | Heartbeat | Ack | AgentRequest
