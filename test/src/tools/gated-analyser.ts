/** An analyser that reads its medium and then stands still until the test lets it end, well or badly. */

import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

export type GatedAnalyser = {
  /** For `analysers` in a node's configuration; its name is `gated`. */
  readonly config: Record<string, unknown>
  /** Lets every run end, those that wait and those to come. */
  open(how: 'well' | 'badly'): Promise<void>
  /** Makes runs to come wait again. */
  close(): Promise<void>
}

/**
 * @param folder Made here; the analyser sees it read-only.
 * @param input How it gets its media, as analysers are configured.
 */
export async function makeGatedAnalyser(
  folder: string,
  input: 'stdin' | 'directory' = 'stdin',
): Promise<GatedAnalyser> {
  await mkdir(folder, { recursive: true })
  const file = (how: string): string => join(folder, how)
  const wait = `until [ -e ${file('well')} ]; do [ -e ${file('badly')} ] && exit 1; sleep 0.05; done`
  const script =
    input === 'stdin'
      ? `cat >/dev/null; ${wait}; echo '{"seen":true}'`
      : `cd "$SLUICE_MEDIA_DIRECTORY"; cat * >/dev/null; ${wait}; printf '{"media":['; sep=; ` +
        `for name in *; do printf '%s{"name":"%s","output":true}' "$sep" "$name"; sep=,; done; echo ']}'`
  const close = async (): Promise<void> => {
    for (const how of ['well', 'badly']) await rm(file(how), { force: true })
  }
  return {
    config: {
      ...{ name: 'gated', version: '1', input },
      command: ['/bin/sh', '-c', script],
      visible: [folder],
    },
    close,
    async open(how) {
      await close()
      await writeFile(file(how), '')
    },
  }
}
