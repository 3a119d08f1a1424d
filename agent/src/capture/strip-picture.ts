/** Takes out of what an encoder wrote all that is not the picture: the readers of sources keep nothing else. */
import { deflateSync } from 'node:zlib'
import { profileName } from './clean-picture.ts'
import { readJpeg } from './jpeg-structure.ts'
import { pngChunk, readPng } from './png-structure.ts'
import { readWebp } from './webp-structure.ts'

const strictly = { salvage: false, pages: 'all', frames: 'all' } as const

/** Tables, frame, scans and a plain JFIF header. */
export function stripJpeg(bytes: Buffer): Buffer {
  return readJpeg(bytes, strictly).decodable
}

/**
 * Header, palette, transparency and picture data.
 *
 * @param profile One of our own, put in behind the header.
 */
export function stripPng(bytes: Buffer, profile?: Buffer): Buffer {
  const bare = readPng(bytes, strictly).decodable
  if (profile === undefined) return bare
  const content = Buffer.concat([Buffer.from(`${profileName}\0\0`, 'latin1'), deflateSync(profile)])
  const headerEnd = 8 + 25
  return Buffer.concat([
    bare.subarray(0, headerEnd),
    pngChunk('iCCP', content),
    bare.subarray(headerEnd),
  ])
}

/** The coded picture, with its alpha. */
export function stripWebp(bytes: Buffer): Buffer {
  return readWebp(bytes, strictly).decodable
}
