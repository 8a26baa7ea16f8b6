/*
 * ivshmem2-server's modules: what the manager is given, and when it takes none
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-manager-util.h"

/*
 * The server is killed at any point between two messages: whatever was sent
 * until then, there is a successor.
 */
static void test_killed(void)
{
    for (uint32_t killed = 0; killed < 3; killed++) {
        g_autofree uint32_t *numbers = g_new0(uint32_t, N_VECTORS);
        Ivshmem2Link *link;
        Manager m;

        make_kept_link(&m);
        open_store(&m, 100);
        link = must_adopt(&m);
        /* the eventfds of ID 1: none, one or both are kept */
        g_assert_true(ivshmem2_link_make_eventfds(link, 1, NULL));
        manager_read(&m);
        g_assert_true(ivshmem2_record_set_eventfds(
            link->record, 1, IVSHMEM2_EVENTFDS_MAKING, numbers, NULL));
        ivshmem2_link_free(link);
        for (uint32_t i = killed; i < N_VECTORS; i++) {
            drop(&m, m.kept->len - 1);
        }
        g_assert_cmpuint(m.kept->len, ==, N_MEMORY + N_VECTORS + killed);
        close_store(&m);

        open_store(&m, 100);
        link = must_adopt(&m);
        g_assert_null(link->eventfds[1]);
        assert_same_eventfds(&m, link, 3, AT_EVENTFDS);
        /* they are for the next ID that needs some */
        g_assert_true(ivshmem2_link_make_eventfds(link, 0, NULL));
        manager_read(&m);
        g_assert_cmpuint(m.kept->len, ==, N_MEMORY + 2 * N_VECTORS);
        ivshmem2_link_free(link);
        close_store(&m);

        open_store(&m, 100);
        link = must_adopt(&m);
        g_assert_nonnull(link->eventfds[0]);
        assert_same_eventfds(&m, link, 3, AT_EVENTFDS);
        ivshmem2_link_free(link);
        /* more than can have been made is surplus, as ever */
        add_eventfd(&m);
        must_not_adopt(&m, "is surplus");
        manager_clear(&m);
    }
}

/* Fill the manager's queue, which it does not read. */
static unsigned fill(Manager *m)
{
    int fd = make_eventfd();
    unsigned n = 0;

    ivshmem2_store_started(m->store);
    while (ivshmem2_store_put(m->store, "x", &fd, 1) == 1) {
        n++;
    }
    g_assert_cmpint(errno, ==, EAGAIN);
    ivshmem2_close(&fd);
    return n;
}

static void test_busy(void)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Link *link;
    unsigned before, n;
    Manager m;

    manager_init(&m, 100000);
    link = make_link(&m);
    n = fill(&m);
    before = count_fds();
    g_assert_false(ivshmem2_link_make_eventfds(link, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_IO,
                 "the supervisor takes no descriptors at the moment");
    g_assert_null(link->eventfds[1]);
    g_assert_cmpuint(count_fds(), ==, before);
    g_assert_cmpuint(ivshmem2_record_eventfds(link->record, 1, NULL), ==,
                     IVSHMEM2_EVENTFDS_NONE);
    g_assert_cmpuint(manager_read(&m), ==, n);
    while (m.kept->len > N_MEMORY) {
        drop(&m, N_MEMORY);
    }
    g_assert_true(ivshmem2_link_make_eventfds(link, 1, &error));
    g_assert_no_error(error);
    ivshmem2_link_free(link);
    manager_clear(&m);
}

/* It takes only a part of what one ID needs. */
static void test_half_busy(void)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Link *link;
    char text[2] = "x";
    Manager m;

    manager_init(&m, 100000);
    m.config.vectors = 2 * IVSHMEM2_STORE_FDS;
    link = make_link(&m);
    ivshmem2_store_started(m.store);
    fill(&m);
    /* room for one message, or a few */
    g_assert_cmpint(recv(m.fd, text, 1, MSG_DONTWAIT), >, 0);
    for (int i = 0; i < 50 && !link->spare_eventfds->len; i++) {
        if (ivshmem2_link_make_eventfds(link, 1, NULL)) {
            break;
        }
        if (!link->spare_eventfds->len) {
            recv(m.fd, text, 1, MSG_DONTWAIT);
        }
    }
    g_assert_cmpuint(link->spare_eventfds->len, ==, IVSHMEM2_STORE_FDS);
    manager_read(&m);
    ivshmem2_link_free(link);
    close_store(&m);
    /* those that were sent before this test's are in the way */
    for (guint i = m.kept->len; i-- > N_MEMORY;) {
        if (i < m.kept->len - IVSHMEM2_STORE_FDS) {
            drop(&m, i);
        }
    }
    open_store(&m, 100000);
    link = must_adopt(&m);
    g_assert_cmpuint(link->spare_eventfds->len, ==, IVSHMEM2_STORE_FDS);
    g_assert_true(ivshmem2_link_make_eventfds(link, 1, &error));
    g_assert_cmpuint(link->spare_eventfds->len, ==, 0);
    g_assert_cmpuint(manager_read(&m), ==, 1);
    ivshmem2_link_free(link);
    manager_clear(&m);
}

