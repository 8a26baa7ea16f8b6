/*
 * ivshmem2-server's slots: what a server finds that comes after another one
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-slots-util.h"

/* Coming back */

static void test_back(void)
{
    Fixture f;

    begin(&f);
    restart(&f);
    join(&f, VICTIM, 1, SESSION);
    join(&f, OBSERVER, 0, SESSION);
    /* as if nothing had happened */
    g_assert_cmpuint(get_state(&f, 1), ==, 5);
    g_assert_false(was_interrupted(&f, 0));
    g_assert_false(was_interrupted(&f, 1));

    /* what was written meanwhile is what counts, and the others are told */
    restart(&f);
    set_state(&f, 1, 6);
    join(&f, VICTIM, 1, SESSION);
    g_assert_cmpuint(get_state(&f, 1), ==, 6);
    g_assert_true(was_interrupted(&f, 0));
    g_assert_false(was_interrupted(&f, 1));
    /* also from 6 to 0 */
    restart(&f);
    set_state(&f, 1, 0);
    join(&f, VICTIM, 1, SESSION);
    g_assert_true(was_interrupted(&f, 0));

    /* the same process, but anew */
    set_state(&f, 1, 7);
    say(&f, 1, IVSHMEM2_MSG_STATE_CHANGED);
    g_assert_true(was_interrupted(&f, 0));
    restart(&f);
    join(&f, VICTIM, 1, !SESSION);
    g_assert_cmpuint(get_state(&f, 1), ==, 0);
    g_assert_true(was_interrupted(&f, 0));
    teardown(&f);
}

/* A peer may have left while no server was there, in a process that lives. */
static void test_changed_before(void)
{
    Fixture f;

    for (int pushes = 0; pushes < 2; pushes++) {
        begin(&f);
        f.link->config.pushes = pushes;
        set_state(&f, 1, 0);
        restart(&f);
        /* where peers reach each other, it has told them itself */
        g_assert_true(was_interrupted(&f, 0) == !pushes);
        g_assert_false(was_interrupted(&f, 1));
        join(&f, VICTIM, 1, SESSION);
        g_assert_true(was_interrupted(&f, 0) == pushes);
        restart(&f);
        g_assert_false(was_interrupted(&f, 0));
        teardown(&f);
    }
}

/* A process that is gone before or after the successor starts */
static void test_gone(void)
{
    Fixture f;

    for (int later = 0; later < 2; later++) {
        begin(&f);
        processes[VICTIM].dead = !later;
        restart(&f);
        if (later) {
            g_assert_cmpuint(get_state(&f, 1), ==, 5);
            processes[VICTIM].dead = true;
            ivshmem2_server_release(f.server, 1);
        }
        g_assert_cmpuint(get_state(&f, 1), ==, 0);
        /* who is not back yet is told as well */
        g_assert_true(was_interrupted(&f, 0));
        join(&f, OTHER, 1, !SESSION);
        teardown(&f);
    }
}

static void test_grace_over(void)
{
    Fixture f;

    begin(&f);
    restart(&f);
    holds[1]->grace = false;
    ivshmem2_server_end_grace(f.server, 1);
    g_assert_cmpuint(get_state(&f, 1), ==, 0);
    g_assert_true(was_interrupted(&f, 0));
    refused(&f, OTHER, 1, !SESSION, "ID 1 is held for 'vm1' (pid 11) as long "
            "as that process lives");
    /* it stays held for the server after this one */
    restart(&f);
    g_assert_nonnull(holds[1]);
    g_assert_false(holds[1]->grace);
    g_assert_true(holds[0]->grace);
    refused(&f, OTHER, 1, !SESSION, "ID 1 is held for 'vm1' (pid 11) as long "
            "as that process lives");
    set_state(&f, 1, 8);
    join(&f, VICTIM, 1, SESSION);
    g_assert_true(was_interrupted(&f, 0));
    g_assert_cmpuint(get_state(&f, 1), ==, 8);
    teardown(&f);
}

/* A slot that was held */
static void test_held(void)
{
    Fixture f;

    begin(&f);
    leave(&f, 1);
    was_interrupted(&f, 0);
    restart(&f);
    g_assert_false(was_interrupted(&f, 0));
    refused(&f, OTHER, 1, !SESSION, "ID 1 is held for 'vm1' (pid 11) as long "
            "as that process lives");
    processes[VICTIM].dead = true;
    restart(&f);
    join(&f, OTHER, 1, !SESSION);
    teardown(&f);
}

/* Others */

