/** The proof that destroyed keys are nowhere: on no disk, in no process, and in nothing that was copied before. */

import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { readFile, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

import { createKeyHolder } from '@sluice/control-plane/keys/key-holder'
import { openSlotFile } from '@sluice/control-plane/keys/slot-file'
import { isSluiceError } from '@sluice/protocol/errors'

import { announceKeys } from './announced-keys.ts'
import { copyDataDirectory, type StolenCopy } from './early-copy.ts'
import { connectByHand, joinByHand } from './fake-agent.ts'
import { waitFor } from './fleet-daemon.ts'
import { startFleet } from './fleet.ts'
import { type Needle, takeKeyNeedles } from './needles.ts'
import { makeRawDisk } from './raw-disk.ts'
import {
  describeHits,
  emptyReport,
  joinReports,
  makeScanner,
  scanFile,
  scanProcess,
  scanTree,
  type Scanner,
  type ScanReport,
} from './scan.ts'

/** Room for what thousands of jobs and two copies of SQLite's log write; all of it is read back. */
const diskBytes = 192 * 1024 * 1024

/** Announces `count` jobs, purges them all, and looks everywhere. */
export async function proveKeysDestroyed(count: number): Promise<void> {
  await using disk = await makeRawDisk(diskBytes)
  await using fleet = await startFleet({
    name: 'keys',
    parent: disk.path,
    controlPlane: { purge: { aloneJobsMax: count } },
  })
  const { controlPlane } = fleet
  const identity = await joinByHand(fleet, { name: 'capture', role: 'capture' })
  await using link = await connectByHand(identity)
  const keys = await announceKeys(link, count)
  const needles = keys.flatMap(({ jobId, jobKey }) => takeKeyNeedles(jobKey, `key of ${jobId}`))

  await using before = await copyDataDirectory(controlPlane.dataDirectory)
  assert.equal(await opensOf(before, before), count, 'control: a copy from before opens them all')
  await proveLooksFind(needles, disk)

  const purge = (await fleet.ask('/v1/purges', {
    role: 'security',
    body: { scope: { kind: 'everything' }, reason: 'a test destroys all keys' },
  })) as { id: string }
  await waitFor('the roll', 60_000, async () => {
    const view = (await fleet.ask(`/v1/purges/${purge.id}`)) as { keysUnrecoverableAtMs?: number }
    return view.keysUnrecoverableAtMs
  })

  await using after = await copyDataDirectory(controlPlane.dataDirectory)
  assert.equal(after.keys.length, 0)
  assert.equal(await opensOf(before, after), 0, 'all but the old epoch key opens nothing')
  await disk.sync()
  const scanner = makeScanner(needles)
  const looks = [await scanTree(scanner, fleet.root), await scanFile(scanner, disk.image)]
  for (const pid of await familyOf(controlPlane.pid)) looks.push(await scanIfAlive(scanner, pid))
  const left = joinReports(...looks)
  assert.ok(left.bytes > diskBytes)
  assert.equal(left.hits.length, 0, describeHits(left))
  for (const { jobKey } of keys) jobKey.fill(0)
}

/** How many job keys of one copy open with the epoch keys of another. */
async function opensOf(wrapped: StolenCopy, epochs: StolenCopy): Promise<number> {
  await using store = await openSlotFile(epochs.slotFile, { overwriteTorn: false })
  using holder = createKeyHolder(store)
  let opened = 0
  for (const epochId of await store.list()) {
    await holder.hold({ epochId, mayCreate: false })
    // The thief tries every wrap as each epoch there is a key for.
    const page = {
      purpose: 'job-key',
      epochId,
      ids: wrapped.keys.map(({ jobId }) => jobId),
      wrapped: Buffer.concat(wrapped.keys.map((key) => key.wrapped)),
    } as const
    const flags = await holder.verify({ ...page, ids: [...page.ids] }).catch((error: unknown) => {
      if (isSluiceError(error, 'keys.damaged')) return new Uint8Array(page.ids.length)
      throw error
    })
    opened += flags.filter((flag) => flag === 1).length
  }
  return opened
}

/** The same looks, each at a place where a key like the others was planted. */
async function proveLooksFind(
  needles: readonly Needle[],
  disk: { path: string; image: string; sync(): Promise<void> },
): Promise<void> {
  const planted = randomBytes(32)
  const scanner = makeScanner([...needles, ...takeKeyNeedles(planted, 'planted key')])
  const file = join(disk.path, 'planted')
  await writeFile(file, planted)
  await disk.sync()
  await rm(file)
  await disk.sync()
  const raw = await scanFile(scanner, disk.image)
  assert.ok(raw.hits.length > 0, 'control: the raw disk shows a key that was deleted')
  const database = join(disk.path, 'planted.db')
  {
    using plain = new DatabaseSync(database)
    plain.exec('PRAGMA journal_mode = WAL; CREATE TABLE kept (key BLOB)')
    plain.prepare('INSERT INTO kept VALUES (?)').run(planted)
    const log = await scanFile(scanner, `${database}-wal`)
    assert.ok(log.hits.length > 0, 'control: a write-ahead log shows a key')
  }
  const pages = await scanFile(scanner, database)
  assert.ok(pages.hits.length > 0, 'control: a page shows a key')
  const child = await holdInMemory(planted)
  const memory = await scanProcess(scanner, child.pid ?? 0)
  child.kill('SIGKILL')
  assert.ok(memory.hits.length > 0, 'control: the memory of a process shows a key')
}

/** A process that does nothing but hold these bytes. */
async function holdInMemory(bytes: Buffer): Promise<ChildProcess> {
  const script =
    "process.stdin.once('data', (held) => { globalThis.held = held; process.stdout.write('.') })"
  const child = spawn(process.execPath, ['-e', script], { stdio: ['pipe', 'pipe', 'inherit'] })
  child.stdin.write(bytes)
  await once(child.stdout, 'data')
  return child
}

/** A key process that was replaced meanwhile has no memory any more. */
async function scanIfAlive(scanner: Scanner, pid: number): Promise<ScanReport> {
  try {
    return await scanProcess(scanner, pid)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ESRCH' || code === 'ENOENT') return emptyReport()
    throw error
  }
}

/** A process and all below it. */
async function familyOf(pid: number): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')
  const children = text.split(' ').filter(Boolean).map(Number)
  const below = await Promise.all(children.map((child) => familyOf(child)))
  return [pid, ...below.flat()]
}
