/*
 * ivshmem2-server without the I/O: sets of IDs, slots, broadcasts
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-util.h"
#include "idset.h"
#include "loop.h"
#include "server.h"

/* Sets */

static void test_idset(void)
{
    g_autofree Ivshmem2IdSet *set = g_new0(Ivshmem2IdSet, 1);
    g_autofree bool *want = g_new0(bool, IVSHMEM2_MAX_PEERS);
    const uint32_t edges[] = { 0, 1, 63, 64, 65, 4095, 4096, 65471, 65535 };

    g_assert_cmpint(ivshmem2_idset_next(set, 0), ==, -1);
    for (size_t i = 0; i < G_N_ELEMENTS(edges); i++) {
        ivshmem2_idset_add(set, edges[i]);
        g_assert_cmpint(ivshmem2_idset_next(set, 0), ==, edges[i]);
        g_assert_cmpint(ivshmem2_idset_next(set, edges[i]), ==, edges[i]);
        g_assert_cmpint(ivshmem2_idset_next(set, edges[i] + 1), ==, -1);
        ivshmem2_idset_remove(set, edges[i]);
        g_assert_cmpint(ivshmem2_idset_next(set, 0), ==, -1);
    }
    /* few members and many */
    for (int round = 0; round < 40; round++) {
        int32_t last = -1;

        for (int i = 0; i < 20 << (round / 4); i++) {
            uint32_t id = g_test_rand_int_range(0, IVSHMEM2_MAX_PEERS);

            want[id] = g_test_rand_bit();
            (want[id] ? ivshmem2_idset_add : ivshmem2_idset_remove)(set, id);
        }
        for (int32_t id = 0; id < IVSHMEM2_MAX_PEERS; id++) {
            g_assert_cmpint(ivshmem2_idset_contains(set, id), ==, want[id]);
            if (want[id]) {
                g_assert_cmpint(ivshmem2_idset_next(set, last + 1), ==, id);
                last = id;
            }
        }
        g_assert_cmpint(ivshmem2_idset_next(set, last + 1), ==, -1);
    }
}

/* A server whose clients are not connected to anything */

typedef struct Fixture {
    unsigned before;
    Ivshmem2Link *link;
    Ivshmem2Server *server;
    Ivshmem2Client *clients;
    uint32_t n;
} Fixture;

static Ivshmem2Hold *hold_slot(Ivshmem2Client *c, const Ivshmem2Hold *hold)
{
    Ivshmem2Hold *copy = NULL;

    /* pid 2 has no process any more */
    if (hold->pid != 2) {
        copy = g_new(Ivshmem2Hold, 1);
        *copy = *hold;
    }
    return copy;
}

static void unhold_slot(Ivshmem2Hold *hold)
{
    g_free(hold);
}

static void wake(Ivshmem2Client *c)
{
}

static const Ivshmem2ServerOps ops = {
    .hold = hold_slot,
    .unhold = unhold_slot,
    .wake = wake,
};

static void setup(Fixture *f, uint32_t max_peers)
{
    const Ivshmem2LinkConfig config = {
        .max_peers = max_peers,
        .vectors = 1,
    };
    g_autoptr(GError) error = NULL;

    f->before = count_fds();
    f->n = max_peers;
    f->link = ivshmem2_link_new(&config, &error);
    g_assert_no_error(error);
    f->server = ivshmem2_server_new(f->link, &ops);
    f->clients = g_new0(Ivshmem2Client, max_peers);
}

static void teardown(Fixture *f)
{
    for (uint32_t i = 0; i < f->n; i++) {
        if (f->clients[i].server) {
            ivshmem2_client_clear(&f->clients[i]);
        }
    }
    ivshmem2_server_free(f->server);
    ivshmem2_link_free(f->link);
    g_free(f->clients);
    g_assert_cmpuint(count_fds(), ==, f->before);
}

