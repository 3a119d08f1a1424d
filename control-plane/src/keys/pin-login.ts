/** Logs into a token with a PIN that is bytes from the file to the library, and never a string. */
import assert from 'node:assert/strict'
import type { Handle } from 'pkcs11js'
import { SluiceError } from '@sluice/protocol/errors'

/**
 * Calls `C_Login` as an ordinary user.
 *
 * @param pin Given to the library by its address; the caller wipes it.
 * @returns A `CKR_…` value: 0 when it let us in.
 */
export type PinLogin = (session: Handle, pin: Buffer) => number

/** `CKU_USER` (pkcs11t.h). */
const ordinaryUser = 1
/** Entries of `CK_FUNCTION_LIST` stand behind its version, in the order of pkcs11f.h. */
const loginEntry = 18
const pointerBytes = 8

/**
 * pkcs11js takes a PIN as a string alone, which nothing can wipe, so this one function is called
 * directly, in the library that it has loaded.
 *
 * @param library Path of the library, which is loaded already.
 * @throws SluiceError `keys.unavailable` where functions cannot be called directly.
 * @see PKCS #11 v2.40, "CK_FUNCTION_LIST": only `C_GetFunctionList` is sure to be exported.
 */
export async function bindPinLogin(library: string): Promise<PinLogin> {
  // Imported only now: it throws while it loads without its native part.
  const koffi = await import('koffi').catch((cause: unknown) => {
    throw new SluiceError('keys.unavailable', 'PINs cannot be passed without koffi', { cause })
  })
  const functionList = koffi
    .load(library)
    .func('unsigned long C_GetFunctionList(_Out_ void **list)')
  const found: (bigint | null)[] = [null]
  assert.equal(functionList(found), 0, 'C_GetFunctionList failed')
  const login: unknown = koffi.decode(found[0], (1 + loginEntry) * pointerBytes, 'void *')
  const shape = koffi.proto(
    'unsigned long (unsigned long, unsigned long, uint8_t *, unsigned long)',
  )
  return (session, pin) => {
    const handle = session.readBigUInt64LE()
    return Number(koffi.call(login, shape, handle, ordinaryUser, pin, pin.length))
  }
}
