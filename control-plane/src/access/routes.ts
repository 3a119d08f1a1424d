/** Listens for who comes in: joining, tokens, principals; and for the owner on the admin socket. */
import { Hono } from 'hono'
import {
  createJoinTokenRequest,
  createTokenRequest,
  joinRequest,
  renewRequest,
  pageQuery,
  type PrincipalView,
} from '@sluice/protocol/api'
import { approvalsQuery } from '@sluice/protocol/api-approvals'
import { SluiceError } from '@sluice/protocol/errors'
import { approvalId } from '@sluice/protocol/ids'
import { z } from 'zod'
import { problemOf, readBody, readQuery } from '../api-request.ts'
import { type JoinDeps, joinAgent, renewByKey } from './join.ts'
import { type ApprovalDeps, decideApproval, viewOfApproval } from './approvals.ts'
import { type Access, type AccessEnv, mayGive, reachesSite } from './rules.ts'
import {
  approvalById,
  pageOfApprovals,
  pageOfJoinTokens,
  pageOfPrincipals,
  pageOfTokens,
  rightsOf,
} from './store.ts'
import {
  createJoinToken,
  createToken,
  type TokensDeps,
  viewOfJoinToken,
  viewOfToken,
} from './tokens.ts'

export type AccessDeps = TokensDeps & JoinDeps & ApprovalDeps

const nothing = z.strictObject({})

/** A page cut out of one item more than asked for. */
function page<R extends { id: string }, V>(rows: R[], items: number, view: (row: R) => V) {
  const shown = rows.slice(0, items)
  const last = shown.at(-1)
  return {
    items: shown.map(view),
    ...(rows.length > items && last !== undefined ? { next: last.id } : {}),
  }
}

function approvalIdFrom(text: string) {
  const id = approvalId.safeParse(text)
  if (!id.success) throw noSuchApproval()
  return id.data
}

function noSuchApproval(): SluiceError {
  return new SluiceError('request.not_found', 'no such approval')
}

export function accessRoutes(deps: AccessDeps) {
  const { database, authority } = deps
  const routes = new Hono<AccessEnv>()

  routes.get('/v1/authorities', (c) =>
    c.json({ authorities: authority.certificates.map((der) => der.toString('base64')) }),
  )

  routes.post('/v1/join', async (c) =>
    c.json(await joinAgent(deps, await readBody(c.req.raw, joinRequest)), 201),
  )

  routes.post('/v1/renew', async (c) => {
    const { csr } = await readBody(c.req.raw, renewRequest)
    return c.json(await renewByKey(deps, Buffer.from(csr, 'base64')), 201)
  })

  routes.get('/v1/whoami', (c) => {
    const { principalId, principal, rights } = c.get('access')
    return c.json({ principalId, principal, rights })
  })

  routes.get('/v1/principals', async (c) => {
    const { after, limit } = readQuery(c.req.raw, pageQuery)
    const access = c.get('access')
    const rows = await database.read(async (sql) => {
      const found = await pageOfPrincipals(sql, { after, items: limit + 1 })
      return await Promise.all(
        found.map(async (row) => ({ ...row, rights: await rightsOf(sql, row.id) })),
      )
    })
    const { items, ...rest } = page(rows, limit, ({ createdBy, ...row }): PrincipalView => ({
      ...row,
      ...(createdBy === null ? {} : { createdBy }),
    }))
    return c.json({ items: items.filter((item) => mayGive(access, item.rights)), ...rest })
  })

  routes.get('/v1/tokens', async (c) => {
    const { after, limit } = readQuery(c.req.raw, pageQuery)
    const access: Access = c.get('access')
    const rows = await database.read(async (sql) => {
      const found = await pageOfTokens(sql, { after, items: limit + 1 })
      return await Promise.all(
        found.map(async ({ token, principal }) => {
          const rights = await rightsOf(sql, principal.id)
          return { id: token.id, token, principal, rights }
        }),
      )
    })
    const { items, ...rest } = page(rows, limit, ({ token, principal, rights }) =>
      viewOfToken(token, principal, rights),
    )
    return c.json({ items: items.filter((item) => mayGive(access, item.rights)), ...rest })
  })

  routes.post('/v1/tokens', async (c) => {
    const wanted = await readBody(c.req.raw, createTokenRequest)
    const made = await createToken(deps, { access: c.get('access') }, wanted)
    return c.json(made, 'approval' in made ? 202 : 201)
  })

  routes.get('/v1/join-tokens', async (c) => {
    const { after, limit } = readQuery(c.req.raw, pageQuery)
    const { sites } = c.get('access')
    const rows = await database.read((sql) =>
      pageOfJoinTokens(sql, { after, items: limit + 1, sites }),
    )
    return c.json(page(rows, limit, viewOfJoinToken))
  })

  routes.post('/v1/join-tokens', async (c) => {
    const wanted = await readBody(c.req.raw, createJoinTokenRequest)
    return c.json(await createJoinToken(deps, { access: c.get('access') }, wanted), 201)
  })

  routes.get('/v1/approvals', async (c) => {
    const { after, limit, state } = readQuery(c.req.raw, approvalsQuery)
    const { sites } = c.get('access')
    const views = await database.read(async (sql) => {
      const rows = await pageOfApprovals(sql, { before: after, items: limit + 1, sites, state })
      return Promise.all(rows.map((row) => viewOfApproval(sql, row)))
    })
    return c.json(page(views, limit, (view) => view))
  })

  routes.get('/v1/approvals/:id', async (c) => {
    const id = approvalIdFrom(c.req.param('id'))
    const row = await database.read((sql) => approvalById(sql, id))
    if (!row || !(row.anySite || reachesSite(c.get('access'), row.site))) throw noSuchApproval()
    return c.json(await database.read((sql) => viewOfApproval(sql, row)))
  })

  for (const [word, give] of [
    ['give', true],
    ['refuse', false],
  ] as const)
    routes.post(`/v1/approvals/:id/${word}`, async (c) => {
      await readBody(c.req.raw, nothing)
      const access = c.get('access')
      const id = approvalIdFrom(c.req.param('id'))
      const row = await decideApproval(deps, { approvalId: id, access, give })
      return c.json(await database.read((sql) => viewOfApproval(sql, row)))
    })

  return routes
}

/** What the owner of the data directory may do over its Unix socket, without a token. */
export function adminRoutes(deps: TokensDeps) {
  const routes = new Hono()
  routes.onError((error) => {
    const problem = problemOf(error)
    return Response.json(problem, { status: problem.status })
  })
  routes.post('/v1/tokens', async (c) => {
    const wanted = await readBody(c.req.raw, createTokenRequest)
    return c.json(await createToken(deps, 'owner', wanted), 201)
  })
  routes.post('/v1/join-tokens', async (c) => {
    const wanted = await readBody(c.req.raw, createJoinTokenRequest)
    return c.json(await createJoinToken(deps, 'owner', wanted), 201)
  })
  return routes
}
