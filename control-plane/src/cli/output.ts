/** How answers look: one JSON value for machines, aligned columns or facts for people. */
import { SluiceError } from '@sluice/protocol/errors'

export type View = { json?: boolean; local?: boolean }

export function say(text: string): void {
  process.stdout.write(`${text}\n`)
}

/** What is no answer: hints and progress, which must not mix with data. */
export function remark(text: string): void {
  process.stderr.write(`${text}\n`)
}

/** UTC with `Z`, or the zone of this host when asked for. */
export function instant(atMs: number | undefined, view: View): string {
  if (atMs === undefined) return '-'
  const date = new Date(atMs)
  return view.local === true ? date.toLocaleString() : `${date.toISOString().slice(0, 19)}Z`
}

/** A list: JSON as it came, or one line an item under a heading. */
export function sayList<T>(
  items: readonly T[],
  view: View,
  columns: Record<string, (item: T) => string>,
) {
  if (view.json === true) return say(JSON.stringify(items, null, 2))
  const rows = [
    Object.keys(columns),
    ...items.map((item) => Object.values(columns).map((column) => column(item))),
  ]
  const widths = Object.keys(columns).map((_, index) =>
    Math.max(...rows.map((row) => row[index]?.length ?? 0)),
  )
  for (const row of rows)
    say(
      row
        .map((cell, index) => cell.padEnd(widths[index] ?? 0))
        .join('  ')
        .trimEnd(),
    )
}

/** One thing: JSON as it came, or a line a fact; instants are told as such by their names. */
export function sayFacts(value: object, view: View): void {
  if (view.json === true) return say(JSON.stringify(value, null, 2))
  const entries = Object.entries(value)
  const width = Math.max(...entries.map(([key]) => key.length))
  for (const [key, fact] of entries) say(`${key.padEnd(width)}  ${factText(key, fact, view)}`)
}

function factText(key: string, fact: unknown, view: View): string {
  if (key.endsWith('AtMs') && typeof fact === 'number') return instant(fact, view)
  if (typeof fact !== 'object' || fact === null) return String(fact)
  const parts = Object.entries(fact).map(([name, part]) =>
    Array.isArray(fact) ? factText(key, part, view) : `${name} ${factText(name, part, view)}`,
  )
  return parts.join(', ') || '-'
}

const unitMs = { s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 } as const

/** `90s`, `10m`, `2h`, `30d` in milliseconds. */
export function durationMs(text: string): number {
  const match = /^(\d{1,6})([smhd])$/.exec(text)
  const unit = match?.[2] as keyof typeof unitMs | undefined
  if (!match || unit === undefined)
    throw new SluiceError('usage', `not a duration: ${text}`, {
      hint: 'Write a number and a unit: 90s, 10m, 2h or 30d.',
    })
  return Number(match[1]) * unitMs[unit]
}
