import assert from 'node:assert/strict'
import { describe, it } from 'node:test'

import { readCommands } from './page-commands.ts'

const page = `# Page

## One

\`\`\`
not run
\`\`\`

\`\`\`sh
show ID
\`\`\`

## Two

\`\`\`sh
first
\`\`\`

\`\`\`sh
second
third
\`\`\`
`

describe('commands of a page', () => {
  it('are found by section and order, with words replaced', () => {
    const commands = readCommands(page)
    assert.equal(commands.block('One', 0, { ID: '7' }), 'show 7\n')
    assert.equal(commands.block('Two', 1), 'second\nthird\n')
    assert.deepEqual(commands.unused(), ['Two 0'])
  })

  it('are refused when the page has changed under the test', () => {
    const commands = readCommands(page)
    assert.throws(() => commands.block('Three'), /no commands Three 0/)
    assert.throws(() => commands.block('Two', 0, { ID: '7' }), /does not say ID/)
  })
})
