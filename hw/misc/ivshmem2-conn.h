/*
 * ivshmem2: a device's connection with its server
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_CONN_H
#define HW_MISC_IVSHMEM2_CONN_H

#include "chardev/char-fe.h"
#include "hw/qdev-core.h"
#include "libivshmem2-core.h"

typedef struct Ivshmem2Conn {
    CharBackend chr;            /* the device's property */
    Ivshmem2Session *session;   /* NULL unless joined */
    Ivshmem2Decoder decoder;
    int socket;                 /* a duplicate of the chardev's, or -1 */
    Ivshmem2Msg out;            /* being sent, in wire format */
    uint32_t out_size;
    uint32_t out_done;
    guint out_watch;
    bool joined;                /* the first handshake is complete */
    bool connected;
    bool broken;                /* the connection is to be closed */
    Error *error;               /* why it is closed */
    bool too_late;              /* the server did not wait for us */
    bool given_up;              /* the server does not know the session */
    bool await_server;          /* wait for an absent server */
    unsigned reports;           /* lines since a connection was settled */
    char *loss;                 /* the last one, unless it says "again" */
    bool settled;               /* the connection has lasted for a while */
    QEMUTimer *settle_timer;
    int64_t reconnect_ms;       /* the chardev's, as the user set it */
    uint32_t slowest_reconnect_ms;  /* with a server that fails; a property */
    QEMUBH *bh;
    void (*resumed)(void *opaque);
    void *opaque;
} Ivshmem2Conn;

/*
 * Connect and complete the handshake within @timeout_ms.  With @await_server,
 * a chardev with reconnect-ms waits for an absent server, too, until then.
 * @resumed is called with @opaque each time that the session is resumed after
 * the connection was lost.  After a failure, too, ivshmem2_conn_leave() has to
 * be called.
 */
bool ivshmem2_conn_join(Ivshmem2Conn *conn, const Ivshmem2Hello *hello,
                        uint32_t timeout_ms, bool await_server,
                        MemReentrancyGuard *guard,
                        void (*resumed)(void *opaque), void *opaque,
                        Error **errp);

/*
 * QEMU ends: say goodbye, disconnect and do not come back.  A server that does
 * not read is given a moment.  The session stays until ivshmem2_conn_leave().
 */
void ivshmem2_conn_goodbye(Ivshmem2Conn *conn);

/*
 * Say goodbye and disconnect.  The device must not use the session's eventfds
 * any more.  Without effect if there is no session.
 */
void ivshmem2_conn_leave(Ivshmem2Conn *conn);

/*
 * Send what the session has to say, as far as the socket takes it.  The rest
 * is sent when the socket is writable.
 */
void ivshmem2_conn_pump(Ivshmem2Conn *conn);

#endif /* HW_MISC_IVSHMEM2_CONN_H */
