/** What Sluice needs of an object store; a directory and any S3 give the same answers. */
import type { ControlPlaneId } from '@sluice/protocol/ids'
import type { Grant } from '@sluice/protocol/messages'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import type { SanitisationLevel } from '@sluice/protocol/certificate'

/** One incomplete upload, by the store's own id. */
export type UploadRef = { key: ObjectKey; storeUploadId: string }

/** A part the store holds. `etag` is the hexadecimal MD5 of its bytes, without quotes. */
export type StoredPart = { part: number; bytes: number; etag: string }

/** What a store keeps by itself, which deletions have to take into account. */
export type StoreTraits = {
  /** It keeps versions; deletion removes each of them and every marker. */
  versioned: boolean
  /** It may lock objects; what is locked stays until its time is over, as an open obligation. */
  locks: boolean
}

/** Everything the store holds under one key. */
export type StoreEntry = {
  /** As it is in the store; not every key there needs to be one of ours. */
  key: string
  objects: number
  /** Older versions and delete markers. */
  versions: number
  /** Store ids of incomplete uploads. */
  uploads: string[]
}

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
   * Looks whether the store can be used at all, and what it keeps by itself.
   *
   * @throws SluiceError `store.insecure` for an endpoint without TLS.
   */
  check(): Promise<StoreTraits>

  /**
   * Looks whose store this is.
   *
   * @param owner.mark Marks it as the owner's own where it is nobody's.
   * @throws SluiceError `store.claimed` when another control plane has marked it.
   */
  claim(owner: { id: ControlPlaneId; mark: boolean }): Promise<void>

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

  /**
   * Makes every grant given out before an instant useless, transfers under way included.
   *
   * @returns False while one of them may hold: S3 refuses them only once the access key that signed
   * them was replaced and deleted, else they end by their own expiry.
   */
  revokeGrants(givenBeforeMs: number): Promise<boolean>

  /**
   * Deletes the object, every version and marker of it, and every incomplete upload under its key,
   * whoever began it.
   *
   * @throws SluiceError `store.locked` (`later`) when a lock or retention keeps something.
   */
  deleteAll(key: ObjectKey): Promise<void>
  /** Looks again, as after a deletion. */
  remains(key: ObjectKey): Promise<Remains>

  /**
   * Everything there is, in ascending order of keys, a page at a time.
   *
   * @param after The `next` of the page before.
   */
  list(after?: string): Promise<{ entries: StoreEntry[]; next?: string }>
}

/** Buckets that the operator's own replication copies the store to, by name. */
export type Replicas = {
  stores: ReadonlyMap<string, Pick<ObjectStore, 'deleteAll' | 'remains' | 'abortUpload'>>
  /** How long a copy may be under way after the store itself is empty. */
  settleMs: number
}

/** Whether nothing is left. */
export function isAbsent(remains: Remains): boolean {
  return remains.objects + remains.versions + remains.uploads === 0
}
