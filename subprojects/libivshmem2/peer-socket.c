/*
 * libivshmem2: a peer on the host, through the server's socket
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <string.h>
#include <linux/sockios.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include "libivshmem2-peer.h"
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"

/* The time that closing may take if the server does not read */
#define CLOSE_TIMEOUT_US    (1000 * 1000)
/* Messages of the server that are handled between two looks at the time */
#define RECEIVE_BATCH       64

/* A refusal that will hardly change: as many times the longest pause */
#define REFUSED_PAUSES      12
/* The longest limit of an attempt: as many times timeout_ms */
#define SLOWEST_ATTEMPTS    12
/* DISCONNECTED, REFUSED, CONNECTED; another DISCONNECTED replaces them */
#define MAX_EVENTS          3

/* Ivshmem2SocketOptions.flags */
#define KNOWN_FLAGS         (IVSHMEM2_SOCKET_KEEP_FILES |                \
                             IVSHMEM2_SOCKET_EVENTS)
/* Ivshmem2SocketOptions.size before there was resume_ms */
#define OLDEST_OPTIONS      offsetof(Ivshmem2SocketOptions, resume_ms)

/* The public header does not include the header of the protocol. */
_Static_assert(IVSHMEM2_PEER_ID_ANY == IVSHMEM2_ID_ANY,
               "a program's wish is passed on to the server");

/* No padding at the end that could hide an appended field. */
_Static_assert(sizeof(Ivshmem2SocketOptions) ==
               offsetof(Ivshmem2SocketOptions, resume_slowest_ms) +
               sizeof(int32_t),
               "a field that is appended changes the size");

typedef struct SocketEvent {
    Ivshmem2Event what;
    GError *reason;             /* owned, or NULL */
} SocketEvent;

typedef struct SocketPeer {
    Ivshmem2Peer parent;        /* service_fd has conn.fd and timer_fd */
    Ivshmem2Session *session;
    Ivshmem2Transport conn;     /* fd -1: none */
    uint32_t watched;           /* epoll events that conn.fd is watched for */
    uint32_t state;             /* others can write the State Table, too */

    Ivshmem2SocketOptions options;      /* without name */
    char *path;
    bool up;                    /* conn has completed the handshake */
    bool refused;               /* it will hardly be up again */
    bool owing;                 /* not up: doorbells wait for the server */
    int timer_fd;               /* expires at due_us, or for events */
    int64_t timer_ns;           /* which it is set to; 0: off */
    /* Not up: when an attempt is due or, with conn, too late; -1: never */
    int64_t due_us;
    int64_t tried_us;           /* when the last attempt was made */
    int64_t pause_ms;           /* after the next attempt, if it fails */
    int64_t limit_ms;           /* of the next attempt */
    uint32_t said;              /* codes of REFUSED events since it was up */
    SocketEvent events[MAX_EVENTS];     /* oldest first */
    unsigned n_events;
} SocketPeer;

/* A server that is gone may not have been noticed by talk() yet. */
static bool socket_connected(const Ivshmem2Peer *peer)
{
    const SocketPeer *p = (const SocketPeer *)peer;
    struct pollfd pfd = { .fd = p->conn.fd, .events = POLLRDHUP };

    return p->up && poll(&pfd, 1, 0) <= 0;
}

/* Events for the program */

static void drop_events(SocketPeer *p)
{
    while (p->n_events) {
        g_clear_error(&p->events[--p->n_events].reason);
    }
}

static void add_event(SocketPeer *p, Ivshmem2Event what, const GError *reason)
{
    if (what == IVSHMEM2_EVENT_DISCONNECTED) {
        drop_events(p);
    } else if (p->n_events && p->events[p->n_events - 1].what == what) {
        g_clear_error(&p->events[--p->n_events].reason);
    }
    p->events[p->n_events++] = (SocketEvent) {
        .what = what,
        .reason = reason ? g_error_copy(reason) : NULL,
    };
}

