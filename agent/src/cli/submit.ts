/** `sluice-agent submit`, `status` and `results`: what a person asks the agent that runs on this host. */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { type Command, Option } from 'commander'
import { SluiceError, isSluiceError } from '@sluice/protocol/errors'
import { type SubmissionId, jobId, submissionId } from '@sluice/protocol/ids'
import { z } from 'zod'
import { type SubmissionView, isSettled, submissionView } from '../capture/present.ts'
import { foldersOf } from '../config.ts'
import { openJournal } from '../journal.ts'
import { type LocalRequest, askAgent } from '../local-socket.ts'
import { barText, createBoard, instantText, print, remark, sizeText } from './output.ts'
import { type PlaceOptions, configOf, withPlace } from './program.ts'

type SubmitOptions = PlaceOptions & {
  analyser?: string
  together?: true
  wait?: true
  json?: true
  source?: 'keep' | 'move' | 'delete'
  sourceWhen?: 'result' | 'stored'
  moveTo?: string
}

export function addSubmitCommands(program: Command): void {
  withPlace(program.command('submit'))
    .description('Hand files to the agent of this host: each becomes a job of its own.')
    .argument('<file...>', 'images, films and sounds')
    .option('--analyser <name>', 'which analyser to run; default from the configuration')
    .option('--together', 'make one job of all files')
    .option('--wait', 'wait for the results and print them')
    .option('--json', 'print one JSON object')
    .addOption(
      new Option('--source <action>', 'what happens to the files afterwards').choices([
        'keep',
        'move',
        'delete',
      ]),
    )
    .addOption(
      new Option('--source-when <moment>', 'after what it happens')
        .choices(['result', 'stored'])
        .default('result'),
    )
    .option('--move-to <folder>', 'where to move them')
    .addHelpText(
      'after',
      '\nExamples:\n  $ sluice-agent submit --wait IMG_0815.JPG\n  $ sluice-agent submit --json --source delete *.mp4',
    )
    .action(submit)
  withPlace(program.command('status'))
    .description('Show the agent of this host and what it is doing.')
    .option('--json', 'print one JSON object')
    .addHelpText('after', '\nExample:\n  $ sluice-agent status')
    .action(status)
  withPlace(program.command('results'))
    .description('List the results on this host, or print one.')
    .argument('[job]', 'id of a job')
    .option('--json', 'print JSON')
    .addHelpText(
      'after',
      '\nExample:\n  $ sluice-agent results 01890a5d-ac96-774b-bcce-b302099a8057',
    )
    .action(results)
}

async function ask(options: PlaceOptions, request: LocalRequest): Promise<unknown[]> {
  const lines: unknown[] = []
  const { socket } = foldersOf(await configOf(options))
  await askAgent(socket, request, (line) => lines.push(line))
  return lines
}

const taken = z.object({ submissionId, files: z.array(z.string()) })

async function submit(files: string[], options: SubmitOptions): Promise<void> {
  const { json } = options
  const paths = files.map((file) => path.resolve(file))
  const lines = await ask(options, {
    type: 'submit',
    groups: options.together ? [paths] : paths.map((file) => [file]),
    analyser: options.analyser,
    source: options.source && {
      action: options.source,
      when: options.sourceWhen ?? 'result',
    },
    moveTo: options.moveTo && path.resolve(options.moveTo),
  })
  const submissions = lines.map((line) => taken.parse(line))
  if (!options.wait) {
    if (json) return print(JSON.stringify({ submissions }))
    for (const each of submissions)
      print(`${each.submissionId}  ${each.files.map((file) => path.basename(file)).join(' ')}`)
    return remark('Follow them with `sluice-agent status`.')
  }
  const ids = submissions.map((each) => each.submissionId)
  const views = await follow(options, ids)
  const done = await Promise.all(views.map(withResult))
  if (json) print(JSON.stringify({ submissions: done }))
  else for (const each of done) printResult(each)
  const failed = views.find((view) => view.resultPath === undefined)
  if (!failed) return
  const { problem } = failed
  throw new SluiceError(
    problem?.code ?? 'job.failed',
    problem?.message ?? 'the job came to no result',
    {
      hint: problem?.hint ?? 'Look at it with `sluice jobs show`.',
    },
  )
}

async function follow(options: SubmitOptions, ids: SubmissionId[]): Promise<SubmissionView[]> {
  const views = new Map<SubmissionId, SubmissionView>()
  const board = createBoard()
  const { socket } = foldersOf(await configOf(options))
  await askAgent(socket, { type: 'follow', submissionIds: ids }, (line) => {
    const view = submissionView.parse(line)
    views.set(view.submissionId, view)
    const name = view.files.map((file) => path.basename(file)).join(' ')
    board.set(view.submissionId, `${name}  ${stageText(view)}`, `${name}: ${view.stage}`)
  })
  return ids.flatMap((id) => views.get(id) ?? [])
}

