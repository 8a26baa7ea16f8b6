/*
 * ivshmem2: a device's connection with its server
 *
 * The conversation itself is libivshmem2's; this is how a chardev carries it.
 * Nothing here waits for the server once the device is realized.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "chardev/char-socket.h"
#include "ivshmem2-link.h"
#include "trace.h"

static uint32_t ivshmem2_link_id(Ivshmem2Link *link)
{
    return ivshmem2_session_info(link->session)->id;
}

static gboolean ivshmem2_can_write(void *unused, GIOCondition cond,
                                   void *opaque)
{
    Ivshmem2Link *link = opaque;

    link->out_watch = 0;
    ivshmem2_link_pump(link);
    return G_SOURCE_REMOVE;
}

static void ivshmem2_drop_watch(Ivshmem2Link *link)
{
    if (link->out_watch) {
        /* it may be in another context than the default one */
        GMainContext *context = link->chr.chr->gcontext;
        GSource *source = g_main_context_find_source_by_id(context,
                                                           link->out_watch);

        if (source) {
            g_source_destroy(source);
        }
        link->out_watch = 0;
    }
}

/*
 * Send what there is to say as far as the socket takes it, without waiting.
 * What the guest can trigger is kept as state in the session (a flag, a bit
 * for each target), so nothing grows while the server is slow.
 */
void ivshmem2_link_pump(Ivshmem2Link *link)
{
    int ret;

    while (link->connected && !link->out_watch) {
        if (link->out_done == link->out_size) {
            if (!ivshmem2_session_next(link->session, &link->out)) {
                return;
            }
            trace_ivshmem2_message_send(ivshmem2_link_id(link),
                                        link->out.hdr.type);
            link->out_size = ivshmem2_msg_encode(&link->out);
            link->out_done = 0;
        }
        ret = qemu_chr_fe_write(&link->chr,
                                (uint8_t *)&link->out + link->out_done,
                                link->out_size - link->out_done);
        if (ret > 0) {
            link->out_done += ret;
        } else if (link->connected) {
            link->out_watch = qemu_chr_fe_add_watch(&link->chr,
                                                    G_IO_OUT | G_IO_HUP,
                                                    ivshmem2_can_write, link);
            if (!link->out_watch) {
                return;
            }
        }
    }
}

static int ivshmem2_chr_can_read(void *opaque)
{
    Ivshmem2Link *link = opaque;

    /* never more than this message lacks, and none after an error */
    return link->error ? 0 : ivshmem2_decoder_wants(&link->decoder);
}

static void ivshmem2_link_failed(Ivshmem2Link *link, GError *err)
{
    if (!link->error) {
        error_setg(&link->error, "%s", err->message);
    }
    link->broken = true;
    /* The caller is the chardev, which must not lose its socket meanwhile. */
    qemu_bh_schedule(link->bh);
}

static void ivshmem2_chr_read(void *opaque, const uint8_t *buf, int size)
{
    Ivshmem2Link *link = opaque;
    g_autoptr(GError) err = NULL;
    int fds[IVSHMEM2_MAX_FDS];
    int n = qemu_chr_fe_get_msgfds(&link->chr, fds, ARRAY_SIZE(fds));
    bool was_ready = ivshmem2_session_ready(link->session);

    n = ivshmem2_decoder_push_consume(&link->decoder, buf, size,
                                      fds, MAX(n, 0), &err);
    if (n > 0) {
        trace_ivshmem2_message_receive(ivshmem2_link_id(link),
                                       link->decoder.msg.hdr.type);
        ivshmem2_session_receive(link->session, &link->decoder, &err);
    }
    if (err) {
        ivshmem2_link_failed(link, err);
        return;
    }
    if (!was_ready && ivshmem2_session_ready(link->session)) {
        g_clear_pointer(&link->warning, g_free);
        if (link->joined) {
            info_report("ivshmem2: peer %u is connected with its server again",
                        ivshmem2_link_id(link));
            link->resumed(link->opaque);
        }
    }
    ivshmem2_link_pump(link);
}

static void ivshmem2_chr_event(void *opaque, QEMUChrEvent event)
{
    Ivshmem2Link *link = opaque;

    switch (event) {
    case CHR_EVENT_OPENED:
        ivshmem2_decoder_reset(&link->decoder);
        ivshmem2_session_connected(link->session);
        link->out_size = 0;
        link->out_done = 0;
        link->broken = false;
        link->connected = true;
        ivshmem2_link_pump(link);
        break;
    case CHR_EVENT_CLOSED:
        link->connected = false;
        ivshmem2_drop_watch(link);
        ivshmem2_session_disconnected(link->session);
        ivshmem2_decoder_reset(&link->decoder);
        if (!link->error) {
            error_setg(&link->error, "the server closed the connection");
        }
        qemu_bh_schedule(link->bh);
        break;
    default:
        break;
    }
    trace_ivshmem2_link_event(ivshmem2_link_id(link), event);
}

/*
 * The connection is over, the device is not: memory, doorbells to peers whose
 * eventfds it holds, and interrupts go on.
 */
