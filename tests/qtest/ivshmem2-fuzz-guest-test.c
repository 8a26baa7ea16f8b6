/*
 * ivshmem2 tests: guests that write random values anywhere
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "hw/pci/pci_regs.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "qobject/qjson.h"
#include "ivshmem2-link.h"
#include "ivshmem2-random.h"

#define WILD_SLOT       5
#define WILD_PEERS      4
#define WILD_ACTIONS    300

static const TestLinkSetup setup_msix = {
    .server = "--max-peers 4 --vectors 3 --rw-size 8K --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=1",
};

static const TestLinkSetup setup_intx = {
    .server = "--max-peers 4 --intx --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=1",
};

/* Two devices whose guest keeps no rules, and a peer whose guest does */
typedef struct Wild {
    GRand *rand;
    QIvshmem2 *d[2];
    const char *name[2];        /* for QEMU */
    uint8_t config[2][PCI_CFG_SPACE_SIZE];   /* right after the start */
    QTestState *qts;
    bool paused;
    bool moved;                 /* BARs */
    QIvshmem2 *good;
    uint32_t good_state;
} Wild;

/* A read or a write of any width */
static void wild_access(Wild *w, uint64_t addr)
{
    uint64_t value = any_value(w->rand);
    uint8_t block[64];

    switch (g_rand_int_range(w->rand, 0, 10)) {
    case 0:
        qtest_writeb(w->qts, addr, value);
        break;
    case 1:
        qtest_writew(w->qts, addr, value);
        break;
    case 2:
    case 3:
        qtest_writel(w->qts, addr, value);
        break;
    case 4:
        qtest_writeq(w->qts, addr, value);
        break;
    case 5:
        memset(block, value, sizeof(block));
        qtest_memwrite(w->qts, addr, block,
                       g_rand_int_range(w->rand, 1, sizeof(block)));
        break;
    case 6:
        qtest_memread(w->qts, addr, block,
                      g_rand_int_range(w->rand, 1, sizeof(block)));
        break;
    case 7:
        qtest_readb(w->qts, addr);
        break;
    case 8:
        qtest_readl(w->qts, addr);
        break;
    default:
        qtest_readq(w->qts, addr);
        break;
    }
}

static void wild_registers(Wild *w, QIvshmem2 *d)
{
    uint32_t all = one_in(w->rand, 4) ? 4 * KiB : IVSHMEM2_REG_STATE + 8;
    uint32_t offset = g_rand_int_range(w->rand, 0, all);

    if (one_in(w->rand, 2)) {
        qivshmem2_writel(d, QEMU_ALIGN_DOWN(offset, 4), any_value(w->rand));
    } else {
        wild_access(w, d->regs + offset);
    }
}

/* Around the ends of sections, or anywhere */
static void wild_memory(Wild *w, QIvshmem2 *d)
{
    uint64_t edges[] = {
        8, d->state_table_size, d->state_table_size + d->rw_size,
        d->state_table_size + d->rw_size +
            d->output_size * g_rand_int_range(w->rand, 0, WILD_PEERS + 1),
        d->memory_size - 8,
    };
    uint64_t offset = edges[g_rand_int_range(w->rand, 0, ARRAY_SIZE(edges))] +
                      g_rand_int_range(w->rand, -8, 8);

    if (one_in(w->rand, 2)) {
        offset = g_rand_int(w->rand) % d->memory_size;
    }
    wild_access(w, d->memory + offset);
}

static void wild_config(Wild *w, QIvshmem2 *d)
{
    uint32_t value = any_value(w->rand);
    uint8_t offset = g_rand_int(w->rand);

    switch (g_rand_int_range(w->rand, 0, 6)) {
    case 0:                     /* most writable bits are in the header */
        offset %= PCI_STD_HEADER_SIZEOF;
        /* fall through */
    case 1:
        qpci_config_writel(&d->dev, offset, value);
        break;
    case 2:
        qpci_config_writew(&d->dev, offset, value);
        break;
    case 3:
        qpci_config_writeb(&d->dev, offset, value);
        break;
    case 4:
        qpci_config_readw(&d->dev, offset);
        break;
    default:
        qivshmem2_set_command(d, 1 << (offset % 16), value % 2);
        break;
    }
}

