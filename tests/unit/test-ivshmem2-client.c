/*
 * libivshmem2's client API and ivshmem2-client, with the real server
 *
 * The programs are those of IVSHMEM2_SERVER and IVSHMEM2_CLIENT.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <glib/gstdio.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include "libivshmem2.h"
#include "libivshmem2-core.h"

/* For events that are expected at once, on a busy machine */
#define SOON_MS     10000
/* For events that must not happen */
#define NEVER_MS    100

/* Fixture: a server and what it needs */

typedef struct Link {
    char *dir;
    char *socket;
    GPid server;
    unsigned n_fds;             /* of this process, before */
} Link;

static unsigned count_fds(void)
{
    GDir *dir = g_dir_open("/proc/self/fd", 0, NULL);
    unsigned n = 0;

    while (g_dir_read_name(dir)) {
        n++;
    }
    g_dir_close(dir);
    return n;
}

/* Children end when the test ends, even if it crashes. */
static void end_with_parent(gpointer opaque)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
}

static void link_init(Link *l)
{
    l->n_fds = count_fds();
    l->dir = g_dir_make_tmp("ivshmem2-XXXXXX", NULL);
    g_assert_nonnull(l->dir);
    l->socket = g_build_filename(l->dir, "link.sock", NULL);
    l->server = 0;
}

/* @options: words with one space between them */
static void link_start(Link *l, const char *options)
{
    g_autofree char *line = NULL;
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    int tries = SOON_MS / 10;

    link_init(l);
    line = g_strdup_printf("%s --log-level error --socket %s %s",
                           g_getenv("IVSHMEM2_SERVER"), l->socket, options);
    argv = g_strsplit(line, " ", -1);
    g_spawn_async(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD,
                  end_with_parent, NULL, &l->server, &error);
    g_assert_no_error(error);
    while (!g_file_test(l->socket, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(10000);
    }
}

static void link_kill(Link *l)
{
    if (l->server) {
        kill(l->server, SIGKILL);
        waitpid(l->server, NULL, 0);
        g_spawn_close_pid(l->server);
        l->server = 0;
    }
}

static void link_end(Link *l)
{
    if (l->server) {
        kill(l->server, SIGTERM);
        waitpid(l->server, NULL, 0);
        g_spawn_close_pid(l->server);
    }
    g_unlink(l->socket);
    g_assert_cmpint(g_rmdir(l->dir), ==, 0);
    g_free(l->socket);
    g_free(l->dir);
    /* the test has closed all that it opened */
    g_assert_cmpuint(count_fds(), ==, l->n_fds);
}

static Ivshmem2Peer *join(Link *l, uint32_t id)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    Ivshmem2Peer *peer;

    o.id = id;
    o.name = "test";
    o.timeout_ms = SOON_MS;
    peer = ivshmem2_peer_open_socket(l->socket, &o, &error);
    g_assert_no_error(error);
    g_assert_nonnull(peer);
    return peer;
}

/* Joining fails with @code, and the message contains @what. */
static void assert_refused(Link *l, uint32_t id, int code, const char *what)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;

    o.id = id;
    g_assert_null(ivshmem2_peer_open_socket(l->socket, &o, &error));
    g_assert_error(error, IVSHMEM2_ERROR, code);
    if (!strstr(error->message, what)) {
        g_error("'%s' does not say '%s'", error->message, what);
    }
}

static void assert_interrupt(Ivshmem2Peer *peer, int only, int expected)
{
    g_autoptr(GError) error = NULL;
    int vector = -1;
    int ret = ivshmem2_peer_wait(peer, only, &vector, SOON_MS, &error);

    g_assert_no_error(error);
    g_assert_cmpint(ret, ==, 1);
    g_assert_cmpint(vector, ==, expected);
}

static void assert_silence(Ivshmem2Peer *peer)
{
    int vector = -1;

    g_assert_cmpint(ivshmem2_peer_wait(peer, -1, &vector, NEVER_MS, NULL), ==,
                    0);
    g_assert_cmpint(vector, ==, -1);
}

static void ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector)
{
    g_autoptr(GError) error = NULL;

    ivshmem2_peer_ring(peer, target, vector, &error);
    g_assert_no_error(error);
}

static void set_state(Ivshmem2Peer *peer, uint32_t state)
{
    g_autoptr(GError) error = NULL;

    ivshmem2_peer_set_state(peer, state, &error);
    g_assert_no_error(error);
}

/* The library */

static void test_info(void)
{
    Link l;
    const Ivshmem2PeerInfo *info;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 5 --vectors 3 --rw-size 10000 "
               "--output-size 64K --protocol 0x4711");
    a = join(&l, 3);
    b = join(&l, IVSHMEM2_PEER_ID_ANY);
    info = ivshmem2_peer_info(a);
    g_assert_cmpuint(info->id, ==, 3);
    g_assert_cmpuint(info->max_peers, ==, 5);
    g_assert_cmpuint(info->vectors, ==, 3);
    g_assert_true(info->msix);
    g_assert_cmphex(info->protocol, ==, 0x4711);
    g_assert_cmpuint(info->state_table_size % sysconf(_SC_PAGE_SIZE), ==, 0);
    g_assert_cmpuint(info->rw_size, >=, 10000);
    g_assert_cmpuint(info->output_size, ==, 65536);
    g_assert_cmpuint(ivshmem2_peer_info(b)->id, !=, 3);
    g_assert_true(ivshmem2_peer_connected(a));
    g_assert_nonnull(ivshmem2_peer_output(a, 4));
    g_assert_null(ivshmem2_peer_output(a, 5));
    g_assert_cmpuint(ivshmem2_peer_state(a, 5), ==, 0);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    ivshmem2_peer_close(NULL);
    link_end(&l);

    link_start(&l, "--max-peers 2 --intx --rw-size 0 --output-size 0");
    a = join(&l, IVSHMEM2_PEER_ID_ANY);
    info = ivshmem2_peer_info(a);
    g_assert_false(info->msix);
    g_assert_cmpuint(info->vectors, ==, 1);
    g_assert_null(ivshmem2_peer_rw(a));
    g_assert_null(ivshmem2_peer_output(a, 0));
    ivshmem2_peer_close(a);
    link_end(&l);
}

