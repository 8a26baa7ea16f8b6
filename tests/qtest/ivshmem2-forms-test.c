/*
 * ivshmem2 tests: the optional forms, registers as I/O ports and memory at a
 * fixed address
 *
 * ivshmem2-test.c runs tests of the usual form with them as well.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/wait.h>
#include "hw/pci/pci_regs.h"
#include "libqos/pci-pc.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qjson.h"
#include "ivshmem2-link.h"

#define TEST_ID     1
#define TEST_TABLE  (4 * KiB)
#define TEST_RW     (8 * KiB)
#define TEST_TOTAL  (TEST_TABLE + TEST_RW + 3 * 4 * KiB)
#define SERVER      "--max-peers 3 --vectors 3 --rw-size 8K --output-size 4K"

/* Where the tests put memory: past the 64-bit window of every PC here */
#define BASE        (64 * GiB)
#define OTHER_BASE  (80 * GiB)
#define HOT_SLOT    6

static const TestLinkSetup setup_io = {
    .server = SERVER,
    .qemu = "-global ivshmem2.peer-id=1 -global ivshmem2.registers=io",
};

static const TestLinkSetup setup_fixed = {
    .server = SERVER,
    .qemu = "-global ivshmem2.peer-id=1 -global ivshmem2.base-address=64G",
};

static const TestLinkSetup setup_pc = { .server = SERVER };

static bool has_memory(QTestState *qts, uint64_t address)
{
    bool has;

    qtest_writel(qts, address, 0x600d600d);
    has = qtest_readl(qts, address) == 0x600d600d;
    qtest_writel(qts, address, 0);
    return has;
}

static void reset_function(QIvshmem2 *d)
{
    qpci_config_writeb(&d->dev,
                       qpci_find_capability(&d->dev, PCI_CAP_ID_AF, 0) +
                       PCI_AF_CTRL, PCI_AF_CTRL_FLR);
}

/*
 * Registers as I/O ports: O1
 */

static void test_io_config(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    uint16_t writable = PCI_COMMAND_IO | PCI_COMMAND_MEMORY |
                        PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE;

    g_assert_cmphex(qivshmem2_bar_mask(d, 0), ==, 0xffffffe1);
    g_assert_cmphex(qivshmem2_bar_mask(d, 1) & 0xf, ==, 0);
    g_assert_cmphex(qivshmem2_bar_mask(d, 2), ==, 0xffff800c);
    g_assert_cmphex(qivshmem2_bar_mask(d, 3), ==, 0xffffffff);
    g_assert_cmphex(qpci_config_readb(&d->dev, d->cap + IVSHMEM2_CAP_LENGTH),
                    ==, IVSHMEM2_CAP_SIZE);
    for (int bit = 0; bit < 16; bit++) {
        qpci_config_writew(&d->dev, PCI_COMMAND, 1 << bit);
        g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==,
                        writable & (1 << bit));
    }
    qtest_system_reset(d->qts);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==, 0);
    g_assert_cmphex(qpci_config_readl(&d->dev, PCI_BASE_ADDRESS_0), ==, 1);
}

/* Bit 0 of the Command register is for BAR 0, bit 1 for the others. */
static void test_io_command(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    g_assert_true(has_memory(d->qts, qivshmem2_rw(d)));
    qivshmem2_set_command(d, PCI_COMMAND_MEMORY, false);
    g_assert_false(has_memory(d->qts, qivshmem2_rw(d)));
    g_assert_cmphex(qivshmem2_id(d), ==, TEST_ID);
    qivshmem2_set_state(d, 5);
    qivshmem2_set_command(d, PCI_COMMAND_MEMORY, true);
    qivshmem2_set_command(d, PCI_COMMAND_IO, false);
    g_assert_cmphex(qivshmem2_id(d), ==, 0xffffffff);
    qivshmem2_set_state(d, 6);
    g_assert_true(has_memory(d->qts, qivshmem2_rw(d)));
    g_assert_cmphex(qivshmem2_entry(d, TEST_ID), ==, 5);
    qivshmem2_set_command(d, PCI_COMMAND_IO, true);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_STATE), ==, 5);
}

