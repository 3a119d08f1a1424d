/** Proves that a bundle holds all that proves a purge, nothing personal, and nothing that was changed. */
import assert from 'node:assert/strict'
import { createHash, createPublicKey, type KeyObject } from 'node:crypto'
import { Readable } from 'node:stream'
import { afterEach, beforeEach, describe, it } from 'node:test'
import { endBytes, planEntry } from '@sluice/protocol/archive'
import { type CanonicalValue, canonicalJson } from '@sluice/protocol/canonical'
import { type ErrorCode, isSluiceError } from '@sluice/protocol/errors'
import { type PrincipalId, type PurgeId, revocationId } from '@sluice/protocol/ids'
import { newId } from '@sluice/protocol/process/new-id'
import {
  type BundleEvent,
  bundleEvent,
  bundleManifestName,
  purgeBundleOf,
} from '@sluice/protocol/purge-bundle'
import { signStatement } from '@sluice/protocol/sealing/dsse'
import {
  bundleEntries,
  bundlePayloadType,
  verifyBundle,
} from '@sluice/protocol/sealing/verify-bundle'
import { appendAudit } from '../audit/store.ts'
import { revocations } from '../database/schema.ts'
import { requestPurge } from './begin.ts'
import { purgeBundle } from './bundle.ts'
import { makeWorld, type Signing, tokenOf, type World } from './world.test-setup.ts'

const withCode = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)
const sha256 = (data: string | Buffer) => createHash('sha256').update(data).digest('hex')
const configSha256 = sha256('configuration')
const reason = 'a host of Dr. Muster was stolen'

type File = { name: string; content: Buffer }

let world: World
let cam: Signing
let principalId: PrincipalId
let id: PurgeId
let pinned: KeyObject
beforeEach(async () => {
  world = await makeWorld()
  pinned = createPublicKey(world.evidence.publicKeyPem)
  cam = await world.enrol('capture', { labels: { ward: 'oncology' }, receiveKeys: 3 })
  const other = await world.enrol('capture', { site: 'south' })
  await world.job({ by: cam })
  await world.job({ by: cam })
  principalId = await world.person()
  const made = { site: 'north', reason, revokedBy: principalId, atMs: 7, detail: { jobs: 2 } }
  const targets = [
    { kind: 'agent', target: cam.id },
    { kind: 'agent', target: other.id },
    { kind: 'label', target: 'ward=oncology' },
    { kind: 'label', target: 'ward=surgery' },
    { kind: 'authority', target: 'ab'.repeat(32) },
    { kind: 'token', target: principalId },
  ] as const
  await world.ground.database.write(async (tx) => {
    for (const [n, target] of targets.entries())
      await tx.sql.insert(revocations).values({ id: newId(revocationId, n), ...target, ...made })
    await appendAudit(tx, {
      ...{ atMs: 7, type: 'revocation.made', site: 'north', agentId: cam.id },
      actor: { kind: 'principal', id: principalId },
      detail: { kind: 'agent', target: cam.id, reason },
    })
  })
  id = await purge()
})
afterEach(() => world[Symbol.asyncDispose]())

function purge(): Promise<PurgeId> {
  const who = { principalId, tokenId: tokenOf(principalId), sites: 'all' } as const
  const scope = { kind: 'site', site: 'north' } as const
  const request = { scope, reason, breakGlass: true, includingHeld: false }
  return requestPurge(world.deps, {
    ...request,
    access: { ...who, rights: [{ role: 'security', site: '*' }] },
  })
}

async function conclude(): Promise<void> {
  for (let turn = 0; turn < 4; turn += 1) {
    await world.work()
    await world.obey(cam)
    world.ground.clock.nowMs += 60_000
  }
}

async function bundle(): Promise<Buffer> {
  const parts = { ...world.ground, evidence: world.evidence, configSha256 }
  return Buffer.concat(await Array.fromAsync(purgeBundle(parts, id)))
}

const verify = (bytes: Buffer) => verifyBundle(Readable.from([bytes]), pinned)

const filesIn = (bytes: Buffer): Promise<File[]> =>
  Array.fromAsync(bundleEntries(Readable.from([bytes])))

/** As the one who has the evidence key could make it. */
function signAnew(files: readonly File[]): Buffer {
  const rest = files.filter(({ name }) => name !== bundleManifestName)
  const lines = rest.map(({ name, content }) => `${sha256(content)} ${name}\n`).join('')
  const statement = purgeBundleOf({
    ...{ purgeId: id, filesCount: rest.length, filesSha256: sha256(lines), builtAtMs: 1 },
    ...{ version: '1.0.0', configSha256 },
  })
  const manifest = canonicalJson(signStatement(bundlePayloadType, statement, world.evidence))
  const all = [...rest, { name: bundleManifestName, content: Buffer.from(manifest) }]
  const entries = all.flatMap(({ name, content }) => {
    const { header, paddingBytes } = planEntry(name, content.length)
    return [header, content, Buffer.alloc(paddingBytes)]
  })
  return Buffer.concat([...entries, Buffer.alloc(endBytes)])
}

const eventsIn = (files: readonly File[]): BundleEvent[] =>
  linesIn(files, 'audit-').map((line) => bundleEvent.parse(line))

function linesIn(files: readonly File[], start: string): unknown[] {
  const texts = files.filter(({ name }) => name.startsWith(start)).map(({ content }) => content)
  return Buffer.concat(texts)
    .toString()
    .split('\n')
    .slice(0, -1)
    .map((line) => JSON.parse(line) as unknown)
}

