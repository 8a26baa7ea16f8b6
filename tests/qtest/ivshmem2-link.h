/*
 * ivshmem2 tests: a link, its server and its peers
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_IVSHMEM2_LINK_H
#define TESTS_IVSHMEM2_LINK_H

#include "libqtest.h"
#include "libqos/ivshmem2.h"
#include "qobject/qdict.h"

/* How long to wait for what must happen, much longer than it takes */
#define TEST_LINK_WAIT_US   (60 * G_USEC_PER_SEC)

/* Wait until @condition is true, and fail if it does not become so. */
#define test_link_wait_until(condition)                                 \
    do {                                                                \
        gint64 end_ = g_get_monotonic_time() + TEST_LINK_WAIT_US;       \
                                                                        \
        while (!(condition)) {                                          \
            g_assert_cmpint(g_get_monotonic_time(), <, end_);           \
            g_usleep(500);                                              \
        }                                                               \
    } while (0)

/* A server of its own in a folder of its own */
typedef struct TestLink {
    char *dir;
    char *socket;
    pid_t pid;                  /* 0: no server runs */
    const char *log;            /* a file for its messages, or NULL */
} TestLink;

/* What a test needs: options of the server, and of the graph's QEMU */
typedef struct TestLinkSetup {
    const char *server;
    const char *qemu;
} TestLinkSetup;

/*
 * Add a test that gets @interface, and a TestLink * as data.  If that is
 * "ivshmem2", the graph's device is a peer of this link.  Without a server
 * to run, the test is skipped.
 */
void test_link_add(const char *name, const char *interface,
                   QOSTestFunc function, const TestLinkSetup *setup);

TestLink *test_link_new(const char *options);
void test_link_free(void *link);
void test_link_kill_server(TestLink *link, int signal);
void test_link_start_server(TestLink *link, const char *options);

/*
 * A QEMU like the graph's, with @options and its own device on @link, until
 * the end of the test, with interrupts enabled.
 */
QIvshmem2 *test_link_peer(TestLink *link, const char *options);
QIvshmem2 *test_link_peer_with_id(TestLink *link, uint32_t id);

/* End it before the end of the test, in order or by SIGKILL. */
void test_link_quit_peer(QIvshmem2 *d);
void test_link_kill_peer(QIvshmem2 *d);

/*
 * Hot-plug a chardev and a device, both called @id; @props are more
 * properties of the device, consumed, or NULL.  Returns NULL on success, else
 * the error; then the chardev has been removed as well.
 */
char *test_link_plug(QTestState *qts, const char *id, const char *socket,
                     int reconnect_ms, QDict *props);
void test_link_unplug(QTestState *qts, const char *id, int slot);

/* Expect that plugging fails, with an error that says @words. */
void test_link_plug_fails(QTestState *qts, const char *id, const char *socket,
                          int reconnect_ms, QDict *props, const char *words);
void test_link_add_chardev(QTestState *qts, const char *id,
                           const char *socket, int reconnect_ms);
void test_link_remove_chardev(QTestState *qts, const char *id);

/* A second device in the VM of @d; it has been plugged already. */
QIvshmem2 *test_link_add_device(QIvshmem2 *d, int devfn);
QIvshmem2 *test_link_plug_device(QIvshmem2 *d, const char *id,
                                 const char *socket, int slot);

/* Properties of device @id */
uint64_t test_link_get(QTestState *qts, const char *id, const char *name);
bool test_link_get_bool(QTestState *qts, const char *id, const char *name);
char *test_link_get_str(QTestState *qts, const char *id, const char *name);

/* Is @words in this property? */
bool test_link_says(QTestState *qts, const char *id, const char *name,
                    const char *words);

/*
 * The next event IVSHMEM2_CONNECTION of device @id has this status, and a
 * reason with @words unless they are NULL.
 */
void test_link_expect_event(QTestState *qts, const char *id,
                            const char *status, const char *words);

/* There was no further one. */
void test_link_expect_no_event(QTestState *qts);

/* Descriptors of QEMU */
unsigned test_link_count_fds(QTestState *qts);
void test_link_wait_fds(QTestState *qts, unsigned wanted);

/* No interrupt has arrived. */
void test_link_check_quiet(QIvshmem2 *d);

/* Wait until the guest sees @value in the State Table. */
void test_link_wait_entry(QIvshmem2 *d, uint32_t id, uint32_t value);

#endif /* TESTS_IVSHMEM2_LINK_H */
