/*
 * libivshmem2 internals: a large set of small numbers
 *
 * The lowest level has a bit for each number.  Each bit of a higher level says
 * whether a word of the level below is not 0, so that the next member is found
 * in a few steps.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef LIBIVSHMEM2_BITS_H
#define LIBIVSHMEM2_BITS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Enough for all vectors of all peers: 64^5 bits */
#define IVSHMEM2_BITS_LEVELS    5
/* No such member */
#define IVSHMEM2_BITS_NONE      SIZE_MAX

typedef struct Ivshmem2Bits {
    uint64_t *levels[IVSHMEM2_BITS_LEVELS];
    unsigned n_levels;
    size_t size;
    size_t n_set;
} Ivshmem2Bits;

/* The empty set of numbers below @size, which is not 0. */
void ivshmem2_bits_init(Ivshmem2Bits *b, size_t size);

/* Release the memory.  @b may be all zeros instead of initialized. */
void ivshmem2_bits_clear(Ivshmem2Bits *b);

void ivshmem2_bits_add(Ivshmem2Bits *b, size_t i);

/* Returns whether it was a member. */
bool ivshmem2_bits_remove(Ivshmem2Bits *b, size_t i);

bool ivshmem2_bits_contain(const Ivshmem2Bits *b, size_t i);

/* The lowest member that is not below @from, or IVSHMEM2_BITS_NONE. */
size_t ivshmem2_bits_next(const Ivshmem2Bits *b, size_t from);

#endif /* LIBIVSHMEM2_BITS_H */
