/*
 * ivshmem2 tests: one device as its guest sees it
 *
 * The letters and numbers in comments are those of the conformance table,
 * docs/specs/ivshmem2-conformance.csv.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/pci_regs.h"
#include "qemu/host-utils.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qjson.h"
#include "ivshmem2-link.h"

/*
 * A State Table of one page, a R/W section of two, and output sections of one
 * page each: one before and one after the device's own, and unused room in
 * BAR 2.
 */
#define TEST_ID     1
#define TEST_PEERS  3
#define TEST_TABLE  (4 * KiB)
#define TEST_RW     (8 * KiB)
#define TEST_OUTPUT (4 * KiB)
#define TEST_TOTAL  (TEST_TABLE + TEST_RW + TEST_PEERS * TEST_OUTPUT)

static const TestLinkSetup setup_small = {
    .server = "--max-peers 3 --vectors 3 --rw-size 8K --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=1",
};

static void ring_self(QIvshmem2 *d, unsigned vector)
{
    qivshmem2_ring(d, qivshmem2_id(d), vector);
}

static void expect_self(QIvshmem2 *d, unsigned vector)
{
    qivshmem2_expect_ring(d, d, vector);
}

/*
 * Configuration space
 */

/* C1, C6, G11 */
static void test_ids(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIDevice *dev = &((QIvshmem2 *)obj)->dev;

    g_assert_cmphex(qpci_config_readw(dev, PCI_VENDOR_ID), ==, 0x110a);
    g_assert_cmphex(qpci_config_readw(dev, PCI_DEVICE_ID), ==, 0x4106);
    g_assert_cmphex(qpci_config_readb(dev, PCI_REVISION_ID), ==, 0);
    g_assert_cmphex(qpci_config_readb(dev, PCI_HEADER_TYPE), ==, 0);
    g_assert_cmphex(qpci_config_readw(dev, PCI_SUBSYSTEM_VENDOR_ID), ==,
                    0x1af4);
    g_assert_cmphex(qpci_config_readw(dev, PCI_SUBSYSTEM_ID), ==,
                    0x1100);
    /* the default protocol type, so that drivers match FF0000h rev 00h */
    g_assert_cmphex(qpci_config_readl(dev, PCI_REVISION_ID), ==, 0xff000000);

    for (int reg = 0; reg < PCI_BASE_ADDRESS_0; reg += 4) {
        uint32_t value = qpci_config_readl(dev, reg);

        if (reg != PCI_COMMAND && reg != PCI_CACHE_LINE_SIZE) {
            qpci_config_writel(dev, reg, ~value);
            g_assert_cmphex(qpci_config_readl(dev, reg), ==, value);
        }
    }
}

/* C2 */
static void test_command(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    qpci_config_writew(&d->dev, PCI_COMMAND, 0xffff);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==,
                    PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
                    PCI_COMMAND_INTX_DISABLE);
    for (int bit = 0; bit < 16; bit++) {
        uint16_t writable = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
                            PCI_COMMAND_INTX_DISABLE;

        qpci_config_writew(&d->dev, PCI_COMMAND, 1 << bit);
        g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==,
                        writable & (1 << bit));
    }
    qpci_config_writew(&d->dev, PCI_COMMAND, 0xffff);
    qtest_system_reset(d->qts);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==, 0);
}

/* C3 */
static void test_status(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_STATUS), ==, 0x0010);
    qpci_config_writew(&d->dev, PCI_STATUS, 0xffff);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_STATUS), ==, 0x0010);
    qpci_config_writel(&d->dev, PCI_COMMAND, 0xffff0006);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_STATUS), ==, 0x0010);

    qivshmem2_enable(d);
    expect_self(d, 0);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_STATUS), ==, 0x0010);
}

/* C5, R1, L6, G13 */
static void test_bars(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    /* one page of 32-bit memory, not prefetchable */
    g_assert_cmphex(qivshmem2_bar_mask(d, 0), ==, 0xfffff000);
    g_assert_cmphex(qivshmem2_bar_mask(d, 1) & 0xf, ==, 0);
    g_assert_cmphex(qivshmem2_bar_mask(d, 1), !=, 0);
    /* 64-bit, prefetchable, the next power of two */
    g_assert_cmphex(qivshmem2_bar_mask(d, 2), ==, 0xffff800c);
    g_assert_cmphex(qivshmem2_bar_mask(d, 3), ==, 0xffffffff);
    g_assert_cmphex(qivshmem2_bar_mask(d, 4), ==, 0);
    g_assert_cmphex(qivshmem2_bar_mask(d, 5), ==, 0);
    g_assert_cmpuint(TEST_TOTAL, <, 32 * KiB);
}

/* C7, X1, X2 with MSI-X */
static void test_msix(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint32_t table, pba;

    g_assert_cmphex(qpci_config_readb(&d->dev, PCI_INTERRUPT_PIN), ==, 0);
    g_assert_cmphex(d->msix_cap, !=, 0);
    g_assert_cmpuint(d->vectors, ==, 3);
    table = qpci_config_readl(&d->dev, d->msix_cap + PCI_MSIX_TABLE);
    pba = qpci_config_readl(&d->dev, d->msix_cap + PCI_MSIX_PBA);
    g_assert_cmphex(table & PCI_MSIX_TABLE_BIR, ==, 1);
    g_assert_cmphex(pba & PCI_MSIX_PBA_BIR, ==, 1);
    g_assert_cmphex(qpci_find_capability(&d->dev, PCI_CAP_ID_MSI, 0), ==, 0);
}

/* C7, X1 with INTx */
static void test_intx(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint8_t pin = qpci_config_readb(&d->dev, PCI_INTERRUPT_PIN);

    g_assert_cmphex(pin, >=, 1);
    g_assert_cmphex(pin, <=, 4);
    g_assert_cmphex(d->msix_cap, ==, 0);
    g_assert_cmphex(qivshmem2_bar_mask(d, 1), ==, 0);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_STATUS), ==, 0x0010);
}

