import assert from 'node:assert/strict'
import { readFile, writeFile } from 'node:fs/promises'
import { describe, it } from 'node:test'
import { agentConfig } from '@sluice/agent/config'
import { rolesTable } from '@sluice/control-plane/access/rules'
import { controlPlaneConfig } from '@sluice/control-plane/config'
import { errorCodes } from '@sluice/protocol/errors'
import { configReference } from '@sluice/protocol/process/config'

const folder = new URL('../../../docs/operate/', import.meta.url)

/** Pages that are made from the code, whole. */
const pages: Record<string, () => string> = {
  'configure.md': () =>
    [
      '# Configure',
      '',
      'Both daemons run without a file. `sluice config init` and `sluice-agent config init` print one',
      'with every key; `config check` prints what would be in force. A value comes from the default,',
      'then the file (`--config FILE`), then the environment, then the command line; the later one wins.',
      'The file is one JSON object whose whole lines may be comments that start with `//`. An unknown',
      'key, a contradiction, or a file that others may write stops the start. Secrets are never values',
      'here: keys that end in `File` name files of mode 0600.',
      '',
      '## Control plane (`sluice serve`)',
      '',
      configReference(controlPlaneConfig),
      '## Agent (`sluice-agent run`)',
      '',
      configReference(agentConfig),
    ].join('\n'),
  'roles.md': () =>
    [
      '# Roles',
      '',
      'A right is a role on a site, or on all of them (`*`). Roles do not nest: `viewer` reads,',
      '`operator` runs jobs and agents, `security` revokes and audits but does not submit. A principal',
      'may hold several. What lies on another site is as unknown as what never was. The control plane',
      'decides by this very table; a route that is not in it does not exist.',
      '',
      rolesTable(),
    ].join('\n'),
}

describe('pages made from the code', () => {
  for (const [name, page] of Object.entries(pages))
    it(`${name} says what the code does`, async () => {
      const path = new URL(name, folder)
      // SLUICE_WRITE_DOCUMENTS=1 writes the page instead of comparing it.
      if (process.env['SLUICE_WRITE_DOCUMENTS'] === '1') await writeFile(path, page())
      assert.equal(await readFile(path, 'utf8'), page())
    })
})

describe('error codes', () => {
  it('are all explained, and only they', async () => {
    const text = await readFile(new URL('errors.md', folder), 'utf8')
    const explained = [...text.matchAll(/^\| `([a-z_.]+)` \| \S/gm)].map(([, code]) => code)
    assert.equal(explained.length, errorCodes.length)
    assert.deepEqual(new Set(explained), new Set(errorCodes))
  })
})
