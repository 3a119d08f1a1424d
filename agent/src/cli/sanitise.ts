/** `sluice-agent sanitise`: the gate alone, to see what would leave this host. */
import { lstat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { Command, Option } from 'commander'
import { SluiceError } from '@sluice/protocol/errors'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { openGate, passGate } from '../capture/gate.ts'
import type { NormalisedMedium } from '../capture/normalised.ts'
import { openNewFile, requireFree } from './new-file.ts'

type SanitiseOptions = { json?: true; force?: true; isolation: IsolationLevel; ffmpeg?: string }

/** One file that was written; the facts are those that a manifest would hold. */
type Written = Omit<NormalisedMedium, 'content' | 'extension' | 'source'> & {
  path: string
  bytes: number
}

/**
 * The command, for the agent's program to add. Errors leave it as SluiceError.
 *
 * @param print Where answers go, one line or JSON value at a time; standard output by default.
 */
export function sanitiseCommand(
  print: (text: string) => void = (text) => void process.stdout.write(`${text}\n`),
): Command {
  return new Command('sanitise')
    .summary('write what would leave this host')
    .description(
      'Takes one file through the gate and writes the result: decoded, upright, without metadata.\n' +
        'Nothing is sent, and no control plane is needed. The sound of a film is written beside it.',
    )
    .argument('<in>', 'image, film or sound; its content decides, not its name')
    .argument('<out>', 'file to write, or a folder')
    .option('--json', 'print one JSON object')
    .option('--force', 'overwrite what is there')
    .addOption(
      new Option('--isolation <level>', 'how decoders are kept apart')
        .choices(['bubblewrap', 'none'])
        .default('bubblewrap'),
    )
    .option('--ffmpeg <path>', 'the ffmpeg to use')
    .addHelpText(
      'after',
      '\nExample:\n  sluice-agent sanitise IMG_0815.JPG clean.jpg\n  sluice-agent sanitise --json holiday.mov out/',
    )
    .action((input: string, output: string, options: SanitiseOptions) =>
      sanitise({ input, output, ...options }, print),
    )
}

async function sanitise(
  options: SanitiseOptions & { input: string; output: string },
  print: (text: string) => void,
): Promise<void> {
  const { input, output } = options
  const gate = await openGate({
    scratchFolder: tmpdir(),
    isolation: options.isolation,
    ...(options.ffmpeg === undefined ? {} : { ffmpegPath: path.resolve(options.ffmpeg) }),
  })
  await using passed = await passGate(input, gate)
  const source = passed.media[0]?.source
  const targets = await chooseTargets(input, output, passed.media)
  const force = options.force === true
  // Before anything is written, so that a film isn't left without its sound.
  for (const target of targets) await requireFree(target, { force })
  const written: Written[] = []
  for (const [i, { content, extension: _, source: __, ...facts }] of passed.media.entries()) {
    const target = targets[i] ?? output
    await using file = await openNewFile(target, { force })
    for await (const piece of content.read()) await file.write(piece)
    await file.finish()
    written.push({ path: target, bytes: content.bytes, ...facts })
  }
  const { nameDisagrees } = passed
  if (options.json === true) {
    const answer = { source: { ...source, nameDisagrees }, isolation: gate.isolation, written }
    print(JSON.stringify(answer, null, 2))
    return
  }
  if (nameDisagrees)
    process.stderr.write(`note: the content is ${source?.format}, whatever its name\n`)
  for (const medium of written) print(describe(medium))
}

function describe(medium: Written): string {
  const { widthPixels, heightPixels, durationMs, removed } = medium
  const size = widthPixels === undefined ? '' : ` ${widthPixels}x${heightPixels}`
  const length = durationMs === undefined ? '' : ` ${(durationMs / 1000).toFixed(1)} s`
  const gone = removed.length === 0 ? 'no metadata found' : `removed: ${removed.join(', ')}`
  return `${medium.path}: ${medium.codec}${size}${length}, ${medium.bytes} bytes, ${gone}`
}

/** In a folder the source's own name with the new extension; else as named, the sound beside it. */
async function chooseTargets(
  input: string,
  output: string,
  media: readonly NormalisedMedium[],
): Promise<string[]> {
  const facts = await lstat(output).catch(() => undefined)
  const inFolder = facts?.isDirectory() === true || output.endsWith(path.sep)
  const name = path.basename(input, path.extname(input))
  const first = inFolder ? path.join(output, `${name}.${media[0]?.extension}`) : output
  const extension = path.extname(first).toLowerCase()
  const wanted = `.${media[0]?.extension}`
  if (extension !== wanted && !(wanted === '.jpg' && extension === '.jpeg')) {
    throw new SluiceError(
      'usage',
      `the result is no ${extension === '' ? 'file without extension' : extension}`,
      {
        hint: `Name a file that ends in ${wanted}, or a folder.`,
      },
    )
  }
  const stem = first.slice(0, -extension.length)
  return media.map((medium, i) => (i === 0 ? first : `${stem}.${medium.extension}`))
}
