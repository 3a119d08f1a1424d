/** Finds out whether memory of this host can reach a swap device, and refuses plaintext where it can. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { canSwap, type SwapFacts, swapPossible } from '@sluice/protocol/process/swap'
import type { MemoryLevel } from '@sluice/protocol/receipt'
import { isMounted, mountMedia, unmountMedia, type DirectoryKind } from './media-mount.ts'

/** What was found on the host. */
export type MemoryFacts = SwapFacts & {
  /** File systems in memory that could be mounted here. */
  mounts: readonly DirectoryKind[]
}

export type MemoryPlan = {
  level: MemoryLevel
  /** Where a directory of media may live, when one may at all. */
  directory: DirectoryKind | undefined
}

/**
 * Decides where plaintext may live. A mount that cannot swap protects the files in it, but not the
 * memory of the processes that write and read them; so with swap on, only the cgroup's bound counts
 * for a node, and the mount is what a directory needs in addition.
 *
 * @throws SluiceError `node.swap_possible` unless swap is allowed by name.
 */
export function planMemory(facts: MemoryFacts, options: { allowSwap: boolean }): MemoryPlan {
  const level = levelOf(facts, options)
  const order: DirectoryKind[] =
    level === 'swap-allowed' ? ['tmpfs-noswap', 'ramfs'] : ['tmpfs-noswap', 'tmpfs', 'ramfs']
  return { level, directory: order.find((kind) => facts.mounts.includes(kind)) }
}

function levelOf(facts: MemoryFacts, options: { allowSwap: boolean }): MemoryLevel {
  if (facts.areas.length === 0) return 'no-swap'
  if (!canSwap(facts)) return 'cgroup-swap-max-0'
  if (options.allowSwap) return 'swap-allowed'
  throw swapPossible(facts.areas.join(' '))
}

/**
 * Tries which file systems in memory can be mounted, by mounting each once.
 *
 * @param runtimeDirectory Made with mode 0700 when it is missing.
 */
export async function probeMounts(runtimeDirectory: string): Promise<DirectoryKind[]> {
  if (process.geteuid?.() !== 0) return []
  await mkdir(runtimeDirectory, { recursive: true, mode: 0o700 })
  const found: DirectoryKind[] = []
  for (const kind of ['tmpfs-noswap', 'tmpfs', 'ramfs'] as const) {
    const folder = await mkdtemp(path.join(runtimeDirectory, 'probe-'))
    try {
      await mountMedia({ kind, folder, bytesMax: 64 * 1024, filesMax: 4 })
      found.push(kind)
    } catch (error) {
      // Refused by the kernel: this kind is simply not to be had here.
      if (!(error instanceof SluiceError)) throw error
    } finally {
      if (isMounted(folder)) await unmountMedia(folder)
      await rm(folder, { recursive: true, force: true })
    }
  }
  return found
}
