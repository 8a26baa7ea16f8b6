/*
 * ivshmem2 tests: a server of another session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/resource.h>
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qjson.h"
#include "ivshmem2-link.h"

#define SHAPE   "--max-peers 4 --vectors 3 --rw-size 8K --output-size 4K"
#define LARGE   "--max-peers 2 --vectors 3 --rw-size 256M"
#define SLOT    5               /* of a; b, c are in the next ones */

/* Two devices of one machine on one link, until the server is another one */
typedef struct Pair {
    TestLink *link;
    QPCIBus *bus;
    QIvshmem2 a;
    QIvshmem2 b;
} Pair;

static void plug(QIvshmem2 *d, QPCIBus *bus, QGuestAllocator *alloc,
                 const char *id, int slot, const char *socket,
                 const char *new_session)
{
    g_autofree char *addr = g_strdup_printf("%02x.0", slot);
    QDict *props = qdict_from_jsonf_nofail(
        "{ 'addr': %s, 'peer-id': %d, 'new-session': %s,"
        "  'handshake-timeout-ms': 60000, 'x-slowest-reconnect-ms': 50 }",
        addr, slot - SLOT, new_session);

    g_assert_null(test_link_plug(bus->qts, id, socket, 10, props));
    memset(d, 0, sizeof(*d));
    qivshmem2_init(d, bus, QPCI_DEVFN(slot, 0), alloc);
    qivshmem2_start(d);
    qivshmem2_enable(d);
}

static void forget_interrupts(QIvshmem2 *d)
{
    for (unsigned i = 0; i < d->vectors; i++) {
        qivshmem2_arrived(d, i);
    }
}

/* Changes of states, doorbells and memory reach the other one. */
static void check_linked(QIvshmem2 *a, QIvshmem2 *b)
{
    static uint32_t number = 1000;
    uint32_t last = a->vectors - 1;

    for (int i = 0; i < 10; i++) {
        QIvshmem2 *other = a;

        number++;
        qivshmem2_set_state(a, number);
        qivshmem2_wait(b, 0);
        g_assert_cmphex(qivshmem2_entry(b, qivshmem2_id(a)), ==, number);
        qtest_writel(a->qts, qivshmem2_rw(a) + 4, number);
        g_assert_cmphex(qtest_readl(b->qts, qivshmem2_rw(b) + 4), ==, number);
        if (a->output_size) {
            uint32_t id = qivshmem2_id(a);

            qtest_writel(a->qts, qivshmem2_output(a, id), number);
            g_assert_cmphex(qtest_readl(b->qts, qivshmem2_output(b, id)), ==,
                            number);
        }
        qivshmem2_expect_ring(a, b, last);
        qivshmem2_expect_ring(a, a, last);
        a = b;
        b = other;
    }
}

static void start(Pair *p, QPCIBus *bus, TestLink *link,
                  QGuestAllocator *alloc, const char *options,
                  const char *new_session)
{
    p->bus = bus;
    p->link = link;
    test_link_start_server(link, options);
    plug(&p->a, bus, alloc, "a", SLOT, link->socket, new_session);
    plug(&p->b, bus, alloc, "b", SLOT + 1, link->socket, new_session);
    check_linked(&p->a, &p->b);
    forget_interrupts(&p->a);
    forget_interrupts(&p->b);
}

static void end(Pair *p)
{
    test_link_unplug(p->bus->qts, "a", SLOT);
    test_link_unplug(p->bus->qts, "b", SLOT + 1);
    test_link_kill_server(p->link, SIGTERM);
}

/* How many mappings of a server's memory QEMU has */
static unsigned count_mappings(QTestState *qts)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/maps",
                                            (int)qtest_pid(qts));
    g_autofree char *text = NULL;
    g_auto(GStrv) parts = NULL;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    parts = g_strsplit(text, "memfd:ivshmem2", 0);
    return g_strv_length(parts) - 1;
}

static bool connected(QTestState *qts, const char *id)
{
    return test_link_get_bool(qts, id, "connected");
}

static void wait_connected(Pair *p)
{
    test_link_wait_until(connected(p->bus->qts, "a") &&
                         connected(p->bus->qts, "b"));
}

static bool says(Pair *p, const char *words)
{
    return test_link_says(p->bus->qts, "a", "connection-reason", words) &&
           test_link_says(p->bus->qts, "b", "connection-reason", words);
}

/*
 * The devices go over to the new link: with their states and IDs, to its
 * memory.  To the guests this is a change of states; nothing else of the
 * devices changes.
 */
