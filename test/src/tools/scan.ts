/** Finds every place where one of thousands of needles lies: bytes, files, folders, disks, process memory. */

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import type { FileHandle } from 'node:fs/promises'
import { open, readFile, readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import type { Needle } from './needles.ts'
import { needleBytes } from './needles.ts'

/**
 * Only every eighth position is looked at. A needle is known by one 4-byte gram for each of its eight
 * possible alignments, so it is found wherever it lies.
 */
const strideBytes = 8
const gramBytes = 4
const filterBits = 20

const readBytes = 4 * 1024 * 1024

/** A scan that hits more is a leak all the same; the list only has to be readable. */
const hitsMax = 1000

export type Hit = {
  /** Path, or `pid N [heap]`, or the name given for bytes. */
  readonly place: string
  readonly offset: number
  readonly needle: Needle
}

export type ScanReport = {
  /** A scan of nothing finds nothing: check that this is what you expect. */
  bytes: number
  places: number
  hits: Hit[]
}

type Candidate = { needle: Needle; gramOffset: number }

export type Scanner = {
  readonly needleCount: number
  /** Calls `found` for each hit that lies wholly in `bytes`; offsets count from its start. */
  scan(bytes: Uint8Array, found: (offset: number, needle: Needle) => void): void
}

function gramAt(bytes: Uint8Array, offset: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  return view.getInt32(offset, true)
}

/** Spreads a gram over the filter (Knuth, The Art of Computer Programming 3, 6.4: multiplicative). */
function filterIndex(gram: number): number {
  return Math.imul(gram, 0x9e3779b1) >>> (32 - filterBits)
}

/** The gram that says most about a needle, among those that an aligned look can meet. */
function chooseGram(needle: Needle, residue: number): number {
  let best = residue
  let bestDistinct = 0
  for (let offset = residue; offset + gramBytes <= needleBytes; offset += strideBytes) {
    const distinct = new Set(needle.bytes.subarray(offset, offset + gramBytes)).size
    if (distinct > bestDistinct) {
      best = offset
      bestDistinct = distinct
    }
  }
  return best
}

/**
 * Prepares a search for all needles at once. Measured: 1.7 GB/s for 64 needles, 0.6 GB/s for 20,000.
 *
 * @throws AssertionError without needles.
 */
export function makeScanner(needles: readonly Needle[]): Scanner {
  assert.ok(needles.length > 0, 'a scan without needles proves nothing')
  const filter = new Int32Array(2 ** filterBits / 32)
  const candidates = new Map<number, Candidate[]>()
  for (const needle of needles) {
    assert.equal(needle.bytes.length, needleBytes)
    for (let residue = 0; residue < strideBytes; residue++) {
      const gramOffset = chooseGram(needle, residue)
      const gram = gramAt(needle.bytes, gramOffset)
      const index = filterIndex(gram)
      filter[index >>> 5] = (filter[index >>> 5] ?? 0) | (1 << (index & 31))
      const list = candidates.get(gram)
      if (list === undefined) candidates.set(gram, [{ needle, gramOffset }])
      else list.push({ needle, gramOffset })
    }
  }

  function compare(
    bytes: Buffer,
    at: number,
    gram: number,
    found: (offset: number, needle: Needle) => void,
  ): void {
    for (const { needle, gramOffset } of candidates.get(gram) ?? []) {
      const start = at - gramOffset
      if (start < 0 || start + needleBytes > bytes.length) continue
      if (needle.bytes.equals(bytes.subarray(start, start + needleBytes))) found(start, needle)
    }
  }

  return {
    needleCount: needles.length,
    scan(bytes, found) {
      const buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
      // Whole words are read far faster than bytes, but only at addresses divisible by four.
      const skew = (4 - (bytes.byteOffset % 4)) % 4
      const wordCount = Math.max(0, Math.floor((bytes.byteLength - skew) / 4))
      const words =
        wordCount === 0
          ? new Int32Array()
          : new Int32Array(bytes.buffer, bytes.byteOffset + skew, wordCount)
      for (let word = 0; word < words.length; word += strideBytes / 4) {
        const gram = words[word] as number
        const index = Math.imul(gram, 0x9e3779b1) >>> (32 - filterBits)
        if (((filter[index >>> 5] as number) & (1 << (index & 31))) === 0) continue
        compare(buffer, skew + word * 4, gram, found)
      }
    },
  }
}

export function emptyReport(): ScanReport {
  return { bytes: 0, places: 0, hits: [] }
}

/** One report of several. */
export function joinReports(...reports: ScanReport[]): ScanReport {
  const joined = emptyReport()
  for (const report of reports) {
    joined.bytes += report.bytes
    joined.places += report.places
    joined.hits.push(...report.hits.slice(0, hitsMax - joined.hits.length))
  }
  return joined
}

/** For a failure message: where, and which secret. */
export function describeHits(report: ScanReport): string {
  const lines = report.hits
    .slice(0, 20)
    .map(({ place, offset, needle }) => `${needle.source} at ${offset} of ${place}`)
  return `${report.hits.length} needles found in ${report.bytes} bytes\n${lines.join('\n')}`
}

/** Looks through bytes that are at hand, such as an object's content or a listing. */
export function scanBytes(scanner: Scanner, place: string, bytes: Uint8Array): ScanReport {
  const report = emptyReport()
  report.places = 1
  report.bytes = bytes.byteLength
  scanner.scan(bytes, (offset, needle) => {
    if (report.hits.length < hitsMax) report.hits.push({ place, offset, needle })
  })
  return report
}

/**
 * Reads a range piece by piece, so that a needle across two pieces is found too.
 *
 * @param from,to Absolute positions, `to` excluded; `Infinity` reads to the end.
 */
async function scanRange(
  scanner: Scanner,
  place: string,
  handle: FileHandle,
  from: number,
  to: number,
): Promise<ScanReport> {
  const buffer = spareBuffers.pop() ?? Buffer.allocUnsafeSlow(overlap + readBytes)
  try {
    return await scanThrough(buffer, { scanner, place, handle, from, to })
  } finally {
    spareBuffers.push(buffer)
  }
}

const overlap = needleBytes - 1
/** One for each scan that ever ran beside others: made anew for every file, they cost more than scanning. */
const spareBuffers: Buffer[] = []

async function scanThrough(
  buffer: Buffer,
  range: { scanner: Scanner; place: string; handle: FileHandle; from: number; to: number },
): Promise<ScanReport> {
  const { scanner, place, handle, from, to } = range
  const report = emptyReport()
  report.places = 1
  let kept = 0
  let position = from
  while (position < to) {
    const wanted = Math.min(readBytes, to - position)
    const { bytesRead } = await handle.read(buffer, kept, wanted, position)
    if (bytesRead === 0) break
    const filled = kept + bytesRead
    const start = position - kept
    scanner.scan(buffer.subarray(0, filled), (offset, needle) => {
      if (report.hits.length < hitsMax) report.hits.push({ place, offset: start + offset, needle })
    })
    position += bytesRead
    report.bytes += bytesRead
    kept = Math.min(overlap, filled)
    buffer.copy(buffer, 0, filled - kept, filled)
  }
  return report
}

/** Looks through a regular file, a disk image or a block device. */
export async function scanFile(scanner: Scanner, path: string): Promise<ScanReport> {
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
  await using handle = await open(path, flags)
  return await scanRange(scanner, path, handle, 0, Number.POSITIVE_INFINITY)
}

/**
 * Looks through every regular file below a folder (databases with their journals included) and through all
 * names. A file that vanishes while the scan runs is passed over: it is gone.
 */
export async function scanTree(scanner: Scanner, folder: string): Promise<ScanReport> {
  let report = emptyReport()
  const entries = await readdir(folder, { withFileTypes: true })
  for (const entry of entries) {
    const path = join(folder, entry.name)
    report = joinReports(report, scanBytes(scanner, `name of ${path}`, Buffer.from(entry.name)))
    try {
      if (entry.isDirectory()) report = joinReports(report, await scanTree(scanner, path))
      else if (entry.isFile()) report = joinReports(report, await scanFile(scanner, path))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
    }
  }
  return report
}

/** Ranges that the kernel maps into every process and does not let out. */
const kernelRanges = new Set(['[vvar]', '[vvar_vclock]', '[vsyscall]'])

/**
 * Looks through all readable memory of a process: heaps, stacks and mapped files. Needs the same user, or
 * root. Never scan the own process: it holds the needles.
 *
 * @throws Error `ENOENT` or `ESRCH` when there is no such process, `EACCES` or `EPERM` without the right.
 */
export async function scanProcess(scanner: Scanner, pid: number): Promise<ScanReport> {
  assert.notEqual(pid, process.pid, 'this process holds the needles')
  let report = emptyReport()
  const maps = await readFile(`/proc/${pid}/maps`, 'utf8')
  await using memory = await open(`/proc/${pid}/mem`, 'r')
  await using pages = await open(`/proc/${pid}/pagemap`, 'r')
  for (const line of maps.trimEnd().split('\n')) {
    const fields = /^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)$/.exec(line)
    const [, from, to, rights, name = ''] = fields ?? []
    if (from === undefined || to === undefined || rights === undefined) continue
    if (!rights.startsWith('r') || kernelRanges.has(name)) continue
    const place = `pid ${pid} ${name || 'memory'} ${from}`
    const range = { from: Number.parseInt(from, 16), to: Number.parseInt(to, 16) }
    for (const run of await usedPages(pages, range))
      report = joinReports(report, await scanMemory(scanner, place, memory, run))
  }
  return report
}

