/** Proves in the memory of running processes that the epoch key is in the key process and nowhere else. */

import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'

import { waitFor } from '../tools/fleet-daemon.ts'
import { need } from '../tools/need.ts'
import { takeKeyNeedles } from '../tools/needles.ts'
import { startProgram } from '../tools/processes.ts'
import { describeHits, makeScanner, scanProcess, scanTree } from '../tools/scan.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'

const program = fileURLToPath(import.meta.resolve('@sluice/control-plane/cli/main'))
const root = need('the memory of processes', process.getuid?.() === 0, 'run as root on Linux')

async function childrenOf(pid: number): Promise<number[]> {
  const text = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')
  return text.split(' ').filter(Boolean).map(Number)
}

describe('the epoch key in memory', { skip: root }, () => {
  it('is in the key process alone, which ends with its parent', async () => {
    await using folder = await makeTemporaryDirectory('epoch')
    const dataDir = join(folder.path, 'data')
    const names = ['--public-name', 'localhost', '--data-dir', dataDir, '--allow-swap']
    const ports = ['--agent-port', '0', '--operator-port', '0']
    await using controlPlane = await startProgram({
      command: process.execPath,
      args: [program, 'serve', ...names, ...ports],
    })
    await controlPlane.waitForLine(/Fingerprint/)
    const slots = await readFile(join(dataDir, 'epoch', 'slots'))
    const scanner = makeScanner(takeKeyNeedles(slots.subarray(512, 544), 'epoch key'))
    const [keyProcess, ...others] = await childrenOf(controlPlane.pid)
    assert.ok(keyProcess !== undefined && others.length === 0)
    const held = await scanProcess(scanner, keyProcess)
    assert.ok(held.hits.length > 0, 'control: the key process holds it')
    const parent = await scanProcess(scanner, controlPlane.pid)
    assert.ok(parent.bytes > 1024 * 1024)
    assert.equal(parent.hits.length, 0, describeHits(parent))
    const disk = await scanTree(scanner, dataDir)
    assert.deepEqual(
      disk.hits.map((hit) => hit.place),
      [join(dataDir, 'epoch', 'slots')],
    )
    await controlPlane.kill()
    const gone = await waitFor('the end of the key process', 10_000, async () => {
      const state = await readFile(`/proc/${keyProcess}/stat`, 'utf8').catch(() => undefined)
      // A zombie that nobody reaps has no memory any more.
      return state === undefined || state.includes(') Z ') ? true : undefined
    })
    assert.ok(gone)
  })
})
