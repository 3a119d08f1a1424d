/** Reads what an API request brings, strictly and within bounds, and says what was wrong with it. */
import type { z } from 'zod'
import type { ProblemDocument } from '@sluice/protocol/api'
import { type ErrorCode, SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

/**
 * The JSON body of a request; an absent one counts as `{}`.
 *
 * @throws SluiceError `request.invalid` naming the first thing wrong, `request.too_large`.
 */
export async function readBody<T extends z.ZodType>(
  request: Request,
  schema: T,
): Promise<z.output<T>> {
  const text = (await readBytes(request)).toString('utf8')
  const type = request.headers.get('content-type')
  if (text !== '' && !/^application\/json(;|$)/i.test(type ?? ''))
    throw new SluiceError('request.invalid', 'the body is not application/json')
  let value: unknown
  try {
    value = text === '' ? {} : JSON.parse(text)
  } catch (cause) {
    throw new SluiceError('request.invalid', 'the body is not JSON', { cause })
  }
  return checked(schema, value, 'body')
}

/** The query of a request; a name given twice is refused. */
export function readQuery<T extends z.ZodType>(request: Request, schema: T): z.output<T> {
  const values: Record<string, string> = {}
  for (const [name, value] of new URL(request.url).searchParams) {
    if (name in values) throw new SluiceError('request.invalid', `query: ${name} is given twice`)
    values[name] = value
  }
  return checked(schema, values, 'query')
}

function checked<T extends z.ZodType>(schema: T, value: unknown, where: string): z.output<T> {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  const at = [where, ...(issue?.path ?? [])].map(String).join('.')
  throw new SluiceError('request.invalid', `${at}: ${issue?.message ?? 'invalid'}`, {
    hint: 'GET /v1/openapi.json describes every request.',
  })
}

/** @throws SluiceError `request.too_large` as soon as the body is. */
export async function readBytes(request: Request): Promise<Buffer> {
  if (request.body === null) return Buffer.alloc(0)
  const pieces: Uint8Array[] = []
  let bytes = 0
  for await (const piece of request.body) {
    bytes += piece.byteLength
    if (bytes > limits.requestBodyBytesMax) throw bodyTooLarge()
    pieces.push(piece)
  }
  return Buffer.concat(pieces)
}

/** What a body beyond `limits.requestBodyBytesMax` is answered with. */
export function bodyTooLarge(): SluiceError {
  return new SluiceError(
    'request.too_large',
    `the body is larger than ${limits.requestBodyBytesMax} bytes`,
  )
}

/** HTTP status codes of RFC 9110 by our codes; by area where not named. */
const statusByCode: Partial<Record<ErrorCode, number>> = {
  'access.unauthenticated': 401,
  'access.forbidden': 403,
  'join.refused': 403,
  'identity.revoked': 403,
  'identity.unknown': 403,
  'request.invalid': 400,
  'token.invalid': 400,
  'request.not_found': 404,
  'job.not_found': 404,
  'result.not_found': 404,
  'approval.needed': 403,
  'approval.refused': 409,
  'job.held': 409,
  'request.conflict': 409,
  'job.wrong_state': 409,
  'job.lost': 409,
  'lease.stale': 409,
  'request.too_large': 413,
  'request.rate_limited': 429,
  'store.unreachable': 503,
  'host.disk_full': 503,
  'keys.unavailable': 503,
}

const titles: Record<number, string> = {
  400: 'Bad Request',
  401: 'Unauthorized',
  403: 'Forbidden',
  404: 'Not Found',
  409: 'Conflict',
  413: 'Content Too Large',
  429: 'Too Many Requests',
  500: 'Internal Server Error',
  503: 'Service Unavailable',
}

/**
 * The answer to a failed request (RFC 9457). A failure that is no `SluiceError` tells nothing of
 * itself to the outside.
 */
export function problemOf(error: unknown): ProblemDocument {
  const known = error instanceof SluiceError
  const status = known ? (statusByCode[error.code] ?? 500) : 500
  return {
    type: 'about:blank',
    title: titles[status] ?? 'Error',
    status,
    detail: known ? error.message : 'something went wrong inside; the log says what',
    code: known ? error.code : 'internal',
    ...(known && error.hint !== undefined ? { hint: error.hint } : {}),
    retry: known ? error.retry : 'later',
  }
}
