/*
 * ivshmem2-client: interrupts, signals, and the end of the real server
 *
 * The programs are those of IVSHMEM2_SERVER and IVSHMEM2_CLIENT.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-client-util.h"
#include <sys/ioctl.h>

static void ping_pong(const char *link_options, const char *options,
                      const char *expected)
{
    Server l;
    g_autofree char *pong = NULL;
    g_autofree char *ping = NULL;
    g_autofree char *pong_out = NULL;
    int in, out, err, status;
    GPid pid;

    link_start(&l, link_options);
    pong = g_strdup_printf("--socket %s --id 1 %s --timeout 30 --count 500 "
                           "pong", l.socket, options);
    ping = g_strdup_printf("--socket %s --id 0 %s --timeout 10 --count 500 "
                           "ping 1", l.socket, options);
    pid = start_client(pong, &in, &out, &err);
    {
        g_auto(Run) r = run_client("", ping);

        if (r.status || !strstr(r.out, expected)) {
            g_error("ping: status %d, '%s', '%s'", r.status, r.out, r.err);
        }
    }
    close(in);
    pong_out = read_all(out);
    close(err);
    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_nonnull(strstr(pong_out, "500"));
    g_assert_nonnull(strstr(pong_out, "answers"));
    g_assert_cmpint(status, ==, 0);
    link_end(&l);
}

static void test_cli_ping(void)
{
    ping_pong("--max-peers 4 --vectors 3 --output-size 4K", "",
              "500 round trips to peer 1 with 500 interrupts");
    ping_pong("--max-peers 4 --vectors 3 --rw-size 4K", "--vector 2",
              "500 round trips to peer 1 with 500 interrupts");
    ping_pong("--max-peers 4 --intx --rw-size 4K", "",
              "500 round trips to peer 1");
    ping_pong("--max-peers 4 --output-size 4K", "--json",
              "{\"target\": 1, \"vector\": 1, \"count\": 500, "
              "\"interrupts\": 500, \"min_us\": ");
}

/* On SIGTERM a waiting client leaves the link in order. */
static void test_cli_signal(void)
{
    Server l;
    g_autofree char *args = NULL;
    g_autofree char *text = NULL;
    Ivshmem2Peer *a;
    int out, status;
    GPid pid;

    link_start(&l, "--max-peers 4");
    a = join(&l, 0);
    args = g_strdup_printf("--socket %s state 3", l.socket);
    pid = start_client(args, NULL, &out, NULL);
    assert_interrupt(a, -1, 0);
    kill(pid, SIGTERM);
    text = read_all(out);
    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_cmpint(status, ==, 0);
    assert_interrupt(a, -1, 0);
    g_assert_cmpuint(ivshmem2_peer_state(a, 1), ==, 0);
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* A signal ends a client in every command that waits. */
static void test_cli_interrupted(void)
{
    static const struct {
        const char *args;
        int status;
        const char *words;
    } cases[] = {
        { "wait", 1, "interrupted" },
        { "--vector 1 wait", 1, "interrupted" },
        { "--timeout 100 ping 0", 1, "interrupted" },
        { "watch", 0, "ended by a signal" },
        { "--count 3 watch", 1, "interrupted" },
        { "pong", 0, "ended by a signal" },
        { "--count 3 pong", 1, "interrupted" },
        { "state 1", 0, "ended by a signal" },
        { "shell", 0, "ended by a signal" },
    };
    Server l;
    Ivshmem2Peer *a;

    link_start(&l, "--max-peers 4 --output-size 4K");
    a = join(&l, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        int in, err;
        GPid pid = start_peer(&l, a, cases[i].args, &in, NULL, &err);

        kill(pid, SIGTERM);
        assert_end(pid, err, cases[i].status, cases[i].words);
        close(in);
        await_state(a, 1, 0);
    }
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* A signal also ends commands that others keep waiting, or that take long. */
static void test_cli_interrupted_io(void)
{
    static const struct {
        const char *args;
        bool stalled;           /* it is to fill its standard output first */
    } cases[] = {
        { "write rw 0", false },
        { "read rw 0 16777216", true },
        { "dump rw 0 16777216", true },
        { "--count 100000000 ring 0", false },
    };
    Server l;
    Ivshmem2Peer *a;

    link_start(&l, "--max-peers 4 --rw-size 16M");
    a = join(&l, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        int in, out, err, filled = 0, before = -1;
        GPid pid = start_peer(&l, a, cases[i].args, &in, &out, &err);

        while (cases[i].stalled && (!filled || filled != before)) {
            before = filled;
            g_usleep(NEVER_MS * 1000);
            g_assert_cmpint(ioctl(out, FIONREAD, &filled), ==, 0);
        }
        kill(pid, SIGTERM);
        await_words(err, "interrupted");
        assert_end(pid, err, 1, "");
        close(in);
        close(out);
        await_state(a, 1, 0);
    }
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* Interrupts and states are printed, and counted. */
static void test_cli_events(void)
{
    Server l;
    Ivshmem2Peer *a;
    GPid pid;
    int out;

    link_start(&l, "--max-peers 4");
    a = join(&l, 0);
    pid = start_peer(&l, a, "--timeout 60 --vector 1 wait", NULL, &out, NULL);
    ring(a, 1, 0);
    ring(a, 1, 1);
    assert_end(pid, out, 0, "interrupt on vector 1\n");

    pid = start_peer(&l, a, "--timeout 60 --count 2 watch", NULL, &out, NULL);
    ring(a, 1, 1);
    set_state(a, 7);
    assert_end(pid, out, 0, "peer 0: state 7, was 0\n");
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* Commands go on without a server, and do not pretend that it is there. */
static void test_cli_server_gone(void)
{
    static const char commands[] =
        "info\npeers\nring 2\nping 2 --timeout 0.1\nstate 4\n"
        "state x\n\"a\n--vector x wait\n";
    Server l;
    Ivshmem2Peer *a;
    GPid pid;
    int in, out;

    link_start(&l, "--max-peers 4 --output-size 4K --push-limit 0");
    a = join(&l, 0);
    set_state(a, 6);
    pid = start_peer(&l, a, "shell", &in, &out, NULL);
    server_stop(&l, SIGKILL);
    g_assert_cmpint(write(in, commands, strlen(commands)), ==,
                    strlen(commands));
    close(in);
    {
        g_autofree char *text = read_all(out);
        static const char *const said[] = {
            "(gone)\n", "ok\n",
            "peer 0: state 6 (or dead: the server is gone)",
            "rang vector 0 of peer 2 (peers that are not known are rung when "
            "the server is back), which is absent",
            "timeout: peer 2 does not answer",
            "state 4\nok\n",
            "error: VALUE 'x' is not valid, it must be a number",
            "error: Text ended before matching quote",
            "error: --vector 'x' is not valid, it must be a number",
        };

        for (size_t i = 0; i < G_N_ELEMENTS(said); i++) {
            if (!strstr(text, said[i])) {
                g_error("'%s' is not in '%s'", said[i], text);
            }
        }
    }
    waitpid(pid, NULL, 0);
    g_spawn_close_pid(pid);
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* Commands that wait say at once that the server is gone, and wait on. */
static void test_cli_server_dies(void)
{
    static const struct {
        const char *args;
        bool json;
        bool rung;              /* ends when its vector 1 is rung */
        int status;             /* after a signal */
        const char *words;
    } cases[] = {
        { "watch", false, false, 0, "ended by a signal" },
        { "wait", false, false, 1, "interrupted" },
        { "--vector 1 wait", false, true, 0, "" },
        { "--json wait", true, true, 0, "" },
        { "state 1", false, false, 0, "ended by a signal" },
        { "pong", false, false, 0, "ended by a signal" },
        { "shell", false, false, 0, "ended by a signal" },
        { "--json shell", true, false, 0, "ended by a signal" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Server l;
        Ivshmem2Peer *a;
        GPid pid;
        int in, out, err;

        link_start(&l, "--max-peers 4 --output-size 4K");
        a = join(&l, 0);
        pid = start_peer(&l, a, cases[i].args, &in, &out, &err);
        server_stop(&l, SIGKILL);
        if (cases[i].json) {
            await_words(out, "{\"event\": \"disconnected\", \"code\": ");
        } else {
            await_words(err, "ivshmem2-client: the server is gone; memory and "
                        "the doorbells of peers that are known go on working "
                        "(");
        }
        if (cases[i].rung) {
            ring(a, 1, 1);
        } else {
            kill(pid, SIGTERM);
        }
        assert_end(pid, err, cases[i].status, cases[i].words);
        close(in);
        close(out);
        ivshmem2_peer_close(a);
        link_end(&l);
    }
}

static const ClientTest tests[] = {
    { "/ivshmem2/cli/ping", test_cli_ping },
    { "/ivshmem2/cli/signal", test_cli_signal },
    { "/ivshmem2/cli/interrupted", test_cli_interrupted },
    { "/ivshmem2/cli/interrupted-io", test_cli_interrupted_io },
    { "/ivshmem2/cli/events", test_cli_events },
    { "/ivshmem2/cli/server-gone", test_cli_server_gone },
    { "/ivshmem2/cli/server-dies", test_cli_server_dies },
};

int main(int argc, char **argv)
{
    return client_tests_run(argc, argv, tests, G_N_ELEMENTS(tests));
}
