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
#include <inttypes.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "daemon.h"
#include "libivshmem2-conn.h"
#include "loop.h"
#include "server.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* Fairness: what one of them may take before the others are looked at */
#define MESSAGES_PER_TURN       32
#define ACCEPTS_PER_TURN        16
#define INTERRUPTS_PER_TURN     1024

/*
 * As small as the kernel makes it.  What was sent to a client that does not
 * read is the kernel's memory and counts, descriptors above all, against all
 * that this server's user may have in flight.
 */
#define SEND_BUFFER             1

/* Who was sent away gets this long to read why. */
#define SHORT_TIME              G_USEC_PER_SEC

/* Between two complaints about the same */
#define COMPLAINT_INTERVAL      (10 * G_USEC_PER_SEC)

struct Ivshmem2Daemon {
    Ivshmem2Server *server;
    Ivshmem2Loop loop;
    Ivshmem2Timers handshakes;
    Ivshmem2Timers short_times;
    GQueue connections;
    int fd_limit;

    int listen_fd;              /* borrowed */
    Ivshmem2Watch listen_watch;
    Ivshmem2Timer listen_timer; /* running: no descriptors to accept with */
    int64_t next_complaint;

    int signal_fd;
    Ivshmem2Watch signal_watch;
    bool stop;
    bool more;                  /* broadcasts to go on with */
};

