/*
 * ivshmem2 tests: what the drivers for 110a:4106 do
 *
 * The letters and numbers in comments are those of the conformance table,
 * docs/specs/ivshmem2-conformance.csv; all of this is about P3.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci_regs.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "ivshmem2-link.h"

/* The links are those of the user guide ("Drivers and what they need"). */
static const TestLinkSetup setup_uio = {
    .server = "--max-peers 3 --vectors 4 --rw-size 36K --output-size 8K",
    .qemu = "-global ivshmem2.peer-id=0",
};

static const TestLinkSetup setup_net = {
    .server = "--protocol 1 --max-peers 2 --vectors 2 --output-size 508K",
    .qemu = "-global ivshmem2.peer-id=0",
};

/* In both, the graph's device is the front-end. */
static const TestLinkSetup setup_virtio_console = {
    .server = "--protocol 0x8003 --backend-id 0 --max-peers 2 --vectors 3 "
              "--rw-size 1M",
    .qemu = "-global ivshmem2.peer-id=1",
};

static const TestLinkSetup setup_virtio_block = {
    .server = "--protocol 0x8002 --backend-id 0 --max-peers 2 --vectors 2 "
              "--rw-size 1M",
    .qemu = "-global ivshmem2.peer-id=1",
};

static const TestLinkSetup setup_dwords = {
    .server = "--max-peers 4 --vectors 3 --rw-size 8K --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=0",
};

static uint32_t config_dword(QIvshmem2 *d, uint8_t offset)
{
    return qpci_config_readl(&d->dev, d->cap + offset);
}

/*
 * Linux uio_ivshmem: one-shot by a byte, all vectors of the table, sizes by
 * dwords; a process turns reception on again after each interrupt.
 */
static void uio_start(QIvshmem2 *d)
{
    g_assert_cmphex(config_dword(d, IVSHMEM2_CAP_RW_SIZE + 4), ==, 0);
    qpci_config_writeb(&d->dev, d->cap + IVSHMEM2_CAP_PRIV_CONTROL, 0);
    qivshmem2_set_command(d, PCI_COMMAND_MASTER, true);
    qpci_config_writeb(&d->dev, d->cap + IVSHMEM2_CAP_PRIV_CONTROL,
                       IVSHMEM2_PRIV_ONE_SHOT);
    qivshmem2_enable(d);
}

static void test_driver_uio(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d[3] = {
        obj, test_link_peer_with_id(link, 1), test_link_peer_with_id(link, 2),
    };

    for (int i = 0; i < 3; i++) {
        uio_start(d[i]);
    }
    for (int round = 1; round <= 30; round++) {
        for (int i = 0; i < 3; i++) {
            QIvshmem2 *to = d[(i + 1) % 3];
            QIvshmem2 *third = d[(i + 2) % 3];

            /*
             * the demo: state, R/W section, output section, doorbell with
             * the vector of its own ID plus 1
             */
            qivshmem2_set_state(d[i], round);
            qivshmem2_wait(to, 0);
            qivshmem2_enable(to);
            qivshmem2_wait(third, 0);
            qivshmem2_enable(third);
            g_assert_cmphex(qivshmem2_entry(to, i), ==, round);
            qtest_writel(d[i]->qts, qivshmem2_rw(d[i]) + i * 4, round);
            qtest_writel(d[i]->qts, qivshmem2_output(d[i], i), round);
            qivshmem2_ring(d[i], (i + 1) % 3, i + 1);
            qivshmem2_wait(to, i + 1);
            qivshmem2_enable(to);
            g_assert_cmphex(qtest_readl(to->qts, qivshmem2_rw(to) + i * 4),
                            ==, round);
            g_assert_cmphex(qtest_readl(to->qts, qivshmem2_output(to, i)),
                            ==, round);
        }
    }
}

/*
 * Linux ivshmem-net: vector 0 for states, vector 1 for data; the two sides
 * come up through a handshake of states, and an interrupt whose table entry
 * is unchanged is ignored.
 */
