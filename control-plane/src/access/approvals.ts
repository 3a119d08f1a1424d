/** Lets one person ask for what takes two, and another agree: once, in time, and only if they are two. */
import assert from 'node:assert/strict'
import type { ApprovalView } from '@sluice/protocol/api-approvals'
import type { ApprovalOperation } from '@sluice/protocol/approval'
import { canonicalJson } from '@sluice/protocol/canonical'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { type ApprovalId, approvalId, type PrincipalId, type TokenId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { raiseAlert } from '../alerts/store.ts'
import { appendAudit } from '../audit/store.ts'
import type { Changes } from '../changes.ts'
import type { Database, Queries, Transaction } from '../database/database.ts'
import { addObligation, settleSubject } from '../deletion/store.ts'
import { presentFields } from '../present-fields.ts'
import { type Access, sitesAllowed } from './rules.ts'
import {
  approvalById,
  type ApprovalRow,
  approvalsAskedBy,
  approvalsOfToken,
  closeApproval,
  hasTokenThatCounts,
  insertApproval,
  markApprovalUsed,
  principalById,
  rightsOf,
  tokenById,
} from './store.ts'
import { hasSecondOn, isTwoPeople, mayDecide } from './two-people.ts'

type Kind = ApprovalOperation['kind']
type OperationOf<K extends Kind> = Extract<ApprovalOperation, { kind: K }>

/** An operation two people agreed to. */
export type Approved<K extends Kind> = {
  approvalId: ApprovalId
  operation: OperationOf<K>
  askedBy: PrincipalId
  askedAtMs: number
  approvedBy: PrincipalId
  reason: string
  atMs: number
}

/** An operation that was asked for and will not be done. */
export type NotApproved<K extends Kind> = {
  approvalId: ApprovalId
  operation: OperationOf<K>
  outcome: 'refused' | 'expired'
  /** Null when its time ran out, or it ended with the token that asked. */
  decidedBy: PrincipalId | null
  atMs: number
}

/** Does what two people agreed to, in the transaction that agrees; throwing undoes the agreement. */
export type Executors = {
  [K in Kind]: (tx: Transaction, approved: Approved<K>) => Promise<void>
}

/** Is told, in the same transaction, what was refused or ran out of time. */
export type Refusals = {
  [K in Kind]?: (tx: Transaction, refused: NotApproved<K>) => Promise<void>
}

export type ApprovalDeps = {
  database: Database
  changes: Changes
  /** Integer epoch milliseconds. */
  now: () => number
  executors: Partial<Executors>
  refusals?: Refusals
  /** Room on a full disk, for the one operation that no full disk may stop: a purge. */
  reserve?: { free: () => Promise<boolean> }
}

/**
 * Asks for a second person, in the caller's transaction. Asking for the same again while it is open
 * is the same question.
 *
 * It is bound to the token it is asked with, and ends with it.
 *
 * @param asked.site Where it counts: who decides has the role `security` there; `*` for all sites.
 * @param asked.anySite Where nobody but the asker has that, whoever has the role on any site decides.
 * @returns The approval that waits for its decision.
 * @throws SluiceError `access.forbidden` unless the asker has the role `security` there;
 * `request.rate_limited` for too many open questions.
 */
export async function askApproval(
  tx: Transaction,
  asked: {
    operation: ApprovalOperation
    access: Pick<Access, 'principalId' | 'rights' | 'tokenId'>
    site: string
    reason: string
    atMs: number
    anySite?: 'if need be'
  },
  changes: Changes,
): Promise<ApprovalId> {
  const { operation, access, site, reason, atMs } = asked
  refuseBeyond(access.rights, site)
  const open = await approvalsAskedBy(tx.sql, access.principalId, 'open')
  const same = open.find(
    (one) => one.site === site && isSame(one.operation, operation) && one.expiresAtMs > atMs,
  )
  if (same) return same.id
  if (open.length >= limits.approvalsOpenMax)
    throw new SluiceError('request.rate_limited', 'too many of your approvals are open', {
      hint: 'Refuse those that have lost their point: sluice approvals list.',
    })
  const id = newId(approvalId, atMs)
  const expiresAtMs = atMs + limits.approvalMsMax
  const anySite =
    asked.anySite !== undefined && !(await hasSecondOn(tx.sql, access.principalId, site))
  await insertApproval(tx, {
    id,
    operation,
    site,
    reason,
    askedBy: access.principalId,
    askedByToken: access.tokenId,
    anySite,
    askedAtMs: atMs,
    expiresAtMs,
    state: 'open',
    decidedBy: null,
    decidedAtMs: null,
    usedAtMs: null,
  })
  await addObligation(
    tx,
    {
      kind: 'approval.expire',
      subjectId: id,
      site,
      state: 'due',
      atMs,
      nextTryAtMs: expiresAtMs,
      deadlineAtMs: expiresAtMs + limits.obligationOverdueMs,
    },
    changes,
  )
  await appendAudit(tx, {
    atMs,
    type: 'approval.asked',
    actor: { kind: 'principal', id: access.principalId },
    site,
    ...jobOfOperation(operation),
    detail: { approvalId: id, operation: operation.kind, reason },
  })
  await raiseAlert(
    tx,
    {
      type: 'approval.asked',
      severity: 'warning',
      site,
      atMs,
      summary: `${operation.kind} waits for a second person: sluice approvals show ${id}`,
      detail: { approvalId: id, operation: operation.kind, expiresAtMs },
    },
    changes,
  )
  return id
}

/**
 * Gives or refuses an approval, and with giving does what was asked, in one transaction: of all that
 * decide at the same moment one wins. Refusing takes anyone with the role, the asker too.
 *
 * @throws SluiceError `request.not_found` for one beyond the decider's sites; `request.conflict`
 * when it is decided; `access.unauthenticated` when the decider's token has just ended;
 * `approval.refused` when its time is over, its asker may not come in any more, or asker and giver
 * are not two people; and whatever doing it throws: then it stays open.
 */
export async function decideApproval(
  deps: ApprovalDeps,
  decision: {
    approvalId: ApprovalId
    access: Pick<Access, 'principalId' | 'rights' | 'tokenId'>
    give: boolean
  },
): Promise<ApprovalRow> {
  const { approvalId: id, access, give } = decision
  const row = await writeWithRoom(deps, id, async (tx) => {
    const found = await approvalById(tx.sql, id)
    if (!found || !mayDecideOn(found, access.rights))
      throw new SluiceError('request.not_found', 'no such approval')
    // The token was looked at when the request came; what is irreversible looks again, here.
    const token = (await tokenById(tx.sql, access.tokenId))?.token
    if (!token || token.revokedAtMs !== null || token.expiresAtMs <= deps.now())
      throw new SluiceError('access.unauthenticated', 'this token has ended')
    if (found.state !== 'open')
      throw new SluiceError('request.conflict', `this approval is ${found.state} already`)
    const atMs = deps.now()
    // Committed, not thrown: that its time is over must be remembered.
    if (found.expiresAtMs <= atMs) return endUnspoken(deps, tx, found, atMs)
    const end = { decidedBy: access.principalId, decidedAtMs: atMs }
    if (!give) return refuse(deps, tx, { ...found, ...end, state: 'refused' })
    await refuseUnlessTwo(tx, found, access.principalId, atMs)
    return agree(deps, tx, { ...found, ...end, state: 'given' })
  })
  if (give && row.state === 'expired')
    throw new SluiceError('approval.refused', 'nobody agreed in time', { hint: 'Ask again.' })
  return row
}

async function writeWithRoom<T>(
  deps: ApprovalDeps,
  id: ApprovalId,
  change: (tx: Transaction) => Promise<T>,
): Promise<T> {
  try {
    return await deps.database.write(change, { urgent: true })
  } catch (error) {
    if (!isSluiceError(error, 'host.disk_full')) throw error
    const row = await deps.database.read((sql) => approvalById(sql, id))
    if (row?.operation.kind !== 'purge.begin' || !(await deps.reserve?.free())) throw error
    return deps.database.write(change, { urgent: true })
  }
}

async function refuseUnlessTwo(
  tx: Transaction,
  asked: ApprovalRow,
  decider: PrincipalId,
  atMs: number,
): Promise<void> {
  const { askedBy, askedByToken, site } = asked
  const stands =
    mayDecide(await rightsOf(tx.sql, askedBy), site) &&
    (await hasTokenThatCounts(tx.sql, askedBy, atMs)) &&
    (await isNotRevoked(tx.sql, askedByToken))
  if (!stands)
    throw new SluiceError('approval.refused', 'who asked for this may not come in any more', {
      hint: 'Refuse it; whoever still wants it asks again.',
    })
  if (await isTwoPeople(tx.sql, askedBy, decider)) return
  throw new SluiceError('approval.refused', 'this must come from another person', {
    hint: 'Not from who asked, who made one of the two, or was ever handed a token of both.',
  })
}

type Decided = ApprovalRow & { state: 'given' | 'refused' | 'expired'; decidedAtMs: number }

async function agree(
  deps: ApprovalDeps,
  tx: Transaction,
  given: Decided & { decidedBy: PrincipalId },
): Promise<ApprovalRow> {
  await close(tx, given)
  await carryOut(deps.executors, tx, given.operation, {
    approvalId: given.id,
    askedBy: given.askedBy,
    askedAtMs: given.askedAtMs,
    approvedBy: given.decidedBy,
    reason: given.reason,
    atMs: given.decidedAtMs,
  })
  return given
}

/** `operation` says which of the executors; the compiler sees only that both are of one kind. */
async function carryOut<K extends Kind>(
  executors: Partial<Pick<Executors, K>>,
  tx: Transaction,
  operation: OperationOf<K>,
  approved: Omit<Approved<K>, 'operation'>,
): Promise<void> {
  const execute = executors[operation.kind]
  assert(execute, `nobody carries out ${operation.kind}`)
  await execute(tx, { ...approved, operation })
}

async function refuse(
  deps: Pick<ApprovalDeps, 'refusals'>,
  tx: Transaction,
  refused: Decided & { state: 'refused' | 'expired' },
): Promise<ApprovalRow> {
  await close(tx, refused)
  await tellRefusal(deps.refusals ?? {}, tx, refused.operation, {
    approvalId: refused.id,
    outcome: refused.state,
    decidedBy: refused.decidedBy,
    atMs: refused.decidedAtMs,
  })
  return refused
}

async function tellRefusal<K extends Kind>(
  refusals: Pick<Refusals, K>,
  tx: Transaction,
  operation: OperationOf<K>,
  refused: Omit<NotApproved<K>, 'operation'>,
): Promise<void> {
  await refusals[operation.kind]?.(tx, { ...refused, operation })
}

function endUnspoken(
  deps: ApprovalDeps,
  tx: Transaction,
  open: ApprovalRow,
  atMs: number,
): Promise<ApprovalRow> {
  return refuse(deps, tx, { ...open, state: 'expired', decidedBy: null, decidedAtMs: atMs })
}

/** Refuses what was asked with a token that is revoked, in the transaction that revokes it. */
export async function endApprovalsOfToken(
  deps: Pick<ApprovalDeps, 'refusals'>,
  tx: Transaction,
  end: { tokenId: TokenId; decidedBy: PrincipalId | null; atMs: number },
): Promise<void> {
  const { tokenId, decidedBy, atMs } = end
  for (const open of await approvalsOfToken(tx.sql, tokenId))
    await refuse(deps, tx, { ...open, state: 'refused', decidedBy, decidedAtMs: atMs })
}

const eventOf = {
  given: 'approval.given',
  refused: 'approval.refused',
  expired: 'approval.expired',
} as const

async function close(tx: Transaction, decided: Decided): Promise<void> {
  const { id, state, decidedBy, decidedAtMs, operation, askedBy, site } = decided
  if (!(await closeApproval(tx, id, { state, decidedBy, decidedAtMs })))
    throw new SluiceError('request.conflict', 'this approval is decided already')
  await settleSubject(tx, { subjectId: id, kind: 'approval.expire', atMs: decidedAtMs })
  await appendAudit(tx, {
    atMs: decidedAtMs,
    type: eventOf[state],
    actor: decidedBy === null ? { kind: 'system' } : { kind: 'principal', id: decidedBy },
    site,
    ...jobOfOperation(operation),
    detail: { approvalId: id, operation: operation.kind, askedBy },
  })
}

/**
 * Works off `approval.expire`: ends an approval that nobody decided in time.
 *
 * @returns `waitMs` while it still has time.
 */
export async function expireApproval(
  deps: ApprovalDeps,
  duty: { subjectId: string | null },
): Promise<'settled' | { waitMs: number }> {
  const id = approvalId.parse(duty.subjectId)
  return deps.database.write(async (tx) => {
    const row = await approvalById(tx.sql, id)
    const atMs = deps.now()
    if (row?.state === 'open' && row.expiresAtMs > atMs) return { waitMs: row.expiresAtMs - atMs }
    if (row?.state === 'open') await endUnspoken(deps, tx, row, atMs)
    else await settleSubject(tx, { subjectId: id, kind: 'approval.expire', atMs })
    return 'settled'
  })
}

/**
 * Uses up an approval that its asker was given, for what needs a second call of the asker. One that
 * was asked with a token that is revoked by now allows nothing.
 *
 * @param matches Whether an operation allows it.
 * @returns The approval used, or undefined when there is none.
 */
export async function useApproval(
  tx: Transaction,
  use: {
    askedBy: PrincipalId
    matches: (operation: ApprovalOperation) => boolean
    atMs: number
  },
): Promise<ApprovalId | undefined> {
  const given = await approvalsAskedBy(tx.sql, use.askedBy, 'given')
  for (const one of given) {
    const inTime = one.decidedAtMs !== null && one.decidedAtMs + limits.approvalMsMax > use.atMs
    if (!inTime || !use.matches(one.operation)) continue
    if (!(await isNotRevoked(tx.sql, one.askedByToken))) continue
    if (await markApprovalUsed(tx, one.id, use.atMs)) return one.id
  }
  return undefined
}

function refuseBeyond(rights: Access['rights'], site: string): void {
  if (!mayDecide(rights, site))
    throw new SluiceError('access.forbidden', 'asking for this takes the role security there')
}

/** A token that ran out is not revoked: nobody took it from its owner. */
async function isNotRevoked(sql: Queries, id: TokenId): Promise<boolean> {
  return (await tokenById(sql, id))?.token.revokedAtMs === null
}

/** As `mayDecide`; where nobody but the asker has the whole site, the role on any site does. */
function mayDecideOn(approval: Pick<ApprovalRow, 'site' | 'anySite'>, rights: Access['rights']) {
  if (approval.anySite) return sitesAllowed(rights, ['security']) !== undefined
  return mayDecide(rights, approval.site)
}

function isSame(one: ApprovalOperation, other: ApprovalOperation): boolean {
  return canonicalJson(one) === canonicalJson(other)
}

function jobOfOperation(operation: ApprovalOperation) {
  return 'jobId' in operation ? { jobId: operation.jobId } : {}
}

/** The answer to what has just been asked for and waits for a second person. */
export async function askedView(sql: Queries, id: ApprovalId): Promise<ApprovalView> {
  const row = await approvalById(sql, id)
  assert(row, `approval ${id} was made and is not there`)
  return viewOfApproval(sql, row)
}

/** An approval as the API shows it, with the names of its people. */
export async function viewOfApproval(sql: Queries, row: ApprovalRow): Promise<ApprovalView> {
  const { decidedBy, decidedAtMs, usedAtMs, ...rest } = row
  const asker = (await principalById(sql, row.askedBy))?.name ?? null
  const decider = decidedBy && ((await principalById(sql, decidedBy))?.name ?? null)
  return { ...rest, ...presentFields({ asker, decidedBy, decider, decidedAtMs, usedAtMs }) }
}