typedef struct Connection {
    Ivshmem2Watch watch;
    Ivshmem2Timer timer;
    GList node;
    Ivshmem2Daemon *daemon;
    bool lingering;             /* all is said; what it says is ignored */
    bool deaf;                  /* cannot be sent to; may have said more */
    Ivshmem2Conn conn;
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
static void listen_again(Ivshmem2Daemon *d);

/* Connections */

static void connection_free(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    ivshmem2_timer_stop(&c->timer);
    ivshmem2_client_clear(&c->client);
    ivshmem2_loop_remove(&d->loop, &c->watch, c->conn.fd);
    ivshmem2_conn_clear(&c->conn);
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

static void handshake_expired(Ivshmem2Timer *t)
{
    Connection *c = CONTAINER(t, Connection, timer);

    ivshmem2_client_refuse(&c->client, IVSHMEM2_ERR_TIMEOUT,
                           "the handshake was not complete after %" PRId64
                           " seconds", c->daemon->handshakes.duration /
                           G_USEC_PER_SEC);
    connection_run(c);
}

/* Returns false if there is no more room to send, or no more sense in it. */
static bool connection_send(Connection *c)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;
    const int *fds;
    int ret;

    if (ivshmem2_conn_is_sending(&c->conn)) {
        ret = ivshmem2_conn_flush(&c->conn, &error);
    } else {
        ivshmem2_client_next(&c->client, &msg, &fds);
        ret = ivshmem2_conn_send(&c->conn, &msg, fds, &error);
    }
    if (ret < 0) {
        g_debug("'%s' (pid %d): %s", c->client.name, c->client.pid,
                error->message);
        c->deaf = true;
    }
    return ret > 0;
}

/* Returns false if there is nothing more to read. */
static bool connection_receive(Connection *c, bool *closed)
{
    g_autoptr(GError) error = NULL;
    int ret = ivshmem2_conn_receive(&c->conn, &error);

    if (ret > 0) {
        ivshmem2_client_receive(&c->client, &c->conn.in.msg);
        ivshmem2_decoder_reset(&c->conn.in);
    } else if (ret < 0 && error->code == IVSHMEM2_LIB_ERROR_PROTOCOL) {
        ivshmem2_client_refuse(&c->client, IVSHMEM2_ERR_PROTOCOL, "%s",
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
    return !c->deaf && (ivshmem2_conn_is_sending(&c->conn) ||
                        ivshmem2_client_has_next(&c->client));
}

/* Returns false if it cannot go on now. */
static bool connection_step(Connection *c, bool *closed)
{
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
    return connection_receive(c, closed);
}

static void connection_set_timer(Connection *c)
{
    Ivshmem2Daemon *d = c->daemon;

    if (ivshmem2_client_is_ready(&c->client)) {
        ivshmem2_timer_stop(&c->timer);
    } else if (ivshmem2_client_is_sent_away(&c->client) &&
               c->timer.queue != &d->short_times.queue) {
        ivshmem2_timer_start(&c->timer, &d->short_times, linger_expired);
    }
}

static void connection_run(Connection *c)
{
    bool closed = false;
    bool more = true;

    for (int i = 0; more && i < MESSAGES_PER_TURN; i++) {
        more = connection_step(c, &closed);
    }
    /* who cannot be sent to is of use only as long as it has something */
    if (closed || (c->deaf && !more)) {
        connection_free(c);
        return;
    }
    connection_set_timer(c);
    ivshmem2_loop_modify(&c->daemon->loop, &c->watch, c->conn.fd,
                         connection_has_output(c) ? EPOLLOUT : EPOLLIN);
}

static void connection_ready(Ivshmem2Watch *w)
{
    connection_run(CONTAINER(w, Connection, watch));
}

static void wake(Ivshmem2Client *client)
{
    Connection *c = CONTAINER(client, Connection, client);

    connection_set_timer(c);
    ivshmem2_loop_modify(&c->daemon->loop, &c->watch, c->conn.fd, EPOLLOUT);
}

static Connection *connection_new_consume(Ivshmem2Daemon *d, int fd)
{
    g_autoptr(GError) error = NULL;
    Connection *c = g_new0(Connection, 1);
    struct ucred cred = { 0 };
    socklen_t len = sizeof(cred);
    int send_buffer = SEND_BUFFER;

    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0) {
        g_warning("cannot tell who connects: %s", g_strerror(errno));
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof(send_buffer));
    c->daemon = d;
    c->node.data = c;
    c->watch.ready = connection_ready;
    ivshmem2_conn_init_consume(&c->conn, fd, IVSHMEM2_CLIENT);
    ivshmem2_client_init(&c->client, d->server, cred.pid, cred.uid);
    g_queue_push_tail_link(&d->connections, &c->node);
    ivshmem2_timer_start(&c->timer, &d->handshakes, handshake_expired);
    if (!ivshmem2_loop_add(&d->loop, &c->watch, fd, EPOLLIN, &error)) {
        g_warning("%s", error->message);
        connection_free(c);
        return NULL;
    }
    return c;
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

/* Nothing can be accepted: do not spin. */
static void listen_later(Ivshmem2Daemon *d)
{
    int64_t now = g_get_monotonic_time();

    if (now >= d->next_complaint) {
        g_warning("cannot accept a connection: %s", g_strerror(errno));
        d->next_complaint = now + COMPLAINT_INTERVAL;
    }
    ivshmem2_timer_start(&d->listen_timer, &d->short_times, listen_expired);
    ivshmem2_loop_modify(&d->loop, &d->listen_watch, d->listen_fd, 0);
}

static void listen_ready(Ivshmem2Watch *w)
{
    Ivshmem2Daemon *d = CONTAINER(w, Ivshmem2Daemon, listen_watch);

    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(d->listen_fd, NULL, NULL,
                         SOCK_CLOEXEC | SOCK_NONBLOCK);
        Connection *c;

        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                errno == ENOMEM) {
                listen_later(d);
            }
            return;
        }
        c = connection_new_consume(d, fd);
        if (c && d->fd_limit && fd >= d->fd_limit) {
            ivshmem2_client_refuse(&c->client, IVSHMEM2_ERR_LIMIT,
                                   "the server may not open more files");
            connection_run(c);
        }
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

Ivshmem2Daemon *ivshmem2_daemon_new(Ivshmem2Link *link, int listen_fd,
                                    const Ivshmem2DaemonConfig *config,
                                    GError **error)
{
    Ivshmem2Daemon *d = g_new0(Ivshmem2Daemon, 1);

    d->server = ivshmem2_server_new(link, &server_ops);
    d->handshakes.duration = config->handshake_timeout * G_USEC_PER_SEC;
    d->short_times.duration = SHORT_TIME;
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
    return d;
}

/* As well as it can be done without waiting. */
static void say_farewell(Connection *c)
{
    ivshmem2_client_refuse(&c->client, IVSHMEM2_ERR_SHUTDOWN,
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
    ivshmem2_close(&d->signal_fd);
    ivshmem2_loop_clear(&d->loop);
    g_free(d);
}

void ivshmem2_daemon_turn(Ivshmem2Daemon *d, bool wait)
{
    int64_t a = ivshmem2_timers_next(&d->handshakes);
    int64_t b = ivshmem2_timers_next(&d->short_times);
    int64_t deadline = a < 0 || b < 0 ? MAX(a, b) : MIN(a, b);

    ivshmem2_loop_turn(&d->loop, wait && !d->more ? deadline : 0);
    ivshmem2_timers_run(&d->handshakes);
    ivshmem2_timers_run(&d->short_times);
    d->more = ivshmem2_server_broadcast(d->server, INTERRUPTS_PER_TURN);
}

static void signal_ready(Ivshmem2Watch *w)
{
    CONTAINER(w, Ivshmem2Daemon, signal_watch)->stop = true;
}

bool ivshmem2_daemon_run(Ivshmem2Daemon *d, const sigset_t *signals,
                         GError **error)
{
    d->signal_fd = signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK);
    if (d->signal_fd < 0) {
        g_set_error(error, IVSHMEM2_LIB_ERROR, IVSHMEM2_LIB_ERROR_IO,
                    "cannot watch for signals: %s", g_strerror(errno));
        return false;
    }
    d->signal_watch.ready = signal_ready;
    if (!ivshmem2_loop_add(&d->loop, &d->signal_watch, d->signal_fd, EPOLLIN,
                           error)) {
        return false;
    }
    while (!d->stop) {
        ivshmem2_daemon_turn(d, true);
    }
    return true;
}
