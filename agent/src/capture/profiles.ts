/** What each profile makes of a picture, a film and a sound: one table, so that nothing is decided twice. */
import type { GateProfile } from '@sluice/protocol/manifest'

export type JpegForm = {
  format: 'jpeg'
  quality: number
  chroma: '4:4:4' | '4:2:0'
}
export type PngForm = { format: 'png' }
export type WebpForm = { format: 'webp'; quality: number }

export type ImageProfile = {
  /** A picture with a longer side is scaled down to it. */
  sidePixelsMax: number
  /** `as-is` keeps 16 bits a channel where the source has more than 8. */
  depth: '8' | 'as-is'
  /** `as-is` keeps a wide gamut in the nearest of our own standard profiles; else all becomes sRGB. */
  gamut: 'srgb' | 'as-is'
  /** What JPEG lost is lost: it may stay JPEG where others must not become one. */
  ofJpeg: JpegForm | PngForm
  opaque: JpegForm | PngForm
  transparent: PngForm | WebpForm
  /** Small for thin links, whatever this one is; else as link and processors allow. */
  effort: 'small' | 'as-allowed'
  /** Frames of an animation (GIF, WebP, APNG): the further ones as further media, or dropped. */
  frames: 'all' | 'first'
}

export type FilmProfile = {
  /** H.264 and HEVC stay as they are coded, their bitstream filtered, where nothing is trimmed or turned. */
  copy: boolean
  /** Constant rate factor of x264: 0 is lossless, 51 the worst. */
  rateFactor: number
  /** Of x264: how long it looks for fewer bytes. */
  preset: 'veryfast' | 'medium'
  /** A film with a longer side is scaled down to it. */
  sidePixelsMax: number
  /** `8`: eight bits, 4:2:0, square pixels, ordinary brightness; else as the source has it. */
  depth: '8' | 'as-is'
  /** The sound that stays in the film. */
  sound: { codec: 'aac'; kilobitsPerSecond: number } | { codec: 'flac' }
}

export type SoundProfile =
  | {
      codec: 'flac'
      /** Samples of 32 bits and floats: cut to 24 bits in FLAC, or all of them in WavPack. */
      deep: 'flac' | 'wavpack'
    }
  | { codec: 'aac'; kilobitsPerSecond: number }

export type Profile = { image: ImageProfile; film: FilmProfile; sound: SoundProfile }

/** What a model sees well: eight bits, sRGB, no side longer than models look at. */
const analysis: Profile = {
  image: {
    sidePixelsMax: 4096,
    depth: '8',
    gamut: 'srgb',
    ofJpeg: { format: 'jpeg', quality: 95, chroma: '4:4:4' },
    opaque: { format: 'png' },
    transparent: { format: 'png' },
    effort: 'as-allowed',
    frames: 'first',
  },
  film: {
    copy: false,
    rateFactor: 20,
    preset: 'veryfast',
    sidePixelsMax: 4096,
    depth: '8',
    sound: { codec: 'aac', kilobitsPerSecond: 192 },
  },
  sound: { codec: 'flac', deep: 'flac' },
}

/** Nothing that can be seen or measured is lost. */
const faithful: Profile = {
  image: {
    sidePixelsMax: Infinity,
    depth: 'as-is',
    gamut: 'as-is',
    ofJpeg: { format: 'png' },
    opaque: { format: 'png' },
    transparent: { format: 'png' },
    effort: 'as-allowed',
    frames: 'all',
  },
  film: {
    copy: true,
    rateFactor: 0,
    preset: 'veryfast',
    sidePixelsMax: Infinity,
    depth: 'as-is',
    sound: { codec: 'flac' },
  },
  sound: { codec: 'flac', deep: 'wavpack' },
}

/** For thin links: what a person still calls a good picture, in a fifth of the bytes. */
const compact: Profile = {
  image: {
    sidePixelsMax: 2048,
    depth: '8',
    gamut: 'srgb',
    ofJpeg: { format: 'jpeg', quality: 75, chroma: '4:2:0' },
    opaque: { format: 'jpeg', quality: 75, chroma: '4:2:0' },
    transparent: { format: 'webp', quality: 75 },
    effort: 'small',
    frames: 'first',
  },
  film: {
    copy: false,
    rateFactor: 28,
    preset: 'medium',
    sidePixelsMax: 1280,
    depth: '8',
    sound: { codec: 'aac', kilobitsPerSecond: 96 },
  },
  sound: { codec: 'aac', kilobitsPerSecond: 96 },
}

export const profiles: Record<GateProfile, Profile> = { analysis, faithful, compact }
