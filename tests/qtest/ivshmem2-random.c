/*
 * ivshmem2 tests: random input
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "ivshmem2-random.h"

uint32_t first_seed(void)
{
    const char *text = getenv("IVSHMEM2_FUZZ_SEED");

    return text ? g_ascii_strtoull(text, NULL, 0) : g_test_rand_int();
}

int count_rounds(int normal)
{
    const char *text = getenv("IVSHMEM2_FUZZ_ROUNDS");

    return text ? g_ascii_strtoull(text, NULL, 0) : normal;
}

bool one_in(GRand *rand, int n)
{
    return g_rand_int_range(rand, 0, n) == 0;
}

uint64_t any_value(GRand *rand)
{
    uint64_t value;

    switch (g_rand_int_range(rand, 0, 5)) {
    case 0:
        return g_rand_int_range(rand, 0, 20);
    case 1:
        return g_rand_int(rand);
    case 2:
        return (uint64_t)g_rand_int(rand) << 32 | g_rand_int(rand);
    default:
        value = UINT64_C(1) << g_rand_int_range(rand, 0, 64);
        return one_in(rand, 2) ? value - 1 : value;
    }
}
