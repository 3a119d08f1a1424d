/** Starts the child process of one lease and serves it: ciphertext, sealed key and signature in, sealed result out. */
import assert from 'node:assert/strict'
import { fork, type ChildProcess } from 'node:child_process'
import { SluiceError } from '@sluice/protocol/errors'
import type { Problem } from '@sluice/protocol/messages'
import { keyChildEnvironment, keyChildFlags } from '@sluice/protocol/process/key-child'
import { requireProgram, siblingScript } from '../sandbox.ts'
import { fromChild, type FromChild, type LeaseOrder, type ToChild } from './lease-messages.ts'
import { asProblem } from './problem.ts'

/** What the agent does for a child; a failure of any of them fails the lease. */
export type LeaseSupplies = {
  /** Asks the control plane for the job key, sealed to the child's public key. */
  requestKey: (publicKey: Buffer) => Promise<{ envelope: Buffer; deadlineAtMs: number }>
  /** Fetches a range of the sealed object. */
  readSealed: (offset: number, length: number) => Promise<Buffer>
  /** Signs for the result of this hash; called at most once. */
  signResult: (facts: { resultSha256: string; finishedAtMs: number }) => {
    statement: Buffer
    certificate: Buffer
  }
  /** Counts after each medium. */
  analysed: (counts: Omit<Extract<FromChild, { type: 'analysed' }>, 'type'>) => void
}

export type LeaseOutcome = { type: 'result'; sealed: Buffer } | { type: 'failed'; problem: Problem }

export type LeaseChild = {
  /** Still running when `outcome` is there: whoever wipes ends it. */
  readonly process: ChildProcess
  /** Always resolves; when the child is killed it resolves with a failure. */
  readonly outcome: Promise<LeaseOutcome>
}

/**
 * Starts the child; it has no environment of ours, and nothing it writes outside its channel is kept. One
 * that mounts a directory has a mount namespace of its own: what is in there is seen by nobody
 * else, and ends with the last process of the lease, however that ends.
 *
 * @throws SluiceError `sandbox.missing` without the program that makes the namespace.
 */
export function startLeaseChild(order: LeaseOrder, supplies: LeaseSupplies): LeaseChild {
  const child = fork(siblingScript(import.meta.url, 'lease-child'), {
    env: keyChildEnvironment(),
    execArgv: keyChildFlags,
    ...(order.mediaMount === undefined ? {} : ownMounts()),
    serialization: 'advanced',
    stdio: ['ignore', 'ignore', 'ignore', 'ipc'],
  })
  const { promise: outcome, resolve } = Promise.withResolvers<LeaseOutcome>()
  const fail = (error: unknown): void => resolve({ type: 'failed', problem: asProblem(error) })
  const send = (message: ToChild): void => {
    // A child that just ended gets nothing more; its exit is the outcome.
    if (child.connected) child.send(message, () => undefined)
  }

  child.once('error', (cause) => fail(ended('could not be started', cause)))
  child.once('exit', (code, signal) => fail(ended(`ended with ${signal ?? `exit code ${code}`}`)))
  child.on('message', (raw) => {
    const message = fromChild.safeParse(raw)
    if (!message.success) fail(message.error)
    else answer(message.data, { supplies, send, resolve }).catch(fail)
  })
  send({ type: 'order', order })
  return { process: child, outcome }
}

function ownMounts(): { execPath: string; execArgv: string[] } {
  return {
    execPath: requireProgram('unshare'),
    execArgv: ['--mount', '--propagation', 'private', process.execPath, ...keyChildFlags],
  }
}

async function answer(
  message: FromChild,
  to: {
    supplies: LeaseSupplies
    send: (message: ToChild) => void
    resolve: (outcome: LeaseOutcome) => void
  },
): Promise<void> {
  const { supplies, send } = to
  switch (message.type) {
    case 'public-key': {
      const sealed = await supplies.requestKey(bufferOf(message.publicKey))
      send({ type: 'envelope', ...sealed })
      return
    }
    case 'read': {
      const { id, offset, length } = message
      try {
        send({ type: 'range', id, sealed: await supplies.readSealed(offset, length) })
      } catch (error) {
        send({ type: 'no-range', id, problem: asProblem(error) })
      }
      return
    }
    case 'analysed': {
      const { type: _, ...counts } = message
      supplies.analysed(counts)
      return
    }
    case 'sign': {
      const { resultSha256, finishedAtMs } = message
      send({ type: 'statement', ...supplies.signResult({ resultSha256, finishedAtMs }) })
      return
    }
    case 'result':
      to.resolve({ type: 'result', sealed: bufferOf(message.sealed) })
      return
    case 'failed':
      to.resolve({ type: 'failed', problem: message.problem })
      return
    default:
      assert.fail(`unknown message ${String(message satisfies never)}`)
  }
}

function bufferOf(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
}

function ended(how: string, cause?: unknown): SluiceError {
  return new SluiceError('analysis.failed', `The process of the lease ${how}.`, {
    retry: 'later',
    hint: 'If it was killed for lack of memory, lower "leasesMax" of the node.',
    cause,
  })
}
