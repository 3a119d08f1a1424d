/** Proves that a film is encoded in software where a graphics card was asked for and does not answer. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { detectIsolation } from '../sandbox.ts'
import { chooseFilmEncoder, filmEncoderDevices, filmEncoderInit } from './film-encoder.ts'
import { filmEncoders, planFilm } from './film-recipe.ts'
import { findFfmpeg } from './find-ffmpeg.ts'
import { profiles } from './profiles.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none')
const ffmpeg = await findFfmpeg({ isolation })

describe('chooseFilmEncoder', { skip: ffmpeg === undefined && 'no usable ffmpeg' }, () => {
  it('takes software without a device, and where a trial fails', async () => {
    assert.ok(ffmpeg)
    for (const wanted of filmEncoders) {
      const chosen = await chooseFilmEncoder({ wanted, ffmpeg, isolation, exists: () => false })
      assert.equal(chosen, 'x264')
    }
    // Said to be there, but it is not: the sandbox cannot be built around it.
    const missing = await chooseFilmEncoder({
      wanted: 'nvenc',
      ffmpeg: { ...ffmpeg, program: '/usr/bin/false' },
      isolation,
      exists: () => true,
    })
    assert.equal(missing, 'x264')
  })
})

describe('planFilm', () => {
  const ask = {
    profile: profiles.analysis.film,
    facts: { durationMs: 0, picture: undefined, sound: undefined, removed: [] },
    format: 'mp4' as const,
    first: undefined,
    toneMapping: true,
    joined: false,
    threads: 2,
  }

  it('names the encoder that was chosen, and filters what each of them writes', () => {
    for (const encoder of filmEncoders) {
      const { args } = planFilm({ ...ask, encoder })
      const name = encoder === 'x264' ? 'libx264' : `h264_${encoder}`
      assert.equal(args[args.indexOf('-c:v') + 1], name)
      assert.equal(args[args.indexOf('-bsf:v') + 1], 'filter_units=pass_types=1|5|7-8')
      assert.equal(args.includes('-bf'), true)
      assert.equal(filmEncoderDevices(encoder).length === 0, encoder === 'x264')
    }
    assert.match(planFilm({ ...ask, encoder: 'vaapi' }).args.join(' '), /hwupload/)
    assert.deepEqual(filmEncoderInit('x264'), [])
  })

  it('copies only what is neither trimmed nor turned, and only where it is asked to', () => {
    const picture = {
      codec: 'h264' as const,
      widthPixels: 64,
      heightPixels: 64,
      frames: 1,
      highDynamicRange: false,
      edited: false,
    }
    const copied = (
      change: object,
      profile = profiles.faithful.film,
      format: 'mp4' | 'ts' = 'mp4',
    ) =>
      planFilm({
        ...ask,
        profile,
        format,
        encoder: 'x264',
        facts: { ...ask.facts, picture: { ...picture, ...change } },
      }).copied
    assert.equal(copied({}), true)
    assert.equal(copied({ codec: 'hevc' }), true)
    assert.equal(copied({ codec: 'other' }), false)
    assert.equal(copied({ edited: true }), false)
    assert.equal(copied({}, profiles.analysis.film), false)
    assert.equal(copied({}, profiles.faithful.film, 'ts'), false)
  })
})
