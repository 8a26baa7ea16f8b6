/*
 * Many peers in one process, as load for a server
 *
 * Usage: ivshmem2-load SOCKET [v1]
 *
 * Every peer has a connection of its own.  Commands are lines of standard
 * input; each is answered by a line of JSON with times in microseconds.
 *
 *   join N         N more peers join, some at a time
 *   state ROUNDS   in each round, another peer changes its state, and all
 *                  others wait until they are interrupted; in between, there is
 *                  a pause, because the server does not hurry for a flood
 *   quiet N        N more peers join that do not look for interrupts
 *   ring N         ask the server N times to ring a peer, and wait for each
 *                  answer; "wait" is without the processor time that this
 *                  process needed for it
 *   churn          the same, and another peer joins and leaves, again and
 *                  again until the next line
 *   stall N        N more peers join and then stop: every other one in the
 *                  middle of a message, the others without reading answers
 *   flood WHAT     another peer sends RING ("ring") or STATE_CHANGED ("state")
 *                  as fast as it can until the next line
 *   heard N        wait until N peers were interrupted since the last such
 *                  wait; prints their number
 *   leave          all peers leave
 *
 * With "v1", the server is QEMU's ivshmem-server, and "join N VECTORS" is the
 * only command: it waits until each of N peers has received the eventfds of
 * all.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include "bench.h"
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"

#define AT_A_TIME       64      /* peers that are joining */
#define SAMPLE          1000    /* the first joins and the last ones */
#define EVENTS          256
#define PATIENCE_MS     60000   /* give up if nothing happens for this long */
#define QUIET_MS        1000    /* version 1: later messages are lost */
#define RINGS_PER_JOIN  8       /* with churn */
#define PAUSE_US        200     /* between two rings, on average */

typedef struct Peer {
    Ivshmem2Transport conn;
    Ivshmem2Session *session;
    uint32_t heard;             /* the last round in which it was rung */
} Peer;

static const char *path;
static GPtrArray *peers;
static uint32_t *table;         /* State Table, mapped by the first peer */
static int heard_fd;            /* epoll: eventfds of vector 0 */

static double now(void)
{
    return bench_clock(CLOCK_MONOTONIC);
}

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "ivshmem2-load: %s: %s\n", what, why);
    exit(1);
}

static int connect_to_server(void)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(addr.sun_path, path, sizeof(addr.sun_path));
    if (fd < 0 || connect(fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
        fail("cannot connect", g_strerror(errno));
    }
    return fd;
}

static void watch(int epoll_fd, int fd, uint32_t events, void *ptr)
{
    struct epoll_event event = {
        .events = events | EPOLLET,
        .data.ptr = ptr,
    };

    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        fail("cannot watch", g_strerror(errno));
    }
}

static void wait_for(int fd, short events)
{
    struct pollfd pfd = { .fd = fd, .events = events };

    if (poll(&pfd, 1, PATIENCE_MS) != 1) {
        fail("the server", "says nothing");
    }
}

/* Is there another line of input? */
static bool is_over(void)
{
    struct pollfd pfd = { .fd = STDIN_FILENO, .events = POLLIN };

    return poll(&pfd, 1, 0) == 1;
}

/* Peers */

static Peer *peer_new(void)
{
    const Ivshmem2Hello hello = {
        .features = IVSHMEM2_F_MSIX,
        .vectors = IVSHMEM2_MAX_VECTORS,
        .id = IVSHMEM2_ID_ANY,
        .name = "load",
    };
    Peer *p = g_new0(Peer, 1);

    ivshmem2_transport_init_consume(&p->conn, connect_to_server(),
                               IVSHMEM2_SERVER);
    p->session = ivshmem2_session_new(&hello);
    ivshmem2_session_connected(p->session);
    return p;
}

static void peer_free(Peer *p)
{
    /* closing does not stop epoll: the server has the file open, too */
    epoll_ctl(heard_fd, EPOLL_CTL_DEL,
              ivshmem2_session_own_eventfd(p->session, 0), NULL);
    ivshmem2_session_free(p->session);
    ivshmem2_transport_clear(&p->conn);
    g_free(p);
}

/* Send all messages; the socket has room for them. */
static void speak(Peer *p)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;

    while (ivshmem2_session_next(p->session, &msg)) {
        if (ivshmem2_transport_send(&p->conn, &msg, NULL, &error) != 1) {
            fail("a peer cannot speak", error ? error->message : "no room");
        }
    }
}

