/*
 * The supervisor: keeps the link's descriptors while servers come and go
 *
 * One thread, so that it can fork.  After SIGUSR2 it replaces itself, too: the
 * process stays, with all descriptors, and runs the new program.
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
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "listen.h"
#include "store.h"
#include "supervise.h"

/* A server that lived for less than this is started again later and later. */
#define SHORT_LIFE      G_USEC_PER_SEC
#define MIN_DELAY       (G_USEC_PER_SEC / 10)
#define MAX_DELAY       (5 * G_USEC_PER_SEC)

/* Time that a server has to end, and a new program to show that it runs */
#define END_TIME        (10 * G_USEC_PER_SEC)
#define CHECK_TIME      (5 * G_USEC_PER_SEC)

/* Descriptors that the supervisor needs besides those that it keeps */
#define OTHER_FDS       64

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4
#endif

typedef enum Aim {
    AIM_SERVE,
    AIM_UPGRADE,                /* when the server has ended */
    AIM_END,
} Aim;

typedef struct Supervisor {
    const Ivshmem2Options *options;
    char **argv;
    char *program;
    Ivshmem2Store *manager;     /* of the supervisor itself */
    Ivshmem2Listener listener;
    GArray *kept;               /* of int; the first one is the socket */
    uint64_t room;              /* how many it can keep */
    sigset_t signals;
    int signal_fd;
    pid_t pid;                  /* of the server; 0: none */
    int fd;                     /* to the server */
    Aim aim;
    bool was_ready;             /* one of the servers was */
    int64_t started;
    int64_t delay;
    int64_t next;               /* deadline: start, or kill; -1: none */
    int status;                 /* how the server ended, see waitpid() */
    int exit_status;            /* of the supervisor */
} Supervisor;

bool ivshmem2_is_supervised(void)
{
    return g_getenv(IVSHMEM2_SUPERVISOR_ENV);
}

/* Descriptors for a program */

/* So that these numbers are not used for others */
static void open_standard_files(void)
{
    int fd;

    do {
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    } while (fd >= 0 && fd <= STDERR_FILENO);
    ivshmem2_close(&fd);
}

/* For all descriptors from @first on */
static void close_on_exec(unsigned first)
{
#ifdef SYS_close_range
    syscall(SYS_close_range, first, ~0U, CLOSE_RANGE_CLOEXEC);
#endif
}

/*
 * Give the @n descriptors @fds the numbers that sd_listen_fds(3) wants, in any
 * order, and let a program inherit them.  Overwrites other descriptors.
 */
static bool arrange(int *fds, int n)
{
    const int start = IVSHMEM2_LISTEN_FDS_START;
    g_autofree bool *taken = g_new0(bool, n);
    int hole = 0;

    for (int i = 0; i < n; i++) {
        if (fds[i] < start + n) {
            taken[fds[i] - start] = true;
        }
    }
    for (int i = 0; i < n; i++) {
        if (fds[i] >= start + n) {
            while (taken[hole]) {
                hole++;
            }
            if (dup2(fds[i], start + hole) < 0) {
                return false;
            }
            close(fds[i]);
            fds[i] = start + hole++;
        }
        fcntl(fds[i], F_SETFD, 0);
    }
    close_on_exec(start + n);
    return true;
}

static void set_number(const char *name, uint64_t value)
{
    g_autofree char *text = g_strdup_printf("%" PRIu64, value);

    g_setenv(name, text, TRUE);
}

static void announce(const Supervisor *s)
{
    set_number("LISTEN_FDS", s->kept->len);
    set_number("LISTEN_PID", getpid());
}

/* The server: its life */

static void unblock_signals(void)
{
    sigset_t none;

    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
}

/* One that comes before the server looks for signals ends it in order, too. */
static void leave_sigterm_to_server(void)
{
    sigset_t child;

    unblock_signals();
    sigemptyset(&child);
    sigaddset(&child, SIGTERM);
    sigprocmask(SIG_BLOCK, &child, NULL);
}