type MemoryRange = { from: number; to: number }

async function scanMemory(
  scanner: Scanner,
  place: string,
  memory: FileHandle,
  { from, to }: MemoryRange,
): Promise<ScanReport> {
  try {
    return await scanRange(scanner, place, memory, from, to)
  } catch (error) {
    // A range beyond the end of a mapped file, or one that was given back meanwhile.
    const { code = '' } = error as NodeJS.ErrnoException
    if (!['EIO', 'EFAULT'].includes(code)) throw error
    return emptyReport()
  }
}

const pageBytes = 4096
/** Gaps up to this are read along: a few zeros cost less than another run. */
const gapPagesMax = 16

/**
 * The parts of a range that hold anything: a process reserves far more than it ever touches.
 *
 * @see proc(5), /proc/pid/pagemap: 8 bytes a page, bit 63 for present and bit 62 for swapped.
 */
async function usedPages(pages: FileHandle, range: MemoryRange): Promise<MemoryRange[]> {
  const first = range.from / pageBytes
  const entries = Buffer.alloc((range.to / pageBytes - first) * 8)
  const { bytesRead } = await pages.read(entries, 0, entries.length, first * 8)
  const runs: MemoryRange[] = []
  for (let page = 0; page * 8 < bytesRead; page += 1) {
    // Bits 56 to 63 are in the last byte.
    if (((entries[page * 8 + 7] as number) & 0xc0) === 0) continue
    const from = (first + page) * pageBytes
    const run = runs.at(-1)
    if (run !== undefined && from - run.to <= gapPagesMax * pageBytes) run.to = from + pageBytes
    else runs.push({ from, to: from + pageBytes })
  }
  return runs
}

/**
 * The positive control: writes a needle between random bytes into the folder, so that it lies across two
 * reads and on an odd offset, and looks whether a scan of the folder finds it. The file is gone afterwards.
 *
 * @throws AssertionError when the scan does not find it: its silence elsewhere would mean nothing.
 */
export async function proveScanFinds(
  scanner: Scanner,
  needle: Needle,
  folder: string,
): Promise<Hit> {
  const path = join(folder, 'positive-control')
  const offset = readBytes - 13
  const bytes = randomBytes(readBytes + 4096)
  needle.bytes.copy(bytes, offset)
  await writeFile(path, bytes, { flag: 'wx' })
  try {
    const report = await scanTree(scanner, folder)
    const hit = report.hits.find((one) => one.place === path && one.offset === offset)
    assert.ok(hit !== undefined, `the scan of ${folder} does not find what was put there`)
    return hit
  } finally {
    await rm(path)
  }
}
