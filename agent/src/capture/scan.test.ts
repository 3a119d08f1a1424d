/** Proves that only exactly clean passes, with a real clamd, a real yara, and daemons that lie, die and hang. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { type Socket, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, describe, it } from 'node:test'
import * as fc from 'fast-check'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import {
  type Clamd,
  eicarFile,
  marker,
  needClamd,
  startClamd,
} from '../../../test/src/tools/clamd.ts'
import { need } from '../../../test/src/tools/need.ts'
import { detectIsolation } from '../sandbox.ts'
import { askClamd } from './ask-clamd.ts'
import { parseClamdSettings, requireSafe, signaturesAtMs } from './clamd-settings.ts'
import { type ScanSettings, scanSettings } from './gate-policy.ts'
import { clamdEngine, verdictOf } from './scan-clamd.ts'
import type { ScanEngine, ScanTarget } from './scan-engine.ts'
import { type Infection, createScanner } from './scan.ts'

const isolation = await detectIsolation().catch(() => 'none' as const)
const folder = await mkdtemp(path.join(tmpdir(), 'sluice-scan-'))
after(() => rm(folder, { recursive: true }))
const needYara = need('yara', existsSync('/usr/bin/yara'), 'apt-get install yara')

function target(content: Buffer, file = '/nowhere'): ScanTarget {
  return {
    path: file,
    bytes: content.length,
    async *stream() {
      for (let at = 0; at < content.length; at += 65_536)
        yield Buffer.from(content.subarray(at, at + 65_536))
    },
  }
}

async function fileOf(name: string, content: Buffer | string): Promise<ScanTarget> {
  const file = path.join(folder, name)
  await writeFile(file, content)
  return target(Buffer.from(content), file)
}

/** Zeros with something inside, far from both ends. */
function hidden(what: Buffer, bytes = 2 * 1024 ** 2): Buffer {
  const all = Buffer.alloc(bytes)
  what.copy(all, Math.floor(bytes / 2))
  return all
}

/** An MP4 whose `free` box holds it, as a polyglot would. */
function inContainer(what: Buffer): Buffer {
  const box = (type: string, content: Buffer) => {
    const head = Buffer.alloc(8)
    head.writeUInt32BE(8 + content.length)
    head.write(type, 4, 'latin1')
    return Buffer.concat([head, content])
  }
  return Buffer.concat([
    box('ftyp', Buffer.from('isom\0\0\0\0isom', 'latin1')),
    box('free', what),
    box('mdat', Buffer.alloc(1000)),
  ])
}

const withClamd = (configFile: string, more: Partial<ScanSettings> = {}) =>
  scanSettings.parse({ clamdConfigFile: configFile, ...more })

