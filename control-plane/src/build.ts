/** Which build this is. */
import { readFileSync } from 'node:fs'

/** Version of this build, from its package. */
export function buildVersion(): string {
  const text = readFileSync(new URL('../package.json', import.meta.url), 'utf8')
  return (JSON.parse(text) as { version: string }).version
}
