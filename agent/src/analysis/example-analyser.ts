/** Describes the analyser that comes with Sluice, as an operator would describe one of their own. */
import { realpathSync } from 'node:fs'
import path from 'node:path'
import { ownScript } from '../sandbox.ts'
import { analyserConfig, type AnalyserConfig } from './analyser.ts'

/** @param options.ffmpegPath The configured ffmpeg; the analyser looks for one itself without. */
export function exampleAnalyser(options: { ffmpegPath?: string | undefined } = {}): AnalyserConfig {
  const extension = path.extname(new URL(import.meta.url).pathname)
  const script = new URL(`../analysers/example${extension}`, import.meta.url)
  const { program, args, visible } = ownScript(script)
  const { ffmpegPath } = options
  return analyserConfig.parse({
    name: 'example',
    version: '1',
    command: [program, ...args, ...(ffmpegPath === undefined ? [] : ['--ffmpeg', ffmpegPath])],
    visible: [...visible, ...(ffmpegPath === undefined ? [] : [realpathSync(ffmpegPath)])],
  })
}
