import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { decoderMissing, isTaken, readCodecNames, withoutDecoder } from './film-codecs.ts'

/** As `-f framecrc` begins. */
async function* named(): AsyncGenerator<Buffer> {
  yield Buffer.from('#software: Lavf59\n#tb 0: 1/25\n#media_type 0: video\n#codec_id 0: vp8\n')
  yield Buffer.from('#media_type 1: audio\n#codec_id 1: opus\n0, 0, 0, 1, 6, 0x1\n')
}

const listed = (...names: string[]) =>
  ['Decoders:', ' V..... = Video', ...names.map((name) => ` V....D ${name}   what it is`)].join(
    '\n',
  )

describe('the codecs of a film', () => {
  it('are read from what ffmpeg says of its packets', async () => {
    assert.deepEqual(await readCodecNames(named()), [
      { of: 'pictures', name: 'vp8' },
      { of: 'sound', name: 'opus' },
    ])
  })

  it('are taken by a list', () => {
    assert.ok(isTaken({ of: 'sound', name: 'opus' }))
    assert.ok(!isTaken({ of: 'pictures', name: 'snow' }))
    assert.ok(!isTaken({ of: 'pictures', name: 'constructor' }))
  })

  it('are told apart from damage where ffmpeg was built without them', async () => {
    const names = await readCodecNames(named())
    assert.equal(withoutDecoder(names, listed('vp8', 'opus')), undefined)
    assert.equal(withoutDecoder(names, listed('libvpx', 'libopus')), undefined)
    const missing = withoutDecoder(names, listed('vp8', 'opus_of_another_kind'))
    assert.deepEqual(missing, { of: 'sound', name: 'opus' })
    const error = decoderMissing(missing)
    assert.equal(error.code, 'media.decoder_missing')
    assert.match(`${error.message} ${error.hint}`, /cannot decode opus .*complete/)
  })
})
