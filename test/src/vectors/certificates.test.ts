import assert from 'node:assert/strict'
import { generateKeyPairSync } from 'node:crypto'
import { readFileSync, writeFileSync, mkdirSync } from 'node:fs'
import { readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it } from 'node:test'
import { evidence, jobFile, purgeFile, purgeReportFile, writeOffFile } from './certificate-cases.ts'
import {
  byteCases,
  jobCases,
  purgeCases,
  receiptByteCases,
  replicaCases,
} from './certificate-mutations.ts'
import {
  assertAgree,
  assertFlipsRefused,
  someOfEachCode,
  ourVerdict,
  SecondVerifier,
} from './certificates.test-setup.ts'

const folder = join(import.meta.dirname, 'certificates')
const frozen = {
  'deletion-certificate': jobFile,
  'purge-certificate': purgeFile,
  'purge-report': purgeReportFile,
  'write-off': writeOffFile,
}

// Made once; a frozen file never changes.
if (process.env['SLUICE_WRITE_VECTORS'] === '1') {
  mkdirSync(folder, { recursive: true })
  for (const [name, make] of Object.entries(frozen))
    writeFileSync(join(folder, `${name}.json`), make())
  const pem = evidence.publicKey.export({ format: 'pem', type: 'spki' })
  writeFileSync(join(folder, 'evidence-public.pem'), pem)
}

describe('both verifiers', () => {
  it('verify the frozen documents as what they are', async () => {
    await using second = await SecondVerifier.start()
    for (const [name, make] of Object.entries(frozen)) {
      const bytes = await readFile(join(folder, `${name}.json`))
      assert.deepEqual(bytes, make(), `${name} is what this code makes`)
      const expected = name.endsWith('certificate') ? 'verified' : 'evidence.incomplete'
      assert.equal(ourVerdict(bytes, evidence.publicKey), expected, name)
      assert.equal(await second.verdict(bytes, evidence.publicKey), expected, name)
    }
  })

  // Some for each code for the slower one; certificate-flips.long.test.ts gives it every case.
  it('agree on job certificates that were changed and signed anew', () =>
    assertAgree(jobCases, someOfEachCode(jobCases)))

  it('agree on receipts that are not canonical, and on which problem comes first', () =>
    assertAgree(receiptByteCases, someOfEachCode(receiptByteCases)))

  it('agree on job certificates with replicas', () =>
    assertAgree(replicaCases, someOfEachCode(replicaCases)))

  it('agree on purge certificates that were changed and signed anew', () =>
    assertAgree(purgeCases, someOfEachCode(purgeCases)))

  it('agree on bytes that are not canonical', () =>
    assertAgree(byteCases, someOfEachCode(byteCases)))

  it('refuse every flipped bit with the same code', async (t) => {
    await assertFlipsRefused([jobFile(), purgeFile()], { count: 10, seed: 20_261_121 }, t)
  })
})

describe('verify.sh', () => {
  it('ends with 2 without a file or a key it can use', async () => {
    await using second = await SecondVerifier.start()
    const file = join(folder, 'deletion-certificate.json')
    const key = join(folder, 'evidence-public.pem')
    for (const words of [
      [],
      [file],
      [file, '--trust', join(folder, 'missing.pem')],
      [join(folder, 'missing.json'), '--trust', key],
      [file, '--trust', file],
    ])
      assert.equal((await second.run(words)).code, 2, words.join(' '))
    assert.equal((await second.run([file, '--trust', key])).code, 0)
  })

  it('trusts no key of another kind', async () => {
    await using second = await SecondVerifier.start()
    const { publicKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' })
    assert.equal(await second.verdict(jobFile(), publicKey), 'evidence.untrusted')
    assert.equal(ourVerdict(jobFile(), publicKey), 'evidence.untrusted')
  })

  it('has at most 150 lines', () => {
    const path = join(import.meta.dirname, '..', '..', '..', 'verify', 'verify.sh')
    assert.ok(readFileSync(path, 'utf8').trimEnd().split('\n').length <= 150)
  })
})
