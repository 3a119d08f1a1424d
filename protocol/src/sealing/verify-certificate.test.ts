import assert from 'node:assert/strict'
import { createHash, generateKeyPairSync, type KeyObject } from 'node:crypto'
import { describe, it } from 'node:test'
import { canonicalJson, type CanonicalValue } from '../canonical.ts'
import { type CertificateStatement, exclusions } from '../certificate.ts'
import { type ErrorCode, isSluiceError } from '../errors.ts'
import { agentId, jobId, leaseId, obligationId } from '../ids.ts'
import { newId } from '../process/new-id.ts'
import { type Holder, type Receipt, receiptOf } from '../receipt.ts'
import { ed25519Signer, keyIdOf, signStatement } from './dsse.ts'
import { certificatePayloadType, verifyCertificate } from './verify-certificate.ts'
import { receiptPayloadType } from './verify-receipt.ts'

const t0 = 1_800_000_000_000
const headerSha256 = createHash('sha256').update('header').digest('hex')

type Party = { id: Holder['id']; publicKey: KeyObject; signer: ReturnType<typeof ed25519Signer> }

function party(id?: Holder['id']): Party {
  const { privateKey, publicKey } = generateKeyPairSync('ed25519')
  return { id: id ?? keyIdOf(publicKey), publicKey, signer: ed25519Signer(privateKey, publicKey) }
}

const evidence = party()
const capture = party(newId(agentId, t0))
const node = party(newId(agentId, t0))
const stranger = party(newId(agentId, t0))
const job = newId(jobId, t0)
const leases = [1, 2].map((fence) => ({ leaseId: newId(leaseId, t0), fence }))

type Confirmation = {
  by: Party
  kind: Holder['kind']
  method: Receipt['method']
  lease?: (typeof leases)[number]
}

const confirmations: Confirmation[] = [
  { by: capture, kind: 'capture-spool', method: 'unlink' },
  { by: evidence, kind: 'object-store', method: 'object-delete' },
  { by: evidence, kind: 'job-key', method: 'epoch-roll' },
  { by: evidence, kind: 'result-blob', method: 'object-delete' },
  { by: node, kind: 'gpu-lease', method: 'process-exit', lease: leases[0]! },
  { by: node, kind: 'gpu-lease', method: 'never-held', lease: leases[1]! },
]

function confirm(confirmation: Confirmation, changed: Partial<Receipt> = {}) {
  const { by, kind, method, lease } = confirmation
  const holder = { kind, id: by.id }
  const receipt: Receipt = {
    jobId: job,
    obligationId: newId(obligationId, t0),
    holder,
    ...lease,
    method,
    checked: ['looked again'],
    startedAtMs: t0 + 10,
    wipedAtMs: t0 + 20,
    ...changed,
  }
  const envelope = signStatement(receiptPayloadType, receiptOf(receipt, headerSha256), by.signer)
  const payload = Buffer.from(envelope.payload, 'base64')
  return {
    envelope,
    held: {
      obligationId: receipt.obligationId,
      holder: receipt.holder,
      ...(lease === undefined ? {} : { leaseId: lease.leaseId }),
      confirmedAtMs: t0 + 30,
      receiptSha256: createHash('sha256').update(payload).digest('hex'),
    },
  }
}

function signerOf({ id, publicKey }: Party) {
  const spki = publicKey.export({ format: 'der', type: 'spki' })
  const good = id === evidence.id ? {} : { notBeforeMs: t0, notAfterMs: t0 + 1000 }
  return { keyId: keyIdOf(publicKey), publicKey: spki.toString('base64'), holderId: id, ...good }
}

