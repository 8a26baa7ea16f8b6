/*
 * ivshmem2 tests: several VMs on one link, with the real server
 *
 * The letters and numbers in comments are those of the conformance table,
 * docs/specs/ivshmem2-conformance.csv.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci_regs.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qjson.h"
#include "ivshmem2-link.h"

static const TestLinkSetup setup_small = {
    .server = "--max-peers 4 --vectors 3 --rw-size 8K --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=0",
};

/* So large that the handshake does not bring all eventfds */
static const TestLinkSetup setup_large = {
    .server = "--max-peers 65536 --vectors 3 --rw-size 8K",
    .qemu = "-global ivshmem2.peer-id=65535",
};

static const TestLinkSetup setup_many_vectors = {
    .server = "--max-peers 2 --vectors 1000 --push-limit 2000",
    .qemu = "-global ivshmem2.peer-id=0",
};

static const TestLinkSetup setup_intx = {
    .server = "--max-peers 3 --intx --rw-size 8K",
    .qemu = "-global ivshmem2.peer-id=0",
};

static const TestLinkSetup setup_64k_pages = {
    .server = "--max-peers 3 --vectors 3 --page-size 64K --rw-size 64K "
              "--output-size 64K",
    .qemu = "-global ivshmem2.peer-id=0",
};

static const TestLinkSetup setup_no_rw = {
    .server = "--max-peers 3 --vectors 3 --output-size 8K",
    .qemu = "-global ivshmem2.peer-id=0",
};

/*
 * IDs and the link as a whole
 */

/* R3, R4, M2 - M4, M7, X2, G8: the IDs differ, all else is the same. */
static void test_ids(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d[4] = { obj };
    uint32_t seen = 0;

    for (int i = 1; i < 4; i++) {
        d[i] = test_link_peer(link, NULL);
    }
    for (int i = 0; i < 4; i++) {
        g_assert_cmpuint(qivshmem2_id(d[i]), <, 4);
        seen |= 1 << qivshmem2_id(d[i]);
        g_assert_cmpuint(qivshmem2_readl(d[i], IVSHMEM2_REG_MAX_PEERS), ==,
                         4);
        g_assert_cmpuint(d[i]->vectors, ==, 3);
        g_assert_cmpuint(d[i]->state_table_size, ==, 4 * KiB);
        g_assert_cmpuint(d[i]->rw_size, ==, 8 * KiB);
        g_assert_cmpuint(d[i]->output_size, ==, 4 * KiB);
    }
    g_assert_cmphex(seen, ==, 0xf);
}

/* peer-id as a number in JSON */
static void test_json(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    g_autofree char *options =
        g_strdup_printf("-global ivshmem2.peer-id=2 "
                        "-chardev socket,id=json,path=%s "
                        "-device '{ \"driver\": \"ivshmem2\", "
                        "\"id\": \"json\", \"chardev\": \"json\", "
                        "\"peer-id\": 3 }'", link->socket);
    QIvshmem2 *d = test_link_peer(link, options);

    g_assert_cmpuint(qivshmem2_id(d), ==, 2);
    g_assert_cmpuint(test_link_get(d->qts, "json", "peer-id"), ==, 3);
    qivshmem2_expect_ring(obj, d, 1);
}

static void check_refused(QIvshmem2 *d, TestLink *link, const char *msix,
                          const char *word)
{
    g_autofree char *error =
        test_link_plug(d->qts, "refused", link->socket, 0,
                       qdict_from_jsonf_nofail("{ 'msix': %s }", msix));

    g_test_message("%s", error ?: "plugged");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, "the server says: "));
    g_assert_nonnull(strstr(error, word));
}

static void check_accepted(QIvshmem2 *d, TestLink *link)
{
    test_link_plug_device(d, "more", link->socket, 5);
    test_link_unplug(d->qts, "more", 5);
}

