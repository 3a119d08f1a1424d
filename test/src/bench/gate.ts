/** `npm run bench -- gate`: the gate beside bare tools, round by round in one run. */

import { cpSync } from 'node:fs'
import { availableParallelism, cpus } from 'node:os'
import { join } from 'node:path'
import { parseArgs } from 'node:util'

import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'
import { filmRaces } from './film-races.ts'
import { emptyFolder, makeFiles, races, sluice } from './gate-races.ts'
import type { Race } from './gate-races.ts'
import { measureCommand } from './measure.ts'
import type { Measurement } from './measure.ts'
import { median } from './results.ts'
import type { Unmeasured } from './results.ts'

const MiB = 1024 * 1024

const gateUsage = `usage: npm run bench -- gate [--rounds N] [--json]

  --rounds N   rounds, of which the median counts (default 3)
  --json       print one JSON document
`

type Row = {
  race: string
  name: string
  kind: 'ours' | 'peer'
  files: number
  /** Medians over the rounds, start of the program included. */
  ms: number
  cpuMs: number
  filesPerSecond: number
  peakBytes: number
}

type GateResults = {
  machine: { cpu: string; cores: number; node: string }
  rounds: number
  rows: Row[]
  promises: { race: string; text: string; holds: boolean | undefined }[]
  unmeasured: Unmeasured[]
}

/** @returns The exit code: a promise that is broken is reported and does not fail, as machines differ. */
export async function benchGate(args: readonly string[]): Promise<number> {
  const { values } = parseArgs({
    args: [...args],
    options: {
      rounds: { type: 'string', default: '3' },
      json: { type: 'boolean', default: false },
      help: { type: 'boolean', default: false },
    },
  })
  const rounds = Number(values.rounds)
  if (values.help || !Number.isInteger(rounds) || rounds < 1 || rounds > 100) {
    process.stderr.write(gateUsage)
    return values.help ? 0 : 2
  }
  const results: GateResults = {
    machine: {
      cpu: cpus()[0]?.model ?? 'unknown processor',
      cores: availableParallelism(),
      node: process.versions.node,
    },
    rounds,
    rows: [],
    promises: [],
    unmeasured: [],
  }
  await using folder = await makeTemporaryDirectory('bench-gate')
  for (const [place, race] of [...races, ...filmRaces(sluice)].entries()) {
    await runRace(race, join(folder.path, String(place)), results)
  }
  process.stdout.write(values.json ? `${JSON.stringify(results, undefined, 2)}\n` : page(results))
  return 0
}

async function runRace(race: Race, folder: string, results: GateResults): Promise<void> {
  const originals = `${folder}-originals`
  const paths = await makeFiles(race, originals)
  const measured = new Map<string, Measurement[]>()
  for (let round = 0; round < results.rounds; round++) {
    for (const { name, missing, command } of race.runners) {
      const reason = missing()
      if (reason !== undefined) {
        if (round === 0) results.unmeasured.push({ name: `${race.name}: ${name}`, reason })
        continue
      }
      // A copy of its own, as some tools write in place.
      const input = emptyFolder(`${folder}-in`)
      cpSync(originals, input, { recursive: true })
      const inputs = paths.map((path) => path.replace(originals, input))
      const files = { folder: input, paths: inputs }
      const one = await measureCommand(command(files, emptyFolder(`${folder}-out`)))
      measured.set(name, [...(measured.get(name) ?? []), one])
    }
  }
  for (const { name, kind } of race.runners) {
    const all = measured.get(name)
    if (all === undefined) continue
    const ms = median(all.map((one) => one.ms))
    results.rows.push({
      race: race.name,
      name,
      kind,
      files: race.count,
      ms,
      cpuMs: median(all.map((one) => one.cpuMs)),
      filesPerSecond: (race.count / ms) * 1000,
      peakBytes: Math.max(...all.map((one) => one.peakBytes)),
    })
  }
  const msOf = (runner: string) =>
    results.rows.find((row) => row.race === race.name && row.name === runner)?.ms
  const { text, holds } = race.promise
  results.promises.push({ race: race.name, text, holds: holds(msOf) })
}

function page({ machine, rounds, rows, promises, unmeasured }: GateResults): string {
  const lines = [`${machine.cpu}, ${machine.cores} cores, Node ${machine.node}, ${rounds} rounds`]
  let race = ''
  for (const row of rows) {
    if (row.race !== race) lines.push('', `${row.race}, ${row.files} files`)
    race = row.race
    const cells = [
      `  ${row.name.padEnd(24)}`,
      `${row.filesPerSecond.toFixed(1).padStart(8)} files/s`,
      `${(row.ms / row.files).toFixed(0).padStart(6)} ms a file`,
      `${(row.cpuMs / 1000).toFixed(1).padStart(7)} s CPU`,
      `${Math.round(row.peakBytes / MiB)} MiB`.padStart(10),
    ]
    lines.push(cells.join(''))
  }
  lines.push('')
  for (const promise of promises) {
    const verdict =
      promise.holds === undefined ? 'not measured' : promise.holds ? 'holds' : 'DOES NOT HOLD'
    lines.push(`${promise.race}: ${promise.text}: ${verdict}`)
  }
  for (const { name, reason } of unmeasured) lines.push(`not measured: ${name}: ${reason}`)
  return `${lines.join('\n')}\n`
}
