/** Decodes the primary picture of a HEIC file; runs in the sandbox only, as libheif reads what strangers wrote. */
import { createRequire } from 'node:module'
import type { PlainPicture } from './plain-picture.ts'

/** What is used of libheif, as its WebAssembly build offers it. */
type Libheif = {
  heif_get_version(): string
  heif_context_alloc(): object
  heif_context_free(context: object): void
  heif_context_read_from_memory(context: object, bytes: Uint8Array): { code: { value: number } }
  heif_js_context_get_primary_image_handle(context: object): Handle
  heif_js_decode_image2(handle: Handle, colorspace: object, chroma: object): Decoded
  heif_image_handle_release(handle: Handle): void
  heif_image_release(image: object): void
  heif_image_handle_has_alpha_channel(handle: Handle): number
  heif_colorspace: { heif_colorspace_RGB: object }
  heif_chroma: Record<`heif_chroma_interleaved_${string}`, object>
}

type Handle = object & { code?: unknown }

type Decoded = {
  code?: unknown
  image: object
  channels: {
    width: number
    height: number
    stride: number
    bits_per_pixel: number
    data: Uint8Array
  }[]
}

let loaded: Libheif | undefined

function libheif(): Libheif {
  // A CommonJS package without types; its WebAssembly lies inside the script, so no file is looked up.
  loaded ??= createRequire(import.meta.url)('libheif-js/wasm-bundle') as Libheif
  return loaded
}

/** The version for the manifest. */
export function libheifVersion(): string {
  return libheif().heif_get_version()
}

/**
 * Decodes with the transformations of the file applied (`irot`, `imir`, `clap`): these are law, and an
 * orientation in its EXIF is not.
 *
 * @param bits How many the file has a sample; more than eight give samples of sixteen.
 * @returns undefined when libheif can't decode it.
 * @see ISO/IEC 23008-12, 6.5.10, 6.5.12; libheif, heif_decode_image.
 */
export function decodeHeic(bytes: Buffer, bits: number): PlainPicture | undefined {
  const heif = libheif()
  const context = heif.heif_context_alloc()
  try {
    if (heif.heif_context_read_from_memory(context, bytes).code.value !== 0) return undefined
    const handle = heif.heif_js_context_get_primary_image_handle(context)
    if (handle.code !== undefined) return undefined
    try {
      return decodeHandle(heif, handle, bits)
    } finally {
      heif.heif_image_handle_release(handle)
    }
  } finally {
    heif.heif_context_free(context)
  }
}

function decodeHandle(heif: Libheif, handle: Handle, bits: number): PlainPicture | undefined {
  const channels = heif.heif_image_handle_has_alpha_channel(handle) === 0 ? 3 : 4
  const order = ['RGB', 'RGBA', 'RRGGBB_LE', 'RRGGBBAA_LE'][(bits > 8 ? 2 : 0) + (channels - 3)]
  const chroma = heif.heif_chroma[`heif_chroma_interleaved_${order ?? ''}`]
  if (chroma === undefined) return undefined
  const decoded = heif.heif_js_decode_image2(
    handle,
    heif.heif_colorspace.heif_colorspace_RGB,
    chroma,
  )
  if (decoded.code !== undefined) return undefined
  try {
    const [plane] = decoded.channels
    return plane === undefined ? undefined : pack(plane, { channels, bits: bits > 8 ? 16 : 8 })
  } finally {
    heif.heif_image_release(decoded.image)
  }
}

/** Rows without their padding, and samples of ten or twelve bits spread over sixteen. */
function pack(
  plane: Decoded['channels'][number],
  form: { channels: 3 | 4; bits: 8 | 16 },
): PlainPicture {
  const { width: widthPixels, height: heightPixels, stride, data } = plane
  const rowBytes = widthPixels * form.channels * (form.bits / 8)
  const samples = Buffer.alloc(rowBytes * heightPixels)
  for (let row = 0; row < heightPixels; row++) {
    samples.set(data.subarray(row * stride, row * stride + rowBytes), row * rowBytes)
  }
  if (form.bits === 16 && plane.bits_per_pixel < 16) {
    const [up, down] = [16 - plane.bits_per_pixel, 2 * plane.bits_per_pixel - 16]
    const words = new Uint16Array(samples.buffer, samples.byteOffset, samples.length / 2)
    for (let i = 0; i < words.length; i++) {
      const value = words[i] ?? 0
      words[i] = (value << up) | (value >> down)
    }
  }
  return { widthPixels, heightPixels, ...form, samples }
}
