/*
 * ivshmem2 tests: servers that send random variations of a handshake
 *
 * IVSHMEM2_FUZZ_ROUNDS is the number of connections in each of the two tests.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "ivshmem2-packet.h"
#include "ivshmem2-random.h"

#define MAX_LIES        32

/* A message as it is sent, after random changes */
typedef struct Lie {
    uint8_t bytes[2 * sizeof(Ivshmem2Msg)];
    size_t size;
    int fds[TEST_PACKET_MAX_FDS];
    unsigned n_fds;
    bool blocks;                /* closing one of them waits */
} Lie;

typedef struct Liar {
    TestLink *link;
    GRand *rand;
    uint32_t seed;              /* of the next connection */
    int rounds;                 /* connections; after them it is honest */
    int done;                   /* connections that are over */
    bool forgets;               /* the session, now and then */
    int listen_fd;
    int stop_fd;                /* eventfd */
    GThread *thread;
} Liar;

static Lie lie_of(TestPacket p)
{
    Ivshmem2Msg wire = test_packet_encode(&p);
    Lie lie = { .size = p.size, .n_fds = p.n_fds };

    memcpy(lie.bytes, &wire, p.size);
    memcpy(lie.fds, p.fds, sizeof(lie.fds));
    return lie;
}

/*
 * Any descriptor that a program can have.  @own is the server's: perhaps its
 * end of the connection, so that the device does not see the server's close.
 */
static int strange_fd(GRand *rand, int own)
{
    uint64_t almost_full = UINT64_MAX - 1;
    int fds[2];

    switch (g_rand_int_range(rand, 0, 14)) {
    case 0:
        return test_packet_pipe();
    case 1:
        return test_packet_keep(open("/dev/null", O_RDWR | O_CLOEXEC));
    case 2:
        return test_packet_keep(open("/", O_RDONLY | O_CLOEXEC));
    case 3:
        return test_packet_keep(open("/", O_PATH | O_CLOEXEC));
    case 4:
        return test_packet_keep(epoll_create1(EPOLL_CLOEXEC));
    case 5:
        return test_packet_keep(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC));
    case 6:
        g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
        test_packet_keep(fds[1]);
        return test_packet_keep(fds[0]);
    case 7:
        fds[0] = test_packet_keep(eventfd(0, EFD_CLOEXEC));
        g_assert_cmpint(write(fds[0], &almost_full, 8), ==, 8);
        return fds[0];
    case 8:
        return test_packet_keep(eventfd(5, EFD_CLOEXEC | EFD_SEMAPHORE));
    case 9:
        return test_packet_memory(any_value(rand) % TiB, TEST_PACKET_SEALS);
    case 10:
        return test_packet_memory(TEST_PACKET_SECTION, 0);
    case 11:
        return test_packet_reopen(
            test_packet_memory(TEST_PACKET_SECTION, TEST_PACKET_SEALS),
            O_RDONLY);
    case 12:
        return test_packet_eventfd();
    default:
        return own;
    }
}

static void add_strange(GRand *rand, Lie *lie, unsigned i, int own)
{
    if (one_in(rand, 16)) {
        lie->fds[i] = test_packet_blocking();
        lie->blocks = true;
    } else {
        lie->fds[i] = strange_fd(rand, own);
    }
}

static TestPacket any_packet(GRand *rand)
{
    static const uint16_t types[] = {
        IVSHMEM2_MSG_HELLO, IVSHMEM2_MSG_STATE_CHANGED, IVSHMEM2_MSG_RING,
        IVSHMEM2_MSG_GOODBYE, IVSHMEM2_MSG_WELCOME, IVSHMEM2_MSG_OUTPUTS,
        IVSHMEM2_MSG_EVENTFDS, IVSHMEM2_MSG_EVENTFDS, IVSHMEM2_MSG_READY,
        IVSHMEM2_MSG_REFUSED, IVSHMEM2_MSG_STATE_ANNOUNCED,
    };
    TestPacket p = {
        .msg.hdr.type = types[g_rand_int_range(rand, 0, ARRAY_SIZE(types))],
    };

    if (p.msg.hdr.type == IVSHMEM2_MSG_REFUSED) {
        for (int i = 0; i < sizeof(p.msg.refusal.text); i++) {
            p.msg.refusal.text[i] = g_rand_int(rand);
        }
    } else {
        p.msg.eventfds.id = any_value(rand);
        p.msg.eventfds.first = any_value(rand);
    }
    if (one_in(rand, 2)) {
        p.fds[p.n_fds++] = test_packet_eventfd();
    }
    test_packet_finish(&p);
    return p;
}

