/*
 * The server's I/O: connections and processes
 *
 * Nothing here waits for a client, and a client that does not go on costs no
 * more than its connection: as long as there is something to send to it,
 * nothing is read from it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "daemon.h"
#include "libivshmem2-transport.h"
#include "lobby.h"
#include "loop.h"
#include "server.h"

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif
#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/*
 * Fairness, see also IVSHMEM2_INTERRUPTS_PER_TURN: system calls for a client,
 * of which a message takes two to be received and one to be sent.  The
 * handshake of a large link fits; what does not is sent when the client has
 * read most of it.
 */
#define CALLS_TO_RECEIVE        2
#define CALLS_TO_SEND           1
#define CALLS_PER_TURN          6
#define ACCEPTS_PER_TURN        4

/*
 * As small as the kernel makes it.  What was sent to a client that does not
 * read is the kernel's memory and counts, descriptors above all, against all
 * that this server's user may have in flight.
 */
#define SEND_BUFFER             1

/*
 * Linux lets a user have as many descriptors in flight (sent, not received)
 * as the sender may have open.  A client has no more than two messages full
 * of them while it joins, and two of them later.  Half of what is allowed is
 * for those who join.
 */
#define FDS_IN_FLIGHT           (2 * IVSHMEM2_MAX_FDS)
#define MIN_PLACES              4
#define MAX_PLACES              1024

/* Nothing reports that a client has read the last of what it was sent. */
#define CHECK_INTERVAL          (G_USEC_PER_SEC / 100)

/* Who was sent away gets this long to read why. */
#define SHORT_TIME              G_USEC_PER_SEC

/* So many of a user who is at its limits are told. */
#define REFUSALS_PER_USER       8

/* Between two complaints about the same */
#define COMPLAINT_INTERVAL      (10 * G_USEC_PER_SEC)

struct Ivshmem2Daemon {
    Ivshmem2Server *server;
    Ivshmem2Loop loop;
    Ivshmem2Timers handshakes;
    Ivshmem2Timers short_times;
    Ivshmem2Timers checks;
    Ivshmem2Timer check_timer;  /* running: somebody waits for others */
    GQueue connections;
    unsigned n_holds;
    Ivshmem2Lobby lobby;
    Ivshmem2Link *link;         /* borrowed */
    const Ivshmem2Access *access;   /* borrowed; NULL: all IDs for all */
    int fd_limit;
    int n_other_fds;            /* but for connections, link and holds */

    int listen_fd;              /* borrowed */
    Ivshmem2Watch listen_watch;
    Ivshmem2Timer listen_timer; /* running: no descriptors to accept with */
    int64_t next_complaint;

    int signal_fd;
    Ivshmem2Watch signal_watch;
    int signal;                 /* that arrived, or 0 */
    bool more;                  /* broadcasts to go on with */
};

typedef struct Connection {
    Ivshmem2Watch watch;
    Ivshmem2Timer timer;
    GList node;
    Ivshmem2Joiner joiner;
    Ivshmem2Daemon *daemon;
    bool lingering;             /* all is said; what it says is ignored */
    bool deaf;                  /* cannot be sent to; may have said more */
    bool blocked;               /* not to be looked at before the check */
    uint8_t unread;             /* it may not have read so many descriptors */
    uint8_t last_sent;          /* of them: with the last message */
    Ivshmem2Transport conn;
    Ivshmem2Client client;
} Connection;

/* A process that may still use the eventfds of its former slot */
typedef struct Hold {
    Ivshmem2Hold hold;
    Ivshmem2Watch watch;
    Ivshmem2Timer timer;
    Ivshmem2Daemon *daemon;
    int pidfd;                  /* or -1 */
} Hold;

#define CONTAINER(ptr, type, member) \
    ((type *)((char *)(ptr) - offsetof(type, member)))

static void connection_run(Connection *c);
static void connection_set_timer(Connection *c);
static void listen_again(Ivshmem2Daemon *d);
static void check_joiners(Ivshmem2Daemon *d);
static void check_later(Ivshmem2Daemon *d);

/* Connections */

