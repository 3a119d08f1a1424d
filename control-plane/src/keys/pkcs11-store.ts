/**
 * Epoch keys under an HSM: each is wrapped by an AES key of its own, which never leaves the token.
 * Destroying that object makes every copy of the wrapped epoch key unopenable, backups included.
 *
 * In a folder beside the database: `instance`, which names this control plane's objects among those
 * of others on the token, and for each epoch `<id>.wrapped`: nonce (12), ciphertext (32), tag (16)
 * of AES-256-GCM with the epoch id as authenticated data.
 *
 * A token that is away may still answer that it has nothing (SoftHSM does, measured). So one more
 * object, the witness, is made before the first key and stays; a file of that name says that it was.
 * Where the witness is not seen, nothing else is believed to be gone.
 */
import assert from 'node:assert/strict'
import { randomBytes, randomUUID } from 'node:crypto'
import { constants } from 'node:fs'
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { Handle, Template } from 'pkcs11js'
import { SluiceError } from '@sluice/protocol/errors'
import { type EpochId, epochId } from '@sluice/protocol/ids'
import { type EpochKeyStore, tokenLevel } from './epoch-key-store.ts'
import type { Pkcs11Place } from './epoch-keys-place.ts'
import { attributesOf, exists, findObjects, openToken, type TokenSession } from './pkcs11-token.ts'

const keyBytes = 32
const nonceBytes = 12
const tagBytes = 16
const blobBytes = nonceBytes + keyBytes + tagBytes

/** @throws SluiceError `keys.unavailable` when the token cannot be used, `host.unsafe_file`. */
export async function openPkcs11Store(place: Pkcs11Place): Promise<EpochKeyStore> {
  const { folder } = place
  await mkdir(folder, { recursive: true, mode: 0o700 })
  const prefix = `sluice/${await instanceOf(folder)}/`
  const token = await openToken({ ...place, refusedFile: join(folder, 'pin-refused') })
  const blobOf = (id: EpochId): string => join(folder, `${id}.wrapped`)

  const labelled = (on: TokenSession, id: EpochId) => [
    { type: on.ck.CKA_CLASS, value: on.ck.CKO_SECRET_KEY },
    { type: on.ck.CKA_LABEL, value: `${prefix}${id}` },
  ]

  const witness = (on: TokenSession) => [
    { type: on.ck.CKA_CLASS, value: on.ck.CKO_SECRET_KEY },
    { type: on.ck.CKA_LABEL, value: `${prefix}witness` },
  ]
  const witnessFile = join(folder, 'witness')

  /** @throws SluiceError `keys.unavailable` when the token does not show what it must hold. */
  function requireWitness(on: TokenSession, made: boolean): void {
    if (!made || findObjects(on, witness(on)).length > 0) return
    throw new SluiceError('keys.unavailable', 'the token does not show what it must hold', {
      retry: 'later',
      hint: 'Bring back the token that was used. If it was made anew: docs/operate/hsm.md.',
    })
  }

  /** What failed may have failed because the token went away. */
  async function requireToken(): Promise<void> {
    const made = await exists(witnessFile)
    await token.with((on) => requireWitness(on, made))
  }

  /** Makes the witness, once: on this token all keys lie until somebody says that it is lost. */
  async function makeWitness(): Promise<void> {
    if (await exists(witnessFile)) return
    await token.with((on) => {
      if (findObjects(on, witness(on)).length === 0) generate(on, witness(on), [])
    })
    await writeBlob(folder, witnessFile, Buffer.alloc(0))
  }

  async function opened(id: EpochId, blob: Buffer): Promise<Buffer | undefined> {
    return token.with((on) => {
      const [object] = findObjects(on, labelled(on, id))
      return object && decrypt(on, { object, id, blob })
    })
  }

  return {
    name: 'pkcs11',

    async create(id, key) {
      assert.equal(key.length, keyBytes)
      await makeWitness()
      const blob = await token.with((on) => {
        const { pkcs11, session, ck } = on
        requireWitness(on, true)
        if (findObjects(on, labelled(on, id)).length > 0)
          throw new SluiceError('keys.damaged', `the token has a key of epoch ${id} already`)
        const object = generate(on, labelled(on, id), [
          { type: ck.CKA_ENCRYPT, value: true },
          { type: ck.CKA_DECRYPT, value: true },
        ])
        const nonce = randomBytes(nonceBytes)
        pkcs11.C_EncryptInit(session, mechanismOf(on, id, nonce), object)
        const sealed = pkcs11.C_Encrypt(session, key, Buffer.alloc(keyBytes + tagBytes))
        return Buffer.concat([nonce, sealed])
      })
      await writeBlob(folder, blobOf(id), blob)
      const again = await opened(id, await readFile(blobOf(id)))
      const same = again?.equals(key) ?? false
      again?.fill(0)
      if (same) return
      await requireToken()
      throw new SluiceError('keys.damaged', `the token does not open epoch ${id} again`)
    },

    async load(id) {
      const blob = await readFile(blobOf(id)).catch((error: NodeJS.ErrnoException) => {
        if (error.code === 'ENOENT') return undefined
        throw error
      })
      const here = await token.with((on) => findObjects(on, labelled(on, id)).length > 0)
      const key = blob?.length === blobBytes ? await opened(id, blob) : undefined
      if (key) return key
      await requireToken()
      throw here
        ? new SluiceError('keys.damaged', `the wrapped key of epoch ${id} does not open`)
        : new SluiceError('keys.no_epoch', `the token has no key of epoch ${id}`)
    },

    async destroy(id) {
      const made = await exists(witnessFile)
      const left = await token.with((on) => {
        for (const object of findObjects(on, labelled(on, id)))
          on.pkcs11.C_DestroyObject(on.session, object)
        const seen = findObjects(on, labelled(on, id)).length
        // Last: a token that goes away does not come back to the same process.
        requireWitness(on, made)
        return seen
      })
      if (left > 0)
        throw new SluiceError('keys.damaged', `the key of epoch ${id} is still on the token`, {
          retry: 'later',
          hint: 'Look whether the user of the token may destroy objects.',
        })
      await rm(blobOf(id), { force: true })
    },

    async list() {
      return token.with((on) =>
        findObjects(on, [{ type: on.ck.CKA_CLASS, value: on.ck.CKO_SECRET_KEY }]).flatMap(
          (object) => {
            const [label] = attributesOf(on, object, [on.ck.CKA_LABEL])
            const text = label?.value?.toString()
            const id = epochId.safeParse(text?.slice(prefix.length))
            return text?.startsWith(prefix) && id.success ? [id.data] : []
          },
        ),
      )
    },

    startAnew: () => rm(witnessFile, { force: true }),

    level: () => Promise.resolve(tokenLevel),

    async [Symbol.asyncDispose]() {
      await token[Symbol.asyncDispose]()
    },
  }
}

