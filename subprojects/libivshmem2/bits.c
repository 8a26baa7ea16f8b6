/*
 * libivshmem2 internals: a large set of small numbers
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#include <glib.h>
#include <string.h>
#include "libivshmem2-bits.h"

static uint64_t bit(size_t i)
{
    return UINT64_C(1) << (i % 64);
}

void ivshmem2_bits_init(Ivshmem2Bits *b, size_t size)
{
    size_t words = size;

    memset(b, 0, sizeof(*b));
    b->size = size;
    do {
        words = (words + 63) / 64;
        /* Memory that is never touched costs nothing. */
        b->levels[b->n_levels++] = g_new0(uint64_t, words);
    } while (words > 1);
}

void ivshmem2_bits_clear(Ivshmem2Bits *b)
{
    for (unsigned level = 0; level < b->n_levels; level++) {
        g_free(b->levels[level]);
    }
    memset(b, 0, sizeof(*b));
}

void ivshmem2_bits_add(Ivshmem2Bits *b, size_t i)
{
    b->n_set += !ivshmem2_bits_contain(b, i);
    for (unsigned level = 0; level < b->n_levels; level++, i /= 64) {
        b->levels[level][i / 64] |= bit(i);
    }
}

bool ivshmem2_bits_remove(Ivshmem2Bits *b, size_t i)
{
    bool was_member = ivshmem2_bits_contain(b, i);

    b->n_set -= was_member;
    for (unsigned level = 0; level < b->n_levels; level++, i /= 64) {
        b->levels[level][i / 64] &= ~bit(i);
        if (b->levels[level][i / 64]) {
            break;
        }
    }
    return was_member;
}

bool ivshmem2_bits_contain(const Ivshmem2Bits *b, size_t i)
{
    return i < b->size && (b->levels[0][i / 64] & bit(i));
}

size_t ivshmem2_bits_next(const Ivshmem2Bits *b, size_t from)
{
    size_t n = b->size;         /* bits of this level */
    size_t i = from;
    uint64_t rest = 0;
    unsigned level;

    /* Up, to the first level whose word has a bit from i on... */
    for (level = 0; level < b->n_levels && i < n; level++) {
        rest = b->levels[level][i / 64] & UINT64_MAX << (i % 64);
        if (rest) {
            break;
        }
        i = i / 64 + 1;
        n = (n + 63) / 64;
    }
    if (!rest) {
        return IVSHMEM2_BITS_NONE;
    }
    i = i / 64 * 64 + __builtin_ctzll(rest);
    /* ...and down to the lowest member there. */
    while (level--) {
        i = i * 64 + __builtin_ctzll(b->levels[level][i]);
    }
    return i;
}
