/** Decides who may do what: the one table of roles by route, printed into the docs and tested. */
import type { Right, Role } from '@sluice/protocol/api'
import type { PrincipalId, TokenId } from '@sluice/protocol/ids'

/** `public`: without a token. Everything else: principals that hold one of these roles. */
export type RouteRule = {
  method: 'GET' | 'POST'
  /** As Hono writes it; `:name` stands for one segment. */
  path: string
  may: 'public' | readonly Role[]
  /** One line for the docs and the OpenAPI document. */
  about: string
  /** Its answer holds a secret that is shown once and stored nowhere. */
  secretAnswer?: true
}

const everyone: readonly Role[] = ['viewer', 'operator', 'security']

/**
 * Every route of the operator listener. A request that fits none is not found, whatever is mounted
 * behind. Roles do not nest: what a role may do is written in each row.
 */
export const routeRules: readonly RouteRule[] = [
  { method: 'GET', path: '/healthz', may: 'public', about: 'Whether this control plane answers.' },
  {
    method: 'GET',
    path: '/v1/openapi.json',
    may: 'public',
    about: 'This API as an OpenAPI 3.1 document.',
  },
  {
    method: 'GET',
    path: '/v1/authorities',
    may: 'public',
    about: 'The certificates of all trusted authorities.',
  },
  {
    method: 'POST',
    path: '/v1/join',
    may: 'public',
    about: 'Trades a join token for an agent certificate.',
    secretAnswer: true,
  },
  {
    method: 'POST',
    path: '/v1/renew',
    may: 'public',
    about: 'Renews the certificate of an agent that was away for longer than it lived.',
    secretAnswer: true,
  },
  { method: 'GET', path: '/v1/status', may: everyone, about: 'State of the control plane.' },
  { method: 'GET', path: '/v1/whoami', may: everyone, about: 'The principal behind the token.' },

  { method: 'GET', path: '/v1/tokens', may: ['security'], about: 'API tokens, without secrets.' },
  {
    method: 'POST',
    path: '/v1/tokens',
    may: ['security'],
    about: 'Makes an API token, and its principal when that is new.',
    secretAnswer: true,
  },
  {
    method: 'POST',
    path: '/v1/tokens/:id/revoke',
    may: ['security'],
    about: 'Ends an API token at once.',
  },
  {
    method: 'GET',
    path: '/v1/principals',
    may: ['security'],
    about: 'Named humans and machines with their rights.',
  },
  {
    method: 'GET',
    path: '/v1/approvals',
    may: ['security'],
    about: 'What waits, or waited, for a second person; newest first.',
  },
  { method: 'GET', path: '/v1/approvals/:id', may: ['security'], about: 'One approval.' },
  {
    method: 'POST',
    path: '/v1/approvals/:id/give',
    may: ['security'],
    about: 'Agrees as the second person; what was asked is done at once.',
  },
  {
    method: 'POST',
    path: '/v1/approvals/:id/refuse',
    may: ['security'],
    about: 'Refuses what was asked, or withdraws it.',
  },
  {
    method: 'GET',
    path: '/v1/join-tokens',
    may: ['operator', 'security'],
    about: 'Join tokens, without secrets.',
  },
  {
    method: 'POST',
    path: '/v1/join-tokens',
    may: ['operator'],
    about: 'Makes a single-use token with which one agent joins.',
    secretAnswer: true,
  },
  {
    method: 'POST',
    path: '/v1/join-tokens/:id/revoke',
    may: ['operator', 'security'],
    about: 'Ends a join token at once.',
  },

  { method: 'GET', path: '/v1/agents', may: everyone, about: 'Agents.' },
  { method: 'GET', path: '/v1/agents/:id', may: everyone, about: 'One agent.' },
  {
    method: 'POST',
    path: '/v1/agents/:id',
    may: ['operator'],
    about: 'Changes what an agent may do.',
  },
  {
    method: 'POST',
    path: '/v1/agents/:id/revoke',
    may: ['security'],
    about: 'Locks an agent out at once and freezes its stored jobs.',
  },

  { method: 'GET', path: '/v1/jobs', may: everyone, about: 'Jobs.' },
  { method: 'GET', path: '/v1/jobs/:id', may: everyone, about: 'One job.' },
  {
    method: 'GET',
    path: '/v1/jobs/:id/events',
    may: everyone,
    about: 'What happened to a job, as server-sent events; resumes by Last-Event-ID.',
  },
  {
    method: 'POST',
    path: '/v1/jobs/:id/retry',
    may: ['operator'],
    about: 'Lets a failed job run again.',
  },
  {
    method: 'POST',
    path: '/v1/jobs/:id/release',
    may: ['security'],
    about: 'Lets a frozen job go on.',
  },
  {
    method: 'POST',
    path: '/v1/jobs/:id/hold',
    may: ['security'],
    about: 'Puts a job under legal hold: nothing of it is deleted.',
  },
  {
    method: 'POST',
    path: '/v1/jobs/:id/lift',
    may: ['security'],
    about: 'Asks for the second person who lifts a legal hold.',
  },
  {
    method: 'POST',
    path: '/v1/jobs/:id/delete',
    may: ['operator', 'security'],
    about: 'Ends a job and deletes every copy and key.',
  },
  {
    method: 'POST',
    path: '/v1/jobs/:id/write-off',
    may: ['security'],
    about: 'Asks for the second person who gives up on holders that never came back.',
  },
  {
    method: 'GET',
    path: '/v1/jobs/:id/write-off',
    may: everyone,
    about: 'The report of a job that was written off; it is no certificate.',
  },
  {
    method: 'GET',
    path: '/v1/jobs/:id/result',
    may: ['operator'],
    about: 'The sealed result; only the capture agent can open it.',
  },
  {
    method: 'GET',
    path: '/v1/jobs/:id/certificate',
    may: everyone,
    about: 'The deletion certificate of a job.',
  },
  {
    method: 'GET',
    path: '/v1/certificates',
    may: everyone,
    about: 'Deletion certificates, newest last.',
  },

  {
    method: 'POST',
    path: '/v1/purges',
    may: ['security'],
    about: 'Destroys every copy and key of a scope at once, or shows what that would hit.',
  },
  { method: 'GET', path: '/v1/purges', may: everyone, about: 'Purges, newest first.' },
  { method: 'GET', path: '/v1/purges/:id', may: everyone, about: 'How far a purge has come.' },
  {
    method: 'GET',
    path: '/v1/purges/:id/events',
    may: everyone,
    about: 'How far a purge comes, as server-sent events.',
  },
  {
    method: 'GET',
    path: '/v1/purges/:id/report',
    may: everyone,
    about: 'The certificate of a purge, or a signed report of what is still open.',
  },
  {
    method: 'POST',
    path: '/v1/purges/:id/write-off',
    may: ['security'],
    about: 'Asks for the second person who gives up on agents that cannot confirm a purge.',
  },
  {
    method: 'GET',
    path: '/v1/purges/:id/bundle',
    may: ['security'],
    about: 'Everything that proves a purge, as one signed tar.',
  },

  {
    method: 'GET',
    path: '/v1/authority',
    may: everyone,
    about: 'The certificate authority, and who has not adopted its successor.',
  },
  {
    method: 'POST',
    path: '/v1/authority/rotate',
    may: ['security'],
    about: 'Replaces the certificate authority; both are trusted until the old one is retired.',
  },
  {
    method: 'POST',
    path: '/v1/authority/retire',
    may: ['security'],
    about: 'Ends the trust in the authority that was replaced.',
  },
  {
    method: 'POST',
    path: '/v1/revocations',
    may: ['security'],
    about:
      'Locks out an agent, a token, a label or all grants at once, or shows what that would hit.',
  },
  {
    method: 'GET',
    path: '/v1/revocations',
    may: everyone,
    about: 'What was revoked, newest first.',
  },
  {
    method: 'GET',
    path: '/v1/revocations/:id',
    may: everyone,
    about: 'What of a revocation is in force, and what is still owed.',
  },

  {
    method: 'POST',
    path: '/v1/sweeps',
    may: ['operator', 'security'],
    about: 'Compares stores, spools, nodes and keys with the database.',
  },
  { method: 'GET', path: '/v1/sweeps', may: everyone, about: 'Sweeps, newest first.' },
  { method: 'GET', path: '/v1/sweeps/:id', may: everyone, about: 'One sweep with its counts.' },
  {
    method: 'GET',
    path: '/v1/sweep-findings',
    may: everyone,
    about: 'What sweeps found where it should not be, or missed.',
  },
  {
    method: 'POST',
    path: '/v1/sweep-findings/:id/delete',
    may: ['security'],
    about: 'Ends the quarantine of a finding at once: it is deleted.',
  },
  {
    method: 'POST',
    path: '/v1/sweep-findings/:id/keep',
    may: ['security'],
    about: 'Takes a finding out of quarantine: it stays.',
  },

  {
    method: 'GET',
    path: '/v1/obligations',
    may: everyone,
    about: 'Everything that is owed, and how far each duty has come.',
  },
  { method: 'GET', path: '/v1/alerts', may: everyone, about: 'Alerts, newest first.' },
  {
    method: 'POST',
    path: '/v1/alerts/test',
    may: ['operator', 'security'],
    about: 'Sends a test alert to the channel.',
  },
  { method: 'GET', path: '/v1/audit', may: ['security'], about: 'Audit events.' },
  {
    method: 'GET',
    path: '/v1/audit/verify',
    may: ['security'],
    about: 'Follows the chain of all audit events.',
  },
  {
    method: 'GET',
    path: '/v1/audit/sink',
    may: ['security'],
    about: 'How far the audit sink has come.',
  },
]

