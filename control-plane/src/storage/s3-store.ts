/** The object store on any S3 endpoint: multipart only, presigned parts and reads, everything looked at twice. */
import { Agent } from 'node:https'
import {
  AbortMultipartUploadCommand,
  CompleteMultipartUploadCommand,
  CreateMultipartUploadCommand,
  DeleteObjectCommand,
  GetBucketVersioningCommand,
  GetObjectCommand,
  GetObjectLockConfigurationCommand,
  HeadBucketCommand,
  HeadObjectCommand,
  ListMultipartUploadsCommand,
  ListObjectsV2Command,
  ListObjectVersionsCommand,
  ListPartsCommand,
  S3Client,
  S3ServiceException,
  UploadPartCommand,
} from '@aws-sdk/client-s3'
import { getSignedUrl } from '@aws-sdk/s3-request-presigner'
import { SluiceError } from '@sluice/protocol/errors'
import type { Grant } from '@sluice/protocol/messages'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import type { ObjectStore, StoredPart, UploadRef } from './object-store.ts'

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
  credentials: () => Promise<{ accessKeyId: string; secretAccessKey: string }>
  now: () => number
}

/** How long one request may take; a store that hangs is unreachable, not waited for. */
const requestTimeoutMs = 30_000
const connectTimeoutMs = 5_000
/** Aborting races with parts still arriving (S3 User Guide, AbortMultipartUpload): try again. */
const abortTriesMax = 5

/** RGW forgets an aborted upload as `NoSuchKey` (measured); AWS says `NoSuchUpload`. */
const goneNames = new Set(['NoSuchUpload', 'NoSuchKey', 'NotFound'])

export function createS3Store(options: S3StoreOptions): ObjectStore {
  if (new URL(options.endpoint).protocol !== 'https:')
    throw new SluiceError('store.insecure', `${options.endpoint} is not https`, {
      hint: 'Give the store a certificate; a private authority goes into storage.s3.caFile.',
    })
  const bucket = options.bucket
  const client = new S3Client({
    endpoint: options.endpoint,
    region: options.region,
    forcePathStyle: options.forcePathStyle,
    credentials: options.credentials,
    // Checksums the SDK adds by itself break presigned uploads and are ignored by RGW (measured).
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    maxAttempts: 3,
    requestHandler: {
      requestTimeout: requestTimeoutMs,
      throwOnRequestTimeout: true,
      connectionTimeout: connectTimeoutMs,
      httpsAgent: new Agent({
        keepAlive: true,
        minVersion: 'TLSv1.3',
        ...(options.authorities === undefined ? {} : { ca: options.authorities }),
      }),
    },
  })

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

  /** The store's own list of incomplete uploads under exactly this key. */
  async function openUploads(key: ObjectKey): Promise<UploadRef[]> {
    const found: UploadRef[] = []
    let at: { KeyMarker: string; UploadIdMarker: string } | undefined
    do {
      const page = await translate(
        client.send(new ListMultipartUploadsCommand({ Bucket: bucket, Prefix: key, ...at })),
      )
      for (const { Key, UploadId } of page.Uploads ?? [])
        if (Key === key && UploadId !== undefined) found.push({ key, storeUploadId: UploadId })
      at =
        page.IsTruncated && page.NextKeyMarker !== undefined
          ? { KeyMarker: page.NextKeyMarker, UploadIdMarker: page.NextUploadIdMarker ?? '' }
          : undefined
    } while (at !== undefined)
    return found
  }

  /** Versions and delete markers under exactly this key; on an unversioned bucket the object itself. */
  async function versions(key: ObjectKey): Promise<(string | undefined)[]> {
    const found: (string | undefined)[] = []
    let at: { KeyMarker: string; VersionIdMarker: string } | undefined
    do {
      const page = await translate(
        client.send(new ListObjectVersionsCommand({ Bucket: bucket, Prefix: key, ...at })),
      )
      for (const entry of [...(page.Versions ?? []), ...(page.DeleteMarkers ?? [])])
        if (entry.Key === key) found.push(entry.VersionId)
      at =
        page.IsTruncated && page.NextKeyMarker !== undefined
          ? { KeyMarker: page.NextKeyMarker, VersionIdMarker: page.NextVersionIdMarker ?? '' }
          : undefined
    } while (at !== undefined)
    return found
  }

  return {
    kind: 's3',
    level: 'none',

    async check() {
      await translate(client.send(new HeadBucketCommand({ Bucket: bucket })))
      const versioning = await translate(
        client.send(new GetBucketVersioningCommand({ Bucket: bucket })),
      )
      if (versioning.Status !== undefined)
        throw new SluiceError('store.versioned', `bucket ${bucket} keeps versions`, {
          hint: 'Use a bucket that never had versioning switched on.',
        })
      if (await hasObjectLock(client, bucket))
        throw new SluiceError('store.versioned', `bucket ${bucket} has Object Lock`, {
          hint: 'Use a bucket without Object Lock: what it locks cannot be deleted.',
        })
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
      const url = await translate(getSignedUrl(client, command, signed))
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
      const url = await translate(getSignedUrl(client, command, signing(lifeMs, ['host'])))
      return { url, headers: {}, expiresAtMs: options.now() + lifeMs }
    },

    async deleteAll(key) {
      for (const upload of await openUploads(key)) await abortUpload(upload)
      for (const VersionId of await versions(key))
        await unlessGone(
          client.send(
            new DeleteObjectCommand({
              Bucket: bucket,
              Key: key,
              // `null` is how S3 names the only version of an unversioned bucket.
              ...(VersionId === undefined || VersionId === 'null' ? {} : { VersionId }),
            }),
          ),
        )
      await unlessGone(client.send(new DeleteObjectCommand({ Bucket: bucket, Key: key })))
    },

    async remains(key) {
      const objects = await translate(
        client.send(new ListObjectsV2Command({ Bucket: bucket, Prefix: key })),
      )
      return {
        objects: (objects.Contents ?? []).filter((entry) => entry.Key === key).length,
        versions: (await versions(key)).length,
        uploads: (await openUploads(key)).length,
      }
    },

    [Symbol.asyncDispose]: async () => client.destroy(),
  }
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
    // No configuration, or a store that does not know the question: nothing is locked.
    const status = statusOf(error)
    if (status === 404 || status === 400 || status === 501 || status === 409) return false
    throw toSluiceError(error)
  }
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
