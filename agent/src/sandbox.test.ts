/** Proves what a sandboxed program cannot do, and with a control that the probe would notice. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import {
  collectOutput,
  detectIsolation,
  discardOutput,
  runInSandbox,
  systemCallsAt,
} from './sandbox.ts'
import type { SandboxRequest } from './sandbox.ts'

const bubblewrap = await detectIsolation().then(
  () => true,
  () => false,
)
const levels: IsolationLevel[] = bubblewrap ? ['bubblewrap', 'none'] : ['none']
const bounds = { wallMs: 20_000, memoryBytes: 512 * 1024 ** 2, outputBytesMax: 1024 ** 2 }

function shell(script: string, more: Partial<SandboxRequest> = {}): SandboxRequest {
  return { isolation: 'none', program: '/bin/sh', args: () => ['-c', script], bounds, ...more }
}

function evaluate(source: string, more: Partial<SandboxRequest> = {}): SandboxRequest {
  const program = process.execPath
  return shell('', { program, visible: [program], args: () => ['-e', source], ...more })
}

async function outputOf(request: SandboxRequest): Promise<string> {
  const { exit, value } = await runInSandbox(request, collectOutput)
  assert.equal(exit.outcome, 'ok')
  assert.equal(exit.dead, true)
  return value.toString()
}

/** Whether a `sleep` of so many seconds runs on this host. */
function isRunning(seconds: string): boolean {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .some((name) => {
      try {
        return readFileSync(`/proc/${name}/cmdline`, 'latin1') === `sleep\0${seconds}\0`
      } catch {
        // It ended between the listing and the look.
        return false
      }
    })
}

describe(
  'what a sandboxed program reaches',
  { skip: !bubblewrap && 'bubblewrap is absent' },
  () => {
    let folder = ''
    let canary = ''
    before(() => {
      folder = mkdtempSync(path.join(tmpdir(), 'sandbox-'))
      canary = path.join(folder, 'canary')
      writeFileSync(canary, 'canary sings')
    })
    after(() => rmSync(folder, { recursive: true }))

    it('reads no file of the host (control: without isolation it does)', async () => {
      const script = `cat ${canary} || echo silent`
      assert.equal(await outputOf(shell(script)), 'canary sings')
      assert.equal(await outputOf(shell(script, { isolation: 'bubblewrap' })), 'silent\n')
      const listing = await outputOf(shell('ls / /etc', { isolation: 'bubblewrap' }))
      assert.doesNotMatch(listing, /home|root|tmp|var|passwd|shadow/)
    })

    it('reaches no network (control: without isolation it does)', async () => {
      const server = createServer((socket) => socket.end())
      const listening = Promise.withResolvers<void>()
      server.listen(0, '127.0.0.1', listening.resolve)
      await listening.promise
      try {
        const { port } = server.address() as AddressInfo
        const source = `require('net').connect(${port}, '127.0.0.1')
        .on('connect', () => { console.log('through'); process.exit() })
        .on('error', (error) => console.log(error.code))`
        assert.equal(await outputOf(evaluate(source)), 'through\n')
        const closed = await outputOf(evaluate(source, { isolation: 'bubblewrap' }))
        assert.match(closed, /ECONNREFUSED|ENETUNREACH/)
      } finally {
        server.close()
      }
    })

    it('has no capabilities, sees no process of the host and cannot nest namespaces', async () => {
      const script =
        'grep CapEff /proc/self/status; ls -d /proc/[0-9]* | wc -l; unshare -U true; echo $?'
      const [capabilities, processes, nested] = (
        await outputOf(shell(script, { isolation: 'bubblewrap' }))
      ).split('\n')
      assert.match(capabilities ?? '', /0000000000000000$/)
      assert.ok(Number(processes) < 6)
      assert.notEqual(nested, '0')
    })

    it('reaches no system call beyond what it needs (control: without isolation it does)', async () => {
      const trace = process.arch === 'arm64' ? 117 : 101
      // A netlink socket, then PTRACE_TRACEME, by numbers; what the kernel says to each.
      const perl = `printf("%d ", socket(my $s, 16, 3, 0) ? 0 : $!);
        $! = 0; syscall(${trace}, 0, 0, 0, 0); printf("%d ", $!);
        open(my $f, "<", "/proc/self/status"); print grep { /^Seccomp:/ } <$f>`
      const program = '/usr/bin/perl'
      const request = shell('', { program, args: () => ['-e', perl] })
      assert.match(await outputOf(request), /^0 0 Seccomp:/)
      const filtered = await outputOf({ ...request, isolation: 'bubblewrap' })
      assert.match(filtered, /^97 1 Seccomp:\s*2/)
      assert.deepEqual([systemCallsAt('bubblewrap'), systemCallsAt('none')], ['filtered', 'any'])
    })

    it('says when the filter is that of the service around it', async () => {
      const sandbox = path.join(import.meta.dirname, 'sandbox.ts')
      const source = `import('${sandbox}').then((own) => console.log(own.systemCallsAt('none')))`
      const visible = [process.execPath, path.resolve(import.meta.dirname, '../..')]
      const request = evaluate(source, { isolation: 'bubblewrap', visible })
      assert.equal((await outputOf(request)).trim(), 'inherited')
    })

    it('finds its input read-only under a name of ours', async () => {
      const inputs = { medium: canary }
      const read = { inputs, args: (at: (name: string) => string) => ['-c', `cat ${at('medium')}`] }
      assert.equal(await outputOf(shell('', { ...read, isolation: 'bubblewrap' })), 'canary sings')
      assert.equal(await outputOf(shell('', read)), 'canary sings')
      const write = shell('echo x >> /input/medium || rm -f /input/medium || echo refused', {
        inputs,
        isolation: 'bubblewrap',
      })
      assert.equal(await outputOf(write), 'refused\n')
      assert.ok(existsSync(canary))
    })
  },
)

