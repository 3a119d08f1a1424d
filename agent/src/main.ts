/** Puts an agent together for its role and runs it until it is told to end. */
import { mkdir, readFile, stat } from 'node:fs/promises'
import { setInterval as every } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { JobId, SubmissionId } from '@sluice/protocol/ids'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { Grant } from '@sluice/protocol/messages'
import type { Supervisor } from '@sluice/protocol/process/lifecycle'
import { readSwapFacts } from '@sluice/protocol/process/swap'
import type { Log } from '@sluice/protocol/process/log'
import type { AnalyserConfig } from './analysis/analyser.ts'
import { exampleAnalyser } from './analysis/example-analyser.ts'
import { type Analysis, createAnalysis } from './analysis/pipeline.ts'
import { build } from './build.ts'
import { findFfmpeg } from './capture/find-ffmpeg.ts'
import { scanPolicyOf } from './capture/gate-policy.ts'
import { removeOldResults } from './capture/open-result.ts'
import { type Capture, createCapture } from './capture/pipeline.ts'
import { type StageCounts, isSettled, presentSubmission } from './capture/present.ts'
import { createScanner } from './capture/scan.ts'
import { watchFolders } from './capture/watch.ts'
import { type WatchedFiles, openWatchedFiles } from './capture/watched-files.ts'
import { type AgentConfig, foldersOf } from './config.ts'
import { type ControlLink, createControlLink } from './control-link.ts'
import { sweepUnfinished } from './durable-file.ts'
import { type RenewableIdentity, keepCertificateFresh, openIdentity } from './enrol.ts'
import { type AgentEvents, createEvents } from './events.ts'
import { type LockOut, createLockOut } from './lock-out.ts'
import { type Journal, openJournal } from './journal.ts'
import { type LocalRequest, openLocalSocket } from './local-socket.ts'
import { problemOf } from './problem.ts'
import { adoptAuthorities } from './adopt-authorities.ts'
import { type PurgeWork, type Purges, createPurges } from './purge.ts'
import { createReceiptOutbox } from './receipts.ts'
import { detectIsolation } from './sandbox.ts'
import { createObjectReader } from './transfer/download.ts'
import { createObjectClient } from './transfer/object-client.ts'
import { limitBandwidth } from './transfer/upload.ts'

/**
 * Runs an agent that has joined.
 *
 * @throws SluiceError `identity.missing`, `host.unsafe_file`, `request.conflict` when an agent runs
 * in the same state directory, `sandbox.missing`, `node.swap_possible`, `config.invalid`.
 */
