/** Proves that the command writes what the gate lets through, whole or not at all, for a file and for a folder. */
import assert from 'node:assert/strict'
import {
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs'
import { watch } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, afterEach, describe, it } from 'node:test'
import sharp from 'sharp'
import { detectIsolation } from '../sandbox.ts'
import { marker, needClamd, startClamd } from '../../../test/src/tools/clamd.ts'
import { need } from '../../../test/src/tools/need.ts'
import { sanitiseCommand } from './sanitise.ts'
import { planSanitise, targetsOf } from './sanitise-plan.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'sanitise-'))
after(() => rmSync(folder, { recursive: true }))
const isolation = await detectIsolation().catch(() => 'none' as const)
const at = (...names: string[]) => path.join(folder, ...names)
const source = at('source.jpg')
const picture = sharp({ create: { width: 30, height: 20, channels: 3, background: 'teal' } })
await picture
  .clone()
  .withExif({ IFD0: { Artist: 'canary' } })
  .jpeg()
  .toFile(source)
const bytes = readFileSync(source)
afterEach(() => (process.exitCode = undefined))

async function run(...args: string[]): Promise<string> {
  const said: string[] = []
  const command = sanitiseCommand((text) => said.push(text))
  await command.parseAsync(['--isolation', isolation, ...args], { from: 'user' })
  return said.join('\n')
}
type Answer = { files: Record<string, unknown>[] } & Record<string, unknown>
const json = async (...args: string[]) => JSON.parse(await run('--json', ...args)) as Answer

/** A folder of sources: some good, some not, in two levels. */
function inbox(name: string): string {
  mkdirSync(at(name, 'deeper'), { recursive: true })
  writeFileSync(at(name, 'a.jpg'), bytes)
  writeFileSync(at(name, 'deeper', 'b.JPEG'), bytes)
  writeFileSync(at(name, 'words.jpg'), 'only words')
  writeFileSync(at(name, '.hidden.jpg'), bytes)
  symlinkSync(source, at(name, 'link.jpg'))
  return at(name)
}

