/** What the main process may do with an HSM, through a child that is killed when it hangs. */
import { fork } from 'node:child_process'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { EpochId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import { keyChildEnvironment, keyChildFlags } from '@sluice/protocol/process/key-child'
import { type ChildLink, linkTo } from './child-link.ts'
import { type EpochKeyLedger, tokenLevel } from './epoch-key-store.ts'
import type { Pkcs11Place } from './epoch-keys-place.ts'

/** Source and built packages differ only in the extension. */
const entry = fileURLToPath(new URL(`./token-process${extname(import.meta.url)}`, import.meta.url))

/** Where PKCS#11 libraries look for their own configuration; nothing else of the environment passes. */
const libraryVariables = [
  'SOFTHSM2_CONF',
  'YUBIHSM_PKCS11_CONF',
  'ChrystokiConfigurationPath',
  'CS_PKCS11_R3_CFG',
  'NFAST_HOME',
]

export function libraryEnvironment(): Record<string, string> {
  return Object.fromEntries(
    libraryVariables.flatMap((name) => {
      const value = process.env[name]
      return value === undefined ? [] : [[name, value]]
    }),
  )
}

/**
 * Opens a token, and after a failure opens it anew: libraries of HSMs that were away know nothing of
 * their return (SoftHSM, measured).
 *
 * @param options.answerMs For one answer; longer, and the child is killed.
 * @throws SluiceError `keys.unavailable` when the token cannot be used.
 */
export async function openTokenLedger(
  place: Pkcs11Place,
  options: { answerMs?: number } = {},
): Promise<EpochKeyLedger & { readonly pid: number | undefined }> {
  let link: ChildLink | undefined
  let tail: Promise<unknown> = Promise.resolve()
  let ended = false

  function start(): Promise<ChildLink> {
    const child = fork(entry, [JSON.stringify(place)], {
      serialization: 'advanced',
      env: { ...keyChildEnvironment(), ...libraryEnvironment() },
      execArgv: keyChildFlags,
      stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
    })
    const answerMs = options.answerMs ?? limits.requestTimeoutMs
    return linkTo(child, { name: 'the token process', answerMs })
  }

  async function end(): Promise<void> {
    const old = link
    link = undefined
    await old?.[Symbol.asyncDispose]()
  }

  /** Asks a child that may have been there long; only one that was just started is believed to fail. */
  async function askOnce(operation: string, request: unknown): Promise<unknown> {
    for (;;) {
      if (ended)
        throw new SluiceError('keys.unavailable', 'the control plane ends', { retry: 'later' })
      const fresh = link?.alive !== true
      if (fresh) {
        await end()
        link = await start()
      }
      try {
        return await link?.ask(operation, request)
      } catch (error) {
        if (!isSluiceError(error, 'keys.unavailable')) throw error
        const late = link?.alive !== true
        await end()
        if (fresh || late) throw error
      }
    }
  }

  /** One after another: the library works one call at a time, and each has its whole time. */
  function ask(operation: string, request?: unknown): Promise<unknown> {
    const answer = tail.then(() => askOnce(operation, request))
    tail = answer.catch(() => undefined)
    return answer
  }

  link = await start()
  return {
    name: 'pkcs11',
    get pid() {
      return link?.pid
    },
    list: async () => (await ask('list')) as EpochId[],
    async destroy(id) {
      await ask('destroy', id)
    },
    async startAnew() {
      await ask('startAnew')
    },
    level: () => Promise.resolve(tokenLevel),
    async [Symbol.asyncDispose]() {
      ended = true
      await end()
      await tail
      await end()
    },
  }
}
