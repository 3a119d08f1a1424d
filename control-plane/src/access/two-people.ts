/** Tells whether two principals are two people, and from when on it takes two to make one more. */
import type { Right } from '@sluice/protocol/api'
import type { PrincipalId } from '@sluice/protocol/ids'
import type { Queries } from '../database/database.ts'
import { reachesSite, sitesAllowed } from './rules.ts'
import {
  hasTokenThatCounts,
  principalById,
  rightsOf,
  securityPrincipals,
  tokenMakers,
} from './store.ts'

/**
 * Whether two principals are two people: no named person stands behind both. Behind a principal
 * stands itself, who made it, who was ever handed a token of it, and whoever stands behind those.
 * The owner of the data directory is no named person.
 *
 * A token that was revoked counts too: with it a further one may have been made, in the name of the
 * principal itself, or something asked before it was revoked.
 */
export async function isTwoPeople(
  sql: Queries,
  one: PrincipalId,
  other: PrincipalId,
): Promise<boolean> {
  return areApart(await standingBehind(sql, one), await standingBehind(sql, other))
}

function areApart(one: ReadonlySet<PrincipalId>, other: ReadonlySet<PrincipalId>): boolean {
  return one.isDisjointFrom(other)
}

async function standingBehind(
  sql: Queries,
  principal: PrincipalId,
): Promise<ReadonlySet<PrincipalId>> {
  return reachedBy(principal, async (id) => [
    ...(await creatorsOf(sql, id)),
    ...(await tokenMakers(sql, id)),
  ])
}

async function creatorsOf(sql: Queries, id: PrincipalId): Promise<(PrincipalId | null)[]> {
  return [(await principalById(sql, id))?.createdBy ?? null]
}

async function reachedBy(
  principal: PrincipalId,
  next: (id: PrincipalId) => Promise<(PrincipalId | null)[]>,
): Promise<ReadonlySet<PrincipalId>> {
  const found = new Set<PrincipalId>()
  const open = [principal]
  for (let id = open.pop(); id !== undefined; id = open.pop()) {
    if (found.has(id)) continue
    found.add(id)
    open.push(...(await next(id)).filter((one) => one !== null))
  }
  return found
}

/**
 * Whether raising somebody to `security` takes two: as soon as two people with that role exist, on
 * whatever sites. Else the first with the role everywhere could go on making others alone.
 *
 * A named person is bound as soon as two were ever made, whoever was handed which token since: else
 * one could revoke the other's tokens, or be handed one, and be alone again. The owner of the data
 * directory is bound while two people can come in of whom one may ask for these rights, so that the
 * loss of all tokens is not the end.
 */
export async function takesTwo(
  sql: Queries,
  raised: { rights: readonly Right[]; byOwner: boolean; atMs: number },
): Promise<boolean> {
  const { rights, byOwner, atMs } = raised
  if (!rights.some(({ role }) => role === 'security')) return false
  const people: { behind: ReadonlySet<PrincipalId>; mayAsk: boolean }[] = []
  for (const id of await securityPrincipals(sql)) {
    if (byOwner && !(await hasTokenThatCounts(sql, id, atMs))) continue
    const behind = byOwner
      ? await standingBehind(sql, id)
      : await reachedBy(id, (one) => creatorsOf(sql, one))
    const mayAsk = !byOwner || mayDecide(await rightsOf(sql, id), siteOfRights(rights))
    if (people.some((other) => (mayAsk || other.mayAsk) && areApart(other.behind, behind)))
      return true
    people.push({ behind, mayAsk })
  }
  return false
}

/** Whether another person than this one holds `security` on all of `site`; for `*`, on all sites. */
export async function hasSecondOn(
  sql: Queries,
  principal: PrincipalId,
  site: string,
): Promise<boolean> {
  for (const id of await securityPrincipals(sql, site))
    if (await isTwoPeople(sql, principal, id)) return true
  return false
}

/** Whether somebody with these rights counts in an approval about `site`. */
export function mayDecide(rights: readonly Right[], site: string): boolean {
  const sites = sitesAllowed(rights, ['security'])
  if (sites === undefined) return false
  return site === '*' ? sites === 'all' : reachesSite({ sites }, site)
}

/** Where an approval about these rights counts: their one site, or all. */
export function siteOfRights(rights: readonly Right[]): string {
  const [site = '*', ...more] = new Set(rights.map((right) => right.site))
  return more.length === 0 ? site : '*'
}
