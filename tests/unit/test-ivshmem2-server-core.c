/*
 * ivshmem2-server's modules: slots, broadcasts, the lobby
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-util.h"
#include "access.h"
#include "lobby.h"
#include "loop.h"
#include "server.h"

/* A server whose clients are not connected to anything */

typedef struct Fixture {
    unsigned before;
    Ivshmem2Link *link;
    Ivshmem2Budget *budget;
    Ivshmem2Server *server;
    Ivshmem2Client **clients;   /* NULL: not connected */
    uint32_t n;
} Fixture;

/* @connection: where the client is */
static void *hold_slot(void *connection, uint32_t id)
{
    Ivshmem2Client **c = connection;

    /* pid 2 has no process any more */
    return ivshmem2_client_pid(*c) == 2 ? NULL : g_new(char, 1);
}

static void unhold_slot(void *hold)
{
    g_free(hold);
}

/* Has the process of pid 13 ended?  Its pid is given to another one then. */
static bool ended_13;

/* A client that connected when this pid was that of a new process */
static const void *connection_after;

static bool is_alive(void *connection)
{
    Ivshmem2Client **c = connection;

    return !ended_13 || ivshmem2_client_pid(*c) != 13 ||
           connection == connection_after;
}

static bool is_hold_alive(void *hold)
{
    return !ended_13;
}

static uint64_t start_time(void *connection)
{
    return 1;
}

static void wake(void *connection)
{
}

static const Ivshmem2ServerOps ops = {
    .slots.hold = hold_slot,
    .slots.unhold = unhold_slot,
    .slots.is_alive = is_alive,
    .slots.is_hold_alive = is_hold_alive,
    .slots.start_time = start_time,
    .wake = wake,
};

static void setup_with(Fixture *f, uint32_t max_peers,
                       const Ivshmem2BudgetConfig *limits)
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
    f->budget = ivshmem2_budget_new(limits);
    f->server = ivshmem2_server_new(f->link, f->budget, &ops, NULL);
    f->clients = g_new0(Ivshmem2Client *, max_peers);
}

static void setup(Fixture *f, uint32_t max_peers)
{
    setup_with(f, max_peers, &(Ivshmem2BudgetConfig) { 0 });
}

static void leave(Fixture *f, uint32_t i)
{
    if (f->clients[i]) {
        ivshmem2_client_free(f->clients[i]);
        f->clients[i] = NULL;
    }
}

static void teardown(Fixture *f)
{
    for (uint32_t i = 0; i < f->n; i++) {
        leave(f, i);
    }
    ivshmem2_server_free(f->server);
    ivshmem2_budget_free(f->budget);
    ivshmem2_link_free(f->link);
    g_free(f->clients);
    g_assert_cmpuint(count_fds(), ==, f->before);
}

/* Take all messages to a client; returns the last type. */
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

static Ivshmem2Msg make_hello(uint32_t id)
{
    return (Ivshmem2Msg) {
        .hdr.type = IVSHMEM2_MSG_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = 1,
            .version_max = 1,
            .features = IVSHMEM2_F_MSIX,
            .vectors = 1,
            .id = id,
        },
    };
}

static uint16_t join_as(Fixture *f, uint32_t i, uint32_t id, pid_t pid,
                        uid_t uid)
{
    const Ivshmem2Msg msg = make_hello(id);

    f->clients[i] = ivshmem2_client_new(f->server, pid, uid, &f->clients[i]);
    ivshmem2_client_receive(f->clients[i], &msg);
    return listen_to_it(f->clients[i]);
}

static uint16_t join(Fixture *f, uint32_t i, uint32_t id, pid_t pid)
{
    return join_as(f, i, id, pid, 1000);
}

