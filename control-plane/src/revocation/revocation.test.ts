/** Proves that what is revoked is refused at once, by what worked a moment before, and nothing else is. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { after, before, describe, it } from 'node:test'
import tls from 'node:tls'
import { createdToken, decodeToken } from '@sluice/protocol/api'
import { revocationDetail, revocationPreview } from '@sluice/protocol/api-revocations'
import {
  jobId,
  leaseId,
  obligationId,
  principalId,
  type TokenId,
  tokenId,
} from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import { adminClient } from '../cli/client.ts'
import type { ObjectKey } from '@sluice/protocol/object-keys'
import { appendAudit, listAudit } from '../audit/store.ts'
import { openDatabase } from '../database/database.ts'
import { jobs, leases, obligations } from '../database/schema.ts'
import {
  type JoinedAgent,
  joinedAgent,
  newIdentity,
  startControlPlane,
  type TestControlPlane,
} from '../control-plane.test-setup.ts'
import { joined, testGround } from '../doubles.ts'
import type { Obligation } from '../deletion/rules.ts'
import { obligationById } from '../deletion/store.ts'
import { abortRevoked, revokeGrants } from './settle.ts'
import { grantsOverAtMs, siteOfWhole } from './rules.ts'
import { revoke as revokeIn } from './revoke.ts'
import { exposedBy, owedOf } from './store.ts'

const deadlineMs = 20_000
let system: TestControlPlane
let security: string
before(async () => {
  system = await startControlPlane()
  security = await system.secretFor('security')
})
after(() => system[Symbol.asyncDispose]())

/** A GET on the agent listener: its status, or how the connection ended. */
async function knock(agent: JoinedAgent, session?: Buffer) {
  const { port } = new URL(system.controlPlane.agentUrl)
  const { key, cert } = agent
  const socket = tls.connect({
    ...{ host: '127.0.0.1', port: Number(port), ca: system.ca, key, cert },
    ...(session === undefined ? {} : { session }),
  })
  let ticket: Buffer | undefined
  let text = ''
  socket.on('session', (one) => (ticket = one))
  socket.on('data', (piece: Buffer) => (text += piece.toString()))
  socket.on('error', () => undefined)
  await once(socket, 'secureConnect')
  const reused = socket.isSessionReused()
  socket.write('GET /v1/nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n')
  if (!socket.closed) await once(socket, 'close')
  return { status: /^HTTP\/1\.1 (\d+)/.exec(text)?.[1], reused, ticket }
}

async function revoke(target: object) {
  const body = { target, reason: 'stolen' }
  const answer = await system.call('POST', '/v1/revocations', { secret: security, body })
  assert.equal(answer.status, 201, answer.text)
  return revocationDetail.parse(answer.json)
}

async function join(token: string) {
  const { secret } = decodeToken('join', token)
  const { csr } = await newIdentity()
  return system.call('POST', '/v1/join', { body: { token: secret, csr } })
}

