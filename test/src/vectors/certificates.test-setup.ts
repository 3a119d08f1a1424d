/** Runs both verifiers over the same bytes. */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { KeyObject } from 'node:crypto'
import type { TestContext } from 'node:test'
import { isSluiceError } from '@sluice/protocol/errors'
import { verifyDocument } from '@sluice/protocol/sealing/verify-document'
import { evidence } from './certificate-cases.ts'
import type { Case } from './certificate-mutations.ts'

const script = join(import.meta.dirname, '..', '..', '..', 'verify', 'verify.sh')

/** `verified`, or the code it is refused with. */
export type Verdict = string

export function ourVerdict(bytes: Uint8Array, trusted: KeyObject): Verdict {
  try {
    const { kind } = verifyDocument(bytes, trusted)
    return kind.endsWith('certificate') ? 'verified' : 'evidence.incomplete'
  } catch (error) {
    if (isSluiceError(error)) return error.code
    throw error
  }
}

/** The second verifier, in a shell as plain as there is. */
export class SecondVerifier implements AsyncDisposable {
  readonly #folder: string
  #files = 0

  private constructor(folder: string) {
    this.#folder = folder
  }

  static async start(): Promise<SecondVerifier> {
    return new SecondVerifier(await mkdtemp(join(tmpdir(), 'sluice-verify-')))
  }

  async verdict(bytes: Uint8Array, trusted: KeyObject): Promise<Verdict> {
    this.#files += 1
    const file = join(this.#folder, `${this.#files}.json`)
    const key = join(this.#folder, `${this.#files}.pem`)
    await writeFile(file, bytes)
    await writeFile(key, trusted.export({ format: 'pem', type: 'spki' }))
    const { code, err } = await this.run([file, '--trust', key])
    await rm(file)
    await rm(key)
    if (code === 0) return 'verified'
    const [name = ''] = err.split(':')
    return code === 3 ? name : `exit ${code}: ${err}`
  }

  run(words: string[]): Promise<{ code: number; out: string; err: string }> {
    const { promise, resolve } = Promise.withResolvers<{ code: number; out: string; err: string }>()
    const env = { PATH: process.env['PATH'], TMPDIR: this.#folder }
    execFile('/bin/sh', [script, ...words], { env }, (error, out, err) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
      resolve({ code, out, err })
    })
    return promise
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await rm(this.#folder, { recursive: true, force: true })
  }
}

/** Runs `work` on each, two at a time. */
async function twoAtATime<T>(all: readonly T[], work: (one: T) => Promise<void>) {
  const rest = all.values()
  const lane = async () => {
    for (const one of rest) await work(one)
  }
  await Promise.all([lane(), lane()])
}

/** Of all cases that are refused with one code, three from its first, second and last third. */
export function someOfEachCode(cases: readonly Case[]): Case[] {
  const alike = [...Map.groupBy(cases, ({ expect }) => expect).values()]
  const places = (count: number) => [1 / 6, 3 / 6, 5 / 6].map((part) => Math.floor(part * count))
  return alike.flatMap((some) => [...new Set(places(some.length))].map((place) => some[place]!))
}

/** Our verifier says of every case what is expected, and the second the same of those in `slow`. */
export async function assertAgree(all: readonly Case[], slow: readonly Case[]): Promise<void> {
  const chosen = new Set(slow)
  await using second = await SecondVerifier.start()
  await twoAtATime(all, async (one) => {
    const { name, bytes, expect, by } = one
    const { publicKey } = by ?? evidence
    const ours = ourVerdict(bytes, publicKey)
    // Where several things are wrong at once, only that both say the same is fixed.
    if (expect) assert.equal(ours, expect, `sluice verify, ${name}`)
    else assert.notEqual(ours, 'verified', name)
    if (!chosen.has(one)) return
    assert.equal(await second.verdict(bytes, publicKey), ours, `verify.sh, ${name}`)
  })
}

/** The same flips on every run of one seed (xorshift32). */
function* flips(bytes: Buffer, count: number, seed: number): Generator<Buffer> {
  let state = seed
  for (let n = 0; n < count; n += 1) {
    for (const [left, by] of [
      [true, 13],
      [false, 17],
      [true, 5],
    ] as const)
      state = (state ^ (left ? state << by : state >>> by)) >>> 0
    const flipped = Buffer.from(bytes)
    const bit = state % (bytes.length * 8)
    flipped[bit >> 3]! ^= 1 << (bit & 7)
    yield flipped
  }
}

/** Both verifiers refuse each flipped bit, with one code. */
export async function assertFlipsRefused(
  files: readonly Buffer[],
  { count, seed }: { count: number; seed: number },
  t: TestContext,
): Promise<void> {
  t.diagnostic(`seed ${seed}, ${count} flips`)
  await using second = await SecondVerifier.start()
  const all = files.flatMap((bytes) => [...flips(bytes, count / files.length, seed)])
  let refused = 0
  await twoAtATime(all, async (bytes) => {
    const ours = ourVerdict(bytes, evidence.publicKey)
    assert.notEqual(ours, 'verified')
    assert.equal(await second.verdict(bytes, evidence.publicKey), ours)
    refused += 1
  })
  assert.equal(refused, count)
}
