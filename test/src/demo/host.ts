/** What this host offers the demo, and what the demo has to switch off by name because of it. */

import { findFfmpeg } from '@sluice/agent/capture/find-ffmpeg'
import type { Ffmpeg } from '@sluice/agent/capture/find-ffmpeg'
import { detectIsolation } from '@sluice/agent/sandbox'
import { isSluiceError } from '@sluice/protocol/errors'
import { canSwap, readSwapFacts } from '@sluice/protocol/process/swap'
import type { IsolationLevel } from '@sluice/protocol/manifest'

export type HostOffer = {
  isolation: IsolationLevel
  ffmpeg: Ffmpeg | undefined
  /** Swap is active, so it has to be allowed by name. */
  swap: boolean
  /** What is switched off or missing, each with what to do about it. */
  remarks: string[]
}

/** Looks at the host as the agents will. */
export async function lookAtHost(): Promise<HostOffer> {
  const isolation = await isolationHere()
  const ffmpeg = await findFfmpeg({ isolation })
  const swap = canSwap(readSwapFacts())
  const remarks: string[] = []
  if (isolation === 'none')
    remarks.push(
      'isolation is none, set by name for this demo: install bubblewrap (apt-get install bubblewrap)',
    )
  if (ffmpeg === undefined)
    remarks.push(
      'no ffmpeg 5.1 or later: pictures and uncompressed WAV only (apt-get install ffmpeg)',
    )
  if (swap)
    remarks.push('swap is on and allowed by name for this demo: a real node refuses (swapoff -a)')
  return { isolation, ffmpeg, swap, remarks }
}

async function isolationHere(): Promise<IsolationLevel> {
  try {
    return await detectIsolation()
  } catch (error) {
    if (!isSluiceError(error, 'sandbox.missing')) throw error
    return await detectIsolation('none')
  }
}
