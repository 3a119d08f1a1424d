/** Reads the commands out of a page for operators, so that a test runs exactly what is printed. */

import assert from 'node:assert/strict'

export type PageCommands = {
  /**
   * @param heading Of the section, without `##`.
   * @param index Which block of the section, from 0.
   * @param words What to put in place of words such as `JOB`.
   */
  block(heading: string, index?: number, words?: Readonly<Record<string, string>>): string
  /** Sections and indexes of the blocks that were never asked for. */
  unused(): string[]
}

/**
 * @param markdown Its commands are blocks fenced with the word `sh`; blocks without are shown, not run.
 */
export function readCommands(markdown: string): PageCommands {
  const blocks = new Map<string, string>()
  let heading = ''
  let index = 0
  for (const [part] of markdown.matchAll(/^## .+$|^```\w*\n[^]*?^```$/gm)) {
    if (part.startsWith('## ')) {
      heading = part.slice(3)
      index = 0
    } else if (part.startsWith('```sh\n')) {
      blocks.set(`${heading} ${index}`, part.slice(6, -3))
      index += 1
    }
  }
  const used = new Set<string>()
  return {
    block(wanted, at = 0, words = {}) {
      const name = `${wanted} ${at}`
      let text = blocks.get(name)
      assert.ok(text !== undefined, `the page has no commands ${name}`)
      used.add(name)
      for (const [word, value] of Object.entries(words)) {
        assert.ok(text.includes(word), `${name} does not say ${word}`)
        text = text.replaceAll(word, value)
      }
      return text
    },
    unused: () => [...blocks.keys()].filter((name) => !used.has(name)),
  }
}
