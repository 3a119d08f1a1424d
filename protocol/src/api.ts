/** What goes over the operator's HTTP API: token texts, requests and answers, each with its bounds. */
import { z } from 'zod'
import { sanitisationLevel } from './certificate.ts'
import { SluiceError, errorCodes } from './errors.ts'
import { agentId, principalId, tokenId } from './ids.ts'
import { limits } from './limits.ts'
import { replicaName } from './receipt.ts'

const instant = z.int().nonnegative()
const name = z.string().min(1).max(limits.nameCharsMax)
/** Names that people type: they appear in commands, lists and addresses. */
export const plainName = z
  .string()
  .regex(/^[a-z0-9][a-z0-9._-]*$/, 'lower-case letters, digits, dots, dashes and underscores')
  .max(limits.nameCharsMax)
/** A site, or `*` for all of them. */
export const siteScope = z.union([z.literal('*'), plainName])
export const labels = z
  .record(plainName, z.string().max(limits.labelCharsMax))
  .refine((map) => Object.keys(map).length <= limits.labelCountMax, 'too many labels')

/** Why somebody asks: for the other one who agrees, and for whoever reads the audit log. */
export const reasonText = z.string().trim().min(1).max(limits.errorTextCharsMax)

export const roles = ['viewer', 'operator', 'security'] as const
/** Roles do not nest: each lists what it may do, and nothing else. */
export const role = z.enum(roles)
export type Role = z.infer<typeof role>
export const right = z.strictObject({ role, site: siteScope })
export type Right = z.infer<typeof right>

export const agentRole = z.enum(['capture', 'gpu'])
export type AgentRole = z.infer<typeof agentRole>

// ---------------------------------------------------------------- token texts

/** 32 random bytes, base64url without padding. */
export const bearerSecret = z
  .string()
  .regex(/^[A-Za-z0-9_-]{43}$/, 'not a secret of 32 bytes in base64url')

/** What a token file says: where to go, whom to trust there, and the secret. */
export const tokenContent = z.strictObject({
  /** Origin of the operator listener. */
  url: z.url({ protocol: /^https?$/ }).max(300),
  /** The CA certificate, DER in base64: no connection is ever made without knowing it. */
  ca: z.base64().min(1).max(4096),
  secret: bearerSecret,
})
export type TokenContent = z.infer<typeof tokenContent>

/** Which of the two a text is, is said by its first word, so that none is taken for the other. */
export type TokenKind = 'join' | 'token'

/** One line of text for a token file. */
export function encodeToken(kind: TokenKind, content: TokenContent): string {
  return `sluice-${kind}-1.${Buffer.from(JSON.stringify(content)).toString('base64url')}`
}

/**
 * @param text The content of a token file; white space around it is allowed.
 * @throws SluiceError `token.invalid`; the message never repeats the text.
 */
export function decodeToken(kind: TokenKind, text: string): TokenContent {
  const what = kind === 'join' ? 'a join token' : 'an API token'
  const refuse = (why: string, cause?: unknown) =>
    new SluiceError('token.invalid', `not ${what}: ${why}`, {
      hint:
        kind === 'join'
          ? 'Make one with `sluice tokens join` and pass the whole line, unchanged.'
          : 'Make one with `sluice tokens create` and pass the whole line, unchanged.',
      cause,
    })
  const line = text.trim()
  const prefix = `sluice-${kind}-1.`
  if (line.length > 8192) throw refuse('too long')
  if (!line.startsWith(prefix)) throw refuse(`it does not start with ${prefix}`)
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(line.slice(prefix.length), 'base64url').toString('utf8'))
  } catch (cause) {
    throw refuse('it is damaged', cause)
  }
  const parsed = tokenContent.safeParse(value)
  if (!parsed.success) throw refuse('it is damaged')
  return parsed.data
}

// ---------------------------------------------------------------- errors

/** RFC 9457 with our code, hint and whether trying again later may help. */
export const problemDocument = z.strictObject({
  type: z.literal('about:blank'),
  title: z.string(),
  status: z.int(),
  detail: z.string(),
  code: z.enum(errorCodes),
  hint: z.string().optional(),
  retry: z.enum(['never', 'later']),
})
export type ProblemDocument = z.infer<typeof problemDocument>

// ---------------------------------------------------------------- paging

/** `after` is the `next` of the page before; opaque. */
export const pageQuery = z.strictObject({
  after: z.string().max(128).optional(),
  limit: z.coerce.number().int().min(1).max(limits.pageItemsMax).default(limits.pageItemsDefault),
})

/** A page of a list; `next` is left out on the last one. */
export function pageOf<T extends z.ZodType>(item: T) {
  return z.strictObject({ items: z.array(item), next: z.string().optional() })
}
export type Page<T> = { items: T[]; next?: string }

// ---------------------------------------------------------------- joining

/** `POST /v1/join`, without any other authentication than the token's secret. */
export const joinRequest = z.strictObject({
  token: bearerSecret,
  /** PKCS#10 in DER, base64, for an Ed25519 key made on the agent's host. */
  csr: z.base64().min(1).max(4096),
  /** Wished name; the token's own name wins. */
  name: plainName.optional(),
  /** The role the host means to have: a token for another one is refused and stays unused. */
  role: agentRole.optional(),
})
export type JoinRequest = z.infer<typeof joinRequest>

const certificates = z.array(z.base64().max(8192)).min(1).max(4)

