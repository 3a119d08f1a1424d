/** Proves what the link promises, against a loopback control plane under a throw-away authority. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { type Server, createServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, afterEach, before, beforeEach, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { isSluiceError } from '@sluice/protocol/errors'
import { decodeFrame, encodeFrame } from '@sluice/protocol/frame'
import { commandId, jobId, leaseId } from '@sluice/protocol/ids'
import type { DownMessage, UpMessage } from '@sluice/protocol/messages'
import { newId } from '@sluice/protocol/process/new-id'
import { type WebSocket, WebSocketServer } from 'ws'
import { type ControlLink, type LinkEvents, createControlLink } from './control-link.ts'
import type { Identity } from './enrol.ts'
import { type Journal, openJournal } from './journal.ts'
import { type ThrowawayAuthority, makeAuthority } from './throwaway-authority.ts'

type Heard = { message: UpMessage; attachment: Buffer | undefined; socket: WebSocket }

let authority: ThrowawayAuthority
let server: Server
let sockets: WebSocketServer
let folder: string
let identity: Identity
let journal: Journal
let heard: Heard[]
/** What the control plane does with each message. */
let answer: (heard: Heard, say: (message: DownMessage, attachment?: Buffer) => void) => void
let waiters: (() => void)[]

const timing = {
  heartbeatMs: 40,
  linkSilenceMs: 300,
  requestTimeoutMs: 200,
  reconnectMsMin: 5,
  reconnectMsMax: 20,
}
const quiet: LinkEvents = {
  linkConnected() {},
  linkLost() {},
  clockSkewed() {},
  commandRefused() {},
}

