import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { mayGive, reachesSite, routeRules, ruleOf, sitesAllowed } from './rules.ts'

describe('access rules', () => {
  it('find the rule of a request by method and whole path', () => {
    assert.equal(ruleOf('GET', '/v1/jobs')?.path, '/v1/jobs')
    assert.equal(ruleOf('HEAD', '/v1/jobs')?.path, '/v1/jobs')
    assert.equal(ruleOf('GET', '/v1/jobs/x')?.path, '/v1/jobs/:id')
    assert.equal(ruleOf('POST', '/v1/jobs'), undefined)
    assert.equal(ruleOf('GET', '/v1/jobs/x/y'), undefined)
    assert.equal(ruleOf('DELETE', '/v1/jobs/x'), undefined)
  })

  it('take the fixed path before one with a variable', () => {
    assert.equal(ruleOf('GET', '/v1/audit/verify')?.path, '/v1/audit/verify')
  })

  it('name each route once', () => {
    const names = routeRules.map(({ method, path }) => `${method} ${path}`)
    assert.equal(new Set(names).size, names.length)
  })

  it('add up the sites of every role a route asks for, and of no other', () => {
    const rights = [
      { role: 'viewer', site: 'berlin' },
      { role: 'viewer', site: 'berlin' },
      { role: 'operator', site: 'paris' },
      { role: 'security', site: '*' },
    ] as const
    assert.deepEqual(sitesAllowed(rights, ['viewer']), ['berlin'])
    assert.deepEqual(sitesAllowed(rights, ['viewer', 'operator']), ['berlin', 'paris'])
    assert.equal(sitesAllowed(rights, ['viewer', 'security']), 'all')
    assert.equal(sitesAllowed(rights.slice(0, 2), ['operator']), undefined)
  })

  it('let nobody give away more than the own sites', () => {
    const berlin = { sites: ['berlin'] }
    assert.equal(reachesSite(berlin, 'berlin'), true)
    assert.equal(reachesSite(berlin, 'paris'), false)
    assert.equal(mayGive(berlin, [{ role: 'viewer', site: 'berlin' }]), true)
    assert.equal(mayGive(berlin, [{ role: 'viewer', site: '*' }]), false)
    assert.equal(mayGive({ sites: 'all' }, [{ role: 'viewer', site: '*' }]), true)
  })

  it('keep who submits apart from who revokes', () => {
    for (const { method, path, may } of routeRules) {
      if (may === 'public' || method === 'GET') continue
      assert(!may.includes('viewer'), `${path} changes something, and viewers only read`)
    }
    assert.deepEqual(ruleOf('POST', '/v1/join-tokens')?.may, ['operator'])
    assert.deepEqual(ruleOf('POST', '/v1/agents/x/revoke')?.may, ['security'])
  })
})