/* BARs can be anywhere: on each other, on RAM, half or not mapped. */
static void wild_bar(Wild *w, QIvshmem2 *d)
{
    QIvshmem2 *e = w->d[g_rand_int_range(w->rand, 0, 2)];
    uint64_t places[] = {
        e->regs, e->msix, e->memory, e->messages, d->regs, d->msix, d->memory,
        0, UINT32_MAX, MiB, 0xfee00000, 0xfec00000, 0xe0000, any_value(w->rand),
    };
    uint64_t address = places[g_rand_int_range(w->rand, 0,
                                               ARRAY_SIZE(places))];
    uint8_t bar = g_rand_int_range(w->rand, 0, 4);

    w->moved = true;
    if (bar < 3) {
        qpci_config_writel(&d->dev, PCI_BASE_ADDRESS_0 + 4 * bar, address);
    } else {
        /* the upper half of the memory's address, or of the others */
        qpci_config_writel(&d->dev, PCI_BASE_ADDRESS_3,
                           one_in(w->rand, 2) ? 0 : any_value(w->rand));
    }
}

/* MSIs are memory writes, and can go to the devices themselves. */
static uint64_t wild_message(Wild *w, QIvshmem2 *d)
{
    QIvshmem2 *e = w->d[g_rand_int_range(w->rand, 0, 2)];
    uint32_t offset = g_rand_int(w->rand) % 64;
    uint64_t high = UINT64_C(1) << g_rand_int_range(w->rand, 32, 64);

    switch (g_rand_int_range(w->rand, 0, 9)) {
    case 0:
        return e->regs + offset % 32;
    case 1:
        return e->regs + IVSHMEM2_REG_INT_CONTROL +
               4 * g_rand_int_range(w->rand, 0, 3);
    case 2:
        return e->msix + offset;
    case 3:
        return e->memory + d->state_table_size + offset;
    case 4:
        return 0xfee00000 | any_value(w->rand) % MiB;
    case 5:
        return high | 0xfee00000;
    case 6:
        return high | e->regs;
    case 7:
        return one_in(w->rand, 2) ? 0 : UINT64_MAX;
    default:
        return any_value(w->rand);
    }
}

static uint64_t read_pba(QIvshmem2 *d)
{
    uint32_t pba = qpci_config_readl(&d->dev, d->msix_cap + PCI_MSIX_PBA);

    return qtest_readq(d->qts, d->msix + (pba & ~PCI_MSIX_PBA_BIR));
}

static void wild_msix(Wild *w, QIvshmem2 *d)
{
    unsigned vector = g_rand_int_range(w->rand, 0, d->vectors);
    uint64_t entry = d->msix + vector * PCI_MSIX_ENTRY_SIZE;

    if (!d->msix_cap) {
        return;
    }
    switch (g_rand_int_range(w->rand, 0, 4)) {
    case 0:
        wild_access(w, d->msix + g_rand_int(w->rand) % (4 * KiB));
        break;
    case 1:
        qtest_writeq(w->qts, entry, wild_message(w, d));
        qtest_writel(w->qts, entry + PCI_MSIX_ENTRY_DATA,
                     one_in(w->rand, 2) ? any_value(w->rand) :
                     qivshmem2_id(d) << 16 | vector);
        break;
    case 2:
        qivshmem2_mask(d, vector, one_in(w->rand, 3));
        if (!w->moved &&
            qtest_readl(w->qts, entry + PCI_MSIX_ENTRY_VECTOR_CTRL) <= 1) {
            /* the BAR has not been moved */
            g_assert_cmphex(read_pba(d), ==, 0);
        }
        break;
    default:
        qivshmem2_set_msix_flag(d, one_in(w->rand, 2) ? PCI_MSIX_FLAGS_ENABLE
                                : PCI_MSIX_FLAGS_MASKALL,
                                one_in(w->rand, 2));
        break;
    }
}

static void wild_pause(Wild *w, bool pause)
{
    if (pause != w->paused) {
        qtest_qmp_assert_success(w->qts, "{ 'execute': %s }",
                                 pause ? "stop" : "cont");
        w->paused = pause;
    }
}

static void wild_start(Wild *w)
{
    /* Neither must lie on the other while this reads and writes. */
    for (int i = 0; i < 2; i++) {
        qpci_config_writew(&w->d[i]->dev, PCI_COMMAND, 0);
    }
    for (int i = 0; i < 2; i++) {
        qivshmem2_start(w->d[i]);
    }
    w->moved = false;
}

