/** Finds the ffmpeg to use: the configured one, else the system's, else the one that came with the packages. */
import { existsSync, realpathSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { collectOutput, runInSandbox } from '../sandbox.ts'

export type Ffmpeg = {
  /** Absolute path. */
  program: string
  /** As it names itself, such as `5.1.9-0+deb12u1`. */
  version: string
  origin: 'configured' | 'system' | 'package'
  /** Whether it can encode H.264 and AAC; FLAC it always can. */
  films: boolean
  /** Whether it can map HDR to ordinary brightness. */
  toneMapping: boolean
}

/** 5.1 brought `-fps_mode`; older ones also lack fixes that matter for untrusted input. */
const versionMin = [5, 1] as const

const systemFolders = ['/usr/bin', '/usr/local/bin']

/**
 * Looks for a usable ffmpeg; ffprobe is not needed.
 *
 * @param options.configured Absolute path from the configuration: this one or none.
 * @returns undefined when there is none: pictures and uncompressed sound work without.
 * @throws SluiceError `media.decoder_missing` when the configured one cannot be used.
 */
export async function findFfmpeg(options: {
  isolation: IsolationLevel
  configured?: string
}): Promise<Ffmpeg | undefined> {
  const { isolation, configured } = options
  if (configured !== undefined) {
    const found = await probe({ program: configured, origin: 'configured', isolation })
    if (found !== undefined) return found
    throw new SluiceError('media.decoder_missing', 'the configured ffmpeg cannot be used', {
      hint: `It must be ffmpeg ${versionMin.join('.')} or later with its FLAC encoder.`,
    })
  }
  for (const folder of systemFolders) {
    const program = path.join(folder, 'ffmpeg')
    const found = await probe({ program, origin: 'system', isolation })
    if (found !== undefined) return found
  }
  const program = packagedProgram()
  return program === undefined ? undefined : probe({ program, origin: 'package', isolation })
}

/** The error for a medium that cannot be normalised without ffmpeg. */
export function ffmpegMissing(what: string): SluiceError {
  return new SluiceError('media.decoder_missing', `ffmpeg is needed for ${what}`, {
    hint: 'Install ffmpeg 5.1 or later (Debian: apt install ffmpeg), or name one in the configuration.',
  })
}

/** The error for a film where there is an ffmpeg, but none that can write films. */
export function filmsMissing({ version }: Pick<Ffmpeg, 'version'>): SluiceError {
  return new SluiceError('media.decoder_missing', `ffmpeg ${version} cannot write films`, {
    hint: 'It lacks its encoder of H.264 (libx264) or of AAC. Name one that has both as "ffmpegPath" (Debian: apt install ffmpeg).',
  })
}

/** The optional package's one export is the path of the program its install step downloaded. */
function packagedProgram(): string | undefined {
  try {
    const exported: unknown = createRequire(import.meta.url)('ffmpeg-static')
    return typeof exported === 'string' ? exported : undefined
  } catch (error) {
    if (error instanceof Error && 'code' in error && error.code === 'MODULE_NOT_FOUND') {
      return undefined
    }
    throw error
  }
}

async function probe(options: {
  program: string
  origin: Ffmpeg['origin']
  isolation: IsolationLevel
}): Promise<Ffmpeg | undefined> {
  if (!existsSync(options.program)) return undefined
  const { origin, isolation } = options
  const program = realpathSync(options.program)
  const ask = async (argument: string) => {
    const { exit, value } = await runInSandbox(
      {
        isolation,
        program,
        args: () => ['-hide_banner', '-nostdin', argument],
        visible: [program],
        bounds: { wallMs: 20_000, memoryBytes: 512 * 1024 ** 2, outputBytesMax: 1024 ** 2 },
      },
      collectOutput,
    )
    return exit.outcome === 'ok' ? value.toString('latin1') : ''
  }
  const [banner, encoders, filters] = await Promise.all(
    ['-version', '-encoders', '-filters'].map(ask),
  )
  const version = /^ffmpeg version (\S{1,64})/.exec(banner ?? '')?.[1]
  const has = (list: string | undefined, name: string) =>
    new RegExp(`^ \\S+ ${name} `, 'm').test(list ?? '')
  if (version === undefined || !isRecent(version) || !has(encoders, 'flac')) return undefined
  const films = has(encoders, 'libx264') && has(encoders, 'aac')
  return { program, version, origin, films, toneMapping: has(filters, 'zscale') }
}

/** A version without numbers is a build from a branch: its age cannot be told, so it is not taken. */
function isRecent(version: string): boolean {
  const [, major, minor] = /^n?(\d+)\.(\d+)/.exec(version) ?? []
  if (major === undefined || minor === undefined) return false
  const [majorMin, minorMin] = versionMin
  return Number(major) > majorMin || (Number(major) === majorMin && Number(minor) >= minorMin)
}
