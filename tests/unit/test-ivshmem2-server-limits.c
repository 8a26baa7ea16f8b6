/*
 * ivshmem2-server: what a client or a user can use up
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"
#include <sys/ioctl.h>
#include <sys/stat.h>

/* Say HELLO, then nothing more, and do not read. */
static void stall_as(Client *c, Server *s, uid_t uid)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);

    client_connect_as(c, s, uid, 0);
    client_say(c, &hello);
}

/* Bytes that the client has received but not read */
static int count_unread(Client *c)
{
    int bytes;

    g_assert_cmpint(ioctl(c->transport.fd, FIONREAD, &bytes), ==, 0);
    return bytes;
}

static void wait_for_unread(Client *c, int want)
{
    int tries = SOON_MS / 10;

    while (count_unread(c) < want) {
        wait_a_little(&tries);
    }
}

static void hear_timeout(Client *c)
{
    uint16_t type;

    do {
        type = client_hear_any(c);
    } while (type && type != IVSHMEM2_MSG_REFUSED);
    g_assert_cmphex(type, ==, IVSHMEM2_MSG_REFUSED);
    g_assert_cmpuint(c->transport.in.msg.refusal.code, ==,
                     IVSHMEM2_REFUSAL_TIMEOUT);
    client_close(c);
}

/*
 * Descriptors that were sent and not received count against the server's user,
 * who may have 300 of them.  Each of these joiners would take 75 if it could.
 */
static void test_stalled_joiners(void)
{
    const int handshake = 72 + 3 * 16;
    Server s;
    Client a, b, c[40];

    if (geteuid() != 0) {
        g_test_skip("only root can become another user");
        return;
    }
    server_init(&s);
    server_start_limited(&s, 300, "--max-peers 50 --vectors 1 "
                         "--output-size 4K --handshake-timeout 3600");
    client_join(&a, &s, IVSHMEM2_ID_ANY);
    for (size_t i = 0; i < G_N_ELEMENTS(c); i++) {
        stall_as(&c[i], &s, USER_UID);
    }
    /* WELCOME, and outputs 0, 1, and 2 to 17: as many as two messages hold */
    wait_for_unread(&c[0], handshake);
    /* peers and new clients are not affected */
    for (int i = 0; i < 10; i++) {
        client_join(&b, &s, IVSHMEM2_ID_ANY);
        client_ring(&b, a.welcome.id, 0);
        g_assert_cmpuint(b.transport.in.n_fds, ==, 1);
        assert_interrupted(&a, 0);
        client_leave(&b);
    }
    g_assert_cmpint(count_unread(&c[0]), ==, handshake);
    /* stalled joiners continue as soon as there is room for them */
    for (size_t i = 0; i < G_N_ELEMENTS(c); i++) {
        client_complete(&c[i]);
        client_leave(&c[i]);
    }
    client_leave(&a);
    server_end(&s);
}

/*
 * A user can have two clients joining at once.  The time that others spend
 * waiting for them does not count towards their own timeout.
 */
static void test_turns(void)
{
    Server s;
    Client a, b, c;

    server_init(&s);
    server_start_limited(&s, 300, "--max-peers 50 --output-size 4K "
                         "--handshake-timeout 1");
    stall_as(&a, &s, geteuid());
    stall_as(&b, &s, geteuid());
    client_join(&c, &s, IVSHMEM2_ID_ANY);
    hear_timeout(&a);
    hear_timeout(&b);
    /* a client that gives up while it waits leaves nothing behind */
    stall_as(&a, &s, geteuid());
    stall_as(&b, &s, geteuid());
    client_leave(&c);
    stall_as(&c, &s, geteuid());
    g_usleep(NEVER_MS * 1000);
    client_close(&c);
    client_complete(&a);
    client_complete(&b);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* Of those connections: the ones that the server has sent something */
static unsigned count_served(Client *c, unsigned n)
{
    unsigned served = 0;

    for (unsigned i = 0; i < n; i++) {
        served += count_unread(&c[i]) > 0;
    }
    return served;
}

/*
 * However many of its user have stalled, a client waits for those that have a
 * place, and not for those that wait as well.
 */
static void test_many_stalled(void)
{
    Client stalled[20], c;
    int64_t start;
    Server s;

    server_init(&s);
    server_start_limited(&s, 300, "--max-peers 50 --output-size 4K "
                         "--handshake-timeout 3");
    for (size_t i = 0; i < G_N_ELEMENTS(stalled); i++) {
        stall_as(&stalled[i], &s, geteuid());
    }
    wait_for_unread(&stalled[1], 1);
    start = g_get_monotonic_time();
    client_join(&c, &s, IVSHMEM2_ID_ANY);
    g_test_message("waited for %d ms, the time limit is 3000 ms",
                   (int)((g_get_monotonic_time() - start) / 1000));
    /* two had a place, two more get one as the time of those is up */
    g_assert_cmpuint(count_served(stalled, G_N_ELEMENTS(stalled)), <=, 4);
    for (size_t i = 0; i < G_N_ELEMENTS(stalled); i++) {
        client_close(&stalled[i]);
    }
    client_leave(&c);
    server_end(&s);
}

/* A client that is refused keeps no place until it closes the connection. */
static void test_many_refused(void)
{
    Ivshmem2Msg hello = make_hello(1000);
    Client refused[60], c;
    Server s;

    server_init(&s);
    server_start_limited(&s, 300, "--max-peers 16 --output-size 4K "
                         "--handshake-timeout 3600");
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        client_connect(&refused[i], &s);
        client_say(&refused[i], &hello);
    }
    /* they would take 30 s, a second for two of them */
    client_join(&c, &s, IVSHMEM2_ID_ANY);
    for (size_t i = 0; i < G_N_ELEMENTS(refused); i++) {
        client_hear(&refused[i], IVSHMEM2_MSG_REFUSED);
        client_close(&refused[i]);
    }
    client_leave(&c);
    server_end(&s);
}

