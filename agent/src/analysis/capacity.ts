/** What this node can take: its analysers, its room, and how it keeps plaintext in memory. */
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { NodeOffer } from '@sluice/protocol/messages'
import { readSwapFacts } from '@sluice/protocol/process/swap'
import type { CommandOf } from '../control-link.ts'
import type { AnalyserConfig } from './analyser.ts'
import type { AnalysisParts } from './analysis-parts.ts'
import { type MemoryPlan, planMemory, probeMounts } from './memory-level.ts'

export type Fit = { analyser: AnalyserConfig; memory: MemoryPlan }

export type Capacity = {
  /** What this node can do now; no lease at all while swap came on. */
  offer(): NodeOffer
  /** @throws SluiceError why it cannot take this lease. */
  requireFit(offer: CommandOf<'lease.offer'>): Fit
}

/**
 * @throws SluiceError `node.swap_possible`; `config.invalid` when an analyser wants its media as a
 * directory and this host cannot mount one in memory.
 */
export async function createCapacity(parts: AnalysisParts): Promise<Capacity> {
  const { analysers, allowSwap, isolation, live } = parts
  const mounts = await probeMounts(parts.runtimeDirectory)
  const planNow = (): MemoryPlan => planMemory({ ...readSwapFacts(), mounts }, { allowSwap })
  let lastPlan = planNow()
  requireDirectories(analysers, lastPlan)

  return {
    offer() {
      let { leasesMax } = parts
      try {
        lastPlan = planNow()
      } catch (error) {
        if (!isSluiceError(error, 'node.swap_possible')) throw error
        leasesMax = 0
      }
      const named = analysers.map(({ name, version }) => ({ name, version }))
      return { analysers: named, leasesMax, memoryLevel: lastPlan.level, isolation }
    },
    requireFit(offer) {
      const analyser = analysers.find(({ name }) => name === offer.analyser)
      if (analyser === undefined) {
        throw new SluiceError('analyser.unknown', `This node has no analyser ${offer.analyser}.`)
      }
      if (parts.ending.begun || live.size >= parts.leasesMax) {
        throw declined('This node has no room for another lease.', 'later')
      }
      if (analyser.input === 'directory' && offer.sealedBytes > analyser.mediaBytesMax) {
        throw declined('The media of this job do not fit into memory of this node.', 'never')
      }
      const memory = planNow()
      lastPlan = memory
      requireDirectories([analyser], memory)
      return { analyser, memory }
    },
  }
}

function requireDirectories(analysers: readonly AnalyserConfig[], plan: MemoryPlan): void {
  const wants = analysers.find(({ input }) => input === 'directory')
  if (wants === undefined || plan.directory !== undefined) return
  throw new SluiceError(
    'config.invalid',
    `The analyser ${wants.name} wants its media as a directory, and none can be had in memory.`,
    { hint: 'Run the agent as root, or set "input": "stdin" for that analyser.' },
  )
}

function declined(message: string, retry: 'never' | 'later'): SluiceError {
  return new SluiceError('lease.declined', message, { retry })
}
