/** Looks for traces of media and keys in everything the demo's processes ever wrote, and in their memory. */

import { readFile, readdir } from 'node:fs/promises'
import { join } from 'node:path'

import { claimKey } from '@sluice/control-plane/storage/claim'

import type { Fleet, FleetAgent } from '../tools/fleet.ts'
import type { Needle } from '../tools/needles.ts'
import {
  describeHits,
  emptyReport,
  joinReports,
  makeScanner,
  proveScanFinds,
  scanBytes,
  scanProcess,
  scanTree,
} from '../tools/scan.ts'
import type { ScanReport } from '../tools/scan.ts'

/** Files that would be there if anything were left, by what they would be. */
export type Leftovers = { spoolFiles: number; objectFiles: number; nodeFiles: number }

export type TraceReport = {
  needles: number
  /** Data, state, spools, results, logs and temporary files of all processes lie below it. */
  folder: string
  /** Every file below the fleet's folder and every name there, and the logs. */
  files: { places: number; bytes: number; hits: number }
  /** Memory of the processes that still run; undefined where this user may not read it. */
  memory: { processes: number; bytes: number; hits: number } | undefined
  /** A needle that was put there was found, at the place where it was put. */
  positiveControl: boolean
  /** Where something was found; empty when all is well. */
  found: string
}

/**
 * Scans files and logs of a fleet, and the memory of its processes.
 *
 * @throws AssertionError when the positive control is not found: silence would then mean nothing.
 */
export async function lookForTraces(
  fleet: Fleet,
  needles: readonly Needle[],
): Promise<TraceReport> {
  const scanner = makeScanner(needles)
  const [planted] = needles
  if (planted === undefined) throw new Error('nothing to look for')
  await proveScanFinds(scanner, planted, join(fleet.root, 'tmp'))
  let files = await scanTree(scanner, fleet.root)
  for (const daemon of [fleet.controlPlane, ...fleet.agents])
    files = joinReports(
      files,
      scanBytes(scanner, `log of ${daemon.name}`, Buffer.from(daemon.output)),
    )
  const pids = await processesOf(fleet)
  const memory = await scanMemory(pids, (pid) => scanProcess(scanner, pid))
  const hits = joinReports(files, memory ?? emptyReport())
  return {
    needles: scanner.needleCount,
    folder: fleet.root,
    files: countsOf(files),
    memory: memory && {
      processes: pids.length,
      bytes: memory.bytes,
      hits: memory.hits.length,
    },
    positiveControl: true,
    found: hits.hits.length === 0 ? '' : describeHits(hits),
  }
}

/** Counts what lies in the spool of the capture host, in the store's directory, and on the node. */
export async function countLeftovers(fleet: Fleet): Promise<Leftovers> {
  const folders = (role: FleetAgent['role'], name: string) =>
    fleet.agents
      .filter((agent) => agent.role === role)
      .map((agent) => join(agent.stateDirectory, name))
  return {
    spoolFiles: await countFiles(folders('capture', 'spool')),
    objectFiles: await countFiles([join(fleet.controlPlane.dataDirectory, 'objects')]),
    nodeFiles: await countFiles(folders('gpu', 'run')),
  }
}

/** The mark that says whose the store is stays; it is of no job. */
async function countFiles(folders: readonly string[]): Promise<number> {
  let files = 0
  for (const folder of folders) {
    const entries = await readdir(folder, { recursive: true, withFileTypes: true })
    files += entries.filter((entry) => !entry.isDirectory() && entry.name !== claimKey).length
  }
  return files
}

function countsOf(report: ScanReport): TraceReport['files'] {
  return { places: report.places, bytes: report.bytes, hits: report.hits.length }
}

async function scanMemory(
  pids: readonly number[],
  scan: (pid: number) => Promise<ScanReport>,
): Promise<ScanReport | undefined> {
  let report = emptyReport()
  for (const pid of pids) {
    try {
      report = joinReports(report, await scan(pid))
    } catch (error) {
      const { code = '' } = error as NodeJS.ErrnoException
      if (code === 'EPERM' || code === 'EACCES') return undefined
      // It ended meanwhile, and its memory with it.
      if (code !== 'ENOENT' && code !== 'ESRCH') throw error
    }
  }
  return report
}

/** The daemons that run, and everything they started that still runs. */
async function processesOf(fleet: Fleet): Promise<number[]> {
  const daemons = [fleet.controlPlane, ...fleet.agents].filter((daemon) => daemon.isRunning)
  const parents = new Map<number, number>()
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const parent = await parentOf(Number(name))
    if (parent !== undefined) parents.set(Number(name), parent)
  }
  const all = new Set(daemons.map((daemon) => daemon.pid))
  for (let before = 0; before < all.size;) {
    before = all.size
    for (const [pid, parent] of parents) if (all.has(parent)) all.add(pid)
  }
  return [...all]
}

/** @see proc(5), /proc/pid/stat: the fields after the command's closing bracket are state and parent. */
async function parentOf(pid: number): Promise<number | undefined> {
  try {
    const text = await readFile(`/proc/${pid}/stat`, 'latin1')
    return Number(text.slice(text.lastIndexOf(')') + 2).split(' ')[1])
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ESRCH') return undefined
    throw error
  }
}
