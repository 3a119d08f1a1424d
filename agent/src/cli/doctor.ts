/** `sluice-agent doctor`: looks at everything this host needs, and says what to do about what is amiss. */
import { connect } from 'node:tls'
import type { Command } from 'commander'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { SystemCalls } from '@sluice/protocol/manifest'
import { disableCoreDumps } from '@sluice/protocol/process/lifecycle'
import { canSwap, readSwapFacts, swapPossible } from '@sluice/protocol/process/swap'
import { chooseFilmEncoder } from '../capture/film-encoder.ts'
import { filmsMissing, findFfmpeg } from '../capture/find-ffmpeg.ts'
import { scanPolicyOf } from '../capture/gate-policy.ts'
import { createScanner } from '../capture/scan.ts'
import { prepareSpool, requireRoom } from '../capture/spool.ts'
import { type AgentConfig, foldersOf } from '../config.ts'
import { openIdentity } from '../enrol.ts'
import { keyExchangeGroups } from '../key-exchange.ts'
import { detectIsolation, systemCallsAt } from '../sandbox.ts'
import { instantText, print } from './output.ts'
import { type PlaceOptions, configOf, withPlace } from './program.ts'

type Finding = { check: string; ok: boolean; found: string; hint?: string }

export function addDoctorCommand(program: Command): void {
  withPlace(program.command('doctor'))
    .description('Check this host: decoders, isolation, memory, identity, reachability.')
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExample:\n  $ sluice-agent doctor --config /etc/sluice/agent.json')
    .action(async (options: PlaceOptions & { json?: true }) => {
      const config = await configOf(options)
      const findings = await examine(config)
      if (options.json) print(JSON.stringify({ findings }))
      else for (const finding of findings) printFinding(finding)
      if (findings.some(({ ok }) => !ok)) process.exitCode = 1
    })
}

function printFinding({ check, ok, found, hint }: Finding): void {
  print(`${ok ? 'ok  ' : 'BAD '} ${check.padEnd(16)} ${found}`)
  if (!ok && hint !== undefined) print(`     hint: ${hint}`)
}

async function examine(config: AgentConfig): Promise<Finding[]> {
  return [
    await look('core dumps', async () => {
      disableCoreDumps()
      return 'can be switched off'
    }),
    await look('swap', async () => swapText(config)),
    await look('isolation', async () => {
      const level = await detectIsolation(config.isolation)
      const named = level === 'none' ? 'none, as configured' : level
      return `${named}, ${callsText[systemCallsAt(level)]}`
    }),
    await look('ffmpeg', () => ffmpegText(config)),
    await look('scanner', () => scannerText(config)),
    await look('spool', async () => {
      const { spoolDir } = foldersOf(config)
      await prepareSpool(spoolDir)
      await requireRoom(spoolDir, { bytes: 0, reserveBytes: config.spoolReserveBytes })
      return spoolDir
    }),
    await look('identity', () => identityText(config)),
    await look('control plane', () => reach(config)),
  ]
}

const callsText: Record<SystemCalls, string> = {
  filtered: 'system calls filtered',
  inherited: 'system calls as its service may make them',
  any: 'any system call',
}

async function look(check: string, run: () => Promise<string>): Promise<Finding> {
  try {
    return { check, ok: true, found: await run() }
  } catch (error) {
    const found = error instanceof Error ? error.message : String(error)
    const hint = error instanceof SluiceError ? error.hint : undefined
    return { check, ok: false, found, ...(hint === undefined ? {} : { hint }) }
  }
}

function swapText(config: AgentConfig): string {
  const facts = readSwapFacts()
  const areas = facts.areas.join(' ')
  if (facts.areas.length === 0) return 'none'
  // The service may be bound by its unit while this command is not; the service checks itself.
  if (!canSwap(facts)) return `active (${areas}), out of reach of this cgroup`
  if (config.allowSwap) return `active (${areas}), allowed by name`
  throw swapPossible(areas)
}

async function ffmpegText({ isolation, ffmpegPath, gate }: AgentConfig): Promise<string> {
  const level = await detectIsolation(isolation)
  const configured = ffmpegPath === undefined ? {} : { configured: ffmpegPath }
  const found = await findFfmpeg({ isolation: level, ...configured })
  if (found) {
    if (!found.films) throw filmsMissing(found)
    const wanted = gate.filmEncoder
    const encoder = await chooseFilmEncoder({ wanted, ffmpeg: found, isolation: level })
    const instead = encoder === wanted ? '' : `, as ${wanted} does not work here`
    return `${found.version} (${found.origin}) ${found.program}, films by ${encoder}${instead}`
  }
  const missing =
    'not found: films are refused, and all sounds but uncompressed WAV, which stays uncompressed'
  throw new SluiceError('media.decoder_missing', missing, {
    hint: 'Install ffmpeg 5.1 or later (Debian: apt install ffmpeg), or set "ffmpegPath".',
  })
}

async function scannerText({ isolation, gate }: AgentConfig): Promise<string> {
  const policy = scanPolicyOf(gate.scan)
  if (policy === 'off') return 'none: media are not scanned'
  const level = await detectIsolation(isolation)
  const facts = await createScanner({ settings: gate.scan, isolation: level }).check()
  const texts = Object.entries(facts).map(([engine, { version, signaturesAtMs: atMs }]) =>
    atMs === undefined
      ? `${engine} ${version}`
      : `${engine} ${version}, signatures of ${instantText(atMs)}`,
  )
  return `${texts.join('; ')} (${policy})`
}

async function identityText({ stateDir }: AgentConfig): Promise<string> {
  const identity = await openIdentity(stateDir)
  const until = instantText(identity.notAfterMs())
  if (identity.notAfterMs() > Date.now())
    return `${identity.role} agent ${identity.agentId}, certificate until ${until}`
  throw new SluiceError('identity.expired', `the certificate ended at ${until}`, {
    hint: 'A running agent renews it by itself once the control plane can be reached.',
  })
}

/** A TLS handshake with our certificate; the clock is compared when the link is made. */
async function reach({ stateDir }: AgentConfig): Promise<string> {
  const identity = await openIdentity(stateDir)
  const { hostname, port } = new URL(identity.agentUrl)
  const began = performance.now()
  const protocol = await new Promise<string>((resolve, reject) => {
    const socket = connect({
      host: hostname,
      port: Number(port || 443),
      servername: /^[\d.:[\]]+$/.test(hostname) ? '' : hostname,
      ...identity.tlsOptions(),
      minVersion: 'TLSv1.3',
      ecdhCurve: keyExchangeGroups,
      timeout: limits.requestTimeoutMs,
    })
    socket.on('secureConnect', () => {
      resolve(socket.getProtocol() ?? 'TLS')
      socket.destroy()
    })
    socket.on('timeout', () => socket.destroy(new Error('no answer in time')))
    socket.on('error', reject)
  }).catch((cause: unknown) => {
    const why = cause instanceof Error && 'code' in cause ? String(cause.code) : 'no connection'
    throw new SluiceError('control_plane.unreachable', `${identity.agentUrl}: ${why}`, {
      hint: 'Check the network, the name, and whether the control plane runs.',
      cause,
    })
  })
  return `${identity.agentUrl} answers with ${protocol} in ${Math.round(performance.now() - began)} ms`
}
