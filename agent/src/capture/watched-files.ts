/** Remembers which files of watched folders were taken: a file of its own, so that no change of the journal writes it anew. */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { z } from 'zod'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import {
  type DurableEffects,
  diskEffects,
  isDiskFull,
  isMissing,
  writeDurably,
} from '../durable-file.ts'
import { type Journal, type SourceIdentity, type Submission, sourceIdentity } from '../journal.ts'

export const watchedFilesName = 'watched.json'

const content = z.strictObject({
  schema: z.literal('sluice-watched/1'),
  /** Submissions that are newer are not taken into account; 0 before the first. */
  untilMs: z.int().nonnegative(),
  /** By path. */
  files: z.record(z.string(), sourceIdentity.omit({ path: true })),
})
type Content = z.infer<typeof content>
type Taken = Content['files'][string]

export type WatchedFiles = {
  /** Whether this file was taken, as it is now. */
  isTaken(source: SourceIdentity): boolean
  /** Paths of all that were taken. */
  paths(): string[]
  /** Number of the file system that a taken file was last seen on. */
  deviceOf(file: string): string | undefined
  /** Counts from now on; durable with {@link save}. */
  remember(sources: readonly SourceIdentity[]): void
  forget(files: readonly string[]): void
  /**
   * Writes down what has changed. What a crash loses before that is found again in the journal, by
   * the submissions that were made of it.
   *
   * @throws SluiceError `host.disk_full`; it is written with the next call then.
   */
  save(): Promise<void>
}

/**
 * Opens what is known of watched folders, and takes over what an older agent kept in the journal.
 *
 * @throws SluiceError `host.unsafe_file` when the file is there but is none of this version.
 */
export async function openWatchedFiles(
  stateDir: string,
  journal: Journal,
  effects: DurableEffects = diskEffects,
): Promise<WatchedFiles> {
  const file = path.join(stateDir, watchedFilesName)
  const taken = new Map<string, Taken>()
  let isSaved = true

  function remember(sources: readonly SourceIdentity[]): void {
    for (const { path: name, ...facts } of sources) {
      const known = taken.get(name)
      if (known && isUnchanged(known, facts) && known.device === facts.device) continue
      taken.set(name, facts)
      isSaved = false
    }
  }

  async function save(): Promise<void> {
    if (isSaved) return
    isSaved = true
    const untilMs = Math.max(0, ...ofFolders().map(({ createdAtMs }) => createdAtMs))
    const files = Object.fromEntries(taken)
    const text = JSON.stringify({ schema: 'sluice-watched/1', untilMs, files } satisfies Content)
    try {
      await writeDurably(file, Buffer.from(text), { effects })
    } catch (cause) {
      isSaved = false
      if (!isDiskFull(cause)) throw cause
      throw new SluiceError('host.disk_full', 'no room to write down which files were taken', {
        retry: 'later',
        hint: 'Free space on the file system of the state directory; the agent then goes on by itself.',
        cause,
      })
    }
  }

  /** What folders gave, the newest last: a file may have been taken twice under one name. */
  function ofFolders(): Submission[] {
    return Object.values(journal.data.submissions)
      .filter(({ origin }) => origin === 'watch')
      .toSorted((one, other) => one.createdAtMs - other.createdAtMs)
  }

  const older = journal.data.watched
  if (older) remember(Object.values(older))
  const found = await read(file)
  for (const [name, facts] of Object.entries(found?.files ?? {})) taken.set(name, facts)
  // The journal of an older agent knew everything in one step.
  const untilMs = found?.untilMs ?? (older ? Infinity : 0)
  for (const { createdAtMs, sources } of ofFolders()) if (createdAtMs > untilMs) remember(sources)
  if (older) await takeOver()

  async function takeOver(): Promise<void> {
    try {
      await save()
      await journal.change((draft) => {
        delete draft.watched
      })
    } catch (error) {
      // It stays where it is until a start finds room.
      if (!isSluiceError(error, 'host.disk_full')) throw error
    }
  }

  return {
    isTaken(source) {
      const known = taken.get(source.path)
      return known !== undefined && isUnchanged(known, source)
    },
    paths: () => [...taken.keys()],
    deviceOf: (name) => taken.get(name)?.device,
    remember,
    forget(files) {
      for (const name of files) if (taken.delete(name)) isSaved = false
    },
    save,
  }
}

/** Without the device: a network share has another number each time it is mounted. */
function isUnchanged(left: Taken, right: Taken): boolean {
  return (
    left.inode === right.inode &&
    left.bytes === right.bytes &&
    left.modifiedAtNs === right.modifiedAtNs
  )
}

async function read(file: string): Promise<Content | undefined> {
  let value: unknown
  try {
    value = JSON.parse(await readFile(file, 'utf8'))
  } catch (cause) {
    if (isMissing(cause)) return undefined
    if (!(cause instanceof SyntaxError)) throw cause
    throw damaged(file, cause)
  }
  const parsed = content.safeParse(value)
  if (parsed.success) return parsed.data
  throw damaged(file, parsed.error)
}

function damaged(file: string, cause: unknown): SluiceError {
  return new SluiceError('host.unsafe_file', `${file} does not say which files were taken`, {
    hint: 'Restore the file. Moving it away lets files of watched folders be taken once more.',
    cause,
  })
}
