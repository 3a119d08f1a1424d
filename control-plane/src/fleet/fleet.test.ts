/** Proves the channel's end on the control plane over real sockets: bounds, order, resending, replacement. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { afterEach, beforeEach, describe, it } from 'node:test'
import Sqlite from 'better-sqlite3'
import { WebSocket } from 'ws'
import { SluiceError } from '@sluice/protocol/errors'
import { decodeFrame, encodeFrame } from '@sluice/protocol/frame'
import { jobId } from '@sluice/protocol/ids'
import { limits } from '@sluice/protocol/limits'
import {
  type AgentRequest,
  type DownMessage,
  downMessage,
  type Lane,
} from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { z } from 'zod'
import { joined, type TestAgent, type TestGround, testGround } from '../doubles.ts'
import { listAudit } from '../audit/store.ts'
import { createFleet, type Fleet } from './fleet.ts'
import type { Answer } from './link.ts'
import { agentById, enqueueCommand, markRevoked, openCommands } from './store.ts'

type Received = { message: DownMessage; attachment: Buffer | undefined }

let ground: TestGround
let fleet: Fleet
let agent: TestAgent
let answer: (request: AgentRequest, attachment: Buffer | undefined) => Promise<Answer>
let url: string
let closers: (() => Promise<void> | void)[]

beforeEach(async () => {
  ground = await testGround()
  agent = await joined(ground, 'capture')
  answer = async () => ({ body: {} })
  closers = []
  fleet = await startFleet()
})

afterEach(async () => {
  for (const close of closers.toReversed()) await close()
  await fleet[Symbol.asyncDispose]()
  await ground[Symbol.asyncDispose]()
})

async function startFleet(silenceMs?: number, now = ground.now): Promise<Fleet> {
  const started = await createFleet({
    database: ground.database,
    changes: ground.changes,
    now,
    build: 'test',
    answer: (_agent, request, attachment) => answer(request, attachment),
    renewLeases: async (_agent, { leases }) => leases.map((ref) => ({ ...ref, remainingMs: 1 })),
    ...(silenceMs === undefined ? {} : { silenceMs }),
  })
  const server = createServer()
  server.on('upgrade', (request, socket, head) => started.attach(request, socket, head, agent))
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  url = `ws://127.0.0.1:${(server.address() as AddressInfo).port}`
  closers.push(() => {
    server.closeAllConnections()
    return new Promise<void>((resolve) => void server.close(() => resolve()))
  })
  return started
}

/** An agent's end of a link: what came is a queue to be taken from. */
async function connect() {
  const socket = new WebSocket(url)
  const queue: Received[] = []
  let wake: (() => void) | undefined
  let closed: { code: number } | undefined
  socket.on('message', (data, isBinary) => {
    const frame = decodeFrame(data as Buffer, isBinary)
    queue.push({ message: downMessage.parse(frame.message), attachment: frame.attachment })
    wake?.()
  })
  socket.on('close', (code) => {
    closed = { code }
    wake?.()
  })
  socket.on('error', () => undefined)
  await once(socket, 'open')
  closers.push(() => socket.terminate())
  const end = {
    socket,
    send(message: object, attachment?: Buffer) {
      socket.send(encodeFrame(message, attachment))
    },
    async take<T extends DownMessage['type']>(type: T) {
      while (queue.length === 0) {
        assert.equal(closed, undefined, `closed while waiting for ${type}`)
        await new Promise<void>((resolve) => (wake = resolve))
      }
      const received = queue.shift()!
      assert.equal(received.message.type, type, JSON.stringify(received.message))
      return received as Received & { message: Extract<DownMessage, { type: T }> }
    },
    async takeCommands(count: number) {
      const commands = []
      for (let taken = 0; taken < count; taken += 1)
        commands.push((await end.take('command')).message)
      return commands
    },
    async closed() {
      if (socket.readyState !== WebSocket.CLOSED) await once(socket, 'close')
      return { code: closed?.code, last: queue.at(-1)?.message }
    },
    async pending() {
      // An answered request shows that everything before it has come.
      const requestId = newId(z.uuidv7(), ground.now())
      end.send({ type: 'request', requestId, request: 'job.states', body: { jobIds: [someJob()] } })
      const before: DownMessage[] = []
      for (;;) {
        while (queue.length === 0) await new Promise<void>((resolve) => (wake = resolve))
        const { message } = queue.shift()!
        if (message.type === 'reply' && message.requestId === requestId) return before
        before.push(message)
      }
    },
  }
  return end
}

function someJob() {
  return newId(jobId, ground.now())
}

function hello(change: object = {}) {
  return {
    type: 'hello',
    versions: [1],
    build: '0.1.0',
    role: 'capture',
    atMs: ground.now(),
    instanceId: newId(z.uuidv7(), ground.now()),
    lastSeq: 0,
    ...change,
  }
}

