/** Shows how far the demo is: bars that move on a terminal, plain lines elsewhere, nothing when asked for silence. */

import { styleText } from 'node:util'

const barChars = 24
const titleChars = 12
/** A bar that wraps could not be drawn over: its note ends with the line. */
const noteColumn = barChars + titleChars + 16

export type Stage = {
  title: string
  done: number
  total: number
  /** Said behind the bar, as `2.1 MiB`. */
  note: string
}

export type Progress = {
  /** A numbered heading. */
  heading(text: string): void
  /** A line that stays. */
  line(text?: string): void
  /** Shows the stages as they are now; those of the call before are drawn over. */
  show(stages: readonly Stage[]): void
  /** Leaves the bars as they are; the next ones are drawn below. */
  settle(): void
}

/** `ok`, `dim` and `strong` are plain text where colours are not wanted. */
export type Paint = {
  ok(text: string): string
  dim(text: string): string
  strong(text: string): string
}

/** @param stream Decides about colours, as does `NO_COLOR`. */
export function paintFor(stream: NodeJS.WriteStream): Paint {
  const paint = (format: 'green' | 'dim' | 'bold') => (text: string) =>
    styleText(format, text, { stream })
  return { ok: paint('green'), dim: paint('dim'), strong: paint('bold') }
}

export const silence: Progress = { heading() {}, line() {}, show() {}, settle() {} }

/** @param stream A terminal, or a pipe or file. */
export function progressOn(stream: NodeJS.WriteStream): Progress {
  const paint = paintFor(stream)
  let headings = 0
  const heading = (text: string): void => {
    headings += 1
    stream.write(`\n${paint.strong(`${headings}. ${text}`)}\n`)
  }
  const line = (text = ''): void => void stream.write(text === '' ? '\n' : `   ${text}\n`)
  return stream.isTTY ? withBars(stream, paint, { heading, line }) : withLines({ heading, line })
}

type Written = Pick<Progress, 'heading' | 'line'>

function withBars(stream: NodeJS.WriteStream, paint: Paint, written: Written): Progress {
  let drawn = 0
  const settle = (): void => {
    drawn = 0
  }
  return {
    heading(text) {
      settle()
      written.heading(text)
    },
    line(text) {
      settle()
      written.line(text)
    },
    show(stages) {
      if (drawn > 0) stream.write(`\x1b[${drawn}A`)
      const noteChars = Math.max(0, stream.columns - noteColumn)
      for (const stage of stages) {
        const note = stage.note.slice(0, noteChars)
        stream.write(`\x1b[2K   ${barOf({ ...stage, note }, paint)}\n`)
      }
      drawn = stages.length
    },
    settle,
  }
}

function barOf({ title, done, total, note }: Stage, paint: Paint): string {
  const filled = total === 0 ? 0 : Math.round((done / total) * barChars)
  const full = '━'.repeat(filled)
  const rest = paint.dim('─'.repeat(barChars - filled))
  const bar = filled === barChars ? paint.ok(full) : full + rest
  return `${title.padEnd(titleChars)} ${bar} ${countOf(done)}/${total}  ${paint.dim(note)}`
}

/** Without a terminal a line is written when a whole step was made. */
function withLines(written: Written): Progress {
  const said = new Map<string, number>()
  return {
    ...written,
    show(stages) {
      for (const { title, done, total, note } of stages) {
        const whole = Math.floor(done)
        if ((said.get(title) ?? 0) >= whole) continue
        said.set(title, whole)
        written.line(`${title.padEnd(titleChars)} ${whole}/${total}  ${note}`.trimEnd())
      }
    },
    settle() {
      said.clear()
    },
  }
}

function countOf(done: number): number {
  return Math.floor(done)
}

/** `681 KiB`, `3.5 MiB`. */
export function sizeOf(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit += 1
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit] ?? ''}`
}

/** `1.9 s`. */
export function secondsOf(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}
