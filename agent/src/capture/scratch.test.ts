/** Proves that what is held comes back whole, and that no disk ever sees it in clear. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, readFileSync, readdirSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import { collectOutput } from '../sandbox.ts'
import { hold, withHead } from './scratch.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'scratch-'))
after(() => rmSync(folder, { recursive: true }))

async function* pieces(bytes: Buffer, size: number): AsyncGenerator<Buffer> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size)
}

/** Contents of the nameless files in `folder` that this process holds open. */
function openNamelessFiles(): Buffer[] {
  return readdirSync('/proc/self/fd').flatMap((descriptor) => {
    const link = `/proc/self/fd/${descriptor}`
    try {
      const target = readlinkSync(link)
      return target.startsWith(folder) && target.endsWith('(deleted)') ? [readFileSync(link)] : []
    } catch {
      // The descriptor of the listing itself is gone by now.
      return []
    }
  })
}

describe('hold', () => {
  for (const bytes of [0, 1, 16_383, 16_384, 16_385, 32_768, 3_000_000]) {
    it(`gives back ${bytes} bytes from memory and from scratch`, async () => {
      const content = randomBytes(bytes)
      for (const inMemoryBytesMax of [bytes, bytes - 1]) {
        const options = { scratchFolder: folder, inMemoryBytesMax }
        await using held = await hold(pieces(content, 10_007), options)
        assert.equal(held.bytes, bytes)
        const scratched = bytes > inMemoryBytesMax && bytes > 0
        assert.equal(held.place, scratched ? 'scratch' : 'memory')
        assert.deepEqual(await collectOutput(held.read()), content)
        assert.deepEqual(await collectOutput(held.read()), content)
      }
    })
  }

  it('leaves only ciphertext on the disk, under no name (control: the source has the needle)', async () => {
    const content = Buffer.alloc(500_000, 'the needle in clear ')
    const options = { scratchFolder: folder, inMemoryBytesMax: 1000 }
    {
      await using held = await hold(pieces(content, 4096), options)
      assert.deepEqual(readdirSync(folder), [])
      const files = openNamelessFiles()
      assert.equal(files.length, 1)
      assert.ok((files[0]?.length ?? 0) > held.bytes)
      assert.ok(!files[0]?.includes('needle'))
      assert.ok(content.includes('needle'))
    }
    assert.equal(openNamelessFiles().length, 0)
  })

  it('leaves nothing when the source fails', async () => {
    async function* failing(): AsyncGenerator<Buffer> {
      yield randomBytes(5000)
      throw new Error('source failed')
    }
    const options = { scratchFolder: folder, inMemoryBytesMax: 1000 }
    await assert.rejects(hold(failing(), options), /source failed/)
    assert.equal(openNamelessFiles().length, 0)
  })

  it('puts a head before the rest', async () => {
    const rest = await hold(pieces(Buffer.from('rest'), 2), { scratchFolder: folder })
    await using both = withHead(Buffer.from('head '), rest)
    assert.equal(both.bytes, 9)
    assert.equal((await collectOutput(both.read())).toString(), 'head rest')
  })

  it('says so when scratch cannot be written', async () => {
    const options = { scratchFolder: path.join(folder, 'absent'), inMemoryBytesMax: 0 }
    await assert.rejects(hold(pieces(Buffer.alloc(10), 5), options), { code: 'spool.damaged' })
  })
})
