/*
 * ivshmem2 client session: rings and other requests, also without a
 * connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-session-util.h"

/* With more peers, the server interrupts them all (see session.c). */
#define MOST_DIRECT     64

static void assert_rings(Fixture *f, uint32_t id, uint32_t vector)
{
    Ivshmem2Msg msg;

    assert_says(f, IVSHMEM2_MSG_RING, &msg);
    g_assert_cmpuint(msg.target.id, ==, id);
    g_assert_cmpuint(msg.target.vector, ==, vector);
}

static void test_ring(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(ivshmem2_session_ring(f->s, 0, 0, NULL), ==,
                    IVSHMEM2_RING_NOBODY);
    go_to(f, AFTER_READY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, N_PEERS, 0, NULL), ==,
                    IVSHMEM2_RING_NOBODY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, 0, N_VECTORS, NULL), ==,
                    IVSHMEM2_RING_NOBODY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, UINT32_MAX, UINT32_MAX, NULL),
                    ==, IVSHMEM2_RING_NOBODY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, OWN_ID, 0, NULL), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 1);
    assert_says_nothing(f);

    /* waiting requests coalesce */
    for (int i = 0; i < 1000; i++) {
        g_assert_cmpint(ivshmem2_session_ring(f->s, 5, 3, NULL), ==,
                        IVSHMEM2_RING_REQUESTED);
    }
    assert_rings(f, 5, 3);
    assert_says_nothing(f);
    /* a ring while the answer is on its way is not lost */
    g_assert_cmpint(ivshmem2_session_ring(f->s, 5, 3, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);
    g_assert_true(tell_eventfds(f, 5, 3, 1, &error));
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 1);
    assert_says_nothing(f);
    /* and now the session holds the eventfd */
    g_assert_cmpint(ivshmem2_session_ring(f->s, 5, 3, NULL), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 1);

    /* a target that does not exist */
    g_assert_cmpint(ivshmem2_session_ring(f->s, 6, 0, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);
    assert_rings(f, 6, 0);
    g_assert_true(tell_eventfds(f, 6, 0, 0, &error));
    assert_says_nothing(f);
    g_assert_cmpint(ivshmem2_session_ring(f->s, 6, 0, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);
    assert_rings(f, 6, 0);
}

/* The number of unanswered requests is limited, however fast a guest rings. */
static void test_in_flight(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;
    unsigned n = 0;

    go_to(f, AFTER_READY);
    for (uint32_t id = 2; id < N_PEERS; id++) {
        for (uint32_t vector = 0; vector < N_VECTORS; vector++) {
            ivshmem2_session_ring(f->s, id, vector, NULL);
        }
    }
    while (ivshmem2_session_next(f->s, &msg)) {
        n++;
    }
    g_assert_cmpuint(n, ==, 64);
    /* other messages are still sent */
    ivshmem2_session_state_changed(f->s, 1);
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_says_nothing(f);
    /* one answer, one request */
    g_assert_true(tell_eventfds(f, 2, 0, 1, &error));
    assert_says(f, IVSHMEM2_MSG_RING, &msg);
    assert_says_nothing(f);
    while (n < (N_PEERS - 2) * N_VECTORS) {
        g_assert_true(tell_eventfds(f, 2 + (n - 63) / N_VECTORS,
                                    (n - 63) % N_VECTORS, 0, &error));
        n++;
        g_assert_cmpint(ivshmem2_session_next(f->s, &msg), ==,
                        n < (N_PEERS - 2) * N_VECTORS);
    }
}

/* Targets that are rung all the time do not delay others. */
static void test_turns(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg, old[64] = { 0 };
    const uint32_t last = N_PEERS - 1;
    unsigned turns = 0;

    go_to(f, AFTER_READY);
    do {
        /* no target exists, so the server is asked each time */
        for (uint32_t id = 2; id < last; id++) {
            for (uint32_t vector = 0; vector < N_VECTORS; vector++) {
                ivshmem2_session_ring(f->s, id, vector, NULL);
            }
        }
        if (turns == 100) {
            ivshmem2_session_ring(f->s, last, 0, NULL);
            ivshmem2_session_ring(f->s, 0, 0, NULL);
        }
        if (turns >= 64) {
            g_assert_true(tell_eventfds(f, old[turns % 64].target.id,
                                        old[turns % 64].target.vector, 0,
                                        &error));
        }
        assert_says(f, IVSHMEM2_MSG_RING, &msg);
        old[turns++ % 64] = msg;
        g_assert_cmpuint(turns, <, 2 * N_PEERS * N_VECTORS);
    } while (msg.target.id);
    /* the other late target had its turn before */
    for (int i = 0; i < 64 && msg.target.id != last; i++) {
        msg = old[i];
    }
    g_assert_cmpuint(msg.target.id, ==, last);
}

static void test_bad_answers(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_READY);
    g_assert_false(tell_eventfds(f, 5, 0, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "answers nothing");
    ivshmem2_session_ring(f->s, 5, 0, NULL);
    ivshmem2_session_ring(f->s, 6, 1, NULL);
    assert_rings(f, 5, 0);
    assert_rings(f, 6, 1);
    g_assert_false(tell_eventfds(f, 6, 1, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "answers nothing");
    g_assert_false(tell_eventfds(f, 5, 0, 2, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "answers nothing");
    g_assert_false(tell_eventfds(f, N_PEERS, 0, 0, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "about peer 20");
    g_assert_true(tell_eventfds(f, 5, 0, 1, &error));
    g_assert_true(tell_eventfds(f, 6, 1, 0, &error));
}

/* The number of eventfds of others is limited; the oldest is closed first */
static void test_eviction(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    unsigned before, kept = 0;
    Ivshmem2Msg msg;

    f->welcome.max_peers = 2000;
    f->welcome.vectors = 1;
    f->welcome.state_table_size = 8192;
    f->welcome.output_size = 0;
    ivshmem2_session_connected(f->s);
    assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
    g_assert_true(tell_welcome(f, &error));
    g_assert_true(tell_eventfds(f, OWN_ID, 0, 1, &error));
    g_assert_true(tell_ready(f, &error));
    before = count_fds();
    for (uint32_t id = 2; id < 2000; id++) {
        ivshmem2_session_ring(f->s, id, 0, NULL);
        assert_rings(f, id, 0);
        g_assert_true(tell_eventfds(f, id, 0, 1, &error));
    }
    g_assert_cmpuint(count_fds(), ==, before + 1024);
    for (uint32_t id = 2; id < 2000; id++) {
        kept += ivshmem2_session_ring(f->s, id, 0, NULL) ==
                IVSHMEM2_RING_SIGNALLED;
    }
    g_assert_cmpuint(kept, ==, 1024);
    /* an evicted one is requested from the server again */
    assert_not_held(f, 2, 0);
    assert_held(f, 1999, 0, -1);
}

static void test_goodbye(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Msg msg;

    go_to(f, AFTER_READY);
    ivshmem2_session_goodbye(f->s);
    ivshmem2_session_state_changed(f->s, 1);
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_says(f, IVSHMEM2_MSG_GOODBYE, &msg);
    assert_says_nothing(f);
}

/* Changes of states on small links */

/* Join and get the eventfds of the first @n vectors of the first IDs. */
static void join_with(Fixture *f, uint32_t ids, unsigned n)
{
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_EVENTFDS);
    for (uint32_t id = 0; id < ids; id++) {
        for (unsigned first = 0; first < n; first += IVSHMEM2_MAX_FDS) {
            g_assert_true(tell_eventfds(f, id, first,
                                        MIN(n - first, IVSHMEM2_MAX_FDS),
                                        &error));
        }
    }
    g_assert_true(tell_ready(f, &error));
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 0);
}

/* The others are interrupted @n times, all by one eventfd here. */
static void change_state(Fixture *f, uint32_t state, unsigned n)
{
    ivshmem2_session_state_changed(f->s, state);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, n);
}

static void assert_announces(Fixture *f, uint32_t state)
{
    Ivshmem2Msg msg;

    assert_says(f, IVSHMEM2_MSG_STATE_ANNOUNCED, &msg);
    g_assert_cmpuint(msg.announcement.state, ==, state);
    assert_says_nothing(f);
}

static void assert_asks(Fixture *f)
{
    Ivshmem2Msg msg;

    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_says_nothing(f);
}

/* Each of the others is interrupted once, and the server is told of 0 only. */
static void test_state_direct(Fixture *f, gconstpointer opaque)
{
    const unsigned others = N_PEERS - 1;

    join_with(f, N_PEERS, 2);
    assert_says_nothing(f);
    change_state(f, 5, others);
    assert_announces(f, 5);
    change_state(f, 6, others);
    assert_says_nothing(f);
    change_state(f, 0, others);
    assert_announces(f, 0);
    /* changes that the server has not been told of yet */
    change_state(f, 1, others);
    change_state(f, 2, others);
    assert_announces(f, 2);
    change_state(f, 0, others);
    change_state(f, 3, others);
    change_state(f, 0, others);
    assert_announces(f, 0);
    change_state(f, 0, others);
    assert_says_nothing(f);
}

/* A counter without room is passed over, also if the file is blocking. */
static void test_state_full(Fixture *f, gconstpointer opaque)
{
    const uint64_t full = UINT64_MAX - 1;

    join_with(f, N_PEERS, 1);
    g_assert_cmpint(fcntl(f->event_fd, F_SETFL, 0), ==, 0);
    g_assert_cmpint(write(f->event_fd, &full, sizeof(full)), ==, sizeof(full));
    /* ends the test if it waits */
    alarm(60);
    for (uint32_t state = 1; state <= 100; state++) {
        ivshmem2_session_state_changed(f->s, state);
    }
    alarm(0);
    /* it was not even signalled: that would have added to it */
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, full);
    change_state(f, 0, N_PEERS - 1);
    assert_announces(f, 0);
}