before(async () => {
  authority = await makeAuthority()
})
beforeEach(async () => {
  heard = []
  waiters = []
  folder = await mkdtemp(path.join(tmpdir(), 'sluice-link-'))
  journal = await openJournal(folder)
  const { key, cert, ca } = await authority.server()
  server = createServer({ key, cert, ca, requestCert: true, minVersion: 'TLSv1.3' })
  sockets = new WebSocketServer({ server })
  sockets.on('connection', (socket) => {
    socket.on('message', (data: Buffer, isBinary) => {
      const frame = decodeFrame(data, isBinary)
      const entry = { message: frame.message as UpMessage, attachment: frame.attachment, socket }
      heard.push(entry)
      answer(entry, (message, attachment) => socket.send(encodeFrame(message, attachment)))
      for (const wake of waiters.splice(0)) wake()
    })
  })
  await new Promise<void>((done) => void server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as AddressInfo
  identity = await authority.identity({ agentUrl: `https://127.0.0.1:${port}` })
  answer = greet
})
afterEach(async () => {
  for (const socket of sockets.clients) socket.terminate()
  sockets.close()
  server.closeAllConnections()
  await new Promise((done) => void server.close(done))
  await rm(folder, { recursive: true })
})
after(() => {})

const greet: typeof answer = ({ message }, say) => {
  if (message.type === 'hello') say(welcome())
  if (message.type === 'heartbeat') say({ type: 'heartbeat', atMs: Date.now(), leases: [] })
}
function welcome(version = 1): DownMessage {
  return { type: 'welcome', version, build: 'test', agentId: identity.agentId, atMs: Date.now() }
}
function makeLink(more: Partial<Parameters<typeof createControlLink>[0]> = {}): ControlLink {
  return createControlLink({ identity, journal, build: 'test', events: quiet, timing, ...more })
}
/** Waits until something was heard that fits. */
async function until(fits: (each: Heard) => boolean): Promise<Heard> {
  for (;;) {
    const found = heard.find(fits)
    if (found) return found
    await new Promise<void>((wake) => waiters.push(wake))
  }
}
async function stateOf(link: ControlLink, wanted: string): Promise<void> {
  while (link.state !== wanted) await sleep(2)
}

describe('request', () => {
  it('is answered with body and attachment', async () => {
    answer = (each, say) => {
      greet(each, say)
      if (each.message.type !== 'request') return
      const { requestId } = each.message
      const body = { deadlineAtMs: 5 }
      say({ type: 'reply', requestId, body }, Buffer.from('sealed'))
    }
    await using link = makeLink()
    link.start()
    const lease = { jobId: newId(jobId, 1), leaseId: newId(leaseId, 1), fence: 1 }
    const publicKey = 'A'.repeat(1622)
    const reply = await link.request('key.request', { ...lease, publicKey })
    assert.equal(reply.body.deadlineAtMs, 5)
    assert.equal(reply.attachment?.toString(), 'sealed')
  })

  it('is repeated with the same id on the next connection until there is a reply', async () => {
    let connections = 0
    answer = (each, say) => {
      greet(each, say)
      if (each.message.type !== 'request') return
      connections += 1
      if (connections < 3) each.socket.terminate()
      else say({ type: 'reply', requestId: each.message.requestId, body: { jobs: [] } })
    }
    await using link = makeLink()
    link.start()
    const reply = await link.request('job.states', { jobIds: [newId(jobId, 1)] })
    assert.deepEqual(reply.body, { jobs: [] })
    const asked = heard.flatMap(({ message }) =>
      message.type === 'request' ? [message.requestId] : [],
    )
    assert.equal(asked.length, 3)
    assert.equal(new Set(asked).size, 1)
  })

  it('fails with the problem of the reply, and for a reply of another shape', async () => {
    const replies: Partial<Extract<DownMessage, { type: 'reply' }>>[] = [
      { problem: { code: 'lease.stale', message: 'old', retry: 'never' } },
      { body: { unexpected: true } },
    ]
    answer = (each, say) => {
      greet(each, say)
      if (each.message.type !== 'request') return
      say({ type: 'reply', requestId: each.message.requestId, ...replies.shift() })
    }
    await using link = makeLink()
    link.start()
    const ask = () => link.request('job.states', { jobIds: [newId(jobId, 1)] })
    await assert.rejects(ask(), (error) => isSluiceError(error, 'lease.stale'))
    await assert.rejects(ask(), (error) => isSluiceError(error, 'channel.malformed'))
  })

  it('ends when its signal aborts or the link closes', async () => {
    const link = makeLink()
    link.start()
    const ending = new AbortController()
    const given = link.request('job.states', { jobIds: [newId(jobId, 1)] }, ending)
    ending.abort(new Error('enough'))
    await assert.rejects(given, /enough/)
    const left = link.request('job.states', { jobIds: [newId(jobId, 1)] })
    const closed = assert.rejects(left, (error) => isSluiceError(error, 'channel.closed'))
    await link[Symbol.asyncDispose]()
    await closed
    assert.equal(link.state, 'closed')
  })
})

describe('commands', () => {
  const order = (seq: number, id = newId(commandId, seq)): DownMessage => ({
    type: 'command',
    seq,
    commandId: id,
    lane: 'work',
    command: { type: 'result.ready', jobId: newId(jobId, 1) },
  })

  it('are carried out once, also when they come again on a new connection or after a restart', async () => {
    const message = order(1)
    let greetings = 0
    answer = (each, say) => {
      greet(each, say)
      if (each.message.type === 'hello') {
        greetings += 1
        say(message)
      }
      // The acknowledgement gets lost on the way, twice.
      if (each.message.type === 'ack' && greetings < 3) each.socket.terminate()
    }
    let carriedOut = 0
    const link = makeLink()
    link.onCommand('result.ready', async () => void (carriedOut += 1))
    link.start()
    await until(() => heard.filter((each) => each.message.type === 'ack').length === 3)
    await link[Symbol.asyncDispose]()
    heard = []
    journal = await openJournal(folder)
    await using again = makeLink()
    again.onCommand('result.ready', async () => void (carriedOut += 1))
    again.start()
    const { message: hello } = await until((each) => each.message.type === 'hello')
    assert.equal(hello.type === 'hello' && hello.lastSeq, 1)
    await until((each) => each.message.type === 'ack')
    assert.equal(carriedOut, 1)
  })

  it('of an emergency overtake all that is under way, and what they ask goes first', async () => {
    const waiting = 64
    answer = (each, say) => {
      greet(each, say)
      if (each.message.type !== 'hello') return
      for (let seq = 1; seq <= waiting; seq += 1) say(order(seq))
      say({ ...order(waiting + 1), lane: 'emergency' } as DownMessage)
    }
    await using link = makeLink({ timing: { ...timing, requestTimeoutMs: 60_000 } })
    const held = new AbortController()
    let begun = 0
    const emergency = Promise.withResolvers<void>()
    link.onCommand('result.ready', async ({ jobId: id }) => {
      begun += 1
      const urgent = begun > waiting
      const asked = link.request(
        'job.states',
        { jobIds: [id] },
        { signal: held.signal, ...(urgent ? { urgent } : {}) },
      )
      if (urgent) emergency.resolve()
      await asked.catch(() => {})
    })
    link.start()
    await emergency.promise
    assert.equal(begun, waiting + 1, 'none of the others has ended')
    const requestsHeard = () => heard.filter((each) => each.message.type === 'request').length
    // 32 are under way and unanswered; the others wait, and the urgent one does not.
    await until(() => requestsHeard() >= 33)
    assert.equal(requestsHeard(), 33)
    held.abort(new Error('enough'))
    // All of them: what is still written down when the test ends would fall into its folder's removal.
    const acksHeard = () => heard.filter((each) => each.message.type === 'ack').length
    await until(() => acksHeard() === waiting + 1)
  })

  it('are acknowledged only after the effect, and with the problem when they cannot be', async () => {
    answer = (each, say) => {
      greet(each, say)
      if (each.message.type !== 'hello') return
      say(order(1))
      say({
        ...order(2),
        command: { type: 'job.notice', jobId: newId(jobId, 1), state: 'failed' },
      } as DownMessage)
    }
    const { promise, resolve } = Promise.withResolvers<void>()
    await using link = makeLink()
    link.onCommand('result.ready', () => promise)
    link.start()
    const refused = await until((each) => each.message.type === 'ack')
    assert.ok(refused.message.type === 'ack' && refused.message.seq === 2)
    assert.equal(refused.message.problem?.code, 'request.invalid')
    resolve()
    const done = await until((each) => each.message.type === 'ack' && each.message.seq === 1)
    assert.equal(done.message.type === 'ack' && done.message.problem, undefined)
  })
})

describe('the connection', () => {
  it('comes back after it was cut, and after silence', async () => {
    let mute = true
    answer = (each, say) => {
      if (each.message.type === 'hello' || !mute) greet(each, say)
    }
    const lost: string[] = []
    await using link = makeLink({
      events: { ...quiet, linkLost: (why) => void lost.push(why.code) },
    })
    link.start()
    await stateOf(link, 'connected')
    while (lost.length === 0) await sleep(5)
    assert.deepEqual(lost, ['channel.timeout'])
    mute = false
    await stateOf(link, 'connected')
    for (const socket of sockets.clients) socket.terminate()
    while (lost.length === 1) await sleep(5)
    assert.equal(lost[1], 'channel.closed')
    await stateOf(link, 'connected')
  })

  it('refuses a control plane of another version, and says so', async () => {
    answer = ({ message }, say) => message.type === 'hello' && say(welcome(99))
    await using link = makeLink()
    link.start()
    await stateOf(link, 'refused')
    assert.equal(link.problem?.code, 'version.unsupported')
  })

  it('knows that it was revoked, and asks again', async () => {
    answer = ({ message }, say) => {
      if (message.type !== 'hello') return
      say({
        type: 'goodbye',
        problem: { code: 'identity.revoked', message: 'out', retry: 'never' },
      })
    }
    await using link = makeLink()
    link.start()
    await stateOf(link, 'refused')
    answer = greet
    await stateOf(link, 'connected')
  })

  it('is not made to a server of another authority', async () => {
    const other = await makeAuthority()
    const { port } = server.address() as AddressInfo
    const foreign = await other.identity({ agentUrl: `https://127.0.0.1:${port}` })
    await using link = makeLink({ identity: foreign })
    link.start()
    while (!link.problem) await sleep(2)
    assert.equal(link.problem.code, 'control_plane.unreachable')
    assert.match(link.problem.hint ?? '', /authority/)
    assert.equal(heard.length, 0)
  })

  it('survives a frame that is no message by connecting anew', async () => {
    let bad = true
    answer = (each, say) => {
      greet(each, say)
      if (each.message.type !== 'heartbeat' || !bad) return
      bad = false
      each.socket.send('{"type":"nonsense"}')
    }
    await using link = makeLink()
    link.start()
    await until(() => heard.filter((each) => each.message.type === 'hello').length === 2)
    await stateOf(link, 'connected')
  })

  it('keeps the leases it names, counted from before the heartbeat was sent', async () => {
    const lease = { jobId: newId(jobId, 1), leaseId: newId(leaseId, 1), fence: 3 }
    answer = (each, say) => {
      if (each.message.type === 'hello') say(welcome())
      if (each.message.type === 'heartbeat')
        say({
          type: 'heartbeat',
          atMs: 1,
          leases: each.message.leases.map((one) => ({ ...one, remainingMs: 60 })),
        })
    }
    await using link = makeLink()
    const { promise, resolve } = Promise.withResolvers<{ sentAtMs: number; count: number }>()
    link.keepLeases({
      named: () => [lease],
      renewed: (leases, sentAtMs) => resolve({ sentAtMs, count: leases.length }),
    })
    link.start()
    const { sentAtMs, count } = await promise
    assert.equal(count, 1)
    assert.ok(sentAtMs < performance.now())
  })
})
