/** The process that opens one result and ends: checks who signed it for which lease before a byte is kept. */
import { type KeyObject, X509Certificate, createHash } from 'node:crypto'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { decodeSignedResult, result, resultStatement } from '@sluice/protocol/result'
import { verifyStatement } from '@sluice/protocol/sealing/dsse'
import { openEnvelope } from '@sluice/protocol/sealing/key-envelope'
import { writeDurably } from '../durable-file.ts'
import { serveParent } from './child.ts'
import { type OpenResultOrder, openResultOrder } from './open-result.ts'
import { spoolFiles, spoolFolder } from './spool.ts'

serveParent(openResultOrder, openOne)

async function openOne(order: OpenResultOrder): Promise<void> {
  if (order.sealedResult.byteLength > limits.sealedResultBytesMax)
    throw new SluiceError('result.too_large', 'the sealed result is too large')
  const seedFile = path.join(spoolFolder(order.spoolDir, order.jobId), spoolFiles.resultSeed)
  using seed = await readSecretFile(seedFile, 32)
  const opened = openEnvelope({
    purpose: 'result',
    jobId: order.jobId,
    nodeId: order.nodeId,
    leaseId: order.lease.leaseId,
    seed: seed.bytes,
    envelope: order.sealedResult,
  })
  try {
    const { finishedAtMs, value } = checkResult(order, opened)
    const { jobId, nodeId, sources } = order
    const kept = { jobId, finishedAtMs, nodeId, sources, ...value }
    await writeDurably(order.resultPath, Buffer.from(`${JSON.stringify(kept, null, 2)}\n`))
  } finally {
    opened.fill(0)
  }
}

/** @throws SluiceError `result.forged` unless the lease's own node signed exactly this result. */
function checkResult(order: OpenResultOrder, opened: Buffer) {
  const signed = decodeSignedResult(opened)
  const node = nodeCertificate(order, Buffer.from(signed.certificate))
  let envelope: unknown
  try {
    envelope = JSON.parse(Buffer.from(signed.statement).toString('utf8'))
  } catch (cause) {
    throw forged('carries no signed statement', cause)
  }
  const statement = resultStatement.safeParse(verifiedStatement(envelope, node.publicKey))
  if (!statement.success) throw forged('carries another statement', statement.error)
  const { predicate, subject } = statement.data
  const { lease } = order
  const about =
    predicate.jobId === order.jobId &&
    predicate.nodeId === order.nodeId &&
    predicate.leaseId === lease.leaseId &&
    predicate.fence === lease.fence &&
    subject[0]?.name === `job:${order.jobId}` &&
    subject[0].digest.sha256 === order.sealedHeaderSha256
  if (!about) throw forged('is signed for another job, lease or archive')
  if (predicate.resultSha256 !== createHash('sha256').update(signed.result).digest('hex'))
    throw forged('is not the one that was signed')
  const { finishedAtMs } = predicate
  if (finishedAtMs < node.validFromDate.getTime() || finishedAtMs > node.validToDate.getTime())
    throw forged('was signed outside the life of the certificate of its node')
  return { finishedAtMs, value: parseResult(order, signed.result) }
}

function verifiedStatement(envelope: unknown, publicKey: KeyObject): unknown {
  try {
    const payloadType = 'application/vnd.sluice.result.v1+json'
    return verifyStatement(envelope, { payloadType, publicKey })
  } catch (cause) {
    throw forged('is not signed by the key of its node', cause)
  }
}

function parseResult(order: OpenResultOrder, bytes: Uint8Array) {
  let value: unknown
  try {
    value = JSON.parse(Buffer.from(bytes).toString('utf8'))
  } catch (cause) {
    throw forged('is not JSON', cause)
  }
  const parsed = result.safeParse(value)
  if (!parsed.success || parsed.data.analyser !== order.analyser)
    throw forged('is of another shape or analyser', parsed.error)
  return parsed.data
}

/** OID of TLS client authentication, RFC 5280 section 4.2.1.12. */
const clientAuthentication = '1.3.6.1.5.5.7.3.2'

function nodeCertificate(order: OpenResultOrder, der: Buffer): X509Certificate {
  let node: X509Certificate
  try {
    node = new X509Certificate(der)
  } catch (cause) {
    throw forged('carries no certificate', cause)
  }
  const authorities = order.authorities.map((pem) => new X509Certificate(pem))
  const trusted = authorities.some(
    (authority) => node.checkIssued(authority) && node.verify(authority.publicKey),
  )
  if (!trusted) throw forged('is signed under an authority that is not trusted')
  const names = node.subjectAltName?.split(', ') ?? []
  const isNode =
    names.includes(`URI:sluice://agent/gpu/${order.nodeId}`) &&
    node.subject.split('\n').includes(`CN=${order.nodeId}`) &&
    node.keyUsage.includes(clientAuthentication)
  if (!isNode) throw forged('is not signed by a GPU node of that name')
  return node
}

function forged(what: string, cause?: unknown): SluiceError {
  return new SluiceError('result.forged', `the result ${what}`, {
    hint: 'It was not kept. Look at the audit log of the control plane: someone else made it.',
    cause,
  })
}