/** Makes an AES key that never leaves the token. */
function generate(on: TokenSession, names: Template, uses: Template): Handle {
  const { pkcs11, session, ck } = on
  return pkcs11.C_GenerateKey(session, { mechanism: ck.CKM_AES_KEY_GEN }, [
    ...names,
    { type: ck.CKA_KEY_TYPE, value: ck.CKK_AES },
    { type: ck.CKA_VALUE_LEN, value: keyBytes },
    { type: ck.CKA_TOKEN, value: true },
    { type: ck.CKA_PRIVATE, value: true },
    { type: ck.CKA_SENSITIVE, value: true },
    { type: ck.CKA_EXTRACTABLE, value: false },
    ...uses,
  ])
}

function mechanismOf(on: TokenSession, id: EpochId, nonce: Buffer) {
  const { ck } = on
  return {
    mechanism: ck.CKM_AES_GCM,
    parameter: {
      type: ck.CK_PARAMS_AES_GCM,
      iv: nonce,
      ivBits: nonceBytes * 8,
      aad: Buffer.from(id, 'latin1'),
      tagBits: tagBytes * 8,
    },
  }
}

/** @returns 32 bytes, the caller's to zero; undefined when the token refuses these bytes. */
function decrypt(
  on: TokenSession,
  wrapped: { object: Buffer; id: EpochId; blob: Buffer },
): Buffer | undefined {
  const { pkcs11, session, ck } = on
  const { object, id, blob } = wrapped
  // Some tokens want room for the tag too.
  const room = Buffer.allocUnsafeSlow(keyBytes + tagBytes).fill(0)
  try {
    const nonce = blob.subarray(0, nonceBytes)
    pkcs11.C_DecryptInit(session, mechanismOf(on, id, nonce), object)
    const opened = pkcs11.C_Decrypt(session, blob.subarray(nonceBytes), room)
    if (opened.length !== keyBytes) return undefined
    const key = Buffer.allocUnsafeSlow(keyBytes)
    opened.copy(key)
    opened.fill(0)
    return key
  } catch (error) {
    const refusals = [ck.CKR_ENCRYPTED_DATA_INVALID, ck.CKR_ENCRYPTED_DATA_LEN_RANGE]
    // SoftHSM says CKR_GENERAL_ERROR for a wrong tag.
    refusals.push(ck.CKR_GENERAL_ERROR, ck.CKR_FUNCTION_FAILED)
    if (error instanceof ck.Pkcs11Error && refusals.includes(error.code)) return undefined
    throw error
  } finally {
    room.fill(0)
  }
}

/** The name of this control plane on a token that others may use too; made once. */
async function instanceOf(folder: string): Promise<string> {
  const path = join(folder, 'instance')
  try {
    const text = (await readFile(path, 'utf8')).trim()
    if (/^[0-9a-f-]{36}$/.test(text)) return text
    throw new SluiceError('keys.damaged', `${path} is damaged`, {
      hint: 'Put it back from a backup, or look on the token for objects called sluice/….',
    })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error
  }
  await writeBlob(folder, path, Buffer.from(`${randomUUID()}\n`))
  return instanceOf(folder)
}

/** Ciphertext and names, so a copy left by the rename tells nobody anything. */
async function writeBlob(folder: string, path: string, bytes: Buffer): Promise<void> {
  const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW
  const file = await open(`${path}.new`, flags, 0o600)
  try {
    await file.writeFile(bytes)
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(`${path}.new`, path)
  const directory = await open(folder, constants.O_RDONLY)
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}
