import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import { chmod, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { type EpochId, epochId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { destructionLevelOf, openSlotFile, slotBytes, slotCount, type SlotIo } from './slot-file.ts'

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'sluice-slots-'))
  t.after(() => rm(path, { recursive: true }))
  return path
}

const anEpoch = (): EpochId => newId(epochId, 1_800_000_000_000)

describe('slot file', () => {
  it('gives back a key it made durable, also after it was opened anew', async (t) => {
    const path = join(await folder(t), 'epoch-keys')
    const id = anEpoch()
    const key = randomBytes(32)
    {
      await using store = await openSlotFile(path, { overwriteTorn: true })
      await store.create(id, key)
    }
    await using store = await openSlotFile(path, { overwriteTorn: true })
    assert.deepEqual(await store.list(), [id])
    assert.deepEqual(await store.load(id), key)
  })

  it('leaves no byte of a destroyed key in the file, which never changes size or inode', async (t) => {
    const path = join(await folder(t), 'epoch-keys')
    await using store = await openSlotFile(path, { overwriteTorn: true })
    const [id, key] = [anEpoch(), randomBytes(32)]
    const before = await stat(path)
    await store.create(id, key)
    assert.ok((await readFile(path)).includes(key), 'control: the key was there')
    await store.destroy(id)
    assert.ok(!(await readFile(path)).includes(key.subarray(0, 8)))
    const after = await stat(path)
    assert.deepEqual([after.ino, after.size], [before.ino, slotBytes * slotCount])
    await assert.rejects(store.load(id), (error) => isSluiceError(error, 'keys.no_epoch'))
    await store.destroy(id)
  })

  it('destroys one key and keeps its neighbours', async (t) => {
    const path = join(await folder(t), 'epoch-keys')
    await using store = await openSlotFile(path, { overwriteTorn: true })
    const keys = Array.from({ length: slotCount }, () => ({ id: anEpoch(), key: randomBytes(32) }))
    for (const { id, key } of keys) await store.create(id, key)
    await assert.rejects(store.create(anEpoch(), randomBytes(32)), (error) =>
      isSluiceError(error, 'keys.damaged'),
    )
    await store.destroy(keys[1]!.id)
    for (const index of [0, 2, 3])
      assert.deepEqual(await store.load(keys[index]!.id), keys[index]!.key)
  })

  it('refuses a link, a file open to others and a file with two names', async (t) => {
    const at = await folder(t)
    const path = join(at, 'epoch-keys')
    await (await openSlotFile(path, { overwriteTorn: true }))[Symbol.asyncDispose]()
    await symlink(path, join(at, 'link'))
    const unsafe = (error: unknown) => isSluiceError(error, 'host.unsafe_file')
    await assert.rejects(openSlotFile(join(at, 'link'), { overwriteTorn: true }), unsafe)
    await chmod(path, 0o640)
    await assert.rejects(openSlotFile(path, { overwriteTorn: true }), unsafe)
  })

  it('says that a torn key is damaged and overwrites a slot with a torn head at start', async (t) => {
    const path = join(await folder(t), 'epoch-keys')
    const [id, key] = [anEpoch(), randomBytes(32)]
    {
      await using store = await openSlotFile(path, { overwriteTorn: true })
      await store.create(id, key)
      const bytes = await readFile(path)
      bytes[512 + 40]! ^= 1
      await writeFile(path, bytes, { flag: 'r+' })
      await assert.rejects(store.load(id), (error) => isSluiceError(error, 'keys.damaged'))
    }
    const bytes = await readFile(path)
    bytes[20]! ^= 1
    await writeFile(path, bytes, { flag: 'r+' })
    assert.ok((await readFile(path)).includes(key), 'control: the torn slot holds the key')
    await using again = await openSlotFile(path, { overwriteTorn: true })
    assert.deepEqual(await again.list(), [])
    assert.ok((await readFile(path)).every((byte) => byte === 0))
  })

  it('completes a file whose making was cut short', async (t) => {
    const path = join(await folder(t), 'epoch-keys')
    await writeFile(path, Buffer.alloc(100), { mode: 0o600 })
    await using store = await openSlotFile(path, { overwriteTorn: true })
    await store.create(anEpoch(), randomBytes(32))
    assert.equal((await stat(path)).size, slotBytes * slotCount)
  })

  it('writes a key out in pieces when the device takes only some', async (t) => {
    const path = join(await folder(t), 'epoch-keys')
    const stingy = (io: FileHandle): SlotIo => ({
      read: io.read.bind(io),
      write: ((bytes: Buffer, offset: number, length: number, position: number) =>
        io.write(bytes, offset, Math.min(length, 100), position)) as SlotIo['write'],
      sync: () => io.sync(),
      close: () => io.close(),
      stat: io.stat.bind(io),
    })
    await using store = await openSlotFile(path, { overwriteTorn: true, wrapIo: stingy })
    const [id, key] = [anEpoch(), randomBytes(32)]
    await store.create(id, key)
    assert.deepEqual(await store.load(id), key)
  })

  it('does not call a key destroyed that the device kept', async (t) => {
    const path = join(await folder(t), 'epoch-keys')
    let lying = false
    const liar = (io: FileHandle): SlotIo => ({
      read: io.read.bind(io),
      write: ((bytes: Buffer, offset: number, length: number, position: number) =>
        lying
          ? Promise.resolve({ bytesWritten: length, buffer: bytes })
          : io.write(bytes, offset, length, position)) as SlotIo['write'],
      sync: () => io.sync(),
      close: () => io.close(),
      stat: io.stat.bind(io),
    })
    await using store = await openSlotFile(path, { overwriteTorn: true, wrapIo: liar })
    const id = anEpoch()
    await store.create(id, randomBytes(32))
    lying = true
    await assert.rejects(store.destroy(id), (error) => isSluiceError(error, 'keys.damaged'))
    lying = false
    await store.destroy(id)
  })

  it('claims Clear only where blocks are overwritten in place', () => {
    assert.equal(destructionLevelOf(0xef53, 'rw,relatime').level, 'Clear')
    assert.equal(destructionLevelOf(0x58465342, 'rw').level, 'Clear')
    assert.equal(destructionLevelOf(0xef53, 'rw,data=journal').level, 'none')
    for (const type of [0x9123683e, 0x2fc12fc1, 0x6969, 0x794c7630, 0x01021994, 42])
      assert.equal(destructionLevelOf(type, 'rw').level, 'none')
  })
})
