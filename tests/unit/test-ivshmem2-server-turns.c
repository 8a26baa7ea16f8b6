/*
 * ivshmem2-server's turns: how much of them a client gets, while others want
 * more than there is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-util.h"
#include <glib/gstdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include "daemon.h"
#include "libivshmem2-transport.h"
#include "listen.h"
#include "server.h"

/* Not 0: the time stands still. */
static int64_t fixed_time;

gint64 g_get_monotonic_time(void)
{
    struct timespec t = { 0 };

    clock_gettime(CLOCK_MONOTONIC, &t);
    return fixed_time ? fixed_time : t.tv_sec * G_USEC_PER_SEC +
                                     t.tv_nsec / 1000;
}

static Ivshmem2Msg make_hello(uint32_t id)
{
    return (Ivshmem2Msg) {
        .hdr.type = IVSHMEM2_MSG_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = 1,
            .version_max = 1,
            .features = IVSHMEM2_F_MSIX,
            .vectors = 1,
            .id = id,
        },
    };
}

#define N_OTHERS    50

static void connect_to(Ivshmem2Transport *conn, const char *path)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path));
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==,
                    0);
    ivshmem2_transport_init_consume(conn, fd, IVSHMEM2_SERVER);
}

static void join_by_socket(Ivshmem2Transport *conn, Ivshmem2Daemon *d,
                           uint32_t id)
{
    const Ivshmem2Msg hello = make_hello(id);
    bool ready = false;

    g_assert_cmpint(ivshmem2_transport_send(conn, &hello, NULL, NULL), ==, 1);
    for (int turns = 0; !ready; turns++) {
        g_assert_cmpint(turns, <, 100);
        ivshmem2_daemon_turn(d, false);
        while (!ready && ivshmem2_transport_receive(conn, NULL) == 1) {
            ready = conn->in.msg.hdr.type == IVSHMEM2_MSG_READY;
            ivshmem2_decoder_reset(&conn->in);
        }
    }
}

static void send_many(Ivshmem2Transport *conn, Ivshmem2Msg msg, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        g_assert_cmpint(ivshmem2_transport_send(conn, &msg, NULL, NULL), ==, 1);
    }
}

/* A server with sockets, in this process */
typedef struct Host {
    Ivshmem2Link *link;
    Ivshmem2Budget *budget;
    char *dir;
    char *path;
    unsigned before;
    Ivshmem2Listener listener;
    Ivshmem2Daemon *d;
} Host;

static void host_begin(Host *h, uint32_t max_peers)
{
    const Ivshmem2LinkConfig config = { .max_peers = max_peers, .vectors = 1 };
    g_autoptr(GError) error = NULL;

    h->dir = g_dir_make_tmp("ivshmem2-XXXXXX", NULL);
    h->path = g_build_filename(h->dir, "link.sock", NULL);
    h->before = count_fds();
    h->link = ivshmem2_link_new(&config, &error);
    h->budget = ivshmem2_budget_new(&(Ivshmem2BudgetConfig) { 0 });
    g_assert_true(ivshmem2_listen(&h->listener, h->path, 0600, -1, &error));
    h->d = ivshmem2_daemon_new(h->link, h->budget, h->listener.fd, 10, 0,
                               &error);
    g_assert_no_error(error);
}

static void host_end(Host *h)
{
    ivshmem2_daemon_free(h->d);
    ivshmem2_budget_free(h->budget);
    ivshmem2_listen_end(&h->listener);
    ivshmem2_link_free(h->link);
    g_assert_cmpint(g_rmdir(h->dir), ==, 0);
    g_assert_cmpuint(count_fds(), ==, h->before);
    g_free(h->path);
    g_free(h->dir);
}

static uint64_t signals(Host *h, uint32_t id)
{
    return ivshmem2_eventfd_drain(h->link->eventfds[id][0]);
}

