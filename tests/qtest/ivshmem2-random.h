/*
 * ivshmem2 tests: random input
 *
 * It can be repeated: every round begins with a seed, which is that of the
 * round before plus one.
 *
 * IVSHMEM2_FUZZ_SEED=N    the seed of the first round, else GLib's --seed
 * IVSHMEM2_FUZZ_ROUNDS=N  how many rounds, else enough for some seconds
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_IVSHMEM2_RANDOM_H
#define TESTS_IVSHMEM2_RANDOM_H

uint32_t first_seed(void);
int count_rounds(int normal);

/* True once in @n times */
bool one_in(GRand *rand, int n);

/* Values near the limits of integer types, and any others */
uint64_t any_value(GRand *rand);

#endif /* TESTS_IVSHMEM2_RANDOM_H */
