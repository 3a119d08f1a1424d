/** Secrets from files: read into a buffer that is wiped, from files nobody else may read. */
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { SluiceError } from '../errors.ts'

/** Bytes that are zeroed when they are no longer needed. Never turn them into a string. */
export class Secret implements Disposable {
  readonly bytes: Buffer

  /** Takes ownership of `bytes`. */
  constructor(bytes: Buffer) {
    this.bytes = bytes
  }

  [Symbol.dispose](): void {
    this.bytes.fill(0)
  }

  /** Keeps a secret out of logs and JSON, whoever tries. */
  toJSON(): string {
    return '[secret]'
  }
}

/**
 * Reads a secret file.
 *
 * @param bytesMax More than this is refused.
 * @throws SluiceError `host.unsafe_file` when it is missing, a link, or open to group or others.
 */
export async function readSecretFile(path: string, bytesMax: number): Promise<Secret> {
  const refuse = (why: string, cause?: unknown) =>
    new SluiceError('host.unsafe_file', `${path}: ${why}`, {
      hint: 'A secret lives in a regular file of mode 0600 that belongs to the user of the process.',
      cause,
    })
  let file
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (cause) {
    throw refuse('cannot be opened', cause)
  }
  try {
    const facts = await file.stat()
    if (!facts.isFile()) throw refuse('is not a regular file')
    if ((facts.mode & 0o077) !== 0) throw refuse('is readable by group or others')
    if (facts.size > bytesMax) throw refuse(`is larger than ${bytesMax} bytes`)
    const bytes = Buffer.alloc(facts.size)
    await file.read(bytes, 0, facts.size, 0)
    return new Secret(bytes)
  } finally {
    await file.close()
  }
}
