/*
 * The process at the other end of a connection: who it is, and its end
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "process.h"

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* In the flags of proc_pid_stat(5), from Linux's sched.h */
#define PF_EXITING              0x00000004
#define PF_SIGNALED             0x00000400

struct Ivshmem2Process {
    pid_t pid;                  /* 0: cannot be seen */
    int pidfd;                  /* or -1 */
    uint64_t start_time;        /* that was searched for, or 0 */
    Ivshmem2Watch watch;        /* if there is a pidfd, else: */
    Ivshmem2Timer timer;
    Ivshmem2Loop *loop;         /* NULL: not watched */
    Ivshmem2Timers *timers;
    void (*gone)(void *opaque);
    void *opaque;
};

/* Of proc_pid_stat(5) */
typedef struct Stat {
    uint32_t flags;
    uint64_t start_time;
    uint64_t pending;           /* a bit for each signal but the highest */
} Stat;

/* Linux answers this without waiting for the process. */
static bool read_stat(pid_t pid, Stat *st)
{
    char path[32];
    char text[1024];            /* twice as much as there can be */
    const char *rest;
    ssize_t n;
    int fd;

    snprintf(path, sizeof(path), "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    ivshmem2_close(&fd);
    if (n < 0) {
        return false;
    }
    text[n] = 0;
    /* The second field is the name, in which everything can be. */
    rest = strrchr(text, ')');
    return rest &&
           sscanf(rest + 1, " %*c %*d %*d %*d %*d %*d %" SCNu32 " %*u %*u %*u "
                  "%*u %*u %*u %*d %*d %*d %*d %*d %*d %" SCNu64 " %*u %*d %*u "
                  "%*u %*u %*u %*u %*u %" SCNu64, &st->flags,
                  &st->start_time, &st->pending) == 3;
}

static bool has_ended(int pidfd)
{
    struct pollfd pfd = { .fd = pidfd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLIN);
}

/* Returns a pidfd, or -1, and sets *@gone if there is no such process. */
static int open_pidfd(int fd, pid_t pid, bool *gone)
{
    int pidfd = -1;
    socklen_t len = sizeof(pidfd);

    if (!pid) {
        return -1;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) < 0) {
        pidfd = -1;
        /* The error for a reaped process depends on the version of Linux. */
        *gone = errno == ESRCH || errno == EINVAL || errno == ENODATA;
        if (errno == ENOPROTOOPT) {
            /*
             * Linux before 6.5.  In theory another process has this pid by
             * now; then this one counts as alive too long, never too short.
             * So those who compare processes compare their users as well.
             */
            pidfd = syscall(SYS_pidfd_open, pid, 0);
            *gone = pidfd < 0 && errno == ESRCH;
        }
    }
    if (pidfd >= 0 && has_ended(pidfd)) {
        ivshmem2_close(&pidfd);
        *gone = true;
    }
    return pidfd;
}

Ivshmem2Process *ivshmem2_process_open(int fd, pid_t pid)
{
    bool gone = false;
    int pidfd = open_pidfd(fd, pid, &gone);
    Ivshmem2Process *p;

    if (gone) {
        return NULL;
    }
    p = g_new0(Ivshmem2Process, 1);
    p->pid = pid;
    p->pidfd = pidfd;
    return p;
}

/* Another process may have the pid.  If that cannot be read, it is the one. */
static bool has_started(pid_t pid, uint64_t start_time)
{
    Stat st;

    return !start_time || !read_stat(pid, &st) || st.start_time == start_time;
}

Ivshmem2Process *ivshmem2_process_find(pid_t pid, uint64_t start_time)
{
    bool visible = pid && start_time;
    int pidfd = visible ? syscall(SYS_pidfd_open, pid, 0) : -1;
    Ivshmem2Process *p;

    if (visible && ((pidfd < 0 && errno == ESRCH) ||
                    !has_started(pid, start_time) ||
                    (pidfd >= 0 && has_ended(pidfd)))) {
        ivshmem2_close(&pidfd);
        return NULL;
    }
    p = g_new0(Ivshmem2Process, 1);
    p->pid = visible ? pid : 0;
    p->pidfd = pidfd;
    p->start_time = start_time;
    return p;
}

uint64_t ivshmem2_process_start_time(const Ivshmem2Process *p)
{
    Stat st;

    /* It still had its pid when this was read, if it lives after that. */
    return p->pid && read_stat(p->pid, &st) && ivshmem2_process_is_alive(p)
           ? st.start_time : 0;
}

/* Without a pidfd, there is only the pid. */
bool ivshmem2_process_is_alive(const Ivshmem2Process *p)
{
    if (p->pidfd >= 0) {
        return !has_ended(p->pidfd);
    }
    return p->pid && (kill(p->pid, 0) == 0 || errno != ESRCH) &&
           has_started(p->pid, p->start_time);
}

bool ivshmem2_process_is_ending(const Ivshmem2Process *p)
{
    Stat st;

    if (!p->pid) {
        return false;
    }
    /* The signal is pending until the process runs. */
    return !ivshmem2_process_is_alive(p) ||
           (read_stat(p->pid, &st) &&
            ((st.flags & (PF_EXITING | PF_SIGNALED)) ||
             (st.pending >> (SIGKILL - 1) & 1)));
}

bool ivshmem2_process_is_visible(const Ivshmem2Process *p)
{
    return p->pid;
}

static void process_ready(Ivshmem2Watch *w)
{
    Ivshmem2Process *p = IVSHMEM2_CONTAINER(w, Ivshmem2Process, watch);

    p->gone(p->opaque);
}

/* Without a pidfd, ask for the pid, or rely on the time. */
static void process_expired(Ivshmem2Timer *t)
{
    Ivshmem2Process *p = IVSHMEM2_CONTAINER(t, Ivshmem2Process, timer);

    if (ivshmem2_process_is_alive(p)) {
        ivshmem2_timer_start(t, p->timers, process_expired);
    } else {
        p->gone(p->opaque);
    }
}

void ivshmem2_process_watch(Ivshmem2Process *p, Ivshmem2Loop *loop,
                            Ivshmem2Timers *timers,
                            void (*gone)(void *opaque), void *opaque)
{
    p->loop = loop;
    p->timers = timers;
    p->gone = gone;
    p->opaque = opaque;
    p->watch.ready = process_ready;
    if (p->pidfd >= 0 &&
        !ivshmem2_loop_add(loop, &p->watch, p->pidfd, EPOLLIN, NULL)) {
        ivshmem2_close(&p->pidfd);
    }
    if (p->pidfd < 0) {
        ivshmem2_timer_start(&p->timer, timers, process_expired);
    }
}

void ivshmem2_process_free(Ivshmem2Process *p)
{
    ivshmem2_timer_stop(&p->timer);
    if (p->loop && p->pidfd >= 0) {
        ivshmem2_loop_remove(p->loop, &p->watch, p->pidfd);
    }
    ivshmem2_close(&p->pidfd);
    if (p->loop) {
        ivshmem2_loop_free_later(p->loop, p);
    } else {
        g_free(p);
    }
}

gid_t *ivshmem2_process_groups(int fd, gid_t gid, size_t *n)
{
    gid_t *gids = NULL;
    socklen_t len = 0;          /* in bytes */

    while (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, gids, &len) < 0) {
        if (errno != ERANGE) {
            len = 0;
            break;
        }
        gids = g_realloc(gids, len);
    }
    *n = len / sizeof(gid_t) + 1;
    gids = g_renew(gid_t, gids, *n);
    gids[*n - 1] = gid;
    return gids;
}
