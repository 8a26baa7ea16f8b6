/*
 * The server's slots without sockets and real processes, and its successors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SLOTS_UTIL_H
#define IVSHMEM2_SLOTS_UTIL_H

#include "ivshmem2-util.h"
#include "server.h"

#define MAX_PEERS   4
#define SESSION     true
#define GRACE_LEFT  27

/* Processes are their clients' connections. */
typedef struct Process {
    pid_t pid;
    uint64_t start_time;
    uid_t uid;
    bool dead;
} Process;

/*
 * The server sees no pid of UNSEEN, and no start time of HIDDEN.  RECYCLED has
 * the victim's pid later.
 */
enum { OBSERVER, VICTIM, OTHER, FOREIGN, UNSEEN, HIDDEN, RECYCLED,
       N_PROCESSES };

extern Process processes[N_PROCESSES];

typedef struct Hold {
    uint32_t id;
    const Process *process;     /* NULL: cannot be seen */
    bool grace;
} Hold;

/* Of each slot, or NULL */
extern Hold *holds[MAX_PEERS];

typedef struct Fixture {
    unsigned before;
    Ivshmem2Link *link;
    Ivshmem2BudgetConfig limits;
    Ivshmem2Budget *budget;
    Ivshmem2Server *server;
    Ivshmem2Client *clients[MAX_PEERS];     /* NULL: not connected */
} Fixture;

/* A link and its first server */
void setup_with(Fixture *f, const Ivshmem2BudgetConfig *limits);
void setup(Fixture *f);
void teardown(Fixture *f);

/* An observer as ID 0, and a victim as ID 1 with state 5 that all know */
void begin(Fixture *f);

/* It leaves everything as if it had been killed. */
void stop_server(Fixture *f);
void start_server(Fixture *f);

/* The next server adopts the link. */
void restart(Fixture *f);

/* Clients */

Ivshmem2Msg make_hello(const Fixture *f, uint32_t id, bool resume);

/* Take all messages to a client; @last: the last one */
void listen_to_it(Ivshmem2Client *c, Ivshmem2Msg *last);

/*
 * Client @i connects and says HELLO.  Returns the ID that it gets, or
 * IVSHMEM2_ID_ANY and, unless that is NULL, the *@text of the refusal.
 */
uint32_t try_join(Fixture *f, uint32_t i, int process, uint32_t id,
                  bool resume, char **text);

/* Client @id gets that ID. */
void join(Fixture *f, int process, uint32_t id, bool resume);
void refused(Fixture *f, int process, uint32_t id, bool resume,
             const char *want);

/* Close the connection. */
void leave(Fixture *f, uint32_t i);

void say(Fixture *f, uint32_t i, uint16_t type);
void announce(Fixture *f, uint32_t id, uint32_t state);

/* State Table and interrupts */

void set_state(Fixture *f, uint32_t id, uint32_t state);
uint32_t get_state(Fixture *f, uint32_t id);
void run_broadcast(Fixture *f);

/* After all interrupts that are due */
bool was_interrupted(Fixture *f, uint32_t id);

#endif /* IVSHMEM2_SLOTS_UTIL_H */
