/** Documents changed in every way we could think of, each with the code it must be refused with. */
import type { Certificate } from '@sluice/protocol/certificate'
import { obligationId } from '@sluice/protocol/ids'
import type { PurgeCertificate } from '@sluice/protocol/purge-certificate'
import type { Receipt } from '@sluice/protocol/receipt'
import { canonicalJson } from '@sluice/protocol/canonical'
import {
  confirm,
  confirmInBytes,
  evidence,
  jobFacts,
  jobFile,
  purgeFacts,
  purgeFile,
  purgeReportFile,
  signerOf,
  stranger,
  writeOffFile,
} from './certificate-cases.ts'

export type Case = { name: string; bytes: Buffer; expect?: string; by?: typeof evidence }

const invalid = 'evidence.invalid'
const untrusted = 'evidence.untrusted'
const incomplete = 'evidence.incomplete'
const notCanonical = 'evidence.not_canonical'

function changedJob(name: string, expect: string, change: (facts: Certificate) => void): Case {
  const facts = jobFacts()
  change(facts)
  return { name: `job: ${name}`, bytes: jobFile(facts), expect }
}

function changedPurge(
  name: string,
  expect: string,
  change: (facts: PurgeCertificate) => void,
): Case {
  const facts = purgeFacts()
  change(facts)
  return { name: `purge: ${name}`, bytes: purgeFile(facts), expect }
}

/** Puts another confirmation in the place of the n-th, under the holder it had. */
function answer(facts: Certificate, n: number, other: ReturnType<typeof confirm>): void {
  facts.receipts[n] = other.envelope
  facts.holders[n]!.receiptSha256 = other.held.receiptSha256
}

/** A confirmation of the store, given as that of a replica. */
function replica(n: number, holder: object, by?: typeof evidence) {
  const owed = { obligationId: obligationId.parse(`01a3185c-5000-7000-8000-00000000600${n}`) }
  const place = { kind: 'object-replica', id: evidence.id, ...holder } as Receipt['holder']
  return confirm(1, { ...owed, holder: place }, by)
}

/** Adds confirmations to a good certificate, each under the holder it names. */
function withReplicas(
  name: string,
  expect: string,
  all: readonly ReturnType<typeof confirm>[],
  change: (facts: Certificate) => void = () => undefined,
): Case {
  return changedJob(`replicas: ${name}`, expect, (facts) => {
    facts.holders.push(...all.map(({ held }) => held))
    facts.receipts.push(...all.map(({ envelope }) => envelope))
    change(facts)
  })
}

const [paris, rome] = [replica(1, { place: 'paris' }), replica(2, { place: 'rome-2' })]
export const replicaCases: Case[] = [
  withReplicas('two', 'verified', [paris, rome]),
  withReplicas('one place twice', invalid, [paris, replica(2, { place: 'paris' })]),
  withReplicas('no place', invalid, [replica(1, {})]),
  withReplicas('no name for a place', invalid, [replica(1, { place: 'Paris' })]),
  withReplicas('signed by another', untrusted, [replica(1, { place: 'paris' }, stranger)]),
  withReplicas('spoken for by another', untrusted, [
    replica(1, { place: 'paris', id: jobFacts().holders[0]!.holder.id }),
  ]),
  withReplicas('a receipt of another place', invalid, [paris], (facts) => {
    facts.holders.at(-1)!.holder.place = 'rome-2'
  }),
  withReplicas(
    'a receipt of no place',
    invalid,
    [replica(1, { kind: 'object-store' })],
    (facts) => {
      facts.holders.at(-1)!.holder = { ...paris.held.holder }
    },
  ),
  withReplicas('no receipt', incomplete, [paris], (facts) => void facts.receipts.pop()),
  withReplicas('in the place of the store', incomplete, [paris], (facts) => {
    facts.holders.splice(1, 1)
    facts.receipts.splice(1, 1)
  }),
  changedJob('replicas: the store with a place', invalid, (facts) => {
    const other = replica(1, { kind: 'object-store', place: 'paris' })
    facts.holders[1] = other.held
    facts.receipts[1] = other.envelope
  }),
]

