/*
 * Connections that are not peers yet: whose turn is it to join?
 *
 * Joining takes descriptors that are on their way, and Linux allows a user (the
 * server's) only so many of them.  So there are places for those who are
 * being told about the link; others wait.  No user gets as many places as
 * are left for others then, so that some are left, whoever does not go on.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LOBBY_H
#define IVSHMEM2_LOBBY_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

typedef enum Ivshmem2Stage {
    IVSHMEM2_OUTSIDE,           /* or through: nothing to do with the lobby */
    IVSHMEM2_LOBBY,             /* has not asked for a place yet */
    IVSHMEM2_WAITING,           /* for a place */
    IVSHMEM2_JOINING,           /* has a place */
} Ivshmem2Stage;

typedef struct Ivshmem2LobbyUser Ivshmem2LobbyUser;

/* Embedded in what it belongs to.  All zeros: outside. */
typedef struct Ivshmem2Joiner {
    GList node;
    Ivshmem2LobbyUser *user;
    Ivshmem2Stage stage;
} Ivshmem2Joiner;

typedef struct Ivshmem2Lobby {
    GHashTable *users;          /* with joiners: uid -> Ivshmem2LobbyUser */
    GQueue waiting;             /* users with joiners who wait */
    GQueue joining;             /* joiners who have a place */
    unsigned places;
} Ivshmem2Lobby;

void ivshmem2_lobby_init(Ivshmem2Lobby *l, unsigned places);

/* All joiners must have left. */
void ivshmem2_lobby_clear(Ivshmem2Lobby *l);

/* How many joiners of this user have no place? */
unsigned ivshmem2_lobby_count(const Ivshmem2Lobby *l, uid_t uid);

void ivshmem2_lobby_enter(Ivshmem2Lobby *l, Ivshmem2Joiner *j, uid_t uid);

/* Take a place, if there is one.  If not, it waits from now on. */
bool ivshmem2_lobby_ask(Ivshmem2Lobby *l, Ivshmem2Joiner *j);

/*
 * Give a place to the next one who waits, all users taking turns; NULL if
 * there is no place or nobody waits.
 */
Ivshmem2Joiner *ivshmem2_lobby_next(Ivshmem2Lobby *l);

/* It is through, or gives up.  No effect outside. */
void ivshmem2_lobby_leave(Ivshmem2Lobby *l, Ivshmem2Joiner *j);

#endif /* IVSHMEM2_LOBBY_H */
