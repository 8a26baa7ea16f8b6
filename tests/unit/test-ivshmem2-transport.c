/*
 * ivshmem2 transport: messages with descriptors over real sockets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-util.h"
#include <sys/resource.h>
#include <sys/socket.h>
#include "libivshmem2-transport.h"

/* The test writes to one end; the transport has the other one. */
typedef struct Fixture {
    unsigned before;
    int fd;
    Ivshmem2Transport conn;
} Fixture;

static void setup(Fixture *f, gconstpointer peer)
{
    int fds[2];

    f->before = count_fds();
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    f->fd = fds[0];
    ivshmem2_transport_init_consume(&f->conn, fds[1], GPOINTER_TO_INT(peer));
}

static void teardown(Fixture *f, gconstpointer peer)
{
    ivshmem2_transport_clear(&f->conn);
    ivshmem2_close(&f->fd);
    g_assert_cmpuint(count_fds(), ==, f->before);
}

/* With any number of descriptors */
static void send_bytes(int fd, const void *buf, size_t len, const int *fds,
                       size_t n_fds)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 253)];
    } space = { .bytes = { 0 } };
    struct iovec iov = { .iov_base = (void *)buf, .iov_len = len };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };

    if (n_fds) {
        mh.msg_control = &space;
        mh.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
        CMSG_FIRSTHDR(&mh)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&mh)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&mh)->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&mh)), fds, n_fds * sizeof(int));
    }
    g_assert_cmpint(sendmsg(fd, &mh, MSG_NOSIGNAL), ==, len);
}

static Ivshmem2Msg make_eventfds(uint32_t id, unsigned n_fds)
{
    return (Ivshmem2Msg) {
        .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = n_fds },
        .eventfds = { .id = id },
    };
}

static Ivshmem2Msg make_ring(uint32_t id)
{
    return (Ivshmem2Msg) {
        .hdr = { .type = IVSHMEM2_MSG_RING },
        .target = { .id = id },
    };
}

/* Send @msg with the same descriptor as often as it announces. */
static void send_message(int fd, Ivshmem2Msg msg, int event_fd)
{
    int fds[IVSHMEM2_MAX_FDS];
    size_t n_fds = msg.hdr.fds;
    size_t len = ivshmem2_msg_encode(&msg);

    for (size_t i = 0; i < n_fds; i++) {
        fds[i] = event_fd;
    }
    send_bytes(fd, &msg, len, fds, n_fds);
}

static void assert_received(Ivshmem2Transport *c, uint16_t type, uint32_t id,
                            unsigned n_fds)
{
    g_autoptr(GError) error = NULL;
    int ret = ivshmem2_transport_receive(c, &error);

    g_assert_no_error(error);
    g_assert_cmpint(ret, ==, 1);
    g_assert_cmpuint(c->in.msg.hdr.type, ==, type);
    g_assert_cmpuint(c->in.msg.eventfds.id, ==, id);
    g_assert_cmpuint(c->in.n_fds, ==, n_fds);
    for (unsigned i = 0; i < n_fds; i++) {
        g_assert_cmpint(fcntl(c->in.fds[i], F_GETFD), ==, FD_CLOEXEC);
    }
    ivshmem2_decoder_reset(&c->in);
}

static void assert_nothing(Ivshmem2Transport *c)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(ivshmem2_transport_receive(c, &error), ==, 0);
    g_assert_no_error(error);
}

static void assert_broken(Ivshmem2Transport *c, int code, const char *text)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(ivshmem2_transport_receive(c, &error), ==, -1);
    assert_error(error, code, text);
}

/*
 * A message without descriptors can arrive together with the next one, and one
 * read could take both.
 */
static void test_glued(Fixture *f, gconstpointer peer)
{
    int event_fd = make_eventfd();

    send_message(f->fd, make_eventfds(1, 0), event_fd);
    send_message(f->fd, make_eventfds(2, 3), event_fd);
    send_message(f->fd, make_eventfds(3, 0), event_fd);
    send_message(f->fd, make_eventfds(4, 0), event_fd);
    send_message(f->fd, make_eventfds(5, 16), event_fd);
    send_message(f->fd, make_eventfds(6, 1), event_fd);
    assert_received(&f->conn, IVSHMEM2_MSG_EVENTFDS, 1, 0);
    assert_received(&f->conn, IVSHMEM2_MSG_EVENTFDS, 2, 3);
    assert_received(&f->conn, IVSHMEM2_MSG_EVENTFDS, 3, 0);
    assert_received(&f->conn, IVSHMEM2_MSG_EVENTFDS, 4, 0);
    assert_received(&f->conn, IVSHMEM2_MSG_EVENTFDS, 5, 16);
    assert_received(&f->conn, IVSHMEM2_MSG_EVENTFDS, 6, 1);
    assert_nothing(&f->conn);
    ivshmem2_close(&event_fd);
}

