/*
 * ivshmem2-client: a server that goes, comes back, or is another one
 *
 * The programs are those of IVSHMEM2_SERVER and IVSHMEM2_CLIENT.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-lasting-server.h"

static const char gone[] = "ivshmem2-client: the server is gone; memory and "
    "the doorbells of peers that are known go on working (";
static const char back[] = "ivshmem2-client: the server is back\n";
static const char json_gone[] = "{\"event\": \"disconnected\", \"code\": ";
static const char json_back[] = "{\"event\": \"connected\"}\n";

/* A client that runs until the test ends */
typedef struct Tool {
    Lasting link;
    Ivshmem2Peer *other;
    GPid pid;
    int in;
    int out;
    int err;
    bool json;
} Tool;

static void tool_start(Tool *t, const char *args, bool push)
{
    lasting_init(&t->link, push);
    lasting_start(&t->link);
    t->other = lasting_join(&t->link, 0, 0, 50);
    t->pid = start_peer(&t->link.server, t->other, args, &t->in, &t->out,
                        &t->err);
    t->json = strstr(args, "--json");
}

static void tool_lose(Tool *t)
{
    lasting_kill(&t->link);
    await_words(t->json ? t->out : t->err, t->json ? json_gone : gone);
}

static void tool_regain(Tool *t)
{
    lasting_start(&t->link);
    await_words(t->json ? t->out : t->err, t->json ? json_back : back);
}

static void tool_say(Tool *t, const char *line)
{
    g_assert_cmpint(write(t->in, line, strlen(line)), ==, strlen(line));
}

/* It has ended; nothing is left. */
static void tool_clear(Tool *t)
{
    close(t->in);
    close(t->out);
    ivshmem2_peer_close(t->other);
    lasting_end(&t->link);
}

static const struct {
    const char *args;
    int status;                 /* after a signal */
    const char *words;
} waiting[] = {
    { "watch", 0, "ended by a signal" },
    { "--json watch", 0, "ended by a signal" },
    { "wait", 1, "interrupted" },
    { "--vector 1 wait", 1, "interrupted" },
    { "--json wait", 1, "interrupted" },
    { "state 1", 0, "ended by a signal" },
    { "pong", 0, "ended by a signal" },
    { "--timeout 60 ping 0", 1, "interrupted" },
    { "write rw 0", 1, "interrupted" },
    { "shell", 0, "ended by a signal" },
    { "--json shell", 0, "ended by a signal" },
};

/* Commands that wait say that the server is gone, and back, and say goodbye. */
static void test_cli_back(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(waiting); i++) {
        Tool t;

        tool_start(&t, waiting[i].args, true);
        for (int j = 0; j < 3; j++) {
            tool_lose(&t);
            tool_regain(&t);
        }
        kill(t.pid, SIGTERM);
        assert_end(t.pid, t.err, waiting[i].status, waiting[i].words);
        await_said(&t.link, goodbyes, 1);
        g_assert_cmpuint(ivshmem2_peer_state(t.other, 1), ==, 0);
        tool_clear(&t);
    }
}

/* Signals end them in order, too, while no server is there or it is stopped. */
static void test_cli_signal(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(waiting); i++) {
        Tool t;

        tool_start(&t, waiting[i].args, true);
        if (i % 2) {
            kill(t.link.server.pid, SIGSTOP);
        } else {
            tool_lose(&t);
        }
        kill(t.pid, i % 3 ? SIGTERM : SIGINT);
        assert_end(t.pid, t.err, waiting[i].status, waiting[i].words);
        g_assert_cmpuint(ivshmem2_peer_state(t.other, 1), ==, 0);
        tool_clear(&t);
    }
}

/* So does the end of the program that reads the output. */
static void test_cli_no_reader(void)
{
    Tool t;

    tool_start(&t, "watch", true);
    close(t.out);
    t.out = -1;
    ring(t.other, 1, 1);
    assert_end(t.pid, t.err, 0, "ended by a signal");
    await_said(&t.link, goodbyes, 1);
    tool_clear(&t);
}

