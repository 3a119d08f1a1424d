/** How `sluice-agent` speaks: answers on standard output, everything about them on standard error. */
import { createInterface } from 'node:readline'

export function print(text: string): void {
  process.stdout.write(`${text}\n`)
}

/**
 * A name as one line of text: who names a file could else move the cursor of whoever lists it.
 *
 * @see Unicode, general categories Cc, Cf, Zl and Zp.
 */
export function nameText(name: string): string {
  return name.replaceAll(
    /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu,
    (sign) => `\\u{${(sign.codePointAt(0) ?? 0).toString(16)}}`,
  )
}

/** Progress and remarks, so that answers can be piped. */
export function remark(text: string): void {
  process.stderr.write(`${text}\n`)
}

export function sizeText(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  const step = bytes < 1 ? 0 : Math.min(units.length - 1, Math.floor(Math.log2(bytes) / 10))
  const value = bytes / 1024 ** step
  return `${step === 0 ? value : value.toFixed(1)} ${units[step] ?? ''}`
}

/** Instants are shown in UTC with `Z`. */
export function instantText(atMs: number): string {
  return new Date(atMs).toISOString().replace(/\.\d{3}Z$/, 'Z')
}

/**
 * A block of lines that is redrawn in place on a terminal, and printed line by line, only when one
 * has changed, without one.
 */
export function createBoard(stream: NodeJS.WriteStream = process.stderr) {
  const lines = new Map<string, { drawn: string; plain: string }>()
  let drawnLines = 0
  return {
    /**
     * @param key Which line.
     * @param text What it says on a terminal, counts and bar included.
     * @param plain What it says without one; the same again is not printed.
     */
    set(key: string, text: string, plain: string): void {
      const before = lines.get(key)
      lines.set(key, { drawn: text, plain })
      if (!stream.isTTY) {
        if (before?.plain !== plain) stream.write(`${plain}\n`)
        return
      }
      if (before?.drawn === text) return
      const width = stream.columns || 80
      const up = drawnLines > 0 ? `\u001b[${drawnLines}A` : ''
      const block = [...lines.values()].map(
        ({ drawn }) => `\r\u001b[2K${drawn.slice(0, width - 1)}\n`,
      )
      stream.write(up + block.join(''))
      drawnLines = lines.size
    },
  }
}

/** One line that is drawn over itself on a terminal, and nothing elsewhere. */
export function createLine(stream: NodeJS.WriteStream) {
  let drawn = false
  return {
    set(text: string): void {
      if (!stream.isTTY) return
      stream.write(`\r\u001b[2K${text.slice(0, (stream.columns || 80) - 1)}`)
      drawn = true
    },
    /** Before anything else is written. */
    clear(): void {
      if (drawn) stream.write('\r\u001b[2K')
      drawn = false
    },
  }
}

/** `total` 0 means that it is not known: no bar then. */
export function barText(done: number, total: number, width = 20): string {
  if (total <= 0) return ''
  const filled = Math.min(width, Math.round((done / total) * width))
  const percent = Math.min(100, Math.floor((done * 100) / total))
  return `${'█'.repeat(filled)}${'░'.repeat(width - filled)} ${percent} %`
}

/** The first line of standard input. */
export async function readLineFromInput(): Promise<string> {
  for await (const line of createInterface({ input: process.stdin })) return line
  return ''
}