static void test_rejoin(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    unsigned in_use, mappings;
    Pair p;

    start(&p, bus, link, alloc, SHAPE, "rejoin");
    in_use = test_link_count_fds(bus->qts);
    mappings = count_mappings(bus->qts);
    g_assert_cmpuint(mappings, >, 2);
    for (int i = 0; i < 3; i++) {
        test_link_kill_server(link, SIGKILL);
        test_link_wait_until(!connected(bus->qts, "a") &&
                             !connected(bus->qts, "b"));
        qivshmem2_set_state(&p.a, 70 + i);
        qivshmem2_set_state(&p.b, 90 + i);
        qtest_writel(bus->qts, qivshmem2_rw(&p.a), 0x12345678);
        qivshmem2_mask(&p.a, 1, true);
        /* it has arrived, and waits */
        qivshmem2_ring(&p.b, 0, 1);
        qivshmem2_expect_ring(&p.b, &p.a, 2);
        forget_interrupts(&p.a);
        forget_interrupts(&p.b);

        test_link_start_server(link, SHAPE);
        wait_connected(&p);
        qivshmem2_wait(&p.a, 0);
        qivshmem2_wait(&p.b, 0);
        for (int id = 0; id < 4; id++) {
            uint32_t state = id == 0 ? 70 + i : id == 1 ? 90 + i : 0;

            g_assert_cmphex(qivshmem2_entry(&p.a, id), ==, state);
            g_assert_cmphex(qivshmem2_entry(&p.b, id), ==, state);
        }
        g_assert_cmphex(qtest_readl(bus->qts, qivshmem2_rw(&p.a)), ==, 0);
        g_assert_cmphex(qivshmem2_readl(&p.a, IVSHMEM2_REG_STATE), ==, 70 + i);
        g_assert_cmphex(qivshmem2_id(&p.b), ==, 1);
        g_assert_false(qivshmem2_arrived(&p.a, 1));
        qivshmem2_mask(&p.a, 1, false);
        qivshmem2_wait(&p.a, 1);
        check_linked(&p.a, &p.b);
        test_link_wait_fds(bus->qts, in_use);
        g_assert_cmpuint(count_mappings(bus->qts), ==, mappings);
        g_assert_true(says(&p, ""));
    }
    end(&p);
    test_link_wait_fds(bus->qts, fds);
}

/* What events say of it, without a word about the SESSION in between */
static void test_events(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    QIvshmem2 d;

    test_link_start_server(link, SHAPE);
    plug(&d, bus, alloc, "a", SLOT, ((TestLink *)link)->socket, "rejoin");
    test_link_kill_server(link, SIGKILL);
    test_link_expect_event(bus->qts, "a", "disconnected", "closed");
    test_link_start_server(link, SHAPE);
    test_link_expect_event(bus->qts, "a", "rejoined", NULL);
    qivshmem2_wait(&d, 0);
    test_link_expect_no_event(bus->qts);
    test_link_unplug(bus->qts, "a", SLOT);
}

/* What has arrived, but not been delivered because the machine is stopped */
static void test_stopped(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    Pair p;

    start(&p, bus, link, alloc, SHAPE, "rejoin");
    qobject_unref(qtest_qmp(bus->qts, "{ 'execute': 'stop' }"));
    qivshmem2_ring(&p.b, 0, 1);
    test_link_kill_server(link, SIGKILL);
    test_link_wait_until(!connected(bus->qts, "a") &&
                         !connected(bus->qts, "b"));
    test_link_start_server(link, SHAPE);
    wait_connected(&p);
    qivshmem2_ring(&p.b, 0, 2);
    test_link_check_quiet(&p.a);
    qobject_unref(qtest_qmp(bus->qts, "{ 'execute': 'cont' }"));
    for (unsigned i = 0; i < p.a.vectors; i++) {
        qivshmem2_wait(&p.a, i);
    }
    end(&p);
}

