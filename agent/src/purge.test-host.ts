/**
 * For tests only: a capture host in a process of its own that gets one purge order, and kills itself
 * with SIGKILL at its n-th effect on the file system from then on. Its arguments are a folder and n;
 * n = 0 kills nothing. Exit code 0 says that the receipt was accepted.
 */
import assert from 'node:assert/strict'
import { createPrivateKey, createPublicKey } from 'node:crypto'
import { appendFileSync, readFileSync } from 'node:fs'
import fileSystem from 'node:fs/promises'
import { syncBuiltinESMExports } from 'node:module'
import path from 'node:path'
import type { Command } from '@sluice/protocol/messages'
import { keyIdOf } from '@sluice/protocol/sealing/dsse'

const [folder = '', nth = '0'] = process.argv.slice(2)
let counting = false
let effects = 0

/** Everything the purge does to the disk goes through here; the end comes right after it. */
function countedly(name: 'unlink' | 'rmdir' | 'rename' | 'open'): void {
  const original = fileSystem[name] as (...asked: unknown[]) => Promise<unknown>
  const step = (): void => {
    if (!counting) return
    effects += 1
    if (effects === Number(nth)) process.kill(process.pid, 'SIGKILL')
  }
  Object.assign(fileSystem, {
    async [name](...asked: unknown[]) {
      const value = await original(...asked)
      step()
      return value
    },
  })
}
for (const name of ['unlink', 'rmdir', 'rename', 'open'] as const) countedly(name)
syncBuiltinESMExports()

// Only now: their imports are to see the counted functions.
const { createCapture } = await import('./capture/pipeline.ts')
const { openJournal } = await import('./journal.ts')
const { createPurges } = await import('./purge.ts')
const { createReceiptOutbox } = await import('./receipts.ts')

const order = JSON.parse(readFileSync(path.join(folder, 'order.json'), 'utf8')) as Extract<
  Command,
  { type: 'purge' }
>
const privateKey = createPrivateKey(readFileSync(path.join(folder, 'key.pem')))
const publicKey = createPublicKey(privateKey)
const { agentId } = JSON.parse(readFileSync(path.join(folder, 'agent.json'), 'utf8')) as {
  agentId: never
}
const identity = { agentId, privateKey, publicKey, keyId: keyIdOf(publicKey) } as never

const carriers = new Map<string, (command: never, signal: AbortSignal) => Promise<void>>()
const accepted = Promise.withResolvers<void>()
const ending = new AbortController()
const link = {
  state: 'connected',
  async request(type: string, body: { receipt: unknown }) {
    // Of all that is asked only receipts are answered: everything else stays under way.
    if (type !== 'receipt') return await new Promise(() => {})
    appendFileSync(path.join(folder, 'accepted.jsonl'), `${JSON.stringify(body.receipt)}\n`)
    setImmediate(accepted.resolve)
    return { body: {} }
  },
  onCommand: (type: string, run: never) => void carriers.set(type, run),
  onConnected: () => {},
} as never

const journal = await openJournal(folder)
const receipts = createReceiptOutbox({
  ...{ journal, link, signal: ending.signal },
  refused: (_, error) => assert.fail(String(error)),
})
const capture = createCapture({
  ...{ link, journal, identity, receipts, ffmpeg: undefined, isolation: 'none' },
  client: {} as never,
  openObject: () => assert.fail('nothing is read'),
  spoolDir: path.join(folder, 'spool'),
  resultsDir: path.join(folder, 'results'),
  reserveBytes: 0,
  partsInParallel: 1,
  events: new Proxy({}, { get: () => () => {} }) as never,
  progress: () => {},
})
const purges = createPurges({
  ...{ link, journal, identity, receipts, work: capture.purging, signal: ending.signal },
  events: {
    purgeOrdered() {},
    purged() {},
    purgeIncomplete: (_purge, _attempt, problem) => assert.fail(problem.message),
  },
})
counting = true
await purges.recover()
// A first process was at work when the order came; a later one begins with it.
await carriers.get('purge')?.(order as never, ending.signal)
await accepted.promise
process.exit(0)
