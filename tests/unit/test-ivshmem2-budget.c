/*
 * ivshmem2-server: its budget, without clients
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-util.h"
#include <sys/resource.h>
#include <sys/wait.h>
#include "budget.h"

#define USER    1000
#define OTHER   0
/* Of the limit, for connections that are refused */
#define RESERVE 32

static void take_n(Ivshmem2Budget *b, Ivshmem2Resource r, uid_t uid,
                   unsigned n)
{
    while (n--) {
        ivshmem2_budget_charge(b, r, uid);
    }
}

static void give_all(Ivshmem2Budget *b, Ivshmem2Resource r, uid_t uid)
{
    while (ivshmem2_budget_count(b, r, uid)) {
        ivshmem2_budget_discharge(b, r, uid);
    }
}

/* As many as it is allowed, asking each time; returns how many. */
static unsigned take_all(Ivshmem2Budget *b, Ivshmem2Resource r, uid_t uid,
                         unsigned max)
{
    unsigned n = 0;

    while (n < max && ivshmem2_budget_allows(b, r, uid)) {
        ivshmem2_budget_charge(b, r, uid);
        n++;
    }
    return n;
}

/* Descriptors without peers, for each peer, and with all of them */
static void test_needs(void)
{
    static const struct {
        Ivshmem2LinkConfig link;
        uint64_t none, each, all;
    } cases[] = {
        /* the State Table; later a connection and the eventfds */
        { { .max_peers = 10, .vectors = 3 }, 1, 4, 41 },
        { { .max_peers = 65536, .vectors = 2048, .rw_size = 4096 },
          2, 2049, 134283266 },
        { { .max_peers = 10, .vectors = 1, .output_size = 4096 }, 21, 2, 41 },
        /* eventfds from the start; later a connection, and one for others */
        { { .max_peers = 10, .vectors = 3, .pushes = true }, 31, 2, 51 },
        { { .max_peers = 5, .vectors = 2, .rw_size = 1, .output_size = 1,
            .pushes = true }, 22, 2, 32 },
    };
    /* for itself, and the reserve */
    const uint64_t others = 16 + RESERVE;

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const Ivshmem2LinkConfig *link = &cases[i].link;

        g_assert_cmpuint(ivshmem2_budget_needs(link, 0), ==,
                         others + cases[i].none);
        g_assert_cmpuint(ivshmem2_budget_needs(link, 1), ==,
                         others + cases[i].none + cases[i].each);
        g_assert_cmpuint(ivshmem2_budget_needs(link, link->max_peers), ==,
                         others + cases[i].all);
    }
}

static void test_pushes(void)
{
    static const struct {
        uint32_t peers, vectors, limit;
        bool pushes;
    } cases[] = {
        { 4, 2, 8, true },
        { 4, 2, 7, false },
        { 2, 1, 0, false },
        { 128, 2, IVSHMEM2_PUSH_LIMIT, true },
        { 129, 2, IVSHMEM2_PUSH_LIMIT, false },
        { 65536, 1, IVSHMEM2_MAX_PUSH_LIMIT, true },
        /* more than 32 bits hold */
        { 1U << 31, 2, IVSHMEM2_MAX_PUSH_LIMIT, false },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const Ivshmem2LinkConfig link = {
            .max_peers = cases[i].peers,
            .vectors = cases[i].vectors,
        };
        const Ivshmem2BudgetConfig budget = { .push_limit = cases[i].limit };

        g_assert_cmpint(ivshmem2_budget_pushes(&budget, &link), ==,
                        cases[i].pushes);
    }
}

/* Planning changes the process's limit, so it is another one's. */
static void test_plan_in_child(uint64_t files)
{
    const struct rlimit limit = { files, files };
    Ivshmem2BudgetConfig budget = { .push_limit = 20 };
    Ivshmem2LinkConfig link = { .max_peers = 10, .vectors = 2 };
    struct rlimit now;

    if (geteuid() == 0) {
        /* root may raise the hard limit */
        g_assert_cmpint(setresuid(20000, 20000, 20000), ==, 0);
    }
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    ivshmem2_budget_plan(&budget, &link);
    g_assert_true(link.pushes);
    g_assert_cmpint(getrlimit(RLIMIT_NOFILE, &now), ==, 0);
    g_assert_cmpuint(now.rlim_cur, ==, files);
    g_assert_cmpint(budget.fd_limit, ==, files - MIN(RESERVE, files / 4));
    g_assert_cmpint(link.fd_limit, ==, budget.fd_limit);
}

