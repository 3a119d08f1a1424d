/** Remembers agents and the commands they are owed. */
import {
  and,
  asc,
  eq,
  gt,
  inArray,
  isNotNull,
  isNull,
  lt,
  ne,
  notExists,
  or,
  type SQL,
  sql as raw,
} from '../database/drizzle.ts'
import { type AgentId, type CommandId, commandId } from '@sluice/protocol/ids'
import type { ErrorCode } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Command, CommandType, Hello, Lane } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import type { Changes } from '../changes.ts'
import type { Queries, Transaction } from '../database/database.ts'
import { preparedOnce } from '../database/prepared.ts'
import { agents, commands, obligations } from '../database/schema.ts'
import { supersedes } from './rules.ts'

export type AgentRow = typeof agents.$inferSelect
export type CommandRow = typeof commands.$inferSelect

// ---------------------------------------------------------------- commands

/**
 * Makes a command a row with the next sequence number, in the caller's transaction. After
 * the commit it is sent, or it waits for the agent to come back. Open commands that it leaves without
 * a point are withdrawn.
 */
export async function enqueueCommand(
  tx: Transaction,
  order: { agentId: AgentId; lane: Lane; command: Command; atMs: number },
  changes: Changes,
): Promise<CommandId> {
  await cancelCommands(tx, {
    agentId: order.agentId,
    atMs: order.atMs,
    matches: (open) => supersedes(order.command, open),
  })
  const id = newId(commandId, order.atMs)
  await tx.sql.insert(commands).values({
    id,
    agentId: order.agentId,
    seq: takeSeqs(tx.sql, 1),
    lane: order.lane,
    body: order.command,
    createdAtMs: order.atMs,
  })
  tx.afterCommit(() => changes.emit('command', order.agentId))
  return id
}

/** One of many orders: its id is the caller's, so that duties may name it. */
export type BulkOrder = { id: CommandId; agentId: AgentId; lane: Lane; command: Command }

/**
 * As `enqueueCommand` for thousands of orders at once, in their order for each agent; it withdraws
 * nothing.
 */
export function enqueueCommands(
  tx: Transaction,
  orders: readonly BulkOrder[],
  atMs: number,
  changes: Changes,
): void {
  let seq = takeSeqs(tx.sql, orders.length)
  const insert = insertCommand(tx.sql)
  for (const { id, agentId, lane, command } of orders)
    insert.run(id, agentId, seq++, lane, JSON.stringify(command), atMs)
  const told = new Set(orders.map(({ agentId }) => agentId))
  tx.afterCommit(() => {
    for (const agentId of told) changes.emit('command', agentId)
  })
}

/** @returns The first of `count` numbers above all that were given out before. */
function takeSeqs(sql: Queries, count: number): number {
  return (addToSeq(sql).get(count) ?? count) - count + 1
}

const addToSeq = preparedOnce((sql) =>
  sql.$client
    .prepare<[number], number>(
      `INSERT INTO command_numbers (id, last_seq) VALUES (1, ?)
        ON CONFLICT (id) DO UPDATE SET last_seq = last_seq + excluded.last_seq RETURNING last_seq`,
    )
    .pluck(),
)

/**
 * After a restore an agent may know numbers that this database never gave out: the next ones lie above.
 * A lie must not use them up: without a next number nobody could order anybody anything, or revoke them.
 */
function raiseSeq(sql: Queries, seenSeq: number): void {
  const known = lastSeq(sql).get() ?? 0
  if (seenSeq > known) takeSeqs(sql, Math.min(seenSeq - known, limits.commandSeqJumpMax))
}

const lastSeq = preparedOnce((sql) =>
  sql.$client.prepare<[], number>('SELECT last_seq FROM command_numbers').pluck(),
)

const insertCommand = preparedOnce((sql) =>
  sql.$client.prepare<[CommandId, AgentId, number, Lane, string, number]>(
    'INSERT INTO commands (id, agent_id, seq, lane, body, created_at_ms) VALUES (?, ?, ?, ?, ?, ?)',
  ),
)

