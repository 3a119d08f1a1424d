/** Remembers what the link to the store carried lately. */

export type LinkSpeed = {
  /** An upload that was just made. */
  record(upload: { bytes: number; elapsedMs: number }): void
  /** Undefined as long as nothing tells. */
  readonly bytesPerSecond: number | undefined
}

/** A shorter upload tells about the way there and back, not about the link. */
const tellingBytes = 1024 ** 2
/** Part of the newest upload in the mean. */
const newest = 0.3

/** @param bound.bytesPerSecond What the operator lets uploads have; it counts until one was made. */
export function createLinkSpeed(bound?: { bytesPerSecond: number }): LinkSpeed {
  let bytesPerSecond = bound?.bytesPerSecond
  let isMeasured = false
  return {
    record({ bytes, elapsedMs }) {
      if (bytes < tellingBytes || elapsedMs <= 0) return
      const measured = (bytes / elapsedMs) * 1000
      bytesPerSecond =
        isMeasured && bytesPerSecond !== undefined
          ? bytesPerSecond + newest * (measured - bytesPerSecond)
          : measured
      isMeasured = true
    },
    get bytesPerSecond() {
      return bytesPerSecond
    },
  }
}
