/**
 * Epoch keys in a preallocated file that is only ever overwritten in place: never renamed, never
 * truncated, never grown, because a replaced or freed block keeps the old key on the device.
 *
 * A slot is one 4096-byte block: magic (16), epoch id (36), SHA-256 of both (32); at byte 512 the
 * key (32) and SHA-256 of epoch id and key (32); zeros elsewhere, and everywhere when it is free.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, readFile, statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { type EpochId, epochId } from '@sluice/protocol/ids'
import type { DestructionLevel, EpochKeyStore } from './epoch-key-store.ts'

export const slotBytes = 4096
/** Old and new during a roll, and two that a crash may have left to be overwritten. */
export const slotCount = 4
const keyOffset = 512
const keyBytes = 32
const digestBytes = 32
const idBytes = 36
const magic = Buffer.from('sluice-epoch/1\0\0', 'latin1')
const headBytes = magic.length + idBytes + digestBytes

/** One open file: what tests replace to make the n-th write fail. */
export type SlotIo = Pick<FileHandle, 'read' | 'write' | 'sync' | 'close' | 'stat'>

/**
 * Opens the slot file, and makes it when there is none.
 *
 * @param options.overwriteTorn Overwrites every slot without a whole head. Only the process that
 * owns the file does this, at start: a torn slot may hold a key.
 * @throws SluiceError `host.unsafe_file` when it is a link, no regular file, or open to others.
 */
export async function openSlotFile(
  path: string,
  options: { overwriteTorn: boolean; wrapIo?: (io: FileHandle) => SlotIo },
): Promise<EpochKeyStore> {
  const handle = await openOrCreate(path)
  const io = options.wrapIo?.(handle) ?? handle
  try {
    await requireSafe(io, path)
    await allocate(io)
    if (options.overwriteTorn) await overwriteTornSlots(io)
  } catch (error) {
    await io.close()
    throw error
  }
  return slotStore(io, path)
}

async function openOrCreate(path: string): Promise<FileHandle> {
  const flags = constants.O_RDWR | constants.O_DSYNC | constants.O_NOFOLLOW
  try {
    return await open(path, flags)
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== 'ENOENT')
      throw new SluiceError('host.unsafe_file', `${path} cannot be opened`, { cause })
  }
  const created = await open(path, flags | constants.O_CREAT | constants.O_EXCL, 0o600)
  const folder = await open(dirname(path), constants.O_RDONLY)
  try {
    await folder.sync()
  } finally {
    await folder.close()
  }
  return created
}

async function requireSafe(io: SlotIo, path: string): Promise<void> {
  const facts = await io.stat()
  const why = !facts.isFile()
    ? 'is not a regular file'
    : (facts.mode & 0o077) !== 0
      ? 'is open to group or others'
      : facts.nlink !== 1
        ? 'has more than one name'
        : facts.uid !== process.getuid?.()
          ? 'belongs to another user'
          : undefined
  if (why === undefined) return
  throw new SluiceError('host.unsafe_file', `${path} ${why}`, {
    hint: 'The epoch key file is of mode 0600, belongs to the user of the process and has one name.',
  })
}

/** Writes zeros up to the full size, so that no later write allocates a block. */
async function allocate(io: SlotIo): Promise<void> {
  const { size } = await io.stat()
  const full = slotBytes * slotCount
  if (size >= full) return
  await writeFully(io, Buffer.alloc(full - size), size)
  await io.sync()
}

async function overwriteTornSlots(io: SlotIo): Promise<void> {
  for (let slot = 0; slot < slotCount; slot += 1)
    if ((await readHead(io, slot)) === undefined) await overwrite(io, slot)
}

function slotStore(io: SlotIo, path: string): EpochKeyStore {
  async function slotOf(id: EpochId): Promise<number | undefined> {
    for (let slot = 0; slot < slotCount; slot += 1)
      if ((await readHead(io, slot)) === id) return slot
    return undefined
  }

  return {
    name: 'file',

    async create(id, key) {
      assert.equal(key.length, keyBytes)
      assert.equal(await slotOf(id), undefined, 'an epoch has one key')
      const slot = await freeSlot(io)
      if (slot === undefined)
        throw new SluiceError('keys.damaged', `${path} has no free slot`, {
          hint: 'Restart the control plane: it finishes epochs that a crash left behind.',
        })
      const block = Buffer.alloc(slotBytes)
      try {
        headOf(id).copy(block)
        key.copy(block, keyOffset)
        keyDigest(id, key).copy(block, keyOffset + keyBytes)
        await writeFully(io, block, slot * slotBytes)
      } finally {
        block.fill(0)
      }
      const again = await readKey(io, slot, id)
      const same = again?.equals(key) ?? false
      again?.fill(0)
      if (!same) throw new SluiceError('keys.damaged', `${path} did not keep what was written`)
    },

    async load(id) {
      const slot = await slotOf(id)
      if (slot === undefined)
        throw new SluiceError('keys.no_epoch', `${path} has no key of epoch ${id}`)
      const key = await readKey(io, slot, id)
      if (key === undefined)
        throw new SluiceError('keys.damaged', `the key of epoch ${id} in ${path} is torn`)
      return key
    },

    async destroy(id) {
      for (let slot = await slotOf(id); slot !== undefined; slot = await slotOf(id))
        await overwrite(io, slot)
    },

    async list() {
      const ids: EpochId[] = []
      for (let slot = 0; slot < slotCount; slot += 1) {
        const id = await readHead(io, slot)
        if (id !== undefined) ids.push(id)
      }
      return ids
    },

    startAnew: () => Promise.resolve(),

    async level() {
      const { type } = await statfs(path)
      return destructionLevelOf(type, await mountOptionsOf(path))
    },

    async [Symbol.asyncDispose]() {
      await io.close()
    },
  }
}

