/*
 * ivshmem2 tests: hostile servers
 *
 * A scripted server does one thing wrong at a time, while a device is plugged
 * into a running VM.  That has to fail with an error that names the cause,
 * leave nothing behind, and leave the VM able to plug a good device.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "hw/pci/pci_regs.h"
#include "qemu/atomic.h"
#include "qemu/bswap.h"
#include "qemu/module.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "ivshmem2-packet.h"

#define SEALS       TEST_PACKET_SEALS
#define SLOT        TEST_PACKET_SLOT
#define PEERS       TEST_PACKET_PEERS
#define VECTORS     TEST_PACKET_VECTORS
#define SECTION     TEST_PACKET_SECTION

/*
 * The scripted server
 */

/* accept(), and the messages of a handshake */
typedef enum Step {
    STEP_ACCEPT,
    STEP_WELCOME,
    STEP_OUTPUTS,
    STEP_EVENTFDS,
    STEP_READY,
    STEP_COUNT,
} Step;

typedef enum Action {
    ACT_NOTHING,        /* a good server */
    ACT_CLOSE,
    ACT_SILENCE,
    ACT_CUT_CLOSE,      /* close in the middle of the message */
    ACT_CUT_SILENCE,
    ACT_FIELD,          /* give a field of the message another value */
    ACT_FD,             /* put another descriptor in its place */
    ACT_MEMORY,         /* the same, with other memory */
    ACT_CALL,           /* call a function that changes the message */
    ACT_BYTES,          /* send no ivshmem2 message */
    ACT_SPLIT,          /* descriptors come with the second half */
    ACT_TRICKLE,        /* all messages, byte by byte */
    ACT_ENDLESS,        /* the message before this one, again and again */
} Action;

typedef struct Case {
    const char *name;
    Step step;
    Action action;
    size_t offset;              /* ACT_FIELD: of the field in a TestPacket */
    uint64_t size;              /* of the field, or of the memory */
    uint64_t value;             /* ACT_FIELD */
    unsigned index;             /* ACT_FD, ACT_MEMORY: of the descriptor */
    int (*make_fd)(void);       /* ACT_FD */
    int seals;                  /* ACT_MEMORY */
    int mode;                   /* ACT_MEMORY: O_RDWR, O_RDONLY, O_WRONLY */
    void (*call)(TestPacket *p);    /* ACT_CALL */
    const char *error;          /* words of the device's error */
    const char *peer_id;
} Case;

typedef struct Server {
    TestLink *link;
    const Case *script;
    uint32_t max_peers;
    bool keep;                  /* keep the connection, once it is ready */
    bool resumes;               /* the last HELLO had our session */
    int listen_fd;
    int stop_fd;                /* eventfd */
    int fd;                     /* the connection that is ready */
    int eventfds[VECTORS];
    TestPacket last;
    GThread *thread;
} Server;

/* Until the device hangs up, or the test is over */
static void wait_closed(Server *s, int fd)
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

static bool send_packet(Server *s, int fd, const TestPacket *p, Step step)
{
    Action action = s->script->action;
    bool now = s->script->step == step;
    Ivshmem2Msg wire = test_packet_encode(p);
    uint8_t *bytes = (uint8_t *)&wire;

    if (now && (action == ACT_CUT_CLOSE || action == ACT_CUT_SILENCE)) {
        test_packet_send(fd, bytes, p->size / 2, p->fds, p->n_fds);
        if (action == ACT_CUT_SILENCE) {
            wait_closed(s, fd);
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

static int make_memory(const Case *c)
{
    int fd = test_packet_memory(c->size, c->seals);

    return c->mode == O_RDWR ? fd : test_packet_reopen(fd, c->mode);
}

static void change_packet(const Case *c, TestPacket *p)
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

/* Returns false if this ends the connection. */
static bool say(Server *s, int fd, Step step, TestPacket *p)
{
    static const char nonsense[] = "HTTP/1.1 400 Bad Request\r\n\r\n";

    test_packet_finish(p);
    if (s->script->step == step) {
        switch (s->script->action) {
        case ACT_CLOSE:
            return false;
        case ACT_SILENCE:
            wait_closed(s, fd);
            return false;
        case ACT_BYTES:
            test_packet_send(fd, nonsense, sizeof(nonsense), NULL, 0);
            wait_closed(s, fd);
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

static bool say_welcome(Server *s, int fd, uint32_t id)
{
    TestPacket p = test_packet_welcome(id, s->max_peers);

    return say(s, fd, STEP_WELCOME, &p);
}

static bool say_outputs(Server *s, int fd, uint32_t id)
{
    TestPacket p;

    if (s->max_peers != PEERS) {
        return true;
    }
    p = test_packet_outputs(id);
    return say(s, fd, STEP_OUTPUTS, &p);
}

static bool say_eventfds(Server *s, int fd, uint32_t id)
{
    TestPacket p = test_packet_eventfds(id);

    memcpy(s->eventfds, p.fds, sizeof(s->eventfds));
    return say(s, fd, STEP_EVENTFDS, &p);
}

/* Returns true if the handshake is complete. */
static bool serve(Server *s, int fd)
{
    TestPacket ready = { .msg.hdr.type = IVSHMEM2_MSG_READY };
    struct {
        Ivshmem2Header hdr;
        Ivshmem2Hello hello;
    } hello;
    uint32_t id;

    if (s->script->step == STEP_ACCEPT) {
        if (s->script->action == ACT_SILENCE) {
            wait_closed(s, fd);
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
           say_eventfds(s, fd, id) && say(s, fd, STEP_READY, &ready);
}

static void *server_thread(void *opaque)
{
    Server *s = opaque;
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
            wait_closed(s, fd);
        }
        close(fd);
    }
}

static void server_accept(Server *s)
{
    s->fd = -1;
    s->thread = g_thread_new("server", server_thread, s);
}

static Server *server_start(TestLink *link, const Case *script,
                            uint32_t max_peers)
{
    static const Case good;
    Server *s = g_new0(Server, 1);

    s->link = link;
    s->script = script ?: &good;
    s->keep = !script;
    s->max_peers = max_peers;
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    s->listen_fd = test_packet_listen(link);
    server_accept(s);
    return s;
}

/* Wait for a complete handshake; from then on, the test is the server. */
static void server_take(Server *s)
{
    g_thread_join(s->thread);
    s->thread = NULL;
    g_assert_cmpint(s->fd, >=, 0);
}

static void server_stop(Server *s)
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

/*
 * Plugging
 */

static void plug_badly(QPCIBus *bus, TestLink *link, const Case *script,
                       int timeout_ms, unsigned fds)
{
    Server *server = server_start(link, script, PEERS);
    g_autofree char *error =
        test_link_plug(bus->qts, "bad", link->socket, 0,
                       test_packet_props(script->peer_id, timeout_ms));

    g_test_message("%s, step %d, action %d: %s", script->name ?: "",
                   script->step, script->action, error ?: "plugged");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, script->error));
    server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

/* Each step of the handshake, with the same action */
static void plug_at_each_step(QPCIBus *bus, TestLink *link,
                              QGuestAllocator *alloc, Step first,
                              Action action, int timeout_ms,
                              const char *error)
{
    unsigned fds = test_link_count_fds(bus->qts);

    for (Step step = first; step < STEP_COUNT; step++) {
        Case script = { .step = step, .action = action, .error = error };

        plug_badly(bus, link, &script, timeout_ms, fds);
    }
    test_packet_plug_well(bus, link, alloc, fds);
}

static void test_close(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_ACCEPT, ACT_CLOSE, 60000,
                      "the server closed the connection");
}

static void test_cut(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_WELCOME, ACT_CUT_CLOSE, 60000,
                      "the server closed the connection");
}

static void test_garbage(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_WELCOME, ACT_BYTES, 60000,
                      "is it an ivshmem2 server?");
}

static void test_silence(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_ACCEPT, ACT_SILENCE, 200,
                      "not complete in time");
}

static void test_half_silence(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_WELCOME, ACT_CUT_SILENCE, 200,
                      "not complete in time");
}

