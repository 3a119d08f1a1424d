/** Measures a film: its length, its frames, and where scenes change. */
import { runFfmpeg } from './run-ffmpeg.ts'

/** ffmpeg's own scene score, 0 to 1, from which on its documentation speaks of a new scene. */
const sceneScoreMin = 0.3
const cutsMax = 1000

export async function measureFilm(ffmpeg: string): Promise<object> {
  let frames = 0
  let firstMs: number | undefined
  let lastMs = 0
  let cuts = 0
  const cutsAtMs: number[] = []
  await runFfmpeg({
    ffmpeg,
    // `select` with a condition that always holds computes the score and drops no frame.
    args: [
      ...['-map', '0:v:0', '-vf', `select='gte(scene,0)',metadata=mode=print:file=-`],
      ...['-fps_mode', 'passthrough', '-f', 'null', '-'],
    ],
    onStdout(line) {
      const time = /^frame:\d+ +pts:\S+ +pts_time:(-?[\d.]+)/.exec(line)?.[1]
      if (time !== undefined) {
        frames += 1
        lastMs = Math.round(Number(time) * 1000)
        firstMs ??= lastMs
      }
      const score = /^lavfi\.scene_score=([\d.]+)/.exec(line)?.[1]
      if (score === undefined || Number(score) <= sceneScoreMin) return
      cuts += 1
      if (cutsAtMs.length < cutsMax) cutsAtMs.push(lastMs)
    },
    onStderr: () => undefined,
  })
  if (firstMs === undefined) throw new Error('The film has no frame.')
  // The last frame is shown as long as the others on average.
  const durationMs = frames === 1 ? 0 : Math.round(((lastMs - firstMs) * frames) / (frames - 1))
  return { frames, durationMs, sceneCuts: cuts, sceneCutsAtMs: cutsAtMs }
}
