/*
 * libivshmem2's client API, with the real server
 *
 * The program is that of IVSHMEM2_SERVER.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-client-util.h"
#include <sys/stat.h>

static void test_info(void)
{
    Server l;
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
    Server l;
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
    Server l;
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

/* Bytes of all files of this process that are shared memory */
static uint64_t allocated(void)
{
    g_autoptr(GDir) dir = g_dir_open("/proc/self/fd", 0, NULL);
    uint64_t sum = 0;
    const char *name;

    while ((name = g_dir_read_name(dir))) {
        g_autofree char *path = g_strdup_printf("/proc/self/fd/%s", name);
        g_autofree char *target = g_file_read_link(path, NULL);
        struct stat st;

        if (target && g_str_has_prefix(target, "/memfd:") &&
            stat(path, &st) == 0) {
            sum += st.st_blocks * 512;
        }
    }
    return sum;
}

static void assert_unreadable(Ivshmem2Peer *peer, const char *from,
                              size_t length, const char *words)
{
    g_autoptr(GError) error = NULL;
    char byte[2];

    g_assert_false(ivshmem2_peer_read(peer, from, byte, length, &error));
    assert_error(error, IVSHMEM2_ERROR_ARGUMENT, words);
}

/* Across sections; without a server; and what is no shared memory */
static void test_read(void)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    const size_t size = 1 << 20;
    const size_t all = 4096 + 4 * size;
    g_autofree char *data = g_malloc(all);
    g_autofree char *zeros = g_malloc0(all);
    const char *memory;
    Ivshmem2Peer *a, *b;
    uint64_t before;
    Server l;

    link_start(&l, "--max-peers 3 --rw-size 1M --output-size 1M");
    o.id = 1;
    o.flags = IVSHMEM2_SOCKET_KEEP_FILES;
    a = ivshmem2_peer_open_socket(l.socket, &o, NULL);
    g_assert_nonnull(a);
    b = join(&l, 2);
    memory = ivshmem2_peer_state_table(a);
    g_assert_cmpuint(ivshmem2_peer_info(a)->state_table_size, ==, 4096);
    set_state(a, 0x64636261);
    memcpy((char *)ivshmem2_peer_rw(a) + size - 2, "rw", 2);
    memcpy(ivshmem2_peer_output(b, 2), "out", 3);
    server_stop(&l, SIGKILL);
    before = allocated();
    g_assert_cmpuint(before, >, 0);
    g_assert_true(ivshmem2_peer_read(a, memory, data, all, NULL));
    g_assert_cmpmem(data + 4, 4, "abcd", 4);
    g_assert_cmpmem(data + 4096, size - 2, zeros, size - 2);
    g_assert_cmpmem(data + 4096 + size - 2, 2, "rw", 2);
    g_assert_cmpmem(data + 4096 + size, 2 * size, zeros, 2 * size);
    g_assert_cmpmem(data + 4096 + 3 * size, 3, "out", 3);
    g_assert_cmpmem(data + 4096 + 3 * size + 3, size - 3, zeros, size - 3);
    g_assert_true(ivshmem2_peer_read(a, (char *)ivshmem2_peer_rw(a) + size - 1,
                                     data, 2, NULL));
    g_assert_cmpmem(data, 2, "w", 2);
    g_assert_cmpuint(allocated(), ==, before);

    g_assert_true(ivshmem2_peer_read(a, memory + all, data, 0, NULL));
    assert_unreadable(a, memory + all - 1, 2, "not in the shared memory");
    assert_unreadable(a, memory - 1, 2, "not in the shared memory");
    assert_unreadable(a, memory, SIZE_MAX, "not in the shared memory");
    assert_unreadable(a, NULL, 1, "not in the shared memory");
    assert_unreadable(b, ivshmem2_peer_rw(b), 1, "IVSHMEM2_SOCKET_KEEP_FILES");
    ivshmem2_peer_close(a);
    ivshmem2_peer_close(b);
    link_end(&l);
}