for (const isolation of levels) {
  describe(`a sandboxed program, isolation ${isolation}`, () => {
    it('gets an empty environment', async () => {
      const names = await outputOf(
        evaluate('console.log(Object.keys(process.env).join())', { isolation }),
      )
      // bubblewrap itself sets PWD to `/`.
      assert.match(names, /^(?:PWD)?\n$/)
    })

    it('writes no byte to any file (control: the shell itself does)', async () => {
      const folder = mkdtempSync(path.join(tmpdir(), 'sandbox-'))
      try {
        const script = `for f in ${folder}/f /dev/shm/f; do echo x > $f; done; echo end`
        await runInSandbox(shell(script, { isolation }), discardOutput)
        const file = path.join(folder, 'f')
        assert.equal(existsSync(file) ? statSync(file).size : 0, 0)
        execFileSync('/bin/sh', ['-c', `echo x > ${file}`])
        assert.equal(statSync(file).size, 2)
      } finally {
        rmSync(folder, { recursive: true })
        rmSync('/dev/shm/f', { force: true })
      }
    })

    it('reads standard input and reports through its own pipe', async () => {
      const script = 'cat; echo facts >&3; echo noise >&2'
      const stdin = (async function* pieces() {
        yield Buffer.from('one ')
        yield Buffer.from('two')
      })()
      const request = shell(script, { isolation, stdin, report: true })
      const { exit, value } = await runInSandbox(request, collectOutput)
      assert.equal(value.toString(), 'one two')
      assert.equal(exit.report.toString(), 'facts\n')
      assert.equal(exit.stderrBytes, 6)
      assert.equal(exit.stdoutBytes, 7)
    })

    it('reads a descriptor it was handed', async () => {
      const descriptor = openSync('/bin/sh', 'r')
      try {
        const request = shell('head -c 4 /proc/self/fd/3', { isolation, descriptors: [descriptor] })
        assert.equal(await outputOf(request), '\u{7f}ELF')
      } finally {
        closeSync(descriptor)
      }
    })

    it('may end before it has read its input', async () => {
      const request = shell('exit 3', { isolation, stdin: Buffer.alloc(4 * 1024 ** 2) })
      const { exit } = await runInSandbox(request, discardOutput)
      assert.equal(exit.outcome, 'failed')
      assert.equal(exit.code, 3)
    })

    it('is killed with its children when its time is over', async () => {
      const script = 'sleep 60 & sleep 60'
      const request = shell(script, { isolation, bounds: { ...bounds, wallMs: 300 } })
      const { exit } = await runInSandbox(request, discardOutput)
      assert.equal(exit.outcome, 'timeout')
      assert.equal(exit.dead, true)
    })

    it('leaves no child behind when it ends by itself', async () => {
      const { exit } = await runInSandbox(shell('sleep 60 & exit 0', { isolation }), discardOutput)
      assert.equal(exit.outcome, 'ok')
      assert.equal(exit.dead, true)
    })

    it('is killed when it takes more memory than it may', async () => {
      const source = 'const all = []; setInterval(() => all.push(Buffer.alloc(2e7, 1)), 5)'
      const request = evaluate(source, {
        isolation,
        bounds: { ...bounds, memoryBytes: 150 * 1024 ** 2 },
      })
      const { exit } = await runInSandbox(request, discardOutput)
      assert.equal(exit.outcome, 'memory')
      assert.equal(exit.dead, true)
    })

    it('starts no more processes than it may', { skip: isolation === 'none' }, async () => {
      const script =
        'for i in 1 2 3 4 5 6 7 8 9 10; do for j in 1 2 3 4; do sleep 60 & done; done; wait'
      const request = shell(script, { isolation, bounds: { ...bounds, processesMax: 16 } })
      const { exit } = await runInSandbox(request, discardOutput)
      // The kernel itself stops everybody but root.
      assert.equal(exit.outcome, process.getuid?.() === 0 ? 'processes' : 'failed')
      assert.equal(exit.dead, true)
      const enough = shell(script, { isolation, bounds: { ...bounds, wallMs: 1000 } })
      assert.equal((await runInSandbox(enough, discardOutput)).exit.outcome, 'timeout')
    })

    it('ends when the process that started it is killed', async () => {
      const seconds = String(40_000 + process.pid)
      const source = `
        const { runInSandbox, discardOutput } = await import('${import.meta.resolve('./sandbox.ts')}')
        const bounds = { wallMs: 60000, memoryBytes: 1e9, outputBytesMax: 10 }
        const args = () => ['-c', 'echo x; exec sleep ${seconds}']
        await runInSandbox({ isolation: '${isolation}', program: '/bin/sh', args, bounds },
          async (output) => { for await (const _ of output) console.log('running') })`
      const starter = spawn(process.execPath, ['--input-type=module', '-e', source])
      try {
        await once(starter.stdout, 'data')
        // `exec` follows the line that was just seen.
        for (let round = 0; !isRunning(seconds); round++) {
          assert.ok(round < 500, 'it never started')
          await sleep(10)
        }
      } finally {
        starter.kill('SIGKILL')
      }
      await once(starter, 'close')
      for (let round = 0; isRunning(seconds); round++) {
        assert.ok(round < 500, 'it outlives its parent')
        await sleep(10)
      }
    })

    it('is killed when it says more than it may, or when nobody listens any more', async () => {
      const endless = shell('yes', { isolation })
      const { exit } = await runInSandbox(endless, discardOutput)
      assert.equal(exit.outcome, 'output')
      const stopped = runInSandbox(endless, async (output) => {
        for await (const piece of output) throw new Error(`enough after ${piece.length > 0}`)
      })
      await assert.rejects(stopped, /enough after true/)
    })

    it('is killed when the caller aborts or the source of its input fails', async () => {
      const request = shell('sleep 60', { isolation, signal: AbortSignal.timeout(100) })
      assert.equal((await runInSandbox(request, discardOutput)).exit.outcome, 'aborted')
      const stdin = (async function* broken(): AsyncGenerator<Buffer> {
        yield Buffer.from('x')
        throw new Error('source failed')
      })()
      const fed = runInSandbox(shell('sleep 60', { isolation, stdin }), discardOutput)
      await assert.rejects(fed, /source failed/)
    })
  })
}