static void test_sections(void)
{
    Link l;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 3 --rw-size 1M --output-size 4K");
    a = join(&l, 0);
    b = join(&l, 1);
    strcpy(ivshmem2_peer_rw(a), "from a");
    g_assert_cmpstr(ivshmem2_peer_rw(b), ==, "from a");
    strcpy((char *)ivshmem2_peer_rw(b) + 1024 * 1024 - 8, "from b");
    g_assert_cmpstr((char *)ivshmem2_peer_rw(a) + 1024 * 1024 - 8, ==,
                    "from b");
    strcpy(ivshmem2_peer_output(a, 0), "output a");
    strcpy(ivshmem2_peer_output(b, 1), "output b");
    g_assert_cmpstr(ivshmem2_peer_output(b, 0), ==, "output a");
    g_assert_cmpstr(ivshmem2_peer_output(a, 1), ==, "output b");
    g_assert_cmpstr(ivshmem2_peer_output(a, 2), ==, "");
    ivshmem2_peer_close(a);

    /* the data of a slot's last occupant is still there */
    a = join(&l, 0);
    g_assert_cmpstr(ivshmem2_peer_output(a, 0), ==, "output a");
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l);
}

/* Sizes of more than 32 bits; memory that is not used costs nothing */
static void test_large_sections(void)
{
    const uint64_t size = UINT64_C(6) << 30;
    Link l;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 3 --rw-size 6G --output-size 6G");
    a = join(&l, 2);
    b = join(&l, 0);
    g_assert_cmpuint(ivshmem2_peer_info(a)->rw_size, ==, size);
    g_assert_cmpuint(ivshmem2_peer_info(a)->output_size, ==, size);
    strcpy((char *)ivshmem2_peer_rw(a) + size - 8, "the end");
    g_assert_cmpstr((char *)ivshmem2_peer_rw(b) + size - 8, ==, "the end");
    strcpy((char *)ivshmem2_peer_output(a, 2) + size - 8, "output2");
    g_assert_cmpstr((char *)ivshmem2_peer_output(b, 2) + size - 8, ==,
                    "output2");
    g_assert_cmpstr((char *)ivshmem2_peer_output(b, 1) + size - 8, ==, "");
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l);
}

static void test_read_only(void)
{
    Link l;
    Ivshmem2Peer *a;
    pid_t child;
    int status;

    link_start(&l, "--max-peers 3 --output-size 4K");
    a = join(&l, 1);
    child = fork();
    if (child == 0) {
        /* expected, so without a core file and a sanitizer's report */
        signal(SIGSEGV, SIG_DFL);
        prctl(PR_SET_DUMPABLE, 0);
        __atomic_store_n((char *)ivshmem2_peer_output(a, 2), 1,
                         __ATOMIC_SEQ_CST);
        _exit(0);
    }
    waitpid(child, &status, 0);
    g_assert_true(WIFSIGNALED(status));
    g_assert_cmpint(WTERMSIG(status), ==, SIGSEGV);
    ivshmem2_peer_close(a);
    link_end(&l);
}

static void test_ring(void)
{
    Link l;
    Ivshmem2Peer *a, *b;
    g_autoptr(GError) error = NULL;

    link_start(&l, "--max-peers 4 --vectors 3 --rw-size 4K");
    a = join(&l, 0);
    b = join(&l, 2);
    for (uint32_t v = 0; v < 3; v++) {
        ring(a, 2, v);
        assert_interrupt(b, -1, v);
        ring(b, 0, v);
        assert_interrupt(a, v, v);
    }
    assert_silence(a);
    assert_silence(b);

    /* two interrupts of a vector before a wait are one; others are apart */
    ring(a, 2, 1);
    ring(a, 2, 1);
    ring(a, 2, 2);
    assert_interrupt(b, 2, 2);
    assert_interrupt(b, -1, 1);
    assert_silence(b);

    /* to this peer itself, and to an ID that is not taken */
    ring(a, 0, 1);
    assert_interrupt(a, -1, 1);
    ring(a, 3, 0);
    g_assert_false(ivshmem2_peer_ring(a, 4, 0, &error));
    g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_ARGUMENT);
    g_clear_error(&error);
    g_assert_false(ivshmem2_peer_ring(a, 2, 3, &error));
    g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_ARGUMENT);
    g_clear_error(&error);
    g_assert_cmpint(ivshmem2_peer_wait(a, 3, NULL, 0, &error), ==, -1);
    g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_ARGUMENT);
    g_clear_error(&error);
    g_assert_cmpint(ivshmem2_peer_wait(a, -2, NULL, 0, &error), ==, -1);
    g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_ARGUMENT);
    assert_silence(a);
    assert_silence(b);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l);
}

/* Too many eventfds for the handshake: the server rings at first. */
static void test_ring_large(void)
{
    Link l;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 65536 --vectors 64");
    a = join(&l, 65535);
    b = join(&l, 0);
    for (uint32_t v = 0; v < 64; v++) {
        ring(a, 0, v);
        assert_interrupt(b, -1, v);
        ring(b, 65535, v);
        assert_interrupt(a, -1, v);
        ring(a, 0, v);
        assert_interrupt(b, -1, v);
    }
    /* more requests than may be unanswered at a time, and all arrive */
    for (uint32_t id = 1; id < 1000; id++) {
        ring(a, id, 0);
    }
    ring(a, 0, 5);
    assert_interrupt(b, -1, 5);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l);
}

static void test_main_loop(void)
{
    Link l;
    Ivshmem2Peer *a, *b;
    struct pollfd pfd = { .events = POLLIN };

    link_start(&l, "--max-peers 2 --vectors 2");
    a = join(&l, 0);
    b = join(&l, 1);
    pfd.fd = ivshmem2_peer_fd(b);
    g_assert_cmpint(poll(&pfd, 1, 0), ==, 0);
    ring(a, 1, 1);
    g_assert_cmpint(poll(&pfd, 1, SOON_MS), ==, 1);
    assert_interrupt(b, -1, 1);
    g_assert_cmpint(poll(&pfd, 1, 0), ==, 0);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l);
}

static void test_state(void)
{
    Link l;
    Ivshmem2Peer *a, *b, *c;

    link_start(&l, "--max-peers 4 --vectors 2");
    a = join(&l, 0);
    b = join(&l, 1);
    c = join(&l, 2);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 0);
    set_state(a, 0xdeadbeef);
    g_assert_cmphex(ivshmem2_peer_state(b, 0), ==, 0xdeadbeef);
    assert_interrupt(b, -1, 0);
    assert_interrupt(c, -1, 0);
    assert_silence(a);

    /* the same value is no change */
    set_state(a, 0xdeadbeef);
    assert_silence(b);

    /* leaving is one */
    ivshmem2_peer_close(a);
    assert_interrupt(b, -1, 0);
    g_assert_cmphex(ivshmem2_peer_state(b, 0), ==, 0);
    assert_interrupt(c, -1, 0);

    /* leaving with state 0 is none */
    ivshmem2_peer_close(c);
    assert_silence(b);
    ivshmem2_peer_close(b);
    link_end(&l);
}

