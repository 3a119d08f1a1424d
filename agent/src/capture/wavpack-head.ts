/** Completes a WavPack that was written to a pipe: its first block says how many samples there are. */
import { SluiceError } from '@sluice/protocol/errors'

const headBytes = 32

/** Takes the head of the first block off, to be written anew when the number is known. */
export function splitWavpack(): {
  /** All but the first 32 bytes. */
  rest(encoded: AsyncIterable<Buffer>): AsyncGenerator<Buffer>
  head(samples: number): Buffer
} {
  let head: Buffer = Buffer.alloc(0)
  return {
    async *rest(encoded) {
      for await (const piece of encoded) {
        const missing = headBytes - head.length
        if (missing > 0) head = Buffer.concat([head, piece.subarray(0, missing)])
        if (piece.length > missing) yield piece.subarray(Math.max(0, missing))
      }
    },
    head(samples) {
      if (head.length < headBytes) {
        throw new SluiceError('media.corrupt', 'the sound holds no samples', {
          hint: 'Copy it from the recorder again.',
        })
      }
      const whole = Buffer.from(head)
      whole.writeUInt32LE(samples, 12)
      return whole
    },
  }
}
