/*
 * ivshmem2 tests: a link, its server and its peers
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "libqos/pci-pc.h"
#include "qemu/module.h"
#include "qobject/qjson.h"
#include "ivshmem2-link.h"

#define BUILT_SERVER    "contrib/ivshmem2-server/ivshmem2-server"

static const char *server_path(void)
{
    const char *path = getenv("IVSHMEM2_SERVER");

    if (path) {
        return g_access(path, X_OK) == 0 ? path : NULL;
    }
    return g_access(BUILT_SERVER, X_OK) == 0 ? BUILT_SERVER : NULL;
}

/* The server */

static void in_server(void *opaque)
{
    const TestLink *link = opaque;
    int log = link->log ? open(link->log, O_WRONLY | O_CREAT | O_APPEND, 0600)
                        : STDERR_FILENO;

    dup2(log, STDERR_FILENO);
    /* keep its output out of the test's own, which is TAP */
    dup2(STDERR_FILENO, STDOUT_FILENO);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void wait_ready(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    char text[256] = "";

    while (!strstr(text, "READY=1")) {
        g_assert_cmpint(poll(&pfd, 1, TEST_LINK_WAIT_US / 1000), ==, 1);
        g_assert_cmpint(recv(fd, text, sizeof(text) - 1, 0), >, 0);
    }
}

void test_link_start_server(TestLink *link, const char *options)
{
    g_autofree char *command =
        g_strdup_printf("%s --log-level error --socket %s %s", server_path(),
                        link->socket, options);
    g_autofree char *ready_path = g_strdup_printf("%s/ready", link->dir);
    g_auto(GStrv) argv = g_strsplit(command, " ", 0);
    g_auto(GStrv) env = g_environ_setenv(g_get_environ(), "NOTIFY_SOCKET",
                                         ready_path, true);
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    g_autoptr(GError) err = NULL;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    g_assert_cmpuint(g_strlcpy(addr.sun_path, ready_path,
                               sizeof(addr.sun_path)), <,
                     sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    g_spawn_async(NULL, argv, env, G_SPAWN_DO_NOT_REAP_CHILD, in_server,
                  link, &link->pid, &err);
    g_assert_no_error(err);
    wait_ready(fd);
    close(fd);
    g_unlink(ready_path);
}

void test_link_kill_server(TestLink *link, int signal)
{
    if (link->pid) {
        kill(link->pid, signal);
        g_assert_cmpint(RETRY_ON_EINTR(waitpid(link->pid, NULL, 0)), ==,
                        link->pid);
        link->pid = 0;
    }
}

TestLink *test_link_new(const char *options)
{
    TestLink *link = g_new0(TestLink, 1);
    g_autoptr(GError) err = NULL;

    link->dir = g_dir_make_tmp("iv2-XXXXXX", &err);
    g_assert_no_error(err);
    link->socket = g_strdup_printf("%s/socket", link->dir);
    if (options) {
        test_link_start_server(link, options);
    }
    return link;
}

void test_link_free(void *opaque)
{
    TestLink *link = opaque;

    test_link_kill_server(link, SIGTERM);
    g_unlink(link->socket);
    g_assert_cmpint(g_rmdir(link->dir), ==, 0);
    g_free(link->socket);
    g_free(link->dir);
    g_free(link);
}

/* Tests */

static void *before_test(GString *cmd_line, void *arg)
{
    const TestLinkSetup *setup = arg;
    TestLink *link = test_link_new(setup->server);

    g_test_queue_destroy(test_link_free, link);
    if (strstr(cmd_line->str, "chardev=" QIVSHMEM2_ID)) {
        g_string_append_printf(cmd_line, " -chardev socket,id=%s,path=%s",
                               QIVSHMEM2_ID, link->socket);
    }
    if (setup->qemu) {
        g_string_append_printf(cmd_line, " %s", setup->qemu);
    }
    return link;
}

static void skip_test(const void *unused)
{
    g_test_skip("IVSHMEM2_SERVER is no program, and there is no "
                BUILT_SERVER);
}

void test_link_add(const char *name, const char *interface,
                   QOSTestFunc function, const TestLinkSetup *setup)
{
    static const TestLinkSetup no_setup;
    QOSGraphTestOptions opts = {
        .before = before_test,
        .arg = (void *)(setup ?: &no_setup),
    };

    if (server_path()) {
        qos_add_test(name, interface, function, &opts);
    } else {
        g_autofree char *path = g_strdup_printf("ivshmem2/%s", name);

        qtest_add_data_func(path, NULL, skip_test);
    }
}

/* Peers */

typedef struct Peer {
    QTestState *qts;            /* NULL: gone */
} Peer;

static GSList *peers;
/* Not freed: libqtest cannot free the state of a QEMU that was killed. */
static GSList *killed;

static Peer *find_peer(QIvshmem2 *d)
{
    GSList *p = peers;

    while (((Peer *)p->data)->qts != d->qts) {
        p = p->next;
    }
    return p->data;
}

static void free_peer(void *opaque)
{
    Peer *peer = opaque;

    if (peer->qts) {
        qtest_quit(peer->qts);
    }
    peers = g_slist_remove(peers, peer);
    g_free(peer);
}

QIvshmem2 *test_link_peer(TestLink *link, const char *options)
{
    Peer *peer = g_new0(Peer, 1);
    QIvshmem2 *d;

    peer->qts = qtest_initf("%s -chardev socket,id=%s,path=%s %s",
                            qos_get_current_command_line(),
                            QIVSHMEM2_ID, link->socket, options ?: "");
    peers = g_slist_prepend(peers, peer);
    g_test_queue_destroy(free_peer, peer);
    d = qos_allocate_objects(peer->qts, NULL);
    qivshmem2_enable(d);
    return d;
}

QIvshmem2 *test_link_peer_with_id(TestLink *link, uint32_t id)
{
    g_autofree char *options =
        g_strdup_printf("-global ivshmem2.peer-id=%u", id);

    return test_link_peer(link, options);
}

void test_link_quit_peer(QIvshmem2 *d)
{
    Peer *peer = find_peer(d);

    qtest_quit(peer->qts);
    peer->qts = NULL;
}

void test_link_kill_peer(QIvshmem2 *d)
{
    Peer *peer = find_peer(d);
    pid_t pid = qtest_pid(peer->qts);

    kill(pid, SIGKILL);
    g_assert_cmpint(RETRY_ON_EINTR(waitpid(pid, NULL, 0)), ==, pid);
    qtest_remove_abrt_handler(peer->qts);
    killed = g_slist_prepend(killed, peer->qts);
    peer->qts = NULL;
}

/* Hot-plug */

static bool succeeds(QDict *response)
{
    bool done = qdict_haskey(response, "return");

    qobject_unref(response);
    return done;
}

void test_link_add_chardev(QTestState *qts, const char *id,
                           const char *socket, int reconnect_ms)
{
    /* A removed chardev that was just connecting keeps its ID for a while. */
    test_link_wait_until(succeeds(qtest_qmp(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': %s,"
        "  'backend': { 'type': 'socket', 'data': { 'server': false,"
        "  'reconnect-ms': %d,"
        "  'addr': { 'type': 'unix', 'data': { 'path': %s } } } } } }",
        id, reconnect_ms, socket)));
}

void test_link_remove_chardev(QTestState *qts, const char *id)
{
    /* An unplugged device releases its chardev a little later. */
    test_link_wait_until(succeeds(qtest_qmp(qts,
        "{ 'execute': 'chardev-remove', 'arguments': { 'id': %s } }", id)));
}

char *test_link_plug(QTestState *qts, const char *id, const char *socket,
                     int reconnect_ms, QDict *props)
{
    QDict *args = props ?: qdict_new();
    QDict *response;
    char *problem = NULL;

    test_link_add_chardev(qts, id, socket, reconnect_ms);
    qdict_put_str(args, "driver", "ivshmem2");
    qdict_put_str(args, "id", id);
    qdict_put_str(args, "chardev", id);
    response = qtest_qmp(qts, "{ 'execute': 'device_add',"
                         "  'arguments': %p }", args);
    if (qdict_haskey(response, "error")) {
        QDict *error = qdict_get_qdict(response, "error");

        problem = g_strdup(qdict_get_str(error, "desc"));
        test_link_remove_chardev(qts, id);
    }
    qobject_unref(response);
    return problem;
}

void test_link_plug_fails(QTestState *qts, const char *id, const char *socket,
                          int reconnect_ms, QDict *props, const char *words)
{
    g_autofree char *error = test_link_plug(qts, id, socket, reconnect_ms,
                                            props);

    g_test_message("%s", error ?: "plugged");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, words));
}

