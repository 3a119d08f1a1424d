/** An analyser that tells the test every byte it was given: through a pipe, since it cannot write a file. */

import { execFile } from 'node:child_process'
import { constants } from 'node:fs'
import { mkdir, open } from 'node:fs/promises'
import { Socket } from 'node:net'
import { join } from 'node:path'
import { promisify } from 'node:util'

const run = promisify(execFile)

export type WitnessAnalyser = AsyncDisposable & {
  /** For `analysers` in a node's configuration; its name is `witness`. */
  readonly config: Record<string, unknown>
  /** Everything its runs have read so far, one after another. */
  seen(): Buffer
}

/** @param folder Made here; the analyser sees it read-only, which is no bar to a pipe. */
export async function makeWitnessAnalyser(folder: string): Promise<WitnessAnalyser> {
  await mkdir(folder)
  const pipe = join(folder, 'pipe')
  await run('mkfifo', ['-m', '0666', pipe])
  // Open for writing too, so that it does not end between two runs.
  const handle = await open(pipe, constants.O_RDWR | constants.O_NONBLOCK)
  const pieces: Buffer[] = []
  const socket = new Socket({ fd: handle.fd, readable: true, writable: false })
  socket.on('data', (piece: Buffer) => void pieces.push(piece))
  return {
    config: {
      ...{ name: 'witness', version: '1', input: 'stdin' },
      command: ['/bin/sh', '-c', `tee ${pipe} | wc -c`],
      visible: [folder],
    },
    seen: () => Buffer.concat(pieces),
    async [Symbol.asyncDispose]() {
      socket.destroy()
      for (const piece of pieces) piece.fill(0)
      // The socket has closed the descriptor; the handle only has to know it.
      await handle.close().catch(() => undefined)
    },
  }
}
