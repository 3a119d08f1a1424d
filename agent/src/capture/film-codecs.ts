/** Which codecs are taken from a film's container, and how a film says what it is coded as. */
import { SluiceError } from '@sluice/protocol/errors'
import type { AvFacts } from './av-facts.ts'
import { words } from './film-recipe.ts'

/**
 * What cameras, telephones and editors really put into films: ffmpeg's names of codecs, which are
 * also those of their decoders except where others follow.
 */
const codecs: Record<string, readonly string[]> = {
  ...namedAlike('h264 hevc mpeg4 mjpeg prores mpeg1video mpeg2video h263 h263i'),
  ...namedAlike('msmpeg4v2 dvvideo rawvideo png qtrle dnxhd theora huffyuv ffvhuff ffv1'),
  ...namedAlike('utvideo magicyuv cfhd aac aac_latm alac ac3 eac3 flac vorbis'),
  ...namedAlike('adpcm_ima_qt adpcm_ima_wav adpcm_ms qdm2 wmav1 wmav2 qcelp evrc gsm mjpegb vc1'),
  ...namedAlike('pcm_s8 pcm_u8 pcm_s16le pcm_s16be pcm_s24le pcm_s24be pcm_s32le pcm_s32be'),
  ...namedAlike('pcm_f32le pcm_f32be pcm_f64le pcm_f64be pcm_mulaw pcm_alaw pcm_bluray'),
  vp8: ['vp8', 'libvpx'],
  vp9: ['vp9', 'libvpx-vp9'],
  av1: ['av1', 'libdav1d', 'libaom-av1'],
  msmpeg4v3: ['msmpeg4'],
  mp2: ['mp2', 'mp2float'],
  mp3: ['mp3', 'mp3float'],
  dts: ['dca'],
  gsm_ms: ['gsm_ms', 'libgsm_ms'],
  opus: ['opus', 'libopus'],
  amr_nb: ['amrnb'],
  amr_wb: ['amrwb'],
}

function namedAlike(names: string): Record<string, readonly string[]> {
  return Object.fromEntries(words(names).map((name) => [name, [name]]))
}

/** Names of decoders, for ffmpeg's own list of what it may open. */
export const filmDecoders: readonly string[] = Object.values(codecs).flat()

/** Tells what the first picture and the first sound are coded as, without decoding either. */
export const codecNamesArgs = words(
  '-map 0:V:0? -map 0:a:0? -c copy -frames:v 1 -frames:a 1 -f framecrc pipe:1',
)
/** Some lines, and the checksum of one packet each. */
export const codecNamesBytesMax = 64 * 1024

/** A codec that a container names and that is not taken. */
export type ForeignCodec = { of: 'pictures' | 'sound'; name: string }

/**
 * @returns The first codec that is not on the list; undefined where all are, or none was told.
 * @see ffmpeg's `framehash.c`: `#media_type 0: video`, `#codec_id 0: h264`; `none` is one that
 *   ffmpeg does not know.
 */
export async function readForeignCodec(
  output: AsyncIterable<Buffer>,
): Promise<ForeignCodec | undefined> {
  let text = ''
  for await (const piece of output) text += piece.toString('latin1')
  for (const [, stream, name = ''] of text.matchAll(/^#codec_id (\d+): ([\w.-]{1,64})$/gm)) {
    if (Object.hasOwn(codecs, name)) continue
    const isPicture = new RegExp(`^#media_type ${stream}: video$`, 'm').test(text)
    return { of: isPicture ? 'pictures' : 'sound', name }
  }
  return undefined
}

/**
 * Says what it is coded as, and what its owner can do.
 *
 * @param facts Where ffmpeg has no name for the codec, the container's is told.
 */
export function foreignCodec({ of, name }: ForeignCodec, facts?: AvFacts): SluiceError {
  const called = (of === 'pictures' ? facts?.picture : facts?.sound)?.called ?? ''
  const codec =
    name !== 'none' ? name : /^[\w./ -]{1,32}$/.test(called) ? called : 'an unknown codec'
  const what = of === 'pictures' ? 'its pictures are' : 'its sound is'
  return new SluiceError(
    'media.unsupported',
    `the film is not taken: ${what} coded with ${codec}`,
    {
      hint: 'Export it as MP4 with H.264 pictures and AAC sound, with the program or device that made it.',
    },
  )
}
