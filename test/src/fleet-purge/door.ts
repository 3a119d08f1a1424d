/** A way to a listener that a test can shut: whoever goes through it is away meanwhile. */

import { once } from 'node:events'
import { connect, createServer } from 'node:net'
import type { AddressInfo, Socket } from 'node:net'

export type Door = AsyncDisposable & {
  /** Leads to the listener under the same name, with a port of its own. */
  readonly url: string
  /** Breaks what goes through it, and lets nobody through any more. */
  shut(): void
  open(): void
}

/** @param url Of a listener on 127.0.0.1. */
export async function startDoor(url: string): Promise<Door> {
  const port = Number(new URL(url).port)
  const sockets = new Set<Socket>()
  let isOpen = true
  const server = createServer((near) => {
    if (!isOpen) {
      near.destroy()
      return
    }
    const far = connect({ host: '127.0.0.1', port })
    for (const [one, other] of [
      [near, far],
      [far, near],
    ] as const) {
      sockets.add(one)
      one.pipe(other)
      // Either side may go as it likes, and takes the other with it.
      one.on('error', () => one.destroy())
      one.on('close', () => {
        sockets.delete(one)
        other.destroy()
      })
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const own = new URL(url)
  own.port = String((server.address() as AddressInfo).port)
  const shut = (): void => {
    isOpen = false
    for (const socket of sockets) socket.destroy()
  }
  return {
    url: own.origin,
    shut,
    open() {
      isOpen = true
    },
    async [Symbol.asyncDispose]() {
      shut()
      server.close()
      await once(server, 'close')
    },
  }
}