/* M7: a device without the interrupt feature that the link uses */
static void test_refused_msix(void *obj, void *link, QGuestAllocator *alloc)
{
    check_refused(obj, link, "off", "MSI-X");
    check_accepted(obj, link);
}

static void test_refused_intx(void *obj, void *link, QGuestAllocator *alloc)
{
    check_refused(obj, link, "on", "INTx");
    check_accepted(obj, link);
}

/*
 * Shared memory
 */

static void check_memory(QIvshmem2 **d, int n)
{
    bool has_rw = d[0]->rw_size;
    bool has_output = d[0]->output_size;

    for (int i = 0; has_rw && i < n; i++) {
        uint64_t end = d[0]->rw_size - 4;

        qtest_writel(d[i]->qts, qivshmem2_rw(d[i]), 0x1000 + i);
        qtest_writel(d[i]->qts, qivshmem2_rw(d[i]) + end, 0x2000 + i);
        for (int j = 0; j < n; j++) {
            g_assert_cmphex(qtest_readl(d[j]->qts, qivshmem2_rw(d[j])), ==,
                            0x1000 + i);
            g_assert_cmphex(qtest_readl(d[j]->qts, qivshmem2_rw(d[j]) + end),
                            ==, 0x2000 + i);
        }
    }
    for (int i = 0; has_output && i < n; i++) {
        uint64_t end = d[i]->output_size - 4;
        uint32_t id = qivshmem2_id(d[i]);

        qtest_writel(d[i]->qts, qivshmem2_output(d[i], id), 0x3000 + i);
        qtest_writel(d[i]->qts, qivshmem2_output(d[i], id) + end, 0x4000 + i);
        for (int j = 0; j < n; j++) {
            uint64_t output = qivshmem2_output(d[j], id);

            if (j != i) {
                qtest_writel(d[j]->qts, output, 0xdead);
                qtest_memset(d[j]->qts, output, 0xee, d[j]->output_size);
            }
            g_assert_cmphex(qtest_readl(d[j]->qts, output), ==, 0x3000 + i);
            g_assert_cmphex(qtest_readl(d[j]->qts, output + end), ==,
                            0x4000 + i);
            g_assert_cmphex(qtest_readl(d[j]->qts, output + end - 4), ==, 0);
        }
        g_assert_cmphex(qtest_readl(d[i]->qts, qivshmem2_output(d[i], id)),
                        ==, 0x3000 + i);
    }
    for (int i = 0; i < n; i++) {
        qivshmem2_set_state(d[i], 0x5000 + i);
        qtest_memset(d[i]->qts, d[i]->memory, 0xee, d[i]->state_table_size);
    }
    for (int i = 0; i < n; i++) {
        for (int j = 0; j < n; j++) {
            g_assert_cmphex(qivshmem2_entry(d[j], qivshmem2_id(d[i])), ==,
                            0x5000 + i);
        }
    }
}

/* M2 - M4, L1, L4, G12 */
static void test_memory(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d[3] = {
        obj, test_link_peer_with_id(link, 3), test_link_peer_with_id(link, 1),
    };

    check_memory(d, 3);
}

/* L5 */
static void test_64k_pages(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d[2] = { obj, test_link_peer_with_id(link, 2) };

    g_assert_cmpuint(d[1]->state_table_size, ==, 64 * KiB);
    check_memory(d, 2);
    qivshmem2_expect_ring(d[1], d[1], 1);
}

/* L3, G14 */
static void test_no_rw(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d[2] = { obj, test_link_peer_with_id(link, 2) };

    g_assert_cmpuint(d[1]->rw_size, ==, 0);
    check_memory(d, 2);
}

/* R7, G4: the target of a doorbell sees what was written before it. */
static void test_before_doorbell(void *obj, void *link,
                                 QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    for (uint32_t i = 1; i <= 300; i++) {
        uint64_t offset = i * 4 % a->rw_size;

        qtest_writel(a->qts, qivshmem2_rw(a) + offset, i);
        qtest_writel(a->qts, qivshmem2_output(a, 0), i);
        qivshmem2_expect_ring(a, b, 1);
        g_assert_cmphex(qtest_readl(b->qts, qivshmem2_rw(b) + offset), ==, i);
        g_assert_cmphex(qtest_readl(b->qts, qivshmem2_output(b, 0)), ==, i);
    }
}