/** Whether a command was given, and neither acknowledged nor withdrawn since. */
export async function isOpenCommand(sql: Queries, id: CommandId): Promise<boolean> {
  const row = await sql.query.commands.findFirst({
    columns: { ackedAtMs: true, cancelledAtMs: true },
    where: eq(commands.id, id),
  })
  return row !== undefined && row.ackedAtMs === null && row.cancelledAtMs === null
}

export async function commandById(sql: Queries, id: CommandId): Promise<CommandRow | undefined> {
  return commandWithId(sql).get({ id })
}

const commandWithId = preparedOnce((sql) =>
  sql
    .select()
    .from(commands)
    .where(eq(commands.id, raw.placeholder('id')))
    .prepare(),
)

/** Withdraws commands that were not acknowledged yet; they are never sent again. */
export async function cancelCommands(
  tx: Transaction,
  which: { agentId: AgentId; atMs: number; matches: (command: Command) => boolean },
): Promise<void> {
  const open = await openCommands(tx.sql, which.agentId)
  const ids = open.filter((row) => which.matches(row.body)).map((row) => row.id)
  if (ids.length === 0) return
  await tx.sql.update(commands).set({ cancelledAtMs: which.atMs }).where(inArray(commands.id, ids))
}

/** An agent's commands without acknowledgement, oldest first. */
export async function openCommands(sql: Queries, agent: AgentId): Promise<CommandRow[]> {
  return openOfAgent(sql).all({ agent })
}

const openOfAgent = preparedOnce((sql) =>
  sql
    .select()
    .from(commands)
    .where(
      and(
        eq(commands.agentId, raw.placeholder('agent')),
        isNull(commands.ackedAtMs),
        isNull(commands.cancelledAtMs),
      ),
    )
    .orderBy(asc(commands.seq))
    .prepare(),
)

/** Whether an agent still has an unacknowledged command that `matches`. */
export async function hasOpenCommand(
  sql: Queries,
  agent: AgentId,
  matches: (command: Command) => boolean,
): Promise<boolean> {
  return (await openCommands(sql, agent)).some((row) => matches(row.body))
}

export async function markSent(tx: Transaction, ids: CommandId[], atMs: number): Promise<void> {
  if (ids.length === 0) return
  tx.sql.run(
    raw`UPDATE commands SET sent_at_ms = ${atMs}
      WHERE id IN (SELECT value FROM json_each(${JSON.stringify(ids)}))`,
  )
}

/**
 * Records that the command's effect is durable on the agent. Saying it twice changes nothing.
 *
 * @returns The acknowledged command's type, or undefined when the agent never had such a command.
 */
export async function acknowledge(
  tx: Transaction,
  ack: {
    agentId: AgentId
    seq: number
    commandId: CommandId
    problemCode?: ErrorCode | undefined
    atMs: number
  },
): Promise<CommandType | undefined> {
  const row = await commandById(tx.sql, ack.commandId)
  if (row?.agentId !== ack.agentId || row.seq !== ack.seq) return undefined
  if (row.ackedAtMs === null)
    markAcked(tx.sql).run({
      id: ack.commandId,
      atMs: ack.atMs,
      problemCode: ack.problemCode ?? null,
    })
  return row.body.type
}

const markAcked = preparedOnce((sql) =>
  sql
    .update(commands)
    .set({
      ackedAtMs: raw`${raw.placeholder('atMs')}`,
      problemCode: raw`${raw.placeholder('problemCode')}`,
    })
    .where(eq(commands.id, raw.placeholder('id')))
    .prepare(),
)

/** Orders in the order they were given, for whoever looks which are over. */
export async function pageOfCommands(
  sql: Queries,
  which: { after: CommandId | undefined; itemsMax: number },
) {
  return sql
    .select({ id: commands.id, createdAtMs: commands.createdAtMs })
    .from(commands)
    .where(which.after === undefined ? undefined : gt(commands.id, which.after))
    .orderBy(asc(commands.id))
    .limit(which.itemsMax)
}

/**
 * Takes away those of these orders that were acknowledged or withdrawn before `beforeMs`. One that
 * an open duty names stays, and so does every order of a purge: its receipt is over its digest.
 *
 * @returns How many.
 */
