/** Jobs: following them, trying them again, ending them, and fetching what is proven. */
import { open } from 'node:fs/promises'
import type { Command } from 'commander'
import { pageOf } from '@sluice/protocol/api'
import { approvalAsked } from '@sluice/protocol/api-approvals'
import { type JobDetail, jobDetail, jobView } from '@sluice/protocol/api-fleet'
import { auditEvent } from '@sluice/protocol/audit-event'
import { SluiceError } from '@sluice/protocol/errors'
import { isOver, jobState } from '@sluice/protocol/job'
import { limits } from '@sluice/protocol/limits'
import { sayAsked } from './approvals.ts'
import { instant, remark, say, sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

const exampleId = '0199f7e0-5a2b-7c3d-8e4f-a5b6c7d8e9f0'

export function addJobCommands(program: Command): void {
  const jobs = program.command('jobs').description('follow jobs, try them again, end them')

  addCommand(jobs, 'list', {
    does: 'list jobs, newest first',
    example: 'sluice jobs list --state failed',
  })
    .option('--state <state>', 'only jobs in this state')
    .option('--site <site>', 'only jobs of this site')
    .option('--after <id>', 'continue after this job')
    .action(async (options: View & { state?: string; site?: string; after?: string }) =>
      withClient(async (client) => {
        const query = new URLSearchParams({ limit: '100' })
        for (const key of ['state', 'site', 'after'] as const) {
          const value = options[key]
          if (value !== undefined) query.set(key, value)
        }
        const page = await client.get(`/v1/jobs?${query.toString()}`, pageOf(jobView))
        sayList(page.items, options, {
          ID: (item) => item.id,
          STATE: (item) => item.state,
          ANALYSER: (item) => item.analyser,
          SITE: (item) => item.site,
          MEDIA: (item) => String(item.mediaCount),
          'SEALED BYTES': (item) => String(item.sealedBytes),
          CHANGED: (item) => instant(item.stateChangedAtMs, options),
        })
        if (page.next !== undefined && options.json !== true)
          remark(`more: sluice jobs list --after ${page.next}`)
      }),
    )

  addCommand(jobs, 'show <id>', {
    does: 'show one job, its leases and what is still owed',
    example: `sluice jobs show ${exampleId}`,
  }).action(async (id: string, options: View) =>
    withClient(async (client) => sayJob(await client.get(pathOf(id), jobDetail), options)),
  )

  addCommand(jobs, 'watch <id>', {
    does: 'print what happens to a job until it is over',
    example: `sluice jobs watch ${exampleId}`,
  }).action(async (id: string, options: View) => watch(id, options))

  addCommand(jobs, 'retry <id>', {
    does: 'let a failed job run again',
    example: `sluice jobs retry ${exampleId}`,
  }).action(async (id: string, options: View) =>
    withClient(async (client) =>
      sayFacts(await client.post(`${pathOf(id)}/retry`, {}, jobView), options),
    ),
  )

  addCommand(jobs, 'release <id>', {
    does: 'let a frozen job go on where it was',
    example: `sluice jobs release ${exampleId}`,
  }).action(async (id: string, options: View) =>
    withClient(async (client) =>
      sayFacts(await client.post(`${pathOf(id)}/release`, {}, jobView), options),
    ),
  )

  addCommand(jobs, 'hold <id>', {
    does: 'put a job under legal hold: nothing of it is deleted until two people lift it',
    example: `sluice jobs hold ${exampleId} --reason 'case 4711'`,
  })
    .requiredOption('--reason <text>', 'for the audit log')
    .action(async (id: string, options: View & { reason: string }) =>
      withClient(async (client) => {
        const { reason } = options
        sayFacts(await client.post(`${pathOf(id)}/hold`, { reason }, jobView), options)
      }),
    )

  addCommand(jobs, 'lift <id>', {
    does: 'ask for the second person who lifts a legal hold',
    example: `sluice jobs lift ${exampleId} --reason 'case 4711 is closed'`,
  })
    .requiredOption('--reason <text>', 'for the second person, and the audit log')
    .action(async (id: string, options: View & { reason: string }) => askFor(id, 'lift', options))

  addCommand(jobs, 'write-off <id>', {
    does: 'ask for the second person who gives up on holders that never came back',
    example: `sluice jobs write-off ${exampleId} --reason 'the node was stolen'`,
  })
    .requiredOption('--reason <text>', 'for the second person, and the audit log')
    .action(async (id: string, options: View & { reason: string }) =>
      askFor(id, 'write-off', options),
    )

  addCommand(jobs, 'write-off-report <id>', {
    does: 'fetch the report of a job that was written off, byte for byte; it is no certificate',
    example: `sluice jobs write-off-report ${exampleId} --out job.write-off.json`,
  })
    .option('--out <file>', 'new file for it; else standard output')
    .action(async (id: string, options: View & { out?: string }) =>
      withClient(async (client) => {
        const bytes = await client.bytes(`${pathOf(id)}/write-off`, limits.certificateBytesMax)
        if (options.out === undefined) return void process.stdout.write(bytes)
        await writeNew(options.out, bytes)
        return remark(`wrote ${options.out}`)
      }),
    )

  addCommand(jobs, 'delete <id>', {
    does: 'end a job and delete every copy and key of it',
    example: `sluice jobs delete ${exampleId}`,
  }).action(async (id: string, options: View) =>
    withClient(async (client) =>
      sayFacts(await client.post(`${pathOf(id)}/delete`, {}, jobView), options),
    ),
  )

  addCommand(jobs, 'certificate <id>', {
    does: 'fetch the deletion certificate of a job, byte for byte',
    example: `sluice jobs certificate ${exampleId} --out job.certificate.json`,
  })
    .option('--out <file>', 'new file for it; else standard output')
    .action(async (id: string, options: View & { out?: string }) =>
      withClient(async (client) => {
        const bytes = await client.bytes(`${pathOf(id)}/certificate`, limits.certificateBytesMax)
        if (options.out === undefined) return void process.stdout.write(bytes)
        await writeNew(options.out, bytes)
        return remark(
          `wrote ${options.out}; check it with: sluice verify ${options.out} --trust KEY`,
        )
      }),
    )
}

/** Asks for a second person. */
async function askFor(
  id: string,
  what: 'lift' | 'write-off',
  options: View & { reason: string },
): Promise<void> {
  await withClient(async (client) => {
    const body = { reason: options.reason }
    const { approval } = await client.post(`${pathOf(id)}/${what}`, body, approvalAsked)
    sayAsked(approval, options)
  })
}

/** A job, then who may hold what of it, then what is owed. */
function sayJob(job: JobDetail, view: View): void {
  if (view.json === true) return sayFacts(job, view)
  const { leases, obligations, ...facts } = job
  sayFacts(facts, view)
  if (leases.length > 0) {
    say('')
    sayList(leases, view, {
      LEASE: (lease) => String(lease.fence),
      NODE: (lease) => lease.nodeId,
      GRANTED: (lease) => instant(lease.grantedAtMs, view),
      ENDED: (lease) => instant(lease.endedAtMs, view),
      WHY: (lease) => lease.endReason ?? '-',
      WIPED: (lease) => instant(lease.wipedAtMs, view),
    })
  }
  say('')
  sayList(obligations, view, {
    OWED: (duty) => duty.kind,
    PROGRESS: (duty) => duty.progress,
    TRIES: (duty) => String(duty.attempts),
    // Nobody is late with what is only owed once the job is deleted.
    DEADLINE: (duty) => (duty.state === 'waiting' ? '-' : instant(duty.deadlineAtMs, view)),
    DONE: (duty) => instant(duty.doneAtMs, view),
    'LAST ERROR': (duty) => duty.lastError ?? '-',
  })
}

function pathOf(id: string): string {
  return `/v1/jobs/${encodeURIComponent(id)}`
}

async function watch(id: string, options: View): Promise<void> {
  await withClient(async (client) => {
    const over = new AbortController()
    let afterId = '0'
    // A stream that breaks is taken up again where it ended.
    for (let tries = 0; tries < 10 && !over.signal.aborted; tries += 1) {
      try {
        for await (const event of client.events(`${pathOf(id)}/events`, {
          afterId,
          signal: over.signal,
        })) {
          tries = 0
          afterId = event.id
          const parsed = auditEvent.loose().parse(JSON.parse(event.data))
          const facts = Object.entries(parsed.detail).map(([key, fact]) => `${key}=${fact}`)
          if (options.json === true) say(event.data)
          else say(`${instant(parsed.atMs, options)}  ${parsed.type}  ${facts.join(' ')}`)
          const state = jobState.safeParse(parsed.detail['to'])
          if (state.success && isOver(state.data)) return
        }
      } catch (error) {
        if (error instanceof SluiceError && error.retry === 'never') throw error
      }
    }
    throw new SluiceError('control_plane.unreachable', 'the stream of events ended', {
      retry: 'later',
    })
  })
}

async function writeNew(path: string, bytes: Buffer): Promise<void> {
  let file
  try {
    file = await open(path, 'wx', 0o644)
  } catch (cause) {
    throw new SluiceError('usage', `${path}: exists, or cannot be made`, {
      hint: 'Name a new file.',
      cause,
    })
  }
  try {
    await file.writeFile(bytes)
    await file.sync()
  } finally {
    await file.close()
  }
}
