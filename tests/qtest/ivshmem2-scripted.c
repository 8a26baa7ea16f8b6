/*
 * ivshmem2 tests: a server that does one thing wrong
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "ivshmem2-scripted.h"

void test_server_wait_closed(TestServer *s, int fd)
{
    struct pollfd pfd[] = {
        { .fd = fd, .events = POLLIN },
        { .fd = s->stop_fd, .events = POLLIN },
    };
    char buf[4096];

    do {
        g_assert_cmpint(RETRY_ON_EINTR(poll(pfd, 2, -1)), >, 0);
    } while (!pfd[1].revents && read(fd, buf, sizeof(buf)) > 0);
}

/* Until everything that was sent has been read */
static void wait_read(int fd)
{
    int left;

    do {
        g_usleep(100);
        g_assert_cmpint(ioctl(fd, TIOCOUTQ, &left), ==, 0);
    } while (left);
}

static bool send_packet(TestServer *s, int fd, const TestPacket *p,
                        TestStep step)
{
    TestAction action = s->script->action;
    bool now = s->script->step == step;
    Ivshmem2Msg wire = test_packet_encode(p);
    uint8_t *bytes = (uint8_t *)&wire;

    if (now && (action == ACT_CUT_CLOSE || action == ACT_CUT_SILENCE)) {
        test_packet_send(fd, bytes, p->size / 2, p->fds, p->n_fds);
        if (action == ACT_CUT_SILENCE) {
            test_server_wait_closed(s, fd);
        }
        return false;
    }
    if (now && action == ACT_SPLIT) {
        if (!test_packet_send(fd, bytes, 5, NULL, 0)) {
            return false;
        }
        wait_read(fd);
        return test_packet_send(fd, bytes + 5, p->size - 5, p->fds, p->n_fds);
    }
    if (action == ACT_TRICKLE) {
        for (size_t i = 0; i < p->size; i++) {
            if (!test_packet_send(fd, bytes + i, 1, p->fds,
                                  i ? 0 : p->n_fds)) {
                return false;
            }
        }
        return true;
    }
    return test_packet_send(fd, bytes, p->size, p->fds, p->n_fds);
}

static void send_blocking(int fd, TestPacket *p, const char *before)
{
    Ivshmem2Msg wire = test_packet_encode(p);

    for (unsigned i = 0; i < p->n_fds; i++) {
        p->fds[i] = test_packet_blocking();
    }
    test_packet_send_last(fd, before, &wire, p->size, p->fds, p->n_fds);
}

static int make_memory(const TestCase *c)
{
    int fd = test_packet_memory(c->size, c->seals);

    return c->mode == O_RDWR ? fd : test_packet_reopen(fd, c->mode);
}

static void change_packet(const TestCase *c, TestPacket *p)
{
    switch (c->action) {
    case ACT_FIELD:
        stn_he_p((uint8_t *)p + c->offset, c->size, c->value);
        break;
    case ACT_FD:
        p->fds[c->index] = c->make_fd();
        break;
    case ACT_MEMORY:
        p->fds[c->index] = make_memory(c);
        break;
    case ACT_CALL:
        c->call(p);
        break;
    default:
        break;
    }
}

bool test_server_say(TestServer *s, int fd, TestStep step, TestPacket *p)
{
    static const char nonsense[] = "HTTP/1.1 400 Bad Request\r\n\r\n";

    test_packet_finish(p);
    if (s->script->step == step) {
        switch (s->script->action) {
        case ACT_CLOSE:
            return false;
        case ACT_SILENCE:
            test_server_wait_closed(s, fd);
            return false;
        case ACT_BYTES:
            test_packet_send(fd, nonsense, sizeof(nonsense), NULL, 0);
            test_server_wait_closed(s, fd);
            return false;
        case ACT_BLOCK:
        case ACT_BLOCK_UNREAD:
            send_blocking(fd, p, s->script->action == ACT_BLOCK ? ""
                                                                : nonsense);
            test_server_wait_closed(s, fd);
            return false;
        case ACT_ENDLESS:
            while (send_packet(s, fd, &s->last, step)) {
                continue;
            }
            return false;
        default:
            change_packet(s->script, p);
            break;
        }
    }
    s->last = *p;
    return send_packet(s, fd, p, step);
}

static bool say_welcome(TestServer *s, int fd, uint32_t id)
{
    TestPacket p = test_packet_welcome(id, s->max_peers);

    s->table = s->table ?: p.fds[0];
    return test_server_say(s, fd, STEP_WELCOME, &p);
}

static bool say_outputs(TestServer *s, int fd, uint32_t id)
{
    TestPacket p;

    if (s->max_peers != PEERS) {
        return true;
    }
    p = test_packet_outputs(id);
    return test_server_say(s, fd, STEP_OUTPUTS, &p);
}

