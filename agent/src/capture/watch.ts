/** Watches folders: a new file is submitted once it has not changed between two looks. */
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { WatchedFolder } from '../config.ts'
import { isMissing } from '../durable-file.ts'
import type { Journal, SourceIdentity } from '../journal.ts'
import type { Capture } from './pipeline.ts'
import { identifySource, isSameSource } from './sources.ts'

export type WatchOptions = {
  folders: readonly WatchedFolder[]
  journal: Journal
  capture: Pick<Capture, 'submit'>
  pollMs: number
  signal: AbortSignal
  /** Told of a folder that cannot be read; it is tried again with every look. */
  failed: (folder: string, problem: SluiceError) => void
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

/** One look over all folders; keeps what it saw for the next one. */
export function createLook(options: WatchOptions): () => Promise<void> {
  const { journal, capture } = options
  let before = new Map<string, SourceIdentity>()

  async function lookAt(folder: WatchedFolder, seen: Map<string, SourceIdentity>): Promise<void> {
    for (const file of await filesIn(folder.path)) {
      const found = await identityOf(file)
      if (!found) continue
      seen.set(file, found)
      const taken = journal.data.watched[file]
      if (taken && isSameSource(taken, found)) continue
      const earlier = before.get(file)
      if (!earlier || !isSameSource(earlier, found)) continue
      const { analyser, moveTo, sourceAction: action, sourceWhen: when } = folder
      const source = { action, when }
      await capture.submit({ files: [file], analyser, source, moveTo, origin: 'watch' })
    }
  }

  /** Files that are gone are forgotten, so that a new one of that name is taken. */
  async function forgetGone(seen: Map<string, SourceIdentity>, read: Set<string>): Promise<void> {
    const gone = Object.keys(journal.data.watched).filter(
      (file) => read.has(path.dirname(file)) && !seen.has(file),
    )
    if (gone.length === 0) return
    await journal.change((draft) => {
      for (const file of gone) delete draft.watched[file]
    })
  }

  return async () => {
    const seen = new Map<string, SourceIdentity>()
    const read = new Set<string>()
    for (const folder of options.folders) {
      try {
        await lookAt(folder, seen)
        read.add(folder.path)
      } catch (error) {
        if (!isSluiceError(error)) throw error
        options.failed(folder.path, error)
      }
    }
    before = seen
    try {
      await forgetGone(seen, read)
    } catch (error) {
      // They are forgotten with the next look that finds room to write it down.
      if (!isSluiceError(error)) throw error
      for (const folder of read) options.failed(folder, error)
    }
  }
}

/** Regular files right in the folder; names that begin with a dot are half-written by convention. */
async function filesIn(folder: string): Promise<string[]> {
  try {
    const entries = await readdir(folder, { withFileTypes: true })
    return entries
      .filter((entry) => entry.isFile() && !entry.name.startsWith('.'))
      .filter((entry) => !entry.name.endsWith('.sluice-taken'))
      .map((entry) => path.join(folder, entry.name))
  } catch (cause) {
    throw new SluiceError('media.not_a_file', `the watched folder ${folder} cannot be read`, {
      retry: 'later',
      hint: isMissing(cause) ? 'Make it, or take it out of "watch".' : 'Look at its permissions.',
      cause,
    })
  }
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
