/** Reads the head of an AVI for the facts that are needed before anything decodes it. */
import { limits } from '@sluice/protocol/limits'
import {
  greatestDivisor,
  corruptMedium,
  placed,
  readAhead,
  requireLimits,
  tooLarge,
} from './av-facts.ts'
import type { AvFacts, PictureEnd, PictureFacts, Readable, ReadOptions } from './av-facts.ts'

/** The list of headers; samples lie in another one. */
const headerBytesMax = 4 * 1024 ** 2
const chunksMax = 10_000
/** RIFF within RIFF is an attack, not a film: headers lie two lists deep. */
const depthMax = 4

type Chunk = { name: string; start: number; end: number }

/**
 * @throws SluiceError `media.corrupt` with the byte where the chunks stop to fit, `media.too_large`.
 * @see Microsoft, "AVI RIFF File Reference", and OpenDML AVI File Format Extensions 1.02.
 */
export async function readAvi(source: Readable, options: ReadOptions = {}): Promise<AvFacts> {
  const removed = new Set<string>()
  let header: Buffer | undefined
  let headerAt = 0
  let pictures = false
  let count = 0
  let endAt: number | undefined
  for (let at = 0; at + 12 <= source.bytes;) {
    const head = await source.read(at, 12)
    const name = head.toString('latin1', 0, 4)
    // Behind the last chunk, cameras leave padding: not RIFF, so not the film's.
    if (name !== 'RIFF') {
      if (at === 0) throw corruptMedium('film', { byte: 0 })
      removed.add('trailer')
      endAt = at
      break
    }
    const end = at + 8 + unfinished(head.readUInt32LE(4))
    const within = Math.min(end, source.bytes)
    for (let chunkAt = at + 12; chunkAt + 8 <= within;) {
      if (++count > chunksMax) throw corruptMedium('film', { byte: chunkAt })
      const chunk = await chunkAtOffset(source, chunkAt)
      const left = within - chunk.start
      // Behind the pictures there is an index, which nobody needs who reads them in order.
      if (chunk.end > within && pictures && chunk.name !== 'LIST') {
        removed.add('trailer')
        break
      }
      if (chunk.end > within && !(options.salvage === true && header !== undefined)) {
        throw corruptMedium('film', { byte: end > source.bytes ? source.bytes : chunkAt })
      }
      const list =
        chunk.name === 'LIST'
          ? (await source.read(chunk.start, Math.min(4, left))).toString('latin1')
          : ''
      if (list === 'hdrl' && header === undefined) {
        if (chunk.end - chunk.start > headerBytesMax) throw corruptMedium('film', { byte: chunkAt })
        header = await source.read(chunk.start, chunk.end - chunk.start)
        headerAt = chunkAt
      }
      if (list === 'movi') pictures = true
      if (list === 'INFO') removed.add('text')
      if (chunk.name === 'IDIT') removed.add('time')
      if (['_PMX', 'id3 ', 'ID3 '].includes(chunk.name))
        removed.add(chunk.name === '_PMX' ? 'xmp' : 'id3')
      chunkAt = chunk.end + ((chunk.end - chunk.start) % 2)
    }
    at = Math.max(end + (end % 2), at + 12)
  }
  if (header === undefined || !pictures) throw corruptMedium('film', { byte: source.bytes })
  const whole = header
  const found = placed(headerAt, () => readHeader(whole, removed))
  const ended = endAt === undefined ? {} : { endAt }
  const facts = { ...found, ...ended, removed: [...removed].toSorted() }
  requireLimits(facts)
  return facts
}

/** As many as pictures and sound together have in four hours. */
const samplesMax = 4_000_000

/**
 * Counts the pictures in an AVI. One without bytes is no picture: the one before stays on.
 *
 * @throws SluiceError `media.corrupt` with the byte where the chunks stop to fit.
 */
