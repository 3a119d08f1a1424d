/** Refuses names that say nothing: a file or symbol is called after what it does in the story. */

import type { SourceFile } from './source-tree.ts'
import { isTypeScript } from './source-tree.ts'

/** Each of these can hold anything, so sooner or later it does. */
const banned = ['util', 'utility', 'helper', 'common', 'misc', 'manager', 'handler', 'service']
const bannedWords = new Set(banned.flatMap((word) => [word, `${word}s`, word.replace(/y$/, 'ies')]))

/** `camelCase`, `PascalCase`, `kebab-case` and `SNAKE_CASE` as words in small letters. */
export function wordsOf(name: string): string[] {
  return name
    .replaceAll(/([a-z\d])([A-Z])/g, '$1 $2')
    .replaceAll(/([A-Z]+)([A-Z][a-z])/g, '$1 $2')
    .split(/[^A-Za-z\d]+/)
    .map((word) => word.toLowerCase())
}

function bannedIn(name: string): string | undefined {
  return wordsOf(name).find((word) => bannedWords.has(word))
}

const declaration = /\b(?:function\*?|class|const|let|var|type|interface|using)\s+([\w$]+)/g

/** Complaints about names of files, folders and declared symbols; empty when all is well. */
export function checkNames(files: readonly SourceFile[]): string[] {
  const complaints: string[] = []
  for (const { path, text } of files) {
    // systemd wants this ending.
    for (const part of path.replace(/\.service$/, '').split('/')) {
      const word = bannedIn(part)
      if (word !== undefined) complaints.push(`${path}: "${word}" says nothing; name the deed`)
    }
    if (!isTypeScript(path) && !path.endsWith('.mjs')) continue
    for (const [, name = ''] of text.matchAll(declaration)) {
      const word = bannedIn(name)
      if (word !== undefined) complaints.push(`${path}: ${name}: "${word}" says nothing`)
    }
  }
  return complaints
}

/** Complaints about source files that are not kebab-case. */
export function checkFileNames(files: readonly SourceFile[]): string[] {
  return files
    .filter(({ path }) => isTypeScript(path))
    .filter(
      ({ path }) => !/^[a-z\d]+(-[a-z\d]+)*(\.[a-z-]+)*\.ts$/.test(path.split('/').at(-1) ?? ''),
    )
    .map(({ path }) => `${path}: source files are kebab-case`)
}
