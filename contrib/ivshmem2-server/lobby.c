/*
 * Connections that have not joined yet, and the order in which they join
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "lobby.h"

/* A user with joiners that wait */
typedef struct User {
    GList node;
    uid_t uid;
    bool stalls;                /* a joiner of this user did */
    GQueue joiners;
} User;

void ivshmem2_lobby_init(Ivshmem2Lobby *l, Ivshmem2Budget *budget)
{
    *l = (Ivshmem2Lobby) {
        .budget = budget,
        .users = g_hash_table_new_full(NULL, NULL, NULL, g_free),
    };
}

void ivshmem2_lobby_clear(Ivshmem2Lobby *l)
{
    g_clear_pointer(&l->users, g_hash_table_unref);
}

static User *find_user(const Ivshmem2Lobby *l, uid_t uid)
{
    return g_hash_table_lookup(l->users, GUINT_TO_POINTER(uid));
}

void ivshmem2_lobby_enter(Ivshmem2Lobby *l, Ivshmem2Joiner *j, uid_t uid)
{
    ivshmem2_budget_charge(l->budget, IVSHMEM2_ENTRANT, uid);
    j->node.data = j;
    j->uid = uid;
    j->stage = IVSHMEM2_LOBBY;
}

static void take_place(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    ivshmem2_budget_charge(l->budget, IVSHMEM2_PLACE, j->uid);
    ivshmem2_budget_discharge(l->budget, IVSHMEM2_ENTRANT, j->uid);
    g_queue_push_tail_link(&l->joining, &j->node);
    j->stage = IVSHMEM2_JOINING;
}

static void start_waiting(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    User *u = find_user(l, j->uid);

    if (!u) {
        u = g_new0(User, 1);
        u->uid = j->uid;
        u->node.data = u;
        g_hash_table_insert(l->users, GUINT_TO_POINTER(u->uid), u);
        g_queue_push_tail_link(&l->waiting, &u->node);
    }
    g_queue_push_tail_link(&u->joiners, &j->node);
    j->stage = IVSHMEM2_WAITING;
}

static void stop_waiting(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    User *u = find_user(l, j->uid);

    g_queue_unlink(&u->joiners, &j->node);
    if (!u->joiners.length) {
        g_queue_unlink(&l->waiting, &u->node);
        g_hash_table_remove(l->users, GUINT_TO_POINTER(u->uid));
    }
}

bool ivshmem2_lobby_ask(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    /* not before others of this user that wait */
    if (!find_user(l, j->uid) &&
        ivshmem2_budget_allows(l->budget, IVSHMEM2_PLACE, j->uid)) {
        take_place(l, j);
        return true;
    }
    start_waiting(l, j);
    return false;
}

Ivshmem2Joiner *ivshmem2_lobby_next(Ivshmem2Lobby *l)
{
    for (guint i = l->waiting.length; i; i--) {
        GList *node = g_queue_pop_head_link(&l->waiting);
        User *u = node->data;

        g_queue_push_tail_link(&l->waiting, node);
        if (ivshmem2_budget_allows(l->budget, IVSHMEM2_PLACE, u->uid)) {
            GList *next = u->stalls ? u->joiners.tail : u->joiners.head;
            Ivshmem2Joiner *j = next->data;

            stop_waiting(l, j);
            take_place(l, j);
            return j;
        }
    }
    return NULL;
}

void ivshmem2_lobby_retire(Ivshmem2Lobby *l, Ivshmem2Joiner *j, bool stalled)
{
    User *u = find_user(l, j->uid);

    if (j->stage == IVSHMEM2_JOINING) {
        if (u && stalled) {
            u->stalls = true;
        }
        ivshmem2_lobby_leave(l, j);
        ivshmem2_lobby_enter(l, j, j->uid);
    }
}

void ivshmem2_lobby_leave(Ivshmem2Lobby *l, Ivshmem2Joiner *j)
{
    switch (j->stage) {
    case IVSHMEM2_OUTSIDE:
        return;
    case IVSHMEM2_JOINING:
        g_queue_unlink(&l->joining, &j->node);
        ivshmem2_budget_discharge(l->budget, IVSHMEM2_PLACE, j->uid);
        break;
    case IVSHMEM2_WAITING:
        stop_waiting(l, j);
        /* fall through */
    case IVSHMEM2_LOBBY:
        ivshmem2_budget_discharge(l->budget, IVSHMEM2_ENTRANT, j->uid);
        break;
    }
    j->stage = IVSHMEM2_OUTSIDE;
}
