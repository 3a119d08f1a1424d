/** Mounts a directory that lives in memory and nowhere else, and says truly whether it is there. */
import { execFile } from 'node:child_process'
import { readFileSync, readdirSync } from 'node:fs'
import { promisify } from 'node:util'
import { SluiceError } from '@sluice/protocol/errors'

const run = promisify(execFile)

/** `tmpfs-noswap` needs Linux 6.4; `ramfs` has no bound of its own, so the writer counts. */
export const directoryKinds = ['tmpfs-noswap', 'tmpfs', 'ramfs'] as const
export type DirectoryKind = (typeof directoryKinds)[number]

export type MediaMount = {
  kind: DirectoryKind
  /** An existing folder, absolute. */
  folder: string
  /** Bound of the files' content; ignored by ramfs. */
  bytesMax: number
  filesMax: number
}

const programMs = 10_000

/**
 * Mounts over an existing folder: mode 0700, no devices, no programs.
 *
 * @throws SluiceError `node.swap_possible` when the kernel does not give exactly what was asked.
 */
export async function mountMedia(options: MediaMount): Promise<void> {
  const { kind, folder } = options
  const type = kind === 'ramfs' ? 'ramfs' : 'tmpfs'
  const flags = ['mode=0700', 'nosuid', 'nodev', 'noexec']
  if (type === 'tmpfs') flags.push(`size=${options.bytesMax}`, `nr_inodes=${options.filesMax + 8}`)
  if (kind === 'tmpfs-noswap') flags.push('noswap')
  try {
    await run('/bin/mount', ['-n', '-i', '-t', type, '-o', flags.join(','), 'sluice', folder], {
      env: {},
      timeout: programMs,
    })
  } catch (cause) {
    throw refused(`${kind} cannot be mounted`, cause)
  }
  const mounted = mountAt(folder)
  const asWanted =
    mounted?.type === type &&
    (kind !== 'tmpfs-noswap' || mounted.superOptions.split(',').includes('noswap'))
  if (asWanted) return
  if (mounted !== undefined) await unmountMedia(folder)
  throw refused(`the mount is not the ${kind} that was asked for`)
}

/**
 * Unmounts, after everything that used the mount has ended.
 *
 * @throws SluiceError `wipe.incomplete` when something still holds it.
 */
export async function unmountMedia(folder: string): Promise<void> {
  try {
    await run('/bin/umount', ['-n', '-i', folder], { env: {}, timeout: programMs })
  } catch (cause) {
    if (!isMounted(folder)) return
    throw new SluiceError('wipe.incomplete', 'A lease’s directory in memory is still in use.', {
      retry: 'later',
      hint: 'Something outside Sluice may have a file of it open; the agent tries again by itself.',
      cause,
    })
  }
}

export function isMounted(folder: string): boolean {
  return mountAt(folder) !== undefined
}

/** Whether any process of this host sees a mount there, in a namespace of its own or in ours. */
export function isMountedAnywhere(folder: string): boolean {
  const pids = readdirSync('/proc').filter((name) => /^[0-9]+$/.test(name))
  return pids.some((pid) => mountAt(folder, pid) !== undefined)
}

/** Mounts as a process sees them; none of a process that ended or belongs to another user. */
function mountsOf(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/mountinfo`, 'utf8')
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    // A zombie has no namespaces any more: the kernel answers EINVAL.
    if (['ENOENT', 'ESRCH', 'EINVAL', 'EACCES', 'EPERM'].includes(code)) return ''
    throw error
  }
}

/** @see proc_pid_mountinfo(5): fields, ` - `, then type, source and options of the file system. */
function mountAt(folder: string, pid = 'self'): { type: string; superOptions: string } | undefined {
  for (const line of mountsOf(pid).split('\n')) {
    const [before = '', after = ''] = line.split(' - ')
    const point = before
      .split(' ')[4]
      ?.replace(/\\([0-7]{3})/g, (_, octal: string) =>
        String.fromCharCode(Number.parseInt(octal, 8)),
      )
    const [type, , superOptions] = after.split(' ')
    if (point !== folder || type === undefined || superOptions === undefined) continue
    return { type, superOptions }
  }
  return undefined
}

function refused(why: string, cause?: unknown): SluiceError {
  return new SluiceError('node.swap_possible', `No directory in memory: ${why}.`, {
    hint: 'It needs root and Linux 6.4 (tmpfs noswap), or ramfs; or let the analyser read standard input.',
    cause,
  })
}
