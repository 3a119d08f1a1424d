/** Frames of the channel: a JSON message, and behind it at most one attachment of bytes. */
import { SluiceError } from './errors.ts'
import { limits } from './limits.ts'

export type Frame = { message: unknown; attachment?: Buffer }

/**
 * Encodes a message. Without attachment it is a text frame (a string), with one a binary frame:
 * `u32le JSON bytes | JSON | attachment`. Sealed keys and results only ever travel as attachments.
 */
export function encodeFrame(message: object, attachment?: Uint8Array): string | Buffer {
  const json = JSON.stringify(message)
  if (!attachment) return json
  const head = Buffer.alloc(4)
  const body = Buffer.from(json)
  head.writeUInt32LE(body.length)
  return Buffer.concat([head, body, attachment])
}

/**
 * @throws SluiceError `channel.too_large` beyond `limits.messageBytesMax` of JSON,
 * `channel.malformed` for anything that is not a frame.
 */
export function decodeFrame(data: Buffer, isBinary: boolean): Frame {
  if (!isBinary) return { message: parseJson(data) }
  if (data.length < 4) throw new SluiceError('channel.malformed', 'binary frame without a length')
  const end = 4 + data.readUInt32LE(0)
  if (end > data.length)
    throw new SluiceError('channel.malformed', 'binary frame shorter than it says')
  return { message: parseJson(data.subarray(4, end)), attachment: data.subarray(end) }
}

function parseJson(bytes: Buffer): unknown {
  if (bytes.length > limits.messageBytesMax)
    throw new SluiceError('channel.too_large', `message of ${bytes.length} bytes`)
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch (cause) {
    throw new SluiceError('channel.malformed', 'frame is not JSON', { cause })
  }
}