/* A server that sends the last message again and again, without a pause */
static void test_endless(void *obj, void *link, QGuestAllocator *alloc)
{
    static const Case script = {
        .step = STEP_READY, .action = ACT_ENDLESS,
        .error = "not complete in time",
    };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);

    plug_badly(bus, link, &script, 500, fds);
    test_packet_plug_well(bus, link, alloc, fds);
}

/*
 * Messages that are wrong
 */

static void change_type_error(TestPacket *p)
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

/* The text is not terminated. */
static void change_type_long_error(TestPacket *p)
{
    change_type_error(p);
    memset(p->msg.refusal.text, 'x', sizeof(p->msg.refusal.text));
}

static void change_type_ready(TestPacket *p)
{
    p->msg.hdr.type = IVSHMEM2_MSG_READY;
    p->hdr = (Ivshmem2Header) { .type = IVSHMEM2_MSG_READY, .size = 8 };
    p->size = 8;
    p->n_fds = 0;
}

static void change_fds_0(TestPacket *p)
{
    p->hdr.fds = 0;
    p->n_fds = 0;
}

static void change_fds_surplus(TestPacket *p)
{
    p->fds[p->n_fds++] = p->fds[0];
}

static void change_fds_announced_surplus(TestPacket *p)
{
    change_fds_surplus(p);
    p->hdr.fds++;
}

static void change_fds_32(TestPacket *p)
{
    while (p->n_fds < 32) {
        p->fds[p->n_fds++] = p->fds[0];
    }
}

/* Descriptors that are no memory files */

static int make_null(void)
{
    return test_packet_keep(open("/dev/null", O_RDWR | O_CLOEXEC));
}

static int make_file(void)
{
    g_autofree char *path = NULL;
    int fd = test_packet_keep(g_file_open_tmp("iv2-XXXXXX", &path, NULL));

    g_unlink(path);
    g_assert_cmpint(ftruncate(fd, SECTION), ==, 0);
    return fd;
}

/*
 * A case: the message of @step is sent with a change, and the device's error
 * says @words.  A change is one of those below, or another action.
 */