/* The shell knows whether it is connected, and keeps doorbells. */
static void test_cli_connected(void)
{
    Tool t;

    tool_start(&t, "--json shell", false);
    tool_say(&t, "info\n");
    await_words(t.out, "\"connected\": true}\n{\"result\": \"ok\"}\n");
    lasting_kill(&t.link);
    tool_say(&t, "info\n");
    await_words(t.out, "\"connected\": false}\n{\"result\": \"ok\"}\n");
    tool_say(&t, "ring 0 1\n");
    await_words(t.out, "\"pending\": true");
    tool_regain(&t);
    assert_interrupt(t.other, 1, 1);
    tool_say(&t, "ring 0 1\n");
    await_words(t.out, "\"pending\": false");
    assert_interrupt(t.other, 1, 1);
    tool_say(&t, "info\n");
    await_words(t.out, "\"connected\": true}\n{\"result\": \"ok\"}\n");
    close(t.in);
    t.in = -1;
    assert_end(t.pid, t.err, 0, "");
    await_said(&t.link, goodbyes, 1);
    tool_clear(&t);
}

/* Round trips go on while servers come and go. */
static void test_cli_ping(void)
{
    g_autofree char *args = NULL;
    int out, err, status;
    GPid ping;
    Tool t;

    tool_start(&t, "pong", true);
    args = g_strdup_printf("--socket %s --id 2 --count 10000 ping 1",
                           t.link.server.socket);
    ping = start_client(args, NULL, &out, &err);
    await_said(&t.link, joined, 3);
    while (waitpid(ping, &status, WNOHANG) == 0) {
        lasting_kill(&t.link);
        g_usleep(1000);
        lasting_start(&t.link);
        g_usleep(1000);
    }
    g_spawn_close_pid(ping);
    {
        g_autofree char *text = read_all(out);
        g_autofree char *wrong = read_all(err);

        if (status || !strstr(text, "10000 round trips to peer 1 with 10000 "
                              "interrupts")) {
            g_error("ping: status %d, '%s', '%s'", status, text, wrong);
        }
    }
    kill(t.pid, SIGTERM);
    assert_end(t.pid, t.err, 0, "ended by a signal");
    tool_clear(&t);
}

/* A server of another session is said once, and why. */
static void test_cli_other_session(void)
{
    static const char *const words[][2] = {
        { "watch", "ivshmem2-client: a server of another session is there, "
          "whose memory only new clients share; this one goes on alone (the "
          "server says: " },
        { "--json watch", "{\"event\": \"refused\", \"code\": 23, \"reason\": "
          "\"the server says: " },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(words); i++) {
        g_autofree char *text = NULL;
        Ivshmem2Peer *a;
        int out, err, said;
        GPid pid;
        Server l;

        link_start(&l, "--max-peers 4");
        a = join(&l, 0);
        pid = start_peer(&l, a, words[i][0], NULL, &out, &err);
        said = i ? out : err;
        server_stop(&l, SIGKILL);
        server_start(&l, "--max-peers 4");
        await_words(said, words[i][1]);
        g_usleep(20 * NEVER_MS * 1000);
        kill(pid, SIGTERM);
        text = read_all(said);
        assert_end(pid, i ? err : out, 0, "");
        g_assert_null(strstr(text, "another session is there"));
        g_assert_null(strstr(text, "refused"));
        ivshmem2_peer_close(a);
        link_end(&l);
    }
}

static const ClientTest tests[] = {
    { "/ivshmem2/cli/back", test_cli_back },
    { "/ivshmem2/cli/signal-without-server", test_cli_signal },
    { "/ivshmem2/cli/no-reader", test_cli_no_reader },
    { "/ivshmem2/cli/connected", test_cli_connected },
    { "/ivshmem2/cli/ping-without-server", test_cli_ping },
    { "/ivshmem2/cli/other-session", test_cli_other_session },
};

int main(int argc, char **argv)
{
    return client_tests_run(argc, argv, tests, G_N_ELEMENTS(tests));
}
