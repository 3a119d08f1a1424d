/** The demo proves what it says: run as a newcomer runs it, with its facts checked one by one. */

import assert from 'node:assert/strict'
import { createPublicKey } from 'node:crypto'
import { access, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { verifyCertificate } from '@sluice/protocol/sealing/verify-certificate'

import type { Summary } from '../demo/summary.ts'
import { startProgram } from '../tools/processes.ts'

const demo = join(import.meta.dirname, '../demo/main.ts')

describe('npm run demo -- --json', { timeout: 110_000 }, () => {
  let summary: Summary
  let code: number | null
  let said: string

  before(async () => {
    await using program = await startProgram({ command: process.execPath, args: [demo, '--json'] })
    const end = await program.ended
    code = end.code
    said = program.stderr
    if (code === 0) summary = JSON.parse(program.stdout) as Summary
  })
  after(async () => {
    if (summary !== undefined) await rm(summary.evidence.folder, { recursive: true })
  })

  it('ends with 0 and one document on standard output', () => {
    assert.equal(code, 0, said)
    assert.equal(summary.schema, 'sluice-demo/1')
  })

  it('carries each medium from announcement to deletion, and through no other state', () => {
    assert.ok(summary.jobs.length >= 2)
    for (const job of summary.jobs) {
      const states = job.states.map(({ state }) => state)
      const path = ['announced', 'uploading', 'stored', 'leased', 'analysed', 'deleting', 'deleted']
      assert.deepEqual(states, path)
      const times = job.states.map(({ atMs }) => atMs)
      assert.deepEqual(
        times,
        times.toSorted((a, b) => a - b),
      )
    }
  })

  it('brings a result for every medium, and leaves the position of the photo behind', () => {
    for (const job of summary.jobs) {
      const names = job.media.map(({ name }) => name)
      assert.deepEqual(
        job.result.media.map(({ name }) => name),
        names,
      )
    }
    const photo = summary.jobs.find((job) => job.file.endsWith('photo.jpg'))
    assert.ok(photo?.media[0]?.removed.includes('gps'), JSON.stringify(photo?.media))
  })

  it('has an early thief who opens every job, and a late one who opens none', () => {
    const { early, late } = summary.thief
    assert.equal(early.jobsOpened, summary.jobs.length)
    assert.equal(late.attempts, summary.jobs.length)
    assert.equal(late.opened + late.objectsFound + late.jobKeysFound, 0)
    assert.deepEqual(summary.leftovers, { spoolFiles: 0, objectFiles: 0, nodeFiles: 0 })
  })

  it('finds what was planted, and no trace of media, manifests or keys', () => {
    const { traces } = summary
    assert.equal(traces.positiveControl, true)
    assert.ok(traces.needles > 100 && traces.files.places > 10 && traces.files.bytes > 100_000)
    assert.equal(traces.files.hits, 0)
    assert.equal(traces.memory?.hits ?? 0, 0)
  })

  it('leaves certificates that verify offline after everything else is gone', async () => {
    const trusted = createPublicKey(await readFile(summary.evidence.publicKeyFile))
    for (const { jobId, certificate } of summary.jobs) {
      const verified = verifyCertificate(await readFile(certificate.path), trusted)
      assert.equal(verified.jobId, jobId)
    }
    const photo = summary.jobs.find((job) => job.file.endsWith('photo.jpg'))
    await assert.rejects(access(photo?.file ?? '/'), 'the media made on the spot are gone')
  })
})