/* In the child.  Does not return. */
static void be_server(Supervisor *s, int fd, pid_t supervisor)
{
    int n = s->kept->len;
    int high;

    /* Nobody else could keep it. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != supervisor) {
        _exit(EXIT_FAILURE);
    }
    high = fcntl(fd, F_DUPFD_CLOEXEC, IVSHMEM2_LISTEN_FDS_START + n + 1);
    if (high >= 0 && arrange((int *)s->kept->data, n) &&
        dup2(high, IVSHMEM2_LISTEN_FDS_START + n) >= 0) {
        announce(s);
        set_number(IVSHMEM2_SUPERVISOR_ENV, IVSHMEM2_LISTEN_FDS_START + n);
        set_number("FDSTORE", s->room);
        g_unsetenv("NOTIFY_SOCKET");
        leave_sigterm_to_server();
        execv(s->program, s->argv);
        g_printerr("ivshmem2-server: cannot run %s, running what was there "
                   "before: %s\n", s->program, g_strerror(errno));
        execv("/proc/self/exe", s->argv);
    }
    g_printerr("ivshmem2-server: cannot run %s: %s\n", s->program,
               g_strerror(errno));
    _exit(EXIT_FAILURE);
}

static bool start_child(Supervisor *s, GError **error)
{
    pid_t self = getpid();
    int fds[2];

    s->next = -1;
    s->started = g_get_monotonic_time();
    /* Messages are as long as they were sent, and only the child can send. */
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
        return ivshmem2_fail_errno(error, "cannot create a socket");
    }
    s->pid = fork();
    if (s->pid == 0) {
        be_server(s, fds[1], self);
    }
    ivshmem2_close(&fds[1]);
    if (s->pid < 0) {
        s->pid = 0;
        ivshmem2_close(&fds[0]);
        return ivshmem2_fail_errno(error, "cannot start a process");
    }
    s->fd = fds[0];
    return true;
}

static void schedule(Supervisor *s)
{
    s->next = g_get_monotonic_time() + s->delay;
}

/* Later and later if servers do not live long */
static void start_again(Supervisor *s)
{
    if (g_get_monotonic_time() - s->started < SHORT_LIFE) {
        s->delay = CLAMP(2 * s->delay, MIN_DELAY, MAX_DELAY);
    } else {
        s->delay = 0;
    }
    schedule(s);
}

static void end_server(Supervisor *s, Aim aim)
{
    s->aim = aim;
    if (s->pid) {
        kill(s->pid, SIGTERM);
        s->next = g_get_monotonic_time() + END_TIME;
    }
}

/* Messages from the server */

static void keep(Supervisor *s, struct msghdr *msg)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
        if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
            size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

            for (size_t i = 0; i < n; i++) {
                int fd;

                memcpy(&fd, CMSG_DATA(c) + i * sizeof(fd), sizeof(fd));
                g_array_append_val(s->kept, fd);
            }
        }
    }
    if (msg->msg_flags & MSG_CTRUNC) {
        g_warning("the supervisor cannot open more files (RLIMIT_NOFILE): the "
                  "link will not survive this server");
    }
}

static void handle_line(Supervisor *s, const char *line)
{
    if (!strcmp(line, "READY=1")) {
        if (!s->was_ready) {
            g_autofree char *text = g_strdup_printf("READY=1\nMAINPID=%d",
                                                    getpid());

            ivshmem2_store_notify(s->manager, text);
            ivshmem2_store_started(s->manager);
        }
        s->was_ready = true;
    } else if (g_str_has_prefix(line, "STATUS=")) {
        ivshmem2_store_notify(s->manager, line);
    }
}

/* Returns false if there is nothing more to read. */
static bool receive(Supervisor *s)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(IVSHMEM2_STORE_FDS * sizeof(int))];
    } control;
    char text[512];
    struct iovec iov = { .iov_base = text, .iov_len = sizeof(text) - 1 };
    struct msghdr msg = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = control.buf,
        .msg_controllen = sizeof(control.buf),
    };
    g_auto(GStrv) lines = NULL;
    ssize_t len;

    do {
        len = recvmsg(s->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (len < 0 && errno == EINTR);
    if (len <= 0) {
        return false;
    }
    keep(s, &msg);
    text[len] = 0;
    lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        handle_line(s, *line);
    }
    return true;
}

/* Upgrades */

/* In the child.  Does not return. */
static void be_checked_program(const Supervisor *s, char **argv)
{
    int fd = open("/dev/null", O_WRONLY | O_CLOEXEC);

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(fd, STDOUT_FILENO);
    unblock_signals();
    execv(s->program, argv);
    g_printerr("ivshmem2-server: cannot run %s: %s\n", s->program,
               g_strerror(errno));
    _exit(EXIT_FAILURE);
}

static bool wait_for_check(pid_t pid, int *status)
{
    int64_t deadline = g_get_monotonic_time() + CHECK_TIME;

    while (waitpid(pid, status, WNOHANG) == 0) {
        if (g_get_monotonic_time() > deadline) {
            kill(pid, SIGKILL);
            waitpid(pid, status, 0);
            return false;
        }
        g_usleep(1000);
    }
    return true;
}

