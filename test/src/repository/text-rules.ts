/** Refuses lines that must never be in the repository, and files without a promise. */

import type { SourceFile } from './source-tree.ts'
import { isTypeScript } from './source-tree.ts'

type TextRule = {
  pattern: RegExp
  because: string
  /** Default: every file. */
  where?: RegExp
  /** Files in which the line is right. */
  but?: RegExp
}

const sources = /\.(ts|mjs)$/

const rules: TextRule[] = [
  {
    pattern: /rejectUnauthorized\s*:\s*false|NODE_TLS_REJECT_UNAUTHORIZED|--insecure\b.*https/,
    because: 'every connection is verified, in tests too',
  },
  {
    pattern: /\b(minVersion|maxVersion)\s*:\s*'TLSv1(\.[01])?'/,
    because: 'TLS below 1.2 is not even tried',
  },
  {
    pattern: /^export default\b/m,
    because: 'a named export has one name everywhere',
    where: sources,
    but: /^control-plane\/drizzle\.config\.ts$/,
  },
  {
    pattern: /\b(TODO|FIXME|XXX|HACK)\b/,
    because: 'decide it now or write it down where it is planned',
    but: /^pnpm-lock\.yaml$/,
  },
  {
    pattern: /(^|[\s'"`(=])\/(work|home\/\w+|root|Users)\//m,
    because: 'a path of one machine is wrong on every other',
  },
  {
    pattern: /\b(localhost|127\.0\.0\.1):(4873|8081)\b|\b_authToken\b|^registry\s*=|tarball: http/m,
    because: 'where packages come from is set on the machine, not in the repository',
  },
  {
    pattern: /^\s*(describe|it|test)\.only\(/m,
    because: 'it switches all other tests off',
    where: /\.test\.ts$/,
  },
  {
    pattern: /\b(it|test|describe)\.skip\(/,
    because: 'a test that cannot run says why: { skip: need(…) }',
    where: /\.test\.ts$/,
  },
  {
    pattern: /catch\s*(\(\w*\))?\s*\{\s*\}/,
    because: 'an error that nobody sees cannot be mended',
    where: sources,
  },
  {
    pattern: /-----BEGIN (EC |RSA |ENCRYPTED )?PRIVATE KEY-----\n/,
    because: 'a private key in the repository is no secret',
  },
  {
    pattern: /['"]0\.0\.0\.0['"]/,
    because: 'a test listens on loopback only, and a daemon where its configuration says',
    where: /\.test\.ts$/,
  },
]

/** The files of this folder hold the patterns and their bad samples. */
const ownFolder = 'test/src/repository/'

/** Complaints with the line; empty when all is well. */
export function checkTexts(files: readonly SourceFile[]): string[] {
  const complaints: string[] = []
  for (const { path, text } of files) {
    if (path.startsWith(ownFolder)) continue
    for (const { pattern, because, where, but } of rules) {
      if (where?.test(path) === false || but?.test(path) === true) continue
      const match = pattern.exec(text)
      if (match === null) continue
      const line = text.slice(0, match.index).split('\n').length
      complaints.push(`${path}:${line}: ${match[0].trim()}: ${because}`)
    }
  }
  return complaints
}

/**
 * Complaints about sources that do not open with a sentence of what they promise. A test beside the code
 * needs none: it proves the promise of the file it is named after.
 */
export function checkPromises(files: readonly SourceFile[]): string[] {
  return files
    .filter(({ path }) => isTypeScript(path) || path.endsWith('.mjs'))
    .filter(({ path }) => !path.endsWith('.test.ts'))
    .filter(({ text }) => !/^(#!.*\n)?\/\*\*[\s*]+[^\s*][^]*?\*\//.test(text))
    .map(({ path }) => `${path}: open the file with one sentence that says what it promises`)
}

/**
 * Complaints about programs that cannot be run, and about other files that can. A TypeScript source may
 * open like a program without being one: its emitted form is installed as a command.
 */
export function checkExecutables(files: readonly SourceFile[]): string[] {
  return files
    .filter(({ path, executable }) => executable || !isTypeScript(path))
    .filter(({ text, executable }) => text.startsWith('#!') !== executable)
    .map(({ path, executable }) =>
      executable ? `${path}: executable without a #! line` : `${path}: not executable`,
    )
}
