/** A PKCS#11 library around SoftHSM's that hangs, or kills its process, when a test wants it. */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'

/** Why no such library can be made here; false when one can. */
export function withoutCompiler(): string | false {
  if (existsSync('/usr/bin/gcc')) return false
  const why = 'needs a compiler: apt-get install gcc'
  if (process.env['SLUICE_REQUIRE_ALL'] === '1') throw new Error(`the test ${why}`)
  return why
}

export type StubbornModule = {
  library: string
  /** Every call that begins from now on ends after `goOn`, in every process. */
  hang(): Promise<void>
  goOn(): Promise<void>
  /** Whether a call hangs. */
  hangs(): boolean
  /**
   * The next process whose command line holds `program` dies by SIGKILL at its n-th call since it was
   * started; one process, once.
   */
  doom(fate: { program: string; call: number; when: 'before' | 'after' }): Promise<void>
  /** @returns Whether somebody died. */
  fulfilled(): Promise<boolean>
}

/**
 * The functions that Sluice calls, by their places in CK_FUNCTION_LIST (pkcs11f.h): none has more
 * than six arguments, so all are passed on alike.
 */
const source = `
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long Word;
typedef Word (*Function)(Word, Word, Word, Word, Word, Word);
typedef struct { unsigned char version[8]; Function entries[68]; } List;

static List list;
static const List *real;
static int calls;

static void die_if_doomed(const char *when) {
  char program[64] = {0}, now[8] = {0}, line[4096] = {0};
  int at = 0;
  FILE *fate = fopen(FOLDER "/fate", "r");
  if (!fate) return;
  int read = fscanf(fate, "%63s %d %7s", program, &at, now);
  fclose(fate);
  if (read != 3 || at != calls || strcmp(when, now)) return;
  FILE *self = fopen("/proc/self/cmdline", "r");
  size_t length = fread(line, 1, sizeof line - 1, self);
  fclose(self);
  for (size_t i = 0; i < length; i++) if (!line[i]) line[i] = ' ';
  if (strstr(line, program) && !unlink(FOLDER "/fate")) kill(getpid(), SIGKILL);
}

static Word pass(int entry, Word a, Word b, Word c, Word d, Word e, Word f) {
  calls++;
  if (!access(FOLDER "/hang", F_OK)) {
    close(open(FOLDER "/hangs", O_CREAT | O_WRONLY, 0600));
    while (!access(FOLDER "/hang", F_OK)) usleep(5000);
  }
  die_if_doomed("before");
  Word result = real->entries[entry](a, b, c, d, e, f);
  die_if_doomed("after");
  return result;
}

#define WRAP(entry) static Word wrap##entry(Word a, Word b, Word c, Word d, Word e, Word f) \\
  { return pass(entry, a, b, c, d, e, f); }
#define EACH(X) X(4) X(6) X(12) X(13) X(18) X(22) X(24) X(26) X(27) X(28) X(29) X(30) X(33) X(34) X(58)
EACH(WRAP)

Word C_GetFunctionList(List **out) {
  if (!real) {
    void *library = dlopen(SOFTHSM, RTLD_NOW | RTLD_LOCAL);
    if (!library) return 5;
    Word (*get)(const List **) = (Word (*)(const List **))dlsym(library, "C_GetFunctionList");
    if (!get || get(&real)) return 5;
    list = *real;
#define SET(entry) list.entries[entry] = wrap##entry;
    EACH(SET)
  }
  *out = &list;
  return 0;
}
`

/** @param around Path of SoftHSM's library. */
export async function makeStubbornModule(folder: string, around: string): Promise<StubbornModule> {
  const at = join(folder, 'stubborn')
  await mkdir(at, { recursive: true })
  const library = join(at, 'stubborn.so')
  const names = [`-DFOLDER="${at}"`, `-DSOFTHSM="${around}"`]
  const input = ['-x', 'c', '-', '-ldl', '-o', library]
  execFileSync('gcc', ['-shared', '-fPIC', '-O1', ...names, ...input], { input: source })
  return {
    library,
    hang: () => writeFile(join(at, 'hang'), ''),
    async goOn() {
      await rm(join(at, 'hang'), { force: true })
      await rm(join(at, 'hangs'), { force: true })
    },
    hangs: () => existsSync(join(at, 'hangs')),
    doom: ({ program, call, when }) => writeFile(join(at, 'fate'), `${program} ${call} ${when}\n`),
    async fulfilled() {
      const fulfilled = !existsSync(join(at, 'fate'))
      await rm(join(at, 'fate'), { force: true })
      return fulfilled
    },
  }
}
