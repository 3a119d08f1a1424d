/** Reads the checkout as the repository tests see it: every file that belongs to it, with its text. */

import { readdirSync, readFileSync, statSync } from 'node:fs'
import { join, relative } from 'node:path'

export const repositoryRoot = join(import.meta.dirname, '..', '..', '..')

/** Folders that hold nothing of ours. */
const skippedFolders = new Set(['node_modules', '.git', 'coverage', 'tmp'])

/** Larger ones are vectors and lockfiles, which no rule reads. */
const textBytesMax = 1024 * 1024

export type SourceFile = {
  /** Relative to the root, with `/`. */
  readonly path: string
  readonly text: string
  /** Whether its owner may execute it. */
  readonly executable: boolean
}

/** Every text file of the checkout, in order of path. */
export function readRepository(root: string = repositoryRoot): SourceFile[] {
  const files: SourceFile[] = []
  const walk = (folder: string): void => {
    for (const entry of readdirSync(folder, { withFileTypes: true })) {
      const path = join(folder, entry.name)
      if (entry.isDirectory() && !skippedFolders.has(entry.name)) walk(path)
      if (!entry.isFile()) continue
      const { size, mode } = statSync(path)
      if (size > textBytesMax) continue
      const bytes = readFileSync(path)
      if (bytes.includes(0)) continue
      files.push({
        path: relative(root, path),
        text: bytes.toString('utf8'),
        executable: (mode & 0o100) !== 0,
      })
    }
  }
  walk(root)
  return files.toSorted((a, b) => (a.path < b.path ? -1 : 1))
}

export function isTypeScript(path: string): boolean {
  return path.endsWith('.ts') && !path.endsWith('.d.ts')
}

/** A file for the positive control of a rule. */
export function sampleFile(path: string, text: string, executable = false): SourceFile {
  return { path, text, executable }
}