const oddBytes: [string, (text: string) => string | Buffer][] = [
  ['a space', (text) => `${text} `],
  ['a line feed', (text) => `${text}\n`],
  ['a line feed inside', (text) => text.replace(',', ',\n')],
  ['itself twice', (text) => `${text}\n${text}`],
  ['nothing', () => ''],
  ['only a line feed', () => '\n'],
  ['a zero byte', (text) => `${text}\0`],
  ['broken UTF-8', (text) => Buffer.concat([Buffer.from(text), Buffer.from([0xff])])],
  ['half of it', (text) => text.slice(0, text.length / 2)],
  ['an escape', (text) => text.replace('receipt', 'r\\u0065ceipt')],
  ['another order', (text) => reversed(text)],
  ['many levels', () => nested(40)],
]

/** Receipts that are signed as they should be, and are no canonical JSON. */
export const receiptByteCases: Case[] = [
  ...oddBytes.flatMap(([name, bytesOf]) => [
    changedJob(`a receipt: ${name}`, notCanonical, (facts) =>
      answer(facts, 2, confirmInBytes(2, bytesOf)),
    ),
  ]),
  // What is wrong with an earlier receipt is told first.
  changedJob('a receipt: another job, then a space', invalid, (facts) => {
    answer(facts, 1, confirm(1, {}, undefined, 2))
    answer(
      facts,
      2,
      confirmInBytes(2, (text) => `${text} `),
    )
  }),
  changedJob('a receipt: a space, then another job', notCanonical, (facts) => {
    answer(
      facts,
      1,
      confirmInBytes(1, (text) => `${text} `),
    )
    answer(facts, 2, confirm(2, {}, undefined, 2))
  }),
  changedJob('a receipt: another job, then a stranger', invalid, (facts) => {
    answer(facts, 1, confirm(1, {}, undefined, 2))
    answer(facts, 2, confirm(2, {}, stranger))
  }),
  changedJob('a receipt: a stranger, then another job', untrusted, (facts) => {
    answer(facts, 1, confirm(1, {}, stranger))
    answer(facts, 2, confirm(2, {}, undefined, 2))
  }),
  changedJob('a receipt: a space, then a stranger', notCanonical, (facts) => {
    answer(
      facts,
      1,
      confirmInBytes(1, (text) => `${text} `),
    )
    answer(facts, 2, confirm(2, {}, stranger))
  }),
  changedJob('a receipt: just its own', 'verified', (facts) =>
    answer(
      facts,
      2,
      confirmInBytes(2, (text) => text),
    ),
  ),
]

const jobHolders = jobFacts().holders.map((_, n) => n)