/* The handshake is complete when the client has read it. */
static void test_unread_handshake(void)
{
    const int handshake = 72 + 16 + 16 + 8;
    const int refusal = 264;
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 2 --vectors 1 --handshake-timeout 1");
    /* the whole handshake fits in the socket's buffer */
    stall_as(&a, &s, geteuid());
    /* this client even sends a request */
    stall_as(&b, &s, geteuid());
    client_say_target(&b, IVSHMEM2_MSG_RING, 1, 0);
    wait_for_unread(&a, handshake + refusal);
    wait_for_unread(&b, handshake + refusal);
    hear_timeout(&a);
    hear_timeout(&b);
    wait_until_free(&s, 0);
    wait_until_free(&s, 1);

    /* a client that reads it in time gets its answer */
    stall_as(&a, &s, geteuid());
    client_say_target(&a, IVSHMEM2_MSG_RING, 1, 0);
    g_usleep(NEVER_MS * 1000);
    client_complete(&a);
    client_hear(&a, IVSHMEM2_MSG_EVENTFDS);
    /* and a client that has joined may be silent */
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    g_usleep(1200 * 1000);
    client_sync(&a);
    client_sync(&b);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* As the server's user, put in flight as many descriptors as are allowed. */
static void fill_flight(Server *s, int fd)
{
    int fds[2];

    become(s, SERVER_UID);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    for (int i = 0; i < 3; i++) {
        send_with_fds(fds[0], "", 1, fds[0], 100);
    }
    g_assert_cmpint(write(fd, "", 1), ==, 1);
    pause();
}

static pid_t start_to_fill(Server *s)
{
    pid_t parent = getpid();
    pid_t pid;
    int fds[2];
    char byte;

    g_assert_cmpint(pipe(fds), ==, 0);
    pid = fork();
    if (pid == 0) {
        die_with_parent(parent);
        fill_flight(s, fds[1]);
    }
    close(fds[1]);
    g_assert_cmpint(read(fds[0], &byte, 1), ==, 1);
    close(fds[0]);
    return pid;
}

static void end_filling(pid_t pid)
{
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
}

static void assert_nothing_comes(Client *c)
{
    struct pollfd pfd = { .fd = c->transport.fd, .events = POLLIN };

    g_assert_cmpint(poll(&pfd, 1, NEVER_MS), ==, 0);
}

/* Another program of its user keeps the server from sending descriptors. */
static void test_flight_limit(void)
{
    Server s;
    Client a, b, c;
    pid_t pid;

    server_init(&s);
    server_start_limited(&s, 100, "--max-peers 4 --push-limit 0 "
                         "--handshake-timeout 1");
    client_join(&a, &s, 0);
    pid = start_to_fill(&s);
    /* connected peers still ring, by way of the server */
    for (int i = 0; i < 3; i++) {
        g_assert_cmpuint(client_ring(&a, 0, 1)->eventfds.id, ==, 0);
        g_assert_cmpuint(a.transport.in.n_fds, ==, 0);
        assert_interrupted(&a, 1);
    }
    /* new clients wait, and are told if it takes too long */
    stall_as(&b, &s, geteuid());
    hear_timeout(&b);
    stall_as(&b, &s, geteuid());
    assert_nothing_comes(&b);
    stall_as(&c, &s, geteuid());
    client_close(&c);
    end_filling(pid);
    client_complete(&b);
    client_ring(&b, 0, 1);
    g_assert_cmpuint(b.transport.in.n_fds, ==, 1);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* Connections that say nothing leave room for other users. */
static void test_silent_flood(void)
{
    unsigned told = 0, closed = 0;
    Server s;
    Client a, silent[300];

    if (geteuid() != 0) {
        g_test_skip("only root can become another user");
        return;
    }
    server_init(&s);
    server_start_limited(&s, 100, "--max-peers 16 --handshake-timeout 3600");
    for (size_t i = 0; i < G_N_ELEMENTS(silent); i++) {
        client_connect_as(&silent[i], &s, USER_UID, 0);
    }
    for (int i = 0; i < 8; i++) {
        client_join(&a, &s, IVSHMEM2_ID_ANY);
        client_leave(&a);
        stall_as(&a, &s, OTHER_UID);
        client_complete(&a);
        client_leave(&a);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(silent); i++) {
        struct pollfd pfd = { .fd = silent[i].transport.fd, .events = POLLIN };

        if (poll(&pfd, 1, 0) == 1) {
            if (client_hear_any(&silent[i])) {
                g_assert_cmpuint(silent[i].transport.in.msg.refusal.code, ==,
                                 IVSHMEM2_REFUSAL_LIMIT);
                assert_says_text(silent[i].transport.in.msg.refusal.text,
                                 "that have not joined");
                told++;
            } else {
                closed++;
            }
        }
        client_close(&silent[i]);
    }
    g_assert_cmpuint(told, >, 0);
    g_assert_cmpuint(closed, >, 200);
    client_join(&a, &s, IVSHMEM2_ID_ANY);
    client_leave(&a);
    server_end(&s);
}

/*
 * More clients than the server may have open files: 100, of which it keeps 25
 * in order to refuse clients with an error
 */
static void file_limit(const char *options)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);
    GPtrArray *peers = g_ptr_array_new_with_free_func(g_free);
    uint16_t type;
    Client first;
    Server s;

    server_init(&s);
    server_start_limited(&s, 100, options);
    client_join(&first, &s, IVSHMEM2_ID_ANY);
    do {
        Client *c = g_new(Client, 1);

        client_connect(c, &s);
        g_ptr_array_add(peers, c);
        client_say(c, &hello);
        do {
            type = client_hear_any(c);
        } while (type != IVSHMEM2_MSG_READY && type != IVSHMEM2_MSG_REFUSED);
        if (type == IVSHMEM2_MSG_REFUSED) {
            g_test_message("%s", c->transport.in.msg.refusal.text);
            g_assert_cmpuint(c->transport.in.msg.refusal.code, ==,
                             IVSHMEM2_REFUSAL_LIMIT);
            assert_says_text(c->transport.in.msg.refusal.text, "open");
            g_assert_cmpuint(server_count_fds(&s), <, 85);
        }
        ivshmem2_decoder_reset(&c->transport.in);
    } while (type != IVSHMEM2_MSG_REFUSED);
    /* connected peers are unaffected, also when still more come */
    for (int i = 0; i < 200; i++) {
        Client *c = g_new(Client, 1);

        client_connect(c, &s);
        g_ptr_array_add(peers, c);
    }
    client_sync(&first);
    /* and when the others are gone there is room again */
    for (guint i = 0; i < peers->len; i++) {
        client_close(g_ptr_array_index(peers, i));
    }
    g_ptr_array_unref(peers);
    client_sync(&first);
    wait_until_free(&s, 1);
    client_leave(&first);
    server_end(&s);
}

