/**
 * `npm run bench`: sealing and opening beside what the machine allows and what people use today, all in one
 * run. It judges memory, never time: how fast a machine is depends on who else uses it.
 */

import { execFileSync } from 'node:child_process'
import { randomFillSync } from 'node:crypto'
import { closeSync, openSync, rmSync, statfsSync, truncateSync, writeSync } from 'node:fs'
import { availableParallelism, cpus, tmpdir } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'
import type { Contender, Workplace } from './contenders.ts'
import { contenders, hasProgram, memoryCommands, peerPackages, sealingChild } from './contenders.ts'
import { benchGate } from './gate.ts'
import type { Measurement } from './measure.ts'
import { measureCommand } from './measure.ts'
import type { BenchResults, CommandRow, MemoryRow, SpeedRow, Unmeasured } from './results.ts'
import { median, printable } from './results.ts'

const MiB = 1024 * 1024
const GiB = 1024 * MiB

/** The agent's promise, whatever the size of the media. */
const memoryLimitBytes = 160 * MiB
const memorySizes = [64 * MiB, GiB, 4 * GiB]

/** Input, sealed and opened file of one contender at a time, with room for a repository's extras. */
const folderFactor = 4

const usage = `usage: npm run bench -- [--size BYTES] [--rounds N] [--ci] [--json]

  --size BYTES   size of the file that every command seals (default 1 GiB, with --ci 256 MiB)
  --rounds N     rounds, of which the median counts (default 3)
  --ci           fail when anything could not be measured
  --json         print one JSON document

       npm run bench -- gate [--rounds N] [--json]   the gate beside bare tools

example: npm run bench -- --size 67108864 --rounds 1
`

type Options = { sizeBytes: number; rounds: number; ci: boolean; json: boolean }

