/*
 * ivshmem2: a device's connection with its server
 *
 * libivshmem2's session says what to send and takes what is received; a
 * chardev carries it.  Once the device is realized, nothing here waits for the
 * server.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/un.h>
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "chardev/char-socket.h"
#include "io/task.h"
#include "ivshmem2-conn.h"
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"
#include "trace.h"

/* How often the device looks whether the server accepts connections */
#define CONNECT_POLL_MS         5
/* A connection that has lasted so long is lost for a reason of its own. */
#define SETTLED_MS              10000
/* A server with which handshakes succeed is asked at least so often. */
#define FLAPPING_MS             500
/* How long QEMU's end waits for a server that does not read */
#define GOODBYE_MS              200

static SocketChardev *ivshmem2_conn_socket(Ivshmem2Conn *conn)
{
    return SOCKET_CHARDEV(qemu_chr_fe_get_driver(&conn->chr));
}

static uint32_t ivshmem2_conn_id(Ivshmem2Conn *conn)
{
    return ivshmem2_session_info(conn->session)->id;
}

/* The session that the connection is for */
static Ivshmem2Session *ivshmem2_conn_active(const Ivshmem2Conn *conn)
{
    return conn->next ?: conn->session;
}

bool ivshmem2_conn_is_ready(const Ivshmem2Conn *conn)
{
    return conn->session && ivshmem2_session_ready(conn->session);
}

static gboolean ivshmem2_conn_writable(void *unused, GIOCondition cond,
                                   void *opaque)
{
    Ivshmem2Conn *conn = opaque;

    conn->out_watch = 0;
    conn->out_full = false;
    ivshmem2_conn_pump(conn);
    return G_SOURCE_REMOVE;
}

static void ivshmem2_conn_drop_watch(Ivshmem2Conn *conn)
{
    if (conn->out_watch) {
        /* it may be in another context than the default one */
        GMainContext *context = conn->chr.chr->gcontext;
        GSource *source = g_main_context_find_source_by_id(context,
                                                           conn->out_watch);

        if (source) {
            g_source_destroy(source);
        }
        conn->out_watch = 0;
    }
    conn->out_full = false;
}

static void ivshmem2_conn_add_watch(Ivshmem2Conn *conn)
{
    if (!conn->out_watch) {
        conn->out_watch =
            qemu_chr_fe_add_watch(&conn->chr, G_IO_OUT | G_IO_HUP,
                                  ivshmem2_conn_writable, conn);
    }
}

/* A unix socket is writable as long as three quarters of it are free. */
static bool ivshmem2_conn_has_room(Ivshmem2Conn *conn)
{
    GPollFD pfd = {
        .fd = ivshmem2_conn_socket(conn)->sioc->fd,
        .events = G_IO_OUT,
    };

    return g_poll(&pfd, 1, 0) == 1;
}

/* The next message, except for one that would take the room of another. */
static bool ivshmem2_conn_next(Ivshmem2Conn *conn)
{
    Ivshmem2Session *session = ivshmem2_conn_active(conn);
    bool hold = ivshmem2_session_holds_zero(session) &&
                !ivshmem2_conn_has_room(conn);

    ivshmem2_session_hold_zero(session, hold);
    if (ivshmem2_session_next(session, &conn->out)) {
        return true;
    }
    if (hold) {
        ivshmem2_conn_add_watch(conn);
    }
    return false;
}

/*
 * The session keeps what a guest can trigger as state (a flag, a bit for each
 * target), so nothing grows while the server is slow.
 */
void ivshmem2_conn_pump(Ivshmem2Conn *conn)
{
    int ret;

    while (conn->connected && !conn->out_full) {
        if (conn->out_done == conn->out_size) {
            if (!ivshmem2_conn_next(conn)) {
                return;
            }
            trace_ivshmem2_message_send(ivshmem2_conn_id(conn),
                                        conn->out.hdr.type);
            conn->out_size = ivshmem2_msg_encode(&conn->out);
            conn->out_done = 0;
        }
        ret = qemu_chr_fe_write(&conn->chr,
                                (uint8_t *)&conn->out + conn->out_done,
                                conn->out_size - conn->out_done);
        if (ret > 0) {
            conn->out_done += ret;
        } else if (conn->connected) {
            ivshmem2_conn_add_watch(conn);
            conn->out_full = conn->out_watch;
            if (!conn->out_watch) {
                return;
            }
        }
    }
}