/* R1 and R2 with ports */
static void test_io_widths(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    qivshmem2_set_state(d, 0x11223344);
    for (unsigned i = 0; i < IVSHMEM2_REGS_SIZE_IO; i++) {
        uint16_t port = d->regs + i;

        g_assert_cmphex(qtest_inb(d->qts, port), ==, 0);
        qtest_outb(d->qts, port, 0xff);
        if (i < IVSHMEM2_REGS_SIZE_IO - 1) {
            g_assert_cmphex(qtest_inw(d->qts, port), ==, 0);
            qtest_outw(d->qts, port, 0xffff);
        }
        if (i < IVSHMEM2_REGS_SIZE_IO - 3 &&
            (i % 4 || i > IVSHMEM2_REG_STATE)) {
            g_assert_cmphex(qtest_inl(d->qts, port), ==, 0);
            qtest_outl(d->qts, port, 0xffffffff);
        }
    }
    g_assert_cmphex(qivshmem2_id(d), ==, TEST_ID);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_MAX_PEERS), ==, 3);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_DOORBELL), ==, 0);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_STATE), ==, 0x11223344);
    g_assert_cmphex(qivshmem2_entry(d, TEST_ID), ==, 0x11223344);
}

/* Onto ports of other devices, also those of the PCI host bridge */
static void test_io_moved(void *obj, void *link, QGuestAllocator *alloc)
{
    static const uint16_t ports[] = {
        0x00, 0x20, 0x40, 0x60, 0x3e0, 0x4c0, 0x600, 0xce0, 0xae00, 0xffe0,
    };
    QIvshmem2 *d = obj;

    for (int i = 0; i < ARRAY_SIZE(ports); i++) {
        qpci_config_writel(&d->dev, PCI_BASE_ADDRESS_0, ports[i]);
        if (ports[i]) {
            g_assert_cmphex(qtest_inl(d->qts, ports[i]), ==, TEST_ID);
        }
        qtest_outl(d->qts, ports[i] + IVSHMEM2_REG_DOORBELL, TEST_ID << 16);
        qtest_system_reset(d->qts);
        qivshmem2_start(d);
        qivshmem2_enable(d);
        qivshmem2_expect_ring(d, d, 1);
    }
}

static void test_io_reset(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    for (int i = 0; i < 4; i++) {
        qivshmem2_enable(d);
        qivshmem2_expect_ring(d, d, 2);
        qivshmem2_set_state(d, 8);
        if (i % 2) {
            reset_function(d);
        } else {
            qtest_system_reset(d->qts);
        }
        g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==, 0);
        g_assert_cmphex(qivshmem2_id(d), ==, 0xffffffff);
        qivshmem2_start(d);
        g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_STATE), ==, 0);
        g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    }
}

/*
 * Memory at a fixed address: O2
 */

static void check_fixed_config(QIvshmem2 *d)
{
    for (int bar = 2; bar < 6; bar++) {
        g_assert_cmphex(qivshmem2_bar_mask(d, bar), ==, 0);
    }
    g_assert_cmphex(qivshmem2_bar_mask(d, 0), ==, 0xfffff000);
    g_assert_cmphex(qpci_config_readb(&d->dev, d->cap + IVSHMEM2_CAP_LENGTH),
                    ==, 0x20);
    for (int i = 0; i < 8; i++) {
        qpci_config_writeb(&d->dev, d->cap + 0x18 + i, 0xff);
        g_assert_cmphex(qpci_config_readb(&d->dev, d->cap + 0x18 + i), ==,
                        BASE >> i * 8 & 0xff);
    }
}

static void test_fixed_config(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    check_fixed_config(d);
    qpci_config_writew(&d->dev, PCI_COMMAND, 0xffff);
    g_assert_cmphex(qpci_config_readw(&d->dev, PCI_COMMAND), ==,
                    PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
                    PCI_COMMAND_INTX_DISABLE);
}

/* It stays through resets, and with memory space off. */
static void test_fixed_memory(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    QIvshmem2 *peer = test_link_peer_with_id(link, 0);

    g_assert_cmphex(d->memory, ==, BASE);
    qtest_writel(d->qts, qivshmem2_rw(d), 0x12345678);
    qtest_writel(d->qts, qivshmem2_output(d, TEST_ID), 0x9abcdef0);
    for (int i = 0; i < 3; i++) {
        switch (i) {
        case 0:
            qpci_config_writew(&d->dev, PCI_COMMAND, 0);
            break;
        case 1:
            reset_function(d);
            break;
        case 2:
            qtest_system_reset(d->qts);
            break;
        }
        check_fixed_config(d);
        g_assert_cmphex(qtest_readl(d->qts, BASE + TEST_TABLE), ==,
                        0x12345678);
        g_assert_cmphex(qtest_readl(d->qts, qivshmem2_output(d, TEST_ID)), ==,
                        0x9abcdef0);
        g_assert_true(has_memory(d->qts, BASE + TEST_TABLE + TEST_RW - 4));
        g_assert_false(has_memory(d->qts, BASE));
        g_assert_false(has_memory(d->qts, qivshmem2_output(d, 0)));
        g_assert_false(has_memory(d->qts, BASE + TEST_TOTAL));
        g_assert_false(has_memory(d->qts, BASE - 4));
        qivshmem2_start(d);
        qivshmem2_enable(d);
        qivshmem2_expect_ring(peer, d, 1);
        qivshmem2_set_state(peer, i + 1);
        qivshmem2_wait(d, 0);
        g_assert_cmphex(qivshmem2_entry(d, 0), ==, i + 1);
        g_assert_cmphex(qtest_readl(peer->qts, qivshmem2_rw(peer)), ==,
                        0x12345678);
    }
}

