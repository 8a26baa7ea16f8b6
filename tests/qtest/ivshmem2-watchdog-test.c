/*
 * ivshmem2 tests: QEMU answers whatever its server does
 *
 * While a server does everything wrong that could make a client wait, QEMU is
 * asked by QMP again and again, and ends in time.  What is asserted leaves
 * much room for a busy host, but none for a wait for the server; what was
 * measured is in the comments of the output.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "qemu/atomic.h"
#include "qemu/module.h"
#include "qobject/qjson.h"
#include "ivshmem2-scripted.h"

/* The failures that this is to find take 5 s, or have no end. */
#define ANSWER_US       (2 * G_USEC_PER_SEC)
#define END_US          (3 * G_USEC_PER_SEC)

/* A server for connections that it follows, or does not even accept */
typedef struct Trouble {
    const char *name;
    TestAction action;
    TestStep first, last;
    bool deaf;                  /* does not accept */
} Trouble;

static const Trouble troubles[] = {
    { "accepts nothing", ACT_NOTHING, STEP_ACCEPT, STEP_ACCEPT, true },
    { "is silent", ACT_SILENCE, STEP_ACCEPT, STEP_READY },
    { "stops in a message", ACT_CUT_SILENCE, STEP_WELCOME, STEP_READY },
    { "dies", ACT_CLOSE, STEP_ACCEPT, STEP_READY },
    { "dies in a message", ACT_CUT_CLOSE, STEP_WELCOME, STEP_READY },
    { "floods", ACT_ENDLESS, STEP_OUTPUTS, STEP_READY },
    { "sends what blocks", ACT_BLOCK, STEP_WELCOME, STEP_EVENTFDS },
    { "leaves unread what blocks", ACT_BLOCK_UNREAD, STEP_WELCOME,
      STEP_EVENTFDS },
};

/* What QEMU took at most */
typedef struct Longest {
    gint64 answer;
    gint64 plug;
    gint64 end;
} Longest;

static void at_most(gint64 *longest, gint64 start, gint64 bound)
{
    gint64 took = g_get_monotonic_time() - start;

    *longest = MAX(*longest, took);
    g_assert_cmpint(took, <, bound);
}

static void tell(const char *when, const Longest *l)
{
    g_test_message("%s: longest answer %.1f ms, device_add %.1f ms, "
                   "end %.1f ms", when, l->answer / 1000.0, l->plug / 1000.0,
                   l->end / 1000.0);
}

/*
 * QEMU with a second monitor
 */

typedef struct Vm {
    QTestState *qts;
    char *monitor;
    FILE *qmp;
    GThread *thread;
    bool stop;
    int answers;
    Longest *longest;
} Vm;

/* Returns false if QEMU has ended. */
static bool ask(Vm *vm, const char *command)
{
    char line[1024];

    if (send(fileno(vm->qmp), command, strlen(command), MSG_NOSIGNAL) < 0) {
        return false;
    }
    do {
        if (!fgets(line, sizeof(line), vm->qmp)) {
            return false;
        }
    } while (!strstr(line, "\"return\""));
    return true;
}

static void *watch_thread(void *opaque)
{
    Vm *vm = opaque;

    while (!qatomic_read(&vm->stop)) {
        gint64 start = g_get_monotonic_time();

        if (!ask(vm, "{\"execute\":\"query-status\"}\n")) {
            break;
        }
        at_most(&vm->longest->answer, start, ANSWER_US);
        qatomic_inc(&vm->answers);
        g_usleep(10000);
    }
    return NULL;
}

static Vm *vm_start(TestLink *link, Longest *longest, const char *options)
{
    Vm *vm = g_new0(Vm, 1);
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    vm->longest = longest;
    vm->monitor = g_strdup_printf("%s/monitor", link->dir);
    vm->qts = qtest_initf("-machine pc -qmp unix:%s,server=on,wait=off %s",
                          vm->monitor, options);
    g_strlcpy(un.sun_path, vm->monitor, sizeof(un.sun_path));
    g_assert_cmpint(connect(fd, (struct sockaddr *)&un, sizeof(un)), ==, 0);
    vm->qmp = fdopen(fd, "r");
    g_assert_true(ask(vm, "{\"execute\":\"qmp_capabilities\"}\n"));
    vm->thread = g_thread_new("watch", watch_thread, vm);
    return vm;
}

/*
 * A signal ends some waits, so that QEMU has to answer before it gets one:
 * one question may have been answered already, the next one is new.
 */
