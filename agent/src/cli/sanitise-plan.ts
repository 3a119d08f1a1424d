/** Decides, before anything is decoded, which files `sanitise` takes and what its results will be called. */
import { lstat, readdir } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { NormalisedMedium } from '../capture/normalised.ts'

/** One file to be taken, and where its results go: a stem that gets the right extension. */
export type PlannedFile = { file: string; stem: string }

export type Plan = {
  files: PlannedFile[]
  /** Names that begin with a dot, links and devices: they are passed over. */
  skipped: number
  /** Folders within `in` whose files nobody could list; nothing is known of them. */
  unlisted: { folder: string; error: SluiceError }[]
  /** Whether `in` is a folder, so that one refusal does not end it all. */
  many: boolean
  /** Set when the person named the result itself: its extension must be right. */
  named?: string
}

/**
 * @param output undefined when nothing is to be written.
 * @throws SluiceError `media.not_a_file`, and `usage` for a file where a folder is needed.
 */
export async function planSanitise(input: string, output: string | undefined): Promise<Plan> {
  const facts = await lstat(input).catch((cause: unknown) => {
    throw new SluiceError('media.not_a_file', `${input} cannot be read`, {
      hint: 'Name a file or folder that is there; links are not followed.',
      cause,
    })
  })
  if (facts.isDirectory()) return planFolder(input, output)
  const name = path.basename(input, path.extname(input))
  if (output === undefined) return { files: [{ file: input, stem: name }], ...alone }
  if (output.endsWith(path.sep) || (await isFolder(output))) {
    const stem = path.join(output, name)
    return { files: [{ file: input, stem }], ...alone }
  }
  const stem = output.slice(0, output.length - path.extname(output).length)
  return { files: [{ file: input, stem }], ...alone, named: output }
}

const alone = { skipped: 0, unlisted: [], many: false }

async function planFolder(input: string, output: string | undefined): Promise<Plan> {
  if (output !== undefined && !(await isFolder(output)) && (await isThere(output)))
    throw new SluiceError('usage', `${output} is no folder`, {
      hint: 'Name a folder for the results of a folder; it is made when it is not there.',
    })
  const into = output === undefined ? undefined : path.resolve(output)
  const found: string[] = []
  const unlisted: Plan['unlisted'] = []
  let skipped = 0
  const walk = async (folder: string): Promise<void> => {
    const entries = await listFolder(folder).catch((error: unknown) => {
      if (!isSluiceError(error) || folder === input) throw error
      unlisted.push({ folder, error })
      return []
    })
    for (const entry of entries.toSorted((one, other) => (one.name < other.name ? -1 : 1))) {
      const file = path.join(folder, entry.name)
      if (path.resolve(file) === into) continue
      if (entry.name.startsWith('.')) skipped += 1
      else if (entry.isDirectory()) await walk(file)
      else if (entry.isFile()) found.push(file)
      else skipped += 1
    }
  }
  await walk(input)
  return { files: stems(found, { input, output: output ?? '' }), skipped, unlisted, many: true }
}

/** @throws SluiceError `media.not_a_file` with the reason. */
function listFolder(folder: string) {
  return readdir(folder, { withFileTypes: true }).catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === undefined) throw cause
    const why =
      cause.code === 'ENOENT' && folder.includes('\u{fffd}')
        ? 'its name is not UTF-8; give it another one'
        : cause.code === 'EACCES'
          ? 'it may not be read'
          : cause.code
    throw new SluiceError('media.not_a_file', `the folder cannot be read: ${why}`, {
      hint: 'Nothing in it was looked at. Name folders that you may read.',
      cause,
    })
  })
}

/** Two sources that differ only in their extension keep it, so that neither result hides the other. */
function stems(files: readonly string[], to: { input: string; output: string }): PlannedFile[] {
  const shortOf = (file: string) => file.slice(0, file.length - path.extname(file).length)
  const whole = new Set(files.map((file) => file.toLowerCase()))
  const count = new Map<string, number>()
  for (const file of files) {
    // Some file systems take upper and lower case for the same.
    const key = shortOf(file).toLowerCase()
    count.set(key, (count.get(key) ?? 0) + 1)
  }
  return files.map((file) => {
    const short = shortOf(file)
    // Another one's whole name may be this one's short one: `a.jpg` beside `a.jpg.png`.
    const taken = short !== file && whole.has(short.toLowerCase())
    const free = !taken && count.get(short.toLowerCase()) === 1
    const name = path.relative(to.input, free ? short : file)
    return { file, stem: path.join(to.output, name) }
  })
}

/** Names of all results of one source: its pages are numbered, the sound of a film lies beside it. */
export function targetsOf(
  { stem }: PlannedFile,
  media: readonly Pick<NormalisedMedium, 'extension'>[],
): string[] {
  const used = new Set<string>()
  return media.map(({ extension }, place) => {
    const plain = `${stem}.${extension}`
    const target = used.has(plain) ? `${stem}-${place + 1}.${extension}` : plain
    used.add(target)
    return target
  })
}

/**
 * A name that a person chose is kept as it is, and so must be right.
 *
 * @throws SluiceError `usage` when it promises another format.
 */
export function requireExtension(
  named: string,
  medium: Pick<NormalisedMedium, 'extension'> | undefined,
): void {
  const extension = path.extname(named).toLowerCase()
  const wanted = `.${medium?.extension}`
  if (extension === wanted || (wanted === '.jpg' && extension === '.jpeg')) return
  const what = extension === '' ? 'file without extension' : extension
  throw new SluiceError('usage', `the result is no ${what}`, {
    hint: `Name a file that ends in ${wanted}, or a folder.`,
  })
}

/**
 * The originals are the person's to remove: a result never takes the place of one, told or not.
 *
 * @throws SluiceError `usage` when the target is a source, under whatever name.
 */
export async function requireNoSource(target: string, sources: ReadonlySet<string>): Promise<void> {
  if (!sources.has(await identityOf(target))) return
  throw new SluiceError('usage', `${target} is one of the sources`, {
    hint: 'Name another folder for the results; --force does not overwrite what they are made of.',
  })
}

/** What the sources of a plan are, for `requireNoSource`. */
export async function identitiesOf(files: readonly PlannedFile[]): Promise<ReadonlySet<string>> {
  const identities = new Set<string>()
  for (const { file } of files) identities.add(await identityOf(file))
  identities.delete(nothing)
  return identities
}

const nothing = ''

/** One text for one file, whatever its name. */
async function identityOf(file: string): Promise<string> {
  const facts = await lstat(file, { bigint: true }).catch(() => undefined)
  return facts === undefined ? nothing : `${facts.dev}:${facts.ino}`
}

async function isFolder(file: string): Promise<boolean> {
  const facts = await lstat(file).catch(() => undefined)
  return facts?.isDirectory() === true
}

async function isThere(file: string): Promise<boolean> {
  return (await lstat(file).catch(() => undefined)) !== undefined
}
