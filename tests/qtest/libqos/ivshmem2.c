/*
 * libqos driver for ivshmem2
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "../libqtest.h"
#include "hw/pci/pci_regs.h"
#include "qemu/module.h"
#include "ivshmem2.h"

/* The address of 64-bit BARs that are too large for the bus's window */
#define HIGH_MEMORY     (UINT64_C(1) << 40)

#define MESSAGE(vector) (0x5a000000 | (vector))
#define WAIT_SECONDS    60

uint32_t qivshmem2_bar_mask(QIvshmem2 *d, int bar)
{
    uint8_t reg = PCI_BASE_ADDRESS_0 + bar * 4;
    uint32_t old = qpci_config_readl(&d->dev, reg);
    uint32_t mask;

    qpci_config_writel(&d->dev, reg, 0xffffffff);
    mask = qpci_config_readl(&d->dev, reg);
    qpci_config_writel(&d->dev, reg, old);
    return mask;
}

uint32_t qivshmem2_readl(QIvshmem2 *d, uint32_t reg)
{
    return d->ports ? qtest_inl(d->qts, d->regs + reg)
                    : qtest_readl(d->qts, d->regs + reg);
}

void qivshmem2_writel(QIvshmem2 *d, uint32_t reg, uint32_t value)
{
    if (d->ports) {
        qtest_outl(d->qts, d->regs + reg, value);
    } else {
        qtest_writel(d->qts, d->regs + reg, value);
    }
}

uint32_t qivshmem2_id(QIvshmem2 *d)
{
    return qivshmem2_readl(d, IVSHMEM2_REG_ID);
}

void qivshmem2_set_state(QIvshmem2 *d, uint32_t state)
{
    qivshmem2_writel(d, IVSHMEM2_REG_STATE, state);
}

void qivshmem2_enable(QIvshmem2 *d)
{
    qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL, IVSHMEM2_INT_ENABLE);
}

void qivshmem2_disable(QIvshmem2 *d)
{
    qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL, 0);
}

void qivshmem2_ring(QIvshmem2 *d, uint32_t target, uint32_t vector)
{
    qivshmem2_writel(d, IVSHMEM2_REG_DOORBELL,
                     target << IVSHMEM2_DOORBELL_TARGET_SHIFT | vector);
}

bool qivshmem2_arrived(QIvshmem2 *d, unsigned vector)
{
    uint64_t message = d->messages + vector * 4;
    uint32_t data = qtest_readl(d->qts, message);

    if (!data) {
        return false;
    }
    g_assert_cmphex(data, ==, MESSAGE(vector));
    qtest_writel(d->qts, message, 0);
    return true;
}

void qivshmem2_wait(QIvshmem2 *d, unsigned vector)
{
    gint64 end = g_get_monotonic_time() + WAIT_SECONDS * G_USEC_PER_SEC;

    while (!qivshmem2_arrived(d, vector)) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(500);
    }
}

void qivshmem2_expect_ring(QIvshmem2 *from, QIvshmem2 *to, unsigned vector)
{
    qivshmem2_ring(from, qivshmem2_id(to), vector);
    qivshmem2_wait(to, vector);
}

uint32_t qivshmem2_entry(QIvshmem2 *d, uint32_t id)
{
    return qtest_readl(d->qts, d->memory + id * 4);
}

uint64_t qivshmem2_rw(QIvshmem2 *d)
{
    return d->memory + d->state_table_size;
}

uint64_t qivshmem2_output(QIvshmem2 *d, uint32_t id)
{
    return qivshmem2_rw(d) + d->rw_size + id * d->output_size;
}

void qivshmem2_set_command(QIvshmem2 *d, uint16_t bit, bool on)
{
    uint16_t command = qpci_config_readw(&d->dev, PCI_COMMAND);

    qpci_config_writew(&d->dev, PCI_COMMAND,
                       on ? command | bit : command & ~bit);
}

void qivshmem2_set_msix_flag(QIvshmem2 *d, uint16_t flag, bool on)
{
    uint16_t flags = qpci_config_readw(&d->dev, d->msix_cap + PCI_MSIX_FLAGS);

    qpci_config_writew(&d->dev, d->msix_cap + PCI_MSIX_FLAGS,
                       on ? flags | flag : flags & ~flag);
}