/*
 * Doorbells
 */

/* M6, R6: from every peer to every peer, and only the target gets it */
static void test_doorbells(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d[3] = {
        obj, test_link_peer_with_id(link, 3), test_link_peer_with_id(link, 2),
    };

    qivshmem2_enable(d[0]);
    for (int round = 0; round < 2; round++) {
        for (int from = 0; from < 3; from++) {
            for (int to = 0; to < 3; to++) {
                for (unsigned v = 0; v < 3; v++) {
                    qivshmem2_expect_ring(d[from], d[to], v);
                }
            }
        }
        for (int i = 0; i < 3; i++) {
            qivshmem2_expect_ring(d[i], d[(i + 1) % 3], 1);
        }
        for (int i = 0; i < 3; i++) {
            test_link_check_quiet(d[i]);
        }
    }
}

/* M6, R6: no peer with the ID, no such ID, no such vector, not enabled */
static void test_nobody(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qivshmem2_ring(a, 2, 0);
    qivshmem2_ring(a, 4, 0);
    qivshmem2_ring(a, 0xffff, 0xffff);
    qivshmem2_ring(a, 1, 3);
    qivshmem2_ring(a, 1, 0x100);
    qivshmem2_disable(b);
    qivshmem2_ring(a, 1, 1);
    qivshmem2_enable(b);
    qivshmem2_expect_ring(a, b, 2);
    test_link_check_quiet(b);

    /* A peer that comes later does not get earlier doorbells. */
    for (uint32_t id = 2; id < 4; id++) {
        QIvshmem2 *c;

        qivshmem2_ring(a, id, 0);
        c = test_link_peer_with_id(link, id);
        qivshmem2_expect_ring(a, c, 2);
        test_link_check_quiet(c);
    }
}

/* G3: no doorbell is lost, in whatever order the two sides act. */
static void test_ping_pong(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qivshmem2_enable(a);
    for (int i = 0; i < 200; i++) {
        unsigned v = g_test_rand_int_range(0, 3);

        qivshmem2_expect_ring(a, b, v);
        qivshmem2_expect_ring(b, a, v);
        /* nor by masks that are set and cleared meanwhile */
        qivshmem2_ring(a, 1, v);
        qivshmem2_mask(b, v, true);
        qivshmem2_set_msix_flag(b, PCI_MSIX_FLAGS_MASKALL, true);
        qivshmem2_ring(a, 1, (v + 1) % 3);
        qivshmem2_set_msix_flag(b, PCI_MSIX_FLAGS_MASKALL, false);
        qivshmem2_mask(b, v, false);
        qivshmem2_wait(b, v);
        qivshmem2_wait(b, (v + 1) % 3);
        /* nor by turning reception off after the doorbell */
        qivshmem2_ring(a, 1, v);
        qivshmem2_disable(b);
        qivshmem2_wait(b, v);
        qivshmem2_enable(b);
    }
}

/* G2, V5: re-enable, then look at the memory once more */
static void test_reenable(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);
    uint32_t seen = 0;

    qivshmem2_set_one_shot(b, true);
    for (uint32_t i = 1; i <= 600; i++) {
        qtest_writel(a->qts, qivshmem2_output(a, 0), i);
        qivshmem2_ring(a, 1, 1);
        if (g_test_rand_bit()) {
            continue;
        }
        /* Until everything has been seen, there is another interrupt. */
        while (seen < i) {
            qivshmem2_wait(b, 1);
            qivshmem2_enable(b);
            seen = qtest_readl(b->qts, qivshmem2_output(b, 0));
        }
    }
}

static void *disable_thread(void *d)
{
    qivshmem2_disable(d);
    return NULL;
}

