/** The life of a job: its states and the table of transitions, the only ways to change one. */
import { z } from 'zod'

export const jobStates = [
  'announced',
  'uploading',
  'stored',
  'leased',
  'analysed',
  'deleting',
  'deleted',
  'failed',
  'frozen',
  'refused',
  'lost',
  'deleted-unconfirmed',
] as const

export const jobState = z.enum(jobStates)
export type JobState = z.infer<typeof jobState>

/**
 * From each state, where a job may go. `frozen` goes back only to the state it was frozen in.
 * Nothing leaves `deleting` but the two ends, and nothing leaves an end.
 */
export const jobTransitions: Readonly<Record<JobState, readonly JobState[]>> = {
  announced: ['uploading', 'failed', 'frozen', 'refused', 'lost', 'deleting'],
  uploading: ['stored', 'failed', 'frozen', 'refused', 'lost', 'deleting'],
  stored: ['leased', 'failed', 'frozen', 'lost', 'deleting'],
  leased: ['analysed', 'stored', 'failed', 'frozen', 'lost', 'deleting'],
  analysed: ['deleting'],
  failed: ['stored', 'frozen', 'lost', 'deleting'],
  frozen: ['announced', 'uploading', 'stored', 'failed', 'lost', 'deleting'],
  refused: ['deleting'],
  lost: ['deleting'],
  deleting: ['deleted', 'deleted-unconfirmed'],
  deleted: [],
  'deleted-unconfirmed': [],
}

/** Whether a job may go from one state to another. */
export function mayBecome(from: JobState, to: JobState): boolean {
  return jobTransitions[from].includes(to)
}

/** Whether a job is over: nothing of it is owed or can change. */
export function isOver(state: JobState): boolean {
  return jobTransitions[state].length === 0
}

/** What happens to the customer's own file, and after what. `keep` touches nothing. */
export const sourcePolicy = z.strictObject({
  action: z.enum(['keep', 'move', 'delete']),
  /** `result`: once the result is durable on this host. `stored`: once the whole stored object was re-read. */
  when: z.enum(['result', 'stored']),
})
export type SourcePolicy = z.infer<typeof sourcePolicy>
