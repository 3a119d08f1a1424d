/** Decodes what the structure parsers left of a picture and writes it anew; runs in the sandbox only. */
import sharp from 'sharp'
import type { Sharp, SharpOptions } from 'sharp'
import { limits } from '@sluice/protocol/limits'
import { attachToJpeg, attachToPng, attachToWebp } from './attach-profile.ts'
import { readBmp } from './bmp-structure.ts'
import { choosePng } from './compression.ts'
import type { Coded, Effort } from './compression.ts'
import { DamagedPicture, TooLargePicture, UnsupportedPicture } from './damaged-picture.ts'
import { decodeHeic } from './decode-heic.ts'
import { readGif } from './gif-structure.ts'
import { readHeif } from './heif-structure.ts'
import type { HeifFacts } from './heif-structure.ts'
import {
  isHighDynamicRange,
  isSrgb,
  recogniseProfile,
  rgbSpaces,
  spaceOfCode,
  spaceOfNumbers,
  writeProfile,
} from './icc-profile.ts'
import type { RgbSpaceName } from './icc-profile.ts'
import { readJpeg } from './jpeg-structure.ts'
import { labToRgb } from './lab-colour.ts'
import type { LabForm, Orientation, PictureFacts, ReadOptions, Size } from './picture-facts.ts'
import { stretchFilmGrey, writePlainTiff } from './plain-picture.ts'
import type { PlainPicture } from './plain-picture.ts'
import { readPng } from './png-structure.ts'
import type { ImageProfile, JpegForm, PngForm, WebpForm } from './profiles.ts'
import type { PictureFormat } from './sniff.ts'
import { stripJpeg, stripPng, stripWebp } from './strip-picture.ts'
import { readTiff } from './tiff-structure.ts'
import { toneMap } from './tone-map.ts'
import { readWebp } from './webp-structure.ts'

export type RenderOptions = {
  profile: ImageProfile
  salvage: boolean
  effort: Effort
  pages: 'all' | 'first'
}

/** One picture or frame, written anew and stripped. */
export type Rendered = { bytes: Buffer; partial?: true; hdr?: 'tone-mapped' }

/** A picture whose structure was read: what it is, and how to get its pictures one after the other. */
export type ReadPicture = {
  facts: PictureFacts
  pictures: () => AsyncGenerator<Rendered>
}

/** What sharp gets: a file and the one loader it takes, or samples as they are. */
type Input = { bytes: Buffer; loader: string } | PlainPicture

const loaders = {
  jpeg: 'VipsForeignLoadJpeg',
  png: 'VipsForeignLoadPng',
  webp: 'VipsForeignLoadWebp',
  gif: 'VipsForeignLoadNsgif',
  tiff: 'VipsForeignLoadTiff',
  avif: 'VipsForeignLoadHeif',
} as const

/** Formats that hold several pictures under numbers. */
const paged = new Set<string | undefined>([loaders.gif, loaders.tiff, loaders.webp, loaders.avif])

/**
 * No cache: a process that decodes for strangers keeps nothing. And no file: above 100 MB libvips would
 * put a picture into the folder for temporary files, which here does not exist; what it may hold in
 * memory is bounded from outside.
 *
 * @see libvips, "How it opens files", VIPS_DISC_THRESHOLD.
 */
export function setUpSharp(): void {
  process.env['VIPS_DISC_THRESHOLD'] = '64g'
  sharp.cache(false)
  sharp.concurrency(1)
  sharp.block({ operation: ['VipsForeignLoad'] })
}

/**
 * Reads the structure; nothing is decoded yet.
 *
 * @throws DamagedPicture, TooLargePicture, UnsupportedPicture; so do `pictures`.
 */
export function readPicture(
  format: PictureFormat,
  bytes: Buffer,
  options: RenderOptions,
): ReadPicture {
  const { salvage, pages, profile } = options
  const read: ReadOptions = { salvage, pages, frames: profile.frames }
  if (format === 'bmp') return bmpPicture(bytes, options)
  if (format === 'avif' || format === 'heic') return heifPicture(readHeif(bytes, read), options)
  return sharpPicture(readers[format](bytes, read), loaders[format], options)
}

const readers = { jpeg: readJpeg, png: readPng, webp: readWebp, gif: readGif, tiff: readTiff }