static void test_read_only(void)
{
    Server l;
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
    Server l;
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
    Server l;
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
    Server l;
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
    Server l;
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
    Server l;
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
    Server l;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 4 --vectors 2 --rw-size 4K --output-size 4K");
    a = join(&l, 0);
    b = join(&l, 1);
    server_stop(&l, SIGKILL);

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

/* On a small link, peers interrupt each other, once for each change. */
static void test_state_direct(void)
{
    Ivshmem2Peer *peers[3];
    Server l;

    link_start(&l, "--max-peers 4 --vectors 2");
    for (unsigned i = 0; i < 3; i++) {
        peers[i] = join(&l, i);
    }
    for (uint32_t i = 1; i < 60; i++) {
        unsigned from = i % 3;
        /* 0 now and then, which the server is told of */
        uint32_t state = i % 4 < 3 ? i : 0;

        if (state == ivshmem2_peer_state(peers[from], from)) {
            continue;
        }
        set_state(peers[from], state);
        for (unsigned j = 1; j < 3; j++) {
            Ivshmem2Peer *other = peers[(from + j) % 3];

            /* it is there already, and the entry is as well */
            g_assert_cmpint(ivshmem2_peer_wait(other, 0, NULL, 0, NULL), ==,
                            1);
            g_assert_cmpuint(ivshmem2_peer_state(other, from), ==, state);
        }
    }
    set_state(peers[0], 60);
    assert_interrupt(peers[1], 0, 0);
    assert_interrupt(peers[2], 0, 0);
    assert_silence(peers[0]);
    assert_silence(peers[1]);
    assert_silence(peers[2]);
    /* also when it leaves: its last change is the only one */
    ivshmem2_peer_close(peers[0]);
    assert_interrupt(peers[1], 0, 0);
    assert_interrupt(peers[2], 0, 0);
    assert_silence(peers[1]);
    assert_silence(peers[2]);
    ivshmem2_peer_close(peers[1]);
    ivshmem2_peer_close(peers[2]);
    link_end(&l);
}

/* A small link needs no server for states. */
static void test_server_stopped_small(void)
{
    Server l;
    Ivshmem2Peer *a, *b;

    link_start(&l, "--max-peers 4 --vectors 2");
    a = join(&l, 0);
    b = join(&l, 1);
    kill(l.pid, SIGSTOP);
    for (uint32_t i = 1; i < 100000; i++) {
        /* 0 now and then, so that messages wait */
        set_state(a, i % 10);
        if (i % 1000 == 0 || i % 1000 == 1) {
            assert_interrupt(b, 0, 0);
            g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, i % 10);
        }
    }
    assert_interrupt(b, 0, 0);
    kill(l.pid, SIGCONT);
    ivshmem2_peer_wait(a, -1, NULL, NEVER_MS, NULL);
    assert_silence(b);
    ivshmem2_peer_close(a);
    assert_interrupt(b, 0, 0);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 0);
    assert_silence(b);
    ivshmem2_peer_close(b);
    link_end(&l);
}

/*
 * A server that is stopped delays only peers that leave, and on large links
 * the interrupts of states.
 */
static void test_server_stopped(void)
{
    Server l;
    Ivshmem2Peer *a, *b;
    bool interrupted = false;
    gint64 start;

    link_start(&l, "--max-peers 4 --vectors 2 --push-limit 0");
    a = join(&l, 0);
    b = join(&l, 1);
    ring(a, 1, 1);
    assert_interrupt(b, -1, 1);
    /* the answer */
    ivshmem2_peer_wait(a, -1, NULL, NEVER_MS, NULL);
    kill(l.pid, SIGSTOP);
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
    kill(l.pid, SIGCONT);
    for (int i = 0; i < SOON_MS / 10 && !interrupted; i++) {
        ivshmem2_peer_wait(a, -1, NULL, 5, NULL);
        interrupted = ivshmem2_peer_wait(b, 0, NULL, 5, NULL) == 1;
    }
    g_assert_true(interrupted);
    kill(l.pid, SIGSTOP);
    start = g_get_monotonic_time();
    ivshmem2_peer_close(a);
    g_assert_cmpint(g_get_monotonic_time() - start, <,
                    SOON_MS * G_TIME_SPAN_MILLISECOND);
    g_assert_cmpuint(ivshmem2_peer_state(b, 0), ==, 0);
    kill(l.pid, SIGCONT);
    ivshmem2_peer_close(b);
    link_end(&l);
}

/* One thread for each peer: peers share nothing in this process. */

#define N_THREADS   4
#define N_ROUNDS    100