static void say(Fixture *f, uint32_t i, uint16_t type)
{
    ivshmem2_client_receive(f->clients[i],
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
    g_assert_cmphex(join(&f, 0, IVSHMEM2_ID_ANY, 10), ==, IVSHMEM2_MSG_READY);
    g_assert_cmphex(join(&f, 1, IVSHMEM2_ID_ANY, 11), ==, IVSHMEM2_MSG_READY);
    g_assert_cmphex(join(&f, 2, 1, 12), ==, IVSHMEM2_MSG_REFUSED);
    leave(&f, 2);

    /* without a goodbye: only for the same process */
    leave(&f, 1);
    g_assert_cmphex(join(&f, 2, 1, 12), ==, IVSHMEM2_MSG_REFUSED);
    leave(&f, 2);
    g_assert_cmphex(join(&f, 1, 1, 11), ==, IVSHMEM2_MSG_READY);
    leave(&f, 1);
    ivshmem2_link_signal(f.link, 1, 0);
    ivshmem2_server_release(f.server, 1);
    g_assert_cmphex(join(&f, 2, 1, 12), ==, IVSHMEM2_MSG_READY);
    g_assert_cmpuint(signals(&f, 1), ==, 0);
    say(&f, 2, IVSHMEM2_MSG_GOODBYE);
    g_assert_true(ivshmem2_client_is_over(f.clients[2]));
    leave(&f, 2);

    /* invisible pids are never the same process */
    g_assert_cmphex(join(&f, 1, 1, 0), ==, IVSHMEM2_MSG_READY);
    leave(&f, 1);
    g_assert_cmphex(join(&f, 1, 1, 0), ==, IVSHMEM2_MSG_REFUSED);
    leave(&f, 1);
    ivshmem2_server_release(f.server, 1);

    /* gone already */
    g_assert_cmphex(join(&f, 1, 1, 2), ==, IVSHMEM2_MSG_READY);
    leave(&f, 1);
    g_assert_cmphex(join(&f, 1, 1, 3), ==, IVSHMEM2_MSG_READY);
    teardown(&f);
}

/* Client @i of this process and user gets @id if it wants any. */
static void expect_id(Fixture *f, uint32_t i, pid_t pid, uid_t uid,
                      uint32_t id)
{
    g_assert_cmphex(join_as(f, i, IVSHMEM2_ID_ANY, pid, uid), ==,
                    IVSHMEM2_MSG_READY);
    g_assert_cmpuint(ivshmem2_client_id(f->clients[i]), ==, id);
}

/* The pid of a process that ended is given to another one. */
static void test_recycled_pid(void)
{
    Ivshmem2Msg resume = make_hello(1);
    Fixture f;

    setup(&f, 3);
    memcpy(resume.hello.session, f.link->welcome.session, IVSHMEM2_UUID_SIZE);
    for (int held = 0; held < 2; held++) {
        /* 0: the process has ended; 1: it lives, but not as this user */
        for (int how = 0; how < 2; how++) {
            uid_t uid = how ? 1001 : 1000;

            g_assert_cmphex(join(&f, 0, 1, 13), ==, IVSHMEM2_MSG_READY);
            if (held) {
                leave(&f, 0);
            }
            ended_13 = !how;
            connection_after = &f.clients[2];
            f.clients[2] = ivshmem2_client_new(f.server, 13, uid,
                                               &f.clients[2]);
            ivshmem2_client_receive(f.clients[2], &resume);
            g_assert_cmphex(listen_to_it(f.clients[2]), ==,
                            IVSHMEM2_MSG_REFUSED);
            leave(&f, 2);
            g_assert_cmphex(join_as(&f, 2, IVSHMEM2_ID_ANY, 13, uid), ==,
                            IVSHMEM2_MSG_READY);
            g_assert_cmpuint(ivshmem2_client_id(f.clients[2]), ==, how * 2);
            say(&f, 2, IVSHMEM2_MSG_GOODBYE);
            leave(&f, 2);
            leave(&f, 0);
            ended_13 = false;
            ivshmem2_server_release(f.server, 1);
        }
    }
    teardown(&f);
}

/* A process that connects again and again needs one ID, any or not. */
static void test_any_of_the_same_process(void)
{
    GArray *ids = g_array_new(false, false, sizeof(Ivshmem2IdRange));
    const Ivshmem2IdRange high = { 2, 3 };
    const Ivshmem2Msg msg = make_hello(IVSHMEM2_ID_ANY);
    Fixture f;

    setup(&f, 4);
    expect_id(&f, 0, 10, 1000, 0);
    for (int round = 0; round < 10; round++) {
        expect_id(&f, 1, 11, 1000, 1);
        leave(&f, 1);
    }
    /* the held one comes first, even if a lower one is free */
    say(&f, 0, IVSHMEM2_MSG_GOODBYE);
    leave(&f, 0);
    expect_id(&f, 1, 11, 1000, 1);
    /* only one connection has it */
    expect_id(&f, 0, 11, 1000, 0);
    leave(&f, 0);
    leave(&f, 1);
    /* others do not get what is held, whatever user or pid they have */
    expect_id(&f, 2, 12, 1000, 2);
    expect_id(&f, 3, 11, 1001, 3);
    say(&f, 2, IVSHMEM2_MSG_GOODBYE);
    leave(&f, 2);
    /* and it has to be one that the process still may take */
    g_array_append_val(ids, high);
    f.clients[2] = ivshmem2_client_new(f.server, 11, 1000, &f.clients[2]);
    ivshmem2_client_restrict_consume(f.clients[2], ids);
    ivshmem2_client_receive(f.clients[2], &msg);
    g_assert_cmphex(listen_to_it(f.clients[2]), ==, IVSHMEM2_MSG_READY);
    g_assert_cmpuint(ivshmem2_client_id(f.clients[2]), ==, 2);
    teardown(&f);
}

static void say_goodbye(Fixture *f, uint32_t i)
{
    say(f, i, IVSHMEM2_MSG_GOODBYE);
    leave(f, i);
}

/* What another user had comes last, and the log says so. */
static void test_any_of_another_user(void)
{
    Fixture f;

    setup(&f, 3);
    expect_id(&f, 0, 10, 1000, 0);
    say_goodbye(&f, 0);
    expect_id(&f, 1, 11, 1001, 1);
    say_goodbye(&f, 1);
    /* the lowest of its own and of new ones */
    expect_id(&f, 0, 12, 1000, 0);
    expect_id(&f, 1, 13, 1000, 2);
    g_test_expect_message(G_LOG_DOMAIN, G_LOG_LEVEL_WARNING,
                          "'' (pid 14, uid 1000) gets ID 1, which the user "
                          "with uid 1001 had*");
    expect_id(&f, 2, 14, 1000, 1);
    g_test_assert_expected_messages();
    say_goodbye(&f, 0);
    g_test_expect_message(G_LOG_DOMAIN, G_LOG_LEVEL_WARNING,
                          "*gets ID 0, which the user with uid 1000 had*");
    g_assert_cmphex(join_as(&f, 0, 0, 15, 1002), ==, IVSHMEM2_MSG_READY);
    g_test_assert_expected_messages();
    teardown(&f);
}

/* A full link: IDs are given in order, and again when they are free. */
static void test_all_ids(void)
{
    const uint32_t n = 3000;
    Fixture f;

    setup(&f, n);
    for (uint32_t i = 0; i < n; i++) {
        g_assert_cmphex(join(&f, i, IVSHMEM2_ID_ANY, 2), ==,
                        IVSHMEM2_MSG_READY);
        g_assert_cmpuint(ivshmem2_client_id(f.clients[i]), ==, i);
    }
    for (uint32_t i = 0; i < n; i += 7) {
        Ivshmem2Client *c;
        Ivshmem2Client **saved = f.clients;

        f.clients = &c;
        g_assert_cmphex(join(&f, 0, IVSHMEM2_ID_ANY, 2), ==,
                        IVSHMEM2_MSG_REFUSED);
        f.clients = saved;
        ivshmem2_client_free(c);
        leave(&f, i);
        g_assert_cmphex(join(&f, i, IVSHMEM2_ID_ANY, 2), ==,
                        IVSHMEM2_MSG_READY);
        g_assert_cmpuint(ivshmem2_client_id(f.clients[i]), ==, i);
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

        say(&f, source, IVSHMEM2_MSG_STATE_CHANGED);
        run_broadcast(&f, budgets[b]);
        for (uint32_t i = 0; i < n; i++) {
            g_assert_cmpuint(signals(&f, i), ==, i != source);
        }
    }
    /* two at once: each is interrupted because of the other one */
    say(&f, 5, IVSHMEM2_MSG_STATE_CHANGED);
    say(&f, 6, IVSHMEM2_MSG_STATE_CHANGED);
    run_broadcast(&f, 1000);
    for (uint32_t i = 0; i < n; i++) {
        g_assert_cmpuint(signals(&f, i), ==, 1);
    }
    teardown(&f);
}

/* No peer misses a change that comes during a broadcast. */
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

        say(&f, source, IVSHMEM2_MSG_STATE_CHANGED);
        ivshmem2_server_broadcast(f.server, g_test_rand_int_range(0, n / 2));
        for (uint32_t i = 0; i < n; i += 2) {
            signals(&f, i);
        }
        if (g_test_rand_bit()) {
            leave(&f, source);
            join(&f, source, source, 2);
        }
        say(&f, other, IVSHMEM2_MSG_STATE_CHANGED);
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

/* A flood of changes causes one round, not a queue of rounds. */
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
        say(&f, i % n, IVSHMEM2_MSG_STATE_CHANGED);
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
            ivshmem2_client_refuse(f.clients[2], IVSHMEM2_REFUSAL_PROTOCOL,
                                   "for a test");
            break;
        case 1:
            leave(&f, 2);
            break;
        case 2:
            say(&f, 2, IVSHMEM2_MSG_GOODBYE);
            break;
        }
        g_assert_cmpuint(f.link->table[2], ==, 0);
        run_broadcast(&f, 100);
        g_assert_cmpuint(signals(&f, 0), ==, 1);
        g_assert_cmpuint(signals(&f, 1), ==, 1);
        if (how != 1) {
            leave(&f, 2);
        }
        join(&f, 2, 2, 2);
    }
    /* but when the server ends, the peers continue */
    set_state(&f, 2, 7);
    ivshmem2_server_shutdown(f.server);
    leave(&f, 2);
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

