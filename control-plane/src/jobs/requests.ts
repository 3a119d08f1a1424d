/** Joins every request of the channel with the one function that works it off. */
import { SluiceError } from '@sluice/protocol/errors'
import type {
  AgentRequest,
  RequestBody,
  RequestReply,
  RequestType,
} from '@sluice/protocol/messages'
import type { Answer, LinkAgent } from '../fleet/link.ts'
import { announceJob } from './announce.ts'
import { abandonJob } from './delete.ts'
import type { JobDeps } from './deps.ts'
import { problemOfJob } from './fail.ts'
import { acceptLease, giveBack, readObject, releaseKey } from './leases.ts'
import { confirmDelivery, fetchResult, takeResult } from './result.ts'
import { jobsOf } from './store.ts'
import { beginUpload, completeUpload, grantParts, verifyUpload } from './upload.ts'

/** Requests that other parts of the control plane work off. */
export type OtherRequests = {
  /** Checks and stores a signed receipt. */
  acceptReceipt(agent: LinkAgent, body: RequestBody<'receipt'>): Promise<void>
  /** Issues a new certificate for the identity key the link is authenticated with. */
  renewCertificate(
    agent: LinkAgent,
    body: RequestBody<'certificate.renew'>,
  ): Promise<RequestReply<'certificate.renew'>>
  /** Takes one page of what an agent found on its host, for a sweep. */
  takeInventory?(agent: LinkAgent, body: RequestBody<'inventory.report'>): Promise<void>
  /** Tells an administrator of an infected medium on a capture host. */
  takeInfection?(agent: LinkAgent, body: RequestBody<'medium.infected'>): Promise<void>
  /** Notes that an agent trusts the authorities of a rotation. */
  takeAdoption?(agent: LinkAgent, body: RequestBody<'authorities.adopted'>): Promise<void>
}

export type RequestDeps = JobDeps & OtherRequests

type Work<T extends RequestType> = {
  /** Who may ask. */
  role: 'capture' | 'gpu' | 'any'
  answer(
    deps: RequestDeps,
    agent: LinkAgent,
    body: RequestBody<T>,
    attachment: Buffer,
  ): Promise<Answer>
}

const works: { readonly [T in RequestType]: Work<T> } = {
  'receive-keys.request': {
    role: 'capture',
    async answer(deps, agent, { stock }) {
      return plain<'receive-keys.request'>({
        keys: await deps.keys.supplyReceiveKeys(agent.id, stock),
      })
    },
  },
  'job.announce': {
    role: 'capture',
    async answer(deps, agent, body, envelope) {
      return plain<'job.announce'>(await announceJob(deps, agent, body, envelope))
    },
  },
  'upload.begin': {
    role: 'capture',
    async answer(deps, agent, body) {
      return plain<'upload.begin'>(await beginUpload(deps, agent, body))
    },
  },
  'upload.grants': {
    role: 'capture',
    async answer(deps, agent, body) {
      return plain<'upload.grants'>(await grantParts(deps, agent, body))
    },
  },
  'upload.complete': {
    role: 'capture',
    async answer(deps, agent, body) {
      const { state } = await completeUpload(deps, agent, body)
      return plain<'upload.complete'>({ state })
    },
  },
  'upload.verify': {
    role: 'capture',
    async answer(deps, agent, body) {
      return plain<'upload.verify'>(await verifyUpload(deps, agent, body))
    },
  },
  'job.abandon': {
    role: 'capture',
    async answer(deps, agent, body) {
      return plain<'job.abandon'>(await abandonJob(deps, agent, body))
    },
  },
  'job.states': {
    role: 'capture',
    async answer(deps, agent, body) {
      return plain<'job.states'>(await jobStates(deps, agent, body))
    },
  },
  'result.fetch': { role: 'capture', answer: fetchResult },
  'result.delivered': {
    role: 'capture',
    async answer(deps, agent, body) {
      return plain<'result.delivered'>(await confirmDelivery(deps, agent, body))
    },
  },
  receipt: {
    role: 'any',
    async answer(deps, agent, body) {
      await deps.acceptReceipt(agent, body)
      return plain<'receipt'>({})
    },
  },
  'lease.accept': {
    role: 'gpu',
    async answer(deps, agent, body) {
      return plain<'lease.accept'>(await acceptLease(deps, agent, body))
    },
  },
  'lease.decline': {
    role: 'gpu',
    async answer(deps, agent, body) {
      await giveBack(deps, agent, body, 'declined')
      return plain<'lease.decline'>({})
    },
  },
  'key.request': { role: 'gpu', answer: releaseKey },
  'object.read': {
    role: 'gpu',
    async answer(deps, agent, body) {
      return plain<'object.read'>(await readObject(deps, agent, body))
    },
  },
  'lease.result': {
    role: 'gpu',
    async answer(deps, agent, body, sealed) {
      await takeResult(deps, agent, body, sealed)
      return plain<'lease.result'>({})
    },
  },
  'lease.fail': {
    role: 'gpu',
    async answer(deps, agent, body) {
      await giveBack(deps, agent, body, 'failed')
      return plain<'lease.fail'>({})
    },
  },
  'certificate.renew': {
    role: 'any',
    async answer(deps, agent, body) {
      return plain<'certificate.renew'>(await deps.renewCertificate(agent, body))
    },
  },
  'inventory.report': {
    role: 'any',
    async answer(deps, agent, body) {
      if (!deps.takeInventory) throw unasked('inventory.report')
      await deps.takeInventory(agent, body)
      return plain<'inventory.report'>({})
    },
  },
  'medium.infected': {
    role: 'capture',
    async answer(deps, agent, body) {
      if (!deps.takeInfection) throw unasked('medium.infected')
      await deps.takeInfection(agent, body)
      return plain<'medium.infected'>({})
    },
  },
  'authorities.adopted': {
    role: 'any',
    async answer(deps, agent, body) {
      if (!deps.takeAdoption) throw unasked('authorities.adopted')
      await deps.takeAdoption(agent, body)
      return plain<'authorities.adopted'>({})
    },
  },
}

function unasked(request: RequestType): SluiceError {
  return new SluiceError('request.invalid', `nobody here has asked for ${request}`)
}

/**
 * Works off one request of an agent whose link was authenticated.
 *
 * @param attachment The link has checked that it is there exactly when the request has one.
 * @throws SluiceError as the agent shall see it; `access.forbidden` for the other role's requests.
 */
export async function answerRequest(
  deps: RequestDeps,
  agent: LinkAgent,
  request: AgentRequest,
  attachment: Buffer | undefined,
): Promise<Answer> {
  const work = works[request.request] as Work<RequestType>
  if (work.role !== 'any' && work.role !== agent.role)
    throw new SluiceError('access.forbidden', `${request.request} is not for ${agent.role} agents`)
  return work.answer(deps, agent, request.body, attachment ?? Buffer.alloc(0))
}

function plain<T extends RequestType>(body: RequestReply<T>): Answer {
  return { body }
}

async function jobStates(
  deps: JobDeps,
  agent: LinkAgent,
  body: RequestBody<'job.states'>,
): Promise<RequestReply<'job.states'>> {
  const rows = await deps.database.read((sql) => jobsOf(sql, agent.id, body.jobIds))
  return {
    jobs: rows.map((row) => {
      const problem = problemOfJob(row)
      return { jobId: row.id, state: row.state, ...(problem === undefined ? {} : { problem }) }
    }),
  }
}