/* Go on with the handshake; returns true when it is complete. */
static bool shake_hands(Peer *p)
{
    g_autoptr(GError) error = NULL;

    speak(p);
    while (!ivshmem2_session_ready(p->session)) {
        int ret = ivshmem2_transport_receive(&p->conn, &error);

        if (ret == 0) {
            return false;
        }
        if (ret < 0 || !ivshmem2_session_receive(p->session, &p->conn.in,
                                                 &error)) {
            fail("a peer cannot join", error->message);
        }
    }
    return true;
}

static void peer_joined(Peer *p)
{
    g_autoptr(GError) error = NULL;
    void *memory = ivshmem2_session_map(p->session, &error);

    if (!memory) {
        fail("a peer cannot join", error->message);
    }
    if (table) {
        munmap(memory, ivshmem2_total_size(ivshmem2_session_info(p->session)));
    } else {
        table = memory;
    }
    watch(heard_fd, ivshmem2_session_own_eventfd(p->session, 0), EPOLLIN, p);
}

static Peer *join_one(void)
{
    Peer *p = peer_new();

    while (!shake_hands(p)) {
        wait_for(p->conn.fd, POLLIN);
    }
    return p;
}

static void say_goodbye(Peer *p)
{
    ivshmem2_session_goodbye(p->session);
    speak(p);
}

static void wait_for_end(Peer *p)
{
    char buf[512];
    ssize_t len;

    do {
        wait_for(p->conn.fd, POLLIN);
        len = recv(p->conn.fd, buf, sizeof(buf), MSG_DONTWAIT);
    } while (len > 0 || (len < 0 && errno == EAGAIN));
    peer_free(p);
}

static void leave_one(Peer *p)
{
    say_goodbye(p);
    wait_for_end(p);
}

/* Commands */

static void run_join(unsigned n)
{
    g_autofree double *done = g_new(double, n + 1);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    unsigned begun = 0, joined = 0;
    unsigned sample = MIN(SAMPLE, n);

    done[0] = now();
    while (joined < n) {
        struct epoll_event events[AT_A_TIME];
        int ready;

        while (begun < n && begun - joined < AT_A_TIME) {
            Peer *p = peer_new();

            /* writable at once, so that HELLO is sent below */
            watch(epoll_fd, p->conn.fd, EPOLLIN | EPOLLOUT, p);
            begun++;
        }
        ready = epoll_wait(epoll_fd, events, AT_A_TIME, PATIENCE_MS);
        if (ready <= 0) {
            fail("the server", "says nothing");
        }
        for (int i = 0; i < ready; i++) {
            Peer *p = events[i].data.ptr;

            if (shake_hands(p)) {
                epoll_ctl(epoll_fd, EPOLL_CTL_DEL, p->conn.fd, NULL);
                peer_joined(p);
                g_ptr_array_add(peers, p);
                done[++joined] = now();
            }
        }
    }
    close(epoll_fd);
    g_print("{\"peers\": %u, \"total\": %.0f, \"first\": %.3f, "
            "\"last\": %.3f}\n", n, done[n] - done[0],
            (done[sample] - done[0]) / sample,
            (done[n] - done[n - sample]) / sample);
}

static void run_quiet(unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        g_ptr_array_add(peers, join_one());
    }
    g_print("{\"peers\": %u}\n", n);
}

/*
 * Look for interrupted peers, and add to @news the number of those that were
 * not interrupted in this round before.  Returns false if there are none.
 */
static bool hear(uint32_t round, int timeout_ms, unsigned *news)
{
    struct epoll_event events[EVENTS];
    int n = epoll_wait(heard_fd, events, EVENTS, timeout_ms);

    for (int i = 0; i < n; i++) {
        Peer *p = events[i].data.ptr;

        *news += p->heard != round;
        p->heard = round;
    }
    return n > 0;
}

/* Wait until @n peers are interrupted; returns the number that were. */
static unsigned hear_many(uint32_t round, unsigned n)
{
    unsigned heard = 0;

    while (hear(round, heard < n ? PATIENCE_MS : 0, &heard)) {
        continue;
    }
    return heard;
}

static uint32_t next_round(void)
{
    static uint32_t round;

    return ++round;
}

static void run_heard(unsigned n)
{
    g_print("{\"heard\": %u}\n", hear_many(next_round(), n));
}

static void run_state(unsigned rounds)
{
    g_autoptr(GArray) times = g_array_new(false, false, sizeof(double));

    for (unsigned i = 0; i < rounds; i++) {
        Peer *p = g_ptr_array_index(peers, i * 7919 % peers->len);
        uint32_t id = ivshmem2_session_info(p->session)->id;
        uint32_t round;
        double before, each;

        hear_many(next_round(), 0);
        round = next_round();
        __atomic_store_n(&table[id], GUINT32_TO_LE(round), __ATOMIC_RELEASE);
        before = now();
        ivshmem2_session_state_changed(p->session, round);
        speak(p);
        if (hear_many(round, peers->len - 1) < peers->len - 1) {
            fail("a state change", "does not reach all peers");
        }
        each = (now() - before) / peers->len;
        g_array_append_val(times, each);
        g_usleep(2 * each * peers->len);
    }
    g_print("{");
    bench_print("state", times);
    g_print("}\n");
}

