/**
 * The parts of Drizzle that are used here, loaded as CommonJS. As ES modules they cost every start 0.35 s of
 * processor time more (measured, Node 26.10): Node reads the package's 179 kB package.json once for each of
 * its files, and only in that loader.
 */
import { createRequire } from 'node:module'
import type * as Orm from 'drizzle-orm'
import type * as Driver from 'drizzle-orm/better-sqlite3'
import type * as Migrator from 'drizzle-orm/better-sqlite3/migrator'
import type * as Migrations from 'drizzle-orm/migrator'
import type * as Core from 'drizzle-orm/sqlite-core'

const require = createRequire(import.meta.url)

const orm = require('drizzle-orm') as typeof Orm
const core = require('drizzle-orm/sqlite-core') as typeof Core
const driver = require('drizzle-orm/better-sqlite3') as typeof Driver
const migrations = require('drizzle-orm/migrator') as typeof Migrations
const migrator = require('drizzle-orm/better-sqlite3/migrator') as typeof Migrator

export type { SQL } from 'drizzle-orm'
export type { BetterSQLite3Database } from 'drizzle-orm/better-sqlite3'

export const {
  and,
  asc,
  count,
  desc,
  eq,
  gt,
  gte,
  inArray,
  isNotNull,
  isNull,
  lt,
  lte,
  max,
  min,
  ne,
  notExists,
  notInArray,
  or,
  sql,
} = orm
export const { blob, index, integer, primaryKey, sqliteTable, text, uniqueIndex } = core
export const { drizzle } = driver
export const { readMigrationFiles } = migrations
export const { migrate } = migrator
