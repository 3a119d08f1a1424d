/** Fetches the deletion certificates and lets the real `sluice verify` judge them, offline. */

import { copyFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

import { publicName } from '@sluice/control-plane/deletion/evidence'
import type { JobId } from '@sluice/protocol/ids'

import type { Fleet } from '../tools/fleet.ts'
import { requireSuccess } from '../tools/fleet.ts'

export type CheckedCertificate = {
  jobId: JobId
  path: string
  bytes: number
  /** What `sluice verify --json` says about it. */
  verdict: unknown
}

export type Evidence = {
  folder: string
  /** The control plane's evidence key, its public half: the anchor that an auditor pins beforehand. */
  publicKeyFile: string
  certificates: CheckedCertificate[]
  /** The verifier said no to one of them when it was to trust a key of nobody. */
  otherKeyRefused: boolean
}

/**
 * Writes all certificates and the public key into a folder and verifies each.
 *
 * @param folder Where they stay.
 * @param otherKeyFile PEM of a key that signed nothing.
 * @throws Error when one is not there or does not verify, or verifies with the other key.
 */
export async function gatherEvidence(parts: {
  fleet: Fleet
  jobIds: readonly JobId[]
  folder: string
  otherKeyFile: string
}): Promise<Evidence> {
  const { fleet, folder } = parts
  const publicKeyFile = join(folder, 'evidence-public.pem')
  const exported = join(fleet.controlPlane.dataDirectory, 'evidence', publicName)
  await copyFile(exported, publicKeyFile)
  const certificates: CheckedCertificate[] = []
  for (const jobId of parts.jobIds) {
    const { status, text } = await fleet.call(`/v1/jobs/${jobId}/certificate`)
    if (status !== 200) throw new Error(`no certificate of job ${jobId}: ${text}`)
    const path = join(folder, `${jobId}.certificate.json`)
    await writeFile(path, text, { mode: 0o600, flag: 'wx' })
    const verified = await fleet.command(['verify', path, '--trust', publicKeyFile, '--json'])
    requireSuccess(`sluice verify ${path}`, verified)
    const verdict: unknown = JSON.parse(verified.stdout)
    certificates.push({ jobId, path, bytes: Buffer.byteLength(text), verdict })
  }
  const [first] = certificates
  if (first === undefined) throw new Error('there is no certificate')
  const doubted = await fleet.command(['verify', first.path, '--trust', parts.otherKeyFile])
  if (doubted.code === 0) throw new Error(`${first.path} verifies with a key that did not sign it`)
  return { folder, publicKeyFile, certificates, otherKeyRefused: true }
}
