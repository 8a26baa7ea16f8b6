/*
 * The server's side of the protocol without the I/O: the messages that a client
 * is sent, and the effects of the messages that it sends
 *
 * Peers are called clients here, as in the protocol: a client may not be a
 * peer yet.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SERVER_H
#define IVSHMEM2_SERVER_H

#include "slots.h"

typedef struct Ivshmem2Server Ivshmem2Server;
typedef struct Ivshmem2Client Ivshmem2Client;

/*
 * Calls from the server to the I/O.  @connection is that of the client in
 * ivshmem2_client_new().
 */
typedef struct Ivshmem2ServerOps {
    Ivshmem2SlotOps slots;
    /* Another client caused that there is something to send to this one. */
    void (*wake)(void *connection);
} Ivshmem2ServerOps;

/* As ivshmem2_slots_new() */
Ivshmem2Server *ivshmem2_server_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                    const Ivshmem2ServerOps *ops,
                                    void *opaque);

/*
 * From here on, slots stay as they are when their clients are freed: the peers
 * continue without the server.
 */
void ivshmem2_server_shutdown(Ivshmem2Server *s);

/* All clients must have been freed. */
void ivshmem2_server_free(Ivshmem2Server *s);

/* As ivshmem2_slots_release() and ivshmem2_slots_end_grace() */
void ivshmem2_server_release(Ivshmem2Server *s, uint32_t id);
void ivshmem2_server_end_grace(Ivshmem2Server *s, uint32_t id);

/*
 * Go on interrupting peers because of changed states, @budget of them at
 * most.  Returns true if there is more to do.
 */
bool ivshmem2_server_broadcast(Ivshmem2Server *s, unsigned budget);

/* @pid, @uid: of the process that connected; pid 0: it cannot be seen. */
Ivshmem2Client *ivshmem2_client_new(Ivshmem2Server *s, pid_t pid, uid_t uid,
                                    void *connection);

/* The connection is closed. */
void ivshmem2_client_free(Ivshmem2Client *c);

/* It may take only @ids (see access.h). */
void ivshmem2_client_restrict_consume(Ivshmem2Client *c, GArray *ids);

/*
 * Handle a message.  Only while there is nothing to send to this client, so
 * that a client which does not read cannot cause any more work.
 */
void ivshmem2_client_receive(Ivshmem2Client *c, const Ivshmem2Msg *msg);

/* Does @hello have to wait for a slot?  See ivshmem2_slots_must_wait(). */
bool ivshmem2_client_waits(const Ivshmem2Client *c, const Ivshmem2Hello *hello,
                           bool connections, bool processes);

/* Is there something to send? */
bool ivshmem2_client_has_next(const Ivshmem2Client *c);

/*
 * Get the next message to send, with msg->hdr.fds descriptors at *@fds, which
 * live as long as the link.  Only if there is something to send.
 */
void ivshmem2_client_next(Ivshmem2Client *c, Ivshmem2Msg *msg,
                          const int **fds);

/* REFUSED, with this code and text, is the last message that it is sent. */
void ivshmem2_client_refuse(Ivshmem2Client *c, enum Ivshmem2RefusalCode code,
                            const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* The handshake is complete. */
bool ivshmem2_client_is_ready(const Ivshmem2Client *c);

/* It was refused, or said goodbye: its messages are ignored. */
bool ivshmem2_client_is_sent_away(const Ivshmem2Client *c);

/* In addition, there is nothing more to send: the connection can be closed. */
bool ivshmem2_client_is_over(const Ivshmem2Client *c);

/* The slot that it occupies, or IVSHMEM2_ID_ANY */
uint32_t ivshmem2_client_id(const Ivshmem2Client *c);

/* For people: what HELLO said, empty before that */
const char *ivshmem2_client_name(const Ivshmem2Client *c);

pid_t ivshmem2_client_pid(const Ivshmem2Client *c);

#endif /* IVSHMEM2_SERVER_H */
