/** Proves how a daemon begins and ends. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { describe, it } from 'node:test'
import { isSluiceError } from '../errors.ts'
import { createSupervisor, disableCoreDumps, type HostFacts } from './lifecycle.ts'

const here = import.meta.dirname

function host(files: Record<string, string>): HostFacts {
  return { readText: (path) => files[path] ?? '', writeText() {}, run() {} }
}
describe('disableCoreDumps', () => {
  it('refuses a host on which the limit does not stick', () => {
    const stubborn = host({
      '/proc/self/limits': 'Max core file size  unlimited  unlimited  bytes\n',
      '/proc/self/coredump_filter': '00000000\n',
    })
    assert.throws(
      () => disableCoreDumps(stubborn),
      (error) => isSluiceError(error, 'node.core_dumps'),
    )
  })
  it('is in force for the process and what it starts', () => {
    const script = `
      const { disableCoreDumps } = await import(${JSON.stringify(`${here}/lifecycle.ts`)})
      disableCoreDumps()
      const { execFileSync } = await import('node:child_process')
      console.log(execFileSync('cat', ['/proc/self/limits', '/proc/self/coredump_filter']).toString())`
    const ended = spawnSync(process.execPath, ['--input-type=module', '-e', script])
    assert.equal(ended.status, 0, ended.stderr.toString())
    assert.match(ended.stdout.toString(), /Max core file size\s+0\s+0/)
    assert.match(ended.stdout.toString(), /\n0{8}\n/)
  })
})

describe('createSupervisor', () => {
  it('says nothing without systemd, and feeds the watchdog at half its interval with it', (t) => {
    t.mock.timers.enable({ apis: ['setInterval'] })
    const said: string[] = []
    const send = (args: readonly string[]) => void said.push(args[0] ?? '')
    using silent = createSupervisor({}, send)
    silent.ready('x')
    assert.deepEqual(said, [])
    using supervisor = createSupervisor({ NOTIFY_SOCKET: '/run/n', WATCHDOG_USEC: '2000000' }, send)
    supervisor.ready('working')
    t.mock.timers.tick(2000)
    supervisor.stopping()
    assert.deepEqual(said, ['--ready', 'WATCHDOG=1', 'WATCHDOG=1', 'STOPPING=1'])
  })
})

describe('runDaemon', () => {
  function run(body: string) {
    const script = `
      const { runDaemon } = await import(${JSON.stringify(`${here}/lifecycle.ts`)})
      const log = (level, event) => console.log(event)
      await runDaemon({ log, allowSwap: true, graceMs: 50, run: async (signal) => { ${body} } })
      console.log('closed')`
    return spawnSync(process.execPath, ['--input-type=module', '-e', script])
  }
  it('ends cleanly on SIGTERM', () => {
    const ended = run(`
      setTimeout(() => process.kill(process.pid, 'SIGTERM'), 1)
      await new Promise((done) => { const alive = setInterval(() => {}, 1000)
        signal.addEventListener('abort', () => { clearInterval(alive); done() }) })`)
    assert.equal(ended.status, 0, ended.stderr.toString())
    assert.match(ended.stdout.toString(), /process\.ending\nclosed/)
  })
  it('does not wait for ever for a graceful end', () => {
    const ended = run(`
      setTimeout(() => process.kill(process.pid, 'SIGTERM'), 1)
      await new Promise(() => setInterval(() => {}, 1000))`)
    assert.equal(ended.status, 1)
    assert.match(ended.stdout.toString(), /process\.grace_over/)
  })
  it('crashes on an error that nobody caught', () => {
    const ended = run(
      `setTimeout(() => { throw new Error('bug') }, 1); await new Promise(() => setInterval(() => {}, 1000))`,
    )
    assert.equal(ended.status, 70)
    assert.match(ended.stdout.toString(), /process\.crashed/)
  })
})