enum { NET_RESET, NET_INIT, NET_READY, NET_RUN };

typedef struct Net {
    QIvshmem2 *d;
    uint32_t id;
    uint32_t state;
    uint32_t peer_state;
} Net;

static void net_set_state(Net *net, uint32_t state)
{
    net->state = state;
    qivshmem2_set_state(net->d, state);
}

static void net_check_state(Net *net)
{
    uint32_t peer = qivshmem2_entry(net->d, !net->id);

    if (peer == net->peer_state) {
        return;
    }
    net->peer_state = peer;
    switch (net->state) {
    case NET_RESET:
        if (peer < NET_READY) {
            net_set_state(net, NET_INIT);
        }
        break;
    case NET_INIT:
        if (peer > NET_RESET) {
            net_set_state(net, NET_READY);
        }
        break;
    case NET_READY:
        if (peer >= NET_READY) {
            net_set_state(net, NET_RUN);
        } else if (peer == NET_RESET) {
            net_set_state(net, NET_RESET);
        }
        break;
    case NET_RUN:
        if (peer == NET_RESET) {
            net_set_state(net, NET_RESET);
        }
        break;
    }
}

static void net_start(Net *net)
{
    g_assert_cmphex(qpci_config_readl(&net->d->dev, PCI_REVISION_ID), ==,
                    0xff000100);
    g_assert_cmpuint(qivshmem2_readl(net->d, IVSHMEM2_REG_MAX_PEERS), ==, 2);
    g_assert_cmpuint(net->d->vectors, ==, 2);
    net->id = qivshmem2_id(net->d);
    g_assert_cmpuint(net->id, <=, 1);
    qpci_config_writeb(&net->d->dev,
                       net->d->cap + IVSHMEM2_CAP_PRIV_CONTROL, 0);
    qivshmem2_enable(net->d);
    net->peer_state = UINT32_MAX;
    net_set_state(net, NET_RESET);
    net_check_state(net);
}

/* The drivers read the State Table only after an interrupt. */
static void net_wait_running(Net *a, Net *b)
{
    gint64 end = g_get_monotonic_time() + TEST_LINK_WAIT_US;

    while (a->state != NET_RUN || b->state != NET_RUN) {
        if (qivshmem2_arrived(a->d, 0)) {
            net_check_state(a);
        }
        if (qivshmem2_arrived(b->d, 0)) {
            net_check_state(b);
        }
        g_assert_cmpint(g_get_monotonic_time(), <, end);
    }
}

static void net_exchange(Net *a, Net *b)
{
    for (uint32_t i = 1; i <= 30; i++) {
        qtest_writel(a->d->qts, qivshmem2_output(a->d, a->id), i);
        qivshmem2_expect_ring(a->d, b->d, 1);
        g_assert_cmphex(qtest_readl(b->d->qts,
                                    qivshmem2_output(b->d, a->id)), ==, i);
        qtest_writel(b->d->qts, qivshmem2_output(b->d, b->id), i);
        qivshmem2_expect_ring(b->d, a->d, 1);
        g_assert_cmphex(qtest_readl(a->d->qts,
                                    qivshmem2_output(a->d, b->id)), ==, i);
    }
}

static void test_driver_net(void *obj, void *link, QGuestAllocator *alloc)
{
    Net a = { .d = obj };
    Net b = { .d = test_link_peer(link, NULL) };

    net_start(&a);
    net_start(&b);
    net_wait_running(&a, &b);
    net_exchange(&a, &b);

    /* one side reboots, without a shutdown of its driver */
    qtest_system_reset(b.d->qts);
    qivshmem2_wait(a.d, 0);
    net_check_state(&a);
    g_assert_cmpuint(a.state, ==, NET_RESET);
    qivshmem2_start(b.d);
    net_start(&b);
    net_wait_running(&a, &b);
    net_exchange(&b, &a);

    /* or it dies, and a new one comes */
    test_link_kill_peer(b.d);
    qivshmem2_wait(a.d, 0);
    net_check_state(&a);
    g_assert_cmpuint(a.state, ==, NET_RESET);
    b.d = test_link_peer(link, NULL);
    net_start(&b);
    net_wait_running(&a, &b);
    net_exchange(&a, &b);
}