export const jobCases: Case[] = [
  { name: 'job: whole', bytes: jobFile(), expect: 'verified' },
  { name: 'job: signed by another', bytes: jobFile(jobFacts(), stranger), expect: untrusted },
  { name: 'job: another key is trusted', bytes: jobFile(), expect: untrusted, by: stranger },
  ...jobHolders.flatMap((n) => [
    // Three kinds are always there, and a lease is known by its own list; a result blob is not.
    changedJob(`holder ${n} removed`, n === 3 ? 'verified' : incomplete, (facts) => {
      facts.holders.splice(n, 1)
      facts.receipts.splice(n, 1)
      const ids = new Set<string>(facts.holders.map(({ holder }) => holder.id))
      facts.signers = facts.signers.filter(({ holderId }) => ids.has(holderId))
    }),
    changedJob(`holder ${n} removed, its receipt left`, n === 3 ? invalid : '', (facts) => {
      facts.holders.splice(n, 1)
    }),
    changedJob(`receipt ${n} removed`, '', (facts) => void facts.receipts.splice(n, 1)),
    changedJob(`holder ${n} twice`, invalid, (facts) => {
      facts.holders.push(facts.holders[n]!)
      facts.receipts.push(facts.receipts[n]!)
    }),
    changedJob(`receipt ${n} by a stranger`, untrusted, (facts) =>
      answer(facts, n, confirm(n, {}, stranger)),
    ),
    changedJob(`receipt ${n} of another job`, invalid, (facts) =>
      answer(facts, n, confirm(n, {}, undefined, 2)),
    ),
    changedJob(`receipt ${n} by another method`, invalid, (facts) =>
      answer(facts, n, confirm(n, { method: n === 0 ? 'epoch-roll' : 'unlink' })),
    ),
    changedJob(`receipt ${n} ends before it begins`, invalid, (facts) =>
      answer(facts, n, confirm(n, { startedAtMs: 2, wipedAtMs: 1 })),
    ),
    changedJob(`receipt ${n} of another lease`, invalid, (facts) =>
      answer(facts, n, confirm(n, { fence: 7 })),
    ),
    changedJob(`receipt ${n} with an unknown member`, invalid, (facts) =>
      answer(facts, n, confirm(n, { more: 1 } as never)),
    ),
    changedJob(`holder ${n} confirmed too early`, invalid, (facts) => {
      facts.holders[n]!.confirmedAtMs = facts.announcedAtMs - 1
    }),
  ]),
  ...[0, 2].flatMap((n) => [
    changedJob(`signer ${n} revoked`, untrusted, (facts) => {
      facts.signers[n]!.revokedAtMs = facts.announcedAtMs + 30
    }),
    changedJob(`signer ${n} revoked afterwards`, 'verified', (facts) => {
      facts.signers[n]!.revokedAtMs = facts.announcedAtMs + 31
    }),
    changedJob(`signer ${n} expired`, untrusted, (facts) => {
      facts.signers[n]!.notAfterMs = facts.announcedAtMs + 30
    }),
    changedJob(`signer ${n} joined later`, untrusted, (facts) => {
      facts.signers[n]!.notBeforeMs = facts.announcedAtMs + 31
    }),
    changedJob(`signer ${n} without end`, invalid, (facts) => {
      delete facts.signers[n]!.notAfterMs
    }),
    changedJob(`signer ${n} missing`, incomplete, (facts) => void facts.signers.splice(n, 1)),
    changedJob(`signer ${n} under another key`, invalid, (facts) => {
      facts.signers[n]!.publicKey = signerOf(stranger).publicKey
    }),
    changedJob(`signer ${n} is a stranger`, untrusted, (facts) => {
      facts.signers[n] = { ...signerOf(stranger), holderId: facts.signers[n]!.holderId }
    }),
  ]),
  changedJob('the evidence key has an end', invalid, (facts) => {
    facts.signers[1]!.notAfterMs = 9e12
  }),
  changedJob('the evidence key as an agent', untrusted, (facts) => {
    facts.signers[1]!.holderId = signerOf(stranger).holderId
  }),
  changedJob('an agent as the evidence key', untrusted, (facts) => {
    facts.signers.splice(1, 1)
    facts.signers[0]!.holderId = evidence.id as never
  }),
  changedJob('one key for two signers', invalid, (facts) => {
    facts.signers.push({ ...facts.signers[0]!, holderId: signerOf(stranger).holderId })
  }),
  changedJob('a signer that holds nothing', invalid, (facts) => {
    facts.signers.push(signerOf(stranger))
  }),
  changedJob('receipts reordered', invalid, (facts) => {
    facts.receipts = facts.receipts.toReversed()
  }),
  changedJob('both reordered', 'verified', (facts) => {
    facts.receipts = facts.receipts.toReversed()
    facts.holders = facts.holders.toReversed()
  }),
  changedJob('an extra receipt', invalid, (facts) => void facts.receipts.push(facts.receipts[0]!)),
  changedJob('a lease left out', invalid, (facts) => void facts.leases.pop()),
  changedJob('a lease twice', invalid, (facts) => void facts.leases.push(facts.leases[0]!)),
  changedJob('a lease of another node', invalid, (facts) => {
    facts.leases[0]!.nodeId = signerOf(stranger).holderId as never
  }),
  ...jobFacts().exclusions.map((_, n) =>
    changedJob(`exclusion ${n} changed`, incomplete, (facts) => {
      facts.exclusions[n] = 'nothing'
    }),
  ),
  changedJob('no exclusions', invalid, (facts) => {
    facts.exclusions = []
  }),
  ...(['announcedAtMs', 'intentAtMs', 'keysUnusableAtMs', 'keysUnrecoverableAtMs'] as const).map(
    (name) =>
      changedJob(`${name} too late`, invalid, (facts) => {
        facts[name] = facts.issuedAtMs + 1
      }),
  ),
  changedJob('objects absent before the intent', invalid, (facts) => {
    facts.objectsAbsentAtMs = facts.intentAtMs - 1
  }),
  changedJob('issued too early', invalid, (facts) => void (facts.issuedAtMs -= 11)),
  changedJob('an unknown member', invalid, (facts) => void Object.assign(facts, { more: true })),
  changedJob('a member null', invalid, (facts) => void Object.assign(facts, { site: null })),
  changedJob(
    'an unknown level',
    invalid,
    (facts) => void Object.assign(facts, { level: 'Clear\n' }),
  ),
  changedJob('a name too long', invalid, (facts) => void (facts.site = 'x'.repeat(129))),
  changedJob('a name just too long', invalid, (facts) => void (facts.site = '😀'.repeat(129))),
  changedJob(
    'a name just short enough',
    'verified',
    (facts) => void (facts.site = '😀'.repeat(128)),
  ),
  changedJob('a negative instant', invalid, (facts) => void (facts.announcedAtMs = -1)),
]