#define CASE(step_, what, change, words, ...)                           \
    { .name = #step_ " " #what, .step = STEP_ ## step_, change,         \
      .error = words, ## __VA_ARGS__ }

#define FIELD(field, number)                                            \
    .action = ACT_FIELD, .offset = offsetof(TestPacket, field),         \
    .size = sizeof_field(TestPacket, field), .value = number

#define FD(i, function)                                                 \
    .action = ACT_FD, .index = i, .make_fd = function

#define MEMORY(i, bytes, memory_seals, access_mode)                     \
    .action = ACT_MEMORY, .index = i, .size = bytes,                    \
    .seals = memory_seals, .mode = access_mode

#define CALL(function)                                                  \
    .action = ACT_CALL, .call = function

static const Case header_cases[] = {
    CASE(WELCOME, type_unknown, FIELD(hdr.type, 0x7777), "unknown type 0x7777"),
    CASE(WELCOME, type_mine, FIELD(hdr.type, IVSHMEM2_MSG_RING),
         "server sent RING, which is not its to send"),
    CASE(WELCOME, type_ready, CALL(change_type_ready),
         "READY came out of order"),
    CASE(WELCOME, size_0, FIELD(hdr.size, 0),
         "WELCOME with size 0 instead of 72"),
    CASE(WELCOME, size_8, FIELD(hdr.size, 8),
         "WELCOME with size 8 instead of 72"),
    CASE(WELCOME, size_more, FIELD(hdr.size, 73),
         "WELCOME with size 73 instead of 72"),
    CASE(WELCOME, size_huge, FIELD(hdr.size, 0xfffffff8),
         "WELCOME with size 4294967288 instead of 72"),
    CASE(OUTPUTS, type_unknown, FIELD(hdr.type, 0x7777), "unknown type 0x7777"),
    CASE(OUTPUTS, type_ready, CALL(change_type_ready),
         "READY came out of order"),
    CASE(OUTPUTS, size_huge, FIELD(hdr.size, 0xfffffff8),
         "OUTPUTS with size 4294967288 instead of 16"),
    CASE(EVENTFDS, type_unknown, FIELD(hdr.type, 0x7777),
         "unknown type 0x7777"),
    CASE(EVENTFDS, type_outputs, FIELD(hdr.type, IVSHMEM2_MSG_OUTPUTS),
         "OUTPUTS came out of order"),
    CASE(EVENTFDS, type_ready, CALL(change_type_ready),
         "READY came before all 2 eventfds"),
    CASE(EVENTFDS, size_0, FIELD(hdr.size, 0),
         "EVENTFDS with size 0 instead of 16"),
    CASE(READY, type_unknown, FIELD(hdr.type, 0x7777), "unknown type 0x7777"),
    CASE(READY, type_outputs, FIELD(hdr.type, IVSHMEM2_MSG_OUTPUTS),
         "OUTPUTS with size 8 instead of 16"),
    CASE(READY, size_more, FIELD(hdr.size, 9),
         "READY with size 9 instead of 8"),
};

static const Case refusal_cases[] = {
    CASE(WELCOME, type_error, CALL(change_type_error),
         "the server says: no room?[31m for you?"),
    CASE(OUTPUTS, type_error, CALL(change_type_error),
         "the server says: no room?[31m for you?"),
    CASE(EVENTFDS, type_error, CALL(change_type_error),
         "the server says: no room?[31m for you?"),
    CASE(READY, type_error, CALL(change_type_error),
         "the server says: no room?[31m for you?"),
    CASE(WELCOME, type_long_error, CALL(change_type_long_error),
         "the server says: xxxxxx"),
};

static const Case welcome_cases[] = {
    CASE(WELCOME, version_0, FIELD(msg.welcome.version, 0), "version 0"),
    CASE(WELCOME, version_2, FIELD(msg.welcome.version, 2), "version 2"),
    CASE(WELCOME, peers_1, FIELD(msg.welcome.max_peers, 1),
         "the link has 1 peers"),
    CASE(WELCOME, peers_65537, FIELD(msg.welcome.max_peers, 65537),
         "the link has 65537 peers"),
    CASE(WELCOME, peers_max, FIELD(msg.welcome.max_peers, UINT32_MAX),
         "the link has 4294967295 peers"),
    CASE(WELCOME, peers_2048, FIELD(msg.welcome.max_peers, 2048),
         "too small for 2048 peers"),
    CASE(WELCOME, id_2, FIELD(msg.welcome.id, 2), "ID 2 is out of range"),
    CASE(WELCOME, id_max, FIELD(msg.welcome.id, UINT32_MAX),
         "ID 4294967295 is out of range"),
    CASE(WELCOME, another_id, FIELD(msg.welcome.id, 0),
         "the server gave us ID 0 instead of 1", .peer_id = "1"),
    CASE(WELCOME, features_0, FIELD(msg.welcome.features, 0),
         "interrupt features 0x0"),
    CASE(WELCOME, features_both,
         FIELD(msg.welcome.features, IVSHMEM2_F_INTERRUPTS),
         "interrupt features 0x3"),
    CASE(WELCOME, features_intx, FIELD(msg.welcome.features, IVSHMEM2_F_INTX),
         "2 vectors are not possible"),
    CASE(WELCOME, vectors_0, FIELD(msg.welcome.vectors, 0),
         "0 vectors are not possible"),
    CASE(WELCOME, vectors_2049, FIELD(msg.welcome.vectors, 2049),
         "2049 vectors are not possible"),
    CASE(WELCOME, page_0, FIELD(msg.welcome.page_size, 0), "page size 0"),
    CASE(WELCOME, page_2k, FIELD(msg.welcome.page_size, 2 * KiB),
         "page size 2048"),
    CASE(WELCOME, page_odd, FIELD(msg.welcome.page_size, 4097),
         "page size 4097"),
    CASE(WELCOME, page_128k, FIELD(msg.welcome.page_size, 128 * KiB),
         "page size 131072"),
    CASE(WELCOME, table_0, FIELD(msg.welcome.state_table_size, 0),
         "State Table of 0 bytes"),
    CASE(WELCOME, table_odd, FIELD(msg.welcome.state_table_size, SECTION + 8),
         "not multiples of the link's page size"),
    CASE(WELCOME, rw_odd, FIELD(msg.welcome.rw_size, SECTION + 1),
         "not multiples of the link's page size"),
    CASE(WELCOME, rw_max, FIELD(msg.welcome.rw_size, -SECTION),
         "the sections are larger than"),
    CASE(WELCOME, output_max, FIELD(msg.welcome.output_size, UINT64_C(1) << 63),
         "the sections are larger than"),
};

static const Case descriptor_cases[] = {
    CASE(WELCOME, fds_0, CALL(change_fds_0), "announced 0 descriptors"),
    CASE(WELCOME, fds_17, FIELD(hdr.fds, 17), "announced 17 descriptors"),
    CASE(WELCOME, fds_none_came, FIELD(n_fds, 0), "came with 0 descriptors"),
    CASE(WELCOME, fds_missing, FIELD(n_fds, 1), "came with 1 descriptors"),
    CASE(WELCOME, fds_surplus, CALL(change_fds_surplus),
         "came with 3 descriptors"),
    CASE(WELCOME, fds_announced_surplus, CALL(change_fds_announced_surplus),
         "announced 3 descriptors"),
    CASE(WELCOME, fds_32, CALL(change_fds_32), "WELCOME"),
    CASE(WELCOME, rw_0, FIELD(msg.welcome.rw_size, 0),
         "came with 2 descriptors instead of 1"),
    CASE(WELCOME, fd0_pipe, FD(0, test_packet_pipe),
         "State Table is not a memory file"),
    CASE(WELCOME, fd0_null, FD(0, make_null),
         "State Table is not a memory file"),
    CASE(WELCOME, fd0_file, FD(0, make_file), "State Table"),
    CASE(WELCOME, fd0_eventfd, FD(0, test_packet_eventfd),
         "State Table is not a memory file"),
    CASE(WELCOME, fd0_unsealed, MEMORY(0, SECTION, 0, O_RDWR),
         "State Table is not sealed"),
    CASE(WELCOME, fd0_may_shrink, MEMORY(0, SECTION, F_SEAL_GROW, O_RDWR),
         "State Table is not sealed"),
    CASE(WELCOME, fd0_may_grow, MEMORY(0, SECTION, F_SEAL_SHRINK, O_RDWR),
         "State Table is not sealed"),
    CASE(WELCOME, fd0_small, MEMORY(0, SECTION - 1, SEALS, O_RDWR),
         "State Table has 4095 bytes, too small"),
    CASE(WELCOME, table_large, FIELD(msg.welcome.state_table_size, 8 * KiB),
         "State Table has 4096 bytes, too small"),
    CASE(WELCOME, fd0_read_only, MEMORY(0, SECTION, SEALS, O_RDONLY),
         "State Table is not open for reading and writing"),
    CASE(WELCOME, fd1_pipe, FD(1, test_packet_pipe),
         "R/W section is not a memory file"),
    CASE(WELCOME, fd1_unsealed, MEMORY(1, SECTION, 0, O_RDWR),
         "R/W section is not sealed"),
    CASE(WELCOME, fd1_small, MEMORY(1, 0, SEALS, O_RDWR),
         "R/W section has 0 bytes, too small"),
    CASE(WELCOME, rw_large, FIELD(msg.welcome.rw_size, 1 * GiB),
         "R/W section has 4096 bytes, too small"),
    CASE(WELCOME, fd1_read_only, MEMORY(1, SECTION, SEALS, O_RDONLY),
         "R/W section is not open for reading and writing"),
    CASE(OUTPUTS, fds_0, CALL(change_fds_0), "announced 0 descriptors"),
    CASE(OUTPUTS, fds_missing, FIELD(n_fds, 1), "came with 1 descriptors"),
    CASE(OUTPUTS, fds_surplus, CALL(change_fds_surplus),
         "came with 3 descriptors"),
    CASE(OUTPUTS, fds_announced_surplus, CALL(change_fds_announced_surplus),
         "OUTPUTS is about sections 0 to 2"),
    CASE(OUTPUTS, first_1, FIELD(msg.outputs.first, 1),
         "OUTPUTS is about sections 1 to 2"),
    CASE(OUTPUTS, first_max, FIELD(msg.outputs.first, UINT32_MAX),
         "OUTPUTS is about sections"),
    CASE(OUTPUTS, fd0_pipe, FD(0, test_packet_pipe),
         "output section 0 is not a memory file"),
    CASE(OUTPUTS, fd0_unsealed, MEMORY(0, SECTION, 0, O_RDWR),
         "output section 0 is not sealed"),
    CASE(OUTPUTS, fd0_small, MEMORY(0, SECTION - 1, SEALS, O_RDWR),
         "output section 0 has 4095 bytes, too small"),
    CASE(OUTPUTS, fd0_read_only, MEMORY(0, SECTION, SEALS, O_RDONLY),
         "output section 0 is not open for reading and writing"),
    CASE(OUTPUTS, fd0_write_only, MEMORY(0, SECTION, SEALS, O_WRONLY),
         "output section 0 is not open for reading and writing"),
    CASE(OUTPUTS, fd1_unsealed, MEMORY(1, SECTION, 0, O_RDWR),
         "output section 1 is not sealed"),
    CASE(OUTPUTS, fd1_small, MEMORY(1, 0, SEALS, O_RDWR),
         "output section 1 has 0 bytes, too small"),
    CASE(WELCOME, output_large, FIELD(msg.welcome.output_size, 8 * KiB),
         "output section 0 has 4096 bytes"),
    CASE(EVENTFDS, fds_0, CALL(change_fds_0), "our own are missing from 0 on"),
    CASE(EVENTFDS, fds_none_came, FIELD(n_fds, 0), "came with 0 descriptors"),
    CASE(EVENTFDS, fds_missing, FIELD(n_fds, 1), "came with 1 descriptors"),
    CASE(EVENTFDS, fds_surplus, CALL(change_fds_surplus),
         "came with 3 descriptors"),
    CASE(EVENTFDS, fds_announced_surplus, CALL(change_fds_announced_surplus),
         "the link has 2 peers with 2"),
    CASE(EVENTFDS, fds_32, CALL(change_fds_32), "EVENTFDS"),
    CASE(EVENTFDS, eventfds_first_1, FIELD(msg.eventfds.first, 1),
         "EVENTFDS is about peer 0"),
    CASE(EVENTFDS, eventfds_first_max, FIELD(msg.eventfds.first, UINT32_MAX),
         "EVENTFDS is about peer 0"),
    CASE(EVENTFDS, eventfds_id_1, FIELD(msg.eventfds.id, 1),
         "EVENTFDS is about peer 1"),
    CASE(EVENTFDS, eventfds_id_2, FIELD(msg.eventfds.id, 2),
         "EVENTFDS is about peer 2"),
    CASE(EVENTFDS, fd0_pipe, FD(0, test_packet_pipe), "not an eventfd"),
    CASE(EVENTFDS, fd0_memory, MEMORY(0, SECTION, SEALS, O_RDWR),
         "not an eventfd"),
    CASE(EVENTFDS, fd0_null, FD(0, make_null), "not an eventfd"),
    CASE(EVENTFDS, fd1_unsealed, MEMORY(1, SECTION, 0, O_RDWR),
         "not an eventfd"),
    CASE(READY, fds_surplus, CALL(change_fds_surplus),
         "READY came with 1 descriptors"),
    CASE(WELCOME, split, .action = ACT_SPLIT,
         "descriptors came in the middle of a message"),
    CASE(EVENTFDS, split, .action = ACT_SPLIT,
         "descriptors came in the middle of a message"),
};

static void plug_cases(QPCIBus *bus, TestLink *link, QGuestAllocator *alloc,
                       const Case *cases, int n)
{
    unsigned fds = test_link_count_fds(bus->qts);

    for (int i = 0; i < n; i++) {
        plug_badly(bus, link, &cases[i], 60000, fds);
    }
    test_packet_plug_well(bus, link, alloc, fds);
}

static void test_headers(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, header_cases, ARRAY_SIZE(header_cases));
}

