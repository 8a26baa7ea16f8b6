/*
 * The budget: how many descriptors, places and IDs may be used, and how many
 * of them by one user
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include "budget.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"

/* The socket, epoll, signals, stderr and the like */
#define OTHER_FDS               16

/*
 * Descriptors with numbers in the highest part of what is allowed are used to
 * tell clients why they cannot join.
 */
#define FD_RESERVE              32

/* Connections of a user at its limit that are told why they are refused */
#define REFUSALS_PER_USER       8

/*
 * Linux lets a user have as many descriptors in flight (sent, not received)
 * as the sender may have open.  A client has no more than two messages full
 * of them while it joins, and two of them later.  Half of what is allowed is
 * for clients that join.
 */
#define FDS_IN_FLIGHT           (2 * IVSHMEM2_MAX_FDS)
#define MIN_PLACES              4
#define MAX_PLACES              1024

typedef struct User {
    unsigned n[IVSHMEM2_N_RESOURCES];
} User;

struct Ivshmem2Budget {
    Ivshmem2BudgetConfig config;
    int64_t n_fds;              /* open files */
    unsigned n[IVSHMEM2_N_RESOURCES];       /* of all users together */
    unsigned places;
    GHashTable *users;          /* that have something: uid -> User */
};

/* Planning */

bool ivshmem2_budget_pushes(const Ivshmem2BudgetConfig *budget,
                            const Ivshmem2LinkConfig *link)
{
    return (uint64_t)link->max_peers * link->vectors <= budget->push_limit;
}

uint64_t ivshmem2_budget_needs(const Ivshmem2LinkConfig *link, uint32_t peers)
{
    uint64_t memory = 1 + !!link->rw_size +
                      (link->output_size ? 2 * (uint64_t)link->max_peers : 0);
    uint64_t eventfds = (uint64_t)link->vectors *
                        (link->pushes ? link->max_peers : peers);
    /*
     * Connections that have not joined leave as many to others as they take;
     * the descriptors for eventfds that do not exist yet serve for that, too.
     */
    uint64_t others = link->pushes ? peers : 0;

    return OTHER_FDS + FD_RESERVE + memory + eventfds + peers + others;
}

void ivshmem2_budget_plan(Ivshmem2BudgetConfig *budget,
                          Ivshmem2LinkConfig *link)
{
    uint64_t limit, reserve, base, each, need;

    link->pushes = ivshmem2_budget_pushes(budget, link);
    base = ivshmem2_budget_needs(link, 0);
    each = ivshmem2_budget_needs(link, 1) - base;
    need = ivshmem2_budget_needs(link, link->max_peers);
    limit = ivshmem2_raise_file_limit(need);
    reserve = MIN(FD_RESERVE, limit / 4);
    budget->fd_limit = MIN(limit - reserve, G_MAXINT);
    link->fd_limit = budget->fd_limit;
    if (limit && need > limit) {
        g_warning("the limit of %" PRIu64 " open files (RLIMIT_NOFILE) is "
                  "enough for about %" PRIu64 " peers, all %u need %" PRIu64,
                  limit, limit > base ? (limit - base) / each : 0,
                  link->max_peers, need);
    }
}

Ivshmem2Budget *ivshmem2_budget_new(const Ivshmem2BudgetConfig *config)
{
    Ivshmem2Budget *b = g_new0(Ivshmem2Budget, 1);
    int limit = config->fd_limit;

    b->config = *config;
    b->places = limit ? CLAMP(limit / 2 / FDS_IN_FLIGHT, MIN_PLACES,
                              MAX_PLACES) : MAX_PLACES;
    b->users = g_hash_table_new_full(NULL, NULL, NULL, g_free);
    return b;
}

void ivshmem2_budget_free(Ivshmem2Budget *b)
{
    if (b) {
        g_warn_if_fail(!g_hash_table_size(b->users));
        g_hash_table_unref(b->users);
        g_free(b);
    }
}

/* Open files */

void ivshmem2_budget_count_open_fds(Ivshmem2Budget *b, int fd)
{
    /* The system gives the lowest number that is free, so this one tells. */
    int next = fcntl(fd, F_DUPFD_CLOEXEC, 0);

    b->n_fds = MAX(next, 0);
    ivshmem2_close(&next);
}

void ivshmem2_budget_charge_fds(Ivshmem2Budget *b, unsigned n)
{
    b->n_fds += n;
}

void ivshmem2_budget_discharge_fds(Ivshmem2Budget *b, unsigned n)
{
    b->n_fds -= n;
}

bool ivshmem2_budget_allows_fd(const Ivshmem2Budget *b, int fd)
{
    return !b->config.fd_limit || fd < b->config.fd_limit;
}

/* Descriptors that can still be used */
static unsigned count_free_fds(const Ivshmem2Budget *b)
{
    return b->config.fd_limit ? MAX(b->config.fd_limit - b->n_fds, 0)
                              : G_MAXINT;
}

/* Users */

static User *find_user(const Ivshmem2Budget *b, uid_t uid)
{
    return g_hash_table_lookup(b->users, GUINT_TO_POINTER(uid));
}

unsigned ivshmem2_budget_count(const Ivshmem2Budget *b,
                               Ivshmem2Resource resource, uid_t uid)
{
    const User *u = find_user(b, uid);

    return u ? u->n[resource] : 0;
}

bool ivshmem2_budget_allows(const Ivshmem2Budget *b,
                            Ivshmem2Resource resource, uid_t uid)
{
    unsigned n = ivshmem2_budget_count(b, resource, uid);

    switch (resource) {
    case IVSHMEM2_ENTRANT:
        /* no more than are left for others then; the first one always */
        return n < MAX(count_free_fds(b), 1);
    case IVSHMEM2_PLACE:
        /* fewer than are left for others, so that some are left */
        return n < b->places - b->n[resource];
    case IVSHMEM2_SLOT:
        return !b->config.ids_per_user || n < b->config.ids_per_user;
    default:
        g_assert_not_reached();
    }
}

bool ivshmem2_budget_binds_ids(const Ivshmem2Budget *b)
{
    return b->config.bind_ids;
}

void ivshmem2_budget_charge(Ivshmem2Budget *b, Ivshmem2Resource resource,
                            uid_t uid)
{
    User *u = find_user(b, uid);

    if (!u) {
        u = g_new0(User, 1);
        g_hash_table_insert(b->users, GUINT_TO_POINTER(uid), u);
    }
    u->n[resource]++;
    b->n[resource]++;
}

void ivshmem2_budget_discharge(Ivshmem2Budget *b, Ivshmem2Resource resource,
                               uid_t uid)
{
    static const User nothing;
    User *u = find_user(b, uid);

    g_return_if_fail(u && u->n[resource]);
    u->n[resource]--;
    b->n[resource]--;
    if (!memcmp(u, &nothing, sizeof(nothing))) {
        g_hash_table_remove(b->users, GUINT_TO_POINTER(uid));
    }
}

bool ivshmem2_budget_allows_refusal(const Ivshmem2Budget *b, uid_t uid)
{
    return ivshmem2_budget_count(b, IVSHMEM2_ENTRANT, uid) <
           (uint64_t)count_free_fds(b) + REFUSALS_PER_USER;
}

/* Descriptors in flight */

bool ivshmem2_budget_allows_in_flight(bool joining, unsigned unread)
{
    return unread <= (joining ? FDS_IN_FLIGHT - IVSHMEM2_MAX_FDS : 0);
}
