/* Sees, records and refuses the system calls that a process makes on the files below one folder, whoever makes them.

   A seccomp filter turns each file system call of the process into SIGSYS, and the handler makes it, or does not. A
   preloaded library would miss what is called without libc, as safetensors' renaming is. The calls that the handler
   makes leave from one known instruction, which the filter lets through. Linux on x86-64. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#ifndef __x86_64__
#error "x86-64 only"
#endif

enum { NEITHER, PATH, AT, TWO_PATHS, TWO_AT, FD, WRITES, READS, DUP, MAP, COPY };
enum { ONCE, ON, SHORT, INTERRUPT, INTERRUPT_TWICE, KILL };

static const struct { long nr; const char *name; int kind; int allocates; } CALLS[] = {
    {SYS_open, "open", PATH, 0}, {SYS_openat, "openat", AT, 0}, {SYS_creat, "creat", PATH, 1},
    {SYS_write, "write", WRITES, 1}, {SYS_pwrite64, "pwrite64", WRITES, 1}, {SYS_writev, "writev", WRITES, 1},
    {SYS_read, "read", READS, 0}, {SYS_pread64, "pread64", READS, 0}, {SYS_readv, "readv", READS, 0},
    {SYS_fsync, "fsync", FD, 1}, {SYS_fdatasync, "fdatasync", FD, 1}, {SYS_close, "close", FD, 0},
    {SYS_ftruncate, "ftruncate", FD, 1}, {SYS_fallocate, "fallocate", FD, 1}, {SYS_truncate, "truncate", PATH, 1},
    {SYS_rename, "rename", TWO_PATHS, 1}, {SYS_renameat, "renameat", TWO_AT, 1},
    {SYS_renameat2, "renameat2", TWO_AT, 1}, {SYS_link, "link", TWO_PATHS, 1}, {SYS_linkat, "linkat", TWO_AT, 1},
    {SYS_symlink, "symlink", TWO_PATHS, 1}, {SYS_mkdir, "mkdir", PATH, 1}, {SYS_mkdirat, "mkdirat", AT, 1},
    {SYS_unlink, "unlink", PATH, 0}, {SYS_unlinkat, "unlinkat", AT, 0}, {SYS_rmdir, "rmdir", PATH, 0},
    {SYS_stat, "stat", PATH, 0}, {SYS_lstat, "lstat", PATH, 0}, {SYS_newfstatat, "newfstatat", AT, 0},
    {SYS_statx, "statx", AT, 0}, {SYS_fstat, "fstat", FD, 0}, {SYS_access, "access", PATH, 0},
    {SYS_faccessat, "faccessat", AT, 0}, {SYS_faccessat2, "faccessat2", AT, 0}, {SYS_readlink, "readlink", PATH, 0},
    {SYS_getdents64, "getdents64", FD, 0}, {SYS_flock, "flock", FD, 0}, {SYS_chmod, "chmod", PATH, 0},
    {SYS_fchmod, "fchmod", FD, 0}, {SYS_utimensat, "utimensat", AT, 0}, {SYS_lseek, "lseek", FD, 0},
    {SYS_fcntl, "fcntl", DUP, 0}, {SYS_dup, "dup", DUP, 0}, {SYS_dup2, "dup2", DUP, 0}, {SYS_dup3, "dup3", DUP, 0},
    {SYS_mmap, "mmap", MAP, 0}, {SYS_sendfile, "sendfile", COPY, 1},
    {SYS_copy_file_range, "copy_file_range", COPY, 1}, {SYS_splice, "splice", COPY, 1},
};
enum { COUNT = sizeof CALLS / sizeof *CALLS, FDS = 4096, PIECE = 1 << 16 };

/* What a record begins with; two paths and the bytes written follow it. */
struct record { int32_t call, lengths[2], bytes; int64_t args[4], result, at; };

/* What the process that asked reads: calls seen, the call that the fault fell on, whether it fell. */
struct shared { int64_t calls, call, fell; };

static struct shared own, *shared = &own;
static char below[4096];
static size_t below_length;
static char mine[FDS];
static int trace = -1;
static long when = -1, fault, mode, told;

long gate(long nr, long a, long b, long c, long d, long e, long f);
extern char gate_end[];
__asm__(".text\n.globl gate\n.type gate,@function\ngate:\n mov %rdi,%rax\n mov %rsi,%rdi\n mov %rdx,%rsi\n"
        " mov %rcx,%rdx\n mov %r8,%r10\n mov %r9,%r8\n mov 8(%rsp),%r9\n syscall\n.globl gate_end\ngate_end:\n ret\n");

static int inside(int folder, const char *path) {
    if (!path) return 0;
    if (path[0] == '/') return !strncmp(path, below, below_length) && (!path[below_length] || path[below_length] == '/');
    return folder >= 0 && folder < FDS && mine[folder];
}

static int held(long fd) { return fd >= 0 && fd < FDS && mine[fd]; }

static void put(const void *data, size_t n) {
    while (n) {
        long done = gate(SYS_write, trace, (long)data, n, 0, 0, 0);
        if (done <= 0) return;
        data = (const char *)data + done, n -= done;
    }
}