/* The last message about the state goes before GOODBYE. */
static void test_state_goodbye(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Msg msg;

    join_with(f, N_PEERS, 1);
    change_state(f, 5, N_PEERS - 1);
    assert_announces(f, 5);
    ivshmem2_session_goodbye(f->s);
    change_state(f, 0, N_PEERS - 1);
    assert_says(f, IVSHMEM2_MSG_STATE_ANNOUNCED, &msg);
    g_assert_cmpuint(msg.announcement.state, ==, 0);
    assert_says(f, IVSHMEM2_MSG_GOODBYE, &msg);
    assert_says_nothing(f);
}

/* Without a server, too; the next one learns the state, whatever it is. */
static void test_state_resume(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;

    join_with(f, N_PEERS, 1);
    change_state(f, 5, N_PEERS - 1);
    assert_announces(f, 5);
    for (uint32_t state = 0; state < 3; state++) {
        ivshmem2_session_disconnected(f->s);
        g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 0);
        change_state(f, 7, N_PEERS - 1);
        change_state(f, state, N_PEERS - 1);
        assert_says_nothing(f);
        go_to(f, AFTER_EVENTFDS);
        change_state(f, state, N_PEERS - 1);
        assert_says_nothing(f);
        g_assert_true(tell_ready(f, &error));
        assert_announces(f, state);
    }
}

