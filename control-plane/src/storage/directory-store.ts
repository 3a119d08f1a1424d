/** The embedded object store: a directory, with the same signed, expiring, single-object URLs as S3. */
import { createHash, createHmac, randomBytes, timingSafeEqual } from 'node:crypto'
import { constants, createReadStream } from 'node:fs'
import {
  link,
  mkdir,
  open,
  readdir,
  readFile,
  rename,
  rm,
  rmdir,
  stat,
  statfs,
  unlink,
  writeFile,
} from 'node:fs/promises'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { dirname, join } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import type { Grant } from '@sluice/protocol/messages'
import { type ObjectKey, objectKey } from '@sluice/protocol/object-keys'
import { claimBytesMax, claimKey, claimText, refuseForeign } from './claim.ts'
import type { ObjectStore, StoredPart, StoreEntry, UploadRef } from './object-store.ts'

export const objectsPath = '/v1/objects/'

export type DirectoryStoreOptions = {
  /**
   * Made when missing, 0700. Holds `objects/<2 hex>/<hex>/`, in shards so that a million of them can be
   * listed piece by piece, and `uploads/<hex>.<upload>/`, files a part each;
   * an upload that ends gets another name first, so that no part can arrive in it any more.
   */
  folder: string
  /** Origin of the agent listener, such as `https://sluice.example:8443`. */
  origin: () => string
  now: () => number
}

export type DirectoryStore = ObjectStore & {
  /** Answers a request below `objectsPath`; what its signature does not allow is refused. */
  handleObjectRequest(request: IncomingMessage, response: ServerResponse): Promise<void>
}

/** A part's file: its number, size and MD5 are its name, so that listing needs no reading. */
const partFile = /^(\d{5})-(\d+)-([0-9a-f]{32})$/

/** Hex digits of a key that name its shard: 256 shards of some 4,000 for a million objects. */
const shardChars = 2
const shardTriesMax = 5
/** Sorts behind every key of a shard and before the next shard. */
const shardEnd = 'g'

/** What the folder of an upload is called while it ends. */
const completing = '.completing'
const ending = '.ending'

type Ticket =
  | {
      method: 'PUT'
      upload: UploadRef
      part: number
      bytes: number
      md5: string
      expiresAtMs: number
    }
  | { method: 'GET'; key: ObjectKey; expiresAtMs: number }

