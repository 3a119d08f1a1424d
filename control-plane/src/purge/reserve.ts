/** A file that only takes room, so that a purge finds some when the disk is full. */
import { randomFillSync } from 'node:crypto'
import { type FileHandle, open, stat, statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import { limits } from '@sluice/protocol/limits'

export type ReserveState =
  /** Its room can be freed. */
  | 'ready'
  /** There is no room to make it, or it was freed and there is still none. */
  | 'missing'

export type Reserve = AsyncDisposable & {
  readonly state: ReserveState
  /** Gives its room back to the disk. @returns Whether there was any. */
  free(): Promise<boolean>
  /** Makes it when there is room. */
  restore(): Promise<ReserveState>
}

/** How often one that is missing is tried again. */
const restoreEveryMs = 60_000
const pieceBytes = 1024 * 1024

/**
 * Makes the reserve, or takes over the one that is there. It is never made of the last room: as much
 * as it takes must stay free beside it.
 *
 * @param path In the directory whose disk must not fill up.
 */
export async function openReserve(
  path: string,
  reserveBytes: number = limits.purgeReserveBytes,
): Promise<Reserve> {
  let state: ReserveState = 'missing'
  /** One at a time: a purge must not meet a half-made one. */
  let turn: Promise<unknown> = Promise.resolve()
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const done = turn.then(work)
    turn = done.catch(() => undefined)
    return done
  }

  async function make(): Promise<ReserveState> {
    const held = await stat(path).catch(() => undefined)
    if (held !== undefined && held.size >= reserveBytes) return (state = 'ready')
    const { bavail, bsize } = await statfs(dirname(path))
    if (bavail * bsize < 2 * reserveBytes) return (state = 'missing')
    await using file = await open(path, 'w', 0o600)
    try {
      await fill(file, reserveBytes)
      state = 'ready'
    } catch (error) {
      // Somebody else took the room meanwhile: then it is theirs.
      await file.truncate(0)
      if (!isNoRoom(error)) throw error
      state = 'missing'
    }
    return state
  }

  async function release(): Promise<boolean> {
    if (state !== 'ready') return false
    await using file = await open(path, 'r+')
    await file.truncate(0)
    await file.sync()
    state = 'missing'
    return true
  }

  await inTurn(make)
  const timer = setInterval(() => {
    // What cannot be made now is tried again; that it is missing is shown by the status.
    if (state === 'missing') void inTurn(make).catch(() => undefined)
  }, restoreEveryMs).unref()

  return {
    get state() {
      return state
    },
    free: () => inTurn(release),
    restore: () => inTurn(make),
    async [Symbol.asyncDispose]() {
      clearInterval(timer)
      await turn
    },
  }
}

/** Random bytes: a file system that compresses zeros would keep no room for them. */
async function fill(file: FileHandle, bytes: number): Promise<void> {
  const piece = randomFillSync(Buffer.alloc(pieceBytes))
  for (let written = 0; written < bytes; written += piece.length)
    await file.writeFile(piece.subarray(0, Math.min(piece.length, bytes - written)))
  await file.sync()
}

function isNoRoom(error: unknown): boolean {
  return ['ENOSPC', 'EDQUOT', 'EFBIG'].includes((error as NodeJS.ErrnoException).code ?? '')
}
