/*
 * Connections that have not joined yet, and the order in which they join
 *
 * A connection that joins has descriptors in flight, and Linux limits how many
 * the server's user may have.  So the budget has a number of places for
 * connections that join, and the others wait in the lobby.  Users take turns.
 *
 * A user's connections join in the order of asking, until one of them stalls.
 * From then on, as long as some wait, the newest one is next: those before it
 * may be more of the kind that stalls, and it waits no longer than until the
 * next one runs out of time.  Nothing tells beforehand which ones will stall,
 * and the descriptors that they were sent cannot be taken back, so they cannot
 * just be tried faster.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LOBBY_H
#define IVSHMEM2_LOBBY_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>
#include "budget.h"

typedef enum Ivshmem2Stage {
    IVSHMEM2_OUTSIDE,           /* the lobby: not yet, or not any more */
    IVSHMEM2_LOBBY,             /* it has not asked for a place yet */
    IVSHMEM2_WAITING,           /* for a place */
    IVSHMEM2_JOINING,           /* it has a place */
} Ivshmem2Stage;

/* Embedded in the connection.  All zeros: outside. */
typedef struct Ivshmem2Joiner {
    GList node;
    uid_t uid;
    Ivshmem2Stage stage;
} Ivshmem2Joiner;

/* Embedded in the daemon, which may look at the queues. */
typedef struct Ivshmem2Lobby {
    Ivshmem2Budget *budget;     /* borrowed */
    GHashTable *users;          /* uid -> its entry in waiting, if any */
    GQueue waiting;             /* users with joiners that wait */
    GQueue joining;             /* joiners that have a place */
} Ivshmem2Lobby;

/* @budget is borrowed. */
void ivshmem2_lobby_init(Ivshmem2Lobby *l, Ivshmem2Budget *budget);

/* All joiners must have left. */
void ivshmem2_lobby_clear(Ivshmem2Lobby *l);

void ivshmem2_lobby_enter(Ivshmem2Lobby *l, Ivshmem2Joiner *j, uid_t uid);

/* Take a place.  Returns false if there is none: then it waits from now on. */
bool ivshmem2_lobby_ask(Ivshmem2Lobby *l, Ivshmem2Joiner *j);

/*
 * Give a place to the next joiner that waits, users taking turns.  Returns
 * NULL if there is no place, or if none waits.
 */
Ivshmem2Joiner *ivshmem2_lobby_next(Ivshmem2Lobby *l);

/*
 * @j will not join.  It gives back its place, if it has one, but stays in the
 * lobby until it leaves.  @stalled: it had the place until its time was up
 */
void ivshmem2_lobby_retire(Ivshmem2Lobby *l, Ivshmem2Joiner *j, bool stalled);

/* @j has joined, or gives up.  No effect outside. */
void ivshmem2_lobby_leave(Ivshmem2Lobby *l, Ivshmem2Joiner *j);

#endif /* IVSHMEM2_LOBBY_H */