static bool say_eventfds(TestServer *s, int fd, uint32_t id)
{
    TestPacket p = test_packet_eventfds(id);

    memcpy(s->eventfds, p.fds, sizeof(s->eventfds));
    return test_server_say(s, fd, STEP_EVENTFDS, &p);
}

/* A device that resumes ignores them. */
static bool say_other_eventfds(TestServer *s, int fd)
{
    for (uint32_t id = 1; qatomic_read(&s->push) && id < s->max_peers; id++) {
        TestPacket p = test_packet_eventfds(id);

        g_assert_cmpuint(id, <=, TEST_SERVER_OTHERS);
        s->others[id - 1] = s->others[id - 1] ?: p.fds[0];
        if (!test_server_say(s, fd, STEP_COUNT, &p)) {
            return false;
        }
    }
    return true;
}

/* Returns true if the handshake is complete. */
static bool serve(TestServer *s, int fd)
{
    TestPacket ready = { .msg.hdr.type = IVSHMEM2_MSG_READY };
    struct {
        Ivshmem2Header hdr;
        Ivshmem2Hello hello;
    } hello;
    uint32_t id;

    if (s->script->step == STEP_ACCEPT) {
        if (s->script->action == ACT_SILENCE) {
            test_server_wait_closed(s, fd);
        }
        if (s->script->action != ACT_NOTHING) {
            return false;
        }
    }
    if (recv(fd, &hello, sizeof(hello), MSG_WAITALL) != sizeof(hello)) {
        return false;
    }
    g_assert_cmpuint(le32_to_cpu(hello.hello.magic), ==, IVSHMEM2_MAGIC);
    qatomic_set(&s->resumes,
                !memcmp(hello.hello.session, TEST_PACKET_SESSION,
                        sizeof(hello.hello.session)));
    id = hello.hello.id == IVSHMEM2_ID_ANY ? 0 : le32_to_cpu(hello.hello.id);
    return say_welcome(s, fd, id) && say_outputs(s, fd, id) &&
           say_eventfds(s, fd, id) && say_other_eventfds(s, fd) &&
           test_server_say(s, fd, STEP_READY, &ready);
}

void *test_server_thread(void *opaque)
{
    TestServer *s = opaque;
    struct pollfd pfd[] = {
        { .fd = s->listen_fd, .events = POLLIN },
        { .fd = s->stop_fd, .events = POLLIN },
    };

    for (;;) {
        int fd;

        g_assert_cmpint(RETRY_ON_EINTR(poll(pfd, 2, -1)), >, 0);
        if (pfd[1].revents) {
            return NULL;
        }
        fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
        g_assert_cmpint(fd, >=, 0);
        if (serve(s, fd)) {
            if (s->keep) {
                s->fd = fd;
                return NULL;
            }
            test_server_wait_closed(s, fd);
        }
        close(fd);
    }
}

void test_server_accept(TestServer *s)
{
    s->fd = -1;
    s->thread = g_thread_new("server", test_server_thread, s);
}

TestServer *test_server_start(TestLink *link, const TestCase *script,
                              uint32_t max_peers)
{
    static const TestCase good;
    TestServer *s = g_new0(TestServer, 1);

    s->link = link;
    s->script = script ?: &good;
    s->keep = !script;
    s->max_peers = max_peers;
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    s->listen_fd = test_packet_listen(link);
    test_server_accept(s);
    return s;
}

void test_server_take(TestServer *s)
{
    g_thread_join(s->thread);
    s->thread = NULL;
    g_assert_cmpint(s->fd, >=, 0);
}

void test_server_stop(TestServer *s)
{
    ivshmem2_eventfd_signal(s->stop_fd);
    if (s->thread) {
        g_thread_join(s->thread);
    }
    test_packet_close_all();
    ivshmem2_close(&s->fd);
    close(s->stop_fd);
    close(s->listen_fd);
    g_unlink(s->link->socket);
    g_free(s);
}

void test_server_refuse(TestPacket *p)
{
    memset(&p->msg, 0, sizeof(p->msg));
    p->msg.hdr.type = IVSHMEM2_MSG_REFUSED;
    p->msg.refusal.code = IVSHMEM2_REFUSAL_FULL;
    strcpy(p->msg.refusal.text, "no room\033[31m for you\n");
    p->size = ivshmem2_type_size(IVSHMEM2_MSG_REFUSED);
    p->hdr = (Ivshmem2Header) {
        .type = IVSHMEM2_MSG_REFUSED, .size = p->size,
    };
    p->n_fds = 0;
}
