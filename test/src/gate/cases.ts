/** One row of the gate's corpus: how the input is made, what must come of it, what must be gone, what must be equal. */

import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'

import type { Gate } from '@sluice/agent/capture/gate'
import { passGate } from '@sluice/agent/capture/gate'
import type { NormalisedMedium } from '@sluice/agent/capture/normalised'
import { collectOutput } from '@sluice/agent/sandbox'
import type { ErrorCode } from '@sluice/protocol/errors'
import { isSluiceError } from '@sluice/protocol/errors'
import type { GateProfile } from '@sluice/protocol/manifest'

/** What left the gate, its bytes in one piece. */
export type Outcome = Omit<NormalisedMedium, 'content'> & { bytes: Buffer }

export type GateCase = {
  /** What is special about the input; unique. */
  name: string
  /** Also in the run that must be quick. */
  quick?: true
  /** Programs without which the input can't be made or taken. */
  needs?: readonly ('ffmpeg' | 'exiftool')[]
  /** Writes the input below `folder` and tells its path. */
  make: (folder: string) => Promise<string> | string
  profile?: GateProfile
  salvage?: true
  /** A refusal with this code, and with these words in its message or hint. */
  refused?: { code: ErrorCode; says?: RegExp }
  /** Else: the extensions of what leaves, in order. */
  leaves?: readonly Outcome['extension'][]
  /** Texts or bytes that are in the input, which is checked too, and in nothing that leaves. */
  gone?: readonly (string | Buffer)[]
  /** Kinds of metadata that must be named as removed. */
  removed?: readonly string[]
  /** Asserts what else must hold of what leaves. */
  equal?: (outcomes: readonly Outcome[], source: Buffer) => Promise<void> | void
}

/**
 * Takes the input of a row through the gate and asserts everything the row says.
 *
 * @param folder Empty; the input is written there.
 */
export async function proveCase(row: GateCase, gate: Gate, folder: string): Promise<void> {
  assert.ok((row.refused === undefined) !== (row.leaves === undefined), 'a row says one verdict')
  const file = await row.make(folder)
  // Some are larger than memory, and nobody asks for their bytes.
  const isAsked = row.gone !== undefined || row.equal !== undefined
  const source = isAsked ? await readFile(file) : Buffer.alloc(0)
  for (const canary of row.gone ?? []) {
    assert.ok(source.includes(canary), `the input does not hold ${String(canary)}`)
  }
  const through: Gate = {
    ...gate,
    ...(row.profile === undefined ? {} : { profile: row.profile }),
    ...(row.salvage === undefined ? {} : { salvage: true }),
  }
  if (row.refused !== undefined) {
    await proveRefused(file, through, row.refused)
    return
  }
  await using passed = await passGate(file, through)
  const outcomes: Outcome[] = []
  for (const { content, ...facts } of passed.media) {
    outcomes.push({ ...facts, bytes: await collectOutput(content.read()) })
  }
  assert.deepEqual(
    outcomes.map(({ extension }) => extension),
    row.leaves,
  )
  for (const { bytes, removed } of outcomes) {
    for (const canary of row.gone ?? []) {
      assert.ok(!bytes.includes(canary), `${String(canary)} has left`)
    }
    for (const kind of row.removed ?? []) {
      assert.ok(removed.includes(kind), `${kind} is not among ${removed.join()}`)
    }
  }
  await row.equal?.(outcomes, source)
}

async function proveRefused(
  file: string,
  gate: Gate,
  wanted: NonNullable<GateCase['refused']>,
): Promise<void> {
  let refusal: unknown
  try {
    await using passed = await passGate(file, gate)
    assert.fail(`it left as ${passed.media.map(({ extension }) => extension).join()}`)
  } catch (error) {
    refusal = error
  }
  if (!isSluiceError(refusal)) throw refusal
  assert.equal(refusal.code, wanted.code, refusal.message)
  if (wanted.says !== undefined) {
    assert.match(`${refusal.message}\n${refusal.hint ?? ''}`, wanted.says)
  }
}
