/** Has a delivered result opened in a child process and kept in the results folder. */
import { readdir, stat, unlink } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { agentId, type AgentId, jobId, type JobId } from '@sluice/protocol/ids'
import { analyserName, sha256Hex } from '@sluice/protocol/manifest'
import { type LeaseRef, leaseRef } from '@sluice/protocol/messages'
import { z } from 'zod'
import { isMissing } from '../durable-file.ts'
import { siblingScript } from '../sandbox.ts'
import { runChild } from './child.ts'

export const openResultOrder = z.strictObject({
  spoolDir: z.string(),
  resultPath: z.string(),
  jobId,
  nodeId: agentId,
  lease: leaseRef,
  analyser: analyserName,
  sealedHeaderSha256: sha256Hex,
  /** Authorities that may have issued the node's certificate, PEM. */
  authorities: z.array(z.string()),
  /** Paths of the sources, for the person who reads the result. */
  sources: z.array(z.string()),
  sealedResult: z.instanceof(Uint8Array) as z.ZodType<Uint8Array>,
})
export type OpenResultOrder = z.infer<typeof openResultOrder>

export function resultFile(resultsDir: string, id: JobId): string {
  return path.join(resultsDir, `${id}.json`)
}

/**
 * Opens a sealed result with the job's own seed, checks the node's signature, and writes it to
 * `resultsDir`, 0600 and durable. The seed stays; remove it when the journal knows the result.
 *
 * @returns Path of the result file.
 * @throws SluiceError `result.forged` when it is not what the lease holder signed.
 */
export async function openResult(
  options: {
    spoolDir: string
    resultsDir: string
    jobId: JobId
    nodeId: AgentId
    lease: LeaseRef
    analyser: string
    sealedHeaderSha256: string
    authorities: string[]
    sources: string[]
    sealedResult: Buffer
  },
  signal: AbortSignal,
): Promise<string> {
  const { resultsDir, ...rest } = options
  const resultPath = resultFile(resultsDir, options.jobId)
  const script = siblingScript(import.meta.url, 'open-result-child')
  const order: OpenResultOrder = { ...rest, resultPath }
  await runChild({ script, order, hear: () => {}, signal })
  // The child's word is checked: the file is what the caller builds on.
  try {
    await stat(resultPath)
  } catch (cause) {
    throw new SluiceError('internal', 'a result was opened but is not there', { cause })
  }
  return resultPath
}

/** Removes what an opening that did not come to its end left in the results folder. */
export async function removeUndelivered(resultsDir: string, id: JobId): Promise<void> {
  const name = path.basename(resultFile(resultsDir, id))
  for (const each of await readdirIfThere(resultsDir))
    if (each === name || (each.startsWith(`${name}.`) && each.endsWith('.new')))
      await unlink(path.join(resultsDir, each))
}

async function readdirIfThere(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (isMissing(error)) return []
    throw error
  }
}

/** Removes results older than `keepDays`; 0 keeps all. */
export async function removeOldResults(
  resultsDir: string,
  options: { keepDays: number; nowMs: number },
): Promise<void> {
  if (options.keepDays === 0) return
  const oldestMs = options.nowMs - options.keepDays * 24 * 3_600_000
  for (const name of await readdir(resultsDir)) {
    const file = path.join(resultsDir, name)
    const ours = name.endsWith('.json') && jobId.safeParse(name.slice(0, -5)).success
    if (ours && (await stat(file)).mtimeMs < oldestMs) await unlink(file)
  }
}
