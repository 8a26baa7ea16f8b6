/*
 * The server's I/O: the connections
 *
 * Nothing here waits for a client, and nothing takes as long as a client
 * likes: no close of what it sent, no blocking write, no connect, no lock.  As
 * long as there is something to send to a client, nothing is read from it, so
 * a client that stops reading costs no more than its connection.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <inttypes.h>
#include <linux/sockios.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>
#include "accept.h"
#include "daemon.h"
#include "holds.h"
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"
#include "lobby.h"
#include "loop.h"
#include "process.h"
#include "server.h"

/*
 * Fairness, see also IVSHMEM2_INTERRUPTS_PER_TURN: system calls for a client,
 * of which a message takes two to be received and one to be sent.  The
 * handshake of a large link fits; of a longer one, the rest is sent when the
 * client has read most of it.  A peer that has more to say is postponed.
 */
#define CALLS_TO_RECEIVE        2
#define CALLS_TO_SEND           1
#define CALLS_PER_TURN          6

/*
 * As small as the kernel makes it.  Messages that a client does not read take
 * the kernel's memory, and their descriptors are in flight.
 */
#define SEND_BUFFER             1

/* No event tells that a client has read its last message, so poll for it. */
#define CHECK_INTERVAL          (G_USEC_PER_SEC / 100)

/*
 * For a client that was sent away to read why, until the next try to accept
 * connections, and between two looks at a process without a pidfd
 */
#define SHORT_TIME              G_USEC_PER_SEC

/*
 * A process that was killed has closed its files soon, but may be in the kernel
 * for long.  Longer than SHORT_TIME, after which a slot is free that was held
 * for a process which cannot be seen.
 */
#define PATIENCE                (SHORT_TIME + SHORT_TIME / 2)

/* Sockets with descriptors that wait for being closed, at most */
#define MAX_DISPOSALS           64

struct Ivshmem2Daemon {
    Ivshmem2Server *server;
    Ivshmem2Loop loop;
    Ivshmem2Timers handshakes;
    Ivshmem2Timers short_times;
    Ivshmem2Holds holds;
    Ivshmem2Timers checks;
    Ivshmem2Timer check_timer;  /* running: a connection waits for others */
    GQueue connections;
    unsigned n_closing;         /* of them */
    Ivshmem2Lobby lobby;
    Ivshmem2Budget *budget;     /* borrowed */
    const Ivshmem2Access *access;   /* borrowed; NULL: all IDs for all */

    Ivshmem2Acceptor acceptor;
    int signal_fd;
    Ivshmem2Watch signal_watch;
    int signal;                 /* the last one that arrived, or 0 */
    bool ending;
};

typedef struct Connection {
    Ivshmem2Watch watch;
    Ivshmem2Timer timer;
    GList node;
    Ivshmem2Joiner joiner;
    Ivshmem2Daemon *daemon;
    bool lingering;             /* all is sent; what comes is ignored */
    bool deaf;                  /* sending failed; there may be more to read */
    bool blocked;               /* until the next check */
    bool closing;               /* by the client, and not all is read */
    int64_t patience;           /* how long it waits for others to end, or 0 */
    uint8_t unread;             /* it may not have read so many descriptors */
    uint8_t last_sent;          /* of them: with the last message */
    Ivshmem2Transport conn;
    Ivshmem2Client *client;     /* NULL: nothing is left but the socket */
} Connection;

static void connection_run(Connection *c);
static void connection_set_timer(Connection *c);
static void check_joiners(Ivshmem2Daemon *d);
static void check_later(Ivshmem2Daemon *d);

/* Connections */

/* Give the free places to connections that wait for one. */
static void admit(Ivshmem2Daemon *d)
{
    Ivshmem2Joiner *j;

    while ((j = ivshmem2_lobby_next(&d->lobby))) {
        Connection *c = IVSHMEM2_CONTAINER(j, Connection, joiner);

        connection_set_timer(c);
        ivshmem2_loop_modify(&d->loop, &c->watch, c->conn.fd, EPOLLOUT);
    }
}