static Ivshmem2Event take_event(SocketPeer *p, GError **reason)
{
    SocketEvent event = { .what = IVSHMEM2_EVENT_NONE };

    if (p->n_events) {
        event = p->events[0];
        p->n_events--;
        memmove(p->events, p->events + 1, p->n_events * sizeof(event));
    }
    if (event.reason) {
        g_propagate_error(reason, event.reason);
    }
    return event.what;
}

static bool has_news(const SocketPeer *p)
{
    return p->n_events && (p->options.flags & IVSHMEM2_SOCKET_EVENTS);
}

/* The conversation */

static bool has_room(const SocketPeer *p)
{
    struct pollfd pfd = { .fd = p->conn.fd, .events = POLLOUT };

    return poll(&pfd, 1, 0) == 1;
}

/* That the state is 0 must not take the last room: it may change again. */
static bool next_message(SocketPeer *p, Ivshmem2Msg *msg)
{
    ivshmem2_session_hold_zero(p->session,
                               ivshmem2_session_holds_zero(p->session) &&
                               !has_room(p));
    return ivshmem2_session_next(p->session, msg);
}

static bool send_all(SocketPeer *p, GError **error)
{
    Ivshmem2Msg msg;
    int ret = ivshmem2_transport_flush(&p->conn, error);

    /* clients send no descriptors, so it is never BUSY */
    while (ret == 1 && next_message(p, &msg)) {
        ret = ivshmem2_transport_send(&p->conn, &msg, NULL, error);
    }
    return ret >= 0;
}

/* Is there something that waits for room? */
static bool needs_room(const SocketPeer *p)
{
    return ivshmem2_transport_is_sending(&p->conn) ||
           ivshmem2_session_holds_zero(p->session);
}

static bool receive_some(SocketPeer *p, GError **error)
{
    for (int i = 0; i < RECEIVE_BATCH; i++) {
        int ret = ivshmem2_transport_receive(&p->conn, error);

        if (ret <= 0) {
            return ret == 0;
        }
        if (!ivshmem2_session_receive(p->session, &p->conn.in, error)) {
            return false;
        }
    }
    return true;
}

static uint32_t *own_entry(const SocketPeer *p)
{
    return (uint32_t *)p->parent.memory + p->parent.info.id;
}

static void publish_state(SocketPeer *p)
{
    __atomic_store_n(own_entry(p), GUINT32_TO_LE(p->state), __ATOMIC_RELEASE);
    ivshmem2_session_state_changed(p->session, p->state);
}

/* The handshake is complete, for the first time or again. */
static void come_up(SocketPeer *p)
{
    p->up = true;
    p->refused = false;
    p->owing = false;
    p->said = 0;
    p->due_us = -1;
    p->pause_ms = p->options.resume_ms;
    p->limit_ms = p->options.timeout_ms;
    if (!p->parent.memory) {
        return;
    }
    add_event(p, IVSHMEM2_EVENT_CONNECTED, NULL);
    /* a server that took this peer for dead has set the entry to 0 */
    if (__atomic_load_n(own_entry(p), __ATOMIC_ACQUIRE) !=
        GUINT32_TO_LE(p->state)) {
        publish_state(p);
    }
}

/* Send and receive what is possible now. */
static bool converse(SocketPeer *p, GError **error)
{
    g_autoptr(GError) send_error = NULL;
    bool sent = send_all(p, &send_error);

    /* A server that closed may have sent the reason: a better error. */
    if (!receive_some(p, error)) {
        return false;
    }
    /* the state goes before doorbells that have waited */
    if (!p->up && ivshmem2_session_ready(p->session)) {
        come_up(p);
    }
    if (!sent) {
        g_propagate_error(error, g_steal_pointer(&send_error));
        return false;
    }
    return send_all(p, error);
}

static bool is_talking(const SocketPeer *p)
{
    return ivshmem2_transport_is_sending(&p->conn) ||
           ivshmem2_session_has_next(p->session);
}