/* A peer that is killed leaves state 0 behind. */
static void test_killed_peer(void)
{
    Link l;
    Ivshmem2Peer *a;
    pid_t child;

    link_start(&l, "--max-peers 4");
    a = join(&l, 0);
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        set_state(join(&l, 1), 7);
        pause();
        _exit(0);
    }
    assert_interrupt(a, -1, 0);
    g_assert_cmpuint(ivshmem2_peer_state(a, 1), ==, 7);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    assert_interrupt(a, -1, 0);
    g_assert_cmpuint(ivshmem2_peer_state(a, 1), ==, 0);
    ivshmem2_peer_close(a);
    link_end(&l);
}

static void test_server_killed(void)
{
    Link l;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 4 --vectors 2 --rw-size 4K --output-size 4K");
    a = join(&l, 0);
    b = join(&l, 1);
    link_kill(&l);

    /* this is seen at once; a wait notices it, too, and goes on waiting */
    g_assert_false(ivshmem2_peer_connected(a));
    g_assert_cmpint(ivshmem2_peer_wait(a, -1, NULL, NEVER_MS, NULL), ==, 0);
    g_assert_false(ivshmem2_peer_connected(a));
    for (int i = 0; i < 10; i++) {
        ((char *)ivshmem2_peer_output(a, 0))[0] = i;
        ring(a, 1, 1);
        assert_interrupt(b, -1, 1);
        g_assert_cmpint(((char *)ivshmem2_peer_output(b, 0))[0], ==, i);
        ring(b, 0, 1);
        assert_interrupt(a, 1, 1);
    }
    set_state(a, 5);
    assert_interrupt(b, -1, 0);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 5);
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_IO,
                   "is ivshmem2-server running?");
    ivshmem2_peer_close(a);
    assert_interrupt(b, -1, 0);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 0);
    ivshmem2_peer_close(b);
    link_end(&l);
}

/* A server that is stopped delays only peers that leave. */
static void test_server_stopped(void)
{
    Link l;
    Ivshmem2Peer *a, *b;
    bool interrupted = false;
    gint64 start;

    link_start(&l, "--max-peers 4 --vectors 2");
    a = join(&l, 0);
    b = join(&l, 1);
    kill(l.server, SIGSTOP);
    start = g_get_monotonic_time();
    for (int i = 0; i < 100000; i++) {
        set_state(a, i);
    }
    g_assert_cmpint(g_get_monotonic_time() - start, <,
                    SOON_MS * G_TIME_SPAN_MILLISECOND);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 99999);
    ring(a, 1, 1);
    assert_interrupt(b, -1, 1);
    assert_silence(b);

    /* the waiting message is sent now */
    kill(l.server, SIGCONT);
    for (int i = 0; i < SOON_MS / 10 && !interrupted; i++) {
        ivshmem2_peer_wait(a, -1, NULL, 5, NULL);
        interrupted = ivshmem2_peer_wait(b, 0, NULL, 5, NULL) == 1;
    }
    g_assert_true(interrupted);
    kill(l.server, SIGSTOP);
    start = g_get_monotonic_time();
    ivshmem2_peer_close(a);
    g_assert_cmpint(g_get_monotonic_time() - start, <,
                    SOON_MS * G_TIME_SPAN_MILLISECOND);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 0);
    kill(l.server, SIGCONT);
    ivshmem2_peer_close(b);
    link_end(&l);
}

/* One thread for each peer: peers share nothing in this process. */

#define N_THREADS   4
#define N_ROUNDS    100

typedef struct Runner {
    Link *link;
    uint32_t id;
} Runner;

static void wait_for_all(Ivshmem2Peer *peer)
{
    for (uint32_t id = 0; id < N_THREADS; id++) {
        while (!ivshmem2_peer_state(peer, id)) {
            assert_interrupt(peer, 0, 0);
        }
    }
}

/* Peers ring each other in a circle. */
static gpointer run_relay(gpointer opaque)
{
    const Runner *r = opaque;
    Ivshmem2Peer *peer = join(r->link, r->id);

    set_state(peer, 1);
    wait_for_all(peer);
    for (int i = 0; i < N_ROUNDS; i++) {
        if (r->id > 0) {
            assert_interrupt(peer, 1, 1);
        }
        ring(peer, (r->id + 1) % N_THREADS, 1);
        if (r->id == 0) {
            assert_interrupt(peer, 1, 1);
        }
    }
    ivshmem2_peer_close(peer);
    return NULL;
}

static void test_threads(void)
{
    GThread *threads[N_THREADS];
    Runner runners[N_THREADS];
    Link l;

    link_start(&l, "--max-peers 4 --vectors 2 --output-size 4K");
    for (uint32_t id = 0; id < N_THREADS; id++) {
        runners[id] = (Runner) { .link = &l, .id = id };
        threads[id] = g_thread_new("peer", run_relay, &runners[id]);
    }
    for (uint32_t id = 0; id < N_THREADS; id++) {
        g_thread_join(threads[id]);
    }
    link_end(&l);
}

static void test_refusals(void)
{
    Link l;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 2");
    a = join(&l, 1);
    assert_refused(&l, 1, IVSHMEM2_ERROR_ID_TAKEN, "ID 1");
    assert_refused(&l, 2, IVSHMEM2_ERROR_ID_RANGE, "ID 2");
    b = join(&l, 0);
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_FULL,
                   "the server says: ");
    ivshmem2_peer_close(b);
    b = join(&l, IVSHMEM2_PEER_ID_ANY);
    g_assert_cmpuint(ivshmem2_peer_info(b)->id, ==, 0);
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l);
}

static void assert_options_refused(Link *l, const Ivshmem2SocketOptions *o)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(ivshmem2_peer_open_socket(l->socket, o, &error));
    g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_ARGUMENT);
    g_assert_nonnull(strstr(error->message, "IVSHMEM2_SOCKET_OPTIONS_INIT"));
}

/* Options that are not initialized, or of a program that is too new */
static void test_bad_options(void)
{
    Ivshmem2SocketOptions none = { .id = IVSHMEM2_PEER_ID_ANY };
    Ivshmem2SocketOptions newer = IVSHMEM2_SOCKET_OPTIONS_INIT;
    Ivshmem2Peer *a;
    Link l;

    link_start(&l, "--max-peers 2");
    newer.size += 8;
    assert_options_refused(&l, &none);
    assert_options_refused(&l, &newer);
    a = ivshmem2_peer_open_socket(l.socket, NULL, NULL);
    g_assert_nonnull(a);
    ivshmem2_peer_close(a);
    link_end(&l);
}

static void test_bad_paths(void)
{
    Link l;
    g_autofree char *longest = g_strnfill(200, 'x');
    char *socket;

    link_init(&l);
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_IO,
                   "No such file or directory");
    g_assert_true(g_file_set_contents(l.socket, "", -1, NULL));
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_IO,
                   "Connection refused");
    socket = l.socket;
    l.socket = longest;
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_ARGUMENT,
                   "longer than the 107 bytes");
    l.socket = socket;
    link_end(&l);
}