static void vm_watch(Vm *vm, gint64 us)
{
    int before;

    g_usleep(us);
    before = qatomic_read(&vm->answers);
    test_link_wait_until(qatomic_read(&vm->answers) >= before + 2);
}

static void vm_end(Vm *vm)
{
    gint64 start = g_get_monotonic_time();

    kill(qtest_pid(vm->qts), SIGTERM);
    while (qtest_probe_child(vm->qts)) {
        g_assert_cmpint(g_get_monotonic_time() - start, <,
                        TEST_LINK_WAIT_US);
        g_usleep(500);
    }
    at_most(&vm->longest->end, start, END_US);
    qatomic_set(&vm->stop, true);
    g_thread_join(vm->thread);
    qtest_quit(vm->qts);
    fclose(vm->qmp);
    g_unlink(vm->monitor);
    g_free(vm->monitor);
    g_free(vm);
}

/*
 * Servers
 */

typedef struct Bad {
    TestServer *server;         /* NULL: it does not accept */
    TestCase script;
    int listener;
    int fds[256];
    int n_fds;
    TestLink *link;
} Bad;

static void bad_start(Bad *bad, TestLink *link, const Trouble *t,
                      TestStep step)
{
    bad->link = link;
    bad->server = NULL;
    bad->script = (TestCase) { .action = t->action, .step = step };
    if (t->deaf) {
        bad->listener = test_packet_listen(link);
        bad->n_fds = test_packet_fill_backlog(link->socket, bad->fds,
                                              ARRAY_SIZE(bad->fds));
    } else {
        bad->server = test_server_start(link, &bad->script, PEERS);
    }
}

static void bad_stop(Bad *bad)
{
    if (bad->server) {
        test_server_stop(bad->server);
        return;
    }
    close(bad->listener);
    while (bad->n_fds) {
        close(bad->fds[--bad->n_fds]);
    }
    g_unlink(bad->link->socket);
}

/* Call @run with each trouble at each step of the handshake. */
static void each_trouble(TestLink *link, const char *when,
                         void (*run)(TestLink *link, const Trouble *t,
                                     TestStep step, Longest *longest))
{
    Longest all = {};

    for (int i = 0; i < ARRAY_SIZE(troubles); i++) {
        const Trouble *t = &troubles[i];
        g_autofree char *name = g_strdup_printf("%s, server %s", when,
                                                t->name);
        Longest longest = {};

        for (TestStep step = t->first; step <= t->last; step++) {
            run(link, t, step, &longest);
        }
        tell(name, &longest);
        all.answer = MAX(all.answer, longest.answer);
        all.plug = MAX(all.plug, longest.plug);
        all.end = MAX(all.end, longest.end);
    }
    tell(when, &all);
}

/*
 * Hot plug: the guest stands still as long as device_add takes.
 */

#define DEVICE_ADD  "{ 'execute': 'device_add', 'arguments': {"             \
                    " 'driver': 'ivshmem2', 'chardev': %s } }"

static void plug(Vm *vm, TestLink *link)
{
    gint64 start;
    QDict *response;

    test_link_add_chardev(vm->qts, "first", link->socket, 100);
    start = g_get_monotonic_time();
    response = qtest_qmp(vm->qts, DEVICE_ADD, "first");
    at_most(&vm->longest->plug, start, ANSWER_US);
    g_assert_true(qdict_haskey(response, "error"));
    qobject_unref(response);
    test_link_remove_chardev(vm->qts, "first");
}

static void run_plug(TestLink *link, const Trouble *t, TestStep step,
                     Longest *longest)
{
    Vm *vm = vm_start(link, longest, "");
    Bad bad;

    bad_start(&bad, link, t, step);
    plug(vm, link);
    /* and to be ended meanwhile */
    test_link_add_chardev(vm->qts, "second", link->socket, 100);
    qtest_qmp_send(vm->qts, DEVICE_ADD, "second");
    g_usleep(20000);
    vm_end(vm);
    bad_stop(&bad);
}

static void test_plug(void *obj, void *link, QGuestAllocator *alloc)
{
    each_trouble(link, "hot plug", run_plug);
}

/*
 * A machine that starts has no monitor yet, but can be ended.
 */