/* Does the program run, and know the options?  The server goes on meanwhile. */
static bool check_program(Supervisor *s, GError **error)
{
    g_autoptr(GPtrArray) args = g_ptr_array_new();
    int status = 0;
    pid_t pid;
    bool ended;

    for (char **arg = s->argv; *arg; arg++) {
        g_ptr_array_add(args, *arg);
    }
    g_ptr_array_add(args, (char *)"--version");
    g_ptr_array_add(args, NULL);
    pid = fork();
    if (pid == 0) {
        be_checked_program(s, (char **)args->pdata);
    }
    if (pid < 0) {
        return ivshmem2_fail_errno(error, "cannot start a process");
    }
    ended = wait_for_check(pid, &status);
    return (ended && WIFEXITED(status) && WEXITSTATUS(status) == 0) ||
           ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                         "with these options and --version it %s",
                         ended ? "fails" : "does not end");
}

static void upgrade(Supervisor *s)
{
    g_autoptr(GError) error = NULL;

    if (!s->was_ready) {
        g_warning("no upgrade, the server is not ready yet");
        return;
    }
    if (!check_program(s, &error)) {
        g_warning("no upgrade, %s does not run: %s", s->program,
                  error->message);
        return;
    }
    g_info("upgrading to %s", s->program);
    end_server(s, AIM_UPGRADE);
}

