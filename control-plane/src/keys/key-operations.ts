/** What a key process does for the main process, and the shape of what passes between them. */
import type { AgentId, EpochId, JobId, LeaseId, ReceiveKeyId } from '@sluice/protocol/ids'

/** A secret of 32 bytes under an epoch key: nonce (12), ciphertext (32), tag (16). */
export type WrappedKey = { epochId: EpochId; wrapped: Buffer }

export type EscrowRequest = {
  jobId: JobId
  senderId: AgentId
  receiveKeyId: ReceiveKeyId
  /** The first 56 bytes of the sealed archive. */
  sealedHeader: Buffer
  /** The `job-key-escrow` envelope. */
  envelope: Buffer
}

export type LeaseKeyRequest = {
  jobId: JobId
  nodeId: AgentId
  leaseId: LeaseId
  fence: number
  deadlineAtMs: number
  sealedHeader: Buffer
  /** The lease's X-Wing public key, 1216 bytes. */
  publicKey: Buffer
}

export type SuppliedReceiveKey = {
  receiveKeyId: ReceiveKeyId
  /** X-Wing public key, base64url. */
  publicKey: string
  expiresAtMs: number
}

export const secretBytes = 32
/** AES-256-GCM: nonce (12), ciphertext, tag (16). */
export const wrappedBytes = 12 + secretBytes + 16

/** What a wrapped secret is; part of its authenticated data, so that none passes for the other. */
export type WrappedPurpose = 'job-key' | 'receive-seed'

/** Many wrapped secrets of one epoch: `wrapped` holds them in the order of `ids`, each 60 bytes. */
export type WrappedPage = {
  purpose: WrappedPurpose
  epochId: EpochId
  ids: string[]
  wrapped: Buffer
}

/** Only ciphertext, envelopes and public keys go in and out. */
export type KeyHolder = {
  /**
   * Takes an epoch's key from the store, or makes it there; from now on new wraps are under it.
   *
   * @param request.mayCreate Nothing is wrapped under it yet, so a missing or torn key is made anew.
   * @throws SluiceError `keys.no_epoch`, `keys.damaged`.
   */
  hold(request: { epochId: EpochId; mayCreate: boolean }): Promise<void>
  openEscrow(request: EscrowRequest & { seed: WrappedKey }): Promise<WrappedKey>
  sealForLease(request: LeaseKeyRequest & { key: WrappedKey }): Promise<Buffer>
  /** Public keys and wrapped seeds in the order of `ids`. */
  makeReceiveKeys(request: {
    ids: ReceiveKeyId[]
  }): Promise<{ publicKeys: Buffer[]; seeds: WrappedPage }>
  /** Moves a page under the newest key. `opened[i]` is 0, and its bytes are zeros, where one did not open. */
  reseal(page: WrappedPage): Promise<{ page: WrappedPage; opened: Uint8Array }>
  /** Opens each and throws it away: 1 where it opened. */
  verify(page: WrappedPage): Promise<Uint8Array>
}

export const keyOperations = [
  'hold',
  'openEscrow',
  'sealForLease',
  'makeReceiveKeys',
  'reseal',
  'verify',
] as const satisfies readonly (keyof KeyHolder)[]
