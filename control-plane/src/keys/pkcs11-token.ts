/** One token of an HSM through its PKCS#11 library: logged in once, found by label, opened anew when it was away. */
import type * as pkcs11js from 'pkcs11js'
import type { Attribute, Handle, PKCS11, Template } from 'pkcs11js'
import { open, stat } from 'node:fs/promises'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { bindPinLogin } from './pin-login.ts'

type Cryptoki = typeof pkcs11js

/** Which token, and how to get in. Paths only: each process reads the PIN for itself. */
export type TokenPlace = {
  /** The vendor's shared library. */
  library: string
  tokenLabel: string
  /** Mode 0600: the PIN of the token's user, a line break at its end is left out. */
  pinFile: string
  /** Made when the token refuses the PIN; while it is there nobody tries again. */
  refusedFile: string
}

/** A logged-in session. `Pkcs11Error.code` of what fails is a `CKR_…` value. */
export type TokenSession = {
  pkcs11: PKCS11
  ck: Cryptoki
  session: Handle
}

export type Token = AsyncDisposable & {
  /**
   * Does work in one session; a session that was lost is opened again, once.
   *
   * @throws SluiceError `keys.unavailable` when the token is away or refuses.
   */
  with<T>(work: (on: TokenSession) => T): Promise<T>
}

/** Tokens have PINs of at most 255 bytes; more in the file is a mistake. */
const pinFileBytesMax = 256

/** Libraries in use: PKCS#11 is initialised once in a process, however many stores use it. */
const libraries = new Map<string, { pkcs11: PKCS11; users: number }>()

/** @throws SluiceError `keys.unavailable`: no binding, no library, no token, or its PIN is wrong. */
export async function openToken(place: TokenPlace): Promise<Token> {
  const ck = await binding()
  const pkcs11 = takeLibrary(ck, place.library)
  let current: Handle | undefined

  async function session(): Promise<TokenSession> {
    current ??= await login(ck, pkcs11, place)
    return { pkcs11, ck, session: current }
  }

  function drop(): void {
    if (current === undefined) return
    try {
      pkcs11.C_CloseSession(current)
    } catch (error) {
      // It was lost, which is why it is dropped.
      if (!(error instanceof ck.Pkcs11Error)) throw error
    }
    current = undefined
  }

  async function attempt<T>(work: (on: TokenSession) => T): Promise<T> {
    try {
      return work(await session())
    } catch (error) {
      if (error instanceof ck.Pkcs11Error) drop()
      throw error
    }
  }

  const token: Token = {
    async with(work) {
      try {
        try {
          return await attempt(work)
        } catch (error) {
          if (!(error instanceof ck.Pkcs11Error) || !isLost(ck, error.code)) throw error
          return await attempt(work)
        }
      } catch (error) {
        if (error instanceof ck.Pkcs11Error) throw unavailable(error)
        throw error
      }
    },
    async [Symbol.asyncDispose]() {
      drop()
      leaveLibrary(place.library)
    },
  }
  try {
    await token.with(() => undefined)
  } catch (error) {
    await token[Symbol.asyncDispose]()
    throw error
  }
  return token
}

/** Whether the session is at fault, and not what was asked: nothing was done, so it is asked again. */
function isLost(ck: Cryptoki, code: number): boolean {
  return [
    ck.CKR_SESSION_HANDLE_INVALID,
    ck.CKR_SESSION_CLOSED,
    ck.CKR_USER_NOT_LOGGED_IN,
    ck.CKR_DEVICE_REMOVED,
    ck.CKR_TOKEN_NOT_PRESENT,
  ].includes(code)
}

/** An optional dependency: it is compiled where it is installed, and may be absent. */
async function binding(): Promise<Cryptoki> {
  try {
    return (await import('pkcs11js')).default
  } catch (cause) {
    throw new SluiceError('keys.unavailable', 'the binding for PKCS#11 is not installed', {
      hint: 'Install g++, make and python3, then build it: docs/operate/hsm.md, "Install".',
      cause,
    })
  }
}

function takeLibrary(ck: Cryptoki, path: string): PKCS11 {
  const known = libraries.get(path)
  if (known) {
    known.users += 1
    return known.pkcs11
  }
  const pkcs11 = new ck.PKCS11()
  try {
    pkcs11.load(path)
    pkcs11.C_Initialize()
  } catch (cause) {
    throw new SluiceError('keys.unavailable', `${path} is no PKCS#11 library that starts`, {
      hint: 'Look at keys.pkcs11.library, and at the configuration of the library itself.',
      cause,
    })
  }
  libraries.set(path, { pkcs11, users: 1 })
  return pkcs11
}