describe('a real clamd', () => {
  let clamd: Clamd
  before(async () => {
    if (needClamd === false) clamd = await startClamd()
  })
  after(() => clamd?.[Symbol.asyncDispose]())
  const scanner = (more: Partial<ScanSettings> = {}) => {
    const infections: Infection[] = []
    const missed: string[] = []
    const made = createScanner({
      settings: withClamd(clamd.configFile, more),
      isolation,
      infected: (infection) => void infections.push(infection),
      missed: (problem) => void missed.push(problem.code),
    })
    return { ...made, infections, missed }
  }

  it('says clean of what is clean, and that it was asked', { skip: needClamd }, async () => {
    const { scan, check, tools } = scanner()
    assert.equal(await scan(target(Buffer.from('a fine day'))), 'clean')
    assert.equal(await scan(target(Buffer.alloc(3 * 1024 ** 2))), 'clean')
    assert.match(tools['clamd'] ?? '', /^\d+\.\d+/)
    assert.ok((await check())['clamd']?.signaturesAtMs)
  })

  it(
    'refuses what is infected, also inside a container, and keeps hash and reason',
    {
      skip: needClamd,
    },
    async () => {
      for (const content of [eicarFile(), hidden(marker()), inContainer(marker())]) {
        const { scan, infections } = scanner({ policy: 'warn' })
        await assert.rejects(scan(target(content)), { code: 'media.infected' })
        const sha256 = createHash('sha256').update(content).digest('hex')
        assert.equal(infections.length, 1)
        const [infection] = infections
        assert.deepEqual(
          { ...infection, finding: '' },
          {
            ...{ sha256, engine: 'clamd', finding: '', bytes: content.length },
          },
        )
        assert.match(infection?.finding ?? '', /^Own\.(?:Eicar|Marker)\.UNOFFICIAL$/)
      }
    },
  )

  it('has no verdict about what is larger than it looks at', { skip: needClamd }, async () => {
    const large = target(hidden(eicarFile(), 5 * 1024 ** 2))
    await assert.rejects(scanner().scan(large), { code: 'scan.too_large' })
    const lenient = scanner({ policy: 'warn' })
    assert.equal(await lenient.scan(large), 'unscanned')
    assert.deepEqual(lenient.missed, ['scan.too_large'])
    // The control: the daemon itself, asked without our bound, says nothing of it either.
    const answer = askClamd(clamd.socket, 'INSTREAM', { content: large.stream(), wallMs: 30_000 })
    await assert.rejects(
      answer.then((text) => verdictOf(text, 1)),
      (error) => isSluiceError(error),
    )
  })

  it(
    'is not believed with signatures that are too old, or from the future',
    {
      skip: needClamd,
    },
    async () => {
      await clamd.ageSignatures(100)
      try {
        await assert.rejects(scanner().scan(target(Buffer.from('x'))), { code: 'scan.stale' })
        assert.equal(await scanner({ policy: 'warn' }).scan(target(Buffer.from('x'))), 'unscanned')
        assert.equal(await scanner({ policy: 'off' }).scan(target(eicarFile())), undefined)
        const patient = scanner({ signatureAgeHoursMax: 101 })
        assert.equal(await patient.scan(target(Buffer.from('x'))), 'clean')
        await clamd.ageSignatures(-48)
        await assert.rejects(scanner().check(), { code: 'scan.stale' })
      } finally {
        await clamd.ageSignatures(0)
      }
    },
  )

  it(
    'killed in the middle of a scan is no verdict, and started again it is asked anew',
    {
      skip: needClamd,
    },
    async () => {
      const { scan } = scanner()
      assert.equal(await scan(target(Buffer.from('x'))), 'clean')
      const halfWay: ScanTarget = {
        ...target(Buffer.alloc(1024 ** 2)),
        async *stream() {
          yield Buffer.alloc(512 * 1024)
          await clamd.kill()
          yield Buffer.alloc(512 * 1024)
        },
      }
      await assert.rejects(scan(halfWay), { code: 'scan.failed', retry: 'later' })
      await assert.rejects(scanner().scan(target(Buffer.from('x'))), { code: 'scan.unavailable' })
      await clamd.start()
      assert.equal(await scanner().scan(target(Buffer.from('x'))), 'clean')
    },
  )

  it('that hangs is not waited for for ever', { skip: needClamd }, async () => {
    await using other = await startClamd()
    let wallMs = 20_000
    const engine = clamdEngine({
      ...{ configFile: other.configFile, signatureAgeHoursMax: 72, wallMs: () => wallMs },
    })
    await engine.check()
    assert.deepEqual(await engine.scan(target(Buffer.from('x'))), { clean: true })
    other.halt()
    wallMs = 200
    await assert.rejects(engine.scan(target(Buffer.from('x'))), { code: 'scan.failed' })
  })

  it(
    'with limits that fail open is not believed, whatever its configuration says by now',
    {
      skip: needClamd,
    },
    async () => {
      await using open = await startClamd({ AlertExceedsMax: 'no' })
      const check = () => createScanner({ settings: withClamd(open.configFile), isolation }).check()
      await assert.rejects(check(), { code: 'scan.unsafe', message: /did not look at/ })
      const said = path.join(open.folder, 'said.conf')
      const lines = `LocalSocket ${open.socket}\nTemporaryDirectory ${open.folder}\n`
      await writeFile(said, `${lines}DatabaseDirectory ${open.folder}\nAlertExceedsMax yes\n`)
      const trusting = createScanner({ settings: withClamd(said), isolation })
      await assert.rejects(trusting.check(), { code: 'scan.unsafe', message: /did not look at/ })
    },
  )

  it('that writes to a disk is sent nothing', { skip: needClamd }, async () => {
    await using onDisk = await startClamd({ TemporaryDirectory: '/var/tmp' })
    await using unsaid = await startClamd({ TemporaryDirectory: undefined })
    for (const { configFile } of [onDisk, unsaid]) {
      const made = createScanner({ settings: withClamd(configFile, { policy: 'warn' }), isolation })
      await assert.rejects(made.check(), { code: 'scan.unsafe' })
      const unread: ScanTarget = {
        ...target(eicarFile()),
        stream: () => assert.fail('it was read'),
      }
      assert.equal(await made.scan(unread), 'unscanned')
    }
  })
})