static int ivshmem2_chr_can_read(void *opaque)
{
    Ivshmem2Conn *conn = opaque;

    /* no more than this message lacks, and nothing after an error */
    return conn->error ? 0 : ivshmem2_decoder_wants(&conn->decoder);
}

static void ivshmem2_conn_failed(Ivshmem2Conn *conn, GError *err)
{
    if (!conn->error) {
        error_setg(&conn->error, "%s", err->message);
        conn->too_late = g_error_matches(err, IVSHMEM2_ERROR,
                                         IVSHMEM2_ERROR_TIMEOUT);
        conn->given_up = g_error_matches(err, IVSHMEM2_ERROR,
                                         IVSHMEM2_ERROR_SESSION);
    }
    conn->broken = true;
    /* The chardev calls this, and must not lose its socket meanwhile. */
    qemu_bh_schedule(conn->bh);
}

/* The server lets the device wait for too long, after it has connected. */
static void ivshmem2_conn_handshake_over(void *opaque)
{
    Ivshmem2Conn *conn = opaque;
    g_autoptr(GError) err =
        g_error_new(IVSHMEM2_ERROR, IVSHMEM2_ERROR_TIMEOUT, "its handshake is "
                    "not complete after %u ms", conn->handshake_ms);

    ivshmem2_conn_failed(conn, err);
}

/* -run-with may have changed the user or the root folder since joining. */
static void ivshmem2_conn_check_way_back(Ivshmem2Conn *conn)
{
    SocketChardev *sock = ivshmem2_conn_socket(conn);
    const UnixSocketAddress *addr = &sock->addr->u.q_unix;

    if (!conn->reconnect_ms || sock->addr->type != SOCKET_ADDRESS_TYPE_UNIX) {
        return;
    }
    if (geteuid() != conn->uid) {
        warn_report_once("ivshmem2: reconnect-ms is of no use, because QEMU's "
                         "user has changed, and only the one that joined may "
                         "resume a session: start QEMU as that user");
    } else if (!(addr->has_abstract && addr->abstract) &&
               access(addr->path, W_OK) < 0) {
        warn_report_once("ivshmem2: reconnect-ms is of no use, because QEMU "
                         "cannot reach %s any more: %s", addr->path,
                         strerror(errno));
    }
}

static void ivshmem2_conn_settled(void *opaque)
{
    Ivshmem2Conn *conn = opaque;

    ivshmem2_report_settled(&conn->report);
    ivshmem2_conn_check_way_back(conn);
    conn->settled = true;
    conn->back_off_ms = conn->reconnect_ms;
    /* That the chardev cannot connect would be news again. */
    ivshmem2_conn_socket(conn)->connect_err_reported = false;
}

/* Go over to the session of the server, which has taken us in. */
static void ivshmem2_conn_rejoin(Ivshmem2Conn *conn)
{
    g_autoptr(GError) err = NULL;
    Error *local_err = NULL;

    if (!conn->ops->rejoin(conn->opaque, conn->next, &local_err)) {
        g_set_error(&err, IVSHMEM2_ERROR, IVSHMEM2_ERROR_SESSION, "cannot go "
                    "over to another session: %s",
                    error_get_pretty(local_err));
        error_free(local_err);
        ivshmem2_session_goodbye(conn->next);
        ivshmem2_conn_pump(conn);
        ivshmem2_conn_failed(conn, err);
        return;
    }
    ivshmem2_session_free(conn->session);
    conn->session = g_steal_pointer(&conn->next);
    ivshmem2_report_return(&conn->report, IVSHMEM2_CONNECTION_STATUS_REJOINED);
}