async function greeted(change: object = {}) {
  const end = await connect()
  end.send(hello(change))
  await end.take('welcome')
  return end
}

function enqueue(lane: Lane) {
  const id = someJob()
  return ground.database.write(async (tx) => {
    await enqueueCommand(
      tx,
      {
        agentId: agent.id,
        lane,
        atMs: ground.now(),
        command: { type: 'result.ready', jobId: id },
      },
      ground.changes,
    )
  })
}

function isHealthy() {
  // A positive control for every refusal: the server still takes a good link.
  return greeted()
}

describe('a link', () => {
  it('opens with hello and welcome, and is written down', async () => {
    await greeted({ atMs: ground.now() + 5000 })
    assert.equal(fleet.isConnected(agent.id), true)
    const row = await ground.database.read((sql) => agentById(sql, agent.id))
    assert.equal(row?.connectedAtMs, ground.now())
    assert.equal(row?.clockSkewMs, 5000)
    const events = await listAudit(ground.database, { afterSeq: 0, items: 10 })
    assert.deepEqual(
      events.map(({ type }) => type),
      ['agent.connected'],
    )
  })

  it('names the side to upgrade when no version is shared', async () => {
    const end = await connect()
    end.send(hello({ versions: [99] }))
    const { problem } = (await end.take('goodbye')).message
    assert.equal(problem.code, 'version.unsupported')
    assert.match(problem.hint ?? '', /control plane/)
    assert.equal(fleet.isConnected(agent.id), false)
  })

  it('refuses an agent that comes in another role', async () => {
    const end = await connect()
    end.send(hello({ role: 'gpu' }))
    assert.equal((await end.take('goodbye')).message.problem.code, 'access.forbidden')
  })

  it('refuses an agent revoked since the handshake, also for its next request', async () => {
    const end = await greeted()
    await ground.database.write((tx) => markRevoked(tx, agent.id, ground.now()))
    const requestId = newId(z.uuidv7(), ground.now())
    end.send({ type: 'request', requestId, request: 'job.states', body: { jobIds: [someJob()] } })
    assert.equal((await end.take('reply')).message.problem?.code, 'identity.revoked')
    const second = await connect()
    second.send(hello())
    assert.equal((await second.take('goodbye')).message.problem.code, 'identity.revoked')
  })

  it('cannot use up its own command numbers, and stays one that takes orders', async () => {
    await enqueue('work')
    await greeted({ lastSeq: Number.MAX_SAFE_INTEGER })
    await enqueue('work')
    await enqueue('control')
    const open = await ground.database.read((sql) => openCommands(sql, agent.id))
    assert.deepEqual(
      open.map(({ seq }) => seq),
      [1, limits.commandSeqJumpMax + 2, limits.commandSeqJumpMax + 3],
    )
  })

  it('answers heartbeats with the leases that hold', async () => {
    const end = await greeted()
    end.send({ type: 'heartbeat', atMs: ground.now(), leases: [] })
    assert.deepEqual((await end.take('heartbeat')).message.leases, [])
  })

  it('is cut when it is silent for too long', async () => {
    await fleet[Symbol.asyncDispose]()
    fleet = await startFleet(20)
    const end = await greeted()
    assert.equal((await end.closed()).code, 1006)
    assert.equal(fleet.isConnected(agent.id), false)
  })

  it('is replaced by a newer one of the same agent', async () => {
    const older = await greeted()
    const newer = await greeted()
    assert.equal((await older.take('goodbye')).message.problem.code, 'channel.closed')
    await older.closed()
    assert.equal(fleet.isConnected(agent.id), true)
    await enqueue('work')
    await newer.takeCommands(1)
    const row = await ground.database.read((sql) => agentById(sql, agent.id))
    assert.notEqual(row?.connectedAtMs, null)
  })

  it('ends when the agent is disconnected by us', async () => {
    const end = await greeted()
    fleet.disconnect(agent.id, { code: 'identity.revoked', message: 'revoked', retry: 'never' })
    assert.equal((await end.take('goodbye')).message.problem.code, 'identity.revoked')
    await end.closed()
  })
})

describe('a full disk', () => {
  it('closes links with the reason, and the server lives', async () => {
    let full = false
    await fleet[Symbol.asyncDispose]()
    const { database } = ground
    ground.database = {
      ...database,
      write: (change) =>
        full
          ? Promise.reject(new Sqlite.SqliteError('database or disk is full', 'SQLITE_FULL'))
          : database.write(change),
    }
    fleet = await startFleet()
    const end = await greeted()
    await enqueue('work')
    full = true
    ground.changes.emit('command', agent.id)
    const { seq, commandId } = (await end.take('command')).message
    end.send({ type: 'ack', seq, commandId })
    assert.equal((await end.take('goodbye')).message.problem.code, 'host.disk_full')
    await end.closed()
    assert.equal(fleet.isConnected(agent.id), false)
    full = false
    await isHealthy()
  })
})

