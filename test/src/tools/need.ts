/** Says loudly why a test cannot run here, or fails where nothing may be skipped. */

/** Set to 1 where everything must be there, as in continuous integration: a skip is a failure then. */
const requireAll = process.env['SLUICE_REQUIRE_ALL'] === '1'

/**
 * For the `skip` option of `node:test`: `it('…', { skip: need('ffmpeg', found, 'apt-get install ffmpeg') }, …)`.
 * On `it`, not on `describe`: the runner does not count the tests of a suite it skips.
 *
 * @param what The thing, as its user names it.
 * @param present Whether it is here.
 * @param hint What to do to get it.
 * @returns `false` when present, else the reason to print.
 * @throws Error when absent and `SLUICE_REQUIRE_ALL=1`.
 */
export function need(what: string, present: boolean, hint: string): string | false {
  if (present) return false
  const reason = `needs ${what}: ${hint}`
  if (requireAll) throw new Error(`SLUICE_REQUIRE_ALL=1 and a test ${reason}`)
  return reason
}
