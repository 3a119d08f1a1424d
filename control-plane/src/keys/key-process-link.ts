/** Starts a key process, and speaks to it. */
import { fork } from 'node:child_process'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { limits } from '@sluice/protocol/limits'
import { keyChildEnvironment, keyChildFlags } from '@sluice/protocol/process/key-child'
import { type ChildLink, linkTo } from './child-link.ts'
import { type KeyHolder, keyOperations } from './key-operations.ts'
import type { EpochKeysPlace } from './epoch-keys-place.ts'
import { libraryEnvironment } from './token-process-link.ts'

/** A key holder that can end. Disposing it kills the process and waits until it is reaped. */
export type KeyProcess = KeyHolder & Pick<ChildLink, 'alive' | 'pid' | typeof Symbol.asyncDispose>

/** Source and built packages differ only in the extension. */
const entry = fileURLToPath(new URL(`./key-process${extname(import.meta.url)}`, import.meta.url))

/**
 * Starts a key process; it holds no key until `hold`.
 *
 * @throws SluiceError `keys.unavailable` when it does not come up, or cannot open the token.
 */
export async function startKeyProcess(options: {
  slotFile: string
  store?: EpochKeysPlace['store']
  pkcs11?: EpochKeysPlace['pkcs11']
  /** For one request; longer, and the process is ended. */
  answerMs?: number
}): Promise<KeyProcess> {
  const { slotFile, store = 'file', pkcs11, answerMs = limits.requestTimeoutMs } = options
  const place: EpochKeysPlace = { slotFile, store, ...(pkcs11 === undefined ? {} : { pkcs11 }) }
  const child = fork(entry, [JSON.stringify(place)], {
    serialization: 'advanced',
    env: { ...keyChildEnvironment(), ...(pkcs11 === undefined ? {} : libraryEnvironment()) },
    execArgv: keyChildFlags,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  })
  const link = await linkTo(child, { name: 'the key process', answerMs })
  const holder = Object.fromEntries(
    keyOperations.map((operation) => [
      operation,
      (request: unknown) => link.ask(operation, request),
    ]),
  ) as unknown as KeyHolder
  return {
    ...holder,
    get alive() {
      return link.alive
    },
    pid: link.pid,
    [Symbol.asyncDispose]: () => link[Symbol.asyncDispose](),
  }
}
