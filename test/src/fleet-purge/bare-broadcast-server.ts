/**
 * What the machine allows: one message to everybody over mutual TLS and WebSocket, and everybody's answer
 * back, with nothing decided, written or verified in between. Run as a process of its own.
 */

import { readFileSync } from 'node:fs'
import { createServer } from 'node:https'
import type { AddressInfo } from 'node:net'

import type { WebSocket } from 'ws'
import { WebSocketServer } from 'ws'

/** As written by `measureBroadcast`. */
type Setting = { key: string; cert: string; ca: string; links: number; frame: string }

const setting = JSON.parse(readFileSync(process.argv[2] ?? '', 'utf8')) as Setting
const server = createServer({
  ...{ key: setting.key, cert: setting.cert, ca: setting.ca },
  ...{ requestCert: true, rejectUnauthorized: true, minVersion: 'TLSv1.3' },
  ecdhCurve: 'X25519MLKEM768:X25519:P-256',
})
const sockets: WebSocket[] = []
const answeredMs: number[] = []
let beganAt = 0

new WebSocketServer({ server, perMessageDeflate: false }).on('connection', (socket) => {
  sockets.push(socket)
  socket.on('message', () => {
    answeredMs.push(performance.now() - beganAt)
    if (answeredMs.length === setting.links) say({ event: 'answered', answeredMs })
  })
  if (sockets.length < setting.links) return
  // The last one shall have heard that it is connected before it is spoken to.
  setTimeout(() => {
    beganAt = performance.now()
    for (const each of sockets) each.send(setting.frame)
  }, 500)
})
server.listen(0, '127.0.0.1', () =>
  say({ event: 'listening', port: (server.address() as AddressInfo).port }),
)

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`)
}
