/** Decides who may import whom: one table, and the reason of each row in every complaint. */

import { posix } from 'node:path'

import type { SourceFile } from './source-tree.ts'
import { isTypeScript } from './source-tree.ts'

type Row = {
  /** Globs; a file belongs to the first row that has one for it. */
  files: string[]
  /** Globs over repository paths, and names of packages (`node:*` is every built-in module). */
  may: string[]
  /** Files of which only types may be imported. */
  mayTypes?: string[]
  because: string
}

/** Built-in modules that touch nothing outside the process. */
const pureBuiltins = ['node:assert', 'node:assert/strict', 'node:buffer', 'node:util']

const purePackages = [...pureBuiltins, 'zod']

const protocolPlain = 'protocol/src/*.ts'
const protocolSealing = 'protocol/src/sealing/*.ts'
const protocolAll = 'protocol/src/**/*.ts'

/** What every feature of the control plane may lean on. */
const controlPlaneBase = [
  protocolAll,
  'control-plane/src/database/*.ts',
  'control-plane/src/*.ts',
  'node:*',
  'zod',
]

const agentBase = [protocolAll, 'agent/src/*.ts', 'node:*', 'zod']

/** A feature of the control plane: its own folder, the base, and the neighbours it is built on. */
function feature(name: string, neighbours: string[], packages: string[], because: string): Row {
  const folders = [name, ...neighbours].map((folder) => `control-plane/src/${folder}/**/*.ts`)
  return {
    files: [`control-plane/src/${name}/**/*.ts`],
    may: [...folders, ...controlPlaneBase, ...packages],
    because,
  }
}

