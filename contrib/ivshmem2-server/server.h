/*
 * The server's side of the conversation, without the I/O: who has which ID,
 * what a client is told, and what its messages cause
 *
 * Peers are called clients here, as in the protocol: a client may not be a
 * peer yet.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SERVER_H
#define IVSHMEM2_SERVER_H

#include <sys/types.h>
#include "access.h"
#include "link.h"

typedef struct Ivshmem2Server Ivshmem2Server;

/* Only server.c looks inside; it is here so that it can be embedded. */
typedef struct Ivshmem2Client {
    Ivshmem2Server *server;
    pid_t pid;                  /* of who connected; 0: cannot be seen */
    uid_t uid;
    uint8_t phase;
    uint8_t error_code;         /* to be sent in ERROR */
    bool has_answer;            /* about next_id and next_vector */
    uint32_t id;                /* or IVSHMEM2_ID_ANY: none */
    uint32_t next_id;           /* how far the handshake is */
    uint32_t next_vector;
    char *error_text;
    GArray *ids;                /* that it may take; see access.h */
    char name[IVSHMEM2_NAME_SIZE];
} Ivshmem2Client;

/*
 * A slot that its last occupant left without a goodbye.  It may still use
 * the eventfds, so nobody else gets the slot before that process is gone.
 */
typedef struct Ivshmem2Hold {
    uint32_t id;
    pid_t pid;
    char name[IVSHMEM2_NAME_SIZE];
} Ivshmem2Hold;

/* What the server needs done by who does the I/O */
typedef struct Ivshmem2ServerOps {
    /*
     * @client leaves the slot of @hold: watch its process, and call
     * ivshmem2_server_release() when it is gone.  Takes a copy of @hold and
     * returns it, or returns NULL if the process is gone already.
     */
    Ivshmem2Hold *(*hold)(Ivshmem2Client *client, const Ivshmem2Hold *hold);
    /* No need to watch any more; frees @hold. */
    void (*unhold)(Ivshmem2Hold *hold);
    /* Another client's doing gave @client something to say. */
    void (*wake)(Ivshmem2Client *client);
} Ivshmem2ServerOps;

/* @link is borrowed. */
Ivshmem2Server *ivshmem2_server_new(Ivshmem2Link *link,
                                    const Ivshmem2ServerOps *ops);

/* One user can have no more than @n IDs at a time, held ones included. */
void ivshmem2_server_limit_ids(Ivshmem2Server *s, uint32_t n);

/*
 * From here on, clients that go leave their slots as they are: the peers carry
 * on without the server.
 */
void ivshmem2_server_shutdown(Ivshmem2Server *s);

/* All clients must be gone. */
void ivshmem2_server_free(Ivshmem2Server *s);

/* The process that a slot was held for is gone: ops->unhold() is called. */
void ivshmem2_server_release(Ivshmem2Server *s, uint32_t id);

/*
 * Go on interrupting peers because of changed states, @budget of them at
 * most.  Returns true if there is more to do.
 */
bool ivshmem2_server_broadcast(Ivshmem2Server *s, unsigned budget);

void ivshmem2_client_init(Ivshmem2Client *c, Ivshmem2Server *s, pid_t pid,
                          uid_t uid);

/* It may take only @ids (see access.h). */
void ivshmem2_client_restrict_consume(Ivshmem2Client *c, GArray *ids);

/* The connection is closed. */
void ivshmem2_client_clear(Ivshmem2Client *c);

/*
 * Handle a message.  Only while there is nothing to send to this client: what
 * it causes is paid for by the client's own reading.
 */
void ivshmem2_client_receive(Ivshmem2Client *c, const Ivshmem2Msg *msg);

/* Is there something to send? */
bool ivshmem2_client_has_next(const Ivshmem2Client *c);

/*
 * What to send, with msg->hdr.fds descriptors at *@fds, which live as long as
 * the link.  Only if there is something to send.
 */
void ivshmem2_client_next(Ivshmem2Client *c, Ivshmem2Msg *msg,
                          const int **fds);

/* Send it away: ERROR is the last message it gets. */
void ivshmem2_client_refuse(Ivshmem2Client *c, enum Ivshmem2RefusalCode code,
                            const char *fmt, ...) G_GNUC_PRINTF(3, 4);

/* The handshake is complete. */
bool ivshmem2_client_is_ready(const Ivshmem2Client *c);

/* It has nothing more to say: it was refused, or said goodbye. */
bool ivshmem2_client_is_sent_away(const Ivshmem2Client *c);

/* All is said, the connection can be closed. */
bool ivshmem2_client_is_over(const Ivshmem2Client *c);

#endif /* IVSHMEM2_SERVER_H */
