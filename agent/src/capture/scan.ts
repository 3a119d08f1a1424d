/** Has every source looked at by the scanners of this host before a decoder sees it; only exactly clean counts. */
import { createHash } from 'node:crypto'
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import type { IsolationLevel, ScanEngineName, ScanMark } from '@sluice/protocol/manifest'
import { type ScanSettings, scanPolicyOf } from './gate-policy.ts'
import { clamdEngine } from './scan-clamd.ts'
import type { EngineFacts, ScanEngine, ScanTarget } from './scan-engine.ts'
import { yaraEngine } from './scan-yara.ts'

/** What is kept of an infected medium, and all that is. */
export type Infection = {
  /** Of the source, lower-case hex. */
  sha256: string
  engine: ScanEngineName
  /** Name of the signature or rule. */
  finding: string
  bytes: number
}

export type Scanner = {
  /** @throws SluiceError as {@link ScanEngine.check}, also where the policy is `warn`. */
  check: () => Promise<Record<string, EngineFacts>>
  /**
   * @returns undefined where scanning is off.
   * @throws SluiceError `media.infected`; with the policy `require` also `scan.*`.
   */
  scan: (source: ScanTarget) => Promise<ScanMark | undefined>
  /** Versions for the manifest, by engine; those that were asked. */
  readonly tools: Readonly<Record<string, string>>
}

export type ScannerOptions = {
  settings: ScanSettings
  isolation: IsolationLevel
  /** Hashes of media that were found infected here before. */
  quarantined?: readonly string[]
  /** Told of each infected medium, before it is refused. */
  infected?: (infection: Infection) => void
  /** Told of each medium that passes without a verdict. */
  missed?: (problem: SluiceError) => void
  signal?: AbortSignal
  /** Instead of those of the settings; for tests. */
  engines?: readonly ScanEngine[]
}

/** The scanners that the settings name; with none of them, `scan` lets everything pass. */
export function createScanner(options: ScannerOptions): Scanner {
  const { settings, signal } = options
  const policy = scanPolicyOf(settings)
  const engines = options.engines ?? enginesOf(settings, options.isolation)
  const quarantined = new Set(options.quarantined)
  const tools: Record<string, string> = {}
  let checked: Promise<Record<string, EngineFacts>> | undefined

  async function checkAll(): Promise<Record<string, EngineFacts>> {
    const facts: Record<string, EngineFacts> = {}
    for (const engine of engines) {
      const found = await engine.check()
      facts[engine.name] = found
      tools[engine.name] = found.version
    }
    return facts
  }

  /** Once is enough for the life of one sealing; after a failure it is done anew. */
  function ready(): Promise<Record<string, EngineFacts>> {
    checked ??= checkAll().catch((error: unknown) => {
      checked = undefined
      throw error
    })
    return checked
  }

  async function verdict(source: ScanTarget): Promise<ScanMark> {
    await ready()
    for (const engine of engines) {
      const found = await engine.scan(source, signal)
      if (!found.clean) await refuse(source, engine.name, found.finding)
    }
    return 'clean'
  }

  async function refuse(
    source: ScanTarget,
    engine: Infection['engine'],
    finding: string,
    sha256?: string,
  ): Promise<never> {
    const name = printable(finding)
    options.infected?.({
      sha256: sha256 ?? (await digestOf(source)),
      engine,
      finding: name,
      bytes: source.bytes,
    })
    throw new SluiceError('media.infected', `${engine} found ${name}`, {
      hint: 'Nothing of it was decoded or sent. Look at the file on a machine that has nothing to lose.',
    })
  }

  /** Where no scanner speaks, what one said before still counts; newer signatures may think better of it. */
  async function refuseKnown(source: ScanTarget): Promise<void> {
    if (quarantined.size === 0) return
    const sha256 = await digestOf(source)
    if (quarantined.has(sha256))
      await refuse(source, 'quarantine', 'the same content as before', sha256)
  }

  return {
    tools,
    check() {
      checked = undefined
      return ready()
    },
    async scan(source) {
      if (policy === 'off' || engines.length === 0) {
        await refuseKnown(source)
        return undefined
      }
      try {
        return await verdict(source)
      } catch (error) {
        if (policy !== 'warn' || !isMissed(error)) throw error
        await refuseKnown(source)
        options.missed?.(error)
        return 'unscanned'
      }
    },
  }
}

/** Whether there is no verdict; a finding is one. */
function isMissed(error: unknown): error is SluiceError {
  return isSluiceError(error) && error.code.startsWith('scan.')
}

function enginesOf(settings: ScanSettings, isolation: IsolationLevel): ScanEngine[] {
  const { clamdConfigFile, yaraRulesFile, signatureAgeHoursMax } = settings
  return [
    ...(clamdConfigFile === undefined
      ? []
      : [clamdEngine({ configFile: clamdConfigFile, signatureAgeHoursMax })]),
    ...(yaraRulesFile === undefined ? [] : [yaraEngine({ rulesFile: yaraRulesFile, isolation })]),
  ]
}

/** Names come from signatures, which others write: one short word of plain characters. */
function printable(finding: string): string {
  const text = finding.replaceAll(/[^\w .:/@+-]/g, '_').slice(0, findingCharsMax)
  return text.trim() === '' ? 'something without a name' : text
}

const findingCharsMax = 120

async function digestOf(source: ScanTarget): Promise<string> {
  const digest = createHash('sha256')
  for await (const piece of source.stream()) {
    digest.update(piece)
    piece.fill(0)
  }
  return digest.digest('hex')
}
