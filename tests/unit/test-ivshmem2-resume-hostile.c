/*
 * Peers on the host that resume, and servers and peers that stop or die in the
 * middle of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-lasting-server.h"

#define N_DISCONNECTS   10000

/* The limit of an attempt, where it is to be exceeded */
#define ATTEMPT_MS      200

static const Action actions[] = { DO_CLOSE, DO_DIE };

static Ivshmem2Peer *join_impatiently(Lasting *l, uint32_t id)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    int tries = SOON_MS / 10;
    Ivshmem2Peer *peer;

    o.id = id;
    o.timeout_ms = ATTEMPT_MS;
    o.resume_ms = 1;
    o.resume_slowest_ms = 20;
    peer = ivshmem2_peer_open_socket(l->server.socket, &o, &error);
    /* a busy machine may need more than one attempt */
    while (!peer) {
        assert_error(error, IVSHMEM2_ERROR_TIMEOUT, "");
        wait_a_little(&tries);
        peer = ivshmem2_peer_open_socket(l->server.socket, &o, &error);
    }
    return peer;
}

/* Everything that a program does goes on at once. */
static void assert_unhindered(Ivshmem2Peer *a, Ivshmem2Peer *b)
{
    gint64 start = g_get_monotonic_time();

    for (int i = 1; i <= 1000; i++) {
        set_state(a, i);
        ring(a, ivshmem2_peer_info(b)->id, 1);
        g_assert_cmpint(ivshmem2_peer_event(a, NULL), !=,
                        IVSHMEM2_EVENT_CONNECTED);
        assert_interrupt(b, 1, 1);
    }
    /* a single one that waits for an attempt would take as long as that */
    g_assert_cmpint(g_get_monotonic_time() - start, <,
                    1000 * ATTEMPT_MS * G_TIME_SPAN_MILLISECOND);
    set_state(a, 0);
    while (ivshmem2_peer_wait(b, 0, NULL, 0, NULL) == 1) {
        continue;
    }
}

/* A server that stops in the middle: each attempt is limited. */
static void test_server_stops(void)
{
    for (Step step = STEP_HELLO; step <= STEP_AFTER; step++) {
        Ivshmem2Peer *a, *b;
        int status;
        Lasting l;

        lasting_init(&l, true);
        lasting_start(&l);
        a = join_impatiently(&l, 0);
        b = join_impatiently(&l, 1);
        /* they are known, and b looks at nothing for now */
        lasting_kill(&l);
        lasting_do(&l, step, DO_STOP, 1);
        lasting_start(&l);
        assert_lost(a);
        while (!said(&l, interfered)) {
            ivshmem2_peer_wait(a, -1, NULL, 1, NULL);
        }
        g_assert_cmpint(waitpid(l.server.pid, &status, WUNTRACED), ==,
                        l.server.pid);
        g_assert_true(WIFSTOPPED(status));
        if (step < STEP_AFTER) {
            assert_unhindered(a, b);
            /* long enough for attempts to end and to fill the queue */
            for (int i = 0; i < 2 * ATTEMPT_MS / NEVER_MS; i++) {
                assert_silence(a);
            }
            g_assert_false(ivshmem2_peer_connected(a));
        }
        kill(l.server.pid, SIGCONT);
        assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
        assert_lost(b);
        assert_event(b, IVSHMEM2_EVENT_CONNECTED, 0);
        ivshmem2_peer_close(a);
        ivshmem2_peer_close(b);
        lasting_end(&l);
    }
}

/* One that never answers, or half, while it goes on with others */
static void test_server_stalls(void)
{
    for (Step step = STEP_HELLO; step <= STEP_READY; step++) {
        Ivshmem2Peer *a;
        Lasting l;

        lasting_init(&l, true);
        lasting_start(&l);
        a = join_impatiently(&l, 0);
        lasting_kill(&l);
        lasting_do(&l, step, step == STEP_WELCOME ? DO_HALF : DO_STALL, 2);
        lasting_start(&l);
        assert_lost(a);
        while (!said(&l, interfered)) {
            g_assert_cmpint(ivshmem2_peer_event(a, NULL), ==, 0);
        }
        g_assert_false(ivshmem2_peer_connected(a));
        assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
        g_assert_cmpint(said(&l, interfered), ==, 2);
        ivshmem2_peer_close(a);
        lasting_end(&l);
    }
}

