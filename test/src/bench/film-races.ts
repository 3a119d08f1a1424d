/** Films through the gate, beside ffmpeg alone with the same settings. */

import { execFileSync } from 'node:child_process'

import { hasProgram } from './contenders.ts'
import type { Race, Runner } from './gate-races.ts'

function needFfmpeg(): string | undefined {
  return hasProgram('ffmpeg') ? undefined : 'ffmpeg is not installed: apt-get install ffmpeg'
}

/** What the gate asks of it, and nothing of what the gate does besides: the film, then its sound. */
const bareFfmpeg: Runner = {
  name: 'ffmpeg',
  kind: 'peer',
  missing: needFfmpeg,
  command: ({ paths }, out) => {
    const picture = '-c:v libx264 -preset veryfast -crf 20 -bf 0 -pix_fmt yuv420p -fps_mode vfr'
    const sound = '-c:a aac -b:a 192k'
    const inputs = paths.flatMap((path) => ['-i', path])
    const outputs = paths.flatMap((_, place) => [
      ...['-map', `${place}:v:0`, '-map', `${place}:a:0`, ...picture.split(' ')],
      ...[...sound.split(' '), `${out}/${place}.mp4`],
      ...['-map', `${place}:a:0`, '-c:a', 'flac', `${out}/${place}.flac`],
    ])
    return { program: 'ffmpeg', args: ['-v', 'error', '-nostdin', ...inputs, ...outputs] }
  },
}

/** Something like a scene: movement under grain, and a sound. */
function scene(path: string, size: string, seconds: number): void {
  const picture = `testsrc2=s=${size}:r=30:d=${seconds},noise=alls=8:allf=t`
  execFileSync('ffmpeg', [
    ...['-v', 'error', '-nostdin', '-f', 'lavfi', '-i', picture],
    ...['-f', 'lavfi', '-i', `anoisesrc=d=${seconds}:r=48000:c=pink:a=0.2`],
    ...['-c:v', 'libx264', '-preset', 'veryfast', '-crf', '23', '-pix_fmt', 'yuv420p'],
    ...['-c:a', 'aac', path],
  ])
}

/**
 * @param sluice The gate itself, as in the other races.
 */
export function filmRaces(sluice: Runner): readonly Race[] {
  const missing = needFfmpeg()
  if (missing !== undefined) return []
  const within = (factor: number): Race['promise'] => ({
    text: `at most ${Math.round((factor - 1) * 100)} % over ffmpeg alone`,
    holds: (msOf) => {
      const [ours, bare] = [msOf(sluice.name), msOf(bareFfmpeg.name)]
      return ours === undefined || bare === undefined ? undefined : ours / bare <= factor
    },
  })
  return [
    {
      name: 'film of 20 s (1920 x 1080, 30 a second)',
      count: 1,
      extension: 'mp4',
      make: async (path) => scene(path, '1920x1080', 20),
      runners: [sluice, bareFfmpeg],
      promise: within(1.15),
    },
  ]
}