export async function readAviEnd(source: Readable): Promise<PictureEnd | undefined> {
  const ahead = readAhead(source, 4096)
  const open = [{ start: 0, end: source.bytes }]
  let count = 0
  let last = -1
  let pictures = 0
  let stream: Frames | undefined
  for (let range = open.pop(); range !== undefined; range = open.pop()) {
    const { start, end } = range
    if (start + 8 > end) continue
    if (++count > samplesMax || open.length > 8) throw corruptMedium('film', { byte: start })
    const head = ahead.held(start, 8) ?? (await ahead.read(start, 8))
    const name = head.toString('latin1', 0, 4)
    const bytes = head.readUInt32LE(4)
    const content = start + 8
    if (content + bytes > end) {
      if (last < 0 || range.end === source.bytes) break
      throw corruptMedium('film', { byte: start })
    }
    open.push({ start: content + bytes + (bytes % 2), end })
    const list =
      /^(?:RIFF|LIST)$/.test(name) && bytes >= 4 ? await ahead.read(content, 4) : undefined
    if (list?.toString('latin1') === 'hdrl' && bytes <= headerBytesMax) {
      stream ??= firstPictures(await source.read(content, bytes))
    } else if (list !== undefined && /^(?:AVI |AVIX|movi|rec )$/.test(list.toString('latin1'))) {
      open.push({ start: content + 4, end: content + bytes })
    }
    if (stream !== undefined && name.startsWith(stream.number) && /^d[bc]$/.test(name.slice(2))) {
      if (bytes > 0) last = pictures
      pictures += 1
    }
  }
  if (stream === undefined || last < 0) return undefined
  const { frameMs, clockHz } = stream
  return { lastMs: last * frameMs, untilMs: pictures * frameMs, clockHz }
}

type Frames = { number: string; frameMs: number; clockHz: number }

/** Number of the first stream of pictures, as its chunks are called, and how long each is shown. */
function firstPictures(header: Buffer): Frames | undefined {
  const lists = chunksIn(header, [4, header.length], 1).filter(
    ({ name, start }) => name === 'LIST' && header.toString('latin1', start, start + 4) === 'strl',
  )
  for (const [i, list] of lists.entries()) {
    const head = chunksIn(header, [list.start + 4, list.end], 2).find(({ name }) => name === 'strh')
    if (head === undefined || head.end - head.start < 36) continue
    if (header.toString('latin1', head.start, head.start + 4) !== 'vids') continue
    const scale = header.readUInt32LE(head.start + 20)
    const rate = header.readUInt32LE(head.start + 24)
    if (rate === 0 || scale === 0) return undefined
    const clockHz = rate / greatestDivisor(scale, rate)
    return { number: String(i).padStart(2, '0'), frameMs: (scale * 1000) / rate, clockHz }
  }
  return undefined
}

async function chunkAtOffset(source: Readable, at: number): Promise<Chunk> {
  const head = await source.read(at, 8)
  const name = head.toString('latin1', 0, 4)
  const bytes = head.readUInt32LE(4)
  return { name, start: at + 8, end: at + 8 + (name === 'LIST' ? unfinished(bytes) : bytes) }
}

/** Recorders that lose their power leave no size where they would have gone back for it. */
function unfinished(bytes: number): number {
  return bytes < 4 ? 2 ** 32 : bytes
}

