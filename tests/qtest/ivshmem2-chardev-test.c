/*
 * ivshmem2 tests: chardevs, and servers that make the device wait
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "qemu/module.h"
#include "qobject/qjson.h"
#include "ivshmem2-scripted.h"

/*
 * Chardevs
 */

static void expect_device_error(QTestState *qts, const char *chardev,
                                const char *wanted)
{
    QDict *args = test_packet_props(NULL, 300);
    QDict *error;

    qdict_put_str(args, "driver", "ivshmem2");
    if (chardev) {
        qdict_put_str(args, "chardev", chardev);
    }
    error = qtest_qmp_assert_failure_ref(qts, "{ 'execute': 'device_add',"
                                         "  'arguments': %p }", args);
    g_test_message("%s", qdict_get_str(error, "desc"));
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), wanted));
    qobject_unref(error);
}

static void test_chardevs(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    QTestState *qts = bus->qts;
    unsigned fds = test_link_count_fds(qts);
    struct sockaddr_in addr = { .sin_family = AF_INET };
    socklen_t len = sizeof(addr);
    g_autofree char *port = NULL;
    int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    expect_device_error(qts, NULL, "You must specify a 'chardev'");
    expect_device_error(qts, "absent", "absent");

    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'null',"
        "  'backend': { 'type': 'null', 'data': {} } } }");
    expect_device_error(qts, "null", "'null' is not a unix socket");
    test_link_remove_chardev(qts, "null");

    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'ring',"
        "  'backend': { 'type': 'ringbuf', 'data': {} } } }");
    expect_device_error(qts, "ring", "'ring' is not a unix socket");
    test_link_remove_chardev(qts, "ring");

    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'listens',"
        "  'backend': { 'type': 'socket', 'data': { 'server': true,"
        "  'wait': false, 'addr': { 'type': 'unix',"
        "  'data': { 'path': %s } } } } } }", link->socket);
    expect_device_error(qts, "listens", "chardev 'listens' listens");
    test_link_remove_chardev(qts, "listens");

    g_assert_cmpint(bind(tcp, (struct sockaddr *)&addr, len), ==, 0);
    g_assert_cmpint(listen(tcp, 1), ==, 0);
    g_assert_cmpint(getsockname(tcp, (struct sockaddr *)&addr, &len), ==, 0);
    port = g_strdup_printf("%u", ntohs(addr.sin_port));
    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'tcp',"
        "  'backend': { 'type': 'socket', 'data': { 'server': false,"
        "  'addr': { 'type': 'inet', 'data': { 'host': '127.0.0.1',"
        "  'port': %s } } } } } }", port);
    expect_device_error(qts, "tcp", "'tcp' is not a unix socket");
    test_link_remove_chardev(qts, "tcp");
    close(tcp);

    /* a second device on one chardev */
    test_link_start_server(link, "--max-peers 2");
    g_assert_null(test_link_plug(qts, "first", link->socket, 0,
                                 qdict_from_jsonf_nofail("{'addr':'06.0'}")));
    expect_device_error(qts, "first", "first");
    test_link_unplug(qts, "first", 6);
    test_link_kill_server(link, SIGTERM);
    test_packet_plug_well(bus, link, alloc, fds);
}

/* With reconnect-ms, the device waits until its handshake timeout. */
static void test_reconnect_absent(void *obj, void *opaque,
                                  QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);

    for (int i = 0; i < 3; i++) {
        test_link_plug_fails(bus->qts, "early", link->socket, 20,
                             test_packet_props(NULL, 200),
                             "no connection with the ivshmem2-server");
        test_link_wait_fds(bus->qts, fds);
    }
    test_packet_plug_well(bus, link, alloc, fds);
}

static void test_reconnect_late(void *obj, void *opaque,
                                QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QDict *response;

    test_link_add_chardev(bus->qts, "early", link->socket, 20);
    qtest_qmp_send(bus->qts,
                   "{ 'execute': 'device_add', 'arguments': {"
                   "  'driver': 'ivshmem2', 'id': 'early',"
                   "  'chardev': 'early', 'addr': '05.0',"
                   "  'handshake-timeout-ms': 60000 } }");
    test_link_start_server(link, "--max-peers 2");
    response = qtest_qmp_receive(bus->qts);
    g_assert(qdict_haskey(response, "return"));
    qobject_unref(response);
    g_assert_true(test_link_get_bool(bus->qts, "early", "connected"));
    test_link_unplug(bus->qts, "early", SLOT);
    test_link_kill_server(link, SIGTERM);
    test_link_wait_fds(bus->qts, fds);
}

