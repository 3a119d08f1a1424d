/** Proves the offline tools on whole files: round trips, refusals, exit codes, nothing half-written. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, open, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { jobId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'

const program = path.join(import.meta.dirname, 'main.ts')
let folder: string
let plain: Buffer
const at = (name: string) => path.join(folder, name)

beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-seal-'))
  plain = randomBytes(3 * 1024 * 1024 + 17)
  await writeFile(at('in'), plain)
  await writeFile(at('key'), randomBytes(32))
})
afterEach(() => rm(folder, { recursive: true }))

/** Runs one command line with the key as descriptor 3. */
async function run(args: string[], options: { key?: string; input?: Buffer } = {}) {
  await using key = await open(at(options.key ?? 'key'))
  const child = spawn(process.execPath, [program, ...args, '--key-fd', '3'], {
    stdio: ['pipe', 'pipe', 'pipe', key.fd],
  })
  const output: Buffer[] = []
  let said = ''
  child.stdout?.on('data', (bytes: Buffer) => output.push(bytes))
  child.stderr?.on('data', (bytes: Buffer) => (said += bytes.toString()))
  child.stdin?.end(options.input)
  const code = await new Promise((resolve) => child.on('close', resolve))
  return { code, said, output: Buffer.concat(output) }
}

describe('sluice-agent seal and open', () => {
  it('give back what was sealed, by file and by pipe', async () => {
    assert.equal((await run(['seal', at('in'), at('sealed')])).code, 0)
    assert.equal((await run(['open', at('sealed'), at('out')])).code, 0)
    assert.ok((await readFile(at('out'))).equals(plain))
    const piped = await run(['seal', '-', '-'], { input: plain })
    const opened = await run(['open', '-'], { input: piped.output })
    assert.equal(opened.code, 0)
    assert.ok(opened.output.equals(plain))
  })

  it('leave nothing of a file that is damaged, cut short, or of another key or job', async () => {
    await run(['seal', at('in'), at('sealed')])
    const sealed = await readFile(at('sealed'))
    const flipped = Buffer.from(sealed)
    flipped[sealed.length - 20]! ^= 1
    await writeFile(at('flipped'), flipped)
    await writeFile(at('cut'), sealed.subarray(0, -5))
    await writeFile(at('other'), randomBytes(32))
    for (const { code, said } of [
      await run(['open', at('flipped'), at('out')]),
      await run(['open', at('cut'), at('out')]),
      await run(['open', at('sealed'), at('out')], { key: 'other' }),
      await run(['open', at('sealed'), at('out'), '--job', newId(jobId, 1)]),
    ]) {
      assert.equal(code, 1)
      assert.match(said, /^error: .* \(seal\.[a-z_]+\)\nhint: /)
    }
    const left = (await readdir(folder)).filter((name) => name.startsWith('out'))
    assert.deepEqual(left, [])
  })

  it('replace no device and no folder, also when told to overwrite', async () => {
    await mkdir(at('folder'))
    execFileSync('mkfifo', [at('pipe')])
    for (const name of ['folder', 'pipe']) {
      const { code, said } = await run(['seal', at('in'), at(name), '--force'])
      assert.equal(code, 2)
      assert.match(said, /is not a regular file/)
    }
    assert.deepEqual((await readdir(folder)).toSorted(), ['folder', 'in', 'key', 'pipe'])
    assert.equal((await run(['seal', at('in'), at('sealed')])).code, 0)
    assert.equal((await run(['seal', at('in'), at('sealed'), '--force'])).code, 0, 'the control')
  })

  it('refuse to overwrite, and any key that is not 32 bytes', async () => {
    await writeFile(at('sealed'), 'precious')
    assert.equal((await run(['seal', at('in'), at('sealed')])).code, 2)
    assert.equal(await readFile(at('sealed'), 'utf8'), 'precious')
    await writeFile(at('short'), randomBytes(31))
    await writeFile(at('long'), randomBytes(64))
    for (const key of ['short', 'long'])
      assert.equal((await run(['seal', at('in'), at('out')], { key })).code, 2)
  })
})