/* Change something in one message. */
static void twist(GRand *rand, Lie *lie, int own)
{
    uint64_t value = cpu_to_le64(any_value(rand));
    size_t at = g_rand_int_range(rand, 0, MAX(lie->size, 1));
    unsigned n;

    switch (g_rand_int_range(rand, 0, 8)) {
    case 0:                             /* bits */
        lie->bytes[at] ^= 1 << g_rand_int_range(rand, 0, 8);
        break;
    case 1:                             /* a field, most are of 4 bytes */
    case 2:
        n = one_in(rand, 3) ? 2 : one_in(rand, 3) ? 8 : 4;
        at = QEMU_ALIGN_DOWN(at, n);
        memcpy(lie->bytes + at, &value, n);
        break;
    case 3:                             /* the length */
        lie->size = at;
        break;
    case 4:
        n = g_rand_int_range(rand, 0, sizeof(lie->bytes) - lie->size + 1);
        memset(lie->bytes + lie->size, value, n);
        lie->size += n;
        break;
    case 5:                             /* descriptors: too few */
        lie->n_fds = g_rand_int_range(rand, 0, lie->n_fds + 1);
        break;
    case 6:                             /* too many */
        n = g_rand_int_range(rand, 0, TEST_PACKET_MAX_FDS - lie->n_fds + 1);
        while (n--) {
            add_strange(rand, lie, lie->n_fds++, own);
        }
        break;
    default:                            /* another one */
        if (lie->n_fds) {
            n = g_rand_int_range(rand, 0, lie->n_fds);
            add_strange(rand, lie, n, own);
        }
        break;
    }
}

/* Change one message, or their order.  Returns their new number. */
static int mutate(GRand *rand, Lie *lies, int n, int own)
{
    int i = g_rand_int_range(rand, 0, n);
    int j = g_rand_int_range(rand, 0, n);
    Lie lie = lies[i];

    switch (g_rand_int_range(rand, 0, 8)) {
    case 0:                             /* one is missing */
        memmove(&lies[i], &lies[i + 1], (n - i - 1) * sizeof(lie));
        return MAX(n - 1, 1);
    case 1:                             /* two change places */
        lies[i] = lies[j];
        lies[j] = lie;
        return n;
    case 2:                             /* one comes twice */
    case 3:                             /* any message comes in between */
        if (n < MAX_LIES) {
            memmove(&lies[j + 1], &lies[j], (n - j) * sizeof(lie));
            lies[j] = one_in(rand, 2) ? lie : lie_of(any_packet(rand));
            n++;
        }
        return n;
    default:
        twist(rand, &lies[i], own);
        return n;
    }
}

/* Send it in one piece or in several, which must make no difference. */
static bool send_lie(GRand *rand, int fd, const Lie *lie, bool good)
{
    size_t most = one_in(rand, 2) ? lie->size : one_in(rand, 2) ? 1 : 13;
    size_t done = 0, fds_at = 0;
    unsigned n_fds = lie->n_fds;

    if (lie->blocks) {
        /* The kernel would close the others in QEMU's socket code. */
        n_fds = MIN(n_fds, IVSHMEM2_MAX_FDS);
    }
    if (!good && one_in(rand, 16)) {    /* descriptors come late */
        fds_at = g_rand_int_range(rand, 0, MAX(lie->size, 1));
    }
    while (done < lie->size) {
        size_t left = (done < fds_at ? fds_at : lie->size) - done;
        size_t size = MIN(left, MAX(most, 1));

        if (lie->blocks && done == fds_at
            ? !test_packet_send_last(fd, "", lie->bytes + done, size,
                                     lie->fds, n_fds)
            : !test_packet_send(fd, lie->bytes + done, size, lie->fds,
                                done == fds_at ? n_fds : 0)) {
            return false;
        }
        done += size;
    }
    return true;
}