describe('what is no message', () => {
  const bad: [string, (end: Awaited<ReturnType<typeof connect>>) => void, string][] = [
    ['no JSON', (end) => end.socket.send('{'), 'channel.malformed'],
    ['an unknown message', (end) => end.send({ type: 'greet' }), 'channel.malformed'],
    ['an unknown field', (end) => end.send(hello({ extra: 1 })), 'channel.malformed'],
    ['a second hello', (end) => end.send(hello()), 'channel.malformed'],
    [
      'a binary frame that lies',
      (end) => end.socket.send(Buffer.from([255, 255, 255, 255, 1])),
      'channel.malformed',
    ],
    [
      'an attachment nobody asked for',
      (end) => end.send({ type: 'heartbeat', atMs: 1, leases: [] }, Buffer.alloc(1)),
      'channel.malformed',
    ],
    [
      'a JSON part beyond its bound',
      (end) => end.socket.send(`"${'a'.repeat(limits.messageBytesMax)}"`),
      'channel.too_large',
    ],
  ]
  for (const [name, sendBad, code] of bad)
    it(`closes the link for ${name}, and the server lives`, async () => {
      const end = await greeted()
      sendBad(end)
      assert.equal((await end.take('goodbye')).message.problem.code, code)
      await end.closed()
      await isHealthy()
    })

  it('closes the link for a frame beyond its bound, and the server lives', async () => {
    const end = await greeted()
    end.socket.send(Buffer.alloc(limits.frameBytesMax + 1))
    assert.equal((await end.closed()).code, 1009)
    await isHealthy()
  })

  it('closes the link for anything before hello', async () => {
    const end = await connect()
    end.send({ type: 'heartbeat', atMs: 1, leases: [] })
    assert.equal((await end.take('goodbye')).message.problem.code, 'channel.malformed')
  })

  it('refuses a request with a bad body and keeps the link', async () => {
    const end = await greeted()
    const requestId = newId(z.uuidv7(), ground.now())
    end.send({ type: 'request', requestId, request: 'job.states', body: { jobIds: ['x'] } })
    assert.equal((await end.take('reply')).message.problem?.code, 'request.invalid')
    assert.deepEqual(await end.pending(), [])
  })
})

describe('requests', () => {
  function announce() {
    return {
      type: 'request',
      requestId: newId(z.uuidv7(), ground.now()),
      request: 'lease.result',
      body: {
        jobId: someJob(),
        leaseId: someJob(),
        fence: 1,
        sealedResultSha256: '0'.repeat(64),
      },
    }
  }

  it('carry their attachment there and back', async () => {
    answer = async (_request, attachment) => ({
      body: { bytes: attachment?.length },
      attachment: Buffer.from('back'),
    })
    const end = await greeted()
    end.send(announce(), Buffer.alloc(7))
    const { message, attachment } = await end.take('reply')
    assert.deepEqual(message.body, { bytes: 7 })
    assert.equal(attachment?.toString(), 'back')
  })

  it('close the link when their attachment is missing or too large', async () => {
    const end = await greeted()
    end.send(announce())
    assert.equal((await end.take('goodbye')).message.problem.code, 'channel.malformed')
    const other = await greeted()
    other.send(announce(), Buffer.alloc(limits.sealedResultBytesMax + 1))
    assert.equal((await other.take('goodbye')).message.problem.code, 'channel.too_large')
  })

  it('are answered with the problem they met', async () => {
    answer = async () => {
      throw new SluiceError('lease.stale', 'no', { hint: 'wipe' })
    }
    const end = await greeted()
    end.send(announce(), Buffer.alloc(1))
    assert.deepEqual((await end.take('reply')).message.problem, {
      code: 'lease.stale',
      message: 'no',
      hint: 'wipe',
      retry: 'never',
    })
  })

  it('are worked off once when they are repeated meanwhile', async () => {
    let calls = 0
    const gate = Promise.withResolvers<void>()
    answer = async (request) => {
      if (request.request !== 'lease.result') return { body: {} }
      calls += 1
      await gate.promise
      return { body: {} }
    }
    const end = await greeted()
    const request = announce()
    end.send(request, Buffer.alloc(1))
    end.send(request, Buffer.alloc(1))
    await end.pending()
    gate.resolve()
    await end.take('reply')
    assert.equal(calls, 1)
  })

  it('wait when too many are worked on at once, and are all answered', async () => {
    let atWork = 0
    let most = 0
    answer = async () => {
      most = Math.max(most, ++atWork)
      await new Promise((resolve) => setImmediate(resolve))
      atWork -= 1
      return { body: {} }
    }
    const end = await greeted()
    for (let sent = 0; sent < 40; sent += 1) end.send(announce(), Buffer.alloc(1))
    for (let taken = 0; taken < 40; taken += 1) await end.take('reply')
    assert.equal(most, limits.requestsAtOnceMax)
  })
})

