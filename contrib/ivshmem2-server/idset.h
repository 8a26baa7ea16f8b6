/*
 * A set of peer IDs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_IDSET_H
#define IVSHMEM2_IDSET_H

#include <stdbool.h>
#include <stdint.h>
#include "hw/misc/ivshmem2.h"

/*
 * Three levels of 64-bit words, each bit of a level telling whether a word of
 * the level below is not 0: finding a member takes three steps, however many
 * there are.
 */
typedef struct Ivshmem2IdSet {
    uint64_t top;
    uint64_t middle[IVSHMEM2_MAX_PEERS / 64 / 64];
    uint64_t bottom[IVSHMEM2_MAX_PEERS / 64];
} Ivshmem2IdSet;

void ivshmem2_idset_add(Ivshmem2IdSet *set, uint32_t id);
void ivshmem2_idset_remove(Ivshmem2IdSet *set, uint32_t id);
bool ivshmem2_idset_contains(const Ivshmem2IdSet *set, uint32_t id);

/* The lowest member that is @from or higher, or -1 */
int32_t ivshmem2_idset_next(const Ivshmem2IdSet *set, uint32_t from);

#endif /* IVSHMEM2_IDSET_H */