static const TestLinkSetup setup_intx = {
    .server = "--max-peers 3 --intx --rw-size 8K",
};

/* X2: the largest table */
static void test_2048_vectors(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint32_t pba = qpci_config_readl(&d->dev, d->msix_cap + PCI_MSIX_PBA);

    g_assert_cmpuint(d->vectors, ==, 2048);
    qivshmem2_enable(d);
    expect_self(d, 0);
    expect_self(d, 2047);
    expect_self(d, 1024);
    for (int i = 0; i < 2048 / 8; i += 8) {
        g_assert_cmphex(qtest_readq(d->qts, d->msix + (pba & ~7) + i), ==, 0);
    }
}

static const TestLinkSetup setup_2048_vectors = {
    .server = "--max-peers 2 --vectors 2048",
};

/* C8, M1 */
static void test_capabilities(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    unsigned vendor = 0, msix = 0, af = 0;
    uint8_t seen[256] = {};
    uint8_t cap = qpci_config_readb(&d->dev, PCI_CAPABILITY_LIST);

    while (cap) {
        uint8_t size = 0;

        g_assert_cmphex(cap, >=, PCI_STD_HEADER_SIZEOF);
        g_assert_cmphex(cap & 3, ==, 0);
        switch (qpci_config_readb(&d->dev, cap + PCI_CAP_LIST_ID)) {
        case PCI_CAP_ID_VNDR:
            vendor++;
            size = qpci_config_readb(&d->dev, cap + PCI_CAP_FLAGS);
            break;
        case PCI_CAP_ID_MSIX:
            msix++;
            size = PCI_CAP_MSIX_SIZEOF;
            break;
        case PCI_CAP_ID_AF:
            af++;
            size = qpci_config_readb(&d->dev, cap + PCI_AF_LENGTH);
            g_assert_cmpuint(size, ==, PCI_CAP_AF_SIZEOF);
            break;
        default:
            g_assert_not_reached();
        }
        /* within the configuration space, without loops and overlaps */
        g_assert_cmpuint(cap + size, <=, sizeof(seen));
        for (unsigned i = cap; i < cap + size; i++) {
            g_assert_cmpuint(seen[i], ==, 0);
            seen[i] = 1;
        }
        cap = qpci_config_readb(&d->dev, cap + PCI_CAP_LIST_NEXT);
    }
    g_assert_cmpuint(vendor, ==, 1);
    g_assert_cmpuint(msix, ==, 1);
    g_assert_cmpuint(af, ==, 1);
    /* the rest reads 0, and ignores writes */
    for (int i = PCI_STD_HEADER_SIZEOF; i < sizeof(seen); i++) {
        if (!seen[i]) {
            qpci_config_writeb(&d->dev, i, 0xff);
            g_assert_cmphex(qpci_config_readb(&d->dev, i), ==, 0);
        }
    }
}

/* C4, P1 */
static void check_protocol(QIvshmem2 *d, uint16_t protocol)
{
    g_assert_cmphex(qpci_config_readb(&d->dev, PCI_CLASS_DEVICE + 1), ==,
                    0xff);
    g_assert_cmphex(qpci_config_readb(&d->dev, PCI_CLASS_DEVICE), ==,
                    protocol >> 8);
    g_assert_cmphex(qpci_config_readb(&d->dev, PCI_CLASS_PROG), ==,
                    protocol & 0xff);
    g_assert_cmphex(qpci_config_readb(&d->dev, PCI_REVISION_ID), ==, 0);
}

static void test_protocol_0001(void *obj, void *link, QGuestAllocator *alloc)
{
    check_protocol(obj, 0x0001);
}

static void test_protocol_7f3e(void *obj, void *link, QGuestAllocator *alloc)
{
    check_protocol(obj, 0x7f3e);
}

static const TestLinkSetup setup_protocol_0001 = {
    .server = "--max-peers 2 --protocol 0x0001",
};

static const TestLinkSetup setup_protocol_7f3e = {
    .server = "--max-peers 2 --protocol 0x7f3e",
};

/*
 * Vendor-specific capability
 */

/* V1, G1 */
static void test_vendor_layout(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint32_t head = qpci_config_readl(&d->dev, d->cap);

    g_assert_cmphex(d->cap & 3, ==, 0);
    g_assert_cmphex(head & 0xff00ff, ==, 0x180009);
    g_assert_cmphex(head >> 24, ==, 0);
    g_assert_cmphex(head >> 8 & 0xff, ==,
                    qpci_config_readb(&d->dev, d->cap + PCI_CAP_LIST_NEXT));
}

/* V3, L3, M2 - M4, G14 and the layout that follows from them: L1, L2, L6 */
static void check_sizes(QIvshmem2 *d, uint64_t table, uint64_t rw,
                        uint64_t output)
{
    uint32_t max_peers = qivshmem2_readl(d, IVSHMEM2_REG_MAX_PEERS);
    uint64_t total = table + rw + output * max_peers;

    g_assert_cmphex(d->state_table_size, ==, table);
    g_assert_cmphex(d->rw_size, ==, rw);
    g_assert_cmphex(d->output_size, ==, output);
    g_assert_cmphex(d->memory_size, ==, pow2ceil(total));
    /* also when read by bytes */
    for (int i = 0; i < 8; i++) {
        g_assert_cmphex(qpci_config_readb(&d->dev, d->cap +
                                          IVSHMEM2_CAP_RW_SIZE + i), ==,
                        rw >> i * 8 & 0xff);
        g_assert_cmphex(qpci_config_readb(&d->dev, d->cap +
                                          IVSHMEM2_CAP_OUTPUT_SIZE + i), ==,
                        output >> i * 8 & 0xff);
    }
}

