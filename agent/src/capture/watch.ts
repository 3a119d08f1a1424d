/** Watches folders: what is finished becomes jobs, alone or in batches, each content once, and never more than can be worked off. */
import { lstat, readdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import type { WatchedFolder } from '../config.ts'
import { isMissing } from '../durable-file.ts'
import type { Journal, JournalData, SourceIdentity } from '../journal.ts'
import { contentKey, isContentKnown } from './contents.ts'
import { hashFiles } from './hash-files.ts'
import type { Capture } from './pipeline.ts'
import { type Sighting, batches, isSettled, sight } from './settle.ts'
import { identifySource, isSameSource } from './sources.ts'
import type { WatchedFiles } from './watched-files.ts'
import { isMeant } from './watched-names.ts'

export type WatchOptions = {
  folders: readonly WatchedFolder[]
  journal: Journal
  watched: WatchedFiles
  capture: Pick<Capture, 'submit'>
  pollMs: number
  /** So many submissions may wait for their sealing; files beyond stay where they are. */
  pendingMax: number
  isolation: IsolationLevel
  signal: AbortSignal
  /** Told of a folder that cannot be read; it is tried again with every look. */
  failed: (folder: string, problem: SluiceError) => void
  /** Told of files whose content was taken before. */
  duplicates?: (count: number) => void
  /** Told when files begin to wait because too many submissions do. */
  holding?: (pending: number) => void
  now?: () => number
  /** For tests. */
  hash?: (files: readonly SourceIdentity[]) => Promise<(string | undefined)[]>
}

/** Looks again and again until `signal` aborts. */
export async function watchFolders(options: WatchOptions): Promise<void> {
  if (options.folders.length === 0) return
  const look = createLook(options)
  while (!options.signal.aborted) {
    await look()
    await sleep(options.pollMs, undefined, { signal: options.signal, ref: false }).catch(() => {
      // Ending: the loop sees it.
    })
  }
}

/** A finished file, with its content's hash where that was asked for. */
type Finished = Sighting & { sha256: string | undefined }

/** One look over all folders; keeps what it saw for the next one. */
export function createLook(options: WatchOptions): () => Promise<void> {
  const { journal, watched, capture, signal } = options
  // Not that of the day, which somebody may set: a file would wait for it to come round again.
  const now = options.now ?? (() => performance.now())
  const hash =
    options.hash ??
    ((files: readonly SourceIdentity[]) =>
      hashFiles(files, { isolation: options.isolation, signal }))
  let before = new Map<string, Sighting>()
  /** Hashes of finished files that still wait, so that no look reads them again. */
  const hashes = new Map<string, { source: SourceIdentity; sha256: string | undefined }>()
  let holding = false
  /** Of what cannot be read below each folder, as it was told last. */
  const told = new Map<string, number>()

  async function lookAt(folder: WatchedFolder, seen: Map<string, Sighting>): Promise<void> {
    const atMs = now()
    const finished: Sighting[] = []
    const { files, unread } = await filesIn(folder)
    let unreadCount = unread
    for (const file of files) {
      const source = await identityOf(file)
      if (!source) {
        if (isNoText(file)) unreadCount += 1
        continue
      }
      const earlier = before.get(file)
      const isSame = earlier !== undefined && isSameSource(earlier.source, source)
      const sighting = sight(earlier, { source, isSame, atMs })
      seen.set(file, sighting)
      if (watched.isTaken(source)) {
        // A share may have been mounted anew, and have another number by now.
        watched.remember([source])
        continue
      }
      if (isSettled(sighting, { settleMs: folder.settleMs, atMs })) finished.push(sighting)
    }
    tellUnread(folder, unreadCount)
    await take(folder, finished, atMs)
  }

  /** Once, and again when it changes: most of it stays as it is, such as `lost+found`. */
  function tellUnread({ path: folder }: WatchedFolder, count: number): void {
    if ((told.get(folder) ?? 0) === count) return
    told.set(folder, count)
    if (count > 0) options.failed(folder, unreadable(folder, count))
  }

  async function take(folder: WatchedFolder, finished: Sighting[], atMs: number): Promise<void> {
    if (finished.length === 0 || isFull()) return
    // No more are read than may be taken: the others are hashed when their turn comes.
    const room = Math.max(1, options.pendingMax - pending(journal.data))
    const some = finished.slice(0, room * folder.batchFiles)
    const fresh = folder.dedupe ? await withoutKnown(folder, some) : some.map(unhashed)
    const rule = { filesMax: folder.batchFiles, waitMs: folder.batchMs, atMs }
    for (const batch of batches(fresh, rule)) {
      if (signal.aborted || isFull()) return
      await submit(folder, batch as Finished[])
    }
  }

  function isFull(): boolean {
    const count = pending(journal.data)
    const full = count >= options.pendingMax
    if (full && !holding) options.holding?.(count)
    holding = full
    return full
  }

  async function submit(folder: WatchedFolder, batch: readonly Finished[]): Promise<void> {
    const { analyser, moveTo, sourceAction: action, sourceWhen: when } = folder
    const id = await capture.submit({
      files: batch.map(({ source }) => source.path),
      ...{ analyser, source: { action, when }, moveTo, origin: 'watch' },
      contents: batch.flatMap(({ sha256 }) => sha256 ?? []),
    })
    // As they were when they were submitted; a purge may have dropped the submission since.
    watched.remember(journal.data.submissions[id]?.sources ?? batch.map(({ source }) => source))
    for (const { source } of batch) hashes.delete(source.path)
  }

  /** Leaves out what was taken before, or is there twice, and remembers that it was seen. */
  async function withoutKnown(
    folder: WatchedFolder,
    finished: readonly Sighting[],
  ): Promise<Finished[]> {
    const hashed = await hashAll(finished)
    const fresh = new Map<string, Finished>()
    const known: SourceIdentity[] = []
    const unknown: Finished[] = []
    for (const each of hashed) {
      const { sha256, source } = each
      if (sha256 === undefined) unknown.push(each)
      else if (
        fresh.has(sha256) ||
        isContentKnown(journal.data, contentKey(sha256, folder.analyser))
      )
        known.push(source)
      else fresh.set(sha256, each)
    }
    if (known.length > 0) {
      watched.remember(known)
      for (const { path: file } of known) hashes.delete(file)
      options.duplicates?.(known.length)
    }
    return [...fresh.values(), ...unknown]
  }

  async function hashAll(finished: readonly Sighting[]): Promise<Finished[]> {
    const left = finished.filter(({ source }) => {
      const kept = hashes.get(source.path)
      return !kept || !isSameSource(kept.source, source)
    })
    const digests = await hash(left.map(({ source }) => source))
    for (const [place, { source }] of left.entries()) {
      // Only a file that is still the same has this content.
      const after = await identityOf(source.path)
      const sha256 = after && isSameSource(after, source) ? digests[place] : undefined
      hashes.set(source.path, { source, sha256 })
    }
    return finished.map((each) => ({ ...each, sha256: hashes.get(each.source.path)?.sha256 }))
  }

  /**
   * Files that are gone are forgotten, so that a new one of that name is taken; but none that only
   * cannot be seen, as those of a share that is not mounted.
   */
  async function forgetGone(
    seen: ReadonlyMap<string, Sighting>,
    read: readonly WatchedFolder[],
  ): Promise<void> {
    for (const file of hashes.keys()) if (!seen.has(file)) hashes.delete(file)
    const all = watched.paths()
    const isFullList = all.length > limits.watchedEntriesMax
    const gone: string[] = []
    for (const file of all) {
      if (seen.has(file) || !read.some((folder) => isWithin(file, folder))) continue
      if (isFullList || (await isGone(file, watched.deviceOf(file)))) gone.push(file)
    }
    watched.forget(gone)
  }

  return async () => {
    const seen = new Map<string, Sighting>()
    const read: WatchedFolder[] = []
    for (const folder of options.folders) {
      try {
        await lookAt(folder, seen)
        read.push(folder)
      } catch (error) {
        if (!isSluiceError(error)) throw error
        if (signal.aborted) return
        options.failed(folder.path, error)
      }
    }
    before = seen
    await forgetGone(seen, read)
    try {
      await watched.save()
    } catch (error) {
      // It is written down with the next look that finds room.
      if (!isSluiceError(error)) throw error
      for (const folder of read) options.failed(folder.path, error)
    }
  }
}

const unhashed = (sighting: Sighting): Finished => ({ ...sighting, sha256: undefined })

/** Submissions that are not sealed yet: what the host still has to do. */
function pending(data: Readonly<JournalData>): number {
  return Object.values(data.submissions).filter(
    ({ state }) => state === 'waiting' || state === 'sealing',
  ).length
}

function isWithin(file: string, folder: WatchedFolder): boolean {
  const inside = path.dirname(file)
  return inside === folder.path || (folder.subfolders && inside.startsWith(`${folder.path}/`))
}

/**
 * Regular files of a folder that are meant, in the order of their names; links are not followed.
 *
 * @returns Also how many folders below it cannot be read; one that has just gone away is none.
 */
async function filesIn(folder: WatchedFolder): Promise<{ files: string[]; unread: number }> {
  const found: string[] = []
  let entries = 0
  let unread = 0
  const list = async (at: string) => {
    try {
      return await readdir(at, { withFileTypes: true })
    } catch (error) {
      if (at === folder.path) throw error
      if (!isMissing(error) || isNoText(at)) unread += 1
      return []
    }
  }
  const walk = async (at: string): Promise<void> => {
    for (const entry of await list(at)) {
      if ((entries += 1) > limits.watchedEntriesMax) throw tooMany(folder.path)
      const file = path.join(at, entry.name)
      const isFolder = entry.isDirectory() && folder.subfolders && !entry.name.startsWith('.')
      if (isFolder) await walk(file)
      else if (entry.isFile() && isMeant(path.relative(folder.path, file), folder)) found.push(file)
    }
  }
  try {
    await walk(folder.path)
    return { files: found.toSorted(), unread }
  } catch (cause) {
    if (isSluiceError(cause)) throw cause
    throw new SluiceError('media.not_a_file', `the watched folder ${folder.path} cannot be read`, {
      retry: 'later',
      hint: isMissing(cause) ? 'Make it, or take it out of "watch".' : 'Look at its permissions.',
      cause,
    })
  }
}

function tooMany(folder: string): SluiceError {
  return new SluiceError('media.not_a_file', `the watched folder ${folder} holds too many files`, {
    retry: 'later',
    hint: `At most ${limits.watchedEntriesMax} are looked at; move finished ones away ("sourceAction").`,
  })
}

function unreadable(place: string, count: number): SluiceError {
  const what = count === 1 ? 'one file or folder' : `${count} files or folders`
  return new SluiceError('media.not_a_file', `${what} in the watched ${place} cannot be read`, {
    retry: 'later',
    hint: 'Look at their permissions, and whether their names are UTF-8; the others are taken.',
  })
}

/** A name that is not UTF-8 is read as one that nothing has. */
function isNoText(file: string): boolean {
  return file.includes('\u{fffd}')
}

/**
 * Whether there is no such file any more on its own file system.
 *
 * @param device Of that file system; where it isn't mounted, another one shows through.
 */
async function isGone(file: string, device: string | undefined): Promise<boolean> {
  if (!(await isAbsent(file))) return false
  let place = path.dirname(file)
  while (await isAbsent(place)) place = path.dirname(place)
  const facts = await stat(place, { bigint: true }).catch(() => undefined)
  return facts !== undefined && String(facts.dev) === device
}

/** What only cannot be looked at may still be there. */
async function isAbsent(file: string): Promise<boolean> {
  return lstat(file).then(
    () => false,
    (error: unknown) => isMissing(error),
  )
}

/** A file that went away between listing and looking is not there. */
async function identityOf(file: string): Promise<SourceIdentity | undefined> {
  try {
    return await identifySource(file)
  } catch (error) {
    if (isSluiceError(error, 'media.not_a_file')) return undefined
    throw error
  }
}
