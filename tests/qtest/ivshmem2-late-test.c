/*
 * ivshmem2 tests: servers that fail after the handshake
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/socket.h>
#include "qemu/atomic.h"
#include "qemu/module.h"
#include "ivshmem2-scripted.h"

/* With reconnect-ms, all attempts are @slowest_ms apart at most. */
static TestServer *plug_scripted(QPCIBus *bus, TestLink *link, QIvshmem2 *d,
                                 QGuestAllocator *alloc, uint32_t max_peers,
                                 int reconnect_ms, int slowest_ms)
{
    TestServer *server = test_server_start(link, NULL, max_peers);
    QDict *props = test_packet_props(NULL, 60000);

    qdict_put_int(props, "x-slowest-reconnect-ms", slowest_ms);
    g_assert_null(test_link_plug(bus->qts, "late", link->socket, reconnect_ms,
                                 props));
    test_server_take(server);
    qivshmem2_init(d, bus, QPCI_DEVFN(SLOT, 0), alloc);
    qivshmem2_start(d);
    qivshmem2_enable(d);
    return server;
}

static void wait_connected(QIvshmem2 *d, bool connected)
{
    test_link_wait_until(test_link_get_bool(d->qts, "late", "connected") ==
                         connected);
}

/* The device works without the server. */
static void check_alone(QIvshmem2 *d, int eventfd)
{
    for (uint32_t i = 1; i < 20; i++) {
        qivshmem2_set_state(d, i);
        g_assert_cmphex(qivshmem2_entry(d, 0), ==, i);
        qivshmem2_ring(d, 0, 1);
        qivshmem2_wait(d, 1);
        qivshmem2_ring(d, 1, 1);
        /* other peers still have its eventfds */
        ivshmem2_eventfd_signal(eventfd);
        qivshmem2_wait(d, 0);
    }
}

static void test_late(QPCIBus *bus, TestLink *link, QGuestAllocator *alloc,
                      void (*act)(TestServer *server))
{
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    TestServer *server = plug_scripted(bus, link, &d, alloc, PEERS, 0, 0);

    act(server);
    wait_connected(&d, false);
    check_alone(&d, server->eventfds[0]);
    test_link_unplug(bus->qts, "late", SLOT);
    test_server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

static void late_close(TestServer *server)
{
    ivshmem2_close(&server->fd);
}

static void late_garbage(TestServer *server)
{
    g_autofree uint8_t *noise = g_malloc(64 * KiB);

    for (int i = 0; i < 64 * KiB; i++) {
        noise[i] = g_test_rand_int();
    }
    send(server->fd, noise, 64 * KiB, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void late_message(TestServer *server, TestPacket *p)
{
    static const TestCase good = { .step = STEP_COUNT };

    server->script = &good;
    /* repeated, as long as the device accepts them */
    for (int i = 0; i < 100; i++) {
        if (!test_server_say(server, server->fd, STEP_READY, p)) {
            return;
        }
    }
}

static void late_welcome(TestServer *server)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_WELCOME,
        .fds = {
            test_packet_memory(SECTION, SEALS),
            test_packet_memory(SECTION, SEALS),
        },
        .n_fds = 2,
    };

    late_message(server, &p);
}

static void late_eventfds(TestServer *server)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_EVENTFDS,
        .msg.eventfds.id = 1,
        .n_fds = 1,
        .fds = { server->eventfds[0] },
    };

    late_message(server, &p);
}

static void late_error(TestServer *server)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_REFUSED,
        .msg.refusal.text = "enough of you",
    };

    late_message(server, &p);
}

static void test_late_close(void *obj, void *link, QGuestAllocator *alloc)
{
    test_late(obj, link, alloc, late_close);
}

static void test_late_garbage(void *obj, void *link, QGuestAllocator *alloc)
{
    test_late(obj, link, alloc, late_garbage);
}

static void test_late_message(void *obj, void *link, QGuestAllocator *alloc)
{
    test_late(obj, link, alloc, late_welcome);
    test_late(obj, link, alloc, late_eventfds);
    test_late(obj, link, alloc, late_error);
}

/*
 * With reconnect-ms, the device connects again and resumes its session.  It
 * keeps its memory and eventfds, and rejects a server that offers others.
 */
