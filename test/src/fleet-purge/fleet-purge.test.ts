/** A purge reaches a fleet of two hundred, who is away included, and what was really held is gone. */

import { it } from 'node:test'

import { printable, provePurge } from './prove-purge.ts'

it(
  'a purge ends what a fleet holds, and each agent signs for it',
  { timeout: 110_000 },
  async (t) => {
    const figures = await provePurge({ simulated: 200, away: 10, real: { captures: 2, nodes: 1 } })
    t.diagnostic(printable([figures]))
  },
)
