/** A whole lease with its real child process: what reaches the analyser, what never does, and that all of it ends. */
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, afterEach, before, describe, it } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { readSwapFacts } from '@sluice/protocol/process/swap'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import type { IsolationLevel } from '@sluice/protocol/manifest'
import { decodeSignedResult, result } from '@sluice/protocol/result'
import { killNow } from '../process-tree.ts'
import { collectOutput, detectIsolation } from '../sandbox.ts'
import type { AnalyserConfig } from './analyser.ts'
import { exposeMedia } from './expose.ts'
import { startLeaseChild, type LeaseChild, type LeaseOutcome, type LeaseSupplies } from './lease.ts'
import {
  digestScript,
  makeJob,
  sealKey,
  sha256,
  shellAnalyser,
  type TestJob,
  type TestMedium,
} from './lease.test-job.ts'
import { isMounted, isMountedAnywhere } from './media-mount.ts'
import { planMemory, probeMounts } from './memory-level.ts'
import { makeTraces, processesHolding, tracesOf, wipeTraces, type LeaseTraces } from './wipe.ts'

const isolation: IsolationLevel = await detectIsolation().catch(() => 'none' as const)
const fence = 3
const deadlineAtMs = 1_800_000_000_000

function noise(name: string, kind: TestMedium['kind'], bytes: number): TestMedium {
  return { name, kind, bytes: randomBytes(bytes) }
}

