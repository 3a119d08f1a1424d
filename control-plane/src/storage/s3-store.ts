/** The object store on any S3 endpoint: multipart only, presigned parts and reads, everything looked at twice. */
import { createHash } from 'node:crypto'
import { Agent } from 'node:https'
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetBucketReplicationCommand,
  GetBucketVersioningCommand,
  GetObjectCommand,
  GetObjectLegalHoldCommand,
  GetObjectLockConfigurationCommand,
  GetObjectRetentionCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  ListObjectVersionsCommand,
  ListPartsCommand,
  PutObjectCommand,
  type ReplicationRule,
  S3Client,
  S3ServiceException,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { getSignedUrl } from '@aws-sdk/s3-request-presigner'
import { Agent as HttpClient } from 'undici'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Grant } from '@sluice/protocol/messages'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import { claimBytesMax, claimKey, claimText, refuseForeign } from './claim.ts'
import { createGrantRole } from './grant-role.ts'
import { createGrantCanaries, type S3Credentials } from './grant-canaries.ts'
import type { ObjectStore, StoredPart, StoreEntry, UploadRef } from './object-store.ts'

export type S3StoreOptions = {
  /** `https://…`; anything else is refused. */
  endpoint: string
  region: string
  bucket: string
  /** Path-style addressing, which every S3 but AWS itself wants. */
  forcePathStyle: boolean
  /** PEM of authorities to trust for the endpoint, beside the system's own. */
  authorities?: string
  /** Read anew for every request, so that rotated files count at once. */
  credentials: () => Promise<S3Credentials>
  now: () => number
  /** Buckets that it may be replicated to; any other rule makes it unfit. None unless given. */
  copiedTo?: readonly string[]
  /** How long one request may take; a store that hangs is unreachable, not waited for. */
  requestTimeoutMs?: number
  /** Grants are signed with sessions of this role, so that they can be taken back at once. */
  grantRole?: { roleArn: string; iamEndpoint: string } | undefined
}

const defaultRequestTimeoutMs = 30_000
const connectTimeoutMs = 5_000
/** Aborting races with parts still arriving (S3 User Guide, AbortMultipartUpload): try again. */
const abortTriesMax = 5

/** No key of ours: nothing is ever there. */
const canaryKey = 'canary'

/** RGW forgets an aborted upload as `NoSuchKey` (measured); AWS says `NoSuchUpload`. */
const goneNames = new Set(['NoSuchUpload', 'NoSuchKey', 'NotFound'])

