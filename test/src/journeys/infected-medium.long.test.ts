/** A watched folder, a real clamd and a real control plane: what is infected stays, is told, and costs nothing else. */

import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdir, readFile, readdir, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'

import { marker, needClamd, startClamd } from '../tools/clamd.ts'
import { startFleet } from '../tools/fleet.ts'
import type { FleetAgent } from '../tools/fleet.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import { spoolOf, waitMsMax } from '../tools/journey.ts'
import { makePhoto } from '../tools/small-media.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'

type Status = {
  quarantine: { sha256: string; finding: string }[]
  submissions: { stage: string; jobId?: string; problem?: { code: string }; files: string[] }[]
}

const statusOf = async (agent: FleetAgent) => (await agent.ask({ type: 'status' }))[0] as Status

describe('an infected medium', () => {
  it(
    'is refused by hash and reason, told to administrators, and the batch around it goes on',
    {
      skip: needClamd,
    },
    async () => {
      await using clamd = await startClamd()
      await using folder = await makeTemporaryDirectory('infected')
      const inbox = join(folder.path, 'inbox')
      await mkdir(inbox)
      await using fleet = await startFleet({ name: 'infected', controlPlane: { allowSwap: true } })
      const capture = await fleet.addAgent({
        ...{ name: 'capture', role: 'capture' },
        config: {
          ...{ allowSwap: true, spoolReserveBytes: 0, watchPollMs: 200 },
          gate: { scan: { clamdConfigFile: clamd.configFile } },
          watch: [{ path: inbox, include: ['*.jpg'], batchFiles: 3, batchMs: 60_000 }],
        },
      })
      await capture.start()

      const photo = join(folder.path, 'photo.jpg')
      await makePhoto(photo)
      const bytes = await readFile(photo)
      const infected = Buffer.concat([bytes, marker()])
      const other = Buffer.concat([bytes, Buffer.from('another trailer')])
      for (const [name, content] of Object.entries({ a: bytes, b: infected, c: other })) {
        await writeFile(join(inbox, `.${name}`), content)
        await rename(join(inbox, `.${name}`), join(inbox, `${name}.jpg`))
      }

      const sealed = await waitFor('the others to be sealed and stored', waitMsMax, async () => {
        const { submissions } = await statusOf(capture)
        return submissions.find(({ stage }) => stage === 'stored')
      })
      assert.deepEqual(
        sealed.files.map((file) => file.slice(inbox.length + 1)),
        ['a.jpg', 'c.jpg'],
      )
      const { quarantine, submissions } = await statusOf(capture)
      const sha256 = createHash('sha256').update(infected).digest('hex')
      assert.deepEqual(
        quarantine.map((each) => [each.sha256, each.finding]),
        [[sha256, 'Own.Marker.UNOFFICIAL']],
      )
      const refused = submissions.find(({ stage }) => stage === 'refused')
      assert.equal(refused?.problem?.code, 'media.infected')
      assert.deepEqual(await readdir(spoolOf(capture)), [sealed.jobId])

      const alerts = await waitFor('the alert', waitMsMax, async () => {
        const { text } = await fleet.call('/v1/alerts', { role: 'security' })
        return text.includes('medium.infected') ? text : undefined
      })
      assert.ok(alerts.includes('Own.Marker.UNOFFICIAL'))
      assert.ok(!alerts.includes(sha256))
      assert.ok(!alerts.includes('b.jpg'))
    },
  )
})
