/** `sluice-agent seal` and `open`: the format alone, streaming, with the key from a descriptor. */
import { closeSync, constants, readSync } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import type { Command } from 'commander'
import { SluiceError } from '@sluice/protocol/errors'
import { Secret } from '@sluice/protocol/process/secret'
import { archiveContext, fileContext } from '@sluice/protocol/sealing/context'
import { createSealer } from '@sluice/protocol/sealing/seal'
import { createUnsealer } from '@sluice/protocol/sealing/unseal'
import { type NewFile, openNewFile } from './new-file.ts'

type FileOptions = { keyFd: number; job?: string; force?: true }

const keyBytes = 32
/** Large enough that calls cost nothing, small enough that memory stays flat. */
const blockBytes = 1024 * 1024

export function addSealCommands(program: Command): void {
  const shared = (command: Command) =>
    command
      .requiredOption('--key-fd <number>', 'descriptor the 32-byte key is read from', descriptor)
      .option('--job <id>', 'the file is the archive of this job, as in a spool')
      .option('--force', 'overwrite what is there')
  shared(program.command('seal'))
    .description(
      'Seal one file with a key of your own (Cobblestone-256). - is standard input or output.',
    )
    .argument('<in>')
    .argument('<out>')
    .addHelpText(
      'after',
      '\nExample:\n  $ head -c 32 /dev/urandom > key && sluice-agent seal film.mp4 film.sealed --key-fd 3 3<key',
    )
    .action((input: string, output: string, options: FileOptions) =>
      sealFile(input, output, options),
    )
  shared(program.command('open'))
    .description(
      'Open a sealed file. What goes to standard output is authentic, but complete only on exit 0.',
    )
    .argument('<in>')
    .argument('[out]', 'file to write; standard output without it', '-')
    .addHelpText('after', '\nExample:\n  $ sluice-agent open film.sealed film.mp4 --key-fd 3 3<key')
    .action((input: string, output: string, options: FileOptions) =>
      openFile(input, output, options),
    )
}

function descriptor(text: string): number {
  const number = Number(text)
  if (Number.isInteger(number) && number >= 0 && number < 1024) return number
  throw new SluiceError('usage', `not a descriptor: ${text}`, {
    hint: 'Give the number that the shell redirects, as in --key-fd 3 3<key.',
  })
}

async function sealFile(input: string, output: string, options: FileOptions): Promise<void> {
  using key = readKey(options.keyFd)
  using sealer = createSealer({ key: key.bytes, context: await contextOf(options) })
  await transform(input, output, options, {
    head: sealer.header,
    room: sealer.updateBytes(blockBytes + keyBytes),
    update: (bytes, into) => sealer.updateInto(bytes, into),
    final: () => sealer.final(),
  })
}

async function openFile(input: string, output: string, options: FileOptions): Promise<void> {
  using key = readKey(options.keyFd)
  using unsealer = createUnsealer({ key: key.bytes, context: await contextOf(options) })
  await transform(input, output, options, {
    head: Buffer.alloc(0),
    room: blockBytes + 64 * 1024,
    update: (bytes, into) => unsealer.updateInto(bytes, into),
    final: () => unsealer.final(),
  })
}

async function contextOf({ job }: FileOptions): Promise<Buffer> {
  if (job === undefined) return fileContext()
  // The schemas take as long to load as a small file takes to seal.
  const { jobId } = await import('@sluice/protocol/ids')
  const id = jobId.safeParse(job)
  if (!id.success) throw new SluiceError('usage', `not the id of a job: ${job}`)
  return archiveContext(id.data)
}

