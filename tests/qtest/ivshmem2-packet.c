/*
 * ivshmem2 tests: what a server sends, right or wrong
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "qemu/bswap.h"
#include "qemu/memfd.h"
#include "qobject/qjson.h"
#include "ivshmem2-packet.h"

/* Descriptors */

static GArray *opened;
static GArray *blocking;        /* of test_packet_blocking() */

int test_packet_keep(int fd)
{
    g_assert_cmpint(fd, >=, 0);
    if (!opened) {
        opened = g_array_new(false, false, sizeof(int));
    }
    g_array_append_val(opened, fd);
    return fd;
}

int test_packet_memory(uint64_t size, int seals)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    test_packet_keep(fd);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    g_assert_cmpint(fcntl(fd, F_ADD_SEALS, seals), ==, 0);
    return fd;
}

int test_packet_reopen(int fd, int mode)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);

    return test_packet_keep(open(path, mode | O_CLOEXEC));
}

int test_packet_pipe(void)
{
    int fds[2];

    g_assert_cmpint(pipe(fds), ==, 0);
    test_packet_keep(fds[1]);
    return test_packet_keep(fds[0]);
}

int test_packet_eventfd(void)
{
    return test_packet_keep(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

void test_packet_close_all(void)
{
    for (guint i = 0; opened && i < opened->len; i++) {
        close(g_array_index(opened, int, i));
    }
    g_clear_pointer(&opened, g_array_unref);
    /* Their other ends are closed now, so this does not wait. */
    for (guint i = 0; blocking && i < blocking->len; i++) {
        close(g_array_index(blocking, int, i));
    }
    g_clear_pointer(&blocking, g_array_unref);
}

int test_packet_blocking(void)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    struct linger linger = { .l_onoff = 1, .l_linger = TEST_PACKET_LINGER_S };
    socklen_t len = sizeof(addr);
    char bytes[4096] = "";
    int few = sizeof(bytes);
    int listener = test_packet_keep(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC,
                                           0));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_assert_cmpint(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &few,
                               sizeof(few)), ==, 0);
    g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &few, sizeof(few)),
                    ==, 0);
    g_assert_cmpint(bind(listener, (struct sockaddr *)&addr, len), ==, 0);
    g_assert_cmpint(listen(listener, 1), ==, 0);
    g_assert_cmpint(getsockname(listener, (struct sockaddr *)&addr, &len), ==,
                    0);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, len), ==, 0);
    test_packet_keep(accept4(listener, NULL, NULL, SOCK_CLOEXEC));
    while (send(fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0) {
        continue;
    }
    g_assert_cmpint(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger,
                               sizeof(linger)), ==, 0);
    if (!blocking) {
        blocking = g_array_new(false, false, sizeof(int));
    }
    g_array_append_val(blocking, fd);
    return fd;
}

/* Messages */

void test_packet_finish(TestPacket *p)
{
    p->hdr.type = p->msg.hdr.type;
    p->hdr.fds = p->n_fds;
    p->hdr.size = ivshmem2_type_size(p->hdr.type);
    p->size = p->hdr.size;
}

TestPacket test_packet_welcome(uint32_t id, uint32_t max_peers)
{
    uint32_t table = QEMU_ALIGN_UP(max_peers * 4, TEST_PACKET_SECTION);
    bool has_outputs = max_peers == TEST_PACKET_PEERS;
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_WELCOME,
        .msg.welcome = {
            .version = 1,
            .features = IVSHMEM2_F_MSIX,
            .vectors = TEST_PACKET_VECTORS,
            .id = id,
            .max_peers = max_peers,
            .page_size = TEST_PACKET_SECTION,
            .state_table_size = table,
            .rw_size = TEST_PACKET_SECTION,
            .output_size = has_outputs ? TEST_PACKET_SECTION : 0,
            .session = TEST_PACKET_SESSION,
        },
        .fds = {
            test_packet_memory(table, TEST_PACKET_SEALS),
            test_packet_memory(TEST_PACKET_SECTION, TEST_PACKET_SEALS),
        },
        .n_fds = 2,
    };

    test_packet_finish(&p);
    return p;
}

TestPacket test_packet_outputs(uint32_t id)
{
    int others = test_packet_reopen(
        test_packet_memory(TEST_PACKET_SECTION, TEST_PACKET_SEALS), O_RDONLY);
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_OUTPUTS,
        .fds = { others, others },
        .n_fds = TEST_PACKET_PEERS,
    };

    p.fds[id] = test_packet_memory(TEST_PACKET_SECTION, TEST_PACKET_SEALS);
    test_packet_finish(&p);
    return p;
}

