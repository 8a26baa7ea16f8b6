/*
 * Peers on the host that lose their server and resume
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-lasting-server.h"
#include <sys/stat.h>

#define EVENTS      IVSHMEM2_SOCKET_EVENTS

/* Wait until a program is told, by ivshmem2_peer_wait() for @only. */
static void assert_woken(Ivshmem2Peer *peer, int only)
{
    g_autoptr(GError) error = NULL;
    int vector = -1;

    g_assert_cmpint(ivshmem2_peer_wait(peer, only, &vector, SOON_MS, &error),
                    ==, 2);
    g_assert_no_error(error);
    g_assert_cmpint(vector, ==, -1);
}

/* Everything goes on, and nobody is interrupted who need not be. */
static void resume_thrice(bool push)
{
    const Ivshmem2PeerInfo *info;
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, push);
    lasting_start(&l);
    a = lasting_join(&l, 2, EVENTS, 50);
    b = lasting_join(&l, 1, EVENTS, 50);
    /* both know each other */
    ring(a, 1, 1);
    assert_interrupt(b, -1, 1);
    ring(b, 2, 1);
    assert_interrupt(a, -1, 1);
    set_state(a, 5);
    assert_interrupt(b, -1, 0);
    assert_no_event(a);
    for (int i = 0; i < 3; i++) {
        lasting_kill(&l);
        assert_woken(a, i % 2 ? -1 : 1);
        assert_lost(a);
        assert_lost(b);
        g_assert_false(ivshmem2_peer_connected(a));
        strcpy(ivshmem2_peer_rw(a), "memory");
        g_assert_cmpstr(ivshmem2_peer_rw(b), ==, "memory");
        ring(a, 1, 1);
        assert_interrupt(b, -1, 1);
        assert_no_event(a);

        lasting_start(&l);
        assert_woken(a, i % 2 ? -1 : 1);
        assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
        assert_event(b, IVSHMEM2_EVENT_CONNECTED, 0);
        g_assert_true(ivshmem2_peer_connected(a));
        assert_no_event(a);
        assert_no_event(b);
        ring(b, 2, 1);
        assert_interrupt(a, -1, 1);
    }
    info = ivshmem2_peer_info(a);
    g_assert_cmpuint(info->id, ==, 2);
    g_assert_cmpuint(ivshmem2_peer_state(b, 2), ==, 5);
    g_assert_cmpint(said(&l, resumed), ==, 6);
    g_assert_cmpint(said(&l, changes), ==, push ? 0 : 1);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    await_said(&l, goodbyes, 2);
    lasting_end(&l);
}

/* A program that knows nothing of events waits on and resumes all the same. */
static void test_no_events(void)
{
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, true);
    lasting_start(&l);
    a = lasting_join(&l, 0, 0, 50);
    b = lasting_join(&l, 1, 0, 50);
    lasting_kill(&l);
    assert_silence(a);
    lasting_start(&l);
    while (!ivshmem2_peer_connected(a)) {
        g_assert_cmpint(ivshmem2_peer_wait(a, -1, NULL, NEVER_MS, NULL), ==,
                        0);
    }
    ring(b, 0, 1);
    assert_interrupt(a, -1, 1);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    lasting_end(&l);
}

/* With no other calls than ring() or set_state() */
static void test_ringing_only(void)
{
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    a = lasting_join(&l, 0, 0, 50);
    b = lasting_join(&l, 1, 0, 50);
    lasting_kill(&l);
    ring(a, 1, 1);
    lasting_start(&l);
    for (int tries = SOON_MS / 10; !ivshmem2_peer_connected(a); ) {
        ring(a, 1, 1);
        set_state(b, 1);
        wait_a_little(&tries);
    }
    assert_interrupt(b, 1, 1);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    lasting_end(&l);
}

/* Doorbells that need the server are kept, each once. */
static void test_kept_rings(void)
{
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    a = lasting_join(&l, 0, EVENTS, 50);
    b = lasting_join(&l, 1, 0, 50);
    g_assert_false(ivshmem2_peer_pending(a));
    lasting_kill(&l);
    assert_lost(a);
    for (int i = 0; i < 100; i++) {
        ring(a, 1, 1);
    }
    g_assert_true(ivshmem2_peer_pending(a));
    assert_silence(b);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    assert_interrupt(b, 1, 1);
    g_assert_false(ivshmem2_peer_pending(a));
    g_assert_cmpint(said(&l, rings), ==, 1);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    lasting_end(&l);
}

