/*
 * ivshmem2 tests: servers that lie, and guests that write anything anywhere
 *
 * What they do is random, and can be repeated: every round begins with its
 * seed, which is the one of the round before plus one.
 *
 * IVSHMEM2_FUZZ_SEED=N    the seed of the first round, else GLib's --seed
 * IVSHMEM2_FUZZ_ROUNDS=N  how many rounds, else so many that it takes seconds
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include "hw/pci/pci_regs.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qobject/qjson.h"
#include "ivshmem2-packet.h"

static uint32_t first_seed(void)
{
    const char *text = getenv("IVSHMEM2_FUZZ_SEED");

    return text ? g_ascii_strtoull(text, NULL, 0) : g_test_rand_int();
}

static int rounds(int normal)
{
    const char *text = getenv("IVSHMEM2_FUZZ_ROUNDS");

    return text ? g_ascii_strtoull(text, NULL, 0) : normal;
}

static bool one_in(GRand *rand, int n)
{
    return g_rand_int_range(rand, 0, n) == 0;
}

/* Values at which things tend to go wrong, and any others */
static uint64_t any_value(GRand *rand)
{
    uint64_t value;

    switch (g_rand_int_range(rand, 0, 5)) {
    case 0:
        return g_rand_int_range(rand, 0, 20);
    case 1:
        return g_rand_int(rand);
    case 2:
        return (uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand);
    default:
        value = UINT64_C(1) << g_rand_int_range(rand, 0, 64);
        return one_in(rand, 2) ? value - 1 : value;
    }
}

/*
 * Servers that lie
 */

#define MAX_LIES        32

/* What is sent: a message, or what has become of one */
typedef struct Lie {
    uint8_t bytes[2 * sizeof(Ivshmem2Msg)];
    size_t size;
    int fds[TEST_PACKET_MAX_FDS];
    unsigned n_fds;
} Lie;