TestPacket test_packet_eventfds(uint32_t id)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_EVENTFDS,
        .msg.eventfds.id = id,
        .n_fds = TEST_PACKET_VECTORS,
    };

    for (int i = 0; i < TEST_PACKET_VECTORS; i++) {
        p.fds[i] = test_packet_eventfd();
    }
    test_packet_finish(&p);
    return p;
}

/* The payload is that of p->msg, whatever the header says. */
Ivshmem2Msg test_packet_encode(const TestPacket *p)
{
    Ivshmem2Msg wire = p->msg;

    ivshmem2_msg_encode(&wire);
    wire.hdr.type = cpu_to_le16(p->hdr.type);
    wire.hdr.fds = cpu_to_le16(p->hdr.fds);
    wire.hdr.size = cpu_to_le32(p->hdr.size);
    return wire;
}

bool test_packet_send(int fd, const void *buf, size_t size, const int *fds,
                      unsigned n_fds)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(TEST_PACKET_MAX_FDS * sizeof(int))];
    } control = {};
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = size };
    struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (n_fds) {
        struct cmsghdr *cmsg = &control.align;

        msg.msg_control = &control;
        msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(cmsg), fds, n_fds * sizeof(int));
    }
    return sendmsg(fd, &msg, MSG_NOSIGNAL) == size;
}

static void close_blocking(int fd)
{
    for (guint i = 0; blocking && i < blocking->len; i++) {
        if (g_array_index(blocking, int, i) == fd) {
            g_array_remove_index_fast(blocking, i);
            close(fd);
        }
    }
}

bool test_packet_send_last(int fd, const char *before, const void *buf,
                           size_t size, const int *fds, unsigned n_fds)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    bool sent;

    g_assert_cmpint(getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len), ==,
                    0);
    kill(cred.pid, SIGSTOP);
    sent = test_packet_send(fd, before, strlen(before), NULL, 0) &&
           test_packet_send(fd, buf, size, fds, n_fds);
    for (unsigned i = 0; sent && i < n_fds; i++) {
        close_blocking(fds[i]);
    }
    kill(cred.pid, SIGCONT);
    return sent;
}

int test_packet_listen(TestLink *link)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    g_strlcpy(addr.sun_path, link->socket, sizeof(addr.sun_path));
    g_assert_cmpint(bind(fd, (struct sockaddr *)&addr, sizeof(addr)), ==, 0);
    g_assert_cmpint(listen(fd, 16), ==, 0);
    return fd;
}

int test_packet_fill_backlog(const char *path, int *fds, int max)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };

    g_assert_cmpint(strlen(path), <, sizeof(un.sun_path));
    strcpy(un.sun_path, path);
    for (int n = 0; n < max; n++) {
        fds[n] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
                        0);
        g_assert_cmpint(fds[n], >=, 0);
        if (connect(fds[n], (struct sockaddr *)&un, sizeof(un)) < 0) {
            g_assert_cmpint(errno, ==, EAGAIN);
            close(fds[n]);
            return n;
        }
    }
    g_assert_not_reached();
}

/* Devices */

QDict *test_packet_props(const char *peer_id, int timeout_ms)
{
    g_autofree char *addr = g_strdup_printf("%02x.0", TEST_PACKET_SLOT);
    QDict *props = qdict_from_jsonf_nofail("{ 'addr': %s,"
                                           "  'handshake-timeout-ms': %d }",
                                           addr, timeout_ms);

    if (peer_id) {
        qdict_put_str(props, "peer-id", peer_id);
    }
    return props;
}

void test_packet_plug_well(QPCIBus *bus, TestLink *link,
                           QGuestAllocator *alloc, unsigned fds)
{
    QIvshmem2 d = {};

    test_link_start_server(link, "--max-peers 2 --rw-size 4K "
                           "--output-size 4K");
    g_assert_null(test_link_plug(bus->qts, "good", link->socket, 0,
                                 test_packet_props(NULL, 60000)));
    qivshmem2_init(&d, bus, QPCI_DEVFN(TEST_PACKET_SLOT, 0), alloc);
    qivshmem2_start(&d);
    qivshmem2_enable(&d);
    qivshmem2_ring(&d, qivshmem2_id(&d), 1);
    qivshmem2_wait(&d, 1);
    test_link_unplug(bus->qts, "good", TEST_PACKET_SLOT);
    test_link_kill_server(link, SIGTERM);
    test_link_wait_fds(bus->qts, fds);
}
