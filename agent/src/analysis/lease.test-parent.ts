/** For tests only: an agent's side of one lease in a process of its own, so that its memory can be searched. */
import assert from 'node:assert/strict'
import { startLeaseChild } from './lease.ts'
import { leaseOrder } from './lease-messages.ts'

/** What the test sends: the order and the sealed object, then envelopes and leave to go on. */
export type ToTestParent =
  | { type: 'start'; order: unknown; object: Uint8Array }
  | { type: 'envelope'; envelope: Uint8Array; deadlineAtMs: number }
  | { type: 'go' }

/** What it tells: the child's public key and number, and that the child wants its first range. */
export type FromTestParent =
  | { type: 'public-key'; publicKey: Uint8Array }
  | { type: 'reading'; childPid: number }
  | { type: 'ended'; outcome: string }

const tell = (message: FromTestParent): void => void process.send?.(message)
const envelope = Promise.withResolvers<{ envelope: Buffer; deadlineAtMs: number }>()
const go = Promise.withResolvers<void>()

function start(order: unknown, object: Uint8Array): void {
  let asked = false
  const child = startLeaseChild(leaseOrder.parse(order), {
    requestKey: (publicKey) => {
      tell({ type: 'public-key', publicKey })
      return envelope.promise
    },
    readSealed: async (offset, length) => {
      if (!asked) tell({ type: 'reading', childPid: child.process.pid ?? 0 })
      asked = true
      await go.promise
      return Buffer.from(object.subarray(offset, offset + length))
    },
    signResult: () => assert.fail('the analyser of this test never ends'),
    analysed: () => undefined,
  })
  void child.outcome.then((outcome) => tell({ type: 'ended', outcome: JSON.stringify(outcome) }))
}

process.on('message', (raw) => {
  const message = raw as ToTestParent
  if (message.type === 'start') start(message.order, message.object)
  else if (message.type === 'go') go.resolve()
  else {
    const { envelope: sealed, deadlineAtMs } = message
    envelope.resolve({ envelope: Buffer.from(sealed), deadlineAtMs })
  }
})
process.on('disconnect', () => process.exit(0))
