/** What a sweep finds: things that nobody knows of, and known things that are missing. */
import { z } from 'zod'

export const sweepFindingKinds = [
  /** In the store under a key of ours, known to no job: objects, versions and markers. */
  'orphan.object',
  /** An incomplete upload that the ledger does not know. */
  'orphan.upload',
  /** A spool on a capture host whose job is over or unknown. */
  'orphan.spool',
  /** A lease a node still works on though it is over. */
  'orphan.lease',
  /** A key row without a live job, or an epoch key without its row. */
  'orphan.key',
  /** A stored job whose object is not in the store. */
  'missing.object',
  /** A job not yet stored whose spool its capture host no longer has. */
  'missing.spool',
  /** A job that needs its key and has none. */
  'missing.key',
] as const
export const sweepFindingKind = z.enum(sweepFindingKinds)
export type SweepFindingKind = z.infer<typeof sweepFindingKind>
