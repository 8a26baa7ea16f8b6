/*
 * ivshmem2 tests: a device that resumes its session
 *
 * The test is the server.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "ivshmem2-scripted.h"

#define ID          "back"
#define OTHERS      4
/* That nothing comes any more */
#define QUIET_MS    200

static const TestCase good = { .step = STEP_COUNT };

/* With @push, the link is a small one, on which states need no server. */
static TestServer *plug(QPCIBus *bus, TestLink *link, QIvshmem2 *d,
                        QGuestAllocator *alloc, bool push, int timeout_ms)
{
    TestServer *server = test_server_start(link, NULL, OTHERS + 1);
    QDict *props = test_packet_props(NULL, timeout_ms);

    qatomic_set(&server->push, push);
    qdict_put_int(props, "x-slowest-reconnect-ms", 10);
    g_assert_null(test_link_plug(bus->qts, ID, link->socket, 10, props));
    test_server_take(server);
    qivshmem2_init(d, bus, QPCI_DEVFN(SLOT, 0), alloc);
    qivshmem2_start(d);
    qivshmem2_enable(d);
    return server;
}

static void unplug(QIvshmem2 *d, TestServer *server)
{
    test_link_unplug(d->qts, ID, SLOT);
    test_server_stop(server);
}

static void lose(QIvshmem2 *d, TestServer *server)
{
    ivshmem2_close(&server->fd);
    test_link_wait_until(!test_link_get_bool(d->qts, ID, "connected"));
}

static void resume(QIvshmem2 *d, TestServer *server)
{
    server->script = &good;
    test_server_accept(server);
    test_server_take(server);
    g_assert_true(server->resumes);
    test_link_wait_until(test_link_get_bool(d->qts, ID, "connected"));
}

/* Returns the type of the next message, or 0 if there is none for a while. */
static uint16_t next_message(TestServer *server, Ivshmem2Msg *msg)
{
    struct pollfd pfd = { .fd = server->fd, .events = POLLIN };
    size_t size;

    if (poll(&pfd, 1, QUIET_MS) <= 0) {
        return 0;
    }
    g_assert_cmpint(recv(server->fd, &msg->hdr, sizeof(msg->hdr),
                         MSG_WAITALL), ==, sizeof(msg->hdr));
    size = le32_to_cpu(msg->hdr.size) - sizeof(msg->hdr);
    g_assert_cmpint(size, <=, sizeof(*msg) - sizeof(msg->hdr));
    if (size) {
        g_assert_cmpint(recv(server->fd, &msg->hello, size, MSG_WAITALL), ==,
                        size);
    }
    return le16_to_cpu(msg->hdr.type);
}

static void check_others(TestServer *server, bool interrupted)
{
    for (int i = 0; i < OTHERS; i++) {
        uint64_t n = ivshmem2_eventfd_drain(server->others[i]);

        g_assert_true(interrupted ? n >= 1 : n == 0);
    }
}

/*
 * Nothing has changed while the server was away: neither the guest nor another
 * peer is interrupted, and registers and table keep their values.
 */
static void test_quiet(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 d = {};
    TestServer *server = plug(obj, link, &d, alloc, true, 60000);
    Ivshmem2Msg msg;

    qivshmem2_set_state(&d, 7);
    check_others(server, true);
    qivshmem2_set_one_shot(&d, true);
    qivshmem2_mask(&d, 1, true);
    ivshmem2_eventfd_signal(server->eventfds[1]);
    for (int i = 0; i < 3; i++) {
        lose(&d, server);
        resume(&d, server);
        /* that it is 7, but not to interrupt anybody */
        g_assert_cmphex(next_message(server, &msg), ==,
                        IVSHMEM2_MSG_STATE_ANNOUNCED);
        g_assert_cmpuint(le32_to_cpu(msg.announcement.state), ==, 7);
        g_assert_cmphex(next_message(server, &msg), ==, 0);
        check_others(server, false);
        test_link_check_quiet(&d);
        g_assert_cmphex(qivshmem2_readl(&d, IVSHMEM2_REG_STATE), ==, 7);
        g_assert_cmphex(qivshmem2_readl(&d, IVSHMEM2_REG_INT_CONTROL), ==, 1);
        g_assert_cmphex(qivshmem2_entry(&d, 0), ==, 7);
    }
    qivshmem2_mask(&d, 1, false);
    qivshmem2_wait(&d, 1);
    g_assert_cmphex(qivshmem2_readl(&d, IVSHMEM2_REG_INT_CONTROL), ==, 0);
    unplug(&d, server);
}