/* Those who got a place can go on. */
static void admit(Ivshmem2Daemon *d)
{
    Ivshmem2Joiner *j;

    while ((j = ivshmem2_lobby_next(&d->lobby))) {
        Connection *c = CONTAINER(j, Connection, joiner);

        connection_set_timer(c);
        ivshmem2_loop_modify(&d->loop, &c->watch, c->conn.fd, EPOLLOUT);
    }
}

static void connection_leave_lobby(Connection *c)
{
    ivshmem2_lobby_leave(&c->daemon->lobby, &c->joiner);
    admit(c->daemon);
}

static void connection_free(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    connection_leave_lobby(c);
    ivshmem2_timer_stop(&c->timer);
    ivshmem2_client_clear(&c->client);
    ivshmem2_loop_remove(&d->loop, &c->watch, c->conn.fd);
    ivshmem2_transport_clear(&c->conn);
    g_queue_unlink(&d->connections, &c->node);
    ivshmem2_loop_free_later(&d->loop, c);
    if (d->listen_timer.queue) {
        listen_again(d);
    }
}

static void linger_expired(Ivshmem2Timer *t)
{
    connection_free(CONTAINER(t, Connection, timer));
}

static short connection_poll(const Connection *c, short events)
{
    struct pollfd pfd = { .fd = c->conn.fd, .events = events };

    return poll(&pfd, 1, 0) == 1 ? pfd.revents : 0;
}

/* Has the client read all that was sent to it? */
static bool connection_is_read(const Connection *c)
{
    int bytes;

    return ioctl(c->conn.fd, SIOCOUTQ, &bytes) < 0 || bytes == 0;
}

/* The handshake is complete when READY was read, and not when it was sent. */
static bool connection_has_joined(const Connection *c)
{
    return ivshmem2_client_is_ready(&c->client) && connection_is_read(c);
}

static void handshake_expired(Ivshmem2Timer *t)
{
    Connection *c = CONTAINER(t, Connection, timer);

    if (!connection_has_joined(c)) {
        ivshmem2_client_refuse(&c->client, IVSHMEM2_REFUSAL_TIMEOUT,
                               "the handshake was not complete after %" PRId64
                               " seconds", c->daemon->handshakes.duration /
                               G_USEC_PER_SEC);
    }
    c->blocked = false;
    connection_run(c);
}

/* May it have more descriptors in flight? */
static bool connection_may_send(Connection *c)
{
    unsigned max = c->joiner.stage == IVSHMEM2_OUTSIDE ? 0
                   : FDS_IN_FLIGHT - IVSHMEM2_MAX_FDS;

    if (c->unread > max && !ivshmem2_client_is_sent_away(&c->client)) {
        /*
         * Linux calls a socket writable if only a quarter of its buffer is in
         * use, which is one message at most.
         */
        if (!connection_poll(c, POLLOUT)) {
            return false;
        }
        c->unread = c->last_sent;
    }
    return true;
}

static int connection_send_next(Connection *c, GError **error)
{
    Ivshmem2Msg msg;
    const int *fds;

    ivshmem2_client_next(&c->client, &msg, &fds);
    /* what has no descriptors hides from us whether others were read */
    c->last_sent = MAX(msg.hdr.fds, 1);
    c->unread += c->last_sent;
    return ivshmem2_transport_send(&c->conn, &msg, fds, error);
}

/*
 * Too many descriptors are in flight.  Returns true if it can do without what
 * was to be sent.
 */
static bool connection_postpone(Connection *c)
{
    if (ivshmem2_client_is_sent_away(&c->client)) {
        ivshmem2_transport_cancel(&c->conn);
    } else if (c->joiner.stage == IVSHMEM2_OUTSIDE) {
        /* it asks again when it needs the descriptor again */
        ivshmem2_transport_omit_fds(&c->conn);
    } else {
        c->blocked = true;
    }
    return !c->blocked;
}

