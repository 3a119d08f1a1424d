/**
 * A thief who has everything: all copies ever made of the control plane's data, the spool, and every
 * frame that the node sent and received. Before the roll that opens the job, afterwards nothing does.
 */

import assert from 'node:assert/strict'
import { createDecipheriv } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'

import { isSluiceError } from '@sluice/protocol/errors'
import { chunkKeysOf } from '@sluice/protocol/sealing/chunks'
import { archiveContext, lengthPrefixed } from '@sluice/protocol/sealing/context'

import { lookAtHost } from '../demo/host.ts'
import {
  copyDataDirectory,
  openEnvelopeStolen,
  openStolen,
  type StolenCopy,
} from '../tools/early-copy.ts'
import { connectByHand, joinByHand, offerOf } from '../tools/fake-agent.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import { startFleet } from '../tools/fleet.ts'
import { spoolOf, waitUntilReady } from '../tools/journey.ts'
import { takeLease } from '../tools/leased-job.ts'
import { makePicture, submitEach } from '../tools/pictures.ts'

/** What was taken besides copies of the data directory. */
type Loot = {
  jobId: Parameters<typeof archiveContext>[0]
  senderId: Parameters<typeof openEnvelopeStolen>[0]['senderId']
  envelope: Buffer
  sealed: Buffer
  /** Frames, and every small file of the spool. */
  recorded: Buffer[]
}

/** Whether anything of all this opens the job; `slots` are the epoch keys the thief has. */
async function opens(loot: Loot, copies: readonly StolenCopy[], slots: string): Promise<boolean> {
  const { jobId, senderId, envelope, sealed } = loot
  for (const copy of copies) {
    for (const key of copy.keys.filter((one) => one.jobId === jobId)) {
      using job = await openStolen({ key, slotFile: slots, sealed })
      if (job) return true
    }
    const { seeds } = copy
    using job = await openEnvelopeStolen({
      ...{ jobId, senderId, envelope, sealed, seeds },
      slotFile: slots,
    })
    if (job) return true
  }
  return opensByGuess(loot, copies, await readFile(slots))
}

/** Every 32 bytes in a row of all that was recorded, as the job's key and as an epoch key. */
function opensByGuess(loot: Loot, copies: readonly StolenCopy[], slots: Buffer): boolean {
  const wraps = copies.flatMap(({ keys }) => keys.filter(({ jobId }) => jobId === loot.jobId))
  for (const bytes of [...loot.recorded, slots])
    for (let at = 0; at + 32 <= bytes.length; at += 1) {
      const guess = bytes.subarray(at, at + 32)
      if (isJobKey(guess, loot)) return true
      for (const { epochId, wrapped } of wraps) {
        const aad = lengthPrefixed(['sluice/job-key/1', loot.jobId, epochId])
        if (unwraps(guess, wrapped, aad)) return true
      }
    }
  return false
}

/** The header commits to its key (Cobblestone-256). */
function isJobKey(key: Buffer, { jobId, sealed }: Pick<Loot, 'jobId' | 'sealed'>): boolean {
  try {
    const header = sealed.subarray(0, 56)
    chunkKeysOf({ key, context: archiveContext(jobId), header })[Symbol.dispose]()
    return true
  } catch (error) {
    if (isSluiceError(error, 'seal.wrong_key')) return false
    throw error
  }
}

function unwraps(key: Buffer, wrapped: Buffer, aad: Buffer): boolean {
  const decipher = createDecipheriv('aes-256-gcm', key, wrapped.subarray(0, 12))
  decipher.setAAD(aad).setAuthTag(wrapped.subarray(-16))
  decipher.update(wrapped.subarray(12, -16))
  try {
    decipher.final()
    return true
  } catch {
    return false
  }
}

describe('everything that was ever copied of a destroyed job', { timeout: 110_000 }, () => {
  it('opens nothing together, and did before its key was destroyed', async () => {
    const host = await lookAtHost()
    await using fleet = await startFleet({
      name: 'together',
      controlPlane: { allowSwap: host.swap },
    })
    const config = { isolation: host.isolation, allowSwap: host.swap, analyser: 'by-hand' }
    const capture = await fleet.addAgent({ name: 'capture', role: 'capture', config })
    await capture.start()
    await waitUntilReady(capture)
    const steal = () => copyDataDirectory(fleet.controlPlane.dataDirectory)
    const slots = join(fleet.controlPlane.dataDirectory, 'epoch', 'slots')

    await using early = await steal()
    const recorded: Buffer[] = []
    const [jobId] = await submitEach(capture, [await makePicture(join(fleet.root, 'tmp'), 'one')])
    assert.ok(jobId)
    await fleet.waitForState(jobId, ['stored'], 60_000)
    const folder = join(spoolOf(capture), jobId)
    const [sealed, envelope, seed] = await Promise.all(
      ['archive.sealed', 'envelope', 'result-seed'].map((name) => readFile(join(folder, name))),
    )
    assert.ok(sealed && envelope && seed)
    recorded.push(envelope, seed, sealed.subarray(0, 4096))
    await using stored = await steal()

    const identity = await joinByHand(fleet, { name: 'node', role: 'gpu' })
    await using node = await connectByHand(identity, {
      offer: offerOf('by-hand'),
      record: (frame) => void recorded.push(frame),
    })
    await takeLease(node, jobId)
    await using leased = await steal()
    const senderId = capture.id as Loot['senderId']
    const loot: Loot = { jobId, senderId, envelope, sealed, recorded }
    const copies = [early, stored, leased]
    assert.ok(await opens(loot, copies, slots), 'control: before the roll it opens')
    const epochKey = (await readFile(stored.slotFile)).subarray(512, 544)
    const withKey = { ...loot, recorded: [epochKey] }
    assert.ok(
      opensByGuess(withKey, copies, Buffer.alloc(0)),
      'control: an epoch key among the guesses is found',
    )

    const purge = (await fleet.ask('/v1/purges', {
      role: 'security',
      body: { scope: { kind: 'job', jobId }, reason: 'a test' },
    })) as { id: string }
    await waitFor('the roll', 60_000, async () => {
      const view = await fleet.ask(`/v1/purges/${purge.id}`)
      return (view as { keysUnrecoverableAtMs?: number }).keysUnrecoverableAtMs
    })
    await using late = await steal()
    assert.ok(!(await opens(loot, [...copies, late], slots)))
    assert.ok(recorded.length > 10 && Buffer.concat(recorded).length > 4096)
  })
})
