/*
 * ivshmem2 tests: peers and the real server come and go
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
#include "ivshmem2-link.h"

static const TestLinkSetup setup_small = {
    .server = "--max-peers 4 --vectors 3 --rw-size 8K --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=0",
};

/*
 * Peers that come and go
 */

/* Peer @id is gone: @d is interrupted, and then sees 0 in its entry. */
static void check_gone(QIvshmem2 *d, uint32_t id)
{
    qivshmem2_wait(d, 0);
    g_assert_cmphex(qivshmem2_entry(d, id), ==, 0);
}

static void prepare_to_go(QIvshmem2 *a, QIvshmem2 *b, QIvshmem2 *c)
{
    qivshmem2_enable(a);
    qivshmem2_set_state(b, 0x77777777);
    qivshmem2_wait(a, 0);
    qivshmem2_wait(c, 0);
    g_assert_cmphex(qivshmem2_entry(a, qivshmem2_id(b)), ==, 0x77777777);
}

/* T2, M5, G5, G6 */
static void test_gone_reset(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);
    QIvshmem2 *c = test_link_peer_with_id(link, 2);

    for (int i = 0; i < 3; i++) {
        prepare_to_go(a, b, c);
        qtest_system_reset(b->qts);
        check_gone(a, 1);
        check_gone(c, 1);
        /* it is still a peer, with reception off */
        qivshmem2_ring(a, 1, 1);
        qivshmem2_start(b);
        g_assert_cmphex(qivshmem2_id(b), ==, 1);
        g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_STATE), ==, 0);
        g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_INT_CONTROL), ==, 0);
        qivshmem2_enable(b);
        qivshmem2_expect_ring(a, b, 2);
        test_link_check_quiet(b);
    }
}

static void test_gone_unplug(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);
    QIvshmem2 *c = test_link_peer_with_id(link, 2);
    QIvshmem2 *again;

    prepare_to_go(a, b, c);
    qtest_writel(b->qts, qivshmem2_output(b, 1), 0x12345678);
    test_link_unplug(b->qts, QIVSHMEM2_ID, QIVSHMEM2_SLOT);
    check_gone(a, 1);
    check_gone(c, 1);
    qivshmem2_ring(a, 1, 1);

    /* After a goodbye, the ID is free at once. */
    again = test_link_peer_with_id(link, 1);
    g_assert_cmphex(qivshmem2_entry(again, 1), ==, 0);
    g_assert_cmphex(qtest_readl(again->qts, qivshmem2_output(again, 1)), ==,
                    0x12345678);
    qivshmem2_expect_ring(a, again, 2);
    test_link_check_quiet(again);
}

static void test_gone_quit(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);
    QIvshmem2 *c = test_link_peer_with_id(link, 2);

    prepare_to_go(a, b, c);
    test_link_quit_peer(b);
    check_gone(a, 1);
    check_gone(c, 1);
    qivshmem2_expect_ring(a, test_link_peer_with_id(link, 1), 0);
}

static void test_gone_killed(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);
    QIvshmem2 *c = test_link_peer_with_id(link, 2);

    prepare_to_go(a, b, c);
    qtest_writel(b->qts, qivshmem2_output(b, 1), 0x12345678);
    test_link_kill_peer(b);
    check_gone(a, 1);
    check_gone(c, 1);

    /* A VM that restarts finds its output section as it was. */
    b = test_link_peer_with_id(link, 1);
    g_assert_cmphex(qtest_readl(b->qts, qivshmem2_output(b, 1)), ==,
                    0x12345678);
    qivshmem2_expect_ring(a, b, 0);
    qivshmem2_expect_ring(b, c, 0);
}

/* T2: no peer is interrupted if the entry was 0. */
static void test_gone_unnoticed(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qivshmem2_enable(a);
    qtest_system_reset(b->qts);
    test_link_quit_peer(b);
    b = test_link_peer_with_id(link, 1);
    /* The server has handled the end of the last peer before this one. */
    qivshmem2_expect_ring(b, a, 1);
    test_link_check_quiet(a);
    test_link_kill_peer(b);
    qivshmem2_expect_ring(test_link_peer_with_id(link, 1), a, 2);
    test_link_check_quiet(a);
}

