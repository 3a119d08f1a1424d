/** The way between agents and their control plane, which a test can hold and cut without reading a byte of it. */

import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { Socket } from 'node:net'

/**
 * Where a control plane listens whose agents come over a `HeldLink`: `listenAddress` in its settings. Its
 * name leads to 127.0.0.1, where the link is, so that everybody keeps to the one address there is.
 */
export const hiddenAddress = '127.0.0.2'

export type HeldLink = AsyncDisposable & {
  /** From now on nothing the control plane says reaches an agent; what agents say goes through. */
  hold(): void
  /** Lets everything through again that was said meanwhile. */
  release(): void
  /** Breaks all connections, throws away what was held, and lets new ones through. */
  cut(): void
}

/** @param url Of a listener at `hiddenAddress`; its port has to stay the same over restarts. */
export async function startHeldLink(url: string): Promise<HeldLink> {
  const port = Number(new URL(url).port)
  const flows = new Set<() => void>()
  const sockets = new Set<Socket>()
  let held = false

  const server = createServer((agent) => {
    const beyond = connect({ host: hiddenAddress, port })
    const waiting: Buffer[] = []
    let hasEnded = false
    const flow = (): void => {
      if (held) return
      for (const piece of waiting.splice(0)) agent.write(piece)
      if (hasEnded) agent.end()
    }
    flows.add(flow)
    for (const socket of [agent, beyond]) {
      sockets.add(socket)
      // Either side may go as it likes, and takes the other with it.
      socket.on('error', () => socket.destroy())
    }
    agent.pipe(beyond)
    agent.on('close', () => {
      flows.delete(flow)
      sockets.delete(agent)
      beyond.destroy()
    })
    beyond.on('data', (piece: Buffer) => {
      waiting.push(piece)
      flow()
    })
    beyond.on('close', () => {
      sockets.delete(beyond)
      hasEnded = true
      flow()
    })
  })
  server.listen(port, '127.0.0.1')
  await once(server, 'listening')

  const cut = (): void => {
    held = false
    flows.clear()
    for (const socket of sockets) socket.destroy()
  }
  return {
    hold() {
      held = true
    },
    release() {
      held = false
      for (const flow of flows) flow()
    },
    cut,
    async [Symbol.asyncDispose]() {
      cut()
      server.close()
      await once(server, 'close')
    },
  }
}