function heifPicture(facts: HeifFacts, options: RenderOptions): ReadPicture {
  if (facts.coding === 'av1') return sharpPicture(facts, loaders.avif, options)
  return {
    facts,
    async *pictures() {
      // More than eight bits are asked for only where they are of use: they double the memory.
      const { hdr } = coloursOf(facts, options.profile)
      const deep = options.profile.depth === 'as-is' || hdr !== undefined
      const decoded = decodeHeic(facts.decodable, deep ? facts.bits : 8)
      if (decoded === undefined) throw new DamagedPicture(facts.codedAt)
      yield await renderPlain(decoded, facts, options)
    },
  }
}

function bmpPicture(bytes: Buffer, options: RenderOptions): ReadPicture {
  const { removed, icc, damagedAt, ...plain } = readBmp(bytes, options)
  const facts: PictureFacts = {
    pages: [{ index: 0, orientation: 1, ...plain }],
    animated: false,
    removed,
    codedAt: 0,
    decodable: bytes,
    ...(icc === undefined ? {} : { icc }),
    ...(damagedAt === undefined ? {} : { damagedAt }),
  }
  return {
    facts,
    async *pictures() {
      yield await renderPlain(plain, facts, options)
    },
  }
}

/** What the colours of a picture need: nothing, a conversion, or to be named in the result. */
type Colours = {
  /** To be applied by the decoder. */
  icc?: Buffer
  /** Numbers stay as they are, and the result names the space. */
  keep?: RgbSpaceName
  hdr?: { transfer: number; primaries: number }
}

function coloursOf(facts: PictureFacts, profile: ImageProfile): Colours {
  const { icc, colour } = facts
  if (icc !== undefined) {
    const known = recogniseProfile(icc)
    if (known === 'srgb') return {}
    return known !== undefined && profile.gamut === 'as-is' ? { keep: known } : { icc }
  }
  if (colour === undefined) return {}
  if ('transfer' in colour && isHighDynamicRange(colour.transfer)) return { hdr: colour }
  const space =
    'transfer' in colour
      ? spaceOfCode(colour.primaries, colour.transfer)
      : spaceOfNumbers(colour.chromaticities, colour.gamma)
  if (space === undefined || isSrgb(space)) return {}
  const written = writeProfile(space)
  const known = recogniseProfile(written)
  return known !== undefined && profile.gamut === 'as-is' ? { keep: known } : { icc: written }
}

/**
 * Decodes a JPEG up to rows that are not there, so that its decoder says what it missed in the last ones that
 * are.
 *
 * @throws DamagedPicture.
 */
async function proveLastRows(facts: PictureFacts): Promise<void> {
  const { beyondLast, decodable, pages } = facts
  const [page] = pages
  if (beyondLast === undefined || page === undefined) return
  const { heightAt, heightPixels } = beyondLast
  const input = { bytes: decodable, loader: loaders.jpeg }
  const settings = { ...inputOptions(input.loader, { salvage: false }), ignoreIcc: true }
  decodable.writeUInt16BE(heightPixels, heightAt)
  try {
    await decoding(input, facts, () =>
      open(input, settings)
        .extract({ left: 0, top: heightPixels - 1, width: 1, height: 1 })
        .raw()
        .toBuffer(),
    )
  } finally {
    decodable.writeUInt16BE(page.heightPixels, heightAt)
  }
}

/**
 * Does the work strictly. Where something is amiss and that is allowed, it is done again with what there is,
 * and the result says so.
 */
async function salvaging<T extends object>(
  options: RenderOptions,
  work: (options: RenderOptions) => Promise<T>,
): Promise<T & { partial?: true }> {
  if (!options.salvage) return work(options)
  try {
    return await work({ ...options, salvage: false })
  } catch (error) {
    if (!(error instanceof DamagedPicture)) throw error
    return { ...(await work(options)), partial: true }
  }
}

function sharpPicture(facts: PictureFacts, loader: string, options: RenderOptions): ReadPicture {
  return {
    facts,
    async *pictures() {
      const colours = coloursOf(facts, options.profile)
      const input = { bytes: withColours(facts, loader, colours), loader }
      if (colours.hdr !== undefined) {
        for (const { index } of facts.pages) {
          yield await salvaging(options, async (how) => {
            const wanted = { index, count: 1, facts, options: how, deep: true }
            return renderPlain(await decodePlain(input, wanted), facts, how)
          })
        }
        return
      }
      const { filmGrey } = facts
      if (filmGrey !== undefined) {
        for (const { index } of facts.pages) {
          yield await salvaging(options, async (how) => {
            const deep = filmGrey.bits > 8 && options.profile.depth === 'as-is'
            const wanted = { index, count: 1, facts, options: how, deep }
            const plain = stretchFilmGrey(await decodePlain(input, wanted), filmGrey.bits)
            return renderPlain(plain, facts, how)
          })
        }
        return
      }
      if (facts.lab !== undefined) {
        yield* renderLab(input, facts, { ...options, lab: facts.lab })
        return
      }
      if (facts.animated && facts.pages.length > 1) {
        yield* renderFrames(input, facts, { ...options, colours })
        return
      }
      for (const page of facts.pages) {
        yield await salvaging(options, async (how) => {
          if (!how.salvage) await proveLastRows(facts)
          return render(input, { page, facts, colours, options: how })
        })
      }
    },
  }
}