/* A state of 0 is no news to the others. */
static void test_unused(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    Pair p;

    start(&p, bus, link, alloc, SHAPE, "rejoin");
    qivshmem2_set_state(&p.a, 0);
    qivshmem2_set_state(&p.b, 0);
    qivshmem2_set_one_shot(&p.a, true);
    forget_interrupts(&p.a);
    forget_interrupts(&p.b);
    test_link_kill_server(link, SIGKILL);
    test_link_start_server(link, SHAPE);
    test_link_wait_until(!says(&p, "closed"));
    wait_connected(&p);
    /* one interrupt for each, and this one disables them */
    qivshmem2_wait(&p.a, 0);
    qivshmem2_wait(&p.b, 0);
    g_assert_cmphex(qivshmem2_readl(&p.a, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    qivshmem2_expect_ring(&p.a, &p.b, 1);
    test_link_check_quiet(&p.a);
    test_link_check_quiet(&p.b);
    end(&p);
}

/* Until there is a link of the same shape, the old one stays. */
static void test_shape(void *obj, void *link, QGuestAllocator *alloc)
{
    static const struct {
        const char *options;
        const char *words;
    } others[] = {
        { "--max-peers 4 --vectors 3 --rw-size 16K --output-size 4K",
          "size of the R/W section is 16384 instead of 8192" },
        { "--max-peers 4 --vectors 3 --rw-size 8K --output-size 8K",
          "size of output sections" },
        { "--max-peers 5 --vectors 3 --rw-size 8K --output-size 4K",
          "maximum of peers is 5 instead of 4" },
        { "--max-peers 4 --vectors 2 --rw-size 8K --output-size 4K",
          "number of vectors" },
        { SHAPE " --protocol 0x1234", "protocol type" },
        { "--max-peers 4 --intx --rw-size 8K --output-size 4K",
          "interrupt features" },
    };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    Pair p;

    start(&p, bus, link, alloc, SHAPE, "rejoin");
    for (int i = 0; i < ARRAY_SIZE(others); i++) {
        test_link_kill_server(link, SIGKILL);
        test_link_start_server(link, others[i].options);
        test_link_wait_until(says(&p, others[i].words));
        check_linked(&p.a, &p.b);
        g_assert_false(connected(bus->qts, "a"));
    }
    test_link_kill_server(link, SIGKILL);
    test_link_start_server(link, SHAPE);
    wait_connected(&p);
    check_linked(&p.a, &p.b);
    end(&p);
    test_link_wait_fds(bus->qts, fds);
}

/* Somebody else has the ID in the new session, for some time. */
static void test_taken(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    TestLink *other = test_link_new(SHAPE);
    QPCIBus *bus = obj;
    QIvshmem2 a, b, c;

    test_link_start_server(link, SHAPE);
    plug(&a, bus, alloc, "a", SLOT + 1, link->socket, "rejoin");
    qivshmem2_set_state(&a, 7);
    plug(&c, bus, alloc, "c", SLOT + 3, other->socket, "detach");
    /* it has the same ID on another link */
    g_assert_null(test_link_plug(bus->qts, "b", other->socket, 0,
                                 qdict_from_jsonf_nofail(
                                     "{ 'addr': '07.0', 'peer-id': 1 }")));
    test_link_kill_server(link, SIGKILL);
    test_link_expect_event(bus->qts, "a", "disconnected", "closed");
    /* which takes the place of the first one */
    g_assert_cmpint(g_rename(other->socket, link->socket), ==, 0);
    test_link_expect_event(bus->qts, "a", "refused", "ID 1 is taken");
    qivshmem2_ring(&a, 1, 1);
    qivshmem2_wait(&a, 1);
    g_assert_cmphex(qivshmem2_entry(&a, 1), ==, 7);
    test_link_expect_no_event(bus->qts);
    g_assert_false(qivshmem2_arrived(&c, 0));
    test_link_unplug(bus->qts, "b", 7);
    test_link_wait_until(connected(bus->qts, "a"));
    g_assert_cmphex(qivshmem2_entry(&a, 1), ==, 7);
    /* the others are told */
    qivshmem2_wait(&c, 0);
    g_assert_cmphex(qivshmem2_entry(&c, 1), ==, 7);

    plug(&b, bus, alloc, "b", SLOT, link->socket, "detach");
    qivshmem2_wait(&a, 0);
    check_linked(&a, &b);
    test_link_unplug(bus->qts, "a", SLOT + 1);
    test_link_unplug(bus->qts, "b", SLOT);
    test_link_unplug(bus->qts, "c", SLOT + 3);
    test_link_free(other);
}

/* By default, the devices go on alone, and join when they are plugged anew. */
static void test_detach(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    Pair p;

    start(&p, bus, link, alloc, SHAPE, "detach");
    test_link_kill_server(link, SIGKILL);
    test_link_start_server(link, SHAPE);
    test_link_wait_until(says(&p, "not of this server"));
    check_linked(&p.a, &p.b);
    g_assert_false(connected(bus->qts, "a"));
    test_link_unplug(bus->qts, "a", SLOT);
    test_link_unplug(bus->qts, "b", SLOT + 1);
    plug(&p.a, bus, alloc, "a", SLOT, p.link->socket, "detach");
    plug(&p.b, bus, alloc, "b", SLOT + 1, p.link->socket, "detach");
    check_linked(&p.a, &p.b);
    end(&p);
}

static rlim_t set_limit(QTestState *qts, int resource, rlim_t value)
{
    struct rlimit old, limit;

    g_assert_cmpint(prlimit(qtest_pid(qts), resource, NULL, &old), ==, 0);
    limit = old;
    limit.rlim_cur = value;
    g_assert_cmpint(prlimit(qtest_pid(qts), resource, &limit, NULL), ==, 0);
    return old.rlim_cur;
}

static rlim_t address_space(QTestState *qts)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm",
                                            (int)qtest_pid(qts));
    g_autofree char *text = NULL;
    unsigned long pages;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%lu", &pages), ==, 1);
    return pages * qemu_real_host_page_size();
}

