/*
 * Fuzzing ivshmem2: processes, users and time that are not real
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-processes.h"
#include <errno.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

typedef enum Kind {
    KIND_NORMAL,                /* with pid and pidfd */
    KIND_NO_PIDFD,              /* the system has no descriptor left */
    KIND_OLD_LINUX,             /* without SO_PEERPIDFD */
    KIND_INVISIBLE,             /* without pid, as in another namespace */
} Kind;

typedef struct Process {
    bool alive;
    uint16_t generation;
    int exit_fd;                /* stands for its pidfd */
} Process;

static const Kind kinds[FUZZ_N_PROCESSES] = {
    KIND_NORMAL, KIND_NORMAL, KIND_NORMAL,
    KIND_NO_PIDFD, KIND_OLD_LINUX, KIND_INVISIBLE, KIND_NORMAL,
};

static Process processes[FUZZ_N_PROCESSES];
static int64_t now;             /* other threads look at it, too */

gint64 g_get_monotonic_time(void)
{
    return __atomic_load_n(&now, __ATOMIC_RELAXED);
}

void fuzz_pass_time(int64_t us)
{
    __atomic_add_fetch(&now, us, __ATOMIC_RELAXED);
}

/* No such process can exist. */
#define FIRST_PID 0x40000000

static pid_t pid_of(unsigned process)
{
    return kinds[process] == KIND_INVISIBLE ? 0 : FIRST_PID + process;
}

static uid_t uid_of(const FuzzIdentity *who)
{
    return who->process == FUZZ_OWN_USER ? getuid() : 1000U + who->user;
}

bool fuzz_process_lives(const FuzzIdentity *who)
{
    const Process *p = &processes[who->process];

    return p->alive && p->generation == who->generation;
}

/* Clients have addresses that end with this. */
static FuzzIdentity identity_of(int fd)
{
    struct sockaddr_un addr;
    socklen_t len = sizeof(addr);
    FuzzIdentity who;

    g_assert_cmpint(getpeername(fd, (struct sockaddr *)&addr, &len), ==, 0);
    memcpy(&who, (uint8_t *)&addr + len - sizeof(who), sizeof(who));
    g_assert_cmpuint(who.process, <, FUZZ_N_PROCESSES);
    return who;
}

static int get_cred(FuzzIdentity who, struct ucred *cred)
{
    cred->pid = pid_of(who.process);
    cred->uid = uid_of(&who);
    cred->gid = cred->uid;
    return 0;
}

static int get_pidfd(FuzzIdentity who, int *pidfd)
{
    *pidfd = -1;
    if (kinds[who.process] == KIND_OLD_LINUX) {
        errno = ENOPROTOOPT;
    } else if (!fuzz_process_lives(&who)) {
        errno = ESRCH;
    } else if (kinds[who.process] == KIND_NO_PIDFD) {
        errno = EMFILE;
    } else {
        *pidfd = fcntl(processes[who.process].exit_fd, F_DUPFD_CLOEXEC,
                       0);
    }
    return *pidfd < 0 ? -1 : 0;
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
    if (level == SOL_SOCKET && name == SO_PEERCRED) {
        return get_cred(identity_of(fd), value);
    }
    if (level == SOL_SOCKET && name == SO_PEERPIDFD) {
        return get_pidfd(identity_of(fd), value);
    }
    return syscall(SYS_getsockopt, fd, level, name, value, len);
}

/* The process that has @pid now, or NULL */
static Process *find_process(pid_t pid)
{
    g_assert_cmpint(pid, >=, FIRST_PID);
    g_assert_cmpint(pid, <, FIRST_PID + FUZZ_N_PROCESSES);
    if (!processes[pid - FIRST_PID].alive) {
        errno = ESRCH;
        return NULL;
    }
    return &processes[pid - FIRST_PID];
}

static int open_pidfd(pid_t pid)
{
    Process *p = find_process(pid);

    return p ? fcntl(p->exit_fd, F_DUPFD_CLOEXEC, 0) : -1;
}

int kill(pid_t pid, int signal)
{
    if (pid < FIRST_PID) {
        return syscall(SYS_kill, pid, signal);
    }
    g_assert_cmpint(signal, ==, 0);
    return find_process(pid) ? 0 : -1;
}

void fuzz_process_start(unsigned process)
{
    Process *p = &processes[process];

    if (!p->alive) {
        p->alive = true;
        p->exit_fd = make_eventfd();
    }
}

/* Its pidfds stay readable. */
void fuzz_process_end(unsigned process)
{
    const uint64_t one = 1;
    Process *p = &processes[process];

    if (p->alive) {
        p->alive = false;
        p->generation++;
        g_assert_cmpint(write(p->exit_fd, &one, sizeof(one)), ==, sizeof(one));
        ivshmem2_close(&p->exit_fd);
    }
}

uint16_t fuzz_process_generation(unsigned process)
{
    return processes[process].generation;
}

bool fuzz_process_has_pidfd(unsigned process)
{
    return kinds[process] == KIND_NORMAL;
}

bool fuzz_is_same_process(const FuzzIdentity *a, const FuzzIdentity *b)
{
    return a->process == b->process && a->user == b->user &&
           kinds[a->process] != KIND_INVISIBLE &&
           (kinds[a->process] != KIND_NORMAL ||
            a->generation == b->generation);
}

void fuzz_processes_begin(void)
{
    memset(processes, 0, sizeof(processes));
    fuzz_system.pidfd_open = open_pidfd;
}
