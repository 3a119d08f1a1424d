/** Results: what an analyser says, and how a node's signature travels inside the sealed form. */
import { z } from 'zod'
import { SluiceError } from './errors.ts'
import { agentId, jobId, leaseId } from './ids.ts'
import { limits } from './limits.ts'
import { analyserName, mediumName, sha256Hex } from './manifest.ts'
import { jobStatementOf, makeJobStatement } from './statement.ts'

export const result = z.strictObject({
  schema: z.literal('sluice-result/1'),
  analyser: analyserName,
  version: z.string().max(limits.nameCharsMax),
  media: z.array(z.strictObject({ name: mediumName, output: z.json() })).max(limits.mediaPerJobMax),
})
export type Result = z.infer<typeof result>

/** What the node signs: which lease made which result of which sealed archive. */
export const resultStatement = jobStatementOf(
  'urn:sluice:result:1',
  z.strictObject({
    jobId,
    leaseId,
    fence: z.int().positive(),
    nodeId: agentId,
    resultSha256: sha256Hex,
    finishedAtMs: z.int().nonnegative(),
  }),
)
export type ResultStatement = z.infer<typeof resultStatement>

/** The statement of a result; `sealedHeaderSha256` names the archive it was made from. */
export function resultStatementOf(
  predicate: ResultStatement['predicate'],
  sealedHeaderSha256: string,
) {
  return makeJobStatement('urn:sluice:result:1', predicate, sealedHeaderSha256)
}

/** The three pieces that are sealed together for the capture host. */
export type SignedResult = {
  /** DSSE envelope of a `ResultStatement`, as JSON bytes. */
  statement: Uint8Array
  /** The node's certificate, DER. */
  certificate: Uint8Array
  /** A `Result`, as JSON bytes. */
  result: Uint8Array
}

/** `u32le statement bytes | statement | u32le certificate bytes | certificate | result` */
export function encodeSignedResult(signed: SignedResult): Buffer {
  if (signed.result.byteLength > limits.resultBytesMax)
    throw new SluiceError('result.too_large', `result of ${signed.result.byteLength} bytes`, {
      hint: `An analyser may answer at most ${limits.resultBytesMax} bytes.`,
    })
  const length = (bytes: Uint8Array) => {
    const prefix = Buffer.alloc(4)
    prefix.writeUInt32LE(bytes.byteLength)
    return prefix
  }
  return Buffer.concat([
    length(signed.statement),
    signed.statement,
    length(signed.certificate),
    signed.certificate,
    signed.result,
  ])
}

/** @throws SluiceError `result.forged` when the bytes are not of that shape. */
export function decodeSignedResult(bytes: Buffer): SignedResult {
  const [statement, afterStatement] = piece(bytes, 0)
  const [certificate, afterCertificate] = piece(bytes, afterStatement)
  return { statement, certificate, result: bytes.subarray(afterCertificate) }
}

function piece(bytes: Buffer, offset: number): [Buffer, number] {
  if (bytes.length < offset + 4)
    throw new SluiceError('result.forged', 'the sealed result has no signature')
  const end = offset + 4 + bytes.readUInt32LE(offset)
  if (end > bytes.length) throw new SluiceError('result.forged', 'the sealed result is cut short')
  return [bytes.subarray(offset + 4, end), end]
}
