/** Starts a control plane step by step, and ends it in the reverse order. */
import { isSluiceError, SluiceError } from '@sluice/protocol/errors'
import { adminRoutes } from './access/routes.ts'
import { hasPrincipal } from './access/tokens.ts'
import { type DataDirectory, writeDurably } from './data-directory.ts'
import { isWriteFailure } from './database/write-failure.ts'
import { openAdminSocket } from './http.ts'
import { beginWork } from './start/begin-work.ts'
import { joinFeatures } from './start/join-features.ts'
import { openGround, type StartOptions } from './start/open-ground.ts'
import { openListeners } from './start/open-listeners.ts'

export type ControlPlane = AsyncDisposable & {
  directory: DataDirectory
  agentUrl: string
  operatorUrl: string
  /** SHA-256 of the CA certificate, which agents and operators may compare. */
  caSha256: string
  /** Nobody has a token yet: the owner makes the first one over the admin socket. */
  unclaimed: boolean
}

/**
 * Starts a control plane. It works as soon as this returns, and everything an earlier process left
 * unfinished goes on by itself.
 *
 * @throws SluiceError for a data directory that is unsafe, newer or in use, a port that is taken,
 * or a store that cannot be used; `host.disk_full` when its disk is.
 */
export async function createControlPlane(options: StartOptions): Promise<ControlPlane> {
  try {
    return await start(options)
  } catch (error) {
    throw isFullDisk(error) ? noRoomToStart(options.config.dataDir, error) : error
  }
}

async function start(options: StartOptions): Promise<ControlPlane> {
  await using started = new AsyncDisposableStack()
  const ground = await openGround(options, started)
  const features = await joinFeatures(ground, started)
  const { agents, operators } = await openListeners(ground, features, started)
  await beginWork(ground, features, started)

  const { directory, authority, database, events } = ground
  const urls = { agentUrl: agents.origin, operatorUrl: operators.origin }
  const ports = { agentPort: agents.port, operatorPort: operators.port }
  const addresses = { ...urls, ...ports, pid: process.pid }
  await writeDurably(directory.listeners, `${JSON.stringify(addresses)}\n`, 0o600)
  // Last: whoever finds the socket finds everything else.
  started.use(await openAdminSocket(directory.adminSocket, adminRoutes(features.accessDeps)))
  events.started({ ...urls, dataDir: directory.root })

  const running = started.move()
  return {
    directory,
    ...urls,
    caSha256: authority.sha256,
    unclaimed: !(await hasPrincipal(database)),
    [Symbol.asyncDispose]: () => running.disposeAsync(),
  }
}

/** Nothing is half-done by a start that ends here: the next one begins again from the same rows. */
function noRoomToStart(dataDir: string, cause: unknown): SluiceError {
  return new SluiceError('host.disk_full', `cannot write to the data directory ${dataDir}`, {
    retry: 'later',
    hint: 'Make room on its disk, or look at its health, then start again.',
    cause,
  })
}

function isFullDisk(error: unknown): boolean {
  if (isSluiceError(error)) return error.code === 'host.disk_full'
  const { code } = error as NodeJS.ErrnoException
  return isWriteFailure(error) || ['ENOSPC', 'EDQUOT', 'EFBIG', 'EIO'].includes(code ?? '')
}
