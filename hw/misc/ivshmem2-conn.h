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
    Ivshmem2Msg out;            /* being sent, in wire format */
    uint32_t out_size;
    uint32_t out_done;
    guint out_watch;
    bool joined;                /* the first handshake is complete */
    bool connected;
    bool broken;                /* the connection is to be closed */
    Error *error;               /* why it is, or was */
    char *warning;              /* the last one */
    QEMUBH *bh;
    void (*resumed)(void *opaque);
    void *opaque;
} Ivshmem2Conn;

/*
 * Connect, and wait for the handshake to be complete, but no longer than
 * @timeout_ms.  Later, whenever the connection was lost and the session is
 * resumed, @resumed is called with @opaque.  On failure, undo it all with
 * ivshmem2_conn_leave().
 */
bool ivshmem2_conn_join(Ivshmem2Conn *conn, const Ivshmem2Hello *hello,
                        uint32_t timeout_ms, MemReentrancyGuard *guard,
                        void (*resumed)(void *opaque), void *opaque,
                        Error **errp);

/* Say goodbye and disconnect.  Nobody may use the eventfds any more. */
void ivshmem2_conn_leave(Ivshmem2Conn *conn);

/* Send what the session has to say, without waiting. */
void ivshmem2_conn_pump(Ivshmem2Conn *conn);

#endif /* HW_MISC_IVSHMEM2_CONN_H */