/*
 * Servers that make the device wait.  QMP, and with it the guest, waits as long
 * as device_add; the bound is far below the 5 s of a machine that starts.
 */
#define PAUSE_US    (2 * G_USEC_PER_SEC)

static char *plug_hastily(QPCIBus *bus, const char *socket, int reconnect_ms)
{
    gint64 start;
    QDict *response;
    char *error;

    test_link_add_chardev(bus->qts, "hasty", socket, reconnect_ms);
    start = g_get_monotonic_time();
    response = qtest_qmp(bus->qts, "{ 'execute': 'device_add', 'arguments': {"
                         " 'driver': 'ivshmem2', 'id': 'hasty',"
                         " 'chardev': 'hasty' } }");
    g_assert_cmpint(g_get_monotonic_time() - start, <, PAUSE_US);
    g_assert_true(qdict_haskey(response, "error"));
    error = g_strdup(qdict_get_str(qdict_get_qdict(response, "error"),
                                   "desc"));
    qobject_unref(response);
    g_test_message("%s", error);
    return error;
}

static void test_hasty_silence(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase script = {
        .step = STEP_ACCEPT, .action = ACT_SILENCE,
    };
    QPCIBus *bus = obj;
    TestServer *server = test_server_start(link, &script, PEERS);
    g_autofree char *error =
        plug_hastily(bus, ((TestLink *)link)->socket, 0);

    g_assert_nonnull(strstr(error, "not complete in time"));
    test_link_remove_chardev(bus->qts, "hasty");
    test_server_stop(server);
}

static void test_hasty_absent(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    g_autofree char *error =
        plug_hastily(bus, ((TestLink *)link)->socket, 60000);

    g_assert_nonnull(strstr(error, "No such file"));
    test_link_remove_chardev(bus->qts, "hasty");
}

/* The chardev's own thread waits in connect(); the device must not. */
static void test_hasty_backlog(void *obj, void *opaque,
                               QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    int listener = test_packet_listen(link);
    int fds[256];
    int n = test_packet_fill_backlog(link->socket, fds, ARRAY_SIZE(fds));
    g_autofree char *error = plug_hastily(bus, link->socket, 100);

    g_assert_nonnull(strstr(error, "does not accept connections"));
    close(listener);
    while (n) {
        close(fds[--n]);
    }
    g_unlink(link->socket);
    test_link_remove_chardev(bus->qts, "hasty");
}

/* The chardev was connected too early: the server does not wait any more. */
static void *close_first(void *opaque)
{
    TestServer *s = opaque;
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    char byte;

    /* the HELLO shows that the device took the connection for a good one */
    g_assert_cmpint(recv(fd, &byte, 1, MSG_PEEK), ==, 1);
    close(fd);
    return test_server_thread(s);
}

static void test_idle(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase good = { .step = STEP_COUNT };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    TestServer *s = g_new0(TestServer, 1);
    g_autofree char *error = NULL;

    s->link = link;
    s->script = &good;
    s->max_peers = PEERS;
    s->fd = -1;
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    s->listen_fd = test_packet_listen(link);
    s->thread = g_thread_new("server", close_first, s);
    error = test_link_plug(bus->qts, "idle", s->link->socket, 0,
                           test_packet_props(NULL, 60000));
    g_test_message("%s", error ?: "plugged");
    g_assert_null(error);
    test_link_unplug(bus->qts, "idle", SLOT);
    test_server_stop(s);
    test_link_wait_fds(bus->qts, fds);
}

static void register_ivshmem2_chardev_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/hostile/chardevs", test_chardevs },
        { "ivshmem2/hostile/reconnect-absent", test_reconnect_absent },
        { "ivshmem2/hostile/reconnect-late", test_reconnect_late },
        { "ivshmem2/hostile/hasty-silence", test_hasty_silence },
        { "ivshmem2/hostile/hasty-absent", test_hasty_absent },
        { "ivshmem2/hostile/hasty-backlog", test_hasty_backlog },
        { "ivshmem2/hostile/idle", test_idle },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_chardev_test);