/* Are exactly @size bytes from @start on writable? */
static void check_writable(QIvshmem2 *d, uint64_t start, uint64_t size)
{
    uint64_t end = start + size;

    qtest_writel(d->qts, start - 4, 0x11111111);
    g_assert_cmphex(qtest_readl(d->qts, start - 4), ==, 0);
    qtest_writel(d->qts, start, 0x22222222);
    g_assert_cmphex(qtest_readl(d->qts, start), ==, 0x22222222);
    qtest_writel(d->qts, end - 4, 0x33333333);
    g_assert_cmphex(qtest_readl(d->qts, end - 4), ==, 0x33333333);
    if (end < d->memory + d->memory_size) {
        qtest_writel(d->qts, end, 0x44444444);
        g_assert_cmphex(qtest_readl(d->qts, end), ==, 0);
    }
    qtest_writel(d->qts, start, 0);
    qtest_writel(d->qts, end - 4, 0);
}

static void test_sizes_both(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_sizes(d, TEST_TABLE, TEST_RW, TEST_OUTPUT);
    check_writable(d, d->memory + TEST_TABLE, TEST_RW);
    check_writable(d, d->memory + TEST_TABLE + TEST_RW +
                   TEST_ID * TEST_OUTPUT, TEST_OUTPUT);
}

static void test_sizes_no_rw(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_sizes(d, TEST_TABLE, 0, 8 * KiB);
    check_writable(d, d->memory + TEST_TABLE + 2 * 8 * KiB, 8 * KiB);
}

static const TestLinkSetup setup_no_rw = {
    .server = "--max-peers 3 --rw-size 0 --output-size 8K",
    .qemu = "-global ivshmem2.peer-id=2",
};

static void test_sizes_no_outputs(void *obj, void *link,
                                  QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_sizes(d, TEST_TABLE, 64 * KiB, 0);
    check_writable(d, d->memory + TEST_TABLE, 64 * KiB);
}

static const TestLinkSetup setup_no_outputs = {
    .server = "--max-peers 3 --rw-size 64K --output-size 0",
};

static void test_sizes_none(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_sizes(d, TEST_TABLE, 0, 0);
    qtest_writel(d->qts, d->memory, 0x11111111);
    g_assert_cmphex(qtest_readl(d->qts, d->memory), ==, 0);
    qivshmem2_set_state(d, 0x22222222);
    g_assert_cmphex(qtest_readl(d->qts, d->memory), ==, 0x22222222);
}

static const TestLinkSetup setup_none = {
    .server = "--max-peers 3 --rw-size 0 --output-size 0",
    .qemu = "-global ivshmem2.peer-id=0",
};

/* Each of the sections is larger than 4 GiB. */
static void test_sizes_huge(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_sizes(d, TEST_TABLE, 6 * GiB, 5 * GiB);
    check_writable(d, d->memory + TEST_TABLE, 6 * GiB);
    check_writable(d, d->memory + TEST_TABLE + 11 * GiB, 5 * GiB);
}

static const TestLinkSetup setup_huge = {
    .server = "--max-peers 3 --rw-size 6G --output-size 5G",
    .qemu = "-global ivshmem2.peer-id=1",
};

/* L5, R1: guests with pages of 64 KiB; odd sizes are rounded up */
static void test_sizes_64k_pages(void *obj, void *link,
                                 QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_sizes(d, 64 * KiB, 64 * KiB, 128 * KiB);
    check_writable(d, d->memory + 64 * KiB, 64 * KiB);
    check_writable(d, d->memory + (2 + 1 * 2) * 64 * KiB, 128 * KiB);
    g_assert_cmphex(qivshmem2_bar_mask(d, 0), ==, 0xffff0000);
    g_assert_cmphex(qivshmem2_readl(d, 4 * KiB), ==, 0);
    g_assert_cmphex(qivshmem2_readl(d, 64 * KiB - 4), ==, 0);
}

static const TestLinkSetup setup_64k_pages = {
    .server = "--max-peers 3 --page-size 64K --rw-size 12K --output-size 65K",
    .qemu = "-global ivshmem2.peer-id=1",
};

/* L5: the default page size is the host's */
static void test_sizes_rounded(void *obj, void *link, QGuestAllocator *alloc)
{
    uint64_t page = qemu_real_host_page_size();

    check_sizes(obj, page, page, 2 * page);
}

static const TestLinkSetup setup_rounded = {
    .server = "--max-peers 3 --rw-size 1 --output-size 4097",
};

static void read_cap(QIvshmem2 *d, uint8_t *bytes)
{
    for (int i = 0; i < IVSHMEM2_CAP_SIZE; i++) {
        bytes[i] = qpci_config_readb(&d->dev, d->cap + i);
    }
}

/* V4, V2: writes at every offset and width */
static void test_vendor_read_only(void *obj, void *link,
                                  QGuestAllocator *alloc)
{
    static const uint32_t values[] = { 0xffffffff, 0, 0x5a5a5a5a };
    QIvshmem2 *d = obj;
    uint8_t before[IVSHMEM2_CAP_SIZE], after[IVSHMEM2_CAP_SIZE];

    read_cap(d, before);
    for (int v = 0; v < ARRAY_SIZE(values); v++) {
        for (int i = 0; i < IVSHMEM2_CAP_SIZE; i++) {
            for (int width = 1; width <= 4; width *= 2) {
                bool priv = i <= 3 && i + width > 3;
                uint8_t byte = values[v] >> (i <= 3 ? (3 - i) * 8 : 0);

                if (i % width) {
                    continue;
                }
                if (width == 1) {
                    qpci_config_writeb(&d->dev, d->cap + i, values[v]);
                } else if (width == 2) {
                    qpci_config_writew(&d->dev, d->cap + i, values[v]);
                } else {
                    qpci_config_writel(&d->dev, d->cap + i, values[v]);
                }
                read_cap(d, after);
                if (priv) {
                    g_assert_cmphex(after[3], ==, byte & 1);
                    after[3] = before[3];
                    qivshmem2_set_one_shot(d, false);
                }
                g_assert_cmpmem(before, sizeof(before),
                                after, sizeof(after));
            }
        }
    }
}