/* All that it is told; returns the last type. */
static uint16_t listen_to_it(Ivshmem2Client *c)
{
    Ivshmem2Msg msg = { 0 };
    const int *fds;

    while (ivshmem2_client_has_next(c)) {
        ivshmem2_client_next(c, &msg, &fds);
        g_assert_cmpuint(msg.hdr.fds, <=, IVSHMEM2_MAX_FDS);
        g_assert_true(!msg.hdr.fds || fds);
    }
    return msg.hdr.type;
}

static uint16_t join(Fixture *f, uint32_t i, uint32_t id, pid_t pid)
{
    Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = 1,
            .version_max = 1,
            .features = IVSHMEM2_F_MSIX,
            .vectors = 1,
            .id = id,
        },
    };

    ivshmem2_client_init(&f->clients[i], f->server, pid, 1000);
    ivshmem2_client_receive(&f->clients[i], &msg);
    return listen_to_it(&f->clients[i]);
}

static void say(Fixture *f, uint32_t i, uint16_t type)
{
    ivshmem2_client_receive(&f->clients[i],
                            &(Ivshmem2Msg) { .hdr.type = type });
}

static uint64_t signals(Fixture *f, uint32_t id)
{
    return ivshmem2_eventfd_drain(f->link->eventfds[id][0]);
}

static void set_state(Fixture *f, uint32_t id, uint32_t state)
{
    f->link->table[id] = GUINT32_TO_LE(state);
}

/* Slots */

static void test_slots(void)
{
    Fixture f;

    setup(&f, 3);
    g_assert_cmphex(join(&f, 0, IVSHMEM2_ID_ANY, 10), ==, IVSHMEM2_READY);
    g_assert_cmphex(join(&f, 1, IVSHMEM2_ID_ANY, 11), ==, IVSHMEM2_READY);
    g_assert_cmphex(join(&f, 2, 1, 12), ==, IVSHMEM2_ERROR);
    ivshmem2_client_clear(&f.clients[2]);

    /* without a goodbye: only for the same process */
    ivshmem2_client_clear(&f.clients[1]);
    g_assert_cmphex(join(&f, 2, 1, 12), ==, IVSHMEM2_ERROR);
    ivshmem2_client_clear(&f.clients[2]);
    g_assert_cmphex(join(&f, 1, 1, 11), ==, IVSHMEM2_READY);
    ivshmem2_client_clear(&f.clients[1]);
    ivshmem2_link_signal(f.link, 1, 0);
    ivshmem2_server_release(f.server, 1);
    g_assert_cmpuint(signals(&f, 1), ==, 0);
    g_assert_cmphex(join(&f, 2, 1, 12), ==, IVSHMEM2_READY);
    say(&f, 2, IVSHMEM2_GOODBYE);
    g_assert_true(ivshmem2_client_is_over(&f.clients[2]));
    ivshmem2_client_clear(&f.clients[2]);

    /* invisible pids are never the same process */
    g_assert_cmphex(join(&f, 1, 1, 0), ==, IVSHMEM2_READY);
    ivshmem2_client_clear(&f.clients[1]);
    g_assert_cmphex(join(&f, 1, 1, 0), ==, IVSHMEM2_ERROR);
    ivshmem2_client_clear(&f.clients[1]);
    ivshmem2_server_release(f.server, 1);

    /* gone already */
    g_assert_cmphex(join(&f, 1, 1, 2), ==, IVSHMEM2_READY);
    ivshmem2_client_clear(&f.clients[1]);
    g_assert_cmphex(join(&f, 1, 1, 3), ==, IVSHMEM2_READY);
    teardown(&f);
}

