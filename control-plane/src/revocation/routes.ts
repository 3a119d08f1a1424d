/** Listens for security staff who lock somebody out, and shows what is in force and what is owed. */
import { Hono } from 'hono'
import { z } from 'zod'
import { pageQuery } from '@sluice/protocol/api'
import {
  type RevocationDetail,
  revocationRequest,
  type RevocationView,
} from '@sluice/protocol/api-revocations'
import { retireRequest, rotateRequest } from '@sluice/protocol/api-authority'
import { SluiceError } from '@sluice/protocol/errors'
import { type RevocationId, revocationId, tokenId } from '@sluice/protocol/ids'
import { type Access, type AccessEnv, reachesSite } from '../access/rules.ts'
import { joinTokenById, rightsOf, tokenById } from '../access/store.ts'
import { viewOfJoinToken, viewOfToken } from '../access/tokens.ts'
import { readBody, readQuery } from '../api-request.ts'
import { presentFields } from '../present-fields.ts'
import {
  retireAuthority,
  rotateAuthority,
  type RotationDeps,
  viewOfAuthority,
} from './authority.ts'
import { previewRevocation, revoke, type RevocationDeps } from './revoke.ts'
import {
  agentsOf,
  exposedBy,
  owedOf,
  pageOfRevocations,
  revocationById,
  type RevocationRow,
} from './store.ts'

const nothing = z.strictObject({})

export function revocationRoutes(deps: RevocationDeps & { rotation: RotationDeps }) {
  const { database } = deps
  const routes = new Hono<AccessEnv>()

  routes.post('/v1/revocations', async (c) => {
    const { target, reason, dryRun } = await readBody(c.req.raw, revocationRequest)
    const access = c.get('access')
    if (dryRun) return c.json(await previewRevocation(deps, { target, access }))
    const id = await revoke(deps, { target, reason, access })
    return c.json(await detailOf(id), 201)
  })

  routes.get('/v1/revocations', async (c) => {
    const { after, limit } = readQuery(c.req.raw, pageQuery)
    const { sites } = c.get('access')
    const rows = await database.read((sql) =>
      pageOfRevocations(sql, {
        sites: sites === 'all' ? null : sites,
        before: revocationId.safeParse(after).data,
        itemsMax: limit + 1,
      }),
    )
    const shown = rows.slice(0, limit)
    const next = rows.length > limit ? shown.at(-1)?.id : undefined
    return c.json({ items: shown.map(viewOf), ...(next === undefined ? {} : { next }) })
  })

  routes.get('/v1/revocations/:id', async (c) => {
    const id = revocationId.safeParse(c.req.param('id'))
    const row = id.success ? await database.read((sql) => revocationById(sql, id.data)) : undefined
    if (!row || !reachesRow(c.get('access'), row)) throw noSuch('revocation')
    return c.json(await detailOf(row.id))
  })

  routes.get('/v1/authority', async (c) => c.json(await viewOfAuthority(deps.rotation)))

  routes.post('/v1/authority/rotate', async (c) => {
    const { reason, retireWithinMinutes } = await readBody(c.req.raw, rotateRequest)
    await rotateAuthority(deps.rotation, {
      reason,
      by: forAllSites(c.get('access')).principalId,
      retireWithinMs: retireWithinMinutes && retireWithinMinutes * 60_000,
    })
    return c.json(await viewOfAuthority(deps.rotation), 201)
  })

  routes.post('/v1/authority/retire', async (c) => {
    const { abandon } = await readBody(c.req.raw, retireRequest)
    const actor = { kind: 'principal', id: forAllSites(c.get('access')).principalId } as const
    await retireAuthority(deps.rotation, { abandon, actor })
    return c.json(await viewOfAuthority(deps.rotation))
  })

  /** The older routes of single tokens: the same revocation under another name. */
  routes.post('/v1/tokens/:id/revoke', async (c) => {
    await readBody(c.req.raw, nothing)
    const id = tokenIdFrom(c.req.param('id'))
    await revoke(deps, {
      target: { kind: 'token', tokenId: id },
      reason: unsaid,
      access: c.get('access'),
    })
    return c.json(
      await database.read(async (sql) => {
        const found = await tokenById(sql, id)
        if (!found) throw noSuch('token')
        return viewOfToken(found.token, found.principal, await rightsOf(sql, found.principal.id))
      }),
    )
  })

  routes.post('/v1/join-tokens/:id/revoke', async (c) => {
    await readBody(c.req.raw, nothing)
    const id = tokenIdFrom(c.req.param('id'))
    await revoke(deps, {
      target: { kind: 'join-token', tokenId: id },
      reason: unsaid,
      access: c.get('access'),
    })
    const row = await database.read((sql) => joinTokenById(sql, id))
    if (!row) throw noSuch('join token')
    return c.json(viewOfJoinToken(row))
  })

  function detailOf(id: RevocationId): Promise<RevocationDetail> {
    return database.read(async (sql) => {
      const row = await revocationById(sql, id)
      if (!row) throw noSuch('revocation')
      const agents = await agentsOf(sql, id)
      const owed = await owedOf(sql, { id, agents })
      return {
        ...viewOf(row),
        owed: owed.map(({ lastError, ...one }) => ({ ...one, ...presentFields({ lastError }) })),
        exposed: await exposedBy(sql, agents),
      }
    })
  }

  return routes
}

/** The older routes take no reason. */
const unsaid = 'no reason given'

function reachesRow(access: Access, row: RevocationRow): boolean {
  return row.site === '*' ? access.sites === 'all' : reachesSite(access, row.site)
}

function forAllSites(access: Access): Access {
  if (access.sites === 'all') return access
  throw new SluiceError('access.forbidden', 'the authority belongs to all sites', {
    hint: 'It takes the role security on all sites (`*`).',
  })
}

function tokenIdFrom(text: string) {
  const id = tokenId.safeParse(text)
  if (!id.success) throw noSuch('token')
  return id.data
}

function noSuch(what: string): SluiceError {
  return new SluiceError('request.not_found', `no such ${what}`)
}

function viewOf(row: RevocationRow): RevocationView {
  const { id, kind, target, site, reason, atMs, revokedBy } = row
  const inForce = row.detail as RevocationView['inForce']
  return { id, kind, target, site, reason, atMs, inForce, ...presentFields({ revokedBy }) }
}