static bool fail_too_late(GError **error)
{
    return ivshmem2_fail(error, IVSHMEM2_ERROR_TIMEOUT,
                         "the server does not answer in time, is it stopped?");
}

/*
 * Converse until nothing is left to send or, for the handshake, until the
 * session is ready.
 */
static bool converse_until(SocketPeer *p, bool handshake, int64_t deadline,
                           GError **error)
{
    for (;;) {
        struct pollfd pfd = { .fd = p->conn.fd, .events = POLLIN };
        int left_ms = ivshmem2_deadline_ms(deadline);

        if (!converse(p, error)) {
            return false;
        }
        if (handshake ? ivshmem2_session_ready(p->session) : !is_talking(p)) {
            return true;
        }
        if (!left_ms) {
            return fail_too_late(error);
        }
        pfd.events |= needs_room(p) ? POLLOUT : 0;
        poll(&pfd, 1, left_ms);
    }
}

/* Losing the server, and resuming */

/* Watch the socket and set the timer as is needed now. */
static void update_watch(SocketPeer *p)
{
    struct epoll_event event = {
        .events = EPOLLIN |
            (needs_room(p) ? EPOLLOUT : 0),
    };
    int64_t ns = has_news(p) ? 1 : MAX(p->due_us, 0) * 1000;
    struct itimerspec when = {
        .it_value = {
            .tv_sec = ns / 1000000000,
            .tv_nsec = ns % 1000000000,
        },
    };

    if (p->conn.fd >= 0 && event.events != p->watched) {
        epoll_ctl(p->parent.service_fd,
                  p->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, p->conn.fd,
                  &event);
        p->watched = event.events;
    }
    if (ns != p->timer_ns) {
        /* an expiration that was not read is forgotten with this */
        timerfd_settime(p->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
        p->timer_ns = ns;
    }
}

/* Is it worth while to try again soon? */
static bool will_pass(const GError *why)
{
    return why->code < IVSHMEM2_ERROR_REFUSED ||
           why->code == IVSHMEM2_ERROR_LIMIT ||
           why->code == IVSHMEM2_ERROR_SHUTDOWN;
}

/* When the next attempt is due. @lasting: this reason will hardly change. */
static void put_off(SocketPeer *p, bool lasting)
{
    const Ivshmem2SocketOptions *o = &p->options;
    int64_t pause_ms = p->pause_ms;

    if (o->resume_ms < 0) {
        p->due_us = -1;
        return;
    }
    if (lasting) {
        p->refused = true;
        pause_ms = (int64_t)o->resume_slowest_ms * REFUSED_PAUSES;
    } else {
        p->pause_ms = MIN(pause_ms * 2, o->resume_slowest_ms);
    }
    p->due_us = ivshmem2_deadline(pause_ms * 1000);
}

/* An attempt failed.  @reason: NULL if there is no server */
static void attempt_failed(SocketPeer *p, const GError *reason, bool lasting)
{
    uint32_t bit;

    put_off(p, lasting);
    if (!reason || reason->code == IVSHMEM2_ERROR_CLOSED ||
        reason->code == IVSHMEM2_ERROR_TIMEOUT ||
        reason->code == IVSHMEM2_ERROR_SHUTDOWN) {
        return;
    }
    bit = UINT32_C(1) << reason->code;
    if (!(p->said & bit)) {
        p->said |= bit;
        add_event(p, IVSHMEM2_EVENT_REFUSED, reason);
    }
}

/* Memory and doorbells go on working without a server. */
static void lose_server(SocketPeer *p, const GError *why)
{
    const bool was_up = p->up;

    p->owing |= was_up && is_talking(p);
    p->up = false;
    /* a socket that a thread closes later is still open */
    epoll_ctl(p->parent.service_fd, EPOLL_CTL_DEL, p->conn.fd, NULL);
    p->watched = 0;
    ivshmem2_transport_clear(&p->conn);
    ivshmem2_session_disconnected(p->session);
    if (!was_up) {
        attempt_failed(p, why, !will_pass(why));
        return;
    }
    add_event(p, IVSHMEM2_EVENT_DISCONNECTED, why);
    if (!will_pass(why) || p->options.resume_ms < 0) {
        put_off(p, !will_pass(why));
    } else {
        /* at once, unless a server ends connections as fast as they come */
        p->due_us = MAX(g_get_monotonic_time(),
                        p->tried_us + p->options.resume_ms * INT64_C(1000));
    }
}

/* Connect, if that is possible without waiting, and say HELLO. */
static void attempt(SocketPeer *p)
{
    g_autoptr(GError) error = NULL;
    int fd = ivshmem2_connect(p->path, 0);

    p->tried_us = g_get_monotonic_time();
    if (fd < 0) {
        /* nothing is said where there is no server, or a busy one */
        if (fd != -ENOENT && fd != -ECONNREFUSED && fd != -EAGAIN) {
            ivshmem2_fail_connect(p->path, -fd, &error);
        }
        attempt_failed(p, error, fd == -EACCES || fd == -EPERM);
        return;
    }
    ivshmem2_transport_init_consume(&p->conn, fd, IVSHMEM2_SERVER);
    ivshmem2_session_connected(p->session);
    p->due_us = ivshmem2_deadline(p->limit_ms * 1000);
    if (!converse(p, &error)) {
        lose_server(p, error);
    }
}

/*
 * The attempt is too late.  A server that has not read HELLO will do so first,
 * so to connect again before that only leaves it a connection that is dead.
 */
static void end_attempt(SocketPeer *p)
{
    g_autoptr(GError) error = NULL;
    int64_t slowest_ms = (int64_t)p->options.timeout_ms * SLOWEST_ATTEMPTS;
    int64_t last_us = p->tried_us + slowest_ms * 1000;
    int unread;

    if (p->due_us < last_us && ioctl(p->conn.fd, SIOCOUTQ, &unread) == 0 &&
        unread) {
        p->due_us = last_us;
        return;
    }
    fail_too_late(&error);
    lose_server(p, error);
    /* with many peers that resume, each has to wait for its turn */
    p->limit_ms = MIN(p->limit_ms * 2, slowest_ms);
}

/* Do what is possible and due without waiting. */
static void talk(SocketPeer *p)
{
    g_autoptr(GError) error = NULL;

    if (p->conn.fd >= 0 && !converse(p, &error)) {
        lose_server(p, error);
    }
    if (p->due_us >= 0 && g_get_monotonic_time() >= p->due_us) {
        if (p->conn.fd < 0) {
            attempt(p);
        } else {
            end_attempt(p);
        }
    }
    update_watch(p);
}

static int socket_service(Ivshmem2Peer *peer, GError **error)
{
    SocketPeer *p = (SocketPeer *)peer;

    talk(p);
    return has_news(p) ? 2 : 0;
}

static Ivshmem2Event socket_event(Ivshmem2Peer *peer, GError **reason)
{
    SocketPeer *p = (SocketPeer *)peer;
    Ivshmem2Event event;

    talk(p);
    event = take_event(p, reason);
    update_watch(p);
    return event;
}

static bool socket_pending(const Ivshmem2Peer *peer)
{
    const SocketPeer *p = (const SocketPeer *)peer;

    return p->up ? is_talking(p) : p->owing;
}

static void store_state(SocketPeer *p, uint32_t state)
{
    if (state != p->state) {
        p->state = state;
        publish_state(p);
    }
}

static bool socket_set_state(Ivshmem2Peer *peer, uint32_t state,
                             GError **error)
{
    SocketPeer *p = (SocketPeer *)peer;

    store_state(p, state);
    talk(p);
    return true;
}

static bool socket_ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector,
                        GError **error)
{
    SocketPeer *p = (SocketPeer *)peer;

    /* what was written to memory before is visible before the interrupt */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (ivshmem2_session_ring(p->session, target, vector, NULL) !=
        IVSHMEM2_RING_REQUESTED) {
        return true;
    }
    p->owing |= !p->up;
    talk(p);
    p->owing |= !p->up;
    if (!p->up && (p->refused || p->options.resume_ms < 0)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_CLOSED,
                             "the server is gone, and only it knew how to "
                             "ring vector %u of peer %u", vector, target);
    }
    return true;
}