describe('a clamd that lies', () => {
  const verdicts: [string, unknown][] = [
    ['stream: OK', { clean: true }],
    ['stream: Own.Eicar FOUND', { clean: false, finding: 'Own.Eicar' }],
    [
      'stream: Heuristics.Encrypted.Zip FOUND',
      { clean: false, finding: 'Heuristics.Encrypted.Zip' },
    ],
    ['stream: Heuristics.Limits.Exceeded.MaxFileSize FOUND', 'scan.too_large'],
    ['INSTREAM size limit exceeded. ERROR', 'scan.too_large'],
    ['stream: (null) FOUND', 'scan.failed'],
    ['stream: OK ', 'scan.failed'],
    ['stream: OK\nstream: OK', 'scan.failed'],
    ['Stream: OK', 'scan.failed'],
    ['stream: Can’t allocate memory ERROR', 'scan.failed'],
    ['stream:  FOUND', 'scan.failed'],
    ['', 'scan.failed'],
  ]
  for (const [answer, expected] of verdicts)
    it(`is understood: ${JSON.stringify(answer)}`, () => {
      if (typeof expected !== 'string') return assert.deepEqual(verdictOf(answer, 1), expected)
      assert.throws(() => verdictOf(answer, 1), { code: expected })
    })

  it('beyond its limits names them, however small', () => {
    for (const [bytes, most] of [
      [10 * 1024, '10 KiB'],
      [25 * 1024 ** 2, '25 MiB'],
    ] as const) {
      const message = `the scanner looks at ${most} at most`
      assert.throws(() => verdictOf('INSTREAM size limit exceeded. ERROR', bytes), { message })
    }
  })

  it('is clean by one sentence only, whatever else it says', () => {
    const near = fc.stringMatching(/^.{0,4}stream: (?:OK|\(null\)|[A-Z]{1,8}).{0,8}$/)
    fc.assert(
      fc.property(fc.oneof(fc.string(), near), (answer) => {
        fc.pre(answer !== 'stream: OK')
        try {
          assert.notDeepEqual(verdictOf(answer, 1), { clean: true })
        } catch (error) {
          assert.ok(isSluiceError(error))
        }
      }),
    )
  })

  /** Answers each connection as told. */
  async function play(act: (socket: Socket) => void) {
    const socket = path.join(folder, `${process.hrtime.bigint()}.sock`)
    const server = createServer(act)
    await new Promise<void>((done) => void server.listen(socket, done))
    const dispose = () => new Promise<void>((done) => void server.close(() => done()))
    return { socket, [Symbol.asyncDispose]: dispose }
  }
  const said = (text: string) =>
    play((socket) =>
      socket
        .on('error', () => {})
        .resume()
        .end(text),
    )

  it('by half an answer, an endless one, or none is no verdict', async () => {
    for (const text of ['stream: OK', '', 'x'.repeat(5000), `${'x'.repeat(2000)}\0`]) {
      await using daemon = await said(text)
      const asked = askClamd(daemon.socket, 'PING', { wallMs: 20_000 })
      await assert.rejects(asked, { code: 'scan.failed' }, text.slice(0, 20))
    }
  })

  it('may answer before the end, and is heard', async () => {
    await using daemon = await play((socket) => {
      socket.on('error', () => {})
      socket.once('data', () => socket.end('stream: Own.Eicar FOUND\0'))
    })
    const endless = async function* () {
      for (let pieces = 0; pieces < 10_000; pieces += 1) yield Buffer.alloc(65_536)
    }
    const answer = await askClamd(daemon.socket, 'INSTREAM', {
      content: endless(),
      wallMs: 60_000,
    })
    assert.equal(answer, 'stream: Own.Eicar FOUND')
  })

  it('does not hide what is wrong with the source', async () => {
    await using daemon = await said('stream: OK\0')
    const broken = async function* () {
      yield Buffer.alloc(1)
      throw new Error('the source is gone')
    }
    const asked = askClamd(daemon.socket, 'INSTREAM', { content: broken(), wallMs: 20_000 })
    await assert.rejects(asked, { message: 'the source is gone' })
  })
})

