/** Looks at one decoded picture of a film, for what only coded pictures say: colours and brightness. */
import { collectOutput } from '../sandbox.ts'
import { readMatroskaColour } from './matroska-structure.ts'

export type FirstPicture = {
  /** ISO/IEC 23091-2: 16 is PQ, 18 HLG, 2 unspecified. */
  transfer: number
  highDynamicRange: boolean
  /** Red, green and blue as they are, not turned into brightness and colour. */
  rgb: boolean
  /** Whether it is transparent here or there. */
  alpha: boolean
  /** Its sides, two for each 16 pixels and two more. */
  steps: { wide: number; high: number }
}

/**
 * ffmpeg decodes one picture, makes it small, and writes what it knows of it into a Matroska head. Ut
 * Video has a name of its own for each family of colours, and takes the nearest to what comes.
 */
export const firstPictureArgs = [
  ...['-map', '0:V:0', '-an', '-sn', '-dn', '-frames:v', '1'],
  ...['-vf', 'scale=2*trunc(iw/16)+2:2*trunc(ih/16)+2'],
  ...['-c:v', 'utvideo', '-f', 'matroska', 'pipe:1'],
]

/** Before the input: the picture is to come with what its coding hides at its edges. */
export const withHiddenEdges = ['-apply_cropping', '0']

/** At most this much is a head and one small picture. */
export const firstPictureBytesMax = 2 * 1024 ** 2

/**
 * Whether the coded picture goes on behind the edges of the shown one, further than whole blocks ask for:
 * 1080 rows are coded as 1088, but who crops without coding anew hides what was cut off. Within 32
 * pixels it cannot be told.
 */
export function hidesEdges(shown: FirstPicture, coded: FirstPicture): boolean {
  return coded.steps.wide - shown.steps.wide > 2 || coded.steps.high - shown.steps.high > 2
}

/** @returns undefined when there was no picture to look at. */
export async function readFirstPicture(
  output: AsyncIterable<Buffer>,
): Promise<FirstPicture | undefined> {
  const head = await collectOutput(output)
  const colour = readMatroskaColour(head)
  if (colour === undefined) return undefined
  const { transfer, form, widthPixels: wide, heightPixels: high } = colour
  return {
    transfer,
    highDynamicRange: transfer === 16 || transfer === 18,
    rgb: form === 'ULRG' || form === 'ULRA',
    alpha: form === 'ULRA',
    steps: { wide, high },
  }
}