function stageText(view: SubmissionView): string {
  const { stage, done = 0, total = 0 } = view
  const counts = stage === 'upload' || stage === 'seal' ? sizeText(done) : ''
  const bar = isSettled(view) ? '' : barText(done, total)
  return [stage.padEnd(9), bar, counts].filter((text) => text !== '').join('  ')
}

async function withResult(view: SubmissionView): Promise<SubmissionView & { result?: unknown }> {
  if (view.resultPath === undefined) return view
  return { ...view, result: JSON.parse(await readFile(view.resultPath, 'utf8')) as unknown }
}

const shownResult = z.object({
  media: z.array(z.object({ name: z.string(), output: z.unknown() })),
})

function printResult(view: SubmissionView & { result?: unknown }): void {
  const name = view.files.map((file) => path.basename(file)).join(' ')
  if (view.stage === 'purged') return print(`${name}: purged by security; the file is as it was`)
  if (view.result === undefined) return print(`${name}: ${view.problem?.message ?? 'no result'}`)
  print(`${name}  (job ${view.jobId ?? ''})`)
  for (const { name: medium, output } of shownResult.parse(view.result).media)
    print(`  ${medium}  ${JSON.stringify(output)}`)
}

const shownStatus = z.looseObject({
  submissions: z.array(submissionView).optional(),
  quarantine: z
    .array(
      z.object({
        sha256: z.string(),
        engine: z.string(),
        finding: z.string(),
        foundAtMs: z.number(),
      }),
    )
    .optional(),
})

async function status(options: PlaceOptions & { json?: true }): Promise<void> {
  const [line] = await ask(options, { type: 'status' }).catch((error: unknown) =>
    explainSilence(options, error),
  )
  if (options.json) return print(JSON.stringify(line))
  const { submissions, quarantine = [], ...facts } = shownStatus.parse(line)
  for (const [key, value] of Object.entries(facts))
    print(`${key.padEnd(22)} ${factText(key, value)}`)
  for (const { sha256, engine, finding, foundAtMs } of quarantine)
    print(`infected  ${sha256}  ${finding} (${engine})  ${instantText(foundAtMs)}`)
  for (const view of submissions ?? []) {
    const files = view.files.map((file) => path.basename(file)).join(' ')
    print(`${view.submissionId}  ${stageText(view)}  ${files}`)
    if (view.problem) print(`  ${view.problem.message} (${view.problem.code})`)
    if (view.expiresAtMs !== undefined) print(`  kept until ${instantText(view.expiresAtMs)}`)
  }
}

/** An agent that was revoked does not run any more: its journal says so. */
async function explainSilence(options: PlaceOptions, error: unknown): Promise<never> {
  if (!isSluiceError(error, 'agent.unreachable')) throw error
  const { stateDir } = await configOf(options)
  const { lockedOutAtMs } = (await openJournal(stateDir)).data
  if (lockedOutAtMs === undefined) throw error
  const since = instantText(lockedOutAtMs)
  throw new SluiceError('identity.revoked', `this agent was revoked; it ended at ${since}`, {
    hint: 'Ask security. Its sealed spools are kept; the host joins again with an empty state directory.',
  })
}

function factText(key: string, value: unknown): string {
  if (key.endsWith('AtMs') && typeof value === 'number') return instantText(value)
  return typeof value === 'string' ? value : JSON.stringify(value)
}

const resultLine = z.object({ jobId, resultPath: z.string(), files: z.array(z.string()) })

async function results(
  id: string | undefined,
  options: PlaceOptions & { json?: true },
): Promise<void> {
  const wanted = id === undefined ? undefined : jobId.safeParse(id)
  if (wanted?.success === false) throw new SluiceError('usage', `not the id of a job: ${id}`)
  const lines = await ask(options, {
    type: 'results',
    ...(wanted?.data === undefined ? {} : { jobId: wanted.data }),
  })
  const found = lines.map((line) => resultLine.parse(line))
  if (wanted?.data !== undefined) {
    const one = found[0]
    if (!one)
      throw new SluiceError('result.not_found', `no result of job ${wanted.data} is on this host`, {
        hint: 'Results are kept for "resultsKeepDays"; see `sluice-agent status`.',
      })
    return print((await readFile(one.resultPath, 'utf8')).trimEnd())
  }
  if (options.json) return print(JSON.stringify(found))
  for (const { jobId: each, resultPath, files } of found)
    print(`${each}  ${resultPath}  ${files.map((file) => path.basename(file)).join(' ')}`)
}
