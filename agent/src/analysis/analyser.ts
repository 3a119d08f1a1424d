/** What an operator says about an analyser: its command, how it gets the media, and its bounds. */
import path from 'node:path'
import { z } from 'zod'
import { limits } from '@sluice/protocol/limits'
import { analyserName } from '@sluice/protocol/manifest'

const absolutePath = z
  .string()
  .max(4096)
  .refine((text) => path.isAbsolute(text), 'must be an absolute path')

/**
 * One analyser of a GPU node.
 *
 * With `input: 'stdin'` the command runs once per medium, reads it from standard input and prints
 * one JSON value. With `input: 'directory'` it runs once per job, finds all media read-only below
 * `SLUICE_MEDIA_DIRECTORY`, and prints `{"media": [{"name": …, "output": …}, …]}`.
 *
 * Its environment holds nothing but `SLUICE_MEDIUM_NAME` and `SLUICE_MEDIUM_KIND`, or
 * `SLUICE_MEDIA_DIRECTORY`.
 */
export const analyserConfig = z.strictObject({
  name: analyserName,
  version: z.string().min(1).max(limits.nameCharsMax),
  /** Program and arguments; the program is an absolute path. No shell reads it. */
  command: z.tuple([absolutePath], z.string().max(4096)),
  input: z.enum(['stdin', 'directory']).default('stdin'),
  /** Wall time of one run of the command. */
  timeoutMs: z.int().positive().max(limits.analysisMsMax).default(limits.analysisMsDefault),
  /** Resident memory of the command and everything it starts. */
  memoryBytesMax: z.int().positive().default(limits.analysisMemoryBytesDefault),
  /** Standard output of one run; the whole result of a job has a bound of its own. */
  outputBytesMax: z.int().positive().max(limits.resultBytesMax).default(limits.resultBytesMax),
  /** Processes and threads of one run, under bubblewrap. */
  processesMax: z.int().positive().max(4096).default(256),
  /** All media of one job as a directory in memory; larger jobs are declined. */
  mediaBytesMax: z
    .int()
    .positive()
    .default(8 * 1024 ** 3),
  /** Device nodes it may use, such as `/dev/nvidia0`, `/dev/nvidiactl`, `/dev/nvidia-uvm`. */
  devices: z.array(absolutePath).max(64).default([]),
  /** Host paths it sees read-only beside the system's own, such as a folder of model weights. */
  visible: z.array(absolutePath).max(64).default([]),
})
export type AnalyserConfig = z.infer<typeof analyserConfig>
