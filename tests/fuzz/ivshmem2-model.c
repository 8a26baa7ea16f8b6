/*
 * Fuzzing ivshmem2: a model of who has which slot
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-model.h"

Game *model_game;

/* Processes */

pid_t model_pid(unsigned process)
{
    return process == N_PROCESSES - 1 ? 0 : 100 + process;
}

uid_t model_uid(const Identity *who)
{
    return who->process == HONEST ? 999 : 1000 + who->user;
}

bool model_lives(const Identity *who)
{
    return !model_game->dead[who->process] &&
           who->generation == model_game->generations[who->process];
}

bool model_is_same(const Identity *old, const Identity *new)
{
    return old->process == new->process && model_pid(new->process) &&
           old->generation == new->generation && old->user == new->user &&
           model_lives(new);
}

static void *hold_slot(void *connection, uint32_t id)
{
    Player *p = connection;
    Hold *hold;

    g_assert_null(model_game->holds[id]);
    g_assert_cmpint(ivshmem2_client_pid(p->c), ==, model_pid(p->who.process));
    if (!model_lives(&p->who)) {
        return NULL;
    }
    hold = g_new(Hold, 1);
    *hold = (Hold) {
        .id = id, .who = p->who, .unseen = !model_pid(p->who.process),
    };
    model_game->holds[id] = hold;
    return hold;
}

/* Who has the slot in the model? */
static const Identity *find_owner(uint32_t id)
{
    return model_game->occupants[id] ? &model_game->occupants[id]->who
                               : &model_game->held_for[id].who;
}

static void *adopt_slot(void *opaque, uint32_t id, pid_t pid,
                        uint64_t start_time, bool grace)
{
    const Identity *who = find_owner(id);
    Hold *hold;

    g_assert_true(opaque == model_game);
    g_assert_null(model_game->holds[id]);
    g_assert_true(model_game->held[id] || model_game->occupants[id]);
    g_assert_cmpint(grace, ==, !model_game->held[id] ||
                    model_game->held_for[id].grace);
    g_assert_cmpint(pid, ==, model_pid(who->process));
    g_assert_true(!start_time || start_time == 1 + who->generation);
    if (pid && start_time && !model_lives(who)) {
        return NULL;
    }
    hold = g_new(Hold, 1);
    *hold = (Hold) {
        .id = id, .who = *who, .grace = grace, .unseen = !pid || !start_time,
    };
    model_game->holds[id] = hold;
    return hold;
}

static void unhold_slot(void *opaque)
{
    Hold *hold = opaque;

    g_assert_true(model_game->holds[hold->id] == hold);
    model_game->holds[hold->id] = NULL;
    g_free(hold);
}

static bool is_alive(void *connection)
{
    Player *p = connection;

    return model_lives(&p->who);
}

static bool is_hold_alive(void *opaque)
{
    Hold *hold = opaque;

    return !hold->unseen && model_lives(&hold->who);
}

static unsigned grace_left(void *opaque)
{
    return ((Hold *)opaque)->grace;
}

static uint64_t start_time(void *connection)
{
    Player *p = connection;

    return model_lives(&p->who) ? 1 + p->who.generation : 0;
}

static void wake(void *connection)
{
    Player *p = connection;

    g_assert_true(p->open);
    g_assert_true(ivshmem2_client_has_next(p->c));
}

const Ivshmem2ServerOps model_ops = {
    .slots.hold = hold_slot,
    .slots.adopt = adopt_slot,
    .slots.unhold = unhold_slot,
    .slots.is_alive = is_alive,
    .slots.is_hold_alive = is_hold_alive,
    .slots.start_time = start_time,
    .slots.grace_left = grace_left,
    .wake = wake,
};

void model_release(Game *g)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        const Hold *hold = g->holds[id];

        if (hold && (hold->unseen ? !hold->grace : !model_lives(&hold->who))) {
            bool tell = ivshmem2_link_state(g->link, id) || g->known[id];

            ivshmem2_server_release(g->server, id);
            g_assert_null(g->holds[id]);
            g->owed[id] = false;
            g->known[id] = 0;
            if (tell) {
                model_owe(g, id);
            }
        }
    }
}

/* Interrupts */

bool model_interrupted(Game *g, uint32_t id)
{
    fuzz_settle();
    return g->link->eventfds[id] &&
           ivshmem2_eventfd_drain(g->link->eventfds[id][0]);
}

void model_owe(Game *g, uint32_t source)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (model_interrupted(g, id)) {
            g->owed[id] = false;
        }
        if (id != source) {
            g->owed[id] = g->occupants[id] ||
                          (g->holds[id] && g->holds[id]->grace);
        }
    }
}

void model_broadcast(Game *g, unsigned budget)
{
    bool more;

    fuzz_enter();
    more = ivshmem2_server_broadcast(g->server, budget);
    fuzz_leave();
    if (more) {
        return;
    }
    for (uint32_t id = 0; id < g->max_peers; id++) {
        g_assert_true(!g->owed[id] || model_interrupted(g, id));
        g->owed[id] = false;
    }
}