/* As many as there can be: IDs in order, and each one's again */
static void test_all_ids(void)
{
    const uint32_t n = 3000;
    Fixture f;

    setup(&f, n);
    for (uint32_t i = 0; i < n; i++) {
        g_assert_cmphex(join(&f, i, IVSHMEM2_ID_ANY, 2), ==, IVSHMEM2_READY);
        g_assert_cmpuint(f.clients[i].id, ==, i);
    }
    for (uint32_t i = 0; i < n; i += 7) {
        Ivshmem2Client c;
        Ivshmem2Client *saved = f.clients;

        f.clients = &c;
        g_assert_cmphex(join(&f, 0, IVSHMEM2_ID_ANY, 2), ==, IVSHMEM2_ERROR);
        f.clients = saved;
        ivshmem2_client_clear(&c);
        ivshmem2_client_clear(&f.clients[i]);
        g_assert_cmphex(join(&f, i, IVSHMEM2_ID_ANY, 2), ==, IVSHMEM2_READY);
        g_assert_cmpuint(f.clients[i].id, ==, i);
    }
    teardown(&f);
}

/* Broadcasts */

static void run_broadcast(Fixture *f, unsigned budget)
{
    while (ivshmem2_server_broadcast(f->server, budget)) {
        continue;
    }
}

static void test_broadcast(void)
{
    const uint32_t n = 200;
    const unsigned budgets[] = { 1, 7, 64, 199, 200, 1000 };
    Fixture f;

    setup(&f, n);
    for (uint32_t i = 0; i < n; i++) {
        join(&f, i, i, 2);
    }
    g_assert_false(ivshmem2_server_broadcast(f.server, 1000));
    for (size_t b = 0; b < G_N_ELEMENTS(budgets); b++) {
        uint32_t source = 31 * b;

        say(&f, source, IVSHMEM2_STATE_CHANGED);
        run_broadcast(&f, budgets[b]);
        for (uint32_t i = 0; i < n; i++) {
            g_assert_cmpuint(signals(&f, i), ==, i != source);
        }
    }
    /* two at once: each of them learns of the other one */
    say(&f, 5, IVSHMEM2_STATE_CHANGED);
    say(&f, 6, IVSHMEM2_STATE_CHANGED);
    run_broadcast(&f, 1000);
    for (uint32_t i = 0; i < n; i++) {
        g_assert_cmpuint(signals(&f, i), ==, 1);
    }
    teardown(&f);
}

/* Whatever happens during a broadcast, nobody misses a later change. */
static void test_broadcast_meanwhile(void)
{
    const uint32_t n = 100;
    Fixture f;

    setup(&f, n);
    for (uint32_t i = 0; i < n; i += 2) {
        join(&f, i, i, 2);
    }
    for (int round = 0; round < 500; round++) {
        uint32_t source = 2 * g_test_rand_int_range(0, n / 2);
        uint32_t other = 2 * g_test_rand_int_range(0, n / 2);

        say(&f, source, IVSHMEM2_STATE_CHANGED);
        ivshmem2_server_broadcast(f.server, g_test_rand_int_range(0, n / 2));
        for (uint32_t i = 0; i < n; i += 2) {
            signals(&f, i);
        }
        if (g_test_rand_bit()) {
            ivshmem2_client_clear(&f.clients[source]);
            join(&f, source, source, 2);
        }
        say(&f, other, IVSHMEM2_STATE_CHANGED);
        run_broadcast(&f, g_test_rand_int_range(1, n));
        for (uint32_t i = 0; i < n; i += 2) {
            uint64_t count = signals(&f, i);

            g_assert_true(count || i == other);
            /* bounded, however many changes there were */
            g_assert_cmpuint(count, <=, 2);
        }
    }
    teardown(&f);
}

/* A flood of changes is one round after the other, not a queue of rounds. */
static void test_broadcast_flood(void)
{
    const uint32_t n = 50;
    unsigned turns = 0;
    Fixture f;

    setup(&f, n);
    for (uint32_t i = 0; i < n; i++) {
        join(&f, i, i, 2);
    }
    for (int i = 0; i < 10000; i++) {
        say(&f, i % n, IVSHMEM2_STATE_CHANGED);
    }
    while (ivshmem2_server_broadcast(f.server, 10)) {
        turns++;
    }
    g_assert_cmpuint(turns, <=, n / 10);
    teardown(&f);
}