export const purgeCases: Case[] = [
  { name: 'purge: whole', bytes: purgeFile(), expect: 'verified' },
  { name: 'purge: signed by another', bytes: purgeFile(purgeFacts(), stranger), expect: untrusted },
  { name: 'purge: a report', bytes: purgeReportFile(), expect: incomplete },
  { name: 'purge: a write-off', bytes: writeOffFile(), expect: incomplete },
  ...[0, 1].flatMap((n) => [
    changedPurge(`agent ${n} twice`, invalid, (facts) => {
      facts.agents.push(facts.agents[n]!)
      facts.receipts.push(facts.receipts[n]!)
    }),
    changedPurge(`receipt ${n} missing`, '', (facts) => void facts.receipts.splice(n, 1)),
    changedPurge(`agent ${n} revoked`, untrusted, (facts) => {
      facts.signers[n]!.revokedAtMs = facts.intentAtMs
    }),
    changedPurge(`agent ${n} expired`, untrusted, (facts) => {
      facts.signers[n]!.notAfterMs = facts.intentAtMs
    }),
    changedPurge(`agent ${n} not listed`, incomplete, (facts) => void facts.signers.splice(n, 1)),
    changedPurge(`agent ${n} got another order`, invalid, (facts) => {
      facts.agents[n]!.orderSha256 = 'ab'.repeat(32)
    }),
    changedPurge(`agent ${n} was to wipe less`, invalid, (facts) => {
      facts.agents[n]!.everything = false
    }),
    changedPurge(`job ${n} without its certificate`, incomplete, (facts) => {
      facts.jobs.splice(n, 1)
    }),
    changedPurge(`job ${n} with another certificate`, invalid, (facts) => {
      facts.jobs[n]!.certificateSha256 = 'ab'.repeat(32)
    }),
  ]),
  changedPurge('jobs reordered', invalid, (facts) => {
    facts.jobs = facts.jobs.toReversed()
  }),
  changedPurge('jobs left out, with their count', invalid, (facts) => {
    facts.jobs = []
    facts.jobsCount = 0
  }),
  changedPurge('receipts reordered', invalid, (facts) => {
    facts.receipts = facts.receipts.toReversed()
  }),
  changedPurge('one person', invalid, (facts) => {
    facts.approvedBy = facts.requestedBy
  }),
  changedPurge('held ones by one person', incomplete, (facts) => {
    facts.includingHeld = true
    facts.heldSkipped = { count: 0, jobIds: [] }
    delete facts.approvedBy
  }),
  changedPurge('held ones skipped and included', invalid, (facts) => {
    facts.includingHeld = true
  }),
  changedPurge('held ones not named', incomplete, (facts) => void facts.heldSkipped.jobIds.pop()),
  changedPurge('unasked hosts not named', incomplete, (facts) => void facts.unasked.agentIds.pop()),
  changedPurge('unasked hosts not counted', incomplete, (facts) => void (facts.unasked.count = 0)),
  changedPurge('unasked hosts twice', invalid, (facts) => {
    facts.unasked = { count: 2, agentIds: [1, 2].map(() => facts.unasked.agentIds[0]!) }
  }),
  changedPurge('an unasked host that confirmed', invalid, (facts) => {
    facts.unasked.agentIds = [facts.agents[0]!.agentId]
  }),
  changedPurge('unasked hosts not excluded', incomplete, (facts) => void facts.exclusions.pop()),
  changedPurge('nobody unasked', 'verified', (facts) => {
    facts.unasked = { count: 0, agentIds: [] }
    facts.exclusions.pop()
  }),
  changedPurge('no word of unasked hosts', invalid, (facts) => {
    delete (facts as Partial<typeof facts>).unasked
  }),
  changedPurge('no exclusions', incomplete, (facts) => void facts.exclusions.fill('nothing')),
  changedPurge('concluded too early', invalid, (facts) => void (facts.concludedAtMs -= 21)),
  changedPurge('an unknown member', invalid, (facts) => void Object.assign(facts, { reason: 'x' })),
  changedPurge('an unknown scope', invalid, (facts) => {
    facts.scope = { kind: 'everything', site: 'berlin' } as never
  }),
  changedPurge('time that ends before it begins', invalid, (facts) => {
    facts.scope = { kind: 'time', fromMs: 2, untilMs: 1 }
  }),
  changedPurge('everything', 'verified', (facts) => {
    facts.scope = { kind: 'everything' }
  }),
]