/* Returns false if there is no more room to send, or no more sense in it. */
static bool connection_send(Connection *c)
{
    g_autoptr(GError) error = NULL;
    int ret;

    if (ivshmem2_transport_is_sending(&c->conn)) {
        ret = ivshmem2_transport_flush(&c->conn, &error);
    } else if (connection_may_send(c)) {
        ret = connection_send_next(c, &error);
    } else {
        return false;
    }
    if (ret == IVSHMEM2_TRANSPORT_BUSY) {
        return connection_postpone(c);
    }
    if (ret < 0) {
        g_debug("'%s' (pid %d): %s", c->client.name, c->client.pid,
                error->message);
        c->deaf = true;
    }
    return ret > 0;
}

/* Returns false if it has to wait for others. */
static bool connection_enter(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    if (c->joiner.stage == IVSHMEM2_LOBBY &&
        !ivshmem2_lobby_ask(&d->lobby, &c->joiner) && !d->check_timer.queue) {
        check_joiners(d);
    }
    return c->joiner.stage != IVSHMEM2_WAITING;
}

/* Returns false if there is nothing more to read. */
static bool connection_receive(Connection *c, bool *closed)
{
    g_autoptr(GError) error = NULL;
    int ret = 1;

    /* else it got the place that it had asked for */
    if (!ivshmem2_decoder_complete(&c->conn.in)) {
        ret = ivshmem2_transport_receive(&c->conn, &error);
        if (ret > 0 && !connection_enter(c)) {
            return false;
        }
    }
    if (ret > 0) {
        ivshmem2_client_receive(&c->client, &c->conn.in.msg);
        ivshmem2_decoder_reset(&c->conn.in);
    } else if (ret < 0 && error->code == IVSHMEM2_ERROR_PROTOCOL) {
        ivshmem2_client_refuse(&c->client, IVSHMEM2_REFUSAL_PROTOCOL, "%s",
                               error->message);
        ivshmem2_decoder_reset(&c->conn.in);
    } else {
        *closed = ret < 0;
        return false;
    }
    return true;
}

/*
 * Closing a socket that holds unread data breaks the connection, and ERROR
 * may be lost.  So say that there is no more to come, and let the client
 * close.
 */
static bool connection_discard(Connection *c, bool *closed)
{
    char buf[4096];
    ssize_t len = recv(c->conn.fd, buf, sizeof(buf), MSG_DONTWAIT);

    if (len < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        return false;
    }
    *closed = len == 0 || (len < 0 && errno != EINTR);
    return !*closed;
}

static void connection_end(Connection *c)
{
    c->lingering = true;
    shutdown(c->conn.fd, SHUT_WR);
}

static bool connection_has_output(const Connection *c)
{
    return !c->deaf && (ivshmem2_transport_is_sending(&c->conn) ||
                        ivshmem2_client_has_next(&c->client));
}

/* Returns false if it cannot go on now. */
static bool connection_step(Connection *c, bool *closed)
{
    if (c->joiner.stage == IVSHMEM2_WAITING) {
        *closed = connection_poll(c, 0) & POLLHUP;
        return false;
    }
    if (connection_has_output(c)) {
        return connection_send(c) || c->deaf;
    }
    if (c->lingering) {
        return connection_discard(c, closed);
    }
    if (ivshmem2_client_is_over(&c->client)) {
        connection_end(c);
        return true;
    }
    if (ivshmem2_client_is_ready(&c->client) &&
        c->joiner.stage == IVSHMEM2_JOINING) {
        if (!connection_has_joined(c)) {
            /* who says something first waits until it has read all */
            c->blocked = connection_poll(c, POLLIN);
            return false;
        }
        connection_leave_lobby(c);
    }
    return connection_receive(c, closed);
}

static void connection_set_timer(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    if (ivshmem2_client_is_sent_away(&c->client)) {
        if (c->timer.queue != &d->short_times.queue) {
            ivshmem2_timer_start(&c->timer, &d->short_times, linger_expired);
        }
    } else if (c->joiner.stage == IVSHMEM2_OUTSIDE ||
               c->joiner.stage == IVSHMEM2_WAITING) {
        ivshmem2_timer_stop(&c->timer);
    } else if (!c->timer.queue) {
        ivshmem2_timer_start(&c->timer, &d->handshakes, handshake_expired);
    }
}