/* All of 10 peers with 2 vectors need 89, and it is said if there are less. */
static void test_plan(void)
{
    static const struct {
        const char *path;
        const char *warning;
    } cases[] = {
        { "/ivshmem2/budget/plan/subprocess/89", NULL },
        { "/ivshmem2/budget/plan/subprocess/88",
          "*limit of 88 open files (RLIMIT_NOFILE) is enough for about 9 "
          "peers, all 10 need 89*" },
        { "/ivshmem2/budget/plan/subprocess/68",
          "*limit of 68 open files * 0 peers, all 10 need 89*" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_test_trap_subprocess(cases[i].path, 0, G_TEST_SUBPROCESS_DEFAULT);
        g_test_trap_assert_passed();
        if (cases[i].warning) {
            g_test_trap_assert_stderr(cases[i].warning);
        } else {
            g_test_trap_assert_stderr_unmatched("*RLIMIT_NOFILE*");
        }
    }
}

static void plan_in_child(gconstpointer opaque)
{
    /* the warning is asserted by the parent */
    g_log_set_always_fatal(G_LOG_FATAL_MASK);
    test_plan_in_child(GPOINTER_TO_UINT(opaque));
}

/* Numbers, not how many: the highest ones are for refusals. */
static void test_fds(void)
{
    const Ivshmem2BudgetConfig limits = { .fd_limit = 68 };
    Ivshmem2Budget *b = ivshmem2_budget_new(&limits);

    g_assert_true(ivshmem2_budget_allows_fd(b, 67));
    g_assert_false(ivshmem2_budget_allows_fd(b, 68));
    ivshmem2_budget_free(b);

    b = ivshmem2_budget_new(&(Ivshmem2BudgetConfig) { 0 });
    g_assert_true(ivshmem2_budget_allows_fd(b, G_MAXINT));
    ivshmem2_budget_free(b);
}

/*
 * A user's connections that have not joined are as many as the descriptors that
 * are left for others, and then so many are told why they are refused.
 */
static void test_entrants(void)
{
    const unsigned n = 41;      /* descriptors to share */
    int fd = make_eventfd();    /* all lower ones are open */
    const Ivshmem2BudgetConfig limits = { .fd_limit = fd + n };
    Ivshmem2Budget *b = ivshmem2_budget_new(&limits);
    unsigned taken = 0, told = 0;

    ivshmem2_close(&fd);
    ivshmem2_budget_count_open_fds(b, STDIN_FILENO);
    while (ivshmem2_budget_allows(b, IVSHMEM2_ENTRANT, USER)) {
        g_assert_true(ivshmem2_budget_allows_refusal(b, USER));
        ivshmem2_budget_charge(b, IVSHMEM2_ENTRANT, USER);
        ivshmem2_budget_charge_fds(b, 1);
        taken++;
    }
    /* each leaves one for others */
    g_assert_cmpuint(taken, ==, n / 2 + 1);
    g_assert_true(ivshmem2_budget_allows(b, IVSHMEM2_ENTRANT, OTHER));
    while (ivshmem2_budget_allows_refusal(b, USER)) {
        ivshmem2_budget_charge(b, IVSHMEM2_ENTRANT, USER);
        told++;
    }
    g_assert_cmpuint(told, ==, 8 - 1);
    g_assert_true(ivshmem2_budget_allows_refusal(b, OTHER));
    /* the first of another user may always try, the second only if possible */
    ivshmem2_budget_charge_fds(b, n);
    g_assert_true(ivshmem2_budget_allows(b, IVSHMEM2_ENTRANT, OTHER));
    ivshmem2_budget_charge(b, IVSHMEM2_ENTRANT, OTHER);
    g_assert_false(ivshmem2_budget_allows(b, IVSHMEM2_ENTRANT, OTHER));
    ivshmem2_budget_discharge_fds(b, n);
    g_assert_true(ivshmem2_budget_allows(b, IVSHMEM2_ENTRANT, OTHER));

    give_all(b, IVSHMEM2_ENTRANT, USER);
    give_all(b, IVSHMEM2_ENTRANT, OTHER);
    ivshmem2_budget_free(b);
}

/* No user has as many places as are left for others. */
static void test_places(void)
{
    static const struct {
        int fd_limit;
        unsigned places;
    } cases[] = {
        { 1, 4 }, { 64 * 4, 4 }, { 64 * 5, 5 }, { 64 * 100 - 1, 99 },
        { 64 * 1024, 1024 }, { G_MAXINT, 1024 }, { 0, 1024 },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        const Ivshmem2BudgetConfig limits = { .fd_limit = cases[i].fd_limit };
        Ivshmem2Budget *b = ivshmem2_budget_new(&limits);
        unsigned left = cases[i].places;

        for (uid_t uid = 0; left; uid++) {
            unsigned n = take_all(b, IVSHMEM2_PLACE, uid, 2000);

            g_assert_cmpuint(n, ==, (left + 1) / 2);
            left -= n;
        }
        g_assert_false(ivshmem2_budget_allows(b, IVSHMEM2_PLACE, 12345));
        for (uid_t uid = 0; uid < 20; uid++) {
            give_all(b, IVSHMEM2_PLACE, uid);
        }
        /* they are there again */
        g_assert_cmpuint(take_all(b, IVSHMEM2_PLACE, USER, 2000), ==,
                         (cases[i].places + 1) / 2);
        give_all(b, IVSHMEM2_PLACE, USER);
        ivshmem2_budget_free(b);
    }
}

static void test_slots(void)
{
    const Ivshmem2BudgetConfig limits = { .ids_per_user = 3 };
    Ivshmem2Budget *b = ivshmem2_budget_new(&limits);

    /* for each user, independent of its other resources */
    take_n(b, IVSHMEM2_ENTRANT, USER, 5);
    for (uid_t uid = 0; uid < 2000; uid += 500) {
        g_assert_cmpuint(take_all(b, IVSHMEM2_SLOT, uid, 10), ==, 3);
    }
    ivshmem2_budget_discharge(b, IVSHMEM2_SLOT, USER);
    g_assert_cmpuint(ivshmem2_budget_count(b, IVSHMEM2_SLOT, USER), ==, 2);
    g_assert_cmpuint(take_all(b, IVSHMEM2_SLOT, USER, 10), ==, 1);
    g_assert_cmpuint(ivshmem2_budget_count(b, IVSHMEM2_ENTRANT, USER), ==, 5);
    give_all(b, IVSHMEM2_ENTRANT, USER);
    for (uid_t uid = 0; uid < 2000; uid += 500) {
        give_all(b, IVSHMEM2_SLOT, uid);
    }
    ivshmem2_budget_free(b);

    b = ivshmem2_budget_new(&(Ivshmem2BudgetConfig) { 0 });
    g_assert_cmpuint(take_all(b, IVSHMEM2_SLOT, USER, 70000), ==, 70000);
    give_all(b, IVSHMEM2_SLOT, USER);
    ivshmem2_budget_free(b);
}

/* Two messages full of descriptors while it joins, one message later */
static void test_in_flight(void)
{
    g_assert_true(ivshmem2_budget_allows_in_flight(true, IVSHMEM2_MAX_FDS));
    g_assert_false(ivshmem2_budget_allows_in_flight(true,
                                                    IVSHMEM2_MAX_FDS + 1));
    g_assert_true(ivshmem2_budget_allows_in_flight(false, 0));
    g_assert_false(ivshmem2_budget_allows_in_flight(false, 1));
}

int main(int argc, char **argv)
{
    static const unsigned files[] = { 89, 88, 68 };

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/budget/needs", test_needs);
    g_test_add_func("/ivshmem2/budget/pushes", test_pushes);
    g_test_add_func("/ivshmem2/budget/plan", test_plan);
    for (size_t i = 0; i < G_N_ELEMENTS(files); i++) {
        g_autofree char *path = g_strdup_printf(
            "/ivshmem2/budget/plan/subprocess/%u", files[i]);

        g_test_add_data_func(path, GUINT_TO_POINTER(files[i]), plan_in_child);
    }
    g_test_add_func("/ivshmem2/budget/fds", test_fds);
    g_test_add_func("/ivshmem2/budget/entrants", test_entrants);
    g_test_add_func("/ivshmem2/budget/places", test_places);
    g_test_add_func("/ivshmem2/budget/slots", test_slots);
    g_test_add_func("/ivshmem2/budget/in-flight", test_in_flight);
    return g_test_run();
}
