/*
 * A set of peer IDs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "idset.h"

static uint64_t bit(uint32_t i)
{
    return UINT64_C(1) << (i % 64);
}

void ivshmem2_idset_add(Ivshmem2IdSet *set, uint32_t id)
{
    set->bottom[id / 64] |= bit(id);
    set->middle[id / 64 / 64] |= bit(id / 64);
    set->top |= bit(id / 64 / 64);
}

void ivshmem2_idset_remove(Ivshmem2IdSet *set, uint32_t id)
{
    set->bottom[id / 64] &= ~bit(id);
    if (!set->bottom[id / 64]) {
        set->middle[id / 64 / 64] &= ~bit(id / 64);
        if (!set->middle[id / 64 / 64]) {
            set->top &= ~bit(id / 64 / 64);
        }
    }
}

bool ivshmem2_idset_contains(const Ivshmem2IdSet *set, uint32_t id)
{
    return set->bottom[id / 64] & bit(id);
}

/* The lowest bit of @word that is @from or higher, or 64 */
static uint32_t next_bit(uint64_t word, uint32_t from)
{
    uint64_t rest = from < 64 ? word & (UINT64_MAX << from) : 0;

    return rest ? __builtin_ctzll(rest) : 64;
}

int32_t ivshmem2_idset_next(const Ivshmem2IdSet *set, uint32_t from)
{
    uint32_t b, m, t;

    if (from >= IVSHMEM2_MAX_PEERS) {
        return -1;
    }
    b = from / 64;
    m = b / 64;
    from = next_bit(set->bottom[b], from % 64);
    if (from < 64) {
        return b * 64 + from;
    }
    b = next_bit(set->middle[m], b % 64 + 1);
    if (b == 64) {
        t = next_bit(set->top, m + 1);
        if (t == 64) {
            return -1;
        }
        m = t;
        b = next_bit(set->middle[m], 0);
    }
    b += m * 64;
    return b * 64 + next_bit(set->bottom[b], 0);
}
