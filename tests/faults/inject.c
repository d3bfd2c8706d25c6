// Preloaded into a program: the MP4SR_FAULT_AT-th (from 0) call of one kind on an unfinished artifact fails, and all after it.
// MP4SR_FAULT is write, fsync, rename or open; MP4SR_FAULT_ERRNO the error.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_int seen;

static int fails(const char *kind, const char *path) {
    const char *wanted = getenv("MP4SR_FAULT"), *at = getenv("MP4SR_FAULT_AT"), *error = getenv("MP4SR_FAULT_ERRNO");
    if (!wanted || !at || !error || strcmp(wanted, kind) != 0 || !strstr(path, ".mp4sr-tmp-")) return 0;
    if (atomic_fetch_add(&seen, 1) < atoi(at)) return 0;
    errno = atoi(error);
    return 1;
}

static int fails_on(const char *kind, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

ssize_t write(int fd, const void *bytes, size_t count) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "write");
    return fails_on("write", fd) ? -1 : next(fd, bytes, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    static ssize_t (*next)(int, const struct iovec *, int);
    if (!next) next = dlsym(RTLD_NEXT, "writev");
    return fails_on("write", fd) ? -1 : next(fd, parts, count);
}

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fsync");
    return fails_on("fsync", fd) ? -1 : next(fd);
}

int rename(const char *from, const char *to) {
    static int (*next)(const char *, const char *);
    if (!next) next = dlsym(RTLD_NEXT, "rename");
    return fails("rename", from) ? -1 : next(from, to);
}

int open64(const char *path, int flags, ...) {
    static int (*next)(const char *, int, ...);
    if (!next) next = dlsym(RTLD_NEXT, "open64");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return fails("open", path) ? -1 : next(path, flags, mode);
}