export async function deleteOverCommands(
  tx: Transaction,
  which: { ids: readonly CommandId[]; beforeMs: number },
): Promise<number> {
  const named = tx.sql
    .select({ one: raw`1` })
    .from(obligations)
    .where(
      and(
        eq(obligations.commandId, commands.id),
        or(ne(obligations.state, 'done'), eq(obligations.kind, 'purge.agent')),
      ),
    )
  const deleted = await tx.sql
    .delete(commands)
    .where(
      and(
        inArray(commands.id, [...which.ids]),
        or(lt(commands.ackedAtMs, which.beforeMs), lt(commands.cancelledAtMs, which.beforeMs)),
        notExists(named),
      ),
    )
  return deleted.changes
}

// ---------------------------------------------------------------- agents

export async function agentById(sql: Queries, id: AgentId): Promise<AgentRow | undefined> {
  return agentWithId(sql).get({ id })
}

const agentWithId = preparedOnce((sql) =>
  sql
    .select()
    .from(agents)
    .where(eq(agents.id, raw.placeholder('id')))
    .prepare(),
)

/**
 * One page of agents in the order of their ids.
 *
 * @param which.sites Sites the asker may see; null for all.
 */
export async function pageOfAgents(
  sql: Queries,
  which: {
    sites: readonly string[] | null
    role?: 'capture' | 'gpu' | undefined
    after?: AgentId | undefined
    itemsMax: number
  },
): Promise<AgentRow[]> {
  const filters: SQL[] = []
  if (which.sites) filters.push(inArray(agents.site, [...which.sites]))
  if (which.role) filters.push(eq(agents.role, which.role))
  if (which.after) filters.push(gt(agents.id, which.after))
  return sql
    .select()
    .from(agents)
    .where(and(...filters))
    .orderBy(asc(agents.id))
    .limit(which.itemsMax)
}

/** Writes down what an agent said of itself when it connected. */
export async function recordHello(
  tx: Transaction,
  agent: AgentRow,
  hello: Hello,
  atMs: number,
): Promise<void> {
  await tx.sql
    .update(agents)
    .set({
      offer: hello.offer ?? null,
      build: hello.build,
      instanceId: hello.instanceId,
      connectedAtMs: atMs,
      lastSeenAtMs: atMs,
      clockSkewMs: hello.atMs - atMs,
    })
    .where(eq(agents.id, agent.id))
  raiseSeq(tx.sql, hello.lastSeq)
}

export async function recordGone(
  tx: Transaction,
  id: AgentId,
  lastSeenAtMs: number,
): Promise<void> {
  await tx.sql.update(agents).set({ connectedAtMs: null, lastSeenAtMs }).where(eq(agents.id, id))
}

/** Who is connected now is seen now: a crash must not make the absence of anybody look longer. */
export async function recordPresent(tx: Transaction, atMs: number): Promise<void> {
  await tx.sql.update(agents).set({ lastSeenAtMs: atMs }).where(isNotNull(agents.connectedAtMs))
}

/** At start nobody is connected, whatever a crash left in the rows. */
export async function forgetConnections(tx: Transaction): Promise<void> {
  await tx.sql.update(agents).set({ connectedAtMs: null })
}

/** What an operator may change of an agent. */
export type AgentChange = {
  allowedAnalysers?: string[] | null | undefined
  leasesMax?: number | undefined
  labels?: Record<string, string> | undefined
}

export async function changeAgent(
  tx: Transaction,
  id: AgentId,
  change: AgentChange,
): Promise<void> {
  const set: Partial<typeof agents.$inferInsert> = {}
  if (change.allowedAnalysers !== undefined) set.allowedAnalysers = change.allowedAnalysers
  if (change.leasesMax !== undefined) set.leasesMax = change.leasesMax
  if (change.labels !== undefined) set.labels = change.labels
  if (Object.keys(set).length === 0) return
  await tx.sql.update(agents).set(set).where(eq(agents.id, id))
}

/** @returns Whether this call revoked it; false when it was revoked before. */
export async function markRevoked(tx: Transaction, id: AgentId, atMs: number): Promise<boolean> {
  const revoked = await tx.sql
    .update(agents)
    .set({ revokedAtMs: atMs })
    .where(and(eq(agents.id, id), isNull(agents.revokedAtMs)))
  return revoked.changes > 0
}
