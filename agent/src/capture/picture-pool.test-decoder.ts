/** Stands in for the picture decoder: with files that carry a word it does what a decoder does that was taken over or has a bug. */
import { readFrames, frameHead } from './picture-frames.ts'

const tricks: Record<string, () => unknown> = {
  crash: () => process.kill(process.pid, 'SIGSEGV'),
  leave: () => process.exit(0),
  hang: () => {
    for (;;);
  },
  hog: () => {
    const held: Buffer[] = []
    for (;;) held.push(Buffer.alloc(64 * 1024 ** 2, 1))
  },
  babble: () => process.stdout.write(Buffer.alloc(1024, 'x')),
  lie: () => process.stdout.write(frameHead({ type: 'done', removed: [], tools: {} }, 0)),
}

const whole = readFrames(process.stdin)
for (;;) {
  const frame = await whole.next(100 * 1024 ** 2)
  if (frame === undefined) break
  const trick = Object.keys(tricks).find((word) => frame.bytes.includes(`please ${word}`))
  const lastWords = frame.bytes.indexOf('please answer, then die')
  if (lastWords >= 0) {
    await answer(frame.bytes.subarray(0, lastWords))
    process.kill(process.pid, 'SIGSEGV')
  }
  if (trick !== undefined) tricks[trick]?.()
  else await answer(frame.bytes)
}

/** The picture as it came: it is a clean one. */
async function answer(picture: Buffer): Promise<void> {
  for (const piece of [
    frameHead({ type: 'begun', pixels: 1 }, 0),
    frameHead({ type: 'picture' }, picture.length),
    picture,
    frameHead({ type: 'done', removed: [], tools: { stand: 'in' } }, 0),
  ]) {
    await new Promise<void>((resolve) => process.stdout.write(piece, () => resolve()))
  }
}