static void test_file_limit(void)
{
    /* what grows: connections; both; eventfds above all */
    file_limit("--max-peers 60 --vectors 1");
    file_limit("--max-peers 2000 --vectors 2");
    file_limit("--max-peers 2000 --vectors 20");
}

/* One user cannot take all IDs, and not by vanishing without GOODBYE either */
static void test_ids_per_user(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a, b, c;

    server_init(&s);
    server_start(&s, "--max-peers 4 --ids-per-user 2 --socket-mode 666");
    chmod(s.dir, 0711);
    client_join(&a, &s, 0);
    client_join(&b, &s, 3);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_LIMIT,
                      "has 2 IDs already");
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_LIMIT, "has 2 IDs already");
    /* its slot is held, but only for its owner */
    resume = make_resume(&a);
    client_close(&a);
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_LIMIT, "has 2 IDs already");
    client_join_hello(&a, &s, &resume);
    /* while the server believes the connection to be alive */
    client_join_hello(&c, &s, &resume);
    client_close(&a);
    client_leave(&b);
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(b.welcome.id, ==, 1);
    if (geteuid() == 0) {
        client_join_as(&a, &s, USER_UID, 0, IVSHMEM2_ID_ANY);
        g_assert_cmpuint(a.welcome.id, ==, 2);
        client_leave(&a);
    }
    client_leave(&b);
    client_leave(&c);
    server_end(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/ivshmem2/server/file-limit", test_file_limit);
    g_test_add_func("/ivshmem2/server/stalled-joiners", test_stalled_joiners);
    g_test_add_func("/ivshmem2/server/turns", test_turns);
    g_test_add_func("/ivshmem2/server/many-stalled", test_many_stalled);
    g_test_add_func("/ivshmem2/server/many-refused", test_many_refused);
    g_test_add_func("/ivshmem2/server/unread-handshake", test_unread_handshake);
    g_test_add_func("/ivshmem2/server/flight-limit", test_flight_limit);
    g_test_add_func("/ivshmem2/server/silent-flood", test_silent_flood);
    g_test_add_func("/ivshmem2/server/ids-per-user", test_ids_per_user);
    return g_test_run();
}
