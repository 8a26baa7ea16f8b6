/*
 * A server whose link outlives its process, for the tests of resuming
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-lasting-server.h"
#include "libivshmem2-transport.h"

#define MAX_CONNECTIONS     64
#define TABLE_SIZE          4096
#define RW_SIZE             4096

typedef struct Connection {
    Ivshmem2Transport transport;
    uint32_t id;
    bool stalled;
} Connection;

typedef struct Process {
    Lasting *link;
    int listen_fd;
    Connection connections[MAX_CONNECTIONS];
    unsigned n;
} Process;

/* As the test has threads, its child must not start any, which signals may. */
static void signal_eventfd(int fd)
{
    const uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) < 0) {
        _exit(1);
    }
}

static void count(int *field)
{
    __atomic_add_fetch(field, 1, __ATOMIC_SEQ_CST);
}

/* Sending */

static void send_message(Connection *c, const Ivshmem2Msg *msg,
                         const int *fds)
{
    int ret = ivshmem2_transport_send(&c->transport, msg, fds, NULL);

    while (ret == 0) {
        struct pollfd pfd = { .fd = c->transport.fd, .events = POLLOUT };

        poll(&pfd, 1, -1);
        ret = ivshmem2_transport_flush(&c->transport, NULL);
    }
}

static Ivshmem2Msg make_welcome(const Lasting *l, uint32_t id)
{
    return (Ivshmem2Msg) {
        .hdr = { .type = IVSHMEM2_MSG_WELCOME, .fds = 2 },
        .welcome = {
            .version = IVSHMEM2_VERSION_MAX,
            .features = IVSHMEM2_F_MSIX,
            .vectors = LASTING_VECTORS,
            .id = id,
            .max_peers = LASTING_PEERS,
            .page_size = 4096,
            .state_table_size = TABLE_SIZE,
            .rw_size = RW_SIZE,
            .session = { 1 + said(l, other) },
        },
    };
}

static void send_eventfds(Connection *c, const Lasting *l, uint32_t id)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = LASTING_VECTORS },
        .eventfds = { .id = id },
    };

    send_message(c, &msg, l->eventfds[id]);
}

static void send_refusal(Connection *c, uint32_t code)
{
    Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_MSG_REFUSED,
        .refusal = { .code = code, .text = "as the script says" },
    };

    send_message(c, &msg, NULL);
}

/* The script */

static void send_half(Connection *c, const Lasting *l)
{
    Ivshmem2Msg msg = make_welcome(l, 0);

    ivshmem2_msg_encode(&msg);
    send_with_fds(c->transport.fd, &msg, 20, l->memory[0], 2);
}

/* Returns false if the connection is to be closed. */
static bool interfere(Connection *c, const Lasting *l, Step step)
{
    Script *s = l->script;
    int action = said(l, action);

    if ((int)step != said(l, step) || said(l, times) == 0) {
        return true;
    }
    __atomic_sub_fetch(&s->times, 1, __ATOMIC_SEQ_CST);
    count(&s->interfered);
    if (action == DO_HALF) {
        send_half(c, l);
    } else if (action == DO_STOP) {
        raise(SIGSTOP);
    } else if (action == DO_DIE) {
        raise(SIGKILL);
    }
    c->stalled = action == DO_STALL || action == DO_HALF;
    return action != DO_CLOSE;
}

/* Messages: these functions return false to close the connection. */

static bool go_on(Connection *c, const Lasting *l, Step step)
{
    return interfere(c, l, step) && !c->stalled;
}

static uint32_t free_id(const Process *p)
{
    uint32_t id = 0;

    for (unsigned i = 0; i < p->n; i++) {
        if (p->connections[i].id == id) {
            id++;
            i = -1;
        }
    }
    return id;
}

static bool handle_hello(Process *p, Connection *c, const Ivshmem2Hello *hello)
{
    const Lasting *l = p->link;
    uint32_t id = hello->id == IVSHMEM2_ID_ANY ? free_id(p) : hello->id;
    Ivshmem2Msg welcome = make_welcome(l, id);
    bool resuming = hello->session[0];

    if (!go_on(c, l, STEP_WELCOME)) {
        return c->stalled;
    }
    g_usleep(said(l, delay_ms) * 1000);
    if (said(l, refuse) || (resuming && memcmp(hello->session,
                                               welcome.welcome.session,
                                               sizeof(hello->session)))) {
        send_refusal(c, said(l, refuse) ? said(l, refuse)
                                        : IVSHMEM2_REFUSAL_SESSION);
        return false;
    }
    c->id = id;
    send_message(c, &welcome, l->memory);
    if (!go_on(c, l, STEP_EVENTFDS)) {
        return c->stalled;
    }
    send_eventfds(c, l, id);
    for (uint32_t i = 0; i < LASTING_PEERS; i++) {
        if (said(l, push) && i != id) {
            send_eventfds(c, l, i);
        }
    }
    if (!go_on(c, l, STEP_READY)) {
        return c->stalled;
    }
    /* counted before the client can know */
    count(&l->script->joined);
    l->script->resumed += resuming;
    send_message(c, &(Ivshmem2Msg) { .hdr.type = IVSHMEM2_MSG_READY }, NULL);
    return go_on(c, l, STEP_AFTER) || c->stalled;
}

