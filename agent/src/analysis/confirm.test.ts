/** Proves that what a node signs is believed whatever its clock says. */
import assert from 'node:assert/strict'
import { X509Certificate } from 'node:crypto'
import { describe, it } from 'node:test'
import { jobId, leaseId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { resultStatement } from '@sluice/protocol/result'
import { verifyStatement } from '@sluice/protocol/sealing/dsse'
import { makeAuthority } from '../throwaway-authority.ts'
import { signResult } from './confirm.ts'

describe('signResult', () => {
  it('names a time within the life of the certificate, also with a clock that is wrong', async () => {
    const node = await (await makeAuthority()).identity({ agentUrl: 'https://x', role: 'gpu' })
    const { validFromDate, validToDate } = new X509Certificate(node.certificate())
    const [fromMs, toMs] = [validFromDate.getTime(), validToDate.getTime()]
    const times = [
      [fromMs - 3_600_000, fromMs],
      [fromMs + 1, fromMs + 1],
      [toMs + 3_600_000, toMs],
    ] as const
    for (const [finishedAtMs, signedMs] of times) {
      const { statement } = signResult(node, {
        lease: { jobId: newId(jobId, 1), leaseId: newId(leaseId, 1), fence: 1 },
        sealedHeaderSha256: 'ab'.repeat(32),
        resultSha256: 'cd'.repeat(32),
        finishedAtMs,
      })
      const payloadType = 'application/vnd.sluice.result.v1+json'
      const envelope: unknown = JSON.parse(statement.toString())
      const said = verifyStatement(envelope, { payloadType, publicKey: node.publicKey })
      assert.equal(resultStatement.parse(said).predicate.finishedAtMs, signedMs)
    }
  })
})