static int listen_at(const char *path, int backlog)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(fd, backlog), ==, 0);
    return fd;
}

/* A server that never answers, and one that does not accept */
static void test_connect_timeout(void)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    gint64 start = g_get_monotonic_time();
    int fd;
    Link l;

    o.timeout_ms = 200;
    link_init(&l);
    fd = listen_at(l.socket, 0);
    g_assert_null(ivshmem2_peer_open_socket(l.socket, &o, &error));
    g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_TIMEOUT);
    g_clear_error(&error);
    /* now its queue is full */
    for (int i = 0; i < 4; i++) {
        o.timeout_ms = i ? 200 : 0;
        g_assert_null(ivshmem2_peer_open_socket(l.socket, &o, &error));
        g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_TIMEOUT);
        g_clear_error(&error);
    }
    g_assert_cmpint(g_get_monotonic_time() - start, <,
                    SOON_MS * G_TIME_SPAN_MILLISECOND);
    close(fd);
    link_end(&l);
}

/* Answers of programs that are no server, or one with errors */
static void serve_bytes(const void *bytes, size_t len, int code,
                        const char *what)
{
    Link l;
    pid_t child;
    int fd;

    link_init(&l);
    fd = listen_at(l.socket, 5);
    child = fork();
    if (child == 0) {
        char hello[256];
        int conn = accept(fd, NULL, NULL);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (read(conn, hello, sizeof(hello)) < 0 ||
            write(conn, bytes, len) < 0) {
            _exit(1);
        }
        close(conn);
        _exit(0);
    }
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, code, what);
    waitpid(child, NULL, 0);
    close(fd);
    link_end(&l);
}

static void test_bad_servers(void)
{
    Ivshmem2Msg msg = { .hdr.type = IVSHMEM2_MSG_REFUSED };
    size_t len;

    serve_bytes("", 0, IVSHMEM2_ERROR_CLOSED, "closed the connection");
    serve_bytes("SSH-2.0-OpenSSH_9.2\r\n", 21, IVSHMEM2_ERROR_PROTOCOL,
                "is it an ivshmem2 server?");
    msg.refusal.code = IVSHMEM2_REFUSAL_FULL;
    strcpy(msg.refusal.text, "full\033[2J");
    len = ivshmem2_msg_encode(&msg);
    serve_bytes(&msg, len - 1, IVSHMEM2_ERROR_PROTOCOL,
                "in the middle of a message");
    serve_bytes(&msg, len, IVSHMEM2_ERROR_FULL, "the server says: full?[2J");
    memset(&msg, 0, sizeof(msg));
    msg.hdr.type = IVSHMEM2_MSG_READY;
    len = ivshmem2_msg_encode(&msg);
    serve_bytes(&msg, len, IVSHMEM2_ERROR_PROTOCOL, "out of order");
    memset(&msg, 0, sizeof(msg));
    msg.hdr.type = IVSHMEM2_MSG_WELCOME;
    len = ivshmem2_msg_encode(&msg);
    serve_bytes(&msg, len, IVSHMEM2_ERROR_PROTOCOL, "descriptors");
}

/* The program */

typedef struct Run {
    int status;
    char *out;
    char *err;
} Run;

static void run_clear(Run *r)
{
    g_clear_pointer(&r->out, g_free);
    g_clear_pointer(&r->err, g_free);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Run, run_clear)

/* @args: quoted as for a shell */
static GPid start_client(const char *args, int *in, int *out, int *err)
{
    g_autofree char *line = g_strdup_printf("%s %s",
                                            g_getenv("IVSHMEM2_CLIENT"), args);
    g_auto(GStrv) argv = NULL;
    g_autoptr(GError) error = NULL;
    GPid pid;

    g_shell_parse_argv(line, NULL, &argv, &error);
    g_assert_no_error(error);
    g_spawn_async_with_pipes(NULL, argv, NULL, G_SPAWN_DO_NOT_REAP_CHILD,
                             end_with_parent, NULL, &pid, in, out, err,
                             &error);
    g_assert_no_error(error);
    return pid;
}

static char *read_all(int fd)
{
    GString *text = g_string_new(NULL);
    char buf[4096];
    ssize_t len;

    while ((len = read(fd, buf, sizeof(buf))) > 0) {
        g_string_append_len(text, buf, len);
    }
    close(fd);
    return g_string_free(text, FALSE);
}

static Run run_client(const char *input, const char *args)
{
    Run r = { 0 };
    int in, out, err, status;
    GPid pid = start_client(args, &in, &out, &err);

    g_assert_cmpint(write(in, input, strlen(input)), ==, strlen(input));
    close(in);
    r.out = read_all(out);
    r.err = read_all(err);
    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_true(WIFEXITED(status));
    r.status = WEXITSTATUS(status);
    return r;
}

static void assert_run(Link *l, const char *args, int status,
                       const char *out, const char *err)
{
    g_autofree char *all = g_strdup_printf("--socket %s %s", l->socket, args);
    g_auto(Run) r = run_client("", all);

    if (r.status != status || !strstr(r.out, out) || !strstr(r.err, err)) {
        g_error("'%s': status %d instead of %d, or not '%s' and '%s' in '%s' "
                "and '%s'", args, r.status, status, out, err, r.out, r.err);
    }
}

static void test_cli_usage(void)
{
    static const char *const wrong[][2] = {
        { "", "say which command" },
        { "fly", "there is no command 'fly'" },
        { "info", "one of --socket and --pci" },
        { "--pci 0:4.0 --socket x info", "one of --socket and --pci" },
        { "--pci 0:4.0 --id 3 info", "--id and --name go with --socket" },
        { "--socket x --id 65536 info",
          "--id '65536' is not valid, it must be a number from 0 to 65535" },
        { "--socket x --id -- info",
          "--id '--' is not valid, it must be a number" },
        { "--socket x --state 4294967296 info",
          "--state '4294967296' is not valid, it must be a number from 0 to "
          "4294967295" },
        { "--socket x --vector 2048 wait", "from 0 to 2047" },
        { "--socket x --timeout soon wait", "--timeout 'soon'" },
        { "--socket x --count 0 wait", "--count '0'" },
        { "--socket x --count 0x wait", "--count '0x'" },
        { "--socket x ring", "'ring' takes arguments ID [VECTOR]" },
        { "--socket x info again", "'info' takes no arguments" },
        { "--rabbit info", "--rabbit" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(wrong); i++) {
        g_auto(Run) r = run_client("", wrong[i][0]);

        if (r.status != 2 || !strstr(r.err, wrong[i][1]) || r.out[0]) {
            g_error("'%s': status %d, '%s', '%s'", wrong[i][0], r.status,
                    r.out, r.err);
        }
    }
    {
        g_auto(Run) r = run_client("", "--help");

        g_assert_cmpint(r.status, ==, 0);
        g_assert_nonnull(strstr(r.out, "ring ID [VECTOR]"));
    }
    {
        g_auto(Run) r = run_client("", "--version");

        g_assert_cmpint(r.status, ==, 0);
        g_assert_true(g_str_has_prefix(r.out, "ivshmem2-client 1."));
        g_assert_nonnull(strstr(r.out, "protocol versions "));
    }
    {
        g_auto(Run) r = run_client("", "--socket /nonexistent/socket info");

        g_assert_cmpint(r.status, ==, 1);
        g_assert_nonnull(strstr(r.err, "is ivshmem2-server running?"));
    }
    {
        g_auto(Run) r = run_client("", "--pci 7fff:ff:1f.7 info");

        g_assert_cmpint(r.status, ==, 1);
        g_assert_nonnull(strstr(r.err, "there is no PCI device"));
    }
}

static void assert_end(GPid pid, int fd, int expected, const char *words)
{
    g_autofree char *text = read_all(fd);
    int status;

    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != expected || !strstr(text, words)) {
        g_error("status %d, or not '%s' in '%s'", WEXITSTATUS(status), words,
                text);
    }
}