/* Returns false if the device closes the connection, or sends nothing. */
static bool hear(Liar *l, int fd, Ivshmem2Msg *msg, int timeout_ms)
{
    struct pollfd pfd[] = {
        { .fd = fd, .events = POLLIN },
        { .fd = l->stop_fd, .events = POLLIN },
    };

    memset(msg, 0, sizeof(*msg));
    if (RETRY_ON_EINTR(poll(pfd, 2, timeout_ms)) < 1 || pfd[1].revents ||
        recv(fd, msg, sizeof(msg->hdr), MSG_WAITALL) != sizeof(msg->hdr)) {
        return false;
    }
    msg->hdr.type = le16_to_cpu(msg->hdr.type);
    msg->hdr.size = le32_to_cpu(msg->hdr.size);
    /* The device itself sends no wrong messages. */
    g_assert_cmpuint(msg->hdr.size, ==, ivshmem2_type_size(msg->hdr.type));
    return msg->hdr.size == sizeof(msg->hdr) ||
           recv(fd, &msg->hello, msg->hdr.size - sizeof(msg->hdr),
                MSG_WAITALL) == msg->hdr.size - sizeof(msg->hdr);
}

/* The answer to a doorbell; most of the peers are absent. */
static TestPacket answer_to(const Ivshmem2Msg *msg)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_EVENTFDS,
        .msg.eventfds.id = le32_to_cpu(msg->target.id),
        .msg.eventfds.first = le32_to_cpu(msg->target.vector),
    };

    if (p.msg.eventfds.id % 2) {
        p.fds[p.n_fds++] = test_packet_eventfd();
    }
    test_packet_finish(&p);
    return p;
}

static int make_handshake(Lie *lies, uint32_t max_peers)
{
    TestPacket ready = { .msg.hdr.type = IVSHMEM2_MSG_READY };
    int n = 0;

    test_packet_finish(&ready);
    lies[n++] = lie_of(test_packet_welcome(0, max_peers));
    if (max_peers == TEST_PACKET_PEERS) {
        lies[n++] = lie_of(test_packet_outputs(0));
    }
    lies[n++] = lie_of(test_packet_eventfds(0));
    if (max_peers != TEST_PACKET_PEERS) {
        lies[n++] = lie_of(test_packet_eventfds(1));
    }
    lies[n++] = lie_of(ready);
    return n;
}

/*
 * The device has said HELLO.  A liar may have told it of a session that an
 * honest server does not know.
 */
static bool forget(Liar *l, int fd, const Ivshmem2Msg *msg, bool good)
{
    static const uint8_t none[IVSHMEM2_UUID_SIZE];
    const uint8_t *session = msg->hello.session;
    bool known = !memcmp(session, TEST_PACKET_SESSION, sizeof(none));
    TestPacket p = { .msg.hdr.type = IVSHMEM2_MSG_REFUSED,
                     .msg.refusal.code = IVSHMEM2_REFUSAL_SESSION };
    Lie lie;

    if (!l->forgets || !memcmp(session, none, sizeof(none)) ||
        (known && (good || one_in(l->rand, 2)))) {
        return false;
    }
    test_packet_finish(&p);
    lie = lie_of(p);
    send_lie(l->rand, fd, &lie, true);
    return true;
}

/* From HELLO to the end of a connection, or of the server */
static void serve_until_end(Liar *l, int fd, int own, uint32_t max_peers,
                            bool good_handshake, bool good, int patience_ms)
{
    GRand *rand = l->rand;
    Lie lies[MAX_LIES + 1];
    Ivshmem2Msg msg;
    int n = make_handshake(lies, max_peers);

    if (!good_handshake) {
        do {
            n = mutate(rand, lies, n, own);
        } while (one_in(rand, 2));
        if (one_in(rand, 8)) {          /* a sudden end, perhaps at once */
            n = g_rand_int_range(rand, 0, n + 1);
        }
    }
    if ((good_handshake || !one_in(rand, 16)) &&
        (!hear(l, fd, &msg, -1) || forget(l, fd, &msg, good))) {
        return;
    }
    for (int i = 0; i < n; i++) {
        if (!send_lie(rand, fd, &lies[i], good_handshake)) {
            return;
        }
    }
    /* Not in the first connection: it could make plugging the device fail. */
    if (l->done && !good && one_in(rand, 4)) {
        return;
    }
    if (l->done && !good && one_in(rand, 8)) {
        shutdown(fd, SHUT_WR);
    }
    /* Answer the device's messages, some of them wrongly if not @good. */
    while (hear(l, fd, &msg, l->done && !good ? patience_ms : -1)) {
        Lie lie;

        if (msg.hdr.type == IVSHMEM2_MSG_RING) {
            lie = lie_of(answer_to(&msg));
            if (!good && one_in(rand, 4)) {
                twist(rand, &lie, own);
            }
        } else if (!good && one_in(rand, 4)) {
            lie = lie_of(any_packet(rand));
            twist(rand, &lie, own);
        } else {
            continue;
        }
        if (!send_lie(rand, fd, &lie, good)) {
            return;
        }
    }
}