/* One ring by the server, as if the eventfd were not known yet */
static double ring(Peer *from, Peer *to)
{
    const Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_MSG_RING,
        .target.id = ivshmem2_session_info(to->session)->id,
    };
    g_autoptr(GError) error = NULL;
    double before = now();
    int ret = ivshmem2_transport_send(&from->conn, &msg, NULL, &error);

    while (ret == 0) {
        wait_for(from->conn.fd, POLLOUT);
        ret = ivshmem2_transport_flush(&from->conn, &error);
    }
    while (ret > 0 && (ret = ivshmem2_transport_receive(&from->conn,
                                                        &error)) == 0) {
        wait_for(from->conn.fd, POLLIN);
        ret = 1;
    }
    if (ret < 0) {
        fail("a peer that rings", error->message);
    }
    ivshmem2_decoder_reset(&from->conn.in);
    return now() - before;
}

static void run_ring(unsigned n)
{
    g_autoptr(GArray) times = g_array_new(false, false, sizeof(double));
    g_autoptr(GArray) waits = g_array_new(false, false, sizeof(double));

    for (unsigned i = 0; i < n; i++) {
        double before, t;

        /* at a random point of the server's turns */
        g_usleep(g_random_int_range(0, 2 * PAUSE_US));
        before = bench_clock(CLOCK_PROCESS_CPUTIME_ID);
        t = ring(g_ptr_array_index(peers, 0), g_ptr_array_index(peers, 1));
        g_array_append_val(times, t);
        t -= bench_clock(CLOCK_PROCESS_CPUTIME_ID) - before;
        g_array_append_val(waits, t);
    }
    g_print("{");
    bench_print("ring", times);
    g_print(", ");
    bench_print("wait", waits);
    g_print("}\n");
}

static void run_churn(unsigned unused)
{
    g_autoptr(GArray) rings = g_array_new(false, false, sizeof(double));
    g_autoptr(GArray) joins = g_array_new(false, false, sizeof(double));

    while (!is_over()) {
        double before = now();
        Peer *p = join_one();
        double t = now() - before;

        g_array_append_val(joins, t);
        for (unsigned i = 0; i < RINGS_PER_JOIN; i++) {
            t = ring(p, g_ptr_array_index(peers, 0));
            g_array_append_val(rings, t);
        }
        leave_one(p);
    }
    g_print("{");
    bench_print("ring", rings);
    g_print(", ");
    bench_print("join", joins);
    g_print("}\n");
}

static size_t make_messages(uint8_t *buf, size_t size, uint16_t type,
                            uint32_t target)
{
    size_t len = 0;

    while (len + ivshmem2_type_size(type) <= size) {
        Ivshmem2Msg msg = { .hdr.type = type, .target.id = target };
        size_t one = ivshmem2_msg_encode(&msg);

        memcpy(buf + len, &msg, one);
        len += one;
    }
    return len;
}

static void run_stall(unsigned n)
{
    uint8_t buf[4096];

    for (unsigned i = 0; i < n; i++) {
        Peer *p = join_one();
        uint32_t id = ivshmem2_session_info(p->session)->id;
        size_t len = make_messages(buf, sizeof(buf), IVSHMEM2_MSG_RING, id);

        if (i % 2) {
            send(p->conn.fd, buf, sizeof(Ivshmem2Header) / 2, MSG_DONTWAIT);
        } else {
            while (send(p->conn.fd, buf, len, MSG_DONTWAIT) > 0) {
                continue;
            }
        }
        g_ptr_array_add(peers, p);
    }
    g_print("{\"peers\": %u}\n", n);
}

static void flood(uint16_t type)
{
    Peer *p = join_one();
    uint32_t id = ivshmem2_session_info(p->session)->id;
    uint8_t buf[4096];
    size_t len = make_messages(buf, sizeof(buf), type, id);
    size_t done = 0;
    uint64_t sent = 0;

    while (!is_over()) {
        struct pollfd pfd = { .fd = p->conn.fd, .events = POLLIN | POLLOUT };
        ssize_t ret;

        poll(&pfd, 1, 100);
        while (pfd.revents & POLLIN &&
               ivshmem2_transport_receive(&p->conn, NULL) > 0) {
            ivshmem2_decoder_reset(&p->conn.in);
        }
        ret = send(p->conn.fd, buf + done, len - done,
                   MSG_DONTWAIT | MSG_NOSIGNAL);
        if (ret > 0) {
            sent += ret;
            done = (done + ret) % len;
        }
    }
    peer_free(p);
    g_print("{\"messages\": %" G_GUINT64_FORMAT "}\n",
            sent / ivshmem2_type_size(type));
}