/** The same bundle with other events, signed with the evidence key itself. */
function withEvents(files: readonly File[], events: readonly BundleEvent[]): Buffer {
  const lines = events.map((event) => `${canonicalJson(event as CanonicalValue)}\n`).join('')
  const rest = files.filter(({ name }) => !name.startsWith('audit-'))
  return signAnew([...rest, { name: 'audit-1.jsonl', content: Buffer.from(lines) }])
}

describe('the bundle of a purge', () => {
  it('holds everything, and nothing in it can be changed', async () => {
    assert.equal((await verify(await bundle())).document.kind, 'purge-report')
    await conclude()
    const bytes = await bundle()
    const { document, certificates, bundle: manifest } = await verify(bytes)
    assert.equal(document.kind, 'purge-certificate')
    assert.equal(certificates, 2)
    assert.equal(manifest.configSha256, configSha256)
    const names = (await filesIn(bytes)).map(({ name }) => name)
    for (const part of ['certificate-', 'receipt-', 'agents-1', 'revocations-1', 'audit-1'])
      assert.ok(
        names.some((name) => name.startsWith(part)),
        part,
      )
    assert.deepEqual([names[0], names.at(-1)], ['purge.json', 'MANIFEST.json'])
    for (let offset = 0; offset < bytes.length; offset += 251) {
      const changed = Buffer.from(bytes)
      changed[offset]! ^= 1
      await assert.rejects(verify(changed), isSluiceError, `at ${offset}`)
    }
    await assert.rejects(verify(bytes.subarray(0, -512)), withCode('evidence.invalid'))
    await assert.rejects(verify(Buffer.concat([bytes, Buffer.alloc(512)])), isSluiceError)
  })

  it('goes on where a page ended', async () => {
    for (let n = 0; n < 99; n += 1) await world.job({ by: cam })
    id = await purge()
    await conclude()
    const { certificates, document, audit } = await verify(await bundle())
    assert.deepEqual([document.kind, certificates], ['purge-certificate', 101])
    assert.ok(audit.events > 200)
  })

  it('names the revocations that concern its agents, and no others', async () => {
    const rows = linesIn(await filesIn(await bundle()), 'revocations-') as {
      [name: string]: unknown
    }[]
    assert.deepEqual(
      rows.map(({ kind, target, targetSha256 }) => [kind, target ?? targetSha256]),
      [
        ['agent', cam.id],
        ['label', sha256('ward=oncology')],
        ['authority', 'ab'.repeat(32)],
      ],
    )
    for (const row of rows) assert.equal(row['reasonSha256'], sha256(reason))
  })

  it('holds no label and no words of a person, only their digests', async () => {
    await conclude()
    const bytes = await bundle()
    const files = await filesIn(bytes)
    // Also not inside what is signed, which is base64 in its envelope.
    const signed = files
      .filter(({ name }) => name.endsWith('.json'))
      .map(({ content }) => JSON.parse(content.toString()) as { payload: string })
      .map(({ payload }) => Buffer.from(payload, 'base64'))
    const all = Buffer.concat([bytes, ...signed])
    assert.ok(all.includes(cam.id))
    for (const personal of ['Muster', 'oncology']) assert.ok(!all.includes(personal), personal)
    const revoked = eventsIn(files).find(({ event }) => event.type === 'revocation.made')
    assert.deepEqual(revoked?.redacted, { reason: sha256(reason), target: sha256(cam.id) })
  })

  it('hashes every event again, and follows the chain from one to the next', async () => {
    await conclude()
    const bytes = await bundle()
    const files = await filesIn(bytes)
    const events = eventsIn(files)
    const { audit } = await verify(bytes)
    assert.equal(audit.events, events.length)
    assert.equal(audit.events - audit.rehashed, events.filter((one) => one.redacted).length)
    assert.ok(audit.linked > 5 && audit.rehashed > 5)

    // The control: the same events signed anew hold.
    assert.deepEqual((await verify(withEvents(files, events))).audit, audit)
    const whole = events.findIndex((one) => one.redacted === undefined)
    const told = events.findIndex((one) => one.redacted !== undefined)
    const changes: [string, (events: BundleEvent[]) => void][] = [
      ['another instant', (all) => void (all[whole]!.event.atMs += 1)],
      ['another detail', (all) => void (all[whole]!.event.detail['more'] = 1)],
      ['another hash', (all) => void (all[whole]!.sha256 = sha256('x'))],
      ['another event before it', (all) => void (all[told]!.sha256 = sha256('x'))],
      ['a text that was left out', (all) => void (all[told]!.event.detail['reason'] = 'x')],
      ['left out without saying so', (all) => void delete all[told]!.redacted],
      ['nothing left out', (all) => void (all[whole]!.redacted = {})],
      ['twice', (all) => void all.splice(whole, 0, all[whole]!)],
      ['the last one first', (all) => void all.unshift(all.pop()!)],
    ]
    for (const [name, change] of changes) {
      const changed = structuredClone(events)
      change(changed)
      await assert.rejects(verify(withEvents(files, changed)), withCode('evidence.invalid'), name)
    }
    const cut = files.map(({ name, content }) => ({
      name,
      content: name.startsWith('audit-') ? content.subarray(0, -1) : content,
    }))
    await assert.rejects(verify(signAnew(cut)), withCode('evidence.invalid'))
  })
})