/* A state that changed meanwhile is told, once; on small links it was. */
static void state_changed(bool push)
{
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, push);
    lasting_start(&l);
    a = lasting_join(&l, 0, 0, 50);
    b = lasting_join(&l, 1, 0, 50);
    lasting_kill(&l);
    assert_lost(a);
    assert_lost(b);
    set_state(a, 7);
    set_state(a, 8);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 8);
    if (push) {
        assert_interrupt(b, -1, 0);
    }
    assert_silence(b);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    if (push) {
        await_said(&l, announcements, 1);
    } else {
        assert_interrupt(b, -1, 0);
    }
    assert_silence(b);
    g_assert_cmpint(said(&l, changes), ==, push ? 0 : 1);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    lasting_end(&l);
}

/* A server that took the peer for dead has set its state to 0. */
static void state_zeroed(bool push)
{
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, push);
    lasting_start(&l);
    a = lasting_join(&l, 0, 0, 50);
    b = lasting_join(&l, 1, 0, 50);
    set_state(a, 7);
    assert_interrupt(b, -1, 0);
    lasting_kill(&l);
    assert_lost(a);
    __atomic_store_n(&l.table[0], 0, __ATOMIC_SEQ_CST);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    assert_interrupt(b, -1, 0);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 7);
    assert_silence(b);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    lasting_end(&l);
}

static void assert_closed_to_rings(Ivshmem2Peer *a)
{
    g_autoptr(GError) error = NULL;

    g_assert_false(ivshmem2_peer_ring(a, 1, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_CLOSED, "the server is gone, and only "
                 "it knew how to ring vector 1 of peer 1");
}

/* A server of another session: said once, asked seldom, and not for ever */
static void test_other_session(void)
{
    Ivshmem2Peer *a;
    int asked;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    a = lasting_join(&l, 0, EVENTS, 50);
    lasting_kill(&l);
    assert_lost(a);
    say(&l, other, 1);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_REFUSED, IVSHMEM2_ERROR_SESSION);
    asked = said(&l, connections);
    assert_closed_to_rings(a);
    g_assert_true(ivshmem2_peer_pending(a));
    /* the next attempt is due after 12 x 50 ms */
    assert_no_event(a);
    g_assert_cmpint(said(&l, connections), ==, asked);
    for (int tries = SOON_MS / 10; said(&l, connections) < asked + 2; ) {
        g_assert_cmpint(ivshmem2_peer_event(a, NULL), ==, 0);
        wait_a_little(&tries);
    }
    assert_no_event(a);

    /* it was the wrong server, for a while */
    say(&l, other, 0);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    await_said(&l, rings, 1);
    lasting_kill(&l);
    assert_lost(a);
    say(&l, other, 1);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_REFUSED, IVSHMEM2_ERROR_SESSION);
    ivshmem2_peer_close(a);
    lasting_end(&l);
}

/* Refusals that alternate are said once each; some pass soon. */
static void test_refusals(void)
{
    Ivshmem2Peer *a;
    Lasting l;
    int asked;

    lasting_init(&l, false);
    lasting_start(&l);
    a = lasting_join(&l, 0, EVENTS, 50);
    say(&l, refuse, IVSHMEM2_REFUSAL_LIMIT);
    lasting_kill(&l);
    assert_lost(a);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_REFUSED, IVSHMEM2_ERROR_LIMIT);
    /* this one may pass: doorbells are kept, and attempts go on */
    ring(a, 1, 1);
    asked = said(&l, connections);
    for (int tries = SOON_MS / 10; said(&l, connections) < asked + 5; ) {
        g_assert_cmpint(ivshmem2_peer_event(a, NULL), ==, 0);
        wait_a_little(&tries);
    }
    say(&l, refuse, IVSHMEM2_REFUSAL_SHUTDOWN);
    assert_no_event(a);
    say(&l, refuse, IVSHMEM2_REFUSAL_PERMISSION);
    assert_event(a, IVSHMEM2_EVENT_REFUSED, IVSHMEM2_ERROR_PERMISSION);
    say(&l, refuse, IVSHMEM2_REFUSAL_LIMIT);
    asked = said(&l, connections);
    for (int tries = SOON_MS / 10; said(&l, connections) < asked + 5; ) {
        g_assert_cmpint(ivshmem2_peer_event(a, NULL), ==, 0);
        wait_a_little(&tries);
    }
    say(&l, refuse, 0);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    assert_no_event(a);
    ivshmem2_peer_close(a);
    lasting_end(&l);
}