static void test_byte_at_a_time(Fixture *f, gconstpointer peer)
{
    Ivshmem2Msg msg = make_eventfds(7, 2);
    int event_fd = make_eventfd();
    int fds[2] = { event_fd, event_fd };
    size_t len = ivshmem2_msg_encode(&msg);

    for (size_t i = 0; i < len; i++) {
        assert_nothing(&f->conn);
        send_bytes(f->fd, (uint8_t *)&msg + i, 1, fds, i == 0 ? 2 : 0);
    }
    assert_received(&f->conn, IVSHMEM2_MSG_EVENTFDS, 7, 2);
    ivshmem2_close(&event_fd);
}

static void test_fds_in_the_middle(Fixture *f, gconstpointer peer)
{
    Ivshmem2Msg msg = make_eventfds(7, 1);
    int event_fd = make_eventfd();
    size_t len = ivshmem2_msg_encode(&msg);

    send_bytes(f->fd, &msg, 9, &event_fd, 1);
    send_bytes(f->fd, (uint8_t *)&msg + 9, len - 9, &event_fd, 1);
    assert_broken(&f->conn, IVSHMEM2_ERROR_PROTOCOL,
                  "in the middle of a message");
    ivshmem2_close(&event_fd);
}

/* As many descriptors as Linux passes: all are received, none is lost. */
static void test_too_many_fds(Fixture *f, gconstpointer peer)
{
    Ivshmem2Msg msg = make_eventfds(7, 16);
    int event_fd = make_eventfd();
    size_t len = ivshmem2_msg_encode(&msg);
    int fds[253];

    for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
        fds[i] = event_fd;
    }
    send_bytes(f->fd, &msg, len, fds, G_N_ELEMENTS(fds));
    assert_broken(&f->conn, IVSHMEM2_ERROR_PROTOCOL,
                  "too many descriptors came");
    ivshmem2_close(&event_fd);
}

/* The kernel passes no more descriptors than the process may have open. */
static void test_no_room_for_fds(Fixture *f, gconstpointer peer)
{
    int event_fd = make_eventfd();
    struct rlimit limit, small;

    g_assert_cmpint(getrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    send_message(f->fd, make_eventfds(7, 4), event_fd);
    small = limit;
    small.rlim_cur = event_fd + 3;
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &small), ==, 0);
    assert_broken(&f->conn, IVSHMEM2_ERROR_PROTOCOL,
                  "descriptors were lost");
    g_assert_cmpint(setrlimit(RLIMIT_NOFILE, &limit), ==, 0);
    ivshmem2_close(&event_fd);
}

static void test_closed(Fixture *f, gconstpointer peer)
{
    send_message(f->fd, make_ring(1), -1);
    ivshmem2_close(&f->fd);
    assert_received(&f->conn, IVSHMEM2_MSG_RING, 1, 0);
    assert_broken(&f->conn, IVSHMEM2_ERROR_CLOSED, "closed");
}

static void test_closed_in_the_middle(Fixture *f, gconstpointer peer)
{
    Ivshmem2Msg msg = make_ring(1);

    ivshmem2_msg_encode(&msg);
    send_bytes(f->fd, &msg, 15, NULL, 0);
    assert_nothing(&f->conn);
    shutdown(f->fd, SHUT_WR);
    assert_broken(&f->conn, IVSHMEM2_ERROR_PROTOCOL,
                  "in the middle of a message");
}

/* clear() closes the descriptors of an incomplete message. */
static void test_fds_of_half_a_message(Fixture *f, gconstpointer peer)
{
    Ivshmem2Msg msg = make_eventfds(1, 2);
    int event_fd = make_eventfd();
    int fds[2] = { event_fd, event_fd };

    ivshmem2_msg_encode(&msg);
    send_bytes(f->fd, &msg, 3, fds, 2);
    assert_nothing(&f->conn);
    g_assert_cmpuint(f->conn.in.n_fds, ==, 2);
    ivshmem2_close(&event_fd);
}

static void test_garbage(Fixture *f, gconstpointer peer)
{
    send_bytes(f->fd, "GET / HTTP/1.0\r\n\r\n", 18, NULL, 0);
    assert_broken(&f->conn, IVSHMEM2_ERROR_PROTOCOL, "unknown type");
}

/*
 * With a small socket buffer and a reader that only reads when the buffer is
 * full, all messages arrive in order, with their descriptors.
 */
