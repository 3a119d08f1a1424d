import assert from 'node:assert/strict'
import { chmod, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, it } from 'node:test'
import { z } from 'zod'
import {
  configReference,
  configSha256,
  configTemplate,
  loadConfig,
  redactedConfig,
} from './config.ts'

const schema = z.strictObject({
  port: z
    .int()
    .min(0)
    .max(65535)
    .default(8443)
    .meta({ env: 'EXAMPLE_PORT', description: 'Port to listen on.' }),
  name: z.string().min(1).optional().meta({ env: 'EXAMPLE_NAME', description: 'A name.' }),
  hosts: z.array(z.string()).default([]).meta({ env: 'EXAMPLE_HOSTS', description: 'Hosts.' }),
  store: z
    .strictObject({
      kind: z.enum(['directory', 's3']).default('directory').meta({
        env: 'EXAMPLE_STORE_KIND',
        description: 'Which | store.',
      }),
      pathStyle: z.boolean().default(false).meta({ env: 'EXAMPLE_PATH_STYLE', description: 'P.' }),
    })
    .prefault({}),
})

describe('configuration', () => {
  let folder = ''
  before(async () => {
    folder = await mkdtemp(join(tmpdir(), 'sluice-config-'))
  })
  after(() => rm(folder, { recursive: true }))

  async function file(text: string, mode = 0o644): Promise<string> {
    const path = join(folder, 'config.json')
    await rm(path, { force: true })
    await writeFile(path, text)
    await chmod(path, mode)
    return path
  }

  it('runs on defaults without a file', async () => {
    assert.deepEqual(await loadConfig(schema, { env: {} }), {
      port: 8443,
      hosts: [],
      store: { kind: 'directory', pathStyle: false },
    })
  })

  it('takes the file over defaults, the environment over the file, the command line over all', async () => {
    const path = await file('{"port": 1, "name": "file", "store": {"kind": "s3"}}')
    const env = { EXAMPLE_PORT: '2', EXAMPLE_PATH_STYLE: 'true', EXAMPLE_HOSTS: '["a"]' }
    const config = await loadConfig(schema, { file: path, env, overrides: { name: 'argument' } })
    assert.deepEqual(config, {
      port: 2,
      name: 'argument',
      hosts: ['a'],
      store: { kind: 's3', pathStyle: true },
    })
  })

  it('tells every problem in a line of its own and names the key', async () => {
    const path = await file('{"prot": 1, "port": "x", "store": {"kind": "tape"}}')
    await assert.rejects(loadConfig(schema, { file: path, env: { EXAMPLE_PATH_STYLE: 'on' } }), {
      code: 'config.invalid',
      message: /EXAMPLE_PATH_STYLE: not true or false\n.*port: .*\n.*store\.kind: .*\n.*"prot"/,
    })
  })

  it('never repeats a value from the environment in a message', async () => {
    const env = { EXAMPLE_PORT: 'hunter2' }
    await assert.rejects(loadConfig(schema, { env }), (error: Error) => {
      assert.doesNotMatch(error.message, /hunter2/)
      return true
    })
  })

  it('refuses a file that others may write', async () => {
    const path = await file('{}', 0o666)
    await assert.rejects(loadConfig(schema, { file: path, env: {} }), { code: 'host.unsafe_file' })
  })

  it('refuses text that is not one JSON object', async () => {
    for (const text of ['', '[]', '{', 'null', '{} {}'])
      await assert.rejects(
        loadConfig(schema, { file: await file(text), env: {} }),
        { code: 'config.invalid' },
        text,
      )
  })

  it('prints a template that loads as it is, and with every line uncommented', async () => {
    const template = configTemplate(schema)
    const asIs = await loadConfig(schema, { file: await file(template), env: {} })
    assert.equal(asIs.port, 8443)
    const uncommented = template
      .replaceAll(/^(\s*)\/\/ (".*)$/gm, '$1$2')
      .replace('"name": ""', '"name": "x"')
    const all = await loadConfig(schema, { file: await file(uncommented), env: {} })
    assert.deepEqual(all, { ...asIs, name: 'x' })
  })

  it('prints a reference table with default and variable of each key', () => {
    assert.match(
      configReference(schema),
      /\| `store\.kind` \| Which \\\| store\. \| `"directory"` \| `EXAMPLE_STORE_KIND` \|/,
    )
  })

  it('leaves credentials in URLs out of what it prints', () => {
    const shown = redactedConfig({ endpoint: 'https://me:hunter2@host/x', plain: 'https://host/' })
    assert.doesNotMatch(shown, /hunter2|me:/)
    assert.match(shown, /"https:\/\/host\/"/)
  })

  it('has one digest for one configuration, whatever its credentials', () => {
    const digest = configSha256({ endpoint: 'https://me:hunter2@host/x' })
    assert.equal(configSha256({ endpoint: 'https://me:hunter3@host/x' }), digest)
    assert.notEqual(configSha256({ endpoint: 'https://me:hunter2@host/y' }), digest)
  })
})
