/** Who was started by whom, as the kernel sees it, also when nobody wanted it to be seen. */

import { readFileSync, readdirSync } from 'node:fs'

/** A process known by more than its number, which the kernel gives out again. */
export type KnownProcess = { pid: number; name: string; startedAt: string }

/** All processes that descend from one, itself left out. */
export function descendantsOf(ancestor: number): KnownProcess[] {
  const all = readdirSync('/proc').filter((name) => /^\d+$/.test(name))
  const parents = new Map(all.map((pid) => [Number(pid), statOf(Number(pid))?.parent]))
  const family = new Set([ancestor])
  for (let before = 0; before < family.size;) {
    before = family.size
    for (const [pid, parent] of parents)
      if (parent !== undefined && family.has(parent)) family.add(pid)
  }
  family.delete(ancestor)
  return [...family].flatMap((pid) => {
    const stat = statOf(pid)
    return stat === undefined ? [] : [{ pid, name: stat.name, startedAt: stat.startedAt }]
  })
}

/** Whether it runs, or could run again: a zombie holds no memory and no file. */
export function isAlive({ pid, startedAt }: KnownProcess): boolean {
  const stat = statOf(pid)
  return stat?.startedAt === startedAt && !['Z', 'X'].includes(stat.state)
}

type Stat = { name: string; state: string; parent: number; startedAt: string }

/** @see proc_pid_stat(5): behind the name's closing bracket come state, parent, …, start time (22nd). */
function statOf(pid: number): Stat | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const nameEnd = text.lastIndexOf(')')
    const name = text.slice(text.indexOf('(') + 1, nameEnd)
    const fields = text.slice(nameEnd + 2).split(' ')
    return { name, state: fields[0] ?? '', parent: Number(fields[1]), startedAt: fields[19] ?? '' }
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code === 'ENOENT' || code === 'ESRCH') return undefined
    throw error
  }
}
