/** Measures sound: its length and its loudness as broadcasters measure it. */
import { runFfmpeg } from './run-ffmpeg.ts'

/** @see EBU R 128 and ITU-R BS.1770-4: integrated loudness, loudness range, true peak. */
export async function measureSound(ffmpeg: string): Promise<object> {
  let durationMs = 0
  let inSummary = false
  const summary = new Map<string, number>()
  await runFfmpeg({
    ffmpeg,
    args: [
      ...['-map', '0:a:0', '-af', 'ebur128=framelog=verbose:peak=true'],
      ...['-f', 'null', '-progress', 'pipe:1', '-'],
    ],
    onStdout(line) {
      const micros = /^out_time_us=(\d+)$/.exec(line)?.[1]
      if (micros !== undefined) durationMs = Math.round(Number(micros) / 1000)
    },
    onStderr(line) {
      inSummary ||= line.includes('Summary:')
      const [, name, value] = /^\s*(I|LRA|Peak):\s+(-?[\d.]+|-inf|nan) /.exec(line) ?? []
      if (inSummary && name !== undefined) summary.set(name, Number(value))
    },
  })
  return {
    durationMs,
    integratedLoudnessLufs: numberOrNull(summary.get('I')),
    loudnessRangeLu: numberOrNull(summary.get('LRA')),
    truePeakDbfs: numberOrNull(summary.get('Peak')),
  }
}

/** Silence has no loudness: JSON has no infinity. */
function numberOrNull(value: number | undefined): number | null {
  return value !== undefined && Number.isFinite(value) ? value : null
}