const rows: Row[] = [
  // Tests beside the code
  {
    files: ['protocol/src/**/*.test.ts', 'protocol/src/**/*.test-*.ts'],
    may: ['*', protocolAll, 'test/src/tools/*.ts'],
    because: 'a test of the protocol knows no daemon',
  },
  {
    files: ['agent/src/**/*.test.ts', 'agent/src/**/*.test-*.ts'],
    may: ['*', protocolAll, 'agent/src/**/*.ts', 'test/src/tools/*.ts'],
    because: 'only test/ sees both daemons',
  },
  {
    files: [
      'control-plane/src/**/*.test.ts',
      'control-plane/src/**/*.test-*.ts',
      'control-plane/src/doubles.ts',
    ],
    may: ['*', protocolAll, 'control-plane/src/**/*.ts', 'test/src/tools/*.ts'],
    because: 'only test/ sees both daemons',
  },
  {
    files: ['test/src/repository/*.ts'],
    may: ['test/src/repository/*.ts', 'test/src/tools/*.ts', 'node:*'],
    because: 'a test of the repository reads its files and runs none of them',
  },
  {
    files: ['test/src/**/*.ts'],
    may: ['*', '**/*.ts'],
    because: 'test/ sees everything',
  },

  // Protocol
  {
    files: ['protocol/src/sealing/aead.ts'],
    may: [...purePackages, 'node:crypto', 'koffi', protocolPlain, protocolSealing],
    because: 'koffi stays behind the one interface that has a fallback',
  },
  {
    files: [protocolSealing],
    may: [...purePackages, 'node:crypto', 'libsodium-wrappers', protocolPlain, protocolSealing],
    because: 'sealing works on bytes alone, so that it can be proven by vectors',
  },
  {
    files: ['protocol/src/process/*.ts'],
    may: ['zod', 'node:*', protocolPlain, 'protocol/src/process/*.ts'],
    because: 'what both daemons do as processes needs no key and no format',
  },
  {
    files: [protocolPlain],
    may: [...purePackages, protocolPlain, 'protocol/src/sealing/dsse.ts'],
    because: 'both sides agree on data, not on effects',
  },

  // Pure files of the daemons
  {
    files: ['agent/src/transfer/{part-plan,bandwidth}.ts', '{agent,control-plane}/src/**/rules.ts'],
    may: [
      ...purePackages,
      'node:crypto',
      protocolPlain,
      protocolSealing,
      '{agent,control-plane}/src/**/rules.ts',
      'control-plane/src/database/schema.ts',
    ],
    mayTypes: ['{agent,control-plane}/src/**/*.ts'],
    because: 'what decides is pure: facts and time are arguments',
  },

  // Agent
  {
    files: ['agent/src/cli/*.ts'],
    may: [...agentBase, 'agent/src/**/*.ts', 'commander', 'undici'],
    because: 'the command line drives the agent and nothing else',
  },
  {
    files: ['agent/src/main.ts'],
    may: [...agentBase, 'agent/src/{capture,analysis,transfer}/*.ts', 'undici'],
    because: 'the root joins the features; only the command line starts it',
  },
  {
    files: ['agent/src/capture/*.ts'],
    may: [
      ...agentBase,
      'agent/src/{capture,transfer}/*.ts',
      'sharp',
      'libheif-js',
      '@peculiar/x509',
      'reflect-metadata',
    ],
    because: 'capture and analysis never meet: one has sources, the other leases',
  },
  {
    files: ['agent/src/analysis/*.ts'],
    may: [...agentBase, 'agent/src/{analysis,transfer}/*.ts'],
    because: 'analysis and capture never meet: one has leases, the other sources',
  },
  {
    files: ['agent/src/analysers/*.ts'],
    may: ['agent/src/analysers/*.ts', protocolPlain, 'node:*', 'zod', 'sharp'],
    because: 'an analyser is a program of its own that knows only what it is handed',
  },
  {
    files: ['agent/src/transfer/*.ts'],
    may: [...agentBase, 'agent/src/transfer/*.ts', 'undici'],
    because: 'moving ciphertext needs no knowledge of what it is',
  },
  {
    files: ['agent/src/events.ts'],
    may: agentBase,
    mayTypes: ['agent/src/{analysis,capture,transfer}/*.ts'],
    because: 'of the features, the log knows only the shape of what they tell',
  },
  {
    files: ['agent/src/config.ts'],
    may: [...agentBase, 'agent/src/analysis/analyser.ts', 'agent/src/capture/gate-policy.ts'],
    because: 'of the features, the configuration knows only what an operator writes for them',
  },
  {
    files: ['agent/src/*.ts'],
    may: [...agentBase, '@peculiar/x509', 'reflect-metadata', 'lowdb', 'undici', 'ws'],
    because: 'what both roles share knows neither of them',
  },

  // Control plane
  {
    files: ['control-plane/src/cli/*.ts'],
    may: ['control-plane/src/**/*.ts', protocolAll, 'node:*', 'zod', 'commander', 'undici'],
    because: 'the command line drives the control plane and nothing else',
  },
  {
    files: ['control-plane/src/database/*.ts'],
    may: [
      protocolAll,
      'control-plane/src/database/*.ts',
      'node:*',
      'drizzle-orm',
      'better-sqlite3',
    ],
    because: 'the database knows rows, not features',
  },
  {
    files: ['control-plane/src/{main,start/*}.ts'],
    may: ['control-plane/src/**/*.ts', protocolAll, 'node:*', 'zod'],
    because: 'the root joins the features; only the command line starts it',
  },
  {
    files: ['control-plane/src/{http,openapi}.ts'],
    may: [
      ...controlPlaneBase,
      'control-plane/src/*/rules.ts',
      'control-plane/src/*/routes.ts',
      'control-plane/src/{access,fleet,storage}/*.ts',
      'hono',
      '@hono/node-server',
      '@peculiar/x509',
      'reflect-metadata',
      'ws',
    ],
    because: 'the listeners mount routes and let nobody in unchecked',
  },
  feature(
    'access',
    ['alerts', 'audit', 'deletion'],
    ['hono', '@peculiar/x509', 'reflect-metadata'],
    'who may do what leans on the log and on the rows of what is owed',
  ),
  feature(
    'alerts',
    ['access', 'audit', 'deletion'],
    ['hono', 'undici'],
    'an alert is a row and a duty; its channel asks nobody',
  ),
  feature(
    'audit',
    ['access', 'alerts', 'deletion'],
    ['hono'],
    'the log takes events from all; bringing them to a sink is a duty',
  ),
  feature(
    'fleet',
    ['access', 'audit'],
    ['hono', 'ws', '@peculiar/x509', 'reflect-metadata'],
    'links carry messages; what they mean is up to jobs',
  ),
  feature(
    'jobs',
    ['access', 'audit', 'deletion', 'fleet', 'keys', 'storage'],
    ['hono', '@peculiar/x509', 'reflect-metadata'],
    'a job leans on keys, storage, fleet and deletion',
  ),
  feature(
    'sweep',
    ['access', 'alerts', 'audit', 'deletion', 'fleet', 'jobs', 'keys', 'storage'],
    ['hono'],
    'a sweep compares every place with every row',
  ),
  feature(
    'keys',
    ['audit'],
    ['pkcs11js', 'koffi'],
    'keys are wrapped and destroyed without knowing why',
  ),
  feature('storage', ['audit'], ['@aws-sdk/*', 'undici'], 'a store keeps bytes and knows no job'),
  feature(
    'deletion',
    ['access', 'alerts', 'audit', 'fleet', 'jobs', 'keys', 'storage'],
    ['hono', '@peculiar/x509', 'reflect-metadata'],
    'deletion reaches every holder',
  ),
  feature(
    'purge',
    ['access', 'alerts', 'audit', 'deletion', 'fleet', 'keys'],
    ['hono'],
    'a purge decides what is destroyed; deletion destroys it',
  ),
  feature(
    'revocation',
    ['access', 'alerts', 'audit', 'deletion', 'fleet', 'jobs', 'storage'],
    ['hono'],
    'a revocation locks out at once and owes the rest',
  ),
  {
    files: ['control-plane/src/*.ts'],
    may: [...controlPlaneBase, 'hono'],
    because: 'what all features share knows none of them',
  },
  {
    files: ['control-plane/drizzle.config.ts'],
    may: ['drizzle-kit'],
    because: 'it configures one tool',
  },
]