/* The lobby */

static unsigned count_entrants(const Ivshmem2Budget *b, uid_t uid)
{
    return ivshmem2_budget_count(b, IVSHMEM2_ENTRANT, uid);
}

/* Users take turns, and none has more places than are left for others. */
static void test_lobby(void)
{
    /* 16 places */
    const Ivshmem2BudgetConfig limits = { .fd_limit = 16 * 64 };
    Ivshmem2Budget *budget = ivshmem2_budget_new(&limits);
    Ivshmem2Lobby l;
    Ivshmem2Joiner a[20] = { { .stage = IVSHMEM2_OUTSIDE } };
    Ivshmem2Joiner b[20] = { { .stage = IVSHMEM2_OUTSIDE } };

    ivshmem2_lobby_init(&l, budget);
    for (int i = 0; i < 20; i++) {
        ivshmem2_lobby_enter(&l, &a[i], 1000);
        ivshmem2_lobby_enter(&l, &b[i], 0);
    }
    g_assert_cmpuint(count_entrants(budget, 1000), ==, 20);
    g_assert_cmpuint(count_entrants(budget, 1), ==, 0);
    for (int i = 0; i < 20; i++) {
        g_assert_cmpint(ivshmem2_lobby_ask(&l, &a[i]), ==, i < 8);
    }
    g_assert_cmpuint(count_entrants(budget, 1000), ==, 12);
    for (int i = 0; i < 20; i++) {
        g_assert_cmpint(ivshmem2_lobby_ask(&l, &b[i]), ==, i < 4);
    }
    g_assert_null(ivshmem2_lobby_next(&l));
    /* the user with fewer places gets more first */
    ivshmem2_lobby_leave(&l, &a[0]);
    g_assert_true(ivshmem2_lobby_next(&l) == &b[4]);
    g_assert_null(ivshmem2_lobby_next(&l));
    ivshmem2_lobby_leave(&l, &b[0]);
    g_assert_true(ivshmem2_lobby_next(&l) == &b[5]);
    /* then by turns, in the order of asking, without those that gave up */
    ivshmem2_lobby_leave(&l, &a[9]);
    ivshmem2_lobby_leave(&l, &b[6]);
    for (int i = 1; i < 8; i++) {
        ivshmem2_lobby_leave(&l, &a[i]);
    }
    for (int i = 1; i < 6; i++) {
        ivshmem2_lobby_leave(&l, &b[i]);
    }
    g_assert_true(ivshmem2_lobby_next(&l) == &a[8]);
    g_assert_true(ivshmem2_lobby_next(&l) == &b[7]);
    g_assert_true(ivshmem2_lobby_next(&l) == &a[10]);
    g_assert_true(ivshmem2_lobby_next(&l) == &b[8]);
    for (int i = 0; i < 20; i++) {
        ivshmem2_lobby_leave(&l, &a[i]);
        ivshmem2_lobby_leave(&l, &a[i]);
    }
    g_assert_cmpuint(count_entrants(budget, 1000), ==, 0);
    while (ivshmem2_lobby_next(&l)) {
        continue;
    }
    g_assert_cmpuint(l.joining.length, ==, 8);
    for (int i = 0; i < 20; i++) {
        ivshmem2_lobby_leave(&l, &b[i]);
    }
    g_assert_cmpuint(l.joining.length, ==, 0);
    g_assert_cmpuint(l.waiting.length, ==, 0);
    g_assert_cmpuint(g_hash_table_size(l.users), ==, 0);
    ivshmem2_lobby_clear(&l);
    ivshmem2_budget_free(budget);
}

