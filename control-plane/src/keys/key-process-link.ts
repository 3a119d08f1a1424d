/** The main process's end of a key process: bounded, timed requests, and its sure end. */
import assert from 'node:assert/strict'
import { type ChildProcess, fork } from 'node:child_process'
import { extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type ErrorCode, SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { keyChildEnvironment, keyChildFlags } from '@sluice/protocol/process/key-child'
import { type KeyHolder, keyOperations } from './key-operations.ts'
import type { EpochKeysPlace } from './open-epoch-keys.ts'

export type KeyQuestion = { number: number; operation: keyof KeyHolder; request: unknown }
export type KeyAnswer = {
  number: number
  reply?: unknown
  problem?: { code: ErrorCode; message: string; retry: 'never' | 'later'; hint?: string }
}

/** A key holder that can end. Disposing it kills the process and waits until it is reaped. */
export type KeyProcess = KeyHolder &
  AsyncDisposable & {
    readonly alive: boolean
    readonly pid: number | undefined
  }

type Waiting = {
  resolve: (reply: unknown) => void
  reject: (error: Error) => void
  timer: NodeJS.Timeout
}

/** Source and built packages differ only in the extension. */
const entry = fileURLToPath(new URL(`./key-process${extname(import.meta.url)}`, import.meta.url))

/**
 * Starts a key process; it holds no key until `hold`.
 *
 * @throws SluiceError `keys.unavailable` when it does not come up.
 */
export async function startKeyProcess(options: {
  slotFile: string
  store?: EpochKeysPlace['store']
  pkcs11?: EpochKeysPlace['pkcs11']
  /** For one request; longer, and the process is ended. */
  timeoutMs?: number
}): Promise<KeyProcess> {
  const { slotFile, store = 'file', pkcs11 } = options
  const place: EpochKeysPlace = { slotFile, store, ...(pkcs11 === undefined ? {} : { pkcs11 }) }
  const child = fork(entry, [JSON.stringify(place)], {
    serialization: 'advanced',
    env: { ...keyChildEnvironment(), ...(pkcs11 === undefined ? {} : libraryEnvironment()) },
    execArgv: keyChildFlags,
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  })
  const link = linkTo(child, options.timeoutMs ?? limits.requestTimeoutMs)
  await link.ready
  return link.process
}

/** Where PKCS#11 libraries look for their own configuration; nothing else of the environment passes. */
const libraryVariables = [
  'SOFTHSM2_CONF',
  'YUBIHSM_PKCS11_CONF',
  'ChrystokiConfigurationPath',
  'CS_PKCS11_R3_CFG',
  'NFAST_HOME',
]

function libraryEnvironment(): Record<string, string> {
  return Object.fromEntries(
    libraryVariables.flatMap((name) => {
      const value = process.env[name]
      return value === undefined ? [] : [[name, value]]
    }),
  )
}

function linkTo(child: ChildProcess, timeoutMs: number) {
  const waiting = new Map<number, Waiting>()
  const ready = Promise.withResolvers<void>()
  const exited = Promise.withResolvers<void>()
  let number = 0
  let alive = true

  function unavailable(why: string): SluiceError {
    return new SluiceError('keys.unavailable', why, { retry: 'later' })
  }

  function fail(error: SluiceError): void {
    alive = false
    child.kill('SIGKILL')
    ready.reject(error)
    for (const { reject, timer } of waiting.values()) {
      clearTimeout(timer)
      reject(error)
    }
    waiting.clear()
  }

  function settle(answer: KeyAnswer): void {
    const waiter = waiting.get(answer.number)
    assert(waiter, 'the key process answered what nobody asked')
    waiting.delete(answer.number)
    clearTimeout(waiter.timer)
    const { problem } = answer
    if (!problem) waiter.resolve(answer.reply)
    else waiter.reject(new SluiceError(problem.code, problem.message, problem))
  }

  child.on('message', (message: 'ready' | KeyAnswer) => {
    if (message === 'ready') ready.resolve()
    else if (alive) settle(message)
  })
  child.on('error', (cause) => {
    if (child.pid === undefined) exited.resolve()
    fail(new SluiceError('keys.unavailable', 'the key process failed', { retry: 'later', cause }))
  })
  child.on('exit', (code, signal) => {
    exited.resolve()
    fail(unavailable(`the key process ended (${signal ?? `code ${code}`})`))
  })
  const startTimer = setTimeout(() => {
    fail(unavailable('the key process did not start in time'))
  }, timeoutMs)
  // Waited for by whoever starts it; a second look here must not count as a lost failure.
  void ready.promise.catch(() => undefined).finally(() => clearTimeout(startTimer))

  function ask(operation: keyof KeyHolder, request: unknown): Promise<unknown> {
    if (!alive) return Promise.reject(unavailable('the key process has ended'))
    if (waiting.size >= limits.keyRequestsMax)
      return Promise.reject(unavailable('too many requests wait for the key process'))
    number += 1
    const question: KeyQuestion = { number, operation, request }
    const { promise, resolve, reject } = Promise.withResolvers<unknown>()
    const timer = setTimeout(() => {
      fail(unavailable(`the key process did not answer ${operation} in time`))
    }, timeoutMs)
    waiting.set(number, { resolve, reject, timer })
    child.send(question)
    return promise
  }

  const holder = Object.fromEntries(
    keyOperations.map((operation) => [operation, (request: unknown) => ask(operation, request)]),
  ) as unknown as KeyHolder
  const process: KeyProcess = {
    ...holder,
    get alive() {
      return alive
    },
    pid: child.pid,
    async [Symbol.asyncDispose]() {
      fail(unavailable('the key process was ended'))
      await exited.promise
    },
  }
  return { ready: ready.promise, process }
}
