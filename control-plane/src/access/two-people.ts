/** Tells whether two principals are two people, and from when on it takes two to make one more. */
import type { Right } from '@sluice/protocol/api'
import type { PrincipalId } from '@sluice/protocol/ids'
import type { Queries } from '../database/database.ts'
import { principalById, securityPrincipals, tokenMakers } from './store.ts'

/**
 * Whether two principals are two people: no named person stands behind both. Behind a principal
 * stands itself, who made it, who was handed a token of it that still counts, and whoever stands
 * behind those. The owner of the data directory is no named person.
 */
export async function isTwoPeople(
  sql: Queries,
  one: PrincipalId,
  other: PrincipalId,
  atMs: number,
): Promise<boolean> {
  return areApart(await standingBehind(sql, one, atMs), await standingBehind(sql, other, atMs))
}

function areApart(one: ReadonlySet<PrincipalId>, other: ReadonlySet<PrincipalId>): boolean {
  return one.isDisjointFrom(other)
}

async function standingBehind(
  sql: Queries,
  principal: PrincipalId,
  atMs: number,
): Promise<ReadonlySet<PrincipalId>> {
  const found = new Set<PrincipalId>()
  const open = [principal]
  for (let id = open.pop(); id !== undefined; id = open.pop()) {
    if (found.has(id)) continue
    found.add(id)
    const creator = (await principalById(sql, id))?.createdBy ?? null
    const makers = await tokenMakers(sql, id, atMs)
    open.push(...[creator, ...makers].filter((one) => one !== null))
  }
  return found
}

/** Whether a principal can come in at all: it has a token that counts. */
export async function hasLiveToken(
  sql: Queries,
  principal: PrincipalId,
  atMs: number,
): Promise<boolean> {
  return (await tokenMakers(sql, principal, atMs)).length > 0
}

/**
 * Whether two people with the role `security` exist for every site of `rights` that has that role.
 *
 * A named person is bound as soon as two were ever made: else one could revoke the other's tokens
 * and be alone again. The owner of the data directory is bound while two can come in, so that the
 * loss of all tokens is not the end.
 */
export async function takesTwo(
  sql: Queries,
  raised: { rights: readonly Right[]; byOwner: boolean; atMs: number },
): Promise<boolean> {
  const { rights, byOwner, atMs } = raised
  const sites = new Set(rights.filter(({ role }) => role === 'security').map(({ site }) => site))
  for (const site of sites) {
    const people: ReadonlySet<PrincipalId>[] = []
    for (const id of await securityPrincipals(sql, site)) {
      if (byOwner && !(await hasLiveToken(sql, id, atMs))) continue
      const behind = await standingBehind(sql, id, atMs)
      if (people.some((other) => areApart(other, behind))) return true
      people.push(behind)
    }
  }
  return false
}

/** Where an approval about these rights counts: their one site, or all. */
export function siteOfRights(rights: readonly Right[]): string {
  const [site = '*', ...more] = new Set(rights.map((right) => right.site))
  return more.length === 0 ? site : '*'
}