static void ivshmem2_conn_ready(Ivshmem2Conn *conn)
{
    timer_del(conn->handshake_timer);
    timer_mod(conn->settle_timer,
              qemu_clock_get_ms(QEMU_CLOCK_REALTIME) + SETTLED_MS);
    if (conn->next) {
        ivshmem2_conn_rejoin(conn);
    } else if (conn->joined) {
        ivshmem2_report_return(&conn->report,
                               IVSHMEM2_CONNECTION_STATUS_CONNECTED);
        conn->ops->resumed(conn->opaque);
    }
}

static void ivshmem2_chr_read(void *opaque, const uint8_t *buf, int size)
{
    Ivshmem2Conn *conn = opaque;
    Ivshmem2Session *session = ivshmem2_conn_active(conn);
    g_autoptr(GError) err = NULL;
    int fds[IVSHMEM2_MAX_FDS];
    int n = qemu_chr_fe_get_msgfds(&conn->chr, fds, ARRAY_SIZE(fds));
    bool was_ready = ivshmem2_session_ready(session);

    n = ivshmem2_decoder_push_consume(&conn->decoder, buf, size,
                                      fds, MAX(n, 0), &err);
    if (n > 0) {
        uint16_t type = conn->decoder.msg.hdr.type;

        trace_ivshmem2_message_receive(ivshmem2_conn_id(conn), type);
        conn->refused = type == IVSHMEM2_MSG_REFUSED && !was_ready;
        ivshmem2_session_receive(session, &conn->decoder, &err);
    }
    if (err) {
        ivshmem2_conn_failed(conn, err);
        return;
    }
    if (!was_ready && ivshmem2_session_ready(session)) {
        ivshmem2_conn_ready(conn);
    }
    ivshmem2_conn_pump(conn);
}

/*
 * The chardev is about to start its timer for the next attempt.  A server with
 * which no connection lasts is asked less and less often; one that does not
 * know the session, which is not going to change, once a minute.
 */
static void ivshmem2_conn_back_off(Ivshmem2Conn *conn, bool was_ready)
{
    bool settled = conn->settled;
    bool rejoin = conn->given_up && !conn->next && !was_ready &&
                  conn->new_session == IVSHMEM2_NEW_SESSION_REJOIN;
    int64_t slowest_ms = conn->slowest_reconnect_ms;
    int64_t wait_ms;

    timer_del(conn->settle_timer);
    conn->settled = false;
    if (!conn->joined || !conn->reconnect_ms) {
        return;
    }
    /* Each attempt to rejoin comes after one to resume. */
    conn->try_rejoin = rejoin;
    if (conn->given_up && !rejoin) {
        conn->back_off_ms = slowest_ms;
    } else if (!settled && !rejoin) {
        conn->back_off_ms = MIN(conn->back_off_ms * 2, was_ready ?
                                MIN(FLAPPING_MS, slowest_ms) : slowest_ms);
    }
    wait_ms = rejoin ? 0 : conn->back_off_ms;
    ivshmem2_conn_socket(conn)->reconnect_time_ms =
        MAX(wait_ms, conn->reconnect_ms);
}

/*
 * The chardev closes its socket in the main loop.  If that were the last close,
 * it would be that of all descriptors that are still in the queue, too.
 */
static void ivshmem2_conn_hold_socket(Ivshmem2Conn *conn)
{
    conn->socket = fcntl(ivshmem2_conn_socket(conn)->sioc->fd,
                         F_DUPFD_CLOEXEC, 0);
}

static void ivshmem2_conn_release_socket(Ivshmem2Conn *conn)
{
    if (conn->socket >= 0) {
        shutdown(conn->socket, SHUT_RDWR);
    }
    ivshmem2_socket_close(&conn->socket);
}

static void ivshmem2_conn_opened(Ivshmem2Conn *conn)
{
    if (conn->joined) {
        /* The chardev has had its say, until a connection is settled. */
        ivshmem2_conn_socket(conn)->connect_err_reported = true;
        timer_mod(conn->handshake_timer,
                  qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                  conn->handshake_ms);
        if (conn->try_rejoin) {
            conn->next = ivshmem2_session_new_like(conn->session);
        }
    }
    ivshmem2_conn_hold_socket(conn);
    ivshmem2_decoder_reset(&conn->decoder);
    ivshmem2_session_connected(ivshmem2_conn_active(conn));
    conn->out_size = 0;
    conn->out_done = 0;
    conn->broken = false;
    conn->refused = false;
    conn->given_up = false;
    conn->connected = true;
    ivshmem2_conn_pump(conn);
}

