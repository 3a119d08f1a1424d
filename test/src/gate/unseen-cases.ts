/** What a file holds and no viewer shows: it does not leave, and never in the place of what is shown. */

import assert from 'node:assert/strict'

import sharp from 'sharp'

import type { GateCase } from './cases.ts'
import { makeHeic } from './make-heif.ts'
import type { CodedPicture } from './make-heif.ts'
import { pixelsOf } from './pixels.ts'
import { file, firstBytes } from './write-case.ts'

const side = 64

/** One colour, as AVIF codes it. */
async function codeAv1(background: string): Promise<CodedPicture> {
  const avif = await sharp({ create: { width: side, height: side, channels: 3, background } })
    .avif({ quality: 90, chromaSubsampling: '4:4:4' })
    .toBuffer()
  const content = (type: string) => {
    const at = avif.indexOf(type) - 4
    return avif.subarray(at, at + avif.readUInt32BE(at))
  }
  const data = content('mdat').subarray(8)
  return { widthPixels: side, heightPixels: side, configuration: content('av1C'), data }
}

const isBlue: NonNullable<GateCase['equal']> = async (outcomes) => {
  const [red = 255, , blue = 0] = (await pixelsOf(firstBytes(outcomes))).data
  assert.ok(red < 32 && blue > 223, `red ${red}, blue ${blue}`)
}

const pictures: readonly GateCase[] = (['analysis', 'faithful'] as const).map((profile) => ({
  name: `an AVIF whose first picture is not the one that is shown, ${profile}`,
  profile,
  make: file('a.avif', async () =>
    makeHeic({
      coded: await codeAv1('blue'),
      coding: 'av01',
      before: (await codeAv1('red')).data,
      brands: ['avif', 'mif1', 'miaf'],
    }),
  ),
  leaves: ['png'],
  removed: ['further-pictures'],
  equal: isBlue,
}))

export const unseenCases: readonly GateCase[] = [...pictures]
