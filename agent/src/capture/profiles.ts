/** What each profile makes of a picture, a film and a sound: one table, so that nothing is decided twice. */
import type { GateProfile } from '@sluice/protocol/manifest'

export type JpegForm = { format: 'jpeg'; quality: number; chroma: '4:4:4' | '4:2:0' }
export type PngForm = { format: 'png'; level: number }
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
  /** Pages of a document (TIFF): the further ones as further media, or dropped. */
  pages: 'all' | 'first'
  /** Frames of an animation (GIF, WebP, APNG): likewise. */
  frames: 'all' | 'first'
}

export type FilmProfile = {
  /** Constant rate factor of x264: 0 is lossless, 51 the worst. */
  rateFactor: number
  soundKilobitsPerSecond: number
}

export type SoundProfile = {
  form: 'flac'
}

export type Profile = { image: ImageProfile; film: FilmProfile; sound: SoundProfile }

/** What a model sees well: eight bits, sRGB, no side longer than models look at. */
const analysis: Profile = {
  image: {
    sidePixelsMax: 4096,
    depth: '8',
    gamut: 'srgb',
    ofJpeg: { format: 'jpeg', quality: 95, chroma: '4:4:4' },
    opaque: { format: 'png', level: 1 },
    transparent: { format: 'png', level: 1 },
    pages: 'all',
    frames: 'first',
  },
  film: { rateFactor: 20, soundKilobitsPerSecond: 192 },
  sound: { form: 'flac' },
}

/** Nothing that can be seen or measured is lost. */
const faithful: Profile = {
  image: {
    sidePixelsMax: Infinity,
    depth: 'as-is',
    gamut: 'as-is',
    ofJpeg: { format: 'png', level: 6 },
    opaque: { format: 'png', level: 6 },
    transparent: { format: 'png', level: 6 },
    pages: 'all',
    frames: 'all',
  },
  film: { rateFactor: 0, soundKilobitsPerSecond: 320 },
  sound: { form: 'flac' },
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
    pages: 'all',
    frames: 'first',
  },
  film: { rateFactor: 28, soundKilobitsPerSecond: 96 },
  sound: { form: 'flac' },
}

export const profiles: Record<GateProfile, Profile> = { analysis, faithful, compact }