describe('a revocation', () => {
  it('of an agent ends its connections, its sessions, and every session of others', async () => {
    const [stolen, other] = [await joinedAgent(system, 'gpu'), await joinedAgent(system, 'gpu')]
    const first = await knock(stolen)
    const innocent = await knock(other)
    assert.deepEqual([first.status, innocent.status], ['404', '404'], 'control: both come in')
    assert.equal((await knock(stolen, first.ticket)).reused, true, 'control: it is resumed')

    const target = { kind: 'agent', agentId: stolen.agentId }
    const body = { target, reason: 'stolen', dryRun: true }
    const dry = await system.call('POST', '/v1/revocations', { secret: security, body })
    assert.equal(revocationPreview.parse(dry.json).agents, 1)
    assert.equal((await knock(stolen)).status, '404', 'a dry run changes nothing')

    const made = await revoke(target)
    assert.equal(made.inForce.agents, 1)
    const again = await knock(stolen, first.ticket)
    assert.deepEqual([again.status, again.reused], ['403', false])
    const resumed = await knock(other, innocent.ticket)
    assert.deepEqual([resumed.status, resumed.reused], ['404', false])
    // Once more is no error, and says since when.
    const second = await revoke(target)
    assert.deepEqual([second.id, second.atMs], [made.id, made.atMs])
  })

  it('of a token ends its event streams at once, also for a client that reads nothing', async () => {
    const owner = adminClient(system.controlPlane.directory.adminSocket)
    const rights = [{ role: 'viewer', site: '*' }]
    const wanted = { principal: 'vera', rights }
    const made = await owner.post('/v1/tokens', wanted, createdToken)
    await owner[Symbol.asyncDispose]()
    const { secret } = decodeToken('token', made.token)
    const id = newId(jobId, Date.now())
    await using database = openDatabase(system.controlPlane.directory.database)
    await database.write((tx) =>
      appendAudit(tx, {
        atMs: Date.now(),
        type: 'job.state-changed',
        actor: { kind: 'system' },
        site: 'berlin',
        jobId: id,
        detail: { to: 'announced' },
      }),
    )
    const { port } = new URL(system.controlPlane.operatorUrl)
    const open = async (bearer: string) => {
      const socket = tls.connect({ host: '127.0.0.1', port: Number(port), ca: system.ca })
      socket.on('error', () => undefined)
      await once(socket, 'secureConnect')
      socket.write(
        `GET /v1/jobs/${id}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer ${bearer}\r\n\r\n`,
      )
      const [piece] = (await once(socket, 'data')) as [Buffer]
      assert.match(piece.toString(), /^HTTP\/1\.1 200/, 'control: it streams')
      return socket
    }
    await using streams = new AsyncDisposableStack()
    const [mine, foreign] = [await open(secret), await open(security)]
    for (const socket of [mine, foreign]) streams.defer(() => void socket.destroy())
    const closed = once(mine, 'close', { signal: AbortSignal.timeout(deadlineMs) })
    await revoke({ kind: 'token', tokenId: made.id satisfies TokenId })
    await closed
    assert.equal((await system.call('GET', '/v1/whoami', { secret })).status, 401)
    assert.equal(foreign.destroyed, false, 'the stream of another token goes on')
  })

  it('of a join token, or of a label, lets nobody join with it', async () => {
    const labels = { ward: '3' }
    const single = await system.joinToken({ role: 'gpu' })
    const used = await system.joinToken({ role: 'gpu', labels })
    const unused = await system.joinToken({ role: 'gpu', labels })
    const elsewhere = await system.joinToken({ role: 'gpu', labels: { ward: '4' } })
    assert.equal((await join(used.token)).status, 201, 'control: the label joins')

    assert.equal((await revoke({ kind: 'join-token', tokenId: single.id })).inForce.joinTokens, 1)
    assert.equal((await join(single.token)).json['code'], 'join.refused')

    const made = await revoke({ kind: 'label', key: 'ward', value: '3' })
    assert.deepEqual([made.inForce.agents, made.inForce.joinTokens], [1, 1])
    assert.equal((await join(unused.token)).json['code'], 'join.refused')
    assert.equal((await join(elsewhere.token)).status, 201)
  })

  it('of all grants is settled by the directory store, and is written down', async () => {
    const made = await revoke({ kind: 'grants' })
    const untilMs = Date.now() + deadlineMs
    const owed = async () => {
      const answer = await system.call('GET', `/v1/revocations/${made.id}`, { secret: security })
      return revocationDetail.parse(answer.json).owed
    }
    while ((await owed()).length > 0) assert(Date.now() < untilMs, 'still owed')
    await using database = openDatabase(system.controlPlane.directory.database)
    const events = await listAudit(database, { afterSeq: 0, items: 500 })
    assert(events.some(({ type }) => type === 'revocation.made'))
  })
})

