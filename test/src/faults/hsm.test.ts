/** Proves on a running control plane that an HSM which hangs or goes away stops nothing but rolls, and that its PIN stays with children. */

import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { after, before, describe, it } from 'node:test'
import { fileURLToPath } from 'node:url'

import { makeToken, withoutSoftHsm } from '@sluice/control-plane/keys/soft-hsm.test-setup'
import {
  makeStubbornModule,
  type StubbornModule,
  withoutCompiler,
} from '@sluice/control-plane/keys/stubborn-module.test-setup'

import { waitFor } from '../tools/fleet-daemon.ts'
import { type Fleet, startFleet } from '../tools/fleet.ts'
import { need } from '../tools/need.ts'
import { takeKeyNeedles } from '../tools/needles.ts'
import { startProgram } from '../tools/processes.ts'
import { describeHits, makeScanner, scanProcess } from '../tools/scan.ts'
import { makeTemporaryDirectory, type TemporaryDirectory } from '../tools/temporary-directory.ts'

const skip =
  withoutSoftHsm() ||
  withoutCompiler() ||
  need('the memory of processes', process.getuid?.() === 0, 'run as root on Linux')

/** As long as a key, so that it is found like one. */
const pin = randomBytes(24).toString('base64url')
const waitMsMax = 90_000

type PurgeView = { id: string; state: string; keysUnrecoverableAtMs?: number }