static void test_refusals(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, refusal_cases, ARRAY_SIZE(refusal_cases));
}

static void test_welcome(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, welcome_cases, ARRAY_SIZE(welcome_cases));
}

static void test_descriptors(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, descriptor_cases,
               ARRAY_SIZE(descriptor_cases));
}

/* The server of ivshmem version 1 begins with three numbers of 64 bits. */
static void change_version_1(TestPacket *p)
{
    memset(&p->msg, 0, sizeof(p->msg));
    p->msg.hdr.type = IVSHMEM2_MSG_WELCOME;
    p->hdr = (Ivshmem2Header) {};
    p->fds[0] = test_packet_memory(4 * MiB, 0);
    p->n_fds = 1;
    p->size = 24;
}

static void test_version_1(void *obj, void *link, QGuestAllocator *alloc)
{
    static const Case script = CASE(WELCOME, version_1, CALL(change_version_1),
                                    "this is an ivshmem version-1 server");

    plug_cases(obj, link, alloc, &script, 1);
}

/* A slow server is accepted, as long as the handshake is complete in time. */
static void test_trickle(void *obj, void *link, QGuestAllocator *alloc)
{
    static const Case script = { .action = ACT_TRICKLE, .step = STEP_COUNT };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    Server *server = server_start(link, &script, PEERS);

    g_assert_null(test_link_plug(bus->qts, "slow",
                                 ((TestLink *)link)->socket, 0,
                                 test_packet_props(NULL, 60000)));
    g_assert_true(test_link_get_bool(bus->qts, "slow", "connected"));
    test_link_unplug(bus->qts, "slow", SLOT);
    server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

/*
 * Chardevs
 */

static void expect_device_error(QTestState *qts, const char *chardev,
                                const char *wanted)
{
    QDict *args = test_packet_props(NULL, 300);
    QDict *error;

    qdict_put_str(args, "driver", "ivshmem2");
    if (chardev) {
        qdict_put_str(args, "chardev", chardev);
    }
    error = qtest_qmp_assert_failure_ref(qts, "{ 'execute': 'device_add',"
                                         "  'arguments': %p }", args);
    g_test_message("%s", qdict_get_str(error, "desc"));
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"), wanted));
    qobject_unref(error);
}

static void test_chardevs(void *obj, void *opaque, QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    QTestState *qts = bus->qts;
    unsigned fds = test_link_count_fds(qts);
    struct sockaddr_in addr = { .sin_family = AF_INET };
    socklen_t len = sizeof(addr);
    g_autofree char *port = NULL;
    int tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    expect_device_error(qts, NULL, "You must specify a 'chardev'");
    expect_device_error(qts, "absent", "absent");

    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'null',"
        "  'backend': { 'type': 'null', 'data': {} } } }");
    expect_device_error(qts, "null", "'null' is not a unix socket");
    test_link_remove_chardev(qts, "null");

    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'ring',"
        "  'backend': { 'type': 'ringbuf', 'data': {} } } }");
    expect_device_error(qts, "ring", "'ring' is not a unix socket");
    test_link_remove_chardev(qts, "ring");

    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'listens',"
        "  'backend': { 'type': 'socket', 'data': { 'server': true,"
        "  'wait': false, 'addr': { 'type': 'unix',"
        "  'data': { 'path': %s } } } } } }", link->socket);
    expect_device_error(qts, "listens", "chardev 'listens' listens");
    test_link_remove_chardev(qts, "listens");

    g_assert_cmpint(bind(tcp, (struct sockaddr *)&addr, len), ==, 0);
    g_assert_cmpint(listen(tcp, 1), ==, 0);
    g_assert_cmpint(getsockname(tcp, (struct sockaddr *)&addr, &len), ==, 0);
    port = g_strdup_printf("%u", ntohs(addr.sin_port));
    qtest_qmp_assert_success(qts,
        "{ 'execute': 'chardev-add', 'arguments': { 'id': 'tcp',"
        "  'backend': { 'type': 'socket', 'data': { 'server': false,"
        "  'addr': { 'type': 'inet', 'data': { 'host': '127.0.0.1',"
        "  'port': %s } } } } } }", port);
    expect_device_error(qts, "tcp", "'tcp' is not a unix socket");
    test_link_remove_chardev(qts, "tcp");
    close(tcp);

    /* a second device on one chardev */
    test_link_start_server(link, "--max-peers 2");
    g_assert_null(test_link_plug(qts, "first", link->socket, 0,
                                 qdict_from_jsonf_nofail("{'addr':'06.0'}")));
    expect_device_error(qts, "first", "first");
    test_link_unplug(qts, "first", 6);
    test_link_kill_server(link, SIGTERM);
    test_packet_plug_well(bus, link, alloc, fds);
}

