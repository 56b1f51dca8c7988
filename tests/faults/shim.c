/* Counts the calls that change files under given folders, and at the N-th one kills, stops or fails. For LD_PRELOAD.
 *
 * What to do stands in a small shared file (`struct plan`, written by shim.py), so that all processes of a trial count
 * together. A process begins when its environment has FAULTS_PLAN, or when it calls faults_begin (a forked child).
 * Each counted call is a line of the log: number, process, kind, size, path, second path, separated by tabs.
 *
 * What a library does by system calls of its own is not seen: safetensors writes through libc, and then renames so.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PREFIXES 4
#define LENGTH 512
#define EXPORT __attribute__((visibility("default")))

enum action { NOTHING, BEFORE, AFTER, HALF, FAIL, FAIL_ONCE, SHORT };
enum target { SELF, PARENT, GROUP };
enum kind { WRITE, RENAME, UNLINK, MKDIR, SYNC, TRUNCATE, CREATE, MAP };
static const char *const NAMES[] = {"write", "rename", "unlink", "mkdir", "sync", "truncate", "create", "map"};

/* shim.py has the same layout. */
struct plan {
    int64_t count;     /* calls so far, of all processes */
    int64_t at;        /* the call at which something happens; 0 for none */
    int64_t free;      /* bytes that the disk says are free; -1 for the truth */
    int32_t action, error, signal, target;
    int32_t kinds;     /* bit set of the kinds that fail */
    int32_t fired;     /* set once it has happened */
    char log[LENGTH];
    char prefixes[PREFIXES][LENGTH];
};

static struct plan *plan;

static void raw_log(const char *text, size_t size) {
    int file = syscall(SYS_openat, AT_FDCWD, plan->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (file >= 0) {
        syscall(SYS_write, file, text, size);
        syscall(SYS_close, file);
    }
}

EXPORT int faults_begin(const char *path) {
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return -1;
    struct plan *found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (found == MAP_FAILED) return -1;
    plan = found;
    return 0;
}

EXPORT int faults_size(void) { return sizeof(struct plan); }

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_PLAN");
    if (path) faults_begin(path);
}

/* Paths */

static int is_ours(const char *path) {
    for (int place = 0; place < PREFIXES; place++) {
        size_t size = strlen(plan->prefixes[place]);
        if (size && !strncmp(path, plan->prefixes[place], size) && (path[size] == '/' || !path[size]))
            return !strstr(path, "status.json"); /* a thread writes it when its time has come */
    }
    return 0;
}

static int read_link(const char *link, char *path) {
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return 1;
}

static int of_file(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    return read_link(link, path);
}

static int absolute(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (!name) return 0;
    if (name[0] != '/' && !(folder == AT_FDCWD ? read_link("/proc/self/cwd", base) : of_file(folder, base))) return 0;
    return snprintf(path, PATH_MAX, "%s%s%s", base, name[0] == '/' ? "" : "/", name) < PATH_MAX;
}

/* What happens at a call */

struct call {
    int64_t number; /* 0 for a call that is not counted */
    enum kind kind;
};

static void hit(void) {
    __atomic_store_n(&plan->fired, 1, __ATOMIC_SEQ_CST);
    pid_t who = plan->target == PARENT ? getppid() : plan->target == GROUP ? -getpgrp() : getpid();
    if (plan->target == SELF && plan->signal == SIGKILL) {
        syscall(SYS_kill, who, SIGKILL);
        for (;;) pause();
    }
    syscall(SYS_kill, who, plan->signal);
}

static struct call enter(enum kind kind, long size, const char *path, const char *other) {
    struct call call = {0, kind};
    int before = errno;
    if (!plan || !(is_ours(path) || (other && is_ours(other)))) return call;
    call.number = __atomic_add_fetch(&plan->count, 1, __ATOMIC_SEQ_CST);
    char line[2 * PATH_MAX + 100];
    int wrote = snprintf(line, sizeof line, "%ld\t%d\t%s\t%ld\t%s\t%s\n", (long)call.number, (int)getpid(), NAMES[kind],
                         size, path, other ? other : "");
    raw_log(line, wrote);
    if (call.number == plan->at && plan->action == BEFORE) hit();
    errno = before;
    return call;
}