describe('a control plane over an HSM', () => {
  const cleanup = new AsyncDisposableStack()
  let folder: TemporaryDirectory
  let fleet: Fleet
  let module: StubbornModule
  let library: string

  before(async () => {
    if (skip !== false) return
    folder = cleanup.use(await makeTemporaryDirectory('hsm'))
    const token = await makeToken(folder.path, 'sluice', pin)
    library = token.library
    module = await makeStubbornModule(folder.path, library)
    const { tokenLabel, pinFile } = token
    const pkcs11 = { library: module.library, tokenLabel, pinFile }
    fleet = cleanup.use(
      await startFleet({
        name: 'hsm-fleet',
        controlPlane: { keys: { store: 'pkcs11', pkcs11 } },
        env: { SOFTHSM2_CONF: process.env['SOFTHSM2_CONF'] },
      }),
    )
  })
  after(() => cleanup.disposeAsync())

  async function childrenByProgram(): Promise<Map<string, number>> {
    const { pid } = fleet.controlPlane
    const children = await readFile(`/proc/${pid}/task/${pid}/children`, 'utf8')
    const found = new Map<string, number>()
    for (const child of children.split(' ').filter(Boolean).map(Number)) {
      const line = await readFile(`/proc/${child}/cmdline`, 'utf8')
      const program = /(key|token)-process/.exec(line)?.[0]
      if (program !== undefined) found.set(program, child)
    }
    return found
  }

  async function purge(): Promise<string> {
    const body = { scope: { kind: 'everything' }, reason: 'a test' }
    const { id } = (await fleet.ask('/v1/purges', { role: 'security', body })) as PurgeView
    return id
  }

  const viewOf = async (id: string): Promise<PurgeView> =>
    (await fleet.ask(`/v1/purges/${id}`, { role: 'security' })) as PurgeView

  const concluded = (id: string): Promise<PurgeView> =>
    waitFor(`purge ${id} to be concluded`, waitMsMax, async () => {
      const view = await viewOf(id)
      return view.state === 'concluded' ? view : undefined
    })

  async function alertsTold(): Promise<number> {
    const { items } = (await fleet.ask('/v1/alerts', { role: 'security' })) as {
      items: { type: string }[]
    }
    return items.filter(({ type }) => type === 'keys.unavailable').length
  }

  function epochs(): { id: string; state: string }[] {
    const file = join(fleet.controlPlane.dataDirectory, 'sluice.db')
    using database = new DatabaseSync(file, { readOnly: true })
    return database.prepare('SELECT id, state FROM epochs ORDER BY created_at_ms').all() as never
  }

  it('has neither the PIN nor the code of the HSM in its main process', { skip }, async () => {
    const scanner = makeScanner(takeKeyNeedles(Buffer.from(pin), 'the PIN'))
    const children = await childrenByProgram()
    assert.deepEqual([...children.keys()].toSorted(), ['key-process', 'token-process'])
    const mapped = async (pid: number): Promise<boolean> =>
      /softhsm|stubborn|pkcs11\.node/.test(await readFile(`/proc/${pid}/maps`, 'utf8'))
    for (const [name, pid] of children) {
      assert.ok(await mapped(pid), `control: the ${name} has it`)
      const report = await scanProcess(scanner, pid)
      assert.equal(report.hits.length, 0, `${name}: ${describeHits(report)}`)
    }
    const { pid } = fleet.controlPlane
    assert.ok(!(await mapped(pid)))
    const report = await scanProcess(scanner, pid)
    assert.equal(report.hits.length, 0, describeHits(report))
  })

  it('control: a PIN that was a string stays in memory', { skip }, async () => {
    // What the binding itself offers.
    const program = `
      const pkcs11js = require('pkcs11js')
      const [library, pinFile] = process.argv.slice(1)
      const pkcs11 = new pkcs11js.PKCS11()
      pkcs11.load(library)
      pkcs11.C_Initialize()
      const [slot] = pkcs11.C_GetSlotList(true)
      const session = pkcs11.C_OpenSession(slot, pkcs11js.CKF_SERIAL_SESSION)
      const pin = require('node:fs').readFileSync(pinFile)
      pkcs11.C_Login(session, pkcs11js.CKU_USER, pin.toString('utf8', 0, pin.length - 1))
      pin.fill(0)
      console.log('logged in')
      setInterval(() => undefined, 1000)`
    await using naive = await startProgram({
      command: process.execPath,
      args: ['--eval', program, library, join(folder.path, 'pin')],
      cwd: fileURLToPath(new URL('../../../control-plane', import.meta.url)),
    })
    await naive.waitForLine(/logged in/)
    const scanner = makeScanner(takeKeyNeedles(Buffer.from(pin), 'the PIN'))
    const report = await scanProcess(scanner, naive.pid)
    assert.ok(report.hits.length > 0)
  })

  it('answers while the HSM hangs, and purges when it goes on', { skip }, async () => {
    await module.hang()
    try {
      const id = await purge()
      await waitFor('the HSM to be asked', waitMsMax, async () => module.hangs() || undefined)
      for (const path of ['/v1/status', '/v1/obligations', `/v1/purges/${id}`])
        assert.equal((await fleet.call(path, { role: 'security' })).status, 200)
      assert.ok(module.hangs(), 'it hangs all the while')
      assert.equal((await viewOf(id)).keysUnrecoverableAtMs, undefined)
      await module.goOn()
      const { keysUnrecoverableAtMs } = await concluded(id)
      assert.ok(keysUnrecoverableAtMs !== undefined)
    } finally {
      await module.goOn()
    }
  })

  it('owes a purge while the token is away, says so, and goes on by itself', { skip }, async () => {
    const earlier = epochs()
    const toldBefore = await alertsTold()
    await rename(join(folder.path, 'token'), join(folder.path, 'away'))
    let id: string
    try {
      id = await purge()
      await waitFor('an alert', waitMsMax, async () =>
        (await alertsTold()) > toldBefore ? true : undefined,
      )
      const view = await viewOf(id)
      assert.equal(view.state, 'running')
      assert.equal(view.keysUnrecoverableAtMs, undefined)
      const known = epochs().filter((epoch) => earlier.some((one) => one.id === epoch.id))
      assert.deepEqual(known, earlier, 'no epoch was ended')
    } finally {
      await rename(join(folder.path, 'away'), join(folder.path, 'token'))
    }
    await concluded(id)
    const old = earlier.find((epoch) => epoch.state === 'current')
    assert.equal(epochs().find((epoch) => epoch.id === old?.id)?.state, 'destroyed')
    assert.equal(await alertsTold(), toldBefore + 1)
    await fleet.controlPlane.waitForLine(/"event":"keys.back"/)
  })
})