/* V2, G1: written by byte and by dword as drivers do, and the reset value */
static void test_one_shot_bit(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint8_t priv = d->cap + IVSHMEM2_CAP_PRIV_CONTROL;
    uint32_t head = qpci_config_readl(&d->dev, d->cap);

    g_assert_cmphex(qpci_config_readb(&d->dev, priv), ==, 0);
    qpci_config_writeb(&d->dev, priv, 0xff);
    g_assert_cmphex(qpci_config_readb(&d->dev, priv), ==, 1);
    qpci_config_writeb(&d->dev, priv, 0xfe);
    g_assert_cmphex(qpci_config_readb(&d->dev, priv), ==, 0);

    qpci_config_writel(&d->dev, d->cap, head | 0x01000000);
    g_assert_cmphex(qpci_config_readl(&d->dev, d->cap), ==,
                    head | 0x01000000);
    qpci_config_writel(&d->dev, d->cap, head & ~0x01000000);
    g_assert_cmphex(qpci_config_readl(&d->dev, d->cap), ==, head);

    qpci_config_writeb(&d->dev, priv, 1);
    qtest_system_reset(d->qts);
    g_assert_cmphex(qpci_config_readb(&d->dev, priv), ==, 0);
}

/*
 * Registers
 */

static void check_registers(QIvshmem2 *d, uint32_t int_control,
                            uint32_t state)
{
    g_assert_cmphex(qivshmem2_id(d), ==, TEST_ID);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_MAX_PEERS), ==,
                    TEST_PEERS);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL), ==,
                    int_control);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_STATE), ==, state);
}

/* R3 - R5, R8, G8 */
static void test_registers(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_registers(d, 0, 0);
    qivshmem2_writel(d, IVSHMEM2_REG_ID, 0);
    qivshmem2_writel(d, IVSHMEM2_REG_MAX_PEERS, 0xffffffff);
    check_registers(d, 0, 0);
    qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL, 0xfffffffe);
    check_registers(d, 0, 0);
    qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL, 0xffffffff);
    check_registers(d, 1, 0);
    qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL, 0);
    check_registers(d, 0, 0);
    qivshmem2_set_state(d, 0xfedcba98);
    check_registers(d, 0, 0xfedcba98);
}

/* R2 */
static void test_register_widths(void *obj, void *link,
                                 QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    qivshmem2_enable(d);
    qivshmem2_set_state(d, 0x89abcdef);
    for (unsigned i = 0; i < 0x18; i++) {
        uint64_t addr = d->regs + i;

        g_assert_cmphex(qtest_readb(d->qts, addr), ==, 0);
        g_assert_cmphex(qtest_readw(d->qts, addr), ==, 0);
        g_assert_cmphex(qtest_readq(d->qts, addr), ==, 0);
        qtest_writeb(d->qts, addr, 0);
        qtest_writew(d->qts, addr, 0);
        qtest_writeq(d->qts, addr, 0);
        if (i % 4) {
            g_assert_cmphex(qtest_readl(d->qts, addr), ==, 0);
            qtest_writel(d->qts, addr, 0);
        }
        check_registers(d, 1, 0x89abcdef);
    }

    /* none of these writes was a doorbell */
    qtest_writew(d->qts, d->regs + IVSHMEM2_REG_DOORBELL + 2, TEST_ID);
    qtest_writeq(d->qts, d->regs + IVSHMEM2_REG_DOORBELL, TEST_ID << 16 | 1);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));
    g_assert_false(qivshmem2_arrived(d, 1));
}

/* R1 */
static void test_register_holes(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    qivshmem2_enable(d);
    qivshmem2_set_state(d, 0x89abcdef);
    for (unsigned i = 0x14; i < 4 * KiB; i += 4) {
        g_assert_cmphex(qivshmem2_readl(d, i), ==, 0);
        qivshmem2_writel(d, i, TEST_ID << 16 | 1);
        g_assert_cmphex(qivshmem2_readl(d, i), ==, 0);
    }
    check_registers(d, 1, 0x89abcdef);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 1));
}

/*
 * Shared memory
 */

static void write_all_widths(QIvshmem2 *d, uint64_t addr)
{
    qtest_writeb(d->qts, addr, 0x11);
    qtest_writew(d->qts, addr, 0x2222);
    qtest_writel(d->qts, addr, 0x33333333);
    qtest_writeq(d->qts, addr, UINT64_C(0x4444444444444444));
}

static void check_zero(QIvshmem2 *d, uint64_t addr, size_t size)
{
    g_autofree uint8_t *data = g_malloc(size);

    qtest_memread(d->qts, addr, data, size);
    for (size_t i = 0; i < size; i++) {
        g_assert_cmphex(data[i], ==, 0);
    }
}

/* L4, L6, M3, M4, G12: only the device's own sections can be written. */
static void test_memory_read_only(void *obj, void *link,
                                  QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint64_t own = qivshmem2_output(d, TEST_ID);
    g_autofree uint8_t *data = g_malloc(d->memory_size);
    g_autofree uint8_t *ones = g_malloc(d->memory_size);

    for (uint64_t i = 0; i < d->memory_size; i += 64) {
        write_all_widths(d, d->memory + i);
    }
    write_all_widths(d, d->memory + TEST_TABLE - 8);
    check_zero(d, d->memory, TEST_TABLE);
    check_zero(d, qivshmem2_output(d, 0), TEST_OUTPUT);
    check_zero(d, qivshmem2_output(d, 2), TEST_OUTPUT);
    check_zero(d, d->memory + TEST_TOTAL, d->memory_size - TEST_TOTAL);

    /* one access that crosses the end, or the start, of the own section */
    qtest_writeq(d->qts, own + TEST_OUTPUT - 4, UINT64_MAX);
    check_zero(d, own + TEST_OUTPUT, TEST_OUTPUT);
    qtest_writeq(d->qts, own - 4, UINT64_MAX);
    check_zero(d, own - TEST_OUTPUT, TEST_OUTPUT);

    /* all of BAR 2 at once */
    memset(ones, 0xff, d->memory_size);
    qtest_memwrite(d->qts, d->memory, ones, d->memory_size);
    qtest_memread(d->qts, d->memory, data, d->memory_size);
    for (uint64_t i = 0; i < d->memory_size; i++) {
        uint64_t addr = d->memory + i;
        bool writable = (addr >= qivshmem2_rw(d) &&
                         addr < qivshmem2_rw(d) + TEST_RW) ||
                        (addr >= own && addr < own + TEST_OUTPUT);

        g_assert_cmphex(data[i], ==, writable ? 0xff : 0);
    }
}

