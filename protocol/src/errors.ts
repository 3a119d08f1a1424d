/** Every expected failure of Sluice: one class, one closed list of codes that scripts may match. */

/**
 * The codes, `area.what`. A code once released keeps its meaning; texts may change.
 * Each code's meaning is documented in `docs/operate/errors.md`, and a test compares the two.
 */
export const errorCodes = [
  // sealing
  'seal.truncated',
  'seal.wrong_key',
  'seal.tampered',
  'seal.chunk_reused',
  'seal.bad_input',
  'seal.finished',
  'seal.engine_missing',
  'envelope.refused',
  'envelope.bad_input',
  // archive and manifest
  'archive.malformed',
  'archive.mismatch',
  'manifest.invalid',
  // media gate
  'media.unsupported',
  'media.corrupt',
  'media.too_large',
  'media.empty',
  'media.not_a_file',
  'media.not_clean',
  'media.decoder_missing',
  'media.decoder_failed',
  'media.timeout',
  'media.changed',
  'media.infected',
  'media.name_mismatch',
  'sandbox.missing',
  // scan
  'scan.unavailable',
  'scan.stale',
  'scan.unsafe',
  'scan.failed',
  'scan.too_large',
  // spool, transfer
  'spool.no_receive_key',
  'spool.full',
  'spool.damaged',
  'upload.refused',
  'upload.gone',
  'download.refused',
  'download.mismatch',
  'object.too_large',
  // storage
  'store.unreachable',
  'store.refused',
  'store.not_found',
  'store.digest_mismatch',
  'store.insecure',
  'store.locked',
  'store.replicated',
  'store.claimed',
  // jobs and leases
  'job.not_found',
  'job.wrong_state',
  'job.lost',
  'job.failed',
  'job.held',
  'lease.stale',
  'lease.expired',
  'lease.declined',
  'lease.none',
  'analysis.failed',
  'analysis.timeout',
  'analysis.output_too_large',
  'analysis.bad_output',
  'analyser.unknown',
  'result.forged',
  'result.too_large',
  'result.not_found',
  'wipe.incomplete',
  // keys
  'keys.destroyed',
  'keys.no_epoch',
  'keys.damaged',
  'keys.escrow_mismatch',
  'keys.unavailable',
  // node and host
  'node.swap_possible',
  'node.core_dumps',
  'host.unsafe_file',
  'host.disk_full',
  // channel
  'channel.malformed',
  'channel.too_large',
  'channel.closed',
  'channel.timeout',
  'version.unsupported',
  // identity and access
  'join.refused',
  'join.wrong_authority',
  'identity.missing',
  'identity.revoked',
  'identity.unknown',
  'identity.expired',
  'access.unauthenticated',
  'access.forbidden',
  'token.invalid',
  'approval.needed',
  'approval.refused',
  // evidence
  'evidence.untrusted',
  'evidence.invalid',
  'evidence.not_canonical',
  'evidence.incomplete',
  // alerts and audit sink
  'alert.undelivered',
  'audit_sink.failed',
  // requests, configuration, command line
  'request.invalid',
  'request.conflict',
  'request.not_found',
  'request.too_large',
  'request.rate_limited',
  'config.invalid',
  'usage',
  'control_plane.unreachable',
  'agent.unreachable',
  'database.newer',
  'database.damaged',
  'internal',
] as const

export type ErrorCode = (typeof errorCodes)[number]

export type SluiceErrorOptions = {
  /** `later`: the same call may succeed by itself after a while; `never`: something must change first. */
  retry?: 'never' | 'later'
  /** One sentence that tells an operator what to do next. */
  hint?: string
  cause?: unknown
}

/**
 * An expected failure. Bugs are not this class: they are assertions, and end the process.
 * Neither message nor hint may hold a key, a credential or the content of a medium.
 */
export class SluiceError extends Error {
  readonly code: ErrorCode
  readonly retry: 'never' | 'later'
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: SluiceErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.name = 'SluiceError'
    this.code = code
    this.retry = options.retry ?? 'never'
    this.hint = options.hint
  }
}

/** Whether `error` is an expected failure, and with `code` given, that very one. */
export function isSluiceError(error: unknown, code?: ErrorCode): error is SluiceError {
  return error instanceof SluiceError && (code === undefined || error.code === code)
}
