/** Holds one epoch key (two while it rolls) and does everything that needs a key in clear. */
import assert from 'node:assert/strict'
import { randomFillSync } from 'node:crypto'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { EpochId } from '@sluice/protocol/ids'
import {
  type AeadDecryptor,
  type AeadEncryptor,
  aeadNonceBytes,
  createDecryptor,
  createEncryptor,
} from '@sluice/protocol/sealing/aead'
import { chunkKeysOf } from '@sluice/protocol/sealing/chunks'
import { archiveContext, lengthPrefixed } from '@sluice/protocol/sealing/context'
import {
  makeReceiverKeyPair,
  openEnvelope,
  sealEnvelope,
} from '@sluice/protocol/sealing/key-envelope'
import { sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import type { EpochKeyStore } from './epoch-key-store.ts'
import {
  type EscrowRequest,
  type KeyHolder,
  secretBytes,
  wrappedBytes,
  type WrappedKey,
  type WrappedPage,
  type WrappedPurpose,
} from './key-operations.ts'

type Epoch = { id: EpochId; encryptor: AeadEncryptor; decryptor: AeadDecryptor }

/** @param store Where epoch keys are read and made; stays the caller's. */
export function createKeyHolder(store: EpochKeyStore): KeyHolder & Disposable {
  const epochs = new Map<EpochId, Epoch>()
  let newest: Epoch | undefined
  // The cipher is given addresses: slow buffers are never moved.
  const nonce = Buffer.allocUnsafeSlow(64).subarray(0, aeadNonceBytes)
  const opened = Buffer.allocUnsafeSlow(secretBytes)

  function epochOf(id: EpochId): Epoch {
    const epoch = epochs.get(id)
    if (epoch) return epoch
    throw new SluiceError('keys.destroyed', `the key of epoch ${id} is not held here`, {
      retry: 'later',
    })
  }

  function wrap(purpose: WrappedPurpose, id: string, secret: Buffer, into: Buffer): EpochId {
    assert(newest, 'no epoch key is held')
    assert.equal(secret.length, secretBytes)
    randomFillSync(nonce)
    nonce.copy(into)
    const sealed = into.subarray(aeadNonceBytes, wrappedBytes)
    newest.encryptor.encrypt(nonce, secret, sealed, aadOf(purpose, id, newest.id))
    return newest.id
  }

  /** @returns Whether it opened; `opened` then holds it until it is zeroed. */
  function unwrap(purpose: WrappedPurpose, id: string, epoch: Epoch, wrapped: Buffer): boolean {
    if (wrapped.length !== wrappedBytes) return false
    wrapped.copy(nonce, 0, 0, aeadNonceBytes)
    const sealed = wrapped.subarray(aeadNonceBytes)
    return epoch.decryptor.decrypt(nonce, sealed, opened, aadOf(purpose, id, epoch.id))
  }

  function mustUnwrap(purpose: WrappedPurpose, id: string, key: WrappedKey): void {
    if (unwrap(purpose, id, epochOf(key.epochId), Buffer.from(key.wrapped))) return
    throw new SluiceError('keys.damaged', `a stored ${purpose} does not open`, {
      hint: 'The database was changed or damaged; the job cannot be opened any more.',
    })
  }

  async function keyOf(id: EpochId, mayCreate: boolean): Promise<Buffer> {
    try {
      return await store.load(id)
    } catch (error) {
      const absent = isSluiceError(error, 'keys.no_epoch') || isSluiceError(error, 'keys.damaged')
      if (!absent || !mayCreate) throw error
    }
    await store.destroy(id)
    const key = randomFillSync(Buffer.allocUnsafeSlow(secretBytes))
    await store.create(id, key)
    return key
  }

  return {
    async hold({ epochId, mayCreate }) {
      const held = epochs.get(epochId)
      if (held) {
        newest = held
        return
      }
      const key = await keyOf(epochId, mayCreate)
      try {
        newest = { id: epochId, encryptor: createEncryptor(key), decryptor: createDecryptor(key) }
        epochs.set(epochId, newest)
      } finally {
        key.fill(0)
      }
    },

    async openEscrow(request) {
      const { jobId, senderId, receiveKeyId, sealedHeader, envelope, seed } = request
      const header = Buffer.from(sealedHeader)
      let jobKey: Buffer | undefined
      try {
        mustUnwrap('receive-seed', receiveKeyId, seed)
        jobKey = openEnvelope({
          purpose: 'job-key-escrow',
          jobId,
          senderId,
          receiveKeyId,
          sealedHeaderHash: Buffer.from(sealedHeaderHash(header)),
          seed: opened,
          envelope: Buffer.from(envelope),
        })
        requireCommitted({ jobKey, jobId, header })
        const wrapped = Buffer.allocUnsafeSlow(wrappedBytes)
        return { epochId: wrap('job-key', jobId, jobKey, wrapped), wrapped }
      } finally {
        opened.fill(0)
        jobKey?.fill(0)
      }
    },

    async sealForLease(request) {
      const { jobId, nodeId, leaseId, fence, deadlineAtMs, sealedHeader, publicKey, key } = request
      try {
        mustUnwrap('job-key', jobId, key)
        return sealEnvelope({
          purpose: 'job-key-lease',
          jobId,
          nodeId,
          leaseId,
          fence,
          deadlineAtMs,
          sealedHeaderHash: Buffer.from(sealedHeaderHash(sealedHeader)),
          recipient: Buffer.from(publicKey),
          plaintext: opened,
        })
      } finally {
        opened.fill(0)
      }
    },

    async makeReceiveKeys({ ids }) {
      assert(newest, 'no epoch key is held')
      const wrapped = Buffer.allocUnsafeSlow(ids.length * wrappedBytes)
      const publicKeys = ids.map((id, index) => {
        const pair = makeReceiverKeyPair()
        wrap('receive-seed', id, pair.seed, wrapped.subarray(index * wrappedBytes))
        pair.seed.fill(0)
        return pair.publicKey
      })
      const seeds = { purpose: 'receive-seed', epochId: newest.id, ids, wrapped } as const
      return { publicKeys, seeds }
    },

    async reseal(page) {
      assert(newest && newest.id !== page.epochId, 'there is no newer epoch to move to')
      const from = epochOf(page.epochId)
      const wrapped = Buffer.alloc(page.ids.length * wrappedBytes)
      const flags = eachWrapped(page, (id, sealed, index) => {
        if (!unwrap(page.purpose, id, from, sealed)) return false
        wrap(page.purpose, id, opened, wrapped.subarray(index * wrappedBytes))
        return true
      })
      opened.fill(0)
      return { page: { ...page, epochId: newest.id, wrapped }, opened: flags }
    },

    async verify(page) {
      const epoch = epochOf(page.epochId)
      const flags = eachWrapped(page, (id, sealed) => unwrap(page.purpose, id, epoch, sealed))
      opened.fill(0)
      return flags
    },

    [Symbol.dispose]() {
      for (const epoch of epochs.values()) {
        epoch.encryptor[Symbol.dispose]()
        epoch.decryptor[Symbol.dispose]()
      }
      epochs.clear()
      newest = undefined
      opened.fill(0)
    },
  }
}

/** DESIGN "Keys at rest": bound to what it is, whose it is, and its epoch. Frozen. */
function aadOf(purpose: WrappedPurpose, id: string, epochId: EpochId): Buffer {
  return lengthPrefixed([`sluice/${purpose}/1`, id, epochId])
}

function eachWrapped(
  page: WrappedPage,
  work: (id: string, wrapped: Buffer, index: number) => boolean,
): Uint8Array {
  const all = Buffer.from(page.wrapped)
  assert.equal(all.length, page.ids.length * wrappedBytes)
  return Uint8Array.from(page.ids, (id, index) => {
    const wrapped = all.subarray(index * wrappedBytes, (index + 1) * wrappedBytes)
    return work(id, wrapped, index) ? 1 : 0
  })
}

function requireCommitted(escrow: {
  jobKey: Buffer
  jobId: EscrowRequest['jobId']
  header: Buffer
}): void {
  const { jobKey: key, jobId, header } = escrow
  try {
    chunkKeysOf({ key, context: archiveContext(jobId), header })[Symbol.dispose]()
  } catch (cause) {
    if (!isSluiceError(cause, 'seal.wrong_key')) throw cause
    throw new SluiceError(
      'keys.escrow_mismatch',
      'the escrowed key is not the one the archive commits to',
      { hint: 'Seal the media again; this archive could never be opened.', cause },
    )
  }
}
