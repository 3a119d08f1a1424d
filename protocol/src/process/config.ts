/** Reads one strict configuration: defaults, then a file, then the environment, checked as a whole. */
import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { open } from 'node:fs/promises'
import { z } from 'zod'
import { SluiceError } from '../errors.ts'

/** A configuration file is written by people; a larger one is a mistake. */
const fileBytesMax = 256 * 1024

/**
 * What a schema says about one of its leaves. `env` and `description` come from
 * `.meta({ env: 'SLUICE_PUBLIC_NAME', description: '…' })`.
 */
export type ConfigLeaf = {
  /** Path of keys from the root. */
  path: string[]
  /** The leaf without its optional and default wrappers. */
  schema: z.core.$ZodType
  env: string | undefined
  description: string
  /** Undefined when the leaf has none and may be left out, or must be given. */
  defaultValue: unknown
  required: boolean
}

export type ConfigMeta = { env?: string; description?: string }

/**
 * Loads a configuration. The schema is a `z.strictObject`; nested groups are `z.strictObject(…)
 * .prefault({})`. Both daemons run without a file: `file` undefined is then no error.
 *
 * @param file Path of the JSON file; lines whose first characters are `//` are comments.
 * @param overrides Values from the command line, by top-level key; undefined ones count as absent.
 * @throws SluiceError `config.invalid`, one line per problem; `host.unsafe_file` for a file that
 * others may write.
 */
export async function loadConfig<S extends z.ZodObject>(
  schema: S,
  sources: {
    file?: string | undefined
    env: Readonly<Record<string, string | undefined>>
    overrides?: Readonly<Record<string, unknown>>
  },
): Promise<z.infer<S>> {
  const values: Record<string, unknown> =
    sources.file === undefined ? {} : await readConfigFile(sources.file)
  const problems: string[] = []
  for (const leaf of configLeaves(schema)) {
    const text = leaf.env === undefined ? undefined : sources.env[leaf.env]
    if (leaf.env === undefined || text === undefined || text === '') continue
    const value = valueFromText(leaf.schema, text)
    if (value === undefined) problems.push(`${leaf.env}: not ${expectedForm(leaf.schema)}`)
    else setAt(values, leaf.path, value)
  }
  for (const [key, value] of Object.entries(sources.overrides ?? {}))
    if (value !== undefined) values[key] = value
  const parsed = schema.safeParse(values)
  if (!parsed.success) problems.push(...parsed.error.issues.map(problemLine))
  if (problems.length > 0 || !parsed.success) {
    const from = sources.file === undefined ? 'configuration' : sources.file
    throw new SluiceError('config.invalid', [`${from}:`, ...problems].join('\n  '), {
      hint: 'Compare with `config init`, which prints every key with its meaning and default.',
    })
  }
  return parsed.data
}

function problemLine(issue: z.core.$ZodIssue): string {
  const where = issue.path.map(String).join('.')
  return where === '' ? issue.message : `${where}: ${issue.message}`
}

async function readConfigFile(path: string): Promise<Record<string, unknown>> {
  const text = await readOwnFile(path)
  let value: unknown
  try {
    value = JSON.parse(withoutComments(text))
  } catch (cause) {
    throw new SluiceError('config.invalid', `${path}: not JSON: ${(cause as Error).message}`, {
      hint: 'The file is one JSON object; whole lines may be comments that start with //.',
      cause,
    })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new SluiceError('config.invalid', `${path}: not one JSON object`)
  return value as Record<string, unknown>
}

/** @throws SluiceError `host.unsafe_file` when somebody else could have written it. */
async function readOwnFile(path: string): Promise<string> {
  let file
  try {
    file = await open(path, constants.O_RDONLY)
  } catch (cause) {
    throw new SluiceError('config.invalid', `${path}: cannot be opened`, {
      hint: 'Name an existing file, or leave it out to run on defaults and environment.',
      cause,
    })
  }
  try {
    const facts = await file.stat()
    const refuse = (why: string) =>
      new SluiceError('host.unsafe_file', `${path}: ${why}`, {
        hint: 'Run: chmod go-w FILE, and let it belong to root or to the user of the process.',
      })
    if (!facts.isFile()) throw refuse('is not a regular file')
    if ((facts.mode & 0o022) !== 0) throw refuse('is writable by group or others')
    if (facts.uid !== 0 && facts.uid !== process.getuid?.()) throw refuse('belongs to someone else')
    if (facts.size > fileBytesMax) throw refuse(`is larger than ${fileBytesMax} bytes`)
    return await file.readFile('utf8')
  } finally {
    await file.close()
  }
}

/**
 * Drops whole-line comments, and the comma before a closing bracket that uncommenting leaves.
 * Works by lines: a JSON string never spans two.
 */
function withoutComments(text: string): string {
  const lines = text.split('\n').map((line) => (line.trimStart().startsWith('//') ? '' : line))
  let last = -1
  for (const [index, line] of lines.entries()) {
    const trimmed = line.trim()
    if (trimmed === '') continue
    const before = last === -1 ? '' : (lines[last] ?? '')
    if (/^[}\]]/.test(trimmed) && before.trimEnd().endsWith(','))
      lines[last] = before.trimEnd().slice(0, -1)
    last = index
  }
  return lines.join('\n')
}

