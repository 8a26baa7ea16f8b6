/*
 * A server whose link outlives its process, for the tests of resuming
 *
 * The test holds memory, eventfds and session; each process that serves the
 * link inherits them.  It does as a script says that the test can change.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LASTING_SERVER_H
#define IVSHMEM2_LASTING_SERVER_H

#include "ivshmem2-client-util.h"

#define LASTING_PEERS       4
#define LASTING_VECTORS     2

/* A handshake, as the server sees it; before each the script may interfere */
typedef enum Step {
    STEP_NONE,
    STEP_HELLO,                 /* a connection came, HELLO is not read yet */
    STEP_WELCOME,               /* it is read, WELCOME is not sent yet */
    STEP_EVENTFDS,
    STEP_READY,
    STEP_AFTER,                 /* READY is sent */
    STEP_ANNOUNCED,             /* and STATE_ANNOUNCED has come */
} Step;

typedef enum Action {
    DO_CLOSE,                   /* the connection */
    DO_STALL,                   /* do nothing more on this connection */
    DO_HALF,                    /* stall after half of WELCOME */
    DO_STOP,                    /* the process, by SIGSTOP */
    DO_DIE,                     /* the process, by SIGKILL */
} Action;

/* Shared with the server; read and written atomically */
typedef struct Script {
    int push;                   /* send all eventfds in the handshake */
    int step;                   /* where to interfere */
    int action;
    int times;                  /* as often as this */
    int refuse;                 /* each HELLO with this code; 0: none */
    int other;                  /* be a server of another session */
    int delay_ms;               /* before each answer to HELLO */

    int connections;
    int interfered;
    int joined;                 /* complete handshakes */
    int resumed;                /* of those */
    int rings;
    int changes;                /* STATE_CHANGED */
    int announcements;
    int announced;              /* the last state of them */
    int goodbyes;
    int closed;                 /* connections, by their clients */
} Script;

typedef struct Lasting {
    Server server;              /* its socket, and the process that serves */
    Script *script;
    int memory[2];
    uint32_t *table;
    int eventfds[LASTING_PEERS][LASTING_VECTORS];
} Lasting;

/* With @push as in Script.  Nobody serves yet. */
void lasting_init(Lasting *l, bool push);
void lasting_start(Lasting *l);
void lasting_kill(Lasting *l);

/* The server is stopped, and nothing is left of it. */
void lasting_end(Lasting *l);

/* The next @times that a handshake is at @step, do this. */
void lasting_do(Lasting *l, Step step, Action action, int times);

/* A field of the script */
#define said(l, field)  __atomic_load_n(&(l)->script->field, __ATOMIC_SEQ_CST)
#define say(l, field, value) \
    __atomic_store_n(&(l)->script->field, value, __ATOMIC_SEQ_CST)

/* Wait until the field has this value. */
#define await_said(l, field, value) do {                                \
        int tries = SOON_MS / 10;                                       \
        while (said(l, field) != (value)) {                             \
            wait_a_little(&tries);                                      \
        }                                                               \
    } while (0)

/* Peers of this process that try to resume after 1 to @slowest_ms */
Ivshmem2Peer *lasting_join(Lasting *l, uint32_t id, uint64_t flags,
                           int slowest_ms);

/* The next event is @what, with this @code; it may be waited for. */
void assert_event(Ivshmem2Peer *peer, Ivshmem2Event what, int code);

/* The connection is gone because the server is. */
void assert_lost(Ivshmem2Peer *peer);

/* Nothing happens, neither interrupts nor events. */
void assert_no_event(Ivshmem2Peer *peer);

/* Shut down the sockets of this process whose other end is @pid. */
void cut_connections(pid_t pid);

#endif /* IVSHMEM2_LASTING_SERVER_H */