/* The limit of open files that lets it open @n more */
static rlim_t limit_for(QTestState *qts, int n)
{
    rlim_t fd;

    for (fd = 0; n; fd++) {
        g_autofree char *path = g_strdup_printf("/proc/%d/fd/%d",
                                                (int)qtest_pid(qts), (int)fd);
        GStatBuf st;

        n -= g_lstat(path, &st) < 0;
    }
    return fd;
}

/* The new memory cannot be mapped, or its descriptors not be received. */
static void test_limits(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    unsigned in_use;
    rlim_t before;
    Pair p;

    start(&p, bus, link, alloc, LARGE, "rejoin");
    in_use = test_link_count_fds(bus->qts);
    test_link_kill_server(link, SIGKILL);
    test_link_wait_until(says(&p, "closed"));
    before = set_limit(bus->qts, RLIMIT_AS,
                       address_space(bus->qts) + 200 * MiB);
    test_link_start_server(link, LARGE);
    test_link_wait_until(says(&p, "cannot reserve"));
    check_linked(&p.a, &p.b);
    set_limit(bus->qts, RLIMIT_AS, before);
    wait_connected(&p);
    check_linked(&p.a, &p.b);
    test_link_wait_fds(bus->qts, in_use);

    test_link_unplug(bus->qts, "b", SLOT + 1);
    test_link_kill_server(link, SIGKILL);
    test_link_wait_until(!connected(bus->qts, "a"));
    /* enough for a socket, but not for a session */
    before = set_limit(bus->qts, RLIMIT_NOFILE,
                       limit_for(bus->qts, 5));
    test_link_start_server(link, LARGE);
    test_link_wait_until(test_link_says(bus->qts, "a", "connection-reason",
                                        "limit of open files"));
    qivshmem2_expect_ring(&p.a, &p.a, 1);
    set_limit(bus->qts, RLIMIT_NOFILE, before);
    test_link_wait_until(connected(bus->qts, "a"));
    qivshmem2_expect_ring(&p.a, &p.a, 1);
    test_link_unplug(bus->qts, "a", SLOT);
    test_link_wait_fds(bus->qts, fds);
}

/* What cannot work is an error. */
static void test_no_reconnect(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;

    test_link_start_server(link, SHAPE);
    test_link_plug_fails(bus->qts, "a", link->socket, 0,
                         qdict_from_jsonf_nofail("{ 'addr': '05.0',"
                                                 "'new-session': 'rejoin' }"),
                         "does not connect again");
    test_link_plug_fails(bus->qts, "a", link->socket, 10,
                         qdict_from_jsonf_nofail("{ 'addr': '05.0',"
                                                 "'new-session': 'again' }"),
                         "new-session");
}

static void register_ivshmem2_rejoin_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/rejoin/rejoin", test_rejoin },
        { "ivshmem2/rejoin/events", test_events },
        { "ivshmem2/rejoin/stopped", test_stopped },
        { "ivshmem2/rejoin/unused", test_unused },
        { "ivshmem2/rejoin/shape", test_shape },
        { "ivshmem2/rejoin/taken", test_taken },
        { "ivshmem2/rejoin/detach", test_detach },
        { "ivshmem2/rejoin/limits", test_limits },
        { "ivshmem2/rejoin/no-reconnect", test_no_reconnect },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_rejoin_test);