/** Exactly 32 bytes: fewer or more are a mistake, such as a key written as text. */
function readKey(fd: number): Secret {
  const bytes = Buffer.allocUnsafeSlow(keyBytes + 1)
  let filled = 0
  try {
    for (let read = 1; read > 0 && filled < bytes.length; filled += read)
      read = readSync(fd, bytes, filled, bytes.length - filled, null)
    if (fd > 2) closeSync(fd)
  } catch (cause) {
    bytes.fill(0)
    throw new SluiceError('usage', `descriptor ${fd} cannot be read`, {
      hint: 'Open it in the shell: --key-fd 3 3<key (npm passes none on: start bin/sluice-agent).',
      cause,
    })
  }
  if (filled !== keyBytes) {
    bytes.fill(0)
    throw new SluiceError('usage', `descriptor ${fd} holds no key of exactly ${keyBytes} bytes`, {
      hint: 'Make one with: head -c 32 /dev/urandom > key',
    })
  }
  return new Secret(bytes.subarray(0, keyBytes))
}

type Step = {
  head: Buffer
  room: number
  update: (bytes: Buffer, into: Buffer) => number
  final: () => Buffer
}

/** While one block is worked on the next is read and the one before is written. */
async function transform(
  input: string,
  output: string,
  options: FileOptions,
  step: Step,
): Promise<void> {
  await using source = await openInput(input)
  await using sink = await openOutput(output, options.force === true)
  await sink.write(step.head)
  const results = [Buffer.allocUnsafeSlow(step.room), Buffer.allocUnsafeSlow(step.room)] as const
  let writing: Promise<void> = Promise.resolve()
  let turn = 0
  try {
    for await (const block of source.blocks) {
      const into = results[turn % 2 === 0 ? 0 : 1]
      turn += 1
      // The buffer before this one is still being written; this one is free since the last wait.
      const written = step.update(block, into)
      await writing
      writing = sink.write(into.subarray(0, written))
    }
    await writing
    await sink.write(step.final())
    await sink.finish()
  } catch (error) {
    await writing.catch(() => {
      // The first failure is the one that is told.
    })
    throw error
  } finally {
    for (const buffer of results) buffer.fill(0)
  }
}

async function openInput(
  input: string,
): Promise<AsyncDisposable & { blocks: AsyncIterable<Buffer> }> {
  if (input === '-')
    return { blocks: process.stdin as AsyncIterable<Buffer>, async [Symbol.asyncDispose]() {} }
  let file: FileHandle
  try {
    file = await open(input, constants.O_RDONLY)
  } catch (cause) {
    throw new SluiceError('usage', `${input} cannot be read`, { cause })
  }
  return { blocks: blocksOf(file), [Symbol.asyncDispose]: () => file.close() }
}

/** Reads one block ahead into two buffers that take turns. */
async function* blocksOf(file: FileHandle): AsyncGenerator<Buffer> {
  const buffers = [Buffer.allocUnsafeSlow(blockBytes), Buffer.allocUnsafeSlow(blockBytes)] as const
  const read = (index: number) => file.read(buffers[index % 2 === 0 ? 0 : 1], 0, blockBytes, null)
  try {
    let ahead = read(0)
    for (let index = 0; ; index += 1) {
      const { bytesRead, buffer } = await ahead
      if (bytesRead === 0) return
      ahead = read(index + 1)
      try {
        yield buffer.subarray(0, bytesRead)
      } finally {
        await ahead
      }
    }
  } finally {
    for (const buffer of buffers) buffer.fill(0)
  }
}

async function openOutput(output: string, force: boolean): Promise<NewFile> {
  return output === '-' ? standardOutput() : openNewFile(output, { force })
}

function outputGone(cause: Error): SluiceError {
  return new SluiceError('usage', 'nobody reads the standard output any more', {
    hint: 'What was written is authentic, but it is not all.',
    cause,
  })
}

function standardOutput(): NewFile {
  const { stdout } = process
  // Told by the write that failed; without a listener it would end the process with a stack.
  stdout.on('error', () => stdout.destroy())
  return {
    // Waits until the stream is done with the buffer, which is used again: a copy of every block
    // would pile up faster than it is collected.
    write: (bytes) =>
      new Promise((resolve, reject) => {
        stdout.write(bytes, (cause) => (cause ? reject(outputGone(cause)) : resolve()))
      }),
    async finish() {},
    async [Symbol.asyncDispose]() {},
  }
}
