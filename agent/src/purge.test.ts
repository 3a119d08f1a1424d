/** Proves that a purge comes to its end and to one receipt, wherever the agent is killed on the way. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { it } from 'node:test'
import {
  type JobId,
  agentId,
  jobId,
  obligationId,
  purgeId,
  receiveKeyId,
  submissionId,
} from '@sluice/protocol/ids'
import type { Command } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { orderSha256Of, verifyPurgeReceipt } from '@sluice/protocol/sealing/verify-purge-receipt'
import { openJournal } from './journal.ts'

const { privateKey, publicKey } = generateKeyPairSync('ed25519')
const agent = newId(agentId, 1)
const order: Extract<Command, { type: 'purge' }> = {
  ...{ type: 'purge', purgeId: newId(purgeId, 1), obligationId: newId(obligationId, 1) },
  ...{ everything: true, jobIds: [] },
}

/** A host with a job on its way, a draft, a folder without a record, and a file that waits. */
async function makeHost() {
  const folder = await mkdtemp(path.join(tmpdir(), 'sluice-purge-'))
  const pem = privateKey.export({ format: 'pem', type: 'pkcs8' })
  await writeFile(path.join(folder, 'key.pem'), pem, { mode: 0o600 })
  await writeFile(path.join(folder, 'agent.json'), JSON.stringify({ agentId: agent }))
  await writeFile(path.join(folder, 'order.json'), JSON.stringify(order))
  const source = path.join(folder, 'photo.jpg')
  await writeFile(source, 'the customer’s own')
  await mkdir(path.join(folder, 'spool'), { mode: 0o700 })
  const [announced, draft, orphan] = [1, 2, 3].map(() => newId(jobId, 1)) as [JobId, JobId, JobId]
  for (const id of [announced, draft, orphan]) {
    const at = path.join(folder, 'spool', id)
    await mkdir(at, { mode: 0o700 })
    for (const name of ['archive.sealed', 'envelope', 'result-seed'])
      await writeFile(path.join(at, name), Buffer.alloc(32, 1), { mode: 0o600 })
  }
  const sources = [{ path: source, device: '1', inode: '1', bytes: 1, modifiedAtNs: '1' }]
  const policy = { action: 'keep' as const, when: 'result' as const }
  const journal = await openJournal(folder)
  await journal.change((all) => {
    for (const [id, step] of [
      [announced, 'announced'],
      [draft, 'sealed'],
      [undefined, 'waiting'],
    ] as const) {
      const submission = newId(submissionId, 1)
      const shared = { submissionId: submission, analyser: 'example', sources, source: policy }
      all.submissions[submission] = {
        ...{ ...shared, createdAtMs: 1, origin: 'command', attempts: 1 },
        ...(id ? { state: 'sealed', jobId: id } : { state: 'waiting' }),
      }
      if (!id) continue
      all.jobs[id] = {
        ...{ ...shared, jobId: id, step, mediaCount: 1, sealedBytes: 32, sealedAtMs: 1 },
        ...{ sealedHeader: 'A'.repeat(75), sealedHeaderSha256: 'a'.repeat(64) },
        ...{ spoolSha256: 'a'.repeat(64), receiveKeyId: newId(receiveKeyId, 1), updatedAtMs: 1 },
        ...{ deliveryConfirmed: false, sourceDone: true, spoolDeleteWanted: false },
        ...{ spoolGone: false, seedGone: false, noResult: false },
      }
    }
  })
  return { folder, source }
}

/** @returns The exit code, or the signal that ended it. */
function run(folder: string, nth: number): Promise<number | string | null> {
  const script = path.join(import.meta.dirname, 'purge.test-host.ts')
  const child = spawn(process.execPath, [script, folder, String(nth)], { stdio: 'inherit' })
  return new Promise((resolve) => child.on('exit', (code, signal) => resolve(signal ?? code)))
}

async function requireEnd({ folder, source }: Awaited<ReturnType<typeof makeHost>>, nth: number) {
  assert.deepEqual(await readdir(path.join(folder, 'spool')), [], `spool after ${nth}`)
  assert.ok(existsSync(source), 'the source is as it was')
  const { jobs, submissions, purges } = (await openJournal(folder)).data
  assert.deepEqual(Object.keys(jobs), [])
  assert.ok(Object.values(submissions).every(({ state }) => state === 'purged'))
  assert.equal(purges[order.obligationId]?.state, 'over')
  const lines = (await readFile(path.join(folder, 'accepted.jsonl'), 'utf8')).trim().split('\n')
  assert.equal(new Set(lines).size, 1, `one receipt after ${nth}`)
  const { purgeId: id, obligationId: duty, everything } = order
  const receipt = verifyPurgeReceipt(JSON.parse(lines[0] ?? ''), {
    ...{ publicKey, agentId: agent, purgeId: id, obligationId: duty, everything },
    orderSha256: orderSha256Of(order),
  })
  assert.deepEqual([receipt.spoolsWiped, receipt.draftsWiped], [1, 2])
}

it('is finished by the next process, killed at any effect', { timeout: 300_000 }, async () => {
  let nth = 1
  // `purge-deaths.long.test.ts` kills a whole agent at every one of them.
  for (; ; nth += 2) {
    const host = await makeHost()
    const end = await run(host.folder, nth)
    if (end !== 0) {
      assert.equal(end, 'SIGKILL')
      assert.equal(await run(host.folder, 0), 0)
    }
    await requireEnd(host, nth)
    await rm(host.folder, { recursive: true })
    if (end === 0) break
  }
  assert.ok(nth > 15, `the control: it was killed at ${nth - 1} effects`)
})