static void record(int k, const long *a, long result) {
    int kind = CALLS[k].kind;
    const char *paths[2] = {0, 0};
    if (kind == PATH || kind == TWO_PATHS) paths[0] = (const char *)a[0];
    if (kind == AT || kind == TWO_AT) paths[0] = (const char *)a[1];
    if (kind == TWO_PATHS) paths[1] = (const char *)a[1];
    if (kind == TWO_AT) paths[1] = (const char *)a[3];
    struct record r = {k, {0, 0}, 0, {a[0], a[1], a[2], a[3]}, result, 0};
    for (int i = 0; i < 2; i++) r.lengths[i] = paths[i] ? strlen(paths[i]) : 0;
    if (kind == WRITES && result > 0) {
        r.bytes = result;
        r.at = CALLS[k].nr == SYS_pwrite64 ? a[3] : gate(SYS_lseek, a[0], 0, SEEK_CUR, 0, 0, 0) - result;
    }
    put(&r, sizeof r);
    for (int i = 0; i < 2; i++) put(paths[i], r.lengths[i]);
    if (r.bytes && CALLS[k].nr != SYS_writev) put((const void *)a[1], r.bytes);
    if (r.bytes && CALLS[k].nr == SYS_writev) {
        const struct iovec *v = (const struct iovec *)a[1];
        for (long left = r.bytes; left > 0; left -= v->iov_len, v++)
            put(v->iov_base, left < (long)v->iov_len ? left : (long)v->iov_len);
    }
}

/* Whether the call allocates on the disk: what a full one refuses. */
static int allocates(int k, const long *a) {
    if (CALLS[k].nr == SYS_open) return a[1] & (O_CREAT | O_TRUNC);
    if (CALLS[k].nr == SYS_openat) return a[2] & (O_CREAT | O_TRUNC);
    return CALLS[k].allocates;
}

static long make(int k, long *a) {
    long nr = CALLS[k].nr, n = ++shared->calls, result;
    int here = n == when;
    if (when < 0 || n < when) return gate(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (here) shared->call = k;
    switch (mode) {
    case KILL:
        if (here) gate(SYS_kill, gate(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGKILL, 0, 0, 0, 0);
        break;
    case INTERRUPT:
    case INTERRUPT_TWICE:
        if (told < (mode == INTERRUPT ? 1 : 2)) {
            told++, shared->fell++;
            gate(SYS_kill, gate(SYS_getpid, 0, 0, 0, 0, 0, 0), SIGINT, 0, 0, 0, 0);
        }
        break;
    case SHORT: /* half of it is written, and then the disk is full */
        if (here && nr == SYS_write && a[2] > 1) {
            shared->fell++;
            return gate(nr, a[0], a[1], a[2] / 2, 0, 0, 0);
        }
        if (here) return gate(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        /* fall through */
    case ON:
        if (!here && !allocates(k, a)) break;
        /* fall through */
    case ONCE:
        if (mode == ONCE && !here) break;
        shared->fell++;
        if (nr == SYS_close) gate(nr, a[0], 0, 0, 0, 0, 0); /* Linux lets go of it all the same */
        return -fault;
    }
    result = gate(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
    return result;
}

static void handle(int signal, siginfo_t *info, void *context) {
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    long nr = g[REG_RAX], a[6] = {g[REG_RDI], g[REG_RSI], g[REG_RDX], g[REG_R10], g[REG_R8], g[REG_R9]};
    int k = 0, ours = 0;
    while (k < COUNT && CALLS[k].nr != nr) k++;
    switch (k < COUNT ? CALLS[k].kind : NEITHER) {
    case PATH: ours = inside(-1, (char *)a[0]); break;
    case AT: ours = inside(a[0], (char *)a[1]); break;
    case TWO_PATHS: ours = inside(-1, (char *)a[0]) || inside(-1, (char *)a[1]); break;
    case TWO_AT: ours = inside(a[0], (char *)a[1]) || inside(a[2], (char *)a[3]); break;
    case FD: case WRITES: case READS: case DUP: ours = held(a[0]); break;
    case MAP: ours = held(a[4]); break;
    case COPY: ours = held(nr == SYS_copy_file_range || nr == SYS_splice ? a[2] : a[0]); break;
    }
    if (!ours || k == COUNT) {
        g[REG_RAX] = gate(nr, a[0], a[1], a[2], a[3], a[4], a[5]);
        return;
    }
    if (CALLS[k].kind == COPY) { /* copied by reading and writing instead, which every caller falls back to */
        g[REG_RAX] = -EINVAL;
        return;
    }
    long result = make(k, a);
    if (result >= 0 && result < FDS) {
        if (nr == SYS_open || nr == SYS_openat || nr == SYS_creat || nr == SYS_dup || nr == SYS_dup2 || nr == SYS_dup3)
            mine[result] = 1;
        if (nr == SYS_fcntl && (a[1] == F_DUPFD || a[1] == F_DUPFD_CLOEXEC)) mine[result] = 1;
    }
    if (nr == SYS_close && held(a[0])) mine[a[0]] = 0;
    if (trace >= 0) record(k, a, result);
    g[REG_RAX] = result;
}

/* The name of a call of a record. */
const char *trap_name(int k) { return k >= 0 && k < COUNT ? CALLS[k].name : ""; }

/* Watch the files below `folder` (an absolute path). to: records go to this file descriptor, none where < 0.
   at: the call, from 1, that the fault falls on, none where < 0. error: errno. how: ONCE, ON, ... as above. */
void trap_arm(const char *folder, int to, void *counters, long at, long error, long how) {
    strncpy(below, folder, sizeof below - 1);
    below_length = strlen(below);
    if (counters) shared = counters;
    trace = to, when = at, fault = error, mode = how;
}

/* Install the filter; it cannot be taken away again. 0, or -1 where the system has none. */
int trap_install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    if (sigaction(SIGSYS, &action, 0)) return -1;
    uint64_t ip = (uint64_t)gate_end;
    struct sock_filter f[16 + 2 * COUNT];
    int n = 0;
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, instruction_pointer));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)ip, 0, 3);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                                          offsetof(struct seccomp_data, instruction_pointer) + 4);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(ip >> 32), 0, 1);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int k = 0; k < COUNT; k++) {
        f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, CALLS[k].nr, 0, 1);
        f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP);
    }
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = {n, f};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return -1;
    return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}