describe('settings of clamd', () => {
  const parse = (text: string) => parseClamdSettings(text, 'clamd.conf')

  it('are read as clamd reads them', () => {
    const text = [
      '# LocalSocket /no',
      'LocalSocket "/run/a.sock"',
      'LocalSocket /run/b.sock',
      'AlertExceedsMax  true ',
      'StreamMaxLength 100M',
      'MaxFileSize 0',
      'MaxScanSize 2000000K',
      'TemporaryDirectory /run/memory',
    ].join('\n')
    assert.deepEqual(parse(text), {
      socket: '/run/a.sock',
      temporaryFolder: '/run/memory',
      databaseFolder: '/var/lib/clamav',
      alertExceedsMax: true,
      bytesMax: 100 * 1024 ** 2,
    })
  })

  it('without a limit end where clamd itself ends, and what is not understood allows nothing', () => {
    const limits = (text: string) => parse(`LocalSocket /a\n${text.replaceAll(';', '\n')}`).bytesMax
    assert.equal(limits('StreamMaxLength 0;MaxFileSize 0;MaxScanSize 0'), 2 ** 31 - 1)
    assert.equal(limits('StreamMaxLength 1T;MaxFileSize 0;MaxScanSize 0'), 1)
    assert.equal(limits(''), 25 * 1024 ** 2)
  })

  it('never allow more than clamd can look at, whatever is in them', () => {
    const line = fc.tuple(
      fc.constantFrom('StreamMaxLength', 'MaxFileSize', 'MaxScanSize', 'AlertExceedsMax', '#'),
      fc.oneof(fc.string(), fc.stringMatching(/^\d{1,18}[KMGT]?$/)),
    )
    fc.assert(
      fc.property(fc.array(line), (lines) => {
        const text = lines.map(([name, value]) => `${name} ${value}`).join('\n')
        const { bytesMax } = parse(`LocalSocket /a\n${text}`)
        assert.ok(bytesMax >= 0 && bytesMax <= 2 ** 31 - 1)
      }),
    )
  })

  it('without a socket of this host are refused', () => {
    assert.throws(() => parse('TCPSocket 3310'), { code: 'scan.unsafe' })
  })

  it('must alert beyond limits, and name a folder that is there', async () => {
    const good = parse('LocalSocket /a\nAlertExceedsMax yes\nTemporaryDirectory /dev/shm')
    await requireSafe(good)
    const bad = [
      { ...good, alertExceedsMax: false },
      { ...good, temporaryFolder: undefined },
      { ...good, temporaryFolder: '/nowhere/at/all' },
      { ...good, temporaryFolder: '/var/tmp' },
    ]
    for (const settings of bad) await assert.rejects(requireSafe(settings), { code: 'scan.unsafe' })
  })

  it('know the age of official signatures from clamd itself', async () => {
    const version = 'ClamAV 1.4.6/27420/Fri Nov 20 08:26:00 2026'
    assert.equal(await signaturesAtMs(version, '/nowhere'), new Date(2026, 10, 20, 8, 26).getTime())
    await assert.rejects(signaturesAtMs('ClamAV 1.4.6', '/nowhere'), { code: 'scan.unsafe' })
    assert.equal(await signaturesAtMs('ClamAV 1.4.6', folder), undefined)
  })
})

