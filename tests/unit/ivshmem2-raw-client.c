/*
 * A client that sends the server exactly what a test tells it to
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"

/* Connecting */

void client_connect(Client *c, Server *s)
{
    *c = (Client) { .memory = { -1, -1 } };
    ivshmem2_transport_init_consume(&c->transport, server_connect(s),
                                    IVSHMEM2_SERVER);
}

void client_connect_as(Client *c, Server *s, uid_t uid, gid_t gid)
{
    Server here = { .socket = (char *)"link.sock" };
    int cwd = open(".", O_PATH | O_CLOEXEC);

    *c = (Client) { .memory = { -1, -1 } };
    g_assert_cmpint(chdir(s->dir), ==, 0);
    g_assert_cmpint(!gid || setgroups(1, &gid) == 0, ==, true);
    g_assert_cmpint(uid == geteuid() || seteuid(uid) == 0, ==, true);
    ivshmem2_transport_init_consume(&c->transport, server_connect(&here),
                                    IVSHMEM2_SERVER);
    g_assert_cmpint(seteuid(getuid()), ==, 0);
    g_assert_cmpint(!gid || setgroups(0, NULL) == 0, ==, true);
    g_assert_cmpint(fchdir(cwd), ==, 0);
    ivshmem2_close(&cwd);
}

static void free_fds(int *fds, uint32_t n)
{
    for (uint32_t i = 0; fds && i < n; i++) {
        ivshmem2_close(&fds[i]);
    }
    g_free(fds);
}

void client_close(Client *c)
{
    ivshmem2_transport_clear(&c->transport);
    if (c->table) {
        munmap(c->table, c->welcome.state_table_size);
    }
    ivshmem2_close(&c->memory[0]);
    ivshmem2_close(&c->memory[1]);
    free_fds(c->outputs, c->welcome.max_peers);
    for (uint32_t i = 0; c->eventfds && i < c->welcome.max_peers; i++) {
        free_fds(c->eventfds[i], c->welcome.vectors);
    }
    g_free(c->eventfds);
    *c = (Client) { .memory = { -1, -1 } };
    c->transport.fd = -1;
}

/* Messages */

void wait_for(int fd, short events)
{
    struct pollfd pfd = { .fd = fd, .events = events };

    g_assert_cmpint(poll(&pfd, 1, SOON_MS), ==, 1);
}

void client_say(Client *c, const Ivshmem2Msg *msg)
{
    g_autoptr(GError) error = NULL;
    int ret = ivshmem2_transport_send(&c->transport, msg, NULL, &error);

    while (ret == 0) {
        wait_for(c->transport.fd, POLLOUT);
        ret = ivshmem2_transport_flush(&c->transport, &error);
    }
    g_assert_no_error(error);
}

void client_say_type(Client *c, uint16_t type)
{
    client_say(c, &(Ivshmem2Msg) { .hdr.type = type });
}

void client_say_target(Client *c, uint16_t type, uint32_t id,
                       uint32_t vector)
{
    client_say(c, &(Ivshmem2Msg) {
        .hdr.type = type, .target.id = id, .target.vector = vector,
    });
}

uint16_t client_hear_any(Client *c)
{
    g_autoptr(GError) error = NULL;
    int ret;

    ivshmem2_decoder_reset(&c->transport.in);
    while ((ret = ivshmem2_transport_receive(&c->transport, &error)) == 0) {
        wait_for(c->transport.fd, POLLIN);
    }
    if (ret < 0) {
        g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_CLOSED);
        return 0;
    }
    return c->transport.in.msg.hdr.type;
}

const Ivshmem2Msg *client_hear(Client *c, uint16_t type)
{
    uint16_t got = client_hear_any(c);

    if (got == IVSHMEM2_MSG_REFUSED && got != type) {
        g_test_message("REFUSED: %s", c->transport.in.msg.refusal.text);
    }
    g_assert_cmphex(got, ==, type);
    return &c->transport.in.msg;
}

void client_hear_refusal(Client *c, uint32_t code, const char *text)
{
    const Ivshmem2Msg *msg = client_hear(c, IVSHMEM2_MSG_REFUSED);

    g_test_message("%s", msg->refusal.text);
    g_assert_cmpuint(msg->refusal.code, ==, code);
    assert_says_text(msg->refusal.text, text);
    g_assert_cmpuint(client_hear_any(c), ==, 0);
}

const Ivshmem2Msg *client_ring(Client *c, uint32_t id, uint32_t vector)
{
    client_say_target(c, IVSHMEM2_MSG_RING, id, vector);
    return client_hear(c, IVSHMEM2_MSG_EVENTFDS);
}