/* A client that sends many messages delays others by a few of them only. */
static void test_turns(void)
{
    const Ivshmem2Msg ring_first = { .hdr.type = IVSHMEM2_MSG_RING };
    const Ivshmem2Msg ring_last = {
        .hdr.type = IVSHMEM2_MSG_RING,
        .target.id = N_OTHERS,
    };
    const Ivshmem2Msg state = { .hdr.type = IVSHMEM2_MSG_STATE_CHANGED };
    Ivshmem2Transport others[N_OTHERS], last;
    uint64_t n, heard = 0;
    Host h;

    host_begin(&h, N_OTHERS + 1);
    for (uint32_t i = 0; i < N_OTHERS; i++) {
        connect_to(&others[i], h.path);
        join_by_socket(&others[i], h.d, i);
    }
    connect_to(&last, h.path);
    join_by_socket(&last, h.d, N_OTHERS);

    /* requests */
    send_many(&others[0], ring_first, 100);
    send_many(&last, ring_last, 1);
    ivshmem2_daemon_turn(h.d, false);
    g_assert_cmpuint(signals(&h, N_OTHERS), ==, 1);
    n = signals(&h, 0);
    g_assert_cmpuint(n, >=, 1);
    g_assert_cmpuint(n, <=, 4);
    ivshmem2_transport_clear(&others[0]);

    /* interrupts because of a state take several turns; each peer has one */
    send_many(&others[1], state, 1);
    for (unsigned turns = 1; heard < N_OTHERS - 2; turns++) {
        g_assert_cmpuint(turns, <, 100);
        ivshmem2_daemon_turn(h.d, false);
        n = 0;
        for (uint32_t i = 2; i < N_OTHERS; i++) {
            n += signals(&h, i);
        }
        g_assert_cmpuint(n, <=, IVSHMEM2_INTERRUPTS_PER_TURN);
        heard += n;
    }
    g_assert_cmpuint(heard, ==, N_OTHERS - 2);

    for (uint32_t i = 1; i < N_OTHERS; i++) {
        ivshmem2_transport_clear(&others[i]);
    }
    ivshmem2_transport_clear(&last);
    host_end(&h);
}

#define N_FLOODERS  2
#define MANY_TURNS  100000
#define MOMENT      1000        /* microseconds */

/* Clients of a host: those with the first IDs flood, the last one does not. */
typedef struct Flood {
    Host h;
    Ivshmem2Transport conns[N_FLOODERS + 1];
    Ivshmem2Msg msg;            /* that they flood with */
    unsigned n;                 /* in each turn */
    bool reads_nothing;         /* of the answers */
    bool rings_itself;          /* each of them, not the last one */
} Flood;

static void discard_answers(Ivshmem2Transport *conn)
{
    while (ivshmem2_transport_receive(conn, NULL) == 1) {
        ivshmem2_decoder_reset(&conn->in);
    }
}

/*
 * A turn while there are messages of the flooders, perhaps more of them than it
 * handles.  Returns the number of interrupts of @id.
 */
static uint64_t flooded_turn(Flood *f, uint32_t id)
{
    for (unsigned i = 0; i < N_FLOODERS; i++) {
        Ivshmem2Transport *conn = &f->conns[i];

        if (!f->reads_nothing) {
            discard_answers(conn);
        }
        f->msg.target.id = f->rings_itself ? i : N_FLOODERS;
        for (unsigned n = 0; n < f->n; n++) {
            int ret = ivshmem2_transport_is_sending(conn)
                ? ivshmem2_transport_flush(conn, NULL)
                : ivshmem2_transport_send(conn, &f->msg, NULL, NULL);

            g_assert_cmpint(ret, >=, 0);
        }
    }
    ivshmem2_daemon_turn(f->h.d, false);
    return signals(&f->h, id);
}

static void flood_begin(Flood *f, uint16_t type, unsigned n)
{
    *f = (Flood) { .msg.hdr.type = type, .n = n };
    host_begin(&f->h, N_FLOODERS + 1);
    for (uint32_t i = 0; i <= N_FLOODERS; i++) {
        connect_to(&f->conns[i], f->h.path);
        join_by_socket(&f->conns[i], f->h.d, i);
    }
    fixed_time = g_get_monotonic_time();
}

static void flood_end(Flood *f)
{
    fixed_time = 0;
    for (uint32_t i = 0; i <= N_FLOODERS; i++) {
        ivshmem2_transport_clear(&f->conns[i]);
    }
    host_end(&f->h);
}

/*
 * Clients that flood do not use all of the server's time: there are turns
 * without a message of them, also without an interrupt because of them.  A
 * request of another client is answered in one turn nevertheless.
 */
