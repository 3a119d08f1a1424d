/** For tests only: a sealed job as a capture host makes one, and a control plane's answers about it. */
import { createHash, randomBytes } from 'node:crypto'
import { archiveEnd, manifestName, planEntry, planIndex } from '@sluice/protocol/archive'
import { agentId, jobId, leaseId, obligationId } from '@sluice/protocol/ids'
import type { AgentId, JobId, LeaseId } from '@sluice/protocol/ids'
import type { Manifest, MediumKind } from '@sluice/protocol/manifest'
import { newId } from '@sluice/protocol/process/new-id'
import { archiveContext } from '@sluice/protocol/sealing/context'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { createSealer, sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { analyserConfig, type AnalyserConfig } from './analyser.ts'

export type TestMedium = { name: string; kind: MediumKind; bytes: Buffer }

export type TestJob = {
  jobId: JobId
  leaseId: LeaseId
  nodeId: AgentId
  key: Buffer
  sealed: Buffer
  sealedHeader: Buffer
  media: TestMedium[]
  manifest: Manifest
  /** Opens a sealed result as the capture host would. */
  openResult: (sealed: Buffer) => Buffer
}

/** @param edit Changes the manifest before it is sealed, to make one that lies. */
export function makeJob(
  media: TestMedium[],
  edit: (manifest: Manifest) => void = () => undefined,
): TestJob {
  const ids = {
    jobId: newId(jobId, Date.now()),
    leaseId: newId(leaseId, Date.now()),
    nodeId: newId(agentId, Date.now()),
  }
  const { seed, publicKey } = makeReceiverKeyPair()
  const key = randomBytes(32)
  const { archive, manifest } = layOut(media, ids.jobId, publicKey, edit)
  const sealer = createSealer({ key, context: archiveContext(ids.jobId) })
  const { header: sealedHeader } = sealer
  const sealed = Buffer.concat([sealedHeader, sealer.update(archive), sealer.final()])
  return {
    ...ids,
    key,
    sealed,
    sealedHeader,
    media,
    manifest,
    openResult: (envelope) => openEnvelope({ purpose: 'result', ...ids, seed, envelope }),
  }
}

/** A `job-key-lease` envelope as the control plane answers `key.request`. */
export function sealKey(
  job: TestJob,
  options: { publicKey: Uint8Array; fence: number; deadlineAtMs: number },
): Buffer {
  return sealEnvelope({
    purpose: 'job-key-lease',
    jobId: job.jobId,
    nodeId: job.nodeId,
    leaseId: job.leaseId,
    fence: options.fence,
    deadlineAtMs: options.deadlineAtMs,
    sealedHeaderHash: Uint8Array.from(sealedHeaderHash(job.sealedHeader)),
    recipient: options.publicKey,
    plaintext: job.key,
  })
}

/** An analyser that is a line of shell. */
export function shellAnalyser(script: string, more: Partial<AnalyserConfig> = {}): AnalyserConfig {
  const command = ['/bin/sh', '-c', script]
  return analyserConfig.parse({ name: 'test', version: '1', command, timeoutMs: 20_000, ...more })
}

/** Prints the SHA-256 of what it reads, as a JSON text. */
export const digestScript = `printf '"%s"' "$(sha256sum | cut -c1-64)"`

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex')
}

export function newObligationId() {
  return newId(obligationId, Date.now())
}

function layOut(
  media: TestMedium[],
  job: JobId,
  resultPublicKey: Buffer,
  edit: (manifest: Manifest) => void,
): { archive: Buffer; manifest: Manifest } {
  const pieces: Buffer[] = []
  let at = 0
  const add = (bytes: Buffer): void => {
    pieces.push(bytes)
    at += bytes.length
  }
  const entries: Manifest['media'] = media.map(({ name, kind, bytes }) => {
    const { header, paddingBytes } = planEntry(name, bytes.length)
    add(header)
    const offset = at
    add(bytes)
    add(Buffer.alloc(paddingBytes))
    const source = { format: 'test', bytes: bytes.length }
    const digest = sha256(bytes)
    return {
      name,
      kind,
      codec: 'test',
      offset,
      bytes: bytes.length,
      sha256: digest,
      source,
      removed: [],
    }
  })
  const manifest: Manifest = {
    schema: 'sluice-manifest/1',
    jobId: job,
    analyser: 'test',
    resultPublicKey: resultPublicKey.toString('base64url'),
    media: entries,
    isolation: 'none',
    tools: {},
  }
  edit(manifest)
  const bytes = Buffer.from(JSON.stringify(manifest))
  const { header, paddingBytes } = planEntry(manifestName, bytes.length)
  const index = planIndex({ manifestHeaderOffset: at, manifestBytes: bytes.length })
  for (const piece of [header, bytes, Buffer.alloc(paddingBytes), archiveEnd(index)]) add(piece)
  return { archive: Buffer.concat(pieces), manifest }
}