/* One that takes its time to read finds one connection, not many dead ones. */
static void test_server_late(void)
{
    Ivshmem2Peer *a;
    int status;
    Lasting l;

    lasting_init(&l, true);
    lasting_start(&l);
    a = join_impatiently(&l, 0);
    lasting_kill(&l);
    lasting_do(&l, STEP_HELLO, DO_STOP, 1);
    say(&l, connections, 0);
    lasting_start(&l);
    assert_lost(a);
    while (!said(&l, interfered)) {
        g_assert_cmpint(ivshmem2_peer_event(a, NULL), ==, 0);
    }
    g_assert_cmpint(waitpid(l.server.pid, &status, WUNTRACED), ==,
                    l.server.pid);
    for (int i = 0; i < 3 * ATTEMPT_MS / NEVER_MS; i++) {
        assert_no_event(a);
    }
    kill(l.server.pid, SIGCONT);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    assert_no_event(a);
    g_assert_cmpint(said(&l, connections), ==, 1);
    ivshmem2_peer_close(a);
    lasting_end(&l);
}

/* One that is slow, which a peer gives more and more time */
static void test_server_slow(void)
{
    Ivshmem2Peer *a;
    Lasting l;

    lasting_init(&l, true);
    lasting_start(&l);
    a = join_impatiently(&l, 0);
    lasting_kill(&l);
    say(&l, delay_ms, 3 * ATTEMPT_MS);
    lasting_start(&l);
    assert_lost(a);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    ivshmem2_peer_close(a);
    lasting_end(&l);
}

/* One that dies, or closes, in the middle, again and again */
static void test_server_dies(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(actions); i++) {
        for (Step step = STEP_HELLO; step <= STEP_AFTER; step++) {
            Ivshmem2Peer *a;
            Lasting l;

            lasting_init(&l, true);
            lasting_start(&l);
            a = lasting_join(&l, 0, IVSHMEM2_SOCKET_EVENTS, 20);
            lasting_kill(&l);
            assert_lost(a);
            for (int j = 1; j <= 3; j++) {
                lasting_do(&l, step, actions[i], 1);
                lasting_start(&l);
                while (said(&l, interfered) < j) {
                    ivshmem2_peer_event(a, NULL);
                    g_usleep(1000);
                }
                if (actions[i] == DO_CLOSE) {
                    lasting_kill(&l);
                } else {
                    waitpid(l.server.pid, NULL, 0);
                }
            }
            lasting_start(&l);
            for (int tries = SOON_MS / 10; !ivshmem2_peer_connected(a); ) {
                ivshmem2_peer_event(a, NULL);
                wait_a_little(&tries);
            }
            ivshmem2_peer_close(a);
            lasting_end(&l);
        }
    }
}

/* kill -9 for a peer in each step of resuming; the others do not notice. */
static void test_peer_killed(void)
{
    for (Step step = STEP_HELLO; step <= STEP_AFTER; step++) {
        Ivshmem2Peer *a, *b;
        GPid child;
        Lasting l;
        int out, err;

        lasting_init(&l, true);
        lasting_start(&l);
        a = lasting_join(&l, 0, 0, 20);
        child = start_peer(&l.server, a, "watch", NULL, &out, &err);
        lasting_kill(&l);
        /* the child is the only one that resumes until it is killed */
        lasting_do(&l, step, DO_STALL, 1);
        lasting_start(&l);
        await_said(&l, interfered, 1);
        kill(child, SIGKILL);
        g_assert_cmpint(waitpid(child, NULL, 0), ==, child);
        close(out);
        close(err);
        assert_lost(a);
        assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
        b = lasting_join(&l, 1, 0, 20);
        ring(a, 1, 1);
        assert_interrupt(b, 1, 1);
        ivshmem2_peer_close(a);
        ivshmem2_peer_close(b);
        lasting_end(&l);
    }
}

