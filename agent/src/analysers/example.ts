/**
 * The analyser that comes with Sluice: reads one medium from standard input and prints one JSON object
 * with real measurements of it. It is an example of an analyser, and what the demo shows.
 *
 * `node example.ts [KIND] [--ffmpeg PATH] < MEDIUM`; without KIND, `SLUICE_MEDIUM_KIND` says it.
 */
import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { parseArgs } from 'node:util'
import { measureFilm } from './measure-film.ts'
import { measureImage } from './measure-image.ts'
import { measureSound } from './measure-sound.ts'
import { measureWave } from './measure-wave.ts'

/** The ffmpeg to use: the one that was named, the system's, or the one of the packages. */
function findFfmpeg(named: string | undefined): string | undefined {
  if (named !== undefined) return named
  const found = ['/usr/bin/ffmpeg', '/usr/local/bin/ffmpeg'].find((file) => existsSync(file))
  return found ?? packagedFfmpeg()
}

function packagedFfmpeg(): string | undefined {
  try {
    const file: unknown = createRequire(import.meta.url)('ffmpeg-static')
    return typeof file === 'string' && existsSync(file) ? file : undefined
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND') return undefined
    throw error
  }
}

function decoderMissing(): object {
  const message = 'This node has no ffmpeg, so films and compressed sound cannot be measured.'
  return { error: { code: 'media.decoder_missing', message } }
}

async function measure(kind: string | undefined, ffmpeg: string | undefined): Promise<object> {
  switch (kind) {
    case 'image':
      return await measureImage(process.stdin)
    case 'video':
      return ffmpeg === undefined ? decoderMissing() : await measureFilm(ffmpeg)
    case 'audio':
      if (ffmpeg !== undefined) return await measureSound(ffmpeg)
      return (await measureWave(process.stdin)) ?? decoderMissing()
    case undefined:
    default:
      throw new Error('The kind of medium is image, video or audio.')
  }
}

const { values, positionals } = parseArgs({
  options: { ffmpeg: { type: 'string' } },
  allowPositionals: true,
})
const kind = positionals[0] ?? process.env['SLUICE_MEDIUM_KIND']
const measured = await measure(kind, findFfmpeg(values.ffmpeg))
process.stdout.write(`${JSON.stringify({ kind, ...measured })}\n`)
