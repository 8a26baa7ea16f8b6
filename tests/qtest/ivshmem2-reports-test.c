/*
 * ivshmem2 tests: what is reported about a server that fails again and again
 *
 * The number of lines is bounded, and so is the number of attempts.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <poll.h>
#include <sys/socket.h>
#include "qemu/module.h"
#include "ivshmem2-scripted.h"

/* Until a connection has lasted for 10 s */
#define MOST_REPORTS    3
#define SETTLED_US      (15 * G_USEC_PER_SEC)
#define LOST            "goes on without its server"
#define AGAIN           "is connected with its server again"

/* A VM whose messages are kept, with a device that tries again soon */
typedef struct Vm {
    QTestState *qts;
    char *log;
} Vm;

static void vm_start_with(Vm *vm, TestLink *link, int slowest_ms,
                          const char *more)
{
    vm->log = g_strdup_printf("%s/qemu.log", link->dir);
    vm->qts = qtest_initf("-machine pc -chardev socket,id=d,path=%s,"
                          "reconnect-ms=10 -device ivshmem2,id=d,chardev=d,"
                          "x-slowest-reconnect-ms=%d%s 2> %s", link->socket,
                          slowest_ms, more, vm->log);
}

static void vm_start(Vm *vm, TestLink *link, int slowest_ms)
{
    vm_start_with(vm, link, slowest_ms, "");
}

static void vm_end(Vm *vm)
{
    qtest_quit(vm->qts);
    g_unlink(vm->log);
    g_free(vm->log);
}

/* Returns the number of lines, and in @last whether the last one says @words */
static unsigned count_lines(const char *path, const char *words, bool *last)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    unsigned n;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    lines = g_strsplit(g_strchomp(text), "\n", 0);
    n = *text ? g_strv_length(lines) : 0;
    if (last) {
        *last = n && strstr(lines[n - 1], words);
    }
    return n;
}

/* What a server does with one connection, until the device hangs up */
static void refuse(TestServer *s, int fd, int i)
{
    TestPacket p = {};

    test_server_refuse(&p);
    p.msg.refusal.code = i % 2 ? IVSHMEM2_REFUSAL_FULL
                               : IVSHMEM2_REFUSAL_ID_TAKEN;
    strcpy(p.msg.refusal.text, i % 2 ? "no room" : "go away");
    test_server_say(s, fd, STEP_COUNT, &p);
    test_server_wait_closed(s, fd);
}

static void garbage(TestServer *s, int fd, int i)
{
    test_packet_send(fd, "HTTP/1.1 400 Bad Request\r\n", 26, NULL, 0);
    test_server_wait_closed(s, fd);
}

static void hang_up(TestServer *s, int fd, int i)
{
}

/* Do @act with each connection until there were @n or @us are over. */
static int fail(TestServer *s, int n, gint64 us,
                void (*act)(TestServer *s, int fd, int i))
{
    struct pollfd pfd = { .fd = s->listen_fd, .events = POLLIN };
    gint64 end = g_get_monotonic_time() + us;
    int i = 0;

    ivshmem2_close(&s->fd);
    while (i < n && g_get_monotonic_time() < end) {
        if (poll(&pfd, 1, 50) > 0) {
            int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);

            act(s, fd, i++);
            close(fd);
        }
    }
    return i;
}

/* Complete the handshake and hang up at once, the same number of times. */
static int flap(TestServer *s, int n, gint64 us)
{
    struct pollfd pfd = { .fd = s->listen_fd, .events = POLLIN };
    gint64 end = g_get_monotonic_time() + us;
    int i = 0;

    ivshmem2_close(&s->fd);
    while (i < n && g_get_monotonic_time() < end) {
        if (poll(&pfd, 1, 50) > 0) {
            test_server_accept(s);
            test_server_take(s);
            g_usleep(2000);
            ivshmem2_close(&s->fd);
            i++;
        }
    }
    return i;
}

/*
 * All kinds of failures in turn, at high speed; then a connection that lasts,
 * and a loss that is news again.
 */
static void test_lines(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    TestServer *s = test_server_start(link, NULL, PEERS);
    bool again, lost;
    unsigned n;
    Vm vm;

    vm_start(&vm, link, 10);
    test_server_take(s);
    g_assert_cmpint(flap(s, 30, TEST_LINK_WAIT_US), ==, 30);
    g_assert_cmpuint(count_lines(vm.log, LOST, NULL), <=, MOST_REPORTS);
    g_assert_cmpint(fail(s, 30, TEST_LINK_WAIT_US, hang_up), ==, 30);
    g_assert_cmpint(fail(s, 30, TEST_LINK_WAIT_US, refuse), ==, 30);
    g_assert_cmpint(fail(s, 30, TEST_LINK_WAIT_US, garbage), ==, 30);
    g_assert_cmpint(flap(s, 30, TEST_LINK_WAIT_US), ==, 30);
    test_link_wait_until((n = count_lines(vm.log, LOST, &lost), lost));
    g_test_message("150 failures, %u lines", n);
    g_assert_cmpuint(n, <=, MOST_REPORTS);

    test_server_accept(s);
    test_server_take(s);
    g_usleep(SETTLED_US);
    n = count_lines(vm.log, AGAIN, &again);
    g_assert_true(again);
    g_assert_cmpuint(n, <=, MOST_REPORTS + 1);
    ivshmem2_close(&s->fd);
    test_link_wait_until(count_lines(vm.log, LOST, &lost) == n + 1);
    g_assert_true(lost);
    vm_end(&vm);
    test_server_stop(s);
}

/*
 * A server that refuses, alternating with none: the chardev has a message of
 * its own for each of the latter.
 */
