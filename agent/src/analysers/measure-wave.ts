/** Measures uncompressed sound without any decoder: length and mean level of a 16-bit WAV. */

/** Everything before the samples; our own WAV files have 44 bytes of it. */
const headBytesMax = 64 * 1024

type Format = { channels: number; sampleRateHz: number; dataAt: number; dataBytes: number }

/** @returns undefined when it is no WAV of 16-bit samples. */
export async function measureWave(input: AsyncIterable<Buffer>): Promise<object | undefined> {
  let pending = Buffer.alloc(0)
  let format: Format | undefined
  let remaining = 0
  let samples = 0
  let squares = 0
  for await (const piece of input) {
    pending = Buffer.concat([pending, piece])
    if (format === undefined) {
      format = readFormat(pending)
      if (format === undefined && pending.length > headBytesMax) return undefined
      if (format === undefined) continue
      pending = pending.subarray(format.dataAt)
      remaining = format.dataBytes
    }
    const usable = Math.min(pending.length - (pending.length % 2), remaining)
    for (let at = 0; at + 1 < usable; at += 2) {
      const sample = pending.readInt16LE(at) / 32_768
      squares += sample * sample
      samples += 1
    }
    pending = pending.subarray(usable)
    remaining -= usable
  }
  if (format === undefined) return undefined
  const rms = samples === 0 ? 0 : Math.sqrt(squares / samples)
  return {
    durationMs: Math.round((samples / format.channels / format.sampleRateHz) * 1000),
    rmsDbfs: rms === 0 ? null : Math.round(200 * Math.log10(rms)) / 10,
  }
}

/** @see Microsoft and IBM, "Multimedia Programming Interface and Data Specifications 1.0": RIFF. */
function readFormat(bytes: Buffer): Format | undefined {
  if (bytes.length < 12 || bytes.toString('latin1', 0, 4) !== 'RIFF') return undefined
  let channels = 0
  let sampleRateHz = 0
  for (let at = 12; at + 8 <= bytes.length;) {
    const name = bytes.toString('latin1', at, at + 4)
    const size = bytes.readUInt32LE(at + 4)
    const content = at + 8
    if (name === 'data') {
      if (channels === 0 || sampleRateHz === 0) return undefined
      return { channels, sampleRateHz, dataAt: content, dataBytes: size - (size % 2) }
    }
    if (name === 'fmt ') {
      if (content + 16 > bytes.length || bytes.readUInt16LE(content + 14) !== 16) return undefined
      channels = bytes.readUInt16LE(content + 2)
      sampleRateHz = bytes.readUInt32LE(content + 4)
    }
    at = content + size + (size % 2)
  }
  return undefined
}