static void ivshmem2_conn_closed(Ivshmem2Conn *conn)
{
    bool was_ready = ivshmem2_session_ready(ivshmem2_conn_active(conn));

    conn->connected = false;
    timer_del(conn->handshake_timer);
    ivshmem2_conn_release_socket(conn);
    ivshmem2_conn_drop_watch(conn);
    ivshmem2_session_disconnected(conn->session);
    ivshmem2_decoder_reset(&conn->decoder);
    if (!conn->error && !conn->broken) {
        error_setg(&conn->error, "the server closed the connection");
        conn->too_late = true;
    }
    ivshmem2_conn_back_off(conn, was_ready);
    g_clear_pointer(&conn->next, ivshmem2_session_free);
    qemu_bh_schedule(conn->bh);
}

static void ivshmem2_chr_event(void *opaque, QEMUChrEvent event)
{
    Ivshmem2Conn *conn = opaque;

    switch (event) {
    case CHR_EVENT_OPENED:
        if (conn->connected) {
            /* once more, for handlers that have been set anew */
            ivshmem2_conn_pump(conn);
        } else {
            ivshmem2_conn_opened(conn);
        }
        break;
    case CHR_EVENT_CLOSED:
        ivshmem2_conn_closed(conn);
        break;
    default:
        break;
    }
    trace_ivshmem2_conn_event(ivshmem2_conn_id(conn), event);
}

/*
 * Without a server, the device goes on with its memory, its interrupts, and
 * the doorbells of peers whose eventfds it holds.
 */
static void ivshmem2_conn_bh(void *opaque)
{
    Ivshmem2Conn *conn = opaque;

    if (conn->connected && conn->broken) {
        qemu_chr_fe_disconnect(&conn->chr);
    }
    if (conn->error) {
        /* If it is to be tried in another way at once, it is no news yet. */
        if (!conn->try_rejoin) {
            ivshmem2_report_loss(&conn->report,
                                 conn->refused || conn->given_up,
                                 error_get_pretty(conn->error));
        }
        g_clear_pointer(&conn->error, error_free);
    }
}

static bool ivshmem2_conn_check_chardev(Ivshmem2Conn *conn, Error **errp)
{
    ERRP_GUARD();
    Chardev *chr = qemu_chr_fe_get_driver(&conn->chr);
    SocketChardev *sock;

    if (!chr) {
        error_setg(errp, "You must specify a 'chardev'");
        return false;
    }
    sock = (SocketChardev *)object_dynamic_cast(OBJECT(chr),
                                                TYPE_CHARDEV_SOCKET);
    if (!sock || (sock->addr->type != SOCKET_ADDRESS_TYPE_UNIX &&
                  sock->addr->type != SOCKET_ADDRESS_TYPE_FD) ||
        !qemu_chr_has_feature(chr, QEMU_CHAR_FEATURE_GCONTEXT)) {
        error_setg(errp, "chardev '%s' is not a unix socket", chr->label);
        error_append_hint(errp, "Use -chardev socket,id=%s,path=PATH with the "
                          "socket of an ivshmem2-server.\n", chr->label);
        return false;
    }
    if (sock->is_listen) {
        error_setg(errp, "chardev '%s' listens, but it is the device that "
                   "connects to its server", chr->label);
        error_append_hint(errp, "Leave out 'server=on'.\n");
        return false;
    }
    if (conn->new_session == IVSHMEM2_NEW_SESSION_REJOIN &&
        !sock->reconnect_time_ms) {
        error_setg(errp, "new-session=rejoin, but chardev '%s' does not "
                   "connect again", chr->label);
        error_append_hint(errp, "Use -chardev socket,id=%s,path=PATH,"
                          "reconnect-ms=100.\n", chr->label);
        return false;
    }
    return true;
}