function statement(
  all: readonly ReturnType<typeof confirm>[] = confirmations.map((one) => confirm(one)),
): CertificateStatement {
  return {
    _type: 'https://in-toto.io/Statement/v1',
    subject: [{ name: `job:${job}`, digest: { sha256: headerSha256 } }],
    predicateType: 'urn:sluice:deletion-certificate:1',
    predicate: {
      jobId: job,
      site: 'berlin',
      level: 'Clear',
      levelReason: 'overwritten in place',
      announcedAtMs: t0,
      intentAtMs: t0 + 5,
      keysUnusableAtMs: t0 + 5,
      keysUnrecoverableAtMs: t0 + 25,
      objectsAbsentAtMs: t0 + 20,
      issuedAtMs: t0 + 40,
      leases: leases.map((lease) => ({ ...lease, nodeId: agentId.parse(node.id) })),
      holders: all.map(({ held }) => held),
      receipts: all.map(({ envelope }) => envelope),
      signers: [capture, evidence, node].map(signerOf),
      exclusions: [...exclusions],
    },
  }
}

function file(value: unknown, by = evidence): Buffer {
  const envelope = signStatement(certificatePayloadType, value as CanonicalValue, by.signer)
  return Buffer.from(canonicalJson(envelope))
}

const refusedWith = (code: ErrorCode) => (error: unknown) => isSluiceError(error, code)
const refused = (error: unknown) => isSluiceError(error) && error.code.startsWith('evidence.')

function assertRefused(value: unknown, why: string): void {
  assert.throws(() => verifyCertificate(file(value), evidence.publicKey), refused, why)
}