static void test_late_resume(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase good = { .step = STEP_COUNT };
    static const TestCase other[] = {
        CASE(WELCOME, id_1, FIELD(msg.welcome.id, 1), NULL),
        CASE(WELCOME, rw_large, FIELD(msg.welcome.rw_size, 1 * GiB), NULL),
        CASE(WELCOME, type_error, CALL(test_server_refuse), NULL),
        CASE(EVENTFDS, fd0_pipe, FD(0, test_packet_pipe), NULL),
        CASE(READY, nonsense, .action = ACT_BYTES, NULL),
    };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    TestServer *server = plug_scripted(bus, link, &d, alloc, PEERS, 10, 10);
    int eventfd = server->eventfds[0];

    g_assert_false(server->resumes);
    qivshmem2_set_state(&d, 7);
    for (int i = 0; i < ARRAY_SIZE(other); i++) {
        ivshmem2_close(&server->fd);
        wait_connected(&d, false);
        server->script = &other[i];
        server->resumes = false;
        test_server_accept(server);
        test_link_wait_until(qatomic_read(&server->resumes));
        check_alone(&d, eventfd);
        ivshmem2_eventfd_signal(server->stop_fd);
        g_thread_join(server->thread);
        server->thread = NULL;
        ivshmem2_eventfd_drain(server->stop_fd);

        server->script = &good;
        test_server_accept(server);
        test_server_take(server);
        g_assert_true(server->resumes);
        wait_connected(&d, true);
        check_alone(&d, eventfd);
        g_assert_cmphex(qivshmem2_id(&d), ==, 0);
    }
    test_link_unplug(bus->qts, "late", SLOT);
    test_server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

static uint64_t memory_used(QTestState *qts)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm",
                                            (int)qtest_pid(qts));
    g_autofree char *text = NULL;
    unsigned long pages;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%*u %lu", &pages), ==, 1);
    return pages * qemu_real_host_page_size();
}

static void flood(QIvshmem2 *d, int n)
{
    for (int i = 0; i < n; i++) {
        qivshmem2_set_state(d, i + 1);
        qivshmem2_ring(d, 1 + i % 65535, i % VECTORS);
    }
}

/*
 * A server that no longer reads, on a link so large that the device has to
 * ask it for each doorbell: the guest goes on, and QEMU does not grow.
 */
static void test_late_deaf(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    TestServer *server = plug_scripted(bus, link, &d, alloc, 65536, 0, 0);
    int64_t start, middle, end;

    flood(&d, 5000);
    /* what so many writes take anyway, e.g. with an address sanitizer */
    start = memory_used(bus->qts);
    for (int i = 0; i < 2 * 20000; i++) {
        qivshmem2_enable(&d);
    }
    middle = memory_used(bus->qts);
    flood(&d, 20000);
    end = memory_used(bus->qts);
    g_assert_cmpint(end - middle, <, middle - start + 4 * MiB);
    g_assert_cmphex(qivshmem2_entry(&d, 0), ==, 20000);
    g_assert_true(test_link_get_bool(bus->qts, "late", "connected"));
    qivshmem2_ring(&d, 0, 1);
    qivshmem2_wait(&d, 1);
    ivshmem2_eventfd_signal(server->eventfds[0]);
    qivshmem2_wait(&d, 0);

    /* unplugging does not wait for the server either */
    test_link_unplug(bus->qts, "late", SLOT);
    test_server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

/*
 * A new server that does not know the session: the device asks it a few
 * times at most, although the chardev connects again every 10 ms.
 */
static void test_late_unknown(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    TestServer *server = plug_scripted(bus, link, &d, alloc, PEERS, 10, 60000);
    struct pollfd pfd = { .fd = server->listen_fd, .events = POLLIN };
    TestPacket p = { .msg.hdr.type = IVSHMEM2_MSG_REFUSED,
                     .msg.refusal.code = IVSHMEM2_REFUSAL_SESSION };
    int n = 0;

    ivshmem2_close(&server->fd);
    wait_connected(&d, false);
    test_packet_finish(&p);
    while (poll(&pfd, 1, 2000) > 0) {
        Ivshmem2Msg wire = test_packet_encode(&p);
        int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);

        g_assert_cmpint(fd, >=, 0);
        test_packet_send(fd, &wire, p.size, NULL, 0);
        test_server_wait_closed(server, fd);
        close(fd);
        g_assert_cmpint(++n, <=, 3);
    }
    g_assert_cmpint(n, >=, 1);
    test_link_unplug(bus->qts, "late", SLOT);
    test_server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

static void register_ivshmem2_late_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/hostile/late-close", test_late_close },
        { "ivshmem2/hostile/late-garbage", test_late_garbage },
        { "ivshmem2/hostile/late-message", test_late_message },
        { "ivshmem2/hostile/late-resume", test_late_resume },
        { "ivshmem2/hostile/late-deaf", test_late_deaf },
        { "ivshmem2/hostile/late-unknown", test_late_unknown },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_late_test);
