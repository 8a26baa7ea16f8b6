/*
 * Peers and ivshmem2-client with a real server, for the tests of both
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-client-util.h"

void link_start(Server *l, const char *options)
{
    int tries = SOON_MS / 10;
    int fd;

    server_init(l);
    server_start(l, options);
    /* it is bound, but may not listen yet */
    while ((fd = server_try_connect(l)) < 0) {
        wait_a_little(&tries);
    }
    ivshmem2_close(&fd);
}

void link_end(Server *l)
{
    if (!l->pid) {
        g_unlink(l->socket);
    }
    server_end(l);
}

Ivshmem2Peer *join(Server *l, uint32_t id)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    Ivshmem2Peer *peer;

    o.id = id;
    o.name = "test";
    o.timeout_ms = SOON_MS;
    peer = ivshmem2_peer_open_socket(l->socket, &o, &error);
    g_assert_no_error(error);
    g_assert_nonnull(peer);
    return peer;
}

void assert_refused(Server *l, uint32_t id, int code, const char *what)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;

    o.id = id;
    g_assert_null(ivshmem2_peer_open_socket(l->socket, &o, &error));
    g_assert_error(error, IVSHMEM2_ERROR, code);
    if (!strstr(error->message, what)) {
        g_error("'%s' does not say '%s'", error->message, what);
    }
}

void assert_interrupt(Ivshmem2Peer *peer, int only, int expected)
{
    g_autoptr(GError) error = NULL;
    int vector = -1;
    int ret = ivshmem2_peer_wait(peer, only, &vector, SOON_MS, &error);

    g_assert_no_error(error);
    g_assert_cmpint(ret, ==, 1);
    g_assert_cmpint(vector, ==, expected);
}

void assert_silence(Ivshmem2Peer *peer)
{
    int vector = -1;

    g_assert_cmpint(ivshmem2_peer_wait(peer, -1, &vector, NEVER_MS, NULL), ==,
                    0);
    g_assert_cmpint(vector, ==, -1);
}

void ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector)
{
    g_autoptr(GError) error = NULL;

    ivshmem2_peer_ring(peer, target, vector, &error);
    g_assert_no_error(error);
}

void set_state(Ivshmem2Peer *peer, uint32_t state)
{
    g_autoptr(GError) error = NULL;

    ivshmem2_peer_set_state(peer, state, &error);
    g_assert_no_error(error);
}

/* The program */

void end_with_parent(gpointer opaque)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

void run_clear(Run *r)
{
    g_clear_pointer(&r->out, g_free);
    g_clear_pointer(&r->err, g_free);
}

GPid start_client(const char *args, int *in, int *out, int *err)
{
    g_autofree char *line = g_strdup_printf("%s %s",
                                            g_getenv("IVSHMEM2_CLIENT"), args);
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    GPid pid;

    g_shell_parse_argv(line, NULL, &argv, &error);
    g_assert_no_error(error);
    g_spawn_async_with_pipes(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD,
                             end_with_parent, NULL, &pid, in, out, err,
                             &error);
    g_assert_no_error(error);
    return pid;
}

char *read_all(int fd)
{
    GString *text = g_string_new(NULL);
    char buf[4096];
    ssize_t len;

    while ((len = read(fd, buf, sizeof(buf))) > 0) {
        g_string_append_len(text, buf, len);
    }
    close(fd);
    return g_string_free(text, FALSE);
}

Run run_client(const char *input, const char *args)
{
    Run r = { 0 };
    int in, out, err, status;
    GPid pid = start_client(args, &in, &out, &err);

    g_assert_cmpint(write(in, input, strlen(input)), ==, strlen(input));
    close(in);
    r.out = read_all(out);
    r.err = read_all(err);
    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_true(WIFEXITED(status));
    r.status = WEXITSTATUS(status);
    return r;
}

void assert_run(Server *l, const char *args, int status,
                const char *out, const char *err)
{
    g_autofree char *all = g_strdup_printf("--socket %s %s", l->socket, args);
    g_auto(Run) r = run_client("", all);

    if (r.status != status || !strstr(r.out, out) || !strstr(r.err, err)) {
        g_error("'%s': status %d instead of %d, or not '%s' and '%s' in '%s' "
                "and '%s'", args, r.status, status, out, err, r.out, r.err);
    }
}

void assert_end(GPid pid, int fd, int expected, const char *words)
{
    g_autofree char *text = read_all(fd);
    int status;

    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != expected || !strstr(text, words)) {
        g_error("status %d, or not '%s' in '%s'", WEXITSTATUS(status), words,
                text);
    }
}

void await_state(Ivshmem2Peer *peer, uint32_t id, uint32_t state)
{
    while (ivshmem2_peer_state(peer, id) != state) {
        g_assert_cmpint(ivshmem2_peer_wait(peer, -1, NULL, SOON_MS, NULL), ==,
                        1);
    }
}

GPid start_peer(Server *l, Ivshmem2Peer *other, const char *args,
                int *in, int *out, int *err)
{
    g_autofree char *all = g_strdup_printf("--socket %s --id 1 --state 1 %s",
                                           l->socket, args);
    GPid pid = start_client(all, in, out, err);

    await_state(other, 1, 1);
    return pid;
}

void await_words(int fd, const char *words)
{
    g_autoptr(GString) text = g_string_new(NULL);

    while (!strstr(text->str, words)) {
        struct pollfd pfd = { .fd = fd, .events = POLLIN };
        char buf[512];
        ssize_t len = -1;

        if (poll(&pfd, 1, SOON_MS) == 1) {
            len = read(fd, buf, sizeof(buf));
        }
        if (len <= 0) {
            g_error("not '%s' in '%s'", words, text->str);
        }
        g_string_append_len(text, buf, len);
    }
}

int client_tests_run(int argc, char **argv, const ClientTest *tests, size_t n)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (!g_getenv("IVSHMEM2_SERVER") || !g_getenv("IVSHMEM2_CLIENT")) {
        g_printerr("IVSHMEM2_SERVER and IVSHMEM2_CLIENT are to be the "
                   "programs to test\n");
        return 1;
    }
    for (size_t i = 0; i < n; i++) {
        g_test_add_func(tests[i].path, tests[i].run);
    }
    return g_test_run();
}
