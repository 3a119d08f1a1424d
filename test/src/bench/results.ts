/** What the bench found, as one document and as a page to read. */

export type SpeedRow = {
  name: string
  kind: 'ours' | 'limit' | 'peer'
  /** Median over the rounds. */
  bytesPerSecond: number
  /** The same per second of processor time; absent where it is not known. */
  bytesPerCpuSecond?: number
  samples: number[]
}

export type CommandRow = {
  name: string
  kind: 'ours' | 'limit' | 'peer'
  phase: 'seal' | 'open'
  /** Medians over the rounds. */
  ms: number
  cpuMs: number
  bytesPerSecond: number
  /** The highest of all rounds. */
  peakBytes: number
  samplesMs: number[]
}

export type MemoryRow = {
  sizeBytes: number
  phase: 'seal' | 'open'
  peakBytes: number
  withinLimit: boolean
}

export type Unmeasured = { name: string; reason: string }

export type BenchResults = {
  machine: { cpu: string; cores: number; node: string; openssl: string; folder: string }
  sizeBytes: number
  rounds: number
  speed: SpeedRow[]
  commands: CommandRow[]
  memoryLimitBytes: number
  memory: MemoryRow[]
  unmeasured: Unmeasured[]
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b)
  const middle = Math.floor(sorted.length / 2)
  const upper = sorted[middle] ?? Number.NaN
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? Number.NaN) + upper) / 2
}

const MiB = 1024 * 1024

function gigabytes(bytesPerSecond: number | undefined): string {
  return bytesPerSecond === undefined ? '' : (bytesPerSecond / 1e9).toFixed(2)
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / MiB)}`
}

/** Columns as wide as their widest cell; the first one to the left, numbers to the right. */
function layOut(rows: string[][]): string[] {
  const widths = rows[0]?.map((_, column) =>
    Math.max(...rows.map((row) => row[column]?.length ?? 0)),
  )
  return rows.map((row) =>
    row
      .map((cell, column) => {
        const width = widths?.[column] ?? 0
        return column === 0 ? cell.padEnd(width) : cell.padStart(width)
      })
      .join('  ')
      .trimEnd(),
  )
}

function speedTable({ speed }: BenchResults): string[] {
  const limit = speed.find(({ kind }) => kind === 'limit')?.bytesPerSecond
  const rows = speed.map((row) => [
    row.name,
    gigabytes(row.bytesPerSecond),
    gigabytes(row.bytesPerCpuSecond),
    limit === undefined ? '' : `${Math.round((100 * row.bytesPerSecond) / limit)} %`,
  ])
  return layOut([['in memory, one process', 'GB/s', 'GB/s a core', 'of openssl'], ...rows])
}

/** How many times as long as ours a row took; below 1 it was faster. */
function timesOurs(row: CommandRow, { commands }: BenchResults): string {
  const ours = commands.find(({ kind, phase }) => kind === 'ours' && phase === row.phase)
  if (ours === undefined || row === ours) return ''
  return `${(row.ms / ours.ms).toFixed(2)} x`
}

function commandTable(results: BenchResults, phase: 'seal' | 'open'): string[] {
  const rows = results.commands
    .filter((row) => row.phase === phase)
    .map((row) => [
      row.name,
      (row.ms / 1000).toFixed(2),
      gigabytes(row.bytesPerSecond),
      (row.cpuMs / 1000).toFixed(2),
      mebibytes(row.peakBytes),
      timesOurs(row, results),
    ])
  const title = `${phase} a file of ${mebibytes(results.sizeBytes)} MiB`
  return layOut([[title, 's', 'GB/s', 'CPU s', 'peak MiB', 'time of ours'], ...rows])
}

function memoryTable({ memory, memoryLimitBytes }: BenchResults): string[] {
  const rows = memory.map((row) => [
    `${row.phase} ${mebibytes(row.sizeBytes)} MiB`,
    mebibytes(row.peakBytes),
    row.withinLimit ? 'ok' : 'TOO MUCH',
  ])
  return layOut([[`memory (limit ${mebibytes(memoryLimitBytes)} MiB)`, 'peak MiB', ''], ...rows])
}

/** A page for people. */
export function printable(results: BenchResults): string {
  const { machine, rounds } = results
  const lines = [
    `${machine.cpu}, ${machine.cores} cores; Node ${machine.node}; ${machine.openssl}`,
    `files in ${machine.folder}; medians of ${rounds} interleaved rounds`,
    '',
    ...speedTable(results),
    '',
    ...commandTable(results, 'seal'),
    '',
    ...commandTable(results, 'open'),
    '',
    ...memoryTable(results),
    ...(results.unmeasured.length === 0 ? [] : ['', 'not measured']),
    ...results.unmeasured.map(({ name, reason }) => `  ${name}: ${reason}`),
  ]
  return `${lines.join('\n')}\n`
}
