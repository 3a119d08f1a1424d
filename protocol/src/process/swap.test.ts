/** Proves on which hosts a daemon starts, by tables of what the kernel says. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { isSluiceError } from '../errors.ts'
import { canSwap, cgroupFolders, checkSwap, readSwapFacts } from './swap.ts'

const heading = 'Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n'
const read = (files: Record<string, string>) => (path: string) => files[path]

describe('swap', () => {
  it('is seen area by area', () => {
    const areas = (text: string) => readSwapFacts(read({ '/proc/swaps': text })).areas
    assert.deepEqual(areas(''), [])
    assert.deepEqual(areas(heading), [])
    assert.deepEqual(areas(`${heading}/dev/dm-1 partition 1 0 -2\n/dev/zram0 partition 1 0 5\n`), [
      '/dev/dm-1',
      '/dev/zram0',
    ])
  })

  it('is out of reach in a cgroup that may not swap, or below one', () => {
    const inCgroup = (files: Record<string, string>) =>
      readSwapFacts(read({ '/proc/self/cgroup': '0::/system.slice/a.service\n', ...files }))
        .cgroupCannotSwap
    const v2 = { '/sys/fs/cgroup/cgroup.controllers': 'memory' }
    assert.equal(inCgroup(v2), false)
    assert.equal(
      inCgroup({ ...v2, '/sys/fs/cgroup/system.slice/a.service/memory.swap.max': '0\n' }),
      true,
    )
    assert.equal(inCgroup({ ...v2, '/sys/fs/cgroup/system.slice/memory.swap.max': '0\n' }), true)
    assert.equal(inCgroup({ ...v2, '/sys/fs/cgroup/system.slice/memory.swap.max': 'max\n' }), false)
    assert.equal(
      inCgroup({ '/sys/fs/cgroup/unified/system.slice/memory.swap.max': '0\n' }),
      true,
      'where cgroup v1 is in use too',
    )
  })

  it('is refused unless it is allowed by name, and then said', () => {
    const said: string[] = []
    const log = (_level: string, event: string) => void said.push(event)
    const swapping = { areas: ['/dev/sda2'], cgroupCannotSwap: false }
    checkSwap({ allowSwap: false, log }, { areas: [], cgroupCannotSwap: false })
    checkSwap({ allowSwap: false, log }, { ...swapping, cgroupCannotSwap: true })
    assert.deepEqual(said, [])
    assert.throws(
      () => checkSwap({ allowSwap: false, log }, swapping),
      (error) => isSluiceError(error, 'node.swap_possible') && error.message.includes('/dev/sda2'),
    )
    checkSwap({ allowSwap: true, log }, swapping)
    assert.deepEqual(said, ['host.swap_allowed'])
  })

  it('is looked for in every cgroup above the process', () => {
    const text = '4:memory:/v1\n0::/system.slice/sluice-agent.service\n'
    assert.deepEqual(cgroupFolders(text, '/sys/fs/cgroup'), [
      '/sys/fs/cgroup/system.slice/sluice-agent.service',
      '/sys/fs/cgroup/system.slice',
    ])
    assert.deepEqual(cgroupFolders('0::/\n', '/sys/fs/cgroup'), [])
    assert.deepEqual(cgroupFolders('0::/../other\n', '/sys/fs/cgroup'), [])
    assert.deepEqual(cgroupFolders('4:memory:/v1\n', '/sys/fs/cgroup'), [])
  })

  it('of this host is read without a failure', () => {
    assert.equal(typeof canSwap(readSwapFacts()), 'boolean')
  })
})