/* Loses its connection with a server that is stopped, and says HELLO again */
static void run_cut_child(Lasting *l)
{
    Ivshmem2Peer *peer = lasting_join(l, 1, 0, 20);
    char *rw = ivshmem2_peer_rw(peer);

    set_state(peer, 7);
    while (!__atomic_load_n(&rw[0], __ATOMIC_SEQ_CST)) {
        ivshmem2_peer_wait(peer, -1, NULL, 10, NULL);
    }
    cut_connections(l->server.pid);
    assert_event(peer, IVSHMEM2_EVENT_DISCONNECTED, IVSHMEM2_ERROR_CLOSED);
    assert_no_event(peer);
    __atomic_store_n(&rw[0], 2, __ATOMIC_SEQ_CST);
    pause();
}

/* The same with the real server, which has not read the HELLO yet */
static void test_peer_killed_real(void)
{
    pid_t child, parent = getpid();
    int tries = SOON_MS / 10;
    Lasting l = { 0 };
    Ivshmem2Peer *a, *b;
    char *rw;

    link_start(&l.server, "--max-peers 2 --vectors 2 --rw-size 4K");
    /* before there is a peer here whose connection it would cut, too */
    child = fork();
    if (child == 0) {
        die_with_parent(parent);
        run_cut_child(&l);
        _exit(0);
    }
    a = lasting_join(&l, 0, 0, 20);
    rw = ivshmem2_peer_rw(a);
    await_state(a, 1, 7);
    kill(l.server.pid, SIGSTOP);
    __atomic_store_n(&rw[0], 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&rw[0], __ATOMIC_SEQ_CST) != 2) {
        wait_a_little(&tries);
    }
    kill(child, SIGKILL);
    g_assert_cmpint(waitpid(child, NULL, 0), ==, child);
    kill(l.server.pid, SIGCONT);
    while (ivshmem2_peer_state(a, 1)) {
        assert_interrupt(a, 0, 0);
    }
    b = lasting_join(&l, 1, 0, 20);
    ring(b, 0, 1);
    assert_interrupt(a, 1, 1);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l.server);
}

/*
 * The server does not read.  Whenever the peer ends, what the server finds
 * afterwards must not be that the state is 0 if the others know another one.
 */
static void test_room(void)
{
    for (int first = 0; first < 2; first++) {
        Ivshmem2Peer *a;
        Lasting l;

        lasting_init(&l, true);
        lasting_start(&l);
        a = lasting_join(&l, 0, 0, 50);
        /* so that another one is the first that has no room */
        if (first) {
            set_state(a, 5);
            await_said(&l, announcements, 1);
        }
        kill(l.server.pid, SIGSTOP);
        for (int i = 1; i <= 20001 + first; i++) {
            set_state(a, (i + first) % 2 * 5);
        }
        cut_connections(l.server.pid);
        kill(l.server.pid, SIGCONT);
        await_said(&l, closed, 1);
        g_assert_cmpint(said(&l, announced), ==, 5);
        g_assert_cmpint(said(&l, announcements), <, 20000);
        ivshmem2_peer_close(a);
        lasting_end(&l);
    }
}

/* Without a connection, and in the middle of a handshake, closing waits not. */
static void test_close(void)
{
    gint64 start = g_get_monotonic_time();

    for (int i = 0; i < 40; i++) {
        Ivshmem2Peer *a;
        Lasting l;

        lasting_init(&l, false);
        lasting_start(&l);
        a = lasting_join(&l, 0, 0, 50);
        lasting_kill(&l);
        if (i % 2) {
            lasting_do(&l, STEP_WELCOME, DO_STALL, 1);
            lasting_start(&l);
            while (!said(&l, interfered)) {
                ivshmem2_peer_event(a, NULL);
            }
        } else {
            assert_lost(a);
        }
        ivshmem2_peer_close(a);
        lasting_end(&l);
    }
    /* a server that does not answer would be waited for 1 s */
    g_assert_cmpint(g_get_monotonic_time() - start, <,
                    20 * G_TIME_SPAN_SECOND);
}