/* Bytes of memory that the sections take, which the server holds open */
static uint64_t allocated(Link *l)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/fd", l->server);
    GDir *dir = g_dir_open(path, 0, NULL);
    uint64_t sum = 0;
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *file = g_build_filename(path, name, NULL);
        g_autofree char *target = g_file_read_link(file, NULL);
        struct stat st;

        if (target && g_str_has_prefix(target, "/memfd:")) {
            g_assert_cmpint(stat(file, &st), ==, 0);
            sum += st.st_blocks * 512;
        }
    }
    g_dir_close(dir);
    return sum;
}

/* Reading memory that nobody has written does not allocate it. */
static void test_cli_read_untouched(void)
{
    const size_t size = 64 << 20;
    const size_t at = size / 2 + 5;
    g_autofree char *read_rw = NULL;
    g_autofree char *zeros = g_malloc0(size);
    GPid pid;
    Link l;
    int in, out;

    link_start(&l, "--max-peers 3 --rw-size 64M --output-size 64M");
    assert_run(&l, "write rw 33554437 Hello", 0, "wrote 5 bytes", "");
    read_rw = g_strdup_printf("--socket %s read rw 0 67108864", l.socket);
    pid = start_client(read_rw, &in, &out, NULL);
    {
        g_autofree char *data = g_malloc(size);
        size_t got = 0;
        ssize_t len;

        while ((len = read(out, data + got, size - got)) > 0) {
            got += len;
        }
        g_assert_cmpuint(got, ==, size);
        g_assert_cmpmem(data, at, zeros, at);
        g_assert_cmpmem(data + at, 5, "Hello", 5);
        g_assert_cmpmem(data + at + 5, size - at - 5, zeros, size - at - 5);
    }
    assert_end(pid, out, 0, "");
    close(in);
    assert_run(&l, "dump rw 33550336 1048576", 0, "|.....Hello......|", "");
    assert_run(&l, "--json dump rw 33554400 1048576", 0, "48656c6c6f", "");
    assert_run(&l, "dump output:2 0 1048576", 0, "000ffff0  00 ", "");
    g_assert_cmpuint(allocated(&l), >, 0);
    g_assert_cmpuint(allocated(&l), <, 1 << 20);
    link_end(&l);
}

#define FAKE_DEVICES    "/sys/bus/pci/devices"

/*
 * What the client says of a device in @group ("": in none) that is not bound
 * to vfio-pci, in a mount namespace with a /sys of its own
 */
static void assert_unbound(const char *group, const char *words,
                           const char *others)
{
    g_autofree char *script = g_strdup_printf(
        "mount -t tmpfs none " FAKE_DEVICES " && cd " FAKE_DEVICES " && "
        "mkdir 0000:00:04.0 && cd 0000:00:04.0 && "
        "echo 0x110a > vendor && echo 0x4106 > device && "
        "if [ -n '%s' ]; then ln -s '%s' iommu_group; fi && "
        "exec '%s' --pci 00:04.0 info", group, group,
        g_getenv("IVSHMEM2_CLIENT"));
    const char *argv[] = { "unshare", "-rm", "sh", "-c", script, NULL };
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    int status;

    g_assert_true(g_spawn_sync(NULL, (char **)argv, NULL,
                               G_SPAWN_SEARCH_PATH, end_with_parent, NULL,
                               &out, &err, &status, NULL));
    g_assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 1 || !strstr(err, words) ||
        strstr(err, others)) {
        g_error("status %d, '%s'", WEXITSTATUS(status), err);
    }
}

/* In a guest: no advice that cannot work there */
static void test_cli_no_iommu(void)
{
    int status;

    if (!g_spawn_command_line_sync("unshare -rm mount -t tmpfs none "
                                   FAKE_DEVICES, NULL, NULL, &status, NULL) ||
        status) {
        g_test_skip("cannot mount in a namespace of its own");
        return;
    }
    assert_unbound("", "needs an IOMMU", "driver_override");
    assert_unbound("/sys/kernel/iommu_groups/7", "driver_override",
                   "needs an IOMMU");
}