function leaveLibrary(path: string): void {
  const known = libraries.get(path)
  if (!known) return
  known.users -= 1
  if (known.users > 0) return
  libraries.delete(path)
  known.pkcs11.C_Finalize()
  known.pkcs11.close()
}

async function login(ck: Cryptoki, pkcs11: PKCS11, place: TokenPlace): Promise<Handle> {
  const slots = pkcs11
    .C_GetSlotList(true)
    .filter((slot) => pkcs11.C_GetTokenInfo(slot).label.trimEnd() === place.tokenLabel)
  const [slot] = slots
  if (slot === undefined || slots.length > 1)
    throw new SluiceError(
      'keys.unavailable',
      slots.length > 1
        ? `more than one token is called ${place.tokenLabel}`
        : `no token is called ${place.tokenLabel}`,
      { retry: 'later', hint: 'Look at keys.pkcs11.tokenLabel, and whether the HSM is there.' },
    )
  const session = pkcs11.C_OpenSession(slot, ck.CKF_SERIAL_SESSION | ck.CKF_RW_SESSION)
  try {
    await enter(ck, { pkcs11, session, place })
    return session
  } catch (error) {
    pkcs11.C_CloseSession(session)
    throw error
  }
}

/**
 * Tries the PIN once. Tokens lock after a few wrong ones, so a refusal is written down and stays
 * until an operator takes it away: no restart, and no other process, tries again before.
 */
async function enter(
  ck: Cryptoki,
  on: { pkcs11: PKCS11; session: Handle; place: TokenPlace },
): Promise<void> {
  const { session, place } = on
  if (await exists(place.refusedFile)) throw refused(place)
  const logIn = await bindPinLogin(place.library)
  using pin = await readSecretFile(place.pinFile, pinFileBytesMax)
  const ends = pin.bytes.findIndex((byte) => byte === 0x0a || byte === 0x0d)
  const code = logIn(session, pin.bytes.subarray(0, ends < 0 ? pin.bytes.length : ends))
  if (code === ck.CKR_OK || code === ck.CKR_USER_ALREADY_LOGGED_IN) return
  const wrong = [ck.CKR_PIN_INCORRECT, ck.CKR_PIN_LEN_RANGE, ck.CKR_PIN_INVALID, ck.CKR_PIN_LOCKED]
  if (!wrong.includes(code))
    throw new SluiceError('keys.unavailable', `the HSM let nobody in: CKR 0x${code.toString(16)}`, {
      retry: 'later',
      hint: 'Look whether the HSM is there; work goes on by itself when it is.',
    })
  await (await open(place.refusedFile, 'w', 0o600)).close()
  throw refused(place)
}

function refused(place: TokenPlace): SluiceError {
  return new SluiceError('keys.unavailable', `token ${place.tokenLabel} refused its PIN`, {
    hint: `Correct ${place.pinFile}, then remove ${place.refusedFile}: no PIN is tried before.`,
  })
}

export async function exists(path: string): Promise<boolean> {
  try {
    await stat(path)
    return true
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false
    throw error
  }
}

function unavailable(cause: Error): SluiceError {
  return isSluiceError(cause)
    ? cause
    : new SluiceError('keys.unavailable', `the HSM failed: ${cause.message}`, {
        retry: 'later',
        hint: 'Look whether the HSM is there; work goes on by itself when it is.',
        cause,
      })
}

/** Handles of all objects that match, wherever the search ends. */
export function findObjects(on: TokenSession, template: Template): Handle[] {
  const { pkcs11, session } = on
  pkcs11.C_FindObjectsInit(session, template)
  try {
    const found: Handle[] = []
    for (;;) {
      const next = pkcs11.C_FindObjects(session)
      if (next === null) return found
      found.push(next)
    }
  } finally {
    pkcs11.C_FindObjectsFinal(session)
  }
}

/** Reads attributes that are no secret. */
export function attributesOf(on: TokenSession, object: Handle, types: number[]): Attribute[] {
  return on.pkcs11.C_GetAttributeValue(
    on.session,
    object,
    types.map((type) => ({ type })),
  )
}
