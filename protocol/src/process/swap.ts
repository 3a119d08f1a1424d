/** Finds out whether this process's memory can reach a swap device, and refuses to start where it can. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { SluiceError } from '../errors.ts'
import type { Log } from './log.ts'

/** What the host says about swap. */
export type SwapFacts = {
  /** Active swap devices and files by name, zram among them. */
  areas: readonly string[]
  /** This process's cgroup v2, or one above it, may not swap at all (`memory.swap.max` is 0). */
  cgroupCannotSwap: boolean
}

/** Text of a file of the kernel; undefined where there is none. An argument so that tests can play any host. */
export type ReadKernelText = (path: string) => string | undefined

/** Reads swap and cgroup anew, so that swap switched on later is noticed. */
export function readSwapFacts(read: ReadKernelText = thisHost): SwapFacts {
  // proc(5): a heading, then one line per area that begins with its path.
  const lines = (read('/proc/swaps') ?? '').trim().split('\n').slice(1)
  // systemd mounts cgroup v2 at `unified` where v1 is in use too.
  const root =
    read('/sys/fs/cgroup/cgroup.controllers') === undefined
      ? '/sys/fs/cgroup/unified'
      : '/sys/fs/cgroup'
  const folders = cgroupFolders(read('/proc/self/cgroup') ?? '', root)
  return {
    areas: lines.map((line) => line.split(/\s+/)[0] ?? '').filter((area) => area !== ''),
    cgroupCannotSwap: folders.some(
      (folder) => read(path.join(folder, 'memory.swap.max'))?.trim() === '0',
    ),
  }
}

/**
 * The cgroup v2 folders that bound a process, its own first.
 *
 * @param procCgroup Text of `/proc/self/cgroup`; the line of cgroup v2 begins with `0::`.
 * @param root Where cgroup v2 is mounted.
 */
export function cgroupFolders(procCgroup: string, root: string): string[] {
  const own = /^0::(\/.*)$/m.exec(procCgroup)?.[1]
  if (own === undefined || own.includes('..')) return []
  const names = own.split('/').filter(Boolean)
  return names.map((_, index) => path.join(root, ...names.slice(0, names.length - index)))
}

/** Whether memory of this process can be written to a disk. */
export function canSwap(facts: SwapFacts): boolean {
  return facts.areas.length > 0 && !facts.cgroupCannotSwap
}

/**
 * Refuses a host on which memory of this process may be written to a disk.
 *
 * @param options.allowSwap Set by name in the configuration: it is then accepted and said aloud.
 * @throws SluiceError `node.swap_possible`.
 */
export function checkSwap(
  options: { allowSwap: boolean; log: Log },
  facts: SwapFacts = readSwapFacts(),
): void {
  if (!canSwap(facts)) return
  const areas = facts.areas.join(' ')
  if (!options.allowSwap) throw swapPossible(areas)
  options.log('warning', 'host.swap_allowed', { areas })
}

/** The one refusal of a host that can swap. */
export function swapPossible(areas: string): SluiceError {
  return new SluiceError('node.swap_possible', `memory can be written to swap (${areas})`, {
    retry: 'later',
    hint: 'Switch swap off (swapoff -a, /etc/fstab), set MemorySwapMax=0 in the systemd unit, or set "allowSwap": true by name.',
  })
}

function thisHost(file: string): string | undefined {
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
}