static bool socket_read(const Ivshmem2Peer *peer, uint64_t offset, void *buf,
                        size_t length, GError **error)
{
    return ivshmem2_session_read(((const SocketPeer *)peer)->session, offset,
                                 buf, length, error);
}

static void say_goodbye(SocketPeer *p)
{
    int64_t deadline = ivshmem2_deadline(CLOSE_TIMEOUT_US);

    if (p->up) {
        /* requests that still wait for the server go first, GOODBYE last */
        if (converse_until(p, false, deadline, NULL)) {
            ivshmem2_session_goodbye(p->session);
            converse_until(p, false, deadline, NULL);
        }
        return;
    }
    if (!p->parent.memory) {
        return;
    }
    /* a server that is just back reads HELLO and GOODBYE when it can */
    if (p->conn.fd < 0 && p->due_us >= 0 && !p->refused) {
        attempt(p);
    }
    if (p->conn.fd >= 0) {
        ivshmem2_session_goodbye(p->session);
        send_all(p, NULL);
    }
}

static void socket_close(Ivshmem2Peer *peer)
{
    SocketPeer *p = (SocketPeer *)peer;

    if (peer->memory) {
        store_state(p, 0);
    }
    say_goodbye(p);
    ivshmem2_transport_clear(&p->conn);
    /* those whose eventfds are known are told if the server was not */
    ivshmem2_session_disconnected(p->session);
    ivshmem2_session_free(p->session);
    ivshmem2_close(&p->timer_fd);
    ivshmem2_close(&peer->service_fd);
    drop_events(p);
    g_free(peer->eventfds);
    g_free(p->path);
}

