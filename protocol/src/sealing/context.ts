/**
 * What a sealing is bound to: fields joined so that no two lists of fields give the same bytes.
 * Frozen: a change of any byte here makes every older archive and envelope unreadable.
 */
import type { JobId } from '../ids.ts'

/**
 * Joins fields, each behind its length: u32 big-endian, then the bytes. Texts are UTF-8.
 */
export function lengthPrefixed(fields: readonly (string | Uint8Array)[]): Buffer {
  return Buffer.concat(
    fields.flatMap((field) => {
      const bytes = typeof field === 'string' ? Buffer.from(field, 'utf8') : field
      const prefix = Buffer.alloc(4)
      prefix.writeUInt32BE(bytes.length)
      return [prefix, bytes]
    }),
  )
}

/** A whole number as a field: u64 big-endian. */
export function u64Field(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}

/** The context of a job's sealed archive: it opens as this job's archive and as nothing else. */
export function archiveContext(jobId: JobId): Buffer {
  return lengthPrefixed(['sluice/archive/1', jobId])
}

/** The context of scratch: its key never leaves the process, so no further name is needed. */
export function scratchContext(): Buffer {
  return lengthPrefixed(['sluice/scratch/1'])
}

/** The context of a single file that someone seals by hand; it belongs to no job. */
export function fileContext(): Buffer {
  return lengthPrefixed(['sluice/file/1'])
}
