/** Security staff of a fleet: each with a token and a context of their own, working by the command line alone. */

import assert from 'node:assert/strict'
import { join } from 'node:path'

import type { Fleet, ProgramResult } from './fleet.ts'
import { requireSuccess } from './fleet.ts'

export type Person = {
  readonly name: string
  /** Runs `sluice` to its end, whatever that end is. */
  run(...args: string[]): Promise<ProgramResult>
  /** Runs `sluice`, which must end well. @returns What it printed. */
  say(...args: string[]): Promise<string>
  /** The same with `--json`. @returns The last value it printed. */
  ask(...args: string[]): Promise<unknown>
  /** Runs `sluice`, which must be refused with this code on standard error. */
  refused(code: string, ...args: string[]): Promise<void>
}

/** Makes a principal with the role `security` on all sites, as the owner of the data directory, and logs it in. */
export async function makeSecurityPerson(fleet: Fleet, name: string): Promise<Person> {
  const file = join(fleet.root, 'tokens', `${name}.token`)
  const run = (...args: string[]): Promise<ProgramResult> => fleet.command(args, name)
  const say = async (...args: string[]): Promise<string> => {
    const ended = await run(...args)
    requireSuccess(`sluice ${args.join(' ')}`, ended)
    return ended.stdout
  }
  const { dataDirectory } = fleet.controlPlane
  const right = ['--principal', name, '--role', 'security', '--site', '*']
  await say('tokens', 'create', ...right, '--data-dir', dataDirectory, '--out', file)
  await say('login', '--token-file', file)
  return {
    name,
    run,
    say,
    ask: async (...args) => JSON.parse(await say(...args, '--json')),
    async refused(code, ...args) {
      const ended = await run(...args)
      assert.notEqual(ended.code, 0, ended.stdout)
      assert.match(ended.stderr, new RegExp(RegExp.escape(code)))
    },
  }
}
