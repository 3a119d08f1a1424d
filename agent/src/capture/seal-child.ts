/** The process that seals one job and ends: its key is made here, leaves only sealed, and dies with it. */
import { type Hash, createHash, randomFillSync } from 'node:crypto'
import type { FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { archiveContext } from '@sluice/protocol/sealing/context'
import { makeReceiverKeyPair, sealEnvelope } from '@sluice/protocol/sealing/key-envelope'
import { type Sealer, createSealer, sealedHeaderHash } from '@sluice/protocol/sealing/seal'
import { build } from '../build.ts'
import { diskEffects, isDiskFull } from '../durable-file.ts'
import { systemCallsAt } from '../sandbox.ts'
import { serveParent } from './child.ts'
import { writeArchive } from './describe.ts'
import { type Gate, passEach } from './gate.ts'
import { createScanner } from './scan.ts'
import { type FullSealOrder, type SealMessage, sealOrder } from './seal.ts'
import { identifySource, isSameSource } from './sources.ts'
import { createSpoolFile, createSpoolFolder, requireRoom, spoolFiles } from './spool.ts'

serveParent(sealOrder, (order, say) => {
  const tell = (message: SealMessage) => say(message)
  return sealJob(order, tell).catch((error: unknown) => {
    if (!isDiskFull(error)) throw error
    throw new SluiceError('spool.full', 'the spool is full', {
      retry: 'later',
      hint: 'Free space on its file system; sealing goes on by itself.',
      cause: error,
    })
  })
})

async function sealJob(order: FullSealOrder, tell: (message: SealMessage) => void): Promise<void> {
  const sourceBytes = order.sources.reduce((sum, source) => sum + source.bytes, 0)
  await checkSources(order, tell)
  await requireRoom(order.spoolDir, { bytes: sourceBytes, reserveBytes: order.reserveBytes })
  const folder = await createSpoolFolder(order.spoolDir, order.jobId)
  const { scan, ...rules } = order.gate
  let unscanned = 0
  const scanner = createScanner({
    ...{ settings: scan, isolation: order.isolation, quarantined: order.quarantined },
    infected: (infection) => tell({ type: 'infected', ...infection }),
    missed: () => (unscanned += 1),
  })
  const { isolation, ffmpeg, effort } = order
  const gate: Gate = { ...rules, isolation, ffmpeg, effort, scratchFolder: folder, scanner }
  using keys = await makeKeys(order, folder)
  const { sealer, resultPublicKey } = keys
  await using file = await createSpoolFile(folder, spoolFiles.archive)
  const spool = spoolWriter(file)
  await spool.write(sealer.header)

  let passed = 0
  const total = order.sources.length
  const media = passEach(
    order.sources.map((source) => source.path),
    gate,
    () => tell({ type: 'progress', stage: 'normalise', done: (passed += 1), total }),
  )
  tell({ type: 'progress', stage: 'normalise', done: 0, total })
  const head = {
    jobId: order.jobId,
    analyser: order.analyser,
    resultPublicKey: resultPublicKey.toString('base64url'),
    isolation: order.isolation,
    systemCalls: systemCallsAt(order.isolation),
    profile: rules.profile,
    tools: { sluice: build },
  }
  const manifest = await writeArchive({ media, head }, async (plaintext) => {
    await spool.write(sealer.update(plaintext))
    tellSealed(spool.bytes(), tell)
  }).catch((error: unknown) => {
    // Sources pass one after the other: it is the one behind the last that did.
    if (isAboutSource(error)) tell({ type: 'blamed', source: passed })
    throw error
  })
  await spool.write(sealer.final())
  await file.sync()
  await diskEffects.syncFolder(folder)
  // A source that changed under our hands may be sealed half old, half new.
  await checkSources(order, tell)
  tell({ type: 'progress', stage: 'seal', done: spool.bytes(), total: spool.bytes() })
  tell({
    type: 'sealed',
    mediaCount: manifest.media.length,
    ...(unscanned > 0 ? { unscanned } : {}),
    sealedBytes: spool.bytes(),
    sealedHeader: sealer.header.toString('base64url'),
    sealedHeaderSha256: sealedHeaderHash(sealer.header).toString('hex'),
    spoolSha256: spool.digest().digest('hex'),
  })
}

/**
 * Makes the job's key and salt and the key pair of its result. Envelope and result seed are durable
 * before the first byte of ciphertext: what is sealed can be opened by someone, or is nothing.
 */
async function makeKeys(
  order: FullSealOrder,
  folder: string,
): Promise<Disposable & { sealer: Sealer; resultPublicKey: Buffer }> {
  const jobKey = randomFillSync(Buffer.allocUnsafeSlow(32))
  const { seed, publicKey } = makeReceiverKeyPair()
  try {
    const sealer = createSealer({ key: jobKey, context: archiveContext(order.jobId) })
    const envelope = sealEnvelope({
      purpose: 'job-key-escrow',
      jobId: order.jobId,
      senderId: order.agentId,
      receiveKeyId: order.receiveKeyId,
      sealedHeaderHash: sealedHeaderHash(sealer.header),
      recipient: Buffer.from(order.publicKey, 'base64url'),
      plaintext: jobKey,
    })
    await writeWhole(folder, spoolFiles.resultSeed, seed)
    await writeWhole(folder, spoolFiles.envelope, envelope)
    await diskEffects.syncFolder(folder)
    const dispose = () => sealer[Symbol.dispose]()
    return { sealer, resultPublicKey: publicKey, [Symbol.dispose]: dispose }
  } finally {
    jobKey.fill(0)
    seed.fill(0)
  }
}

async function writeWhole(folder: string, name: string, bytes: Buffer): Promise<void> {
  await using file = await createSpoolFile(folder, name)
  await file.writeFile(bytes)
  await file.sync()
}

/** Writes in order and keeps count and digest of what was written. */
function spoolWriter(file: FileHandle) {
  const digest: Hash = createHash('sha256')
  let written = 0
  return {
    async write(bytes: Buffer): Promise<void> {
      if (bytes.length === 0) return
      digest.update(bytes)
      await file.writeFile(bytes)
      written += bytes.length
    },
    bytes: () => written,
    digest: () => digest,
  }
}

/** Sources must still be the files that were submitted. */
async function checkSources(
  order: FullSealOrder,
  tell: (message: SealMessage) => void,
): Promise<void> {
  for (const [place, source] of order.sources.entries()) {
    const now = await identifySource(source.path).catch((error: unknown) => {
      tell({ type: 'blamed', source: place })
      throw error
    })
    if (isSameSource(now, source)) continue
    tell({ type: 'blamed', source: place })
    throw new SluiceError(
      'media.changed',
      `${path.basename(source.path)} has changed since it was submitted`,
      {
        hint: 'Submit it again once nothing writes to it any more.',
      },
    )
  }
}

/** Whether a failure is one of the source that was worked on, and not of this host. */
function isAboutSource(error: unknown): boolean {
  return isSluiceError(error) && /^(?:media|scan)\./.test(error.code)
}

let toldAtMs = 0
/** At most ten times a second; how large it gets is known only at the end. */
function tellSealed(bytes: number, tell: (message: SealMessage) => void): void {
  const nowMs = performance.now()
  if (nowMs - toldAtMs < 100) return
  toldAtMs = nowMs
  tell({ type: 'progress', stage: 'seal', done: bytes, total: 0 })
}
