/** Decides where a revocation counts, how its target is written down, and when old grants are over. */
import type { RevocationTarget } from '@sluice/protocol/api-revocations'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

/** The target as one word, which is the same for the same target. */
export function targetText(target: RevocationTarget): string {
  if (target.kind === 'agent') return target.agentId
  if (target.kind === 'label') return `${target.key}=${target.value}`
  return target.kind === 'grants' ? '*' : target.tokenId
}

/**
 * The site on which somebody revokes what belongs to no single site.
 *
 * @throws SluiceError `access.forbidden` for somebody with several sites but not all.
 */
export function siteOfWhole(sites: 'all' | readonly string[]): string {
  if (sites === 'all') return '*'
  const [only, ...more] = sites
  if (only !== undefined && more.length === 0) return only
  throw new SluiceError('access.forbidden', 'this would have to count on all sites', {
    hint: 'It takes the role security on all sites (`*`), or on just one.',
  })
}

/**
 * The instant at which every grant given out before `atMs` is over by itself. Its life is counted by
 * the clock of the store, which may be off by as much as an agent's.
 */
export function grantsOverAtMs(atMs: number): number {
  return atMs + Math.max(limits.uploadGrantMs, limits.readGrantMs) + limits.clockSkewMsMax
}