export async function openDirectoryStore(options: DirectoryStoreOptions): Promise<DirectoryStore> {
  const objects = join(options.folder, 'objects')
  const uploads = join(options.folder, 'uploads')
  for (const folder of [options.folder, objects, uploads])
    await mkdir(folder, { recursive: true, mode: 0o700 })
  await removeLeftovers(uploads)
  // Lives as long as this process: a restart ends every grant, and agents ask for new ones.
  let ticketKey = randomBytes(32)
  /** Transfers under way, to be cut when their grants are revoked. */
  const transfers = new Set<ServerResponse>()

  const shardOf = (key: ObjectKey) => join(objects, hexOf(key).slice(0, shardChars))
  const objectFolder = (key: ObjectKey) => join(shardOf(key), hexOf(key))
  const uploadFolder = ({ key, storeUploadId }: UploadRef) => {
    if (!/^[0-9a-f]{32}$/.test(storeUploadId))
      throw new SluiceError('store.not_found', 'no such upload')
    return join(uploads, `${hexOf(key)}.${storeUploadId}`)
  }

  function sign(ticket: Ticket): Buffer {
    return createHmac('sha256', ticketKey).update(JSON.stringify(ticket)).digest()
  }

  function grantFor(ticket: Ticket): Grant {
    const key = ticket.method === 'PUT' ? ticket.upload.key : ticket.key
    const url = new URL(objectsPath + key, options.origin())
    url.searchParams.set('expires', String(ticket.expiresAtMs))
    if (ticket.method === 'PUT') {
      url.searchParams.set('uploadId', ticket.upload.storeUploadId)
      url.searchParams.set('partNumber', String(ticket.part))
    }
    url.searchParams.set('signature', sign(ticket).toString('hex'))
    const headers =
      ticket.method === 'PUT'
        ? { 'content-length': String(ticket.bytes), 'content-md5': ticket.md5 }
        : {}
    return { url: url.href, headers, expiresAtMs: ticket.expiresAtMs }
  }

  async function listParts(upload: UploadRef): Promise<StoredPart[]> {
    return await partsIn(uploadFolder(upload))
  }

  async function abortUpload(upload: UploadRef): Promise<void> {
    await removeUpload(uploadFolder(upload))
  }

  /** Parts on their way find no folder from the rename on; else they would race with the removal. */
  async function removeUpload(folder: string): Promise<void> {
    const gone = folder.endsWith(ending) ? folder : `${folder}${ending}`
    if (gone !== folder) await renameIfThere(folder, gone)
    await rm(gone, { recursive: true, force: true })
    await syncFolder(uploads)
  }

  /** Folders of a key's uploads, also of those that were cut short while they ended. */
  async function uploadsOf(key: ObjectKey): Promise<string[]> {
    const names = await readdir(uploads)
    return names
      .filter((name) => name.startsWith(`${hexOf(key)}.`))
      .map((name) => join(uploads, name))
  }

  /** What lies beside the shards and uploads, under paths that sort before every key of ours. */
  async function strangersBeside(names: string[]): Promise<StoreEntry[]> {
    const begun = await readdir(uploads)
    const paths = [
      ...names.filter((name) => !isShard(name)).map((name) => `./objects/${name}`),
      ...begun.filter((name) => !isUpload(name)).map((name) => `./uploads/${name}`),
    ]
    return paths.toSorted().map((key) => ({ key, objects: 1, versions: 0, uploads: [] }))
  }

  /** Store ids of all uploads, by key. */
  async function openUploads(): Promise<Map<string, string[]>> {
    const found = new Map<string, string[]>()
    for (const name of await readdir(uploads)) {
      if (!isUpload(name)) continue
      const [hex = '', id = ''] = name.split('.')
      found.set(`a/${hex}`, [...(found.get(`a/${hex}`) ?? []), id])
    }
    return found
  }

  /** The shard may be taken away, being empty, between its making and its use. */
  async function moveIntoShard(folder: string, key: ObjectKey): Promise<void> {
    for (let tries = 1; ; tries += 1) {
      await mkdir(shardOf(key), { recursive: true, mode: 0o700 })
      try {
        return await rename(folder, objectFolder(key))
      } catch (error) {
        if (tries === shardTriesMax || !isMissing(error)) throw error
      }
    }
  }

  async function receivePart(
    ticket: Extract<Ticket, { method: 'PUT' }>,
    request: IncomingMessage,
  ): Promise<string> {
    const folder = uploadFolder(ticket.upload)
    const draft = join(folder, `draft-${randomBytes(8).toString('hex')}`)
    const digest = createHash('md5')
    let received = 0
    const measure = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        received += chunk.length
        digest.update(chunk)
        done(null, chunk)
      },
    })
    try {
      const file = await open(draft, 'wx', 0o600)
      await pipeline(request, measure, file.createWriteStream({ flush: true }))
      const md5 = digest.digest()
      // The parser bounds the body by Content-Length, which the signature covers.
      if (received !== ticket.bytes || md5.toString('base64') !== ticket.md5)
        throw new SluiceError('store.digest_mismatch', 'other bytes than were granted')
      const etag = md5.toString('hex')
      const name = partName(ticket.part, received, etag)
      await rename(draft, join(folder, name))
      // As in S3, a part sent again replaces the one before.
      for (const other of await readdir(folder))
        if (other !== name && other.startsWith(`${name.slice(0, 5)}-`))
          await rm(join(folder, other), { force: true })
      await syncFolder(folder)
      return etag
    } catch (error) {
      await rm(draft, { force: true })
      if (isMissing(error))
        throw new SluiceError('store.not_found', 'no such upload', { cause: error })
      throw error
    }
  }

  async function sendObject(
    key: ObjectKey,
    request: IncomingMessage,
    response: ServerResponse,
  ): Promise<void> {
    const folder = objectFolder(key)
    const parts = await partsIn(folder)
    const bytes = parts.reduce((sum, part) => sum + part.bytes, 0)
    const range = parseRange(request.headers.range, bytes)
    if (range === 'unsatisfiable') {
      response.writeHead(416, { 'content-range': `bytes */${bytes}` }).end()
      return
    }
    const { start, end } = range ?? { start: 0, end: bytes }
    response.writeHead(range ? 206 : 200, {
      'content-length': end - start,
      'content-type': 'application/octet-stream',
      'accept-ranges': 'bytes',
      ...(range ? { 'content-range': `bytes ${start}-${end - 1}/${bytes}` } : {}),
    })
    let offset = 0
    for (const part of parts) {
      const from = Math.max(start - offset, 0)
      const to = Math.min(end - offset, part.bytes)
      if (from < to) {
        const file = createReadStream(join(folder, partName(part.part, part.bytes, part.etag)), {
          start: from,
          end: to - 1,
          highWaterMark: 1024 * 1024,
        })
        await pipeline(file, response, { end: false })
      }
      offset += part.bytes
    }
    response.end()
  }

  return translatingErrors({
    kind: 'directory',
    level: 'none',

    async check() {
      await statfs(options.folder)
      return { versioned: false, locks: false }
    },

    async claim({ id, mark }) {
      const path = join(options.folder, claimKey)
      if (mark && (await stat(path).catch(unlessMissing)) === undefined)
        await writeOnce(path, claimText(id))
      const facts = await stat(path).catch(unlessMissing)
      if (facts === undefined) return
      const isShort = facts.size <= claimBytesMax
      refuseForeign(isShort ? await readFile(path, 'utf8') : '', id, path)
    },

    async createUpload(key) {
      const storeUploadId = randomBytes(16).toString('hex')
      await mkdir(uploadFolder({ key, storeUploadId }), { mode: 0o700 })
      await syncFolder(uploads)
      return storeUploadId
    },

    listParts,

    async grantPart(upload, { part, bytes, md5, lifeMs }) {
      return grantFor({
        method: 'PUT',
        upload: { key: upload.key, storeUploadId: upload.storeUploadId },
        part,
        bytes,
        md5,
        expiresAtMs: options.now() + lifeMs,
      })
    },

    async completeUpload(upload, parts) {
      const begun = uploadFolder(upload)
      const wanted = new Map(parts.map(({ part, etag }) => [part, etag]))
      const matching = async (folder: string) => {
        const held = await partsIn(folder)
        const matched = held.filter(({ part, etag }) => wanted.get(part) === etag)
        if (matched.length !== wanted.size)
          throw new SluiceError('store.refused', 'a part is missing or has other bytes')
        return matched
      }
      await matching(begun)
      const folder = `${begun}${completing}`
      await rename(begun, folder)
      try {
        // Now that no part can arrive any more: one may have until a moment ago.
        const matched = await matching(folder)
        for (const name of await readdir(folder)) {
          const keep = matched.some(({ part, bytes, etag }) => name === partName(part, bytes, etag))
          if (!keep) await unlink(join(folder, name))
        }
        await syncFolder(folder)
        await moveIntoShard(folder, upload.key)
      } catch (error) {
        await renameIfThere(folder, begun)
        throw error
      }
      await syncFolder(shardOf(upload.key))
      await syncFolder(objects)
      await syncFolder(uploads)
    },

    abortUpload,

    async head(key) {
      try {
        const parts = await partsIn(objectFolder(key))
        return { bytes: parts.reduce((sum, part) => sum + part.bytes, 0) }
      } catch (error) {
        if (error instanceof SluiceError && error.code === 'store.not_found') return undefined
        throw error
      }
    },

    async grantRead(key, lifeMs) {
      return grantFor({ method: 'GET', key, expiresAtMs: options.now() + lifeMs })
    },

    async deleteAll(key) {
      for (const upload of await uploadsOf(key)) await removeUpload(upload)
      await rm(objectFolder(key), { recursive: true, force: true })
      await syncFolderIfThere(shardOf(key))
      await removeIfEmpty(shardOf(key))
      await syncFolder(objects)
    },

    async revokeGrants() {
      const old = ticketKey
      ticketKey = randomBytes(32)
      old.fill(0)
      for (const response of transfers) response.destroy()
      return true
    },

    async remains(key) {
      const there = await stat(objectFolder(key)).then(
        () => 1,
        (error: unknown) => {
          if (isMissing(error)) return 0
          throw error
        },
      )
      return { objects: there, versions: 0, uploads: (await uploadsOf(key)).length }
    },

    async list(after = '') {
      const names = await readdir(objects)
      const shards = names.filter((name) => isShard(name) && after < `a/${name}${shardEnd}`)
      const begun = await openUploads()
      const keys = [...begun.keys()].filter((key) => after < key)
      const strangers = after === '' ? await strangersBeside(names) : []
      const first = [...shards.map((name) => `a/${name}`), ...keys].toSorted()[0]
      if (first === undefined) return { entries: strangers }
      const shard = first.slice(0, 'a/'.length + shardChars)
      const end = `${shard}${shardEnd}`
      const entries = new Map<string, StoreEntry>()
      for (const name of await readdirIfThere(join(objects, shard.slice('a/'.length)))) {
        const own = isHex(name) && `a/${name}`.startsWith(shard)
        const key = own ? `a/${name}` : `${shard}/${name}`
        entries.set(key, { key, objects: 1, versions: 0, uploads: [] })
      }
      for (const [key, ids] of begun) {
        if (!key.startsWith(shard)) continue
        const entry = entries.get(key) ?? { key, objects: 0, versions: 0, uploads: [] }
        entries.set(key, { ...entry, uploads: ids })
      }
      const inOrder = [...entries.keys()].toSorted().filter((key) => after < key)
      const more = [...shards.map((name) => `a/${name}`), ...keys].some((key) => key > end)
      return {
        entries: [...strangers, ...inOrder.map((key) => entries.get(key)!)],
        ...(more ? { next: end } : {}),
      }
    },

    async handleObjectRequest(request, response) {
      try {
        const ticket = readTicket(request)
        const shown = Buffer.from(signatureOf(request), 'hex')
        const right = sign(ticket)
        if (shown.length !== right.length || !timingSafeEqual(shown, right))
          throw new SluiceError('access.forbidden', 'the signature does not match')
        if (ticket.expiresAtMs <= options.now())
          throw new SluiceError('access.forbidden', 'the grant has expired')
        transfers.add(response)
        response.once('close', () => transfers.delete(response))
        if (ticket.method === 'GET') {
          await sendObject(ticket.key, request, response)
          return
        }
        const etag = await receivePart(ticket, request)
        response.writeHead(200, { etag: `"${etag}"`, 'content-length': 0 }).end()
      } catch (error) {
        refuse(response, error)
      }
    },

    async [Symbol.asyncDispose]() {
      ticketKey.fill(0)
    },
  })
}

