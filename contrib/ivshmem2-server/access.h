/*
 * Access rules: the users that may connect, and the IDs that they may take
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_ACCESS_H
#define IVSHMEM2_ACCESS_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>
#include "libivshmem2-bits.h"

typedef struct Ivshmem2Access Ivshmem2Access;

/* IDs from first to last */
typedef struct Ivshmem2IdRange {
    uint32_t first;
    uint32_t last;
} Ivshmem2IdRange;

/* Read the rules in file @path, for a link of @max_peers. */
Ivshmem2Access *ivshmem2_access_load(const char *path, uint32_t max_peers,
                                     GError **error);
void ivshmem2_access_free(Ivshmem2Access *a);

/*
 * The IDs that a user with @uid and @gids may take, as an array of
 * Ivshmem2IdRange; NULL if it may not connect.
 */
GArray *ivshmem2_access_find(const Ivshmem2Access *a, uid_t uid,
                             const gid_t *gids, size_t n_gids);

/* In what follows, @ids is such an array, or NULL: all IDs. */
bool ivshmem2_ids_contain(const GArray *ids, uint32_t id);

/* The lowest of @ids that is in @set, or IVSHMEM2_BITS_NONE */
size_t ivshmem2_ids_lowest(const GArray *ids, const Ivshmem2Bits *set);

/* For people, e.g. "0-3, 7" */
char *ivshmem2_ids_text(const GArray *ids);

#endif /* IVSHMEM2_ACCESS_H */
