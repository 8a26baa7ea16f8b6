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
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "chardev/char-socket.h"
#include "ivshmem2-conn.h"
#include "libivshmem2-util.h"
#include "trace.h"

static uint32_t ivshmem2_conn_id(Ivshmem2Conn *conn)
{
    return ivshmem2_session_info(conn->session)->id;
}

static gboolean ivshmem2_conn_writable(void *unused, GIOCondition cond,
                                   void *opaque)
{
    Ivshmem2Conn *conn = opaque;

    conn->out_watch = 0;
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
}

/*
 * The session keeps what a guest can trigger as state (a flag, a bit for each
 * target), so nothing grows while the server is slow.
 */
void ivshmem2_conn_pump(Ivshmem2Conn *conn)
{
    int ret;

    while (conn->connected && !conn->out_watch) {
        if (conn->out_done == conn->out_size) {
            if (!ivshmem2_session_next(conn->session, &conn->out)) {
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
            conn->out_watch =
                qemu_chr_fe_add_watch(&conn->chr, G_IO_OUT | G_IO_HUP,
                                      ivshmem2_conn_writable, conn);
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
    }
    conn->broken = true;
    /* The chardev calls this, and must not lose its socket meanwhile. */
    qemu_bh_schedule(conn->bh);
}

static void ivshmem2_chr_read(void *opaque, const uint8_t *buf, int size)
{
    Ivshmem2Conn *conn = opaque;
    g_autoptr(GError) err = NULL;
    int fds[IVSHMEM2_MAX_FDS];
    int n = qemu_chr_fe_get_msgfds(&conn->chr, fds, ARRAY_SIZE(fds));
    bool was_ready = ivshmem2_session_ready(conn->session);

    n = ivshmem2_decoder_push_consume(&conn->decoder, buf, size,
                                      fds, MAX(n, 0), &err);
    if (n > 0) {
        trace_ivshmem2_message_receive(ivshmem2_conn_id(conn),
                                       conn->decoder.msg.hdr.type);
        ivshmem2_session_receive(conn->session, &conn->decoder, &err);
    }
    if (err) {
        ivshmem2_conn_failed(conn, err);
        return;
    }
    if (!was_ready && ivshmem2_session_ready(conn->session)) {
        g_clear_pointer(&conn->warning, g_free);
        if (conn->joined) {
            info_report("ivshmem2: peer %u is connected with its server again",
                        ivshmem2_conn_id(conn));
            conn->resumed(conn->opaque);
        }
    }
    ivshmem2_conn_pump(conn);
}

static void ivshmem2_chr_event(void *opaque, QEMUChrEvent event)
{
    Ivshmem2Conn *conn = opaque;

    switch (event) {
    case CHR_EVENT_OPENED:
        ivshmem2_decoder_reset(&conn->decoder);
        ivshmem2_session_connected(conn->session);
        conn->out_size = 0;
        conn->out_done = 0;
        conn->broken = false;
        conn->connected = true;
        ivshmem2_conn_pump(conn);
        break;
    case CHR_EVENT_CLOSED:
        conn->connected = false;
        ivshmem2_conn_drop_watch(conn);
        ivshmem2_session_disconnected(conn->session);
        ivshmem2_decoder_reset(&conn->decoder);
        if (!conn->error) {
            error_setg(&conn->error, "the server closed the connection");
        }
        qemu_bh_schedule(conn->bh);
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

    if (conn->error) {
        /* once, however often the chardev tries again */
        if (g_strcmp0(conn->warning, error_get_pretty(conn->error))) {
            g_free(conn->warning);
            conn->warning = g_strdup(error_get_pretty(conn->error));
            warn_report("ivshmem2: peer %u goes on without its server: %s",
                        ivshmem2_conn_id(conn), conn->warning);
        }
        g_clear_pointer(&conn->error, error_free);
    }
    if (conn->connected && conn->broken) {
        qemu_chr_fe_disconnect(&conn->chr);
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
    return true;
}

/* With reconnect-ms, wait for the server to appear, but not for ever. */
static bool ivshmem2_conn_connect(Ivshmem2Conn *conn, int64_t deadline,
                             Error **errp)
{
    SocketChardev *sock = SOCKET_CHARDEV(qemu_chr_fe_get_driver(&conn->chr));
    int64_t reconnect_ms = sock->reconnect_time_ms;

    for (;;) {
        Error *err = NULL;
        int ret;

        /* one attempt, where the chardev would try until it succeeds */
        sock->reconnect_time_ms = 0;
        ret = qemu_chr_fe_wait_connected(&conn->chr, &err);
        sock->reconnect_time_ms = reconnect_ms;
        if (ret == 0) {
            return true;
        }
        if (!reconnect_ms || !ivshmem2_deadline_ms(deadline)) {
            error_propagate_prepend(errp, err, "no connection with the "
                                    "ivshmem2-server: ");
            return false;
        }
        error_free(err);
        g_usleep(MIN(reconnect_ms, ivshmem2_deadline_ms(deadline)) * 1000);
    }
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

bool ivshmem2_conn_join(Ivshmem2Conn *conn, const Ivshmem2Hello *hello,
                        uint32_t timeout_ms, MemReentrancyGuard *guard,
                        void (*resumed)(void *opaque), void *opaque,
                        Error **errp)
{
    int64_t deadline = ivshmem2_deadline(timeout_ms * INT64_C(1000));

    if (!ivshmem2_conn_check_chardev(conn, errp)) {
        return false;
    }
    conn->resumed = resumed;
    conn->opaque = opaque;
    conn->bh = qemu_bh_new_guarded(ivshmem2_conn_bh, conn, guard);
    conn->session = ivshmem2_session_new(hello);
    ivshmem2_decoder_init(&conn->decoder, IVSHMEM2_SERVER);
    return ivshmem2_conn_connect(conn, deadline, errp) &&
           ivshmem2_conn_handshake(conn, deadline, errp);
}

void ivshmem2_conn_leave(Ivshmem2Conn *conn)
{
    if (!conn->session) {
        return;
    }
    ivshmem2_session_goodbye(conn->session);
    ivshmem2_conn_pump(conn);
    qemu_chr_fe_disconnect(&conn->chr);
    conn->connected = false;
    ivshmem2_conn_drop_watch(conn);
    qemu_chr_fe_set_handlers(&conn->chr, NULL, NULL, NULL, NULL, NULL, NULL,
                             true);
    ivshmem2_decoder_reset(&conn->decoder);
    g_clear_pointer(&conn->session, ivshmem2_session_free);
    g_clear_pointer(&conn->bh, qemu_bh_delete);
    g_clear_pointer(&conn->error, error_free);
    g_clear_pointer(&conn->warning, g_free);
    conn->joined = false;
}