static void run_leave(unsigned unused)
{
    double before = now();
    unsigned n = peers->len;

    for (unsigned i = 0; i < n; i++) {
        say_goodbye(g_ptr_array_index(peers, i));
    }
    for (unsigned i = 0; i < n; i++) {
        wait_for_end(g_ptr_array_index(peers, i));
    }
    g_ptr_array_set_size(peers, 0);
    g_print("{\"peers\": %u, \"total\": %.0f}\n", n, now() - before);
}

/* Version 1: 8 bytes a message, some with a descriptor */

static unsigned receive_v1(int fd)
{
    unsigned eventfds = 0;

    for (;;) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(int))];
        } space;
        int64_t value;
        struct iovec iov = { .iov_base = &value, .iov_len = sizeof(value) };
        struct msghdr mh = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = &space,
            .msg_controllen = sizeof(space),
        };
        ssize_t len = recvmsg(fd, &mh, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

        if (len <= 0) {
            return eventfds;
        }
        if (mh.msg_controllen) {
            int passed;

            memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&mh)), sizeof(passed));
            close(passed);
            /* the memory comes with ID -1 */
            eventfds += GINT64_FROM_LE(value) >= 0;
        }
    }
}

static void join_v1(unsigned n, unsigned vectors)
{
    uint64_t want = (uint64_t)n * n * vectors;
    g_autofree int *fds = g_new(int, n);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    double before = now();
    double last = before;
    uint64_t have = 0;

    for (unsigned i = 0; i < n; i++) {
        fds[i] = connect_to_server();
        watch(epoll_fd, fds[i], EPOLLIN, &fds[i]);
    }
    while (have < want) {
        struct epoll_event events[EVENTS];
        int ready = epoll_wait(epoll_fd, events, EVENTS, QUIET_MS);

        if (ready <= 0) {
            break;
        }
        for (int i = 0; i < ready; i++) {
            have += receive_v1(*(int *)events[i].data.ptr);
        }
        last = now();
    }
    for (unsigned i = 0; i < n; i++) {
        close(fds[i]);
    }
    close(epoll_fd);
    g_print("{\"peers\": %u, \"total\": %.0f, \"missing\": %" G_GUINT64_FORMAT
            "}\n", n, last - before, want - have);
}

static const struct {
    const char *name;
    void (*run)(unsigned n);
    unsigned peers;             /* that must have joined */
} commands[] = {
    { "join", run_join, 0 },
    { "quiet", run_quiet, 0 },
    { "state", run_state, 2 },
    { "ring", run_ring, 2 },
    { "churn", run_churn, 1 },
    { "stall", run_stall, 0 },
    { "heard", run_heard, 0 },
    { "leave", run_leave, 0 },
};

static bool run_command(char **words)
{
    unsigned n = words[1] ? atoi(words[1]) : 0;

    if (g_str_equal(words[0], "flood")) {
        flood(g_strcmp0(words[1], "state") ? IVSHMEM2_MSG_RING
                                           : IVSHMEM2_MSG_STATE_CHANGED);
        return true;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        if (g_str_equal(words[0], commands[i].name) &&
            peers->len >= commands[i].peers) {
            commands[i].run(n);
            return true;
        }
    }
    return false;
}

int main(int argc, char **argv)
{
    bool v1 = argc == 3 && g_str_equal(argv[2], "v1");
    char line[64];

    if (argc != 2 && !v1) {
        fprintf(stderr, "usage: ivshmem2-load SOCKET [v1]\n");
        return 2;
    }
    /* poll() must see a line that was not read yet */
    setvbuf(stdin, NULL, _IONBF, 0);
    path = argv[1];
    peers = g_ptr_array_new();
    heard_fd = epoll_create1(EPOLL_CLOEXEC);
    ivshmem2_raise_file_limit(0);
    while (fgets(line, sizeof(line), stdin)) {
        g_auto(GStrv) words = g_strsplit(g_strstrip(line), " ", -1);

        if (v1 && g_strv_length(words) == 3) {
            join_v1(atoi(words[1]), atoi(words[2]));
        } else if (words[0] && *words[0] && (v1 || !run_command(words))) {
            fprintf(stderr, "ivshmem2-load: '%s' is not possible\n", line);
            return 2;
        }
        fflush(stdout);
    }
    return 0;
}
