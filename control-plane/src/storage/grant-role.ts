/**
 * Signs grants with sessions of a role instead of the store's own access key, so that all of them can
 * be taken back at once: the role then refuses every session that began before.
 */
import { IAMClient, PutRolePolicyCommand } from '@aws-sdk/client-iam'
import { setTimeout as pause } from 'node:timers/promises'
import { AssumeRoleCommand, STSClient, type STSClientConfig } from '@aws-sdk/client-sts'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'

export type SessionCredentials = {
  accessKeyId: string
  secretAccessKey: string
  sessionToken: string
  expiration: Date
}

export type GrantRole = AsyncDisposable & {
  /** Of the present session, which outlives every grant signed with it. */
  credentials(): Promise<SessionCredentials>
  /**
   * Refuses every session that began before now, and begins a new one.
   *
   * @throws SluiceError `store.unreachable`, `store.refused` (`later`).
   */
  revoke(): Promise<void>
}

type GrantRoleOptions = {
  /** Speaks STS; the same as S3's for most stores. */
  endpoint: string
  /** Speaks IAM; the same as S3's for most stores. */
  iamEndpoint: string
  region: string
  /** `arn:aws:iam::…:role/NAME`. The access key may assume it and put policies on it. */
  roleArn: string
  bucket: string
  credentials: () => Promise<{ accessKeyId: string; secretAccessKey: string }>
  /** The connection settings of the store's own client. */
  requestHandler: NonNullable<STSClientConfig['requestHandler']>
}

const sessionSeconds = 3600
/** A session this close to its end signs nothing any more: no grant of it may die early. */
const leastLeftMs = limits.uploadGrantMs + limits.clockSkewMsMax
/** Sessions on both sides of a revocation begin at least this far apart. */
const apartMs = 3000
const policyName = 'sluice-revoked-sessions'

export function createGrantRole(options: GrantRoleOptions): GrantRole {
  const { region, requestHandler, roleArn, bucket } = options
  const roleName = roleArn.split('/').at(-1) ?? ''
  const both = {
    region,
    requestHandler,
    // Else the clients would keep what they read first for as long as they live.
    credentials: async () => ({ ...(await options.credentials()), expiration: new Date(0) }),
  }
  const sts = new STSClient({ ...both, endpoint: options.endpoint })
  const iam = new IAMClient({ ...both, endpoint: options.iamEndpoint })
  let session: Promise<SessionCredentials> | undefined

  async function begin(): Promise<SessionCredentials> {
    const { Credentials: given } = await translate(
      sts.send(
        new AssumeRoleCommand({
          RoleArn: roleArn,
          RoleSessionName: 'sluice-grants',
          DurationSeconds: sessionSeconds,
          Policy: JSON.stringify(sessionPolicy(bucket)),
        }),
      ),
    )
    const { AccessKeyId, SecretAccessKey, SessionToken, Expiration } = given ?? {}
    if (!AccessKeyId || !SecretAccessKey || !SessionToken || !Expiration)
      throw new SluiceError('store.refused', 'the store gave no session of the role', {
        retry: 'later',
      })
    return {
      accessKeyId: AccessKeyId,
      secretAccessKey: SecretAccessKey,
      sessionToken: SessionToken,
      expiration: Expiration,
    }
  }

  return {
    async credentials() {
      const now = await session?.catch(() => undefined)
      if (now && now.expiration.getTime() - Date.now() > leastLeftMs) return now
      session = begin()
      return session
    },

    async revoke() {
      // Told by the store's own clock, which issues sessions and judges them, in whole seconds. The
      // line between old and new lies a second before the new session, and one behind the last old.
      const last = await session?.catch(() => undefined)
      let fresh = await begin()
      if (last && fresh.expiration.getTime() - last.expiration.getTime() < apartMs) {
        await pause(apartMs)
        fresh = await begin()
      }
      const lineAtMs = fresh.expiration.getTime() - sessionSeconds * 1000 - apartMs / 2
      const policy = {
        Version: '2012-10-17',
        Statement: [
          {
            Effect: 'Deny',
            Action: ['*'],
            Resource: ['*'],
            Condition: { DateLessThan: { 'aws:TokenIssueTime': secondOf(lineAtMs) } },
          },
        ],
      }
      await translate(
        iam.send(
          new PutRolePolicyCommand({
            RoleName: roleName,
            PolicyName: policyName,
            PolicyDocument: JSON.stringify(policy),
          }),
        ),
      )
      session = Promise.resolve(fresh)
    },

    async [Symbol.asyncDispose]() {
      sts.destroy()
      iam.destroy()
    },
  }
}

/** No more than a grant can need: parts and reads of sealed archives in one bucket. */
function sessionPolicy(bucket: string) {
  return {
    Version: '2012-10-17',
    Statement: [
      {
        Effect: 'Allow',
        Action: ['s3:PutObject', 's3:GetObject'],
        Resource: [`arn:aws:s3:::${bucket}/a/*`],
      },
    ],
  }
}

/** STS counts whole seconds. */
function secondOf(atMs: number): string {
  return `${new Date(atMs).toISOString().slice(0, 19)}Z`
}

/** STS and IAM of other stores than AWS answer in a shape the SDK can't read: only the status counts. */
async function translate<T>(answer: Promise<T>): Promise<T> {
  try {
    return await answer
  } catch (cause) {
    const status = (cause as { $metadata?: { httpStatusCode?: number } }).$metadata?.httpStatusCode
    const refused = status !== undefined && status < 500
    throw new SluiceError(
      refused ? 'store.refused' : 'store.unreachable',
      refused ? `the store refused the role (${status})` : 'the store does not answer for the role',
      {
        retry: 'later',
        hint: 'The access key must be in the trust policy of storage.grantRoleArn and may put policies on it.',
        cause,
      },
    )
  }
}