static void ivshmem2_link_bh(void *opaque)
{
    Ivshmem2Link *link = opaque;

    if (link->error) {
        /* once, however often the chardev tries again */
        if (g_strcmp0(link->warning, error_get_pretty(link->error))) {
            g_free(link->warning);
            link->warning = g_strdup(error_get_pretty(link->error));
            warn_report("ivshmem2: peer %u goes on without its server: %s",
                        ivshmem2_link_id(link), link->warning);
        }
        g_clear_pointer(&link->error, error_free);
    }
    if (link->connected && link->broken) {
        qemu_chr_fe_disconnect(&link->chr);
    }
}

static bool ivshmem2_check_chardev(Ivshmem2Link *link, Error **errp)
{
    ERRP_GUARD();
    Chardev *chr = qemu_chr_fe_get_driver(&link->chr);
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

static int64_t ivshmem2_ms_left(int64_t deadline)
{
    return MAX(deadline - g_get_monotonic_time() / 1000, 0);
}

/* With reconnect-ms, wait for the server to appear, but not for ever. */
static bool ivshmem2_connect(Ivshmem2Link *link, int64_t deadline,
                             Error **errp)
{
    SocketChardev *sock = SOCKET_CHARDEV(qemu_chr_fe_get_driver(&link->chr));
    int64_t reconnect_ms = sock->reconnect_time_ms;

    for (;;) {
        Error *err = NULL;
        int ret;

        /* one attempt, where the chardev would try until it succeeds */
        sock->reconnect_time_ms = 0;
        ret = qemu_chr_fe_wait_connected(&link->chr, &err);
        sock->reconnect_time_ms = reconnect_ms;
        if (ret == 0) {
            return true;
        }
        if (!reconnect_ms || !ivshmem2_ms_left(deadline)) {
            error_propagate_prepend(errp, err, "no connection with the "
                                    "ivshmem2-server: ");
            return false;
        }
        error_free(err);
        g_usleep(MIN(reconnect_ms, ivshmem2_ms_left(deadline)) * 1000);
    }
}

static gboolean ivshmem2_timed_out(void *opaque)
{
    bool *timed_out = opaque;

    *timed_out = true;
    return G_SOURCE_REMOVE;
}

static void ivshmem2_set_handlers(Ivshmem2Link *link, GMainContext *context,
                                  bool sync)
{
    ivshmem2_drop_watch(link);
    qemu_chr_fe_set_handlers_full(&link->chr, ivshmem2_chr_can_read,
                                  ivshmem2_chr_read, ivshmem2_chr_event, NULL,
                                  link, context, true, sync);
}

/*
 * Wait for the handshake in a context of its own, where nothing else of QEMU
 * happens meanwhile, and no longer than the user allows.
 */
static bool ivshmem2_handshake(Ivshmem2Link *link, int64_t deadline,
                               Error **errp)
{
    ERRP_GUARD();
    GMainContext *context = g_main_context_new();
    GSource *timer = g_timeout_source_new(ivshmem2_ms_left(deadline));
    bool timed_out = false;

    g_source_set_callback(timer, ivshmem2_timed_out, &timed_out, NULL);
    g_source_attach(timer, context);
    ivshmem2_set_handlers(link, context, true);
    while (!timed_out && !link->error &&
           !ivshmem2_session_ready(link->session)) {
        g_main_context_iteration(context, true);
    }
    link->joined = ivshmem2_session_ready(link->session) && !link->error;
    if (link->error) {
        error_propagate_prepend(errp, link->error, "handshake with the "
                                "ivshmem2-server failed: ");
        link->error = NULL;
    } else if (!link->joined) {
        error_setg(errp, "handshake with the ivshmem2-server failed: it is "
                   "not complete in time");
        error_append_hint(errp, "The property handshake-timeout-ms sets how "
                          "long the device waits.\n");
    }
    qemu_bh_cancel(link->bh);
    ivshmem2_set_handlers(link, NULL, false);
    g_source_destroy(timer);
    g_source_unref(timer);
    g_main_context_unref(context);
    return link->joined;
}

bool ivshmem2_link_join(Ivshmem2Link *link, const Ivshmem2Hello *hello,
                        uint32_t timeout_ms, MemReentrancyGuard *guard,
                        void (*resumed)(void *opaque), void *opaque,
                        Error **errp)
{
    int64_t deadline = g_get_monotonic_time() / 1000 + timeout_ms;

    if (!ivshmem2_check_chardev(link, errp)) {
        return false;
    }
    link->resumed = resumed;
    link->opaque = opaque;
    link->bh = qemu_bh_new_guarded(ivshmem2_link_bh, link, guard);
    link->session = ivshmem2_session_new(hello);
    ivshmem2_decoder_init(&link->decoder, IVSHMEM2_SERVER);
    return ivshmem2_connect(link, deadline, errp) &&
           ivshmem2_handshake(link, deadline, errp);
}

void ivshmem2_link_leave(Ivshmem2Link *link)
{
    if (!link->session) {
        return;
    }
    ivshmem2_session_goodbye(link->session);
    ivshmem2_link_pump(link);
    qemu_chr_fe_disconnect(&link->chr);
    link->connected = false;
    ivshmem2_drop_watch(link);
    qemu_chr_fe_set_handlers(&link->chr, NULL, NULL, NULL, NULL, NULL, NULL,
                             true);
    ivshmem2_decoder_reset(&link->decoder);
    g_clear_pointer(&link->session, ivshmem2_session_free);
    g_clear_pointer(&link->bh, qemu_bh_delete);
    g_clear_pointer(&link->error, error_free);
    g_clear_pointer(&link->warning, g_free);
    link->joined = false;
}