/* Something else is there that cannot be connected to. */
static void test_unreachable(void)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    Ivshmem2Peer *a;
    Lasting l;

    lasting_init(&l, false);
    l.server.n_fds--;
    lasting_start(&l);
    a = lasting_join(&l, 0, EVENTS, 50);
    g_unlink(l.server.socket);
    g_strlcpy(addr.sun_path, l.server.socket, sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    lasting_kill(&l);
    assert_lost(a);
    assert_event(a, IVSHMEM2_EVENT_REFUSED, IVSHMEM2_ERROR_IO);
    assert_no_event(a);
    ring(a, 1, 1);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    ivshmem2_peer_close(a);
    close(fd);
    lasting_end(&l);
}

/*
 * Attempts are no closer to each other than the program allows, whether a
 * server ends connections in the handshake or after it.
 */
static void check_pace(Step step)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    int attempts = 0, most = 2;
    Ivshmem2Peer *a;
    gint64 start, ms;
    Lasting l;

    lasting_init(&l, true);
    lasting_start(&l);
    o.resume_ms = 40;
    a = ivshmem2_peer_open_socket(l.server.socket, &o, NULL);
    g_assert_nonnull(a);
    lasting_kill(&l);
    assert_lost(a);
    lasting_do(&l, step, DO_CLOSE, 1000000);
    lasting_start(&l);
    start = g_get_monotonic_time();
    for (int i = 0; i < 5; i++) {
        assert_silence(a);
    }
    ms = (g_get_monotonic_time() - start) / 1000;
    attempts = said(&l, interfered);
    g_assert_cmpint(attempts, >, 1);
    if (step == STEP_ANNOUNCED) {
        most += ms / o.resume_ms;
    } else {
        for (gint64 pause = o.resume_ms; pause <= ms; pause *= 2) {
            most++;
        }
    }
    g_assert_cmpint(attempts, <=, most);
    ivshmem2_peer_close(a);
    lasting_end(&l);
}

static void test_pace(void)
{
    check_pace(STEP_WELCOME);
    check_pace(STEP_ANNOUNCED);
}

/* The descriptors tell programs that have a main loop. */
static void test_main_loop(void)
{
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    a = lasting_join(&l, 0, EVENTS, 50);
    b = lasting_join(&l, 1, EVENTS, 50);
    for (int i = 0; i < 2; i++) {
        struct pollfd pfds[2] = {
            { .fd = ivshmem2_peer_fd(a), .events = POLLIN },
            { .fd = ivshmem2_peer_connection_fd(a), .events = POLLIN },
        };

        g_assert_cmpint(poll(pfds, 2, 0), ==, 0);
        lasting_kill(&l);
        /* both, and as long as the event is not taken */
        g_assert_cmpint(ivshmem2_peer_wait(a, -1, NULL, SOON_MS, NULL), ==, 2);
        g_assert_cmpint(ivshmem2_peer_wait(a, 1, NULL, SOON_MS, NULL), ==, 2);
        g_assert_cmpint(poll(pfds, 2, 0), ==, 2);
        g_assert_cmpint(ivshmem2_peer_event(a, NULL), ==,
                        IVSHMEM2_EVENT_DISCONNECTED);
        lasting_start(&l);
        while (ivshmem2_peer_event(a, NULL) != IVSHMEM2_EVENT_CONNECTED) {
            g_assert_cmpint(poll(&pfds[1], 1, SOON_MS), ==, 1);
        }
        /* interrupts are no events */
        ring(a, 0, 1);
        g_assert_cmpint(poll(&pfds[0], 1, 0), ==, 1);
        g_assert_cmpint(poll(&pfds[1], 1, 0), ==, 0);
        assert_interrupt(a, -1, 1);
    }
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    lasting_end(&l);
}

/* What a program has not looked at does not pile up. */
static void test_events_replaced(void)
{
    Ivshmem2Peer *a;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    a = lasting_join(&l, 0, EVENTS, 50);
    for (int i = 0; i < 10; i++) {
        lasting_kill(&l);
        lasting_start(&l);
        for (int tries = SOON_MS / 10; !ivshmem2_peer_connected(a); ) {
            ivshmem2_peer_wait(a, -1, NULL, 0, NULL);
            wait_a_little(&tries);
        }
    }
    assert_lost(a);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    assert_no_event(a);
    ivshmem2_peer_close(a);
    lasting_end(&l);
}

/* It can be turned off. */
static void test_off(void)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    Ivshmem2Peer *a, *b;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    o.id = 0;
    o.resume_ms = -1;
    a = ivshmem2_peer_open_socket(l.server.socket, &o, NULL);
    g_assert_nonnull(a);
    b = lasting_join(&l, 1, 0, 50);
    ring(b, 0, 1);
    assert_interrupt(a, -1, 1);
    /* the answer came; the server itself will still be there */
    assert_no_event(b);
    cut_connections(l.server.pid);
    assert_lost(a);
    assert_lost(b);
    assert_event(b, IVSHMEM2_EVENT_CONNECTED, 0);
    assert_closed_to_rings(a);
    assert_no_event(a);
    g_assert_cmpint(said(&l, resumed), ==, 1);
    ring(b, 0, 1);
    assert_interrupt(a, -1, 1);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    await_said(&l, goodbyes, 1);
    lasting_end(&l);
}