function unlessMissing(error: unknown): undefined {
  if (!isMissing(error)) throw error
}

/** Durable before its name is there; what is there already stays. */
async function writeOnce(path: string, text: string): Promise<void> {
  const draft = `${path}.${randomBytes(8).toString('hex')}`
  try {
    await writeFile(draft, text, { mode: 0o600, flag: 'wx', flush: true })
    await link(draft, path)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error
  } finally {
    await rm(draft, { force: true })
  }
  await syncFolder(dirname(path))
}

/** A disk that fails is a store that fails: whoever asked tries again, as with any other store. */
function translatingErrors(store: DirectoryStore): DirectoryStore {
  return {
    ...store,
    check: () => translate(store.check()),
    claim: (owner) => translate(store.claim(owner)),
    createUpload: (key) => translate(store.createUpload(key)),
    listParts: (upload) => translate(store.listParts(upload)),
    completeUpload: (upload, parts) => translate(store.completeUpload(upload, parts)),
    abortUpload: (upload) => translate(store.abortUpload(upload)),
    head: (key) => translate(store.head(key)),
    deleteAll: (key) => translate(store.deleteAll(key)),
    remains: (key) => translate(store.remains(key)),
    list: (after) => translate(store.list(after)),
  }
}

async function translate<T>(work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (cause) {
    const { code, errno } = cause as NodeJS.ErrnoException
    if (cause instanceof SluiceError || errno === undefined) throw cause
    const full = code === 'ENOSPC' || code === 'EDQUOT'
    throw new SluiceError(
      full ? 'host.disk_full' : 'store.unreachable',
      `the directory of the object store fails (${code})`,
      { retry: 'later', hint: 'Look at the disk that holds it.', cause },
    )
  }
}

