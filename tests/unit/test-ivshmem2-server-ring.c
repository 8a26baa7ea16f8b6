/*
 * ivshmem2-server: rings, changes of states, and deaths
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"

static void test_ring(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 4 --vectors 3 --push-limit 0");
    client_join(&a, &s, 0);
    client_join(&b, &s, 1);

    g_assert_cmpuint(client_ring(&a, 1, 2)->eventfds.first, ==, 2);
    g_assert_cmpuint(a.transport.in.n_fds, ==, 1);
    g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[1][2]), ==, 1);
    assert_quiet(&b);
    /* the descriptor is the right one */
    ivshmem2_eventfd_signal(a.transport.in.fds[0]);
    g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[1][2]), ==, 1);

    /* the sender itself */
    client_ring(&a, 0, 1);
    g_assert_cmpuint(a.transport.in.n_fds, ==, 1);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.eventfds[0][1]), ==, 1);

    /* no peer with this ID, no such ID, no such vector */
    for (uint32_t i = 0; i < 4; i++) {
        static const uint32_t targets[][2] = {
            { 2, 0 }, { 4, 0 }, { 1, 3 }, { UINT32_MAX, UINT32_MAX },
        };
        const Ivshmem2Msg *msg;

        msg = client_ring(&a, targets[i][0], targets[i][1]);
        g_assert_cmpuint(msg->eventfds.id, ==, targets[i][0]);
        g_assert_cmpuint(msg->eventfds.first, ==, targets[i][1]);
        g_assert_cmpuint(a.transport.in.n_fds, ==, 0);
    }
    /* a peer that has left: the descriptor comes, but no signal */
    client_leave(&b);
    client_ring(&a, 1, 0);
    g_assert_cmpuint(a.transport.in.n_fds, ==, 1);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.transport.in.fds[0]), ==, 0);
    client_leave(&a);
    server_end(&s);
}

static void test_state_changed(void)
{
    Server s;
    Client c[4];

    server_init(&s);
    server_start(&s, "--max-peers 8 --vectors 2");
    for (uint32_t i = 0; i < 4; i++) {
        client_join(&c[i], &s, 2 * i);
    }
    for (uint32_t i = 0; i < 4; i++) {
        change_state(&c[i], 0x12345678);
        client_sync(&c[i]);
        for (uint32_t j = 0; j < 4; j++) {
            if (j != i) {
                assert_interrupted(&c[j], 0);
            }
            assert_quiet(&c[j]);
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        client_leave(&c[i]);
    }
    server_end(&s);
}

static bool has_room(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLOUT };

    return poll(&pfd, 1, 0) == 1;
}

/* IDs that nobody has had yet have no room in the counter for states. */
static void test_unused(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 8 --vectors 2");
    client_join(&a, &s, 0);
    for (uint32_t id = 0; id < 8; id++) {
        g_assert_cmpint(has_room(a.eventfds[id][0]), ==, id == 0);
        g_assert_true(has_room(a.eventfds[id][1]));
    }
    assert_quiet(&a);
    for (uint32_t id = 1; id < 8; id++) {
        client_join(&b, &s, id);
        assert_quiet(&b);
        g_assert_true(has_room(a.eventfds[id][0]));
        client_leave(&b);
        g_assert_true(has_room(a.eventfds[id][0]));
    }
    client_leave(&a);
    server_end(&s);
}

/* A death clears the table entry, and interrupts the other peers. */
static void test_death(void)
{
    Server s;
    Client a;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    other_start(&o, &s, 2, 5);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 2), ==, 5);
    other_end(&o, SIGKILL);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 2), ==, 0);

    /* its state was 0, so there is no interrupt */
    other_start(&o, &s, 2, 0);
    other_end(&o, SIGKILL);
    client_sync(&a);
    g_usleep(NEVER_MS * 1000);
    assert_quiet(&a);
    client_leave(&a);
    server_end(&s);
}

/*
 * The end of a peer interrupts the others if the state that it announced last
 * or its entry in the table is not 0.
 */
static void test_last_state(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);

    client_join(&b, &s, 1);
    change_state(&b, 9);
    client_sync(&b);
    assert_interrupted(&a, 0);
    set_state(&b, 0);
    client_leave(&b);
    assert_interrupted(&a, 0);

    client_join(&b, &s, 1);
    set_state(&b, 9);
    client_leave(&b);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 0);

    client_join(&b, &s, 1);
    client_leave(&b);
    client_sync(&a);
    assert_quiet(&a);
    client_leave(&a);
    server_end(&s);
}

/*
 * A peer that interrupts the others by itself ends between the steps of a
 * change.  The server tells them then, unless they know of no state, and does
 * not before.
 */
static void test_announced(void)
{
    static const struct {
        uint32_t early;         /* the entry when the server is told */
        uint32_t announced;
        uint32_t entry;         /* at the end */
        bool told;
    } cases[] = {
        { 0, 0, 0, false },
        { 9, 9, 9, true },
        /* written, but the others or the server do not know it */
        { 0, 0, 9, true },
        { 9, 0, 9, true },
        /* 0 again, but they do not know that */
        { 9, 9, 0, true },
        { 0, 9, 0, true },
        /* they do know it */
        { 9, 0, 0, false },
    };
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    for (size_t i = 0; i < 2 * G_N_ELEMENTS(cases); i++) {
        client_join(&b, &s, 1);
        set_state(&b, cases[i / 2].early);
        announce_state(&b, 5);
        announce_state(&b, cases[i / 2].announced);
        client_sync(&b);
        set_state(&b, cases[i / 2].entry);
        g_usleep(NEVER_MS * 1000);
        assert_quiet(&a);
        if (i % 2) {
            client_leave(&b);
        } else {
            client_close(&b);
        }
        if (cases[i / 2].told) {
            assert_interrupted(&a, 0);
        }
        wait_until_free(&s, 1);
        g_assert_cmpuint(get_state(&a, 1), ==, 0);
        client_sync(&a);
        assert_quiet(&a);
    }
    client_leave(&a);
    server_end(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/ivshmem2/server/ring", test_ring);
    g_test_add_func("/ivshmem2/server/state-changed", test_state_changed);
    g_test_add_func("/ivshmem2/server/unused", test_unused);
    g_test_add_func("/ivshmem2/server/death", test_death);
    g_test_add_func("/ivshmem2/server/last-state", test_last_state);
    g_test_add_func("/ivshmem2/server/announced", test_announced);
    return g_test_run();
}