/* After one that stalled, the newest one is next, until no more wait. */
static void test_lobby_of_the_stalled(void)
{
    /* 4 places */
    const Ivshmem2BudgetConfig limits = { .fd_limit = 4 * 64 };
    Ivshmem2Budget *budget = ivshmem2_budget_new(&limits);
    Ivshmem2Joiner j[8] = { { .stage = IVSHMEM2_OUTSIDE } };
    Ivshmem2Lobby l;

    ivshmem2_lobby_init(&l, budget);
    for (int i = 0; i < 8; i++) {
        ivshmem2_lobby_enter(&l, &j[i], 1000);
        g_assert_cmpint(ivshmem2_lobby_ask(&l, &j[i]), ==, i < 2);
    }
    /* one that is refused has not stalled */
    ivshmem2_lobby_retire(&l, &j[0], false);
    g_assert_cmpuint(count_entrants(budget, 1000), ==, 7);
    g_assert_true(ivshmem2_lobby_next(&l) == &j[2]);
    ivshmem2_lobby_retire(&l, &j[1], true);
    g_assert_true(ivshmem2_lobby_next(&l) == &j[7]);
    ivshmem2_lobby_leave(&l, &j[7]);
    g_assert_true(ivshmem2_lobby_next(&l) == &j[6]);
    /* it has no place any more, and a joiner that waits has none yet */
    ivshmem2_lobby_retire(&l, &j[1], true);
    ivshmem2_lobby_retire(&l, &j[3], true);
    g_assert_null(ivshmem2_lobby_next(&l));
    for (int i = 0; i < 8; i++) {
        ivshmem2_lobby_leave(&l, &j[i]);
    }
    g_assert_cmpuint(l.joining.length, ==, 0);
    g_assert_cmpuint(g_hash_table_size(l.users), ==, 0);
    ivshmem2_lobby_clear(&l);
    ivshmem2_budget_free(budget);
}