static void end_with_test(void *unused)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void run_start(TestLink *link, const Trouble *t, TestStep step,
                      Longest *longest)
{
    g_autofree char *command =
        g_strdup_printf("%s -machine pc -accel qtest -display none -nodefaults"
                        " -S -chardev socket,id=c,path=%s,reconnect-ms=100"
                        " -device ivshmem2,chardev=c",
                        getenv("QTEST_QEMU_BINARY"), link->socket);
    g_auto(GStrv) argv = g_strsplit(command, " ", 0);
    g_autoptr(GError) err = NULL;
    Bad bad;
    gint64 start;
    GPid pid;

    bad_start(&bad, link, t, step);
    g_spawn_async(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD |
                  G_SPAWN_STDERR_TO_DEV_NULL | G_SPAWN_STDOUT_TO_DEV_NULL,
                  end_with_test, NULL, &pid, &err);
    g_assert_no_error(err);
    g_usleep(300000);
    start = g_get_monotonic_time();
    kill(pid, SIGTERM);
    g_assert_cmpint(RETRY_ON_EINTR(waitpid(pid, NULL, 0)), ==, pid);
    at_most(&longest->end, start, END_US);
    bad_stop(&bad);
}

static void test_start(void *obj, void *link, QGuestAllocator *alloc)
{
    each_trouble(link, "start", run_start);
}

/*
 * A device in use connects again.
 */

static Vm *start_connected(TestLink *link, Longest *longest)
{
    g_autofree char *options =
        g_strdup_printf("-chardev socket,id=d,path=%s,reconnect-ms=10"
                        " -device ivshmem2,id=d,chardev=d,"
                        "x-slowest-reconnect-ms=20", link->socket);

    return vm_start(link, longest, options);
}

static void run_reconnect(TestLink *link, const Trouble *t, TestStep step,
                          Longest *longest)
{
    TestServer *good = test_server_start(link, NULL, PEERS);
    Vm *vm = start_connected(link, longest);
    Bad bad;

    test_server_take(good);
    test_server_stop(good);
    bad_start(&bad, link, t, step);
    vm_watch(vm, 200000);
    vm_end(vm);
    bad_stop(&bad);
}

static void test_reconnect(void *obj, void *link, QGuestAllocator *alloc)
{
    each_trouble(link, "reconnect", run_reconnect);
}

/*
 * A connection that stands, with a server that floods the device, or has it
 * close what blocks
 */

static void send_until_closed(TestServer *s, TestPacket *p, bool blocking)
{
    gint64 end = g_get_monotonic_time() + G_USEC_PER_SEC / 2;
    bool open = true;

    test_packet_finish(p);
    while (open && g_get_monotonic_time() < end) {
        Ivshmem2Msg wire = test_packet_encode(p);
        int fd = blocking ? test_packet_blocking() : -1;

        open = blocking
            ? test_packet_send_last(s->fd, "", &wire, p->size, &fd, 1)
            : test_packet_send(s->fd, &wire, p->size, p->fds, p->n_fds);
    }
}

static void test_connected(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    Longest longest = {};

    for (int i = 0; i < 4; i++) {
        TestServer *s = test_server_start(link, NULL, i % 2 ? 65536 : PEERS);
        Vm *vm = start_connected(link, &longest);
        TestPacket p = {
            .msg.hdr.type = IVSHMEM2_MSG_EVENTFDS,
            .msg.eventfds.id = 1,
            .n_fds = 1,
        };

        test_server_take(s);
        p.fds[0] = s->eventfds[0];
        send_until_closed(s, &p, i / 2);
        vm_watch(vm, 100000);
        vm_end(vm);
        test_server_stop(s);
    }
    tell("connected", &longest);
}

/*
 * The real server, stopped: while a device is plugged, and while another one
 * is connected
 */
static void test_stopped(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    g_autofree char *options =
        g_strdup_printf("-chardev socket,id=u,path=%s -device ivshmem2,"
                        "id=u,chardev=u", link->socket);
    Longest longest = {};
    Vm *vm;

    test_link_start_server(link, "--max-peers 4");
    vm = vm_start(link, &longest, options);
    kill(link->pid, SIGSTOP);
    plug(vm, link);
    vm_watch(vm, 200000);
    vm_end(vm);
    kill(link->pid, SIGCONT);
    tell("stopped server", &longest);
}

static void register_ivshmem2_watchdog_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/watchdog/plug", test_plug },
        { "ivshmem2/watchdog/start", test_start },
        { "ivshmem2/watchdog/reconnect", test_reconnect },
        { "ivshmem2/watchdog/connected", test_connected },
        { "ivshmem2/watchdog/stopped", test_stopped },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_watchdog_test);
