import { describe, it } from 'node:test'
import { jobFile, purgeFile } from './certificate-cases.ts'
import { assertFlipsRefused } from './certificates.test-setup.ts'

describe('both verifiers', () => {
  it('refuse 10,000 of 10,000 flipped bits with the same code', async (t) => {
    const seed = Number(process.env['SLUICE_SEED'] ?? Date.now() % 0xffff_ffff)
    await assertFlipsRefused([jobFile(), purgeFile()], { count: 10_000, seed }, t)
  })
})
