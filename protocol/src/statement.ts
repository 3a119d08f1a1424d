/** in-toto Statements v1 about one job or one purge: the shape inside every signature of Sluice. */
import { z } from 'zod'
import { type JobId, jobId, type PurgeId, purgeId } from './ids.ts'
import { sha256Hex } from './manifest.ts'

const statementType = 'https://in-toto.io/Statement/v1' as const

/**
 * The schema of a statement whose subject is one job, named by the SHA-256 of its sealed header.
 *
 * @see github.com/in-toto/attestation, spec/v1/statement.md
 */
export function jobStatementOf<Type extends string, Predicate extends z.ZodType>(
  predicateType: Type,
  predicate: Predicate,
) {
  return statementOf(z.templateLiteral(['job:', jobId]), predicateType, predicate)
}

/** The schema of a statement whose subject is one purge; what its digest is over, each type says. */
export function purgeStatementOf<Type extends string, Predicate extends z.ZodType>(
  predicateType: Type,
  predicate: Predicate,
) {
  return statementOf(z.templateLiteral(['purge:', purgeId]), predicateType, predicate)
}

function statementOf<Name extends z.ZodType, Type extends string, Predicate extends z.ZodType>(
  name: Name,
  predicateType: Type,
  predicate: Predicate,
) {
  const about = z.strictObject({ name, digest: z.strictObject({ sha256: sha256Hex }) })
  return z.strictObject({
    _type: z.literal(statementType),
    subject: z.array(about).length(1),
    predicateType: z.literal(predicateType),
    predicate,
  })
}

/** A statement about one job, named by the SHA-256 of its sealed header. */
export function makeJobStatement<Type extends string, Predicate extends { jobId: JobId }>(
  predicateType: Type,
  predicate: Predicate,
  sealedHeaderSha256: string,
) {
  const subject = {
    name: `job:${predicate.jobId}` as const,
    digest: { sha256: sealedHeaderSha256 },
  }
  return { _type: statementType, subject: [subject], predicateType, predicate }
}

/** A statement about one purge. */
export function makePurgeStatement<Type extends string, Predicate extends { purgeId: PurgeId }>(
  predicateType: Type,
  predicate: Predicate,
  sha256: string,
) {
  const subject = { name: `purge:${predicate.purgeId}` as const, digest: { sha256 } }
  return { _type: statementType, subject: [subject], predicateType, predicate }
}
