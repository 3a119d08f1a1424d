/** Learns what became of jobs at the control plane: told by commands, asked after an outage. */
import type { JobId } from '@sluice/protocol/ids'
import type { CaptureJob } from '../journal.ts'
import type { CaptureParts } from './capture-parts.ts'
import type { JobWork } from './job-work.ts'

/** Jobs asked about in one request. */
const askedAtOnce = 100

export type RemoteStates = {
  /** After an outage: what became of the jobs meanwhile. */
  askAll(): void
  /** How these are doing, as far as they are out of our hands. */
  ask(ids: readonly JobId[]): void
}

/** Registers with the link. */
export function createRemoteStates(parts: CaptureParts, { carry }: JobWork): RemoteStates {
  const { link, journal, events, signal, job, edit, tell } = parts

  link.onCommand('result.ready', async (command) => {
    await edit(command.jobId, (draft) => {
      if (draft.remoteState !== 'deleting') draft.remoteState = 'analysed'
    })
    if (job(command.jobId)) carry(command.jobId)
  })

  link.onCommand('job.notice', async (command) => {
    events.jobNotice(command)
    await edit(command.jobId, (draft) => learn(draft, command))
    if (job(command.jobId)) carry(command.jobId)
  })

  function learn(
    draft: CaptureJob,
    heard: {
      state: CaptureJob['remoteState']
      problem?: CaptureJob['problem']
      expiresAtMs?: number | undefined
    },
  ): void {
    const changed = draft.remoteState !== heard.state
    draft.remoteState = heard.state
    if (heard.problem) draft.problem = heard.problem
    if (heard.expiresAtMs !== undefined) draft.expiresAtMs = heard.expiresAtMs
    if (changed && heard.state === 'leased') tell(draft, 'analyse')
  }

  async function learnStates(ids: readonly JobId[]): Promise<void> {
    for (let first = 0; first < ids.length; first += askedAtOnce) {
      const jobIds = ids.slice(first, first + askedAtOnce)
      const reply = await link.request('job.states', { jobIds }, { signal })
      for (const heard of reply.body.jobs) {
        await edit(heard.jobId, (draft) => learn(draft, heard))
        carry(heard.jobId)
      }
    }
  }

  return {
    askAll() {
      const open = Object.values(journal.data.jobs).filter(
        ({ step }) => step !== 'over' && step !== 'sealed',
      )
      parts.ask(learnStates(open.map((each) => each.jobId)))
    },
    ask(ids) {
      const away = ids.filter((id) => {
        const found = job(id)
        return found?.remoteState !== undefined && found.step === 'stored' && !found.resultPath
      })
      if (away.length > 0 && link.state === 'connected') parts.ask(learnStates(away))
    },
  }
}