describe('an agent with a lot to say', () => {
  it('is slowed down, not cut, and gets every answer', async () => {
    await fleet[Symbol.asyncDispose]()
    fleet = await startFleet(undefined, Date.now)
    const end = await greeted()
    const count = limits.messagesBurstMax + 20
    for (let sent = 0; sent < count; sent += 1) end.send({ type: 'heartbeat', atMs: 1, leases: [] })
    for (let taken = 0; taken < count; taken += 1) await end.take('heartbeat')
  })

  it('is held up while too much waits for an answer, and goes on afterwards', async () => {
    const gate = Promise.withResolvers<void>()
    answer = async () => {
      await gate.promise
      return { body: {} }
    }
    const end = await greeted()
    const count = limits.messagesBurstMax - 10
    for (let sent = 0; sent < count; sent += 1)
      end.send({
        type: 'request',
        requestId: newId(z.uuidv7(), ground.now()),
        request: 'job.states',
        body: { jobIds: [someJob()] },
      })
    gate.resolve()
    for (let taken = 0; taken < count; taken += 1) await end.take('reply')
  })
})

describe('commands', () => {
  it('wait as rows and come by lane, then by number', async () => {
    for (const lane of ['work', 'control', 'emergency', 'work'] as const) await enqueue(lane)
    const end = await greeted()
    const commands = await end.takeCommands(4)
    assert.deepEqual(
      commands.map(({ lane, seq }) => `${lane} ${seq}`),
      ['emergency 3', 'control 2', 'work 1', 'work 4'],
    )
  })

  it('come again after a reconnect until they are acknowledged', async () => {
    await enqueue('work')
    await enqueue('work')
    const first = await greeted()
    const [one, two] = await first.takeCommands(2)
    first.send({ type: 'ack', seq: one!.seq, commandId: one!.commandId })
    await first.pending()
    first.socket.terminate()
    const second = await greeted()
    const [again] = await second.takeCommands(1)
    assert.deepEqual([again?.seq, again?.commandId], [two?.seq, two?.commandId])
    assert.deepEqual(await second.pending(), [])
  })

  it('survive a restart of the control plane with their numbers', async () => {
    await enqueue('work')
    const before = await greeted()
    const [one] = await before.takeCommands(1)
    await fleet[Symbol.asyncDispose]()
    const row = await ground.database.read((sql) => agentById(sql, agent.id))
    assert.equal(row?.connectedAtMs, null)
    fleet = await startFleet()
    await enqueue('work')
    const after = await greeted()
    const [again, next] = await after.takeCommands(2)
    assert.equal(again?.commandId, one?.commandId)
    assert.equal(next?.seq, 2)
  })

  it('are acknowledged once, however often it is said', async () => {
    await enqueue('work')
    const end = await greeted()
    const [one] = await end.takeCommands(1)
    for (let said = 0; said < 3; said += 1)
      end.send({ type: 'ack', seq: one!.seq, commandId: one!.commandId })
    end.send({ type: 'ack', seq: 77, commandId: someJob() })
    assert.deepEqual(await end.pending(), [])
    assert.deepEqual(await ground.database.read((sql) => openCommands(sql, agent.id)), [])
  })

  it('keep to the window; each acknowledgement lets the next one through', async () => {
    for (let given = 0; given < limits.commandsInFlightMax + 1; given += 1) await enqueue('work')
    const end = await greeted()
    const commands = await end.takeCommands(limits.commandsInFlightMax)
    assert.deepEqual(await end.pending(), [])
    end.send({ type: 'ack', seq: commands[0]!.seq, commandId: commands[0]!.commandId })
    const [last] = await end.takeCommands(1)
    assert.equal(last?.seq, limits.commandsInFlightMax + 1)
  })

  it('take no number when their transaction fails', async () => {
    await assert.rejects(
      ground.database.write(async (tx) => {
        await enqueueCommand(
          tx,
          {
            agentId: agent.id,
            lane: 'work',
            atMs: ground.now(),
            command: { type: 'result.ready', jobId: someJob() },
          },
          ground.changes,
        )
        throw new Error('no')
      }),
    )
    await enqueue('work')
    const end = await greeted()
    assert.equal((await end.takeCommands(1))[0]?.seq, 1)
  })

  it('go on above what the agent has seen, as after a restore', async () => {
    const end = await greeted({ lastSeq: 41 })
    await enqueue('work')
    assert.equal((await end.takeCommands(1))[0]?.seq, 42)
  })
})
