/** Opens one source and tells what it really is, by its content only, before anything decodes it. */
import { constants } from 'node:fs'
import { lstat, open } from 'node:fs/promises'
import type { FileHandle } from 'node:fs/promises'
import path from 'node:path'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { MediumKind } from '@sluice/protocol/manifest'
import { sniff } from './sniff.ts'
import type { SourceFormat } from './sniff.ts'

/** One source file, open for reading; the file itself is never written. */
export type Source = AsyncDisposable & {
  readonly path: string
  readonly format: SourceFormat
  readonly kind: MediumKind
  readonly bytes: number
  /** Whether the name's extension promises another format; a fact to report, not a reason to refuse. */
  readonly nameDisagrees: boolean
  /**
   * Reads a range; it may be read many times.
   *
   * @throws SluiceError `media.changed` when the file has become shorter.
   */
  read(offset: number, length: number): Promise<Buffer>
  /** The bytes from `start` to before `end` in order; the whole file by default. */
  stream(start?: number, end?: number): AsyncGenerator<Buffer>
  /**
   * Checks that file and name still are what was opened.
   *
   * @throws SluiceError `media.changed`, to be tried again later.
   */
  assertUnchanged(): Promise<void>
}

/** What each format is, and the extensions that promise it. */
const formats: Record<SourceFormat, { kind: MediumKind; extensions: readonly string[] }> = {
  jpeg: { kind: 'image', extensions: ['.jpg', '.jpeg', '.jpe', '.jfif', '.mpo'] },
  png: { kind: 'image', extensions: ['.png', '.apng'] },
  webp: { kind: 'image', extensions: ['.webp'] },
  gif: { kind: 'image', extensions: ['.gif'] },
  tiff: { kind: 'image', extensions: ['.tif', '.tiff', '.btf', '.tf8'] },
  avif: { kind: 'image', extensions: ['.avif', '.avifs'] },
  heic: { kind: 'image', extensions: ['.heic', '.heif', '.hif', '.heics', '.heifs'] },
  bmp: { kind: 'image', extensions: ['.bmp', '.dib'] },
  mp4: { kind: 'video', extensions: ['.mp4', '.m4v'] },
  mov: { kind: 'video', extensions: ['.mov', '.qt'] },
  '3gp': { kind: 'video', extensions: ['.3gp', '.3g2', '.3gpp'] },
  mkv: { kind: 'video', extensions: ['.mkv', '.mka'] },
  webm: { kind: 'video', extensions: ['.webm'] },
  avi: { kind: 'video', extensions: ['.avi', '.divx'] },
  ts: { kind: 'video', extensions: ['.ts', '.mts', '.m2ts', '.m2t'] },
  wav: { kind: 'audio', extensions: ['.wav', '.wave', '.bwf'] },
  mp3: { kind: 'audio', extensions: ['.mp3'] },
  flac: { kind: 'audio', extensions: ['.flac'] },
  aac: { kind: 'audio', extensions: ['.aac'] },
  m4a: { kind: 'audio', extensions: ['.m4a', '.m4b', '.mp4'] },
  ogg: { kind: 'audio', extensions: ['.ogg', '.oga', '.opus', '.spx'] },
  aiff: { kind: 'audio', extensions: ['.aif', '.aiff', '.aifc'] },
  amr: { kind: 'audio', extensions: ['.amr', '.awb'] },
}

const bytesMax: Record<MediumKind, number> = {
  image: limits.imageFileBytesMax,
  video: limits.videoFileBytesMax,
  audio: limits.audioFileBytesMax,
}

const streamPieceBytes = 1024 ** 2

/**
 * Opens a source and finds its real type. A link is not followed, and only a regular file counts.
 *
 * @throws SluiceError `media.not_a_file`, `media.empty`, `media.unsupported` with the type that was
 *   found, `media.too_large`.
 */
export async function openSource(file: string): Promise<Source> {
  const handle = await openRegular(file)
  try {
    const opened = await handle.stat({ bigint: true })
    if (!opened.isFile()) throw notAFile('it is not a regular file')
    const bytes = Number(opened.size)
    if (bytes === 0)
      throw new SluiceError('media.empty', 'the file is empty', {
        hint: 'Copy it from the device again.',
      })
    const read = (offset: number, length: number) => readExactly(handle, offset, length)
    const found = await sniff({ bytes, read })
    if (!found.supported) throw unsupported(found.name, found.instead)
    const { kind, extensions } = formats[found.format]
    if (bytes > bytesMax[kind]) throw tooLarge(kind)
    return {
      path: file,
      format: found.format,
      kind,
      bytes,
      nameDisagrees: !extensions.includes(path.extname(file).toLowerCase()),
      read,
      async *stream(start = 0, end = bytes) {
        for (let at = start; at < end; at += streamPieceBytes) {
          yield await read(at, Math.min(streamPieceBytes, end - at))
        }
      },
      async assertUnchanged() {
        const [now, named] = await Promise.all([
          handle.stat({ bigint: true }),
          lstat(file, { bigint: true }).catch(() => undefined),
        ])
        if (identity(now) !== identity(opened)) throw changed()
        if (named === undefined || identity(named) !== identity(opened)) throw changed()
      },
      [Symbol.asyncDispose]: () => handle.close(),
    }
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** A rename away and back shows in the change time, a rewrite in place in both times. */
function identity(facts: {
  dev: bigint
  ino: bigint
  size: bigint
  mtimeNs: bigint
  ctimeNs: bigint
}): string {
  return [facts.dev, facts.ino, facts.size, facts.mtimeNs, facts.ctimeNs].join()
}

async function openRegular(file: string): Promise<FileHandle> {
  // O_NONBLOCK: a named pipe must not make us wait for its writer.
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
  try {
    return await open(file, flags)
  } catch (cause) {
    const code = cause instanceof Error && 'code' in cause ? cause.code : undefined
    // A name of other bytes was read as one with this sign in it, and is found by nobody.
    if (code === 'ENOENT' && file.includes('\ufffd'))
      throw notAFile('its name is not UTF-8; give it another one', cause)
    if (code === 'ENOENT') throw notAFile('it does not exist', cause)
    if (code === 'ELOOP') throw notAFile('it is a symbolic link', cause)
    if (code === 'EACCES' || code === 'EPERM') throw notAFile('it may not be read', cause)
    throw notAFile('it cannot be opened', cause)
  }
}

async function readExactly(handle: FileHandle, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length)
  for (let done = 0; done < length;) {
    const { bytesRead } = await handle.read(into, done, length - done, offset + done)
    if (bytesRead === 0) throw changed()
    done += bytesRead
  }
  return into
}

function notAFile(why: string, cause?: unknown): SluiceError {
  return new SluiceError('media.not_a_file', `the source cannot be taken: ${why}`, {
    hint: 'Name a regular file that the agent may read; links are not followed.',
    cause,
  })
}

/** @param instead What the owner of the file can do. */
export function unsupported(found: string, instead: string): SluiceError {
  return new SluiceError('media.unsupported', `the content is ${found}, which is not accepted`, {
    hint: instead,
  })
}

function tooLarge(kind: MediumKind): SluiceError {
  const mebibytes = bytesMax[kind] / 1024 ** 2
  return new SluiceError('media.too_large', `a file of kind ${kind} may have ${mebibytes} MiB`, {
    hint: 'Split the recording, or export it smaller.',
  })
}

function changed(): SluiceError {
  return new SluiceError('media.changed', 'the file changed while it was read', {
    retry: 'later',
    hint: 'Submit it again when nothing writes to it any more.',
  })
}