/* A server that is just back, or that has not answered yet, hears goodbye. */
static void test_goodbye(void)
{
    Ivshmem2Peer *a;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    a = lasting_join(&l, 0, 0, 3600 * 1000);
    set_state(a, 3);
    lasting_kill(&l);
    assert_lost(a);
    /* until the next attempt is far away */
    for (int i = 0; i < 10 * NEVER_MS; i++) {
        ivshmem2_peer_event(a, NULL);
        g_usleep(1000);
    }
    lasting_start(&l);
    ivshmem2_peer_close(a);
    await_said(&l, goodbyes, 1);
    g_assert_cmpint(said(&l, resumed), ==, 1);
    g_assert_cmpuint(l.table[0], ==, 0);

    a = lasting_join(&l, 0, 0, 50);
    lasting_kill(&l);
    lasting_do(&l, STEP_HELLO, DO_STOP, 1);
    lasting_start(&l);
    while (!said(&l, interfered)) {
        ivshmem2_peer_event(a, NULL);
    }
    ivshmem2_peer_close(a);
    kill(l.server.pid, SIGCONT);
    await_said(&l, goodbyes, 2);
    lasting_end(&l);
}

/* Let the server end so many connections when they are at @step. */
static void lose_often(Lasting *l, Ivshmem2Peer *a, Ivshmem2Peer *b, Step step)
{
    int end = said(l, interfered) + N_DISCONNECTS / 2;

    lasting_do(l, step, DO_CLOSE, N_DISCONNECTS / 2);
    lasting_kill(l);
    lasting_start(l);
    for (int i = 0; said(l, interfered) < end; i++) {
        ivshmem2_peer_wait(a, -1, NULL, NEVER_MS, NULL);
        while (ivshmem2_peer_event(a, NULL)) {
            continue;
        }
        if (i % 100 == 0) {
            ring(a, 1, 1);
            assert_interrupt(b, 1, 1);
        }
    }
}

/* Nothing is left of connections that came and went. */
static void test_leaks(void)
{
    int tries = SOON_MS / 10;
    Ivshmem2Peer *a, *b;
    unsigned before;
    Lasting l;

    lasting_init(&l, true);
    lasting_start(&l);
    a = lasting_join(&l, 0, IVSHMEM2_SOCKET_EVENTS, 1);
    b = lasting_join(&l, 1, 0, 1);
    before = count_fds();
    lose_often(&l, a, b, STEP_AFTER);
    lose_often(&l, a, b, STEP_ANNOUNCED);
    while (!ivshmem2_peer_connected(a) || !ivshmem2_peer_connected(b)) {
        ivshmem2_peer_event(a, NULL);
        ivshmem2_peer_event(b, NULL);
        wait_a_little(&tries);
    }
    g_assert_cmpuint(count_fds(), ==, before);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    lasting_end(&l);
}

static const ClientTest tests[] = {
    /* first, as it forks a peer, which has threads, before this one has any */
    { "/ivshmem2/resume/peer-killed-real", test_peer_killed_real },
    { "/ivshmem2/resume/server-stops", test_server_stops },
    { "/ivshmem2/resume/server-stalls", test_server_stalls },
    { "/ivshmem2/resume/server-late", test_server_late },
    { "/ivshmem2/resume/server-slow", test_server_slow },
    { "/ivshmem2/resume/server-dies", test_server_dies },
    { "/ivshmem2/resume/peer-killed", test_peer_killed },
    { "/ivshmem2/resume/room", test_room },
    { "/ivshmem2/resume/close", test_close },
    { "/ivshmem2/resume/goodbye", test_goodbye },
    { "/ivshmem2/resume/leaks", test_leaks },
};

int main(int argc, char **argv)
{
    return client_tests_run(argc, argv, tests, G_N_ELEMENTS(tests));
}