/* Slots */

static const Player *find_occupant(const Game *g, uint32_t id)
{
    const Player *found = NULL;

    for (unsigned i = 0; i < N_CLIENTS; i++) {
        const Player *p = &g->players[i];

        if (p->open && ivshmem2_client_id(p->c) == id) {
            g_assert_null(found);
            found = p;
        }
    }
    return found;
}

/* May @now have what was held? */
static bool may_come_back(const Hold *hold, const Player *now)
{
    return model_is_same(&hold->who, &now->who) ||
           (hold->grace && hold->unseen && now->resumes &&
            model_uid(&hold->who) == model_uid(&now->who));
}

/* @now has the slot that @before had in the last step; either may be NULL. */
static void check_change(Game *g, uint32_t id, const Player *before,
                         const Player *now)
{
    bool back = now && now->resumes && g->held[id] && g->held_for[id].grace;

    if (now) {
        /* what others have, or what is held for them, cannot be taken */
        g_assert_true(!before || model_is_same(&before->who, &now->who));
        g_assert_true(!g->held[id] || may_come_back(&g->held_for[id], now));
        g_assert_true(now->ids >> id & 1);
        g->last_users[id] = 1U << now->who.user;
        g->users[id] |= g->last_users[id];
    }
    if (back) {
        /* an interrupt that it missed is still owed */
        if (g->known[id] != ivshmem2_link_state(g->link, id)) {
            model_owe(g, id);
        }
    } else {
        g->owed[id] = false;
        if (g->states[id] || g->known[id]) {
            model_owe(g, id);
        }
    }
    /* of one that resumes, or 0 */
    g->known[id] = ivshmem2_link_state(g->link, id);
}

unsigned model_count_ids(const Game *g, unsigned user)
{
    unsigned n = 0;

    for (uint32_t id = HONEST + 1; id < g->max_peers; id++) {
        n += (g->limits.bind_ids && g->users[id] == 1U << user) ||
             (g->occupants[id] && g->occupants[id]->who.user == user) ||
             (g->holds[id] && g->holds[id]->who.user == user);
    }
    return n;
}

static void check_limits(const Game *g)
{
    for (unsigned user = 0; user < N_USERS; user++) {
        g_assert_true(!g->limits.ids_per_user ||
                      model_count_ids(g, user) <= g->limits.ids_per_user);
    }
    for (uint32_t id = 0; g->limits.bind_ids && id < g->max_peers; id++) {
        /* no more than one bit */
        g_assert_cmphex(g->users[id] & (g->users[id] - 1), ==, 0);
    }
}

void model_check(Game *g)
{
    const Player *honest = &g->players[HONEST];

    for (uint32_t id = 0; id < g->max_peers; id++) {
        const Player *before = g->occupants[id];

        g->occupants[id] = find_occupant(g, id);
        if (g->occupants[id] != before) {
            check_change(g, id, before, g->occupants[id]);
        }
    }
    check_limits(g);
    for (uint32_t id = 0; id < g->max_peers; id++) {
        g->states[id] = ivshmem2_link_state(g->link, id);
        g->held[id] = g->holds[id];
        if (g->held[id]) {
            g->held_for[id] = *g->holds[id];
        }
        g_assert_true(!g->occupants[id] || !g->holds[id]);
        g_assert_true(g->occupants[id] || g->holds[id] || !g->states[id]);
    }
    g_assert_true(g->occupants[0] == honest);
    g_assert_true(ivshmem2_client_is_ready(honest->c));
}

bool model_has_hold(const Game *g, const Player *p)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (g->holds[id] && !g->holds[id]->unseen && !g->holds[id]->grace &&
            model_is_same(&g->holds[id]->who, &p->who) &&
            (p->ids >> id & 1)) {
            return true;
        }
    }
    return false;
}

bool model_has_clean(const Game *g, const Player *p)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (!g->occupants[id] && !g->holds[id] && (p->ids >> id & 1) &&
            !(g->users[id] & ~(1U << p->who.user))) {
            return true;
        }
    }
    return false;
}

void model_check_adoption(Game *g)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        bool used = g->occupants[id] || g->held[id];

        g->occupants[id] = NULL;
        if (g->holds[id]) {
            g_assert_true(used);
            g_assert_cmpuint(ivshmem2_link_state(g->link, id), ==,
                             g->states[id]);
            g->held_for[id] = *g->holds[id];
        } else {
            g_assert_cmpuint(ivshmem2_link_state(g->link, id), ==, 0);
        }
        g->held[id] = g->holds[id];
    }
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (!g->holds[id]) {
            g->owed[id] = false;
            if (g->states[id] || g->known[id]) {
                model_owe(g, id);
            }
            g->known[id] = 0;
        }
    }
}