/* With reconnect-ms, the device waits until its handshake timeout. */
static void test_reconnect_absent(void *obj, void *opaque,
                                  QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);

    for (int i = 0; i < 3; i++) {
        test_link_plug_fails(bus->qts, "early", link->socket, 20,
                             test_packet_props(NULL, 200),
                             "no connection with the ivshmem2-server");
        test_link_wait_fds(bus->qts, fds);
    }
    test_packet_plug_well(bus, link, alloc, fds);
}

static void test_reconnect_late(void *obj, void *opaque,
                                QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QDict *response;

    test_link_add_chardev(bus->qts, "early", link->socket, 20);
    qtest_qmp_send(bus->qts,
                   "{ 'execute': 'device_add', 'arguments': {"
                   "  'driver': 'ivshmem2', 'id': 'early',"
                   "  'chardev': 'early', 'addr': '05.0',"
                   "  'handshake-timeout-ms': 60000 } }");
    test_link_start_server(link, "--max-peers 2");
    response = qtest_qmp_receive(bus->qts);
    g_assert(qdict_haskey(response, "return"));
    qobject_unref(response);
    g_assert_true(test_link_get_bool(bus->qts, "early", "connected"));
    test_link_unplug(bus->qts, "early", SLOT);
    test_link_kill_server(link, SIGTERM);
    test_link_wait_fds(bus->qts, fds);
}