static void serve(Liar *l, int fd, int own, uint32_t max_peers,
                  bool good_handshake, bool good, int patience_ms)
{
    if (l->done && !good && one_in(l->rand, 64)) {
        /* It is accepted, and no more. */
        g_usleep(patience_ms * 1000);
    }
    serve_until_end(l, fd, own, max_peers, good_handshake, good, patience_ms);
    if (l->done && !good && one_in(l->rand, 64)) {
        /* It is idle: it reads nothing, and the device has more to say. */
        g_usleep(patience_ms * 1000);
    }
    close(fd);
    test_packet_close_all();
    qatomic_inc(&l->done);
}

/* Accept nothing for a while, with a full backlog. */
static void be_deaf(Liar *l, int ms)
{
    int fds[256];
    int n = test_packet_fill_backlog(l->link->socket, fds, ARRAY_SIZE(fds));

    g_usleep(ms * 1000);
    while (n) {
        close(fds[--n]);
    }
}

static bool is_own(int fd)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    g_assert_cmpint(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len), ==,
                    0);
    return cred.pid == getpid();
}

/* A device's connection */
static int liar_accept(Liar *l)
{
    struct pollfd pfd[] = {
        { .fd = l->listen_fd, .events = POLLIN },
        { .fd = l->stop_fd, .events = POLLIN },
    };
    int fd;

    for (;;) {
        g_assert_cmpint(RETRY_ON_EINTR(poll(pfd, 2, -1)), >, 0);
        if (pfd[1].revents) {
            return -1;
        }
        fd = accept4(l->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        g_assert_cmpint(fd, >=, 0);
        if (!is_own(fd)) {
            return fd;
        }
        close(fd);
    }
}

static Liar *liar_new(TestLink *link, uint32_t seed, int n)
{
    Liar *l = g_new0(Liar, 1);

    l->link = link;
    l->rand = g_rand_new();
    l->seed = seed;
    l->rounds = n;
    l->listen_fd = test_packet_listen(link);
    l->stop_fd = eventfd(0, EFD_CLOEXEC);
    return l;
}

static void liar_free(Liar *l)
{
    ivshmem2_eventfd_signal(l->stop_fd);
    g_thread_join(l->thread);
    test_packet_close_all();
    close(l->listen_fd);
    close(l->stop_fd);
    unlink(l->link->socket);
    g_rand_free(l->rand);
    g_free(l);
}

/* The timeout of devices, for handshakes in which a message is missing */
#define HANDSHAKE_MS    100

static void *plug_thread(void *opaque)
{
    Liar *l = opaque;
    int fd;

    while ((fd = liar_accept(l)) >= 0) {
        g_rand_set_seed(l->rand, l->seed++);
        serve(l, fd, fd, one_in(l->rand, 4) ? 65536 : TEST_PACKET_PEERS,
              one_in(l->rand, 4), false, HANDSHAKE_MS + 50);
    }
    return NULL;
}

/* Use the device as drivers do, whatever has become of the server. */
static void use_device(GRand *rand, QIvshmem2 *d)
{
    uint32_t state = g_rand_int(rand);

    qivshmem2_enable(d);
    for (int i = 0; i < 4; i++) {
        qivshmem2_ring(d, g_rand_int(rand) % 8, g_rand_int(rand) % 3);
    }
    qivshmem2_set_state(d, state);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_STATE), ==, state);
    g_assert_cmphex(qivshmem2_entry(d, qivshmem2_id(d)),
                    ==, state);
}