void test_link_unplug(QTestState *qts, const char *id, int slot)
{
    qpci_unplug_acpi_device_test(qts, id, slot);
    test_link_remove_chardev(qts, id);
}

void test_link_check_quiet(QIvshmem2 *d)
{
    for (unsigned i = 0; i < d->vectors; i++) {
        g_assert_false(qivshmem2_arrived(d, i));
    }
}

QIvshmem2 *test_link_add_device(QIvshmem2 *d, int devfn)
{
    QIvshmem2 *more = g_new0(QIvshmem2, 1);

    g_test_queue_free(more);
    qivshmem2_init(more, d->dev.bus, devfn, d->alloc);
    return more;
}

QIvshmem2 *test_link_plug_device(QIvshmem2 *d, const char *id,
                                 const char *socket, int slot)
{
    g_autofree char *addr = g_strdup_printf("%02x.0", slot);
    QIvshmem2 *more;

    g_assert_null(test_link_plug(d->qts, id, socket, 0,
                                 qdict_from_jsonf_nofail("{ 'addr': %s,"
                                     " 'peer-id': 'any' }", addr)));
    more = test_link_add_device(d, QPCI_DEVFN(slot, 0));
    qivshmem2_start(more);
    qivshmem2_enable(more);
    return more;
}

/* Properties and descriptors of QEMU */

