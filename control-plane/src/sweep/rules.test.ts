import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { agentId, jobId } from '@sluice/protocol/ids'
import { type JobState, jobStates } from '@sluice/protocol/job'
import { objectKeyFrom } from '@sluice/protocol/object-keys'
import { newId } from '@sluice/protocol/process/new-id'
import {
  isOurs,
  joinByKey,
  madeAtMs,
  needsObject,
  spoolDifference,
  storeDifferences,
  type SweptJob,
} from './rules.ts'

const key = objectKeyFrom(new Uint8Array(16))
const id = newId(jobId, 1)

const job = (state: JobState, more: Partial<SweptJob> = {}): SweptJob => ({
  id,
  objectKey: key,
  state,
  frozenFrom: null,
  storedAtMs: 1,
  sealedBytes: 100,
  openUploads: [],
  ...more,
})
const entry = (more: { objects?: number; versions?: number; uploads?: string[] } = {}) => ({
  key,
  objects: 0,
  versions: 0,
  uploads: [],
  ...more,
})
const kinds = (...found: Parameters<typeof storeDifferences>) =>
  storeDifferences(...found).map(({ kind }) => kind)

describe('what a store holds', () => {
  it('is an orphan when no job has its key, or its job is over', () => {
    assert.deepEqual(kinds(undefined, entry({ objects: 1 })), ['orphan.object'])
    assert.deepEqual(kinds(undefined, entry({ versions: 3 })), ['orphan.object'])
    assert.deepEqual(kinds(undefined, entry({ uploads: ['a', 'b'] })), [
      'orphan.upload',
      'orphan.upload',
    ])
    assert.deepEqual(kinds(job('deleted'), entry({ objects: 1, uploads: ['a'] })), [
      'orphan.object',
      'orphan.upload',
    ])
    assert.deepEqual(kinds(job('deleted-unconfirmed'), entry({ versions: 1 })), ['orphan.object'])
  })

  it('is in order where its job lives', () => {
    for (const state of jobStates.filter((one) => !one.startsWith('deleted')))
      assert.deepEqual(kinds(job(state), entry({ objects: 1 })), [], state)
    assert.deepEqual(kinds(job('deleted'), undefined), [])
    assert.deepEqual(kinds(job('uploading', { openUploads: ['a'] }), entry({ uploads: ['a'] })), [])
  })

  it('counts an upload that the ledger does not know, but not of a job that is being deleted', () => {
    const found = storeDifferences(
      job('stored', { openUploads: ['a'] }),
      entry({ objects: 1, uploads: ['a', 'b'] }),
    )
    assert.deepEqual(found, [{ kind: 'orphan.upload', subject: `${key} b`, jobId: id }])
    assert.deepEqual(kinds(job('deleting'), entry({ uploads: ['b'] })), [])
  })

  it('is a loss when a job cannot go on without it', () => {
    for (const state of ['stored', 'leased'] as const) {
      assert.deepEqual(kinds(job(state), undefined), ['missing.object'])
      assert.deepEqual(kinds(job('frozen', { frozenFrom: state }), entry({ versions: 1 })), [
        'missing.object',
      ])
    }
    assert.deepEqual(kinds(job('failed'), undefined), ['missing.object'])
    assert.deepEqual(kinds(job('failed', { storedAtMs: null }), undefined), [])
    for (const state of ['announced', 'uploading', 'deleting', 'refused', 'lost'] as const)
      assert.deepEqual(kinds(job(state), undefined), [], state)
  })

  it('needs no object before it was stored, whatever holds it', () => {
    assert.equal(needsObject(job('frozen', { frozenFrom: 'uploading' })), false)
  })
})

describe('a spool', () => {
  const agent = newId(agentId, 1)
  const times = { sealedAtMs: 1000, announceUntilMs: 500 }
  const kindOf = (state: JobState | undefined, more = times) =>
    spoolDifference({ jobId: id, agentId: agent }, state && { state }, more)?.kind

  it('is an orphan when its job is over, or can never be announced any more', () => {
    assert.equal(kindOf('deleted'), 'orphan.spool')
    assert.equal(kindOf('deleted-unconfirmed'), 'orphan.spool')
    assert.equal(kindOf(undefined, { sealedAtMs: 499, announceUntilMs: 500 }), 'orphan.spool')
  })

  it('is in order before that', () => {
    for (const state of jobStates.filter((one) => !one.startsWith('deleted')))
      assert.equal(kindOf(state), undefined, state)
    assert.equal(kindOf(undefined), undefined)
  })

  it('tells when it was sealed by its id', () => {
    assert.equal(madeAtMs(newId(jobId, 1_800_000_000_123)), 1_800_000_000_123)
  })
})

describe('two streams', () => {
  async function* stream(...keys: string[]): AsyncGenerator<[string, string]> {
    for (const one of keys) yield [one, one]
  }
  const joined = async (left: string[], right: string[]) => {
    const pairs: string[] = []
    for await (const [l, r] of joinByKey(stream(...left), stream(...right)))
      pairs.push(`${l ?? '-'}${r ?? '-'}`)
    return pairs
  }

  it('meet key by key', async () => {
    assert.deepEqual(await joined([], []), [])
    assert.deepEqual(await joined(['a', 'b'], []), ['a-', 'b-'])
    assert.deepEqual(await joined([], ['a', 'b']), ['-a', '-b'])
    assert.deepEqual(await joined(['a', 'c', 'd'], ['b', 'c', 'e']), ['a-', '-b', 'cc', 'd-', '-e'])
  })

  it('tell our keys from others', () => {
    assert.ok(isOurs(key))
    for (const other of ['b/0', `${key}0`, 'a/xyz', '']) assert.ok(!isOurs(other), other)
  })
})