static void wild_act(Wild *w)
{
    QIvshmem2 *d = w->d[g_rand_int_range(w->rand, 0, 2)];
    QIvshmem2 *from = one_in(w->rand, 2) ? d : w->good;

    switch (g_rand_int_range(w->rand, 0, 28)) {
    case 0 ... 3:
        wild_registers(w, d);
        break;
    case 4 ... 7:
        wild_msix(w, d);
        break;
    case 8 ... 9:
        wild_config(w, d);
        break;
    case 10 ... 12:
        wild_memory(w, d);
        break;
    case 13 ... 17:
        qivshmem2_ring(from, g_rand_int_range(w->rand, 0, WILD_PEERS + 1),
                       g_rand_int_range(w->rand, 0, d->vectors + 1));
        break;
    case 18:
        w->good_state = any_value(w->rand);
        qivshmem2_set_state(w->good, w->good_state);
        break;
    case 19 ... 20:
        qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL,
                         one_in(w->rand, 3) ? any_value(w->rand) : 1);
        break;
    case 21:
        qivshmem2_set_one_shot(d, one_in(w->rand, 2));
        break;
    case 22:
        wild_pause(w, one_in(w->rand, 2));
        break;
    case 23 ... 24:
        wild_bar(w, d);
        break;
    case 25:
        qivshmem2_set_command(d, one_in(w->rand, 2) ? PCI_COMMAND_MEMORY
                              : PCI_COMMAND_MASTER, one_in(w->rand, 2));
        break;
    default:
        /* Otherwise nothing would remain accessible after a while. */
        if (one_in(w->rand, 8)) {
            wild_pause(w, false);
            qtest_system_reset(w->qts);
        }
        wild_start(w);
        break;
    }
}

static void read_config(QIvshmem2 *d, uint8_t *config)
{
    for (int i = 0; i < PCI_CFG_SPACE_SIZE; i++) {
        config[i] = qpci_config_readb(&d->dev, i);
    }
    /* Writable, without an effect on the device */
    config[PCI_CACHE_LINE_SIZE] = 0;
    config[PCI_INTERRUPT_LINE] = 0;
}

/* From here on, both devices are used according to the rules. */
static void wild_calm(Wild *w)
{
    wild_pause(w, false);
    /* neither sends messages any more */
    for (int i = 0; i < 2; i++) {
        QIvshmem2 *d = w->d[i];

        if (d->msix_cap) {
            qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_ENABLE |
                                    PCI_MSIX_FLAGS_MASKALL, false);
        }
        qivshmem2_set_one_shot(d, false);
    }
    wild_start(w);
}

/* Ring, and wait for the interrupt, with MSI-X or INTx. */
static void expect_ring(QIvshmem2 *from, QIvshmem2 *to, const char *name,
                        unsigned vector)
{
    uint64_t before;

    if (to->msix_cap) {
        qivshmem2_ring(from, qivshmem2_id(to), vector);
        qivshmem2_wait(to, vector);
        return;
    }
    before = test_link_get(to->qts, name, "interrupts-received");
    qivshmem2_ring(from, qivshmem2_id(to), vector);
    test_link_wait_until(test_link_get(to->qts, name,
                                       "interrupts-received") != before);
}

static void check_wild_device(Wild *w, int i, bool was_reset)
{
    QIvshmem2 *d = w->d[i];
    uint64_t end = qivshmem2_output(d, WILD_PEERS);
    uint32_t state = qivshmem2_readl(d, IVSHMEM2_REG_STATE);
    uint32_t int_control = qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL);
    uint8_t config[PCI_CFG_SPACE_SIZE];

    read_config(d, config);
    g_assert_cmpmem(config, sizeof(config), w->config[i],
                    sizeof(w->config[i]));
    g_assert_cmpuint(qivshmem2_id(d), ==, i + 1);
    g_assert_cmpuint(qivshmem2_readl(d, IVSHMEM2_REG_MAX_PEERS), ==,
                     WILD_PEERS);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_DOORBELL), ==, 0);
    g_assert_cmphex(int_control, <=, was_reset ? 0 : 1);
    g_assert_cmphex(state, <=, was_reset ? 0 : UINT32_MAX);
    g_assert_cmphex(qivshmem2_entry(d, i + 1), ==, state);
    g_assert_cmphex(qivshmem2_entry(w->good, i + 1), ==, state);

    if (d->msix_cap) {
        g_assert_cmphex(read_pba(d), ==, 0);
    }
    g_assert_cmphex(qivshmem2_entry(d, 0), ==, 0);
    g_assert_cmphex(qivshmem2_entry(d, 3), ==, w->good_state);
    for (uint64_t at = d->memory + 16; at < d->memory + d->state_table_size;
         at += 8) {
        g_assert_cmphex(qtest_readq(d->qts, at), ==, 0);
    }
    for (uint64_t at = 0; at < d->output_size; at += 8) {
        g_assert_cmphex(qtest_readq(d->qts, qivshmem2_output(d, 0) + at), ==,
                        0);
        g_assert_cmphex(qtest_readq(d->qts, qivshmem2_output(d, 3) + at), ==,
                        at);
    }
    while (end < d->memory + d->memory_size) {
        g_assert_cmphex(qtest_readq(d->qts, end), ==, 0);
        end += KiB;
    }
}