static void expect_warning(const char *pattern)
{
    g_test_expect_message(NULL, G_LOG_LEVEL_WARNING, pattern);
}

/* Eventfds that the store has no room for end with the server. */
static void test_full(void)
{
    Ivshmem2SlotRecord *slot;
    Ivshmem2Link *link;
    Manager m;

    manager_init(&m, N_MEMORY + N_VECTORS);
    link = make_link(&m);
    g_assert_true(ivshmem2_link_make_eventfds(link, 0, NULL));
    expect_warning("the supervisor has no room for more descriptors*");
    for (uint32_t id = 1; id < N_PEERS; id++) {
        g_assert_true(ivshmem2_link_make_eventfds(link, id, NULL));
    }
    g_test_assert_expected_messages();
    slot = ivshmem2_record_slot(link->record, 1);
    ivshmem2_record_set_use(slot, IVSHMEM2_SLOT_OCCUPIED);
    link->table[1] = GUINT32_TO_LE(5);
    link->table[0] = GUINT32_TO_LE(6);
    ivshmem2_link_free(link);
    close_store(&m);
    g_assert_cmpuint(m.kept->len, ==, N_MEMORY + N_VECTORS);

    open_store(&m, N_MEMORY + N_VECTORS);
    expect_warning("*cannot go on as ID 1: its eventfds were not kept");
    link = must_adopt(&m);
    g_test_assert_expected_messages();
    g_assert_cmpuint(ivshmem2_link_state(link, 0), ==, 6);
    g_assert_cmpuint(ivshmem2_link_state(link, 1), ==, 0);
    slot = ivshmem2_record_slot(link->record, 1);
    g_assert_cmpuint(slot->use, ==, IVSHMEM2_SLOT_FREE);
    g_assert_true(ivshmem2_record_broadcast(link->record));
    g_assert_false(ivshmem2_link_is_renewed(link, 0));
    g_assert_true(ivshmem2_link_is_renewed(link, 1));
    /* until somebody else has it */
    ivshmem2_link_drain(link, 1);
    g_assert_false(ivshmem2_link_is_renewed(link, 1));
    ivshmem2_link_free(link);
    manager_clear(&m);
}

/* With a part of the memory, no successor could start: nothing is kept. */
static void test_too_small(void)
{
    Ivshmem2Link *link;
    Manager m;

    manager_init(&m, N_MEMORY - 1);
    expect_warning("*the link's memory needs 7*");
    link = make_link(&m);
    g_test_assert_expected_messages();
    g_assert_true(ivshmem2_link_make_eventfds(link, 0, NULL));
    g_assert_cmpuint(manager_read(&m), ==, 0);
    g_assert_cmpuint(m.kept->len, ==, 0);
    ivshmem2_link_free(link);
    manager_clear(&m);
}

/* Descriptors run out in the middle of a start. */
static void test_no_descriptors(void)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Link *link;
    unsigned before;
    Manager m;

    make_kept_link(&m);
    before = count_fds();
    open_store(&m, 100);
    m.config.pushes = true;
    m.config.fd_limit = 3;
    g_assert_null(adopt(&m, &error));
    assert_error(error, IVSHMEM2_ERROR_IO, "eventfds for ID 0");
    close_store(&m);
    g_assert_cmpuint(count_fds(), ==, before);
    /* the next server finds all of them */
    open_store(&m, 100);
    m.config.fd_limit = 0;
    link = must_adopt(&m);
    assert_same_eventfds(&m, link, 3, AT_EVENTFDS);
    ivshmem2_link_free(link);
    manager_clear(&m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/server-adopt/killed", test_killed);
    g_test_add_func("/ivshmem2/server-adopt/busy", test_busy);
    g_test_add_func("/ivshmem2/server-adopt/half-busy", test_half_busy);
    g_test_add_func("/ivshmem2/server-adopt/full", test_full);
    g_test_add_func("/ivshmem2/server-adopt/too-small", test_too_small);
    g_test_add_func("/ivshmem2/server-adopt/no-descriptors",
                    test_no_descriptors);
    return g_test_run();
}
