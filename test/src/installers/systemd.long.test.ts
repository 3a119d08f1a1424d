/** The units, and the page that says how to install them, on three machines with a real systemd. */

import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'

import { makeMedia } from '../demo/make-media.ts'
import { repositoryRoot } from '../repository/source-tree.ts'
import { waitFor } from '../tools/fleet-daemon.ts'
import { makeMachines, needMachines } from '../tools/machine.ts'
import type { Machine } from '../tools/machine.ts'
import { readCommands } from '../tools/page-commands.ts'
import { makeTemporaryDirectory } from '../tools/temporary-directory.ts'

const skip = needMachines()

/** What `npm run setup` gives a host. */
const packages = ['bubblewrap', 'ffmpeg', 'libatomic1']

const units = {
  control: 'sluice-control-plane',
  capture: 'sluice-agent-capture',
  gpu: 'sluice-agent-gpu',
} as const

type Place = keyof typeof units
const places = Object.keys(units) as Place[]

const patienceMs = 60_000

/** Writes where its media lie, after a moment in which that can be looked at from outside. */
const lookAnalyser = {
  name: 'look',
  version: '1',
  command: [
    '/bin/sh',
    '-c',
    `sleep 2; printf '{"media":[{"name":"0001.jpg","output":"%s"}]}' \
      "$(stat -f -c %T "$SLUICE_MEDIA_DIRECTORY")"`,
  ],
  input: 'directory',
}

const page = readCommands(await readFile(join(repositoryRoot, 'docs/operate/install.md'), 'utf8'))