static const Ivshmem2PeerOps socket_ops = {
    .set_state = socket_set_state,
    .ring = socket_ring,
    .service = socket_service,
    .connected = socket_connected,
    .pending = socket_pending,
    .event = socket_event,
    .read = socket_read,
    .close = socket_close,
};

/* Joining */

static void set_info(SocketPeer *p)
{
    const Ivshmem2Welcome *w = ivshmem2_session_info(p->session);

    p->parent.info = (Ivshmem2PeerInfo) {
        .id = w->id,
        .max_peers = w->max_peers,
        .vectors = w->vectors,
        .enabled_vectors = w->vectors,
        .msix = w->features == IVSHMEM2_F_MSIX,
        .protocol = w->protocol,
        .state_table_size = w->state_table_size,
        .rw_size = w->rw_size,
        .output_size = w->output_size,
        .memory_type = IVSHMEM2_MEMORY_WRITE_BACK,
    };
}

static bool watch_server(SocketPeer *p, GError **error)
{
    struct epoll_event event = { .events = EPOLLIN };
    Ivshmem2Peer *peer = &p->parent;

    peer->service_fd = epoll_create1(EPOLL_CLOEXEC);
    p->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (peer->service_fd < 0 || p->timer_fd < 0 ||
        epoll_ctl(peer->service_fd, EPOLL_CTL_ADD, p->timer_fd, &event) < 0) {
        return ivshmem2_fail_errno(error, "cannot wait for the server");
    }
    update_watch(p);
    return true;
}