/* The same where the server has to interrupt the others */
static void test_quiet_large(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 d = {};
    TestServer *server = plug(obj, link, &d, alloc, false, 60000);
    Ivshmem2Msg msg;

    qivshmem2_set_state(&d, 7);
    g_assert_cmphex(next_message(server, &msg), ==,
                    IVSHMEM2_MSG_STATE_CHANGED);
    lose(&d, server);
    resume(&d, server);
    g_assert_cmphex(next_message(server, &msg), ==, 0);
    test_link_check_quiet(&d);
    unplug(&d, server);
}

/* A server that believed the peer gone has zeroed its entry. */
static void test_zeroed(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 d = {};
    TestServer *server = plug(obj, link, &d, alloc, true, 60000);
    uint32_t *table = mmap(NULL, SECTION, PROT_READ | PROT_WRITE, MAP_SHARED,
                           server->table, 0);

    g_assert_true(table != MAP_FAILED);
    qivshmem2_set_state(&d, 7);
    check_others(server, true);
    lose(&d, server);
    qatomic_set(&table[0], 0);
    resume(&d, server);
    test_link_wait_entry(&d, 0, 7);
    /* it writes first */
    g_usleep(QUIET_MS * 1000);
    check_others(server, true);
    munmap(table, SECTION);
    unplug(&d, server);
}

/* What could not be told without the server is told afterwards. */
static void test_owed(void *obj, void *link, QGuestAllocator *alloc)
{
    QIvshmem2 d = {};
    TestServer *server = plug(obj, link, &d, alloc, false, 60000);
    bool rung[OTHERS + 1][VECTORS] = {};
    bool changed = false;
    Ivshmem2Msg msg;
    uint16_t type;

    /* it has read this one, and gives no answer */
    qivshmem2_ring(&d, 4, 1);
    g_assert_cmphex(next_message(server, &msg), ==, IVSHMEM2_MSG_RING);
    lose(&d, server);
    for (int i = 0; i < 1000; i++) {
        qivshmem2_ring(&d, 1, 1);
        qivshmem2_ring(&d, 3, 0);
        qivshmem2_set_state(&d, i);
    }
    resume(&d, server);
    while ((type = next_message(server, &msg))) {
        if (type == IVSHMEM2_MSG_RING) {
            uint32_t id = le32_to_cpu(msg.target.id);
            uint32_t vector = le32_to_cpu(msg.target.vector);

            g_assert_cmpuint(id, <=, OTHERS);
            g_assert_cmpuint(vector, <, VECTORS);
            g_assert_false(rung[id][vector]);
            rung[id][vector] = true;
        } else {
            g_assert_cmphex(type, ==, IVSHMEM2_MSG_STATE_CHANGED);
            g_assert_false(changed);
            changed = true;
        }
    }
    g_assert_true(changed);
    g_assert_true(rung[4][1] && rung[1][1] && rung[3][0]);
    g_assert_false(rung[1][0] || rung[2][0] || rung[3][1]);
    g_assert_cmphex(qivshmem2_entry(&d, 0), ==, 999);
    unplug(&d, server);
}

