/** Describes the API as OpenAPI 3.1, from the access table and the schemas that check every request. */
import { z } from 'zod'
import {
  auditSinkView,
  auditVerdict,
  authoritiesReply,
  createdJoinToken,
  createdToken,
  createJoinTokenRequest,
  createTokenRequest,
  joinReply,
  joinRequest,
  renewReply,
  renewRequest,
  joinTokenView,
  pageOf,
  pageQuery,
  principalView,
  problemDocument,
  statusReply,
  tokenView,
} from '@sluice/protocol/api'
import {
  agentsQuery,
  agentView,
  certificateEntry,
  changeAgentRequest,
  jobDetail,
  jobsQuery,
  jobView,
} from '@sluice/protocol/api-fleet'
import {
  approvalAsked,
  approvalsQuery,
  approvalView,
  reasonRequest,
} from '@sluice/protocol/api-approvals'
import { alertsQuery, alertTestReply, alertView } from '@sluice/protocol/api-alerts'
import { dutyView, obligationsQuery } from '@sluice/protocol/api-obligations'
import { purgeDetail, purgePreview, purgeRequest, purgeView } from '@sluice/protocol/api-purge'
import {
  revocationDetail,
  revocationPreview,
  revocationRequest,
  revocationView,
} from '@sluice/protocol/api-revocations'
import { findingsQuery, findingView, sweepRequest, sweepView } from '@sluice/protocol/api-sweeps'
import { authorityView, retireRequest, rotateRequest } from '@sluice/protocol/api-authority'
import { auditEvent } from '@sluice/protocol/audit-event'
import { routeRules } from './access/rules.ts'

/** What goes in and out of one route. */
type RouteShape = {
  query?: z.ZodType
  body?: z.ZodType
  reply?: z.ZodType
  /** Another media type than JSON. */
  replyType?: string
}

const nothing = z.strictObject({})

/** By `METHOD path`, as in the access table. */
const routeShapes: Readonly<Record<string, RouteShape>> = {
  'GET /healthz': { reply: z.strictObject({ ok: z.literal(true) }) },
  'GET /v1/authorities': { reply: authoritiesReply },
  'POST /v1/join': { body: joinRequest, reply: joinReply },
  'POST /v1/renew': { body: renewRequest, reply: renewReply },
  'GET /v1/status': { reply: statusReply },
  'GET /v1/tokens': { query: pageQuery, reply: pageOf(tokenView) },
  'POST /v1/tokens': { body: createTokenRequest, reply: z.union([createdToken, approvalAsked]) },
  'POST /v1/tokens/:id/revoke': { body: nothing, reply: tokenView },
  'GET /v1/principals': { query: pageQuery, reply: pageOf(principalView) },
  'GET /v1/approvals': { query: approvalsQuery, reply: pageOf(approvalView) },
  'GET /v1/approvals/:id': { reply: approvalView },
  'POST /v1/approvals/:id/give': { body: nothing, reply: approvalView },
  'POST /v1/approvals/:id/refuse': { body: nothing, reply: approvalView },
  'GET /v1/join-tokens': { query: pageQuery, reply: pageOf(joinTokenView) },
  'POST /v1/join-tokens': { body: createJoinTokenRequest, reply: createdJoinToken },
  'POST /v1/join-tokens/:id/revoke': { body: nothing, reply: joinTokenView },
  'GET /v1/obligations': { query: obligationsQuery, reply: pageOf(dutyView) },
  'GET /v1/alerts': { query: alertsQuery, reply: pageOf(alertView) },
  'POST /v1/alerts/test': { body: nothing, reply: alertTestReply },
  'GET /v1/audit': {
    query: pageQuery,
    reply: pageOf(z.strictObject({ ...auditEvent.shape, sha256: z.string() })),
  },
  'GET /v1/audit/verify': { reply: auditVerdict },
  'GET /v1/audit/sink': { reply: auditSinkView },
  'GET /v1/jobs/:id/events': { replyType: 'text/event-stream' },
  'GET /v1/jobs/:id/result': { replyType: 'application/octet-stream' },
  'GET /v1/jobs': { query: jobsQuery, reply: pageOf(jobView) },
  'GET /v1/jobs/:id': { reply: jobDetail },
  'POST /v1/jobs/:id/retry': { body: nothing, reply: jobView },
  'POST /v1/jobs/:id/hold': { body: reasonRequest, reply: jobView },
  'POST /v1/jobs/:id/lift': { body: reasonRequest, reply: approvalAsked },
  'POST /v1/jobs/:id/delete': { body: nothing, reply: jobView },
  'POST /v1/purges/:id/write-off': { body: reasonRequest, reply: approvalAsked },
  'POST /v1/jobs/:id/write-off': { body: reasonRequest, reply: approvalAsked },
  'GET /v1/jobs/:id/write-off': { replyType: 'application/vnd.dsse.envelope.v1+json' },
  'GET /v1/jobs/:id/certificate': { replyType: 'application/vnd.dsse.envelope.v1+json' },
  'GET /v1/certificates': { query: pageQuery, reply: pageOf(certificateEntry) },
  'POST /v1/purges': { body: purgeRequest, reply: z.union([purgePreview, purgeDetail]) },
  'GET /v1/purges': { query: pageQuery, reply: pageOf(purgeView) },
  'GET /v1/purges/:id': { reply: purgeDetail },
  'GET /v1/purges/:id/events': { replyType: 'text/event-stream' },
  'GET /v1/purges/:id/report': { replyType: 'application/vnd.dsse.envelope.v1+json' },
  'GET /v1/purges/:id/bundle': { replyType: 'application/x-tar' },
  'POST /v1/revocations': {
    body: revocationRequest,
    reply: z.union([revocationPreview, revocationDetail]),
  },
  'GET /v1/revocations': { query: pageQuery, reply: pageOf(revocationView) },
  'GET /v1/revocations/:id': { reply: revocationDetail },
  'GET /v1/authority': { reply: authorityView },
  'POST /v1/authority/rotate': { body: rotateRequest, reply: authorityView },
  'POST /v1/authority/retire': { body: retireRequest, reply: authorityView },
  'POST /v1/sweeps': { body: sweepRequest, reply: sweepView },
  'GET /v1/sweeps': { query: pageQuery, reply: pageOf(sweepView) },
  'GET /v1/sweeps/:id': { reply: sweepView },
  'GET /v1/sweep-findings': { query: findingsQuery, reply: pageOf(findingView) },
  'POST /v1/sweep-findings/:id/delete': { body: nothing, reply: findingView },
  'POST /v1/sweep-findings/:id/keep': { body: nothing, reply: findingView },
  'GET /v1/agents': { query: agentsQuery, reply: pageOf(agentView) },
  'GET /v1/agents/:id': { reply: agentView },
  'POST /v1/agents/:id': { body: changeAgentRequest, reply: agentView },
  'POST /v1/agents/:id/revoke': { body: nothing, reply: agentView },
}

