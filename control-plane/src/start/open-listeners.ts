/** Opens the servers: the one for agents with their links, then the one for operators with every route. */
import { accessRoutes } from '../access/routes.ts'
import { alertRoutes } from '../alerts/routes.ts'
import { viewOfSink } from '../audit/export.ts'
import { auditRoutes } from '../audit/routes.ts'
import { listenAddressOf, publicNamesOf } from '../config.ts'
import { obligationRoutes } from '../deletion/routes.ts'
import { countProgress } from '../deletion/store.ts'
import { agentRoutes } from '../fleet/routes.ts'
import { statusOf } from '../health.ts'
import {
  type AgentListener,
  type Listener,
  openAgentListener,
  openOperatorListener,
  operatorApi,
  systemRoutes,
} from '../http.ts'
import { jobRoutes } from '../jobs/routes.ts'
import { openApiDocument } from '../openapi.ts'
import { purgeRoutes } from '../purge/routes.ts'
import { revoke } from '../revocation/revoke.ts'
import { revocationRoutes } from '../revocation/routes.ts'
import { traitsOf } from '../storage/checked-store.ts'
import { sweepRoutes } from '../sweep/routes.ts'
import type { Features } from './join-features.ts'
import type { Ground } from './open-ground.ts'

/** @param started Ends what was begun, in the reverse order. */
export async function openListeners(
  ground: Ground,
  features: Features,
  started: AsyncDisposableStack,
): Promise<{ agents: AgentListener; operators: Listener }> {
  const { config, authority, events, database, now, objects, listeners } = ground
  const { fleet } = features
  const { name, names } = publicNamesOf(config)
  const listen = { authority, events, database, now, name, names, address: listenAddressOf(config) }
  const agents = started.use(
    await openAgentListener({
      ...listen,
      port: config.agentPort,
      attach: (request, socket, head, agent) => fleet.attach(request, socket, head, agent),
      ...(objects === undefined ? {} : { objects }),
    }),
  )
  listeners.agents = agents
  // Ends before its listener, which waits for every connection it has let in.
  started.use(fleet)
  const operators = started.use(
    await openOperatorListener({
      ...listen,
      api: apiOf(ground, features),
      port: config.operatorPort,
      plain: config.insecureLoopbackHttp,
    }),
  )
  listeners.operators = operators
  return { agents, operators }
}

function apiOf(ground: Ground, features: Features): ReturnType<typeof operatorApi> {
  const { config, database, changes, events, now } = ground
  const { fleet, revocationDeps, rotation, sweeps } = features
  return operatorApi({
    ...{ database, changes, events, now },
    routes: [
      systemRoutes({
        status: () => statusNow(ground, features),
        openApi: openApiDocument(ground.build),
      }),
      accessRoutes(features.accessDeps),
      agentRoutes({
        ...{ database, changes, now, fleet },
        revokeAgent: async ({ agentId, access }) =>
          void (await revoke(revocationDeps, {
            target: { kind: 'agent', agentId },
            reason: 'no reason given',
            access,
          })),
      }),
      jobRoutes(features.jobDeps),
      purgeRoutes(features.purgeDeps),
      revocationRoutes({ ...revocationDeps, rotation }),
      sweepRoutes({ database, changes, now, sweeps }),
      obligationRoutes({ database, now }),
      alertRoutes(features.alertDeps),
      auditRoutes({
        ...{ database, changes, now },
        sink: () => viewOfSink(database, config.auditSink.file),
      }),
    ],
  })
}

function statusNow(ground: Ground, { fleet, reserve }: Features): ReturnType<typeof statusOf> {
  const { database, now, build, startedAtMs, store, epochKeys, keys } = ground
  return statusOf(
    { database, now, countProgress },
    {
      ...{ build, startedAtMs },
      caSha256: ground.authority.sha256,
      evidenceKeyId: ground.evidence.keyId,
      store: store.kind,
      stores: () => [
        traitsOf(store),
        ...[...ground.replicas].map(([replica, copy]) => ({ replica, ...traitsOf(copy) })),
      ],
      connected: () => fleet.connected().length,
      reserve: reserve.state,
      keys: { store: epochKeys.name, level: keys.level.level },
    },
  )
}
