/** A real S3 server of a test's own, over TLS 1.3 on loopback, that can fail in the ways real ones do. */

import { execFile, spawnSync } from 'node:child_process'
import { readFile } from 'node:fs/promises'
import { Agent } from 'node:https'
import { join } from 'node:path'
import { promisify } from 'node:util'

import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3'

import { need } from './need.ts'
import { makeTemporaryDirectory } from './temporary-directory.ts'

const run = promisify(execFile)
const script = join(import.meta.dirname, 's3-server.sh')

export const s3Region = 'us-east-1'

/** For `skip`: false where a server can be started, else which packages are missing. */
export function needS3Server(): string | false {
  const check = spawnSync(script, ['check'], { encoding: 'utf8' })
  return need('Ceph RGW', check.status === 0, check.stderr.trim())
}

export type S3Credentials = { accessKeyId: string; secretAccessKey: string }

export type S3Server = AsyncDisposable & {
  /** `https://127.0.0.1:PORT`. Path-style addresses; checksums other than MD5 are ignored by this server. */
  readonly endpoint: string
  readonly region: string
  /** PEM of the authority to trust, and of no other use. */
  readonly caFile: string
  /** Mode 0600, the form of `~/.aws/credentials` with one profile `default`. */
  readonly credentialsFile: string
  readonly credentials: S3Credentials
  /** A client of the test's own, to make buckets and to see what the server holds. */
  readonly client: S3Client
  /** Another client, for other credentials; the caller destroys it. */
  connect(credentials: S3Credentials): S3Client
  createBucket(name: string): Promise<void>
  /** Gives the one user another access key, or a new secret for one it has. */
  createKey(credentials: S3Credentials): Promise<void>
  removeKey(accessKeyId: string): Promise<void>
  /** Ends the gateway: connections are refused. The objects stay. */
  beginOutage(): Promise<void>
  /** Brings it back on the same port. */
  endOutage(): Promise<void>
  /** Stops the gateway in its tracks: connections hang. */
  freeze(): Promise<void>
  thaw(): Promise<void>
}

/** `KEY=value` lines as an object. */
function parseLines(text: string): Record<string, string> {
  const pairs = text.split('\n').flatMap((line) => {
    const [, key, value] = /^(\w+)=(.*)$/.exec(line) ?? []
    return key === undefined || value === undefined ? [] : [[key, value] as const]
  })
  return Object.fromEntries(pairs)
}

function pick(values: Record<string, string>, key: string): string {
  const value = values[key]
  if (value === undefined) throw new Error(`${script} did not print ${key}`)
  return value
}

async function readCredentials(file: string): Promise<S3Credentials> {
  const text = await readFile(file, 'utf8')
  const values = parseLines(text.replaceAll(' = ', '='))
  return {
    accessKeyId: pick(values, 'aws_access_key_id'),
    secretAccessKey: pick(values, 'aws_secret_access_key'),
  }
}

/**
 * Starts a server with an empty store; about two seconds. Everything is gone after disposal.
 *
 * @param options.sts It knows sessions of roles, and says `AccessDenied` of any key it does not know.
 */
export async function startS3Server({ sts = false } = {}): Promise<S3Server> {
  await using cleanup = new AsyncDisposableStack()
  const folder = cleanup.use(await makeTemporaryDirectory('s3'))
  const server = join(folder.path, 'server')
  const up = async (port: string): Promise<Record<string, string>> => {
    const env = { ...process.env, S3_STS: String(sts) }
    const { stdout } = await run(script, ['up', server, port], { env })
    return parseLines(stdout)
  }
  const values = await up('0')
  cleanup.defer(async () => {
    await run(script, ['down', server, '--purge'])
  })
  const endpoint = pick(values, 'S3_ENDPOINT')
  const caFile = pick(values, 'S3_CA_FILE')
  const credentialsFile = pick(values, 'S3_CREDENTIALS_FILE')
  const credentials = await readCredentials(credentialsFile)
  const ca = await readFile(caFile)
  const connect = (other: S3Credentials): S3Client =>
    new S3Client({
      endpoint,
      region: s3Region,
      credentials: other,
      forcePathStyle: true,
      requestChecksumCalculation: 'WHEN_REQUIRED',
      responseChecksumValidation: 'WHEN_REQUIRED',
      requestHandler: { httpsAgent: new Agent({ ca, minVersion: 'TLSv1.3', keepAlive: true }) },
    })
  const client = connect(credentials)
  cleanup.defer(() => client.destroy())

  const changeKey = async (verb: 'create' | 'rm', words: string[]): Promise<void> => {
    await run(script, ['admin', server, 'key', verb, '--uid=test', '--key-type=s3', ...words])
  }
  const signalGateway = async (signal: NodeJS.Signals): Promise<void> => {
    const { stdout } = await run(script, ['pid', server, 'rgw'])
    process.kill(Number(stdout), signal)
  }
  const owned = cleanup.move()
  return {
    endpoint,
    region: s3Region,
    caFile,
    credentialsFile,
    credentials,
    client,
    connect,
    async createBucket(name) {
      await client.send(new CreateBucketCommand({ Bucket: name }))
    },
    createKey: ({ accessKeyId, secretAccessKey }) =>
      changeKey('create', [`--access-key=${accessKeyId}`, `--secret-key=${secretAccessKey}`]),
    removeKey: (accessKeyId) => changeKey('rm', [`--access-key=${accessKeyId}`]),
    async beginOutage() {
      await run(script, ['down', server, '--gateway'])
    },
    async endOutage() {
      await up(new URL(endpoint).port)
    },
    freeze: () => signalGateway('SIGSTOP'),
    thaw: () => signalGateway('SIGCONT'),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  }
}