describe('a lease', () => {
  let runtime = ''
  before(async () => {
    runtime = await mkdtemp(path.join(tmpdir(), 'lease-'))
  })
  after(() => rm(runtime, { recursive: true }))

  type Started = LeaseChild & { traces: LeaseTraces; reads: [number, number][] }

  const started: Started[] = []
  // A test that failed half-way leaves no process that would keep this one alive.
  afterEach(async () => {
    for (const { traces, process: child } of started.splice(0)) await wipeTraces(traces, child)
  })

  async function start(
    job: TestJob,
    options: {
      analyser?: AnalyserConfig
      isolation?: IsolationLevel
      object?: Buffer
      supplies?: Partial<LeaseSupplies>
      mount?: boolean
    } = {},
  ): Promise<Started> {
    const { analyser = shellAnalyser(digestScript), object = job.sealed } = options
    const traces = tracesOf(runtime, job.leaseId)
    await makeTraces(traces)
    const kind = options.mount
      ? planMemory({ ...readSwapFacts(), mounts: await probeMounts(runtime) }, { allowSwap: true })
          .directory
      : undefined
    const reads: Started['reads'] = []
    const child = startLeaseChild(
      {
        jobId: job.jobId,
        leaseId: job.leaseId,
        fence,
        nodeId: job.nodeId,
        sealedBytes: object.length,
        sealedHeader: job.sealedHeader,
        analyser,
        isolation: options.isolation ?? isolation,
        leash: traces.leash,
        ...(kind
          ? { mediaMount: { kind, folder: traces.media, bytesMax: 16 * 1024 ** 2, filesMax: 16 } }
          : {}),
      },
      {
        requestKey: async (publicKey) => ({
          envelope: sealKey(job, { publicKey, fence, deadlineAtMs }),
          deadlineAtMs,
        }),
        readSealed: async (offset, length) => {
          reads.push([offset, length])
          return Buffer.from(object.subarray(offset, offset + length))
        },
        signResult: ({ resultSha256 }) => ({
          statement: Buffer.from(resultSha256),
          certificate: Buffer.from('certificate'),
        }),
        analysed: () => undefined,
        ...options.supplies,
      },
    )
    started.push({ ...child, traces, reads })
    return started.at(-1)!
  }

  async function run(job: TestJob, options?: Parameters<typeof start>[1]): Promise<LeaseOutcome> {
    const lease = await start(job, options)
    const outcome = await lease.outcome
    const checked = await wipeTraces(lease.traces, lease.process)
    assert.deepEqual(checked, ['child reaped', 'mount gone', 'folder gone', 'no process left'])
    return outcome
  }

  function outputsOf(job: TestJob, outcome: LeaseOutcome): unknown[] {
    assert.equal(outcome.type, 'result', JSON.stringify(outcome))
    const signed = decodeSignedResult(job.openResult(outcome.sealed))
    assert.equal(Buffer.from(signed.statement).toString(), sha256(signed.result))
    const parsed = result.parse(JSON.parse(Buffer.from(signed.result).toString()))
    assert.deepEqual(
      parsed.media.map(({ name }) => name),
      job.media.map(({ name }) => name),
    )
    return parsed.media.map(({ output }) => output)
  }

  async function codeOf(job: TestJob, options?: Parameters<typeof start>[1]): Promise<string> {
    const outcome = await run(job, options)
    assert.equal(outcome.type, 'failed')
    return `${outcome.problem.code} ${outcome.problem.retry}`
  }

  it('hands each medium to the analyser byte for byte and seals its answers', async () => {
    const media = [
      noise('0001.jpg', 'image', 70_001),
      noise('0002.mp4', 'video', 5 * 1024 ** 2 + 17),
      noise('0003.flac', 'audio', 0),
    ]
    const job = makeJob(media)
    const lease = await start(job)
    const outputs = outputsOf(job, await lease.outcome)
    await wipeTraces(lease.traces, lease.process)
    assert.deepEqual(
      outputs,
      media.map(({ bytes }) => sha256(bytes)),
    )
    assert.ok(lease.reads.every(([, length]) => length < 1.1 * 1024 ** 2))
    assert.ok(!existsSync(lease.traces.folder))
  })

  it('gives the analyser an environment of two names', async () => {
    const job = makeJob([noise('0001.png', 'image', 10)])
    const analyser = shellAnalyser(
      `cat >/dev/null; /usr/bin/env | sort | tr '\\n' ' ' | sed 's/.*/"&"/'`,
    )
    const [output] = outputsOf(job, await run(job, { analyser }))
    const names = String(output)
      .trim()
      .split(' ')
      .filter((line) => !/^(_|PWD|OLDPWD|SHLVL)=/.test(line))
    assert.deepEqual(names, ['SLUICE_MEDIUM_KIND=image', 'SLUICE_MEDIUM_NAME=0001.png'])
  })

  const root = process.geteuid?.() === 0
  it(
    'shows all media read-only in a directory in memory',
    { skip: !root && 'mounting needs root' },
    async () => {
      const media = [noise('0001.jpg', 'image', 70_001), noise('0002.wav', 'audio', 100)]
      const job = makeJob(media)
      const script = `cd "$SLUICE_MEDIA_DIRECTORY" && touch new 2>/dev/null && exit 9
        printf '{"media":['
        for f in *; do printf '%s{"name":"%s","output":"%s"}' "$s" "$f" "$(sha256sum < "$f" | cut -c1-64)"; s=,; done
        printf ']}'`
      const analyser = shellAnalyser(script, { input: 'directory' })
      if (isolation === 'none') analyser.command[2] = script.replace('touch new', 'false')
      const outputs = outputsOf(job, await run(job, { analyser, mount: true }))
      assert.deepEqual(
        outputs,
        media.map(({ bytes }) => sha256(bytes)),
      )
    },
  )

  it(
    'keeps that directory to itself, and takes it along when everything of it is killed',
    { skip: !root && 'mounting needs root' },
    async () => {
      const job = makeJob([noise('0001.jpg', 'image', 70_001)])
      const analyser = shellAnalyser('sleep 1000', { input: 'directory' })
      const lease = await start(job, { analyser, mount: true })
      const { media, leash } = lease.traces
      const seenByChild = path.join(`/proc/${lease.process.pid}/root`, media, '0001.jpg')
      while (!existsSync(seenByChild)) await sleep(10)
      assert.ok(isMountedAnywhere(media))
      assert.ok(!isMounted(media))
      assert.deepEqual(readdirSync(media), [])
      while (processesHolding(leash).length < 2) await sleep(10)
      for (const pid of processesHolding(leash)) killNow(pid)
      await lease.outcome
      while (processesHolding(leash).length > 0) await sleep(10)
      assert.ok(!isMountedAnywhere(media))
    },
  )

  it('writes no medium into a directory that is not in memory', async () => {
    const folder = await mkdtemp(path.join(runtime, 'disk-'))
    const { manifest } = makeJob([noise('0001.jpg', 'image', 1000)])
    const read = (): never => assert.fail('nothing is opened for it')
    await assert.rejects(
      exposeMedia({ directory: folder, media: manifest.media, read, bytesMax: 1000 }),
      (error) => isSluiceError(error, 'node.swap_possible'),
    )
    assert.deepEqual(readdirSync(folder), [])
  })

  describe('refuses', () => {
    const job = makeJob([noise('0001.jpg', 'image', 400_000)])
    const medium = job.media[0]!.bytes

    /** What the analyser got to see before the lease ended, copied through a pipe with a name. */
    async function seenWith(object: Buffer, of = job): Promise<{ code: string; seen: Buffer }> {
      const fifo = path.join(runtime, 'seen')
      execFileSync('mkfifo', [fifo])
      const reader = spawn('cat', [fifo], { stdio: ['ignore', 'pipe', 'inherit'] })
      try {
        const seen = collectOutput(reader.stdout)
        const analyser = shellAnalyser(`tee ${fifo} | ${digestScript}`)
        // Without isolation, so that it reaches the pipe.
        const outcome = await run(of, { analyser, isolation: 'none', object })
        // It never opened the pipe if it was never started.
        const opened = setTimeout(() => reader.kill(), 1000)
        const bytes = await seen
        clearTimeout(opened)
        return { code: outcome.type === 'failed' ? outcome.problem.code : 'none', seen: bytes }
      } finally {
        reader.kill()
        await rm(fifo)
      }
    }

    it('nothing of an object that is right (control)', async () => {
      const { code, seen } = await seenWith(job.sealed)
      assert.equal(code, 'none')
      assert.ok(seen.equals(medium))
    })

    it('a chunk that was changed, and shows only what lies before it', async () => {
      const big = makeJob([noise('0001.jpg', 'image', 3 * 1024 ** 2)])
      const object = Buffer.from(big.sealed)
      const chunk = 130
      object[56 + chunk * 16_400 + 5]! ^= 1
      const { code, seen } = await seenWith(object, big)
      assert.equal(code, 'seal.tampered')
      assert.ok(seen.length > 1024 && seen.length <= chunk * 16_384, `${seen.length} bytes`)
      assert.ok(big.media[0]!.bytes.subarray(0, seen.length).equals(seen))
    })

    it('an object that was cut short, at its very beginning', async () => {
      const { code, seen } = await seenWith(job.sealed.subarray(0, -16_400))
      assert.match(code, /^seal\./)
      assert.equal(seen.length, 0)
    })

    it('the object of another job under the same name', async () => {
      const other = makeJob([noise('0001.jpg', 'image', 400_000)])
      assert.equal(await codeOf(job, { object: other.sealed }), 'seal.wrong_key never')
    })

    it('a key that is another job’s', async () => {
      const other = makeJob([noise('0001.jpg', 'image', 10)])
      const requestKey: LeaseSupplies['requestKey'] = async (publicKey) => ({
        envelope: sealKey({ ...job, key: other.key }, { publicKey, fence, deadlineAtMs }),
        deadlineAtMs,
      })
      assert.equal(await codeOf(job, { supplies: { requestKey } }), 'seal.wrong_key never')
    })

    it('a key sealed for another fence of the same lease', async () => {
      const requestKey: LeaseSupplies['requestKey'] = async (publicKey) => ({
        envelope: sealKey(job, { publicKey, fence: fence - 1, deadlineAtMs }),
        deadlineAtMs,
      })
      assert.equal(await codeOf(job, { supplies: { requestKey } }), 'envelope.refused never')
    })

    it('a manifest that lies about job, analyser, place or hash', async () => {
      const media = [noise('0001.jpg', 'image', 1000), noise('0002.jpg', 'image', 1000)]
      const lies: [string, (manifest: TestJob['manifest']) => void][] = [
        ['archive.mismatch never', (lie) => (lie.jobId = job.jobId)],
        ['archive.mismatch never', (lie) => (lie.analyser = 'other')],
        ['archive.mismatch never', (lie) => (lie.media[0]!.offset += 512)],
        ['archive.mismatch never', (lie) => (lie.media[1]!.name = '0003.jpg')],
        ['archive.mismatch never', (lie) => (lie.media[1]!.sha256 = '0'.repeat(64))],
        ['manifest.invalid never', (lie) => (lie.media[1]!.name = '0001.jpg')],
        ['manifest.invalid never', (lie) => (lie.resultPublicKey = 'short')],
      ]
      for (const [code, edit] of lies) assert.equal(await codeOf(makeJob(media, edit)), code)
    })
  })

  describe('bounds an analyser that', () => {
    const job = makeJob([noise('0001.jpg', 'image', 300_000)])
    const table: [string, string, Partial<AnalyserConfig>, string, RegExp?][] = [
      [
        'floods standard output',
        'yes',
        { outputBytesMax: 1000 },
        'analysis.output_too_large never',
      ],
      ['hangs', 'sleep 100', { timeoutMs: 300 }, 'analysis.timeout never'],
      ['ends with an error', 'exit 7', {}, 'analysis.failed never'],
      ['answers nothing', 'cat >/dev/null', {}, 'analysis.bad_output never'],
      ['answers twice', 'echo 1; echo 2', {}, 'analysis.bad_output never'],
      [
        'answers absurdly deep',
        `head -c 200 /dev/zero | tr '\\0' '['; head -c 200 /dev/zero | tr '\\0' ']'`,
        {},
        'analysis.bad_output never',
      ],
      [
        'eats memory',
        // Without an end of line it keeps all.
        'head -c 2000000000 /dev/zero | tail',
        { memoryBytesMax: 64 * 1024 ** 2 },
        'analysis.failed never',
        /memory/,
      ],
    ]
    for (const [what, script, more, code, message = /analyser/] of table) {
      it(what, async () => {
        const outcome = await run(job, { analyser: shellAnalyser(script, more) })
        assert.ok(outcome.type === 'failed')
        assert.equal(`${outcome.problem.code} ${outcome.problem.retry}`, code)
        assert.match(outcome.problem.message, message)
      })
    }

    it('answers before it has read everything, and takes the answer', async () => {
      const analyser = shellAnalyser('head -c 10 >/dev/null; echo null')
      assert.deepEqual(outputsOf(job, await run(job, { analyser })), [null])
    })

    for (const level of new Set<IsolationLevel>([isolation, 'none'])) {
      it(`leaves processes behind (${level})`, async () => {
        const analyser = shellAnalyser(
          // Ends only after the process it leaves has a session of its own.
          `x=$(setsid sh -c 'sleep 1000 >/dev/null 2>&1 & echo up'); echo 1`,
        )
        const lease = await start(job, { analyser, isolation: level })
        assert.equal((await lease.outcome).type, 'result')
        const pids = processesHolding(lease.traces.leash)
        if (level === 'none') assert.ok(pids.length > 1, 'control: the left process is seen')
        await wipeTraces(lease.traces, lease.process)
        assert.deepEqual(pids.filter(runs), [])
      })
    }
  })

  it('fails for good with the code that reading the object failed with', async () => {
    const job = makeJob([noise('0001.jpg', 'image', 10)])
    const readSealed = async (): Promise<Buffer> => {
      throw new SluiceError('store.unreachable', 'gone', { retry: 'later' })
    }
    assert.equal(await codeOf(job, { supplies: { readSealed } }), 'store.unreachable later')
  })

  for (const level of new Set<IsolationLevel>([isolation, 'none'])) {
    it(`leaves nothing when its child is killed during the analysis (${level})`, async () => {
      const job = makeJob([noise('0001.jpg', 'image', 10)])
      const analyser = shellAnalyser('sleep 1000 & sleep 1000')
      const lease = await start(job, { analyser, isolation: level })
      const { leash } = lease.traces
      while (processesHolding(leash).length < 3) await sleep(20)
      const pids = processesHolding(leash)
      process.kill(lease.process.pid!, 'SIGKILL')
      const outcome = await lease.outcome
      assert.ok(outcome.type === 'failed')
      assert.match(outcome.problem.message, /SIGKILL/)
      assert.equal(outcome.problem.retry, 'later')
      await wipeTraces(lease.traces, lease.process)
      assert.deepEqual(pids.filter(runs), [])
    })
  }
})

/** A zombie runs no more. */
function runs(pid: number): boolean {
  const stat = `/proc/${pid}/stat`
  return existsSync(stat) && !/\) [ZX] /.test(readFileSync(stat, 'utf8'))
}
