/** Decides how ffmpeg makes a film of ours out of one of unknown origin; pure, so that each word of it can be broken in a test. */
import type { AvFacts, PlayedTracks } from './av-facts.ts'
import type { FirstPicture } from './first-picture.ts'
import type { FilmProfile, SoundProfile } from './profiles.ts'
import type { SourceFormat } from './sniff.ts'

/** The words of a command line without variable parts. */
export function words(line: string): string[] {
  return line.split(' ')
}

/** Where the first picture and the first sound are named, those that are played. */
export function ofTracks(output: readonly string[], tracks: PlayedTracks | undefined): string[] {
  const { picture, sound } = tracks ?? { picture: 0, sound: 0 }
  return output.map((word) =>
    word
      .replace(/^0:V:0(?=\??$)/, () => `0:V:${picture}`)
      .replace(/^0:a:0(?=\??$)/, () => `0:a:${sound}`),
  )
}

/** On every output: nothing carried over, nothing about the encoder. */
export const nothingCarriedOver = [
  ...words('-map_metadata -1 -map_chapters -1 -dn -sn'),
  ...words('-fflags +bitexact -flags:v +bitexact -flags:a +bitexact'),
]

/** Encoders of a graphics card; software is `x264`. */
export const filmEncoders = ['x264', 'nvenc', 'qsv', 'vaapi'] as const
export type FilmEncoder = (typeof filmEncoders)[number]

export type FilmRecipe = {
  args: string[]
  /** An output that comes first: its pictures are those that ffmpeg counts. */
  before: string[]
  codec: 'h264' | 'hevc'
  /** What becomes of a high dynamic range. */
  hdr?: 'tone-mapped' | 'clipped' | 'kept'
  /** Whether coded pictures pass as they are. */
  copied: boolean
}

type Ask = {
  profile: FilmProfile
  facts: AvFacts
  format: SourceFormat
  /** undefined when the first picture could not be looked at. */
  first: FirstPicture | undefined
  /** Whether ffmpeg can map high dynamic range. */
  toneMapping: boolean
  /** Whether it is several recordings: the sound of one may reach into the next. */
  joined: boolean
  encoder: FilmEncoder
  threads: number
  /** Whether the sound is left out. */
  silent?: boolean
  /** Whether the sound is an input of its own, behind that of the pictures. */
  soundApart?: boolean
}

/** Everything but the input. */
export function planFilm(ask: Ask): FilmRecipe {
  const copied = copies(ask)
  const picture = copied === undefined ? encodePicture(ask) : copyPicture(copied, ask)
  const { high } = picture
  return {
    args: [
      ...words('-map 0:V:0'),
      ...(ask.silent === true ? [] : words(ask.soundApart ? '-map 1:a:0' : '-map 0:a:0?')),
      ...nothingCarriedOver,
      ...picture.args,
      ...soundInFilm(ask),
      ...filmContainer,
      'pipe:1',
    ],
    // What is copied has to be decoded all the same, to know that it can be, and what there is to see.
    before: copied === undefined ? [] : words('-map 0:V:0 -fps_mode passthrough -f null -'),
    codec: copied ?? 'h264',
    ...(high === undefined ? {} : { hdr: high }),
    copied: copied !== undefined,
  }
}

/** `delay_moov` lets the index tell the sound's lead-in, so that no frame's time is moved. */
const filmContainer = [
  ...words('-write_tmcd 0 -empty_hdlr_name 1 -max_muxing_queue_size 4096'),
  ...words('-movflags +frag_keyframe+delay_moov+default_base_moof -f mp4'),
]

/** Containers whose tracks carry whole samples with their times. */
const copiedFormats: readonly SourceFormat[] = ['mp4', 'mov', '3gp', 'mkv', 'webm']

function copies({ profile, facts, format }: Ask): 'h264' | 'hevc' | undefined {
  const { picture } = facts
  if (!profile.copy || picture === undefined || !copiedFormats.includes(format)) return undefined
  // A trimmed film still holds what was cut away, a turned one would lie on its side.
  return picture.edited || picture.codec === 'other' ? undefined : picture.codec
}