static void connection_leave_lobby(Connection *c)
{
    ivshmem2_lobby_leave(&c->daemon->lobby, &c->joiner);
    admit(c->daemon);
}

/* It will not join: others need not wait until it is closed. */
static void connection_retire(Connection *c, bool stalled)
{
    ivshmem2_lobby_retire(&c->daemon->lobby, &c->joiner, stalled);
    admit(c->daemon);
}

/* Nothing is left but the socket, and what is charged for it. */
static void connection_destroy(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    connection_leave_lobby(c);
    ivshmem2_timer_stop(&c->timer);
    ivshmem2_transport_clear(&c->conn);
    g_queue_unlink(&d->connections, &c->node);
    ivshmem2_budget_discharge_fds(d->budget, 1);
    ivshmem2_loop_free_later(&d->loop, c);
    ivshmem2_acceptor_resume(&d->acceptor);
}

static void parking_expired(Ivshmem2Timer *t)
{
    Connection *c = IVSHMEM2_CONTAINER(t, Connection, timer);

    if (ivshmem2_disposals() < MAX_DISPOSALS) {
        connection_destroy(c);
    } else {
        ivshmem2_timer_start(t, &c->daemon->short_times, parking_expired);
    }
}

/*
 * The thread that closes sockets with descriptors has enough to do.  Until it
 * has done it, the connection counts as one of its user that has not joined.
 */
static void connection_park(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    connection_leave_lobby(c);
    ivshmem2_lobby_enter(&d->lobby, &c->joiner, c->joiner.uid);
    ivshmem2_timer_start(&c->timer, &d->short_times, parking_expired);
}

static void connection_free(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    if (c->client) {
        d->n_closing -= c->closing;
        ivshmem2_client_free(c->client);
        c->client = NULL;
        ivshmem2_loop_remove(&d->loop, &c->watch, c->conn.fd);
    }
    if (!d->ending && ivshmem2_socket_has_unread(c->conn.fd) &&
        ivshmem2_disposals() >= MAX_DISPOSALS) {
        connection_park(c);
    } else {
        connection_destroy(c);
    }
}

static void linger_expired(Ivshmem2Timer *t)
{
    connection_free(IVSHMEM2_CONTAINER(t, Connection, timer));
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

/* The handshake is complete when the client has read READY. */
static bool connection_has_joined(const Connection *c)
{
    return ivshmem2_client_is_ready(c->client) && connection_is_read(c);
}

static void handshake_expired(Ivshmem2Timer *t)
{
    Connection *c = IVSHMEM2_CONTAINER(t, Connection, timer);

    if (!connection_has_joined(c)) {
        ivshmem2_client_refuse(c->client, IVSHMEM2_REFUSAL_TIMEOUT,
                               "the handshake was not complete after %" PRId64
                               " seconds", c->daemon->handshakes.duration /
                               G_USEC_PER_SEC);
        connection_retire(c, true);
    }
    c->blocked = false;
    connection_run(c);
}

/* May it have more descriptors in flight? */
static bool connection_may_send(Connection *c)
{
    bool joining = c->joiner.stage != IVSHMEM2_OUTSIDE;

    if (!ivshmem2_budget_allows_in_flight(joining, c->unread) &&
        !ivshmem2_client_is_sent_away(c->client)) {
        /*
         * Linux reports a socket as writable if at most a quarter of its buffer
         * is in use, which is one message at most.
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

    ivshmem2_client_next(c->client, &msg, &fds);
    /* one without descriptors counts as well: those before may be unread */
    c->last_sent = MAX(msg.hdr.fds, 1);
    c->unread += c->last_sent;
    return ivshmem2_transport_send(&c->conn, &msg, fds, error);
}

/*
 * Too many descriptors are in flight.  Returns true if the client can do
 * without those that were to be sent.
 */
static bool connection_postpone(Connection *c)
{
    if (ivshmem2_client_is_sent_away(c->client)) {
        ivshmem2_transport_cancel(&c->conn);
    } else if (c->joiner.stage == IVSHMEM2_OUTSIDE) {
        /* its next request for the target tries again */
        ivshmem2_transport_omit_fds(&c->conn);
    } else {
        c->blocked = true;
    }
    return !c->blocked;
}

/* Returns false if no more can be sent, now or at all. */
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
        g_debug("'%s' (pid %d): %s", ivshmem2_client_name(c->client),
                ivshmem2_client_pid(c->client), error->message);
        c->deaf = true;
    }
    return ret > 0;
}

