/** Runs ffmpeg over this program's own standard input and hands out what it prints, line by line. */
import { spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import type { Readable } from 'node:stream'

/**
 * @param options.args Everything behind the input.
 * @throws Error when ffmpeg ends with anything but 0.
 */
export async function runFfmpeg(options: {
  ffmpeg: string
  args: readonly string[]
  onStdout: (line: string) => void
  onStderr: (line: string) => void
}): Promise<void> {
  const { ffmpeg, args } = options
  const before = ['-hide_banner', '-nostdin', '-nostats', '-protocol_whitelist', 'pipe']
  const child = spawn(ffmpeg, [...before, '-i', 'pipe:0', ...args], {
    env: {},
    stdio: ['inherit', 'pipe', 'pipe'],
  })
  const ended = new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  await Promise.all([
    eachLine(child.stdout, options.onStdout),
    eachLine(child.stderr, options.onStderr),
  ])
  const code = await ended
  if (code !== 0) throw new Error(`ffmpeg ended with ${code}.`)
}

async function eachLine(stream: Readable, onLine: (line: string) => void): Promise<void> {
  for await (const line of createInterface({ input: stream })) onLine(line)
}
