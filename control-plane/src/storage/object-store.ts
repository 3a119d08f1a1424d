/** What Sluice needs of an object store; a directory and any S3 give the same answers. */
import type { Grant } from '@sluice/protocol/messages'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import type { SanitisationLevel } from '@sluice/protocol/certificate'

/** One incomplete upload, by the store's own id. */
export type UploadRef = { key: ObjectKey; storeUploadId: string }

/** A part the store holds. `etag` is the hexadecimal MD5 of its bytes, without quotes. */
export type StoredPart = { part: number; bytes: number; etag: string }

/** What was seen under a key when it was looked at last. All zero means absent. */
export type Remains = { objects: number; versions: number; uploads: number }

/**
 * Every method may throw `store.unreachable` (`later`) and `store.refused`; each is idempotent, so
 * a caller that does not know whether it worked calls again.
 */
export type ObjectStore = AsyncDisposable & {
  readonly kind: 'directory' | 's3'
  /** What its deletions may claim: none of ours overwrites blocks. */
  readonly level: SanitisationLevel

  /**
   * Looks whether the store can be used at all.
   *
   * @throws SluiceError `store.versioned` for a bucket with versions or Object Lock,
   * `store.insecure` for an endpoint without TLS.
   */
  check(): Promise<void>

  /** Opens a multipart upload. Its ledger row must be durable before this is called. */
  createUpload(key: ObjectKey): Promise<string>
  /** @throws SluiceError `store.not_found` when the upload is gone. */
  listParts(upload: UploadRef): Promise<StoredPart[]>
  /** A grant for exactly one part of one upload, of exactly this length and MD5 (base64). */
  grantPart(
    upload: UploadRef,
    part: { part: number; bytes: number; md5: string; lifeMs: number },
  ): Promise<Grant>
  /**
   * Makes the object out of exactly these parts.
   *
   * @throws SluiceError `store.not_found` when the upload is gone: the object may be complete
   * already, which `head` tells.
   */
  completeUpload(upload: UploadRef, parts: readonly { part: number; etag: string }[]): Promise<void>
  /** Aborts, and again until the store lists no part. An upload that is gone is no error. */
  abortUpload(upload: UploadRef): Promise<void>

  head(key: ObjectKey): Promise<{ bytes: number } | undefined>
  /** A grant to read the object, whole or by ranges. */
  grantRead(key: ObjectKey, lifeMs: number): Promise<Grant>

  /** Deletes the object, every version and marker of it, and every incomplete upload under its key. */
  deleteAll(key: ObjectKey): Promise<void>
  /** Looks again, as after a deletion. */
  remains(key: ObjectKey): Promise<Remains>
}

/** Whether nothing is left. */
export function isAbsent(remains: Remains): boolean {
  return remains.objects + remains.versions + remains.uploads === 0
}
