/** The measure of a purge: the same agents told something by a server that does nothing else. */

import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

import { openAuthority } from '@sluice/control-plane/access/authority'

import { startProgram } from '../tools/processes.ts'
import type { SimulatedAgent } from './simulated-agents.ts'
import { forEach, openSocket } from './simulated-agents.ts'

const program = fileURLToPath(new URL('bare-broadcast-server.ts', import.meta.url))

/** About as long as the order of a purge of everything. */
const frameChars = 330
const answer = 'x'.repeat(110)

/**
 * @param options.folder Where the server's key may lie; it is nobody's but the test's.
 * @returns Milliseconds after the first send at which each answer was back, in their order.
 */
export async function measureBroadcast(options: {
  agents: readonly SimulatedAgent[]
  authority: string
  folder: string
  env: NodeJS.ProcessEnv
}): Promise<number[]> {
  const { agents } = options
  const authority = await openAuthority(options.authority, Date.now)
  const { key, cert } = await authority.issueServer(['localhost'])
  const file = join(options.folder, 'broadcast.json')
  const frame = 'x'.repeat(frameChars)
  const setting = { key, cert, ca: authority.pem, links: agents.length, frame }
  await writeFile(file, JSON.stringify(setting), { mode: 0o600 })
  await using server = await startProgram({
    command: process.execPath,
    args: [program, file],
    env: options.env,
  })
  const { port } = await server.waitForJson(({ event }) => event === 'listening')
  const url = new URL(`https://localhost:${Number(port)}`)
  const answered = server.waitForJson(({ event }) => event === 'answered', 600_000)
  // It may fail before anybody asks.
  answered.catch(() => undefined)
  const sockets = await forEach(agents, (agent) => {
    const { promise, resolve, reject } = Promise.withResolvers<ReturnType<typeof openSocket>>()
    const socket = openSocket(agent, url)
    socket.on('message', () => socket.send(answer))
    socket.on('open', () => resolve(socket))
    socket.on('error', reject)
    return promise
  })
  const { answeredMs } = (await answered) as { answeredMs: number[] }
  for (const socket of sockets) socket.terminate()
  return answeredMs
}
