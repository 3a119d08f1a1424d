/** Proves what `processes.ts` promises. */

import assert from 'node:assert/strict'
import { existsSync, readFileSync } from 'node:fs'
import { describe, it } from 'node:test'

import { startProgram } from './processes.ts'

const node = process.execPath

describe('startProgram', () => {
  it('finds a line on either stream, written before or after it was asked for', async () => {
    await using program = await startProgram({
      command: node,
      args: ['-e', `console.log('one'); setTimeout(() => console.error('two'), 50)`],
    })
    assert.equal(await program.waitForLine(/^two/), 'two')
    assert.equal(await program.waitForLine((line) => line.startsWith('o')), 'one')
  })

  it('finds a JSON line with or without a journal priority', async () => {
    const lines = `console.log('text\\n{broken\\n<6>{"event":"ready","port":7}')`
    await using program = await startProgram({ command: node, args: ['-e', lines] })
    const value = await program.waitForJson((line) => line['event'] === 'ready')
    assert.equal(value['port'], 7)
  })

  it('rejects with the output when the program ends first', async () => {
    await using program = await startProgram({
      command: node,
      args: ['-e', `console.error('sorry'); process.exit(3)`],
    })
    await assert.rejects(program.waitForLine(/never/), /ended with 3[^]*sorry/)
    assert.deepEqual(await program.ended, { code: 3, signal: null })
  })

  it('hands over input and reports the signal that ended the program', async () => {
    await using program = await startProgram({
      command: node,
      args: ['-e', 'process.stdin.pipe(process.stdout); setInterval(() => {}, 1000)'],
      input: 'hello\n',
    })
    await program.waitForLine(/^hello$/)
    assert.deepEqual(await program.kill(), { code: null, signal: 'SIGKILL' })
    assert.equal(program.hasEnded, true)
  })

  it('ends grandchildren on disposal', async () => {
    const script = `
      const child = require('node:child_process').spawn(process.execPath, ['-e', 'setInterval(() => {}, 1000)'])
      console.log('child ' + child.pid)
      setInterval(() => {}, 1000)`
    let grandchild = 0
    {
      await using program = await startProgram({ command: node, args: ['-e', script] })
      grandchild = Number((await program.waitForLine(/^child/)).split(' ')[1])
      assert.ok(existsSync(`/proc/${grandchild}`))
    }
    // It is dead; whoever adopted it may still have to reap it.
    const isRunning = (): boolean => {
      if (!existsSync(`/proc/${grandchild}/stat`)) return false
      return !/\) [ZX] /.test(readFileSync(`/proc/${grandchild}/stat`, 'utf8'))
    }
    for (let i = 0; i < 200 && isRunning(); i++) {
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
    assert.equal(isRunning(), false)
  })

  it('refuses a program that is not there', async () => {
    await assert.rejects(startProgram({ command: '/nonexistent/program' }), /ENOENT/)
  })
})