/** The document behind `GET /v1/openapi.json`. */
export function openApiDocument(build: string): Record<string, unknown> {
  const paths: Record<string, Record<string, unknown>> = {}
  for (const rule of routeRules) {
    const shape = routeShapes[`${rule.method} ${rule.path}`] ?? {}
    const path = rule.path.replaceAll(/:(\w+)/g, '{$1}')
    const operations = paths[path] ?? {}
    paths[path] = operations
    operations[rule.method.toLowerCase()] = {
      summary: rule.about,
      ...(rule.may === 'public'
        ? { security: [] }
        : { description: `Roles: ${rule.may.join(', ')}.` }),
      parameters: [...pathParameters(rule.path), ...queryParameters(shape.query)],
      ...(shape.body === undefined
        ? {}
        : { requestBody: { content: { 'application/json': { schema: schemaOf(shape.body) } } } }),
      responses: {
        '2XX': {
          description: 'Done.',
          content: {
            [shape.replyType ?? 'application/json']: {
              schema: shape.reply === undefined ? {} : schemaOf(shape.reply),
            },
          },
        },
        default: {
          description: 'What went wrong, and what to do.',
          content: { 'application/problem+json': { schema: schemaOf(problemDocument) } },
        },
      },
    }
  }
  return {
    openapi: '3.1.0',
    info: { title: 'Sluice', version: build },
    security: [{ token: [] }],
    components: { securitySchemes: { token: { type: 'http', scheme: 'bearer' } } },
    paths,
  }
}

function schemaOf(schema: z.ZodType): unknown {
  const { $schema: _dialect, ...rest } = z.toJSONSchema(schema, {
    io: 'input',
    unrepresentable: 'any',
  })
  return rest
}

function pathParameters(path: string): unknown[] {
  return [...path.matchAll(/:(\w+)/g)].map(([, name]) => ({
    name,
    in: 'path',
    required: true,
    schema: { type: 'string' },
  }))
}

function queryParameters(query: z.ZodType | undefined): unknown[] {
  if (!(query instanceof z.ZodObject)) return []
  return Object.entries(query.shape).map(([name, schema]) => ({
    name,
    in: 'query',
    required: false,
    schema: schemaOf(schema as z.ZodType),
  }))
}