describe('YARA rules', () => {
  const rules = (name: string, text: string) => fileOf(name, text).then(({ path: file }) => file)
  const scannerOf = (rulesFile: string, more: Partial<ScanSettings> = {}) =>
    createScanner({
      settings: scanSettings.parse({ yaraRulesFile: rulesFile, ...more }),
      isolation,
    })
  const seen = `rule own_marker { strings: $a = "${marker().toString()}" condition: $a }\n`

  it('refuse what one of them matches, and nothing else', { skip: needYara }, async () => {
    const { scan, tools } = scannerOf(await rules('own.yar', seen))
    assert.equal(await scan(await fileOf('fine', 'a fine day')), 'clean')
    const bad = await fileOf('bad', inContainer(marker()))
    await assert.rejects(scan(bad), { code: 'media.infected', message: /own_marker/ })
    assert.match(tools['yara'] ?? '', /^\d/)
  })

  it('that are broken, warn, or are not there are no verdict', { skip: needYara }, async () => {
    const warning = `${seen}rule slow { strings: $a = /x.*y/ condition: $a }`
    const files = [
      await rules('broken.yar', 'rule broken {'),
      await rules('warning.yar', warning),
      path.join(folder, 'absent.yar'),
    ]
    for (const file of files) {
      const medium = await fileOf('fine', 'a fine day')
      await assert.rejects(
        scannerOf(file).scan(medium),
        (error) => isSluiceError(error) && error.code.startsWith('scan.'),
        file,
      )
      assert.equal(await scannerOf(file, { policy: 'warn' }).scan(medium), 'unscanned')
    }
  })

  it('have no verdict about a file that is gone', { skip: needYara }, async () => {
    const { scan } = scannerOf(await rules('own.yar', seen))
    await assert.rejects(scan(target(Buffer.from('x'))))
  })
})

describe('several scanners', () => {
  const engine = (name: ScanEngine['name'], verdict: ScanEngine['scan']): ScanEngine => ({
    ...{ name, check: async () => ({ version: '1' }), scan: verdict },
  })
  const settings: ScanSettings = { policy: 'require', signatureAgeHoursMax: 72 }
  const clean = engine('clamd', async () => ({ clean: true }))
  const finds = engine('yara', async () => ({ clean: false, finding: 'bad\u001b[31m\nname' }))

  it('must all say clean', async () => {
    const infected: Infection[] = []
    const both = createScanner({
      ...{ settings, isolation, engines: [clean, finds] },
      infected: (infection) => void infected.push(infection),
    })
    await assert.rejects(both.scan(target(Buffer.from('x'))), { code: 'media.infected' })
    assert.equal(infected[0]?.finding, 'bad__31m_name')
    assert.equal(infected[0]?.engine, 'yara')
  })

  it('are off when none is configured', async () => {
    const none = createScanner({ settings: scanSettings.parse({}), isolation })
    assert.equal(await none.scan(target(eicarFile())), undefined)
  })

  it('may think better of what is in quarantine, which counts where none of them speaks', async () => {
    const content = Buffer.from('what was bad yesterday')
    const sha256 = createHash('sha256').update(content).digest('hex')
    const infected: Infection[] = []
    const lazy = createScanner({
      ...{ settings: { ...settings, policy: 'off' }, isolation, quarantined: [sha256] },
      infected: (infection) => void infected.push(infection),
    })
    await assert.rejects(lazy.scan(target(content)), { code: 'media.infected' })
    assert.deepEqual(
      infected.map(({ engine: by }) => by),
      ['quarantine'],
    )
    assert.equal(await lazy.scan(target(Buffer.from('other'))), undefined)
    const down = engine('clamd', async () => {
      throw new SluiceError('scan.unavailable', 'down', { retry: 'later' })
    })
    const options = { isolation, quarantined: [sha256] }
    const warns = { settings: { ...settings, policy: 'warn' as const }, ...options }
    const missing = createScanner({ ...warns, engines: [down] })
    await assert.rejects(missing.scan(target(content)), { code: 'media.infected' })
    assert.equal(await missing.scan(target(Buffer.from('other'))), 'unscanned')
    assert.equal(await createScanner({ ...warns, engines: [clean] }).scan(target(content)), 'clean')
  })
})