/** Packages and files that only some may touch, whatever the table says of their folder. */
const exclusives: { target: string[]; onlyIn: string[]; because: string }[] = [
  {
    target: ['drizzle-orm', 'better-sqlite3'],
    onlyIn: ['control-plane/src/database/*.ts'],
    because: 'the database is opened, and Drizzle loaded, in one place',
  },
  {
    target: ['control-plane/src/database/drizzle.ts'],
    onlyIn: ['control-plane/src/**/store.ts', 'control-plane/src/database/*.ts'],
    because: 'SQL appears only in store.ts and database/',
  },
  {
    target: ['hono', '@hono/node-server'],
    onlyIn: ['control-plane/src/**/routes.ts', 'control-plane/src/http.ts'],
    because: 'Hono appears only in routes.ts and http.ts',
  },
  {
    target: ['@aws-sdk/*'],
    onlyIn: ['control-plane/src/storage/*.ts', 'test/src/**/*.ts'],
    because: 'only the storage feature speaks S3: agents move bytes through grants',
  },
  {
    target: ['control-plane/src/keys/{pkcs11-store,open-epoch-keys,key-holder}.ts'],
    onlyIn: [
      'control-plane/src/keys/{key-process,token-process,open-epoch-keys}.ts',
      'control-plane/src/**/*.test.ts',
      'control-plane/src/**/*.test-*.ts',
      'test/src/**/*.ts',
    ],
    because:
      'keys are opened, and HSMs spoken to, in children: what hangs or leaks there ends there',
  },
  {
    target: ['control-plane/src/**/routes.ts'],
    onlyIn: ['control-plane/src/{http,main,start/*}.ts'],
    because: 'routes are mounted in one place, behind one guard',
  },
  {
    target: ['control-plane/src/{main,http,start/*}.ts', 'agent/src/main.ts'],
    onlyIn: ['control-plane/src/{main,start/*,cli/*}.ts', 'agent/src/cli/*.ts', 'test/src/**/*.ts'],
    because: 'the root joins the features, so no feature may lean on it',
  },
  {
    target: [
      'control-plane/src/doubles.ts',
      'agent/src/throwaway-authority.ts',
      'test/src/**/*.ts',
    ],
    onlyIn: ['test/src/**/*.ts'],
    because: 'doubles stand in for real parts in tests and nowhere else',
  },
  {
    target: ['agent/src/cli/*.ts'],
    onlyIn: ['agent/src/cli/*.ts', 'test/src/**/*.ts'],
    because: 'nothing below the command line depends on it',
  },
  {
    target: ['control-plane/src/cli/*.ts'],
    onlyIn: ['control-plane/src/cli/*.ts', 'test/src/**/*.ts'],
    because: 'nothing below the command line depends on it',
  },
]

