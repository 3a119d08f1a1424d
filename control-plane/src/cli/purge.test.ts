/** Proves the commands of a purge as scripts run them. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { purgeDetail, purgePreview } from '@sluice/protocol/api-purge'
import {
  joinedAgent,
  startControlPlane,
  type TestControlPlane,
} from '../control-plane.test-setup.ts'
import { runSluice } from './cli.test-setup.ts'

describe('sluice purge', () => {
  let system: TestControlPlane
  let folder = ''
  before(async () => {
    system = await startControlPlane()
    folder = await mkdtemp(join(tmpdir(), 'sluice-cli-'))
    await joinedAgent(system, 'capture')
    const token = join(folder, 'security.token')
    const person = ['--principal', 'anna', '--role', 'security', '--data-dir', system.dataDir]
    assert.equal((await sluice(['tokens', 'create', ...person, '--out', token])).code, 0)
    assert.equal((await sluice(['login', '--token-file', token])).code, 0)
  })
  after(async () => {
    await system[Symbol.asyncDispose]()
    await rm(folder, { recursive: true })
  })

  const sluice = (args: string[]) => runSluice(args, join(folder, 'context.json'))

  it('shows first what it would hit', async () => {
    const { code, out } = await sluice(['purge', 'everything', '--reason', 'x', '--dry-run'])
    assert.equal(code, 0)
    assert.match(out, /^Nothing was changed/)
    assert.match(out, /AGENT.*NAME.*ROLE.*CONNECTED\n.* capture .*NO/)
    const json = await sluice(['purge', 'site', 'rome', '--reason', 'x', '--dry-run', '--json'])
    assert.equal(purgePreview.parse(JSON.parse(json.out)).agentsCount, 0)
  })

  it('follows one to its end, and fetches what proves it', async () => {
    const { code, out } = await sluice(['purge', 'site', 'rome', '--reason', 'x'])
    assert.equal(code, 0)
    const [, id = ''] = /^purge (\S+)$/m.exec(out) ?? []
    assert.match(out, /concluded, keys unusable, epoch destroyed, orders signed 0\/0/)
    const file = join(folder, 'purge.certificate.json')
    assert.equal((await sluice(['purges', 'report', id, '--out', file])).code, 0)
    const trust = join(system.dataDir, 'evidence', 'evidence-public.pem')
    const verdict = await sluice(['verify', file, '--trust', trust])
    assert.equal(verdict.code, 0, verdict.err)
    assert.match(await readFile(file, 'utf8'), /purge-certificate/)

    const bundle = join(folder, 'purge.tar')
    const fetched = await sluice(['purges', 'bundle', id, '--out', bundle])
    assert.equal(fetched.code, 0, fetched.err)
    const judged = await sluice(['verify', bundle, '--trust', trust])
    assert.equal(judged.code, 0, judged.err)
    assert.match(
      judged.out,
      /the bundle is whole[^]*configSha256[^]*verified: this purge is complete/,
    )
    // Never over a file that is there, and never believed once a byte of it is another.
    assert.equal((await sluice(['purges', 'bundle', id, '--out', bundle])).code, 2)
    const bytes = await readFile(bundle)
    bytes[600]! ^= 1
    await writeFile(bundle, bytes)
    const refused = await sluice(['verify', bundle, '--trust', trust])
    assert.deepEqual([refused.code, /evidence\./.test(refused.err)], [3, true])
  })

  it('fetches a bundle of what is open too, which is then no certificate', async () => {
    const asked = ['purge', 'everything', '--reason', 'x', '--no-wait', '--json']
    const { id } = purgeDetail.parse(JSON.parse((await sluice(asked)).out))
    const bundle = join(folder, 'open.tar')
    assert.equal((await sluice(['purges', 'bundle', id, '--out', bundle])).code, 0)
    const trust = join(system.dataDir, 'evidence', 'evidence-public.pem')
    const { code, out, err } = await sluice(['verify', bundle, '--trust', trust])
    assert.equal(code, 3)
    assert.match(out, /the bundle is whole/)
    assert.match(err, /evidence\.incomplete/)
  })

  it('names who has not confirmed when it does not wait', async () => {
    const { out } = await sluice(['purge', 'everything', '--reason', 'x', '--no-wait', '--json'])
    const begun = purgeDetail.parse(JSON.parse(out))
    const shown = await sluice(['purges', 'show', begun.id])
    assert.match(shown.out, /1 agents have not confirmed/)
    assert.match((await sluice(['purges', 'list'])).out, /everything/)
  })

  it('refuses what is no scope as usage', async () => {
    for (const scope of [['moon'], ['job'], ['time', '1', 'yesterday'], ['everything', 'else']])
      assert.equal((await sluice(['purge', ...scope, '--reason', 'x'])).code, 2, scope.join(' '))
  })
})