/*
 * Servers that fail after the handshake
 */

static Server *plug_scripted(QPCIBus *bus, TestLink *link, QIvshmem2 *d,
                             QGuestAllocator *alloc, uint32_t max_peers,
                             int reconnect_ms)
{
    Server *server = server_start(link, NULL, max_peers);

    g_assert_null(test_link_plug(bus->qts, "late", link->socket, reconnect_ms,
                                 test_packet_props(NULL, 60000)));
    server_take(server);
    qivshmem2_init(d, bus, QPCI_DEVFN(SLOT, 0), alloc);
    qivshmem2_start(d);
    qivshmem2_enable(d);
    return server;
}

static void wait_connected(QIvshmem2 *d, bool connected)
{
    test_link_wait_until(test_link_get_bool(d->qts, "late", "connected") ==
                         connected);
}

/* The device works without the server. */
static void check_alone(QIvshmem2 *d, int eventfd)
{
    for (uint32_t i = 1; i < 20; i++) {
        qivshmem2_set_state(d, i);
        g_assert_cmphex(qivshmem2_entry(d, 0), ==, i);
        qivshmem2_ring(d, 0, 1);
        qivshmem2_wait(d, 1);
        qivshmem2_ring(d, 1, 1);
        /* other peers still have its eventfds */
        ivshmem2_eventfd_signal(eventfd);
        qivshmem2_wait(d, 0);
    }
}

static void test_late(QPCIBus *bus, TestLink *link, QGuestAllocator *alloc,
                      void (*act)(Server *server))
{
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    Server *server = plug_scripted(bus, link, &d, alloc, PEERS, 0);

    act(server);
    wait_connected(&d, false);
    check_alone(&d, server->eventfds[0]);
    test_link_unplug(bus->qts, "late", SLOT);
    server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

static void late_close(Server *server)
{
    ivshmem2_close(&server->fd);
}

static void late_garbage(Server *server)
{
    g_autofree uint8_t *noise = g_malloc(64 * KiB);

    for (int i = 0; i < 64 * KiB; i++) {
        noise[i] = g_test_rand_int();
    }
    send(server->fd, noise, 64 * KiB, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void late_message(Server *server, TestPacket *p)
{
    static const Case good = { .step = STEP_COUNT };

    server->script = &good;
    /* repeated, as long as the device accepts them */
    for (int i = 0; i < 100 && say(server, server->fd, STEP_READY, p); i++) {
        continue;
    }
}

static void late_welcome(Server *server)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_WELCOME,
        .fds = {
            test_packet_memory(SECTION, SEALS),
            test_packet_memory(SECTION, SEALS),
        },
        .n_fds = 2,
    };

    late_message(server, &p);
}

static void late_eventfds(Server *server)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_EVENTFDS,
        .msg.eventfds.id = 1,
        .n_fds = 1,
        .fds = { server->eventfds[0] },
    };

    late_message(server, &p);
}

static void late_error(Server *server)
{
    TestPacket p = {
        .msg.hdr.type = IVSHMEM2_MSG_REFUSED,
        .msg.refusal.text = "enough of you",
    };

    late_message(server, &p);
}

static void test_late_close(void *obj, void *link, QGuestAllocator *alloc)
{
    test_late(obj, link, alloc, late_close);
}

static void test_late_garbage(void *obj, void *link, QGuestAllocator *alloc)
{
    test_late(obj, link, alloc, late_garbage);
}

static void test_late_message(void *obj, void *link, QGuestAllocator *alloc)
{
    test_late(obj, link, alloc, late_welcome);
    test_late(obj, link, alloc, late_eventfds);
    test_late(obj, link, alloc, late_error);
}

/*
 * With reconnect-ms, the device connects again and resumes its session.  It
 * keeps its memory and eventfds, and rejects a server that offers others.
 */
