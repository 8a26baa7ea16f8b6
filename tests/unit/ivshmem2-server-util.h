/*
 * A real ivshmem2-server for the tests that need one
 *
 * The program is that of IVSHMEM2_SERVER.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SERVER_UTIL_H
#define IVSHMEM2_SERVER_UTIL_H

#include "ivshmem2-util.h"
#include <glib/gstdio.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

/* For what should happen at once, on a machine with other things to do */
#define SOON_MS     20000
/* For what should not happen */
#define NEVER_MS    100

typedef struct Server {
    char *dir;
    char *socket;
    pid_t pid;                  /* 0: not running */
    unsigned n_fds;             /* of this process, before */
} Server;

static inline void server_init(Server *s)
{
    s->n_fds = count_fds();
    s->dir = g_dir_make_tmp("ivshmem2-XXXXXX", NULL);
    g_assert_nonnull(s->dir);
    s->socket = g_build_filename(s->dir, "link.sock", NULL);
    s->pid = 0;
}

static inline const char *server_program(void)
{
    const char *program = g_getenv("IVSHMEM2_SERVER");

    g_assert_nonnull(program);
    return program;
}

/* The command line; @options: words with one space between them */
static inline char **server_argv(const char *prefix, const char *socket,
                                 const char *options)
{
    g_autofree char *line = g_strdup_printf(
        "%s%s --log-level error%s%s%s%s", prefix, server_program(),
        socket ? " --socket " : "", socket ? socket : "",
        *options ? " " : "", options);

    return g_strsplit(line, " ", -1);
}

/* Whatever becomes of the test, its children do not outlive it. */
static inline void die_with_parent(pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) {
        _exit(127);
    }
}

/* Of three users that are nobody else's, if this is root */
static inline uid_t test_uid(unsigned i)
{
    static uid_t base;

    base = base ? base : 20000 + (uid_t)getpid() % 10000 * 3;
    return geteuid() == 0 ? base + i : geteuid();
}

#define SERVER_UID  test_uid(0)
#define USER_UID    test_uid(1)
#define OTHER_UID   test_uid(2)

/*
 * Be an ordinary user from now on, whose directory is that of @s.  The socket
 * can be reached from there, whatever the directories above are like.
 */
static inline void become(Server *s, uid_t uid)
{
    g_assert_cmpint(chdir(s->dir), ==, 0);
    if (geteuid() == 0) {
        g_assert_cmpint(setgroups(0, NULL), ==, 0);
        g_assert_cmpint(setresgid(uid, uid, uid), ==, 0);
        g_assert_cmpint(setresuid(uid, uid, uid), ==, 0);
    }
    /* that was lost with the user ID */
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

/* Does not wait for it. */
static inline pid_t spawn(char **argv, void (*child)(void *opaque),
                          void *opaque)
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

static inline void wait_for_file(const char *path)
{
    int tries = SOON_MS / 10;

    while (!g_file_test(path, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(10000);
    }
}

static inline void server_start_with(Server *s, const char *prefix,
                                     const char *options)
{
    g_auto(GStrv) argv = server_argv(prefix, s->socket, options);

    s->pid = spawn(argv, NULL, NULL);
    wait_for_file(s->socket);
}

static inline void server_start(Server *s, const char *options)
{
    server_start_with(s, "", options);
}

typedef struct Limited {
    Server *server;
    rlim_t files;
    char **argv;
} Limited;

/*
 * In a child, run the program as an ordinary user who may open some files,
 * wherever it is.
 */
static inline void run_limited(void *opaque)
{
    Limited *l = opaque;
    struct rlimit limit = { .rlim_cur = l->files, .rlim_max = l->files };
    int fd = open(l->argv[0], O_PATH | O_CLOEXEC);

    become(l->server, SERVER_UID);
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    fexecve(fd, l->argv, environ);
    _exit(127);
}

/*
 * Start it as an ordinary user who may open @files.  Everybody can connect.
 */
static inline void server_start_limited(Server *s, rlim_t files,
                                        const char *options)
{
    g_autofree char *all = g_strdup_printf("--socket-mode 666 %s", options);
    g_auto(GStrv) argv = server_argv("", "link.sock", all);
    Limited l = { .server = s, .files = files, .argv = argv };

    g_assert_cmpint(chmod(s->dir, 0711), ==, 0);
    g_assert_cmpint(chown(s->dir, SERVER_UID, -1), ==, 0);
    s->pid = spawn(argv, run_limited, &l);
    wait_for_file(s->socket);
}

/* Send it @sig and return how it ended (see waitpid()). */
static inline int server_stop(Server *s, int sig)
{
    int status = 0;

    kill(s->pid, sig);
    g_assert_cmpint(waitpid(s->pid, &status, 0), ==, s->pid);
    s->pid = 0;
    return status;
}

/* Nothing is left: no file, no descriptor, and the server ended well. */
static inline void server_end(Server *s)
{
    if (s->pid) {
        g_assert_cmpint(server_stop(s, SIGTERM), ==, 0);
    }
    g_assert_cmpint(g_rmdir(s->dir), ==, 0);
    g_free(s->socket);
    g_free(s->dir);
    g_assert_cmpuint(count_fds(), ==, s->n_fds);
}

/*
 * Start a server that should fail, and return what it complains about.
 * @child is called in it before.
 */
static inline char *server_fail_with(char **argv, GSpawnChildSetupFunc child,
                                     void *opaque)
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

static inline char *server_fail(char **argv)
{
    return server_fail_with(argv, NULL, NULL);
}

static inline void assert_says_text(const char *text, const char *want)
{
    if (!strstr(text, want)) {
        g_test_message("'%s' is not in '%s'", want, text);
        g_test_fail();
    }
}

/* -1 if nobody listens */
static inline int server_try_connect(Server *s)
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

/* Connect without a word. */
static inline int server_connect(Server *s)
{
    int fd = server_try_connect(s);

    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static inline bool have_program(const char *name)
{
    g_autofree char *path = g_find_program_in_path(name);

    return path;
}

/* Descriptors that the server has open */
static inline unsigned server_count_fds(Server *s)
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

#endif /* IVSHMEM2_SERVER_UTIL_H */
