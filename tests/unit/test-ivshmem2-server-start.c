/*
 * ivshmem2-server: command line, socket, service manager, end
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-server-util.h"
#include <grp.h>
#include <sys/file.h>
#include <sys/stat.h>

/* Command line */

typedef struct BadOptions {
    const char *options;
    const char *text;
} BadOptions;

static const BadOptions bad_options[] = {
    { "--max-peers 1", "--max-peers '1'" },
    { "--max-peers 1", "from 2 to 65536" },
    { "--max-peers 65537", "--max-peers '65537'" },
    { "--max-peers 4x", "--max-peers '4x'" },
    { "--max-peers -4", "--max-peers '-4'" },
    { "--max-peers +4", "--max-peers '+4'" },
    { "--max-peers ", "--max-peers ''" },
    { "--max-peers 18446744073709551620", "--max-peers '1844674407370955" },
    { "--vectors 0", "--vectors '0'" },
    { "--vectors 2049", "from 1 to 2048" },
    { "--intx --vectors 2", "--vectors '2' does not go with --intx" },
    { "--rw-size 4Q", "--rw-size '4Q'" },
    { "--rw-size 4KB", "--rw-size '4KB'" },
    { "--rw-size 4.5M", "--rw-size '4.5M'" },
    { "--rw-size K", "--rw-size 'K'" },
    { "--rw-size -1", "--rw-size '-1'" },
    { "--rw-size 65T", "0 to 64T" },
    { "--rw-size 99999999999999999999", "--rw-size '99999999999999999999'" },
    { "--rw-size 18446744073709551615T", "--rw-size '18446744073709551615T'" },
    { "--output-size 1E", "--output-size '1E'" },
    { "--output-size 33T", "larger than" },
    { "--rw-size 64T", "larger than" },
    { "--output-size 4K --max-peers 4097", "--output-size '4K'" },
    { "--output-size 4K --max-peers 4097", "--max-peers '4097'" },
    { "--page-size 2K", "--page-size '2K'" },
    { "--page-size 5000", "--page-size '5000'" },
    { "--page-size 128K", "to 64K" },
    { "--protocol 0x10000", "--protocol '0x10000'" },
    { "--protocol 65536", "from 0 to 65535" },
    { "--backend-id 1", "--backend-id '1' needs a --protocol" },
    { "--backend-id 1 --protocol 0x7fff", "--backend-id '1'" },
    { "--backend-id 4 --protocol 0x8000 --max-peers 4", "from 0 to 3" },
    { "--huge-pages=3M --rw-size 4M", "--huge-pages '3M'" },
    { "--huge-pages=512K --rw-size 4M", "huge pages" },
    { "--push-limit 65537", "--push-limit '65537'" },
    { "--handshake-timeout 0", "--handshake-timeout '0'" },
    { "--handshake-timeout 3601", "from 1 to 3600" },
    { "--grace 3601", "from 0 to 3600" },
    { "--grace -1", "--grace '-1'" },
    { "--supervise --discard", "--discard does not go with --supervise" },
    { "--ids-per-user 0", "--ids-per-user '0'" },
    { "--ids-per-user 65537", "from 1 to 65536" },
    { "--access /no/such/file", "cannot read /no/such/file" },
    { "--access /dev/null", "/dev/null" },
    { "--socket-mode 8", "--socket-mode '8'" },
    { "--socket-mode 1777", "--socket-mode '1777'" },
    { "--socket-group no-such-group", "no such group" },
    { "--log-level loud", "--log-level 'loud'" },
    { "--frobnicate", "--frobnicate" },
    { "more", "'more'" },
};

