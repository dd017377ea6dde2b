/* Counts the calls of the C library that touch files below a directory, and lets one of them fail, or all from one on.

   Loaded by LD_PRELOAD; armed by fault_arm. Each call that fails is named in the file whose descriptor it was given. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { ERROR, SHORT, VANISH };

static char prefix[4096], elsewhere[4096];
static volatile long calls, strike;
static int code, once, mode, log_to = -1;
static volatile char ours[65536];

long fault_calls(void) { return calls; }

void fault_arm(const char *below, const char *away, long nth, int error, int only, int how, int descriptor) {
    strncpy(prefix, below, sizeof prefix - 1);
    strncpy(elsewhere, away, sizeof elsewhere - 1);
    calls = 0; strike = nth; code = error; once = only; mode = how; log_to = descriptor;
}

static int below(int directory, const char *path) {
    if (!prefix[0] || !path) return 0;
    if (path[0] == '/') return !strncmp(path, prefix, strlen(prefix));
    return directory >= 0 && directory < 65536 && ours[directory];
}

static int held(int fd) { return prefix[0] && fd >= 0 && fd < 65536 && ours[fd]; }

/* whether this call, which touches a file of ours, is to fail; a writing one is told apart for what is read-only */
static int fails_at(const char *name, const char *path, int fd, int writes) {
    long n = __sync_add_and_fetch(&calls, 1);
    if (!strike || n < strike || (once && n > strike)) return 0;
    if (mode == VANISH) {
        if (n == strike) syscall(SYS_renameat2, AT_FDCWD, prefix, AT_FDCWD, elsewhere, 0);
    } else if (mode == SHORT) {
        if (strcmp(name, "write")) return 0;
    } else if (!once && code == EROFS && !writes) {
        return 0;
    }
    if (log_to >= 0) {
        char line[8704], link[64], held_path[4096] = "";
        if (!path) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            if (readlink(link, held_path, sizeof held_path - 1) < 0) held_path[0] = 0;
        }
        int size = snprintf(line, sizeof line, "%ld %s %s\n", n, name, path ? path : held_path);
        syscall(SYS_write, log_to, line, (size_t)size);
    }
    if (mode == VANISH) return 0;
    if (mode == ERROR) errno = code;
    return 1;
}

static int fails(const char *name, const char *path, int writes) { return fails_at(name, path, -1, writes); }

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int opened(int fd, int mine) {
    if (fd >= 0 && fd < 65536) ours[fd] = (char)mine;
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(int, #name, const char *, int, ...); \
        va_list rest; va_start(rest, flags); int mode_ = va_arg(rest, int); va_end(rest); \
        int mine = below(-1, path); \
        if (mine && fails("open", path, flags & (O_WRONLY | O_RDWR | O_CREAT))) return -1; \
        return opened(real(path, flags, mode_), mine); \
    }
OPEN(open) OPEN(open64)

#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(int, #name, int, const char *, int, ...); \
        va_list rest; va_start(rest, flags); int mode_ = va_arg(rest, int); va_end(rest); \
        int mine = below(at, path); \
        if (mine && fails("open", path, flags & (O_WRONLY | O_RDWR | O_CREAT))) return -1; \
        return opened(real(at, path, flags, mode_), mine); \
    }
OPENAT(openat) OPENAT(openat64)

int close(int fd) {
    REAL(int, "close", int);
    int mine = held(fd);
    if (fd >= 0 && fd < 65536) ours[fd] = 0;
    int failed = mine && mode != VANISH && fails_at("close", NULL, fd, 1);
    int done = real(fd);
    if (failed && mode == ERROR) { errno = code; return -1; }
    return done;
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (held(fd) && fails_at("write", NULL, fd, 1)) {
        if (mode == ERROR) return -1;
        return real(fd, data, size > 1 ? size / 2 : size);
    }
    return real(fd, data, size);
}

ssize_t read(int fd, void *data, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    if (held(fd) && fails_at("read", NULL, fd, 0)) return -1;
    return real(fd, data, size);
}

#define ON_DESCRIPTOR(type, name, writes) \
    type name(int fd) { \
        REAL(type, #name, int); \
        if (held(fd) && fails_at(#name, NULL, fd, writes)) return -1; \
        return real(fd); \
    }
ON_DESCRIPTOR(int, fsync, 1) ON_DESCRIPTOR(int, fdatasync, 1)

#define ON_PATH(name, writes) \
    int name(const char *path) { \
        REAL(int, #name, const char *); \
        if (below(-1, path) && fails(#name, path, writes)) return -1; \
        return real(path); \
    }
ON_PATH(unlink, 1) ON_PATH(rmdir, 1)

int unlinkat(int at, const char *path, int flags) {
    REAL(int, "unlinkat", int, const char *, int);
    if (below(at, path) && fails("unlinkat", path, 1)) return -1;
    return real(at, path, flags);
}

int mkdir(const char *path, mode_t how) {
    REAL(int, "mkdir", const char *, mode_t);
    if (below(-1, path) && fails("mkdir", path, 1)) return -1;
    return real(path, how);
}

int mkdirat(int at, const char *path, mode_t how) {
    REAL(int, "mkdirat", int, const char *, mode_t);
    if (below(at, path) && fails("mkdirat", path, 1)) return -1;
    return real(at, path, how);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (below(-1, from) && fails("rename", from, 1)) return -1;
    return real(from, to);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    if (below(from_at, from) && fails("renameat", from, 1)) return -1;
    return real(from_at, from, to_at, to);
}

int ftruncate64(int fd, off64_t size) {
    REAL(int, "ftruncate64", int, off64_t);
    if (held(fd) && fails_at("ftruncate", NULL, fd, 1)) return -1;
    return real(fd, size);
}

#define STAT(name, kind) \
    int name(const char *path, struct kind *out) { \
        REAL(int, #name, const char *, struct kind *); \
        if (below(-1, path) && fails("stat", path, 0)) return -1; \
        return real(path, out); \
    }
STAT(stat, stat) STAT(stat64, stat64) STAT(lstat, stat) STAT(lstat64, stat64)

#define FSTATAT(name, kind) \
    int name(int at, const char *path, struct kind *out, int flags) { \
        REAL(int, #name, int, const char *, struct kind *, int); \
        if (below(at, path) && fails("stat", path, 0)) return -1; \
        return real(at, path, out, flags); \
    }
FSTATAT(fstatat, stat) FSTATAT(fstatat64, stat64)

#define FSTAT(name, kind) \
    int name(int fd, struct kind *out) { \
        REAL(int, #name, int, struct kind *); \
        if (held(fd) && fails_at("fstat", NULL, fd, 0)) return -1; \
        return real(fd, out); \
    }
FSTAT(fstat, stat) FSTAT(fstat64, stat64)

int statx(int at, const char *restrict path, int flags, unsigned int mask, struct statx *restrict out) {
    REAL(int, "statx", int, const char *, int, unsigned int, struct statx *);
    if ((below(at, path) || (!path[0] && held(at))) && fails("stat", path, 0)) return -1;
    return real(at, path, flags, mask, out);
}

DIR *opendir(const char *path) {
    REAL(DIR *, "opendir", const char *);
    if (below(-1, path) && fails("opendir", path, 0)) return NULL;
    return real(path);
}

DIR *fdopendir(int fd) {
    REAL(DIR *, "fdopendir", int);
    if (held(fd) && fails_at("fdopendir", NULL, fd, 0)) return NULL;
    return real(fd);
}
