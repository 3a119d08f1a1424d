import { describe, it } from 'node:test'
import { jobFile, purgeFile } from './certificate-cases.ts'
import {
  byteCases,
  jobCases,
  purgeCases,
  receiptByteCases,
  replicaCases,
} from './certificate-mutations.ts'
import { assertAgree, assertFlipsRefused } from './certificates.test-setup.ts'

describe('both verifiers', () => {
  it('say the same of every changed document', () => {
    const all = [jobCases, receiptByteCases, replicaCases, purgeCases, byteCases].flat()
    return assertAgree(all, all)
  })

  it('refuse 10,000 of 10,000 flipped bits with the same code', async (t) => {
    const seed = Number(process.env['SLUICE_SEED'] ?? Date.now() % 0xffff_ffff)
    await assertFlipsRefused([jobFile(), purgeFile()], { count: 10_000, seed }, t)
  })
})