/*
 * virtio over ivshmem: the front-end sets one-shot mode by a read and a write
 * of a dword, announces each write to the device's configuration in the R/W
 * section, rings, and spins until the back-end has taken it (C4, P2).  Vector 0
 * is for configuration and states, and each queue has one of its own.
 */
static void virtio_set_status(QIvshmem2 *front, QIvshmem2 *back,
                              uint32_t status)
{
    enum { TRANSACTION = 8, STATUS = 16 };

    qtest_writel(front->qts, qivshmem2_rw(front) + STATUS, status);
    qtest_writel(front->qts, qivshmem2_rw(front) + TRANSACTION, STATUS);
    qivshmem2_ring(front, 0, 0);

    qivshmem2_wait(back, 0);
    qivshmem2_enable(back);
    g_assert_cmphex(qtest_readl(back->qts, qivshmem2_rw(back) + TRANSACTION),
                    ==, STATUS);
    g_assert_cmphex(qtest_readl(back->qts, qivshmem2_rw(back) + STATUS), ==,
                    status);
    qtest_writel(back->qts, qivshmem2_rw(back) + TRANSACTION, 0);
    g_assert_cmphex(qtest_readl(front->qts, qivshmem2_rw(front) +
                                TRANSACTION), ==, 0);
}

/* A buffer there, and back when it has been used */
static void virtio_use_queue(QIvshmem2 *front, QIvshmem2 *back, uint32_t queue)
{
    qivshmem2_ring(front, 0, 1 + queue);
    qivshmem2_wait(back, 1 + queue);
    qivshmem2_enable(back);
    qivshmem2_ring(back, 1, 1 + queue);
    qivshmem2_wait(front, 1 + queue);
    qivshmem2_enable(front);
}

static void virtio_start(QIvshmem2 *front, QIvshmem2 *back)
{
    uint32_t head = config_dword(front, 0);

    /* back-end: a process on uio_ivshmem */
    uio_start(back);
    qivshmem2_set_one_shot(front, false);
    qpci_config_writel(&front->dev, front->cap, head | 1 << 24);
    g_assert_cmphex(config_dword(front, 0), ==, head | 1 << 24);
    qivshmem2_enable(front);

    qivshmem2_set_state(back, 1);
    qivshmem2_wait(front, 0);
    g_assert_cmphex(qivshmem2_entry(front, 0), ==, 1);
    qivshmem2_enable(front);
    qivshmem2_set_state(front, 1);
    qivshmem2_wait(back, 0);
    g_assert_cmphex(qivshmem2_entry(back, 1), ==, 1);
    qivshmem2_enable(back);
}

static void check_virtio(QIvshmem2 *front, TestLink *link, uint32_t device,
                         uint32_t queues)
{
    QIvshmem2 *back = test_link_peer_with_id(link, 0);

    g_assert_cmpuint(qivshmem2_id(front), ==, 1);
    g_assert_cmphex(qpci_config_readl(&front->dev, PCI_REVISION_ID), ==,
                    0xff800000 | device << 8);
    g_assert_cmphex(qpci_config_readl(&back->dev, PCI_REVISION_ID), ==,
                    0xffc00000 | device << 8);
    g_assert_cmpuint(test_link_get(back->qts, QIVSHMEM2_ID, "protocol"), ==,
                     0xc000 | device);
    g_assert_cmpuint(front->vectors, ==, 1 + queues);
    g_assert_cmpuint(front->rw_size, ==, 1 * MiB);

    virtio_start(front, back);
    for (uint32_t status = 1; status <= 100; status++) {
        virtio_set_status(front, back, status);
        for (uint32_t queue = 0; queue < queues; queue++) {
            virtio_use_queue(front, back, queue);
        }
    }

    /* the back-end dies: the front-end sees it as a reset device */
    test_link_kill_peer(back);
    qivshmem2_wait(front, 0);
    g_assert_cmphex(qivshmem2_entry(front, 0), ==, 0);
    back = test_link_peer_with_id(link, 0);
    g_assert_cmphex(qpci_config_readl(&back->dev, PCI_REVISION_ID), ==,
                    0xffc00000 | device << 8);
}

