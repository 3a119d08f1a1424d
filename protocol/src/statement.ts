/** in-toto Statements v1 about one job: the shape inside every signature of Sluice. */
import { z } from 'zod'
import { type JobId, jobId } from './ids.ts'
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
  return z.strictObject({
    _type: z.literal(statementType),
    subject: z
      .array(
        z.strictObject({
          name: z.templateLiteral(['job:', jobId]),
          digest: z.strictObject({ sha256: sha256Hex }),
        }),
      )
      .length(1),
    predicateType: z.literal(predicateType),
    predicate,
  })
}

/** A statement of that shape. */
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
