/*
 * Fuzzing ivshmem2: the system that the code under test finds
 *
 * These functions take the place of the C library's.  They make system calls
 * fail or wait, and notice what a main loop must not do.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS   83
#endif

#define CLOSER          "ivshmem2-closer"
#define MAX_TRACKED     64
/* For threads to do what they have to, on a busy machine */
#define MANY_NAPS       100000
#define NAP_US          10

FuzzSystem fuzz_system;

/* Main loops */

static bool in_main_loop;       /* only the main thread looks at it */

/* Not GMutex, which ThreadSanitizer does not know */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned blocks;         /* reasons why nothing can be closed */
static bool closing;

/* Pipes: one end is with the code under test, or on the way to it. */
static int tracked[MAX_TRACKED];
static unsigned n_tracked;

/* Signals that were left to threads, and those that they have made */
static gint n_left, n_made;

typedef enum Role {
    ROLE_UNKNOWN,
    ROLE_MAIN,
    ROLE_CLOSER,
    ROLE_OTHER,
} Role;

static Role my_role(void)
{
    static __thread Role role;
    char name[16] = "";

    if (role == ROLE_UNKNOWN) {
        prctl(PR_GET_NAME, name);
        role = gettid() == getpid() ? ROLE_MAIN
             : strcmp(name, CLOSER) == 0 ? ROLE_CLOSER : ROLE_OTHER;
    }
    return role;
}

void fuzz_block(void)
{
    pthread_mutex_lock(&lock);
    blocks++;
    while (closing) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
}

void fuzz_unblock(void)
{
    pthread_mutex_lock(&lock);
    g_assert_cmpuint(blocks, >, 0);
    blocks--;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
}

/* Forget the pipes whose other end is closed; returns their number. */
static unsigned find_closed(void)
{
    struct pollfd pfds[MAX_TRACKED];
    unsigned n_open = 0;
    unsigned n = n_tracked;

    for (unsigned i = 0; i < n; i++) {
        pfds[i] = (struct pollfd) { .fd = tracked[i] };
    }
    if (n && poll(pfds, n, 0) > 0) {
        for (unsigned i = 0; i < n; i++) {
            if (pfds[i].revents & POLLHUP) {
                syscall(SYS_close, tracked[i]);
            } else {
                tracked[n_open++] = tracked[i];
            }
        }
        n_tracked = n_open;
    }
    return n - n_tracked;
}

void fuzz_enter(void)
{
    fuzz_block();
    find_closed();
    in_main_loop = true;
}

void fuzz_leave(void)
{
    in_main_loop = false;
    /* no other thread could do it */
    g_assert_cmpuint(find_closed(), ==, 0);
    fuzz_unblock();
}

int fuzz_make_tracked(void)
{
    int fds[2];

    if (n_tracked == MAX_TRACKED) {
        return -1;
    }
    g_assert_cmpint(pipe2(fds, O_CLOEXEC), ==, 0);
    tracked[n_tracked++] = fds[0];
    return fds[1];
}

unsigned fuzz_count_tracked(void)
{
    find_closed();
    return n_tracked;
}

static bool threads_are_done(void)
{
    return (blocks || !ivshmem2_disposals()) &&
           g_atomic_int_get(&n_left) == g_atomic_int_get(&n_made);
}

void fuzz_settle(void)
{
    for (int i = 0; i < MANY_NAPS && !threads_are_done(); i++) {
        g_usleep(NAP_US);
    }
    g_assert_true(threads_are_done());
}

void fuzz_system_begin(void)
{
    fuzz_system = (FuzzSystem) { .no_aio = false };
}

void fuzz_system_end(void)
{
    fuzz_settle();
    g_assert_cmpuint(fuzz_count_tracked(), ==, 0);
}

/* The C library */

int close(int fd)
{
    int ret;

    if (my_role() != ROLE_CLOSER) {
        ret = syscall(SYS_close, fd);
        if (my_role() == ROLE_OTHER) {
            g_atomic_int_inc(&n_made);
        }
        return ret;
    }
    pthread_mutex_lock(&lock);
    while (blocks) {
        pthread_cond_wait(&changed, &lock);
    }
    closing = true;
    pthread_mutex_unlock(&lock);
    ret = syscall(SYS_close, fd);
    pthread_mutex_lock(&lock);
    closing = false;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return ret;
}

/* A write to an eventfd may wait. */
ssize_t write(int fd, const void *buf, size_t size)
{
    if (my_role() == ROLE_MAIN) {
        g_assert_false(in_main_loop);
    }
    return syscall(SYS_write, fd, buf, size);
}

int setsockopt(int fd, int level, int name, const void *value, socklen_t len)
{
    if (level == SOL_SOCKET && name == SO_PASSRIGHTS &&
        fuzz_system.no_passrights) {
        errno = ENOPROTOOPT;
        return -1;
    }
    return syscall(SYS_setsockopt, fd, level, name, value, len);
}

/*
 * Threads signal then.  They use GMutex, which ThreadSanitizer does not know,
 * so with that it cannot fail.
 */
static bool has_aio(void)
{
    return !fuzz_system.no_aio || dlsym(RTLD_DEFAULT, "__tsan_init");
}

/* It may read more arguments than there are, as the C library's does. */
long __attribute__((no_sanitize("address", "undefined")))
syscall(long number, ...)
{
    static long (*next)(long number, ...);
    long a[6];
    va_list ap;

    va_start(ap, number);
    for (size_t i = 0; i < G_N_ELEMENTS(a); i++) {
        a[i] = va_arg(ap, long);
    }
    va_end(ap);
    if (number == SYS_io_submit && !has_aio()) {
        g_atomic_int_inc(&n_left);
        errno = EAGAIN;
        return -1;
    }
    if (number == SYS_pidfd_open && fuzz_system.pidfd_open) {
        return fuzz_system.pidfd_open(a[0]);
    }
    if (!g_atomic_pointer_get(&next)) {
        g_atomic_pointer_set(&next, (long (*)(long, ...))
                             dlsym(RTLD_NEXT, "syscall"));
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