describe('what a revocation owes', () => {
  async function dutyOf(kind: 'grants.revoke' | 'uploads.abort') {
    const ground = await testGround()
    const agent = await joined(ground, 'capture')
    const id = newId(obligationId, ground.now())
    await ground.database.write(async ({ sql }) => {
      await sql.insert(obligations).values({
        ...{ id, kind, site: '*', agentId: agent.id, subjectId: randomBytes(4).toString('hex') },
        ...{ state: 'due', nextTryAtMs: 0, deadlineAtMs: 0, createdAtMs: ground.now() },
      })
    })
    const duty = (await ground.database.read((sql) => obligationById(sql, id))) as Obligation
    const state = async () => (await ground.database.read((sql) => obligationById(sql, id)))?.state
    return { ground, duty, state }
  }
  const parts = (ground: Awaited<ReturnType<typeof testGround>>, takesBack: boolean) => ({
    ...ground,
    store: { kind: 's3' as const, revokeGrants: async () => takesBack },
    holdJobs: async () => undefined,
    cutOff: () => undefined,
    abortUploads: async () => undefined,
  })

  it('stays owed while a store cannot take grants back, until the last of them is over', async () => {
    const { ground, duty, state } = await dutyOf('grants.revoke')
    await using _ = ground
    await assert.rejects(revokeGrants(parts(ground, false), duty), { code: 'store.refused' })
    assert.equal(await state(), 'due')
    ground.clock.nowMs = grantsOverAtMs(duty.createdAtMs) + 1
    assert.equal(await revokeGrants(parts(ground, false), duty), 'settled')
    assert.equal(await state(), 'done')
  })

  it('is settled at once by a store that takes them back', async () => {
    const { ground, duty, state } = await dutyOf('grants.revoke')
    await using _ = ground
    await revokeGrants(parts(ground, true), duty)
    assert.equal(await state(), 'done')
  })

  it('names the jobs whose keys a node had, and not those it has confirmed to have wiped', async () => {
    await using ground = await testGround()
    const [capture, node] = [await joined(ground, 'capture'), await joined(ground, 'gpu')]
    const add = async (wipedAtMs: number | null) => {
      const atMs = ground.now()
      const id = newId(jobId, atMs)
      await ground.database.write(async ({ sql }) => {
        await sql.insert(jobs).values({
          ...{ id, site: 'north', captureAgentId: capture.id, analyser: 'faces', state: 'stored' },
          ...{ mediaCount: 1, sealedBytes: 1, sealedHeader: randomBytes(56) },
          ...{ sealedHeaderSha256: '0'.repeat(64), spoolSha256: '0'.repeat(64) },
          source: { action: 'keep', when: 'result' },
          objectKey: `a/${id}` as ObjectKey,
          ...{ sealedAtMs: atMs, announcedAtMs: atMs, stateChangedAtMs: atMs },
        })
        await sql.insert(leases).values({
          ...{ id: newId(leaseId, atMs), jobId: id, nodeId: node.id, fence: 1, wipedAtMs },
          ...{ grantedAtMs: atMs, keyReleasedAtMs: atMs, deadlineAtMs: atMs, endedAtMs: atMs },
        })
      })
      return id
    }
    const [held] = [await add(null), await add(ground.now())]
    const id = await revokeIn(parts(ground, true), {
      target: { kind: 'agent', agentId: node.id },
      reason: 'stolen',
      access: {
        principalId: newId(principalId, ground.now()),
        principal: 'anna',
        tokenId: newId(tokenId, ground.now()),
        sites: 'all',
        rights: [],
      },
    })
    assert.deepEqual(await ground.database.read((sql) => exposedBy(sql, [node.id])), [held])
    const owed = await ground.database.read((sql) => owedOf(sql, { id, agents: [node.id] }))
    assert.deepEqual(owed.map(({ kind }) => kind).toSorted(), ['lease.wipe', 'uploads.abort'])
  })

  it('stays owed while uploads cannot be aborted', async () => {
    const { ground, duty, state } = await dutyOf('uploads.abort')
    await using _ = ground
    const down = new Error('down')
    const abortUploads = () => Promise.reject(down)
    await assert.rejects(abortRevoked({ ...parts(ground, true), abortUploads }, duty), down)
    assert.equal(await state(), 'due')
    await abortRevoked(parts(ground, true), duty)
    assert.equal(await state(), 'done')
  })

  it('counts where its asker reaches', () => {
    assert.equal(siteOfWhole('all'), '*')
    assert.equal(siteOfWhole(['berlin']), 'berlin')
    assert.throws(() => siteOfWhole(['berlin', 'paris']), { code: 'access.forbidden' })
  })
})