/* A server that does not go on with the handshake */
static void test_timeout(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase slow[] = {
        CASE(ACCEPT, silence, .action = ACT_SILENCE, NULL),
        CASE(WELCOME, silence, .action = ACT_SILENCE, NULL),
        CASE(WELCOME, half, .action = ACT_CUT_SILENCE, NULL),
        CASE(EVENTFDS, half, .action = ACT_CUT_SILENCE, NULL),
        CASE(READY, silence, .action = ACT_SILENCE, NULL),
        CASE(READY, endless, .action = ACT_ENDLESS, NULL),
    };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    TestServer *server = plug(bus, link, &d, alloc, true, 300);

    for (int i = 0; i < ARRAY_SIZE(slow); i++) {
        lose(&d, server);
        test_link_expect_event(d.qts, ID, "disconnected", "closed");
        server->script = &slow[i];
        test_server_accept(server);
        test_link_wait_until(test_link_says(d.qts, ID, "connection-reason",
                                            "not complete after 300 ms"));
        g_assert_false(test_link_get_bool(d.qts, ID, "connected"));
        qivshmem2_ring(&d, 0, 1);
        qivshmem2_wait(&d, 1);
        ivshmem2_eventfd_signal(server->stop_fd);
        g_thread_join(server->thread);
        server->thread = NULL;
        ivshmem2_eventfd_drain(server->stop_fd);
        resume(&d, server);
        test_link_expect_event(d.qts, ID, "connected", NULL);
        test_link_expect_no_event(d.qts);
        g_assert_true(test_link_says(d.qts, ID, "connection-reason", ""));
    }
    unplug(&d, server);
    test_link_wait_fds(bus->qts, fds);
}

/* A refusal is an event, but not each of them. */
static void test_refused(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase refuse =
        CASE(WELCOME, refused, CALL(test_server_refuse), NULL);
    QIvshmem2 d = {};
    TestServer *server = plug(obj, link, &d, alloc, true, 60000);

    lose(&d, server);
    test_link_expect_event(d.qts, ID, "disconnected", "closed");
    server->script = &refuse;
    test_server_accept(server);
    test_link_expect_event(d.qts, ID, "refused", "no room");
    g_usleep(QUIET_MS * 1000);
    g_assert_true(test_link_says(d.qts, ID, "connection-reason", "no room"));
    ivshmem2_eventfd_signal(server->stop_fd);
    g_thread_join(server->thread);
    server->thread = NULL;
    ivshmem2_eventfd_drain(server->stop_fd);
    test_link_expect_no_event(d.qts);
    resume(&d, server);
    test_link_expect_event(d.qts, ID, "connected", NULL);
    unplug(&d, server);
}

/* Returns the last state that is announced in what the socket holds. */
static uint32_t last_announced(TestServer *server)
{
    uint32_t state = UINT32_MAX;
    Ivshmem2Msg msg;
    int left;

    while (ioctl(server->fd, FIONREAD, &left) == 0 && left) {
        if (next_message(server, &msg) == IVSHMEM2_MSG_STATE_ANNOUNCED) {
            state = le32_to_cpu(msg.announcement.state);
        }
    }
    return state;
}

/*
 * A server that does not read: whenever the device is killed, what the server
 * finds afterwards must not be that the state is 0 if the others know another.
 */
static void test_room(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;

    for (int first = 0; first < 2; first++) {
        QIvshmem2 d = {};
        TestServer *server = plug(bus, link, &d, alloc, true, 60000);
        int size = 4096;
        uint32_t state;

        g_assert_cmpint(setsockopt(server->fd, SOL_SOCKET, SO_RCVBUF, &size,
                                   sizeof(size)), ==, 0);
        /* so that another one would be the first that does not fit in */
        for (int i = 0; i < first; i++) {
            qivshmem2_ring(&d, 1, 1);
        }
        for (int i = 1; i <= 2001; i++) {
            qivshmem2_set_state(&d, i % 2 * 5);
        }
        kill(qtest_pid(d.qts), SIGSTOP);
        state = last_announced(server);
        kill(qtest_pid(d.qts), SIGCONT);
        g_assert_cmpuint(state, ==, 5);
        /* when there is room again, the truth is told */
        qivshmem2_set_state(&d, 0);
        g_usleep(QUIET_MS * 1000);
        g_assert_cmpuint(last_announced(server), ==, 0);
        unplug(&d, server);
    }
}

static void register_ivshmem2_resume_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/resume/quiet", test_quiet },
        { "ivshmem2/resume/quiet-large", test_quiet_large },
        { "ivshmem2/resume/zeroed", test_zeroed },
        { "ivshmem2/resume/owed", test_owed },
        { "ivshmem2/resume/timeout", test_timeout },
        { "ivshmem2/resume/refused", test_refused },
        { "ivshmem2/resume/room", test_room },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_resume_test);