/* How many regions of ivshmem2 devices do the processors see? */
static unsigned count_regions(QTestState *qts)
{
    g_autofree char *tree = qtest_hmp(qts, "info mtree -f");
    unsigned n = 0;

    for (char *p = tree; (p = strstr(p, ": ivshmem2-")); p++) {
        n++;
    }
    return n;
}

static char *plug_at(QIvshmem2 *d, TestLink *link, uint64_t address)
{
    return test_link_plug(d->qts, "hot", link->socket, 0,
                          qdict_from_jsonf_nofail(
                              "{ 'addr': '06.0', 'peer-id': '2',"
                              "  'base-address': %" PRIu64 " }", address));
}

static void test_fixed_unplug(void *obj, void *opaque, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj, *hot;
    unsigned regions = count_regions(d->qts);

    for (int i = 0; i < 3; i++) {
        g_autofree char *error = plug_at(d, opaque, OTHER_BASE);

        g_assert_null(error);
        hot = test_link_add_device(d, QPCI_DEVFN(HOT_SLOT, 0));
        g_assert_true(has_memory(d->qts, OTHER_BASE + TEST_TABLE));
        qivshmem2_start(hot);
        g_assert_cmphex(hot->memory, ==, OTHER_BASE);
        qivshmem2_enable(hot);
        qivshmem2_expect_ring(d, hot, 2);
        qtest_writel(d->qts, BASE + TEST_TABLE, i + 1);
        g_assert_cmphex(qtest_readl(d->qts, OTHER_BASE + TEST_TABLE), ==,
                        i + 1);
        qpci_unplug_acpi_device_test(d->qts, "hot", HOT_SLOT);
        g_assert_cmpuint(count_regions(d->qts), ==, regions);
        test_link_remove_chardev(d->qts, "hot");
        g_assert_cmphex(qtest_readl(d->qts, OTHER_BASE + TEST_TABLE), !=,
                        i + 1);
        g_assert_false(has_memory(d->qts, OTHER_BASE + TEST_TABLE));
        g_assert_cmphex(qtest_readl(d->qts, BASE + TEST_TABLE), ==, i + 1);
    }
}

/*
 * What cannot be: O3
 */

static const struct {
    uint64_t address;
    const char *words;
} impossible[] = {
    { 0, "'pc.ram'" },
    { 16 * MiB, "'pc.ram'" },
    { 3 * GiB, "a window of the PCI bus" },
    { 5 * GiB, "a window of the PCI bus" },
    { 0xa0000, "from 0xa0000" },
    { 0xfec00000, "'ioapic'" },
    { 0xfee00000, "'apic-msi'" },
    { 0xfffc0000, "'pc.bios'" },
    { BASE, "'ivshmem2-state-table' of /machine/peripheral/ivshmem2" },
    { BASE - 4 * KiB, "'ivshmem2-state-table'" },
    { BASE + TEST_TOTAL - 4 * KiB, "'ivshmem2-output" },
    { OTHER_BASE + 1, "no multiple of the link's page size, 0x1000" },
    { OTHER_BASE + 2 * KiB, "no multiple of the link's page size, 0x1000" },
    { TiB, "physical addresses have 40 bits" },
    { TiB - 4 * KiB, "physical addresses have 40 bits" },
    { UINT64_C(1) << 63, "physical addresses have 40 bits" },
    { -UINT64_C(0x5000), "would not end below 2^64" },
};

static void test_fixed_refused(void *obj, void *opaque, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;
    unsigned regions = count_regions(d->qts);
    unsigned fds = test_link_count_fds(d->qts);

    for (int i = 0; i < ARRAY_SIZE(impossible); i++) {
        g_autofree char *error = plug_at(d, opaque, impossible[i].address);
        g_autofree char *address = g_strdup_printf(
            "base-address=0x%" PRIx64, impossible[i].address);

        g_test_message("%s", error ?: "plugged");
        g_assert_nonnull(error);
        g_assert_nonnull(strstr(error, address));
        g_assert_nonnull(strstr(error, impossible[i].words));
        g_assert_cmpuint(count_regions(d->qts), ==, regions);
        test_link_wait_fds(d->qts, fds);
    }
    /* the ID is free, and what is next to the device's own memory */
    g_assert_null(plug_at(d, opaque, BASE + TEST_TOTAL));
    g_assert_true(has_memory(d->qts, BASE + TEST_TOTAL + TEST_TABLE));
    g_assert_true(has_memory(d->qts, BASE + TEST_TABLE));
    test_link_unplug(d->qts, "hot", HOT_SLOT);
}

