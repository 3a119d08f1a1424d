/** Statements of the hot paths: built once for each connection, not once for each use. */
import type { Queries } from './database.ts'

/**
 * Building and preparing a query costs many times what running it does, which a burst of thousands
 * of acknowledgements or receipts would pay for each.
 *
 * @param build Ends in `.prepare()`; what changes from use to use are placeholders.
 */
export function preparedOnce<T>(build: (sql: Queries) => T): (sql: Queries) => T {
  const built = new WeakMap<Queries, T>()
  return (sql) => {
    const known = built.get(sql)
    if (known !== undefined) return known
    const statement = build(sql)
    built.set(sql, statement)
    return statement
  }
}
