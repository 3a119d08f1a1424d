/** Writes what a node signs about a lease: whose result it is, and that nothing of the lease is left. */
import { sign, X509Certificate } from 'node:crypto'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { LeaseRef } from '@sluice/protocol/messages'
import type { MemoryLevel, Receipt } from '@sluice/protocol/receipt'
import { resultStatementOf } from '@sluice/protocol/result'
import { signStatement } from '@sluice/protocol/sealing/dsse'
import type { Identity } from '../enrol.ts'
import type { LeaseRecord } from '../journal.ts'

/** The identity of a node as far as it signs and shows who it is. */
export type NodeIdentity = Pick<Identity, 'agentId' | 'keyId' | 'privateKey' | 'certificate'>

/** How a lease's copy ended: which method, what was looked at, and when. */
export type WipeFacts = NonNullable<LeaseRecord['wipe']>

/**
 * Signs for a result: which lease of which node made it, of which sealed archive.
 *
 * @returns The DSSE envelope as JSON bytes, and this node's certificate in DER.
 */
export function signResult(
  identity: NodeIdentity,
  facts: {
    lease: LeaseRef
    sealedHeaderSha256: string
    resultSha256: string
    finishedAtMs: number
  },
): { statement: Buffer; certificate: Buffer } {
  const { lease, sealedHeaderSha256, resultSha256, finishedAtMs } = facts
  const certificate = identity.certificate()
  const made = {
    ...{ ...lease, nodeId: identity.agentId, resultSha256 },
    finishedAtMs: withinLife(certificate, finishedAtMs),
  }
  const statement = resultStatementOf(made, sealedHeaderSha256)
  const envelope = signStatement('application/vnd.sluice.result.v1+json', statement, {
    keyId: identity.keyId,
    sign: (bytes) => sign(null, bytes, identity.privateKey),
  })
  return { statement: Buffer.from(JSON.stringify(envelope)), certificate }
}

/**
 * The nearest time within a certificate's life: whoever opens the result refuses any other, and the
 * clock of this node may be slow or fast. The control plane's own times say when it really was.
 */
function withinLife(certificate: Buffer, atMs: number): number {
  const { validFromDate, validToDate } = new X509Certificate(certificate)
  return Math.min(Math.max(atMs, validFromDate.getTime()), validToDate.getTime())
}

/** What the receipt of a lease says. */
export function leaseReceipt(options: {
  record: LeaseRecord
  wipe: WipeFacts
  nodeId: Identity['agentId']
  /** The weakest that held from the lease's beginning to its end; undefined when nothing is known. */
  memoryLevel: MemoryLevel | undefined
  isolation: IsolationLevel
}): Receipt {
  const { record, wipe, nodeId, memoryLevel, isolation } = options
  const held = wipe.method === 'process-exit'
  return {
    jobId: record.jobId,
    obligationId: record.wipeObligationId,
    holder: { kind: 'gpu-lease', id: nodeId },
    leaseId: record.leaseId,
    fence: record.fence,
    method: wipe.method,
    checked: wipe.checked,
    // They describe where plaintext was; a lease that never had any says nothing about it.
    ...(held && memoryLevel !== undefined ? { memoryLevel, isolation } : {}),
    startedAtMs: record.acceptedAtMs,
    wipedAtMs: wipe.wipedAtMs,
  }
}