export function createS3Store(options: S3StoreOptions): ObjectStore {
  if (new URL(options.endpoint).protocol !== 'https:')
    throw new SluiceError('store.insecure', `${options.endpoint} is not https`, {
      hint: 'Give the store a certificate; a private authority goes into storage.s3.caFile.',
    })
  const bucket = options.bucket
  const timeoutMs = options.requestTimeoutMs ?? defaultRequestTimeoutMs
  const place = {
    endpoint: options.endpoint,
    region: options.region,
    forcePathStyle: options.forcePathStyle,
    // Checksums the SDK adds by itself break presigned uploads and are ignored by RGW (measured).
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
  } as const
  const lone = new HttpClient({
    pipelining: 0,
    connect: {
      timeout: connectTimeoutMs,
      minVersion: 'TLSv1.3',
      ...(options.authorities === undefined ? {} : { ca: options.authorities }),
    },
  })
  const canaries = createGrantCanaries({
    async sign(credentials, lifeMs) {
      const signer = new S3Client({ ...place, credentials })
      const nothing = new GetObjectCommand({ Bucket: bucket, Key: canaryKey })
      try {
        return await getSignedUrl(signer, nothing, signing(lifeMs, ['host']))
      } finally {
        signer.destroy()
      }
    },
    ...{ dispatcher: lone, timeoutMs, now: options.now },
  })
  const wire = {
    requestTimeout: timeoutMs,
    throwOnRequestTimeout: true,
    connectionTimeout: connectTimeoutMs,
    httpsAgent: new Agent({
      keepAlive: true,
      minVersion: 'TLSv1.3',
      ...(options.authorities === undefined ? {} : { ca: options.authorities }),
    }),
  }
  const client = new S3Client({
    ...place,
    async credentials() {
      const current = await options.credentials()
      await canaries.use(current)
      // Else the client would keep what it read first for as long as it lives.
      return { ...current, expiration: new Date(0) }
    },
    maxAttempts: 3,
    requestHandler: wire,
  })
  const role =
    options.grantRole &&
    createGrantRole({
      ...options.grantRole,
      ...{ endpoint: options.endpoint, region: options.region, bucket, requestHandler: wire },
      credentials: options.credentials,
    })
  /** Signs grants, and nothing else. */
  const granting = role
    ? new S3Client({
        ...place,
        // Else it would go on with a session that was revoked.
        credentials: async () => ({ ...(await role.credentials()), expiration: new Date(0) }),
        requestHandler: wire,
      })
    : client

  async function listParts(upload: UploadRef): Promise<StoredPart[]> {
    const parts: StoredPart[] = []
    let marker: string | undefined
    do {
      const page = await translate(
        client.send(
          new ListPartsCommand({
            Bucket: bucket,
            Key: upload.key,
            UploadId: upload.storeUploadId,
            ...(marker === undefined ? {} : { PartNumberMarker: marker }),
          }),
        ),
      )
      for (const { PartNumber, Size, ETag } of page.Parts ?? []) {
        if (PartNumber === undefined || Size === undefined || ETag === undefined) continue
        parts.push({ part: PartNumber, bytes: Size, etag: ETag.replaceAll('"', '') })
      }
      marker = page.IsTruncated ? page.NextPartNumberMarker : undefined
    } while (marker !== undefined)
    return parts
  }

  async function abortUpload(upload: UploadRef): Promise<void> {
    for (let tries = 1; ; tries += 1) {
      await unlessGone(
        client.send(
          new AbortMultipartUploadCommand({
            Bucket: bucket,
            Key: upload.key,
            UploadId: upload.storeUploadId,
          }),
        ),
      )
      const left = await unlessGone(listParts(upload))
      if (left === undefined || left.length === 0) return
      if (tries === abortTriesMax)
        throw new SluiceError('store.refused', `an aborted upload still has ${left.length} parts`, {
          retry: 'later',
        })
    }
  }

  /** Incomplete uploads in the order of their keys, whoever began them. */
  async function* uploadsFrom(from: { prefix?: string; after?: string }) {
    let at: { KeyMarker: string; UploadIdMarker?: string } | undefined =
      from.after === undefined ? undefined : { KeyMarker: from.after }
    for (;;) {
      const page = await translate(
        client.send(
          new ListMultipartUploadsCommand({
            Bucket: bucket,
            ...(from.prefix === undefined ? {} : { Prefix: from.prefix }),
            ...at,
          }),
        ),
      )
      for (const { Key, UploadId } of page.Uploads ?? [])
        if (Key !== undefined && UploadId !== undefined) yield { key: Key, storeUploadId: UploadId }
      if (page.IsTruncated !== true || page.NextKeyMarker === undefined) return
      at = { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker ?? '' }
    }
  }

  /** Versions and delete markers in the order of their keys; without versioning the objects. */
  async function* versionsFrom(from: { prefix?: string; after?: string }) {
    let at: { KeyMarker: string; VersionIdMarker?: string } | undefined =
      from.after === undefined ? undefined : { KeyMarker: from.after }
    for (;;) {
      const page = await translate(
        client.send(
          new ListObjectVersionsCommand({
            Bucket: bucket,
            ...(from.prefix === undefined ? {} : { Prefix: from.prefix }),
            ...at,
          }),
        ),
      )
      const found = [
        ...(page.Versions ?? []).map((entry) => ({ ...entry, marker: false })),
        ...(page.DeleteMarkers ?? []).map((entry) => ({ ...entry, marker: true })),
      ]
      // The two lists of a page are each in order, and belong together by key.
      found.sort((a, b) => compare(a.Key ?? '', b.Key ?? ''))
      for (const { Key, VersionId, IsLatest, marker } of found)
        if (Key !== undefined) yield { key: Key, versionId: VersionId, latest: IsLatest, marker }
      if (page.IsTruncated !== true || page.NextKeyMarker === undefined) return
      at = { KeyMarker: page.NextKeyMarker, VersionIdMarker: page.NextVersionIdMarker ?? '' }
    }
  }

  /** What marks the bucket as somebody's, in its first bytes; undefined where nothing does. */
  async function readMark(): Promise<string | undefined> {
    const head = new HeadObjectCommand({ Bucket: bucket, Key: claimKey })
    const facts = await unlessGone(client.send(head))
    if (facts === undefined) return undefined
    if ((facts.ContentLength ?? 0) > claimBytesMax) return ''
    const answer = await translate(
      client.send(new GetObjectCommand({ Bucket: bucket, Key: claimKey })),
    )
    return (await answer.Body?.transformToString()) ?? ''
  }

  /** Of two that write it at the same moment, one does: the other finds it there. */
  async function writeMark(text: string): Promise<void> {
    const mark = {
      ...{ Bucket: bucket, Key: claimKey, Body: text, ContentType: 'application/json' },
      // Buckets that lock want it.
      ContentMD5: createHash('md5').update(text).digest('base64'),
    }
    try {
      await client.send(new PutObjectCommand({ ...mark, IfNoneMatch: '*' }))
    } catch (error) {
      const status = statusOf(error)
      if (status === 409 || status === 412) return
      // A store without conditional writes: what was written last is read by both.
      if (status !== 501) throw toSluiceError(error)
      await translate(client.send(new PutObjectCommand(mark)))
    }
  }

  async function openUploads(key: ObjectKey): Promise<UploadRef[]> {
    const found: UploadRef[] = []
    for await (const upload of uploadsFrom({ prefix: key }))
      if (upload.key === key) found.push({ key, storeUploadId: upload.storeUploadId })
    return found
  }

  async function versionIdsOf(key: ObjectKey): Promise<(string | undefined)[]> {
    const found: (string | undefined)[] = []
    for await (const version of versionsFrom({ prefix: key }))
      if (version.key === key) found.push(version.versionId)
    return found
  }

  /** Deletes one version for good; `null` is how S3 names the only one of an unversioned bucket. */
  async function deleteVersion(key: ObjectKey, versionId: string | undefined): Promise<void> {
    const version = versionId === undefined ? {} : { VersionId: versionId }
    try {
      await unlessGone(
        client.send(new DeleteObjectCommand({ Bucket: bucket, Key: key, ...version })),
      )
    } catch (error) {
      const lock = isRefused(error) ? await lockOf(key, versionId) : undefined
      throw lock === undefined ? error : locked(lock, error)
    }
  }

  /** Why a version must not be deleted, in words, or undefined when no lock is known. */
  async function lockOf(key: ObjectKey, versionId: string | undefined) {
    const version = { Bucket: bucket, Key: key, ...(versionId && { VersionId: versionId }) }
    const [retention, hold] = await Promise.all([
      client.send(new GetObjectRetentionCommand(version)).catch(() => undefined),
      client.send(new GetObjectLegalHoldCommand(version)).catch(() => undefined),
    ])
    if (hold?.LegalHold?.Status === 'ON') return 'a legal hold of the store'
    const until = retention?.Retention?.RetainUntilDate
    return until && until.getTime() > options.now()
      ? `a retention until ${until.toISOString()}`
      : undefined
  }

  return {
    kind: 's3',
    level: 'none',

    async check() {
      await translate(client.send(new HeadBucketCommand({ Bucket: bucket })))
      const versioning = await translate(
        client.send(new GetBucketVersioningCommand({ Bucket: bucket })),
      )
      await refuseUnknownCopies(client, bucket, options.copiedTo ?? [])
      // Suspended versioning keeps the versions it has.
      return {
        versioned: versioning.Status !== undefined,
        locks: await hasObjectLock(client, bucket),
      }
    },

    async claim({ id, mark }) {
      const named = `object ${claimKey} of bucket ${bucket}`
      const there = await readMark()
      if (there !== undefined) return refuseForeign(there, id, named)
      if (!mark) return undefined
      await writeMark(claimText(id))
      // Whoever else came at the same moment reads the same.
      return refuseForeign((await readMark()) ?? '', id, named)
    },

    async createUpload(key) {
      const { UploadId } = await translate(
        client.send(new CreateMultipartUploadCommand({ Bucket: bucket, Key: key })),
      )
      if (UploadId === undefined)
        throw new SluiceError('store.refused', 'the store opened an upload without an id')
      return UploadId
    },

    listParts,

    async grantPart(upload, { part, bytes, md5, lifeMs }) {
      const command = new UploadPartCommand({
        Bucket: bucket,
        Key: upload.key,
        UploadId: upload.storeUploadId,
        PartNumber: part,
        ContentLength: bytes,
        ContentMD5: md5,
      })
      const signed = signing(lifeMs, ['host', 'content-length', 'content-md5'])
      const url = await translate(getSignedUrl(granting, command, signed))
      return {
        url,
        headers: { 'content-length': String(bytes), 'content-md5': md5 },
        expiresAtMs: options.now() + lifeMs,
      } satisfies Grant
    },

    async completeUpload(upload, parts) {
      await translate(
        client.send(
          new CompleteMultipartUploadCommand({
            Bucket: bucket,
            Key: upload.key,
            UploadId: upload.storeUploadId,
            MultipartUpload: {
              Parts: parts.map(({ part, etag }) => ({ PartNumber: part, ETag: `"${etag}"` })),
            },
          }),
        ),
      )
    },

    abortUpload,

    async head(key) {
      const facts = await unlessGone(
        client.send(new HeadObjectCommand({ Bucket: bucket, Key: key })),
      )
      return facts === undefined ? undefined : { bytes: facts.ContentLength ?? 0 }
    },

    async grantRead(key, lifeMs) {
      const command = new GetObjectCommand({ Bucket: bucket, Key: key })
      const url = await translate(getSignedUrl(granting, command, signing(lifeMs, ['host'])))
      return { url, headers: {}, expiresAtMs: options.now() + lifeMs }
    },

    async revokeGrants(givenBeforeMs) {
      if (!role) return canaries.areDead(givenBeforeMs)
      await role.revoke()
      return true
    },

    async deleteAll(key) {
      for (const upload of await openUploads(key)) await abortUpload(upload)
      for (const versionId of await versionIdsOf(key)) await deleteVersion(key, versionId)
      // A store that does not list versions still tells whether the object is there.
      const left = await unlessGone(
        client.send(new HeadObjectCommand({ Bucket: bucket, Key: key })),
      )
      if (left !== undefined) await deleteVersion(key, undefined)
    },

    async remains(key) {
      const objects = await translate(
        client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: key })),
      )
      return {
        objects: (objects.Contents ?? []).filter((entry) => entry.Key === key).length,
        versions: (await versionIdsOf(key)).length,
        uploads: (await openUploads(key)).length,
      }
    },

    async list(after) {
      const from = after === undefined ? {} : { after }
      const entries: StoreEntry[] = []
      for await (const entry of entriesOf(versionsFrom(from), uploadsFrom(from))) {
        if (entries.length === limits.sweepPageEntries)
          return { entries, next: entries.at(-1)!.key }
        entries.push(entry)
      }
      return { entries }
    },

    async [Symbol.asyncDispose]() {
      if (granting !== client) granting.destroy()
      await role?.[Symbol.asyncDispose]()
      client.destroy()
      await lone.close()
    },
  }
}

