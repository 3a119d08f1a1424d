/** One decoder process in the sandbox that takes pictures one after the other, and what is asked of it. */
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { ownScript, runInSandbox, siblingScript } from '../sandbox.ts'
import type { SandboxExit } from '../sandbox.ts'
import { DamagedPicture, TooLargePicture, UnsupportedPicture } from './damaged-picture.ts'
import { requireDecoderEnd } from './decoder-end.ts'
import { decoderFrame } from './picture-answer.ts'
import { frameHead, nonsense, readFrames } from './picture-frames.ts'
import type { DecoderFrame, DecoderOrder, FrameReader } from './picture-frames.ts'

/** What became of one picture file; `pictures` were handed over as they came. */
export type DecodedFacts = Pick<Extract<DecoderFrame, { type: 'done' }>, 'removed' | 'tools'>

export type DecodedPicture = Extract<DecoderFrame, { type: 'picture' }>

export type PictureDecoder = AsyncDisposable & {
  /** Whether it may be given another picture. */
  readonly fit: boolean
  /**
   * Decodes one file.
   *
   * @param take Gets each picture as it is finished, and owns its bytes.
   * @throws SluiceError `media.*`; what `take` throws. The decoder is fit afterwards only when the file
   *   was refused by its structure: then no decoder of others has seen a byte of it.
   */
  decode(
    order: DecoderOrder,
    file: { bytes: number; stream: AsyncIterable<Uint8Array> },
    take: (picture: DecodedPicture, bytes: Buffer) => Promise<void>,
  ): Promise<DecodedFacts>
}

export type DecoderOptions = {
  isolation: IsolationLevel
  signal?: AbortSignal
  /** A decoder that misbehaves. */
  dangerousTestOnlyScript?: URL
}

/** A PNG of noise is a little larger than its samples; eight bytes a pixel and some room. */
const pictureBytesMax = 8 * limits.imagePixelsMax + 64 * 1024 ** 2

/** Starts the process; it waits for pictures until it is disposed of. */
export function startPictureDecoder(options: DecoderOptions): PictureDecoder {
  const { isolation, signal } = options
  const script = ownScript(
    options.dangerousTestOnlyScript ?? siblingScript(import.meta.url, 'image-decoder'),
  )
  const stop = new AbortController()
  const input = createFeed()
  const ready = Promise.withResolvers<FrameReader>()
  const over = Promise.withResolvers<void>()
  const ended = runInSandbox(
    {
      isolation,
      program: script.program,
      args: () => [...script.args, String(limits.imageFileBytesMax)],
      visible: script.visible,
      stdin: input.pieces(),
      bounds: {
        // Each picture has its own clock; this one ends a decoder that nobody disposed of.
        wallMs: lifeMsMax,
        cpuSeconds: lifeMsMax / 1000,
        memoryBytes: limits.imageDecoderMemoryBytesMax,
        outputBytesMax: Number.MAX_SAFE_INTEGER,
      },
      signal: signal === undefined ? stop.signal : AbortSignal.any([signal, stop.signal]),
    },
    async (output) => {
      ready.resolve(readFrames(output))
      await over.promise
    },
  ).then(
    ({ exit }) => exit,
    // What is not a medium's fault is told to whoever waits for the answer.
    (error: unknown) => {
      ready.reject(error)
      throw error
    },
  )
  ready.promise.catch(() => undefined)
  ended.catch(() => undefined)
  let fit = true
  let pictures = 0
  const end = async (): Promise<SandboxExit> => {
    fit = false
    input.end()
    over.resolve()
    return ended
  }
  return {
    get fit() {
      return fit
    },
    async decode(order, file, take) {
      const clock = createClock(() => stop.abort())
      let isHarmless = false
      pictures += 1
      try {
        const fed = input.put([frameHead(order, file.bytes)], file.stream)
        const { answer, begun } = await hear(await ready.promise, clock, take)
        // An answer before all was read is one that nobody can have worked for.
        if (answer !== undefined) await fed
        if (answer === undefined) throw await whyEnded(end, clock.isOver(), signal)
        isHarmless = answer.type === 'done' || !begun
        if (isHarmless && pictures >= limits.imagesPerDecoderMax) await end()
        if (answer.type === 'failed') throw failureOf(answer)
        return { removed: answer.removed, tools: answer.tools }
      } catch (error) {
        // A decoder that saw something bad is never used again.
        if (!isHarmless) {
          stop.abort()
          await end().catch(() => undefined)
        }
        throw error
      } finally {
        clock.stop()
      }
    },
    async [Symbol.asyncDispose]() {
      stop.abort()
      await end().catch(() => undefined)
    },
  }
}