static bool join(SocketPeer *p, int64_t deadline, GError **error)
{
    Ivshmem2Peer *peer = &p->parent;

    ivshmem2_session_connected(p->session);
    if (!converse_until(p, true, deadline, error)) {
        return false;
    }
    set_info(p);
    peer->eventfds = g_new(int, peer->info.vectors);
    for (uint32_t i = 0; i < peer->info.vectors; i++) {
        peer->eventfds[i] = ivshmem2_session_own_eventfd(p->session, i);
    }
    if (!watch_server(p, error)) {
        return false;
    }
    peer->memory = ivshmem2_session_map(p->session, error);
    if (!peer->memory) {
        return false;
    }
    /* it is mapped, so it fits */
    peer->memory_size = ivshmem2_total_size(ivshmem2_session_info(p->session));
    return ivshmem2_peer_complete(peer, error);
}

/* All options.  Those that the program does not know have their defaults. */
static bool take_options(Ivshmem2SocketOptions *o,
                         const Ivshmem2SocketOptions *given, GError **error)
{
    *o = (Ivshmem2SocketOptions) IVSHMEM2_SOCKET_OPTIONS_INIT;
    if (!given) {
        return true;
    }
    if (given->size != sizeof(*o) && given->size != OLDEST_OPTIONS) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "options of %zu bytes: they are not initialized "
                             "with IVSHMEM2_SOCKET_OPTIONS_INIT, or the "
                             "program needs a newer libivshmem2", given->size);
    }
    memcpy(o, given, given->size);
    if (o->flags & ~KNOWN_FLAGS) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "unknown flags 0x%" PRIx64 ": the program needs "
                             "a newer libivshmem2", o->flags & ~KNOWN_FLAGS);
    }
    if (o->resume_ms != -1 &&
        (o->resume_ms < 1 || o->resume_slowest_ms < o->resume_ms)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "resume_ms %d is not possible, it must be -1, or "
                             "from 1 to resume_slowest_ms %d", o->resume_ms,
                             o->resume_slowest_ms);
    }
    return true;
}

/* For programs that change their directory, if it is not too long then */
static char *absolute_path(const char *path)
{
    g_autofree char *here = g_get_current_dir();
    char *whole = path[0] == '/' || path[0] == '@' ?
                  NULL : g_build_filename(here, path, NULL);

    if (!whole || strlen(whole) > IVSHMEM2_MAX_SOCKET_PATH) {
        g_free(whole);
        return g_strdup(path);
    }
    return whole;
}

Ivshmem2Peer *ivshmem2_peer_open_socket(const char *path,
                                        const Ivshmem2SocketOptions *options,
                                        GError **error)
{
    Ivshmem2SocketOptions o;
    Ivshmem2Hello hello = {
        .features = IVSHMEM2_F_MSIX | IVSHMEM2_F_INTX,
        .vectors = IVSHMEM2_MAX_VECTORS,
    };
    int64_t deadline;
    SocketPeer *p;
    int fd;

    if (!take_options(&o, options, error)) {
        return NULL;
    }
    deadline = ivshmem2_deadline((int64_t)o.timeout_ms * 1000);
    fd = ivshmem2_connect(path, deadline);
    if (fd < 0) {
        ivshmem2_fail_connect(path, -fd, error);
        return NULL;
    }
    p = (SocketPeer *)ivshmem2_peer_new(sizeof(*p), &socket_ops);
    p->tried_us = g_get_monotonic_time();
    p->due_us = -1;
    p->timer_fd = -1;
    p->path = absolute_path(path);
    p->options = o;
    p->options.name = NULL;
    ivshmem2_transport_init_consume(&p->conn, fd, IVSHMEM2_SERVER);
    hello.id = o.id;
    ivshmem2_set_text(hello.name, sizeof(hello.name), o.name ? o.name : "");
    p->session = ivshmem2_session_new(&hello);
    if (o.flags & IVSHMEM2_SOCKET_KEEP_FILES) {
        ivshmem2_session_keep_files(p->session);
    }
    if (!join(p, deadline, error)) {
        ivshmem2_peer_close(&p->parent);
        return NULL;
    }
    return &p->parent;
}