/* With one eventfd that is missing, the server has to do it. */
static void test_state_missing(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;

    join_with(f, N_PEERS - 1, 1);
    change_state(f, 5, 0);
    assert_asks(f);
    /* the last one comes while the server is to be asked */
    change_state(f, 6, 0);
    ivshmem2_session_ring(f->s, N_PEERS - 1, 0, NULL);
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_rings(f, N_PEERS - 1, 0);
    change_state(f, 7, 0);
    g_assert_true(tell_eventfds(f, N_PEERS - 1, 0, 1, &error));
    assert_asks(f);
    change_state(f, 0, N_PEERS - 1);
    assert_announces(f, 0);
}

/* Without a server, those that are known are interrupted, and only once. */
static void test_state_some(Fixture *f, gconstpointer opaque)
{
    join_with(f, 4, 1);
    change_state(f, 5, 0);
    ivshmem2_session_disconnected(f->s);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 3);
    change_state(f, 6, 3);
    ivshmem2_session_disconnected(f->s);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 0);
    /* a server that does not complete the handshake is none */
    go_to(f, AFTER_HELLO);
    change_state(f, 7, 3);
    go_to(f, AFTER_READY);
    assert_asks(f);
}

/* Links that are too large for it, and more eventfds than are kept */
static void test_state_large(Fixture *f, gconstpointer opaque)
{
    uint32_t peers = GPOINTER_TO_UINT(opaque);
    bool direct = peers <= MOST_DIRECT;

    f->welcome.max_peers = peers;
    f->welcome.output_size = 0;
    join_with(f, peers, 1);
    change_state(f, 5, direct ? peers - 1 : 0);
    if (direct) {
        assert_announces(f, 5);
    } else {
        assert_asks(f);
    }
}