const lifeMsMax = 24 * 60 * 60 * 1000

/** How a file ended, and whether it got as far as being decoded; no answer when the process ended. */
type Heard = {
  answer: Extract<DecoderFrame, { type: 'done' | 'failed' }> | undefined
  begun: boolean
}

async function hear(
  reader: FrameReader,
  clock: Clock,
  take: (picture: DecodedPicture, bytes: Buffer) => Promise<void>,
): Promise<Heard> {
  let begun = false
  for (let taken = 0; ;) {
    const frame = await reader.next(pictureBytesMax)
    if (frame === undefined) return { answer: undefined, begun }
    const parsed = decoderFrame.safeParse(frame.json)
    if (!parsed.success) throw nonsense()
    switch (parsed.data.type) {
      case 'begun':
        clock.extend(parsed.data.pixels)
        begun = true
        break
      case 'picture':
        taken += 1
        if (taken > limits.imageFramesMax) throw nonsense()
        await take(parsed.data, frame.bytes)
        break
      case 'done':
        if (taken === 0) throw nonsense()
        return { answer: parsed.data, begun }
      case 'failed':
        return { answer: parsed.data, begun }
    }
  }
}

async function whyEnded(
  end: () => Promise<SandboxExit>,
  overTime: boolean,
  signal: AbortSignal | undefined,
): Promise<Error> {
  const exit = await end()
  const outcome = overTime && signal?.aborted !== true ? 'timeout' : exit.outcome
  try {
    requireDecoderEnd({ ...exit, outcome }, 'picture')
  } catch (error) {
    if (error instanceof Error) return error
  }
  // It ended by itself and politely, without an answer.
  return nonsense()
}

function failureOf(failed: Extract<DecoderFrame, { type: 'failed' }>): Error {
  if (failed.why === 'damaged') return new DamagedPicture(failed.atByte)
  if (failed.why === 'too-large') return new TooLargePicture(failed.what)
  return new UnsupportedPicture(failed.found)
}

type Clock = { extend: (pixels: number) => void; isOver: () => boolean; stop: () => void }

/** Ten seconds, and what the pixels need that the header promises, once. */
function createClock(over: () => void): Clock {
  let isOver = false
  const ring = () => {
    isOver = true
    over()
  }
  const startedAt = performance.now()
  let timer = setTimeout(ring, limits.imageDecodeMsBase)
  let extended = false
  return {
    extend(pixels) {
      if (extended || isOver) return
      extended = true
      const megapixels = Math.min(pixels, limits.imagePixelsSumMax) / 1_000_000
      const wholeMs = limits.imageDecodeMsBase + megapixels * limits.imageDecodeMsPerMegapixel
      clearTimeout(timer)
      timer = setTimeout(ring, Math.max(0, wholeMs - (performance.now() - startedAt)))
    },
    isOver: () => isOver,
    stop: () => clearTimeout(timer),
  }
}

type Feed = {
  pieces(): AsyncGenerator<Uint8Array>
  /** Resolves when all was taken, or nothing will be any more; rejects with what the stream throws. */
  put(head: readonly Buffer[], stream: AsyncIterable<Uint8Array>): Promise<void>
  end(): void
}

/** Standard input of a process that lives longer than one file. */
function createFeed(): Feed {
  type Entry = {
    head: readonly Buffer[]
    stream: AsyncIterable<Uint8Array>
    taken: PromiseWithResolvers<void>
  }
  const waiting: Entry[] = []
  let ended = false
  let wake = Promise.withResolvers<void>()
  return {
    async *pieces() {
      try {
        for (;;) {
          const entry = waiting.shift()
          if (entry === undefined) {
            if (ended) return
            await wake.promise
            wake = Promise.withResolvers<void>()
            continue
          }
          const stream = entry.stream[Symbol.asyncIterator]()
          const next = () =>
            stream.next().catch((error: unknown) => {
              entry.taken.reject(error)
              throw error
            })
          try {
            // One by one: a list that is delegated to cannot be told that nobody reads any more.
            for (const piece of entry.head) yield piece
            for (let given = await next(); given.done !== true; given = await next())
              yield given.value
          } finally {
            await stream.return?.()
            // Whoever stopped reading has its own reason, which its exit tells.
            entry.taken.resolve()
          }
        }
      } finally {
        ended = true
        for (const entry of waiting) entry.taken.resolve()
      }
    },
    put(head, stream) {
      const taken = Promise.withResolvers<void>()
      taken.promise.catch(() => undefined)
      if (ended) taken.resolve()
      else waiting.push({ head, stream, taken })
      wake.resolve()
      return taken.promise
    },
    end() {
      ended = true
      wake.resolve()
    },
  }
}