/** What a request asks for, taken from the same places that the signature covers. */
function readTicket(request: IncomingMessage): Ticket {
  const url = new URL(request.url ?? '/', 'https://store.invalid')
  const key = objectKey.safeParse(url.pathname.slice(objectsPath.length))
  const expiresAtMs = Number(url.searchParams.get('expires'))
  if (!key.success || !Number.isSafeInteger(expiresAtMs))
    throw new SluiceError('request.invalid', 'not a grant of this store')
  if (request.method === 'GET') return { method: 'GET', key: key.data, expiresAtMs }
  const part = Number(url.searchParams.get('partNumber'))
  const bytes = Number(request.headers['content-length'])
  const md5 = request.headers['content-md5']
  const possible =
    request.method === 'PUT' &&
    Number.isSafeInteger(part) &&
    Number.isSafeInteger(bytes) &&
    bytes <= limits.partBytesMax &&
    typeof md5 === 'string'
  if (!possible) throw new SluiceError('request.invalid', 'not a grant of this store')
  const storeUploadId = url.searchParams.get('uploadId') ?? ''
  return { method: 'PUT', upload: { key: key.data, storeUploadId }, part, bytes, md5, expiresAtMs }
}

function signatureOf(request: IncomingMessage): string {
  const url = new URL(request.url ?? '/', 'https://store.invalid')
  return url.searchParams.get('signature') ?? ''
}

