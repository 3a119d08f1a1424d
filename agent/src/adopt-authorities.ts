/** Takes part in a change of authorities: trusts the new set durably, gets a certificate under it, and says so. */
import { createHash } from 'node:crypto'
import { SluiceError } from '@sluice/protocol/errors'
import type { ControlLink } from './control-link.ts'
import type { RenewableIdentity } from './enrol.ts'

/**
 * Registers the command `authorities`. It is acknowledged only when everything is done; after a
 * crash it comes again, and every step may be done twice.
 *
 * The word that it is done goes out over a new connection: one that the new certificate has opened.
 */
export function adoptAuthorities(options: {
  link: Pick<ControlLink, 'onCommand' | 'request' | 'reconnect'>
  identity: RenewableIdentity
  events: { authoritiesAdopted(fields: { revocationId: string; authorities: number }): void }
}): void {
  const { link, identity } = options
  link.onCommand('authorities', async ({ authorities, revocationId, obligationId }, signal) => {
    await identity.trust(authorities)
    const csr = (await identity.makeRequest()).toString('base64')
    const renewed = await link.request('certificate.renew', { csr }, { signal })
    const issued = new Set(renewed.body.authorities)
    if (authorities.some((each) => !issued.has(each)))
      // An answer from before the change; the next one knows it.
      throw new SluiceError('join.wrong_authority', 'a certificate came with other authorities', {
        retry: 'later',
      })
    await identity.replace(renewed.body)
    link.reconnect()
    const hashes = renewed.body.authorities.map(sha256OfDer)
    const body = { revocationId, obligationId, authorities: hashes }
    await link.request('authorities.adopted', body, { signal })
    options.events.authoritiesAdopted({ revocationId, authorities: hashes.length })
  })
}

function sha256OfDer(der: string): string {
  return createHash('sha256').update(Buffer.from(der, 'base64')).digest('hex')
}