/* Returns false if it has to wait for a place. */
static bool connection_enter(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    if (c->joiner.stage == IVSHMEM2_LOBBY &&
        !ivshmem2_lobby_ask(&d->lobby, &c->joiner) && !d->check_timer.queue) {
        check_joiners(d);
    }
    return c->joiner.stage != IVSHMEM2_WAITING;
}

/* Does it ask for a slot that will be given back soon? */
static bool connection_must_wait(Connection *c)
{
    const Ivshmem2Msg *msg = &c->conn.in.msg;
    bool patient;

    c->blocked = false;
    if (msg->hdr.type == IVSHMEM2_MSG_HELLO) {
        if (!c->patience) {
            c->patience = ivshmem2_deadline(PATIENCE);
        }
        patient = ivshmem2_deadline_ms(c->patience);
        c->blocked = ivshmem2_client_waits(c->client, &msg->hello,
                                           c->daemon->n_closing, patient);
    }
    return c->blocked;
}

/* A client that has closed its connection already is not to have a slot. */
static bool connection_is_abandoned(const Connection *c)
{
    return c->conn.in.msg.hdr.type == IVSHMEM2_MSG_HELLO &&
           (connection_poll(c, 0) & POLLHUP);
}

/* Returns false if there is nothing more to read. */
static bool connection_receive(Connection *c, bool *closed)
{
    g_autoptr(GError) error = NULL;
    int ret = 1;

    /* a complete message has waited for a place, or for a slot */
    if (!ivshmem2_decoder_complete(&c->conn.in)) {
        ret = ivshmem2_transport_receive(&c->conn, &error);
        if (ret > 0 && !connection_enter(c)) {
            return false;
        }
    }
    if (ret > 0 && connection_is_abandoned(c)) {
        *closed = true;
        return false;
    }
    if (ret > 0 && connection_must_wait(c)) {
        return false;
    }
    if (ret > 0) {
        ivshmem2_client_receive(c->client, &c->conn.in.msg);
        ivshmem2_decoder_reset(&c->conn.in);
    } else if (ret < 0 && error->code == IVSHMEM2_ERROR_PROTOCOL) {
        ivshmem2_client_refuse(c->client, IVSHMEM2_REFUSAL_PROTOCOL, "%s",
                               error->message);
        ivshmem2_decoder_reset(&c->conn.in);
    } else {
        *closed = ret < 0;
        return false;
    }
    return true;
}

/*
 * If a socket with unread data is closed, the client may lose REFUSED.  So
 * discard what it sends until it closes the connection.
 */
static bool connection_discard(Connection *c, bool *closed)
{
    int ret = ivshmem2_socket_discard(c->conn.fd);

    *closed = ret < 0;
    return ret > 0;
}

static void connection_end(Connection *c)
{
    c->lingering = true;
    shutdown(c->conn.fd, SHUT_WR);
}