static void handle_ring(Connection *c, const Lasting *l,
                        const Ivshmem2Target *target)
{
    int *fd = (int *)&l->eventfds[target->id][target->vector];
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = 1 },
        .eventfds = { .id = target->id, .first = target->vector },
    };

    count(&l->script->rings);
    signal_eventfd(*fd);
    send_message(c, &msg, fd);
}

static bool handle_message(Process *p, Connection *c, const Ivshmem2Msg *msg)
{
    const Lasting *l = p->link;

    switch (msg->hdr.type) {
    case IVSHMEM2_MSG_HELLO:
        return handle_hello(p, c, &msg->hello);
    case IVSHMEM2_MSG_RING:
        handle_ring(c, l, &msg->target);
        return true;
    case IVSHMEM2_MSG_STATE_CHANGED:
        count(&l->script->changes);
        for (uint32_t i = 0; i < LASTING_PEERS; i++) {
            if (i != c->id) {
                signal_eventfd(l->eventfds[i][0]);
            }
        }
        return true;
    case IVSHMEM2_MSG_STATE_ANNOUNCED:
        say(l, announced, msg->announcement.state);
        count(&l->script->announcements);
        return go_on(c, l, STEP_ANNOUNCED) || c->stalled;
    default:
        count(&l->script->goodbyes);
        return false;
    }
}

/* Connections */

static bool serve_connection(Process *p, Connection *c)
{
    int ret;

    while ((ret = ivshmem2_transport_receive(&c->transport, NULL)) == 1) {
        Ivshmem2Msg msg = c->transport.in.msg;

        ivshmem2_decoder_reset(&c->transport.in);
        if (!handle_message(p, c, &msg)) {
            return false;
        }
        if (c->stalled) {
            return true;
        }
    }
    if (ret < 0) {
        count(&p->link->script->closed);
    }
    return ret == 0;
}

static void accept_connection(Process *p)
{
    Connection *c = &p->connections[p->n];
    int fd = accept(p->listen_fd, NULL, NULL);

    if (fd < 0 || p->n == MAX_CONNECTIONS) {
        _exit(1);
    }
    *c = (Connection) { .id = IVSHMEM2_ID_ANY };
    ivshmem2_transport_init_consume(&c->transport, fd, IVSHMEM2_CLIENT);
    count(&p->link->script->connections);
    if (interfere(c, p->link, STEP_HELLO)) {
        p->n++;
    } else {
        close(fd);
    }
}

static void serve(Process *p)
{
    for (;;) {
        struct pollfd pfds[MAX_CONNECTIONS + 1] = {
            { .fd = p->listen_fd, .events = POLLIN },
        };

        for (unsigned i = 0; i < p->n; i++) {
            Connection *c = &p->connections[i];

            pfds[i + 1].fd = c->stalled ? -1 : c->transport.fd;
            pfds[i + 1].events = POLLIN;
        }
        poll(pfds, p->n + 1, -1);
        for (unsigned i = p->n; i > 0; i--) {
            Connection *c = &p->connections[i - 1];

            if (pfds[i].revents && !serve_connection(p, c)) {
                close(c->transport.fd);
                *c = p->connections[--p->n];
            }
        }
        if (pfds[0].revents) {
            accept_connection(p);
        }
    }
}

/* Processes */

static bool is_of_link(const Lasting *l, int fd)
{
    bool found = fd == l->memory[0] || fd == l->memory[1];

    for (uint32_t id = 0; id < LASTING_PEERS; id++) {
        for (uint32_t v = 0; v < LASTING_VECTORS; v++) {
            found |= fd == l->eventfds[id][v];
        }
    }
    return found;
}

/* The test's peers, too, have descriptors, which the server must not keep. */
static void keep_fds_of_link(const Lasting *l)
{
    for (int fd = 3; fd < 1024; fd++) {
        if (!is_of_link(l, fd)) {
            close(fd);
        }
    }
}

