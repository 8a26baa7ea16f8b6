/*
 * ivshmem2 tests: how a VM leaves its link, and what it leaves behind
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "hw/pci/pci_regs.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qobject/qjson.h"
#include "ivshmem2-scripted.h"

#define POWER_SLOT      (1 << 3 | 3)    /* of the pc machine */
#define POWER_BASE      0x600
#define RESET_CONTROL   0xcf9
#define PANIC           0x505

/*
 * Ends of QEMU
 */

static void end_sigterm(QTestState *qts)
{
    kill(qtest_pid(qts), SIGTERM);
}

static void end_sigint(QTestState *qts)
{
    kill(qtest_pid(qts), SIGINT);
}

static void end_sighup(QTestState *qts)
{
    kill(qtest_pid(qts), SIGHUP);
}

static void end_quit(QTestState *qts)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'quit' }");
}

/* The guest turns the machine off. */
static void end_guest(QTestState *qts)
{
    QPCIBus *bus = qpci_new_pc(qts, NULL);
    QPCIDevice *power = qpci_device_find(bus, POWER_SLOT);

    qpci_config_writel(power, 0x40, POWER_BASE | 1);
    qpci_config_writeb(power, 0x80, 1);
    qtest_outw(qts, POWER_BASE + 4, 1 << 13);
    g_free(power);
    qpci_free_pc(bus);
}

/* The same, after the power button was pressed */
static void end_powerdown(QTestState *qts)
{
    qtest_qmp_assert_success(qts, "{ 'execute': 'system_powerdown' }");
    qtest_qmp_eventwait(qts, "POWERDOWN");
    end_guest(qts);
}

/* The machine is off, and stays there until QEMU is told to end. */
static void end_guest_quit(QTestState *qts)
{
    end_guest(qts);
    qtest_qmp_eventwait(qts, "STOP");
    end_quit(qts);
}

/* The guest resets the machine, which ends. */
static void end_reset(QTestState *qts)
{
    qtest_outb(qts, RESET_CONTROL, 6);
}

static void end_panic(QTestState *qts)
{
    qtest_outb(qts, PANIC, 1);
}

/* The machine is paused until QEMU is told to end. */
static void end_panic_quit(QTestState *qts)
{
    end_panic(qts);
    qtest_qmp_eventwait(qts, "STOP");
    end_quit(qts);
}

/* The device leaves, QEMU stays. */
static void end_device(QTestState *qts)
{
    qpci_unplug_acpi_device_test(qts, "c", SLOT);
}

static void wait_end(QTestState *qts)
{
    test_link_wait_until(!qtest_probe_child(qts));
    qtest_quit(qts);
}

static const struct {
    const char *name;
    void (*end)(QTestState *qts);
    const char *options;
    bool device_only;
} ends[] = {
    { "SIGTERM", end_sigterm, "" },
    { "SIGTERM, paused", end_sigterm, "-S" },
    { "SIGINT", end_sigint, "" },
    { "SIGHUP", end_sighup, "" },
    { "quit", end_quit, "" },
    { "quit, paused", end_quit, "-S" },
    { "quit, incoming", end_quit, "-incoming defer" },
    { "guest", end_guest, "" },
    { "guest, then quit", end_guest_quit, "-no-shutdown" },
    { "reset", end_reset, "-no-reboot" },
    { "panic", end_panic, "-device pvpanic" },
    { "panic, then quit", end_panic_quit,
      "-device pvpanic -action panic=pause" },
    { "system_powerdown", end_powerdown, "" },
    { "device_del", end_device, "", true },
};

/* Read what the device sends, until it hangs up. */
static uint16_t last_message(int fd)
{
    Ivshmem2Header last = {}, hdr;
    char payload[256];

    while (recv(fd, &hdr, sizeof(hdr), MSG_WAITALL) == sizeof(hdr)) {
        size_t left = le32_to_cpu(hdr.size) - sizeof(hdr);

        g_assert_cmpuint(left, <=, sizeof(payload));
        if (left) {
            g_assert_cmpint(recv(fd, payload, left, MSG_WAITALL), ==, left);
        }
        last = hdr;
    }
    return le16_to_cpu(last.type);
}

