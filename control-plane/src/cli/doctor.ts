/** Looks for what would stop or weaken a control plane on this host, and says how to mend it. */
import type { Command } from 'commander'
import { type StatusReply, statusReply } from '@sluice/protocol/api'
import { SluiceError } from '@sluice/protocol/errors'
import { limits } from '@sluice/protocol/limits'
import { disableCoreDumps } from '@sluice/protocol/process/lifecycle'
import { canSwap, readSwapFacts, swapPossible } from '@sluice/protocol/process/swap'
import { hasContext } from './context.ts'
import { sayFacts, sayList, type View } from './output.ts'
import { addCommand, withClient } from './program.ts'

type Finding = { what: string; ok: boolean; found: string; hint?: string }

export function addDoctorCommand(program: Command): void {
  addCommand(program, 'doctor', {
    does: 'check this host, and the control plane of the login',
    example: 'sluice doctor --json',
  }).action(async (options: View) => {
    const findings = [runtime(), coreDumps(), swap(), ...(await controlPlane())]
    sayList(findings, options, {
      WHAT: (item) => item.what,
      OK: (item) => (item.ok ? 'yes' : 'NO'),
      FOUND: (item) => item.found,
      'WHAT TO DO': (item) => (item.ok ? '' : (item.hint ?? '')),
    })
    if (findings.some((finding) => !finding.ok)) process.exitCode = 1
  })

  addCommand(program, 'status', {
    does: 'show how the control plane stands',
    example: 'sluice status --json',
  }).action(async (options: View) =>
    withClient(async (client) => sayFacts(await client.get('/v1/status', statusReply), options)),
  )
}

/** Versions only cost another look; a lock makes every deletion late. */
function storeFinding(store: StatusReply['stores'][number]): Finding {
  const { replica, checked, versioned, locks } = store
  const kept = [versioned ? 'versions' : [], locks ? 'locked objects' : []].flat()
  return {
    what: replica === undefined ? 'store' : `replica ${replica}`,
    ok: checked && locks !== true,
    found: checked ? `keeps ${kept.join(' and ') || 'nothing by itself'}` : 'did not answer yet',
    hint: checked
      ? 'deletions stay owed while a lock holds (docs/operate/storage.md)'
      : 'look whether it is up, and whether its certificate is trusted',
  }
}

function runtime(): Finding {
  const major = Number(process.versions.node.split('.')[0])
  return {
    what: 'runtime',
    ok: major >= 24,
    found: `node ${process.versions.node}, openssl ${process.versions.openssl}`,
    hint: 'Use the pinned runtime: npm run -s sluice -- …',
  }
}

function coreDumps(): Finding {
  try {
    disableCoreDumps()
    return { what: 'core dumps', ok: true, found: 'can be switched off' }
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error
    return { what: 'core dumps', ok: false, found: error.message, hint: error.hint ?? '' }
  }
}

function swap(): Finding {
  const facts = readSwapFacts()
  const areas = facts.areas.join(' ')
  return {
    what: 'swap',
    ok: !canSwap(facts),
    found: facts.areas.length === 0 ? 'none' : areas,
    hint: swapPossible(areas).hint ?? '',
  }
}

async function controlPlane(): Promise<Finding[]> {
  if (!(await hasContext())) return [{ what: 'login', ok: true, found: 'none' }]
  try {
    const askedAtMs = Date.now()
    const status = await withClient((client) => client.get('/v1/status', statusReply))
    const skewMs = Math.abs(status.nowAtMs - (askedAtMs + Date.now()) / 2)
    return [
      { what: 'control plane', ok: true, found: `answers, build ${status.build}` },
      {
        what: 'clock',
        ok: skewMs <= limits.clockSkewMsMax,
        found: `${Math.round(skewMs)} ms apart`,
        hint: 'let both hosts follow a time server',
      },
      {
        what: 'reserve',
        ok: status.reserve === 'ready',
        found: status.reserve,
        hint: 'make room on the disk of the data directory: a purge on a full disk needs it',
      },
      {
        what: 'epoch keys',
        // No fault: a certificate says what it claims, and some hosts have no better disk.
        ok: true,
        found: `${status.keys.store}, certificates claim ${status.keys.level}`,
        hint: 'put the data directory on ext4 or xfs, or use an HSM (docs/operate/hsm.md)',
      },
      ...status.stores.map(storeFinding),
      {
        what: 'duties',
        ok: status.obligations.overdue === 0,
        found: `${status.obligations.overdue} overdue`,
        hint: 'sluice obligations --overdue',
      },
    ]
  } catch (error) {
    if (!(error instanceof SluiceError)) throw error
    return [{ what: 'control plane', ok: false, found: error.message, hint: error.hint ?? '' }]
  }
}
