/** Tells waiting parts of the control plane that something was committed; never carries the truth itself. */
import { EventEmitter } from 'node:events'
import type { AgentId, JobId, TokenId } from '@sluice/protocol/ids'

/** What may have changed. Who listens reads the database again: a lost signal loses nothing. */
export type Changes = EventEmitter<{
  job: [JobId]
  agent: [AgentId]
  /** Commands are waiting for this agent. */
  command: [AgentId]
  /** An obligation became due. */
  obligation: []
  audit: [seq: number]
  /** This API token was revoked. */
  token: [TokenId]
}>

export function createChanges(): Changes {
  const changes: Changes = new EventEmitter()
  // One listener per open event stream and link, by design.
  changes.setMaxListeners(0)
  return changes
}