/*
 * G3: while QEMU is stopped, many vectors are rung, and then the guest turns
 * reception off.  When QEMU continues, it finds all of that at once.
 */
static void test_many_vectors(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    for (int round = 0; round < 5; round++) {
        GThread *thread;

        qivshmem2_enable(b);
        kill(qtest_pid(b->qts), SIGSTOP);
        for (unsigned i = 0; i < b->vectors; i++) {
            qivshmem2_ring(a, 1, i);
        }
        thread = g_thread_new("disable", disable_thread, b);
        /* most of the time, this is enough for the write to be sent */
        g_usleep(20000);
        kill(qtest_pid(b->qts), SIGCONT);
        g_thread_join(thread);
        for (unsigned i = 0; i < b->vectors; i++) {
            qivshmem2_wait(b, i);
        }
    }
    g_assert_cmpuint(test_link_get(b->qts, QIVSHMEM2_ID,
                                   "interrupts-dropped"), ==, 0);
}

/* X3, M6: a storm of doorbells does not reach a peer with reception off. */
static void test_storm(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qivshmem2_disable(b);
    for (int i = 0; i < 3000; i++) {
        qivshmem2_ring(a, 1, i % 2);
    }
    qivshmem2_enable(b);
    qivshmem2_expect_ring(a, b, 2);
    test_link_check_quiet(b);
    g_assert_cmpuint(test_link_get(b->qts, QIVSHMEM2_ID,
                                   "interrupts-received"), ==, 1);
    g_assert_cmpuint(test_link_get(b->qts, QIVSHMEM2_ID,
                                   "interrupts-dropped"), ==, 3000);
    g_assert_cmpuint(test_link_get(a->qts, QIVSHMEM2_ID, "interrupts-sent"),
                     ==, 3001);
}

/* V5, G7: one interrupt of any kind turns reception off. */
static void test_one_shot(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qivshmem2_set_one_shot(b, true);
    qivshmem2_set_state(a, 1);
    qivshmem2_wait(b, 0);
    g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    qivshmem2_ring(a, 1, 1);
    qivshmem2_set_state(a, 2);
    /* once a is interrupted, the server has handled its state as well */
    qivshmem2_enable(a);
    qivshmem2_set_state(b, 1);
    qivshmem2_wait(a, 0);
    qivshmem2_enable(b);
    qivshmem2_expect_ring(a, b, 2);
    g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    g_assert_false(qivshmem2_arrived(b, 1));
    qivshmem2_set_one_shot(b, false);
    qivshmem2_enable(b);
    qivshmem2_set_state(a, 3);
    qivshmem2_wait(b, 0);
    g_assert_cmphex(qivshmem2_entry(b, 0), ==, 3);
    g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_INT_CONTROL), ==, 1);
}

/* A paused VM loses no interrupt, and no peer waits for it. */
static void test_paused_vm(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qtest_qmp_assert_success(b->qts, "{ 'execute': 'stop' }");
    qivshmem2_ring(a, 1, 1);
    qivshmem2_set_state(a, 7);
    qtest_qmp_assert_success(b->qts, "{ 'execute': 'cont' }");
    qivshmem2_wait(b, 1);
    qivshmem2_wait(b, 0);

    kill(qtest_pid(b->qts), SIGSTOP);
    for (int i = 0; i < 3000; i++) {
        qivshmem2_ring(a, 1, 1);
        qivshmem2_set_state(a, i);
    }
    kill(qtest_pid(b->qts), SIGCONT);
    qivshmem2_wait(b, 1);
    qivshmem2_wait(b, 0);
    g_assert_cmphex(qivshmem2_entry(b, 0), ==, 2999);
}

/*
 * States
 */