static int fails(struct call call) {
    if (!call.number || !plan->at || !(plan->kinds >> call.kind & 1)) return 0;
    int now = plan->action == FAIL_ONCE ? call.number >= plan->at && !plan->fired
            : plan->action == FAIL      ? call.number >= plan->at
            : plan->action == SHORT     ? call.number > plan->at
                                        : 0;
    if (!now) return 0;
    __atomic_store_n(&plan->fired, 1, __ATOMIC_SEQ_CST);
    errno = plan->error;
    return 1;
}

static void leave(struct call call) {
    int before = errno;
    if (call.number && call.number == plan->at && (plan->action == AFTER || plan->action == HALF)) hit();
    errno = before;
}

static int is_cut(struct call call) {
    return call.number && call.number == plan->at && (plan->action == HALF || plan->action == SHORT);
}

#define REAL(result, name, types)  \
    static result(*real) types;    \
    if (!real) real = (result(*) types)dlsym(RTLD_NEXT, name)

/* Writing */

static struct call writing(int file, long size) {
    char path[PATH_MAX];
    struct call none = {0, WRITE};
    if (!plan || !of_file(file, path)) return none;
    return enter(WRITE, size, path, NULL);
}

EXPORT ssize_t write(int file, const void *data, size_t size) {
    REAL(ssize_t, "write", (int, const void *, size_t));
    struct call call = writing(file, size);
    if (fails(call)) return -1;
    ssize_t done = real(file, data, is_cut(call) ? size / 2 : size);
    leave(call);
    return done;
}

