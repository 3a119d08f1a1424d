/** Makes a test of every row of the corpus. */

import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'

import { openGate } from '@sluice/agent/capture/gate'
import { openPicturePool } from '@sluice/agent/capture/picture-pool'
import { detectIsolation } from '@sluice/agent/sandbox'

import { bombCases } from './bomb-cases.ts'
import { bitstreamCases } from './bitstream-cases.ts'
import { proveCase } from './cases.ts'
import { deviceFilmCases } from './device-film-cases.ts'
import { filmCases } from './film-cases.ts'
import { imageCases } from './image-cases.ts'
import { soundCases } from './sound-cases.ts'
import { unseenCases } from './unseen-cases.ts'

const cases = [
  ...imageCases,
  ...filmCases,
  ...deviceFilmCases,
  ...soundCases,
  ...bombCases,
  ...bitstreamCases,
  ...unseenCases,
]

/**
 * Declares the tests of the quick rows, or of all.
 *
 * Programs that are missing skip a row with a reason.
 */
export async function proveAll(options: { quick: boolean }): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), 'gate-corpus-'))
  after(() => rmSync(folder, { recursive: true }))
  const isolation = await detectIsolation().catch(() => detectIsolation('none'))
  const scratchFolder = mkdtempSync(join(folder, 'scratch-'))
  const pictures = openPicturePool({ isolation })
  after(() => pictures[Symbol.asyncDispose]())
  const gate = { ...(await openGate({ scratchFolder, isolation })), pictures }
  const present = {
    ffmpeg: gate.ffmpeg !== undefined,
    exiftool: spawnSync('exiftool', ['-ver']).status === 0,
  }
  const chosen = cases.filter((row) => !options.quick || row.quick === true)

  describe(`the corpus of the gate, ${chosen.length} of ${cases.length} rows`, () => {
    it('has every row once', () => {
      assert.equal(new Set(cases.map(({ name }) => name)).size, cases.length)
    })

    for (const row of chosen) {
      const missing = row.needs?.find((program) => !present[program])
      it(row.name, { skip: missing !== undefined && `${missing} is not installed` }, async () => {
        const own = mkdtempSync(join(folder, 'case-'))
        await proveCase(row, gate, own)
        rmSync(own, { recursive: true })
        // Scratch has no names, so nothing of a medium may be found there.
        assert.deepEqual(readdirSync(scratchFolder), [])
      })
    }
  })
}