static uint32_t connection_events(const Connection *c)
{
    if (c->blocked || c->joiner.stage == IVSHMEM2_WAITING) {
        return 0;
    }
    return connection_has_output(c) ? EPOLLOUT : EPOLLIN;
}

static void connection_run(Connection *c)
{
    bool closed = false;
    bool more = true;

    for (int calls = 0; more && calls < CALLS_PER_TURN; ) {
        calls += connection_has_output(c) ? CALLS_TO_SEND : CALLS_TO_RECEIVE;
        more = connection_step(c, &closed);
    }
    /* who cannot be sent to is of use only as long as it has something */
    if (closed || (c->deaf && !more)) {
        connection_free(c);
        return;
    }
    connection_set_timer(c);
    ivshmem2_loop_modify(&c->daemon->loop, &c->watch, c->conn.fd,
                         connection_events(c));
    if (c->blocked || c->joiner.stage == IVSHMEM2_WAITING) {
        check_later(c->daemon);
    }
}

static void connection_ready(Ivshmem2Watch *w)
{
    connection_run(CONTAINER(w, Connection, watch));
}

static void wake(Ivshmem2Client *client)
{
    Connection *c = CONTAINER(client, Connection, client);

    c->blocked = false;
    connection_set_timer(c);
    ivshmem2_loop_modify(&c->daemon->loop, &c->watch, c->conn.fd, EPOLLOUT);
}

static Connection *connection_new_consume(Ivshmem2Daemon *d, int fd,
                                          const struct ucred *cred)
{
    g_autoptr(GError) error = NULL;
    Connection *c = g_new0(Connection, 1);
    int send_buffer = SEND_BUFFER;

    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof(send_buffer));
    c->daemon = d;
    c->node.data = c;
    c->watch.ready = connection_ready;
    ivshmem2_transport_init_consume(&c->conn, fd, IVSHMEM2_CLIENT);
    ivshmem2_client_init(&c->client, d->server, cred->pid, cred->uid);
    g_queue_push_tail_link(&d->connections, &c->node);
    ivshmem2_lobby_enter(&d->lobby, &c->joiner, cred->uid);
    connection_set_timer(c);
    if (!ivshmem2_loop_add(&d->loop, &c->watch, fd, EPOLLIN, &error)) {
        g_warning("%s", error->message);
        connection_free(c);
        return NULL;
    }
    return c;
}

/* Checks */

/*
 * Who has joined in the meantime?  If that makes room for those who wait, it
 * pays; if it does not, it is not done again soon.
 */
static void check_joiners(Ivshmem2Daemon *d)
{
    GList *next;

    for (GList *node = d->lobby.joining.head; node; node = next) {
        Connection *c = CONTAINER(node->data, Connection, joiner);

        next = node->next;
        if (c->blocked) {
            c->blocked = false;
            ivshmem2_loop_modify(&d->loop, &c->watch, c->conn.fd,
                                 connection_events(c));
        } else if (connection_has_joined(c)) {
            ivshmem2_lobby_leave(&d->lobby, &c->joiner);
            connection_set_timer(c);
        }
    }
    admit(d);
    if (d->lobby.waiting.length) {
        check_later(d);
    }
}

static void check_expired(Ivshmem2Timer *t)
{
    ivshmem2_timer_stop(t);
    check_joiners(CONTAINER(t, Ivshmem2Daemon, check_timer));
}

static void check_later(Ivshmem2Daemon *d)
{
    if (!d->check_timer.queue) {
        ivshmem2_timer_start(&d->check_timer, &d->checks, check_expired);
    }
}

/* Access */

/* The supplementary groups of who connected; @len: in bytes */
static gid_t *get_groups(int fd, socklen_t *len)
{
    gid_t *gids = NULL;

    *len = 0;
    while (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, gids, len) < 0) {
        if (errno != ERANGE) {
            *len = 0;
            break;
        }
        gids = g_realloc(gids, *len);
    }
    return gids;
}

