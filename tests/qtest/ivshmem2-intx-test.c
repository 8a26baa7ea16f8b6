/*
 * ivshmem2 tests: INTx, with the real server
 *
 * The letters and numbers in comments are those of the conformance table,
 * docs/specs/ivshmem2-conformance.csv.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci_regs.h"
#include "qemu/module.h"
#include "ivshmem2-link.h"

static const TestLinkSetup setup_intx = {
    .server = "--max-peers 3 --intx --rw-size 8K",
    .qemu = "-global ivshmem2.peer-id=0",
};

#define INTX_IRQ    11

/* The 8259s remember a pulse in their request register (PC only). */
static void intx_forget(QIvshmem2 *d)
{
    static const uint16_t ports[] = { 0x20, 0xa0 };

    for (int i = 0; i < ARRAY_SIZE(ports); i++) {
        qtest_outb(d->qts, ports[i], 0x11);
        qtest_outb(d->qts, ports[i] + 1, i * 8);
        qtest_outb(d->qts, ports[i] + 1, i ? 2 : 4);
        qtest_outb(d->qts, ports[i] + 1, 1);
        qtest_outb(d->qts, ports[i], 0x0a);
    }
}

static void intx_start(QIvshmem2 *d)
{
    QPCIDevice *bridge = qpci_device_find(d->dev.bus, QPCI_DEVFN(1, 0));

    for (int pirq = 0; pirq < 4; pirq++) {
        qpci_config_writeb(bridge, 0x60 + pirq, INTX_IRQ);
    }
    g_free(bridge);
    intx_forget(d);
    qivshmem2_enable(d);
}

static bool intx_arrived(QIvshmem2 *d)
{
    if (!(qtest_inb(d->qts, 0xa0) & 1 << (INTX_IRQ - 8))) {
        return false;
    }
    intx_forget(d);
    return true;
}

static void intx_wait(QIvshmem2 *d)
{
    test_link_wait_until(intx_arrived(d));
    /* C3, G10: a pulse; the status bit is never set */
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_STATUS), ==, 0x0010);
}

/* Wait for an interrupt that comes after all others that @d could get. */
static void intx_barrier(QIvshmem2 *from, QIvshmem2 *d)
{
    uint64_t received = test_link_get(d->qts, QIVSHMEM2_ID,
                                      "interrupts-received");

    qivshmem2_enable(d);
    qivshmem2_ring(from, qivshmem2_id(d), 0);
    intx_wait(d);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID,
                                   "interrupts-received"), ==, received + 1);
}

/* M5 - M7, R6, R8, X1, C7, G10 */
static void test_intx(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *a = obj;
    QIvshmem2 *b = test_link_peer_with_id(link, 1);
    QIvshmem2 *c = test_link_peer_with_id(link, 2);
    uint64_t received;

    intx_start(a);
    intx_start(b);
    intx_start(c);
    for (int i = 1; i <= 20; i++) {
        qivshmem2_ring(a, 1, 0);
        intx_wait(b);
        qivshmem2_ring(b, 0, 0);
        intx_wait(a);
        qivshmem2_set_state(a, i);
        intx_wait(b);
        g_assert_cmphex(qivshmem2_entry(b, 0), ==, i);
        intx_wait(c);
    }
    g_assert_false(intx_arrived(a));

    /* no such vector; reception is off; bit 10 of Command is set */
    qivshmem2_ring(a, 1, 1);
    qivshmem2_disable(b);
    qivshmem2_ring(a, 1, 0);
    intx_barrier(a, b);
    received = test_link_get(b->qts, QIVSHMEM2_ID, "interrupts-received");
    qivshmem2_set_command(b, PCI_COMMAND_INTX_DISABLE, true);
    qivshmem2_ring(a, 1, 0);
    g_assert_false(intx_arrived(b));
    qivshmem2_set_command(b, PCI_COMMAND_INTX_DISABLE, false);
    intx_barrier(a, b);
    g_assert_cmpuint(test_link_get(b->qts, QIVSHMEM2_ID,
                                   "interrupts-received"), ==, received + 1);

    qivshmem2_set_one_shot(b, true);
    qivshmem2_ring(a, 1, 0);
    intx_wait(b);
    g_assert_cmphex(qivshmem2_readl(b, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    qivshmem2_set_one_shot(b, false);
    qivshmem2_ring(a, 1, 0);
    intx_barrier(a, b);

    qivshmem2_set_state(c, 1);
    intx_wait(a);
    intx_wait(b);
    test_link_kill_peer(c);
    intx_wait(a);
    g_assert_cmphex(qivshmem2_entry(a, 2), ==, 0);
    intx_wait(b);
    g_assert_cmphex(qivshmem2_entry(b, 2), ==, 0);
}

static void register_ivshmem2_intx_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "link/intx", test_intx },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "ivshmem2", tests[i].function,
                      &setup_intx);
    }
}

libqos_init(register_ivshmem2_intx_test);