static void test_slow_reader(Fixture *f, gconstpointer peer)
{
    const unsigned n_messages = 200;
    int event_fd = make_eventfd();
    int fds[16];
    int small = 1;
    unsigned sent = 0, received = 0, stalls = 0;
    Ivshmem2Transport reader;

    for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
        fds[i] = event_fd;
    }
    setsockopt(f->conn.fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof(small));
    ivshmem2_transport_init_consume(&reader, f->fd, IVSHMEM2_SERVER);
    f->fd = -1;
    while (received < n_messages) {
        g_autoptr(GError) error = NULL;
        int ret;

        if (ivshmem2_transport_is_sending(&f->conn)) {
            ret = ivshmem2_transport_flush(&f->conn, &error);
        } else if (sent < n_messages) {
            Ivshmem2Msg msg = make_eventfds(sent, sent % 17);

            sent++;
            ret = ivshmem2_transport_send(&f->conn, &msg, fds, &error);
        } else {
            ret = 0;
        }
        g_assert_no_error(error);
        if (ret == 0) {
            stalls++;
            assert_received(&reader, IVSHMEM2_MSG_EVENTFDS, received,
                            received % 17);
            received++;
        }
    }
    g_assert_cmpuint(stalls, >, 10);
    g_assert_false(ivshmem2_transport_is_sending(&f->conn));
    ivshmem2_transport_clear(&reader);
    ivshmem2_close(&event_fd);
}

/* A socket that takes part of a message */
static void test_partial_send(Fixture *f, gconstpointer peer)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_REFUSED },
        .refusal = { .code = 1, .text = "text" },
    };
    g_autoptr(GError) error = NULL;
    uint8_t buf[sizeof(msg)];
    uint8_t first[100];
    int ret = 1;

    /* as if sendmsg() had taken the first 100 bytes */
    f->conn.out = msg;
    f->conn.out_size = ivshmem2_msg_encode(&f->conn.out);
    memcpy(first, &f->conn.out, sizeof(first));
    f->conn.out_done = sizeof(first);
    g_assert_true(ivshmem2_transport_is_sending(&f->conn));
    ret = ivshmem2_transport_flush(&f->conn, &error);
    g_assert_no_error(error);
    g_assert_cmpint(ret, ==, 1);
    g_assert_false(ivshmem2_transport_is_sending(&f->conn));
    g_assert_cmpint(read(f->fd, buf, sizeof(buf)), ==,
                    sizeof(msg) - sizeof(first));
    g_assert_cmpmem(buf, sizeof(msg) - sizeof(first),
                    (uint8_t *)&f->conn.out + sizeof(first),
                    sizeof(msg) - sizeof(first));
}

/* An error instead of SIGPIPE */
static void test_send_to_nobody(Fixture *f, gconstpointer peer)
{
    Ivshmem2Msg msg = make_ring(1);
    g_autoptr(GError) error = NULL;

    ivshmem2_close(&f->fd);
    g_assert_cmpint(ivshmem2_transport_send(&f->conn, &msg, NULL, &error), ==,
                    -1);
    assert_error(error, IVSHMEM2_ERROR_IO, "cannot send");
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*func)(Fixture *f, gconstpointer peer);
        Ivshmem2Side peer;
    } tests[] = {
        { "glued", test_glued, IVSHMEM2_SERVER },
        { "byte-at-a-time", test_byte_at_a_time, IVSHMEM2_SERVER },
        { "fds-in-the-middle", test_fds_in_the_middle, IVSHMEM2_SERVER },
        { "too-many-fds", test_too_many_fds, IVSHMEM2_SERVER },
        { "no-room-for-fds", test_no_room_for_fds, IVSHMEM2_SERVER },
        { "closed", test_closed, IVSHMEM2_CLIENT },
        { "closed-in-the-middle", test_closed_in_the_middle,
          IVSHMEM2_CLIENT },
        { "fds-of-half-a-message", test_fds_of_half_a_message,
          IVSHMEM2_SERVER },
        { "garbage", test_garbage, IVSHMEM2_CLIENT },
        { "slow-reader", test_slow_reader, IVSHMEM2_CLIENT },
        { "partial-send", test_partial_send, IVSHMEM2_CLIENT },
        { "send-to-nobody", test_send_to_nobody, IVSHMEM2_SERVER },
    };

    g_test_init(&argc, &argv, NULL);
    for (size_t i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_autofree char *name = g_strdup_printf("/ivshmem2/transport/%s",
                                                tests[i].name);

        g_test_add(name, Fixture, GINT_TO_POINTER(tests[i].peer), setup,
                   tests[i].func, teardown);
    }
    return g_test_run();
}