/* Returns false if it was sent away. */
static bool check_access(Connection *c, const struct ucred *cred)
{
    g_autofree gid_t *gids = NULL;
    socklen_t len;
    GArray *ids;

    if (!c->daemon->access) {
        return true;
    }
    gids = get_groups(c->conn.fd, &len);
    gids = g_realloc(gids, len + sizeof(gid_t));
    gids[len / sizeof(gid_t)] = cred->gid;
    ids = ivshmem2_access_find(c->daemon->access, cred->uid, gids,
                               len / sizeof(gid_t) + 1);
    if (!ids) {
        ivshmem2_client_refuse(&c->client, IVSHMEM2_REFUSAL_PERMISSION,
                               "the user with uid %u may not connect",
                               cred->uid);
        return false;
    }
    ivshmem2_client_restrict_consume(&c->client, ids);
    return true;
}

/* Descriptors that can still be used */
static unsigned count_free_fds(const Ivshmem2Daemon *d)
{
    int64_t used = (int64_t)d->n_other_fds + d->connections.length +
                   d->n_holds + d->link->n_fds;

    return d->fd_limit ? MAX(d->fd_limit - used, 0) : G_MAXINT;
}

/*
 * No user's joiners can take more descriptors than are left for others then.
 * Returns false if it was sent away.
 */
static bool check_limits(Connection *c, const struct ucred *cred)
{
    Ivshmem2Daemon *d = c->daemon;
    unsigned n = ivshmem2_lobby_count(&d->lobby, cred->uid);

    if (d->fd_limit && c->conn.fd >= d->fd_limit) {
        ivshmem2_client_refuse(&c->client, IVSHMEM2_REFUSAL_LIMIT,
                               "the server may not open more files");
        return false;
    }
    if (n > count_free_fds(d) + 1) {
        ivshmem2_client_refuse(&c->client, IVSHMEM2_REFUSAL_LIMIT,
                               "the user with "
                               "uid %u has %u connections that have not "
                               "joined, the server has to leave open files to "
                               "others", cred->uid, n - 1);
        return false;
    }
    return true;
}

/* Listening */

static void listen_expired(Ivshmem2Timer *t)
{
    listen_again(CONTAINER(t, Ivshmem2Daemon, listen_timer));
}

static void listen_again(Ivshmem2Daemon *d)
{
    ivshmem2_timer_stop(&d->listen_timer);
    ivshmem2_loop_modify(&d->loop, &d->listen_watch, d->listen_fd, EPOLLIN);
}

static void complain(Ivshmem2Daemon *d, const char *why)
{
    int64_t now = g_get_monotonic_time();

    if (now >= d->next_complaint) {
        g_warning("cannot accept a connection: %s", why);
        d->next_complaint = now + COMPLAINT_INTERVAL;
    }
}

/* Nothing can be accepted: do not spin. */
static void listen_later(Ivshmem2Daemon *d)
{
    complain(d, g_strerror(errno));
    ivshmem2_timer_start(&d->listen_timer, &d->short_times, listen_expired);
    ivshmem2_loop_modify(&d->loop, &d->listen_watch, d->listen_fd, 0);
}

/* Words for everybody would take the descriptors that are short. */
static bool is_pushy(const Ivshmem2Daemon *d, uid_t uid)
{
    return ivshmem2_lobby_count(&d->lobby, uid) >=
           (uint64_t)count_free_fds(d) + REFUSALS_PER_USER;
}

static void take_connection(Ivshmem2Daemon *d, int fd)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);
    Connection *c;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
        complain(d, g_strerror(errno));
        ivshmem2_close(&fd);
        return;
    }
    if (is_pushy(d, cred.uid)) {
        complain(d, "too many by one user that have not joined yet");
        ivshmem2_close(&fd);
        return;
    }
    c = connection_new_consume(d, fd, &cred);
    if (c && (!check_limits(c, &cred) || !check_access(c, &cred))) {
        connection_run(c);
    }
}

static void listen_ready(Ivshmem2Watch *w)
{
    Ivshmem2Daemon *d = CONTAINER(w, Ivshmem2Daemon, listen_watch);

    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(d->listen_fd, NULL, NULL,
                         SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                errno == ENOMEM) {
                listen_later(d);
            }
            return;
        }
        take_connection(d, fd);
    }
}

/* Processes */

