/**
 * Seals or opens in a process of its own and prints one JSON line about it: speed without files, or one
 * file to another. Started by the bench, so that each measurement begins with a fresh heap.
 */

import assert from 'node:assert/strict'
import { closeSync, openSync, readSync, writeSync } from 'node:fs'

import { lengthPrefixed } from '@sluice/protocol/sealing/context'
import { createSealer } from '@sluice/protocol/sealing/seal'
import { sealedBytesOf } from '@sluice/protocol/sealing/sealed-size'
import { createUnsealer, openSealed } from '@sluice/protocol/sealing/unseal'

/** What the pipeline feeds at a time. */
const pieceBytes = 1024 * 1024

/** A key that protects nothing, so that one process opens what another sealed. */
const key = Buffer.alloc(32, 0x5a)
const context = lengthPrefixed(['sluice/bench/1'])

type Timing = { bytes: number; ms: number; cpuMs: number }

/** Milliseconds of clock and processor that `work` takes. */
async function time(bytes: number, work: () => Promise<void> | void): Promise<Timing> {
  const cpu = process.cpuUsage()
  const startedMs = performance.now()
  await work()
  const ms = performance.now() - startedMs
  const { user, system } = process.cpuUsage(cpu)
  return { bytes, ms, cpuMs: (user + system) / 1000 }
}

/** Seals `bytes` of plaintext into a buffer that is used again for every piece. */
function sealStream(bytes: number): void {
  const piece = Buffer.alloc(pieceBytes, 0xa5)
  using sealer = createSealer({ key, context })
  const into = Buffer.allocUnsafeSlow(sealedBytesOf(pieceBytes))
  for (let done = 0; done < bytes; done += pieceBytes) {
    sealer.updateInto(piece.subarray(0, Math.min(pieceBytes, bytes - done)), into)
  }
  sealer.final()
}

/** A whole sealed object in memory, to open from. */
function sealWhole(bytes: number): Buffer {
  using sealer = createSealer({ key, context })
  const sealed = Buffer.allocUnsafeSlow(sealedBytesOf(bytes))
  const piece = Buffer.alloc(pieceBytes, 0xa5)
  let written = sealer.header.copy(sealed)
  for (let done = 0; done < bytes; done += pieceBytes) {
    const part = piece.subarray(0, Math.min(pieceBytes, bytes - done))
    written += sealer.updateInto(part, sealed.subarray(written))
  }
  written += sealer.final().copy(sealed, written)
  assert.equal(written, sealed.length)
  return sealed
}

/** The object opened over and over must be small enough for memory; the rest is repetition. */
const openObjectBytes = 32 * 1024 * 1024

function openStream(sealed: Buffer): void {
  using unsealer = createUnsealer({ key, context })
  const into = Buffer.allocUnsafeSlow(unsealer.updateBytes(2 * pieceBytes))
  for (let done = 0; done < sealed.length; done += pieceBytes) {
    unsealer.updateInto(sealed.subarray(done, done + pieceBytes), into)
  }
  unsealer.final()
}

async function openByRanges(sealed: Buffer): Promise<void> {
  const read = (offset: number, length: number): Promise<Buffer> =>
    Promise.resolve(sealed.subarray(offset, offset + length))
  using reader = await openSealed({ key, context, sealedBytes: sealed.length, read })
  for (let offset = 0; offset < reader.plaintextBytes; offset += pieceBytes) {
    await reader.readRange(offset, Math.min(pieceBytes, reader.plaintextBytes - offset))
  }
}

async function repeatOpening(
  bytes: number,
  open: (sealed: Buffer) => Promise<void> | void,
): Promise<Timing> {
  const objectBytes = Math.min(bytes, openObjectBytes)
  const sealed = sealWhole(objectBytes)
  const rounds = Math.ceil(bytes / objectBytes)
  return await time(rounds * objectBytes, async () => {
    for (let round = 0; round < rounds; round++) await open(sealed)
  })
}

/** Moves one file into another through `change`, a piece at a time; gives the bytes read. */
function moveFile(
  from: string,
  to: string,
  change: (piece: Buffer, write: (bytes: Uint8Array) => void) => void,
  finish: (write: (bytes: Uint8Array) => void) => void,
): number {
  const input = openSync(from, 'r')
  const output = openSync(to, 'w', 0o600)
  const write = (bytes: Uint8Array): void => {
    for (let done = 0; done < bytes.length;) done += writeSync(output, bytes, done)
  }
  const piece = Buffer.allocUnsafeSlow(pieceBytes)
  let total = 0
  for (;;) {
    const read = readSync(input, piece)
    if (read === 0) break
    total += read
    change(piece.subarray(0, read), write)
  }
  finish(write)
  closeSync(input)
  closeSync(output)
  return total
}

function sealFile(from: string, to: string): number {
  using sealer = createSealer({ key, context })
  const into = Buffer.allocUnsafeSlow(sealedBytesOf(pieceBytes))
  let headerIsOut = false
  const header = (write: (bytes: Uint8Array) => void): void => {
    if (!headerIsOut) write(sealer.header)
    headerIsOut = true
  }
  return moveFile(
    from,
    to,
    (piece, write) => {
      header(write)
      write(into.subarray(0, sealer.updateInto(piece, into)))
    },
    (write) => {
      header(write)
      write(sealer.final())
    },
  )
}

function openFile(from: string, to: string): number {
  using unsealer = createUnsealer({ key, context })
  const into = Buffer.allocUnsafeSlow(unsealer.updateBytes(2 * pieceBytes))
  return moveFile(
    from,
    to,
    (piece, write) => write(into.subarray(0, unsealer.updateInto(piece, into))),
    (write) => write(unsealer.final()),
  )
}

async function run(mode: string, first: string, second: string): Promise<Timing> {
  switch (mode) {
    case 'seal':
      return await time(Number(first), () => sealStream(Number(first)))
    case 'open':
      return await repeatOpening(Number(first), openStream)
    case 'range':
      return await repeatOpening(Number(first), openByRanges)
    case 'seal-file':
    case 'open-file': {
      let bytes = 0
      const timing = await time(0, () => {
        bytes = mode === 'seal-file' ? sealFile(first, second) : openFile(first, second)
      })
      return { ...timing, bytes }
    }
    default:
      throw new Error(`unknown mode ${mode}`)
  }
}

const [mode = '', first = '', second = ''] = process.argv.slice(2)
process.stdout.write(`${JSON.stringify(await run(mode, first, second))}\n`)
