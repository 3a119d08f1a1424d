/** Proves that the command writes what the gate lets through, whole or not at all. */
import assert from 'node:assert/strict'
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import sharp from 'sharp'
import { detectIsolation } from '../sandbox.ts'
import { sanitiseCommand } from './sanitise.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'sanitise-'))
after(() => rmSync(folder, { recursive: true }))
const isolation = await detectIsolation().catch(() => 'none' as const)
const at = (...names: string[]) => path.join(folder, ...names)
const source = at('source.jpg')
await sharp({ create: { width: 30, height: 20, channels: 3, background: 'teal' } })
  .withExif({ IFD0: { Artist: 'canary' } })
  .jpeg()
  .toFile(source)

async function run(...args: string[]): Promise<string> {
  const said: string[] = []
  const command = sanitiseCommand((text) => said.push(text))
  await command.parseAsync(['--isolation', isolation, ...args], { from: 'user' })
  return said.join('\n')
}

describe('sluice-agent sanitise', () => {
  it('writes the clean file for its owner alone and says what went', async () => {
    const said = await run(source, at('clean.jpg'))
    assert.match(said, /clean\.jpg: mjpeg 30x20, \d+ bytes, removed: exif$/)
    assert.ok(!readFileSync(at('clean.jpg')).includes('canary'))
    assert.equal(statSync(at('clean.jpg')).mode & 0o777, 0o600)
  })

  it('prints the facts as JSON and names the file in a folder', async () => {
    mkdirSync(at('out'))
    const answer: unknown = JSON.parse(await run('--json', source, at('out')))
    const bytes = statSync(at('out', 'source.jpg')).size
    const { written, ...rest } = answer as { written: Record<string, unknown>[] }
    assert.deepEqual(rest, {
      source: { format: 'jpeg', bytes: statSync(source).size, nameDisagrees: false },
      isolation,
    })
    assert.equal(written[0]?.['path'], at('out', 'source.jpg'))
    assert.equal(written[0]?.['bytes'], bytes)
    assert.deepEqual(written[0]?.['removed'], ['exif'])
  })

  it('overwrites only when told to, and leaves nothing half-written', async () => {
    writeFileSync(at('taken.jpg'), 'precious')
    await assert.rejects(run(source, at('taken.jpg')), { code: 'usage' })
    assert.equal(readFileSync(at('taken.jpg'), 'utf8'), 'precious')
    await run('--force', source, at('taken.jpg'))
    assert.equal(readFileSync(at('taken.jpg')).readUInt16BE(0), 0xffd8)
    assert.ok(!readdirSync(folder).some((name) => name.startsWith('.sanitise-')))
  })

  it('refuses a name that promises another format, an absent folder and a source that is none', async () => {
    await assert.rejects(run(source, at('clean.png')), { code: 'usage' })
    await assert.rejects(run(source, at('absent', 'clean.jpg')), { code: 'usage' })
    await assert.rejects(run(at('absent.jpg'), at('x.jpg')), { code: 'media.not_a_file' })
    writeFileSync(at('words.jpg'), 'only words')
    await assert.rejects(run(at('words.jpg'), at('x.jpg')), { code: 'media.unsupported' })
    assert.ok(!readdirSync(folder).includes('x.jpg'))
  })
})
