/*
 * A real ivshmem2-server for the tests that need one
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-server-util.h"
#include <sys/stat.h>

/* Users and processes */

uid_t test_uid(unsigned i)
{
    static uid_t base;

    base = base ? base : 20000 + (uid_t)getpid() % 10000 * 3;
    return geteuid() == 0 ? base + i : geteuid();
}

void become(Server *s, uid_t uid)
{
    g_assert_cmpint(chdir(s->dir), ==, 0);
    if (geteuid() == 0) {
        g_assert_cmpint(setgroups(0, NULL), ==, 0);
        g_assert_cmpint(setresgid(uid, uid, uid), ==, 0);
        g_assert_cmpint(setresuid(uid, uid, uid), ==, 0);
    }
    /* a change of user ID has reset it */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

bool have_program(const char *name)
{
    g_autofree char *path = g_find_program_in_path(name);

    return path;
}

void die_with_parent(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(127);
    }
}

pid_t spawn(char **argv, void (*child)(void *opaque), void *opaque)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    g_assert_cmpint(pid, >=, 0);
    if (pid == 0) {
        die_with_parent(parent);
        if (child) {
            child(opaque);
        }
        execvp(argv[0], argv);
        _exit(127);
    }
    return pid;
}

/* Starting and stopping */

void server_init(Server *s)
{
    s->n_fds = count_fds();
    s->dir = g_dir_make_tmp("ivshmem2-XXXXXX", NULL);
    g_assert_nonnull(s->dir);
    s->socket = g_build_filename(s->dir, "link.sock", NULL);
    s->pid = 0;
}

static const char *server_program(void)
{
    const char *program = g_getenv("IVSHMEM2_SERVER");

    g_assert_nonnull(program);
    return program;
}

char **server_argv(const char *prefix, const char *socket, const char *options)
{
    g_autofree char *line = g_strdup_printf(
        "%s%s --log-level error%s%s%s%s", prefix, server_program(),
        socket ? " --socket " : "", socket ? socket : "",
        *options ? " " : "", options);

    return g_strsplit(line, " ", -1);
}

void server_start_with(Server *s, const char *prefix, const char *options)
{
    g_auto(GStrv) argv = server_argv(prefix, s->socket, options);

    s->pid = spawn(argv, NULL, NULL);
    wait_for_server(s->socket);
}

void server_start(Server *s, const char *options)
{
    server_start_with(s, "", options);
}

void run_limited(void *opaque)
{
    Limited *l = opaque;
    struct rlimit limit = { .rlim_cur = l->files, .rlim_max = l->files };
    /* as another user, the path may be out of reach */
    int fd = open(l->argv[0], O_PATH | O_CLOEXEC);

    become(l->server, SERVER_UID);
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    fexecve(fd, l->argv, environ);
    _exit(127);
}

void server_start_limited(Server *s, rlim_t files, const char *options)
{
    g_autofree char *all = g_strdup_printf("--socket-mode 666 %s", options);
    g_auto(GStrv) argv = server_argv("", "link.sock", all);
    Limited l = { .server = s, .files = files, .argv = argv };

    g_assert_cmpint(chmod(s->dir, 0711), ==, 0);
    g_assert_cmpint(chown(s->dir, SERVER_UID, -1), ==, 0);
    s->pid = spawn(argv, run_limited, &l);
    wait_for_file(s->socket);
}

int server_stop(Server *s, int sig)
{
    int status = 0;

    kill(s->pid, sig);
    g_assert_cmpint(waitpid(s->pid, &status, 0), ==, s->pid);
    s->pid = 0;
    return status;
}

void server_end(Server *s)
{
    if (s->pid) {
        g_assert_cmpint(server_stop(s, SIGTERM), ==, 0);
    }
    g_assert_cmpint(g_rmdir(s->dir), ==, 0);
    g_free(s->socket);
    g_free(s->dir);
    g_assert_cmpuint(count_fds(), ==, s->n_fds);
}

char *server_fail_with(char **argv, GSpawnChildSetupFunc child, void *opaque)
{
    g_autoptr(GError) error = NULL;
    char *text = NULL;
    int status;

    g_spawn_sync(NULL, argv, NULL, G_SPAWN_SEARCH_PATH, child, opaque, NULL,
                 &text, &status, &error);
    g_assert_no_error(error);
    g_test_message("%s", text);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    return text;
}

char *server_fail(char **argv)
{
    return server_fail_with(argv, NULL, NULL);
}

void assert_says_text(const char *text, const char *want)
{
    if (!strstr(text, want)) {
        g_test_message("'%s' is not in '%s'", want, text);
        g_test_fail();
    }
}

/* Waiting and looking */

void wait_a_little(int *tries)
{
    g_assert_cmpint((*tries)--, >, 0);
    g_usleep(10000);
}

/* A socket that is bound may not listen yet: the kernel's list tells. */
static bool is_listening(const char *path)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    g_assert_true(g_file_get_contents("/proc/net/unix", &text, NULL, NULL));
    lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        if (g_str_has_suffix(*line, path) && strstr(*line, " 00010000 ")) {
            return true;
        }
    }
    return false;
}

void wait_for_server(const char *path)
{
    int tries = SOON_MS / 10;

    while (!is_listening(path)) {
        wait_a_little(&tries);
    }
}

void wait_for_file(const char *path)
{
    int tries = SOON_MS / 10;

    while (!g_file_test(path, G_FILE_TEST_EXISTS)) {
        wait_a_little(&tries);
    }
}

unsigned server_count_fds(Server *s)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", s->pid);
    GDir *dir = g_dir_open(path, 0, NULL);
    unsigned n = 0;

    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        n++;
    }
    g_dir_close(dir);
    return n;
}

void server_wait_fds(Server *s, unsigned n)
{
    int tries = SOON_MS / 10;

    while (server_count_fds(s) != n) {
        wait_a_little(&tries);
    }
}

/* Connecting */

int server_try_connect(Server *s)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(fd, >=, 0);
    g_strlcpy(addr.sun_path, s->socket, sizeof(addr.sun_path));
    if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        ivshmem2_close(&fd);
    }
    return fd;
}

int server_connect(Server *s)
{
    int fd = server_try_connect(s);

    g_assert_cmpint(fd, >=, 0);
    return fd;
}

bool send_with_fds(int fd, const void *data, size_t len, int passed,
                   unsigned n)
{
    ssize_t sent;
    size_t space = CMSG_SPACE(n * sizeof(int));
    g_autofree struct cmsghdr *cmsg = g_malloc0(space);
    struct iovec iov = { .iov_base = (void *)data, .iov_len = len };
    struct msghdr mh = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = cmsg,
        .msg_controllen = space,
    };

    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(n * sizeof(int));
    for (unsigned i = 0; i < n; i++) {
        ((int *)CMSG_DATA(cmsg))[i] = passed;
    }
    sent = sendmsg(fd, &mh, MSG_NOSIGNAL);
    if (sent < 0 && errno == EPERM) {
        return false;
    }
    g_assert_cmpint(sent, ==, len);
    return true;
}