static void open_signals(Supervisor *s)
{
    s->signal_fd = signalfd(-1, &s->signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

/* Returns only if the new program cannot be run. */
static void replace_self(Supervisor *s)
{
    int *fds = (int *)s->kept->data;

    /* these numbers may be needed */
    ivshmem2_close(&s->signal_fd);
    ivshmem2_store_close(s->manager);
    if (arrange(fds, s->kept->len)) {
        announce(s);
        execv(s->program, s->argv);
    }
    g_warning("cannot run %s, so the upgrade failed: %s", s->program,
              g_strerror(errno));
    g_unsetenv("LISTEN_PID");
    g_unsetenv("LISTEN_FDS");
    s->listener.fd = fds[0];
    close_on_exec(IVSHMEM2_LISTEN_FDS_START);
    s->manager = ivshmem2_store_open(NULL);
    ivshmem2_store_started(s->manager);
    open_signals(s);
    s->aim = AIM_SERVE;
}

/* The server: its end */

static void describe_end(const Supervisor *s)
{
    const char *again = s->aim == AIM_SERVE && s->was_ready
                        ? ", starting it again" : "";

    if (WIFSIGNALED(s->status)) {
        g_warning("the server (pid %d) was ended by signal %d%s", s->pid,
                  WTERMSIG(s->status), again);
    } else if (s->was_ready) {
        g_warning("the server (pid %d) ended with exit status %d%s", s->pid,
                  WEXITSTATUS(s->status), again);
    }
}

static void child_ended(Supervisor *s)
{
    while (s->fd >= 0 && receive(s)) {
        continue;
    }
    ivshmem2_close(&s->fd);
    if (s->aim == AIM_SERVE || s->status) {
        describe_end(s);
    }
    s->pid = 0;
    s->next = -1;
    if (!s->was_ready && s->aim != AIM_END) {
        /* The first one has said why it does not start. */
        s->aim = AIM_END;
        s->exit_status = WIFEXITED(s->status) && s->status
                         ? WEXITSTATUS(s->status) : EXIT_FAILURE;
    } else if (s->aim == AIM_SERVE) {
        start_again(s);
    }
}

static void reap(Supervisor *s)
{
    if (s->pid && waitpid(s->pid, &s->status, WNOHANG) == s->pid) {
        child_ended(s);
    }
}

/* The loop */

static void handle_signal(Supervisor *s, int sig)
{
    switch (sig) {
    case SIGCHLD:
        reap(s);
        break;
    case SIGUSR2:
        if (s->aim == AIM_SERVE) {
            upgrade(s);
        }
        break;
    case SIGHUP:
        if (s->options->access) {
            if (s->pid) {
                kill(s->pid, SIGHUP);
            }
            break;
        }
        /* fall through */
    default:
        ivshmem2_store_notify(s->manager, "STOPPING=1");
        end_server(s, AIM_END);
    }
}

static void handle_signals(Supervisor *s)
{
    struct signalfd_siginfo info;

    while (s->signal_fd >= 0 &&
           read(s->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        handle_signal(s, info.ssi_signo);
    }
}

static void handle_time(Supervisor *s)
{
    g_autoptr(GError) error = NULL;

    if (s->next < 0 || g_get_monotonic_time() < s->next) {
        return;
    }
    s->next = -1;
    if (s->pid) {
        g_warning("the server (pid %d) does not end, killing it", s->pid);
        kill(s->pid, SIGKILL);
    } else if (!start_child(s, &error)) {
        g_warning("the server cannot be started: %s", error->message);
        start_again(s);
    }
}

static void turn(Supervisor *s)
{
    struct pollfd fds[] = {
        { .fd = s->signal_fd, .events = POLLIN },
        { .fd = s->fd, .events = POLLIN },
    };

    poll(fds, G_N_ELEMENTS(fds), ivshmem2_deadline_ms(s->next));
    if (fds[1].revents && !receive(s)) {
        /* its end is still to come, or it does not want anything kept */
        ivshmem2_close(&s->fd);
    }
    handle_signals(s);
    handle_time(s);
}

static int supervise(Supervisor *s)
{
    for (;;) {
        if (!s->pid && s->aim == AIM_END) {
            return s->exit_status;
        }
        if (!s->pid && s->aim == AIM_UPGRADE) {
            replace_self(s);
            s->delay = 0;
            schedule(s);
        }
        turn(s);
    }
}

/* Start */

/*
 * Where the program is: a new one may be there later, so its file does not
 * count.
 */
static char *find_program(const char *name)
{
    return strchr(name, '/') ? g_canonicalize_filename(name, NULL)
                             : g_find_program_in_path(name);
}

/*
 * From a service manager, or from this process before an upgrade: the socket,
 * if there is one, becomes the first one.
 */
static void take_inherited(Supervisor *s, Ivshmem2Inherited *in)
{
    const GArray *arrays[] = { in->files, in->eventfds, in->others };

    g_array_append_val(s->kept, in->listen_fd);
    if (in->record_fd >= 0) {
        g_array_append_val(s->kept, in->record_fd);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(arrays); i++) {
        g_array_append_vals(s->kept, arrays[i]->data, arrays[i]->len);
        g_array_set_size((GArray *)arrays[i], 0);
    }
    in->listen_fd = -1;
    in->record_fd = -1;
    /* After an upgrade, a server that refuses to start ends nothing. */
    s->was_ready = s->kept->len > 1;
}

static bool get_socket(Supervisor *s, GError **error)
{
    const Ivshmem2Options *o = s->options;
    int *fd = &g_array_index(s->kept, int, 0);

    if (*fd < 0 && !o->socket) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--socket PATH is missing, and the service manager "
                             "passed no socket");
    }
    if (*fd < 0) {
        if (!ivshmem2_listen(&s->listener, o->socket, o->socket_mode,
                             o->socket_group, error)) {
            return false;
        }
        *fd = s->listener.fd;
        return true;
    }
    if (!ivshmem2_listen_inherited(&s->listener, *fd, o->socket, error)) {
        return false;
    }
    if (o->socket) {
        ivshmem2_listen_own_file(&s->listener, o->socket);
    }
    return true;
}

static void block_signals(Supervisor *s)
{
    sigemptyset(&s->signals);
    sigaddset(&s->signals, SIGTERM);
    sigaddset(&s->signals, SIGINT);
    sigaddset(&s->signals, SIGHUP);
    sigaddset(&s->signals, SIGUSR2);
    sigaddset(&s->signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &s->signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    open_signals(s);
}

/* As many as the server will have open */
static void plan_room(Supervisor *s)
{
    Ivshmem2LinkConfig link = s->options->link;
    uint64_t need = ivshmem2_budget_needs(&link, link.max_peers);
    uint64_t limit = ivshmem2_raise_file_limit(need + OTHER_FDS);

    s->room = limit > OTHER_FDS ? limit - OTHER_FDS : 0;
}

static bool prepare(Supervisor *s, Ivshmem2Inherited *in, GError **error)
{
    if (g_getenv("FDSTORE")) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--supervise does not go with a service manager "
                             "that keeps descriptors (FDSTORE): leave it out");
    }
    s->program = find_program(s->argv[0]);
    if (!s->program) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--supervise cannot find the program '%s'",
                             s->argv[0]);
    }
    s->manager = ivshmem2_store_open(error);
    if (!s->manager) {
        return false;
    }
    block_signals(s);
    plan_room(s);
    take_inherited(s, in);
    return get_socket(s, error) && start_child(s, error);
}

int ivshmem2_supervise(const Ivshmem2Options *o, char **argv, GError **error)
{
    Supervisor s = {
        .options = o,
        .argv = argv,
        .listener.fd = -1,
        .kept = g_array_new(FALSE, FALSE, sizeof(int)),
        .signal_fd = -1,
        .fd = -1,
    };
    Ivshmem2Inherited in;
    int status = -1;

    open_standard_files();
    close_on_exec(IVSHMEM2_LISTEN_FDS_START);
    ivshmem2_inherited_init(&in);
    if (prepare(&s, &in, error)) {
        status = supervise(&s);
    }
    ivshmem2_listen_end(&s.listener);
    ivshmem2_inherited_clear(&in);
    ivshmem2_store_close(s.manager);
    ivshmem2_close(&s.signal_fd);
    g_array_unref(s.kept);
    g_free(s.program);
    return status;
}
