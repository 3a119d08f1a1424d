/** Hands out the samples of a sound, and nothing that lies below or between them. */

/** How samples lie in a file; the lowest `unusedBits` of each are none of it. */
type SampleForm = { bitsPerSample: number; unusedBits: number; bigEndian: boolean }

/**
 * Clears the lowest bits of every sample, which its format says are none of it: nobody hears them, and
 * they may say anything.
 *
 * @param pieces Samples from the first one on, in pieces of any size.
 */
export async function* usedBits(
  pieces: AsyncIterable<Buffer>,
  { bitsPerSample, unusedBits, bigEndian }: SampleForm,
): AsyncGenerator<Buffer> {
  if (unusedBits === 0) {
    yield* pieces
    return
  }
  const sampleBytes = bitsPerSample / 8
  // From the lowest byte up, then as bytes lie in the file.
  const masks = Array.from({ length: sampleBytes }, (_, i) => {
    const unused = Math.min(8, Math.max(0, unusedBits - 8 * i))
    return (0xff << unused) & 0xff
  })
  if (bigEndian) masks.reverse()
  const masked = [...masks.entries()].filter(([, mask]) => mask !== 0xff)
  let at = 0
  for await (const piece of pieces) {
    const clean = Buffer.from(piece)
    for (const [place, mask] of masked) {
      const first = (((place - at) % sampleBytes) + sampleBytes) % sampleBytes
      for (let i = first; i < clean.length; i += sampleBytes) clean[i] = (clean[i] ?? 0) & mask
    }
    at += piece.length
    yield clean
  }
}

/**
 * How many bits of a whole number of bytes a format says are not used.
 *
 * @param said Below 8, or more than there are, it makes no sense, and every bit counts.
 */
export function unusedBitsOf(bitsPerSample: number, said: number): number {
  return said >= 8 && said < bitsPerSample ? bitsPerSample - said : 0
}