function withColours(facts: PictureFacts, loader: string, colours: Colours): Buffer {
  const { decodable } = facts
  const [page] = facts.pages
  if (colours.icc === undefined || page === undefined) return decodable
  if (loader === loaders.jpeg) return attachToJpeg(decodable, colours.icc)
  if (loader === loaders.png) return attachToPng(decodable, colours.icc)
  return loader === loaders.webp ? attachToWebp(decodable, colours.icc, page) : decodable
}

async function* renderLab(
  input: Input,
  facts: PictureFacts,
  options: RenderOptions & { lab: LabForm },
): AsyncGenerator<Rendered> {
  // What profile there is has been for other viewers: Lab needs none.
  const { icc: _, ...bare } = facts
  for (const page of facts.pages) {
    yield await salvaging(options, async (how) => {
      const settings = inputOptions(loaders.tiff, how)
      const { depth } = await decoding(input, facts, () => open(input, settings).metadata())
      const wanted = { index: page.index, count: 1, facts, options: how, deep: depth === 'ushort' }
      const samples = await decodePlain(input, wanted)
      return renderPlain(labToRgb(samples, options.lab), { ...bare, pages: [page] }, how)
    })
  }
}

/** Frames are put together by the decoder from the first one on, so that many are asked for at once. */
async function* renderFrames(
  input: Input,
  facts: PictureFacts,
  options: RenderOptions & { colours: Colours },
): AsyncGenerator<Rendered> {
  const [first] = facts.pages
  if (first === undefined) return
  const batch = Math.max(1, Math.floor(framesPixelsMax / (first.widthPixels * first.heightPixels)))
  for (let index = 0; index < facts.pages.length; index += batch) {
    const count = Math.min(batch, facts.pages.length - index)
    const { partial, ...all } = await salvaging(options, (how) =>
      decodePlain(input, { index, count, facts, options: how, deep: false }),
    )
    const frameBytes = all.samples.length / count
    for (let i = 0; i < count; i++) {
      const samples = all.samples.subarray(i * frameBytes, (i + 1) * frameBytes)
      const frame = { ...all, heightPixels: all.heightPixels / count, samples }
      // Their colours have been converted already.
      const { icc: _, colour: __, ...bare } = facts
      const rendered = await renderPlain(frame, { ...bare, pages: [first] }, options)
      yield partial === undefined ? rendered : { ...rendered, partial }
    }
  }
}

/** Frames decoded at once, four bytes a pixel. */
const framesPixelsMax = 25_000_000

async function decodePlain(
  input: Input,
  wanted: {
    index: number
    count: number
    facts: PictureFacts
    options: RenderOptions
    deep: boolean
  },
): Promise<PlainPicture> {
  const { index, count, facts, options, deep } = wanted
  const loader = 'loader' in input ? input.loader : undefined
  const settings = { ...inputOptions(loader, options), page: index, pages: count }
  const image = open(input, { ...settings, ignoreIcc: facts.lab !== undefined })
  const { data, info } = await decoding(input, facts, () =>
    image
      .toColourspace(deep ? 'rgb16' : 'srgb')
      .raw({ depth: deep ? 'ushort' : 'uchar' })
      .toBuffer({ resolveWithObject: true }),
  )
  const { width: widthPixels, height: heightPixels, channels } = info
  if (channels === 2) throw new UnsupportedPicture('compression')
  return { widthPixels, heightPixels, channels, bits: deep ? 16 : 8, samples: data }
}