/* L6: after the last section, at every width */
static void test_memory_past_end(void *obj, void *link,
                                 QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint64_t end = d->memory + TEST_TOTAL;

    for (unsigned i = 0; i < 16; i++) {
        write_all_widths(d, end + i);
        g_assert_cmphex(qtest_readb(d->qts, end + i), ==, 0);
        g_assert_cmphex(qtest_readw(d->qts, end + i), ==, 0);
        g_assert_cmphex(qtest_readl(d->qts, end + i), ==, 0);
        g_assert_cmphex(qtest_readq(d->qts, end + i), ==, 0);
    }
    write_all_widths(d, d->memory + d->memory_size - 8);
    g_assert_cmphex(qtest_readq(d->qts, d->memory + d->memory_size - 8), ==,
                    0);
}

/* T1, R8: little-endian, in the entry of our ID and in no other */
static void test_state_table(void *obj, void *link, QGuestAllocator *alloc)
{
    static const uint8_t expected[] = { 0x98, 0xba, 0xdc, 0xfe };
    QIvshmem2 *d = obj;
    uint8_t bytes[4];

    check_zero(d, d->memory, TEST_TABLE);
    qivshmem2_set_state(d, 0xfedcba98);
    qtest_memread(d->qts, d->memory + TEST_ID * 4, bytes, sizeof(bytes));
    g_assert_cmpmem(bytes, sizeof(bytes), expected, sizeof(expected));
    check_zero(d, d->memory, TEST_ID * 4);
    check_zero(d, d->memory + TEST_ID * 4 + 4, TEST_TABLE - TEST_ID * 4 - 4);
}

/*
 * Interrupts.  The device rings itself, which works like ringing any other
 * peer (R6).
 */

static void test_ring(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    qivshmem2_enable(d);
    for (unsigned i = 0; i < d->vectors; i++) {
        expect_self(d, i);
        for (unsigned j = 0; j < d->vectors; j++) {
            g_assert_false(qivshmem2_arrived(d, j));
        }
    }
    /* no such vector */
    ring_self(d, 3);
    ring_self(d, 0xffff);
    expect_self(d, 1);
    g_assert_false(qivshmem2_arrived(d, 0));
    g_assert_false(qivshmem2_arrived(d, 2));
}

/* X3, R5: interrupts that arrive while reception is off are dropped. */
static void test_reception(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    ring_self(d, 0);
    qivshmem2_enable(d);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));

    qivshmem2_disable(d);
    ring_self(d, 0);
    qivshmem2_enable(d);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));

    qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_ENABLE, false);
    ring_self(d, 0);
    qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_ENABLE, true);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));
}

/* X4; one-shot mode would show an interrupt that was delivered and lost. */
static void test_bus_master(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint64_t received;

    qivshmem2_enable(d);
    qivshmem2_set_one_shot(d, true);
    received = test_link_get(d->qts, QIVSHMEM2_ID, "interrupts-received");
    qivshmem2_set_command(d, PCI_COMMAND_MASTER, false);
    ring_self(d, 0);
    /* let the main loop come round */
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID,
                                   "interrupts-received"), ==, received);
    qivshmem2_set_command(d, PCI_COMMAND_MASTER, true);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID,
                                   "interrupts-received"), ==, received + 1);
}

static void check_pba(QIvshmem2 *d)
{
    uint32_t pba = qpci_config_readl(&d->dev, d->msix_cap + PCI_MSIX_PBA);
    uint64_t addr = d->msix + (pba & ~PCI_MSIX_PBA_BIR);

    g_assert_cmphex(qtest_readq(d->qts, addr), ==, 0);
    qtest_writeq(d->qts, addr, UINT64_MAX);
    g_assert_cmphex(qtest_readq(d->qts, addr), ==, 0);
}

/* X3: a masked vector waits, and never shows in the PBA */
static void test_mask_vector(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    qivshmem2_enable(d);
    check_pba(d);
    qivshmem2_mask(d, 0, true);
    ring_self(d, 0);
    ring_self(d, 0);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));
    check_pba(d);
    qivshmem2_mask(d, 0, false);
    qivshmem2_wait(d, 0);
    check_pba(d);

    /* only once */
    qivshmem2_mask(d, 0, true);
    qivshmem2_mask(d, 0, false);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));

    /* and never, if reception was turned off meanwhile */
    qivshmem2_mask(d, 0, true);
    ring_self(d, 0);
    expect_self(d, 2);
    qivshmem2_disable(d);
    qivshmem2_enable(d);
    qivshmem2_mask(d, 0, false);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));
}

static void test_mask_function(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint64_t received;

    qivshmem2_enable(d);
    received = test_link_get(d->qts, QIVSHMEM2_ID, "interrupts-received");
    qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_MASKALL, true);
    ring_self(d, 0);
    ring_self(d, 1);
    qivshmem2_mask(d, 1, true);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID,
                                   "interrupts-received"), ==, received);
    check_pba(d);
    g_assert_false(qivshmem2_arrived(d, 0));
    qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_MASKALL, false);
    qivshmem2_wait(d, 0);
    expect_self(d, 2);
    g_assert_false(qivshmem2_arrived(d, 0));
    g_assert_false(qivshmem2_arrived(d, 1));
    qivshmem2_mask(d, 1, false);
    qivshmem2_wait(d, 1);
    check_pba(d);
}