/* A QEMU that ends in order says goodbye, whether its machine runs or not. */
static void test_goodbye(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;

    for (int i = 0; i < ARRAY_SIZE(ends); i++) {
        TestServer *server = test_server_start(link, NULL, PEERS);
        QTestState *qts = qtest_initf("-machine pc %s"
                                      " -chardev socket,id=c,path=%s"
                                      " -device ivshmem2,id=c,chardev=c,"
                                      "addr=%u", ends[i].options,
                                      link->socket, SLOT);

        g_test_message("%s", ends[i].name);
        test_server_take(server);
        ends[i].end(qts);
        g_assert_cmphex(last_message(server->fd), ==, IVSHMEM2_MSG_GOODBYE);
        if (ends[i].device_only) {
            end_quit(qts);
        }
        wait_end(qts);
        test_server_stop(server);
    }
}

/* The same, to a server that is so slow that its socket is full */
static bool leave_slow_server(TestLink *link)
{
    TestServer *server = test_server_start(link, NULL, 65536);
    QTestState *qts = qtest_initf("-machine pc -chardev socket,id=c,path=%s"
                                  " -device ivshmem2,chardev=c,addr=%u",
                                  link->socket, SLOT);
    QPCIBus *bus = qpci_new_pc(qts, NULL);
    QGuestAllocator alloc;
    QIvshmem2 d = {};
    uint16_t last;

    test_server_take(server);
    pc_alloc_init(&alloc, qts, ALLOC_NO_FLAGS);
    qivshmem2_init(&d, bus, QPCI_DEVFN(SLOT, 0), &alloc);
    qivshmem2_start(&d);
    for (int i = 1; i <= 5000; i++) {
        qivshmem2_set_state(&d, i);
    }
    end_sigterm(qts);
    qtest_qmp_eventwait(qts, "SHUTDOWN");
    g_usleep(20000);
    last = last_message(server->fd);
    wait_end(qts);
    alloc_destroy(&alloc);
    qpci_free_pc(bus);
    test_server_stop(server);
    return last == IVSHMEM2_MSG_GOODBYE;
}

static void test_slow(void *obj, void *link, QGuestAllocator *alloc)
{
    int tries = 0;

    /* On a busy host, this server is sometimes too slow. */
    while (!leave_slow_server(link)) {
        g_assert_cmpint(++tries, <, 5);
    }
}

/* Connect @fd in a process that stays; returns its ID. */
static pid_t start_manager(int fd, const char *path)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    pid_t pid;
    int status;

    g_strlcpy(un.sun_path, path, sizeof(un.sun_path));
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (connect(fd, (struct sockaddr *)&un, sizeof(un)) < 0) {
            _exit(1);
        }
        close(fd);
        raise(SIGSTOP);
        _exit(0);
    }
    g_assert_cmpint(waitpid(pid, &status, WUNTRACED), ==, pid);
    g_assert_true(WIFSTOPPED(status));
    return pid;
}

/*
 * Managers connect sockets, and pass them to one QEMU after the other: each of
 * them finds a place on a link of two, since the last one has said goodbye.
 * The server would hold the place as long as the manager lives.
 */
static void test_passed(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    pid_t managers[2 * ARRAY_SIZE(ends)];

    test_link_start_server(link, "--max-peers 2");
    for (int i = 0; i < ARRAY_SIZE(managers); i++) {
        int end = i % ARRAY_SIZE(ends);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        QTestState *qts;

        managers[i] = start_manager(fd, link->socket);
        qts = qtest_initf("-machine pc %s -chardev socket,id=c,fd=%d"
                          " -device ivshmem2,id=c,chardev=c,addr=%u,"
                          "peer-id=any", ends[end].options, fd, SLOT);
        close(fd);
        g_assert_true(test_link_get_bool(qts, "c", "connected"));
        ends[end].end(qts);
        if (ends[end].device_only) {
            end_quit(qts);
        }
        wait_end(qts);
    }
    for (int i = 0; i < ARRAY_SIZE(managers); i++) {
        kill(managers[i], SIGKILL);
        g_assert_cmpint(waitpid(managers[i], NULL, 0), ==, managers[i]);
    }
}

