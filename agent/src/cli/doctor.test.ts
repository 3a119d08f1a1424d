/** Proves that the examination of a host says what does not work there, in the words of what it costs. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'

const folder = mkdtempSync(path.join(tmpdir(), 'doctor-'))
after(() => rmSync(folder, { recursive: true }))

/** @returns What is said of an ffmpeg with those encoders. */
function examineFfmpeg(encoders: readonly string[]): { ok: boolean; found: string } {
  const ffmpegPath = path.join(folder, 'ffmpeg')
  const list = encoders.map((name) => ` A..... ${name} text`).join('\n')
  writeFileSync(
    ffmpegPath,
    `#!/bin/sh\ncase "$*" in *-version) echo 'ffmpeg version 6.0 Copyright';; *-encoders) echo '${list}';; esac\n`,
  )
  chmodSync(ffmpegPath, 0o755)
  const stateDir = path.join(folder, 'state')
  mkdirSync(stateDir, { recursive: true, mode: 0o700 })
  const config = path.join(folder, 'agent.json')
  // What is tried here are answers, not the sandbox: that has tests of its own.
  const content = { stateDir, ffmpegPath, isolation: 'none', allowSwap: true }
  writeFileSync(config, JSON.stringify(content), { mode: 0o600 })
  const args = [path.join(import.meta.dirname, 'main.ts'), 'doctor', '--json', '--config', config]
  const { stdout } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  const { findings } = JSON.parse(stdout) as {
    findings: { check: string; ok: boolean; found: string }[]
  }
  const finding = findings.find(({ check }) => check === 'ffmpeg')
  assert.ok(finding)
  return finding
}

describe('sluice-agent doctor', () => {
  it('tells an ffmpeg that cannot write films from one that can', () => {
    const whole = examineFfmpeg(['libx264', 'aac', 'flac'])
    assert.ok(whole.ok)
    assert.match(whole.found, /films by x264$/)
    for (const encoders of [
      ['aac', 'flac'],
      ['libx264', 'flac'],
    ]) {
      const { ok, found } = examineFfmpeg(encoders)
      assert.ok(!ok)
      assert.equal(found, 'ffmpeg 6.0 cannot write films')
    }
  })
})