static void test_alternating(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    TestServer *s = test_server_start(link, NULL, PEERS);
    unsigned n = 0;
    Vm vm;

    vm_start(&vm, link, 10);
    test_server_take(s);
    for (int i = 0; i < 20; i++) {
        g_assert_cmpint(fail(s, 2, TEST_LINK_WAIT_US, refuse), ==, 2);
        close(s->listen_fd);
        g_unlink(link->socket);
        g_usleep(50000);
        s->listen_fd = test_packet_listen(link);
        n = count_lines(vm.log, LOST, NULL);
        g_assert_cmpuint(n, <=, MOST_REPORTS);
    }
    g_test_message("%u lines", n);
    g_assert_cmpuint(n, >=, 2);
    vm_end(&vm);
    test_server_stop(s);
}

/* A line an hour later, with a shorter hour */
static void test_again(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    TestServer *s = test_server_start(link, NULL, PEERS);
    unsigned n;
    int attempts;
    Vm vm;

    vm_start_with(&vm, link, 10, ",x-report-again-ms=1000");
    test_server_take(s);
    attempts = fail(s, 1000, 3500 * 1000, refuse);
    n = count_lines(vm.log, LOST, NULL);
    g_test_message("%d refusals, %u lines", attempts, n);
    g_assert_cmpint(attempts, >, 20);
    /* two, and one each second */
    g_assert_cmpuint(n, >=, 3);
    g_assert_cmpuint(n, <=, MOST_REPORTS + 3);
    vm_end(&vm);
    test_server_stop(s);
}

/* How often the device tries, if no connection lasts */
static void test_attempts(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    TestServer *s = test_server_start(link, NULL, PEERS);
    Vm vm;
    int n;

    vm_start(&vm, link, 60000);
    test_server_take(s);
    n = flap(s, 1000, 2 * G_USEC_PER_SEC);
    g_test_message("%d handshakes in 2 s", n);
    /* 20, 40, 80, ... 320, 500, 500 ms later */
    g_assert_cmpint(n, >=, 2);
    g_assert_cmpint(n, <=, 10);
    g_assert_cmpuint(count_lines(vm.log, LOST, NULL), <=, MOST_REPORTS);
    vm_end(&vm);
    test_server_stop(s);
}

/* The real server, killed and started anew: it does not know the session. */
static void test_restarted(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    g_autofree char *log = g_strdup_printf("%s/server.log", link->dir);
    unsigned n, of_server;
    bool last;
    Vm vm;

    test_link_start_server(link, "--max-peers 2");
    vm_start(&vm, link, 60000);
    test_link_kill_server(link, SIGKILL);
    link->log = log;
    test_link_start_server(link, "--max-peers 2 --log-level info");
    g_usleep(3 * G_USEC_PER_SEC);
    n = count_lines(vm.log, LOST, NULL);
    of_server = count_lines(log, LOST, NULL);
    g_test_message("%u lines of QEMU, %u of the server in 3 s", n, of_server);
    g_assert_cmpuint(n, >=, 1);
    g_assert_cmpuint(count_lines(vm.log, "not of this server", &last), <=,
                     MOST_REPORTS);
    g_assert_true(last);
    /* it starts, a client connects, is refused, disconnects */
    g_assert_cmpuint(of_server, <=, 8);
    vm_end(&vm);
    link->log = NULL;
    g_unlink(log);
}

/* QEMU's user or root folder changes after it has joined. */
static void test_way_back(void *obj, void *opaque, QGuestAllocator *alloc)
{
    static const struct {
        const char *option;
        const char *words;
    } changes[] = {
        { "user=nobody", "start QEMU as that user" },
        { "chroot=/proc/self/fdinfo", "cannot reach" },
        { NULL, NULL },
    };
    TestLink *link = opaque;
    Vm vm[ARRAY_SIZE(changes)];

    if (geteuid()) {
        g_test_skip("only root can change them");
        return;
    }
    test_link_start_server(link, "--max-peers 3");
    for (int i = 0; i < ARRAY_SIZE(changes); i++) {
        g_autofree char *more = g_strdup_printf("%s%s", changes[i].option ?
                                                " -run-with " : "",
                                                changes[i].option ?: "");

        vm[i].log = g_strdup_printf("%s/qemu%d.log", link->dir, i);
        vm[i].qts = qtest_initf("-machine pc -chardev socket,id=d,path=%s,"
                                "reconnect-ms=10 -device ivshmem2,id=d,"
                                "chardev=d%s 2> %s", link->socket, more,
                                vm[i].log);
    }
    g_usleep(SETTLED_US);
    for (int i = 0; i < ARRAY_SIZE(changes); i++) {
        bool said;

        g_assert_cmpuint(count_lines(vm[i].log, changes[i].words ?: "", &said),
                         ==, !!changes[i].words);
        g_assert_cmpint(said, ==, !!changes[i].words);
        vm_end(&vm[i]);
    }
}

static void register_ivshmem2_reports_test(void)
{
    test_link_add("ivshmem2/reports/lines", "pci-bus", test_lines, NULL);
    test_link_add("ivshmem2/reports/alternating", "pci-bus", test_alternating,
                  NULL);
    test_link_add("ivshmem2/reports/again", "pci-bus", test_again, NULL);
    test_link_add("ivshmem2/reports/attempts", "pci-bus", test_attempts, NULL);
    test_link_add("ivshmem2/reports/way-back", "pci-bus", test_way_back, NULL);
    test_link_add("ivshmem2/reports/restarted", "pci-bus", test_restarted,
                  NULL);
}

libqos_init(register_ivshmem2_reports_test);
