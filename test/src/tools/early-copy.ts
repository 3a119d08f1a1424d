/**
 * Plays the thief who was early: copies all that a control plane has, and opens with it whatever it opens.
 *
 * What is opened stays in the memory of this process, and is the measure of every later scan: nothing but
 * this knows what a job's key and normalised media are.
 */

import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { chmod, cp, mkdir, open, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

import { createKeyHolder } from '@sluice/control-plane/keys/key-holder'
import { openSlotFile } from '@sluice/control-plane/keys/slot-file'
import { manifestName, parseTrailer, trailerBytes } from '@sluice/protocol/archive'
import { isSluiceError } from '@sluice/protocol/errors'
import { agentId, epochId, jobId, leaseId, receiveKeyId } from '@sluice/protocol/ids'
import type { AgentId, EpochId, JobId, ReceiveKeyId } from '@sluice/protocol/ids'
import { manifest } from '@sluice/protocol/manifest'
import type { Manifest } from '@sluice/protocol/manifest'
import { newId } from '@sluice/protocol/process/new-id'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { makeReceiverKeyPair, openEnvelope } from '@sluice/protocol/sealing/key-envelope'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { headerBytes } from '@sluice/protocol/sealing/sealed-size'
import { createUnsealer } from '@sluice/protocol/sealing/unseal'

import type { Needle } from './needles.ts'
import { takeKeyNeedles, takeNeedles } from './needles.ts'
import { makeTemporaryDirectory } from './temporary-directory.ts'

/** What the database says about a job's key. */
export type StolenKey = {
  jobId: JobId
  epochId: EpochId
  wrapped: Buffer
  sealedHeader: Buffer
  objectKey: string
}

/** What the database says about a one-time receive key that was not used yet. */
export type StolenSeed = { receiveKeyId: ReceiveKeyId; wrapped: Buffer }

/** A copy of a control plane's data directory at one moment. */
export type StolenCopy = AsyncDisposable & {
  readonly takenAtMs: number
  /** All job keys in it, wrapped as they lie there. */
  readonly keys: readonly StolenKey[]
  /** All receive keys in it, wrapped in the same way. */
  readonly seeds: readonly StolenSeed[]
  /** Files of the copied `objects` folder, its parts in order, by object key. Empty for other stores. */
  readSealed(objectKey: string): Promise<Buffer | undefined>
  /** The epoch keys that were in the directory; a file that the thief's own process opens. */
  readonly slotFile: string
  readonly files: number
  /** Patterns by which the epoch keys in it are recognised elsewhere. */
  epochKeyNeedles(): Promise<Needle[]>
}

/** What came out of one sealed archive. Disposing zeroes all of it. */
export type OpenedJob = Disposable & {
  readonly jobId: JobId
  readonly jobKey: Buffer
  readonly manifest: Manifest
  readonly manifestBytes: Buffer
  readonly media: readonly { name: string; bytes: Buffer }[]
}

/**
 * Copies a data directory while its control plane runs: the database as SQLite's own backup does it, all
 * other files as they are.
 *
 * @param dataDirectory Of the control plane; only read.
 */
export async function copyDataDirectory(dataDirectory: string): Promise<StolenCopy> {
  await using cleanup = new AsyncDisposableStack()
  const folder = cleanup.use(await makeTemporaryDirectory('thief'))
  const takenAtMs = Date.now()
  const database = join(folder.path, 'sluice.db')
  using source = new DatabaseSync(join(dataDirectory, 'sluice.db'), { readOnly: true })
  source.exec(`VACUUM INTO '${database.replaceAll("'", "''")}'`)
  for (const name of ['epoch', 'objects']) {
    const to = join(folder.path, name)
    await mkdir(to, { mode: 0o700 })
    const from = join(dataDirectory, name)
    if (existsSync(from)) await cp(from, to, { recursive: true })
  }
  const slotFile = await onlyFile(join(folder.path, 'epoch'))
  await chmod(slotFile, 0o600)
  const keys = readKeys(database)
  const seeds = readSeeds(database)
  const files = (await readdir(folder.path, { recursive: true, withFileTypes: true })).filter(
    (entry) => entry.isFile(),
  ).length
  const owned = cleanup.move()
  return {
    takenAtMs,
    keys,
    seeds,
    slotFile,
    files,
    readSealed: (objectKey) => readObject(join(folder.path, 'objects'), objectKey),
    epochKeyNeedles: () => epochKeyNeedles(slotFile),
    async [Symbol.asyncDispose]() {
      await overwrite(slotFile)
      await owned.disposeAsync()
    },
  }
}

/**
 * Opens a job with the epoch keys of one copy and the sealed archive, wherever that was taken from.
 *
 * @param options.slotFile Epoch keys, from the same copy as `key` or from another.
 * @returns Undefined when no key there opens it.
 */
export async function openStolen(options: {
  key: StolenKey
  slotFile: string
  sealed: Buffer
}): Promise<OpenedJob | undefined> {
  const jobKey = await unwrapJobKey(options)
  if (jobKey === undefined) return undefined
  return openArchive({ jobId: options.key.jobId, jobKey, sealed: options.sealed })
}

/**
 * Unwraps one job key with any epoch key of a slot file, by the control plane's own code: as a node that
 * the thief made up, it has the key sealed to itself.
 *
 * @returns 32 bytes, the caller's to zero; undefined when none opens it.
 */
async function unwrapJobKey(options: {
  key: StolenKey
  slotFile: string
}): Promise<Buffer | undefined> {
  const { key } = options
  await using store = await openSlotFile(options.slotFile, { overwriteTorn: false })
  using holder = createKeyHolder(store)
  const { seed, publicKey } = makeReceiverKeyPair()
  const nowMs = Date.now()
  const lease = {
    jobId: key.jobId,
    nodeId: newId(agentId, nowMs),
    leaseId: newId(leaseId, nowMs),
    fence: 1,
    deadlineAtMs: nowMs,
  }
  try {
    for (const epoch of await store.list()) {
      await holder.hold({ epochId: epoch, mayCreate: false })
      // A wrap names its epoch; the thief tries it as each epoch there is a key for.
      const wrapped = { epochId: epoch, wrapped: key.wrapped }
      try {
        const envelope = await holder.sealForLease({
          ...lease,
          sealedHeader: key.sealedHeader,
          publicKey,
          key: wrapped,
        })
        const hash = Buffer.from(sealedHeaderHash(key.sealedHeader))
        const fields = { ...lease, purpose: 'job-key-lease', sealedHeaderHash: hash } as const
        return openEnvelope({ ...fields, seed, envelope })
      } catch (error) {
        if (!isSluiceError(error, 'keys.damaged')) throw error
      }
    }
    return undefined
  } finally {
    seed.fill(0)
  }
}

/**
 * Opens a job with what lies in a capture host's spool and the receive keys of a copied data directory,
 * by the control plane's own code: it escrows the envelope's key to itself, and unwraps that.
 *
 * @param options.envelope From the spool, as is `sealed`.
 * @param options.seeds Of a copy; each is tried.
 * @param options.slotFile Epoch keys, from the same copy or from another.
 * @returns Undefined when nothing there opens it.
 */
export async function openEnvelopeStolen(options: {
  jobId: JobId
  senderId: AgentId
  envelope: Buffer
  sealed: Buffer
  seeds: readonly StolenSeed[]
  slotFile: string
}): Promise<OpenedJob | undefined> {
  const { slotFile, sealed } = options
  const sealedHeader = sealed.subarray(0, headerBytes)
  await using store = await openSlotFile(slotFile, { overwriteTorn: false })
  using holder = createKeyHolder(store)
  for (const epoch of await store.list()) {
    await holder.hold({ epochId: epoch, mayCreate: false })
    for (const { receiveKeyId: id, wrapped } of options.seeds) {
      const seed = { epochId: epoch, wrapped }
      try {
        const key = await holder.openEscrow({ ...options, receiveKeyId: id, sealedHeader, seed })
        const stolen = { ...key, jobId: options.jobId, sealedHeader, objectKey: '' }
        return await openStolen({ key: stolen, slotFile, sealed })
      } catch (error) {
        const isWrong =
          isSluiceError(error, 'keys.damaged') || isSluiceError(error, 'envelope.refused')
        if (!isWrong) throw error
      }
    }
  }
  return undefined
}

/**
 * What to look for later to know whether anything of a job is left: its key, its normalised media, and the
 * parts of its manifest that stand nowhere else.
 */
export function needlesOf(opened: OpenedJob): Needle[] {
  const { jobId: id, manifest: facts, manifestBytes } = opened
  const unique = [...facts.media.map((medium) => medium.sha256), facts.resultPublicKey]
  return [
    ...takeKeyNeedles(opened.jobKey, `job key of ${id}`),
    ...opened.media.flatMap(({ name, bytes }) =>
      takeNeedles(bytes, { source: `${name} of ${id}`, count: 256 }),
    ),
    ...unique.flatMap((text) => {
      const at = manifestBytes.indexOf(text)
      assert.ok(at >= 0)
      const around = manifestBytes.subarray(at, at + text.length)
      return takeNeedles(around, { source: `manifest of ${id}`, count: 16 })
    }),
  ]
}

async function epochKeyNeedles(slotFile: string): Promise<Needle[]> {
  await using store = await openSlotFile(slotFile, { overwriteTorn: false })
  const needles: Needle[] = []
  for (const id of await store.list()) {
    const key = await store.load(id)
    needles.push(...takeKeyNeedles(key, `key of epoch ${id}`))
    key.fill(0)
  }
  return needles
}

/**
 * Opens a sealed archive with its key.
 *
 * @param options.jobKey Belongs to what is given back, which zeroes it.
 */
export function openArchive(options: { jobId: JobId; jobKey: Buffer; sealed: Buffer }): OpenedJob {
  const { jobKey, sealed } = options
  using unsealer = createUnsealer({ key: jobKey, context: archiveContext(options.jobId) })
  const plaintext = Buffer.concat([unsealer.update(sealed), unsealer.final()])
  const index = parseTrailer(plaintext.subarray(-trailerBytes), plaintext.length)
  const { manifestOffset, manifestBytes } = index
  const manifestText = plaintext.subarray(manifestOffset, manifestOffset + manifestBytes)
  const parsed = manifest.parse(JSON.parse(manifestText.toString('utf8')))
  const media = parsed.media.map(({ name, offset, bytes }) => ({
    name,
    bytes: plaintext.subarray(offset, offset + bytes),
  }))
  assert.ok(!media.some(({ name }) => name === manifestName))
  return {
    jobId: options.jobId,
    jobKey,
    manifest: parsed,
    manifestBytes: manifestText,
    media,
    [Symbol.dispose]() {
      plaintext.fill(0)
      jobKey.fill(0)
    },
  }
}

function readKeys(database: string): StolenKey[] {
  using copy = new DatabaseSync(database, { readOnly: true })
  const rows = copy
    .prepare(
      `SELECT jobs.id AS jobId, job_keys.epoch_id AS epochId, job_keys.wrapped AS wrapped,
              jobs.sealed_header AS sealedHeader, jobs.object_key AS objectKey
       FROM job_keys JOIN jobs ON jobs.id = job_keys.job_id ORDER BY jobs.id`,
    )
    .all()
  return rows.map((row) => ({
    jobId: jobId.parse(row['jobId']),
    epochId: epochId.parse(row['epochId']),
    wrapped: Buffer.from(row['wrapped'] as Uint8Array),
    sealedHeader: Buffer.from(row['sealedHeader'] as Uint8Array),
    objectKey: String(row['objectKey']),
  }))
}

function readSeeds(database: string): StolenSeed[] {
  using copy = new DatabaseSync(database, { readOnly: true })
  const rows = copy.prepare('SELECT id, wrapped_seed AS wrapped FROM receive_keys').all()
  return rows.map((row) => ({
    receiveKeyId: receiveKeyId.parse(row['id']),
    wrapped: Buffer.from(row['wrapped'] as Uint8Array),
  }))
}

/** An object of the directory store: files that begin with their part's number, in that order. */
async function readObject(objects: string, objectKey: string): Promise<Buffer | undefined> {
  const wanted = objectKey.split('/').at(-1)
  assert.ok(wanted !== undefined)
  const entries = await readdir(objects, { recursive: true, withFileTypes: true })
  const parts = entries
    .filter((entry) => entry.isFile() && entry.parentPath.split('/').at(-1) === wanted)
    .map((entry) => join(entry.parentPath, entry.name))
    .toSorted()
  if (parts.length === 0) return undefined
  const pieces: Buffer[] = []
  for (const part of parts) {
    await using file = await open(part, 'r')
    pieces.push(await file.readFile())
  }
  return Buffer.concat(pieces)
}

async function onlyFile(folder: string): Promise<string> {
  const names = await readdir(folder)
  assert.equal(names.length, 1, `one file in ${folder}`)
  return join(folder, names[0] as string)
}

async function overwrite(path: string): Promise<void> {
  await using file = await open(path, 'r+')
  const { size } = await file.stat()
  await file.write(Buffer.alloc(size), 0, size, 0)
  await file.sync()
}