void lasting_start(Lasting *l)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    pid_t parent = getpid();
    Process p = { .link = l };

    g_unlink(l->server.socket);
    l->server.pid = fork();
    g_assert_cmpint(l->server.pid, >=, 0);
    if (l->server.pid == 0) {
        die_with_parent(parent);
        keep_fds_of_link(l);
        g_strlcpy(addr.sun_path, l->server.socket, sizeof(addr.sun_path));
        p.listen_fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(p.listen_fd, (struct sockaddr *)&addr, sizeof(addr)) < 0 ||
            listen(p.listen_fd, 1) < 0) {
            _exit(1);
        }
        serve(&p);
    }
    wait_for_server(l->server.socket);
}

void lasting_kill(Lasting *l)
{
    server_stop(&l->server, SIGKILL);
}

void lasting_init(Lasting *l, bool push)
{
    server_init(&l->server);
    l->script = mmap(NULL, sizeof(*l->script), PROT_READ | PROT_WRITE,
                     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert_true(l->script != MAP_FAILED);
    l->script->push = push;
    l->memory[0] = make_memory(TABLE_SIZE, MEMORY_SEALS);
    l->memory[1] = make_memory(RW_SIZE, MEMORY_SEALS);
    l->table = mmap(NULL, TABLE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED,
                    l->memory[0], 0);
    g_assert_true(l->table != MAP_FAILED);
    for (uint32_t id = 0; id < LASTING_PEERS; id++) {
        for (uint32_t v = 0; v < LASTING_VECTORS; v++) {
            l->eventfds[id][v] = make_eventfd();
        }
    }
}

void lasting_end(Lasting *l)
{
    if (l->server.pid) {
        lasting_kill(l);
    }
    munmap(l->table, TABLE_SIZE);
    munmap(l->script, sizeof(*l->script));
    ivshmem2_close(&l->memory[0]);
    ivshmem2_close(&l->memory[1]);
    for (uint32_t id = 0; id < LASTING_PEERS; id++) {
        for (uint32_t v = 0; v < LASTING_VECTORS; v++) {
            ivshmem2_close(&l->eventfds[id][v]);
        }
    }
    link_end(&l->server);
}

void lasting_do(Lasting *l, Step step, Action action, int times)
{
    say(l, times, 0);
    say(l, step, step);
    say(l, action, action);
    say(l, times, times);
}

/* Peers */

Ivshmem2Peer *lasting_join(Lasting *l, uint32_t id, uint64_t flags,
                           int slowest_ms)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    Ivshmem2Peer *peer;

    o.id = id;
    o.flags = flags;
    o.timeout_ms = SOON_MS;
    o.resume_ms = 1;
    o.resume_slowest_ms = slowest_ms;
    peer = ivshmem2_peer_open_socket(l->server.socket, &o, &error);
    g_assert_no_error(error);
    return peer;
}

static Ivshmem2Event next_event(Ivshmem2Peer *peer, int timeout_ms,
                                GError **reason)
{
    gint64 deadline = g_get_monotonic_time() + timeout_ms * 1000;
    struct pollfd pfd = {
        .fd = ivshmem2_peer_connection_fd(peer),
        .events = POLLIN,
    };
    Ivshmem2Event event;

    while (!(event = ivshmem2_peer_event(peer, reason)) &&
           g_get_monotonic_time() < deadline) {
        poll(&pfd, 1, 20);
    }
    return event;
}

void assert_event(Ivshmem2Peer *peer, Ivshmem2Event what, int code)
{
    g_autoptr(GError) reason = NULL;

    g_assert_cmpint(next_event(peer, SOON_MS, &reason), ==, what);
    if (code) {
        g_assert_error(reason, IVSHMEM2_ERROR, code);
    } else {
        g_assert_no_error(reason);
    }
}

/* It depends on what was in the socket. */
void assert_lost(Ivshmem2Peer *peer)
{
    g_autoptr(GError) reason = NULL;

    g_assert_cmpint(next_event(peer, SOON_MS, &reason), ==,
                    IVSHMEM2_EVENT_DISCONNECTED);
    g_assert_nonnull(reason);
    g_assert_true(reason->code == IVSHMEM2_ERROR_CLOSED ||
                  reason->code == IVSHMEM2_ERROR_IO);
}

void assert_no_event(Ivshmem2Peer *peer)
{
    g_assert_cmpint(next_event(peer, NEVER_MS, NULL), ==, IVSHMEM2_EVENT_NONE);
    g_assert_cmpint(ivshmem2_peer_wait(peer, -1, NULL, 0, NULL), ==, 0);
}

void cut_connections(pid_t pid)
{
    for (int fd = 3; fd < 1024; fd++) {
        struct ucred peer;
        socklen_t len = sizeof(peer);

        if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &len) == 0 &&
            peer.pid == pid) {
            shutdown(fd, SHUT_RDWR);
        }
    }
}
