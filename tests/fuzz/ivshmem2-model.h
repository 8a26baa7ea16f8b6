/*
 * Fuzzing ivshmem2: a model of who has which slot
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_MODEL_H
#define IVSHMEM2_MODEL_H

#include "ivshmem2-fuzz.h"
#include "server.h"

#define N_CLIENTS       8
#define N_PROCESSES     4
#define N_USERS         2
#define MAX_PEERS       5
/* A client that behaves, in the first slot; its process does not end. */
#define HONEST          0

/* The process and the user behind a connection */
typedef struct Identity {
    unsigned process;
    unsigned generation;        /* how many had its pid before */
    unsigned user;
} Identity;

typedef struct Player {
    Ivshmem2Client *c;
    bool open;
    Identity who;
    unsigned ids;               /* a bit for each one that it may take */
    uint32_t id;                /* where it may write its state */
    bool welcome;               /* was told so */
    bool resumes;               /* a session */
} Player;

/*
 * A slot that its last occupant left without a goodbye, or may come back to
 * after the server was killed
 */
typedef struct Hold {
    uint32_t id;
    Identity who;
    bool grace;
    bool unseen;                /* the server cannot tell who it is */
} Hold;

typedef struct Game {
    Ivshmem2Link *link;
    Ivshmem2BudgetConfig limits;
    Ivshmem2Budget *budget;
    Ivshmem2Server *server;
    uint32_t max_peers;
    Player players[N_CLIENTS];
    bool dead[N_PROCESSES];     /* or not started yet */
    unsigned generations[N_PROCESSES];
    Hold *holds[MAX_PEERS];
    /* of each slot, after the last step */
    const Player *occupants[MAX_PEERS];
    uint32_t states[MAX_PEERS];
    bool held[MAX_PEERS];
    Hold held_for[MAX_PEERS];
    unsigned users[MAX_PEERS];  /* a bit for each one that had it */
    unsigned last_users[MAX_PEERS];     /* the bit of the last one, or 0 */
    bool owed[MAX_PEERS];       /* an interrupt by the broadcast */
    uint32_t known[MAX_PEERS];  /* its last announced state */
} Game;

/* Only one game is played at a time, so the server's calls find it here. */
extern Game *model_game;

extern const Ivshmem2ServerOps model_ops;

/* Processes.  The server cannot see the last one. */

pid_t model_pid(unsigned process);

/* The honest one is of a user of its own. */
uid_t model_uid(const Identity *who);
bool model_lives(const Identity *who);

/* May @new have what @old has or had?  Only if they are one, and live. */
bool model_is_same(const Identity *old, const Identity *new);

/* The server learns of ends some time later, or it waits if there is no pid. */
void model_release(Game *g);

/* Interrupts */

bool model_interrupted(Game *g, uint32_t id);

/* Interrupts from before do not count. */
void model_owe(Game *g, uint32_t source);
void model_broadcast(Game *g, unsigned budget);

/* Slots */

/* Invariants, to be checked after each step */
void model_check(Game *g);

/* Slots of processes that are gone are free now, and of others held. */
void model_check_adoption(Game *g);

/* IDs that count for the user, but for that of the honest one */
unsigned model_count_ids(const Game *g, unsigned user);
bool model_has_hold(const Game *g, const Player *p);

/* Is there a free slot that no other user had? */
bool model_has_clean(const Game *g, const Player *p);

#endif /* IVSHMEM2_MODEL_H */