/** Pixels that we have ourselves take the same way, inside the simplest of files. */
async function renderPlain(
  plain: PlainPicture,
  facts: PictureFacts,
  options: RenderOptions,
): Promise<Rendered> {
  const colours = coloursOf(facts, options.profile)
  const orientation = facts.pages[0]?.orientation ?? 1
  const { hdr, ...rest } = colours
  const space =
    hdr === undefined ? undefined : (spaceOfCode(hdr.primaries, 13) ?? rgbSpaces.rec2020)
  const flat =
    hdr === undefined || space === undefined
      ? plain
      : toneMap(plain, { transfer: hdr.transfer, space })
  const { icc } = colours
  const input =
    icc === undefined ? flat : { bytes: writePlainTiff(flat, icc), loader: loaders.tiff }
  const page = { ...flat, index: 0, orientation }
  const rendered = await render(input, { page, facts, colours: rest, options })
  return hdr === undefined ? rendered : { ...rendered, hdr: 'tone-mapped' }
}

/** Starts a pipeline; `settings` count for files only. */
function open(input: Input, settings: SharpOptions): Sharp {
  if ('loader' in input) return sharp(input.bytes, settings)
  const { widthPixels: width, heightPixels: height, channels, bits, samples } = input
  const { buffer, byteOffset, length } = samples
  const typed = bits === 16 ? new Uint16Array(buffer, byteOffset, length / 2) : samples
  return sharp(typed, { limitInputPixels: false, raw: { width, height, channels } })
}

/**
 * What libtiff warns of is the form of tags; what decoders of the others warn of is missing or broken
 * picture data.
 */
function inputOptions(loader: string | undefined, options: { salvage: boolean }): SharpOptions {
  const strictest = loader === loaders.tiff ? 'error' : 'warning'
  return {
    failOn: options.salvage ? 'none' : strictest,
    // Our own parsers have counted; some room for what a decoder adds.
    limitInputPixels: limits.imagePixelsSumMax * 2,
    sequentialRead: true,
  }
}

async function render(
  input: Input,
  what: {
    page: Size & { index: number; orientation: Orientation }
    facts: PictureFacts
    colours: Colours
    options: RenderOptions
  },
): Promise<Rendered> {
  const { page, facts, colours, options } = what
  const { profile } = options
  const loader = 'loader' in input ? input.loader : undefined
  const settings = {
    ...inputOptions(loader, options),
    ...(paged.has(loader) ? { page: page.index, pages: 1 } : {}),
  }
  const { hasAlpha, depth, space, channels } = await decoding(input, facts, () =>
    open(input, settings).metadata(),
  )
  let deep = depth === 'ushort' && profile.depth === 'as-is'
  let keep = colours.keep
  let image = open(input, { ...settings, ignoreIcc: keep !== undefined })
  image = scale(image, page, profile)
  image = turn(image, page.orientation)
  image = image.toColourspace(deep ? 'rgb16' : 'srgb')
  if (colours.icc !== undefined && profile.gamut === 'as-is' && space !== 'cmyk') {
    // A profile of no standard space: sixteen bits of P3 hold what a screen or camera can see.
    image = image.pipelineColourspace('rgb16').withIccProfile('p3', { attach: false })
    image = image.toColourspace('rgb16')
    deep = true
    keep = 'p3'
  } else if (colours.icc !== undefined && depth === 'ushort') {
    // sharp converts sixteen bits to P3 on the way, and would leave them there.
    image = image.withIccProfile('srgb', { attach: false })
  }
  const form = formOf(input, { profile, hasAlpha })
  const effort = profile.effort === 'small' ? 'small' : options.effort
  const coded = codedAs(input, facts.pages, channels * (depth === 'ushort' ? 2 : 1))
  const bytes = await decoding(input, facts, async () => {
    const unseen = hasAlpha && (await mayHoldUnseen(open(input, settings), page))
    return write(unseen ? await withoutUnseen(image, deep) : image, { form, keep, effort, coded })
  })
  return facts.damagedAt === undefined ? { bytes } : { bytes, partial: true }
}

function scale(image: Sharp, page: Size, { sidePixelsMax }: ImageProfile): Sharp {
  if (Math.max(page.widthPixels, page.heightPixels) <= sidePixelsMax) return image
  return image.resize({
    width: sidePixelsMax,
    height: sidePixelsMax,
    fit: 'inside',
    withoutEnlargement: true,
  })
}

/** Mirrored first, then turned clockwise. */
const turns: Record<Orientation, readonly [mirrored: boolean, degrees: number]> = {
  1: [false, 0],
  2: [true, 0],
  3: [false, 180],
  4: [true, 180],
  5: [true, 270],
  6: [false, 90],
  7: [true, 90],
  8: [false, 270],
}

/** Our own reader has found the orientation; the decoder is never asked to apply one. */
function turn(image: Sharp, orientation: Orientation): Sharp {
  const [mirrored, degrees] = turns[orientation]
  const upright = mirrored ? image.flop() : image
  return degrees === 0 ? upright : upright.rotate(degrees)
}

