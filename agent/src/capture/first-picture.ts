/** Looks at one decoded picture of a film, for what only coded pictures say: colours and brightness. */
import { collectOutput } from '../sandbox.ts'
import { readMatroskaColour } from './matroska-structure.ts'

export type FirstPicture = {
  /** ISO/IEC 23091-2: 16 is PQ, 18 HLG, 2 unspecified. */
  transfer: number
  highDynamicRange: boolean
  /** Red, green and blue as they are, not turned into brightness and colour. */
  rgb: boolean
}

/**
 * ffmpeg decodes one picture, makes it tiny, and writes what it knows of it into a Matroska head. Ut
 * Video has a name of its own for each family of colours, and takes the nearest to what comes.
 */
export const firstPictureArgs = [
  ...['-map', '0:V:0', '-an', '-sn', '-dn', '-frames:v', '1', '-vf', 'scale=2:2'],
  ...['-c:v', 'utvideo', '-f', 'matroska', 'pipe:1'],
]

/** At most this much is a head and one tiny picture. */
export const firstPictureBytesMax = 64 * 1024

/** @returns undefined when there was no picture to look at. */
export async function readFirstPicture(
  output: AsyncIterable<Buffer>,
): Promise<FirstPicture | undefined> {
  const head = await collectOutput(output)
  const colour = readMatroskaColour(head)
  if (colour === undefined) return undefined
  const { transfer, form } = colour
  return {
    transfer,
    highDynamicRange: transfer === 16 || transfer === 18,
    rgb: form === 'ULRG' || form === 'ULRA',
  }
}
