/** Opens the store that the configuration asks for and its replicas, each checked and known as ours. */
import { readFile } from 'node:fs/promises'
import { SluiceError } from '@sluice/protocol/errors'
import type { ControlPlaneConfig } from '../config.ts'
import type { Database } from '../database/database.ts'
import { type CheckedStore, checkedStore } from './checked-store.ts'
import { type DirectoryStore, openDirectoryStore } from './directory-store.ts'
import type { ObjectStore } from './object-store.ts'
import { readS3Credentials } from './s3-credentials.ts'
import { ownControlPlaneId } from './store.ts'

export type Stores = AsyncDisposable & {
  store: ObjectStore & CheckedStore
  /** By name. */
  replicas: ReadonlyMap<string, ObjectStore & CheckedStore>
  /** Answers requests for objects, when they live in a directory. */
  objects?: DirectoryStore['handleObjectRequest'] | undefined
}

/**
 * @param on.folder Where the objects of a directory store lie.
 * @param on.origin Of the listener that answers for it, once that is open.
 * @param on.report Is told that a store does not answer, which is no reason to stay away.
 * @throws SluiceError `config.invalid`; what `checkedStore` throws.
 */
export async function openStores(
  config: ControlPlaneConfig['storage'],
  on: {
    folder: string
    origin: () => string
    database: Database
    now: () => number
    report: (problem: SluiceError) => void
  },
): Promise<Stores> {
  const { database, now, report } = on
  await using opened = new AsyncDisposableStack()
  const { store, objects } = await openStore(config, on)
  opened.use(store)
  const id = await ownControlPlaneId(database, now())
  const checked = await checkedStore(store, { id, mark: true }, report)
  const replicas = new Map<string, ObjectStore & CheckedStore>()
  for (const { name, store: copy } of await openReplicas(config, now))
    // Its mark comes with everything else that is copied there.
    replicas.set(name, await checkedStore(opened.use(copy), { id, mark: false }, report))
  const open = opened.move()
  return {
    ...{ store: checked, replicas, objects },
    [Symbol.asyncDispose]: () => open.disposeAsync(),
  }
}

async function openStore(
  config: ControlPlaneConfig['storage'],
  { folder, origin, now }: { folder: string; origin: () => string; now: () => number },
): Promise<{ store: ObjectStore; objects?: DirectoryStore['handleObjectRequest'] }> {
  if (config.kind === 'directory') {
    const store = await openDirectoryStore({ folder, origin, now })
    return { store, objects: (request, response) => store.handleObjectRequest(request, response) }
  }
  const { endpoint, bucket, credentialsFile, replicas } = config
  if (endpoint === undefined || bucket === undefined || credentialsFile === undefined)
    throw new SluiceError(
      'config.invalid',
      'storage.kind s3 needs endpoint, bucket, credentialsFile',
    )
  const place = { ...config, endpoint, bucket, credentialsFile }
  const copiedTo = replicas.map((replica) => replica.bucket)
  const { grantRoleArn: roleArn, iamEndpoint = endpoint } = config
  const grantRole = roleArn === undefined ? undefined : { roleArn, iamEndpoint }
  return { store: await openBucket(place, { now, copiedTo, grantRole }) }
}

type Replica = ControlPlaneConfig['storage']['replicas'][number]

/** The buckets that the store is replicated to, which may be replicated to each other and back. */
async function openReplicas(
  { bucket, replicas }: ControlPlaneConfig['storage'],
  now: () => number,
): Promise<{ name: string; store: ObjectStore }[]> {
  const copiedTo = [bucket ?? [], replicas.map((replica) => replica.bucket)].flat(2)
  return Promise.all(
    replicas.map(async (replica) => ({
      name: replica.name,
      store: await openBucket(replica, { now, copiedTo }),
    })),
  )
}

async function openBucket(
  place: Omit<Replica, 'name'>,
  options: {
    now: () => number
    copiedTo: readonly string[]
    grantRole?: { roleArn: string; iamEndpoint: string } | undefined
  },
): Promise<ObjectStore> {
  const { endpoint, bucket, region, pathStyle, caFile, credentialsFile } = place
  // Who keeps objects in a directory does not load three clients of S3 at every start.
  const { createS3Store } = await import('./s3-store.ts')
  return createS3Store({
    ...{ endpoint, bucket, region, forcePathStyle: pathStyle },
    ...(caFile === undefined ? {} : { authorities: await readFile(caFile, 'utf8') }),
    credentials: () => readS3Credentials(credentialsFile),
    ...options,
  })
}
