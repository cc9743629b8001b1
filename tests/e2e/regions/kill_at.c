/* Preloaded: ends the process by SIGKILL before its n-th call that changes a file; with `torn` in the middle of its
 * n-th pwrite(2), counting only these. kill_at(n, torn) arms it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

static long left = -1;
static int tear;

void kill_at(long n, int torn)
{
    left = n;
    tear = torn;
}

static int now(void)
{
    return left >= 0 && left-- == 0;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    pause();
}

#define CHANGE(name, parameters, ...)                                                                                  \
    int name parameters                                                                                                \
    {                                                                                                                  \
        int (*real) parameters = (int (*) parameters)dlsym(RTLD_NEXT, #name);                                          \
        if (!tear && now())                                                                                            \
            die();                                                                                                     \
        return real(__VA_ARGS__);                                                                                      \
    }

CHANGE(rename, (const char *from, const char *to), from, to)
CHANGE(renameat, (int a, const char *from, int b, const char *to), a, from, b, to)
CHANGE(link, (const char *from, const char *to), from, to)
CHANGE(linkat, (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
CHANGE(symlink, (const char *to, const char *path), to, path)
CHANGE(symlinkat, (const char *to, int a, const char *path), to, a, path)
CHANGE(unlink, (const char *path), path)
CHANGE(unlinkat, (int a, const char *path, int flags), a, path, flags)
CHANGE(fsync, (int fd), fd)
CHANGE(fdatasync, (int fd), fd)
CHANGE(ftruncate, (int fd, off_t size), fd, size)
CHANGE(ftruncate64, (int fd, off64_t size), fd, size)

#define WRITE(name, offset_type)                                                                                       \
    ssize_t name(int fd, const void *from, size_t size, offset_type offset)                                            \
    {                                                                                                                  \
        ssize_t (*real)(int, const void *, size_t, offset_type) =                                                      \
            (ssize_t(*)(int, const void *, size_t, offset_type))dlsym(RTLD_NEXT, #name);                               \
        if (now()) {                                                                                                   \
            if (tear && real(fd, from, size / 2, offset) < 0)                                                          \
                perror("pwrite");                                                                                      \
            die();                                                                                                     \
        }                                                                                                              \
        return real(fd, from, size, offset);                                                                           \
    }
WRITE(pwrite, off_t)
WRITE(pwrite64, off64_t)