/* Linux masks a vector, writes another address or data, and unmasks it. */
static void test_move_vector(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint64_t elsewhere = guest_alloc(alloc, 4);

    qivshmem2_enable(d);
    expect_self(d, 0);
    for (uint32_t data = 1; data < 20; data++) {
        qivshmem2_mask(d, 0, true);
        ring_self(d, 0);
        qtest_writel(d->qts, d->msix + PCI_MSIX_ENTRY_LOWER_ADDR, elsewhere);
        qtest_writel(d->qts, d->msix + PCI_MSIX_ENTRY_DATA, data);
        qivshmem2_mask(d, 0, false);
        test_link_wait_until(qtest_readl(d->qts, elsewhere) == data);
    }
    g_assert_false(qivshmem2_arrived(d, 0));
}

/* V5, G7 */
static void test_one_shot(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    qivshmem2_enable(d);
    qivshmem2_set_one_shot(d, true);
    for (unsigned i = 0; i < 10; i++) {
        unsigned vector = i % d->vectors;

        expect_self(d, vector);
        g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL), ==, 0);
        /* reception is off for all vectors, so this one is dropped */
        ring_self(d, (vector + 1) % d->vectors);
        qivshmem2_enable(d);
    }

    /* a masked vector is not delivered, so reception stays on */
    qivshmem2_mask(d, 0, true);
    ring_self(d, 0);
    expect_self(d, 1);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    g_assert_false(qivshmem2_arrived(d, 0));
    qivshmem2_mask(d, 0, false);
    qivshmem2_enable(d);

    /* unmasking delivers */
    qivshmem2_mask(d, 0, true);
    qivshmem2_set_one_shot(d, false);
    ring_self(d, 0);
    expect_self(d, 1);
    qivshmem2_set_one_shot(d, true);
    qivshmem2_mask(d, 0, false);
    qivshmem2_wait(d, 0);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL), ==, 0);

    /* without one-shot mode, reception stays on */
    qivshmem2_set_one_shot(d, false);
    qivshmem2_enable(d);
    expect_self(d, 2);
    expect_self(d, 2);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL), ==, 1);
}

/*
 * Reset
 */

static void reset_system(QIvshmem2 *d)
{
    qtest_system_reset(d->qts);
}

/* The bit reads 0, and other bits have no effect. */
static void reset_function(QIvshmem2 *d)
{
    uint8_t af = qpci_find_capability(&d->dev, PCI_CAP_ID_AF, 0);
    uint32_t state = qivshmem2_readl(d, IVSHMEM2_REG_STATE);

    g_assert_cmphex(af, !=, 0);
    g_assert_cmphex(qpci_config_readb(&d->dev, af + PCI_AF_CAP), ==,
                    PCI_AF_CAP_TP | PCI_AF_CAP_FLR);
    qpci_config_writeb(&d->dev, af + PCI_AF_CTRL, ~PCI_AF_CTRL_FLR);
    qpci_config_writeb(&d->dev, af + PCI_AF_CTRL - 1, 0xff);
    qpci_config_writeb(&d->dev, af + PCI_AF_CTRL + 1, 0xff);
    qpci_config_writel(&d->dev, af, 0xffffffff);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_STATE), ==, state);
    qpci_config_writeb(&d->dev, af + PCI_AF_CTRL, PCI_AF_CTRL_FLR);
    g_assert_cmphex(qpci_config_readw(&d->dev, af + PCI_AF_CTRL), ==, 0);
}

/* G6, R5, R8, C2, V2 and R3: what a reset changes, and what it keeps */
static void check_reset(QIvshmem2 *d, void (*reset)(QIvshmem2 *d))
{
    for (int i = 0; i < 3; i++) {
        qivshmem2_enable(d);
        expect_self(d, 1);
        qivshmem2_mask(d, 2, true);
        ring_self(d, 2);
        qivshmem2_set_one_shot(d, true);
        qivshmem2_set_state(d, 77);
        g_assert_cmphex(qivshmem2_entry(d, TEST_ID), ==, 77);
        qtest_writel(d->qts, qivshmem2_rw(d), 0x12345678);
        qtest_writel(d->qts, qivshmem2_output(d, TEST_ID), 0x9abcdef0);

        reset(d);
        g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==, 0);
        g_assert_cmphex(qpci_config_readw(&d->dev, PCI_STATUS), ==, 0x0010);
        g_assert_cmphex(qpci_config_readb(&d->dev, d->cap +
                                          IVSHMEM2_CAP_PRIV_CONTROL), ==, 0);
        g_assert_cmphex(qpci_config_readw(&d->dev, d->msix_cap +
                                          PCI_MSIX_FLAGS), ==, 2);
        qivshmem2_start(d);
        check_registers(d, 0, 0);
        check_zero(d, d->memory, TEST_TABLE);
        check_sizes(d, TEST_TABLE, TEST_RW, TEST_OUTPUT);
        g_assert_cmphex(qtest_readl(d->qts, qivshmem2_rw(d)), ==,
                        0x12345678);
        g_assert_cmphex(qtest_readl(d->qts, qivshmem2_output(d, TEST_ID)),
                        ==, 0x9abcdef0);

        /* nothing from before the reset arrives after it */
        ring_self(d, 0);
        qivshmem2_enable(d);
        expect_self(d, 1);
        g_assert_false(qivshmem2_arrived(d, 0));
        g_assert_false(qivshmem2_arrived(d, 2));
    }
}

static void test_reset_system(void *obj, void *link, QGuestAllocator *alloc)
{
    check_reset(obj, reset_system);
}