/* The devices work as if the guest had always kept the rules. */
static void check_wild(Wild *w)
{
    QIvshmem2 *good = w->good;
    bool was_reset = one_in(w->rand, 2);

    wild_pause(w, false);
    if (was_reset) {
        qtest_system_reset(w->qts);
    }
    wild_calm(w);
    g_assert_cmpuint(qivshmem2_id(good), ==, 3);
    g_assert_cmphex(qivshmem2_readl(good, IVSHMEM2_REG_INT_CONTROL), ==, 1);
    g_assert_cmphex(qivshmem2_readl(good, IVSHMEM2_REG_STATE), ==,
                    w->good_state);
    g_assert_cmphex(qivshmem2_entry(good, 3), ==, w->good_state);
    for (int i = 0; i < 2; i++) {
        check_wild_device(w, i, was_reset);
    }

    for (int i = 0; i < 2; i++) {
        QIvshmem2 *d = w->d[i];
        QIvshmem2 *other = w->d[!i];
        unsigned last = d->vectors - 1;

        qivshmem2_disable(d);
        for (unsigned v = 0; v < d->vectors && d->msix_cap; v++) {
            qivshmem2_arrived(d, v);
            qivshmem2_arrived(good, v);
        }
        qivshmem2_enable(d);
        expect_ring(good, d, w->name[i], last);
        expect_ring(d, good, QIVSHMEM2_ID, last);
        expect_ring(other, d, w->name[i], last);
        if (d->msix_cap) {
            /* and no other vector */
            g_assert_false(qivshmem2_arrived(d, 1));
        }
    }
}

static void test_guest(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    uint32_t seed = first_seed();
    QIvshmem2 second = {};
    Wild w = {
        .rand = g_rand_new(),
        .d = { obj, &second },
        .name = { QIVSHMEM2_ID, "second" },
    };
    int n = count_rounds(20);

    w.qts = w.d[0]->qts;
    w.good = test_link_peer(link, "-global ivshmem2.peer-id=3");
    g_assert_null(test_link_plug(w.qts, w.name[1], link->socket, 0,
                                 qdict_from_jsonf_nofail("{ 'addr': '05.0',"
                                                         "  'peer-id': 2 }")));
    qivshmem2_init(&second, w.d[0]->dev.bus, QPCI_DEVFN(WILD_SLOT, 0), alloc);
    for (uint64_t at = 0; at < w.good->output_size; at += 8) {
        qtest_writeq(w.good->qts, qivshmem2_output(w.good, 3) + at, at);
    }
    wild_calm(&w);
    for (int i = 0; i < 2; i++) {
        read_config(w.d[i], w.config[i]);
    }
    for (int i = 0; i < n; i++) {
        g_test_message("seed %u", seed + i);
        g_rand_set_seed(w.rand, seed + i);
        for (int j = 0; j < WILD_ACTIONS; j++) {
            wild_act(&w);
        }
        check_wild(&w);
    }
    g_rand_free(w.rand);
}

/*
 * Messages that do harm
 */

#define CHAIN       2048
#define STACK       MiB

static const TestLinkSetup setup_chain = {
    .server = "--max-peers 2 --vectors 2048",
};

static void set_message(QIvshmem2 *d, unsigned vector, uint64_t address,
                        uint32_t data)
{
    uint64_t entry = d->msix + vector * PCI_MSIX_ENTRY_SIZE;

    qtest_writeq(d->qts, entry, address);
    qtest_writel(d->qts, entry + PCI_MSIX_ENTRY_DATA, data);
}

/* The message of each vector writes the next vector's message. */
static void test_chain(void *obj, void *opaque, QGuestAllocator *alloc)
{
    struct rlimit normal, small = { .rlim_cur = STACK };
    unsigned last = CHAIN - 1;
    uint32_t value;
    QIvshmem2 *d;

    g_assert_cmpint(getrlimit(RLIMIT_STACK, &normal), ==, 0);
    small.rlim_max = normal.rlim_max;
    g_assert_cmpint(setrlimit(RLIMIT_STACK, &small), ==, 0);
    d = test_link_peer(opaque, NULL);
    g_assert_cmpint(setrlimit(RLIMIT_STACK, &normal), ==, 0);
    g_assert_cmpuint(d->vectors, ==, CHAIN);

    qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_MASKALL, true);
    value = qtest_readl(d->qts, d->msix + last * PCI_MSIX_ENTRY_SIZE +
                        PCI_MSIX_ENTRY_DATA);
    for (unsigned v = 0; v < last; v++) {
        set_message(d, v, d->msix + (v + 1) * PCI_MSIX_ENTRY_SIZE +
                    PCI_MSIX_ENTRY_DATA, value);
    }
    for (unsigned v = 0; v < CHAIN; v++) {
        qivshmem2_ring(d, qivshmem2_id(d), v);
    }
    /* The main loop has seen them: there is room for an answer each time. */
    for (unsigned v = 0; v < CHAIN; v++) {
        qivshmem2_readl(d, IVSHMEM2_REG_STATE);
    }
    qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_MASKALL, false);
    qivshmem2_wait(d, last);
}

