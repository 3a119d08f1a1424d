/** A filter of system calls for everything that runs in the sandbox: what no decoder or analyser has any business with is refused by the kernel. */
import { existsSync, readFileSync } from 'node:fs'

/** Numbers of calls on one architecture, and its name in the kernel's audit. */
type Architecture = {
  audit: number
  /** Refused whatever the arguments are. */
  refused: readonly number[]
  clone: number
  clone3: number
  socket: number
  ioctl: number
  /** Numbers from here on belong to another calling convention. */
  foreignFrom?: number
}

/**
 * Where calls are the same number on every architecture: io_uring, the mount calls of 5.2 and later, pidfd_getfd,
 * quotactl_fd.
 */
const everywhere = [425, 426, 427, 428, 429, 430, 431, 432, 433, 438, 442, 443]

/**
 * In this order: ptrace, process_vm_readv, process_vm_writev, kcmp, add_key, request_key, keyctl, bpf,
 * perf_event_open, userfaultfd, mount, umount2, pivot_root, chroot, swapon, swapoff, reboot,
 * sethostname, setdomainname, init_module, delete_module, finit_module, kexec_load, kexec_file_load,
 * name_to_handle_at, open_by_handle_at, unshare, setns, acct, quotactl, syslog, settimeofday,
 * clock_settime, clock_adjtime, adjtimex, lookup_dcookie, vhangup, nfsservctl, fanotify_init,
 * personality, vmsplice; on x86-64 also uselib, ustat, sysfs, _sysctl, modify_ldt, iopl, ioperm,
 * create_module, get_kernel_syms, query_module.
 *
 * @see arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux; the
 *   choice follows what container runtimes and Flatpak refuse.
 */
const architectures: Partial<Record<NodeJS.Architecture, Architecture>> = {
  x64: {
    audit: 0xc000003e,
    refused: [
      ...[101, 310, 311, 312, 248, 249, 250, 321, 298, 323, 165, 166, 155, 161, 167, 168, 169],
      ...[170, 171, 175, 176, 313, 246, 320, 303, 304, 272, 308, 163, 179, 103, 164, 227, 305],
      ...[159, 212, 153, 180, 300, 135, 278, 134, 136, 139, 156, 154, 172, 173, 174, 177, 178],
      ...everywhere,
    ],
    clone: 56,
    clone3: 435,
    socket: 41,
    ioctl: 16,
    foreignFrom: 0x40000000,
  },
  arm64: {
    audit: 0xc00000b7,
    refused: [
      ...[117, 270, 271, 272, 217, 218, 219, 280, 241, 282, 40, 39, 41, 51, 224, 225, 142],
      ...[161, 162, 105, 106, 273, 104, 294, 264, 265, 97, 268, 89, 60, 116, 170, 112, 266],
      ...[171, 18, 58, 42, 262, 92, 75],
      ...everywhere,
    ],
    clone: 220,
    clone3: 435,
    socket: 198,
    ioctl: 29,
  },
}

/** @see linux/errno.h */
const errno = { notPermitted: 1, notImplemented: 38, familyNotSupported: 97 }

/** AF_UNIX, AF_INET, AF_INET6: pipes between own processes, and a network that holds nothing. */
const families = [1, 2, 10]
/** Every CLONE_NEW… flag: new namespaces. */
const namespaces = 0x7e020000
/** TIOCSTI and TIOCLINUX type into a terminal. */
const terminalTricks = [0x5412, 0x541c]

/**
 * The program for `bwrap --seccomp`, or nothing where this kernel has no filters or the architecture is
 * not known here: the level then says `any`.
 */
export function systemCallFilter(): Buffer | undefined {
  const architecture = architectures[process.arch]
  return architecture !== undefined && kernelFilters() ? assemble(architecture) : undefined
}

let filters: boolean | undefined

function kernelFilters(): boolean {
  const actions = '/proc/sys/kernel/seccomp/actions_avail'
  filters ??= existsSync(actions) && readFileSync(actions, 'latin1').split(/\s/).includes('errno')
  return filters
}

/**
 * Whether this process, and so all it starts, is under a filter already, such as `SystemCallFilter=` of its
 * service, and can gain no privileges that lift it.
 *
 * @see proc_pid_status(5): 2 is SECCOMP_MODE_FILTER.
 */
export function inheritsFilter(): boolean {
  const status = readFileSync('/proc/self/status', 'latin1')
  return /^Seccomp:\s*2$/m.test(status) && /^NoNewPrivs:\s*1$/m.test(status)
}

/** Offsets in `struct seccomp_data`; arguments are looked at in their lower half, little-endian. */
const field = { call: 0, architecture: 4, firstArgument: 16, secondArgument: 24 }

/** Instructions of classic BPF: load a word, compare, and return. */
const load = (offset: number) => instruction(0x20, 0, 0, offset)
const give = (result: number) => instruction(0x06, 0, 0, result)
const equal = (value: number, then: number, otherwise: number) =>
  instruction(0x15, then, otherwise, value)
const atLeast = (value: number, then: number, otherwise: number) =>
  instruction(0x35, then, otherwise, value)
const anyBit = (value: number, then: number, otherwise: number) =>
  instruction(0x45, then, otherwise, value)

const allow = give(0x7fff0000)
const kill = give(0x80000000)
const refuse = (reason: number) => give(0x00050000 | reason)

/** @see seccomp(2) and Documentation/networking/filter.rst of Linux. */
function assemble(architecture: Architecture): Buffer {
  const { audit, refused, clone, clone3, socket, ioctl, foreignFrom } = architecture
  return Buffer.concat([
    load(field.architecture),
    equal(audit, 1, 0),
    kill,
    load(field.call),
    ...(foreignFrom === undefined
      ? []
      : [atLeast(foreignFrom, 0, 1), refuse(errno.notImplemented)]),
    ...refused.flatMap((call) => [equal(call, 0, 1), refuse(errno.notPermitted)]),
    // Its flags lie in memory, out of a filter's sight; the C library then takes the older call.
    equal(clone3, 0, 1),
    refuse(errno.notImplemented),
    equal(clone, 0, 4),
    load(field.firstArgument),
    anyBit(namespaces, 0, 1),
    refuse(errno.notPermitted),
    allow,
    equal(socket, 0, 2 + families.length + 1),
    load(field.firstArgument),
    ...families.map((family, i) => equal(family, families.length - i, 0)),
    refuse(errno.familyNotSupported),
    allow,
    equal(ioctl, 0, 2 + terminalTricks.length + 1),
    load(field.secondArgument),
    ...terminalTricks.map((request, i) => equal(request, terminalTricks.length - i, 0)),
    allow,
    refuse(errno.notPermitted),
    allow,
  ])
}

/** `struct sock_filter`: code, how far to jump if true and if false, operand. */
function instruction(code: number, then: number, otherwise: number, operand: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeUInt16LE(code)
  bytes.writeUInt8(then, 2)
  bytes.writeUInt8(otherwise, 3)
  bytes.writeUInt32LE(operand, 4)
  return bytes
}
