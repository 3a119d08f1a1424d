/** Searches the memory of a node's processes: job key and plaintext are in the lease's child and nowhere else. */
import assert from 'node:assert/strict'
import { fork } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { describeHits, makeScanner, scanProcess } from '../../../test/src/tools/scan.ts'
import { takeKeyNeedles, takeNeedles } from '../../../test/src/tools/needles.ts'
import { makeJob, sealKey, shellAnalyser } from './lease.test-job.ts'
import type { FromTestParent, ToTestParent } from './lease.test-parent.ts'
import { makeTraces, processesHolding, tracesOf, wipeTraces } from './wipe.ts'

it('keeps key and plaintext out of the agent’s memory, and ends both with the agent', async () => {
  const folder = await mkdtemp(path.join(tmpdir(), 'lease-memory-'))
  const medium = randomBytes(300_000)
  const job = makeJob([{ name: '0001.jpg', kind: 'image', bytes: medium }])
  const traces = tracesOf(folder, job.leaseId)
  await makeTraces(traces)
  const keys = makeScanner(takeKeyNeedles(job.key, 'job key'))
  const plaintext = makeScanner(takeNeedles(medium, { source: '0001.jpg' }))
  const parent = fork(new URL('./lease.test-parent.ts', import.meta.url), {
    execArgv: [],
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
  })
  const parentPid = parent.pid!
  const tell = (message: ToTestParent): void => void parent.send(message)
  async function next<T extends FromTestParent['type']>(type: T) {
    const [message] = (await once(parent, 'message')) as [FromTestParent]
    assert.equal(message.type, type, JSON.stringify(message))
    return message as Extract<FromTestParent, { type: T }>
  }
  async function requireSilent(): Promise<void> {
    for (const scanner of [keys, plaintext]) {
      const report = await scanProcess(scanner, parentPid)
      assert.ok(report.bytes > 10_000_000, 'the agent’s memory was read')
      assert.equal(report.hits.length, 0, describeHits(report))
    }
  }
  try {
    const order = {
      jobId: job.jobId,
      leaseId: job.leaseId,
      fence: 1,
      nodeId: job.nodeId,
      sealedBytes: job.sealed.length,
      sealedHeader: job.sealedHeader,
      // Reads all and stays, so that there is time to look.
      analyser: shellAnalyser('cat >/dev/null; sleep 1000'),
      isolation: 'none',
      leash: traces.leash,
    }
    tell({ type: 'start', order, object: job.sealed })
    const { publicKey } = await next('public-key')
    const deadlineAtMs = 1_800_000_000_000
    const envelope = sealKey(job, { publicKey, fence: 1, deadlineAtMs })
    tell({ type: 'envelope', envelope, deadlineAtMs })
    const { childPid } = await next('reading')
    const control = await scanProcess(keys, childPid)
    assert.ok(control.hits.length > 0, 'control: the child has the key')
    await requireSilent()
    tell({ type: 'go' })
    // Until the child was seen with plaintext, silence elsewhere means nothing.
    while ((await scanProcess(plaintext, childPid)).hits.length === 0) await sleep(20)
    await requireSilent()
    const pids = processesHolding(traces.leash)
    assert.ok(pids.includes(childPid) && pids.length > 1, 'child and analyser are there')
    process.kill(parentPid, 'SIGKILL')
    while (processesHolding(traces.leash).includes(childPid)) await sleep(20)
    // What an analyser without isolation started outlives it; the next agent's recovery ends that.
    await wipeTraces(traces)
    assert.deepEqual(processesHolding(traces.leash), [])
    assert.ok(!existsSync(traces.folder))
  } finally {
    parent.kill('SIGKILL')
    if (existsSync(traces.folder)) await wipeTraces(traces)
    await rm(folder, { recursive: true })
  }
})