function readOptions(): Options | string {
  const { values } = parseArgs({
    options: {
      size: { type: 'string' },
      rounds: { type: 'string' },
      ci: { type: 'boolean', default: false },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  if (values.help) return ''
  const sizeBytes = Number(values.size ?? (values.ci ? 256 * MiB : GiB))
  const rounds = Number(values.rounds ?? 3)
  if (!Number.isInteger(sizeBytes) || sizeBytes < MiB || sizeBytes > 64 * GiB) {
    return '--size takes bytes, from 1048576 (1 MiB) to 68719476736 (64 GiB)'
  }
  if (!Number.isInteger(rounds) || rounds < 1 || rounds > 100) return '--rounds takes 1 to 100'
  return { sizeBytes, rounds, ci: values.ci, json: values.json }
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001B[K${text}`)
}

function message(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}

/** Memory where there is room for it, so that no disk is measured; else the system's temporary folder. */
function chooseFolder(neededBytes: number): string {
  const inMemory = '/dev/shm'
  const freeBytes = (folder: string): number => {
    const { bavail, bsize } = statfsSync(folder)
    return bavail * bsize
  }
  for (const folder of [inMemory, tmpdir()]) {
    if (freeBytes(folder) > neededBytes) return folder
  }
  throw new Error(
    `neither ${inMemory} nor ${tmpdir()} has ${Math.ceil(neededBytes / MiB)} MiB free: use a smaller --size`,
  )
}

/** Random, so that no tool gains by compressing or by finding the same piece twice. */
function writeRandomFile(path: string, bytes: number): void {
  const piece = Buffer.allocUnsafe(4 * MiB)
  const fd = openSync(path, 'wx', 0o600)
  for (let done = 0; done < bytes; done += piece.length) {
    randomFillSync(piece)
    writeSync(fd, piece, 0, Math.min(piece.length, bytes - done))
  }
  closeSync(fd)
}

type Speed = { bytesPerSecond: number; bytesPerCpuSecond?: number }

/** OpenSSL's own loop over one buffer of the size of a chunk: nothing on this machine seals faster. */
async function measureOpenssl(): Promise<Speed> {
  const args = ['speed', '-mr', '-elapsed', '-seconds', '1', '-bytes', '16384']
  const { stdout } = await measureCommand({
    program: 'openssl',
    args: [...args, '-evp', 'aes-256-gcm'],
  })
  const [, speed] = /^\+F:.*:([\d.]+)$/m.exec(stdout) ?? []
  if (speed === undefined) throw new Error('openssl speed printed no result')
  return { bytesPerSecond: Number(speed) }
}

async function measureLibrary(mode: 'seal' | 'open' | 'range', bytes: number): Promise<Speed> {
  const { stdout } = await measureCommand({
    program: process.execPath,
    args: [sealingChild, mode, String(bytes)],
  })
  const timing = JSON.parse(stdout) as { bytes: number; ms: number; cpuMs: number }
  return {
    bytesPerSecond: (timing.bytes / timing.ms) * 1000,
    bytesPerCpuSecond: (timing.bytes / timing.cpuMs) * 1000,
  }
}

async function measureSpeed(
  { sizeBytes, rounds }: Options,
  unmeasured: Unmeasured[],
): Promise<SpeedRow[]> {
  const runs: { name: string; kind: SpeedRow['kind']; run: () => Promise<Speed> }[] = [
    { name: 'openssl speed aes-256-gcm', kind: 'limit', run: measureOpenssl },
    { name: 'sluice seal', kind: 'ours', run: () => measureLibrary('seal', sizeBytes) },
    { name: 'sluice open', kind: 'ours', run: () => measureLibrary('open', sizeBytes) },
    { name: 'sluice open by ranges', kind: 'ours', run: () => measureLibrary('range', sizeBytes) },
  ]
  const samples = new Map<string, Speed[]>()
  for (let round = 1; round <= rounds; round++) {
    for (const { name, run } of runs) {
      if (unmeasured.some((one) => one.name === name)) continue
      progress(`round ${round} of ${rounds}: ${name}`)
      try {
        samples.set(name, [...(samples.get(name) ?? []), await run()])
      } catch (error) {
        unmeasured.push({ name, reason: message(error) })
      }
    }
  }
  return runs.flatMap(({ name, kind }) => {
    const all = samples.get(name) ?? []
    if (all.length < rounds) return []
    const cpu = all.flatMap(({ bytesPerCpuSecond }) => bytesPerCpuSecond ?? [])
    return {
      name,
      kind,
      bytesPerSecond: median(all.map(({ bytesPerSecond }) => bytesPerSecond)),
      ...(cpu.length === 0 ? {} : { bytesPerCpuSecond: median(cpu) }),
      samples: all.map(({ bytesPerSecond }) => bytesPerSecond),
    }
  })
}

type Round = { seal: Measurement; open: Measurement }

/** One round of one contender; its files are gone afterwards, so that the next has all the memory. */
async function runRound(
  contender: Contender,
  place: Workplace,
  { compare }: { compare: boolean },
): Promise<Round> {
  contender.prepare(place)
  const seal = await measureCommand(contender.seal(place))
  const open = await measureCommand(contender.open(place))
  // A tool that gives back something else was not measured at all.
  if (compare) execFileSync('cmp', [place.input, contender.opened(place)])
  return { seal, open }
}

function toRow(
  { name, kind }: Contender,
  phase: CommandRow['phase'],
  measurements: Measurement[],
  sizeBytes: number,
): CommandRow {
  const ms = median(measurements.map((one) => one.ms))
  return {
    name,
    kind,
    phase,
    ms,
    cpuMs: median(measurements.map((one) => one.cpuMs)),
    bytesPerSecond: (sizeBytes / ms) * 1000,
    peakBytes: Math.max(...measurements.map((one) => one.peakBytes)),
    samplesMs: measurements.map((one) => one.ms),
  }
}

async function measureCommands(
  { sizeBytes, rounds }: Options,
  place: Workplace,
  unmeasured: Unmeasured[],
): Promise<CommandRow[]> {
  const measured = new Map<Contender, Round[]>()
  for (const contender of contenders) {
    const reason = contender.missing()
    if (reason === undefined) measured.set(contender, [])
    else unmeasured.push({ name: contender.name, reason })
  }
  // Round by round, so that a busy moment of the machine meets all of them alike.
  for (let round = 1; round <= rounds; round++) {
    for (const [contender, all] of measured) {
      progress(`round ${round} of ${rounds}: ${contender.name}`)
      try {
        all.push(await runRound(contender, place, { compare: round === 1 }))
      } catch (error) {
        measured.delete(contender)
        unmeasured.push({ name: contender.name, reason: message(error) })
      }
      rmSync(contender.folder(place), { recursive: true, force: true })
    }
  }
  return [...measured].flatMap(([contender, all]) => [
    toRow(
      contender,
      'seal',
      all.map(({ seal }) => seal),
      sizeBytes,
    ),
    toRow(
      contender,
      'open',
      all.map(({ open }) => open),
      sizeBytes,
    ),
  ])
}

async function measureMemory(folder: string, unmeasured: Unmeasured[]): Promise<MemoryRow[]> {
  const rows: MemoryRow[] = []
  for (const sizeBytes of memorySizes) {
    const plain = join(folder, 'plain')
    const sealed = join(folder, 'sealed')
    // Sparse: it reads as zeros and takes no room.
    closeSync(openSync(plain, 'w', 0o600))
    truncateSync(plain, sizeBytes)
    const commands = memoryCommands(plain, sealed)
    for (const phase of ['seal', 'open'] as const) {
      const name = `memory to ${phase} ${sizeBytes / MiB} MiB`
      progress(name)
      try {
        const { peakBytes } = await measureCommand(commands[phase])
        rows.push({ sizeBytes, phase, peakBytes, withinLimit: peakBytes <= memoryLimitBytes })
      } catch (error) {
        unmeasured.push({ name, reason: message(error) })
      }
    }
    rmSync(plain, { force: true })
    rmSync(sealed, { force: true })
  }
  return rows
}

async function bench(options: Options): Promise<BenchResults> {
  const { sizeBytes, rounds } = options
  const memoryBytes = Math.max(...memorySizes) * 1.01
  const parent = chooseFolder(Math.max(sizeBytes * folderFactor, memoryBytes))
  await using folder = await makeTemporaryDirectory('bench', parent)
  const unmeasured: Unmeasured[] = []
  const place = { folder: folder.path, input: join(folder.path, 'input') }
  progress('writing the input')
  writeRandomFile(place.input, sizeBytes)
  const commands = await measureCommands(options, place, unmeasured)
  rmSync(place.input)
  const speed = await measureSpeed(options, unmeasured)
  const memory = await measureMemory(folder.path, unmeasured)
  progress('')
  return {
    machine: {
      cpu: cpus()[0]?.model ?? 'unknown processor',
      cores: availableParallelism(),
      node: process.versions.node,
      openssl: hasProgram('openssl')
        ? execFileSync('openssl', ['version'], { encoding: 'utf8' }).trim()
        : 'no openssl',
      folder: parent,
    },
    sizeBytes,
    rounds,
    speed,
    commands,
    memoryLimitBytes,
    memory,
    unmeasured,
  }
}

async function main(): Promise<number> {
  let options: Options | string
  try {
    options = readOptions()
  } catch (error) {
    options = message(error)
  }
  if (typeof options === 'string') {
    process.stderr.write(
      options === '' ? usage : `bench: ${options}\n  see npm run bench -- --help\n`,
    )
    return options === '' ? 0 : 2
  }
  let results: BenchResults
  try {
    results = await bench(options)
  } catch (error) {
    process.stderr.write(`bench: ${message(error)}\n`)
    return 1
  }
  process.stdout.write(
    options.json ? `${JSON.stringify(results, undefined, 2)}\n` : printable(results),
  )
  if (results.memory.some(({ withinLimit }) => !withinLimit)) {
    process.stderr.write('bench: more memory than promised\n')
    return 1
  }
  if (results.unmeasured.length > 0 && options.ci) {
    process.stderr.write(`bench: not everything was measured; apt-get install ${peerPackages}\n`)
    return 1
  }
  return 0
}

const [subject, ...rest] = process.argv.slice(2)
process.exitCode = subject === 'gate' ? await benchGate(rest) : await main()
