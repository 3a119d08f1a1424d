/** What an operator decides about the gate: the part of the configuration that is about media, in one schema. */
import path from 'node:path'
import { limits } from '@sluice/protocol/limits'
import { gateProfile } from '@sluice/protocol/manifest'
import { z } from 'zod'
import { filmEncoders } from './film-recipe.ts'

const absolutePath = z
  .string()
  .min(1)
  .max(4096)
  .refine((text) => path.isAbsolute(text), 'must be an absolute path')

/** Scanners, and what happens to a medium that they cannot judge. */
export const scanSettings = z
  .strictObject({
    policy: z.enum(['require', 'warn', 'off']).optional().meta({
      env: 'SLUICE_AGENT_SCAN_POLICY',
      description:
        'When a scanner is down, slow, stale or too small: `require` lets media wait or refuses them, `warn` lets them pass marked as unscanned. Absent: `require` with a scanner, else `off`.',
    }),
    clamdConfigFile: absolutePath.optional().meta({
      env: 'SLUICE_AGENT_SCAN_CLAMD_CONFIG_FILE',
      description:
        'Configuration that clamd of this host runs with, such as /etc/clamav/clamd.conf; its socket is used.',
    }),
    yaraRulesFile: absolutePath.optional().meta({
      env: 'SLUICE_AGENT_SCAN_YARA_RULES_FILE',
      description: 'YARA rules in one file; a medium that any of them matches is infected.',
    }),
    signatureAgeHoursMax: z.int().min(1).max(87_600).default(limits.signatureAgeHoursDefault).meta({
      env: 'SLUICE_AGENT_SCAN_SIGNATURE_AGE_HOURS_MAX',
      description: 'Older signatures of clamd count as none.',
    }),
  })
  .refine((scan) => (scan.policy ?? 'off') === 'off' || hasScanner(scan), {
    path: ['policy'],
    message: 'needs clamdConfigFile or yaraRulesFile',
  })
export type ScanSettings = z.infer<typeof scanSettings>

function hasScanner(scan: { clamdConfigFile?: unknown; yaraRulesFile?: unknown }): boolean {
  return scan.clamdConfigFile !== undefined || scan.yaraRulesFile !== undefined
}

/** Whoever configures a scanner wants its word. */
export function scanPolicyOf(scan: ScanSettings): 'require' | 'warn' | 'off' {
  return scan.policy ?? (hasScanner(scan) ? 'require' : 'off')
}

/** What of a source's metadata may travel, in the manifest: nothing, unless it is named here. */
export const carryPolicy = z.strictObject({
  captureTimeStepMinutes: z.int().min(1).max(525_600).optional().meta({
    env: 'SLUICE_AGENT_CARRY_CAPTURE_TIME_STEP_MINUTES',
    description: 'Carries the time of capture, rounded down to this. Absent: not at all.',
  }),
  camera: z.boolean().default(false).meta({
    env: 'SLUICE_AGENT_CARRY_CAMERA',
    description: 'Carries the kind of camera (phone, drone, …), never maker, model or number.',
  }),
  regionStepDegrees: z.number().min(0.1).max(45).optional().meta({
    env: 'SLUICE_AGENT_CARRY_REGION_STEP_DEGREES',
    description: 'Carries the place as a cell of this size; 1 is some 100 km. Absent: not at all.',
  }),
})
export type CarryPolicy = z.infer<typeof carryPolicy>

/** Everything an operator decides about media of this host. */
export const gatePolicy = z.strictObject({
  profile: gateProfile.default('analysis').meta({
    env: 'SLUICE_AGENT_GATE_PROFILE',
    description:
      'What media become: `analysis` as a model sees them well, `faithful` without loss, `compact` for thin links.',
  }),
  nameMismatch: z.enum(['report', 'refuse']).default('report').meta({
    env: 'SLUICE_AGENT_GATE_NAME_MISMATCH',
    description:
      'A name that promises another type than the content: `report` says so in the manifest.',
  }),
  salvage: z.boolean().default(false).meta({
    env: 'SLUICE_AGENT_GATE_SALVAGE',
    description: 'Whether what decodes of a damaged medium is taken, marked as partial.',
  }),
  speech: z.boolean().default(false).meta({
    env: 'SLUICE_AGENT_GATE_SPEECH',
    description:
      'Sounds, those of films included, become 16 kHz of one channel, as speech models want them. The sound within a film stays.',
  }),
  pages: z.enum(['all', 'first']).default('all').meta({
    env: 'SLUICE_AGENT_GATE_PAGES',
    description:
      'Pages of a TIFF behind the first: `all` become media of their own, `first` leaves them out.',
  }),
  filmEncoder: z.enum(filmEncoders).default('x264').meta({
    env: 'SLUICE_AGENT_GATE_FILM_ENCODER',
    description:
      'Encoder of films: `nvenc`, `qsv` or `vaapi` of a graphics card, where it works; else `x264`, in software.',
  }),
  scan: scanSettings.prefault({}),
  carry: carryPolicy.prefault({}),
})
export type GatePolicy = z.infer<typeof gatePolicy>
