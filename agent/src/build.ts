/** What this build calls itself on the channel, in manifests and in `--version`. */
import { readFileSync } from 'node:fs'

const packageFile = new URL('../package.json', import.meta.url)

/** Version of this package, such as `0.1.0`. */
export const build = (JSON.parse(readFileSync(packageFile, 'utf8')) as { version: string }).version
