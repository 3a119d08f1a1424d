/** Reads the demo's command line. */

import { statSync } from 'node:fs'
import { resolve } from 'node:path'
import { parseArgs } from 'node:util'

export const usage = `Usage: npm run demo [-- FILE… ] [--keep] [--json]

Carries media from capture to deletion certificate with real processes on this machine.

  FILE     Media of your own: JPEG, PNG, WebP, MP4, MOV, WAV, MP3, FLAC. They are only read.
           Without any, a photo, a film and a sound are made on the spot.
  --keep   Leaves the system up at the end and prints its addresses, until Ctrl-C.
  --json   Prints one summary document and nothing else on standard output.

Example: npm run demo -- ~/Pictures/holiday.jpg --keep`

export type DemoArguments = {
  /** Absolute; empty for media made on the spot. */
  files: string[]
  keep: boolean
  json: boolean
  help: boolean
}

/** What is wrong with the command line, in one line. */
export class UsageError extends Error {}

/** @throws UsageError for an unknown option, or a file that is none. */
export function readArguments(argv: readonly string[]): DemoArguments {
  const { values, positionals } = parse(argv)
  const files = positionals.map((name) => {
    const path = resolve(name)
    const facts = statSync(path, { throwIfNoEntry: false })
    if (facts === undefined) throw new UsageError(`${name}: no such file`)
    if (!facts.isFile()) throw new UsageError(`${name}: not a regular file`)
    return path
  })
  return { files, keep: values.keep, json: values.json, help: values.help }
}

function parse(argv: readonly string[]) {
  const flag = { type: 'boolean', default: false } as const
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: { keep: flag, json: flag, help: { ...flag, short: 'h' } },
    })
  } catch (error) {
    if (error instanceof TypeError) throw new UsageError(error.message, { cause: error })
    throw error
  }
}
