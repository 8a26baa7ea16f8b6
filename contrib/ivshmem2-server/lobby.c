/*
 * Connections that are not peers yet: whose turn is it to join?
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lobby.h"

struct Ivshmem2LobbyUser {
    GList node;
    uid_t uid;
    unsigned outside;           /* joiners without a place */
    unsigned joining;           /* joiners with a place */
    GQueue waiting;             /* joiners who wait for one */
};

void ivshmem2_lobby_init(Ivshmem2Lobby *l, unsigned places)
{
    *l = (Ivshmem2Lobby) {
        .users = g_hash_table_new_full(NULL, NULL, NULL, g_free),
        .places = places,
    };
}

void ivshmem2_lobby_clear(Ivshmem2Lobby *l)
{
    g_clear_pointer(&l->users, g_hash_table_unref);
}

static Ivshmem2LobbyUser *find_user(const Ivshmem2Lobby *l, uid_t uid)
{
    return g_hash_table_lookup(l->users, GUINT_TO_POINTER(uid));
}

unsigned ivshmem2_lobby_count(const Ivshmem2Lobby *l, uid_t uid)
{
    Ivshmem2LobbyUser *u = find_user(l, uid);

    return u ? u->outside : 0;
}

void ivshmem2_lobby_enter(Ivshmem2Lobby *l, Ivshmem2Joiner *j, uid_t uid)
{
    Ivshmem2LobbyUser *u = find_user(l, uid);

    if (!u) {
        u = g_new0(Ivshmem2LobbyUser, 1);
        u->uid = uid;
        u->node.data = u;
        g_hash_table_insert(l->users, GUINT_TO_POINTER(uid), u);
    }
    u->outside++;
    j->node.data = j;
    j->user = u;
    j->stage = IVSHMEM2_LOBBY;
}

static bool has_place(const Ivshmem2Lobby *l, const Ivshmem2LobbyUser *u)
{
    return u->joining < l->places - l->joining.length;
}

static void take_place(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    j->stage = IVSHMEM2_JOINING;
    j->user->outside--;
    j->user->joining++;
    g_queue_push_tail_link(&l->joining, &j->node);
}

bool ivshmem2_lobby_ask(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    Ivshmem2LobbyUser *u = j->user;

    if (!u->waiting.length && has_place(l, u)) {
        take_place(l, j);
        return true;
    }
    if (!u->waiting.length) {
        g_queue_push_tail_link(&l->waiting, &u->node);
    }
    g_queue_push_tail_link(&u->waiting, &j->node);
    j->stage = IVSHMEM2_WAITING;
    return false;
}

static void stop_waiting(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    g_queue_unlink(&j->user->waiting, &j->node);
    if (!j->user->waiting.length) {
        g_queue_unlink(&l->waiting, &j->user->node);
    }
}

Ivshmem2Joiner *ivshmem2_lobby_next(Ivshmem2Lobby *l)
{
    for (guint i = l->waiting.length; i; i--) {
        GList *node = g_queue_pop_head_link(&l->waiting);
        Ivshmem2LobbyUser *u = node->data;

        g_queue_push_tail_link(&l->waiting, node);
        if (has_place(l, u)) {
            Ivshmem2Joiner *j = u->waiting.head->data;

            stop_waiting(l, j);
            take_place(l, j);
            return j;
        }
    }
    return NULL;
}

void ivshmem2_lobby_leave(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    Ivshmem2LobbyUser *u = j->user;

    if (j->stage == IVSHMEM2_OUTSIDE) {
        return;
    }
    if (j->stage == IVSHMEM2_JOINING) {
        g_queue_unlink(&l->joining, &j->node);
        u->joining--;
    } else {
        if (j->stage == IVSHMEM2_WAITING) {
            stop_waiting(l, j);
        }
        u->outside--;
    }
    j->stage = IVSHMEM2_OUTSIDE;
    j->user = NULL;
    if (!u->outside && !u->joining) {
        g_hash_table_remove(l->users, GUINT_TO_POINTER(u->uid));
    }
}
