/*
 * A client that sends the server exactly what a test tells it to
 *
 * It checks that the server's messages come in the order of the handshake,
 * and keeps everything that it is given.  To the server, all clients of one
 * test program belong to one process; where that matters, a test has an Other.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_RAW_CLIENT_H
#define IVSHMEM2_RAW_CLIENT_H

#include "ivshmem2-server-util.h"
#include "libivshmem2-transport.h"

typedef struct Client {
    Ivshmem2Transport transport;
    Ivshmem2Welcome welcome;
    int memory[2];              /* State Table, R/W section */
    int *outputs;
    int **eventfds;             /* of each ID; NULL: none received */
    uint32_t *table;
    unsigned n_messages;        /* in the handshake */
} Client;

/* Connecting */

void client_connect(Client *c, Server *s);

/*
 * Connect as another user, with another group as well (unless 0).  The server
 * takes both from the socket, so this needs no other process.
 */
void client_connect_as(Client *c, Server *s, uid_t uid, gid_t gid);

/* Close without GOODBYE. */
void client_close(Client *c);

/* Messages */

void wait_for(int fd, short events);
void client_say(Client *c, const Ivshmem2Msg *msg);
void client_say_type(Client *c, uint16_t type);
void client_say_target(Client *c, uint16_t type, uint32_t id,
                       uint32_t vector);

/* Returns the type of the next message, or 0 if the server closed. */
uint16_t client_hear_any(Client *c);

/* Expect a message of this type. */
const Ivshmem2Msg *client_hear(Client *c, uint16_t type);

/* Expect REFUSED, and the end of the connection. */
void client_hear_refusal(Client *c, uint32_t code, const char *text);

/* Send RING and return the server's answer. */
const Ivshmem2Msg *client_ring(Client *c, uint32_t id, uint32_t vector);

/* Returns when the server has handled everything that the client sent. */
void client_sync(Client *c);

/* Joining and leaving */

Ivshmem2Msg make_hello(uint32_t id);

/* The HELLO that resumes the session of @c */
Ivshmem2Msg make_resume(const Client *c);

/* Receive the rest of the handshake after HELLO, and check its order. */
void client_complete(Client *c);

void client_join_hello(Client *c, Server *s, const Ivshmem2Msg *hello);
void client_join(Client *c, Server *s, uint32_t id);
void client_join_as(Client *c, Server *s, uid_t uid, gid_t gid, uint32_t id);

/* Say GOODBYE, and wait until the server has closed the connection. */
void client_leave(Client *c);

/* Say @hello and be refused. */
void client_refused(Server *s, const Ivshmem2Msg *hello, uint32_t code,
                    const char *text);
void client_refused_id(Server *s, uint32_t id, uint32_t code,
                       const char *text);

/*
 * Wait until the slot is free: no connection has it, and the server does not
 * hold it for another process.  The slot's last owner in this process loses
 * its claim to it.
 */
void wait_until_free(Server *s, uint32_t id);

/* State Table and interrupts */

void set_state(Client *c, uint32_t state);
uint32_t get_state(Client *c, uint32_t id);

/* Set it, and tell the server. */
void change_state(Client *c, uint32_t state);

/* Tell the server only that the other peers know it. */
void announce_state(Client *c, uint32_t state);

void assert_interrupted(Client *c, uint32_t vector);

/* No vector was signalled. */
void assert_quiet(Client *c);

/* A client in a process of its own */

typedef struct Other {
    pid_t pid;
    int fd;                     /* for orders */
} Other;

typedef enum Order {
    ORDER_CLOSE = 1,            /* close the connection, but live on */
    ORDER_JOIN,                 /* again */
    ORDER_EXIT,
} Order;

/* Start a process that joins as @id with @state. */
void other_start(Other *o, Server *s, uint32_t id, uint32_t state);
void other_do(Other *o, uint8_t order);

/* End it by signal @sig, or by an order if that is 0. */
void other_end(Other *o, int sig);

#endif /* IVSHMEM2_RAW_CLIENT_H */