typedef struct Liar {
    GRand *rand;
    uint32_t seed;              /* of the next connection */
    int rounds;                 /* connections; after them it is honest */
    int done;
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
 * Anything that a program can get hold of.  @own is the server's: perhaps its
 * end of the connection, so that the device never sees an end of it.
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

static TestPacket any_packet(GRand *rand)
{
    static const uint16_t types[] = {
        IVSHMEM2_MSG_HELLO, IVSHMEM2_MSG_STATE_CHANGED, IVSHMEM2_MSG_RING,
        IVSHMEM2_MSG_GOODBYE, IVSHMEM2_MSG_WELCOME, IVSHMEM2_MSG_OUTPUTS,
        IVSHMEM2_MSG_EVENTFDS, IVSHMEM2_MSG_EVENTFDS, IVSHMEM2_MSG_READY,
        IVSHMEM2_MSG_REFUSED,
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

/* Change something in one of them. */
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
    case 5:                             /* descriptors: missing ones, */
        lie->n_fds = g_rand_int_range(rand, 0, lie->n_fds + 1);
        break;
    case 6:                             /* too many, */
        n = g_rand_int_range(rand, 0, TEST_PACKET_MAX_FDS - lie->n_fds + 1);
        while (n--) {
            lie->fds[lie->n_fds++] = strange_fd(rand, own);
        }
        break;
    default:                            /* and others */
        if (lie->n_fds) {
            n = g_rand_int_range(rand, 0, lie->n_fds);
            lie->fds[n] = strange_fd(rand, own);
        }
        break;
    }
}

/* Change something, in one of them or in their order; returns how many. */
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
    case 2:                             /* one comes again */
    case 3:                             /* one comes that has no place here */
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

/* In one piece or in several, which makes no difference */
static bool send_lie(GRand *rand, int fd, const Lie *lie, bool good)
{
    size_t most = one_in(rand, 2) ? lie->size : one_in(rand, 2) ? 1 : 13;
    size_t done = 0, fds_at = 0;

    if (!good && one_in(rand, 16)) {    /* descriptors come late */
        fds_at = g_rand_int_range(rand, 0, MAX(lie->size, 1));
    }
    while (done < lie->size) {
        size_t left = (done < fds_at ? fds_at : lie->size) - done;
        size_t size = MIN(left, MAX(most, 1));

        if (!test_packet_send(fd, lie->bytes + done, size, lie->fds,
                              done == fds_at ? lie->n_fds : 0)) {
            return false;
        }
        done += size;
    }
    return true;
}

/* Returns false if the device hangs up, or does not say anything. */
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
    /* The device is no liar. */
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

/* One connection, from HELLO on; returns when it is over. */
static void serve(Liar *l, int fd, int own, uint32_t max_peers,
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
    if ((good_handshake || !one_in(rand, 16)) && !hear(l, fd, &msg, -1)) {
        return;
    }
    for (int i = 0; i < n; i++) {
        if (!send_lie(rand, fd, &lies[i], good_handshake)) {
            return;
        }
    }
    /* Even the end can be too early for a device that is being plugged. */
    if (l->done && !good && one_in(rand, 4)) {
        return;
    }
    if (l->done && !good && one_in(rand, 8)) {
        shutdown(fd, SHUT_WR);
    }
    /* What the device says is answered, rightly at first. */
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

static int liar_accept(Liar *l)
{
    struct pollfd pfd[] = {
        { .fd = l->listen_fd, .events = POLLIN },
        { .fd = l->stop_fd, .events = POLLIN },
    };
    int fd;

    g_assert_cmpint(RETRY_ON_EINTR(poll(pfd, 2, -1)), >, 0);
    if (pfd[1].revents) {
        return -1;
    }
    fd = accept4(l->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    g_assert_cmpint(fd, >=, 0);
    return fd;
}

static Liar *liar_new(TestLink *link, uint32_t seed, int n)
{
    Liar *l = g_new0(Liar, 1);

    l->rand = g_rand_new();
    l->seed = seed;
    l->rounds = n;
    l->listen_fd = test_packet_listen(link);
    l->stop_fd = eventfd(0, EFD_CLOEXEC);
    return l;
}

static void liar_free(Liar *l, TestLink *link)
{
    ivshmem2_eventfd_signal(l->stop_fd);
    g_thread_join(l->thread);
    test_packet_close_all();
    close(l->listen_fd);
    close(l->stop_fd);
    unlink(link->socket);
    g_rand_free(l->rand);
    g_free(l);
}

/* How long a device waits for a server that forgets something */
#define HANDSHAKE_MS    100

static void *plug_thread(void *opaque)
{
    Liar *l = opaque;
    int fd;

    while ((fd = liar_accept(l)) >= 0) {
        g_rand_set_seed(l->rand, l->seed++);
        serve(l, fd, fd, one_in(l->rand, 4) ? 65536 : TEST_PACKET_PEERS,
              one_in(l->rand, 4), false, HANDSHAKE_MS + 50);
        close(fd);
        test_packet_close_all();
        qatomic_inc(&l->done);
    }
    return NULL;
}

/* What drivers do; it must not matter what became of the server. */
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

/* Plug a device, again and again, while the server says this and that. */
static void test_plug(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    uint32_t seed = first_seed();
    int n = rounds(50);
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
    liar_free(l, link);
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
         * A server that just hangs is none of its worries: it waits for as
         * long as there is a connection.
         */
        serve(l, fd, l->listen_fd, 65536,
              good || !l->done || one_in(l->rand, 4), good, 5);
        close(fd);
        test_packet_close_all();
        qatomic_inc(&l->done);
    }
    return NULL;
}

/* A device in use, whose server comes and goes, and lies while it is there */
static void test_resume(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    uint32_t seed = first_seed();
    int n = rounds(500);
    Liar *l = liar_new(link, seed, n);
    GRand *rand = g_rand_new_with_seed(seed);
    QIvshmem2 d = {};

    g_test_message("seeds from %u to %u", seed, seed + n - 1);
    l->thread = g_thread_new("liar", resume_thread, l);
    g_assert_null(test_link_plug(bus->qts, "lied-to", link->socket, 1,
                                 test_packet_props(NULL, 60000)));
    qivshmem2_init(&d, bus, QPCI_DEVFN(TEST_PACKET_SLOT, 0), alloc);
    qivshmem2_start(&d);
    while (qatomic_read(&l->done) < n ||
           !test_link_get_bool(bus->qts, "lied-to", "connected")) {
        use_device(rand, &d);
        qivshmem2_ring(&d, 0, 1);
        qivshmem2_wait(&d, 1);
    }
    /* no more descriptors than those of doorbells that it knows */
    g_assert_cmpint(test_link_count_fds(bus->qts), <, fds + 50);
    use_device(rand, &d);
    g_assert_true(test_link_get_bool(bus->qts, "lied-to", "connected"));
    test_link_unplug(bus->qts, "lied-to", TEST_PACKET_SLOT);
    test_link_wait_fds(bus->qts, fds);
    g_rand_free(rand);
    liar_free(l, link);
    test_packet_plug_well(bus, link, alloc, fds);
}

/*
 * Guests that write anything anywhere
 */

#define WILD_SLOT       5
#define WILD_PEERS      4
#define WILD_ACTIONS    300

static const TestLinkSetup setup_msix = {
    .server = "--max-peers 4 --vectors 3 --rw-size 8K --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=1",
};

static const TestLinkSetup setup_intx = {
    .server = "--max-peers 4 --intx --output-size 4K",
    .qemu = "-global ivshmem2.peer-id=1",
};

/* Two devices in a VM whose guest knows no rules, and a peer that does */
typedef struct Wild {
    GRand *rand;
    QIvshmem2 *d[2];
    const char *name[2];        /* for QEMU */
    uint8_t config[2][PCI_CFG_SPACE_SIZE];   /* as they were started */
    QTestState *qts;
    bool paused;
    QIvshmem2 *good;
    uint32_t good_state;
} Wild;

/* A read or a write of any width */
static void wild_access(Wild *w, uint64_t addr)
{
    uint64_t value = any_value(w->rand);
    uint8_t block[64];

    switch (g_rand_int_range(w->rand, 0, 10)) {
    case 0:
        qtest_writeb(w->qts, addr, value);
        break;
    case 1:
        qtest_writew(w->qts, addr, value);
        break;
    case 2:
    case 3:
        qtest_writel(w->qts, addr, value);
        break;
    case 4:
        qtest_writeq(w->qts, addr, value);
        break;
    case 5:
        memset(block, value, sizeof(block));
        qtest_memwrite(w->qts, addr, block,
                       g_rand_int_range(w->rand, 1, sizeof(block)));
        break;
    case 6:
        qtest_memread(w->qts, addr, block,
                      g_rand_int_range(w->rand, 1, sizeof(block)));
        break;
    case 7:
        qtest_readb(w->qts, addr);
        break;
    case 8:
        qtest_readl(w->qts, addr);
        break;
    default:
        qtest_readq(w->qts, addr);
        break;
    }
}

static void wild_registers(Wild *w, QIvshmem2 *d)
{
    uint32_t all = one_in(w->rand, 4) ? 4 * KiB : IVSHMEM2_REG_STATE + 8;
    uint32_t offset = g_rand_int_range(w->rand, 0, all);

    if (one_in(w->rand, 2)) {
        qivshmem2_writel(d, QEMU_ALIGN_DOWN(offset, 4), any_value(w->rand));
    } else {
        wild_access(w, d->regs + offset);
    }
}

/* Around the ends of sections, or anywhere */
static void wild_memory(Wild *w, QIvshmem2 *d)
{
    uint64_t edges[] = {
        8, d->state_table_size, d->state_table_size + d->rw_size,
        d->state_table_size + d->rw_size +
            d->output_size * g_rand_int_range(w->rand, 0, WILD_PEERS + 1),
        d->memory_size - 8,
    };
    uint64_t offset = edges[g_rand_int_range(w->rand, 0, ARRAY_SIZE(edges))] +
                      g_rand_int_range(w->rand, -8, 8);

    if (one_in(w->rand, 2)) {
        offset = g_rand_int(w->rand) % d->memory_size;
    }
    wild_access(w, d->memory + offset);
}

static void wild_config(Wild *w, QIvshmem2 *d)
{
    uint32_t value = any_value(w->rand);
    uint8_t offset = g_rand_int(w->rand);

    switch (g_rand_int_range(w->rand, 0, 6)) {
    case 0:                     /* where most of what can be written is */
        offset %= PCI_STD_HEADER_SIZEOF;
        /* fall through */
    case 1:
        qpci_config_writel(&d->dev, offset, value);
        break;
    case 2:
        qpci_config_writew(&d->dev, offset, value);
        break;
    case 3:
        qpci_config_writeb(&d->dev, offset, value);
        break;
    case 4:
        qpci_config_readw(&d->dev, offset);
        break;
    default:
        qivshmem2_set_command(d, 1 << (offset % 16), value % 2);
        break;
    }
}

/* MSIs are memory writes, and can go to the devices themselves. */
static uint64_t wild_message(Wild *w, QIvshmem2 *d)
{
    QIvshmem2 *e = w->d[g_rand_int_range(w->rand, 0, 2)];
    uint32_t offset = g_rand_int(w->rand) % 64;

    switch (g_rand_int_range(w->rand, 0, 6)) {
    case 0:
        return e->regs + offset % 32;
    case 1:
        return e->regs + IVSHMEM2_REG_DOORBELL;
    case 2:
        return e->msix + offset;
    case 3:
        return e->memory + d->state_table_size + offset;
    case 4:
        return 0xfee00000 | any_value(w->rand) % MiB;
    default:
        return any_value(w->rand);
    }
}

static uint64_t read_pba(QIvshmem2 *d)
{
    uint32_t pba = qpci_config_readl(&d->dev, d->msix_cap + PCI_MSIX_PBA);

    return qtest_readq(d->qts, d->msix + (pba & ~PCI_MSIX_PBA_BIR));
}

static void wild_msix(Wild *w, QIvshmem2 *d)
{
    unsigned vector = g_rand_int_range(w->rand, 0, d->vectors);
    uint64_t entry = d->msix + vector * PCI_MSIX_ENTRY_SIZE;

    if (!d->msix_cap) {
        return;
    }
    switch (g_rand_int_range(w->rand, 0, 4)) {
    case 0:
        wild_access(w, d->msix + g_rand_int(w->rand) % (4 * KiB));
        break;
    case 1:
        qtest_writeq(w->qts, entry, wild_message(w, d));
        qtest_writel(w->qts, entry + PCI_MSIX_ENTRY_DATA,
                     one_in(w->rand, 2) ? any_value(w->rand) :
                     qivshmem2_id(d) << 16 | vector);
        break;
    case 2:
        qivshmem2_mask(d, vector, one_in(w->rand, 3));
        if (qtest_readl(w->qts, entry + PCI_MSIX_ENTRY_VECTOR_CTRL) <= 1) {
            /* the BAR is where it should be */
            g_assert_cmphex(read_pba(d), ==, 0);
        }
        break;
    default:
        qivshmem2_set_msix_flag(d, one_in(w->rand, 2) ? PCI_MSIX_FLAGS_ENABLE
                                : PCI_MSIX_FLAGS_MASKALL,
                                one_in(w->rand, 2));
        break;
    }
}

static void wild_pause(Wild *w, bool pause)
{
    if (pause != w->paused) {
        qtest_qmp_assert_success(w->qts, "{ 'execute': %s }",
                                 pause ? "stop" : "cont");
        w->paused = pause;
    }
}

static void wild_act(Wild *w)
{
    QIvshmem2 *d = w->d[g_rand_int_range(w->rand, 0, 2)];
    QIvshmem2 *from = one_in(w->rand, 2) ? d : w->good;

    switch (g_rand_int_range(w->rand, 0, 24)) {
    case 0 ... 3:
        wild_registers(w, d);
        break;
    case 4 ... 7:
        wild_msix(w, d);
        break;
    case 8 ... 9:
        wild_config(w, d);
        break;
    case 10 ... 12:
        wild_memory(w, d);
        break;
    case 13 ... 17:
        qivshmem2_ring(from, g_rand_int_range(w->rand, 0, WILD_PEERS + 1),
                       g_rand_int_range(w->rand, 0, d->vectors + 1));
        break;
    case 18:
        w->good_state = any_value(w->rand);
        qivshmem2_set_state(w->good, w->good_state);
        break;
    case 19 ... 20:
        qivshmem2_writel(d, IVSHMEM2_REG_INT_CONTROL,
                         one_in(w->rand, 3) ? any_value(w->rand) : 1);
        break;
    case 21:
        qivshmem2_set_one_shot(d, one_in(w->rand, 2));
        break;
    case 22:
        wild_pause(w, one_in(w->rand, 2));
        break;
    default:
        /* Otherwise there would soon be nothing left to access. */
        if (one_in(w->rand, 8)) {
            wild_pause(w, false);
            qtest_system_reset(w->qts);
        }
        qivshmem2_start(w->d[0]);
        qivshmem2_start(w->d[1]);
        break;
    }
}

static void read_config(QIvshmem2 *d, uint8_t *config)
{
    for (int i = 0; i < PCI_CFG_SPACE_SIZE; i++) {
        config[i] = qpci_config_readb(&d->dev, i);
    }
    /* These are the guest's to write, and mean nothing. */
    config[PCI_CACHE_LINE_SIZE] = 0;
    config[PCI_INTERRUPT_LINE] = 0;
}

/* From here on both are driven by somebody who knows how. */
static void wild_calm(Wild *w)
{
    wild_pause(w, false);
    /* none of them sends messages any more */
    for (int i = 0; i < 2; i++) {
        QIvshmem2 *d = w->d[i];

        if (d->msix_cap) {
            qivshmem2_set_msix_flag(d, PCI_MSIX_FLAGS_ENABLE |
                                    PCI_MSIX_FLAGS_MASKALL, false);
        }
        qivshmem2_set_one_shot(d, false);
        qpci_config_writew(&d->dev, PCI_COMMAND, 0);
    }
    for (int i = 0; i < 2; i++) {
        qivshmem2_start(w->d[i]);
    }
}

/* The interrupt arrives. */
static void expect_ring(QIvshmem2 *from, QIvshmem2 *to, const char *name,
                        unsigned vector)
{
    uint64_t before;

    if (to->msix_cap) {
        qivshmem2_ring(from, qivshmem2_id(to), vector);
        qivshmem2_wait(to, vector);
        return;
    }
    before = test_link_get(to->qts, name, "interrupts-received");
    qivshmem2_ring(from, qivshmem2_id(to), vector);
    test_link_wait_until(test_link_get(to->qts, name,
                                       "interrupts-received") != before);
}

static void check_wild_device(Wild *w, int i, bool was_reset)
{
    QIvshmem2 *d = w->d[i];
    uint64_t end = qivshmem2_output(d, WILD_PEERS);
    uint32_t state = qivshmem2_readl(d, IVSHMEM2_REG_STATE);
    uint32_t int_control = qivshmem2_readl(d, IVSHMEM2_REG_INT_CONTROL);
    uint8_t config[PCI_CFG_SPACE_SIZE];

    read_config(d, config);
    g_assert_cmpmem(config, sizeof(config), w->config[i],
                    sizeof(w->config[i]));
    g_assert_cmpuint(qivshmem2_id(d), ==, i + 1);
    g_assert_cmpuint(qivshmem2_readl(d, IVSHMEM2_REG_MAX_PEERS), ==,
                     WILD_PEERS);
    g_assert_cmphex(qivshmem2_readl(d, IVSHMEM2_REG_DOORBELL), ==, 0);
    g_assert_cmphex(int_control, <=, was_reset ? 0 : 1);
    g_assert_cmphex(state, <=, was_reset ? 0 : UINT32_MAX);
    g_assert_cmphex(qivshmem2_entry(d, i + 1), ==, state);
    g_assert_cmphex(qivshmem2_entry(w->good, i + 1), ==, state);

    if (d->msix_cap) {
        g_assert_cmphex(read_pba(d), ==, 0);
    }
    g_assert_cmphex(qivshmem2_entry(d, 0), ==, 0);
    g_assert_cmphex(qivshmem2_entry(d, 3), ==, w->good_state);
    for (uint64_t at = d->memory + 16; at < d->memory + d->state_table_size;
         at += 8) {
        g_assert_cmphex(qtest_readq(d->qts, at), ==, 0);
    }
    for (uint64_t at = 0; at < d->output_size; at += 8) {
        g_assert_cmphex(qtest_readq(d->qts, qivshmem2_output(d, 0) + at), ==,
                        0);
        g_assert_cmphex(qtest_readq(d->qts, qivshmem2_output(d, 3) + at), ==,
                        at);
    }
    while (end < d->memory + d->memory_size) {
        g_assert_cmphex(qtest_readq(d->qts, end), ==, 0);
        end += KiB;
    }
}

/* Nobody can tell what these two have been through. */
static void check_wild(Wild *w)
{
    QIvshmem2 *good = w->good;
    bool was_reset = one_in(w->rand, 2);

    wild_pause(w, false);
    if (was_reset) {
        qtest_system_reset(w->qts);
    }
    wild_calm(w);
    g_assert_cmpuint(qivshmem2_id(good), ==, 3);
    g_assert_cmphex(qivshmem2_readl(good, IVSHMEM2_REG_INT_CONTROL), ==, 1);
    g_assert_cmphex(qivshmem2_readl(good, IVSHMEM2_REG_STATE), ==,
                    w->good_state);
    g_assert_cmphex(qivshmem2_entry(good, 3), ==, w->good_state);
    for (int i = 0; i < 2; i++) {
        check_wild_device(w, i, was_reset);
    }

    for (int i = 0; i < 2; i++) {
        QIvshmem2 *d = w->d[i];
        QIvshmem2 *other = w->d[!i];
        unsigned last = d->vectors - 1;

        qivshmem2_disable(d);
        for (unsigned v = 0; v < d->vectors && d->msix_cap; v++) {
            qivshmem2_arrived(d, v);
            qivshmem2_arrived(good, v);
        }
        qivshmem2_enable(d);
        expect_ring(good, d, w->name[i], last);
        expect_ring(d, good, QIVSHMEM2_ID, last);
        expect_ring(other, d, w->name[i], last);
        if (d->msix_cap) {
            /* and no other vector than that one */
            g_assert_false(qivshmem2_arrived(d, 1));
        }
    }
}

static void test_guest(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    uint32_t seed = first_seed();
    QIvshmem2 second = {};
    Wild w = {
        .rand = g_rand_new(),
        .d = { obj, &second },
        .name = { QIVSHMEM2_ID, "second" },
    };
    int n = rounds(20);

    w.qts = w.d[0]->qts;
    w.good = test_link_peer(link, "-global ivshmem2.peer-id=3");
    g_assert_null(test_link_plug(w.qts, w.name[1], link->socket, 0,
                                 qdict_from_jsonf_nofail("{ 'addr': '05.0',"
                                                         "  'peer-id': 2 }")));
    qivshmem2_init(&second, w.d[0]->dev.bus, QPCI_DEVFN(WILD_SLOT, 0), alloc);
    for (uint64_t at = 0; at < w.good->output_size; at += 8) {
        qtest_writeq(w.good->qts, qivshmem2_output(w.good, 3) + at, at);
    }
    wild_calm(&w);
    for (int i = 0; i < 2; i++) {
        read_config(w.d[i], w.config[i]);
    }
    for (int i = 0; i < n; i++) {
        g_test_message("seed %u", seed + i);
        g_rand_set_seed(w.rand, seed + i);
        for (int j = 0; j < WILD_ACTIONS; j++) {
            wild_act(&w);
        }
        check_wild(&w);
    }
    g_rand_free(w.rand);
}

static void register_ivshmem2_fuzz_test(void)
{
    test_link_add("ivshmem2/fuzz/server-plug", "pci-bus", test_plug, NULL);
    test_link_add("ivshmem2/fuzz/server-resume", "pci-bus", test_resume, NULL);
    test_link_add("fuzz/guest", "ivshmem2", test_guest, &setup_msix);
    test_link_add("fuzz/guest-intx", "ivshmem2", test_guest, &setup_intx);
}

libqos_init(register_ivshmem2_fuzz_test);