static void test_late_resume(void *obj, void *link, QGuestAllocator *alloc)
{
    static const Case good = { .step = STEP_COUNT };
    static const Case other[] = {
        CASE(WELCOME, id_1, FIELD(msg.welcome.id, 1), NULL),
        CASE(WELCOME, rw_large, FIELD(msg.welcome.rw_size, 1 * GiB), NULL),
        CASE(WELCOME, type_error, CALL(change_type_error), NULL),
        CASE(EVENTFDS, fd0_pipe, FD(0, test_packet_pipe), NULL),
        CASE(READY, nonsense, .action = ACT_BYTES, NULL),
    };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    Server *server = plug_scripted(bus, link, &d, alloc, PEERS, 10);
    int eventfd = server->eventfds[0];

    g_assert_false(server->resumes);
    qivshmem2_set_state(&d, 7);
    for (int i = 0; i < ARRAY_SIZE(other); i++) {
        ivshmem2_close(&server->fd);
        wait_connected(&d, false);
        server->script = &other[i];
        server->resumes = false;
        server_accept(server);
        test_link_wait_until(qatomic_read(&server->resumes));
        check_alone(&d, eventfd);
        ivshmem2_eventfd_signal(server->stop_fd);
        g_thread_join(server->thread);
        server->thread = NULL;
        ivshmem2_eventfd_drain(server->stop_fd);

        server->script = &good;
        server_accept(server);
        server_take(server);
        g_assert_true(server->resumes);
        wait_connected(&d, true);
        check_alone(&d, eventfd);
        g_assert_cmphex(qivshmem2_id(&d), ==, 0);
    }
    test_link_unplug(bus->qts, "late", SLOT);
    server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

static uint64_t memory_used(QTestState *qts)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/statm",
                                            (int)qtest_pid(qts));
    g_autofree char *text = NULL;
    unsigned long pages;

    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_cmpint(sscanf(text, "%*u %lu", &pages), ==, 1);
    return pages * qemu_real_host_page_size();
}

static void flood(QIvshmem2 *d, int n)
{
    for (int i = 0; i < n; i++) {
        qivshmem2_set_state(d, i + 1);
        qivshmem2_ring(d, 1 + i % 65535, i % VECTORS);
    }
}

/*
 * A server that no longer reads, on a link so large that the device has to
 * ask it for each doorbell: the guest goes on, and QEMU does not grow.
 */