void qivshmem2_mask(QIvshmem2 *d, unsigned vector, bool masked)
{
    qtest_writel(d->qts, d->msix + vector * PCI_MSIX_ENTRY_SIZE +
                 PCI_MSIX_ENTRY_VECTOR_CTRL,
                 masked ? PCI_MSIX_ENTRY_CTRL_MASKBIT : 0);
}

void qivshmem2_set_one_shot(QIvshmem2 *d, bool on)
{
    qpci_config_writeb(&d->dev, d->cap + IVSHMEM2_CAP_PRIV_CONTROL,
                       on ? IVSHMEM2_PRIV_ONE_SHOT : 0);
}

static uint64_t config_readq(QIvshmem2 *d, uint8_t offset)
{
    return qpci_config_readl(&d->dev, offset) |
           (uint64_t)qpci_config_readl(&d->dev, offset + 4) << 32;
}

/* Returns the address; a second call finds the BAR where it was before. */
static uint64_t map_bar(QIvshmem2 *d, int bar, uint64_t addr, uint64_t *size)
{
    uint8_t reg = PCI_BASE_ADDRESS_0 + bar * 4;
    QPCIBus *bus = d->dev.bus;
    uint64_t mask = ~UINT64_C(0xffffffff);
    bool is_64bit;

    qpci_config_writel(&d->dev, reg, 0xffffffff);
    mask |= qpci_config_readl(&d->dev, reg);
    is_64bit = (mask & PCI_BASE_ADDRESS_MEM_TYPE_MASK) ==
               PCI_BASE_ADDRESS_MEM_TYPE_64;
    g_assert_cmphex(mask & PCI_BASE_ADDRESS_SPACE, ==,
                    PCI_BASE_ADDRESS_SPACE_MEMORY);
    if (is_64bit) {
        qpci_config_writel(&d->dev, reg + 4, 0xffffffff);
        mask &= (uint64_t)qpci_config_readl(&d->dev, reg + 4) << 32 |
                UINT32_MAX;
    }
    mask &= PCI_BASE_ADDRESS_MEM_MASK;
    *size = -mask;

    if (!addr) {
        addr = QEMU_ALIGN_UP(bus->mmio_alloc_ptr, *size);
        if (addr + *size <= bus->mmio_limit) {
            bus->mmio_alloc_ptr = addr + *size;
        } else {
            g_assert(is_64bit);
            addr = QEMU_ALIGN_UP(HIGH_MEMORY, *size);
        }
    }
    qpci_config_writel(&d->dev, reg, addr);
    if (is_64bit) {
        qpci_config_writel(&d->dev, reg + 4, addr >> 32);
    }
    return addr;
}

static uint64_t map_ports(QIvshmem2 *d, uint64_t port)
{
    if (!port) {
        d->dev.bus->pio_alloc_ptr = QEMU_ALIGN_UP(d->dev.bus->pio_alloc_ptr,
                                                  IVSHMEM2_REGS_SIZE_IO);
        port = d->dev.bus->pio_alloc_ptr;
        d->dev.bus->pio_alloc_ptr += IVSHMEM2_REGS_SIZE_IO;
    }
    qpci_config_writel(&d->dev, PCI_BASE_ADDRESS_0, port);
    qivshmem2_set_command(d, PCI_COMMAND_IO, true);
    return port;
}

static void start_msix(QIvshmem2 *d)
{
    for (unsigned i = 0; i < d->vectors; i++) {
        uint64_t entry = d->msix + i * PCI_MSIX_ENTRY_SIZE;
        uint64_t message = d->messages + i * 4;

        qtest_writel(d->qts, message, 0);
        qtest_writel(d->qts, entry + PCI_MSIX_ENTRY_LOWER_ADDR, message);
        qtest_writel(d->qts, entry + PCI_MSIX_ENTRY_UPPER_ADDR,
                     message >> 32);
        qtest_writel(d->qts, entry + PCI_MSIX_ENTRY_DATA, MESSAGE(i));
        qtest_writel(d->qts, entry + PCI_MSIX_ENTRY_VECTOR_CTRL, 0);
    }
    qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_ENABLE, true);
}

