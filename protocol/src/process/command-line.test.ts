import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { describe, it } from 'node:test'
import { SluiceError } from '../errors.ts'
import { errorJson, errorLines, exitCodeOf } from './command-line.ts'

describe('the end of a command', () => {
  it('tells usage, refusal and failure apart by exit code', () => {
    const codeOf = (code: ConstructorParameters<typeof SluiceError>[0]) =>
      exitCodeOf(new SluiceError(code, 'x'))
    assert.equal(codeOf('usage'), 2)
    assert.equal(codeOf('config.invalid'), 2)
    assert.equal(codeOf('access.unauthenticated'), 3)
    assert.equal(codeOf('evidence.untrusted'), 3)
    assert.equal(codeOf('node.swap_possible'), 3)
    assert.equal(codeOf('host.disk_full'), 1)
    assert.equal(codeOf('control_plane.unreachable'), 1)
    assert.equal(exitCodeOf(new Error('bug')), 1)
    assert.equal(exitCodeOf('thrown text'), 1)
  })

  it('says in one line what went wrong and in one what to do', () => {
    const error = new SluiceError('usage', 'no file was named', { hint: 'Name one.' })
    assert.deepEqual(errorLines(error), ['error: no file was named (usage)', 'hint: Name one.'])
    assert.equal(
      errorJson(error),
      '{"error":{"code":"usage","message":"no file was named","hint":"Name one."}}',
    )
    assert.deepEqual(errorLines(new SluiceError('internal', 'x')), ['error: x (internal)'])
    assert.deepEqual(errorLines('text'), ['error: text'])
    assert.equal(errorJson('text'), '{"error":{"code":"internal","message":"text"}}')
  })

  it('is silent when nobody reads its output any more', async () => {
    const alone = await runUnread('')
    assert.match(alone.said, /EPIPE/, 'without it, a stack is shown')
    const module = new URL('./command-line.ts', import.meta.url).href
    const quiet = '{ argv: [], run: async () => {}, isParserEnd: () => false, remark: () => {} }'
    const ended = await runUnread(`await (await import('${module}')).runCommandLine(${quiet})`)
    assert.deepEqual(ended, { code: 1, said: '' })
  })
})

/** Writes until it ends, to a reader that left before the first byte. */
async function runUnread(before: string): Promise<{ code: unknown; said: string }> {
  const script = `${before}; setInterval(() => process.stdout.write('x'), 5)`
  const child = spawn(process.execPath, ['--input-type=module', '-e', script])
  child.stdout.destroy()
  let said = ''
  child.stderr.on('data', (bytes: Buffer) => (said += bytes.toString()))
  const [code] = await once(child, 'close')
  return { code, said }
}