#define PORT        QPCI_DEVFN(5, 0)
#define BEHIND      0x100       /* on bus 1 */
#define ECAM        0xb0000000

static const TestLinkSetup setup_unplug = {
    .server = "--max-peers 4 --vectors 2",
};

typedef enum Delivery { BY_RING, BY_UNMASK, BY_CONTROL, BY_CONFIG } Delivery;

/* A message writes the register that unplugs the device which sends it. */
static void unplug_by_message(TestLink *link, Delivery delivery)
{
    QTestState *qts = qtest_initf("-machine q35 -global ICH9-LPC.acpi-pci-"
                                  "hotplug-with-bridge-support=off -device "
                                  "pcie-root-port,id=rp,chassis=1,addr=5.0 "
                                  "-chardev socket,id=link,path=%s -device "
                                  "ivshmem2,id=dev,bus=rp,chardev=link",
                                  link->socket);
    QGuestAllocator alloc;
    g_autofree QPCIDevice *port = NULL, *mch = NULL;
    QIvshmem2 d = {};
    QPCIBus *bus;
    uint8_t cap;

    pc_alloc_init(&alloc, qts, ALLOC_NO_FLAGS);
    bus = qpci_new_pc(qts, &alloc);
    mch = qpci_device_find(bus, 0);
    qpci_config_writel(mch, 0x60, ECAM | 1);
    port = qpci_device_find(bus, PORT);
    qpci_config_writel(port, PCI_PRIMARY_BUS, 0x010100);
    qpci_config_writel(port, PCI_MEMORY_BASE, 0xeff0e000);
    qpci_config_writel(port, PCI_PREF_MEMORY_BASE, 0xeff0e000);
    qpci_device_enable(port);
    cap = qpci_find_capability(port, PCI_CAP_ID_EXP, 0);
    qivshmem2_init(&d, bus, BEHIND, &alloc);
    qivshmem2_start(&d);

    if (delivery == BY_UNMASK) {
        qivshmem2_mask(&d, 0, true);
    } else if (delivery == BY_CONFIG) {
        qivshmem2_set_msix_flag(&d, PCI_MSIX_FLAGS_MASKALL, true);
    }
    set_message(&d, 0, ECAM + (PORT << 12) + cap + PCI_EXP_SLTCTL,
                PCI_EXP_SLTCTL_PCC | PCI_EXP_SLTCTL_PIC);
    qivshmem2_enable(&d);
    qivshmem2_ring(&d, qivshmem2_id(&d), 0);
    qivshmem2_set_state(&d, 1);
    switch (delivery) {
    case BY_RING:
        break;
    case BY_UNMASK:
        qivshmem2_mask(&d, 0, false);
        break;
    case BY_CONTROL:
        qivshmem2_disable(&d);
        break;
    case BY_CONFIG:
        qivshmem2_set_msix_flag(&d, PCI_MSIX_FLAGS_MASKALL, false);
        break;
    }
    /* The device is gone when nothing of it uses its chardev. */
    test_link_remove_chardev(qts, "link");
    qpci_free_pc(bus);
    alloc_destroy(&alloc);
    qtest_quit(qts);
}

static void test_unplug_by_message(void *obj, void *opaque,
                                   QGuestAllocator *alloc)
{
    for (Delivery how = BY_RING; how <= BY_CONFIG; how++) {
        unplug_by_message(opaque, how);
    }
}

static void register_ivshmem2_fuzz_guest_test(void)
{
    test_link_add("guest/message-chain", "ivshmem2", test_chain,
                  &setup_chain);
    test_link_add("guest/message-unplugs", "ivshmem2", test_unplug_by_message,
                  &setup_unplug);
    test_link_add("fuzz/guest", "ivshmem2", test_guest, &setup_msix);
    test_link_add("fuzz/guest-intx", "ivshmem2", test_guest, &setup_intx);
}

libqos_init(register_ivshmem2_fuzz_guest_test);