static void test_reset_function(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    QIvshmem2 *peer;

    check_reset(d, reset_function);

    /* T2, M5: the others learn of it; any width will do */
    peer = test_link_peer_with_id(link, 0);
    for (int len = 1; len <= 4; len *= 2) {
        uint8_t control = qpci_find_capability(&d->dev, PCI_CAP_ID_AF, 0) +
                          PCI_AF_CTRL;

        qivshmem2_set_state(d, 5);
        qivshmem2_wait(peer, 0);
        g_assert_cmphex(qivshmem2_entry(peer, TEST_ID), ==, 5);
        if (len == 1) {
            qpci_config_writeb(&d->dev, control, 1);
        } else if (len == 2) {
            qpci_config_writew(&d->dev, control, 1);
        } else {
            qpci_config_writel(&d->dev, control, 1);
        }
        qivshmem2_wait(peer, 0);
        g_assert_cmphex(qivshmem2_entry(peer, TEST_ID), ==, 0);
        qivshmem2_start(d);
        qivshmem2_enable(d);
        qivshmem2_expect_ring(peer, d, 1);
    }
}

/*
 * The outside: log, properties, migration
 */

/* Mistakes of the guest are logged. */
static void test_guest_errors(void *obj, void *opaque, QGuestAllocator *alloc)
{
    static const char *const expected[] = {
        "reserved bits in 0xfffffffe written to Interrupt Control",
        "2-byte read at offset 0x4 of the registers",
        "8-byte write at offset 0xc of the registers",
        "4-byte write at offset 0x11 of the registers",
        "read at offset 0x14, where no register is",
        "write of 0x00000005 at offset 0x800, where nothing can be written",
        "write of 0x00000007 at offset 0x0, where nothing can be written",
        "doorbell 0x00030000: the link has no peer 3 with vector 0",
        "doorbell 0x00010003: the link has no peer 1 with vector 3",
        "ivshmem2-state-table",
        "ivshmem2-outputs-before",
        "ivshmem2-outputs-after",
        "2-byte read at offset 0x6002, past the last section",
        "4-byte write at offset 0x6000, past the last section",
    };
    QIvshmem2 *d = obj;
    TestLink *link = opaque;
    g_autofree char *path = g_strdup_printf("%s/log", link->dir);
    g_autofree char *text = NULL;

    g_free(qtest_hmp(d->qts, "logfile %s", path));
    g_free(qtest_hmp(d->qts, "log guest_errors,invalid_mem"));
    qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL, 0xfffffffe);
    qtest_readw(d->qts, d->regs + IVSHMEM2_REG_MAX_PEERS);
    qtest_writeq(d->qts, d->regs + IVSHMEM2_REG_DOORBELL, 0);
    qtest_writel(d->qts, d->regs + IVSHMEM2_REG_STATE + 1, 0);
    qivshmem2_readl(d, 0x14);
    qivshmem2_writel(d, 0x800, 5);
    qivshmem2_writel(d, IVSHMEM2_REG_ID, 7);
    qivshmem2_ring(d, 3, 0);
    qivshmem2_ring(d, 1, 3);
    qtest_writel(d->qts, d->memory, 1);
    qtest_writel(d->qts, qivshmem2_output(d, 0), 1);
    qtest_writel(d->qts, qivshmem2_output(d, 2), 1);
    qtest_readw(d->qts, d->memory + TEST_TOTAL + 2);
    qtest_writel(d->qts, d->memory + TEST_TOTAL, 1);
    g_free(qtest_hmp(d->qts, "log none"));

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    for (int i = 0; i < ARRAY_SIZE(expected); i++) {
        if (!strstr(text, expected[i])) {
            g_test_message("not in the log: %s", expected[i]);
            g_test_fail();
        }
    }
    unlink(path);
}

/* Properties of the link, and counters */
static void test_properties(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID, "peer-id"), ==,
                     TEST_ID);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID, "max-peers"), ==,
                     TEST_PEERS);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID, "vectors"), ==, 3);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID, "protocol"), ==, 0);
    g_assert_true(test_link_get_bool(d->qts, QIVSHMEM2_ID, "connected"));

    ring_self(d, 0);
    qivshmem2_enable(d);
    expect_self(d, 0);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID, "interrupts-sent"),
                     ==, 2);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID,
                                   "interrupts-received"), ==, 1);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID,
                                   "interrupts-dropped"), ==, 1);
    /* a doorbell without a target is not counted */
    ring_self(d, 3);
    qivshmem2_ring(d, 3, 0);
    g_assert_cmpuint(test_link_get(d->qts, QIVSHMEM2_ID, "interrupts-sent"),
                     ==, 2);
}

/* peer-id: the wanted ID, and values that are wrong */
static void test_peer_id(void *obj, void *opaque, QGuestAllocator *alloc)
{
    static const char *const wrong[] = {
        "", "all", "-1", "65536", "1x", "4294967296", "0.5",
    };
    QIvshmem2 *d = obj;
    TestLink *link = opaque;
    QDict *response;
    char *error;

    for (int i = 0; i < ARRAY_SIZE(wrong); i++) {
        error = test_link_plug(d->qts, "more", link->socket, 0,
            qdict_from_jsonf_nofail("{ 'peer-id': %s }", wrong[i]));
        g_assert_nonnull(error);
        g_assert_nonnull(strstr(error, "peer-id"));
        g_assert_nonnull(strstr(error, "65535"));
        g_free(error);
    }
    test_link_plug_fails(d->qts, "more", link->socket, 0,
                         qdict_from_jsonf_nofail("{ 'peer-id': true }"),
                         "peer-id");
    response = qtest_qmp_assert_failure_ref(d->qts,
        "{ 'execute': 'qom-set', 'arguments': { 'property': 'peer-id',"
        "  'path': '/machine/peripheral/" QIVSHMEM2_ID "', 'value': 2 } }");
    g_assert_nonnull(strstr(qdict_get_str(response, "desc"),
                            "the ID of a peer cannot change"));
    qobject_unref(response);
    /* taken, and out of the link's range: the server refuses these */
    test_link_plug_fails(d->qts, "more", link->socket, 0,
                         qdict_from_jsonf_nofail("{ 'peer-id': '1' }"),
                         "the server says: ");
    test_link_plug_fails(d->qts, "more", link->socket, 0,
                         qdict_from_jsonf_nofail("{ 'peer-id': '3' }"),
                         "the server says: ");

    error = test_link_plug(d->qts, "more", link->socket, 0,
                           qdict_from_jsonf_nofail("{ 'peer-id': '2',"
                                                   "  'addr': '05.0' }"));
    g_assert_null(error);
    g_assert_cmpuint(test_link_get(d->qts, "more", "peer-id"), ==, 2);
    error = test_link_plug(d->qts, "any", link->socket, 0,
                           qdict_from_jsonf_nofail("{ 'peer-id': 'any',"
                                                   "  'addr': '06.0' }"));
    g_assert_null(error);
    g_assert_cmpuint(test_link_get(d->qts, "any", "peer-id"), ==, 0);
    test_link_plug_fails(d->qts, "full", link->socket, 0, NULL,
                         "the server says: ");
    test_link_unplug(d->qts, "any", 6);
    test_link_unplug(d->qts, "more", 5);
}