static void test_late_deaf(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    Server *server = plug_scripted(bus, link, &d, alloc, 65536, 0);
    int64_t start, middle, end;

    flood(&d, 5000);
    /* what so many writes take anyway, e.g. with an address sanitizer */
    start = memory_used(bus->qts);
    for (int i = 0; i < 2 * 20000; i++) {
        qivshmem2_enable(&d);
    }
    middle = memory_used(bus->qts);
    flood(&d, 20000);
    end = memory_used(bus->qts);
    g_assert_cmpint(end - middle, <, middle - start + 4 * MiB);
    g_assert_cmphex(qivshmem2_entry(&d, 0), ==, 20000);
    g_assert_true(test_link_get_bool(bus->qts, "late", "connected"));
    qivshmem2_ring(&d, 0, 1);
    qivshmem2_wait(&d, 1);
    ivshmem2_eventfd_signal(server->eventfds[0]);
    qivshmem2_wait(&d, 0);

    /* unplugging does not wait for the server either */
    test_link_unplug(bus->qts, "late", SLOT);
    server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

/*
 * Servers that make the device wait.  QMP, and with it the guest, waits as long
 * as device_add; the bound is far below the 5 s of a machine that starts.
 */
#define PAUSE_US    (2 * G_USEC_PER_SEC)

static char *plug_hastily(QPCIBus *bus, const char *socket, int reconnect_ms)
{
    gint64 start;
    QDict *response;
    char *error;

    test_link_add_chardev(bus->qts, "hasty", socket, reconnect_ms);
    start = g_get_monotonic_time();
    response = qtest_qmp(bus->qts, "{ 'execute': 'device_add', 'arguments': {"
                         " 'driver': 'ivshmem2', 'id': 'hasty',"
                         " 'chardev': 'hasty' } }");
    g_assert_cmpint(g_get_monotonic_time() - start, <, PAUSE_US);
    g_assert_true(qdict_haskey(response, "error"));
    error = g_strdup(qdict_get_str(qdict_get_qdict(response, "error"),
                                   "desc"));
    qobject_unref(response);
    g_test_message("%s", error);
    return error;
}

static void test_hasty_silence(void *obj, void *link, QGuestAllocator *alloc)
{
    static const Case script = { .step = STEP_ACCEPT, .action = ACT_SILENCE };
    QPCIBus *bus = obj;
    Server *server = server_start(link, &script, PEERS);
    g_autofree char *error =
        plug_hastily(bus, ((TestLink *)link)->socket, 0);

    g_assert_nonnull(strstr(error, "not complete in time"));
    test_link_remove_chardev(bus->qts, "hasty");
    server_stop(server);
}

static void test_hasty_absent(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    g_autofree char *error =
        plug_hastily(bus, ((TestLink *)link)->socket, 60000);

    g_assert_nonnull(strstr(error, "No such file"));
    test_link_remove_chardev(bus->qts, "hasty");
}

/* Connect until @path's server has no room; returns how often that worked. */
static int fill_backlog(const char *path, int *fds, int max)
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

/* The chardev's own thread waits in connect(); the device must not. */
static void test_hasty_backlog(void *obj, void *opaque,
                               QGuestAllocator *alloc)
{
    TestLink *link = opaque;
    QPCIBus *bus = obj;
    int listener = test_packet_listen(link);
    int fds[256];
    int n = fill_backlog(link->socket, fds, ARRAY_SIZE(fds));
    g_autofree char *error = plug_hastily(bus, link->socket, 100);

    g_assert_nonnull(strstr(error, "does not accept connections"));
    close(listener);
    while (n) {
        close(fds[--n]);
    }
    g_unlink(link->socket);
    test_link_remove_chardev(bus->qts, "hasty");
}

/* The chardev was connected too early: the server does not wait any more. */
static void *close_first(void *opaque)
{
    Server *s = opaque;
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    char byte;

    /* the HELLO shows that the device took the connection for a good one */
    g_assert_cmpint(recv(fd, &byte, 1, MSG_PEEK), ==, 1);
    close(fd);
    return server_thread(s);
}

static void test_idle(void *obj, void *link, QGuestAllocator *alloc)
{
    static const Case good = { .step = STEP_COUNT };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    Server *s = g_new0(Server, 1);

    s->link = link;
    s->script = &good;
    s->max_peers = PEERS;
    s->fd = -1;
    s->stop_fd = eventfd(0, EFD_CLOEXEC);
    s->listen_fd = test_packet_listen(link);
    s->thread = g_thread_new("server", close_first, s);
    g_assert_null(test_link_plug(bus->qts, "idle", s->link->socket, 0,
                                 test_packet_props(NULL, 60000)));
    test_link_unplug(bus->qts, "idle", SLOT);
    server_stop(s);
    test_link_wait_fds(bus->qts, fds);
}

/*
 * A new server that does not know the session: the device asks it a few
 * times at most, although the chardev connects again every 10 ms.
 */
static void test_late_unknown(void *obj, void *link, QGuestAllocator *alloc)
{
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    QIvshmem2 d = {};
    Server *server = plug_scripted(bus, link, &d, alloc, PEERS, 10);
    struct pollfd pfd = { .fd = server->listen_fd, .events = POLLIN };
    TestPacket p = { .msg.hdr.type = IVSHMEM2_MSG_REFUSED,
                     .msg.refusal.code = IVSHMEM2_REFUSAL_SESSION };
    int n = 0;

    ivshmem2_close(&server->fd);
    wait_connected(&d, false);
    test_packet_finish(&p);
    while (poll(&pfd, 1, 2000) > 0) {
        Ivshmem2Msg wire = test_packet_encode(&p);
        int fd = accept4(server->listen_fd, NULL, NULL, SOCK_CLOEXEC);

        g_assert_cmpint(fd, >=, 0);
        test_packet_send(fd, &wire, p.size, NULL, 0);
        wait_closed(server, fd);
        close(fd);
        g_assert_cmpint(++n, <=, 3);
    }
    g_assert_cmpint(n, >=, 1);
    test_link_unplug(bus->qts, "late", SLOT);
    server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

/* A QEMU that ends in order says goodbye, whether its machine runs or not. */
static void test_goodbye(void *obj, void *opaque, QGuestAllocator *alloc)
{
    static const char *const options[] = { "", "-S" };
    TestLink *link = opaque;

    for (int i = 0; i < ARRAY_SIZE(options); i++) {
        Server *server = server_start(link, NULL, PEERS);
        QTestState *qts = qtest_initf("%s -chardev socket,id=c,path=%s"
                                      " -device ivshmem2,chardev=c",
                                      options[i], link->socket);
        Ivshmem2Header last = {}, hdr;
        char payload[256];

        server_take(server);
        qtest_quit(qts);
        while (recv(server->fd, &hdr, sizeof(hdr), MSG_WAITALL) ==
               sizeof(hdr)) {
            size_t left = le32_to_cpu(hdr.size) - sizeof(hdr);

            g_assert_cmpuint(left, <=, sizeof(payload));
            if (left) {
                g_assert_cmpint(recv(server->fd, payload, left, MSG_WAITALL),
                                ==, left);
            }
            last = hdr;
        }
        g_assert_cmphex(le16_to_cpu(last.type), ==, IVSHMEM2_MSG_GOODBYE);
        server_stop(server);
    }
}

static void register_ivshmem2_hostile_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/hostile/chardevs", test_chardevs },
        { "ivshmem2/hostile/reconnect-absent", test_reconnect_absent },
        { "ivshmem2/hostile/reconnect-late", test_reconnect_late },
        { "ivshmem2/hostile/close", test_close },
        { "ivshmem2/hostile/cut", test_cut },
        { "ivshmem2/hostile/garbage", test_garbage },
        { "ivshmem2/hostile/silence", test_silence },
        { "ivshmem2/hostile/half-silence", test_half_silence },
        { "ivshmem2/hostile/endless", test_endless },
        { "ivshmem2/hostile/trickle", test_trickle },
        { "ivshmem2/hostile/version-1", test_version_1 },
        { "ivshmem2/hostile/headers", test_headers },
        { "ivshmem2/hostile/refusals", test_refusals },
        { "ivshmem2/hostile/welcome", test_welcome },
        { "ivshmem2/hostile/descriptors", test_descriptors },
        { "ivshmem2/hostile/late-close", test_late_close },
        { "ivshmem2/hostile/late-garbage", test_late_garbage },
        { "ivshmem2/hostile/late-message", test_late_message },
        { "ivshmem2/hostile/late-resume", test_late_resume },
        { "ivshmem2/hostile/late-deaf", test_late_deaf },
        { "ivshmem2/hostile/late-unknown", test_late_unknown },
        { "ivshmem2/hostile/hasty-silence", test_hasty_silence },
        { "ivshmem2/hostile/hasty-absent", test_hasty_absent },
        { "ivshmem2/hostile/hasty-backlog", test_hasty_backlog },
        { "ivshmem2/hostile/idle", test_idle },
        { "ivshmem2/hostile/goodbye", test_goodbye },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_hostile_test);