static bool process_is_gone(int pidfd)
{
    struct pollfd pfd = { .fd = pidfd, .events = POLLIN };

    return poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLIN);
}

/*
 * Returns a pidfd of the process at the other end of @fd, or -1, and *@gone
 * if there is no such process any more.
 */
static int open_process(int fd, pid_t pid, bool *gone)
{
    int pidfd = -1;
    socklen_t len = sizeof(pidfd);

    if (!pid) {
        return -1;
    }
    if (getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) < 0) {
        pidfd = -1;
        /* What Linux says of reaped processes differs with its version. */
        *gone = errno == ESRCH || errno == EINVAL || errno == ENODATA;
        if (errno == ENOPROTOOPT) {
            /*
             * Linux before 6.5.  In theory the pid belongs to somebody else
             * by now; then the slot is held too long, never too short.
             */
            pidfd = syscall(SYS_pidfd_open, pid, 0);
            *gone = pidfd < 0 && errno == ESRCH;
        }
    }
    if (pidfd >= 0 && process_is_gone(pidfd)) {
        ivshmem2_close(&pidfd);
        *gone = true;
    }
    return pidfd;
}

static void hold_release(Hold *h)
{
    ivshmem2_server_release(h->daemon->server, h->hold.id);
}

static void hold_ready(Ivshmem2Watch *w)
{
    hold_release(CONTAINER(w, Hold, watch));
}

/* Where no pidfd is to be had: the pid, or time must do. */
static void hold_expired(Ivshmem2Timer *t)
{
    Hold *h = CONTAINER(t, Hold, timer);

    if (h->hold.pid && (kill(h->hold.pid, 0) == 0 || errno != ESRCH)) {
        ivshmem2_timer_start(t, &h->daemon->short_times, hold_expired);
    } else {
        hold_release(h);
    }
}

static Ivshmem2Hold *hold_slot(Ivshmem2Client *client,
                               const Ivshmem2Hold *hold)
{
    Connection *c = CONTAINER(client, Connection, client);
    Ivshmem2Daemon *d = c->daemon;
    bool gone = false;
    int pidfd = open_process(c->conn.fd, hold->pid, &gone);
    Hold *h;

    if (gone) {
        return NULL;
    }
    d->n_holds++;
    h = g_new0(Hold, 1);
    h->hold = *hold;
    h->daemon = d;
    h->pidfd = pidfd;
    h->watch.ready = hold_ready;
    if (pidfd >= 0 &&
        !ivshmem2_loop_add(&d->loop, &h->watch, pidfd, EPOLLIN, NULL)) {
        ivshmem2_close(&h->pidfd);
    }
    if (h->pidfd < 0) {
        ivshmem2_timer_start(&h->timer, &d->short_times, hold_expired);
    }
    return &h->hold;
}

static void unhold_slot(Ivshmem2Hold *hold)
{
    Hold *h = CONTAINER(hold, Hold, hold);

    h->daemon->n_holds--;
    ivshmem2_timer_stop(&h->timer);
    if (h->pidfd >= 0) {
        ivshmem2_loop_remove(&h->daemon->loop, &h->watch, h->pidfd);
        ivshmem2_close(&h->pidfd);
    }
    ivshmem2_loop_free_later(&h->daemon->loop, h);
}

/* The daemon */

static const Ivshmem2ServerOps server_ops = {
    .hold = hold_slot,
    .unhold = unhold_slot,
    .wake = wake,
};

static unsigned count_places(int fd_limit)
{
    return fd_limit ? CLAMP(fd_limit / 2 / FDS_IN_FLIGHT, MIN_PLACES,
                            MAX_PLACES) : MAX_PLACES;
}

/* Descriptors get the lowest number that is free, so the next one tells. */
static int count_fds(int any_fd)
{
    int fd = fcntl(any_fd, F_DUPFD_CLOEXEC, 0);
    int n = fd;

    ivshmem2_close(&fd);
    return MAX(n, 0);
}

