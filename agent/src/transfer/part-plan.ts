/** Cuts a sealed object into the parts of one upload. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

/** `part` counts from 1, as S3 does. */
export type Part = { part: number; offset: number; bytes: number }

/**
 * @param sealedBytes Size of the whole sealed object; at least its 56-byte header.
 * @param partBytes Size the control plane chose for this upload.
 * @returns Parts in order; all but the last hold exactly `partBytes`.
 * @throws SluiceError `object.too_large` when it takes more than `limits.partsMax` parts.
 * @see Amazon S3 User Guide, "Multipart upload limits": 5 MiB to 5 GiB a part, 10,000 parts.
 */
export function planParts(sealedBytes: number, partBytes: number): Part[] {
  const count = Math.ceil(sealedBytes / partBytes)
  if (count > limits.partsMax || sealedBytes > limits.sealedBytesMax)
    throw new SluiceError('object.too_large', `${sealedBytes} bytes in parts of ${partBytes}`, {
      hint: 'Split the media over several jobs.',
    })
  return Array.from({ length: count }, (_, index) => {
    const offset = index * partBytes
    return { part: index + 1, offset, bytes: Math.min(partBytes, sealedBytes - offset) }
  })
}
