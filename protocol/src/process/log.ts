/** Logs: one JSON line per event to standard output, with journald's priority prefix when it reads them. */

export type LogLevel = 'error' | 'warning' | 'info' | 'debug'

/** Flat facts of an event. Never a key, a token, a URL with a signature, or a file's content. */
export type LogFields = Record<string, string | number | boolean | undefined>

export type Log = (level: LogLevel, event: string, fields?: LogFields) => void

/** RFC 5424 severities, which journald reads from `<n>` at the start of a line (sd-daemon(3)). */
const severities = { error: 3, warning: 4, info: 6, debug: 7 } as const

/**
 * @param now Integer epoch milliseconds; printed as ISO 8601 in UTC.
 * @param journald Whether journald reads the lines (`JOURNAL_STREAM` is set).
 */
export function createLog(options: {
  level: LogLevel
  write: (line: string) => void
  now: () => number
  journald: boolean
}): Log {
  return (level, event, fields = {}) => {
    if (severities[level] > severities[options.level]) return
    const prefix = options.journald ? `<${severities[level]}>` : ''
    const line = { at: new Date(options.now()).toISOString(), level, event, ...fields }
    options.write(`${prefix}${JSON.stringify(line)}\n`)
  }
}

/** The log of this process: standard output. */
export function processLog(level: LogLevel): Log {
  return createLog({
    level,
    write: (line) => void process.stdout.write(line),
    now: Date.now,
    journald: process.env['JOURNAL_STREAM'] !== undefined,
  })
}
