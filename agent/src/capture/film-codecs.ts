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

/** What a container says that its pictures, or its sound, are coded with. */
export type CodecName = { of: 'pictures' | 'sound'; name: string }

/** @see ffmpeg's `framehash.c`: `#media_type 0: video`, `#codec_id 0: h264`; `none` it does not know. */
export async function readCodecNames(output: AsyncIterable<Buffer>): Promise<CodecName[]> {
  let text = ''
  for await (const piece of output) text += piece.toString('latin1')
  return [...text.matchAll(/^#codec_id (\d+): ([\w.-]{1,64})$/gm)].map(([, stream, name = '']) => {
    const isPicture = new RegExp(`^#media_type ${stream}: video$`, 'm').test(text)
    return { of: isPicture ? 'pictures' : 'sound', name }
  })
}

/** Whether it is on the list. */
export function isTaken({ name }: CodecName): boolean {
  return Object.hasOwn(codecs, name)
}

/**
 * What is on the list, and what this ffmpeg was built without.
 *
 * @param decoders What `ffmpeg -decoders` prints: ` V....D h264   H.264 …`.
 */
export function withoutDecoder(
  names: readonly CodecName[],
  decoders: string,
): CodecName | undefined {
  return names.find(({ name }) => {
    const wanted = Object.hasOwn(codecs, name) ? (codecs[name] ?? []) : []
    return !wanted.some((decoder) => new RegExp(`^ \\S+ ${decoder} `, 'm').test(decoders))
  })
}

export function decoderMissing({ name }: CodecName): SluiceError {
  return new SluiceError('media.decoder_missing', `the ffmpeg of this host cannot decode ${name}`, {
    hint: 'Install a complete one (Debian: apt install ffmpeg), or name one in the configuration.',
  })
}

/**
 * Says what it is coded as, and what its owner can do.
 *
 * @param facts Where ffmpeg has no name for the codec, the container's is told.
 */
export function foreignCodec({ of, name }: CodecName, facts?: AvFacts): SluiceError {
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
