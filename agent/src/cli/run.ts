/** `sluice-agent run`, `join` and `config`: from a fresh host to a running agent. */
import { readFileSync } from 'node:fs'
import { type Command, Option } from 'commander'
import { decodeToken } from '@sluice/protocol/api'
import { isSluiceError } from '@sluice/protocol/errors'
import { errorLines } from '@sluice/protocol/process/command-line'
import { configTemplate, redactedConfig } from '@sluice/protocol/process/config'
import { runDaemon } from '@sluice/protocol/process/lifecycle'
import { processLog } from '@sluice/protocol/process/log'
import { readSecretFile } from '@sluice/protocol/process/secret'
import { agentConfig } from '../config.ts'
import { lockedOutExitStatus } from '../lock-out.ts'
import { print, readLineFromInput, remark } from './output.ts'
import { type PlaceOptions, configOf, withPlace } from './program.ts'

/** Leases are wiped and parts given up within seconds; what is left over goes on at the next start. */
const graceMs = 20_000

type RunOptions = PlaceOptions & { allowSwap?: true; isolation?: string }
type JoinOptions = PlaceOptions & { tokenFile: string; name?: string; json?: true }

export function addRunCommands(program: Command): void {
  withPlace(program.command('run'))
    .description('Run this host’s agent until SIGTERM. It must have joined before.')
    .option('--allow-swap', 'start although swap is active: keys may then reach a disk')
    .addOption(
      new Option('--isolation <level>', 'how decoders and analysers are kept apart').choices([
        'bubblewrap',
        'none',
      ]),
    )
    .addHelpText('after', '\nExample:\n  $ sluice-agent run --config /etc/sluice/agent.json')
    .action(run)
  withPlace(program.command('join'))
    .description('Join a control plane: makes this host’s key and gets its certificate.')
    .requiredOption(
      '--token-file <file>',
      'file with the join token, mode 0600; - for standard input',
    )
    .option('--name <name>', 'what operators will call this host')
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExample:\n  $ sluice-agent join --token-file capture.join')
    .action(joinHost)
  const config = program.command('config').description('Write and check the configuration.')
  config
    .command('init')
    .description('Print a configuration with every key, its meaning and its default.')
    .addHelpText('after', '\nExample:\n  $ sluice-agent config init > /etc/sluice/agent.json')
    .action(() => print(configTemplate(agentConfig).trimEnd()))
  withPlace(config.command('check'))
    .description('Check a configuration and print what would be in force.')
    .addHelpText('after', '\nExample:\n  $ sluice-agent config check --config agent.json')
    .action(async (options: PlaceOptions) => print(redactedConfig(await configOf(options))))
}

async function run(options: RunOptions): Promise<void> {
  const { allowSwap, isolation } = options
  const config = await configOf(options, { allowSwap, isolation })
  const log = processLog(config.logLevel)
  // Only this command needs the whole agent; the others start faster without it.
  const { runAgent } = await import('../main.ts')
  try {
    await runDaemon({
      log,
      allowSwap: config.allowSwap,
      graceMs,
      run: (signal, supervisor) => runAgent({ config, log, signal, supervisor }),
    })
  } catch (error) {
    if (!isSluiceError(error, 'identity.revoked')) throw error
    for (const line of errorLines(error)) remark(line)
    // An exit status of its own: starting again is of no use, whatever else would be tried anew.
    process.exitCode = lockedOutExitStatus
  }
}

async function joinHost(options: JoinOptions): Promise<void> {
  const config = await configOf(options)
  const token = decodeToken('join', await readToken(options.tokenFile))
  const { join } = await import('../enrol.ts')
  const identity = await join({
    stateDir: config.stateDir,
    token,
    ...(options.name === undefined ? {} : { name: options.name }),
  })
  const { agentId, role, site, agentUrl, keyId } = identity
  if (options.json)
    return print(JSON.stringify({ agentId, role, site, controlPlane: agentUrl, keyId }))
  print(`Joined ${agentUrl} as ${role} agent ${agentId} of site ${site}.`)
  print('Start it with `sluice-agent run`.')
}

async function readToken(file: string): Promise<string> {
  if (file === '-') return process.stdin.isTTY ? readLineFromInput() : readFileSync(0, 'utf8')
  using secret = await readSecretFile(file, 16 * 1024)
  return secret.bytes.toString('utf8')
}