/*
 * A thread of the chardev is in connect(), which waits for ever if the server
 * does not accept.  When connect() has returned, the thread leaves a source.
 */
static bool ivshmem2_conn_wait_for_thread(Ivshmem2Conn *conn, int64_t deadline,
                                          Error **errp)
{
    SocketChardev *sock = ivshmem2_conn_socket(conn);
    GMainContext *context = CHARDEV(sock)->gcontext;

    while (!g_main_context_find_source_by_user_data(context,
                                                    sock->connect_task)) {
        if (!ivshmem2_deadline_ms(deadline)) {
            error_setg(errp, "no connection with the ivshmem2-server: it does "
                       "not accept connections");
            return false;
        }
        g_usleep(1000);
    }
    qio_task_wait_thread(sock->connect_task);
    return true;
}

/* Returns the socket, or -errno.  Does not wait. */
static int ivshmem2_conn_try(const UnixSocketAddress *addr)
{
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    bool abstract = addr->has_abstract && addr->abstract;
    bool tight = !addr->has_tight || addr->tight;
    size_t len = strlen(addr->path);
    socklen_t size = sizeof(un);
    int fd, ret;

    if (len + abstract > sizeof(un.sun_path)) {
        return -ENAMETOOLONG;
    }
    memcpy(un.sun_path + abstract, addr->path, len);
    if (abstract && tight) {
        size = offsetof(struct sockaddr_un, sun_path) + 1 + len;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) {
        return -errno;
    }
    if (RETRY_ON_EINTR(connect(fd, (struct sockaddr *)&un, size)) < 0) {
        ret = -errno;
        close(fd);
        return ret;
    }
    return fd;
}

static void ivshmem2_conn_stop_timer(SocketChardev *sock)
{
    if (sock->reconnect_timer) {
        g_source_destroy(sock->reconnect_timer);
        g_source_unref(sock->reconnect_timer);
        sock->reconnect_timer = NULL;
    }
}

/*
 * Connect a chardev that is not connected.  Its own functions would wait for
 * a server that does not accept.  With reconnect-ms, wait for the server to
 * appear, except while a guest is running and the user set no timeout.
 */
static bool ivshmem2_conn_connect(Ivshmem2Conn *conn, int64_t deadline,
                                  Error **errp)
{
    SocketChardev *sock = ivshmem2_conn_socket(conn);
    int fd;

    if (sock->state == TCP_CHARDEV_STATE_CONNECTING &&
        (!sock->connect_task ||
         !ivshmem2_conn_wait_for_thread(conn, deadline, errp))) {
        return false;
    }
    ivshmem2_conn_stop_timer(sock);
    if (sock->state == TCP_CHARDEV_STATE_CONNECTED) {
        return true;
    }
    if (sock->addr->type != SOCKET_ADDRESS_TYPE_UNIX) {
        error_setg(errp, "no connection with the ivshmem2-server: the socket "
                   "that QEMU was started with is closed");
        return false;
    }
    while ((fd = ivshmem2_conn_try(&sock->addr->u.q_unix)) < 0) {
        bool absent = fd == -ENOENT || fd == -ECONNREFUSED;

        if (!(fd == -EAGAIN || (absent && conn->await_server)) ||
            !ivshmem2_deadline_ms(deadline)) {
            error_setg(errp, "no connection with the ivshmem2-server: %s: %s",
                       sock->addr->u.q_unix.path, fd == -EAGAIN ?
                       "it does not accept connections" : strerror(-fd));
            return false;
        }
        g_usleep(CONNECT_POLL_MS * 1000);
    }
    if (qemu_chr_add_client(CHARDEV(sock), fd) < 0) {
        close(fd);
        error_setg(errp, "chardev '%s' does not take a connection",
                   CHARDEV(sock)->label);
        return false;
    }
    return true;
}

static gboolean ivshmem2_conn_timed_out(void *opaque)
{
    bool *timed_out = opaque;

    *timed_out = true;
    return G_SOURCE_REMOVE;
}

