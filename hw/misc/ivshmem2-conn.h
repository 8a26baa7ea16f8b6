/*
 * ivshmem2: a device's connection with its server
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_CONN_H
#define HW_MISC_IVSHMEM2_CONN_H

#include "chardev/char-fe.h"
#include "hw/qdev-core.h"
#include "ivshmem2-report.h"
#include "libivshmem2-core.h"

/* What to do if the server does not know the session; a property */
typedef enum Ivshmem2NewSession {
    IVSHMEM2_NEW_SESSION_DETACH,    /* go on alone */
    IVSHMEM2_NEW_SESSION_REJOIN,    /* go over to the server's own session */
} Ivshmem2NewSession;

/* What the device does */
typedef struct Ivshmem2ConnOps {
    /* The session was resumed after the connection was lost. */
    void (*resumed)(void *opaque);
    /*
     * Take all that @next has in place of the session, whose descriptors are
     * then closed.  Returns false if that is not possible, and nothing has
     * changed then.
     */
    bool (*rejoin)(void *opaque, Ivshmem2Session *next, Error **errp);
} Ivshmem2ConnOps;

typedef struct Ivshmem2Conn {
    CharBackend chr;            /* the device's property */
    Ivshmem2Session *session;   /* NULL unless joined */
    Ivshmem2Session *next;      /* tries to join another server's, or NULL */
    Ivshmem2Decoder decoder;
    int socket;                 /* a duplicate of the chardev's, or -1 */
    Ivshmem2Msg out;            /* being sent, in wire format */
    uint32_t out_size;
    uint32_t out_done;
    guint out_watch;
    bool out_full;              /* nothing can be sent until then */
    bool joined;                /* the first handshake is complete */
    bool connected;
    bool broken;                /* the connection is to be closed */
    Error *error;               /* why it is closed */
    bool refused;               /* by the server's words, before it stood */
    bool too_late;              /* the server did not wait for us */
    bool given_up;              /* the server does not know the session */
    bool await_server;          /* wait for an absent server */
    bool try_rejoin;            /* with the next connection */
    Ivshmem2Report report;
    bool settled;               /* the connection has lasted for a while */
    QEMUTimer *settle_timer;
    QEMUTimer *handshake_timer;
    uint32_t handshake_ms;      /* how long a handshake may take, from now on */
    uid_t uid;                  /* who has joined */
    int64_t reconnect_ms;       /* the chardev's, as the user set it */
    int64_t back_off_ms;        /* at present, with a server that fails */
    uint32_t slowest_reconnect_ms;  /* at most; a property */
    Ivshmem2NewSession new_session; /* a property */
    QEMUBH *bh;
    const Ivshmem2ConnOps *ops;
    void *opaque;
} Ivshmem2Conn;

/*
 * How to join.  With @await_server, a chardev with reconnect-ms waits for an
 * absent server, too, until @timeout_ms is over.
 */
typedef struct Ivshmem2ConnJoin {
    Ivshmem2Hello hello;
    uint32_t timeout_ms;        /* for connecting and for the handshake */
    uint32_t later_ms;          /* for each handshake after the first one */
    bool await_server;
} Ivshmem2ConnJoin;

/*
 * Connect and complete the handshake.  @ops are called with @dev.  After a
 * failure, too, ivshmem2_conn_leave() has to be called.
 */
bool ivshmem2_conn_join(Ivshmem2Conn *conn, const Ivshmem2ConnJoin *join,
                        DeviceState *dev, const Ivshmem2ConnOps *ops,
                        Error **errp);

/* The handshake is complete and the connection stands. */
bool ivshmem2_conn_is_ready(const Ivshmem2Conn *conn);

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