const statusOfCode = {
  'access.forbidden': 403,
  'request.invalid': 400,
  'store.digest_mismatch': 400,
  'store.not_found': 404,
} as Record<string, number>

function refuse(response: ServerResponse, error: unknown): void {
  // The client went away, or an answer had begun: only the connection can tell it.
  if (response.headersSent || response.destroyed) {
    response.destroy()
    if (error instanceof SluiceError || isConnectionEnd(error)) return
    throw error
  }
  if (!(error instanceof SluiceError)) {
    response.writeHead(500, { connection: 'close' }).end()
    throw error
  }
  response
    .writeHead(statusOfCode[error.code] ?? 500, {
      'content-type': 'text/plain',
      connection: 'close',
    })
    .end(`${error.code}\n`)
}

function isConnectionEnd(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException).code
  return code === 'ERR_STREAM_PREMATURE_CLOSE' || code === 'ECONNRESET' || code === 'EPIPE'
}

/** RFC 9110, section 14: one `bytes` range; anything else is answered whole. `end` is exclusive. */
function parseRange(
  header: string | undefined,
  bytes: number,
): { start: number; end: number } | 'unsatisfiable' | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '')
  if (!match || (match[1] === '' && match[2] === '')) return undefined
  const first = match[1] === '' ? Math.max(bytes - Number(match[2]), 0) : Number(match[1])
  const last =
    match[1] === '' || match[2] === '' ? bytes - 1 : Math.min(Number(match[2]), bytes - 1)
  if (first >= bytes || last < first) return 'unsatisfiable'
  return { start: first, end: last + 1 }
}

/** Parts in order. Of two with one number (a crash between write and clean-up) both are listed. */
async function partsIn(folder: string): Promise<StoredPart[]> {
  let names: string[]
  try {
    names = await readdir(folder)
  } catch (error) {
    if (isMissing(error))
      throw new SluiceError('store.not_found', 'not in the store', { cause: error })
    throw error
  }
  return names
    .toSorted()
    .map((name) => partFile.exec(name))
    .filter((match) => match !== null)
    .map((match) => ({ part: Number(match[1]), bytes: Number(match[2]), etag: match[3] ?? '' }))
}

function partName(part: number, bytes: number, etag: string): string {
  return `${String(part).padStart(5, '0')}-${bytes}-${etag}`
}

function isShard(name: string): boolean {
  return /^[0-9a-f]{2}$/.test(name)
}

function isHex(name: string): boolean {
  return /^[0-9a-f]{32}$/.test(name)
}

/** `<hex>.<upload>`, and what it is called while it ends. */
function isUpload(name: string): boolean {
  return /^[0-9a-f]{32}\.[0-9a-f]{32}(\.|$)/.test(name)
}

function hexOf(key: ObjectKey): string {
  return key.slice('a/'.length)
}

/** What a killed process left: half-received parts, uploads half ended, and half completed ones. */
async function removeLeftovers(uploads: string): Promise<void> {
  for (const entry of await readdir(uploads, { withFileTypes: true })) {
    const found = entry.name
    // What is not ours stays as it is; the sweep tells of it.
    if (!entry.isDirectory() || !isUpload(found)) continue
    const folder = join(uploads, found)
    if (found.endsWith(ending)) {
      await rm(folder, { recursive: true, force: true })
      continue
    }
    for (const name of await readdir(folder))
      if (name.startsWith('draft-')) await unlink(join(folder, name))
    if (found.endsWith(completing)) await rename(folder, folder.slice(0, -completing.length))
  }
}

async function renameIfThere(from: string, to: string): Promise<void> {
  try {
    await rename(from, to)
  } catch (error) {
    if (!isMissing(error)) throw error
  }
}

/** Makes renames and unlinks in a folder durable (fsync(2) on the directory). */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

async function syncFolderIfThere(folder: string): Promise<void> {
  try {
    await syncFolder(folder)
  } catch (error) {
    if (!isMissing(error)) throw error
  }
}

async function removeIfEmpty(folder: string): Promise<void> {
  try {
    await rmdir(folder)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code !== 'ENOTEMPTY' && code !== 'EEXIST' && code !== 'ENOENT') throw error
  }
}

async function readdirIfThere(folder: string): Promise<string[]> {
  try {
    return await readdir(folder)
  } catch (error) {
    if (isMissing(error)) return []
    throw error
  }
}

function isMissing(error: unknown): boolean {
  return (error as NodeJS.ErrnoException).code === 'ENOENT'
}