export const joinReply = z.strictObject({
  agentId,
  name: plainName,
  role: agentRole,
  site: plainName,
  labels,
  /** Leaf first, then its issuer; DER, base64. */
  chain: certificates,
  /** All authorities to trust; DER, base64. */
  authorities: certificates,
  /** Origin of the agent listener. */
  agentUrl: z.url({ protocol: /^https$/ }),
})
export type JoinReply = z.infer<typeof joinReply>

/** `POST /v1/renew`: the request's own signature, by the key the agent joined with, is the proof. */
export const renewRequest = z.strictObject({ csr: z.base64().min(1).max(4096) })
export const renewReply = z.strictObject({ chain: certificates, authorities: certificates })

/** `GET /v1/authorities`. */
export const authoritiesReply = z.strictObject({ authorities: certificates })

// ---------------------------------------------------------------- principals and tokens

export const principalView = z.strictObject({
  id: principalId,
  name: plainName,
  rights: z.array(right),
  createdAtMs: instant,
  createdBy: principalId.optional(),
})
export type PrincipalView = z.infer<typeof principalView>

/** A right a new principal gets, or one it must already have. */
export const createTokenRequest = z.strictObject({
  principal: plainName,
  /** Rights of a principal that does not exist yet; for an existing one they must be left out. */
  rights: z.array(right).min(1).max(32).optional(),
  lifeMs: z.int().positive().max(limits.apiTokenMsMax).optional(),
  /** For the second person, where one is needed. */
  reason: reasonText.optional(),
})
export type CreateTokenRequest = z.infer<typeof createTokenRequest>

export const tokenView = z.strictObject({
  id: tokenId,
  principalId,
  principal: plainName,
  rights: z.array(right),
  createdAtMs: instant,
  expiresAtMs: instant,
  lastUsedAtMs: instant.optional(),
  revokedAtMs: instant.optional(),
})
export type TokenView = z.infer<typeof tokenView>

/** The only time the token itself is ever shown. */
export const createdToken = z.strictObject({ ...tokenView.shape, token: z.string() })
export type CreatedToken = z.infer<typeof createdToken>

export const createJoinTokenRequest = z.strictObject({
  role: agentRole,
  site: plainName,
  labels: labels.default({}),
  name: plainName.optional(),
  lifeMs: z.int().positive().max(limits.joinTokenMsMax).default(limits.joinTokenMsDefault),
})
export type CreateJoinTokenRequest = z.infer<typeof createJoinTokenRequest>

export const joinTokenView = z.strictObject({
  id: tokenId,
  role: agentRole,
  site: plainName,
  labels,
  name: plainName.optional(),
  createdAtMs: instant,
  createdBy: principalId.optional(),
  expiresAtMs: instant,
  usedAtMs: instant.optional(),
  usedByAgentId: agentId.optional(),
  revokedAtMs: instant.optional(),
})
export type JoinTokenView = z.infer<typeof joinTokenView>

export const createdJoinToken = z.strictObject({ ...joinTokenView.shape, token: z.string() })
export type CreatedJoinToken = z.infer<typeof createdJoinToken>

// ---------------------------------------------------------------- status

export const statusReply = z.strictObject({
  build: name,
  startedAtMs: instant,
  nowAtMs: instant,
  /** SHA-256 of the current CA certificate (DER) and of the evidence public key (SPKI), hex. */
  caSha256: z.string(),
  evidenceKeyId: z.string(),
  store: z.string(),
  /** The store, then its replicas, with what each keeps by itself as far as it was asked yet. */
  stores: z.array(
    z.strictObject({
      replica: replicaName.optional(),
      checked: z.boolean(),
      versioned: z.boolean().optional(),
      locks: z.boolean().optional(),
    }),
  ),
  /** Room that a purge finds when the disk is full; `missing` while there is none to keep. */
  reserve: z.enum(['ready', 'missing']),
  /** Where epoch keys live, and what the destruction of one may claim there. */
  keys: z.strictObject({ store: z.enum(['file', 'pkcs11']), level: sanitisationLevel }),
  agents: z.strictObject({ known: z.int(), connected: z.int() }),
  jobs: z.record(z.string(), z.int()),
  /** Duties still owed, how many of them are overdue, and how many have ever come how far. */
  obligations: z.strictObject({
    waiting: z.int(),
    due: z.int(),
    overdue: z.int(),
    progress: z.strictObject({
      owed: z.int(),
      requested: z.int(),
      delivered: z.int(),
      done: z.int(),
      proven: z.int(),
    }),
  }),
})
export type StatusReply = z.infer<typeof statusReply>

/** How far the audit sink has come. */
export const auditSinkView = z.strictObject({
  /** Where it is; absent when none is configured. */
  file: z.string().optional(),
  /** The last event it holds, 0 for none. */
  lastSeq: z.int().nonnegative(),
  exportedAtMs: instant.optional(),
  /** Events that it does not hold yet. */
  lagEvents: z.int().nonnegative(),
  lastErrorCode: z.enum(errorCodes).optional(),
  lastError: z.string().optional(),
})
export type AuditSinkView = z.infer<typeof auditSinkView>

export const auditVerdict = z.strictObject({
  whole: z.boolean(),
  /** The last event when whole; else the first place where the chain does not hold. */
  seq: z.int().nonnegative(),
  sha256: z.string().optional(),
  reason: z.string().optional(),
})
export type AuditVerdictView = z.infer<typeof auditVerdict>
