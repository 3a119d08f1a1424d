/** How migrations are generated from the schema: `pnpm exec drizzle-kit generate` in this folder. */
import type { Config } from 'drizzle-kit'

const config: Config = {
  dialect: 'sqlite',
  schema: './src/database/schema.ts',
  out: './migrations',
  casing: 'snake_case',
}

// drizzle-kit reads the default export; nothing else in the project has one.
// oxlint-disable-next-line import/no-default-export
export default config
