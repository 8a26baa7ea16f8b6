/*
 * The budget: how many descriptors, places and IDs may be used, and how many
 * of them by one user
 *
 * The rest of the server charges here what it takes, discharges what it gives
 * back, and asks before.  daemon.c limits how much a client may do in one turn
 * of the event loop.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_BUDGET_H
#define IVSHMEM2_BUDGET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include "link.h"

/*
 * Links of no more eventfds than this send all of them to every peer at once,
 * which costs a joiner some microseconds for each.
 */
#define IVSHMEM2_PUSH_LIMIT         256
#define IVSHMEM2_MAX_PUSH_LIMIT     65536

typedef struct Ivshmem2BudgetConfig {
    uint32_t push_limit;
    uint32_t ids_per_user;      /* 0: any number */
    bool bind_ids;              /* to the first user that has them */
    int fd_limit;               /* descriptors have lower numbers; 0: any */
} Ivshmem2BudgetConfig;

typedef struct Ivshmem2Budget Ivshmem2Budget;

/* Counted for each user */
typedef enum Ivshmem2Resource {
    IVSHMEM2_ENTRANT,           /* a connection that has no place yet */
    IVSHMEM2_PLACE,             /* a connection that is joining */
    IVSHMEM2_SLOT,              /* an ID, also one that is held or bound */
    IVSHMEM2_N_RESOURCES,
} Ivshmem2Resource;

/*
 * Before the link is made: decide whether it pushes its eventfds, raise this
 * process's limit of open files to what it needs, and set the limits in
 * @budget and @link accordingly.  Warns if not all peers can be served.
 */
void ivshmem2_budget_plan(Ivshmem2BudgetConfig *budget,
                          Ivshmem2LinkConfig *link);

/* Does such a link send all eventfds to every peer at once? */
bool ivshmem2_budget_pushes(const Ivshmem2BudgetConfig *budget,
                            const Ivshmem2LinkConfig *link);

/* Descriptors that the server needs when @peers of the possible ones joined */
uint64_t ivshmem2_budget_needs(const Ivshmem2LinkConfig *link,
                               uint32_t peers);

Ivshmem2Budget *ivshmem2_budget_new(const Ivshmem2BudgetConfig *config);

/* Everything must have been given back, but for descriptors. */
void ivshmem2_budget_free(Ivshmem2Budget *b);

/*
 * Open files.  Those that are open when the server begins to serve are counted
 * once, with the help of any descriptor @fd; later ones are charged.
 */
void ivshmem2_budget_count_open_fds(Ivshmem2Budget *b, int fd);
void ivshmem2_budget_charge_fds(Ivshmem2Budget *b, unsigned n);
void ivshmem2_budget_discharge_fds(Ivshmem2Budget *b, unsigned n);

/*
 * May @fd be used?  If not, its number is one of those that are reserved for
 * connections that are told why they are refused.
 */
bool ivshmem2_budget_allows_fd(const Ivshmem2Budget *b, int fd);

/* The number that the user with @uid has */
unsigned ivshmem2_budget_count(const Ivshmem2Budget *b,
                               Ivshmem2Resource resource, uid_t uid);

/* May this user have one more?  To be asked before it is charged. */
bool ivshmem2_budget_allows(const Ivshmem2Budget *b,
                            Ivshmem2Resource resource, uid_t uid);

/* Does an ID go on counting for its user when nobody has it any more? */
bool ivshmem2_budget_binds_ids(const Ivshmem2Budget *b);

/* It has one more, or one less. */
void ivshmem2_budget_charge(Ivshmem2Budget *b, Ivshmem2Resource resource,
                            uid_t uid);
void ivshmem2_budget_discharge(Ivshmem2Budget *b, Ivshmem2Resource resource,
                               uid_t uid);

/*
 * Is a new connection of this user told why it is refused?  If there are too
 * many of them, that would take the descriptors that are short.
 */
bool ivshmem2_budget_allows_refusal(const Ivshmem2Budget *b, uid_t uid);

/*
 * Descriptors in flight: may a client that has perhaps not read @unread of
 * them be sent a message with more?  @joining: it has a place.
 */
bool ivshmem2_budget_allows_in_flight(bool joining, unsigned unread);

#endif /* IVSHMEM2_BUDGET_H */
