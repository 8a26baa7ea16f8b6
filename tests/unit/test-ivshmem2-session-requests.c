/*
 * ivshmem2 client session: rings and other requests, also without a
 * connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-session-util.h"

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
    ivshmem2_session_state_changed(f->s);
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
    ivshmem2_session_state_changed(f->s);
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_says(f, IVSHMEM2_MSG_GOODBYE, &msg);
    assert_says_nothing(f);
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
    ivshmem2_session_state_changed(f->s);
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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    session_add("ring", NULL, test_ring);
    session_add("in-flight", NULL, test_in_flight);
    session_add("turns", NULL, test_turns);
    session_add("bad-answers", NULL, test_bad_answers);
    session_add("eviction", NULL, test_eviction);
    session_add("goodbye", NULL, test_goodbye);
    session_add("lost-early", NULL, test_lost_early);
    session_add("resume", NULL, test_resume);
    session_add("resume-other", NULL, test_resume_other);
    return g_test_run();
}