static void ivshmem2_conn_set_handlers(Ivshmem2Conn *conn,
                                       GMainContext *context, bool sync)
{
    ivshmem2_conn_drop_watch(conn);
    qemu_chr_fe_set_handlers_full(&conn->chr, ivshmem2_chr_can_read,
                                  ivshmem2_chr_read, ivshmem2_chr_event, NULL,
                                  conn, context, true, sync);
}

/*
 * Wait for the handshake in a context of its own, where nothing else of QEMU
 * happens meanwhile, and no longer than the user allows.
 */
static bool ivshmem2_conn_handshake(Ivshmem2Conn *conn, int64_t deadline,
                               Error **errp)
{
    ERRP_GUARD();
    GMainContext *context = g_main_context_new();
    GSource *timer = g_timeout_source_new(ivshmem2_deadline_ms(deadline));
    bool timed_out = false;

    g_source_set_callback(timer, ivshmem2_conn_timed_out, &timed_out, NULL);
    g_source_attach(timer, context);
    conn->too_late = false;
    ivshmem2_conn_set_handlers(conn, context, true);
    while (!timed_out && !conn->error &&
           !ivshmem2_session_ready(conn->session)) {
        g_main_context_iteration(context, true);
    }
    conn->joined = ivshmem2_session_ready(conn->session) && !conn->error;
    if (conn->error) {
        error_propagate_prepend(errp, conn->error, "handshake with the "
                                "ivshmem2-server failed: ");
        conn->error = NULL;
    } else if (!conn->joined) {
        error_setg(errp, "handshake with the ivshmem2-server failed: it is "
                   "not complete in time");
        error_append_hint(errp, "The property handshake-timeout-ms sets how "
                          "long the device waits.\n");
    }
    qemu_bh_cancel(conn->bh);
    ivshmem2_conn_set_handlers(conn, NULL, false);
    g_source_destroy(timer);
    g_source_unref(timer);
    g_main_context_unref(context);
    return conn->joined;
}

static void ivshmem2_conn_disconnect(Ivshmem2Conn *conn)
{
    SocketChardev *sock = ivshmem2_conn_socket(conn);

    /* Disconnecting in this state, a chardev looks for what it has not got. */
    if (sock->state != TCP_CHARDEV_STATE_CONNECTING) {
        qemu_chr_fe_disconnect(&conn->chr);
    }
    ivshmem2_conn_release_socket(conn);
}

static void ivshmem2_conn_init(Ivshmem2Conn *conn,
                               const Ivshmem2ConnJoin *join, DeviceState *dev,
                               const Ivshmem2ConnOps *ops)
{
    conn->reconnect_ms = ivshmem2_conn_socket(conn)->reconnect_time_ms;
    conn->back_off_ms = conn->reconnect_ms;
    conn->await_server = join->await_server && conn->reconnect_ms;
    conn->handshake_ms = join->later_ms;
    conn->uid = geteuid();
    conn->socket = -1;
    conn->ops = ops;
    conn->opaque = dev;
    conn->bh = qemu_bh_new_guarded(ivshmem2_conn_bh, conn,
                                   &dev->mem_reentrancy_guard);
    conn->settle_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                      ivshmem2_conn_settled, conn);
    conn->handshake_timer = timer_new_ms(QEMU_CLOCK_REALTIME,
                                         ivshmem2_conn_handshake_over, conn);
    conn->session = ivshmem2_session_new(&join->hello);
    if (conn->new_session == IVSHMEM2_NEW_SESSION_REJOIN) {
        /* to go back to them if the new ones cannot be mapped */
        ivshmem2_session_keep_files(conn->session);
    }
    ivshmem2_decoder_init(&conn->decoder, IVSHMEM2_SERVER);
}

