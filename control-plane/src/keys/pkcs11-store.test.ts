import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { existsSync } from 'node:fs'
import { copyFile, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, describe, it } from 'node:test'
import { type ErrorCode, isSluiceError } from '@sluice/protocol/errors'
import { epochId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { newId } from '@sluice/protocol/process/new-id'
import { openDatabase } from '../database/database.ts'
import { startKeyProcess } from './key-process-link.ts'
import { createKeys } from './keys.ts'
import { openLedger } from './open-ledger.ts'
import type { Pkcs11Place } from './epoch-keys-place.ts'
import { openPkcs11Store } from './pkcs11-store.ts'
import { findObjects, openToken } from './pkcs11-token.ts'
import { instanceNameOf, makeToken, withoutSoftHsm } from './soft-hsm.test-setup.ts'
import { epochsIn } from './store.ts'

const skip = withoutSoftHsm()
const withCode = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)
const newEpoch = () => newId(epochId, Date.now())

// The library reads its configuration once in a process: one token for all tests.
const folder = await mkdtemp(join(tmpdir(), 'sluice-hsm-'))
const place: Pkcs11Place = skip === false ? await makeToken(folder, 'sluice') : ({} as never)
const tokenOf = (at: Pkcs11Place) =>
  openToken({ ...at, refusedFile: join(at.folder, 'pin-refused') })
after(() => rm(folder, { recursive: true }))