static void test_bad_options(void)
{
    Server s;

    server_init(&s);
    for (size_t i = 0; i < G_N_ELEMENTS(bad_options); i++) {
        g_auto(GStrv) argv = server_argv("", s.socket,
                                         bad_options[i].options);
        g_autofree char *text = server_fail(argv);

        assert_says_text(text, bad_options[i].text);
        /* one line, and nothing created */
        g_assert_true(strchr(text, '\n') == text + strlen(text) - 1);
        g_assert_false(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    }
    server_end(&s);
}

static void test_no_socket(void)
{
    g_auto(GStrv) argv = server_argv("", NULL, "");
    g_autofree char *text = server_fail(argv);

    assert_says_text(text, "--socket PATH is missing");
}

static void test_help(void)
{
    const char *options[] = { "--help", "--version" };
    g_autofree char *version = g_strdup_printf(
        "ivshmem2-server %d.%d.%d, protocol versions 1 to 1\n",
        LIBIVSHMEM2_VERSION_MAJOR, LIBIVSHMEM2_VERSION_MINOR,
        LIBIVSHMEM2_VERSION_MICRO);
    const char *want[] = { "--bind-ids", version };

    for (size_t i = 0; i < G_N_ELEMENTS(options); i++) {
        g_auto(GStrv) argv = server_argv("", NULL, options[i]);
        g_autofree char *text = NULL;
        int status;

        g_assert_true(g_spawn_sync(NULL, argv, NULL, G_SPAWN_DEFAULT, NULL,
                                   NULL, &text, NULL, &status, NULL));
        g_assert_cmpint(status, ==, 0);
        assert_says_text(text, want[i]);
    }
}

/* The socket */

static void assert_alive(Server *s)
{
    int fd = server_connect(s);

    ivshmem2_close(&fd);
}

static void test_stale(void)
{
    int tries = SOON_MS / 10;
    Server s;
    int fd;

    server_init(&s);
    server_start(&s, "");
    server_stop(&s, SIGKILL);
    g_assert_true(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    g_assert_cmpint(server_try_connect(&s), ==, -1);
    server_start(&s, "");
    while ((fd = server_try_connect(&s)) < 0) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(10000);
    }
    ivshmem2_close(&fd);
    server_end(&s);
}

static void test_second_start(void)
{
    Server s;

    server_init(&s);
    server_start(&s, "");
    for (int i = 0; i < 2; i++) {
        g_auto(GStrv) argv = server_argv("", s.socket, "");
        g_autofree char *text = server_fail(argv);

        assert_says_text(text, "another server is listening at");
        assert_says_text(text, s.socket);
        assert_alive(&s);
    }
    server_end(&s);
}

/* If several start at once in place of a dead one, one of them serves. */
static void test_race(void)
{
    pid_t pids[8];
    unsigned failed = 0;
    Server s;

    server_init(&s);
    for (int round = 0; round < 5; round++) {
        g_auto(GStrv) argv = server_argv("", s.socket, "");

        server_start(&s, "");
        server_stop(&s, SIGKILL);
        for (size_t i = 0; i < G_N_ELEMENTS(pids); i++) {
            pids[i] = spawn(argv, NULL, NULL);
        }
        for (failed = 0; failed < G_N_ELEMENTS(pids) - 1; failed++) {
            int status;
            pid_t pid = wait(&status);

            g_assert_true(WIFEXITED(status));
            g_assert_cmpint(WEXITSTATUS(status), ==, 1);
            for (size_t i = 0; i < G_N_ELEMENTS(pids); i++) {
                pids[i] = pids[i] == pid ? 0 : pids[i];
            }
        }
        assert_alive(&s);
        for (size_t i = 0; i < G_N_ELEMENTS(pids); i++) {
            s.pid = pids[i] ? pids[i] : s.pid;
        }
        g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
        g_assert_false(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    }
    server_end(&s);
}

/* A name with @ is no file. */
static void test_abstract(void)
{
    g_autofree char *name = g_strdup_printf("@ivshmem2-test-%d", getpid());
    g_auto(GStrv) argv = server_argv("", name, "");
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    socklen_t len = offsetof(struct sockaddr_un, sun_path) + strlen(name);
    g_autofree char *text = NULL;
    int tries = SOON_MS / 10;
    Server s;
    int fd, ret;

    server_init(&s);
    s.pid = spawn(argv, NULL, NULL);
    memcpy(addr.sun_path + 1, name + 1, strlen(name) - 1);
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    while ((ret = connect(fd, (struct sockaddr *)&addr, len)) < 0 &&
           errno == ECONNREFUSED) {
        wait_a_little(&tries);
    }
    g_assert_cmpint(ret, ==, 0);
    ivshmem2_close(&fd);
    text = server_fail(argv);
    assert_says_text(text, "another process uses the socket name @");
    g_assert_false(g_file_test(name, G_FILE_TEST_EXISTS));
    server_end(&s);
}

/* The name under which other programs see the socket */
static void test_bound_name(void)
{
    struct sockaddr_un addr;
    socklen_t len = sizeof(addr);
    Server s;
    int fd;

    server_init(&s);
    server_start(&s, "");
    fd = server_connect(&s);
    g_assert_cmpint(getpeername(fd, (struct sockaddr *)&addr, &len), ==, 0);
    g_assert_cmpstr(addr.sun_path, ==, s.socket);
    ivshmem2_close(&fd);
    server_end(&s);
}

/* A server waits for the lock, but not for ever, and starts without it. */
static void test_lock(void)
{
    g_auto(GStrv) argv = NULL;
    Server s;
    int fd;

    server_init(&s);
    argv = server_argv("", s.socket, "");
    fd = open(s.dir, O_RDONLY | O_CLOEXEC);
    g_assert_cmpint(flock(fd, LOCK_EX), ==, 0);
    s.pid = spawn(argv, NULL, NULL);
    wait_for_file(s.socket);
    /* at its end as well */
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    s.pid = spawn(argv, NULL, NULL);
    g_usleep(NEVER_MS * 1000);
    g_assert_false(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    ivshmem2_close(&fd);
    wait_for_file(s.socket);
    server_end(&s);
}

static void test_not_a_socket(void)
{
    Server s;

    server_init(&s);
    for (int i = 0; i < 3; i++) {
        g_auto(GStrv) argv = server_argv("", s.socket, "");
        g_autofree char *text = NULL;
        struct stat before, after;

        switch (i) {
        case 0:
            g_assert_true(g_file_set_contents(s.socket, "data", -1, NULL));
            break;
        case 1:
            g_assert_cmpint(g_mkdir(s.socket, 0700), ==, 0);
            break;
        case 2:
            g_assert_cmpint(symlink("nowhere", s.socket), ==, 0);
            break;
        }
        g_assert_cmpint(lstat(s.socket, &before), ==, 0);
        text = server_fail(argv);
        assert_says_text(text, "exists and is not a socket");
        g_assert_cmpint(lstat(s.socket, &after), ==, 0);
        g_assert_cmpuint(before.st_ino, ==, after.st_ino);
        g_remove(s.socket);
    }
    server_end(&s);
}

/* A socket of another type may be in use. */
static void test_datagram_socket(void)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    g_auto(GStrv) argv = NULL;
    g_autofree char *text = NULL;
    Server s;
    int fd;

    server_init(&s);
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    g_strlcpy(addr.sun_path, s.socket, sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    argv = server_argv("", s.socket, "");
    text = server_fail(argv);
    assert_says_text(text, "cannot tell whether");
    g_assert_true(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    ivshmem2_close(&fd);
    g_unlink(s.socket);
    server_end(&s);
}

static void test_paths(void)
{
    g_autofree char *long_name = g_strnfill(200, 'x');
    Server s;

    server_init(&s);
    for (int i = 0; i < 2; i++) {
        g_autofree char *path = g_build_filename(
            s.dir, i ? long_name : "no-such-directory", "link", NULL);
        g_auto(GStrv) argv = server_argv("", path, "");
        g_autofree char *text = server_fail(argv);

        assert_says_text(text, i ? "a socket's path has 1 to"
                                 : "cannot open the directory");
        if (!i) {
            assert_says_text(text, "no-such-directory");
        }
    }
    server_end(&s);

    server_init(&s);
    g_free(s.socket);
    s.socket = g_strdup_printf("%s/%.*s", s.dir,
                               (int)(103 - strlen(s.dir) - 1), long_name);
    server_start(&s, "");
    assert_alive(&s);
    server_end(&s);
}

static void test_mode(void)
{
    struct stat st;
    Server s;

    server_init(&s);
    server_start(&s, "");
    g_assert_cmpint(lstat(s.socket, &st), ==, 0);
    g_assert_cmphex(st.st_mode & 07777, ==, 0660);
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    server_start(&s, "--socket-mode 0606");
    g_assert_cmpint(lstat(s.socket, &st), ==, 0);
    g_assert_cmphex(st.st_mode & 07777, ==, 0606);
    server_end(&s);
}

static void test_group(void)
{
    struct group *group = getgrnam("nogroup");
    struct stat st;
    gid_t gid;
    Server s;

    if (geteuid() != 0 || !group) {
        g_test_skip("only root can give a file to any group");
        return;
    }
    gid = group->gr_gid;
    server_init(&s);
    server_start(&s, "--socket-group nogroup");
    g_assert_cmpint(lstat(s.socket, &st), ==, 0);
    g_assert_cmpuint(st.st_gid, ==, gid);
    server_end(&s);
}

/* The end */

static void test_signals(void)
{
    const int signals[] = { SIGTERM, SIGINT, SIGHUP };
    Server s;

    server_init(&s);
    for (size_t i = 0; i < G_N_ELEMENTS(signals); i++) {
        server_start(&s, "");
        g_assert_cmpint(server_stop(&s, signals[i]), ==, 0);
        g_assert_false(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    }
    server_end(&s);
}

/* The server leaves a file alone that has replaced its socket. */
static void test_foreign_file(void)
{
    Server s;

    server_init(&s);
    server_start(&s, "");
    g_unlink(s.socket);
    g_assert_true(g_file_set_contents(s.socket, "data", -1, NULL));
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    g_assert_true(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    g_unlink(s.socket);
    server_end(&s);
}

/* A start that fails after the socket was made */
static void test_no_memory(void)
{
    g_auto(GStrv) argv = NULL;
    g_autofree char *text = NULL;
    Server s;
    Limited l = { .server = &s, .files = 24 };

    server_init(&s);
    /* 16 output sections and as many descriptors */
    argv = server_argv("", "link.sock", "--output-size 4K --max-peers 16");
    l.argv = argv;
    g_assert_cmpint(chown(s.dir, SERVER_UID, -1), ==, 0);
    text = server_fail_with(argv, run_limited, &l);
    assert_says_text(text, "cannot make the link");
    assert_says_text(text, "Too many open files");
    server_end(&s);
}

/* The service manager */

typedef struct Activation {
    int fd;
    const char *n_fds;
    bool other_pid;
} Activation;

static void activate(void *opaque)
{
    Activation *a = opaque;
    g_autofree char *pid = g_strdup_printf("%d", getpid() + a->other_pid);

    /* without close-on-exec */
    dup2(a->fd, 4);
    dup2(4, 3);
    g_setenv("LISTEN_PID", pid, true);
    g_setenv("LISTEN_FDS", a->n_fds, true);
}

static int listen_at(const char *path, int type)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

    g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    if (type == SOCK_STREAM) {
        g_assert_cmpint(listen(fd, 5), ==, 0);
    }
    return fd;
}

static void test_activation(void)
{
    Activation a = { .n_fds = "1" };
    g_auto(GStrv) argv = server_argv("", NULL, "");
    char byte;
    Server s;
    int fd;

    server_init(&s);
    a.fd = listen_at(s.socket, SOCK_STREAM);
    s.pid = spawn(argv, activate, &a);
    fd = server_connect(&s);
    /* no header, so it is refused */
    g_assert_cmpint(write(fd, "GET / HTTP/1.0\r\n", 16), ==, 16);
    g_assert_cmpint(read(fd, &byte, 1), ==, 1);
    ivshmem2_close(&fd);
    ivshmem2_close(&a.fd);
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    g_assert_true(g_file_test(s.socket, G_FILE_TEST_EXISTS));
    g_unlink(s.socket);
    server_end(&s);
}

static void test_bad_activation(void)
{
    Server s;

    server_init(&s);
    for (int i = 0; i < 5; i++) {
        Activation a = { .n_fds = i == 0 ? "2" : "1", .other_pid = i == 1 };
        g_autofree char *other = g_strconcat(s.socket, "2", NULL);
        g_auto(GStrv) argv = server_argv("", i == 2 ? other : NULL, "");
        int status, type = i == 3 ? SOCK_DGRAM : SOCK_STREAM;
        pid_t pid;

        if (i == 4) {
            a.fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
        } else {
            a.fd = listen_at(s.socket, type);
        }
        pid = spawn(argv, activate, &a);
        g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
        g_assert_true(WIFEXITED(status));
        g_assert_cmpint(WEXITSTATUS(status), ==, 1);
        g_assert_false(g_file_test(other, G_FILE_TEST_EXISTS));
        ivshmem2_close(&a.fd);
        g_unlink(s.socket);
    }
    server_end(&s);
}

static void set_notify_socket(void *opaque)
{
    g_setenv("NOTIFY_SOCKET", opaque, true);
}

static void test_notify(gconstpointer opaque)
{
    bool abstract = GPOINTER_TO_INT(opaque);
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    g_autofree char *path = NULL;
    g_auto(GStrv) argv = NULL;
    char buf[100] = "";
    Server s;
    int fd;

    server_init(&s);
    path = g_strdup_printf("%s%s/notify", abstract ? "@" : "", s.dir);
    g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path));
    if (abstract) {
        addr.sun_path[0] = 0;
    }
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr,
                         offsetof(struct sockaddr_un, sun_path) +
                         strlen(path)), ==, 0);
    argv = server_argv("", s.socket, "");
    s.pid = spawn(argv, set_notify_socket, path);
    g_assert_cmpint(recv(fd, buf, sizeof(buf) - 1, 0), >, 0);
    g_assert_cmpstr(buf, ==, "READY=1");
    assert_alive(&s);
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    memset(buf, 0, sizeof(buf));
    g_assert_cmpint(recv(fd, buf, sizeof(buf) - 1, 0), >, 0);
    g_assert_cmpstr(buf, ==, "STOPPING=1");
    ivshmem2_close(&fd);
    if (!abstract) {
        g_unlink(path);
    }
    server_end(&s);
}

/* The log */

static void redirect_stderr(void *opaque)
{
    g_assert_cmpint(dup2(*(int *)opaque, STDERR_FILENO), ==, STDERR_FILENO);
}

static void say_nonsense(Server *s)
{
    char buf[512];
    int fd = server_connect(s);

    g_assert_cmpint(write(fd, "nonsense", 8), ==, 8);
    while (read(fd, buf, sizeof(buf)) > 0) {
        continue;
    }
    ivshmem2_close(&fd);
}

/* Clients cannot fill a disk by messages that they cause. */
static void test_log_flood(void)
{
    g_auto(GStrv) argv = NULL;
    g_autofree char *path = NULL;
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    Server s;
    int fd;

    server_init(&s);
    path = g_build_filename(s.dir, "log", NULL);
    fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    argv = server_argv("", s.socket, "--log-level info");
    s.pid = spawn(argv, redirect_stderr, &fd);
    wait_for_file(s.socket);
    for (int i = 0; i < 3000; i++) {
        say_nonsense(&s);
    }
    g_usleep(G_USEC_PER_SEC);
    say_nonsense(&s);
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    lines = g_strsplit(text, "\n", -1);
    g_assert_cmpuint(g_strv_length(lines), <, 3000);
    assert_says_text(text, "unknown type");
    assert_says_text(text, " messages were left out");
    ivshmem2_close(&fd);
    g_unlink(path);
    server_end(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/server-start/bad-options", test_bad_options);
    g_test_add_func("/ivshmem2/server-start/no-socket", test_no_socket);
    g_test_add_func("/ivshmem2/server-start/help", test_help);
    g_test_add_func("/ivshmem2/server-start/stale-socket", test_stale);
    g_test_add_func("/ivshmem2/server-start/second-start",
                    test_second_start);
    g_test_add_func("/ivshmem2/server-start/race", test_race);
    g_test_add_func("/ivshmem2/server-start/lock", test_lock);
    g_test_add_func("/ivshmem2/server-start/abstract", test_abstract);
    g_test_add_func("/ivshmem2/server-start/bound-name", test_bound_name);
    g_test_add_func("/ivshmem2/server-start/not-a-socket",
                    test_not_a_socket);
    g_test_add_func("/ivshmem2/server-start/datagram-socket",
                    test_datagram_socket);
    g_test_add_func("/ivshmem2/server-start/paths", test_paths);
    g_test_add_func("/ivshmem2/server-start/mode", test_mode);
    g_test_add_func("/ivshmem2/server-start/group", test_group);
    g_test_add_func("/ivshmem2/server-start/signals", test_signals);
    g_test_add_func("/ivshmem2/server-start/foreign-file",
                    test_foreign_file);
    g_test_add_func("/ivshmem2/server-start/no-memory", test_no_memory);
    g_test_add_func("/ivshmem2/server-start/activation", test_activation);
    g_test_add_func("/ivshmem2/server-start/bad-activation",
                    test_bad_activation);
    g_test_add_data_func("/ivshmem2/server-start/notify",
                         GINT_TO_POINTER(false), test_notify);
    g_test_add_data_func("/ivshmem2/server-start/notify-abstract",
                         GINT_TO_POINTER(true), test_notify);
    g_test_add_func("/ivshmem2/server-start/log-flood", test_log_flood);
    return g_test_run();
}
