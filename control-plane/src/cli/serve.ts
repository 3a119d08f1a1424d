/** Runs the control plane until a signal ends it, and writes its configuration. */
import { resolve } from 'node:path'
import type { Command } from 'commander'
import {
  configJsonSchema,
  configTemplate,
  loadConfig,
  redactedConfig,
} from '@sluice/protocol/process/config'
import { runDaemon } from '@sluice/protocol/process/lifecycle'
import { processLog } from '@sluice/protocol/process/log'
import { type ControlPlaneConfig, controlPlaneConfig } from '../config.ts'
import type { ControlPlane } from '../main.ts'
import { remark, say } from './output.ts'
import { wholeNumber } from './program.ts'

/** Grants, links and transactions end quickly; whatever does not is finished after the next start. */
const graceMs = 15_000

type ServeOptions = {
  config?: string
  dataDir?: string
  publicName?: string
  listen?: string
  agentPort?: number
  operatorPort?: number
  insecureLoopbackHttp?: true
  allowSwap?: true
  acceptLostKeys?: true
}

export function addServeCommands(program: Command): void {
  program
    .command('serve')
    .description('run the control plane')
    .option('--config <file>', 'configuration file; without one, defaults and environment count')
    .option('--data-dir <dir>', 'where database, keys and objects live')
    .option('--public-name <name>', 'name under which other hosts reach this one')
    .option('--listen <address>', 'address to listen on')
    .option('--agent-port <port>', 'port for agents; 0 takes any free one', wholeNumber)
    .option('--operator-port <port>', 'port for operators; 0 takes any free one', wholeNumber)
    .option('--insecure-loopback-http', 'serve operators plain HTTP, on loopback only')
    .option('--allow-swap', 'start although swap is on')
    .option('--accept-lost-keys', 'the epoch key is gone for good: give up the jobs that needed it')
    .addHelpText('after', '\nExample:\n  $ sluice serve --public-name sluice.example')
    .action(async (options: ServeOptions) =>
      serve(await configOf(options), { acceptLostKeys: options.acceptLostKeys === true }),
    )

  const config = program.command('config').description('write and check the configuration')
  config
    .command('init')
    .description('print a configuration with every key, its meaning and its default')
    .addHelpText('after', '\nExample:\n  $ sluice config init > /etc/sluice/control-plane.json')
    .action(() => say(configTemplate(controlPlaneConfig).trimEnd()))
  config
    .command('schema')
    .description('print the JSON Schema of the configuration, for editors')
    .addHelpText('after', '\nExample:\n  $ sluice config schema > control-plane.schema.json')
    .action(() => say(JSON.stringify(configJsonSchema(controlPlaneConfig), null, 2)))
  config
    .command('check')
    .description('check a configuration and print what would be in force')
    .option('--config <file>', 'configuration file')
    .addHelpText('after', '\nExample:\n  $ sluice config check --config control-plane.json')
    .action(async (options: ServeOptions) => say(redactedConfig(await configOf(options))))
}

function configOf(options: ServeOptions): Promise<ControlPlaneConfig> {
  return loadConfig(controlPlaneConfig, {
    file: options.config,
    env: process.env,
    overrides: {
      dataDir: options.dataDir === undefined ? undefined : resolve(options.dataDir),
      publicName: options.publicName,
      listenAddress: options.listen,
      agentPort: options.agentPort,
      operatorPort: options.operatorPort,
      insecureLoopbackHttp: options.insecureLoopbackHttp,
      allowSwap: options.allowSwap,
    },
  })
}

async function serve(config: ControlPlaneConfig, word: { acceptLostKeys: boolean }): Promise<void> {
  // Whatever is written from here on, database pages and objects too, is its owner's alone.
  process.umask(0o077)
  const log = processLog(config.logLevel)
  // Only this command needs the whole control plane; the others start faster without it.
  const { createControlPlane } = await import('../main.ts')
  await runDaemon({
    log,
    allowSwap: config.allowSwap,
    graceMs,
    run: async (signal, supervisor) => {
      await using controlPlane = await createControlPlane({ config, log, ...word })
      if (controlPlane.unclaimed) tellFirstSteps(controlPlane)
      supervisor.ready(`agents ${controlPlane.agentUrl}, operators ${controlPlane.operatorUrl}`)
      if (!signal.aborted)
        await new Promise<void>((done) => {
          signal.addEventListener('abort', () => done(), { once: true })
        })
    },
  })
}

/** To standard error: standard output is the log. */
function tellFirstSteps(controlPlane: ControlPlane): void {
  const dataDir = controlPlane.directory.root
  remark(
    [
      'Nobody has a token yet. As the owner of the data directory:',
      `  sluice tokens create --principal NAME --role operator --data-dir ${dataDir} --out operator.token`,
      '  sluice login --token-file operator.token',
      'An agent joins with a token of its own:',
      `  sluice tokens join --role capture --site SITE --data-dir ${dataDir} --out capture.join`,
      '  sluice-agent join --token-file capture.join',
      `Fingerprint of the authority (SHA-256): ${controlPlane.caSha256}`,
    ].join('\n'),
  )
}
