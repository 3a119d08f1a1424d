/** Proves that a started control plane writes its sink and speaks to its channel, as its commands show. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { raiseAlert } from '../alerts/store.ts'
import { createChanges } from '../changes.ts'
import { startControlPlane, type TestControlPlane } from '../control-plane.test-setup.ts'
import { runSluice } from './cli.test-setup.ts'
import { openDatabase } from '../database/database.ts'

describe('sluice alerts, obligations, audit sink', () => {
  let [folder, sink] = ['', '']
  let system: TestControlPlane
  const posted: { type: string }[] = []
  const receiver = createServer((request, response) => {
    let body = ''
    request.on('data', (piece: Buffer) => (body += piece.toString()))
    request.on('end', () => {
      posted.push(JSON.parse(body) as { type: string })
      response.writeHead(204).end()
    })
  })

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'sluice-keeping-'))
    sink = join(folder, 'audit.jsonl')
    await writeFile(join(folder, 'key'), randomBytes(32), { mode: 0o600 })
    await new Promise<void>((resolve) => receiver.listen(0, '127.0.0.1', resolve))
    const url = `http://127.0.0.1:${(receiver.address() as AddressInfo).port}/`
    const data = join(folder, 'data')
    // An alert from before: the engine of this start delivers it.
    await (await startControlPlane(data))[Symbol.asyncDispose]()
    {
      await using rows = openDatabase(join(data, 'sluice.db'))
      const alert = {
        severity: 'critical',
        site: '*',
        atMs: Date.now(),
        detail: { jobs: 3 },
      } as const
      await rows.write((tx) =>
        raiseAlert(
          tx,
          { ...alert, type: 'purge.begun', summary: 'a purge of 3 jobs began' },
          createChanges(),
        ),
      )
    }
    system = await startControlPlane(data, {
      alerts: { webhook: { url, secretFile: join(folder, 'key') } },
      auditSink: { file: sink },
    })
    const token = join(folder, 'token')
    const right = ['--principal', 'anna', '--role', 'security', '--site', '*', '--out', token]
    assert.equal((await sluice('tokens', 'create', ...right, '--data-dir', data)).code, 0)
    assert.equal((await sluice('login', '--token-file', token)).code, 0)
  })
  after(async () => {
    await system[Symbol.asyncDispose]()
    receiver.closeAllConnections()
    await new Promise((resolve) => receiver.close(resolve))
    await rm(folder, { recursive: true })
  })

  const sluice = (...args: string[]) => runSluice(args, join(folder, 'context.json'))

  /** Asks until the answer is as wanted. */
  async function until(wanted: RegExp, ...args: string[]): Promise<string> {
    const deadlineMs = Date.now() + 60_000
    for (;;) {
      const { code, out, err } = await sluice(...args)
      assert.equal(code, 0, err)
      if (wanted.test(out)) return out
      assert(Date.now() < deadlineMs, `${args.join(' ')}: ${out}`)
      await sleep(200)
    }
  }

  it('lists what its channel took, and tries the channel', async () => {
    const out = await until(/purge\.begun +\* +\d{4}-/, 'alerts', 'list')
    assert.match(out, /^AT .*DELIVERED +SUMMARY\n.*a purge of 3 jobs began\n$/)
    const test = await sluice('alerts', 'test')
    assert.match(test.out, /status +204/)
    assert.deepEqual(
      posted.map(({ type }) => type),
      ['purge.begun', 'alert.test'],
    )
  })

  it('lists duties by kind, in words', async () => {
    const out = await until(/ done /, 'obligations', '--kind', 'alert.deliver', '--all')
    assert.match(out, /^ID +KIND +PROGRESS/)
    const open = await sluice('obligations', '--kind', 'alert.deliver', '--json')
    assert.deepEqual(JSON.parse(open.out), [])
  })

  it('runs what docs/operate/obligations.md prints', async () => {
    const page = new URL('../../../docs/operate/obligations.md', import.meta.url)
    const block = /```sh\n([^]*?)```/.exec(await readFile(page, 'utf8'))?.[1]
    const lines = block?.trim().split('\n') ?? []
    assert(lines.length >= 4)
    for (const line of lines) {
      const [name, ...args] = line.split(' ')
      assert.equal(name, 'sluice')
      const { code, err } = await sluice(...args)
      assert.equal(code, 0, `${line}: ${err}`)
    }
  })

  it('shows how far the sink has come; its file holds, and shows what was done to it', async () => {
    const out = await until(/lagEvents +0/, 'audit', 'sink')
    assert.match(out, /lastSeq +[1-9]/)
    const whole = await sluice('audit', 'verify', '--file', sink)
    assert.equal(whole.code, 0, whole.err)
    const head = /head (\S+)/.exec(whole.out)?.[1]
    assert(head)
    const lines = (await readFile(sink, 'utf8')).trimEnd().split('\n')
    assert(lines.length >= 3)
    const copy = join(folder, 'copy.jsonl')
    const verify = async (changed: readonly string[], ...more: string[]) => {
      await writeFile(copy, changed.map((line) => `${line}\n`).join(''))
      return (await sluice('audit', 'verify', '--file', copy, ...more)).code
    }
    assert.equal(await verify(lines, '--head', head), 0, 'the control')
    assert.equal(await verify(lines.slice(1), '--head', head), 0, 'a file may begin anywhere')
    assert.equal(await verify(lines.with(1, lines[1]!.replace('"site":"*"', '"site":"x"'))), 3)
    assert.equal(await verify(lines.toSpliced(1, 1)), 3, 'a gap')
    assert.equal(await verify(lines.slice(0, -1)), 0, 'a cut end alone is not seen')
    assert.equal(await verify(lines.slice(0, -1), '--head', head), 3, 'with a noted head it is')
    assert.equal(await verify([]), 3)
  })
})