type Picture = { args: string[]; high?: FilmRecipe['hdr'] | undefined }

/**
 * What may stay of coded pictures: slices and parameter sets. Slices in partitions (2 to 4) no decoder
 * here knows, so nobody has seen what they hold.
 *
 * @see ITU-T H.264, table 7-1, and ITU-T H.265, table 7-1.
 */
const keptUnits = { h264: '1|5|7-8', hevc: '0-9|16-21|32-34' }

/** Parameter sets and heads of slices are read and written anew, so that nothing is behind their fields. */
function copyPicture(codec: 'h264' | 'hevc', ask: Ask): Picture {
  return {
    high: isHigh(ask) ? 'kept' : undefined,
    args: [
      ...words('-c:v copy -bsf:v'),
      `filter_units=pass_types=${keptUnits[codec]},${codec}_metadata`,
      ...(codec === 'hevc' ? words('-tag:v hvc1') : []),
    ],
  }
}

function isHigh({ first, facts }: Ask): boolean {
  return first?.highDynamicRange ?? facts.picture?.highDynamicRange === true
}

function encodePicture(ask: Ask): Picture {
  const { profile, encoder, first, toneMapping } = ask
  const maps = isHigh(ask) && profile.depth === '8' && toneMapping
  const high = !isHigh(ask)
    ? undefined
    : profile.depth === 'as-is'
      ? ('kept' as const)
      : maps
        ? ('tone-mapped' as const)
        : ('clipped' as const)
  const filters = [
    forwards,
    ...(profile.depth === '8' ? woven(first) : []),
    ...croppedTo(ask.facts.picture),
    ...(first?.alpha === true ? onBlack : []),
    ...scaledTo(profile.sidePixelsMax),
    ...(maps ? toneMap(first) : []),
    ...(profile.depth === '8' ? ordinary(first) : kept),
    ...(encoder === 'vaapi' ? ['format=nv12', 'hwupload'] : []),
  ]
  const last = lastingPicture(ask)
  return {
    args: [
      '-vf',
      filters.join(),
      // Times stay what they are, in the source's own units: none is rounded, nothing filled up.
      ...words('-fps_mode vfr -enc_time_base:v'),
      last === undefined ? '-1' : `1/${last.clockHz}`,
      ...encoderArgs(ask),
      '-bsf:v',
      [
        `filter_units=pass_types=${keptUnits.h264}`,
        ...(last === undefined ? [] : [last.filter]),
      ].join(),
    ],
    high,
  }
}

/** Below it, ffmpeg's muxer of MP4 doubles the ticks, and then two clocks would be at work. */
const clockHzMin = 10_000
const clockHzMax = 2 ** 31

/**
 * Encoders do not tell how long the last picture stays: as long as the source says, if it does. The
 * clock is the source's own, or a multiple.
 *
 * @see ffmpeg-bitstream-filters(1), "setts".
 */
function lastingPicture({ facts }: Ask): { clockHz: number; filter: string } | undefined {
  const end = facts.picture?.end
  if (end === undefined || !Number.isSafeInteger(end.clockHz) || end.clockHz < 1) return undefined
  let { clockHz } = end
  while (clockHz < clockHzMin) clockHz *= 2
  if (clockHz > clockHzMax) return undefined
  const until = Math.round((end.untilMs / 1000) * clockHz)
  const last = `max(DURATION\\,${until}-DTS+STARTDTS)`
  return { clockHz, filter: `setts=duration='if(eq(NEXT_DTS\\,NOPTS)\\,${last}\\,DURATION)'` }
}

/** Where times go backwards, as after careless remuxing, pictures follow on at once: none is dropped. */
const forwards = "setpts='if(isnan(PREV_OUTPTS),PTS,max(PTS,PREV_OUTPTS+1))'"