/* M5, R8, T1, G4: entry first, then vector 0 for all others */
static void test_state(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d[3] = {
        obj, test_link_peer_with_id(link, 3), test_link_peer_with_id(link, 2),
    };

    qivshmem2_enable(d[0]);
    for (uint32_t i = 1; i <= 60; i++) {
        QIvshmem2 *from = d[i % 3];
        QIvshmem2 *b = d[(i + 1) % 3];
        QIvshmem2 *c = d[(i + 2) % 3];

        qivshmem2_set_state(from, i << 24 | i);
        g_assert_cmphex(qivshmem2_readl(from, IVSHMEM2_REG_STATE), ==,
                        i << 24 | i);
        qivshmem2_wait(b, 0);
        g_assert_cmphex(qivshmem2_entry(b, qivshmem2_id(from)), ==,
                        i << 24 | i);
        qivshmem2_wait(c, 0);
        g_assert_cmphex(qivshmem2_entry(c, qivshmem2_id(from)), ==,
                        i << 24 | i);
        /* an interrupt of its own would show here or in the next round */
        g_assert_false(qivshmem2_arrived(from, 0));
    }

    /* a peer with reception off is not interrupted, but sees the entry */
    qivshmem2_disable(d[1]);
    qivshmem2_set_state(d[0], 5);
    qivshmem2_wait(d[2], 0);
    g_assert_cmphex(qivshmem2_entry(d[1], 0), ==, 5);
    qivshmem2_enable(d[1]);
    qivshmem2_expect_ring(d[0], d[1], 1);
    test_link_check_quiet(d[1]);
}

/* R8: a doorbell after a state write is never seen before the new state */
static void test_state_before_doorbell(void *obj, void *link,
                                       QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    for (uint32_t i = 1; i <= 300; i++) {
        qivshmem2_set_state(a, i);
        qivshmem2_expect_ring(a, b, 1);
        g_assert_cmphex(qivshmem2_entry(b, qivshmem2_id(a)), ==, i);
    }
}

/*
 * R8: writing the same value interrupts no peer.  On a large link, the first
 * ring of a vector takes the same way through the server as a state does, so
 * it would arrive after a wrong interrupt.
 */
static void test_same_state(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qivshmem2_set_state(a, 5);
    qivshmem2_wait(b, 0);
    qivshmem2_set_state(a, 5);
    qivshmem2_expect_ring(a, b, 1);
    g_assert_false(qivshmem2_arrived(b, 0));
    qivshmem2_set_state(a, 0);
    qivshmem2_wait(b, 0);
    qivshmem2_set_state(a, 0);
    qivshmem2_expect_ring(a, b, 2);
    g_assert_false(qivshmem2_arrived(b, 0));
}

/*
 * Several devices in one VM
 */

static void test_two_links(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *other = test_link_new("--max-peers 2 --vectors 2 "
                                    "--output-size 64K --protocol 0x4001");
    QIvshmem2 *a = obj;
    QIvshmem2 *a2, *b, *b2;

    g_test_queue_destroy(test_link_free, other);
    qivshmem2_enable(a);
    a2 = test_link_plug_device(a, "other", other->socket, 5);
    b = test_link_peer_with_id(opaque, 1);
    b2 = test_link_peer(other, NULL);

    g_assert_cmpuint(a2->vectors, ==, 2);
    g_assert_cmpuint(a->vectors, ==, 3);
    g_assert_cmphex(qpci_config_readl(&a->dev, PCI_REVISION_ID), ==,
                    0xff000000);
    g_assert_cmphex(qpci_config_readl(&a2->dev, PCI_REVISION_ID), ==,
                    0xff400100);
    g_assert_cmphex(qpci_config_readl(&b2->dev, PCI_REVISION_ID), ==,
                    0xff400100);
    qivshmem2_expect_ring(a, b, 1);
    qivshmem2_expect_ring(a2, b2, 1);
    qivshmem2_expect_ring(b, a, 0);
    qivshmem2_expect_ring(b2, a2, 0);
    qivshmem2_set_state(a2, 6);
    qivshmem2_wait(b2, 0);
    qivshmem2_set_state(b, 7);
    qivshmem2_wait(a, 0);
    qivshmem2_expect_ring(a, b, 2);
    qivshmem2_expect_ring(a2, b2, 1);
    test_link_check_quiet(a);
    test_link_check_quiet(b);
    test_link_check_quiet(a2);
    test_link_check_quiet(b2);
    g_assert_cmphex(qivshmem2_entry(a, 0), ==, 0);
    g_assert_cmphex(qivshmem2_entry(a, 1), ==, 7);
    g_assert_cmphex(qivshmem2_entry(a2, qivshmem2_id(a2)), ==, 6);
}

