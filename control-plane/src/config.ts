/** The configuration of the control plane: one strict schema, with defaults that run on one host. */
import { z } from 'zod'
import { limits } from '@sluice/protocol/limits'
import { replicaName } from '@sluice/protocol/receipt'

const path = z.string().min(1).max(4096)
const port = z.int().min(0).max(65_535)
const duration = z.int().positive()

const httpsOrigin = z.url({ protocol: /^https$/ })
const region = z.string().max(64).default('us-east-1')
const bucket = z.string().regex(/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/, 'not a bucket name')

/** A bucket that the operator's own replication copies to. */
const replica = z.strictObject({
  name: replicaName,
  endpoint: httpsOrigin,
  bucket,
  region,
  pathStyle: z.boolean().default(true),
  caFile: path.optional(),
  credentialsFile: path,
})

/** Host names and addresses, as they may stand in a certificate. */
const hostName = z
  .string()
  .max(253)
  .regex(/^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$/, 'not a host name or address')

export const controlPlaneConfig = z
  .strictObject({
    dataDir: path.default('/var/lib/sluice').meta({
      env: 'SLUICE_DATA_DIR',
      description: 'Where database, keys and objects live, 0700.',
    }),
    publicName: hostName.optional().meta({
      env: 'SLUICE_PUBLIC_NAME',
      description: 'Name under which agents and operators reach this host. Absent: loopback only.',
    }),
    listenAddress: hostName.optional().meta({
      env: 'SLUICE_LISTEN_ADDRESS',
      description:
        'Address to listen on. Absent: 127.0.0.1 without publicName, else every address.',
    }),
    agentPort: port.default(8443).meta({
      env: 'SLUICE_AGENT_PORT',
      description: 'Port for agents; 0 takes any free one.',
    }),
    operatorPort: port.default(8444).meta({
      env: 'SLUICE_OPERATOR_PORT',
      description: 'Port for operators and for joining; 0 takes any free one.',
    }),
    insecureLoopbackHttp: z.boolean().default(false).meta({
      env: 'SLUICE_INSECURE_LOOPBACK_HTTP',
      description: 'Serve operators plain HTTP; only on loopback, and only when asked for.',
    }),
    storage: z
      .strictObject({
        kind: z.enum(['directory', 's3']).default('directory').meta({
          env: 'SLUICE_STORAGE_KIND',
          description: 'A folder of the data directory, or any S3.',
        }),
        endpoint: httpsOrigin
          .optional()
          .meta({ env: 'SLUICE_STORAGE_ENDPOINT', description: 'S3: origin, https only.' }),
        region: region.meta({
          env: 'SLUICE_STORAGE_REGION',
          description: 'S3: region to sign for.',
        }),
        bucket: bucket.optional().meta({
          env: 'SLUICE_STORAGE_BUCKET',
          description: 'S3: bucket; versions and locks are dealt with.',
        }),
        pathStyle: z.boolean().default(true).meta({
          env: 'SLUICE_STORAGE_PATH_STYLE',
          description: 'S3: bucket in the path; AWS itself wants false.',
        }),
        caFile: path.optional().meta({
          env: 'SLUICE_STORAGE_CA_FILE',
          description: 'S3: PEM of authorities to trust beside those of the system.',
        }),
        credentialsFile: path.optional().meta({
          env: 'SLUICE_STORAGE_CREDENTIALS_FILE',
          description: 'S3: file of access key and secret key, 0600; read anew when it changes.',
        }),
        grantRoleArn: z
          .string()
          .max(512)
          .regex(/^arn:aws:iam::\d*:role\/.+$/, 'not the ARN of a role')
          .optional()
          .meta({
            env: 'SLUICE_STORAGE_GRANT_ROLE_ARN',
            description:
              'S3: role whose sessions sign grants, so that they can be revoked at once. Absent: the access key itself signs.',
          }),
        iamEndpoint: z
          .url({ protocol: /^https$/ })
          .optional()
          .meta({
            env: 'SLUICE_STORAGE_IAM_ENDPOINT',
            description: 'S3: origin of IAM for grantRoleArn. Absent: the endpoint itself.',
          }),
        replicas: z.array(replica).max(8).default([]).meta({
          env: 'SLUICE_STORAGE_REPLICAS',
          description:
            'S3: buckets your own replication copies to; each with name, endpoint, bucket, region, pathStyle, caFile, credentialsFile.',
        }),
        replicaSettleMinutes: z.int().min(0).max(10_080).default(15).meta({
          env: 'SLUICE_STORAGE_REPLICA_SETTLE_MINUTES',
          description: 'S3: how long a copy may be under way; replicas are looked at after it.',
        }),
      })
      .prefault({}),
    failedJobKeepMs: duration.default(limits.failedJobKeepMsDefault).meta({
      env: 'SLUICE_FAILED_JOB_KEEP_MS',
      description: 'How long a failed job stays for a retry, in milliseconds.',
    }),
    offlineMaxMs: duration.default(limits.offlineMsMaxDefault).meta({
      env: 'SLUICE_OFFLINE_MAX_MS',
      description:
        'How long a capture host may go on sealing without contact, and its unfinished jobs wait for it, in milliseconds.',
    }),
    keys: z
      .strictObject({
        store: z.enum(['file', 'pkcs11']).default('file').meta({
          env: 'SLUICE_KEYS_STORE',
          description: 'Where epoch keys live: a file of the data directory, or an HSM.',
        }),
        pkcs11: z
          .strictObject({
            library: path.optional().meta({
              env: 'SLUICE_KEYS_PKCS11_LIBRARY',
              description: "HSM: the vendor's PKCS#11 library.",
            }),
            tokenLabel: z.string().min(1).max(32).optional().meta({
              env: 'SLUICE_KEYS_PKCS11_TOKEN_LABEL',
              description: 'HSM: label of the token that wraps epoch keys.',
            }),
            pinFile: path.optional().meta({
              env: 'SLUICE_KEYS_PKCS11_PIN_FILE',
              description: "HSM: file of the token user's PIN, 0600.",
            }),
          })
          .prefault({}),
      })
      .prefault({}),
    purge: z
      .strictObject({
        aloneJobsMax: z.int().min(0).default(limits.purgeAloneJobsMaxDefault).meta({
          env: 'SLUICE_PURGE_ALONE_JOBS_MAX',
          description: 'Jobs that one person may purge within 24 hours; more take a second person.',
        }),
      })
      .prefault({}),
    sweep: z
      .strictObject({
        everyHours: z.int().min(1).max(720).default(24).meta({
          env: 'SLUICE_SWEEP_EVERY_HOURS',
          description: 'How often what there is is compared with what there should be, in hours.',
        }),
        graceHours: z.int().min(1).max(720).default(72).meta({
          env: 'SLUICE_SWEEP_GRACE_HOURS',
          description: 'How long an orphan rests in quarantine before it is deleted, in hours.',
        }),
      })
      .prefault({}),
    alerts: z
      .strictObject({
        webhook: z
          .strictObject({
            url: z
              .url({ protocol: /^https?$/ })
              .refine((url) => isPlainOnlyToLoopback(url), 'plain http is for loopback only')
              .optional()
              .meta({
                env: 'SLUICE_ALERTS_WEBHOOK_URL',
                description: 'Where alerts are posted, https. Absent: they are only listed.',
              }),
            secretFile: path.optional().meta({
              env: 'SLUICE_ALERTS_WEBHOOK_SECRET_FILE',
              description: 'File of the key that signs alerts: 24 to 64 raw bytes, 0600.',
            }),
            caFile: path.optional().meta({
              env: 'SLUICE_ALERTS_WEBHOOK_CA_FILE',
              description: 'PEM of authorities to trust instead of those of the system.',
            }),
          })
          .prefault({}),
      })
      .prefault({}),
    auditSink: z
      .strictObject({
        file: path.optional().meta({
          env: 'SLUICE_AUDIT_SINK_FILE',
          description: 'Every audit event is appended to it; outside dataDir. Absent: none.',
        }),
      })
      .prefault({}),
    allowSwap: z.boolean().default(false).meta({
      env: 'SLUICE_ALLOW_SWAP',
      description: 'Start although swap is on; keys may then reach a disk.',
    }),
    logLevel: z.enum(['error', 'warning', 'info', 'debug']).default('info').meta({
      env: 'SLUICE_LOG_LEVEL',
      description: 'Least severe events that are logged.',
    }),
  })
  .refine((config) => !config.insecureLoopbackHttp || isLoopback(listenAddressOf(config)), {
    path: ['insecureLoopbackHttp'],
    message: 'plain HTTP is for loopback only: remove it, or listenAddress and publicName',
  })
  .refine((config) => config.publicName !== undefined || isLoopback(listenAddressOf(config)), {
    path: ['publicName'],
    message: 'must be set to be reached from other hosts',
  })
  .refine(
    ({ alerts: { webhook } }) => (webhook.url === undefined) === (webhook.secretFile === undefined),
    { path: ['alerts', 'webhook'], message: 'url and secretFile go together' },
  )
  .superRefine(({ keys }, context) => {
    const set = Object.values(keys.pkcs11).some((value) => value !== undefined)
    if (keys.store !== 'pkcs11' && !set) return
    for (const key of ['library', 'tokenLabel', 'pinFile'] as const)
      if (keys.pkcs11[key] === undefined)
        context.addIssue({
          code: 'custom',
          path: ['keys', 'pkcs11', key],
          message: 'must be set for an HSM',
        })
  })
  .refine(({ storage: { kind, replicas } }) => kind === 's3' || replicas.length === 0, {
    path: ['storage', 'replicas'],
    message: 'only an S3 bucket is replicated',
  })
  .refine(
    ({ storage: { replicas } }) =>
      new Set(replicas.map(({ name }) => name)).size === replicas.length,
    {
      path: ['storage', 'replicas'],
      message: 'two replicas have one name',
    },
  )
  .refine(
    ({ storage: { endpoint, bucket: own, replicas } }) => {
      const all = [...replicas, { endpoint, bucket: own }].map(
        (one) => `${one.endpoint} ${one.bucket}`,
      )
      return new Set(all).size === all.length
    },
    { path: ['storage', 'replicas'], message: 'one bucket is named twice' },
  )
  .superRefine((config, context) => {
    if (config.storage.kind !== 's3') return
    for (const key of ['endpoint', 'bucket', 'credentialsFile'] as const)
      if (config.storage[key] === undefined)
        context.addIssue({
          code: 'custom',
          path: ['storage', key],
          message: 'must be set for storage.kind s3',
        })
  })

export type ControlPlaneConfig = z.infer<typeof controlPlaneConfig>

type Names = { listenAddress?: string | undefined; publicName?: string | undefined }

/** The address to listen on. */
export function listenAddressOf(config: Names): string {
  if (config.listenAddress !== undefined) return config.listenAddress
  return config.publicName === undefined || isLoopback(config.publicName) ? '127.0.0.1' : '::'
}

/** Whether only this host can reach the address. */
export function isLoopback(address: string): boolean {
  return address === 'localhost' || address === '::1' || /^127(\.\d{1,3}){3}$/.test(address)
}

function isPlainOnlyToLoopback(text: string): boolean {
  const { protocol, hostname } = new URL(text)
  return protocol === 'https:' || isLoopback(hostname.replace(/^\[(.*)\]$/, '$1'))
}

/** The name that URLs carry, and every name that server certificates are made for. */
export function publicNamesOf(config: Names): {
  name: string
  names: string[]
} {
  const name = config.publicName ?? '127.0.0.1'
  if (!isLoopback(name)) return { name, names: [name] }
  return { name, names: [...new Set([name, 'localhost', '127.0.0.1', '::1'])] }
}