bool ivshmem2_conn_join(Ivshmem2Conn *conn, const Ivshmem2ConnJoin *join,
                        DeviceState *dev, const Ivshmem2ConnOps *ops,
                        Error **errp)
{
    int64_t deadline = ivshmem2_deadline(join->timeout_ms * INT64_C(1000));
    SocketChardev *sock;
    Error *err = NULL;
    bool idle;

    if (!ivshmem2_conn_check_chardev(conn, errp)) {
        return false;
    }
    sock = ivshmem2_conn_socket(conn);
    ivshmem2_conn_init(conn, join, dev, ops);
    idle = sock->state == TCP_CHARDEV_STATE_CONNECTED;
    if (!ivshmem2_conn_connect(conn, deadline, errp)) {
        return false;
    }
    /* Until the handshake is complete, the chardev starts no timer. */
    sock->reconnect_time_ms = 0;
    if (!ivshmem2_conn_handshake(conn, deadline, &err) && idle &&
        conn->too_late && sock->addr->type == SOCKET_ADDRESS_TYPE_UNIX) {
        /* The server was tired of waiting for our HELLO. */
        error_free(err);
        err = NULL;
        ivshmem2_conn_disconnect(conn);
        g_clear_pointer(&conn->error, error_free);
        if (ivshmem2_conn_connect(conn, deadline, &err)) {
            ivshmem2_conn_handshake(conn, deadline, &err);
        }
    }
    sock->reconnect_time_ms = conn->reconnect_ms;
    if (conn->joined) {
        ivshmem2_report_init(&conn->report, dev, ivshmem2_conn_id(conn));
    }
    error_propagate(errp, err);
    return conn->joined;
}

/* Send what is left, to a server that is slow. */
static void ivshmem2_conn_flush(Ivshmem2Conn *conn)
{
    int64_t deadline = ivshmem2_deadline(GOODBYE_MS * INT64_C(1000));
    GPollFD pfd = { .events = G_IO_OUT };
    int left;

    while (conn->connected && conn->out_full &&
           (left = ivshmem2_deadline_ms(deadline))) {
        pfd.fd = ivshmem2_conn_socket(conn)->sioc->fd;
        g_poll(&pfd, 1, left);
        ivshmem2_conn_drop_watch(conn);
        ivshmem2_conn_pump(conn);
    }
}

void ivshmem2_conn_goodbye(Ivshmem2Conn *conn)
{
    if (!conn->session || !conn->joined) {
        return;
    }
    ivshmem2_conn_socket(conn)->reconnect_time_ms = 0;
    ivshmem2_conn_stop_timer(ivshmem2_conn_socket(conn));
    ivshmem2_session_goodbye(ivshmem2_conn_active(conn));
    ivshmem2_conn_pump(conn);
    ivshmem2_conn_flush(conn);
    qemu_chr_fe_set_handlers(&conn->chr, NULL, NULL, NULL, NULL, NULL, NULL,
                             true);
    ivshmem2_conn_disconnect(conn);
    conn->connected = false;
    ivshmem2_conn_drop_watch(conn);
    qemu_bh_cancel(conn->bh);
    timer_del(conn->settle_timer);
    timer_del(conn->handshake_timer);
}

void ivshmem2_conn_leave(Ivshmem2Conn *conn)
{
    if (!conn->session) {
        return;
    }
    ivshmem2_session_goodbye(ivshmem2_conn_active(conn));
    ivshmem2_conn_pump(conn);
    ivshmem2_conn_socket(conn)->reconnect_time_ms = conn->reconnect_ms;
    conn->joined = false;       /* no backing off */
    ivshmem2_conn_disconnect(conn);
    conn->connected = false;
    ivshmem2_conn_drop_watch(conn);
    qemu_chr_fe_set_handlers(&conn->chr, NULL, NULL, NULL, NULL, NULL, NULL,
                             true);
    ivshmem2_decoder_reset(&conn->decoder);
    g_clear_pointer(&conn->next, ivshmem2_session_free);
    g_clear_pointer(&conn->session, ivshmem2_session_free);
    g_clear_pointer(&conn->bh, qemu_bh_delete);
    g_clear_pointer(&conn->settle_timer, timer_free);
    g_clear_pointer(&conn->handshake_timer, timer_free);
    g_clear_pointer(&conn->error, error_free);
    ivshmem2_report_exit(&conn->report);
    conn->try_rejoin = false;
    conn->settled = false;
}
