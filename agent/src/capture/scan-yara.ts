/** YARA rules of the operator as a scanner: the program `yara` in the sandbox, one run a source. */
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { type SandboxExit, collectOutput, runInSandbox } from '../sandbox.ts'
import { scanWallMs } from './scan-time.ts'
import type { ScanEngine } from './scan-engine.ts'

export type YaraOptions = {
  /** Source of the rules, as yara reads it. */
  rulesFile: string
  isolation: IsolationLevel
  program?: string
}

const mebibyte = 1024 ** 2

export function yaraEngine(options: YaraOptions): ScanEngine {
  const { rulesFile, isolation, program = '/usr/bin/yara' } = options

  /** Only the first match counts; links are not followed. */
  function run(file: string, asked: { bytes: number; signal?: AbortSignal | undefined }) {
    return runInSandbox(
      {
        isolation,
        program,
        args: (at) => ['--no-follow-symlinks', '--max-rules=1', at('rules'), at('medium')],
        inputs: { rules: rulesFile, medium: file },
        bounds: {
          wallMs: scanWallMs(asked.bytes),
          // It maps the file: what is resident of that belongs to the page cache.
          memoryBytes: limits.decoderMemoryBytesMax + asked.bytes,
          outputBytesMax: 64 * 1024,
        },
        ...(asked.signal === undefined ? {} : { signal: asked.signal }),
      },
      collectOutput,
    )
  }

  return {
    name: 'yara',
    async check() {
      const asked = await runInSandbox(
        {
          isolation,
          program,
          args: () => ['--version'],
          bounds: { wallMs: limits.scanAnswerMs, memoryBytes: 64 * mebibyte, outputBytesMax: 1024 },
        },
        collectOutput,
      ).catch((cause: unknown) => {
        throw unavailable(cause)
      })
      const version = /^([\d.]{1,16})\n$/.exec(asked.value.toString('latin1'))?.[1]
      if (asked.exit.outcome !== 'ok' || version === undefined) throw unavailable()
      // The rules themselves are something that no rule should match, and something to look at.
      const { exit } = await run(rulesFile, { bytes: limits.scanConfigBytesMax })
      if (!endedWell(exit))
        throw new SluiceError('scan.unsafe', 'the YARA rules cannot be used as they are', {
          retry: 'later',
          hint: 'Run `yara RULES RULES` by hand: it must say nothing on standard error, no warning either.',
        })
      return { version }
    },
    async scan(source, signal) {
      const { exit, value } = await run(source.path, { bytes: source.bytes, signal })
      if (!endedWell(exit))
        throw new SluiceError('scan.failed', 'yara gave no verdict', {
          retry: 'later',
          hint: 'It ran out of time or memory, or a rule warns about this file; the medium is tried again.',
        })
      if (value.length === 0) return { clean: true }
      const rule = /^(\w{1,128}) /.exec(value.toString('latin1'))?.[1]
      return { clean: false, finding: rule ?? 'a rule' }
    },
  }
}

/** A warning can mean that a rule was given up in the middle of the file: that is no verdict. */
function endedWell(exit: SandboxExit): boolean {
  return exit.outcome === 'ok' && exit.stderrBytes === 0
}

function unavailable(cause?: unknown): SluiceError {
  return new SluiceError('scan.unavailable', 'yara cannot be run', {
    retry: 'later',
    hint: 'Install it (Debian: apt install yara), or take "scan.yaraRulesFile" out.',
    cause,
  })
}
