/*
 * ivshmem2-server and ivshmem2-client on a kernel that refuses, or is old
 *
 * A seccomp filter makes single system calls fail.  If the program needs the
 * call, it says so and leaves nothing behind; if there is another way, the
 * program works.
 *
 * The programs are those of IVSHMEM2_SERVER and IVSHMEM2_CLIENT.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <glib/gstdio.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD    77
#endif

#ifndef SYS_fchmodat2
#define SYS_fchmodat2   452
#endif

#define SERVER  "IVSHMEM2_SERVER"
#define CLIENT  "IVSHMEM2_CLIENT"

/* For events that are expected at once, on a busy machine */
#define SOON_MS         30000

/* A system call that fails, perhaps only with this value of an argument */
typedef struct Refusal {
    int error;                  /* 0: none */
    int call;
    bool has_value;
    int argument;
    uint32_t value;
} Refusal;

#define REFUSE(name, err) \
    { .call = SYS_ ## name, .error = err }
#define REFUSE_ARG(name, err, arg, val) \
    { .call = SYS_ ## name, .error = err, \
      .has_value = true, .argument = arg, .value = val }

typedef struct Case {
    const char *options;        /* of the program */
    const char *words;          /* in its error message */
    Refusal refusals[2];
} Case;

#define CASE(opts, text, ...) \
    { .options = opts, .words = text, .refusals = { __VA_ARGS__ } }

static bool install(const Refusal *r)
{
    uint32_t value = offsetof(struct seccomp_data, args) +
                     8 * r->argument +
                     (G_BYTE_ORDER == G_BIG_ENDIAN ? 4 : 0);
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, r->call, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, value),
        /* any value is at least 0 */
        BPF_JUMP(BPF_JMP | (r->has_value ? BPF_JEQ : BPF_JGE) | BPF_K,
                 r->value, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | r->error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { G_N_ELEMENTS(code), code };

    return !r->error ||
           (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

/* In a child, which ends when the test ends, even if the test crashes */
static void prepare(gpointer refusals)
{
    const Refusal *r = refusals;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (!install(&r[0]) || !install(&r[1])) {
        _exit(99);
    }
}

/* The same for a program that must end by itself */
static void prepare_to_end(gpointer refusals)
{
    alarm(SOON_MS / 1000);
    prepare(refusals);
}

/* Some containers do not allow seccomp filters. */
static bool can_refuse(void)
{
    static const Refusal harmless = REFUSE(getppid, EPERM);
    int status;
    pid_t child = fork();

    if (child == 0) {
        _exit(install(&harmless) && syscall(SYS_getppid) < 0 ? 0 : 1);
    }
    waitpid(child, &status, 0);
    if (status) {
        g_test_skip("there are no seccomp filters here");
    }
    return !status;
}

typedef struct Link {
    char *dir;
    char *socket;
    GPid server;
} Link;

static void link_init(Link *l)
{
    l->dir = g_dir_make_tmp("ivshmem2-XXXXXX", NULL);
    g_assert_nonnull(l->dir);
    l->socket = g_build_filename(l->dir, "link.sock", NULL);
    l->server = 0;
}

/* @program: the environment variable that names it */
static char **argv_of(Link *l, const char *program, const char *args)
{
    g_autofree char *line = g_strdup_printf("%s --socket %s %s",
                                            g_getenv(program), l->socket,
                                            args);
    g_auto(GStrv) argv = NULL;

    g_assert_true(g_shell_parse_argv(line, NULL, &argv, NULL));
    return g_steal_pointer(&argv);
}

static void link_start(Link *l, const char *options, const Refusal *refusals)
{
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    int tries = SOON_MS / 10;

    link_init(l);
    argv = argv_of(l, SERVER, options);
    g_spawn_async(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD |
                  G_SPAWN_STDERR_TO_DEV_NULL, prepare, (gpointer)refusals,
                  &l->server, &error);
    g_assert_no_error(error);
    while (!g_file_test(l->socket, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(10000);
    }
}

static void link_end(Link *l)
{
    if (l->server) {
        kill(l->server, SIGTERM);
        waitpid(l->server, NULL, 0);
        g_spawn_close_pid(l->server);
    }
    /* no socket, no lock, nothing half made */
    g_assert_cmpint(g_rmdir(l->dir), ==, 0);
    g_free(l->socket);
    g_free(l->dir);
}

/* Run it to its end; its errors contain @words. */
static void assert_says(char **argv, const Case *c)
{
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    g_autoptr(GError) error = NULL;
    int status;

    g_spawn_sync(NULL, argv, NULL, G_SPAWN_DEFAULT, prepare_to_end,
                 (gpointer)c->refusals, &out, &err, &status, &error);
    g_assert_no_error(error);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 1 ||
        !strstr(err, c->words)) {
        g_error("not '%s' but status %d, '%s'", c->words, status, err);
    }
}

/* System calls that the server needs */

/* A socket of a server that has ended */
static void leave_socket(Link *l)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(addr.sun_path, l->socket, sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    close(fd);
}

static const Case server_cases[] = {
    CASE("", "cannot create the record: ", REFUSE(memfd_create, EMFILE)),
    CASE("", "cannot make a State Table of 4096 bytes: ",
         REFUSE_ARG(ftruncate, EFBIG, 1, 4096)),
    CASE("--rw-size 8K", "cannot make a R/W section of 8192 bytes: ",
         REFUSE_ARG(ftruncate, EFBIG, 1, 8192)),
    CASE("--output-size 8K", "cannot make a output section of 8192 bytes: ",
         REFUSE_ARG(ftruncate, EFBIG, 1, 8192)),
    CASE("", "cannot seal the record: ", REFUSE(fchmod, EPERM)),
    CASE("", "cannot seal the record: ",
         REFUSE_ARG(fcntl, EPERM, 1, F_ADD_SEALS)),
    CASE("", "cannot map the record: ",
         REFUSE_ARG(mmap, ENOMEM, 3, MAP_SHARED)),
    /* for 16 peers */
    CASE("", "cannot map the State Table: ",
         REFUSE_ARG(mmap, ENOMEM, 1, 64)),
    CASE("", "eventfd", REFUSE(eventfd2, EMFILE)),
    CASE("", "cannot create an epoll instance: ",
         REFUSE(epoll_create1, EMFILE)),
    CASE("", "cannot watch a descriptor: ", REFUSE(epoll_ctl, ENOSPC)),
    CASE("", "cannot watch for signals: ", REFUSE(signalfd4, EMFILE)),
    CASE("", "cannot create a socket: ", REFUSE(socket, EMFILE)),
    CASE("", "cannot create the socket ", REFUSE(bind, EACCES)),
    CASE("", "cannot listen at ", REFUSE(listen, EADDRINUSE)),
#ifdef SYS_chmod
    /* the C library uses one of them */
    CASE("--socket-group root", "cannot set the mode of ",
         REFUSE(chmod, EPERM), REFUSE(fchmodat2, EPERM)),
#endif
#ifdef SYS_lchown
    CASE("--socket-group root", "cannot give the socket ",
         REFUSE(lchown, EPERM)),
#endif
};

static void test_server(void)
{
    if (!can_refuse()) {
        return;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(server_cases); i++) {
        const Case *c = &server_cases[i];
        g_auto(GStrv) argv = NULL;
        Link l;

        link_init(&l);
        argv = argv_of(&l, SERVER, c->options);
        assert_says(argv, c);
        link_end(&l);
    }
}

static void test_stale_socket(void)
{
    static const Case cases[] = {
        CASE("", "cannot create a socket: ", REFUSE(socket, EMFILE)),
        CASE("", "cannot tell whether the ", REFUSE(connect, EPERM)),
#ifdef SYS_unlink
        CASE("", "cannot remove the stale socket ", REFUSE(unlink, EPERM)),
#endif
    };

    if (!can_refuse()) {
        return;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_auto(GStrv) argv = NULL;
        Link l;

        link_init(&l);
        leave_socket(&l);
        argv = argv_of(&l, SERVER, "");
        assert_says(argv, &cases[i]);
        g_assert_cmpint(g_unlink(l.socket), ==, 0);
        link_end(&l);
    }
}

/* The client */

static const Case client_cases[] = {
    CASE("info", "cannot reserve ",
         REFUSE_ARG(mmap, ENOMEM, 3,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)),
    CASE("info", "cannot map the State Table of 4096 bytes: ",
         REFUSE_ARG(mmap, ENOMEM, 3, MAP_SHARED | MAP_FIXED)),
    CASE("info", "cannot wait for the server: ",
         REFUSE(epoll_create1, EMFILE)),
    CASE("info", "cannot wait for the server: ", REFUSE(epoll_ctl, ENOSPC)),
    CASE("info", "cannot connect to ", REFUSE(socket, EMFILE)),
#ifdef SYS_epoll_wait
    CASE("--timeout 0.1 watch", "cannot wait for interrupts: ",
         REFUSE(epoll_wait, EBADF)),
#endif
#ifdef SYS_poll
    CASE("--timeout 0.1 watch", "cannot wait: ",
         REFUSE_ARG(poll, ENOMEM, 1, 2)),
#endif
    CASE("write rw 0", "cannot read standard input: ",
         REFUSE_ARG(read, EIO, 0, STDIN_FILENO)),
};

static void test_client(void)
{
    static const Refusal none[2];
    Link l;

    if (!can_refuse()) {
        return;
    }
    link_start(&l, "--rw-size 4K --output-size 4K", none);
    for (size_t i = 0; i < G_N_ELEMENTS(client_cases); i++) {
        g_auto(GStrv) argv = argv_of(&l, CLIENT, client_cases[i].options);

        assert_says(argv, &client_cases[i]);
    }
    link_end(&l);
}

/* System calls that both can replace: errors of older kernels */

static const struct {
    const char *name;
    Refusal refusals[2];
} old_cases[] = {
    { "rwf-nowait", { REFUSE(preadv2, EOPNOTSUPP) } },
    { "aio", { REFUSE(io_setup, ENOSYS) } },
    { "aio-left", { REFUSE(io_setup, EAGAIN) } },
    { "aio-room", { REFUSE(io_submit, EAGAIN) } },
    { "noexec-seal", { REFUSE_ARG(memfd_create, EINVAL, 1,
                                  MFD_CLOEXEC | MFD_NOEXEC_SEAL) } },
    { "peerpidfd", { REFUSE_ARG(getsockopt, ENOPROTOOPT, 2, SO_PEERPIDFD) } },
    { "pidfd", { REFUSE_ARG(getsockopt, ENOPROTOOPT, 2, SO_PEERPIDFD),
                 REFUSE(pidfd_open, ENOSYS) } },
};

static GPid start_client(Link *l, const char *args, const Refusal *refusals)
{
    g_auto(GStrv) argv = argv_of(l, CLIENT, args);
    g_autoptr(GError) error = NULL;
    GPid pid;

    g_spawn_async(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD |
                  G_SPAWN_STDOUT_TO_DEV_NULL | G_SPAWN_STDERR_TO_DEV_NULL,
                  prepare, (gpointer)refusals, &pid, &error);
    g_assert_no_error(error);
    return pid;
}

static int run_client(Link *l, const char *args, const Refusal *refusals)
{
    GPid pid = start_client(l, args, refusals);
    int status;

    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    return status;
}

static void test_old(gconstpointer opaque)
{
    const Refusal *refusals = opaque;
    int tries = SOON_MS / 50;
    GPid pong;
    Link l;

    if (!can_refuse()) {
        return;
    }
    link_start(&l, "--max-peers 4 --output-size 4K --push-limit 0", refusals);
    pong = start_client(&l, "--id 1 pong", refusals);
    while (run_client(&l, "--id 0 --count 20 --timeout 1 ping 1",
                      refusals) != 0) {
        g_assert_cmpint(tries--, >, 0);
    }

    /* The ID of a killed peer is free soon, also for another process. */
    kill(pong, SIGKILL);
    waitpid(pong, NULL, 0);
    g_spawn_close_pid(pong);
    while (run_client(&l, "--id 1 info", refusals) != 0) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(50000);
    }
    link_end(&l);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (!g_getenv("IVSHMEM2_SERVER") || !g_getenv("IVSHMEM2_CLIENT")) {
        g_printerr("IVSHMEM2_SERVER and IVSHMEM2_CLIENT are to be the "
                   "programs to test\n");
        return 1;
    }
    g_test_add_func("/ivshmem2/kernel/refuses-server", test_server);
    g_test_add_func("/ivshmem2/kernel/refuses-stale-socket",
                    test_stale_socket);
    g_test_add_func("/ivshmem2/kernel/refuses-client", test_client);
    for (size_t i = 0; i < G_N_ELEMENTS(old_cases); i++) {
        g_autofree char *path = g_strdup_printf("/ivshmem2/kernel/without-%s",
                                                old_cases[i].name);

        g_test_add_data_func(path, old_cases[i].refusals, test_old);
    }
    return g_test_run();
}