describe('verifyCertificate', () => {
  it('accepts a whole certificate and says who confirmed what', () => {
    const summary = verifyCertificate(file(statement()), evidence.publicKey)
    assert.equal(summary.jobId, job)
    assert.equal(summary.keyId, evidence.id)
    assert.equal(summary.sealedHeaderSha256, headerSha256)
    assert.deepEqual(
      summary.holders.map(({ holder, method }) => `${holder.kind} ${method}`),
      confirmations.map(({ kind, method }) => `${kind} ${method}`),
    )
  })

  it('accepts a job that never had a lease or a result', () => {
    const value = statement(confirmations.slice(0, 3).map((one) => confirm(one)))
    value.predicate.leases = []
    value.predicate.signers = [capture, evidence].map(signerOf)
    assert.equal(verifyCertificate(file(value), evidence.publicKey).holders.length, 3)
  })

  it('takes its anchor from nobody but the caller', () => {
    const bytes = file(statement())
    for (const key of [capture, stranger])
      assert.throws(
        () => verifyCertificate(bytes, key.publicKey),
        refusedWith('evidence.untrusted'),
      )
    assert.throws(
      () => verifyCertificate(file(statement(), stranger), evidence.publicKey),
      refusedWith('evidence.untrusted'),
    )
    const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    assert.throws(() => verifyCertificate(bytes, publicKey), refusedWith('evidence.untrusted'))
  })

  it('refuses any byte changed, dropped or added', () => {
    const bytes = file(statement())
    for (let offset = 0; offset < bytes.length; offset += 1) {
      const flipped = Buffer.from(bytes)
      flipped[offset]! ^= 1 << (offset % 8)
      assert.throws(() => verifyCertificate(flipped, evidence.publicKey), refused, `at ${offset}`)
    }
    for (let offset = 0; offset < bytes.length; offset += 97) {
      const short = Buffer.concat([bytes.subarray(0, offset), bytes.subarray(offset + 1)])
      assert.throws(() => verifyCertificate(short, evidence.publicKey), refused)
    }
    for (const extra of ['\n', ' ', '{}', '\uFEFF'])
      assert.throws(
        () => verifyCertificate(Buffer.concat([bytes, Buffer.from(extra)]), evidence.publicKey),
        refusedWith('evidence.not_canonical'),
      )
  })

  it('refuses a statement from which any member or element is dropped, even when signed anew', () => {
    for (const path of pathsOf(statement())) {
      const value = statement()
      drop(value, path)
      assertRefused(value, path.join('.'))
    }
  })

  it('refuses any holder, receipt, signer or lease listed twice, even when signed anew', () => {
    for (const list of ['holders', 'receipts', 'signers', 'leases'] as const) {
      const { length } = statement().predicate[list]
      for (let index = 0; index < length; index += 1) {
        const value = statement()
        const elements = value.predicate[list] as unknown[]
        elements.push(structuredClone(elements[index]))
        assertRefused(value, `${list} ${index}`)
      }
    }
  })

  it('refuses holders and receipts in different orders, even when signed anew', () => {
    for (let index = 1; index < confirmations.length; index += 1) {
      const value = statement()
      const { receipts } = value.predicate
      ;[receipts[0], receipts[index]] = [receipts[index]!, receipts[0]!]
      assertRefused(value, `receipt ${index}`)
    }
  })

  it('refuses any changed text of holders, receipts, signers, leases or subject, even when signed anew', () => {
    for (const path of pathsOf(statement())) {
      const part = path.join('.')
      if (!/^(?:subject|predicate\.(?:jobId|holders|receipts|signers|leases))/.test(part)) continue
      const value = statement()
      const before = read(value, path)
      if (typeof before !== 'string') continue
      write(value, path, changedText(before))
      assertRefused(value, part)
    }
  })

  it('refuses times out of order', () => {
    const { predicate } = statement()
    const wrong: Partial<typeof predicate>[] = [
      { announcedAtMs: t0 + 6 },
      { intentAtMs: t0 + 6 },
      { keysUnusableAtMs: t0 + 26 },
      { keysUnrecoverableAtMs: t0 + 41 },
      { objectsAbsentAtMs: t0 + 4 },
      { objectsAbsentAtMs: t0 + 41 },
      { issuedAtMs: t0 + 29 },
    ]
    for (const change of wrong) {
      const value = statement()
      Object.assign(value.predicate, change)
      assertRefused(value, JSON.stringify(change))
    }
    const value = statement()
    value.predicate.holders[0]!.confirmedAtMs = t0 - 1
    assertRefused(value, 'confirmed before it was announced')
  })

  it('refuses receipts that speak for anything else', () => {
    const wrong: [number, Partial<Receipt>][] = [
      [0, { jobId: newId(jobId, t0) }],
      [0, { holder: { kind: 'gpu-lease', id: capture.id } }],
      [0, { holder: { kind: 'capture-spool', id: stranger.id } }],
      [0, { method: 'epoch-roll' }],
      [0, { wipedAtMs: t0 + 9 }],
      [0, leases[0]!],
      [1, { method: 'unlink' }],
      [4, { fence: 2 }],
      [4, { leaseId: leases[1]!.leaseId }],
      [4, { leaseId: undefined, fence: undefined }],
    ]
    for (const [index, change] of wrong) {
      const all = confirmations.map((one) => confirm(one))
      const changed = confirm(confirmations[index]!, change)
      all[index] = { ...changed, held: { ...changed.held, holder: all[index]!.held.holder } }
      assertRefused(statement(all), JSON.stringify(change))
    }
  })

  it('refuses a holder that another key speaks for', () => {
    for (const [index, confirmation] of confirmations.entries()) {
      const all = confirmations.map((one) => confirm(one))
      const forged = { ...stranger, id: confirmation.by.id }
      all[index] = confirm({ ...confirmation, by: forged })
      assertRefused(statement(all), confirmation.kind)
    }
    // Even when it is listed as that holder's key.
    const asStore = confirmations.map((one) =>
      one.kind === 'object-store' ? confirm({ ...one, by: stranger }) : confirm(one),
    )
    const value = statement(asStore)
    value.predicate.signers.push(signerOf(stranger))
    assertRefused(value, 'an agent for the object store')
    const spool = confirmations.map((one) =>
      one.kind === 'capture-spool' ? confirm({ ...one, by: evidence }) : confirm(one),
    )
    const own = statement(spool)
    own.predicate.signers = [evidence, node].map(signerOf)
    assertRefused(own, 'the control plane for the spool')
  })

  it('refuses signers that are no Ed25519 key in its one form, or that hold nothing', () => {
    const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    const spki = node.publicKey.export({ format: 'der', type: 'spki' })
    const wrong = [
      { ...signerOf(node), publicKey: publicKey.export({ format: 'der', type: 'spki' }) },
      { ...signerOf(node), publicKey: Buffer.concat([spki, Buffer.from([0])]) },
      { ...signerOf(node), publicKey: Buffer.from('no key') },
    ]
    for (const signer of wrong) {
      const value = statement()
      value.predicate.signers[2] = { ...signer, publicKey: signer.publicKey.toString('base64') }
      assertRefused(value, signer.publicKey.toString('hex'))
    }
    const idle = statement()
    idle.predicate.signers.push(signerOf(stranger))
    assertRefused(idle, 'a signer that holds nothing')
    const renamed = statement()
    renamed.predicate.signers[1] = { ...signerOf(evidence), holderId: stranger.id }
    assertRefused(renamed, 'the evidence key under the name of an agent')
  })

  it('refuses what was confirmed outside the time in which its signer was good', () => {
    const confirmedAtMs = t0 + 30
    const wrong = [
      { notBeforeMs: confirmedAtMs + 1 },
      { notAfterMs: confirmedAtMs },
      { revokedAtMs: confirmedAtMs },
      { revokedAtMs: t0 },
    ]
    for (const index of [0, 2])
      for (const times of wrong) {
        const value = statement()
        Object.assign(value.predicate.signers[index]!, times)
        assert.throws(
          () => verifyCertificate(file(value), evidence.publicKey),
          refusedWith('evidence.untrusted'),
          JSON.stringify(times),
        )
      }
    const later = statement()
    Object.assign(later.predicate.signers[0]!, { revokedAtMs: confirmedAtMs + 1 })
    verifyCertificate(file(later), evidence.publicKey)
  })

  it('refuses a signer without a time, and the evidence key with one', () => {
    const timeless = statement()
    delete timeless.predicate.signers[0]!.notAfterMs
    assertRefused(timeless, 'no end')
    const backwards = statement()
    Object.assign(backwards.predicate.signers[0]!, { notBeforeMs: t0 + 1000 })
    assertRefused(backwards, 'no time')
    for (const times of [{ notBeforeMs: t0 }, { notAfterMs: t0 + 1000 }, { revokedAtMs: t0 }]) {
      const ended = statement()
      Object.assign(ended.predicate.signers[1]!, times)
      assertRefused(ended, JSON.stringify(times))
    }
  })

  it('refuses a receipt that is signed but says something else altogether', () => {
    const all = confirmations.map((one) => confirm(one))
    const envelope = signStatement(receiptPayloadType, { not: 'a receipt' }, capture.signer)
    const payload = Buffer.from(envelope.payload, 'base64')
    const receiptSha256 = createHash('sha256').update(payload).digest('hex')
    all[0] = { envelope, held: { ...all[0]!.held, receiptSha256 } }
    assertRefused(statement(all), 'no receipt')
  })

  it('refuses a certificate larger than the bound', () => {
    assert.throws(
      () => verifyCertificate(Buffer.alloc(9 * 1024 * 1024), evidence.publicKey),
      refusedWith('evidence.invalid'),
    )
  })
})

type Path = (string | number)[]

/** Every member and element of a value, itself left out. */
function pathsOf(value: unknown, at: Path = []): Path[] {
  if (typeof value !== 'object' || value === null) return []
  return Object.entries(value).flatMap(([key, member]) => {
    const path = [...at, Array.isArray(value) ? Number(key) : key]
    return [path, ...pathsOf(member, path)]
  })
}

function parentOf(value: unknown, path: Path): Record<string | number, unknown> {
  return path.slice(0, -1).reduce((parent, key) => (parent as never)[key], value) as never
}

function read(value: unknown, path: Path): unknown {
  return parentOf(value, path)[path.at(-1)!]
}

function write(value: unknown, path: Path, member: unknown): void {
  parentOf(value, path)[path.at(-1)!] = member
}

function drop(value: unknown, path: Path): void {
  const parent = parentOf(value, path)
  const key = path.at(-1)!
  if (Array.isArray(parent)) parent.splice(Number(key), 1)
  else delete parent[key]
}

/** Another text of the same length and alphabet. */
function changedText(text: string): string {
  const at = Math.floor(text.length / 2)
  return `${text.slice(0, at)}${text[at] === 'a' ? 'b' : 'a'}${text.slice(at + 1)}`
}
