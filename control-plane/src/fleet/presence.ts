/** Knows who is connected now. Nothing here survives a restart, and nothing needs to. */
import type { AgentId } from '@sluice/protocol/ids'
import type { Link } from './link.ts'

export type Presence = {
  /** Makes `link` the agent's one live link. @returns The link it replaces. */
  arrive(link: Link): Link | undefined
  /** @returns False when another link has taken its place already. */
  leave(link: Link): boolean
  link(agent: AgentId): Link | undefined
  isConnected: (agent: AgentId) => boolean
  connected: () => AgentId[]
}

export function createPresence(): Presence {
  const links = new Map<AgentId, Link>()
  return {
    arrive(link) {
      const replaced = links.get(link.agent.id)
      links.set(link.agent.id, link)
      return replaced
    },
    leave(link) {
      if (links.get(link.agent.id) !== link) return false
      return links.delete(link.agent.id)
    },
    link: (agent) => links.get(agent),
    isConnected: (agent) => links.has(agent),
    connected: () => [...links.keys()],
  }
}
