/**
 * Purges of fleets of two hundred, a thousand and five thousand, twenty of the thousand being real processes with
 * real spools and leases; and one of real processes of which many die on the way. How fast it goes is printed beside the bare broadcast, and is never a verdict.
 */

import { describe, it } from 'node:test'

import { printable, provePurge } from './prove-purge.ts'
import type { FleetSize } from './prove-purge.ts'

const sizes: FleetSize[] = [
  { simulated: 200, away: 10, real: { captures: 2, nodes: 1 } },
  { simulated: 980, away: 20, real: { captures: 10, nodes: 10 } },
  { simulated: 20, away: 2, real: { captures: 12, nodes: 10 }, deaths: true },
  { simulated: 5000, away: 100, real: { captures: 3, nodes: 1 } },
]

describe('a purge of a large fleet', { timeout: 1_800_000 }, () => {
  for (const size of sizes)
    it(`reaches ${size.simulated} agents and those that hold something${size.deaths === true ? ', and die' : ''}`, async (t) => {
      t.diagnostic(printable([await provePurge(size)]))
    })
})