Ivshmem2Daemon *ivshmem2_daemon_new(Ivshmem2Link *link, int listen_fd,
                                    const Ivshmem2DaemonConfig *config,
                                    GError **error)
{
    Ivshmem2Daemon *d = g_new0(Ivshmem2Daemon, 1);

    d->server = ivshmem2_server_new(link, &server_ops);
    if (config->ids_per_user) {
        ivshmem2_server_limit_ids(d->server, config->ids_per_user);
    }
    ivshmem2_lobby_init(&d->lobby, count_places(config->fd_limit));
    d->handshakes.duration = config->handshake_timeout * G_USEC_PER_SEC;
    d->short_times.duration = SHORT_TIME;
    d->checks.duration = CHECK_INTERVAL;
    d->link = link;
    d->fd_limit = config->fd_limit;
    d->listen_fd = listen_fd;
    d->listen_watch.ready = listen_ready;
    d->signal_fd = -1;
    if (!ivshmem2_loop_init(&d->loop, error) ||
        !ivshmem2_loop_add(&d->loop, &d->listen_watch, listen_fd, EPOLLIN,
                           error)) {
        ivshmem2_daemon_free(d);
        return NULL;
    }
    d->n_other_fds = count_fds(listen_fd) - link->n_fds;
    return d;
}

/* As well as it can be done without waiting. */
static void say_farewell(Connection *c)
{
    ivshmem2_client_refuse(&c->client, IVSHMEM2_REFUSAL_SHUTDOWN,
                           "the server ends");
    while (connection_has_output(c) && connection_send(c)) {
        continue;
    }
}

void ivshmem2_daemon_free(Ivshmem2Daemon *d)
{
    GList *node;

    ivshmem2_server_shutdown(d->server);
    while ((node = d->connections.head)) {
        say_farewell(node->data);
        connection_free(node->data);
    }
    ivshmem2_server_free(d->server);
    ivshmem2_lobby_clear(&d->lobby);
    ivshmem2_close(&d->signal_fd);
    ivshmem2_loop_clear(&d->loop);
    g_free(d);
}

void ivshmem2_daemon_turn(Ivshmem2Daemon *d, bool wait)
{
    Ivshmem2Timers *timers[] = { &d->handshakes, &d->short_times, &d->checks };
    int64_t deadline = -1;

    for (size_t i = 0; i < G_N_ELEMENTS(timers); i++) {
        int64_t next = ivshmem2_timers_next(timers[i]);

        deadline = deadline < 0 || next < 0 ? MAX(deadline, next)
                                            : MIN(deadline, next);
    }
    ivshmem2_loop_turn(&d->loop, wait && !d->more ? deadline : 0);
    for (size_t i = 0; i < G_N_ELEMENTS(timers); i++) {
        ivshmem2_timers_run(timers[i]);
    }
    d->more = ivshmem2_server_broadcast(d->server,
                                        IVSHMEM2_INTERRUPTS_PER_TURN);
}

void ivshmem2_daemon_set_access(Ivshmem2Daemon *d,
                                const Ivshmem2Access *access)
{
    d->access = access;
}

static void signal_ready(Ivshmem2Watch *w)
{
    Ivshmem2Daemon *d = CONTAINER(w, Ivshmem2Daemon, signal_watch);
    struct signalfd_siginfo info;

    if (read(d->signal_fd, &info, sizeof(info)) == sizeof(info)) {
        d->signal = info.ssi_signo;
    }
}

static bool watch_signals(Ivshmem2Daemon *d, const sigset_t *signals,
                          GError **error)
{
    d->signal_fd = signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (d->signal_fd < 0) {
        g_set_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_IO,
                    "cannot watch for signals: %s", g_strerror(errno));
        return false;
    }
    d->signal_watch.ready = signal_ready;
    return ivshmem2_loop_add(&d->loop, &d->signal_watch, d->signal_fd,
                             EPOLLIN, error);
}

int ivshmem2_daemon_run(Ivshmem2Daemon *d, const sigset_t *signals,
                        GError **error)
{
    if (d->signal_fd < 0 && !watch_signals(d, signals, error)) {
        return -1;
    }
    d->signal = 0;
    while (!d->signal) {
        ivshmem2_daemon_turn(d, true);
    }
    return d->signal;
}
