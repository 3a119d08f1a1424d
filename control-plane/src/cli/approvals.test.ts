/** Proves on the command line how two people make a third one, and that one alone gets no further. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { decodeToken, pageOf } from '@sluice/protocol/api'
import { approvalView } from '@sluice/protocol/api-approvals'
import { startControlPlane, type TestControlPlane } from '../control-plane.test-setup.ts'
import { runSluice } from './cli.test-setup.ts'

describe('sluice approvals', () => {
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

  const sluice = (person: string, args: string[]) => runSluice(args, join(folder, `${person}.json`))

  const create = (by: string, principal: string, more: string[] = []) =>
    sluice(by, [
      ...['tokens', 'create', '--principal', principal, '--role', 'security'],
      ...['--out', join(folder, `${principal}.token`), ...more],
    ])

  it('lead two people from the owner’s socket to a third', async () => {
    for (const person of ['anna', 'berta']) {
      const made = await create(person, person, ['--data-dir', system.dataDir])
      assert.equal(made.code, 0, made.err)
      const file = join(folder, `${person}.token`)
      assert.equal((await sluice(person, ['login', '--token-file', file])).code, 0)
    }
    const byOwner = await create('nobody', 'carla', ['--data-dir', system.dataDir])
    assert.equal(byOwner.code, 3)
    assert.match(byOwner.err, /approval\.needed[\s\S]*hint: /)

    const asked = await create('anna', 'carla', ['--reason', 'joins the team'])
    assert.equal(asked.code, 3)
    assert.match(asked.err, /approval\.needed[\s\S]*sluice approvals give /)
    await assert.rejects(stat(join(folder, 'carla.token')), 'no token yet')

    const listed = await sluice('berta', ['approvals', 'list'])
    assert.match(listed.out, /security\.raise carla security@\*.* anna .*joins the team/)
    const json = await sluice('berta', ['approvals', 'list', '--json'])
    const [approval] = approvalView.array().parse(JSON.parse(json.out))
    assert(approval)
    const own = await sluice('anna', ['approvals', 'give', approval.id])
    assert.deepEqual([own.code, /approval\.refused/.test(own.err)], [3, true])
    assert.equal((await sluice('berta', ['approvals', 'give', approval.id])).code, 0)
    const shown = await sluice('anna', ['approvals', 'show', approval.id])
    assert.match(shown.out, /decider +berta/)

    assert.equal((await create('anna', 'carla')).code, 0)
    const token = await readFile(join(folder, 'carla.token'), 'utf8')
    const { secret } = decodeToken('token', token)
    const page = await system.call('GET', '/v1/approvals?state=given', { secret })
    assert.equal(pageOf(approvalView).parse(page.json).items.length, 1)
  })
})
