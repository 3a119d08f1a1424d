/** What an agent is to all of its parts: a name, a key and the certificate for it. */
import type { KeyObject } from 'node:crypto'
import type { AgentId } from '@sluice/protocol/ids'

export type AgentRole = 'capture' | 'gpu'

/** The certificate of an agent and the key it is for; one object for the life of the process. */
export type Identity = {
  readonly agentId: AgentId
  readonly role: AgentRole
  readonly site: string
  readonly labels: Readonly<Record<string, string>>
  /** `https://NAME:PORT` of the agent listener. */
  readonly agentUrl: string
  /** Ed25519; the private key never leaves this process. */
  readonly privateKey: KeyObject
  readonly publicKey: KeyObject
  /** SHA-256 of the public key's SubjectPublicKeyInfo, hex: names the key in receipts. */
  readonly keyId: string
  /** The present certificate, DER. */
  certificate(): Buffer
  notAfterMs(): number
  /** Authorities trusted now, PEM. */
  authorities(): string[]
  /** For `node:tls`, undici and ws: our key and certificate, and the authorities as only trust. */
  tlsOptions(): { key: Buffer; cert: string; ca: string[] }
  /** Rises with every renewal: connections made before it use the older certificate. */
  generation(): number
}