/* The bus behind a bridge is reset by a bit in the bridge. */
static void test_gone_bus_reset(void *obj, void *opaque,
                                QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    g_autofree char *options =
        g_strdup_printf("-global ivshmem2.peer-id=2 "
                        "-device pci-bridge,id=bridge,chassis_nr=1,addr=05.0 "
                        "-chardev socket,id=behind,path=%s "
                        "-device ivshmem2,id=behind,bus=bridge,addr=01.0,"
                        "chardev=behind,peer-id=1", link->socket);
    QIvshmem2 *a = obj;
    QIvshmem2 *c = test_link_peer(link, options);
    QPCIBus *bus = c->dev.bus;
    QPCIDevice *bridge = qpci_device_find(bus, QPCI_DEVFN(5, 0));
    QIvshmem2 *b;
    uint16_t control;
    uint64_t start;

    g_assert_cmpint(qpci_secondary_buses_init(bus), ==, 1);
    bus->mmio_alloc_ptr = QEMU_ALIGN_UP(bus->mmio_alloc_ptr, MiB);
    start = bus->mmio_alloc_ptr;
    qpci_config_writew(bridge, PCI_MEMORY_BASE, start >> 16);
    qpci_config_writew(bridge, PCI_MEMORY_LIMIT, (start + MiB - 1) >> 16);
    qpci_config_writew(bridge, PCI_COMMAND,
                       PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    b = test_link_add_device(c, 1 << 8 | QPCI_DEVFN(1, 0));

    for (int i = 0; i < 2; i++) {
        qivshmem2_start(b);
        qivshmem2_enable(b);
        qivshmem2_set_one_shot(b, true);
        prepare_to_go(a, b, c);
        qivshmem2_expect_ring(a, b, 1);

        control = qpci_config_readw(bridge, PCI_BRIDGE_CONTROL);
        qpci_config_writew(bridge, PCI_BRIDGE_CONTROL,
                           control | PCI_BRIDGE_CTL_BUS_RESET);
        qpci_config_writew(bridge, PCI_BRIDGE_CONTROL, control);
        check_gone(a, 1);
        check_gone(c, 1);
        g_assert_cmphex(qpci_config_readw(&b->dev, PCI_COMMAND), ==, 0);
        g_assert_cmphex(qpci_config_readb(&b->dev, b->cap +
                                          IVSHMEM2_CAP_PRIV_CONTROL), ==, 0);
        qivshmem2_start(b);
        g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_STATE), ==, 0);
        g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    }
    /* the device outside the bridge is unaffected */
    qivshmem2_expect_ring(a, c, 2);
    g_free(bridge);
}

/* Plugging and unplugging in a running VM leaves no descriptors. */
static void test_hotplug_cycles(void *obj, void *opaque,
                                QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QIvshmem2 *a = obj;
    unsigned fds = test_link_count_fds(a->qts);

    qivshmem2_enable(a);
    for (int i = 0; i < 5; i++) {
        QIvshmem2 *b = test_link_plug_device(a, "more", link->socket, 5);
        QIvshmem2 *c = test_link_plug_device(a, "most", link->socket, 6);

        qivshmem2_expect_ring(a, b, 1);
        qivshmem2_expect_ring(b, c, 2);
        qivshmem2_expect_ring(c, a, 0);
        qivshmem2_set_state(b, i + 1);
        qivshmem2_wait(a, 0);
        qivshmem2_wait(c, 0);
        test_link_unplug(a->qts, "more", 5);
        check_gone(c, qivshmem2_id(b));
        check_gone(a, qivshmem2_id(b));
        test_link_unplug(a->qts, "most", 6);
        test_link_wait_fds(a->qts, fds);
    }
}

/*
 * Losing the server
 */

/* Memory, doorbells and interrupts work without the server. */
static void test_server_killed(void *obj, void *opaque,
                               QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    qivshmem2_enable(a);
    test_link_kill_server(link, SIGKILL);
    test_link_wait_until(
        !test_link_get_bool(a->qts, QIVSHMEM2_ID, "connected") &&
        !test_link_get_bool(b->qts, QIVSHMEM2_ID, "connected"));
    for (int i = 1; i <= 50; i++) {
        qivshmem2_set_state(a, i);
        qtest_writel(a->qts, qivshmem2_rw(a), i);
        qtest_writel(a->qts, qivshmem2_output(a, 0), i);
        qivshmem2_expect_ring(a, b, i % 3);
        g_assert_cmphex(qivshmem2_entry(b, 0), ==, i);
        g_assert_cmphex(qtest_readl(b->qts, qivshmem2_rw(b)), ==, i);
        g_assert_cmphex(qtest_readl(b->qts, qivshmem2_output(b, 0)), ==, i);
        qivshmem2_expect_ring(b, a, i % 3);
    }
    /* reset and unplug do not need the server either */
    qtest_system_reset(b->qts);
    qivshmem2_start(b);
    qivshmem2_enable(b);
    qivshmem2_expect_ring(a, b, 1);
    qivshmem2_set_state(b, 9);
    g_assert_cmphex(qivshmem2_entry(a, 1), ==, 9);
    test_link_unplug(b->qts, QIVSHMEM2_ID, QIVSHMEM2_SLOT);
    qivshmem2_ring(a, 1, 1);
    qivshmem2_expect_ring(a, a, 1);
    g_assert_cmphex(qivshmem2_entry(a, 1), ==, 0);
}

/* A server that hangs, and continues later */
static void test_server_stopped(void *obj, void *opaque,
                                QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);

    kill(link->pid, SIGSTOP);
    for (int i = 1; i <= 5000; i++) {
        qivshmem2_set_state(a, i);
    }
    for (int i = 0; i < 20; i++) {
        qivshmem2_expect_ring(a, b, 1);
        g_assert_cmphex(qivshmem2_entry(b, 0), ==, 5000);
    }
    kill(link->pid, SIGCONT);
    qivshmem2_wait(b, 0);
    g_assert_true(test_link_get_bool(a->qts, QIVSHMEM2_ID, "connected"));
    g_assert_true(test_link_get_bool(b->qts, QIVSHMEM2_ID, "connected"));
}

static void register_ivshmem2_gone_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "gone/reset", test_gone_reset },
        { "gone/bus-reset", test_gone_bus_reset },
        { "gone/unplug", test_gone_unplug },
        { "gone/quit", test_gone_quit },
        { "gone/killed", test_gone_killed },
        { "gone/unnoticed", test_gone_unnoticed },
        { "gone/hotplug-cycles", test_hotplug_cycles },
        { "server/killed", test_server_killed },
        { "server/stopped", test_server_stopped },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "ivshmem2", tests[i].function,
                      &setup_small);
    }
}

libqos_init(register_ivshmem2_gone_test);