const text = jobFile().toString()
function nested(levels: number): string {
  return '['.repeat(levels) + ']'.repeat(levels)
}

const texts: [string, string | Buffer, string][] = [
  ['nothing', '', notCanonical],
  ['a space', `${text} `, notCanonical],
  ['a line feed', `${text}\n`, notCanonical],
  ['a byte order mark', `\uFEFF${text}`, notCanonical],
  ['an escape', text.replace('payloadType', 'payload\\u0054ype'), notCanonical],
  [
    'another order',
    canonicalJson(JSON.parse(text)).replace('{"payload":', '{"a":1,"payload":'),
    invalid,
  ],
  ['members reversed', reversed(text), notCanonical],
  ['a member twice', text.replace('{"payload":', '{"payload":"","payload":'), notCanonical],
  ['twice', text + text, notCanonical],
  ['cut', text.slice(0, -1), notCanonical],
  ['cut in half', text.slice(0, text.length / 2), notCanonical],
  ['no object', '[]', invalid],
  ['a text', '"payloadType"', invalid],
  ['null', 'null', invalid],
  ['a number', '1', invalid],
  ['a fraction', '1.5', notCanonical],
  ['a number in another form', '{"a":1.0}', notCanonical],
  ['minus nothing', '{"a":-0}', notCanonical],
  ['an exponent', '{"a":1e3}', notCanonical],
  ['a number too large', '{"a":9007199254740993}', notCanonical],
  ['the next that a double holds', '{"a":9007199254740992}', notCanonical],
  ['no number', '{"a":nan}', notCanonical],
  ['half a surrogate pair', '{"a":"\\ud800"}', notCanonical],
  ['broken UTF-8', Buffer.from([0x22, 0xff, 0x22]), notCanonical],
  ['a zero byte', Buffer.from('"a\0"'), notCanonical],
  ['32 levels', nested(33), invalid],
  ['33 levels', nested(34), notCanonical],
  ['many levels', nested(5000), notCanonical],
  ['too large', Buffer.from(`"${'a'.repeat(8 * 1024 * 1024)}"`), invalid],
]

function reversed(json: string): string {
  const value = JSON.parse(json) as Record<string, unknown>
  return JSON.stringify(Object.fromEntries(Object.entries(value).toReversed()))
}

export const byteCases: Case[] = texts.map(([name, data, expect]) => ({
  name: `bytes: ${name}`,
  bytes: Buffer.from(data),
  expect,
}))