/** Calls that make the answer depend on more than the arguments. */
const impureCalls =
  /\b(Date\.now\(|new Date\(\)|performance\.now\(|Math\.random\(|setTimeout\(|setInterval\()/

const pureFiles = [
  protocolSealing,
  'agent/src/transfer/{part-plan,bandwidth}.ts',
  '{agent,control-plane}/src/**/rules.ts',
]

export type Import = {
  /** As written. */
  specifier: string
  /** A path of the repository, or the name of a package or built-in module. */
  target: string
  /** Whether nothing of it is left when the program runs. */
  typesOnly: boolean
}

function matchesAny(path: string, globs: string[]): boolean {
  return globs.some((glob) => posix.matchesGlob(path, glob))
}

function isTest(path: string): boolean {
  return /\.test(-[\w-]+)?\.ts$/.test(path)
}

/** `@scope/name/deep` and `name/deep` by the package's name; built-in modules stay whole. */
function packageName(specifier: string): string {
  if (specifier.startsWith('node:')) return specifier
  return specifier
    .split('/')
    .slice(0, specifier.startsWith('@') ? 2 : 1)
    .join('/')
}

function resolveImport(from: string, specifier: string): string {
  if (specifier.startsWith('.')) return posix.join(posix.dirname(from), specifier)
  const sibling = /^@sluice\/([\w-]+)\/(.+)$/.exec(specifier)
  if (sibling !== null) return `${sibling[1]}/src/${sibling[2]}.ts`
  return packageName(specifier)
}

/** Everything a file imports: static, re-exported, for types only, and at run time. */
export function readImports(file: SourceFile): Import[] {
  const statements = /^(?:import|export)\s+(type\s+)?(?:([\w*$\s{},]+?)\s+from\s+)?'([^']+)'/gm
  const calls = /\bimport\(\s*'([^']+)'\s*\)/g
  const resolve = (specifier: string, typesOnly: boolean): Import => ({
    specifier,
    target: resolveImport(file.path, specifier),
    typesOnly,
  })
  return [
    ...[...file.text.matchAll(statements)].map(([, type, names = '', specifier = '']) =>
      resolve(specifier, type !== undefined || areTypes(names)),
    ),
    ...[...file.text.matchAll(calls)].map(([, specifier = '']) => resolve(specifier, false)),
  ]
}

/** Whether a list such as `{ type A, type B }` names nothing but types. */
function areTypes(names: string): boolean {
  if (!names.startsWith('{')) return false
  const list = names
    .replaceAll(/[{}]/g, '')
    .split(',')
    .map((name) => name.trim())
  return list.every((name) => name === '' || name.startsWith('type '))
}

function isAllowed(row: Row, { target, typesOnly }: Import): boolean {
  if (target.startsWith('node:')) {
    return row.may.some((one) => ['*', 'node:*', target].includes(one))
  }
  const isFile = target.endsWith('.ts')
  const may = typesOnly ? [...row.may, ...(row.mayTypes ?? [])] : row.may
  const globs = may.filter((one) => one.endsWith('.ts') === isFile)
  if (!isFile && globs.includes('*')) return true
  return matchesAny(target, globs)
}

/** Complaints about files that import what they must not; empty when all is well. */
export function checkImports(files: readonly SourceFile[]): string[] {
  const complaints: string[] = []
  for (const file of files.filter(({ path }) => isTypeScript(path))) {
    const row = rows.find(({ files: globs }) => matchesAny(file.path, globs))
    if (row === undefined) {
      complaints.push(`${file.path}: fits no row of the table in import-rules.ts; add one`)
      continue
    }
    for (const one of readImports(file)) {
      const { specifier, target } = one
      if (!isAllowed(row, one)) {
        complaints.push(`${file.path} imports ${specifier}: ${row.because}`)
      }
      for (const { target: targets, onlyIn, because } of exclusives) {
        if (isTest(file.path) || !matchesAny(target, targets)) continue
        if (!matchesAny(file.path, onlyIn)) {
          complaints.push(`${file.path} imports ${specifier}: ${because}`)
        }
      }
    }
  }
  return complaints
}

/** Complaints about pure files that ask the clock or the dice. */
export function checkPurity(files: readonly SourceFile[]): string[] {
  return files
    .filter(({ path }) => matchesAny(path, pureFiles) && !isTest(path))
    .flatMap(({ path, text }) => {
      const [call] = impureCalls.exec(text) ?? []
      return call === undefined ? [] : [`${path} calls ${call}: pass time as an argument`]
    })
}

/** Each cycle of imports once, types included, as `a → b → a`. */
export function findCycles(files: readonly SourceFile[]): string[] {
  const sources = files.filter(({ path }) => isTypeScript(path))
  const graph = new Map(
    sources.map((file) => [file.path, readImports(file).map(({ target }) => target)]),
  )
  const cycles: string[] = []
  const done = new Set<string>()
  const trail: string[] = []
  const visit = (path: string): void => {
    if (done.has(path)) return
    const start = trail.indexOf(path)
    if (start >= 0) {
      cycles.push([...trail.slice(start), path].join(' → '))
      return
    }
    trail.push(path)
    for (const target of graph.get(path) ?? []) if (graph.has(target)) visit(target)
    trail.pop()
    done.add(path)
  }
  for (const path of graph.keys()) visit(path)
  return cycles
}

/** Complaints about imports of files that are not there. */
export function findMissing(files: readonly SourceFile[]): string[] {
  const paths = new Set(files.map(({ path }) => path))
  return files
    .filter(({ path }) => isTypeScript(path))
    .flatMap((file) =>
      readImports(file)
        .filter(({ target }) => target.endsWith('.ts') && !paths.has(target))
        .map(({ specifier }) => `${file.path} imports ${specifier}, which does not exist`),
    )
}