/* Options of a program that was built with version 1.0, and wrong times */
static void test_options(void)
{
    static const int wrong[][2] = { { 0, 5000 }, { -2, 5000 }, { 100, 99 } };
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    Ivshmem2Peer *a;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    o.size = offsetof(Ivshmem2SocketOptions, resume_ms);
    o.id = 3;
    o.resume_ms = -5;
    a = ivshmem2_peer_open_socket(l.server.socket, &o, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(ivshmem2_peer_info(a)->id, ==, 3);
    lasting_kill(&l);
    assert_lost(a);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    ivshmem2_peer_close(a);
    o.size = sizeof(o);
    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        o.resume_ms = wrong[i][0];
        o.resume_slowest_ms = wrong[i][1];
        g_assert_null(ivshmem2_peer_open_socket(l.server.socket, &o, &error));
        assert_error(error, IVSHMEM2_ERROR_ARGUMENT, "resume_ms");
    }
    lasting_end(&l);
}

/* The path is still the same one after chdir(). */
static void test_relative_path(void)
{
    g_autofree char *before = g_get_current_dir();
    char *whole;
    Ivshmem2Peer *a;
    Lasting l;

    lasting_init(&l, false);
    lasting_start(&l);
    whole = l.server.socket;
    g_assert_cmpint(chdir(l.server.dir), ==, 0);
    l.server.socket = (char *)"link.sock";
    a = lasting_join(&l, 0, 0, 50);
    l.server.socket = whole;
    g_assert_cmpint(chdir("/"), ==, 0);
    lasting_kill(&l);
    assert_lost(a);
    lasting_start(&l);
    assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
    ivshmem2_peer_close(a);
    lasting_end(&l);
    g_assert_cmpint(chdir(before), ==, 0);
}

/* The real server, when only the connections are lost; then a new one */
static void real_server(const char *options)
{
    Ivshmem2Peer *a, *b;
    Lasting l = { 0 };
    Server *s = &l.server;

    link_start(s, options);
    a = lasting_join(&l, 2, EVENTS, 50);
    b = lasting_join(&l, 0, EVENTS, 50);
    set_state(a, 5);
    assert_interrupt(b, 0, 0);
    for (int i = 0; i < 10; i++) {
        cut_connections(s->pid);
        assert_event(a, IVSHMEM2_EVENT_DISCONNECTED, IVSHMEM2_ERROR_CLOSED);
        assert_event(b, IVSHMEM2_EVENT_DISCONNECTED, IVSHMEM2_ERROR_CLOSED);
        assert_event(a, IVSHMEM2_EVENT_CONNECTED, 0);
        assert_event(b, IVSHMEM2_EVENT_CONNECTED, 0);
        /* the server had set it to 0 */
        g_assert_cmpuint(ivshmem2_peer_state(b, 2), ==, 5);
        /* it may have interrupted them */
        ivshmem2_peer_wait(a, 0, NULL, 0, NULL);
        ivshmem2_peer_wait(b, 0, NULL, 0, NULL);
        ring(b, 2, 1);
        assert_interrupt(a, 1, 1);
    }
    g_assert_cmpuint(ivshmem2_peer_info(a)->id, ==, 2);
    server_stop(s, SIGKILL);
    server_start(s, options);
    assert_lost(a);
    assert_event(a, IVSHMEM2_EVENT_REFUSED, IVSHMEM2_ERROR_SESSION);
    assert_no_event(a);
    g_assert_cmpuint(ivshmem2_peer_state(b, 2), ==, 5);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(s);
}

/* A server that ends in order says so. */
static void test_shutdown(void)
{
    Ivshmem2Peer *a;
    Lasting l = { 0 };

    link_start(&l.server, "--max-peers 4");
    a = lasting_join(&l, 0, EVENTS, 50);
    g_assert_cmpint(server_stop(&l.server, SIGTERM), ==, 0);
    assert_event(a, IVSHMEM2_EVENT_DISCONNECTED, IVSHMEM2_ERROR_SHUTDOWN);
    assert_no_event(a);
    ivshmem2_peer_close(a);
    link_end(&l.server);
}

/* Peers in threads ring each other in a circle while servers come and go. */

#define N_ROUNDS    2000