/** Nothing larger is interlaced; three pictures more would be held of what is. */
const wovenStepsMax = 2 * Math.ceil(1152 / 16) + 2
/** Nothing smaller either; the filter wants some rows and columns in every plane. */
const wovenStepsMin = 2 * Math.floor(64 / 16) + 2

/**
 * Of pictures that say they are two halves of different moments, one whole picture each: combs at every
 * edge that moves are nothing a model knows. Others pass as they are.
 *
 * @see ffmpeg-filters(1), "bwdif".
 */
function woven(first: FirstPicture | undefined): string[] {
  if (first === undefined || first.rgb) return []
  const { wide, high } = first.steps
  if (Math.min(wide, high) < wovenStepsMin || high > wovenStepsMax) return []
  return ['bwdif=mode=send_frame:parity=auto:deint=interlaced']
}

/**
 * What the container cuts off at the edges is not to be seen, and does not leave; of pictures that are
 * coded in another size than it says, nobody knows what it means.
 */
function croppedTo(picture: AvFacts['picture']): string[] {
  const crop = picture?.crop
  if (crop === undefined) return []
  const known = `eq(iw,${picture?.widthPixels})*eq(ih,${picture?.heightPixels})`
  const side = (inside: number, other: string) => `'if(${known},${inside},${other})'`
  const size = `w=${side(crop.widthPixels, 'iw')}:h=${side(crop.heightPixels, 'ih')}`
  return [`crop=${size}:x=${side(crop.left, '0')}:y=${side(crop.top, '0')}`]
}

/** H.264 has no transparency: what could not be seen becomes black. */
const onBlack = ['format=gbrap', 'premultiply=inplace=1']

/** A side longer than allowed is scaled down, by the shape that is seen. */
function scaledTo(sidePixelsMax: number): string[] {
  if (!Number.isFinite(sidePixelsMax)) return []
  const most = String(sidePixelsMax)
  const factor = `min(1,${most}/max(iw*max(1,sar),ih/min(1,sar)))`
  return [`scale=w='max(2,iw*${factor})':h='max(2,ih*${factor})'`]
}

function toneMap(first: FirstPicture | undefined): string[] {
  // A picture that does not say its colours is taken for what films of that kind are.
  const transfer = first?.transfer === 18 ? 'arib-std-b67' : 'smpte2084'
  return [
    // One step to linear light in the colours of a screen: each more would hold another frame of floats.
    `zscale=tin=${transfer}:pin=bt2020:min=bt2020nc:t=linear:npl=100:p=bt709`,
    'format=gbrpf32le',
    'tonemap=tonemap=hable:desat=0',
    'zscale=t=bt709:m=bt709:r=tv',
  ]
}

/** Square pixels, even sides as 4:2:0 needs them; rotation is applied before by ffmpeg itself. */
function ordinary(first: FirstPicture | undefined): string[] {
  const matrix = first?.rgb === true ? ':out_color_matrix=bt709' : ''
  const shape =
    "scale=w='max(2,trunc(iw*max(1,sar)/2+0.001)*2)':h='max(2,trunc(ih/min(1,sar)/2+0.001)*2)'"
  return [
    `${shape}:out_range=tv${matrix}`,
    'setsar=1',
    ...(first?.rgb === true
      ? ['setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709']
      : []),
    'format=yuv420p',
  ]
}

/** Of what x264 takes, the nearest; a row or column is added where 4:2:0 needs it even. */
const kept = [
  `format=${words('yuv420p yuvj420p yuv422p yuvj422p yuv444p yuvj444p yuv420p10le yuv422p10le yuv444p10le').join('|')}`,
  "pad=w='ceil(iw/2)*2':h='ceil(ih/2)*2'",
]

/** Above it, ten pictures that wait to be looked at are what costs most memory. */
const largePixels = 4_000_000

/**
 * A short look ahead for large pictures: 4K of high dynamic range then takes 0.9 GiB and no longer than
 * before, by the ten pictures of the preset 1.04 GiB.
 */
