/** The configuration of an agent: one strict schema for both roles, with defaults that run without a file. */
import path from 'node:path'
import { limits } from '@sluice/protocol/limits'
import { analyserName, isolationLevel } from '@sluice/protocol/manifest'
import { z } from 'zod'
import { analyserConfig } from './analysis/analyser.ts'
import { gatePolicy } from './capture/gate-policy.ts'

const absolutePath = z
  .string()
  .min(1)
  .max(4096)
  .refine((text) => path.isAbsolute(text), 'must be an absolute path')
const bytes = z.int().nonnegative()

/** What happens to source files: `keep` is the default everywhere. */
const sourceRule = {
  sourceAction: z
    .enum(['keep', 'move', 'delete'])
    .default('keep')
    .meta({ description: 'What happens to a source file after its time.' }),
  sourceWhen: z.enum(['result', 'stored']).default('result').meta({
    description:
      'Its time: `result` once the result is durable here; `stored` once the whole stored object was read back.',
  }),
  moveTo: absolutePath
    .optional()
    .meta({ description: 'Existing folder on the same file system, for `move`.' }),
}

const namePatterns = z.array(z.string().min(1).max(256)).max(100).default([])

const watchedFolder = z.strictObject({
  path: absolutePath,
  analyser: analyserName.default('example'),
  ...sourceRule,
  /** Folders below are watched too; links are not followed. */
  subfolders: z.boolean().default(false),
  /** Patterns such as `*.jpg` or `inbox/**`, upper or lower case; without any, all names. */
  include: namePatterns,
  exclude: namePatterns,
  /** A file must be the same in two looks, and for so long. */
  settleMs: z.int().min(0).max(86_400_000).default(0),
  /** So many files become one job, or fewer once the first has waited for `batchMs`. */
  batchFiles: z.int().min(1).max(1000).default(1),
  batchMs: z.int().min(0).max(86_400_000).default(60_000),
  /** The same content under another name is taken once. */
  dedupe: z.boolean().default(true),
})
export type WatchedFolder = z.infer<typeof watchedFolder>

export const agentConfig = z
  .strictObject({
    stateDir: absolutePath.default('/var/lib/sluice-agent').meta({
      env: 'SLUICE_AGENT_STATE_DIR',
      description: 'Identity, journal and socket of this agent, 0700.',
    }),
    spoolDir: absolutePath.optional().meta({
      env: 'SLUICE_AGENT_SPOOL_DIR',
      description: 'Sealed archives on their way. Absent: `spool` in stateDir.',
    }),
    resultsDir: absolutePath.optional().meta({
      env: 'SLUICE_AGENT_RESULTS_DIR',
      description: 'Opened results, one JSON file per job, 0600. Absent: `results` in stateDir.',
    }),
    runtimeDir: absolutePath.optional().meta({
      env: 'SLUICE_AGENT_RUNTIME_DIR',
      description: 'Mount points of a GPU node. Absent: `run` in stateDir.',
    }),
    resultsKeepDays: z.int().min(0).max(3650).default(limits.resultsKeepDaysDefault).meta({
      description: 'Days a result file is kept; 0 keeps it for ever.',
    }),
    spoolReserveBytes: bytes.default(1024 ** 3).meta({
      env: 'SLUICE_AGENT_SPOOL_RESERVE_BYTES',
      description: 'What sealing leaves free on the file system of the spool.',
    }),
    bandwidthBytesPerSecond: bytes.default(0).meta({
      env: 'SLUICE_AGENT_BANDWIDTH_BYTES_PER_SECOND',
      description: 'Upload rate of this agent; 0 is unlimited.',
    }),
    partsInParallel: z.int().min(1).max(16).default(3).meta({
      description: 'Parts of one upload on their way at once; each is held in memory.',
    }),
    analyser: analyserName.default('example').meta({
      env: 'SLUICE_AGENT_ANALYSER',
      description: 'Analyser of a submission that names none.',
    }),
    ...sourceRule,
    watch: z.array(watchedFolder).max(64).default([]).meta({
      description:
        'Folders whose new files are submitted by themselves; see gate.md for `subfolders`, `include`, `exclude`, `settleMs`, `batchFiles`, `batchMs`, `dedupe`.',
    }),
    watchPollMs: z.int().min(100).max(3_600_000).default(5000).meta({
      description: 'How often watched folders are looked at; a file settles over two looks.',
    }),
    watchPendingMax: z.int().min(1).max(10_000).default(500).meta({
      description: 'Submissions that may wait for their sealing before watched folders wait too.',
    }),
    storageCaFile: absolutePath.optional().meta({
      env: 'SLUICE_AGENT_STORAGE_CA_FILE',
      description: 'Further authorities (PEM) the object store may be known by.',
    }),
    isolation: isolationLevel.default('bubblewrap').meta({
      env: 'SLUICE_AGENT_ISOLATION',
      description:
        'How decoders and analysers are kept apart; `none` only by name, and shown in receipts.',
    }),
    gate: gatePolicy.prefault({}),
    ffmpegPath: absolutePath.optional().meta({
      env: 'SLUICE_AGENT_FFMPEG_PATH',
      description: 'The ffmpeg to use. Absent: the system’s, else the one of the packages.',
    }),
    allowSwap: z.boolean().default(false).meta({
      env: 'SLUICE_AGENT_ALLOW_SWAP',
      description: 'Start although swap is active: keys and media may then reach a disk.',
    }),
    analysers: z.array(analyserConfig).max(64).default([]).meta({
      description: 'What a GPU node can run.',
    }),
    exampleAnalyser: z.boolean().default(true).meta({
      env: 'SLUICE_AGENT_EXAMPLE_ANALYSER',
      description: 'Whether a GPU node offers the analyser `example` that comes with Sluice.',
    }),
    leasesMax: z.int().min(1).max(64).default(1).meta({
      env: 'SLUICE_AGENT_LEASES_MAX',
      description: 'Jobs a GPU node analyses at once.',
    }),
    logLevel: z.enum(['error', 'warning', 'info', 'debug']).default('info').meta({
      env: 'SLUICE_AGENT_LOG_LEVEL',
      description: 'Least severe event that is logged.',
    }),
  })
  .refine((config) => config.sourceAction !== 'move' || config.moveTo !== undefined, {
    path: ['moveTo'],
    message: 'must be set for sourceAction move',
  })
  .refine((config) => config.watch.every((each) => each.sourceAction !== 'move' || each.moveTo), {
    path: ['watch'],
    message: 'moveTo must be set for sourceAction move',
  })

export type AgentConfig = z.infer<typeof agentConfig>

/** Folders of an agent with their defaults filled in. */
export function foldersOf(config: AgentConfig) {
  const inState = (name: string) => path.join(config.stateDir, name)
  return {
    stateDir: config.stateDir,
    spoolDir: config.spoolDir ?? inState('spool'),
    resultsDir: config.resultsDir ?? inState('results'),
    runtimeDir: config.runtimeDir ?? inState('run'),
    socket: inState('agent.sock'),
  }
}