static void test_driver_virtio_console(void *obj, void *link,
                                       QGuestAllocator *alloc)
{
    check_virtio(obj, link, 3, 2);
}

static void test_driver_virtio_block(void *obj, void *link,
                                     QGuestAllocator *alloc)
{
    check_virtio(obj, link, 2, 1);
}

/* Zephyr, NuttX: only dwords, in configuration space and registers */
static void test_driver_dwords(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);
    uint32_t command = qpci_config_readl(&a->dev, PCI_COMMAND);
    uint8_t cap;

    /* the half of the write to Status must not change anything */
    qpci_config_writel(&a->dev, PCI_COMMAND, command & ~PCI_COMMAND_MASTER);
    qpci_config_writel(&a->dev, PCI_COMMAND, command | PCI_COMMAND_MASTER |
                       PCI_COMMAND_MEMORY);
    g_assert_cmphex(qpci_config_readl(&a->dev, PCI_COMMAND), ==, 0x00100006);
    for (cap = qpci_config_readl(&a->dev, PCI_CAPABILITY_LIST) & 0xfc;
         (qpci_config_readl(&a->dev, cap) & 0xff) != PCI_CAP_ID_VNDR;
         cap = qpci_config_readl(&a->dev, cap) >> 8 & 0xfc) {
        g_assert_cmphex(cap, !=, 0);
    }
    g_assert_cmphex(cap, ==, a->cap);
    g_assert_cmphex(config_dword(a, 0) >> 16, ==, 0x0018);
    g_assert_cmphex(config_dword(a, 4), ==, 0x1000);
    g_assert_cmphex(config_dword(a, 8), ==, 0x2000);
    g_assert_cmphex(config_dword(a, 12), ==, 0);
    g_assert_cmphex(config_dword(a, 16), ==, 0x1000);
    g_assert_cmphex(config_dword(a, 20), ==, 0);

    qpci_config_writel(&a->dev, cap, config_dword(a, 0) | 1 << 24);
    qivshmem2_enable(a);
    for (uint32_t i = 1; i <= 20; i++) {
        qivshmem2_set_state(b, i);
        qivshmem2_wait(a, 0);
        g_assert_cmphex(qivshmem2_readl(a, IVSHMEM2_REG_INT_CONTROL), ==, 0);
        qivshmem2_enable(a);
        g_assert_cmphex(qivshmem2_entry(a, 1), ==, i);
    }
    qpci_config_writel(&a->dev, cap, config_dword(a, 0) & ~(1 << 24));
    qivshmem2_expect_ring(b, a, 1);
    qivshmem2_expect_ring(b, a, 1);
}

static void register_ivshmem2_drivers_test(void)
{
    test_link_add("drivers/uio", "ivshmem2", test_driver_uio, &setup_uio);
    test_link_add("drivers/net", "ivshmem2", test_driver_net, &setup_net);
    test_link_add("drivers/virtio-console", "ivshmem2",
                  test_driver_virtio_console, &setup_virtio_console);
    test_link_add("drivers/virtio-block", "ivshmem2",
                  test_driver_virtio_block, &setup_virtio_block);
    test_link_add("drivers/dwords", "ivshmem2", test_driver_dwords,
                  &setup_dwords);
}

libqos_init(register_ivshmem2_drivers_test);