static void check_pace(uint16_t type, unsigned n)
{
    /* the flooders ring it, or their states are changed */
    const uint32_t id = N_FLOODERS;
    /* for an answer only */
    const Ivshmem2Msg ring_nobody = {
        .hdr.type = IVSHMEM2_MSG_RING,
        .target.id = N_FLOODERS + 1,
    };
    Flood f;
    Ivshmem2Transport *other = &f.conns[N_FLOODERS];

    flood_begin(&f, type, n);
    for (int times = 0; times < 3; times++) {
        unsigned turns = 0;

        while (flooded_turn(&f, id)) {
            g_assert_cmpuint(turns++, <, MANY_TURNS);
        }
        for (int i = 0; i < 10; i++) {
            send_many(other, ring_nobody, 1);
            g_assert_cmpuint(flooded_turn(&f, id), ==, 0);
            g_assert_cmpint(ivshmem2_transport_receive(other, NULL), ==, 1);
            ivshmem2_decoder_reset(&other->in);
        }
        /* they wait for some time only, even if the other one goes on */
        for (turns = 0; !flooded_turn(&f, id); turns++) {
            g_assert_cmpuint(turns, <, 1000);
            fixed_time += MOMENT;
            send_many(other, ring_nobody, 1);
            discard_answers(other);
        }
        discard_answers(other);
        fixed_time += G_USEC_PER_SEC;
        g_assert_cmpuint(flooded_turn(&f, id), >, 0);
    }
    flood_end(&f);
}

static void test_rings(void)
{
    check_pace(IVSHMEM2_MSG_RING, 10);
}

static void test_states(void)
{
    check_pace(IVSHMEM2_MSG_STATE_CHANGED, 10);
}

/* Few messages, of which each causes interrupts */
static void test_single_states(void)
{
    check_pace(IVSHMEM2_MSG_STATE_CHANGED, 1);
}

/* Clients that read answers to requests of a flood do not interfere either. */
static void test_late_readers(void)
{
    const Ivshmem2Msg state = { .hdr.type = IVSHMEM2_MSG_STATE_CHANGED };
    const uint32_t id = N_FLOODERS;
    unsigned turns = 0;
    Flood f;

    flood_begin(&f, IVSHMEM2_MSG_RING, 10);
    f.reads_nothing = true;
    while (flooded_turn(&f, id)) {
        g_assert_cmpuint(turns++, <, 100);
        fixed_time += MOMENT;
    }
    /* another kind of flood uses the time that they might have */
    do {
        send_many(&f.conns[N_FLOODERS], state, 1);
        g_assert_cmpuint(flooded_turn(&f, id), ==, 0);
        g_assert_cmpuint(turns++, <, MANY_TURNS);
    } while (signals(&f.h, 0));

    f.reads_nothing = false;
    for (int i = 0; i < 10; i++) {
        g_assert_cmpuint(flooded_turn(&f, id), ==, 0);
    }
    fixed_time += G_USEC_PER_SEC;
    for (turns = 0; !flooded_turn(&f, id); turns++) {
        g_assert_cmpuint(turns, <, 10);
    }
    flood_end(&f);
}

/* Clients that flood are served equally. */
static void test_flooders(void)
{
    uint64_t served[N_FLOODERS] = { 0 };
    Flood f;

    flood_begin(&f, IVSHMEM2_MSG_RING, 10);
    f.rings_itself = true;
    for (int turns = 0; turns < 1000; turns++) {
        served[0] += flooded_turn(&f, 0);
        served[1] += signals(&f.h, 1);
        fixed_time += MOMENT;
    }
    flood_end(&f);
    g_assert_cmpuint(served[0], >, 100);
    g_assert_cmpuint(MAX(served[0], served[1]), <=,
                     MIN(served[0], served[1]) * 1.1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/server-turns/turns", test_turns);
    g_test_add_func("/ivshmem2/server-turns/rings", test_rings);
    g_test_add_func("/ivshmem2/server-turns/states", test_states);
    g_test_add_func("/ivshmem2/server-turns/single-states",
                    test_single_states);
    g_test_add_func("/ivshmem2/server-turns/late-readers", test_late_readers);
    g_test_add_func("/ivshmem2/server-turns/flooders", test_flooders);
    return g_test_run();
}
