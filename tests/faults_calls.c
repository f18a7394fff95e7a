// Fails, or ends the process at, the n-th call that changes a file below a folder; loaded before libc (LD_PRELOAD).
//
// Python, Orbax and tensorstore all end in these calls. faults_arm says which is to fail and how; until then, and
// elsewhere, the calls are those of libc.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, ONCE, FROM_THEN_ON, KILL };
static char root[PATH_MAX];
static size_t root_length;
static int mode = OFF, number;
static long at, count;
static char names[1 << 16];

void faults_arm(const char *folder, long which, int error, int how) {
    strncpy(root, folder, sizeof root - 1);
    root_length = strlen(root);
    at = which, number = error, count = 0, names[0] = 0, mode = how;
}
long faults_count(void) { return count; }
const char *faults_names(void) { return names; }

static int below(const char *path) { return path && !strncmp(path, root, root_length); }
static int at_folder(int folder, const char *path) {
    if (path && path[0] == '/') return below(path);
    char link[64], found[PATH_MAX];
    if (folder == AT_FDCWD) return 0;  // relative paths are not used
    snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return below(found);
}
static int of_file(int file) { return at_folder(file, ""); }

// 0: go on; 1: fail with `number`; 2: write a half first, and then end or fail.
static int struck(const char *name, int is_write) {
    long own = __atomic_fetch_add(&count, 1, __ATOMIC_SEQ_CST);
    if (strlen(names) + strlen(name) + 2 < sizeof names) strcat(strcat(names, name), " ");
    if (own < at || (own > at && mode != FROM_THEN_ON)) return 0;
    if (mode == KILL && !is_write) _exit(137);
    if (mode == FROM_THEN_ON && (!strcmp(name, "unlink") || !strcmp(name, "rmdir"))) return 0;  // a full disk takes these
    return is_write && own == at && mode != ONCE ? 2 : 1;
}
static void torn(void) { if (mode == KILL) _exit(137); }

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define STRIKE(name, where) if (mode && (where) && struck(name, 0)) { errno = number; return -1; }
#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))

#define OPEN(name) int name(const char *path, int flags, ...) { REAL(name); va_list more; va_start(more, flags); \
    mode_t own = va_arg(more, mode_t); va_end(more); \
    STRIKE("open", WRITES(flags) && below(path)) return real(path, flags, own); }
OPEN(open) OPEN(open64)
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { REAL(name); va_list more; va_start(more, flags); \
    mode_t own = va_arg(more, mode_t); va_end(more); \
    STRIKE("open", WRITES(flags) && at_folder(folder, path)) return real(folder, path, flags, own); }
OPENAT(openat) OPENAT(openat64)

#define HALF(call) if (mode && of_file(file)) { int found = struck("write", 1); \
    if (found == 2) { size = size / 2; ssize_t done = size ? (call) : 0; torn(); if (done > 0) return done; found = 1; } \
    if (found) { errno = number; return -1; } } return call;
ssize_t write(int file, const void *data, size_t size) { REAL(write); HALF(real(file, data, size)) }
ssize_t pwrite(int file, const void *data, size_t size, off_t to) { REAL(pwrite); HALF(real(file, data, size, to)) }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t to) { REAL(pwrite64); HALF(real(file, data, size, to)) }
ssize_t writev(int file, const struct iovec *parts, int size) { REAL(writev); STRIKE("write", of_file(file)) return real(file, parts, size); }
ssize_t pwritev(int file, const struct iovec *parts, int size, off_t to) { REAL(pwritev); STRIKE("write", of_file(file)) return real(file, parts, size, to); }
ssize_t copy_file_range(int from, off64_t *start, int file, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range); STRIKE("write", of_file(file)) return real(from, start, file, to, size, flags); }
int fsync(int file) { REAL(fsync); STRIKE("fsync", of_file(file)) return real(file); }
int fdatasync(int file) { REAL(fdatasync); STRIKE("fsync", of_file(file)) return real(file); }
int ftruncate(int file, off_t size) { REAL(ftruncate); STRIKE("truncate", of_file(file)) return real(file, size); }
int ftruncate64(int file, off64_t size) { REAL(ftruncate64); STRIKE("truncate", of_file(file)) return real(file, size); }
#define ALLOCATE(name, type) int name(int file, type start, type size) { REAL(name); \
    if (mode && of_file(file) && struck("allocate", 0)) return number; return real(file, start, size); }
ALLOCATE(posix_fallocate, off_t) ALLOCATE(posix_fallocate64, off64_t)
int rename(const char *from, const char *to) { REAL(rename); STRIKE("rename", below(to)) return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) { REAL(renameat); STRIKE("rename", at_folder(b, to)) return real(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { REAL(renameat2); STRIKE("rename", at_folder(b, to)) return real(a, from, b, to, flags); }
int link(const char *from, const char *to) { REAL(link); STRIKE("rename", below(to)) return real(from, to); }
int mkdir(const char *path, mode_t own) { REAL(mkdir); STRIKE("mkdir", below(path)) return real(path, own); }
int mkdirat(int folder, const char *path, mode_t own) { REAL(mkdirat); STRIKE("mkdir", at_folder(folder, path)) return real(folder, path, own); }
int unlink(const char *path) { REAL(unlink); STRIKE("unlink", below(path)) return real(path); }
int unlinkat(int folder, const char *path, int flags) { REAL(unlinkat); STRIKE(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at_folder(folder, path)) return real(folder, path, flags); }
int rmdir(const char *path) { REAL(rmdir); STRIKE("rmdir", below(path)) return real(path); }
int utimensat(int folder, const char *path, const struct timespec when[2], int flags) { REAL(utimensat); STRIKE("utime", at_folder(folder, path)) return real(folder, path, when, flags); }
