/** All commands of `sluice`, put together; running them is up to the caller. */
import { Command } from 'commander'
import { buildVersion } from '../build.ts'
import { addAlertCommands } from './alerts.ts'
import { addApprovalCommands } from './approvals.ts'
import { addAuditCommands } from './audit.ts'
import { addAuthorityCommands } from './authority.ts'
import { addDoctorCommand } from './doctor.ts'
import { addAgentCommands } from './fleet.ts'
import { addJobCommands } from './jobs.ts'
import { addObligationsCommand } from './obligations.ts'
import { addPurgeCommands } from './purge.ts'
import { addRevokeCommands } from './revoke.ts'
import { addServeCommands } from './serve.ts'
import { addSweepCommands } from './sweep.ts'
import { addTokenCommands } from './tokens.ts'
import { addVerifyCommand } from './verify.ts'

/** The program; instead of ending the process it throws commander's errors. */
export function sluiceProgram(): Command {
  const program = new Command('sluice')
    .description('Seal sensitive media, analyse them in memory, prove that every copy is gone.')
    .version(buildVersion())
    .showSuggestionAfterError(true)
    .addHelpText(
      'after',
      '\nExit codes: 0 ok, 1 failed, 2 usage, 3 refused.\n\nExample:\n  $ sluice jobs watch JOB',
    )
    .exitOverride()
    .configureOutput({
      outputError: (text, write) => {
        const [line = ''] = text.trim().split('\n')
        write(`${line}\nhint: add --help to see what this command takes\n`)
      },
    })
  addServeCommands(program)
  addTokenCommands(program)
  addAgentCommands(program)
  addJobCommands(program)
  addPurgeCommands(program)
  addRevokeCommands(program)
  addApprovalCommands(program)
  addObligationsCommand(program)
  addAlertCommands(program)
  addAuthorityCommands(program)
  addAuditCommands(program)
  addVerifyCommand(program)
  addSweepCommands(program)
  addDoctorCommand(program)
  for (const command of everyCommand(program)) command.exitOverride()
  return program
}

/** Every command below `command`, at any depth. */
export function everyCommand(command: Command): Command[] {
  return command.commands.flatMap((child) => [child, ...everyCommand(child)])
}