describe('sluice-agent sanitise, of a file', () => {
  it('writes the clean file for its owner alone and says what went', async () => {
    const said = await run(source, at('clean.jpg'))
    assert.match(said, /clean\.jpg {2}mjpeg 30x20 {2}.* -> .* {2}removed: exif/)
    assert.ok(!readFileSync(at('clean.jpg')).includes('canary'))
    assert.equal(statSync(at('clean.jpg')).mode & 0o777, 0o600)
  })

  it('prints the facts as JSON and names the file in a folder', async () => {
    mkdirSync(at('out'))
    const { files, ...rest } = await json(source, at('out'))
    const bytesOut = statSync(at('out', 'source.jpg')).size
    assert.deepEqual(rest, {
      ...{ profile: 'analysis', isolation, check: false },
      ...{ accepted: 1, refused: 0, skipped: 0, notReached: 0, bytesIn: bytes.length, bytesOut },
    })
    const { written, ...facts } = files[0] as { written: Record<string, unknown>[] }
    assert.deepEqual(facts, {
      path: source,
      verdict: 'accepted',
      source: { format: 'jpeg', bytes: bytes.length },
    })
    assert.equal(written[0]?.['path'], at('out', 'source.jpg'))
    assert.equal(written[0]?.['bytes'], bytesOut)
    assert.ok(JSON.stringify(written[0]).includes('"exif"'))
  })

  it('overwrites only when told to, and leaves nothing half-written', async () => {
    writeFileSync(at('taken.jpg'), 'precious')
    await assert.rejects(run(source, at('taken.jpg')), { code: 'usage' })
    assert.equal(readFileSync(at('taken.jpg'), 'utf8'), 'precious')
    await run('--force', source, at('taken.jpg'))
    assert.equal(readFileSync(at('taken.jpg')).readUInt16BE(0), 0xffd8)
    assert.ok(!readdirSync(folder).some((name) => name.endsWith('.new')))
  })

  it('refuses a name that promises another format, an absent folder and a source that is none', async () => {
    await assert.rejects(run(source, at('clean.png')), { code: 'usage' })
    await assert.rejects(run(source, at('absent', 'clean.jpg')), { code: 'usage' })
    await assert.rejects(run(at('absent.jpg'), at('x.jpg')), { code: 'media.not_a_file' })
    await assert.rejects(run(source), { code: 'usage' })
    writeFileSync(at('words.jpg'), 'only words')
    await assert.rejects(run(at('words.jpg'), at('x.jpg')), { code: 'media.unsupported' })
    assert.ok(!readdirSync(folder).includes('x.jpg'))
  })

  it('only judges when it shall only judge', async () => {
    const before = readdirSync(folder)
    const { files, check } = await json('--check', source)
    assert.equal(check, true)
    assert.equal(files[0]?.['verdict'], 'accepted')
    const refused = await json('--check', at('words.jpg'))
    assert.equal(refused.files[0]?.['code'], 'media.unsupported')
    assert.equal(process.exitCode, 3)
    assert.deepEqual(readdirSync(folder), before)
  })

  it('knows a profile, and takes policies from a configuration', async () => {
    await run('--profile', 'faithful', source, at('faithful.png'))
    assert.equal((await sharp(at('faithful.png')).metadata()).format, 'png')
    writeFileSync(at('agent.json'), JSON.stringify({ gate: { nameMismatch: 'refuse' } }), {
      mode: 0o600,
    })
    writeFileSync(at('called.png'), bytes)
    assert.match(
      await run('--check', at('called.png')),
      /its name promises something else than jpeg/,
    )
    await assert.rejects(run('--config', at('agent.json'), '--check', at('called.png')), {
      code: 'media.name_mismatch',
    })
  })

  it(
    'asks the scanners of a configuration',
    { skip: need('yara', existsSync('/usr/bin/yara'), 'apt-get install yara') },
    async () => {
      writeFileSync(at('rules.yar'), 'rule canary { strings: $a = "canary" condition: $a }\n')
      const gate = { scan: { yaraRulesFile: at('rules.yar') } }
      writeFileSync(at('scan.json'), JSON.stringify({ gate }), { mode: 0o600 })
      const scanned = ['--config', at('scan.json'), '--check']
      await assert.rejects(run(...scanned, source), { code: 'media.infected' })
      await picture.clone().png().toFile(at('fine.png'))
      assert.equal((await json(...scanned, at('fine.png'))).files[0]?.['scan'], 'clean')
    },
  )
})

describe('sluice-agent sanitise, with a real clamd', () => {
  it(
    'refuses what is infected inside a picture, and is no use when clamd is gone',
    {
      skip: needClamd,
    },
    async () => {
      await using clamd = await startClamd()
      const gate = { scan: { clamdConfigFile: clamd.configFile } }
      writeFileSync(at('clamd.json'), JSON.stringify({ gate }), { mode: 0o600 })
      await picture
        .clone()
        .withExif({ IFD0: { ImageDescription: marker().toString() } })
        .png()
        .toFile(at('infected.png'))
      const scanned = ['--config', at('clamd.json'), '--check']
      assert.equal((await json(...scanned, source)).files[0]?.['scan'], 'clean')
      await assert.rejects(run(...scanned, at('infected.png')), { code: 'media.infected' })
      await clamd.kill()
      await assert.rejects(run(...scanned, source), { code: 'scan.unavailable' })
    },
  )
})

