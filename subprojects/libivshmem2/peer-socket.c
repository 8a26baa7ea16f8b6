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
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
#include "libivshmem2-peer.h"
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"

/* The time that closing may take if the server does not read */
#define CLOSE_TIMEOUT_US    (1000 * 1000)
/* Messages of the server that are handled between two looks at the time */
#define RECEIVE_BATCH       64

/* Ivshmem2SocketOptions.flags */
#define KNOWN_FLAGS         IVSHMEM2_SOCKET_KEEP_FILES

/* The public header does not include the header of the protocol. */
_Static_assert(IVSHMEM2_PEER_ID_ANY == IVSHMEM2_ID_ANY,
               "a program's wish is passed on to the server");

/* No padding at the end that could hide an appended field. */
_Static_assert(sizeof(Ivshmem2SocketOptions) ==
               offsetof(Ivshmem2SocketOptions, flags) + sizeof(uint64_t),
               "a field that is appended changes the size");

typedef struct SocketPeer {
    Ivshmem2Peer parent;
    Ivshmem2Session *session;
    Ivshmem2Transport conn;
    uint32_t state;             /* others can write the State Table, too */
} SocketPeer;

/* A server that is gone may not have been noticed by talk() yet. */
static bool socket_connected(const Ivshmem2Peer *peer)
{
    struct pollfd pfd = {
        .fd = ((const SocketPeer *)peer)->conn.fd,
        .events = POLLRDHUP,
    };

    return pfd.fd >= 0 && poll(&pfd, 1, 0) <= 0;
}

/* The conversation */

static bool send_all(SocketPeer *p, GError **error)
{
    Ivshmem2Msg msg;
    int ret = ivshmem2_transport_flush(&p->conn, error);

    /* clients send no descriptors, so it is never BUSY */
    while (ret == 1 && ivshmem2_session_next(p->session, &msg)) {
        ret = ivshmem2_transport_send(&p->conn, &msg, NULL, error);
    }
    return ret >= 0;
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

/* Send and receive what is possible now. */
static bool converse(SocketPeer *p, GError **error)
{
    g_autoptr(GError) send_error = NULL;
    bool sent = send_all(p, &send_error);

    /* A server that closed may have sent the reason: a better error. */
    if (!receive_some(p, error)) {
        return false;
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
            return ivshmem2_fail(error, IVSHMEM2_ERROR_TIMEOUT,
                                 "the server does not answer in time, is "
                                 "it stopped?");
        }
        pfd.events |= ivshmem2_transport_is_sending(&p->conn) ? POLLOUT : 0;
        poll(&pfd, 1, left_ms);
    }
}

/* Memory and doorbells go on working without a server. */
static void lose_server(SocketPeer *p)
{
    if (p->parent.epoll_fd >= 0) {
        ivshmem2_peer_watch_service(&p->parent, 0);
    }
    p->parent.service_fd = -1;
    ivshmem2_transport_clear(&p->conn);
    ivshmem2_session_disconnected(p->session);
}

/* Send and receive what is possible without waiting. */
static void talk(SocketPeer *p)
{
    if (p->conn.fd >= 0 && !converse(p, NULL)) {
        lose_server(p);
    }
    if (p->conn.fd >= 0) {
        ivshmem2_peer_watch_service(&p->parent, EPOLLIN |
            (ivshmem2_transport_is_sending(&p->conn) ? EPOLLOUT : 0));
    }
}

static bool socket_service(Ivshmem2Peer *peer, GError **error)
{
    talk((SocketPeer *)peer);
    return true;
}