export async function runAgent(options: {
  config: AgentConfig
  log: Log
  signal: AbortSignal
  supervisor: Supervisor
}): Promise<void> {
  const { config, signal, supervisor } = options
  const folders = foldersOf(config)
  const events = createEvents(options.log)
  await requirePrivateFolder(folders.stateDir)
  const identity = await openIdentity(folders.stateDir)
  const isolation = await detectIsolation(config.isolation)
  if (isolation === 'none') events.isolationNone()
  // Answers come once everything stands; the socket comes first because it also is the lock.
  let serve: Serve = () =>
    Promise.reject(new SluiceError('agent.unreachable', 'the agent is starting'))
  await using held = new AsyncDisposableStack()
  held.use(await openLocalSocket(folders.socket, (...asked) => serve(...asked)))
  await sweepUnfinished(folders.stateDir)
  const journal = await openJournal(folders.stateDir)
  await claimJournal(journal, identity)

  const ending = new AbortController()
  held.defer(() => ending.abort())
  const stop = AbortSignal.any([signal, ending.signal])
  const authorities = config.storageCaFile && (await readFile(config.storageCaFile, 'utf8'))
  await using client = createObjectClient({
    identity,
    connectionsMax: 2 * config.partsInParallel,
    ...(authorities ? { storageAuthorities: authorities } : {}),
  })
  const openObject = (asked: {
    grant: () => Promise<Grant>
    sealedBytes: number
    signal: AbortSignal
  }) => createObjectReader({ ...asked, client })
  let analysis: Analysis | undefined
  await using link = createControlLink({
    identity,
    journal,
    build,
    events,
    ...(identity.role === 'gpu' ? { offer: () => requireAnalysis(analysis).offer() } : {}),
  })
  const receipts = createReceiptOutbox({
    journal,
    link,
    signal: stop,
    refused: (id, problem) => events.receiptRefused(id, problem),
  })
  const lockOut = createLockOut({ journal, link, events })
  const parts: Parts = { config, identity, journal, link, events, lockOut, signal: stop }
  const shared = { link, journal, identity, receipts, openObject, isolation, events }

  const purgesFor = (work: PurgeWork) =>
    createPurges({ link, journal, identity, receipts, work, events, signal: stop })
  adoptAuthorities({ link, identity, events })

  await using roles = new AsyncDisposableStack()
  let purges: Purges
  let endRole: () => Promise<void>
  if (identity.role === 'gpu') {
    analysis = roles.use(
      await createAnalysis({
        ...shared,
        analysers: analysersOf(config),
        leasesMax: config.leasesMax,
        allowSwap: config.allowSwap,
        runtimeDirectory: folders.runtimeDir,
      }),
    )
    const running = analysis
    serve = (request, say) => answerNode(parts, running, request, say)
    endRole = () => running.endForGood()
    purges = purgesFor(running.purging)
    // What was ordered before a crash comes before everything else.
    await purges.recover()
    if (lockOut.wasLockedOut) return await lockOut.end(endRole)
    link.start()
    analysis.recover()
  } else {
    const live = createLiveProgress()
    const ffmpeg = await findFfmpeg({
      isolation,
      ...(config.ffmpegPath === undefined ? {} : { configured: config.ffmpegPath }),
    })
    if (ffmpeg) events.ffmpegFound(ffmpeg)
    else events.ffmpegMissing()
    await lookAtScanner({ config, isolation, events })
    const capture = roles.use(
      createCapture({
        ...shared,
        client,
        spoolDir: folders.spoolDir,
        resultsDir: folders.resultsDir,
        reserveBytes: config.spoolReserveBytes,
        partsInParallel: config.partsInParallel,
        ffmpeg,
        gate: config.gate,
        ...(config.bandwidthBytesPerSecond > 0
          ? { bandwidth: limitBandwidth(config.bandwidthBytesPerSecond) }
          : {}),
        progress: (progress) => live.heard(progress),
      }),
    )
    purges = purgesFor(capture.purging)
    await purges.recover()
    endRole = () => roles.disposeAsync()
    if (lockOut.wasLockedOut) return await lockOut.end(endRole)
    const watched = await openWatchedFiles(folders.stateDir, journal)
    await capture.start()
    serve = (request, say, caller) => answerCapture(parts, { capture, live }, request, say, caller)
    link.start()
    const { resultsDir } = folders
    roles.defer(keepTidy(parts, { capture, watched, isolation, resultsDir }))
  }
  const renewing = keepCertificateFresh({
    identity,
    link,
    signal: stop,
    events,
    revoked: () => lockOut.learn(),
  })

  events.started({ build, role: identity.role, agentId: identity.agentId, isolation })
  supervisor.ready(`${identity.role} agent ${identity.agentId}`)
  link.onState((state) => supervisor.status(`${state} to ${identity.agentUrl}`))
  await new Promise<void>((done) => {
    const over = AbortSignal.any([signal, lockOut.revoked])
    if (over.aborted) done()
    else over.addEventListener('abort', () => done(), { once: true })
  })
  try {
    if (lockOut.revoked.aborted) {
      supervisor.status('revoked: ending all work')
      await lockOut.end(endRole)
    }
  } finally {
    await roles.disposeAsync()
    ending.abort()
    receipts.wake()
    await Promise.all([renewing, receipts.done, purges.settled()])
  }
}

type Serve = (
  request: LocalRequest,
  say: (line: object) => void,
  caller: AbortSignal,
) => Promise<void>

type Parts = {
  config: AgentConfig
  identity: RenewableIdentity
  journal: Journal
  link: ControlLink
  events: AgentEvents
  lockOut: LockOut
  signal: AbortSignal
}

/** State lies in a folder of its own that nobody else can look into. */
async function requirePrivateFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true, mode: 0o700 })
  if (((await stat(folder)).mode & 0o077) === 0) return
  throw new SluiceError('host.unsafe_file', `${folder} is open to group or others`, {
    hint: `chmod 700 ${folder}`,
  })
}