type Version = { key: string; latest: boolean | undefined; marker: boolean }

/** Joins both listings into one entry a key, in order, holding one key at a time. */
async function* entriesOf(
  versions: AsyncGenerator<Version>,
  uploads: AsyncGenerator<{ key: string; storeUploadId: string }>,
): AsyncGenerator<StoreEntry> {
  let version = await versions.next()
  let upload = await uploads.next()
  while (version.done !== true || upload.done !== true) {
    const keys = [version, upload].flatMap((next) => (next.done === true ? [] : [next.value.key]))
    const key = keys.toSorted(compare)[0]!
    const entry: StoreEntry = { key, objects: 0, versions: 0, uploads: [] }
    for (; version.done !== true && version.value.key === key; version = await versions.next()) {
      if (version.value.marker || version.value.latest === false) entry.versions += 1
      else entry.objects += 1
    }
    for (; upload.done !== true && upload.value.key === key; upload = await uploads.next())
      entry.uploads.push(upload.value.storeUploadId)
    yield entry
  }
}

/** S3 lists keys in the order of their UTF-8 bytes. */
function compare(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a), Buffer.from(b))
}

function isRefused(error: unknown): boolean {
  return error instanceof SluiceError && error.code === 'store.refused'
}

function locked(lock: string, cause: unknown): SluiceError {
  return new SluiceError('store.locked', `the store keeps it: ${lock}`, {
    retry: 'later',
    hint: 'It is tried again until the lock is over; only an administrator of the store can lift it.',
    cause,
  })
}

