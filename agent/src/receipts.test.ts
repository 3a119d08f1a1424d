/** Proves that a signed receipt is sent until it is accepted, whatever fails for a while. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, afterEach, before, beforeEach, it } from 'node:test'
import { SluiceError } from '@sluice/protocol/errors'
import { agentId, jobId, obligationId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import type { ControlLink } from './control-link.ts'
import { diskEffects } from './durable-file.ts'
import type { Identity } from './identity.ts'
import { type Journal, openJournal } from './journal.ts'
import { createReceiptOutbox, type ReceiptOutbox, signReceipt } from './receipts.ts'
import { makeAuthority } from './throwaway-authority.ts'

const duty = newId(obligationId, 1)
let identity: Identity
let folder: string
let journal: Journal
let diskIsFull: boolean
/** From the moment the control plane has accepted something, nothing can be written here. */
let fillsDisk: boolean
let ending: AbortController
let outbox: ReceiptOutbox
/** What the control plane answers, one after the other; then it accepts. */
let answers: SluiceError[]
let accepted: number
let refusals: number

before(async () => {
  identity = await (await makeAuthority()).identity({ agentUrl: 'https://x' })
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-receipts-'))
})
after(() => rm(folder, { recursive: true }))

beforeEach(async () => {
  diskIsFull = false
  fillsDisk = false
  answers = []
  accepted = 0
  refusals = 0
  ending = new AbortController()
  journal = await openJournal(folder, {
    ...diskEffects,
    async create(file, bytes, mode) {
      if (diskIsFull) throw Object.assign(new Error('full'), { code: 'ENOSPC' })
      await diskEffects.create(file, bytes, mode)
    },
  })
  const request = async () => {
    const answer = answers.shift()
    if (answer) throw answer
    accepted += 1
    diskIsFull ||= fillsDisk
    return { body: {} }
  }
  outbox = createReceiptOutbox({
    journal,
    link: { request: request as unknown as ControlLink['request'] },
    signal: ending.signal,
    refused: () => void (refusals += 1),
    random: () => 0,
  })
})
afterEach(async () => {
  ending.abort()
  await outbox.done
  await rm(path.join(folder, 'journal.json'), { force: true })
})

async function owe(wipedAtMs: number): Promise<void> {
  const receipt = signReceipt(
    identity,
    {
      jobId: newId(jobId, 1),
      obligationId: duty,
      holder: { kind: 'capture-spool', id: newId(agentId, 1) },
      method: 'unlink',
      checked: ['gone'],
      startedAtMs: 1,
      wipedAtMs,
    },
    'ab'.repeat(32),
  )
  await journal.change((draft) => void (draft.receipts[duty] = receipt))
  outbox.wake()
}

async function until(what: () => boolean): Promise<void> {
  while (!what()) await new Promise((resolve) => setTimeout(resolve, 2))
}

const isSettled = () => Object.keys(journal.data.receipts).length === 0

it('is sent again while the control plane cannot take it', async () => {
  const full = new SluiceError('host.disk_full', 'full', { retry: 'later' })
  answers = [full, full, full]
  await owe(2)
  await until(isSettled)
  assert.deepEqual({ accepted, refusals }, { accepted: 1, refusals: 0 })
})

it('is kept and not repeated when it is refused, and sent when it is signed anew', async () => {
  answers = [new SluiceError('evidence.invalid', 'no')]
  await owe(2)
  await until(() => refusals === 1)
  outbox.wake()
  await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual({ accepted, settled: isSettled() }, { accepted: 0, settled: false })
  await owe(3)
  await until(isSettled)
  assert.equal(accepted, 1)
})

it('stays owed while the journal cannot be written', async () => {
  fillsDisk = true
  await owe(2)
  await until(() => accepted > 2)
  assert.equal(isSettled(), false)
  fillsDisk = false
  diskIsFull = false
  await until(isSettled)
})