void qivshmem2_start(QIvshmem2 *d)
{
    uint64_t size;

    d->regs = d->ports ? map_ports(d, d->regs)
                       : map_bar(d, IVSHMEM2_BAR_REGS, d->regs, &size);
    if (!d->fixed) {
        d->memory = map_bar(d, IVSHMEM2_BAR_MEMORY, d->memory,
                            &d->memory_size);
    }
    if (d->msix_cap) {
        d->msix = map_bar(d, IVSHMEM2_BAR_MSIX, d->msix, &size);
    }
    qivshmem2_set_command(d, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER, true);
    if (d->fixed) {
        d->memory_size = d->state_table_size + d->rw_size + d->output_size *
                         qivshmem2_readl(d, IVSHMEM2_REG_MAX_PEERS);
    }
    if (d->msix_cap) {
        start_msix(d);
    }
}

void qivshmem2_init(QIvshmem2 *d, QPCIBus *bus, int devfn,
                    QGuestAllocator *alloc)
{
    QPCIAddress addr = {
        .devfn = devfn,
        .vendor_id = IVSHMEM2_PCI_VENDOR_ID,
        .device_id = IVSHMEM2_PCI_DEVICE_ID,
    };

    qpci_device_init(&d->dev, bus, &addr);
    d->qts = bus->qts;
    d->alloc = alloc;
    d->cap = qpci_find_capability(&d->dev, PCI_CAP_ID_VNDR, 0);
    g_assert_cmphex(d->cap, !=, 0);
    d->state_table_size =
        qpci_config_readl(&d->dev, d->cap + IVSHMEM2_CAP_STATE_TABLE_SIZE);
    d->rw_size = config_readq(d, d->cap + IVSHMEM2_CAP_RW_SIZE);
    d->output_size = config_readq(d, d->cap + IVSHMEM2_CAP_OUTPUT_SIZE);
    d->ports = qpci_config_readl(&d->dev, PCI_BASE_ADDRESS_0) &
               PCI_BASE_ADDRESS_SPACE_IO;
    d->fixed = qpci_config_readb(&d->dev, d->cap + IVSHMEM2_CAP_LENGTH) >=
               IVSHMEM2_CAP_SIZE_BASE;
    if (d->fixed) {
        d->memory = config_readq(d, d->cap + IVSHMEM2_CAP_BASE_ADDRESS);
    }
    d->msix_cap = qpci_find_capability(&d->dev, PCI_CAP_ID_MSIX, 0);
    if (d->msix_cap) {
        d->vectors = qpci_msix_table_size(&d->dev);
        d->messages = guest_alloc(alloc, d->vectors * 4);
    } else {
        d->vectors = 1;
    }
}

static void *qivshmem2_get_driver(void *obj, const char *interface)
{
    fprintf(stderr, "%s not present in ivshmem2\n", interface);
    g_assert_not_reached();
}

static void qivshmem2_start_hw(QOSGraphObject *obj)
{
    qivshmem2_start((QIvshmem2 *)obj);
}

static void *qivshmem2_create(void *pci_bus, QGuestAllocator *alloc,
                              void *addr)
{
    QIvshmem2 *d = g_new0(QIvshmem2, 1);
    QPCIAddress *pci_addr = addr;

    qivshmem2_init(d, pci_bus, pci_addr->devfn, alloc);
    d->obj.get_driver = qivshmem2_get_driver;
    d->obj.start_hw = qivshmem2_start_hw;
    return &d->obj;
}

/*
 * It consumes a PCI bus, but produces no "pci-device": the tests that run with
 * all PCI devices cannot use it, because it needs a server.
 */
static void qivshmem2_register_nodes(void)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(QIVSHMEM2_SLOT, 0) };
    QOSGraphEdgeOptions opts = {
        .extra_device_opts = "id=" QIVSHMEM2_ID ",addr=04.0,"
                             "chardev=" QIVSHMEM2_ID,
    };

    add_qpci_address(&opts, &addr);
    qos_node_create_driver("ivshmem2", qivshmem2_create);
    qos_node_consumes("ivshmem2", "pci-bus", &opts);
}

libqos_init(qivshmem2_register_nodes);