/* Users */

/* Bound IDs count for their user, which gets them again. */
static void test_bound_ids(void)
{
    const Ivshmem2BudgetConfig limits = { .ids_per_user = 2, .bind_ids = true };
    Fixture f;

    setup_with(&f, 4, &limits);
    for (int round = 0; round < 3; round++) {
        expect_id(&f, 0, 12, 1001, 0);
        expect_id(&f, 1, 10, 1000, 1);
        expect_id(&f, 2, 11, 1000, 2);
        for (int i = 0; i < 3; i++) {
            say_goodbye(&f, i);
        }
    }
    g_assert_cmpuint(ivshmem2_budget_count(f.budget, IVSHMEM2_SLOT, 1000), ==,
                     2);
    /* one that was held, too */
    expect_id(&f, 0, 10, 1000, 1);
    leave(&f, 0);
    ivshmem2_server_release(f.server, 1);
    g_assert_cmphex(join_as(&f, 0, 1, 12, 1001), ==, IVSHMEM2_MSG_REFUSED);
    leave(&f, 0);
    /* the user has two, and gets no third */
    g_assert_cmphex(join_as(&f, 0, 3, 10, 1000), ==, IVSHMEM2_MSG_REFUSED);
    leave(&f, 0);
    expect_id(&f, 0, 13, 1002, 3);
    g_assert_cmphex(join_as(&f, 1, IVSHMEM2_ID_ANY, 14, 1003), ==,
                    IVSHMEM2_MSG_REFUSED);
    teardown(&f);
}