describe('epoch keys on PKCS#11', () => {
  it('keeps a key, gives it back to another opening, and knows no other', { skip }, async () => {
    const [id, key] = [newEpoch(), randomBytes(32)]
    {
      await using store = await openPkcs11Store(place)
      await store.create(id, Buffer.from(key))
    }
    await using again = await openPkcs11Store(place)
    assert.deepEqual(await again.list(), [id])
    assert.deepEqual(await again.load(id), key)
    await assert.rejects(again.load(newEpoch()), withCode('keys.no_epoch'))
    await assert.rejects(again.create(id, key), withCode('keys.damaged'))
    assert.equal((await again.level()).level, 'Purge')
    await again.destroy(id)
    await again.destroy(id)
    assert.deepEqual(await again.list(), [])
  })

  it('opens nothing with an old wrapped key once its object is destroyed', { skip }, async () => {
    await using store = await openPkcs11Store(place)
    const [id, key] = [newEpoch(), randomBytes(32)]
    await store.create(id, Buffer.from(key))
    const file = join(place.folder, `${id}.wrapped`)
    await copyFile(file, join(folder, 'backup'))
    // Control: the backup alone, put back, opens it while the object is there.
    await rm(file)
    await assert.rejects(store.load(id), withCode('keys.damaged'))
    await copyFile(join(folder, 'backup'), file)
    assert.deepEqual(await store.load(id), key)

    await store.destroy(id)
    assert.equal(existsSync(file), false)
    await copyFile(join(folder, 'backup'), file)
    await assert.rejects(store.load(id), withCode('keys.no_epoch'))
    // Nor does a key made anew under the same label.
    await rm(file)
    await store.create(id, randomBytes(32))
    await copyFile(join(folder, 'backup'), file)
    await assert.rejects(store.load(id), withCode('keys.damaged'))
    await store.destroy(id)
  })

  it('wraps under a key whose value the token gives to nobody', { skip }, async () => {
    await using store = await openPkcs11Store(place)
    await using token = await tokenOf(place)
    const id = newEpoch()
    await store.create(id, randomBytes(32))
    const label = `sluice/${await instanceNameOf(place)}/${id}`
    await token.with(({ pkcs11, ck, session }) => {
      const [object] = findObjects({ pkcs11, ck, session }, [{ type: ck.CKA_LABEL, value: label }])
      assert(object)
      const read = (which: Buffer) =>
        pkcs11.C_GetAttributeValue(session, which, [{ type: ck.CKA_VALUE }])
      assert.throws(
        () => read(object),
        (error: unknown) =>
          error instanceof ck.Pkcs11Error && error.code === ck.CKR_ATTRIBUTE_SENSITIVE,
      )
      // Control: of an extractable one it is read.
      const open = pkcs11.C_GenerateKey(session, { mechanism: ck.CKM_AES_KEY_GEN }, [
        { type: ck.CKA_CLASS, value: ck.CKO_SECRET_KEY },
        { type: ck.CKA_KEY_TYPE, value: ck.CKK_AES },
        { type: ck.CKA_VALUE_LEN, value: 32 },
        { type: ck.CKA_SENSITIVE, value: false },
        { type: ck.CKA_EXTRACTABLE, value: true },
      ])
      assert.equal(read(open)[0]?.value?.length, 32)
    })
    await store.destroy(id)
  })

  it('refuses a wrapped key of which one bit changed, or of another epoch', { skip }, async () => {
    await using store = await openPkcs11Store(place)
    const [id, other, key] = [newEpoch(), newEpoch(), randomBytes(32)]
    await store.create(id, Buffer.from(key))
    await store.create(other, randomBytes(32))
    const file = join(place.folder, `${id}.wrapped`)
    const good = await readFile(file)
    for (let at = 0; at < good.length; at += 1) {
      const bad = Buffer.from(good)
      bad[at]! ^= 1
      await writeFile(file, bad)
      await assert.rejects(store.load(id), withCode('keys.damaged'), `byte ${at}`)
    }
    await copyFile(join(place.folder, `${other}.wrapped`), file)
    await assert.rejects(store.load(id), withCode('keys.damaged'))
    await writeFile(file, good)
    assert.deepEqual(await store.load(id), key)
    await store.destroy(id)
    await store.destroy(other)
  })

  it('leaves the objects of another control plane on the same token alone', { skip }, async () => {
    await using mine = await openPkcs11Store(place)
    await using theirs = await openPkcs11Store({ ...place, folder: join(folder, 'theirs') })
    const [id, key] = [newEpoch(), randomBytes(32)]
    await theirs.create(id, Buffer.from(key))
    assert.deepEqual(await mine.list(), [])
    await mine.destroy(id)
    assert.deepEqual(await theirs.load(id), key)
    await theirs.destroy(id)
  })

  it('says what is missing: token, library, binding to a file', { skip }, async () => {
    for (const wrong of [{ tokenLabel: 'nobody' }, { library: '/nowhere/lib.so' }])
      await assert.rejects(openPkcs11Store({ ...place, ...wrong }), withCode('keys.unavailable'))
  })

  it('goes on by itself after its session was lost', { skip }, async () => {
    await using token = await tokenOf(place)
    const lost = await token.with(({ pkcs11, session }) => {
      pkcs11.C_CloseSession(session)
      return session
    })
    const now = await token.with((on) => {
      findObjects(on, [])
      return on.session
    })
    assert.notDeepEqual(now, lost)
  })

  it('tries a wrong PIN once, and not again before an operator says so', { skip }, async () => {
    const pinFile = join(folder, 'wrong-pin')
    await writeFile(pinFile, '00000000\n', { mode: 0o600 })
    const wrong = { ...place, folder: join(folder, 'refused'), pinFile }
    await assert.rejects(openPkcs11Store(wrong), withCode('keys.unavailable'))
    const mark = join(wrong.folder, 'pin-refused')
    assert(existsSync(mark))
    // With the right PIN, but the mark still there: not tried.
    await writeFile(pinFile, '12345678\n')
    await assert.rejects(openPkcs11Store(wrong), withCode('keys.unavailable'))
    await rm(mark)
    await using right = await openPkcs11Store(wrong)
    assert.deepEqual(await right.list(), [])
  })

  it('moves the keys when another store is configured, and back', { skip }, async () => {
    await using database = openDatabase(join(folder, 'sluice.db'))
    const slotFile = join(folder, 'slots')
    const run = async (store: 'file' | 'pkcs11') => {
      const keysAt = { store, slotFile, pkcs11: place }
      await using epochKeys = await openLedger(keysAt)
      await using keys = await createKeys({
        database,
        store: epochKeys,
        startProcess: () => startKeyProcess(keysAt),
        now: Date.now,
        offlineMsMax: limits.offlineMsMaxDefault,
        report: (problem) => assert.fail(problem),
        coalesceMs: 0,
      })
      const [current] = await database.read((sql) => epochsIn(sql, 'current'))
      assert.deepEqual(await epochKeys.list(), [current?.id])
      assert.equal(current?.store, store)
      await keys.rollNow()
      return { own: keys.level.level, claimed: (await keys.levelSince(Date.now())).level }
    }
    const file = await run('file')
    assert.notEqual(file.own, 'Purge')
    // A job of these days may have lain under the file's epoch: it claims no more than that.
    assert.deepEqual(await run('pkcs11'), { own: 'Purge', claimed: file.own })
    await using store = await openPkcs11Store(place)
    assert.equal((await store.list()).length, 1)
    await run('file')
    assert.deepEqual(await store.list(), [])
  })
})