static bool connection_has_output(const Connection *c)
{
    return !c->deaf && (ivshmem2_transport_is_sending(&c->conn) ||
                        ivshmem2_client_has_next(c->client));
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
    if (ivshmem2_client_is_over(c->client)) {
        connection_end(c);
        return true;
    }
    if (ivshmem2_client_is_ready(c->client) &&
        c->joiner.stage == IVSHMEM2_JOINING) {
        if (!connection_has_joined(c)) {
            /* its messages have to wait until it has read READY */
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

    if (ivshmem2_client_is_sent_away(c->client)) {
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
    return connection_has_output(c) ||
           ivshmem2_decoder_complete(&c->conn.in) ? EPOLLOUT : EPOLLIN;
}

static void connection_run(Connection *c)
{
    bool closed = false;
    bool more = true;

    for (int calls = 0; more && calls < CALLS_PER_TURN; ) {
        calls += connection_has_output(c) ? CALLS_TO_SEND : CALLS_TO_RECEIVE;
        more = connection_step(c, &closed);
    }
    /* if sending failed, what the client had sent before is still handled */
    if (closed || (c->deaf && !more)) {
        connection_free(c);
        return;
    }
    if (more && !c->closing && (connection_poll(c, 0) & POLLHUP)) {
        c->closing = true;
        c->daemon->n_closing++;
    }
    if (ivshmem2_client_is_sent_away(c->client)) {
        connection_retire(c, false);
    }
    connection_set_timer(c);
    if (more && c->joiner.stage == IVSHMEM2_OUTSIDE) {
        /* it has more to say than others should have to wait for */
        ivshmem2_loop_postpone(&c->daemon->loop, &c->watch, c->conn.fd);
        return;
    }
    ivshmem2_loop_modify(&c->daemon->loop, &c->watch, c->conn.fd,
                         connection_events(c));
    if (c->blocked || c->joiner.stage == IVSHMEM2_WAITING) {
        check_later(c->daemon);
    }
}

static void connection_ready(Ivshmem2Watch *w)
{
    Connection *c = IVSHMEM2_CONTAINER(w, Connection, watch);

    if (w->events == EPOLLOUT && c->joiner.stage == IVSHMEM2_OUTSIDE) {
        /* it has asked for more than it had read */
        ivshmem2_loop_postpone(&c->daemon->loop, w, c->conn.fd);
    } else {
        connection_run(c);
    }
}

static void wake(void *connection)
{
    Connection *c = connection;

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
    c->client = ivshmem2_client_new(d->server, cred->pid, cred->uid, c);
    g_queue_push_tail_link(&d->connections, &c->node);
    ivshmem2_budget_charge_fds(d->budget, 1);
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
 * Find the connections that have joined in the meantime, and give their places
 * to those that wait.  If some still wait, look again after a while.
 */
static void check_joiners(Ivshmem2Daemon *d)
{
    GList *next;

    for (GList *node = d->lobby.joining.head; node; node = next) {
        Connection *c = IVSHMEM2_CONTAINER(node->data, Connection, joiner);

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
    check_joiners(IVSHMEM2_CONTAINER(t, Ivshmem2Daemon, check_timer));
}

static void check_later(Ivshmem2Daemon *d)
{
    if (!d->check_timer.queue) {
        ivshmem2_timer_start(&d->check_timer, &d->checks, check_expired);
    }
}

/* Access */

/* Returns false if it was sent away. */
static bool check_access(Connection *c, const struct ucred *cred)
{
    g_autofree gid_t *gids = NULL;
    size_t n_gids;
    GArray *ids;

    if (!c->daemon->access) {
        return true;
    }
    gids = ivshmem2_process_groups(c->conn.fd, cred->gid, &n_gids);
    ids = ivshmem2_access_find(c->daemon->access, cred->uid, gids, n_gids);
    if (!ids) {
        ivshmem2_client_refuse(c->client, IVSHMEM2_REFUSAL_PERMISSION,
                               "the user with uid %u may not connect",
                               cred->uid);
        return false;
    }
    ivshmem2_client_restrict_consume(c->client, ids);
    return true;
}

/* The rules that it was accepted by have changed. */
static void check_access_again(Connection *c)
{
    struct ucred cred;
    socklen_t len = sizeof(cred);

    if (ivshmem2_client_is_sent_away(c->client) ||
        ivshmem2_client_id(c->client) != IVSHMEM2_ID_ANY ||
        getsockopt(c->conn.fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
        return;
    }
    if (!check_access(c, &cred)) {
        connection_leave_lobby(c);
        wake(c);
    }
}

/*
 * @has_share: its user could have one more.  Returns false if the connection
 * was sent away.
 */
static bool check_limits(Connection *c, const struct ucred *cred,
                         bool has_share)
{
    Ivshmem2Budget *budget = c->daemon->budget;

    if (!ivshmem2_budget_allows_fd(budget, c->conn.fd)) {
        ivshmem2_client_refuse(c->client, IVSHMEM2_REFUSAL_LIMIT,
                               "the server may not open more files");
        return false;
    }
    if (!has_share) {
        ivshmem2_client_refuse(c->client, IVSHMEM2_REFUSAL_LIMIT, "the user "
                               "with uid %u has %u connections that have not "
                               "joined, the server has to leave open files to "
                               "others", cred->uid,
                               ivshmem2_budget_count(budget, IVSHMEM2_ENTRANT,
                                                     cred->uid) - 1);
        return false;
    }
    return true;
}

/* Accepting */

static void take_connection(Ivshmem2Acceptor *a, int fd)
{
    Ivshmem2Daemon *d = IVSHMEM2_CONTAINER(a, Ivshmem2Daemon, acceptor);
    struct ucred cred;
    socklen_t len = sizeof(cred);
    bool has_share;
    Connection *c;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
        ivshmem2_acceptor_complain(a, g_strerror(errno));
        ivshmem2_socket_close(&fd);
        return;
    }
    if (!ivshmem2_budget_allows_refusal(d->budget, cred.uid)) {
        ivshmem2_acceptor_complain(a, "too many by one user that have not "
                                   "joined yet");
        ivshmem2_socket_close(&fd);
        return;
    }
    has_share = ivshmem2_budget_allows(d->budget, IVSHMEM2_ENTRANT, cred.uid);
    c = connection_new_consume(d, fd, &cred);
    if (c && (!check_limits(c, &cred, has_share) || !check_access(c, &cred))) {
        connection_run(c);
    }
}

/* Processes */

static Ivshmem2Process *open_process(const Connection *c)
{
    return ivshmem2_process_open(c->conn.fd, ivshmem2_client_pid(c->client));
}

static void *hold_slot(void *connection, uint32_t id)
{
    Connection *c = connection;
    Ivshmem2Process *p = open_process(c);

    return p ? ivshmem2_hold_new_consume(&c->daemon->holds, id, p) : NULL;
}

static void *adopt_slot(void *daemon, uint32_t id, pid_t pid,
                        uint64_t start_time, bool grace)
{
    return ivshmem2_hold_adopt(&((Ivshmem2Daemon *)daemon)->holds, id, pid,
                               start_time, grace);
}

static void unhold_slot(void *hold)
{
    ivshmem2_hold_free(hold);
}

static bool is_alive(void *connection)
{
    Ivshmem2Process *p = open_process(connection);
    bool alive = p;

    g_clear_pointer(&p, ivshmem2_process_free);
    return alive;
}

static bool is_hold_alive(void *hold)
{
    return ivshmem2_hold_is_alive(hold);
}

static bool is_leaving(void *connection, bool process)
{
    Connection *c = connection;
    Ivshmem2Process *p;
    bool ending;

    if (c->closing || (process && (connection_poll(c, 0) & POLLHUP))) {
        return true;
    }
    /* If it is gone, the connection is that of another process now. */
    p = process ? open_process(c) : NULL;
    ending = p && ivshmem2_process_is_ending(p);
    g_clear_pointer(&p, ivshmem2_process_free);
    return ending;
}

static bool is_hold_ending(void *hold)
{
    return ivshmem2_hold_is_ending(hold);
}

static uint64_t start_time(void *connection)
{
    Ivshmem2Process *p = open_process(connection);
    uint64_t time = p ? ivshmem2_process_start_time(p) : 0;

    g_clear_pointer(&p, ivshmem2_process_free);
    return time;
}

static unsigned grace_left(void *hold)
{
    return ivshmem2_hold_grace_left(hold);
}

/* The daemon */

static const Ivshmem2ServerOps server_ops = {
    .slots.hold = hold_slot,
    .slots.adopt = adopt_slot,
    .slots.unhold = unhold_slot,
    .slots.is_alive = is_alive,
    .slots.is_hold_alive = is_hold_alive,
    .slots.is_leaving = is_leaving,
    .slots.is_hold_ending = is_hold_ending,
    .slots.start_time = start_time,
    .slots.grace_left = grace_left,
    .wake = wake,
};

Ivshmem2Daemon *ivshmem2_daemon_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                    int listen_fd, unsigned handshake_timeout,
                                    unsigned grace, GError **error)
{
    Ivshmem2Daemon *d = g_new0(Ivshmem2Daemon, 1);

    d->budget = budget;
    ivshmem2_lobby_init(&d->lobby, budget);
    d->handshakes.duration = handshake_timeout * G_USEC_PER_SEC;
    d->short_times.duration = SHORT_TIME;
    d->checks.duration = CHECK_INTERVAL;
    d->holds = (Ivshmem2Holds) {
        .budget = budget,
        .loop = &d->loop,
        .quarantine = &d->short_times,
        .grace.duration = grace * G_USEC_PER_SEC,
    };
    d->acceptor = (Ivshmem2Acceptor) {
        .loop = &d->loop,
        .pauses = &d->short_times,
        .fd = listen_fd,
        .take = take_connection,
    };
    d->signal_fd = -1;
    if (!ivshmem2_loop_init(&d->loop, error) ||
        !ivshmem2_acceptor_start(&d->acceptor, error)) {
        ivshmem2_daemon_free(d);
        return NULL;
    }
    ivshmem2_budget_count_open_fds(budget, listen_fd);
    d->server = ivshmem2_server_new(link, budget, &server_ops, d);
    d->holds.server = d->server;
    return d;
}

/* Send the last message as far as the socket takes it. */
static void say_farewell(Connection *c)
{
    if (!c->client) {
        return;
    }
    ivshmem2_client_refuse(c->client, IVSHMEM2_REFUSAL_SHUTDOWN,
                           "the server ends");
    while (connection_has_output(c) && connection_send(c)) {
        continue;
    }
}

void ivshmem2_daemon_free(Ivshmem2Daemon *d)
{
    GList *node;

    d->ending = true;
    if (d->server) {
        ivshmem2_server_shutdown(d->server);
    }
    while ((node = d->connections.head)) {
        say_farewell(node->data);
        connection_free(node->data);
    }
    g_clear_pointer(&d->server, ivshmem2_server_free);
    ivshmem2_lobby_clear(&d->lobby);
    ivshmem2_close(&d->signal_fd);
    ivshmem2_loop_clear(&d->loop);
    g_free(d);
}

void ivshmem2_daemon_turn(Ivshmem2Daemon *d, bool wait)
{
    Ivshmem2Timers *timers[] = { &d->handshakes, &d->short_times, &d->checks,
                                 &d->holds.grace };
    int64_t deadline = -1;
    bool more = ivshmem2_server_broadcast(d->server, 0);

    for (size_t i = 0; i < G_N_ELEMENTS(timers); i++) {
        int64_t next = ivshmem2_timers_next(timers[i]);

        deadline = deadline < 0 || next < 0 ? MAX(deadline, next)
                                            : MIN(deadline, next);
    }
    ivshmem2_loop_turn(&d->loop, wait ? deadline : 0, more);
    for (size_t i = 0; i < G_N_ELEMENTS(timers); i++) {
        ivshmem2_timers_run(timers[i]);
    }
    more = ivshmem2_server_broadcast(d->server, 0);
    if (ivshmem2_loop_begin_work(&d->loop, more)) {
        ivshmem2_server_broadcast(d->server, IVSHMEM2_INTERRUPTS_PER_TURN);
        ivshmem2_loop_end_work(&d->loop);
    }
}

void ivshmem2_daemon_set_access(Ivshmem2Daemon *d,
                                const Ivshmem2Access *access)
{
    d->access = access;
    for (GList *node = d->connections.head; node; node = node->next) {
        check_access_again(node->data);
    }
}

static void signal_ready(Ivshmem2Watch *w)
{
    Ivshmem2Daemon *d = IVSHMEM2_CONTAINER(w, Ivshmem2Daemon, signal_watch);
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
        return ivshmem2_fail_errno(error, "cannot watch for signals");
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
