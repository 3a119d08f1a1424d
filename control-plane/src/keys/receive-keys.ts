/** Supplies capture agents with one-time public keys, and forgets those that nobody used in time. */
import { SluiceError } from '@sluice/protocol/errors'
import { type AgentId, receiveKeyId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import type { Database } from '../database/database.ts'
import { type KeyHolder, type SuppliedReceiveKey, wrappedBytes } from './key-operations.ts'
import { addReceiveKeys, countReceiveKeys } from './store.ts'

/**
 * How many keys to make.
 *
 * @param stock What the agent says it has.
 * @param held Its unused keys here, those included that never reached it.
 */
export function receiveKeysWanted(stock: number, held: number): number {
  const wanted = limits.receiveKeysPerAgent - stock
  const room = limits.receiveKeysHeldMax - held
  return Math.max(0, Math.min(wanted, room, limits.receiveKeysPerMessage))
}

/**
 * Makes keys; their seeds are durable, wrapped, when this returns.
 *
 * @throws SluiceError `request.rate_limited` when the agent has asked for far more than it can hold.
 */
export async function makeSupply(
  parts: { database: Database; holder: KeyHolder; nowMs: number; offlineMsMax: number },
  asked: { agentId: AgentId; stock: number },
): Promise<SuppliedReceiveKey[]> {
  const { database, holder, nowMs } = parts
  const held = await database.read((sql) => countReceiveKeys(sql, asked.agentId))
  const wanted = receiveKeysWanted(asked.stock, held)
  if (wanted === 0 && asked.stock < limits.receiveKeysPerAgent)
    throw new SluiceError('request.rate_limited', `${held} receive keys wait to be used`, {
      retry: 'later',
      hint: 'They expire by themselves; look why the agent asks again and again.',
    })
  if (wanted === 0) return []
  const ids = Array.from({ length: wanted }, () => newId(receiveKeyId, nowMs))
  const { publicKeys, seeds } = await holder.makeReceiveKeys({ ids })
  const expiresAtMs = nowMs + parts.offlineMsMax
  const rows = ids.map((id, index) => ({
    id,
    agentId: asked.agentId,
    epochId: seeds.epochId,
    wrappedSeed: seeds.wrapped.subarray(index * wrappedBytes, (index + 1) * wrappedBytes),
    publicKey: Buffer.from(publicKeys[index] ?? []),
    suppliedAtMs: nowMs,
    expiresAtMs,
  }))
  await database.write((tx) => addReceiveKeys(tx, rows))
  return rows.map(({ id, publicKey }) => ({
    receiveKeyId: id,
    publicKey: publicKey.toString('base64url'),
    expiresAtMs,
  }))
}