static void test_state_of_the_gone(void)
{
    Fixture f;

    setup(&f, 4);
    for (uint32_t i = 0; i < 3; i++) {
        join(&f, i, i, i == 2 ? 2 : 10 + i);
    }
    /* refused, closed, or said goodbye: 0, and the others are told */
    for (int how = 0; how < 3; how++) {
        set_state(&f, 2, 7);
        switch (how) {
        case 0:
            ivshmem2_client_refuse(&f.clients[2], IVSHMEM2_ERR_PROTOCOL,
                                   "for a test");
            break;
        case 1:
            ivshmem2_client_clear(&f.clients[2]);
            break;
        case 2:
            say(&f, 2, IVSHMEM2_GOODBYE);
            break;
        }
        g_assert_cmpuint(f.link->table[2], ==, 0);
        run_broadcast(&f, 100);
        g_assert_cmpuint(signals(&f, 0), ==, 1);
        g_assert_cmpuint(signals(&f, 1), ==, 1);
        if (how != 1) {
            ivshmem2_client_clear(&f.clients[2]);
        }
        join(&f, 2, 2, 2);
    }
    /* but if the server goes, the peers carry on */
    set_state(&f, 2, 7);
    ivshmem2_server_shutdown(f.server);
    ivshmem2_client_clear(&f.clients[2]);
    g_assert_cmpuint(GUINT32_FROM_LE(f.link->table[2]), ==, 7);
    teardown(&f);
}

/* Timers */

typedef struct Alarm {
    Ivshmem2Timer timer;
    int order;
} Alarm;

static int n_expired;

static void expired(Ivshmem2Timer *t)
{
    ((Alarm *)t)->order = ++n_expired;
}

static void test_timers(void)
{
    Ivshmem2Timers timers = { .duration = 1000 };
    Alarm a[4] = { 0 };

    n_expired = 0;
    g_assert_cmpint(ivshmem2_timers_next(&timers), ==, -1);
    for (int i = 0; i < 4; i++) {
        ivshmem2_timer_start(&a[i].timer, &timers, expired);
    }
    ivshmem2_timer_start(&a[0].timer, &timers, expired);
    ivshmem2_timer_stop(&a[2].timer);
    ivshmem2_timer_stop(&a[2].timer);
    g_assert_cmpint(ivshmem2_timers_next(&timers), ==, a[1].timer.deadline);
    g_usleep(2000);
    ivshmem2_timers_run(&timers);
    g_assert_cmpint(a[1].order, ==, 1);
    g_assert_cmpint(a[2].order, ==, 0);
    g_assert_cmpint(a[3].order, ==, 2);
    g_assert_cmpint(a[0].order, ==, 3);
    g_assert_cmpint(ivshmem2_timers_next(&timers), ==, -1);
    ivshmem2_timers_run(&timers);
    g_assert_cmpint(n_expired, ==, 3);
}

static void ignore(const char *domain, GLogLevelFlags level,
                   const char *message, gpointer opaque)
{
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    /* thousands of peers that come and go */
    g_log_set_handler(G_LOG_DOMAIN, G_LOG_LEVEL_INFO, ignore, NULL);
    g_test_add_func("/ivshmem2/server-core/idset", test_idset);
    g_test_add_func("/ivshmem2/server-core/slots", test_slots);
    g_test_add_func("/ivshmem2/server-core/all-ids", test_all_ids);
    g_test_add_func("/ivshmem2/server-core/broadcast", test_broadcast);
    g_test_add_func("/ivshmem2/server-core/broadcast-meanwhile",
                    test_broadcast_meanwhile);
    g_test_add_func("/ivshmem2/server-core/broadcast-flood",
                    test_broadcast_flood);
    g_test_add_func("/ivshmem2/server-core/state-of-the-gone",
                    test_state_of_the_gone);
    g_test_add_func("/ivshmem2/server-core/timers", test_timers);
    return g_test_run();
}
