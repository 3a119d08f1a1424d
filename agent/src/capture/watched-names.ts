/** Decides by its name alone whether a file of a watched folder is meant: pure. */
import path from 'node:path'

export type NameRule = {
  /** Patterns; without any, every name is meant. */
  include: readonly string[]
  exclude: readonly string[]
}

/** What programs call a file while they write it, and what desktops leave behind. */
const unfinished = [
  '*.part',
  '*.partial',
  '*.crdownload',
  '*.download',
  '*.opdownload',
  '*.aria2',
  '*.filepart',
  '*.tmp',
  '*.temp',
  '*.swp',
  '*~',
  '*.sluice-taken',
  'thumbs.db',
  'desktop.ini',
]

/**
 * Whether a file is meant. Upper and lower case are the same: cameras write both. A pattern without
 * a slash is about the name, wherever it lies; one with a slash about the path in the folder.
 *
 * @param relative Path within the watched folder.
 */
export function isMeant(relative: string, rule: NameRule): boolean {
  const file = relative.toLowerCase()
  if (file.split(path.sep).some((segment) => segment.startsWith('.'))) return false
  if (unfinished.some((pattern) => matches(file, pattern))) return false
  if (rule.exclude.some((pattern) => matches(file, pattern))) return false
  return rule.include.length === 0 || rule.include.some((pattern) => matches(file, pattern))
}

/** @see Node.js, `path.matchesGlob`. */
function matches(file: string, pattern: string): boolean {
  const wanted = pattern.toLowerCase()
  return path.matchesGlob(wanted.includes('/') ? file : path.basename(file), wanted)
}
