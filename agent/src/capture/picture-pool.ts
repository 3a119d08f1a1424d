/** Keeps a few picture decoders running, so that a thousand small pictures don't pay a thousand process starts. */
import { availableParallelism } from 'node:os'
import { startPictureDecoder } from './picture-decoder.ts'
import type { DecoderOptions, PictureDecoder } from './picture-decoder.ts'
import { createTurns } from './turns.ts'

export type PicturePool = AsyncDisposable & {
  /** How many pictures are worked on at once. */
  readonly width: number
  /** Processes that were started so far. */
  readonly started: number
  /** Lends a decoder for one file; one that saw something bad is thrown away. */
  use<T>(kind: DecoderKind, work: (decoder: PictureDecoder) => Promise<T>): Promise<T>
}

/** HEIC has processes of its own: its decoder shares no memory with that of other formats. */
export type DecoderKind = 'sharp' | 'heic'

/**
 * A pool serves the media of one job, or one run of the command line: what takes over a decoder reaches
 * the pictures after it, and those are of the same owner. Nothing is started before it is needed.
 */
export function openPicturePool(options: DecoderOptions & { width?: number }): PicturePool {
  const width = options.width ?? Math.min(4, availableParallelism())
  const turns = createTurns(width)
  const idle = new Map<DecoderKind, PictureDecoder[]>([
    ['sharp', []],
    ['heic', []],
  ])
  const running = new Set<PictureDecoder>()
  const closed = new AbortController()
  let started = 0
  const start = () => {
    started += 1
    const decoder = startPictureDecoder(options)
    running.add(decoder)
    return decoder
  }
  return {
    width,
    get started() {
      return started
    },
    use: (kind, work) =>
      turns.take(async () => {
        const decoder = idle.get(kind)?.pop() ?? start()
        try {
          return await work(decoder)
        } finally {
          if (decoder.fit && !closed.signal.aborted) idle.get(kind)?.push(decoder)
          else {
            running.delete(decoder)
            await decoder[Symbol.asyncDispose]()
          }
        }
      }, closed.signal),
    async [Symbol.asyncDispose]() {
      closed.abort(new Error('the pool of decoders was closed'))
      await Promise.all([...running].map((decoder) => decoder[Symbol.asyncDispose]()))
    },
  }
}