describe('sluice-agent sanitise, of a folder', () => {
  it('takes every file, says of each what became of it, and ends with 3 for a refusal', async () => {
    const from = inbox('many')
    const said = (await run(from, at('many-clean'))).split('\n')
    assert.equal(process.exitCode, 3)
    assert.equal(said.filter((line) => line.startsWith('ok ')).length, 2)
    assert.match(said.join('\n'), /^REFUSED {2}.*words\.jpg: .* \(media\.unsupported\)$/m)
    assert.match(said.at(-1) ?? '', /^2 accepted, 1 refused, 2 passed over; /)
    assert.deepEqual(
      new Set(readdirSync(at('many-clean'), { recursive: true, encoding: 'utf8' })),
      new Set(['a.jpg', 'deeper', path.join('deeper', 'b.jpg')]),
    )
    for (const name of ['a.jpg', path.join('deeper', 'b.jpg')])
      assert.ok(!readFileSync(at('many-clean', name)).includes('canary'))
  })

  it('does not take its own results for sources, and overwrites none', async () => {
    const from = inbox('again')
    await run(from, path.join(from, 'clean'))
    const before = readdirSync(from, { recursive: true }).length
    const { accepted, files } = await json(from, path.join(from, 'clean'))
    assert.equal(accepted, 0)
    assert.equal(files.filter(({ code }) => code === 'usage').length, 2)
    assert.equal(process.exitCode, 2)
    assert.equal(readdirSync(from, { recursive: true }).length, before)
    assert.equal((await json('--force', from, path.join(from, 'clean')))['accepted'], 2)
  })

  it('never writes over what it was made of, told to or not', async () => {
    const from = inbox('in-place')
    const { files } = await json('--force', from, from)
    assert.equal(files[0]?.['message'], `${path.join(from, 'a.jpg')} is one of the sources`)
    linkSync(path.join(from, 'a.jpg'), at('other-name.jpg'))
    await assert.rejects(run('--force', path.join(from, 'a.jpg'), at('other-name.jpg')), {
      code: 'usage',
    })
    assert.ok(readFileSync(path.join(from, 'a.jpg')).includes('canary'))
    unlinkSync(at('other-name.jpg'))
  })

  it('shows names that would move the cursor as one line of text', async () => {
    const from = at('odd-names')
    mkdirSync(from)
    const name = 'a\n\u001b[2Kok\u202egpj'
    writeFileSync(path.join(from, `${name}.jpg`), bytes)
    writeFileSync(path.join(from, `b${name}.txt`), 'only words')
    const said = await run(from, at('odd-names-clean'))
    assert.equal(said.split('\n').length, 3)
    assert.ok(!said.includes('\u001b') && !said.includes('\u202e'))
    assert.match(said, /a\\u\{a\}\\u\{1b\}\[2Kok\\u\{202e\}gpj\.jpg -> /)
    assert.match(said, /^REFUSED .*gpj\.txt: /m)
    assert.ok(existsSync(at('odd-names-clean', `${name}.jpg`)), 'names stay as they are on disk')
    const answer = await json('--check', from)
    assert.equal(answer.files[0]?.['path'], path.join(from, `${name}.jpg`))
  })

  it('writes nothing when it only judges', async () => {
    const from = inbox('judged')
    const before = readdirSync(from, { recursive: true })
    assert.match(await run('--check', from), /2 accepted, 1 refused/)
    assert.deepEqual(readdirSync(from, { recursive: true }), before)
  })

  it('goes on beside a folder that cannot be listed, and says so', async () => {
    const from = inbox('unlisted')
    // No name of text is that of this folder, so nobody reaches it, whoever runs the test.
    mkdirSync(Buffer.concat([Buffer.from(`${from}/`), Buffer.from([0xff])]))
    const { accepted, refused, files } = await json('--check', from)
    assert.deepEqual([accepted, refused], [2, 2])
    const folderThere = files.find(({ path: name }) => String(name).endsWith('\u{fffd}'))
    assert.equal(folderThere?.['code'], 'media.not_a_file')
    assert.match(String(folderThere?.['message']), /not UTF-8/)
  })

  it('takes names as long as names may be, and says of a longer result what is wrong', async () => {
    const from = at('long-names')
    mkdirSync(from)
    writeFileSync(path.join(from, `${'l'.repeat(251)}.jpg`), bytes)
    writeFileSync(path.join(from, 'm'.repeat(255)), bytes)
    const { accepted, files } = await json(from, at('long-names-clean'))
    assert.equal(accepted, 1)
    assert.deepEqual(readdirSync(at('long-names-clean')), [`${'l'.repeat(251)}.jpg`])
    assert.match(String(files[1]?.['message']), /longer than a name may be/)
  })

  it('looks whether results can be written before it takes any source', async () => {
    writeFileSync(at('no-folder'), '')
    const from = at('words-only')
    mkdirSync(from)
    writeFileSync(path.join(from, 'words.jpg'), 'only words')
    const none = path.join(at('no-folder'), 'below')
    await assert.rejects(run(from, none), { code: 'usage', message: /cannot be written to/ })
    await assert.rejects(run(path.join(from, 'words.jpg'), path.join(none, 'x.jpg')), {
      code: 'usage',
    })
  })

  it('never lets one result take the place of another, told to overwrite or not', async () => {
    const from = at('pages')
    mkdirSync(from)
    const page = await picture.clone().tiff().toBuffer()
    await sharp([page, page], { join: { animated: true } })
      .tiff()
      .toFile(path.join(from, 'scan.tif'))
    await picture.clone().png().toFile(path.join(from, 'scan-2.png'))
    const { accepted, files } = await json('--force', from, at('pages-clean'))
    assert.equal(accepted, 1)
    const late = files.find(({ verdict }) => verdict === 'refused')
    assert.match(String(late?.['message']), /scan-2\.png is what another source became/)
  })

  it('leaves nothing half-written when it is ended, and says what it did not reach', async () => {
    const from = at('ended')
    mkdirSync(from)
    for (let each = 0; each < 300; each += 1) linkSync(source, path.join(from, `${each}.jpg`))
    mkdirSync(at('ended-clean'))
    const answer = json(from, at('ended-clean'))
    const deadline = AbortSignal.timeout(60_000)
    for await (const _ of watch(at('ended-clean'), { signal: deadline })) break
    process.emit('SIGHUP')
    const { accepted, refused, notReached } = await answer
    assert.equal(process.exitCode, 1)
    assert.equal(refused, 0)
    assert.ok(Number(notReached) > 0)
    assert.equal(Number(accepted) + Number(notReached), 300)
    assert.equal(readdirSync(at('ended-clean')).length, accepted)
  })

  it('refuses a file as the place for a folder', async () => {
    writeFileSync(at('a-file'), '')
    await assert.rejects(run(inbox('nowhere'), at('a-file')), { code: 'usage' })
  })
})

describe('names of results', () => {
  it('keep apart what differs only in extension or case, and number pages', async () => {
    const from = at('names')
    mkdirSync(from)
    for (const name of ['x.heic', 'X.jpg', 'y.mov', 'z']) writeFileSync(path.join(from, name), '')
    const { files } = await planSanitise(from, 'out')
    assert.deepEqual(
      files.map(({ stem }) => stem),
      ['out/X.jpg', 'out/x.heic', 'out/y', 'out/z'],
    )
    mkdirSync(at('whole-names'))
    const whole = ['a.JPG', 'a.jpg.png', 'a.png']
    for (const name of whole) writeFileSync(at('whole-names', name), '')
    assert.deepEqual(
      (await planSanitise(at('whole-names'), 'out')).files.map(({ stem }) => stem),
      whole.map((name) => `out/${name}`),
    )
    const planned = { file: 'y.mov', stem: 'out/y' }
    assert.deepEqual(targetsOf(planned, [{ extension: 'mp4' }, { extension: 'flac' }]), [
      'out/y.mp4',
      'out/y.flac',
    ])
    const pages = [{ extension: 'png' }, { extension: 'png' }, { extension: 'png' }] as const
    assert.deepEqual(targetsOf(planned, pages), ['out/y.png', 'out/y-2.png', 'out/y-3.png'])
  })
})