describe('the units, installed as docs/operate/install.md says', () => {
  const cleanup = new AsyncDisposableStack()
  const machines = new Map<Place, Machine>()

  const on = (place: Place): Machine => {
    const machine = machines.get(place)
    assert.ok(machine)
    return machine
  }
  const show = async (place: Place, property: string): Promise<string> => {
    const shown = await on(place).run(`systemctl show --value -p ${property} ${units[place]}`)
    return shown.stdout.trim()
  }
  const journal = async (place: Place): Promise<string> =>
    (await on(place).run(`journalctl --no-pager -u ${units[place]}`)).stdout
  const waitUntilRuns = (place: Place, restarts: number): Promise<true> =>
    waitFor(`${units[place]} to run`, patienceMs, async () => {
      const runs = (await show(place, 'ActiveState')) === 'active'
      return runs && Number(await show(place, 'NRestarts')) >= restarts ? true : undefined
    })
  /** Id of the newest job, once it has that state. */
  const waitForJob = (state: string): Promise<string> =>
    waitFor(`a job to be ${state}`, patienceMs, async () => {
      const { stdout } = await on('control').run('sluice jobs list --json')
      const [job] = JSON.parse(stdout) as { id: string; state: string }[]
      return job?.state === state ? job.id : undefined
    })

  before(
    async () => {
      if (skip !== false) return
      const made = cleanup.use(
        await makeMachines({
          packages,
          readOnly: { '/opt/sluice': repositoryRoot },
          names: ['sluice.example.org'],
        }),
      )
      for (const place of places) machines.set(place, await made.boot(place))
    },
    { timeout: 30 * 60_000 },
  )
  after(() => cleanup.disposeAsync())

  it('are what systemd understands, word for word', { skip }, async () => {
    const { stdout, stderr } = await on('control').run(
      'systemd-analyze verify /opt/sluice/installers/systemd/*.service',
    )
    assert.equal(`${stdout}${stderr}`, '')
    const wrong = '[Unit]\nDescription=x\n[Service]\nExecStart=/bin/true\nLimitCORES=0\n'
    await on('control').writeFile('wrong.service', wrong)
    const said = await on('control').run('systemd-analyze verify ./wrong.service')
    assert.match(said.stderr, /LimitCORES/)
  })

  it('start, join and are ready', { skip }, async () => {
    for (const place of places) await on(place).run(page.block('Every host'))
    await on('control').run(page.block('Control plane', 0))
    await on('control').run(page.block('Control plane', 1))
    await hand('cam-7.join', 'capture')
    await hand('gpu-1.join', 'gpu')
    const checked = await on('capture').run(page.block('Capture host'))
    assert.doesNotMatch(checked.stdout, /^BAD/m)
    await on('gpu').run(page.block('GPU node'))
    assert.match(await show('control', 'StatusText'), /sluice\.example\.org:8443/)
    for (const place of ['capture', 'gpu'] as const)
      await waitFor('the link', patienceMs, async () =>
        (await show(place, 'StatusText')).startsWith('connected') ? true : undefined,
      )
    for (const place of places) assert.equal(await show(place, 'ActiveState'), 'active')
  })

  async function hand(file: string, place: Place): Promise<void> {
    await on(place).writeFile(file, await on('control').readFile(file))
  }

  it('carry a photo and a film from capture to certificate', { skip }, async (t) => {
    await using folder = await makeTemporaryDirectory('systemd-media')
    await makeMedia(folder.path, 'ffmpeg')
    await on('capture').run('mkdir -p /srv/camera')
    for (const name of ['film.mp4', 'photo.jpg'])
      await on('capture').writeFile(
        `/srv/camera/${name}`,
        await readFile(join(folder.path, name)),
        0o644,
      )
    const film = await on('capture').run('sluice-agent submit --wait /srv/camera/film.mp4')
    assert.match(film.stdout, /"kind":"video"/)
    const photo = await on('capture').run(page.block('Try it', 0))
    assert.match(photo.stdout, /"widthPixels":1600/)
    const job = await waitForJob('deleted')
    const proven = await on('control').run(page.block('Try it', 1, { JOB: job }))
    t.diagnostic(proven.stdout.trim())
  })

  it('may do little, and can leave no core', { skip }, async (t) => {
    const capabilities = { control: '0', capture: '0', gpu: '80200000' }
    for (const place of places) {
      const { stdout } = await on(place).run(
        `cd /proc/${await show(place, 'MainPID')}; cat status limits`,
      )
      assert.match(stdout, /^NoNewPrivs:\t1$/m)
      assert.match(stdout, new RegExp(`^CapBnd:\\t0*${capabilities[place]}$`, 'm'))
      assert.match(stdout, /^Max core file size +0 +0 /m)
      const exposure = await on(place).run(`systemd-analyze security ${units[place]} | tail -n 1`)
      t.diagnostic(exposure.stdout.trim())
    }
  })

  it('mount the media of a lease where nobody else sees them', { skip }, async () => {
    const config = JSON.stringify({ analysers: [lookAnalyser] })
    await on('gpu').writeFile('/etc/sluice/agent.json', config)
    await on('gpu').run(`systemctl restart ${units.gpu}`)
    const submitted = on('capture').run(
      'sluice-agent submit --wait --analyser look /srv/camera/photo.jpg',
    )
    const mounts = async (process: string) =>
      (await on('gpu').run(`grep -h ' sluice ' /proc/${process}/mountinfo`, { mayFail: true }))
        .stdout
    // Somewhere below the service there is a mount; seen from its outside there is none.
    await waitFor('media to be mounted', patienceMs, async () =>
      (await mounts('[0-9]*')).includes(' sluice ') ? true : undefined,
    )
    assert.equal(await mounts('1'), '')
    assert.match((await submitted).stdout, /tmpfs/)
    await waitForJob('deleted')
    assert.equal(await mounts('[0-9]*'), '')
  })

  it('come back after kill -9, all three, and go on', { skip }, async () => {
    await on('gpu').run(`systemctl stop ${units.gpu}`)
    await on('capture').run('sluice-agent submit /srv/camera/photo.jpg')
    await waitForJob('stored')
    await on('gpu').run(`systemctl start ${units.gpu}`)
    await Promise.all(
      places.map(async (place) => {
        const restarts = Number(await show(place, 'NRestarts'))
        await on(place).run(`systemctl kill --signal=SIGKILL ${units[place]}`)
        await waitUntilRuns(place, restarts + 1)
      }),
    )
    await waitForJob('deleted')
  })

  it('end and restart a daemon that hangs, without a core', { skip }, async () => {
    // What a service that may dump looks like in the journal.
    const dumping = 'systemd-run --quiet --wait --unit=dumper -p LimitCORE=infinity'
    const { stdout: dumped } = await on('capture').run(
      `cd /srv; ${dumping} --same-dir sh -c 'kill -s ABRT 0' || journalctl --no-pager -u dumper`,
    )
    assert.match(dumped, /code=dumped, status=6\/ABRT/)
    const unit = `/etc/systemd/system/${units.capture}.service.d`
    await on('capture').run(`mkdir ${unit}`)
    await on('capture').writeFile(`${unit}/watchdog.conf`, '[Service]\nWatchdogSec=3\n')
    await on('capture').run(`systemctl daemon-reload; systemctl restart ${units.capture}`)
    // Fed in time, it lives on.
    await on('capture').run('sleep 5')
    assert.equal(await show('capture', 'NRestarts'), '0')
    await on('capture').run(
      `systemctl kill --kill-whom=main --signal=SIGSTOP ${units.capture}; sleep 1`,
    )
    await waitUntilRuns('capture', 1)
    const said = await journal('capture')
    assert.match(said, /Watchdog timeout/)
    assert.match(said, /Main process exited, code=killed, status=6\/ABRT/)
    assert.doesNotMatch(said, /code=dumped/)
  })

  it('do not start over and over with a wrong configuration', { skip }, async () => {
    const file = '/etc/sluice/agent.json'
    const right = await on('gpu').readFile(file)
    await on('gpu').writeFile(file, '{ "analyser": 7 }')
    await on('gpu').run(`systemctl restart ${units.gpu}`, { mayFail: true })
    await on('gpu').run('sleep 7')
    assert.equal(await show('gpu', 'ActiveState'), 'failed')
    assert.equal(await show('gpu', 'NRestarts'), '0')
    await on('gpu').writeFile(file, right)
    await on('gpu').run(`systemctl start ${units.gpu}`)
  })

  it('are upgraded and removed as the page says', { skip }, async () => {
    for (const place of places) await on(place).run(page.block('Upgrade'))
    for (const place of places) assert.equal(await show(place, 'ActiveState'), 'active')
    const { stdout } = await on('control').run('sluice agents list --json')
    const agents = JSON.parse(stdout) as { id: string; role: string }[]
    const agent = agents.find(({ role }) => role === 'capture')
    assert.ok(agent)
    await on('control').run(page.block('Remove', 0, { AGENT: agent.id }))
    await on('capture').run(page.block('Remove', 1))
    assert.equal(await show('capture', 'ActiveState'), 'inactive')
  })

  it('take the S3 configuration of the page', { skip }, async () => {
    const name = 'An S3 store instead of the built-in one'
    const { stdout } = await on('control').run(page.block(name))
    assert.match(stdout, /"kind": "s3"/)
    assert.doesNotMatch(stdout, /example-secret/)
    assert.deepEqual(page.unused(), [])
  })
})