function lookAhead({ profile, facts }: Ask): string[] {
  const { widthPixels = 0, heightPixels = 0 } = facts.picture ?? {}
  const large = Math.min(widthPixels * heightPixels, profile.sidePixelsMax ** 2) > largePixels
  return large ? words('-x264-params rc-lookahead=5:sync-lookahead=0') : []
}

function encoderArgs(ask: Ask): string[] {
  const { profile, encoder, threads } = ask
  const { rateFactor, preset } = profile
  if (encoder !== 'x264') return [...hardwareArgs[encoder], String(rateFactor)]
  return [
    // Without B-frames the first picture is shown at zero, so picture and sound stay together.
    ...words('-c:v libx264 -bf 0 -preset'),
    preset,
    ...(rateFactor === 0 ? ['-qp', '0'] : ['-crf', String(rateFactor)]),
    ...lookAhead(ask),
    '-threads',
    String(threads),
  ]
}

/** A constant quality follows. */
const hardwareArgs = {
  nvenc: words('-c:v h264_nvenc -bf 0 -preset p4 -rc vbr -cq'),
  qsv: words('-c:v h264_qsv -bf 0 -global_quality'),
  vaapi: words('-c:v h264_vaapi -bf 0 -qp'),
}

/** Layouts that AAC names by a number; for others its encoder would write a table with a comment. */
const aacLayouts = 'aformat=channel_layouts=mono|stereo|3.0|4.0|5.0|5.1|7.1'

function soundInFilm({ profile: { sound }, joined }: Ask): string[] {
  const inStep = joined ? ['aresample=async=1:min_hard_comp=0.02'] : []
  if (sound.codec === 'flac') {
    return [...(joined ? ['-af', ...inStep] : []), ...words('-c:a flac -strict -2')]
  }
  const filters = [...inStep, aacLayouts].join()
  return ['-af', filters, ...words('-c:a aac -b:a'), `${sound.kilobitsPerSecond}k`]
}

/** How a sound of its own is made: from what, with how many bits. */
export type SoundRecipe = {
  args: string[]
  extension: 'flac' | 'm4a' | 'wv'
  codec: 'flac' | 'aac' | 'wavpack'
}

/**
 * @param ask.depth What the samples need: 16, 24, or more than FLAC holds.
 * @param ask.filters Before everything else.
 * @param ask.speech 16,000 samples a second of one channel.
 */
export function planSound(ask: {
  profile: SoundProfile
  depth: 16 | 24 | 32
  filters: readonly string[]
  speech: boolean
  soundApart?: boolean
}): SoundRecipe {
  const { profile, speech } = ask
  const coded = profile.codec === 'aac'
  const filters = [
    ...ask.filters,
    ...(speech ? ['aresample=16000', 'aformat=channel_layouts=mono'] : []),
    ...(coded ? [aacLayouts] : []),
  ]
  const before = [
    ...words(ask.soundApart ? '-map 1:a:0 -vn' : '-map 0:a:0 -vn'),
    ...nothingCarriedOver,
    ...(filters.length === 0 ? [] : ['-af', filters.join()]),
  ]
  if (coded) {
    return {
      args: [
        ...before,
        ...words('-c:a aac -b:a'),
        `${profile.kilobitsPerSecond}k`,
        ...filmContainer,
        'pipe:1',
      ],
      extension: 'm4a',
      codec: 'aac',
    }
  }
  if (ask.depth === 32 && profile.deep === 'wavpack' && !speech) {
    return {
      args: [...before, ...words('-c:a wavpack -f wv pipe:1')],
      extension: 'wv',
      codec: 'wavpack',
    }
  }
  const form =
    ask.depth === 16 ? words('-sample_fmt s16') : words('-sample_fmt s32 -bits_per_raw_sample 24')
  return {
    args: [...before, ...words('-c:a flac'), ...form, ...words('-f flac pipe:1')],
    extension: 'flac',
    codec: 'flac',
  }
}

/** Silence where the sound begins later than the picture or has gaps, so that both stay together. */
export const inStepWithPicture = 'aresample=async=1:first_pts=0:min_hard_comp=0.02'
