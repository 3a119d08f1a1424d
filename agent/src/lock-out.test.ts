/** Proves when an agent takes itself out, and that it stays out. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, it } from 'node:test'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { LinkState } from './control-link.ts'
import { diskEffects } from './durable-file.ts'
import { openJournal } from './journal.ts'
import { createLockOut } from './lock-out.ts'

let folder: string
let diskIsFull: boolean
let problem: SluiceError | undefined
let become: (state: LinkState) => void
let said: number

beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-lock-out-'))
  diskIsFull = false
  said = 0
})
afterEach(() => rm(folder, { recursive: true }))

async function make() {
  const journal = await openJournal(folder, {
    ...diskEffects,
    async create(...asked) {
      if (diskIsFull) throw Object.assign(new Error('full'), { code: 'ENOSPC' })
      await diskEffects.create(...asked)
    },
  })
  const link = {
    get problem() {
      return problem
    },
    onState: (run: typeof become) => void (become = run),
  }
  return createLockOut({ journal, link, events: { lockedOut: () => void (said += 1) } })
}

const revoked = (error: unknown) => isSluiceError(error, 'identity.revoked')

it('follows the word of the control plane, and no other refusal', async () => {
  const lockOut = await make()
  problem = new SluiceError('version.unsupported', 'old')
  become('refused')
  problem = new SluiceError('control_plane.unreachable', 'away', { retry: 'later' })
  become('connecting')
  assert.equal(lockOut.revoked.aborted, false)
  problem = new SluiceError('identity.revoked', 'out')
  become('refused')
  assert.equal(lockOut.revoked.aborted, true)
  lockOut.learn()
  assert.equal(said, 1)
})

it('ends the role, and is still known after a restart', async () => {
  let ended = 0
  const lockOut = await make()
  assert.equal(lockOut.wasLockedOut, false)
  await assert.rejects(
    lockOut.end(async () => void (ended += 1)),
    revoked,
  )
  assert.equal(ended, 1)
  assert.equal((await make()).wasLockedOut, true)
})

it('wipes also when it cannot be written down', async () => {
  let ended = 0
  const lockOut = await make()
  diskIsFull = true
  await assert.rejects(
    lockOut.end(async () => void (ended += 1)),
    revoked,
  )
  assert.equal(ended, 1)
})