static void store_state(SocketPeer *p, uint32_t state)
{
    uint32_t *table = p->parent.memory;

    if (state != p->state) {
        p->state = state;
        __atomic_store_n(&table[p->parent.info.id], GUINT32_TO_LE(state),
                         __ATOMIC_RELEASE);
        ivshmem2_session_state_changed(p->session, state);
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
    talk(p);
    if (p->conn.fd < 0) {
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

static void socket_close(Ivshmem2Peer *peer)
{
    SocketPeer *p = (SocketPeer *)peer;
    int64_t deadline = ivshmem2_deadline(CLOSE_TIMEOUT_US);

    if (peer->memory) {
        store_state(p, 0);
    }
    if (ivshmem2_session_ready(p->session)) {
        /* requests that still wait for the server go first, GOODBYE last */
        if (!converse_until(p, false, deadline, NULL)) {
            lose_server(p);
        } else {
            ivshmem2_session_goodbye(p->session);
            converse_until(p, false, deadline, NULL);
        }
    }
    ivshmem2_transport_clear(&p->conn);
    ivshmem2_session_free(p->session);
    g_free(peer->eventfds);
}

static const Ivshmem2PeerOps socket_ops = {
    .set_state = socket_set_state,
    .ring = socket_ring,
    .service = socket_service,
    .connected = socket_connected,
    .read = socket_read,
    .close = socket_close,
};

/* Joining */

/* What to do about a connect() to @path that failed with @cause */
static const char *connect_hint(const char *path, int cause)
{
    struct stat st;

    switch (cause) {
    case ECONNREFUSED:
        /* it also means this; a name with @ is no file */
        if (path[0] != '@' && stat(path, &st) == 0 && !S_ISSOCK(st.st_mode)) {
            return ", it is not a socket";
        }
        return ", is ivshmem2-server running?";
    case ENOENT:
        return ", is ivshmem2-server running?";
    case EACCES:
        return "; the permissions of the socket and of the directories above "
               "it decide who may connect (see --socket-mode and "
               "--socket-group of ivshmem2-server)";
    default:
        return "";
    }
}

static void fail_connect(const char *path, int cause, GError **error)
{
    if (cause == EAGAIN) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_TIMEOUT,
                      "the server at '%s' does not accept in time, is it "
                      "stopped?", path);
    } else {
        ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "cannot connect to '%s': %s%s",
                      path, g_strerror(cause), connect_hint(path, cause));
    }
}

static int connect_to(const char *path, int64_t deadline, GError **error)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    socklen_t len = sizeof(addr);
    int left_ms = ivshmem2_deadline_ms(deadline);
    /* SO_SNDTIMEO 0 means no limit */
    struct timeval timeout = {
        .tv_sec = MAX(left_ms, 0) / 1000,
        .tv_usec = left_ms ? MAX(left_ms, 0) % 1000 * 1000 : 1,
    };
    int fd, ret;

    if (strlen(path) >= sizeof(addr.sun_path)) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "socket path '%s' is longer than the %zu bytes that the "
                      "system allows", path, sizeof(addr.sun_path) - 1);
        return -1;
    }
    strcpy(addr.sun_path, path);
    if (path[0] == '@') {
        /* not a file, see unix(7); its length is the name's */
        addr.sun_path[0] = 0;
        len = offsetof(struct sockaddr_un, sun_path) + strlen(path);
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd >= 0) {
        /* connect() waits at most this long for a server to accept */
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
        do {
            ret = connect(fd, (struct sockaddr *)&addr, len);
        } while (ret < 0 && errno == EINTR);
        if (ret == 0) {
            return fd;
        }
    }
    fail_connect(path, errno, error);
    ivshmem2_close(&fd);
    return -1;
}

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
    peer->service_fd = p->conn.fd;
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
    if (given->size != sizeof(*o)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "options of %zu bytes: they are not initialized "
                             "with IVSHMEM2_SOCKET_OPTIONS_INIT, or the "
                             "program needs a newer libivshmem2", given->size);
    }
    *o = *given;
    if (o->flags & ~KNOWN_FLAGS) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "unknown flags 0x%" PRIx64 ": the program needs "
                             "a newer libivshmem2", o->flags & ~KNOWN_FLAGS);
    }
    return true;
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
    fd = connect_to(path, deadline, error);
    if (fd < 0) {
        return NULL;
    }
    p = (SocketPeer *)ivshmem2_peer_new(sizeof(*p), &socket_ops);
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