/** A journal goes on with the agent that wrote it, and with no other. */
async function claimJournal(journal: Journal, identity: RenewableIdentity): Promise<void> {
  const owner = journal.data.agentId
  if (owner !== undefined && owner !== identity.agentId)
    throw new SluiceError('host.unsafe_file', `the journal belongs to agent ${owner}`, {
      hint: 'Each agent has a state directory of its own.',
    })
  if (owner === undefined) await journal.change((draft) => void (draft.agentId = identity.agentId))
}

function requireAnalysis(analysis: Analysis | undefined): Analysis {
  if (!analysis) throw new SluiceError('internal', 'the link began before the analysis stood')
  return analysis
}

// ---------------------------------------------------------------- capture

/**
 * A scanner that would write media to a disk, or whose word does not count, is a mistake that stops
 * the start; one that is down or stale is only said, and media wait for it.
 *
 * @throws SluiceError `scan.unsafe`.
 */
async function lookAtScanner(on: {
  config: AgentConfig
  isolation: IsolationLevel
  events: AgentEvents
}): Promise<void> {
  const { scan } = on.config.gate
  if (scanPolicyOf(scan) === 'off') return
  try {
    const facts = await createScanner({ settings: scan, isolation: on.isolation }).check()
    for (const [engine, { version }] of Object.entries(facts))
      on.events.scannerReady(engine, version)
  } catch (error) {
    if (!isSluiceError(error) || error.code === 'scan.unsafe') throw error
    on.events.scannerMissing(error)
  }
}

/** What only this process knows: the counts of stages under way, and who wants to hear of them. */
function createLiveProgress() {
  const counts = new Map<SubmissionId, StageCounts>()
  const listeners = new Set<(id: SubmissionId) => void>()
  return {
    counts,
    listeners,
    heard(progress: Parameters<Parameters<typeof createCapture>[0]['progress']>[0]): void {
      const { submissionId: id, stage, done = 0, total = 0 } = progress
      if (stage === 'over' || stage === 'refused') counts.delete(id)
      else counts.set(id, { stage, done, total })
      for (const listener of listeners) listener(id)
    },
  }
}

async function answerCapture(
  parts: Parts,
  { capture, live }: { capture: Capture; live: ReturnType<typeof createLiveProgress> },
  request: LocalRequest,
  say: (line: object) => void,
  caller: AbortSignal,
): Promise<void> {
  const { config, journal } = parts
  switch (request.type) {
    case 'submit': {
      const source = request.source ?? { action: config.sourceAction, when: config.sourceWhen }
      const moveTo = request.moveTo ?? config.moveTo
      if (source.action === 'move' && moveTo === undefined)
        throw new SluiceError('usage', 'nowhere to move the source to', {
          hint: 'Add --move-to FOLDER, or set "moveTo" in the configuration.',
        })
      const analyser = request.analyser ?? config.analyser
      for (const files of request.groups) {
        const id = await capture.submit({ files, analyser, source, moveTo, origin: 'command' })
        say({ submissionId: id, files })
      }
      return
    }
    case 'follow':
      return follow(request.submissionIds, { ...parts, capture, live, say, caller })
    case 'status': {
      const submissions = Object.keys(journal.data.submissions) as SubmissionId[]
      const views = submissions.map((id) =>
        presentSubmission(journal.data, id, live.counts.get(id)),
      )
      const { receiveKeys } = journal.data
      const quarantine = quarantineOf(journal)
      return say({
        ...statusOf(parts),
        ...{ receiveKeys: receiveKeys.length, quarantine, submissions: views },
      })
    }
    case 'results':
      for (const job of Object.values(journal.data.jobs)) {
        if (!job.resultPath || (request.jobId && request.jobId !== job.jobId)) continue
        const { jobId, resultPath, analyser, sources } = job
        say({ jobId, resultPath, analyser, files: sources.map((source) => source.path) })
      }
  }
}

/** Hash and reason of infected sources, newest first. */
function quarantineOf(journal: Journal): object[] {
  return Object.entries(journal.data.quarantine)
    .map(([sha256, { engine, finding, foundAtMs }]) => ({ sha256, engine, finding, foundAtMs }))
    .toSorted((one, other) => other.foundAtMs - one.foundAtMs)
}

/** How often a followed job is asked about at the control plane while it is out of our hands. */
const followMs = 1000