static void test_refusals(void)
{
    static const char words[] = "ID 1 is held for 'vm1' (pid 11) until it "
        "comes back, 27 s at most, and as long as that process lives";
    Ivshmem2Msg hello;
    Fixture f;

    begin(&f);
    restart(&f);
    refused(&f, OTHER, 1, !SESSION, words);
    refused(&f, OTHER, 1, SESSION, words);
    refused(&f, FOREIGN, 1, SESSION, words);
    refused(&f, UNSEEN, 1, SESSION, words);
    /* another session */
    hello = make_hello(&f, 1, true);
    hello.hello.session[0] ^= 1;
    f.clients[1] = ivshmem2_client_new(f.server, 11, 1000, &processes[VICTIM]);
    ivshmem2_client_receive(f.clients[1], &hello);
    listen_to_it(f.clients[1], &hello);
    g_assert_cmpuint(hello.refusal.code, ==, IVSHMEM2_REFUSAL_SESSION);
    leave(&f, 1);
    /* any ID: one of those only for the same process if no other is free */
    g_assert_cmpuint(try_join(&f, 2, OTHER, IVSHMEM2_ID_ANY, !SESSION, NULL),
                     ==, 2);
    g_assert_cmpuint(try_join(&f, 3, VICTIM, IVSHMEM2_ID_ANY, !SESSION, NULL),
                     ==, 3);
    g_assert_cmpuint(try_join(&f, 0, OTHER, IVSHMEM2_ID_ANY, !SESSION, NULL),
                     ==, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(try_join(&f, 1, VICTIM, IVSHMEM2_ID_ANY, !SESSION, NULL),
                     ==, 1);
    teardown(&f);
}

/* The pid of a process that ended is given to another one. */
static void test_recycled_pid(void)
{
    Fixture f;

    begin(&f);
    restart(&f);
    processes[VICTIM].dead = true;
    refused(&f, RECYCLED, 1, SESSION, "ID 1 is held for 'vm1' (pid 11) until "
            "it comes back, 27 s at most, and as long as that process lives");
    teardown(&f);

    begin(&f);
    processes[VICTIM].dead = true;
    restart(&f);
    g_assert_null(holds[1]);
    g_assert_cmpuint(get_state(&f, 1), ==, 0);
    teardown(&f);
}

/* A process that cannot be seen can only be told by its user. */
static void test_unseen(void)
{
    Fixture f;

    setup(&f);
    join(&f, OBSERVER, 0, !SESSION);
    join(&f, UNSEEN, 1, !SESSION);
    set_state(&f, 1, 5);
    announce(&f, 1, 5);
    restart(&f);
    g_assert_true(holds[1]->grace);
    refused(&f, FOREIGN, 1, SESSION, "ID 1 is held for 'vm1' until it comes "
            "back, 27 s at most");
    refused(&f, UNSEEN, 1, !SESSION, "ID 1 is held for 'vm1' until it comes "
            "back, 27 s at most");
    g_assert_cmpuint(try_join(&f, 2, UNSEEN, IVSHMEM2_ID_ANY, !SESSION, NULL),
                     ==, 2);
    join(&f, UNSEEN, 1, SESSION);
    g_assert_cmpuint(get_state(&f, 1), ==, 5);
    g_assert_false(was_interrupted(&f, 0));
    /* too late */
    restart(&f);
    holds[1]->grace = false;
    ivshmem2_server_end_grace(f.server, 1);
    refused(&f, UNSEEN, 1, SESSION, "ID 1 is held for a moment, because 'vm1' "
            "left without a goodbye");
    ivshmem2_server_release(f.server, 1);
    join(&f, UNSEEN, 1, SESSION);
    teardown(&f);
}

/* Its eventfds ended with the server. */
static void test_lost_eventfds(void)
{
    Fixture f;

    begin(&f);
    stop_server(&f);
    /* as ivshmem2_link_adopt() leaves it */
    ivshmem2_record_set_renewed(f.link->record, 1, true, NULL);
    ivshmem2_record_set_use(ivshmem2_record_slot(f.link->record, 1),
                            IVSHMEM2_SLOT_FREE);
    f.link->adopted = true;
    start_server(&f);
    g_assert_cmpuint(get_state(&f, 1), ==, 0);
    g_assert_true(was_interrupted(&f, 0));
    refused(&f, VICTIM, 1, SESSION, "the eventfds of ID 1 ended with the "
            "server before this one: the session cannot be resumed, join anew");
    join(&f, OTHER, 1, !SESSION);
    restart(&f);
    join(&f, OTHER, 1, SESSION);
    teardown(&f);
}

/* What is held counts for its user. */
static void test_budget(void)
{
    Fixture f;

    setup_with(&f, &(Ivshmem2BudgetConfig) { .ids_per_user = 2 });
    join(&f, OBSERVER, 0, !SESSION);
    join(&f, VICTIM, 1, !SESSION);
    leave(&f, 1);
    restart(&f);
    refused(&f, OTHER, 2, !SESSION, "the user with uid 1000 has 2 IDs already, "
            "and may not have more");
    join(&f, FOREIGN, 2, !SESSION);
    join(&f, VICTIM, 1, SESSION);
    say(&f, 1, IVSHMEM2_MSG_GOODBYE);
    leave(&f, 1);
    join(&f, OTHER, 3, !SESSION);
    teardown(&f);
}

static void test_bound_ids(void)
{
    const Ivshmem2BudgetConfig limits = { .ids_per_user = 1, .bind_ids = true };
    Fixture f;

    setup_with(&f, &limits);
    join(&f, OBSERVER, 0, !SESSION);
    say(&f, 0, IVSHMEM2_MSG_GOODBYE);
    leave(&f, 0);
    restart(&f);
    g_assert_cmpuint(ivshmem2_budget_count(f.budget, IVSHMEM2_SLOT, 1000), ==,
                     1);
    refused(&f, FOREIGN, 0, !SESSION, "ID 0 belongs to the user with uid 1000, "
            "which had it first (--bind-ids)");
    refused(&f, OTHER, 1, !SESSION, "the user with uid 1000 has 1 IDs already, "
            "and may not have more");
    join(&f, OTHER, 0, !SESSION);
    say(&f, 0, IVSHMEM2_MSG_GOODBYE);
    /* without the option, IDs that nobody has do not count */
    f.limits.bind_ids = false;
    restart(&f);
    g_assert_cmpuint(ivshmem2_budget_count(f.budget, IVSHMEM2_SLOT, 1000), ==,
                     0);
    join(&f, OTHER, 1, !SESSION);
    teardown(&f);
}

/* Interrupts */

/* One round for everybody, and no more than that */
static void test_unfinished_broadcast(void)
{
    Fixture f;

    begin(&f);
    join(&f, OTHER, 2, !SESSION);
    set_state(&f, 1, 6);
    say(&f, 1, IVSHMEM2_MSG_STATE_CHANGED);
    g_assert_true(ivshmem2_server_broadcast(f.server, 1));
    g_assert_true(ivshmem2_record_broadcast(f.link->record));
    restart(&f);
    run_broadcast(&f);
    g_assert_false(ivshmem2_record_broadcast(f.link->record));
    for (uint32_t id = 0; id < 3; id++) {
        uint64_t n = ivshmem2_eventfd_drain(f.link->eventfds[id][0]);

        g_assert_cmpuint(n, >=, 1);
        g_assert_cmpuint(n, <=, 2);
    }
    restart(&f);
    for (uint32_t id = 0; id < 3; id++) {
        g_assert_false(was_interrupted(&f, id));
    }
    teardown(&f);
}

/* A doorbell reaches those that are not back yet. */
static void test_ring(void)
{
    const Ivshmem2Msg ring = { .hdr.type = IVSHMEM2_MSG_RING, .target.id = 1 };
    Fixture f;

    begin(&f);
    restart(&f);
    join(&f, OBSERVER, 0, SESSION);
    ivshmem2_client_receive(f.clients[0], &ring);
    join(&f, VICTIM, 1, SESSION);
    g_assert_true(was_interrupted(&f, 1));
    teardown(&f);
}

/* Waiting for an ID */

static void test_waiting(void)
{
    Ivshmem2Msg hello;
    Ivshmem2Client *c;
    Fixture f;

    begin(&f);
    c = ivshmem2_client_new(f.server, 12, 1000, &processes[OTHER]);
    hello = make_hello(&f, 1, false);
    /* occupied, held, and held during the grace */
    for (int how = 0; how < 3; how++) {
        processes[VICTIM].dead = false;
        if (how == 1) {
            leave(&f, 1);
        } else if (how == 2) {
            ivshmem2_client_free(c);
            join(&f, VICTIM, 1, !SESSION);
            restart(&f);
            c = ivshmem2_client_new(f.server, 12, 1000, &processes[OTHER]);
        }
        g_assert_false(ivshmem2_client_waits(c, &hello.hello, true, true));
        processes[VICTIM].dead = true;
        g_assert_true(ivshmem2_client_waits(c, &hello.hello, true, true));
        g_assert_true(ivshmem2_client_waits(c, &hello.hello, false, true));
        g_assert_false(ivshmem2_client_waits(c, &hello.hello, false, false));
    }
    ivshmem2_server_release(f.server, 1);
    g_assert_false(ivshmem2_client_waits(c, &hello.hello, true, true));
    ivshmem2_client_free(c);
    teardown(&f);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/server-successor/back", test_back);
    g_test_add_func("/ivshmem2/server-successor/changed-before",
                    test_changed_before);
    g_test_add_func("/ivshmem2/server-successor/gone", test_gone);
    g_test_add_func("/ivshmem2/server-successor/grace-over", test_grace_over);
    g_test_add_func("/ivshmem2/server-successor/held", test_held);
    g_test_add_func("/ivshmem2/server-successor/refusals", test_refusals);
    g_test_add_func("/ivshmem2/server-successor/recycled-pid",
                    test_recycled_pid);
    g_test_add_func("/ivshmem2/server-successor/unseen", test_unseen);
    g_test_add_func("/ivshmem2/server-successor/lost-eventfds",
                    test_lost_eventfds);
    g_test_add_func("/ivshmem2/server-successor/budget", test_budget);
    g_test_add_func("/ivshmem2/server-successor/bound-ids", test_bound_ids);
    g_test_add_func("/ivshmem2/server-successor/unfinished-broadcast",
                    test_unfinished_broadcast);
    g_test_add_func("/ivshmem2/server-successor/ring", test_ring);
    g_test_add_func("/ivshmem2/server-successor/waiting", test_waiting);
    return g_test_run();
}