/* Plug a device again and again, with a server that sends random messages. */
static void test_plug(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    uint32_t seed = first_seed();
    int n = count_rounds(50);
    Liar *l = liar_new(link, seed, n);
    GRand *rand = g_rand_new_with_seed(seed);

    l->thread = g_thread_new("liar", plug_thread, l);
    for (int i = 0; i < n; i++) {
        g_autofree char *error =
            test_link_plug(bus->qts, "lied-to", link->socket, 0,
                           test_packet_props(NULL, HANDSHAKE_MS));

        g_test_message("seed %u: %s", seed + i, error ?: "plugged");
        if (error) {
            g_assert_true(strstr(error, "handshake with the ivshmem2-server "
                                 "failed: ") ||
                          strstr(error, "cannot map the "));
        } else {
            QIvshmem2 d = {};

            qivshmem2_init(&d, bus, QPCI_DEVFN(TEST_PACKET_SLOT, 0), alloc);
            qivshmem2_start(&d);
            use_device(rand, &d);
            guest_free(alloc, d.messages);
            test_link_unplug(bus->qts, "lied-to", TEST_PACKET_SLOT);
        }
        test_link_wait_fds(bus->qts, fds);
        while (qatomic_read(&l->done) <= i) {
            g_usleep(100);
        }
    }
    g_rand_free(rand);
    liar_free(l);
    test_packet_plug_well(bus, link, alloc, fds);
}

static void *resume_thread(void *opaque)
{
    Liar *l = opaque;
    int fd;

    while ((fd = liar_accept(l)) >= 0) {
        bool good = l->done >= l->rounds;

        g_rand_set_seed(l->rand, l->seed++);
        /*
         * A device in use has no timeout: it waits for a server that hangs as
         * long as the connection stands.
         */
        serve(l, fd, l->listen_fd, 65536,
              good || !l->done || one_in(l->rand, 4), good, 5);
        if (!good && one_in(l->rand, 64)) {
            be_deaf(l, 5);
        }
    }
    return NULL;
}

/* A device in use, with a server that comes and goes and lies meanwhile. */
static void use_and_lose(void *obj, TestLink *link, QGuestAllocator *alloc,
                         const char *new_session)
{
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    uint32_t seed = first_seed();
    int n = count_rounds(500);
    Liar *l = liar_new(link, seed, n);
    GRand *rand = g_rand_new_with_seed(seed);
    QDict *props = test_packet_props(NULL, 60000);
    QIvshmem2 d = {};

    g_test_message("seeds from %u to %u", seed, seed + n - 1);
    l->forgets = !strcmp(new_session, "rejoin");
    qdict_put_str(props, "new-session", new_session);
    qdict_put_int(props, "x-slowest-reconnect-ms", 1);
    l->thread = g_thread_new("liar", resume_thread, l);
    g_assert_null(test_link_plug(bus->qts, "lied-to", link->socket, 1,
                                 props));
    qivshmem2_init(&d, bus, QPCI_DEVFN(TEST_PACKET_SLOT, 0), alloc);
    qivshmem2_start(&d);
    while (qatomic_read(&l->done) < n ||
           !test_link_get_bool(bus->qts, "lied-to", "connected")) {
        use_device(rand, &d);
        qivshmem2_ring(&d, 0, 1);
        qivshmem2_wait(&d, 1);
    }
    /* the only new descriptors are those of doorbells that it has rung */
    g_assert_cmpint(test_link_count_fds(bus->qts), <, fds + 50);
    use_device(rand, &d);
    g_assert_true(test_link_get_bool(bus->qts, "lied-to", "connected"));
    test_link_unplug(bus->qts, "lied-to", TEST_PACKET_SLOT);
    test_link_wait_fds(bus->qts, fds);
    g_rand_free(rand);
    liar_free(l);
    test_packet_plug_well(bus, link, alloc, fds);
}

static void test_resume(void *obj, void *link, QGuestAllocator *alloc)
{
    use_and_lose(obj, link, alloc, "detach");
}

/* The same, but it goes over to other sessions. */
static void test_rejoin(void *obj, void *link, QGuestAllocator *alloc)
{
    use_and_lose(obj, link, alloc, "rejoin");
}

static void register_ivshmem2_fuzz_server_test(void)
{
    test_link_add("ivshmem2/fuzz/server-plug", "pci-bus", test_plug, NULL);
    test_link_add("ivshmem2/fuzz/server-resume", "pci-bus", test_resume, NULL);
    test_link_add("ivshmem2/fuzz/server-rejoin", "pci-bus", test_rejoin, NULL);
}

libqos_init(register_ivshmem2_fuzz_server_test);
