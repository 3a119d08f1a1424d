/** What every command of `sluice-agent` has in common: where configuration and state are. */
import type { Command } from 'commander'
import { loadConfig } from '@sluice/protocol/process/config'
import { type AgentConfig, agentConfig } from '../config.ts'

export type PlaceOptions = { config?: string; stateDir?: string }

/** Adds the options that say which agent is meant. */
export function withPlace(command: Command): Command {
  return command
    .option('--config <file>', 'configuration file; without one, defaults and environment count')
    .option('--state-dir <dir>', 'identity, journal and socket of the agent')
}

export function configOf(
  options: PlaceOptions,
  overrides: Readonly<Record<string, unknown>> = {},
): Promise<AgentConfig> {
  return loadConfig(agentConfig, {
    file: options.config,
    env: process.env,
    overrides: { stateDir: options.stateDir, ...overrides },
  })
}
