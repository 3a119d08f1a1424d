/** How long a scanner may take. */
import { limits } from '@sluice/protocol/limits'

/** The longest that one scan of so many bytes is waited for, in milliseconds. */
export function scanWallMs(bytes: number): number {
  return Math.ceil(limits.scanMsBase + (bytes / limits.scanBytesPerSecondMin) * 1000)
}