static void test_state_evicted(Fixture *f, gconstpointer opaque)
{
    /* too many of them, by one peer's */
    f->welcome.max_peers = 1024 / N_VECTORS + 2;
    f->welcome.output_size = 0;
    join_with(f, f->welcome.max_peers, N_VECTORS);
    change_state(f, 5, 0);
    assert_asks(f);
    /* those that are closed are not signalled */
    change_state(f, 6, 0);
    ivshmem2_session_disconnected(f->s);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==,
                     f->welcome.max_peers - 2);
}

/* Losing the connection */

static void test_lost_early(Fixture *f, gconstpointer opaque)
{
    const uint8_t none[IVSHMEM2_UUID_SIZE] = { 0 };
    unsigned before = count_fds();

    for (Stage stage = AFTER_HELLO; stage < AFTER_READY; stage++) {
        Ivshmem2Msg msg;

        go_to(f, stage);
        ivshmem2_session_disconnected(f->s);
        g_assert_cmpuint(count_fds(), ==, before);
        assert_says_nothing(f);
        /* there is nothing to resume */
        ivshmem2_session_connected(f->s);
        assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
        g_assert_cmpuint(msg.hello.id, ==, IVSHMEM2_ID_ANY);
        g_assert_cmpmem(msg.hello.session, sizeof(none), none, sizeof(none));
    }
}