typedef struct Runner {
    Server *link;
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
    Server l;

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
    Server l;
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

static void assert_options_refused(Server *l, const Ivshmem2SocketOptions *o,
                                   const char *words)
{
    g_autoptr(GError) error = NULL;

    g_assert_null(ivshmem2_peer_open_socket(l->socket, o, &error));
    assert_error(error, IVSHMEM2_ERROR_ARGUMENT, words);
}

/* Options that are not initialized, or of a program that is too new */
static void test_bad_options(void)
{
    Ivshmem2SocketOptions none = { .id = IVSHMEM2_PEER_ID_ANY };
    Ivshmem2SocketOptions newer = IVSHMEM2_SOCKET_OPTIONS_INIT;
    Ivshmem2SocketOptions flags = IVSHMEM2_SOCKET_OPTIONS_INIT;
    Ivshmem2Peer *a;
    Server l;

    link_start(&l, "--max-peers 2");
    newer.size += 8;
    flags.flags = 4;
    assert_options_refused(&l, &none, "IVSHMEM2_SOCKET_OPTIONS_INIT");
    assert_options_refused(&l, &newer, "IVSHMEM2_SOCKET_OPTIONS_INIT");
    assert_options_refused(&l, &flags, "unknown flags 0x4");
    a = ivshmem2_peer_open_socket(l.socket, NULL, NULL);
    g_assert_nonnull(a);
    ivshmem2_peer_close(a);
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

static void test_bad_paths(void)
{
    Server l;
    g_autofree char *longest = g_strnfill(200, 'x');
    char *socket;

    server_init(&l);
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_IO,
                   "No such file or directory");
    g_assert_true(g_file_set_contents(l.socket, "", -1, NULL));
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_IO,
                   "Connection refused, it is not a socket");
    g_unlink(l.socket);
    close(listen_at(l.socket, 1));
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_IO,
                   "Connection refused, is ivshmem2-server running?");
    socket = l.socket;
    l.socket = longest;
    assert_refused(&l, IVSHMEM2_PEER_ID_ANY, IVSHMEM2_ERROR_ARGUMENT,
                   "longer than the 107 bytes");
    l.socket = socket;
    link_end(&l);
}

/* A server that never answers, and one that does not accept */
static void test_connect_timeout(void)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    gint64 start = g_get_monotonic_time();
    int fd;
    Server l;

    o.timeout_ms = 200;
    server_init(&l);
    fd = listen_at(l.socket, 0);
    g_assert_null(ivshmem2_peer_open_socket(l.socket, &o, &error));
    assert_error(error, IVSHMEM2_ERROR_TIMEOUT, "is it stopped?");
    /* now its queue is full */
    for (int i = 0; i < 4; i++) {
        o.timeout_ms = i ? 200 : 0;
        g_assert_null(ivshmem2_peer_open_socket(l.socket, &o, &error));
        assert_error(error, IVSHMEM2_ERROR_TIMEOUT, "is it stopped?");
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
    Server l;
    pid_t child;
    int fd;

    server_init(&l);
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

static const ClientTest tests[] = {
    /* first, because nothing is initialized yet then */
    { "/ivshmem2/client/threads", test_threads },
    { "/ivshmem2/client/info", test_info },
    { "/ivshmem2/client/sections", test_sections },
    { "/ivshmem2/client/large-sections", test_large_sections },
    { "/ivshmem2/client/read", test_read },
    { "/ivshmem2/client/read-only", test_read_only },
    { "/ivshmem2/client/ring", test_ring },
    { "/ivshmem2/client/ring-large", test_ring_large },
    { "/ivshmem2/client/main-loop", test_main_loop },
    { "/ivshmem2/client/state", test_state },
    { "/ivshmem2/client/killed-peer", test_killed_peer },
    { "/ivshmem2/client/server-killed", test_server_killed },
    { "/ivshmem2/client/state-direct", test_state_direct },
    { "/ivshmem2/client/server-stopped", test_server_stopped },
    { "/ivshmem2/client/server-stopped-small", test_server_stopped_small },
    { "/ivshmem2/client/refusals", test_refusals },
    { "/ivshmem2/client/bad-options", test_bad_options },
    { "/ivshmem2/client/bad-paths", test_bad_paths },
    { "/ivshmem2/client/connect-timeout", test_connect_timeout },
    { "/ivshmem2/client/bad-servers", test_bad_servers },
};

int main(int argc, char **argv)
{
    return client_tests_run(argc, argv, tests, G_N_ELEMENTS(tests));
}