/* There is no such ID, so the answer is all that this RING causes. */
void client_sync(Client *c)
{
    client_ring(c, UINT32_MAX, 0);
}

/* Joining and leaving */

Ivshmem2Msg make_hello(uint32_t id)
{
    return (Ivshmem2Msg) {
        .hdr.type = IVSHMEM2_MSG_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = IVSHMEM2_VERSION_MIN,
            .version_max = IVSHMEM2_VERSION_MAX,
            .features = IVSHMEM2_F_MSIX | IVSHMEM2_F_INTX,
            .vectors = IVSHMEM2_MAX_VECTORS,
            .id = id,
            .name = "test",
        },
    };
}

Ivshmem2Msg make_resume(const Client *c)
{
    Ivshmem2Msg hello = make_hello(c->welcome.id);

    memcpy(hello.hello.session, c->welcome.session, IVSHMEM2_UUID_SIZE);
    return hello;
}

static void take_eventfds(Client *c)
{
    const Ivshmem2Eventfds *e = &c->transport.in.msg.eventfds;

    g_assert_cmpuint(e->id, <, c->welcome.max_peers);
    g_assert_cmpuint(e->first + c->transport.in.n_fds, <=, c->welcome.vectors);
    if (!c->eventfds[e->id]) {
        c->eventfds[e->id] = g_new(int, c->welcome.vectors);
        memset(c->eventfds[e->id], 0xff, c->welcome.vectors * sizeof(int));
    }
    for (unsigned i = 0; i < c->transport.in.n_fds; i++) {
        int *fd = &c->eventfds[e->id][e->first + i];

        g_assert_cmpint(*fd, ==, -1);
        *fd = ivshmem2_decoder_steal_fd(&c->transport.in, i);
        g_assert_true(ivshmem2_check_eventfd(*fd, NULL));
    }
}

static void take_welcome(Client *c)
{
    c->welcome = client_hear(c, IVSHMEM2_MSG_WELCOME)->welcome;
    g_assert_true(ivshmem2_welcome_check(&c->welcome, NULL));
    g_assert_cmpuint(c->transport.in.n_fds, ==, c->welcome.rw_size ? 2 : 1);
    for (unsigned i = 0; i < c->transport.in.n_fds; i++) {
        c->memory[i] = ivshmem2_decoder_steal_fd(&c->transport.in, i);
    }
    c->table = mmap(NULL, c->welcome.state_table_size,
                    PROT_READ | PROT_WRITE, MAP_SHARED, c->memory[0], 0);
    g_assert_true(c->table != MAP_FAILED);
    c->eventfds = g_new0(int *, c->welcome.max_peers);
}

static void take_outputs(Client *c)
{
    uint32_t n = 0;

    if (!c->welcome.output_size) {
        return;
    }
    c->outputs = g_new(int, c->welcome.max_peers);
    while (n < c->welcome.max_peers) {
        g_assert_cmpuint(client_hear(c, IVSHMEM2_MSG_OUTPUTS)->outputs.first,
                         ==, n);
        for (unsigned i = 0; i < c->transport.in.n_fds; i++) {
            c->outputs[n++] = ivshmem2_decoder_steal_fd(&c->transport.in, i);
        }
        c->n_messages++;
    }
}

void client_complete(Client *c)
{
    uint32_t n = 0;

    take_welcome(c);
    take_outputs(c);
    while (n < c->welcome.vectors) {
        const Ivshmem2Msg *msg = client_hear(c, IVSHMEM2_MSG_EVENTFDS);

        g_assert_cmpuint(msg->eventfds.id, ==, c->welcome.id);
        g_assert_cmpuint(msg->eventfds.first, ==, n);
        n += c->transport.in.n_fds;
        take_eventfds(c);
    }
    while (client_hear_any(c) == IVSHMEM2_MSG_EVENTFDS) {
        take_eventfds(c);
        c->n_messages++;
    }
    g_assert_cmphex(c->transport.in.msg.hdr.type, ==, IVSHMEM2_MSG_READY);
}

void client_join_hello(Client *c, Server *s, const Ivshmem2Msg *hello)
{
    client_connect(c, s);
    client_say(c, hello);
    client_complete(c);
}

void client_join(Client *c, Server *s, uint32_t id)
{
    Ivshmem2Msg hello = make_hello(id);

    client_join_hello(c, s, &hello);
    if (id != IVSHMEM2_ID_ANY) {
        g_assert_cmpuint(c->welcome.id, ==, id);
    }
}

void client_join_as(Client *c, Server *s, uid_t uid, gid_t gid, uint32_t id)
{
    Ivshmem2Msg hello = make_hello(id);

    client_connect_as(c, s, uid, gid);
    client_say(c, &hello);
    client_complete(c);
}