#define PWRITE(name, offset)                                                   \
    EXPORT ssize_t name(int file, const void *data, size_t size, offset place) { \
        REAL(ssize_t, #name, (int, const void *, size_t, offset));               \
        struct call call = writing(file, size);                                \
        if (fails(call)) return -1;                                            \
        ssize_t done = real(file, data, is_cut(call) ? size / 2 : size, place); \
        leave(call);                                                           \
        return done;                                                           \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

static long total(const struct iovec *parts, int count) {
    long size = 0;
    for (int place = 0; place < count; place++) size += parts[place].iov_len;
    return size;
}

EXPORT ssize_t writev(int file, const struct iovec *parts, int count) {
    REAL(ssize_t, "writev", (int, const struct iovec *, int));
    struct call call = writing(file, plan ? total(parts, count) : 0);
    if (fails(call)) return -1;
    struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2};
    ssize_t done = is_cut(call) ? real(file, &half, 1) : real(file, parts, count);
    leave(call);
    return done;
}

#define PWRITEV(name, offset)                                                     \
    EXPORT ssize_t name(int file, const struct iovec *parts, int count, offset place) { \
        REAL(ssize_t, #name, (int, const struct iovec *, int, offset));             \
        struct call call = writing(file, plan ? total(parts, count) : 0);         \
        if (fails(call)) return -1;                                               \
        struct iovec half = {parts[0].iov_base, parts[0].iov_len / 2};            \
        ssize_t done = is_cut(call) ? real(file, &half, 1, place) : real(file, parts, count, place); \
        leave(call);                                                              \
        return done;                                                              \
    }
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)

#define SENDFILE(name, offset)                                                 \
    EXPORT ssize_t name(int to, int from, offset *place, size_t size) {        \
        REAL(ssize_t, #name, (int, int, offset *, size_t));                      \
        struct call call = writing(to, size);                                  \
        if (fails(call)) return -1;                                            \
        ssize_t done = real(to, from, place, is_cut(call) ? size / 2 : size);  \
        leave(call);                                                           \
        return done;                                                           \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

EXPORT ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t size, unsigned flags) {
    REAL(ssize_t, "copy_file_range", (int, off64_t *, int, off64_t *, size_t, unsigned));
    struct call call = writing(to, size);
    if (fails(call)) return -1;
    ssize_t done = real(from, start, to, place, is_cut(call) ? size / 2 : size, flags);
    leave(call);
    return done;
}

/* Everything else is a call that is done, or is not: NAME(ARGUMENTS) of KIND on the file at PATH. */

#define ON_FILE(kind, name, declared, types, given)   \
    EXPORT int name declared {                        \
        REAL(int, #name, types);                      \
        char path[PATH_MAX];                          \
        struct call call = {0, kind};                 \
        if (plan && of_file(file, path)) call = enter(kind, 0, path, NULL); \
        if (fails(call)) return -1;                   \
        int done = real given;                        \
        leave(call);                                  \
        return done;                                  \
    }
ON_FILE(SYNC, fsync, (int file), (int), (file))
ON_FILE(SYNC, fdatasync, (int file), (int), (file))
ON_FILE(TRUNCATE, ftruncate, (int file, off_t size), (int, off_t), (file, size))
ON_FILE(TRUNCATE, ftruncate64, (int file, off64_t size), (int, off64_t), (file, size))
ON_FILE(TRUNCATE, fallocate, (int file, int mode, off_t start, off_t size), (int, int, off_t, off_t),
        (file, mode, start, size))
ON_FILE(TRUNCATE, fallocate64, (int file, int mode, off64_t start, off64_t size),
        (int, int, off64_t, off64_t), (file, mode, start, size))

/* These two return the error and do not set errno. */
#define RESERVE(name, offset)                                        \
    EXPORT int name(int file, offset start, offset size) {           \
        REAL(int, #name, (int, offset, offset));                       \
        char path[PATH_MAX];                                         \
        struct call call = {0, TRUNCATE};                            \
        if (plan && of_file(file, path)) call = enter(TRUNCATE, size, path, NULL); \
        if (fails(call)) return errno;                               \
        int done = real(file, start, size);                          \
        leave(call);                                                 \
        return done;                                                 \
    }
RESERVE(posix_fallocate, off_t)
RESERVE(posix_fallocate64, off64_t)

#define ON_NAME(kind, name, folder, text, declared, types, given)            \
    EXPORT int name declared {                                               \
        REAL(int, #name, types);                                             \
        char path[PATH_MAX];                                                 \
        struct call call = {0, kind};                                        \
        if (plan && absolute(folder, text, path)) call = enter(kind, 0, path, NULL); \
        if (fails(call)) return -1;                                          \
        int done = real given;                                               \
        leave(call);                                                         \
        return done;                                                         \
    }
ON_NAME(UNLINK, unlink, AT_FDCWD, name, (const char *name), (const char *), (name))
ON_NAME(UNLINK, rmdir, AT_FDCWD, name, (const char *name), (const char *), (name))
ON_NAME(UNLINK, remove, AT_FDCWD, name, (const char *name), (const char *), (name))
ON_NAME(UNLINK, unlinkat, at, name, (int at, const char *name, int flags), (int, const char *, int),
        (at, name, flags))
ON_NAME(MKDIR, mkdir, AT_FDCWD, name, (const char *name, mode_t mode), (const char *, mode_t),
        (name, mode))
ON_NAME(MKDIR, mkdirat, at, name, (int at, const char *name, mode_t mode), (int, const char *, mode_t),
        (at, name, mode))
ON_NAME(CREATE, symlink, AT_FDCWD, name, (const char *to, const char *name), (const char *, const char *),
        (to, name))
ON_NAME(TRUNCATE, truncate, AT_FDCWD, name, (const char *name, off_t size), (const char *, off_t),
        (name, size))
ON_NAME(TRUNCATE, truncate64, AT_FDCWD, name, (const char *name, off64_t size), (const char *, off64_t),
        (name, size))

#define ON_TWO(kind, name, first, one, second, two, declared, types, given)  \
    EXPORT int name declared {                                               \
        REAL(int, #name, types);                                             \
        char path[PATH_MAX], other[PATH_MAX];                                \
        struct call call = {0, kind};                                        \
        if (plan && absolute(first, one, path) && absolute(second, two, other)) \
            call = enter(kind, 0, path, other);                              \
        if (fails(call)) return -1;                                          \
        int done = real given;                                               \
        leave(call);                                                         \
        return done;                                                         \
    }
ON_TWO(RENAME, rename, AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to),
       (const char *, const char *), (from, to))
ON_TWO(RENAME, renameat, at, from, there, to, (int at, const char *from, int there, const char *to),
       (int, const char *, int, const char *), (at, from, there, to))
ON_TWO(RENAME, renameat2, at, from, there, to,
       (int at, const char *from, int there, const char *to, unsigned flags),
       (int, const char *, int, const char *, unsigned), (at, from, there, to, flags))
ON_TWO(CREATE, link, AT_FDCWD, from, AT_FDCWD, to, (const char *from, const char *to),
       (const char *, const char *), (from, to))
ON_TWO(CREATE, linkat, at, from, there, to, (int at, const char *from, int there, const char *to, int flags),
       (int, const char *, int, const char *, int), (at, from, there, to, flags))

/* Opening counts when it is for writing. A full disk lets files be opened that are there. */

static struct call opening(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    struct call call = {0, CREATE};
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (!plan || !writes || !absolute(folder, name, path)) return call;
    call = enter(CREATE, flags, path, NULL);
    int is_full = plan->error == ENOSPC || plan->error == EDQUOT;
    if (is_full && !syscall(SYS_faccessat, AT_FDCWD, path, F_OK)) call.number = 0;
    return call;
}

#define MODE(flags)                                                                \
    mode_t mode = 0;                                                               \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) {                 \
        va_list more;                                                              \
        va_start(more, flags);                                                     \
        mode = va_arg(more, mode_t);                                               \
        va_end(more);                                                              \
    }

#define OPEN(symbol)                                   \
    EXPORT int symbol(const char *name, int flags, ...) { \
        REAL(int, #symbol, (const char *, int, ...));    \
        MODE(flags)                                    \
        struct call call = opening(AT_FDCWD, name, flags); \
        if (fails(call)) return -1;                    \
        int done = real(name, flags, mode);            \
        leave(call);                                   \
        return done;                                   \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(symbol)                                         \
    EXPORT int symbol(int at, const char *name, int flags, ...) { \
        REAL(int, #symbol, (int, const char *, int, ...));       \
        MODE(flags)                                            \
        struct call call = opening(at, name, flags);           \
        if (fails(call)) return -1;                            \
        int done = real(at, name, flags, mode);                \
        leave(call);                                           \
        return done;                                           \
    }
OPENAT(openat)
OPENAT(openat64)

#define CREAT(symbol)                                                  \
    EXPORT int symbol(const char *name, mode_t mode) {                 \
        REAL(int, #symbol, (const char *, mode_t));                      \
        struct call call = opening(AT_FDCWD, name, O_CREAT | O_TRUNC); \
        if (fails(call)) return -1;                                    \
        int done = real(name, mode);                                   \
        leave(call);                                                   \
        return done;                                                   \
    }
CREAT(creat)
CREAT(creat64)

/* C++ streams open with fopen, and write with write and writev. */
#define FOPEN(symbol)                                                                      \
    EXPORT FILE *symbol(const char *name, const char *mode) {                              \
        REAL(FILE *, #symbol, (const char *, const char *));                                 \
        struct call call = opening(AT_FDCWD, name, strpbrk(mode, "wa") ? O_CREAT | O_TRUNC : 0); \
        if (fails(call)) return NULL;                                                      \
        FILE *done = real(name, mode);                                                     \
        leave(call);                                                                       \
        return done;                                                                       \
    }
FOPEN(fopen)
FOPEN(fopen64)

/* A shared mapping writes without a call: it is counted where it is made. */
#define MMAP(symbol, offset)                                                            \
    EXPORT void *symbol(void *where, size_t size, int protection, int flags, int file, offset place) { \
        REAL(void *, #symbol, (void *, size_t, int, int, int, offset));                   \
        char path[PATH_MAX];                                                            \
        struct call call = {0, MAP};                                                    \
        if (plan && file >= 0 && flags & MAP_SHARED && protection & PROT_WRITE && of_file(file, path)) \
            call = enter(MAP, size, path, NULL);                                        \
        if (fails(call)) return MAP_FAILED;                                             \
        void *done = real(where, size, protection, flags, file, place);                 \
        leave(call);                                                                    \
        return done;                                                                    \
    }
MMAP(mmap, off_t)
MMAP(mmap64, off64_t)

/* Free space, as the plan says */

#define STATVFS(symbol, type)                                      \
    EXPORT int symbol(const char *name, struct type *found) {      \
        REAL(int, #symbol, (const char *, struct type *));           \
        int done = real(name, found);                              \
        if (!done && plan && plan->free >= 0) found->f_bavail = found->f_bfree = plan->free / found->f_frsize; \
        return done;                                               \
    }
STATVFS(statvfs, statvfs)
STATVFS(statvfs64, statvfs64)