async function follow(
  ids: readonly SubmissionId[],
  options: Parts & {
    capture: Capture
    live: ReturnType<typeof createLiveProgress>
    say: (line: object) => void
    caller: AbortSignal
  },
): Promise<void> {
  const { journal, capture, live, say, caller } = options
  const open = new Set(ids)
  const told = new Map<SubmissionId, string>()
  const signal = AbortSignal.any([caller, options.signal])
  const settled = new AbortController()
  const tell = (id: SubmissionId): void => {
    if (!open.has(id)) return
    const view = presentSubmission(journal.data, id, live.counts.get(id))
    const text = JSON.stringify(view)
    if (view && told.get(id) !== text) say(view)
    told.set(id, text)
    if (!view || isSettled(view)) open.delete(id)
    if (open.size === 0) settled.abort()
  }
  live.listeners.add(tell)
  try {
    for (const id of ids) tell(id)
    const until = AbortSignal.any([signal, settled.signal])
    if (until.aborted) return
    for await (const _ of every(followMs, undefined, { signal: until })) {
      const waiting = [...open].flatMap((id) => journal.data.submissions[id]?.jobId ?? [])
      capture.refresh(waiting satisfies JobId[])
      for (const id of open) tell(id)
    }
  } catch (error) {
    if (!signal.aborted && !settled.signal.aborted) throw error
  } finally {
    live.listeners.delete(tell)
  }
}

const dayMs = 24 * 3_600_000

/** Watches folders and removes old results, until told to end. */
function keepTidy(
  parts: Parts,
  {
    capture,
    watched,
    isolation,
    resultsDir,
  }: {
    capture: Capture
    watched: WatchedFiles
    isolation: IsolationLevel
    resultsDir: string
  },
): () => Promise<void> {
  const { config, journal, events } = parts
  const ending = new AbortController()
  const { signal } = ending
  const sweep = () =>
    removeOldResults(resultsDir, { keepDays: config.resultsKeepDays, nowMs: Date.now() })
  const tidying = (async () => {
    await sweep()
    try {
      for await (const _ of every(dayMs, undefined, { signal, ref: false })) await sweep()
    } catch (error) {
      if (!signal.aborted) throw error
    }
  })()
  const watching = watchFolders({
    ...{ journal, watched, capture, signal },
    folders: config.watch,
    pollMs: config.watchPollMs,
    pendingMax: config.watchPendingMax,
    isolation,
    duplicates: (count) => events.watchDuplicates(count),
    holding: (pending) => events.watchHolding(pending),
    failed: (folder, problem) => events.watchFailed(folder, problem),
  })
  return async () => {
    ending.abort()
    await Promise.all([tidying, watching])
  }
}

// ---------------------------------------------------------------- GPU node

/** Those of the operator, and the one that comes with Sluice unless its name is taken. */
function analysersOf(config: AgentConfig): AnalyserConfig[] {
  const { analysers, ffmpegPath } = config
  const offered = config.exampleAnalyser && !analysers.some(({ name }) => name === 'example')
  return offered ? [...analysers, exampleAnalyser({ ffmpegPath })] : analysers
}

async function answerNode(
  parts: Parts,
  analysis: Analysis,
  request: LocalRequest,
  say: (line: object) => void,
): Promise<void> {
  if (request.type !== 'status')
    throw new SluiceError('usage', `a GPU node does not ${request.type}`, {
      hint: 'Ask the agent of a capture host.',
    })
  say({ ...statusOf(parts), offer: analysis.offer(), leases: analysis.leases() })
}

/** The newest purges; older ones stand in the log. */
const purgesShown = 10

function statusOf({ identity, link, journal, config, lockOut }: Parts): object {
  return {
    build,
    role: identity.role,
    agentId: identity.agentId,
    site: identity.site,
    controlPlane: identity.agentUrl,
    link: link.state,
    ...(lockOut.revoked.aborted ? { lockedOut: true } : {}),
    ...(link.problem ? { problem: problemOf(link.problem) } : {}),
    certificateUntilAtMs: identity.notAfterMs(),
    isolation: config.isolation,
    swapActive: readSwapFacts().areas.length > 0,
    receiptsOwed: Object.keys(journal.data.receipts).length,
    purges: Object.values(journal.data.purges)
      .toSorted((one, other) => other.startedAtMs - one.startedAtMs)
      .slice(0, purgesShown)
      .map(({ purgeId, state, found, startedAtMs }) => ({ purgeId, state, found, startedAtMs })),
  }
}