static void test_migration(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    QDict *error = qtest_qmp_assert_failure_ref(d->qts,
        "{ 'execute': 'migrate',"
        "  'arguments': { 'uri': 'exec:cat > /dev/null' } }");
    g_autofree char *text = NULL;

    g_assert_nonnull(strstr(qdict_get_str(error, "desc"),
                            "ivshmem2 device '" QIVSHMEM2_ID "' cannot be "
                            "migrated or saved: unplug it, migrate, and plug "
                            "it in with the same peer-id"));
    qobject_unref(error);
    text = qtest_hmp(d->qts, "savevm one");
    g_assert_nonnull(strstr(text, "ivshmem2 device '" QIVSHMEM2_ID
                            "' cannot be migrated"));

    /* it works as the error advises */
    test_link_unplug(d->qts, QIVSHMEM2_ID, QIVSHMEM2_SLOT);
    qtest_qmp_assert_success(d->qts,
        "{ 'execute': 'migrate',"
        "  'arguments': { 'uri': 'exec:cat > /dev/null' } }");
    qtest_qmp_assert_success(d->qts, "{ 'execute': 'migrate_cancel' }");
    qos_invalidate_command_line();
}

static const TestLinkSetup setup_only_migratable = {
    .server = "--max-peers 2",
    .qemu = "-only-migratable",
};

static void test_only_migratable(void *obj, void *opaque,
                                 QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;

    test_link_plug_fails(bus->qts, "no", link->socket, 0, NULL,
                         "ivshmem2 device 'no' cannot be migrated");
}

/* The optional forms, O1 and O2 */
static const struct {
    const char *name;
    TestLinkSetup setup;
} forms[] = {
    { "io", {
        .server = "--max-peers 3 --vectors 3 --rw-size 8K --output-size 4K",
        .qemu = "-global ivshmem2.peer-id=1 -global ivshmem2.registers=io",
    } },
    { "fixed", {
        .server = "--max-peers 3 --vectors 3 --rw-size 8K --output-size 4K",
        .qemu = "-global ivshmem2.peer-id=1"
                " -global ivshmem2.base-address=64G",
    } },
};

static void register_ivshmem2_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
        const TestLinkSetup *setup;
        bool all_forms;
    } tests[] = {
        { "config/ids", test_ids },
        { "config/command", test_command },
        { "config/status", test_status },
        { "config/bars", test_bars },
        { "config/msix", test_msix },
        { "config/intx", test_intx, &setup_intx },
        { "config/2048-vectors", test_2048_vectors, &setup_2048_vectors },
        { "config/capabilities", test_capabilities, NULL, true },
        { "config/protocol/0001", test_protocol_0001, &setup_protocol_0001 },
        { "config/protocol/7f3e", test_protocol_7f3e, &setup_protocol_7f3e },
        { "vendor/layout", test_vendor_layout },
        { "vendor/read-only", test_vendor_read_only, NULL, true },
        { "vendor/one-shot-bit", test_one_shot_bit, NULL, true },
        { "sizes/both", test_sizes_both },
        { "sizes/no-rw", test_sizes_no_rw, &setup_no_rw },
        { "sizes/no-outputs", test_sizes_no_outputs, &setup_no_outputs },
        { "sizes/none", test_sizes_none, &setup_none },
        { "sizes/huge", test_sizes_huge, &setup_huge },
        { "sizes/64k-pages", test_sizes_64k_pages, &setup_64k_pages },
        { "sizes/rounded", test_sizes_rounded, &setup_rounded },
        { "registers/values", test_registers, NULL, true },
        { "registers/widths", test_register_widths },
        { "registers/holes", test_register_holes },
        { "memory/read-only", test_memory_read_only, NULL, true },
        { "memory/past-end", test_memory_past_end },
        { "memory/state-table", test_state_table, NULL, true },
        { "interrupts/ring", test_ring, NULL, true },
        { "interrupts/reception", test_reception, NULL, true },
        { "interrupts/bus-master", test_bus_master, NULL, true },
        { "interrupts/mask-vector", test_mask_vector, NULL, true },
        { "interrupts/mask-function", test_mask_function, NULL, true },
        { "interrupts/move-vector", test_move_vector, NULL, true },
        { "interrupts/one-shot", test_one_shot, NULL, true },
        { "reset/system", test_reset_system },
        { "reset/function", test_reset_function },
        { "outside/guest-errors", test_guest_errors },
        { "outside/properties", test_properties, NULL, true },
        { "outside/peer-id", test_peer_id },
        { "outside/migration", test_migration },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "ivshmem2", tests[i].function,
                      tests[i].setup ?: &setup_small);
        for (int j = 0; tests[i].all_forms && j < ARRAY_SIZE(forms); j++) {
            g_autofree char *name = g_strdup_printf("%s/%s", forms[j].name,
                                                    tests[i].name);

            test_link_add(name, "ivshmem2", tests[i].function,
                          &forms[j].setup);
        }
    }
    test_link_add("ivshmem2/outside/only-migratable", "pci-bus",
                  test_only_migratable, &setup_only_migratable);
}

libqos_init(register_ivshmem2_test);