/** A URL that holds only with exactly these headers. */
function signing(lifeMs: number, headers: string[]) {
  return {
    expiresIn: Math.floor(lifeMs / 1000),
    signableHeaders: new Set(headers),
    unhoistableHeaders: new Set(headers),
  }
}

async function hasObjectLock(client: S3Client, bucket: string): Promise<boolean> {
  try {
    const answer = await client.send(new GetObjectLockConfigurationCommand({ Bucket: bucket }))
    return answer.ObjectLockConfiguration?.ObjectLockEnabled === 'Enabled'
  } catch (error) {
    if (isUnconfigured(error)) return false
    throw toSluiceError(error)
  }
}

/** What the store copies to a bucket nobody deletes from would stay there for ever. */
async function refuseUnknownCopies(
  client: S3Client,
  bucket: string,
  known: readonly string[],
): Promise<void> {
  const rules = await replicationRules(client, bucket)
  const targets = rules
    .filter(({ Status }) => Status !== 'Disabled')
    .map(
      ({ Destination }) => Destination?.Bucket?.replace(/^arn:[^:]*:s3:::/, '') ?? 'another bucket',
    )
  const unknown = targets.find((target) => !known.includes(target))
  if (unknown === undefined) return
  throw new SluiceError('store.replicated', `bucket ${bucket} is replicated to ${unknown}`, {
    hint: 'Name that bucket in storage.replicas, or remove the rule: no deletion would be complete.',
  })
}