/* Expect that QEMU does not start, with an error that says @words. */
static void check_start_fails(TestLink *link, const char *machine,
                              const char *property, const char *words)
{
    g_autofree char *command = g_strdup_printf(
        "%s -display none -nodefaults -accel qtest -machine %s"
        " -chardev socket,id=c,path=%s -device ivshmem2,chardev=c,%s",
        getenv("QTEST_QEMU_BINARY"), machine, link->socket, property);
    g_autofree char *said = NULL;
    g_autoptr(GError) err = NULL;
    int status;

    g_spawn_command_line_sync(command, NULL, &said, &status, &err);
    g_assert_no_error(err);
    g_test_message("%s", said);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    g_assert_nonnull(strstr(said, words));
}

static void test_fixed_refused_at_start(void *obj, void *link,
                                        QGuestAllocator *alloc)
{
    check_start_fails(link, "q35", "base-address=0x10000000",
                      "a window of the PCI bus");
    check_start_fails(link, "q35", "base-address=20G",
                      "from 0x100000000 to 0x8ffffffff there is a window of "
                      "the PCI bus");
    check_start_fails(link, "pc", "base-address=0x100000", "'pc.ram'");
    check_start_fails(link, "pc -m 64M,slots=1,maxmem=1G",
                      "base-address=0x100000000",
                      "there is room for RAM to be plugged in");
    check_start_fails(link, "pc -m 6G", "base-address=0x100000000",
                      "'pc.ram'");
    check_start_fails(link, "pc -cpu qemu64,phys-bits=36",
                      "base-address=0x1000000000",
                      "physical addresses have 36 bits");
    check_start_fails(link, "pc", "base-address=-1", "base-address");
    check_start_fails(link, "pc", "registers=ports", "registers");
}

static void test_io_refused(void *obj, void *link, QGuestAllocator *alloc)
{
    if (!qtest_has_machine("microvm")) {
        g_test_skip("this QEMU has no machine without I/O space (microvm)");
        return;
    }
    check_start_fails(link, "microvm,pcie=on", "registers=io",
                      "the PCI bus of this machine has no I/O space");
    check_start_fails(link, "microvm,pcie=on", "base-address=0xc0000000",
                      "gpex_mmio_window");
}

static void check_constant(QIvshmem2 *d, const char *name, const char *value,
                           const char *words)
{
    QDict *response = qtest_qmp_assert_failure_ref(d->qts,
        "{ 'execute': 'qom-set', 'arguments': { 'property': %s,"
        "  'path': '/machine/peripheral/" QIVSHMEM2_ID "', 'value': %s } }",
        name, value);

    g_assert_nonnull(strstr(qdict_get_str(response, "desc"), words));
    qobject_unref(response);
}

static void test_properties(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 *d = obj;

    g_assert_cmphex(test_link_get(d->qts, QIVSHMEM2_ID, "base-address"), ==,
                    BASE);
    check_constant(d, "base-address", "0", "cannot change");
    check_constant(d, "registers", "io", "cannot change");
}

static void register_ivshmem2_forms_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
        const TestLinkSetup *setup;
    } tests[] = {
        { "forms/io/config", test_io_config, &setup_io },
        { "forms/io/command", test_io_command, &setup_io },
        { "forms/io/widths", test_io_widths, &setup_io },
        { "forms/io/moved", test_io_moved, &setup_io },
        { "forms/io/reset", test_io_reset, &setup_io },
        { "forms/fixed/config", test_fixed_config, &setup_fixed },
        { "forms/fixed/memory", test_fixed_memory, &setup_fixed },
        { "forms/fixed/unplug", test_fixed_unplug, &setup_fixed },
        { "forms/fixed/refused", test_fixed_refused, &setup_fixed },
        { "forms/properties", test_properties, &setup_fixed },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "ivshmem2", tests[i].function,
                      tests[i].setup);
    }
    test_link_add("ivshmem2/forms/fixed/refused-at-start", "pci-bus",
                  test_fixed_refused_at_start, &setup_pc);
    test_link_add("ivshmem2/forms/io/refused", "pci-bus", test_io_refused,
                  &setup_pc);
}

libqos_init(register_ivshmem2_forms_test);
