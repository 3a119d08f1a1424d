/** What an operator decides about the gate: the part of the configuration that is about media, in one schema. */
import path from 'node:path'
import { limits } from '@sluice/protocol/limits'
import { z } from 'zod'

const absolutePath = z
  .string()
  .min(1)
  .max(4096)
  .refine((text) => path.isAbsolute(text), 'must be an absolute path')

/** Scanners, and what happens to a medium that they cannot judge. */
export const scanSettings = z.strictObject({
  policy: z.enum(['require', 'warn', 'off']).default('require').meta({
    env: 'SLUICE_AGENT_SCAN_POLICY',
    description:
      'What a scanner that is down, slow, stale or too small means: `require` lets media wait or refuses them, `warn` lets them pass marked as unscanned. Without a scanner nothing is scanned.',
  }),
  clamdConfigFile: absolutePath.optional().meta({
    env: 'SLUICE_AGENT_SCAN_CLAMD_CONFIG_FILE',
    description:
      'Configuration that clamd of this host runs with, such as /etc/clamav/clamd.conf; its socket is used.',
  }),
  yaraRulesFile: absolutePath.optional().meta({
    env: 'SLUICE_AGENT_SCAN_YARA_RULES_FILE',
    description: 'YARA rules; a medium that any of them matches is infected.',
  }),
  signatureAgeHoursMax: z.int().min(1).max(87_600).default(limits.signatureAgeHoursDefault).meta({
    env: 'SLUICE_AGENT_SCAN_SIGNATURE_AGE_HOURS_MAX',
    description: 'Older signatures of clamd count as none.',
  }),
})
export type ScanSettings = z.infer<typeof scanSettings>