static void test_cli_commands(void)
{
    Link l;
    Ivshmem2Peer *a;

    link_start(&l, "--max-peers 4 --vectors 2 --rw-size 4K --output-size 4K");
    a = join(&l, 1);
    set_state(a, 9);
    assert_run(&l, "--id 2 info", 0, "ID:              2\n", "");
    assert_run(&l, "--state 4 peers", 0, "peer 1: state 9\n", "");
    assert_run(&l, "--id 2 --state 0x10 state", 0, "state 16\n", "");
    assert_run(&l, "--id 1 info", 1, "", "the server says: ");

    ivshmem2_peer_wait(a, -1, NULL, 0, NULL);
    assert_run(&l, "ring 1 1", 0, "rang vector 1 of peer 1\n", "");
    assert_interrupt(a, 1, 1);
    assert_run(&l, "--json ring 1 1", 0, "\"state\": 9}\n", "");
    assert_run(&l, "--id 2 ring 2", 0, "rang vector 0 of peer 2\n", "");
    assert_run(&l, "--id 2 ring 3 1", 0, "rang vector 1 of peer 3, which is "
               "absent or has not set a state: its state is 0\n", "");
    assert_run(&l, "--id 2 --json ring 3 1", 0, "\"state\": 0}\n", "");
    assert_run(&l, "ring 4", 2, "",
               "ID '4' is not valid, it must be a number from 0 to 3");
    assert_run(&l, "ring 1 2", 2, "",
               "VECTOR '2' is not valid, it must be a number from 0 to");
    assert_run(&l, "--vector 2 wait", 2, "", "--vector '2'");
    assert_run(&l, "--timeout 0.1 wait", 3, "", "");
    assert_run(&l, "--timeout 0.1 watch", 0, "peer 1: state 9, was 0\n", "");

    assert_run(&l, "write rw 16 'hello there'", 0, "wrote 11 bytes", "");
    assert_run(&l, "read rw 0x10 5", 0, "hello", "");
    assert_run(&l, "dump rw 16 16", 0, "00000010  68 65 6c 6c 6f 20 74 68  65 "
               "72 65 00 00 00 00 00  |hello there.....|\n", "");
    assert_run(&l, "dump state", 0, "00000000  00 00 00 00 09 00 00 00 ", "");
    assert_run(&l, "--id 2 write output 0 mine", 0, "wrote 4 bytes", "");
    g_assert_cmpstr(ivshmem2_peer_output(a, 2), ==, "mine");
    assert_run(&l, "write output:1 0 theirs", 1, "", "may only read it");
    g_assert_cmpstr(ivshmem2_peer_output(a, 1), ==, "");
    assert_run(&l, "write state 0 1", 1, "", "may only read it");
    assert_run(&l, "write rw 4096 x", 1, "", "do not fit");
    assert_run(&l, "write rw 4097 x", 2, "", "OFFSET '4097'");
    assert_run(&l, "read rw 1 4096", 2, "",
               "LENGTH '4096' is not valid, it must be a number from 0 to "
               "4095");
    assert_run(&l, "read output:4 0 1", 2, "", "ID in SECTION '4'");
    assert_run(&l, "read other 0 1", 2, "", "SECTION 'other'");
    ivshmem2_peer_close(a);
    link_end(&l);

    link_start(&l, "--max-peers 2 --rw-size 0 --output-size 0");
    assert_run(&l, "read rw 0 0", 1, "", "no R/W section");
    assert_run(&l, "read output 0 0", 1, "", "no output section");
    assert_run(&l, "pong", 1, "", "need");
    link_end(&l);
}

