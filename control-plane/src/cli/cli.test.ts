import assert from 'node:assert/strict'
import { execFile, spawn } from 'node:child_process'
import { generateKeyPairSync } from 'node:crypto'
import { once } from 'node:events'
import { chmod, mkdtemp, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, before, describe, it } from 'node:test'
import { startControlPlane, type TestControlPlane } from '../control-plane.test-setup.ts'
import { runSluice, sluiceMain } from './cli.test-setup.ts'
import { everyCommand, sluiceProgram } from './commands.ts'
import { durationMs } from './output.ts'

describe('sluice', () => {
  let system: TestControlPlane
  let folder = ''
  before(async () => {
    system = await startControlPlane()
    folder = await mkdtemp(join(tmpdir(), 'sluice-cli-'))
  })
  after(async () => {
    await system[Symbol.asyncDispose]()
    await rm(folder, { recursive: true })
  })

  const sluice = (args: string[], context = 'context.json') =>
    runSluice(args, join(folder, context))

  async function login(role: string, context: string): Promise<void> {
    const file = join(folder, `${role}.token`)
    const right = ['--principal', `cli-${role}`, '--role', role, '--site', '*']
    const owner = ['--data-dir', system.dataDir, '--out', file]
    assert.equal((await sluice(['tokens', 'create', ...right, ...owner], context)).code, 0)
    assert.equal((await sluice(['login', '--token-file', file], context)).code, 0)
  }

  it('without a login exits 3 with one line of what and one of what to do', async () => {
    const { code, out, err } = await sluice(['agents', 'list'], 'none.json')
    assert.deepEqual([code, out], [3, ''])
    assert.match(err, /^error: .*\nhint: .*sluice login.*\n$/)
  })

  it('shows an example in the help of every command', () => {
    for (const command of everyCommand(sluiceProgram())) {
      // A group's help lists its commands.
      if (command.commands.length > 0) continue
      let help = ''
      command.configureOutput({ writeOut: (text) => (help += text) })
      command.outputHelp()
      assert.match(help, /Example:\n {2}\$ sluice /, command.name())
    }
  })

  it('exits 2 for what makes no sense, with a hint', async () => {
    const lines = [
      ['nonsense'],
      ['tokens', 'join', '--role', 'neither', '--site', 'x'],
      ['tokens', 'join', '--role', 'gpu', '--site', 'x', '--life', '5 years', '--out', '-'],
      ['verify', join(folder, 'missing'), '--trust', join(folder, 'missing')],
      ['verify', sluiceMain],
      ['login', '--token-file', sluiceMain],
      ['config', 'check', '--config', join(folder, 'missing')],
    ]
    await Promise.all(
      lines.map(async (args) => {
        const { code, err } = await sluice(args)
        assert.equal(code, 2, args.join(' '))
        assert.match(err, /^error: [^\n]+\nhint: [^\n]+\n$/, args.join(' '))
      }),
    )
  })

  it('takes the owner from first token to login, with files nobody else may read', async () => {
    await login('security', 'security.json')
    for (const name of ['security.token', 'security.json'])
      assert.equal((await stat(join(folder, name))).mode & 0o777, 0o600, name)
    const { code, out } = await sluice(['audit', 'verify', '--json'], 'security.json')
    assert.equal(code, 0)
    assert.equal((JSON.parse(out) as { whole: boolean }).whole, true)
    const again = await sluice([
      ...['tokens', 'create', '--principal', 'cli-security', '--data-dir', system.dataDir],
      ...['--out', join(folder, 'security.token')],
    ])
    assert.equal(again.code, 2, 'a token never overwrites a file')
  })

  it('refuses a login that others can read', async () => {
    await login('viewer', 'open.json')
    assert.equal((await sluice(['jobs', 'list'], 'open.json')).code, 0, 'control')
    await chmod(join(folder, 'open.json'), 0o644)
    const { code, err } = await sluice(['jobs', 'list'], 'open.json')
    assert.equal(code, 3)
    assert.match(err, /host\.unsafe_file/)
  })

  it('refuses a token of another authority when the fingerprint is known', async () => {
    const args = ['login', '--token-file', join(folder, 'security.token'), '--ca-fingerprint']
    const good = await sluice([...args, system.controlPlane.caSha256], 'pinned.json')
    assert.equal(good.code, 0, 'control')
    assert.equal((await sluice([...args, 'ab'.repeat(32)], 'other.json')).code, 3)
  })

  it('sends what a role may not do back with exit 3', async () => {
    await sluice(['login', '--token-file', join(folder, 'viewer.token')], 'viewer.json')
    const { code, err } = await sluice(['audit', 'list'], 'viewer.json')
    assert.equal(code, 3)
    assert.match(err, /access\.forbidden[\s\S]*security/)
  })

  it('prints the same objects as the API with --json, and errors as JSON too', async () => {
    const { out } = await sluice(['jobs', 'list', '--json'], 'security.json')
    assert.deepEqual(JSON.parse(out), [])
    const missing = await sluice(['jobs', 'show', 'x', '--json'], 'security.json')
    assert.equal(missing.code, 1)
    const { error } = JSON.parse(missing.err) as { error: { code: string } }
    assert.equal(error.code, 'job.not_found')
  })

  it('verify refuses what no trusted key has signed', async () => {
    const file = join(folder, 'forged.json')
    const key = join(folder, 'key.pem')
    await writeFile(file, '{}')
    const { publicKey } = generateKeyPairSync('ed25519')
    await writeFile(key, publicKey.export({ format: 'pem', type: 'spki' }))
    const { code, err } = await sluice(['verify', file, '--trust', key])
    assert.equal(code, 3)
    assert.match(err, /evidence\./)
  })

  it('prints a configuration that it accepts', async () => {
    const file = join(folder, 'config.json')
    await writeFile(file, (await sluice(['config', 'init'])).out)
    const checked = await sluice(['config', 'check', '--config', file])
    assert.equal(checked.code, 0)
    assert.match(checked.out, /"agentPort": 8443/)
    assert.match(await readFile(file, 'utf8'), /\/\/ "publicName"/)
  })

  it('serve tells its addresses, answers its owner, and ends cleanly on SIGTERM', async () => {
    const dataDir = join(folder, 'served')
    const ports = ['--agent-port', '0', '--operator-port', '0', '--allow-swap']
    const child = spawn(process.execPath, [sluiceMain, 'serve', '--data-dir', dataDir, ...ports], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: {},
    })
    try {
      const ended = once(child, 'exit')
      let told = ''
      child.stderr.on('data', (piece: Buffer) => (told += piece.toString()))
      const lines = createInterface({ input: child.stdout })
      const [line] = (await once(lines, 'line')) as [string]
      const started = JSON.parse(line) as { event: string; operatorUrl: string }
      assert.equal(started.event, 'control-plane.started')
      const listeners = JSON.parse(
        await readFile(join(dataDir, 'listeners.json'), 'utf8'),
      ) as object
      assert.equal((listeners as { operatorUrl: string }).operatorUrl, started.operatorUrl)
      const owner = ['--data-dir', dataDir, '--out', '-']
      const token = await sluice(['tokens', 'join', '--role', 'gpu', '--site', 'x', ...owner])
      assert.match(token.out, /^sluice-join-1\./)
      assert.match(told, /sluice tokens create .*\n[\s\S]*sluice-agent join/)
      child.kill('SIGTERM')
      assert.deepEqual(await ended, [0, null])
      await assert.rejects(stat(join(dataDir, 'admin.sock')), { code: 'ENOENT' })
    } finally {
      child.kill('SIGKILL')
    }
  })

  it('serve on a full disk ends with one line and a hint, and exit 1', async () => {
    const dataDir = join(folder, 'full')
    await (await startControlPlane(dataDir))[Symbol.asyncDispose]()
    const ports = ['--agent-port', '0', '--operator-port', '0', '--allow-swap']
    const serve = [sluiceMain, 'serve', '--data-dir', dataDir, ...ports]
    // No file may be written beyond this.
    const { code, err } = await new Promise<{ code: unknown; err: string }>((resolve) => {
      const full = ['--fsize=4096', process.execPath, ...serve]
      const child = execFile('prlimit', full, { env: {}, timeout: 10_000 }, (_error, _out, said) =>
        resolve({ code: child.exitCode, err: said }),
      )
    })
    assert.equal(code, 1)
    assert.match(err, /^error: [^\n]+ \(host\.disk_full\)\nhint: Make room [^\n]+\n$/)
    await (await startControlPlane(dataDir))[Symbol.asyncDispose]()
  })

  it('reads durations with a unit, and nothing else', () => {
    assert.equal(durationMs('90s'), 90_000)
    assert.equal(durationMs('2h'), 7_200_000)
    for (const text of ['', '5', 'h', '-1m', '1.5h', '1 h'])
      assert.throws(() => durationMs(text), { code: 'usage' })
  })
})
