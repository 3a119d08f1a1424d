/** Cleans up after a process before this one: a sealing cut short, and folders that nobody explains. */
import { mkdir } from 'node:fs/promises'
import type { CaptureParts } from './capture-parts.ts'
import { deleteSpool, prepareSpool, spooledJobs } from './spool.ts'

/** A sealing cut short is thrown away; so is a folder that no job of the journal explains. */
export async function recover({ journal, spoolDir, resultsDir, job }: CaptureParts): Promise<void> {
  await prepareSpool(spoolDir)
  await mkdir(resultsDir, { recursive: true, mode: 0o700 })
  await journal.change((draft) => {
    for (const each of Object.values(draft.submissions)) {
      if (each.state !== 'sealing') continue
      each.state = 'waiting'
      delete each.jobId
    }
  })
  for (const id of await spooledJobs(spoolDir)) {
    const known = job(id)
    if (!known || known.step === 'over') await deleteSpool(spoolDir, id)
  }
}