/* Occupied and held IDs count for the user. */
static void test_ids_per_user(void)
{
    Fixture f;

    setup_with(&f, 4, &(Ivshmem2BudgetConfig) { .ids_per_user = 2 });
    for (int round = 0; round < 3; round++) {
        g_assert_cmphex(join(&f, 0, 0, 10), ==, IVSHMEM2_MSG_READY);
        g_assert_cmphex(join(&f, 1, 1, 11), ==, IVSHMEM2_MSG_READY);
        g_assert_cmphex(join(&f, 2, 2, 12), ==, IVSHMEM2_MSG_REFUSED);
        leave(&f, 2);
        /* a held one counts, but its process can come back */
        leave(&f, 1);
        g_assert_cmphex(join(&f, 2, 2, 11), ==, IVSHMEM2_MSG_REFUSED);
        leave(&f, 2);
        g_assert_cmphex(join(&f, 1, 1, 11), ==, IVSHMEM2_MSG_READY);
        leave(&f, 1);
        ivshmem2_server_release(f.server, 1);
        g_assert_cmphex(join(&f, 2, IVSHMEM2_ID_ANY, 12), ==,
                        IVSHMEM2_MSG_READY);
        for (uint32_t i = 0; i < 3; i += 2) {
            say(&f, i, IVSHMEM2_MSG_GOODBYE);
            leave(&f, i);
        }
    }
    teardown(&f);
}

/* The log */

static void remember(const char *domain, GLogLevelFlags level,
                     const char *message, gpointer opaque)
{
    GString *log = opaque;

    g_string_append_printf(log, "%s\n", message);
}

/* A virtual machine is named by its UUID as well, if it has one. */
static void test_log_of_joining(void)
{
    g_autoptr(GString) log = g_string_new(NULL);
    Ivshmem2Msg msg = make_hello(3);
    guint handler;
    Fixture f;

    setup(&f, 4);
    handler = g_log_set_handler(G_LOG_DOMAIN, G_LOG_LEVEL_INFO, remember, log);
    join(&f, 0, 0, 10);
    strcpy(msg.hello.name, "machine");
    for (unsigned i = 0; i < IVSHMEM2_UUID_SIZE; i++) {
        msg.hello.vm_uuid[i] = 0x11 * i;
    }
    f.clients[1] = ivshmem2_client_new(f.server, 11, 1001, &f.clients[1]);
    ivshmem2_client_receive(f.clients[1], &msg);
    g_log_remove_handler(G_LOG_DOMAIN, handler);
    g_assert_cmpstr(log->str, ==,
        "'' (pid 10, uid 1000) joins as ID 0\n"
        "'machine' (pid 11, uid 1001, VM 00112233-4455-6677-8899-aabbccddeeff)"
        " joins as ID 3\n");
    teardown(&f);
}

static void ignore(const char *domain, GLogLevelFlags level,
                   const char *message, gpointer opaque)
{
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    /* thousands of lines */
    g_log_set_handler(G_LOG_DOMAIN, G_LOG_LEVEL_INFO, ignore, NULL);
    g_test_add_func("/ivshmem2/server-core/slots", test_slots);
    g_test_add_func("/ivshmem2/server-core/recycled-pid", test_recycled_pid);
    g_test_add_func("/ivshmem2/server-core/any-of-the-same-process",
                    test_any_of_the_same_process);
    g_test_add_func("/ivshmem2/server-core/any-of-another-user",
                    test_any_of_another_user);
    g_test_add_func("/ivshmem2/server-core/all-ids", test_all_ids);
    g_test_add_func("/ivshmem2/server-core/broadcast", test_broadcast);
    g_test_add_func("/ivshmem2/server-core/broadcast-meanwhile",
                    test_broadcast_meanwhile);
    g_test_add_func("/ivshmem2/server-core/broadcast-flood",
                    test_broadcast_flood);
    g_test_add_func("/ivshmem2/server-core/state-of-the-gone",
                    test_state_of_the_gone);
    g_test_add_func("/ivshmem2/server-core/timers", test_timers);
    g_test_add_func("/ivshmem2/server-core/lobby", test_lobby);
    g_test_add_func("/ivshmem2/server-core/lobby-of-the-stalled",
                    test_lobby_of_the_stalled);
    g_test_add_func("/ivshmem2/server-core/ids-per-user",
                    test_ids_per_user);
    g_test_add_func("/ivshmem2/server-core/bound-ids", test_bound_ids);
    g_test_add_func("/ivshmem2/server-core/log-of-joining",
                    test_log_of_joining);
    return g_test_run();
}