/** Smaller ones are quicker blanked than looked at; larger ones need memory that an opaque one spares. */
const blankedPixelsAlways = 25_000_000

async function mayHoldUnseen(image: Sharp, { widthPixels, heightPixels }: Size): Promise<boolean> {
  if (widthPixels * heightPixels <= blankedPixelsAlways) return true
  const { channels } = await image.stats()
  return channels.at(-1)?.min === 0
}

/**
 * Colours of pixels that cannot be seen become black: editors that erase leave there what was erased,
 * and whoever drops the alpha would see it again.
 */
async function withoutUnseen(image: Sharp, deep: boolean): Promise<Sharp> {
  const { data, info } = await image
    .raw({ depth: deep ? 'ushort' : 'uchar' })
    .toBuffer({ resolveWithObject: true })
  const { width, height, channels } = info
  const samples = deep ? new Uint16Array(data.buffer, data.byteOffset, data.length / 2) : data
  const alpha = channels - 1
  for (let at = 0; at < samples.length; at += channels) {
    if (samples[at + alpha] === 0) samples.fill(0, at, at + alpha)
  }
  const blanked = sharp(samples, { limitInputPixels: false, raw: { width, height, channels } })
  return blanked.toColourspace(deep ? 'rgb16' : 'srgb')
}

function formOf(
  input: Input,
  { profile, hasAlpha }: { profile: ImageProfile; hasAlpha: boolean },
): JpegForm | PngForm | WebpForm {
  if (hasAlpha) return profile.transparent
  return 'loader' in input && input.loader === loaders.jpeg ? profile.ofJpeg : profile.opaque
}

const lossyLoaders = new Set<string>([loaders.jpeg, loaders.webp, loaders.avif])

function codedAs(input: Input, pages: readonly Size[], bytesPerPixel: number): Coded {
  if (!('loader' in input)) return { bytes: input.samples, sampleBytes: input.samples.length }
  if (lossyLoaders.has(input.loader)) return 'with-loss'
  const pixels = pages.reduce((sum, page) => sum + page.widthPixels * page.heightPixels, 0)
  return { bytes: input.bytes, sampleBytes: pixels * bytesPerPixel }
}

async function write(
  image: Sharp,
  how: {
    form: JpegForm | PngForm | WebpForm
    keep: RgbSpaceName | undefined
    effort: Effort
    coded: Coded
  },
): Promise<Buffer> {
  const { form, keep, effort, coded } = how
  if (form.format === 'jpeg') {
    const { quality, chroma: chromaSubsampling } = form
    // Huffman codes made for the picture: a sixth smaller, at three times the work.
    const optimiseCoding = effort !== 'quick'
    return stripJpeg(await image.jpeg({ quality, chromaSubsampling, optimiseCoding }).toBuffer())
  }
  if (form.format === 'webp') {
    return stripWebp(await image.webp({ quality: form.quality }).toBuffer())
  }
  const written = await image.png({ ...choosePng(effort, coded), palette: false }).toBuffer()
  const named = keep === undefined || keep === 'srgb' ? undefined : writeProfile(rgbSpaces[keep])
  return stripPng(written, named)
}

/**
 * Lets sharp work with one loader only, and puts its complaints into our words: what it says may quote
 * the picture.
 */
async function decoding<T>(input: Input, facts: PictureFacts, work: () => Promise<T>): Promise<T> {
  sharp.block({ operation: ['VipsForeignLoad'] })
  if ('loader' in input) sharp.unblock({ operation: [input.loader] })
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof Error)) throw error
    if (/unsupport|not support|not configured|unimplemented/i.test(error.message)) {
      throw new UnsupportedPicture('compression')
    }
    if (isOutOfMemory(error.message, facts)) throw new TooLargePicture('memory')
    throw new DamagedPicture(facts.cutAt ?? facts.codedAt)
  }
}

/** Where memory ended while writing, all that libvips says is that it could not write. */
function isOutOfMemory(message: string, { pages }: PictureFacts): boolean {
  if (/out of memory|unable to allocate/i.test(message)) return true
  const large = pages.some((page) => page.widthPixels * page.heightPixels > manyPixels)
  return (
    large && /^(?:vips2\w+|\w+save_buffer): unable to write to target \w+$/.test(message.trim())
  )
}

/** Below it no decoder comes near its bound. */
const manyPixels = 20_000_000