/** A slot is free when its head holds nothing: a torn slot is overwritten before it is used again. */
async function freeSlot(io: SlotIo): Promise<number | undefined> {
  for (let slot = 0; slot < slotCount; slot += 1) {
    const head = await readFully(io, headBytes, slot * slotBytes)
    if (head.every((byte) => byte === 0)) return slot
  }
  return undefined
}

function headOf(id: EpochId): Buffer {
  const named = Buffer.concat([magic, Buffer.from(id, 'latin1')])
  return Buffer.concat([named, createHash('sha256').update(named).digest()])
}

function keyDigest(id: EpochId, key: Buffer): Buffer {
  return createHash('sha256').update('sluice/epoch-key/1').update(id).update(key).digest()
}

/** The epoch a slot belongs to; undefined when it is free or torn. Reads no key. */
async function readHead(io: SlotIo, slot: number): Promise<EpochId | undefined> {
  const head = await readFully(io, headBytes, slot * slotBytes)
  const id = epochId.safeParse(head.toString('latin1', magic.length, magic.length + idBytes))
  return id.success && headOf(id.data).equals(head) ? id.data : undefined
}

async function readKey(io: SlotIo, slot: number, id: EpochId): Promise<Buffer | undefined> {
  const bytes = await readFully(io, keyBytes + digestBytes, slot * slotBytes + keyOffset)
  try {
    const key = bytes.subarray(0, keyBytes)
    if (!keyDigest(id, key).equals(bytes.subarray(keyBytes))) return undefined
    const copy = Buffer.allocUnsafeSlow(keyBytes)
    key.copy(copy)
    return copy
  } finally {
    bytes.fill(0)
  }
}

/**
 * Overwrites a slot with zeros and reads it back. O_DSYNC makes the write wait for the device; one
 * pass is what NIST SP 800-88r1 asks for "Clear".
 */
async function overwrite(io: SlotIo, slot: number): Promise<void> {
  await writeFully(io, Buffer.alloc(slotBytes), slot * slotBytes)
  const again = await readFully(io, slotBytes, slot * slotBytes)
  const zero = again.every((byte) => byte === 0)
  again.fill(0)
  if (!zero)
    throw new SluiceError('keys.damaged', 'an epoch key could not be overwritten', {
      retry: 'later',
      hint: 'Look at the health of the disk that holds the data directory.',
    })
}

async function writeFully(io: SlotIo, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await io.write(bytes, done, bytes.length - done, position + done)
    done += bytesWritten
  }
}

async function readFully(io: SlotIo, bytes: number, position: number): Promise<Buffer> {
  const buffer = Buffer.alloc(bytes)
  for (let done = 0; done < bytes;) {
    const { bytesRead } = await io.read(buffer, done, bytes - done, position + done)
    if (bytesRead === 0) throw new SluiceError('keys.damaged', 'the epoch key file was cut short')
    done += bytesRead
  }
  return buffer
}

/** File systems that write a file's blocks in place (`statfs.f_type`, linux/magic.h, statfs(2)). */
const inPlace: ReadonlyMap<number, string> = new Map([
  [0xef53, 'ext4'],
  [0x58465342, 'xfs'],
])

/** Others by name, for the reason's sake. */
const notInPlace: ReadonlyMap<number, string> = new Map([
  [0x9123683e, 'btrfs'],
  [0x2fc12fc1, 'zfs'],
  [0xca451a4e, 'bcachefs'],
  [0xf2f52010, 'f2fs'],
  [0x794c7630, 'overlayfs'],
  [0x6969, 'nfs'],
  [0xff534d42, 'cifs'],
  [0xfe534d42, 'smb2'],
  [0x65735546, 'fuse'],
  [0x01021997, '9p'],
  [0x00c36400, 'ceph'],
  [0x01021994, 'tmpfs'],
  [0x858458f6, 'ramfs'],
])

/**
 * What overwriting in place may claim on a file system.
 *
 * @param type `statfs.f_type`.
 * @param options Mount options, joined by commas.
 */
export function destructionLevelOf(type: number, options: string): DestructionLevel {
  const name = inPlace.get(type)
  if (name === undefined) {
    const other = notInPlace.get(type) ?? `file system 0x${type.toString(16)}`
    return { level: 'none', reason: `${other} is not known to overwrite blocks in place` }
  }
  if (options.split(',').includes('data=journal'))
    return { level: 'none', reason: `${name} with data=journal keeps copies in its journal` }
  return {
    level: 'Clear',
    reason: `epoch key overwritten in place on ${name} and read back; snapshots and remapped blocks below the file system are out of sight`,
  }
}

/** Options of the mount that holds `path`, the superblock's included; empty when not found. */
async function mountOptionsOf(path: string): Promise<string> {
  const mounts = (await readFile('/proc/self/mountinfo', 'utf8')).trimEnd().split('\n')
  let best = { point: '', options: '' }
  for (const line of mounts) {
    const fields = line.split(' ')
    const point = (fields[4] ?? '').replaceAll('\\040', ' ')
    const below = point === '/' || path === point || path.startsWith(`${point}/`)
    if (below && point.length >= best.point.length)
      best = { point, options: `${fields[5] ?? ''},${fields.at(-1) ?? ''}` }
  }
  return best.options
}