async function replicationRules(client: S3Client, bucket: string): Promise<ReplicationRule[]> {
  try {
    const answer = await client.send(new GetBucketReplicationCommand({ Bucket: bucket }))
    return answer.ReplicationConfiguration?.Rules ?? []
  } catch (error) {
    if (isUnconfigured(error)) return []
    throw toSluiceError(error)
  }
}

/** No configuration, or a store that does not know the question. */
function isUnconfigured(error: unknown): boolean {
  return [400, 404, 405, 409, 501].includes(statusOf(error) ?? 0)
}

/** The answer, or `undefined` when the store says that what was named is not there. */
async function unlessGone<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer
  } catch (error) {
    const translated = toSluiceError(error)
    if (translated.code === 'store.not_found') return undefined
    throw translated
  }
}

async function translate<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer
  } catch (error) {
    throw toSluiceError(error)
  }
}

function statusOf(error: unknown): number | undefined {
  return error instanceof S3ServiceException ? error.$metadata.httpStatusCode : undefined
}

function toSluiceError(error: unknown): SluiceError {
  if (error instanceof SluiceError) return error
  const status = statusOf(error)
  const name = error instanceof Error ? error.name : 'unknown'
  if (goneNames.has(name) || status === 404)
    return new SluiceError('store.not_found', `the store has no such thing (${name})`, {
      cause: error,
    })
  if (name === 'BadDigest' || name === 'InvalidDigest')
    return new SluiceError('store.digest_mismatch', 'the store received other bytes', {
      cause: error,
    })
  if (status !== undefined && status < 500)
    return new SluiceError('store.refused', `the store refused (${status} ${name})`, {
      cause: error,
      hint: 'Check bucket, credentials, quota and clock of the object store.',
      // A refusal can end by itself: clocks, quotas and policies are mended outside.
      retry: 'later',
    })
  return new SluiceError('store.unreachable', `the store does not answer (${name})`, {
    cause: error,
    retry: 'later',
    hint: 'Check that the endpoint is up and that its certificate is trusted.',
  })
}