static void test_resume(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;
    unsigned fds;
    int own;

    go_to(f, AFTER_READY);
    own = ivshmem2_session_own_eventfd(f->s, 0);
    fds = count_fds();
    ivshmem2_session_ring(f->s, 5, 0, NULL);
    ivshmem2_session_ring(f->s, 6, 0, NULL);
    assert_rings(f, 5, 0);
    ivshmem2_session_state_changed(f->s, 1);
    ivshmem2_session_disconnected(f->s);

    /* rings go on without a connection */
    g_assert_false(ivshmem2_session_ready(f->s));
    assert_says_nothing(f);
    g_assert_cmpint(ivshmem2_session_ring(f->s, OWN_ID, 0, NULL), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpint(ivshmem2_session_ring(f->s, 7, 0, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);

    ivshmem2_session_connected(f->s);
    assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
    g_assert_cmpuint(msg.hello.id, ==, OWN_ID);
    g_assert_cmpmem(msg.hello.session, IVSHMEM2_UUID_SIZE,
                    f->welcome.session, IVSHMEM2_UUID_SIZE);
    tell_welcome(f, &error);
    tell_outputs(f, 0, 16, &error);
    tell_outputs(f, 16, 4, &error);
    tell_eventfds(f, OWN_ID, 0, 16, &error);
    tell_eventfds(f, OWN_ID, 16, 2, &error);
    tell_ready(f, &error);
    g_assert_no_error(error);
    /* the descriptors are the same as before */
    g_assert_cmpint(ivshmem2_session_own_eventfd(f->s, 0), ==, own);
    g_assert_cmpuint(count_fds(), ==, fds);
    /* unanswered requests are sent again, and none is lost */
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_rings(f, 6, 0);
    assert_rings(f, 7, 0);
    assert_rings(f, 5, 0);
    assert_says_nothing(f);
}

static void test_resume_other(Fixture *f, gconstpointer opaque)
{
    const size_t offsets[] = {
        offsetof(Ivshmem2Welcome, id), offsetof(Ivshmem2Welcome, protocol),
        offsetof(Ivshmem2Welcome, session),
    };
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_READY);
    for (size_t i = 0; i < G_N_ELEMENTS(offsets); i++) {
        Ivshmem2Welcome welcome = f->welcome;
        Ivshmem2Msg msg;

        ivshmem2_session_disconnected(f->s);
        ivshmem2_session_connected(f->s);
        assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
        *((uint8_t *)&f->welcome + offsets[i]) ^= 2;
        g_assert_false(tell_welcome(f, &error));
        assert_error(error, IVSHMEM2_ERROR_PROTOCOL,
                     "not what it was");
        f->welcome = welcome;
    }
}

/* Going over to another session */

/* A server of another session, and one that tries to join it */
static Fixture other_session(Fixture *f)
{
    Fixture other = *f;

    other.s = ivshmem2_session_new_like(f->s);
    other.memory = make_memory(65536, MEMORY_SEALS);
    other.memory_read_only = reopen_read_only(other.memory);
    other.welcome.session[0] ^= 1;
    return other;
}

static void forget_other(Fixture *other)
{
    ivshmem2_session_free(other->s);
    ivshmem2_close(&other->memory);
    ivshmem2_close(&other->memory_read_only);
}

static void test_like(Fixture *f, gconstpointer opaque)
{
    const uint8_t none[IVSHMEM2_UUID_SIZE] = { 0 };
    g_autoptr(GError) error = NULL;
    uint64_t size = ivshmem2_total_size(&f->welcome);
    Ivshmem2Msg msg;
    Fixture other;
    char *memory;

    ivshmem2_session_keep_files(f->s);
    go_to(f, AFTER_READY);
    memory = ivshmem2_session_map(f->s, &error);
    g_assert_no_error(error);
    memory[0] = 'a';
    ivshmem2_session_disconnected(f->s);

    other = other_session(f);
    ivshmem2_session_connected(other.s);
    assert_says(&other, IVSHMEM2_MSG_HELLO, &msg);
    g_assert_cmpuint(msg.hello.id, ==, OWN_ID);
    g_assert_cmpuint(msg.hello.vectors, ==, N_VECTORS);
    g_assert_cmpstr(msg.hello.name, ==, "test");
    g_assert_cmpmem(msg.hello.session, sizeof(none), none, sizeof(none));
    go_to(&other, AFTER_READY);
    g_assert_true(ivshmem2_session_map_over(other.s, memory, &error));
    g_assert_cmpint(memory[0], ==, 0);
    memory[0] = 'b';
    g_assert_cmpint(pread(other.memory, &memory[1], 1, 0), ==, 1);
    g_assert_cmpint(memory[1], ==, 'b');
    /* and back */
    g_assert_true(ivshmem2_session_map_over(f->s, memory, &error));
    g_assert_cmpint(memory[0], ==, 'a');
    munmap(memory, size);
    forget_other(&other);
}

static void test_like_shape(Fixture *f, gconstpointer opaque)
{
    static const struct {
        size_t offset;
        const char *words;
    } fields[] = {
        { offsetof(Ivshmem2Welcome, id), "its ID is 3 instead of 1" },
        { offsetof(Ivshmem2Welcome, protocol), "protocol type" },
        { offsetof(Ivshmem2Welcome, vectors), "number of vectors" },
        { offsetof(Ivshmem2Welcome, max_peers), "maximum of peers" },
        /* from 8 KiB to 40 KiB, and so on */
        { offsetof(Ivshmem2Welcome, rw_size) + 1, "size of the R/W section" },
        { offsetof(Ivshmem2Welcome, output_size) + 1,
          "size of output sections" },
        { offsetof(Ivshmem2Welcome, state_table_size) + 1,
          "size of the State Table" },
    };

    go_to(f, AFTER_READY);
    ivshmem2_session_disconnected(f->s);
    for (size_t i = 0; i < G_N_ELEMENTS(fields); i++) {
        bool bytes = fields[i].offset % 2;
        g_autoptr(GError) error = NULL;
        Fixture other = other_session(f);
        Ivshmem2Msg msg;

        ((uint8_t *)&other.welcome)[fields[i].offset] ^= bytes ? 0x80 : 2;
        ivshmem2_session_connected(other.s);
        assert_says(&other, IVSHMEM2_MSG_HELLO, &msg);
        g_assert_false(tell_welcome(&other, &error));
        assert_error(error, IVSHMEM2_ERROR_SESSION, fields[i].words);
        forget_other(&other);
    }
}

/* That the state is 0 can wait, and nothing else. */
static void test_hold_zero(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Msg msg;

    join_with(f, N_PEERS, 1);
    g_assert_false(ivshmem2_session_holds_zero(f->s));
    ivshmem2_session_hold_zero(f->s, true);
    change_state(f, 5, N_PEERS - 1);
    g_assert_false(ivshmem2_session_holds_zero(f->s));
    assert_announces(f, 5);
    change_state(f, 0, N_PEERS - 1);
    g_assert_true(ivshmem2_session_holds_zero(f->s));
    assert_says_nothing(f);
    ivshmem2_session_ring(f->s, 3, 1, NULL);
    assert_rings(f, 3, 1);
    assert_says_nothing(f);
    change_state(f, 6, N_PEERS - 1);
    assert_announces(f, 6);
    change_state(f, 0, N_PEERS - 1);
    assert_says_nothing(f);
    ivshmem2_session_hold_zero(f->s, false);
    assert_announces(f, 0);
    change_state(f, 7, N_PEERS - 1);
    assert_announces(f, 7);
    change_state(f, 0, N_PEERS - 1);
    ivshmem2_session_hold_zero(f->s, true);
    ivshmem2_session_goodbye(f->s);
    assert_says(f, IVSHMEM2_MSG_GOODBYE, &msg);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    session_add("ring", NULL, test_ring);
    session_add("in-flight", NULL, test_in_flight);
    session_add("turns", NULL, test_turns);
    session_add("bad-answers", NULL, test_bad_answers);
    session_add("eviction", NULL, test_eviction);
    session_add("goodbye", NULL, test_goodbye);
    session_add("state-direct", NULL, test_state_direct);
    session_add("state-full", NULL, test_state_full);
    session_add("state-goodbye", NULL, test_state_goodbye);
    session_add("state-resume", NULL, test_state_resume);
    session_add("state-missing", NULL, test_state_missing);
    session_add("state-some", NULL, test_state_some);
    session_add("state-largest", GUINT_TO_POINTER(MOST_DIRECT),
                test_state_large);
    session_add("state-too-large", GUINT_TO_POINTER(MOST_DIRECT + 1),
                test_state_large);
    session_add("state-evicted", NULL, test_state_evicted);
    session_add("lost-early", NULL, test_lost_early);
    session_add("resume", NULL, test_resume);
    session_add("resume-other", NULL, test_resume_other);
    session_add("like", NULL, test_like);
    session_add("like-shape", NULL, test_like_shape);
    session_add("hold-zero", NULL, test_hold_zero);
    return g_test_run();
}
