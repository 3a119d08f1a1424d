/** Proves that the local door is for its owner, answers in lines, and is there once. */
import assert from 'node:assert/strict'
import { mkdtemp, rm, stat, symlink } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { askAgent, openLocalSocket } from './local-socket.ts'

let folder: string
let file: string
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-socket-'))
  file = path.join(folder, 'agent.sock')
})
afterEach(() => rm(folder, { recursive: true }))

describe('the local socket', () => {
  it('answers a request with lines', async () => {
    await using socket = await openLocalSocket(file, async (request, say) => {
      say({ asked: request.type })
      say({ second: true })
    })
    assert.ok(socket)
    const lines: unknown[] = []
    await askAgent(file, { type: 'status' }, (line) => lines.push(line))
    assert.deepEqual(lines, [{ asked: 'status' }, { second: true }])
    assert.equal((await stat(file)).mode & 0o777, 0o600)
  })

  it('brings the reason of a failure to the caller', async () => {
    await using socket = await openLocalSocket(file, async () => {
      throw new SluiceError('media.not_a_file', 'no', { hint: 'look' })
    })
    assert.ok(socket)
    await assert.rejects(
      askAgent(file, { type: 'status' }, () => {}),
      (error) => isSluiceError(error, 'media.not_a_file') && error.hint === 'look',
    )
  })

  it('refuses what is no request, and lives', async () => {
    await using socket = await openLocalSocket(file, async () => {})
    assert.ok(socket)
    for (const text of ['nonsense\n', '{"type":"other"}\n', '{"type":"status","more":1}\n']) {
      const answer = await new Promise<string>((resolve) => {
        let heard = ''
        const client = connect(file, () => client.write(text))
        client.on('data', (piece) => (heard += piece.toString()))
        client.on('close', () => resolve(heard))
      })
      assert.match(answer, /request\.invalid/)
    }
    await askAgent(file, { type: 'status' }, () => {})
  })

  it('refuses a second agent, and takes over from one that was killed', async () => {
    const first = await openLocalSocket(file, async () => {})
    await assert.rejects(
      openLocalSocket(file, async () => {}),
      (error) => isSluiceError(error, 'request.conflict'),
    )
    await first[Symbol.asyncDispose]()
    await using second = await openLocalSocket(file, async () => {})
    assert.ok(second)
  })

  it('lets one of many in that start at once, and gives the others nothing', async () => {
    const starts = await Promise.allSettled(
      Array.from({ length: 8 }, () => openLocalSocket(file, async () => {})),
    )
    const begun = starts.filter(({ status }) => status === 'fulfilled')
    for (const start of starts)
      if (start.status === 'fulfilled') await start.value[Symbol.asyncDispose]()
      else assert.ok(isSluiceError(start.reason, 'request.conflict'))
    assert.equal(begun.length, 1)
  })

  it('keeps the folder when somebody takes the socket away, also under another name', async () => {
    const link = `${folder}-link`
    await symlink(folder, link)
    try {
      await using first = await openLocalSocket(file, async () => {})
      assert.ok(first)
      await rm(file)
      for (const again of [file, path.join(link, 'agent.sock')])
        await assert.rejects(
          openLocalSocket(again, async () => {}),
          (error) => isSluiceError(error, 'request.conflict'),
        )
    } finally {
      await rm(link)
    }
  })

  it('is said to be missing when no agent runs', async () => {
    await assert.rejects(
      askAgent(file, { type: 'status' }, () => {}),
      (error) => isSluiceError(error, 'agent.unreachable'),
    )
  })

  it('tells the agent when the caller goes away', async () => {
    const { promise, resolve } = Promise.withResolvers<void>()
    await using socket = await openLocalSocket(
      file,
      (_request, say, signal) =>
        new Promise((done) => {
          signal.addEventListener('abort', () => {
            resolve()
            done()
          })
          say({ waiting: true })
        }),
    )
    assert.ok(socket)
    const client = connect(file, () => client.write('{"type":"status"}\n'))
    client.on('data', () => client.destroy())
    await promise
  })
})