function readHeader(header: Buffer, removed: Set<string>): Omit<AvFacts, 'removed'> {
  const pictures: (PictureFacts & { durationMs: number })[] = []
  const sounds: { durationMs: number; sampleRateHz: number; channels: number }[] = []
  let main = { durationMs: 0, frames: 0 }
  for (const chunk of chunksIn(header, [4, header.length], 1)) {
    if (chunk.name === 'avih') main = readMainHeader(header, chunk)
    if (chunk.name === 'IDIT') removed.add('time')
    if (chunk.name !== 'LIST') continue
    const list = header.toString('latin1', chunk.start, chunk.start + 4)
    if (list === 'INFO') removed.add('text')
    if (list !== 'strl') continue
    const stream = readStream(header, chunk, removed)
    // Tapes of DV keep both in one stream.
    if (stream.kind === 'vids' || stream.kind === 'iavs') pictures.push(stream.picture)
    if (stream.kind === 'auds' || stream.kind === 'iavs') sounds.push(stream.sound)
    else if (stream.kind === 'vids') continue
    else removed.add(stream.kind === 'txts' ? 'subtitles' : 'other-tracks')
  }
  if (pictures.length + sounds.length > limits.tracksMax) {
    throw tooLarge('film', 'has too many tracks', `${limits.tracksMax} of picture and sound`)
  }
  if (pictures.length > 1 || sounds.length > 1) removed.add('further-tracks')
  const [first] = pictures
  const durationMs = Math.max(
    main.durationMs,
    ...pictures.map((picture) => picture.durationMs),
    ...sounds.map((sound) => sound.durationMs),
  )
  for (const { durationMs: _, ...picture } of pictures.slice(1)) {
    requireLimits({ durationMs: 0, picture, sound: undefined, removed: [] })
  }
  return {
    durationMs: pictures.length === 0 && sounds.length === 0 ? 0 : durationMs,
    picture:
      first === undefined ? undefined : { ...first, frames: Math.max(first.frames, main.frames) },
    sound: sounds[0],
  }
}

function readMainHeader(header: Buffer, chunk: Chunk): { durationMs: number; frames: number } {
  if (chunk.end - chunk.start < 32) throw corruptMedium('film')
  const microsPerFrame = header.readUInt32LE(chunk.start)
  const frames = header.readUInt32LE(chunk.start + 16)
  return { durationMs: Math.round((microsPerFrame * frames) / 1000), frames }
}

function readStream(header: Buffer, list: Chunk, removed: Set<string>) {
  const chunks = chunksIn(header, [list.start + 4, list.end], 2)
  const head = chunks.find(({ name }) => name === 'strh')
  const format = chunks.find(({ name }) => name === 'strf')
  if (head === undefined || format === undefined || head.end - head.start < 36) {
    throw corruptMedium('film')
  }
  if (chunks.some(({ name }) => name === 'strn')) removed.add('text')
  // Cameras keep notes of their own there, such as Casio's and Nikon's tags.
  if (chunks.some(({ name }) => name === 'strd')) removed.add('maker-notes')
  const kind = header.toString('latin1', head.start, head.start + 4)
  const scale = header.readUInt32LE(head.start + 20)
  const rate = header.readUInt32LE(head.start + 24)
  const length = header.readUInt32LE(head.start + 32)
  const durationMs = rate === 0 ? 0 : Math.round((length * scale * 1000) / rate)
  const bytes = format.end - format.start
  if (kind === 'vids' && bytes < 20) throw corruptMedium('film')
  if (kind === 'auds' && bytes < 14) throw corruptMedium('film')
  const codec =
    kind === 'vids' ? header.toString('latin1', format.start + 16, format.start + 20) : ''
  return {
    kind,
    picture: {
      codec: /^(?:h264|avc1|x264)$/i.test(codec) ? ('h264' as const) : ('other' as const),
      called: codec,
      widthPixels: kind === 'vids' ? header.readUInt32LE(format.start + 4) : 0,
      // Negative: rows run from top to bottom.
      heightPixels: kind === 'vids' ? Math.abs(header.readInt32LE(format.start + 8)) : 0,
      frames: length,
      highDynamicRange: false,
      edited: false,
      durationMs,
    },
    sound: {
      channels: kind === 'auds' ? header.readUInt16LE(format.start + 2) : 0,
      sampleRateHz: kind === 'auds' ? header.readUInt32LE(format.start + 4) : 0,
      durationMs,
    },
  }
}

function chunksIn(bytes: Buffer, [start, end]: [number, number], depth: number): Chunk[] {
  if (depth > depthMax) throw corruptMedium('film')
  const chunks: Chunk[] = []
  for (let at = start; at + 8 <= end;) {
    const name = bytes.toString('latin1', at, at + 4)
    const size = bytes.readUInt32LE(at + 4)
    if (at + 8 + size > end || chunks.length > chunksMax) throw corruptMedium('film')
    chunks.push({ name, start: at + 8, end: at + 8 + size })
    at += 8 + size + (size % 2)
  }
  return chunks
}
