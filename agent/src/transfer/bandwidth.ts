/** Decides how long the next bytes must wait so that a rate is kept: a token bucket, pure, with time as an argument. */

/** Bytes that may go at once at `atMs`; negative when more went than had come in. */
export type Bucket = { bytes: number; atMs: number }

/** A full bucket holds one second of the rate, so that a pause is not paid back as a long burst. */
export function fullBucket(bytesPerSecond: number, nowMs: number): Bucket {
  return { bytes: bytesPerSecond, atMs: nowMs }
}

/**
 * Takes `bytes` out of the bucket at once and says how long to wait before sending them. The bucket
 * may go below zero: whoever comes next then waits longer, so the rate holds for any sizes.
 *
 * @param nowMs Monotonic milliseconds, never less than in the call before.
 */
export function takeBytes(
  bucket: Bucket,
  bytes: number,
  bytesPerSecond: number,
  nowMs: number,
): { bucket: Bucket; waitMs: number } {
  const gained = ((nowMs - bucket.atMs) * bytesPerSecond) / 1000
  const left = Math.min(bytesPerSecond, bucket.bytes + gained) - bytes
  const waitMs = left >= 0 ? 0 : Math.ceil((-left * 1000) / bytesPerSecond)
  return { bucket: { bytes: left, atMs: nowMs }, waitMs }
}
