import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { jobId, leaseId, obligationId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import type { ObligationKind } from '../database/schema.ts'
import { missingForCertificate, type Obligation, retryDelayMs } from './rules.ts'

const job = newId(jobId, 1)

function duty(kind: ObligationKind, changed: Partial<Obligation> = {}): Obligation {
  return {
    id: newId(obligationId, 1),
    jobId: job,
    kind,
    holder: null,
    site: 'lab',
    leaseId: null,
    agentId: null,
    subjectId: null,
    commandId: null,
    state: 'done',
    attempts: 0,
    nextTryAtMs: 0,
    deadlineAtMs: 0,
    writtenOffAtMs: null,
    alarmedAtMs: null,
    lastErrorCode: null,
    lastError: null,
    createdAtMs: 0,
    doneAtMs: 0,
    ...changed,
  }
}

describe('retryDelayMs', () => {
  it('doubles up to the bound, never at once and never all at the same time', () => {
    assert.equal(retryDelayMs(1, 0), limits.obligationRetryMsMin)
    assert.ok(retryDelayMs(1, 0.999) <= 2 * limits.obligationRetryMsMin)
    assert.ok(retryDelayMs(3, 0) > retryDelayMs(1, 0.999))
    for (const attempts of [10, 31, 1000]) {
      assert.equal(retryDelayMs(attempts, 0), limits.obligationRetryMsMax / 2)
      assert.ok(retryDelayMs(attempts, 0.999) <= limits.obligationRetryMsMax)
    }
  })
})

describe('missingForCertificate', () => {
  const lease = newId(leaseId, 1)
  const whole = [
    duty('spool.delete'),
    duty('object.delete'),
    duty('key.destroy'),
    duty('lease.wipe', { leaseId: lease }),
    duty('job.expire', { state: 'due' }),
    duty('certificate.issue', { state: 'waiting' }),
  ]
  const all = new Set(whole.map((one) => one.id))
  const missing = (obligations: Obligation[], receiptFor: ReadonlySet<string> = all) =>
    missingForCertificate({ obligations, leaseIds: [lease] }, receiptFor).map(
      ({ kind, reason }) => `${kind} ${reason.split(':')[0]}`,
    )

  it('misses nothing when every holder is done and has its receipt', () => {
    assert.deepEqual(missing(whole), [])
  })

  it('misses whatever holder was never recorded', () => {
    for (const kind of ['spool.delete', 'object.delete', 'key.destroy', 'lease.wipe'])
      assert.deepEqual(missing(whole.filter((one) => one.kind !== kind)), [
        `${kind} never recorded`,
      ])
    assert.deepEqual(missing([...whole, duty('result.deliver', { state: 'due' })]), [
      'result.deliver not done',
    ])
  })

  it('misses whatever is not done, and whatever has no receipt', () => {
    for (const [index, one] of whole.slice(0, 4).entries()) {
      const open = whole.with(index, { ...one, state: 'due' })
      assert.deepEqual(missing(open), [`${one.kind} not done`])
      const others = new Set([...all].filter((id) => id !== one.id))
      assert.deepEqual(missing(whole, others), [`${one.kind} no receipt`])
    }
  })
})