/** Every leaf of a configuration schema, in the order it was written. */
export function configLeaves(schema: z.ZodObject, path: string[] = []): ConfigLeaf[] {
  return Object.entries(schema.shape).flatMap(([key, wrapped]) => {
    const found = unwrap(wrapped)
    const here = [...path, key]
    if (found.schema instanceof z.ZodObject) return configLeaves(found.schema, here)
    return [
      {
        path: here,
        schema: found.schema,
        env: found.meta.env,
        description: found.meta.description ?? '',
        defaultValue: found.defaultValue,
        required: found.required,
      },
    ]
  })
}

function unwrap(schema: z.core.$ZodType) {
  let inner = schema
  let meta: ConfigMeta = {}
  let defaultValue: unknown
  let required = true
  for (;;) {
    meta = { ...(z.globalRegistry.get(inner) as ConfigMeta | undefined), ...meta }
    if (inner instanceof z.ZodDefault || inner instanceof z.ZodPrefault) {
      defaultValue = inner.def.defaultValue
      required = false
    } else if (inner instanceof z.ZodOptional || inner instanceof z.ZodNullable) required = false
    else return { schema: inner, meta, defaultValue, required }
    inner = inner.def.innerType
  }
}

function valueFromText(schema: z.core.$ZodType, text: string): unknown {
  if (schema instanceof z.ZodNumber) {
    const value = Number(text)
    return Number.isFinite(value) && text.trim() === text ? value : undefined
  }
  if (schema instanceof z.ZodBoolean)
    return text === 'true' ? true : text === 'false' ? false : undefined
  if (schema instanceof z.ZodArray || schema instanceof z.ZodRecord) {
    try {
      return JSON.parse(text)
    } catch {
      // Told to the caller as `undefined`: the message names the variable, never its value.
      return undefined
    }
  }
  return text
}

function expectedForm(schema: z.core.$ZodType): string {
  if (schema instanceof z.ZodNumber) return 'a number'
  if (schema instanceof z.ZodBoolean) return 'true or false'
  if (schema instanceof z.ZodArray) return 'a JSON array'
  if (schema instanceof z.ZodRecord) return 'a JSON object'
  if (schema instanceof z.ZodEnum) return `one of ${schema.options.join(', ')}`
  return 'text'
}

function setAt(values: Record<string, unknown>, path: readonly string[], value: unknown): void {
  let at = values
  for (const key of path.slice(0, -1)) {
    const next = at[key]
    if (typeof next !== 'object' || next === null) at[key] = {}
    at = at[key] as Record<string, unknown>
  }
  const last = path.at(-1)
  if (last !== undefined) at[last] = value
}

/** A commented configuration file in which every key is written out, and none is set. */
export function configTemplate(schema: z.ZodObject): string {
  return `{\n${templateLines(schema, '  ').join('\n')}\n}\n`
}

function templateLines(schema: z.ZodObject, indent: string): string[] {
  return Object.entries(schema.shape).flatMap(([key, wrapped]) => {
    const found = unwrap(wrapped)
    if (found.schema instanceof z.ZodObject) {
      const inner = templateLines(found.schema, `${indent}  `)
      return [`${indent}"${key}": {`, ...inner, `${indent}},`]
    }
    const shown = found.defaultValue === undefined ? exampleOf(found.schema) : found.defaultValue
    const env = found.meta.env === undefined ? '' : ` (environment: ${found.meta.env})`
    return [
      `${indent}// ${found.meta.description ?? key}${env}`,
      `${indent}// "${key}": ${JSON.stringify(shown)},`,
    ]
  })
}

function exampleOf(schema: z.core.$ZodType): unknown {
  if (schema instanceof z.ZodNumber) return 0
  if (schema instanceof z.ZodBoolean) return false
  if (schema instanceof z.ZodArray) return []
  if (schema instanceof z.ZodRecord) return {}
  if (schema instanceof z.ZodEnum) return schema.options[0]
  return ''
}

/** The reference page of a configuration, as a Markdown table. */
export function configReference(schema: z.ZodObject): string {
  const rows = configLeaves(schema).map((leaf) => {
    const shown =
      leaf.defaultValue === undefined
        ? leaf.required
          ? 'must be set'
          : 'none'
        : `\`${JSON.stringify(leaf.defaultValue)}\``
    const env = leaf.env === undefined ? '' : `\`${leaf.env}\``
    const cells = [`\`${leaf.path.join('.')}\``, leaf.description, shown, env]
    return `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`
  })
  return [
    '| key | meaning | default | environment |',
    '| --- | --- | --- | --- |',
    ...rows,
    '',
  ].join('\n')
}

/** The JSON Schema of a configuration, for editors. */
export function configJsonSchema(schema: z.ZodObject): Record<string, unknown> {
  return z.toJSONSchema(schema, { io: 'input' }) as Record<string, unknown>
}

/**
 * The configuration in force, for people: credentials inside URLs are left out. Secrets are never
 * values of a configuration, only paths of files.
 */
export function redactedConfig(config: unknown): string {
  return JSON.stringify(config, (_key, value: unknown) => withoutCredentials(value), 2)
}

/** SHA-256, hex, of what `redactedConfig` shows: the same while the configuration is the same. */
export function configSha256(config: unknown): string {
  return createHash('sha256').update(redactedConfig(config)).digest('hex')
}

function withoutCredentials(value: unknown): unknown {
  if (typeof value !== 'string' || !URL.canParse(value)) return value
  const url = new URL(value)
  if (url.username === '' && url.password === '') return value
  url.username = 'redacted'
  url.password = ''
  return url.href
}