typedef struct Runner {
    Lasting *link;
    uint32_t id;
    int *done;
} Runner;

static gpointer run_relay(gpointer opaque)
{
    const Runner *r = opaque;
    Ivshmem2Peer *peer = lasting_join(r->link, r->id, 0, 20);

    /* all are there before servers go */
    set_state(peer, 1);
    for (uint32_t id = 0; id < LASTING_PEERS; id++) {
        while (!ivshmem2_peer_state(peer, id)) {
            assert_interrupt(peer, 0, 0);
        }
    }
    __atomic_add_fetch(r->done, 1, __ATOMIC_SEQ_CST);
    for (int i = 0; i < N_ROUNDS; i++) {
        if (r->id > 0) {
            assert_interrupt(peer, 1, 1);
        }
        ring(peer, (r->id + 1) % LASTING_PEERS, 1);
        if (r->id == 0) {
            assert_interrupt(peer, 1, 1);
        }
    }
    __atomic_add_fetch(r->done, 1, __ATOMIC_SEQ_CST);
    ivshmem2_peer_close(peer);
    return NULL;
}

static void test_threads(void)
{
    GThread *threads[LASTING_PEERS];
    Runner runners[LASTING_PEERS];
    int tries = SOON_MS / 10;
    int done = 0;
    Lasting l;

    /* for the thread sanitizer, which does not know GLib's lock for errors */
    g_error_free(g_error_new(IVSHMEM2_ERROR, 0, "none"));
    lasting_init(&l, true);
    lasting_start(&l);
    for (uint32_t id = 0; id < LASTING_PEERS; id++) {
        runners[id] = (Runner) { .link = &l, .id = id, .done = &done };
        threads[id] = g_thread_new("peer", run_relay, &runners[id]);
    }
    while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < LASTING_PEERS) {
        wait_a_little(&tries);
    }
    while (__atomic_load_n(&done, __ATOMIC_SEQ_CST) < 2 * LASTING_PEERS) {
        lasting_kill(&l);
        g_usleep(5000);
        lasting_start(&l);
        g_usleep(5000);
    }
    for (uint32_t id = 0; id < LASTING_PEERS; id++) {
        g_thread_join(threads[id]);
    }
    lasting_end(&l);
}

static void test_resume_asked(void)
{
    resume_thrice(false);
}

static void test_resume_pushed(void)
{
    resume_thrice(true);
}

static void test_state_changed_asked(void)
{
    state_changed(false);
}

static void test_state_changed_pushed(void)
{
    state_changed(true);
}

static void test_state_zeroed_asked(void)
{
    state_zeroed(false);
}

static void test_state_zeroed_pushed(void)
{
    state_zeroed(true);
}

static void test_real_server(void)
{
    real_server("--max-peers 4 --vectors 2");
}

static void test_real_server_large(void)
{
    real_server("--max-peers 4 --vectors 2 --push-limit 0");
}

static const ClientTest tests[] = {
    /* first, because nothing is initialized yet then */
    { "/ivshmem2/resume/threads", test_threads },
    { "/ivshmem2/resume/asked", test_resume_asked },
    { "/ivshmem2/resume/pushed", test_resume_pushed },
    { "/ivshmem2/resume/no-events", test_no_events },
    { "/ivshmem2/resume/ringing-only", test_ringing_only },
    { "/ivshmem2/resume/kept-rings", test_kept_rings },
    { "/ivshmem2/resume/state-changed", test_state_changed_asked },
    { "/ivshmem2/resume/state-changed-pushed", test_state_changed_pushed },
    { "/ivshmem2/resume/state-zeroed", test_state_zeroed_asked },
    { "/ivshmem2/resume/state-zeroed-pushed", test_state_zeroed_pushed },
    { "/ivshmem2/resume/other-session", test_other_session },
    { "/ivshmem2/resume/refusals", test_refusals },
    { "/ivshmem2/resume/unreachable", test_unreachable },
    { "/ivshmem2/resume/pace", test_pace },
    { "/ivshmem2/resume/main-loop", test_main_loop },
    { "/ivshmem2/resume/events-replaced", test_events_replaced },
    { "/ivshmem2/resume/off", test_off },
    { "/ivshmem2/resume/options", test_options },
    { "/ivshmem2/resume/relative-path", test_relative_path },
    { "/ivshmem2/resume/real-server", test_real_server },
    { "/ivshmem2/resume/real-server-large", test_real_server_large },
    { "/ivshmem2/resume/shutdown", test_shutdown },
};

int main(int argc, char **argv)
{
    return client_tests_run(argc, argv, tests, G_N_ELEMENTS(tests));
}