/** The rule of a request, or undefined when no route has that method and path. */
export function ruleOf(method: string, path: string): RouteRule | undefined {
  // A HEAD is a GET whose answer has no body.
  const wanted = method === 'HEAD' ? 'GET' : method
  return routeRules.find((rule) => rule.method === wanted && fits(rule.path, path))
}

function fits(pattern: string, path: string): boolean {
  const wanted = pattern.split('/')
  const given = path.split('/')
  if (wanted.length !== given.length) return false
  return wanted.every((part, index) => part.startsWith(':') || part === given[index])
}

/** What a principal may do on one route: everything below is bounded by `sites`. */
export type Access = {
  principalId: PrincipalId
  principal: string
  /** With which of its tokens it came in. */
  tokenId: TokenId
  /** `all`, or the sites on which it holds a role that this route asks for. */
  sites: 'all' | readonly string[]
  rights: readonly Right[]
}

/** @returns Undefined when no right lets the principal in. */
export function sitesAllowed(
  rights: readonly Right[],
  may: readonly Role[],
): Access['sites'] | undefined {
  const sites = rights.filter((right) => may.includes(right.role)).map((right) => right.site)
  if (sites.length === 0) return undefined
  return sites.includes('*') ? 'all' : [...new Set(sites)]
}

/** Whether `access` reaches what belongs to `site`. */
export function reachesSite(access: Pick<Access, 'sites'>, site: string): boolean {
  return access.sites === 'all' || access.sites.includes(site)
}

/** Whether every one of `rights` stays within the sites the giver reaches. */
export function mayGive(access: Pick<Access, 'sites'>, rights: readonly Right[]): boolean {
  return rights.every(({ site }) =>
    site === '*' ? access.sites === 'all' : reachesSite(access, site),
  )
}

/** The table for `docs/operate/roles.md`. */
export function rolesTable(): string {
  const rows = routeRules.map((rule) => {
    const marks =
      rule.may === 'public'
        ? 'no token | no token | no token'
        : everyone.map((role) => (rule.may.includes(role) ? 'yes' : '')).join(' | ')
    return `| \`${rule.method} ${rule.path}\` | ${rule.about} | ${marks} |`
  })
  return [
    '| route | what it does | viewer | operator | security |',
    '| --- | --- | --- | --- | --- |',
    ...rows,
    '',
  ].join('\n')
}

/** What the guard leaves for routes, in Hono's form. */
export type AccessEnv = {
  Variables: {
    access: Access
    /** Looks again, for answers that last: throws as soon as the token no longer counts. */
    stillAllowed: () => Promise<void>
  }
}