void client_leave(Client *c)
{
    client_say_type(c, IVSHMEM2_MSG_GOODBYE);
    g_assert_cmpuint(client_hear_any(c), ==, 0);
    client_close(c);
}

void client_refused(Server *s, const Ivshmem2Msg *hello, uint32_t code,
                    const char *text)
{
    Client c;

    client_connect(&c, s);
    client_say(&c, hello);
    client_hear_refusal(&c, code, text);
    client_close(&c);
}

void client_refused_id(Server *s, uint32_t id, uint32_t code,
                       const char *text)
{
    Ivshmem2Msg hello = make_hello(id);

    client_refused(s, &hello, code, text);
}

void wait_until_free(Server *s, uint32_t id)
{
    Ivshmem2Msg hello = make_hello(id);
    int tries = SOON_MS / 10;

    for (;;) {
        Client c;
        uint16_t type;
        uint32_t code;

        client_connect(&c, s);
        client_say(&c, &hello);
        type = client_hear_any(&c);
        if (type == IVSHMEM2_MSG_WELCOME) {
            client_say_type(&c, IVSHMEM2_MSG_GOODBYE);
            while (client_hear_any(&c)) {
                continue;
            }
            client_close(&c);
            return;
        }
        code = c.transport.in.msg.refusal.code;
        g_assert_true(code == IVSHMEM2_REFUSAL_ID_TAKEN ||
                      code == IVSHMEM2_REFUSAL_PERMISSION ||
                      code == IVSHMEM2_REFUSAL_LIMIT);
        client_close(&c);
        wait_a_little(&tries);
    }
}

/* State Table and interrupts */

void set_state(Client *c, uint32_t state)
{
    __atomic_store_n(&c->table[c->welcome.id], GUINT32_TO_LE(state),
                     __ATOMIC_RELEASE);
}

uint32_t get_state(Client *c, uint32_t id)
{
    return GUINT32_FROM_LE(__atomic_load_n(&c->table[id], __ATOMIC_ACQUIRE));
}

void change_state(Client *c, uint32_t state)
{
    set_state(c, state);
    client_say_type(c, IVSHMEM2_MSG_STATE_CHANGED);
}

void announce_state(Client *c, uint32_t state)
{
    const Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_MSG_STATE_ANNOUNCED,
        .announcement.state = state,
    };

    client_say(c, &msg);
}

void assert_interrupted(Client *c, uint32_t vector)
{
    int fd = c->eventfds[c->welcome.id][vector];

    wait_for(fd, POLLIN);
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), >, 0);
}

void assert_quiet(Client *c)
{
    for (uint32_t i = 0; i < c->welcome.vectors; i++) {
        g_assert_cmpuint(
            ivshmem2_eventfd_drain(c->eventfds[c->welcome.id][i]), ==, 0);
    }
}

/* A client in a process of its own */

/* The other process: it answers each order with the same byte. */
static void other_run(Server *s, uint32_t id, uint32_t state, int fd)
{
    Client c;
    uint8_t order = ORDER_JOIN;

    do {
        switch (order) {
        case ORDER_JOIN:
            client_join(&c, s, id);
            set_state(&c, state);
            if (state) {
                client_say_type(&c, IVSHMEM2_MSG_STATE_CHANGED);
                client_sync(&c);
            }
            break;
        case ORDER_CLOSE:
            client_close(&c);
            break;
        }
        if (write(fd, &order, 1) != 1) {
            break;
        }
    } while (read(fd, &order, 1) == 1 && order != ORDER_EXIT);
}

void other_start(Other *o, Server *s, uint32_t id, uint32_t state)
{
    pid_t parent = getpid();
    uint8_t byte;
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    o->pid = fork();
    g_assert_cmpint(o->pid, >=, 0);
    if (o->pid == 0) {
        die_with_parent(parent);
        close(fds[0]);
        other_run(s, id, state, fds[1]);
        _exit(0);
    }
    ivshmem2_close(&fds[1]);
    o->fd = fds[0];
    g_assert_cmpint(read(o->fd, &byte, 1), ==, 1);
}

void other_do(Other *o, uint8_t order)
{
    g_assert_cmpint(write(o->fd, &order, 1), ==, 1);
    g_assert_cmpint(read(o->fd, &order, 1), ==, order != ORDER_EXIT);
}

void other_end(Other *o, int sig)
{
    if (sig) {
        kill(o->pid, sig);
    } else {
        other_do(o, ORDER_EXIT);
    }
    g_assert_cmpint(waitpid(o->pid, NULL, 0), ==, o->pid);
    ivshmem2_close(&o->fd);
}
