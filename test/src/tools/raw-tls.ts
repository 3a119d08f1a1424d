/** A TLS connection with nothing on it but what a test says. */

import { once } from 'node:events'
import { connect } from 'node:tls'
import type { ConnectionOptions, TLSSocket } from 'node:tls'

/** @throws The error of the handshake; `closed` when the other side ends it without one. */
export async function openTls(options: ConnectionOptions): Promise<TLSSocket> {
  const socket = connect(options)
  const closed = once(socket, 'close').then(() => {
    throw new Error('closed')
  })
  closed.catch(() => undefined)
  await Promise.race([once(socket, 'secureConnect'), closed])
  socket.on('error', () => socket.destroy())
  return socket
}

/**
 * Connects, says one thing and listens to the end.
 *
 * @param kept Told of every TLS session that could be resumed later.
 * @returns What came back; else the code of the error, or `closed`.
 */
export async function sayOverTls(
  options: ConnectionOptions,
  words: string | Buffer,
  kept: (session: Buffer) => void = () => undefined,
): Promise<string> {
  const socket = connect(options)
  socket.on('session', kept)
  const { promise, resolve } = Promise.withResolvers<string>()
  let heard = ''
  socket.on('data', (piece: Buffer) => (heard += piece.toString('latin1')))
  socket.on('error', (error: NodeJS.ErrnoException) => resolve(heard || (error.code ?? 'failed')))
  socket.on('close', () => resolve(heard || 'closed'))
  socket.on('secureConnect', () => socket.write(words))
  try {
    return await promise
  } finally {
    socket.destroy()
  }
}
