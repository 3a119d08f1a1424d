/** Proves which ffmpeg is taken, and that one that is too old or no ffmpeg at all is not. */
import assert from 'node:assert/strict'
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, describe, it } from 'node:test'
import { findFfmpeg } from './find-ffmpeg.ts'

const folder = mkdtempSync(path.join(tmpdir(), 'ffmpeg-'))
after(() => rmSync(folder, { recursive: true }))

/** A program that answers like an ffmpeg of that version with those encoders. */
function pretend(version: string, encoders: readonly string[]): string {
  const file = path.join(folder, 'pretended')
  const list = encoders.map((name) => ` A..... ${name} text`).join('\n')
  writeFileSync(
    file,
    `#!/bin/sh\ncase "$*" in *-version) echo 'ffmpeg version ${version} Copyright';; *-encoders) echo '${list}';; esac\n`,
  )
  chmodSync(file, 0o755)
  return file
}

// What is tried here are answers, not the sandbox: that has tests of its own.
const find = (configured: string) => findFfmpeg({ isolation: 'none', configured })
const all = ['libx264', 'aac', 'flac']

describe('findFfmpeg', () => {
  it('takes the configured one from version 5.1 on', async () => {
    for (const version of ['5.1', '5.1.9-0+deb12u1', '6.0', 'n7.1-3', '10.0.2-static']) {
      const found = await find(pretend(version, all))
      assert.equal(found?.version, version)
      assert.equal(found.origin, 'configured')
      assert.deepEqual([found.films, found.toneMapping], [true, false])
    }
  })

  it('says so when the configured one is too old, of unknown age, or none', async () => {
    for (const version of ['5.0.3', '4.4.2', 'N-110072-g073ec3b9da']) {
      await assert.rejects(find(pretend(version, all)), { code: 'media.decoder_missing' })
    }
    for (const file of ['/bin/true', path.join(folder, 'absent')]) {
      await assert.rejects(find(file), { code: 'media.decoder_missing' })
    }
  })

  it('knows that one without an H.264 encoder is good for sound only', async () => {
    assert.equal((await find(pretend('6.0', ['flac', 'aac'])))?.films, false)
    await assert.rejects(find(pretend('6.0', ['libx264', 'aac'])), {
      code: 'media.decoder_missing',
    })
  })
})