static void test_cli_stdin(void)
{
    Link l;
    g_autofree char *big = g_strnfill(200000, 'b');
    g_autofree char *args = NULL;
    Ivshmem2Peer *a;

    link_start(&l, "--max-peers 2 --rw-size 256K");
    a = join(&l, 0);
    args = g_strdup_printf("--socket %s write rw 100", l.socket);
    {
        g_auto(Run) r = run_client(big, args);

        g_assert_cmpint(r.status, ==, 0);
        g_assert_cmpstr(r.out, ==, "wrote 200000 bytes\n");
    }
    g_assert_cmpstr((char *)ivshmem2_peer_rw(a) + 100, ==, big);
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* A checker for one JSON object without nesting, as the program prints it */
static const char *skip_string(const char *p)
{
    g_assert_cmpint(*p++, ==, '"');
    while (*p != '"') {
        g_assert_cmpint((unsigned char)*p, >=, 0x20);
        if (*p++ == '\\') {
            g_assert_nonnull(strchr("\"\\/bfnrtu", *p));
            p++;
        }
    }
    return p + 1;
}

static const char *skip_value(const char *p)
{
    char *end;

    if (*p == '"') {
        return skip_string(p);
    }
    if (g_str_has_prefix(p, "true")) {
        return p + 4;
    }
    if (g_str_has_prefix(p, "false")) {
        return p + 5;
    }
    g_assert_true(g_ascii_isdigit(*p));
    g_ascii_strtod(p, &end);
    return end;
}

static void assert_json(const char *text)
{
    const char *p = text;

    g_assert_cmpint(*p++, ==, '{');
    while (*p != '}') {
        p = skip_string(p);
        g_assert_true(g_str_has_prefix(p, ": "));
        p = skip_value(p + 2);
        if (*p == ',') {
            g_assert_cmpint(p[1], ==, ' ');
            g_assert_cmpint(p[2], ==, '"');
            p += 2;
        } else {
            g_assert_cmpint(*p, ==, '}');
        }
    }
    g_assert_cmpint(p[1], ==, 0);
}

/* All commands as one peer, with each line of output checked as JSON */
static void test_cli_shell(void)
{
    static const char script[] =
        "# what a program would send\n"
        "info\n\npeers\nring 0 1\nring 9\nstate 5\nstate\n"
        "wait --vector 1 --timeout 0\nwrite output 0 \"a \\\"b\\\\\"\n"
        "read output 0 6\ndump output 0 16\nwrite output:1 0 x\n"
        "watch --timeout 0.1\nwrite output 0\nshell\n\"fl\001y\"\n"
        "ping 1 --timeout 0.1\npong --timeout 0.1\nring 1 --count 5";
    static const char *const expected[] = {
        "\"id\": 0, \"max_peers\": 4", "\"ok\"",
        "\"self\": true", "\"ok\"",
        "\"target\": 0, \"vector\": 1", "\"ok\"",
        "\"error\", \"text\": \"ID '9' is not valid, it must be a number "
        "from 0 to 3\"",
        "{\"id\": 0, \"state\": 5}", "\"ok\"",
        "{\"id\": 0, \"state\": 5}", "\"ok\"",
        "{\"event\": \"interrupt\", \"vector\": 1}", "\"ok\"",
        "\"length\": 5", "\"ok\"",
        "\"hex\": \"612022625c00\"", "\"ok\"",
        "\"section\": \"output\", \"offset\": 0, \"length\": 16", "\"ok\"",
        "may only read it",
        "\"event\": \"state\", \"id\": 0, \"old\": 0, \"state\": 5", "\"ok\"",
        "write needs DATA", "this is the shell", "fl\\u0001y",
        "\"timeout\", \"text\": \"peer 1 does not answer",
        "\"answers\": 0", "\"ok\"",
    };
    g_autofree char *args = NULL;
    g_auto(GStrv) lines = NULL;
    Link l;

    link_start(&l, "--max-peers 4 --vectors 2 --rw-size 4K --output-size 4K");
    args = g_strdup_printf("--socket %s --id 0 --json shell", l.socket);
    {
        g_auto(Run) r = run_client(script, args);

        g_assert_cmpint(r.status, ==, 0);
        g_assert_cmpstr(r.err, ==, "");
        lines = g_strsplit(r.out, "\n", -1);
    }
    for (size_t i = 0; lines[i] && lines[i][0]; i++) {
        assert_json(lines[i]);
        if (i >= G_N_ELEMENTS(expected) || !strstr(lines[i], expected[i])) {
            g_error("line %zu is '%s'", i, lines[i]);
        }
    }
    /* the last line has no newline and is no command */
    g_assert_cmpuint(g_strv_length(lines), ==, G_N_ELEMENTS(expected) + 1);
    link_end(&l);
}

static void ping_pong(const char *link_options, const char *options,
                      const char *expected)
{
    Link l;
    g_autofree char *pong = NULL;
    g_autofree char *ping = NULL;
    g_autofree char *pong_out = NULL;
    int in, out, err, status;
    GPid pid;

    link_start(&l, link_options);
    pong = g_strdup_printf("--socket %s --id 1 %s --timeout 30 --count 500 "
                           "pong", l.socket, options);
    ping = g_strdup_printf("--socket %s --id 0 %s --timeout 10 --count 500 "
                           "ping 1", l.socket, options);
    pid = start_client(pong, &in, &out, &err);
    {
        g_auto(Run) r = run_client("", ping);

        if (r.status || !strstr(r.out, expected)) {
            g_error("ping: status %d, '%s', '%s'", r.status, r.out, r.err);
        }
    }
    close(in);
    pong_out = read_all(out);
    close(err);
    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_nonnull(strstr(pong_out, "500"));
    g_assert_nonnull(strstr(pong_out, "answers"));
    g_assert_cmpint(status, ==, 0);
    link_end(&l);
}

static void test_cli_ping(void)
{
    ping_pong("--max-peers 4 --vectors 3 --output-size 4K", "",
              "500 round trips to peer 1 with 500 interrupts");
    ping_pong("--max-peers 4 --vectors 3 --rw-size 4K", "--vector 2",
              "500 round trips to peer 1 with 500 interrupts");
    ping_pong("--max-peers 4 --intx --rw-size 4K", "",
              "500 round trips to peer 1");
    ping_pong("--max-peers 4 --output-size 4K", "--json",
              "{\"target\": 1, \"vector\": 1, \"count\": 500, "
              "\"interrupts\": 500, \"min_us\": ");
}

/* On SIGTERM a waiting client leaves the link in order. */
static void test_cli_signal(void)
{
    Link l;
    g_autofree char *args = NULL;
    g_autofree char *text = NULL;
    Ivshmem2Peer *a;
    int out, status;
    GPid pid;

    link_start(&l, "--max-peers 4");
    a = join(&l, 0);
    args = g_strdup_printf("--socket %s state 3", l.socket);
    pid = start_client(args, NULL, &out, NULL);
    assert_interrupt(a, -1, 0);
    kill(pid, SIGTERM);
    text = read_all(out);
    waitpid(pid, &status, 0);
    g_spawn_close_pid(pid);
    g_assert_cmpint(status, ==, 0);
    assert_interrupt(a, -1, 0);
    g_assert_cmpuint(ivshmem2_peer_state(a, 1), ==, 0);
    ivshmem2_peer_close(a);
    link_end(&l);
}

static void await_state(Ivshmem2Peer *peer, uint32_t id, uint32_t state)
{
    while (ivshmem2_peer_state(peer, id) != state) {
        g_assert_cmpint(ivshmem2_peer_wait(peer, -1, NULL, SOON_MS, NULL), ==,
                        1);
    }
}

/* Start a client; return when its state says that it has joined as peer 1. */
static GPid start_peer(Link *l, Ivshmem2Peer *other, const char *args,
                       int *in, int *out, int *err)
{
    g_autofree char *all = g_strdup_printf("--socket %s --id 1 --state 1 %s",
                                           l->socket, args);
    GPid pid = start_client(all, in, out, err);

    await_state(other, 1, 1);
    return pid;
}

/* A signal ends a client in every command that waits. */
static void test_cli_interrupted(void)
{
    static const struct {
        const char *args;
        int status;
        const char *words;
    } cases[] = {
        { "wait", 1, "interrupted" },
        { "--vector 1 wait", 1, "interrupted" },
        { "--timeout 100 ping 0", 1, "interrupted" },
        { "watch", 0, "ended by a signal" },
        { "--count 3 watch", 1, "interrupted" },
        { "pong", 0, "ended by a signal" },
        { "--count 3 pong", 1, "interrupted" },
        { "state 1", 0, "ended by a signal" },
        { "shell", 0, "ended by a signal" },
    };
    Link l;
    Ivshmem2Peer *a;

    link_start(&l, "--max-peers 4 --output-size 4K");
    a = join(&l, 0);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        int in, err;
        GPid pid = start_peer(&l, a, cases[i].args, &in, NULL, &err);

        kill(pid, SIGTERM);
        assert_end(pid, err, cases[i].status, cases[i].words);
        close(in);
        await_state(a, 1, 0);
    }
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* Interrupts and states are printed, and counted. */
static void test_cli_events(void)
{
    Link l;
    Ivshmem2Peer *a;
    GPid pid;
    int out;

    link_start(&l, "--max-peers 4");
    a = join(&l, 0);
    pid = start_peer(&l, a, "--timeout 60 --vector 1 wait", NULL, &out, NULL);
    ring(a, 1, 0);
    ring(a, 1, 1);
    assert_end(pid, out, 0, "interrupt on vector 1\n");

    pid = start_peer(&l, a, "--timeout 60 --count 2 watch", NULL, &out, NULL);
    ring(a, 1, 1);
    set_state(a, 7);
    assert_end(pid, out, 0, "peer 0: state 7, was 0\n");
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* Commands that need the server fail when it is gone. */
static void test_cli_server_gone(void)
{
    static const char commands[] =
        "info\npeers\nring 2\nping 2\nstate 4\nstate x\n\"a\n--vector x wait\n";
    Link l;
    Ivshmem2Peer *a;
    GPid pid;
    int in, out;

    link_start(&l, "--max-peers 4 --output-size 4K --push-limit 0");
    a = join(&l, 0);
    set_state(a, 6);
    pid = start_peer(&l, a, "shell", &in, &out, NULL);
    link_kill(&l);
    g_assert_cmpint(write(in, commands, strlen(commands)), ==,
                    strlen(commands));
    close(in);
    {
        g_autofree char *text = read_all(out);
        static const char *const said[] = {
            "(gone)\n", "ok\n",
            "peer 0: state 6 (or dead: the server is gone)",
            "error: the server is gone, and only it knew",
            "state 4\nok\n",
            "error: VALUE 'x' is not valid, it must be a number",
            "error: Text ended before matching quote",
            "error: --vector 'x' is not valid, it must be a number",
        };

        for (size_t i = 0; i < G_N_ELEMENTS(said); i++) {
            if (!strstr(text, said[i])) {
                g_error("'%s' is not in '%s'", said[i], text);
            }
        }
    }
    waitpid(pid, NULL, 0);
    g_spawn_close_pid(pid);
    ivshmem2_peer_close(a);
    link_end(&l);
}

/* Read from @fd until there is @words. */
static void await_words(int fd, const char *words)
{
    g_autoptr(GString) text = g_string_new(NULL);

    while (!strstr(text->str, words)) {
        struct pollfd pfd = { .fd = fd, .events = POLLIN };
        char buf[512];
        ssize_t len = -1;

        if (poll(&pfd, 1, SOON_MS) == 1) {
            len = read(fd, buf, sizeof(buf));
        }
        if (len <= 0) {
            g_error("not '%s' in '%s'", words, text->str);
        }
        g_string_append_len(text, buf, len);
    }
}

/* Commands that wait say at once that the server is gone, and wait on. */
static void test_cli_server_dies(void)
{
    static const struct {
        const char *args;
        bool json;
        bool rung;              /* ends when its vector 1 is rung */
        int status;             /* after a signal */
        const char *words;
    } cases[] = {
        { "watch", false, false, 0, "ended by a signal" },
        { "wait", false, false, 1, "interrupted" },
        { "--vector 1 wait", false, true, 0, "" },
        { "--json wait", true, true, 0, "" },
        { "state 1", false, false, 0, "ended by a signal" },
        { "pong", false, false, 0, "ended by a signal" },
        { "shell", false, false, 0, "ended by a signal" },
        { "--json shell", true, false, 0, "ended by a signal" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Link l;
        Ivshmem2Peer *a;
        GPid pid;
        int in, out, err;

        link_start(&l, "--max-peers 4 --output-size 4K");
        a = join(&l, 0);
        pid = start_peer(&l, a, cases[i].args, &in, &out, &err);
        link_kill(&l);
        if (cases[i].json) {
            await_words(out, "{\"event\": \"server-gone\", \"text\": ");
        } else {
            await_words(err, "ivshmem2-client: the server is gone");
        }
        if (cases[i].rung) {
            ring(a, 1, 1);
        } else {
            kill(pid, SIGTERM);
        }
        assert_end(pid, err, cases[i].status, cases[i].words);
        close(in);
        close(out);
        ivshmem2_peer_close(a);
        link_end(&l);
    }
}

static void test_cli_protocols(void)
{
    static const char *const names[][2] = {
        { "0", "0x0000 (undefined)" },
        { "1", "0x0001 (network)" },
        { "0x3fff", "0x3fff (reserved)" },
        { "0x4000", "0x4000 (user-defined)" },
        { "0x8003 --backend-id 1", "0x8003 (virtio, front-end)" },
        { "0x8003 --backend-id 0", "0xc003 (virtio, back-end)" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(names); i++) {
        g_autofree char *options =
            g_strdup_printf("--max-peers 2 --protocol %s", names[i][0]);
        Link l;

        link_start(&l, options);
        assert_run(&l, "--id 0 info", 0, names[i][1], "");
        link_end(&l);
    }
}

/* Invalid arguments and files */
static void test_cli_bad_arguments(void)
{
    Link l;
    g_autofree char *full = NULL;
    g_autofree char *out = NULL;
    g_autofree char *err = NULL;
    int status;

    link_start(&l, "--max-peers 3 --vectors 2 --rw-size 4K --output-size 4K");
    assert_run(&l, "dump other", 2, "", "SECTION 'other'");
    assert_run(&l, "dump rw x", 2, "", "OFFSET 'x'");
    assert_run(&l, "dump rw 0 4097", 2, "", "LENGTH '4097'");
    assert_run(&l, "dump rw 0 3", 0, "00 00 00     ", "");
    assert_run(&l, "write other 0 x", 2, "", "SECTION 'other'");
    assert_run(&l, "state x", 2, "", "VALUE 'x'");
    assert_run(&l, "ping 3", 2, "", "ID '3'");
    assert_run(&l, "--id 1 ping 1", 1, "", "ID 1 is this peer itself");
    assert_run(&l, "--vector 2 ping 1", 2, "", "--vector '2'");
    assert_run(&l, "--json --timeout 0.01 wait", 3, "", "");

    full = g_strdup_printf("sh -c '%s --socket %s read rw 0 4096 > /dev/full'",
                           g_getenv("IVSHMEM2_CLIENT"), l.socket);
    g_assert_true(g_spawn_command_line_sync(full, &out, &err, &status, NULL));
    g_assert_cmpint(WEXITSTATUS(status), ==, 1);
    g_assert_nonnull(strstr(err, "cannot write to standard output: "));
    link_end(&l);
}

static const struct {
    const char *path;
    GTestFunc run;
} tests[] = {
    /* first, because nothing is initialized yet then */
    { "/ivshmem2/client/threads", test_threads },
    { "/ivshmem2/client/info", test_info },
    { "/ivshmem2/client/sections", test_sections },
    { "/ivshmem2/client/large-sections", test_large_sections },
    { "/ivshmem2/client/read-only", test_read_only },
    { "/ivshmem2/client/ring", test_ring },
    { "/ivshmem2/client/ring-large", test_ring_large },
    { "/ivshmem2/client/main-loop", test_main_loop },
    { "/ivshmem2/client/state", test_state },
    { "/ivshmem2/client/killed-peer", test_killed_peer },
    { "/ivshmem2/client/server-killed", test_server_killed },
    { "/ivshmem2/client/server-stopped", test_server_stopped },
    { "/ivshmem2/client/refusals", test_refusals },
    { "/ivshmem2/client/bad-options", test_bad_options },
    { "/ivshmem2/client/bad-paths", test_bad_paths },
    { "/ivshmem2/client/connect-timeout", test_connect_timeout },
    { "/ivshmem2/client/bad-servers", test_bad_servers },
    { "/ivshmem2/cli/usage", test_cli_usage },
    { "/ivshmem2/cli/commands", test_cli_commands },
    { "/ivshmem2/cli/no-iommu", test_cli_no_iommu },
    { "/ivshmem2/cli/read-untouched", test_cli_read_untouched },
    { "/ivshmem2/cli/stdin", test_cli_stdin },
    { "/ivshmem2/cli/shell", test_cli_shell },
    { "/ivshmem2/cli/ping", test_cli_ping },
    { "/ivshmem2/cli/signal", test_cli_signal },
    { "/ivshmem2/cli/interrupted", test_cli_interrupted },
    { "/ivshmem2/cli/events", test_cli_events },
    { "/ivshmem2/cli/server-gone", test_cli_server_gone },
    { "/ivshmem2/cli/server-dies", test_cli_server_dies },
    { "/ivshmem2/cli/protocols", test_cli_protocols },
    { "/ivshmem2/cli/bad-arguments", test_cli_bad_arguments },
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    if (!g_getenv("IVSHMEM2_SERVER") || !g_getenv("IVSHMEM2_CLIENT")) {
        g_printerr("IVSHMEM2_SERVER and IVSHMEM2_CLIENT are to be the "
                   "programs to test\n");
        return 1;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_test_add_func(tests[i].path, tests[i].run);
    }
    return g_test_run();
}