/*
 * Large links
 */

/* M4, M6, R3, R6, G8: the highest ID of the largest link */
static void test_large(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 0);
    QIvshmem2 *c = test_link_peer_with_id(link, 32768);

    qivshmem2_enable(a);
    g_assert_cmpuint(qivshmem2_id(a), ==, 65535);
    g_assert_cmpuint(qivshmem2_readl(a, IVSHMEM2_REG_MAX_PEERS), ==, 65536);
    g_assert_cmpuint(a->state_table_size, ==, 256 * KiB);
    g_assert_cmpuint(a->memory_size, ==, 512 * KiB);
    for (int i = 0; i < 3; i++) {
        qivshmem2_expect_ring(a, b, i);
        qivshmem2_expect_ring(b, a, i);
        qivshmem2_expect_ring(c, a, i);
        qivshmem2_expect_ring(a, c, i);
        qivshmem2_expect_ring(b, c, i);
        /* no such peer, as the server answers */
        qivshmem2_ring(a, 1000 + i, 0);
        qivshmem2_ring(c, 65534, i);
        qivshmem2_ring(a, 65535, 3);
        qivshmem2_expect_ring(a, a, i);
        qivshmem2_set_state(a, 0x10 + i);
        qivshmem2_wait(b, 0);
        g_assert_cmphex(qivshmem2_entry(b, 65535), ==, 0x10 + i);
        qivshmem2_wait(c, 0);
        qivshmem2_set_state(c, 0x20 + i);
        qivshmem2_wait(a, 0);
        g_assert_cmphex(qivshmem2_entry(a, 32768), ==, 0x20 + i);
        qivshmem2_wait(b, 0);
    }
    g_assert_cmphex(qtest_readl(b->qts, b->memory + 256 * KiB - 4), ==, 0x12);
    /* A peer that was absent the first time can be rung later. */
    qivshmem2_expect_ring(a, test_link_peer_with_id(link, 1000), 0);
    test_link_kill_peer(b);
    qivshmem2_expect_ring(a, c, 1);
    qivshmem2_expect_ring(a, test_link_peer_with_id(link, 0), 2);
}

static void register_ivshmem2_peers_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
        const TestLinkSetup *setup;
    } tests[] = {
        { "link/ids", test_ids },
        { "link/json", test_json },
        { "link/refused-msix", test_refused_msix },
        { "link/refused-intx", test_refused_intx, &setup_intx },
        { "link/memory", test_memory },
        { "link/64k-pages", test_64k_pages, &setup_64k_pages },
        { "link/no-rw", test_no_rw, &setup_no_rw },
        { "link/two-links", test_two_links },
        { "link/large", test_large, &setup_large },
        { "doorbell/all", test_doorbells },
        { "doorbell/nobody", test_nobody },
        { "doorbell/memory-before", test_before_doorbell },
        { "doorbell/ping-pong", test_ping_pong },
        { "doorbell/reenable", test_reenable },
        { "doorbell/many-vectors", test_many_vectors, &setup_many_vectors },
        { "doorbell/storm", test_storm },
        { "doorbell/one-shot", test_one_shot },
        { "doorbell/paused-vm", test_paused_vm },
        { "state/change", test_state },
        { "state/before-doorbell", test_state_before_doorbell },
        { "state/same", test_same_state, &setup_large },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "ivshmem2", tests[i].function,
                      tests[i].setup ?: &setup_small);
    }
}

libqos_init(register_ivshmem2_peers_test);