/*
 * Dumps
 */

#define DUMP_SECTIONS   (3 * GiB)
#define DUMP_LIMIT      (16 * MiB)
#define DUMP_ADDRESS    (16 * GiB)

/* The memory of all memory files that process @pid holds */
static uint64_t memory_allocated(pid_t pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", (int)pid);
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;
    g_autoptr(GHashTable) seen = g_hash_table_new(NULL, NULL);
    uint64_t sum = 0;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_strdup_printf("%s/%s", path, name);
        g_autofree char *target = g_file_read_link(file, NULL);
        struct stat st;

        if (target && g_str_has_prefix(target, "/memfd:") &&
            stat(file, &st) == 0 &&
            g_hash_table_add(seen, GSIZE_TO_POINTER(st.st_ino))) {
            sum += st.st_blocks * UINT64_C(512);
        }
    }
    g_dir_close(dir);
    /* State Table, R/W section, two output sections */
    g_assert_cmpuint(g_hash_table_size(seen), >=, 4);
    return sum;
}

/* Where the guest sees the link's memory; libqos has no room for so much. */
static void map_high(QTestState *qts)
{
    QPCIBus *bus = qpci_new_pc(qts, NULL);
    QPCIDevice *dev = qpci_device_find(bus, QPCI_DEVFN(SLOT, 0));
    uint8_t bar = PCI_BASE_ADDRESS_0 + 4 * IVSHMEM2_BAR_MEMORY;

    qpci_config_writel(dev, bar, (uint32_t)DUMP_ADDRESS);
    qpci_config_writel(dev, bar + 4, DUMP_ADDRESS >> 32);
    qpci_config_writew(dev, PCI_COMMAND, PCI_COMMAND_MEMORY);
    g_free(dev);
    qpci_free_pc(bus);
}

/* A dump of the guest leaves the link out: reading it would allocate it. */
static void test_dump(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    g_autofree char *dump = g_strdup_printf("%s/dump", link->dir);
    g_autofree char *protocol = g_strdup_printf("file:%s", dump);
    QTestState *qts;
    uint64_t before, after, rw = DUMP_ADDRESS + 4 * KiB;
    struct stat st;

    test_link_start_server(link, "--max-peers 2 --rw-size 1G "
                           "--output-size 1G");
    qts = qtest_initf("-machine pc -m 8 -chardev socket,id=c,path=%s"
                      " -device ivshmem2,id=c,chardev=c,addr=%u",
                      link->socket, SLOT);
    map_high(qts);
    /* it is in the guest's memory, indeed */
    qtest_writel(qts, rw, 0x12345678);
    g_assert_cmphex(qtest_readl(qts, rw), ==, 0x12345678);
    g_assert_cmphex(qtest_readl(qts, rw + DUMP_SECTIONS - 4), ==, 0);

    before = memory_allocated(link->pid);
    qtest_qmp_assert_success(qts, "{ 'execute': 'dump-guest-memory',"
                             " 'arguments': { 'paging': false,"
                             " 'protocol': %s } }", protocol);
    after = memory_allocated(link->pid);
    g_assert_cmpint(stat(dump, &st), ==, 0);
    g_unlink(dump);
    g_test_message("the dump has %" PRIu64 " KiB, the link's memory grew by %"
                   PRIu64 " KiB", st.st_size / KiB, (after - before) / KiB);
    g_assert_cmpuint(after - before, <, DUMP_LIMIT);
    g_assert_cmpuint(st.st_size, <, 8 * MiB + DUMP_LIMIT);
    qtest_quit(qts);
}

static void register_ivshmem2_goodbye_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/hostile/goodbye", test_goodbye },
        { "ivshmem2/goodbye/slow-server", test_slow },
        { "ivshmem2/goodbye/passed-sockets", test_passed },
        { "ivshmem2/dump", test_dump },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_goodbye_test);