static QDict *get_property(QTestState *qts, const char *id, const char *name)
{
    g_autofree char *path = g_strdup_printf("/machine/peripheral/%s", id);
    QDict *response = qtest_qmp(qts,
        "{ 'execute': 'qom-get', 'arguments': { 'path': %s,"
        "  'property': %s } }", path, name);

    g_assert(qdict_haskey(response, "return"));
    return response;
}

uint64_t test_link_get(QTestState *qts, const char *id, const char *name)
{
    QDict *response = get_property(qts, id, name);
    uint64_t value = qdict_get_int(response, "return");

    qobject_unref(response);
    return value;
}

bool test_link_get_bool(QTestState *qts, const char *id, const char *name)
{
    QDict *response = get_property(qts, id, name);
    bool value = qdict_get_bool(response, "return");

    qobject_unref(response);
    return value;
}

char *test_link_get_str(QTestState *qts, const char *id, const char *name)
{
    QDict *response = get_property(qts, id, name);
    char *value = g_strdup(qdict_get_str(response, "return"));

    qobject_unref(response);
    return value;
}

bool test_link_says(QTestState *qts, const char *id, const char *name,
                    const char *words)
{
    g_autofree char *text = test_link_get_str(qts, id, name);

    return strstr(text, words);
}

void test_link_expect_event(QTestState *qts, const char *id,
                            const char *status, const char *words)
{
    g_autofree char *path = g_strdup_printf("/machine/peripheral/%s", id);
    QDict *event = qtest_qmp_eventwait_ref(qts, "IVSHMEM2_CONNECTION");
    QDict *data = qdict_get_qdict(event, "data");
    const char *reason = qdict_get_try_str(data, "reason");

    g_test_message("%s: %s", qdict_get_str(data, "status"), reason ?: "");
    g_assert_cmpstr(qdict_get_str(data, "id"), ==, id);
    g_assert_cmpstr(qdict_get_str(data, "path"), ==, path);
    g_assert_cmpuint(qdict_get_int(data, "peer-id"), ==,
                     test_link_get(qts, id, "peer-id"));
    g_assert_cmpstr(qdict_get_str(data, "status"), ==, status);
    g_assert_true(words ? reason && strstr(reason, words) : !reason);
    qobject_unref(event);
}

void test_link_expect_no_event(QTestState *qts)
{
    /* what was sent before its answer is seen */
    qobject_unref(qtest_qmp(qts, "{ 'execute': 'query-status' }"));
    g_assert_null(qtest_qmp_event_ref(qts, "IVSHMEM2_CONNECTION"));
}

/* Returns their number, and if @say, lists them in the test's output. */
static unsigned look_at_fds(QTestState *qts, bool say)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd",
                                            (int)qtest_pid(qts));
    GDir *dir = g_dir_open(path, 0, NULL);
    const char *name;
    unsigned n = 0;

    g_assert_nonnull(dir);
    while ((name = g_dir_read_name(dir))) {
        n++;
        if (say) {
            g_autofree char *link = g_strdup_printf("%s/%s", path, name);
            g_autofree char *target = g_file_read_link(link, NULL);

            g_test_message("%s: %s", link, target ?: "gone");
        }
    }
    g_dir_close(dir);
    return n;
}

unsigned test_link_count_fds(QTestState *qts)
{
    return look_at_fds(qts, false);
}

void test_link_wait_fds(QTestState *qts, unsigned wanted)
{
    gint64 end = g_get_monotonic_time() + TEST_LINK_WAIT_US / 4;

    while (look_at_fds(qts, g_get_monotonic_time() >= end) != wanted) {
        g_assert_cmpint(g_get_monotonic_time(), <, end);
        g_usleep(1000);
    }
}

void test_link_wait_entry(QIvshmem2 *d, uint32_t id, uint32_t value)
{
    test_link_wait_until(qivshmem2_entry(d, id) == value);
}
