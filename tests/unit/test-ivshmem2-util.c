/*
 * libivshmem2 internals: sets of numbers, numbers in text, deadlines
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-util.h"
#include <errno.h>
#include <inttypes.h>
#include "hw/misc/ivshmem2.h"
#include "libivshmem2-bits.h"
#include "libivshmem2-util.h"

/* Sets */

static void bits_edges(size_t size)
{
    const size_t edges[] = {
        0, 1, 63, 64, 65, 4095, 4096, 65471, 65535, 262143, 262144,
        size - 2, size - 1,
    };
    Ivshmem2Bits b;

    ivshmem2_bits_init(&b, size);
    g_assert_cmpuint(ivshmem2_bits_next(&b, 0), ==, IVSHMEM2_BITS_NONE);
    for (size_t i = 0; i < G_N_ELEMENTS(edges); i++) {
        size_t edge = edges[i];

        if (edge >= size) {
            g_assert_false(ivshmem2_bits_contain(&b, edge));
            g_assert_cmpuint(ivshmem2_bits_next(&b, edge), ==,
                             IVSHMEM2_BITS_NONE);
            continue;
        }
        ivshmem2_bits_add(&b, edge);
        ivshmem2_bits_add(&b, edge);
        g_assert_cmpuint(b.n_set, ==, 1);
        g_assert_cmpuint(ivshmem2_bits_next(&b, 0), ==, edge);
        g_assert_cmpuint(ivshmem2_bits_next(&b, edge), ==, edge);
        g_assert_cmpuint(ivshmem2_bits_next(&b, edge + 1), ==,
                         IVSHMEM2_BITS_NONE);
        g_assert_true(ivshmem2_bits_remove(&b, edge));
        g_assert_false(ivshmem2_bits_remove(&b, edge));
        g_assert_cmpuint(b.n_set, ==, 0);
        g_assert_cmpuint(ivshmem2_bits_next(&b, 0), ==, IVSHMEM2_BITS_NONE);
    }
    ivshmem2_bits_clear(&b);
}

static void test_bits_edges(void)
{
    const size_t sizes[] = {
        1, 2, 63, 64, 65, 4095, 4096, 4097, 65536, 262145,
        (size_t)IVSHMEM2_MAX_PEERS * IVSHMEM2_MAX_VECTORS,
    };

    for (size_t i = 0; i < G_N_ELEMENTS(sizes); i++) {
        bits_edges(sizes[i]);
    }
}

/* Few members and many */
static void test_bits_random(void)
{
    g_autofree bool *want = g_new0(bool, IVSHMEM2_MAX_PEERS);
    Ivshmem2Bits b;

    ivshmem2_bits_init(&b, IVSHMEM2_MAX_PEERS);
    for (int round = 0; round < 40; round++) {
        size_t next = 0;

        for (int i = 0; i < 20 << (round / 4); i++) {
            size_t id = g_test_rand_int_range(0, IVSHMEM2_MAX_PEERS);

            if (g_test_rand_bit()) {
                ivshmem2_bits_add(&b, id);
                want[id] = true;
            } else {
                g_assert_cmpint(ivshmem2_bits_remove(&b, id), ==, want[id]);
                want[id] = false;
            }
        }
        for (size_t id = 0; id < IVSHMEM2_MAX_PEERS; id++) {
            g_assert_cmpint(ivshmem2_bits_contain(&b, id), ==, want[id]);
            if (want[id]) {
                g_assert_cmpuint(ivshmem2_bits_next(&b, next), ==, id);
                next = id + 1;
            }
        }
        g_assert_cmpuint(ivshmem2_bits_next(&b, next), ==, IVSHMEM2_BITS_NONE);
    }
    ivshmem2_bits_clear(&b);
}

/* Text */

static void test_numbers(void)
{
    static const struct {
        const char *text;
        bool ok;
        uint64_t value;
    } cases[] = {
        { "5", true, 5 }, { "100", true, 100 }, { "0x10", true, 16 },
        { "0X1f", true, 31 }, { "007", true, 7 },
        { "4", false, 0 }, { "101", false, 0 }, { "", false, 0 },
        { "0x", false, 0 }, { " 5", false, 0 }, { "5 ", false, 0 },
        { "+5", false, 0 }, { "-5", false, 0 }, { "0x-5", false, 0 },
        { "5x", false, 0 }, { "f", false, 0 }, { "0x0x5", false, 0 },
        { "18446744073709551621", false, 0 },       /* 2^64 + 5 */
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;
        uint64_t value = 77;
        bool ok = ivshmem2_parse_number("--thing", cases[i].text, 5, 100,
                                        &value, &error);

        g_assert_cmpint(ok, ==, cases[i].ok);
        if (ok) {
            g_assert_cmpuint(value, ==, cases[i].value);
        } else {
            g_autofree char *words = g_strdup_printf(
                "--thing '%s' is not valid, it must be a number from 5 to 100",
                cases[i].text);

            g_assert_cmpuint(value, ==, 77);
            g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_ARGUMENT);
            g_assert_cmpstr(error->message, ==, words);
        }
    }
}

static void test_errno_in_error(void)
{
    g_autoptr(GError) error = NULL;

    errno = ENOSPC;
    g_assert_false(ivshmem2_fail_errno(&error, "cannot write %d", 7));
    g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_IO);
    g_assert_true(g_str_has_prefix(error->message, "cannot write 7: "));
    g_assert_true(g_str_has_suffix(error->message, g_strerror(ENOSPC)));
}

/* Time */

static void test_deadlines(void)
{
    g_assert_cmpint(ivshmem2_deadline(-1), ==, -1);
    g_assert_cmpint(ivshmem2_deadline_ms(-1), ==, -1);
    g_assert_cmpint(ivshmem2_deadline_ms(0), ==, 0);
    g_assert_cmpint(ivshmem2_deadline_ms(ivshmem2_deadline(0)), ==, 0);
    /* rounded up, or poll() would return at once until the deadline */
    g_assert_cmpint(ivshmem2_deadline_ms(g_get_monotonic_time() +
                                         INT64_C(3600000000)), >, 3500 * 1000);
    g_assert_cmpint(ivshmem2_deadline_ms(INT64_MAX), ==, G_MAXINT);
}

/* 32-bit programs, and the sums that would overflow there and everywhere */
static void test_mappable(void)
{
    static const struct {
        uint64_t size, spare, max;
        bool ok;
    } cases[] = {
        { 4096, 0, UINT32_MAX, true },
        { UINT32_MAX, 0, UINT32_MAX, true },
        { UINT64_C(1) << 32, 0, UINT32_MAX, false },
        /* as a size_t of 32 bits, 4096 */
        { (UINT64_C(1) << 32) + 4096, 0, UINT32_MAX, false },
        { UINT32_MAX - 4096, 4096, UINT32_MAX, true },
        { UINT32_MAX - 4095, 4096, UINT32_MAX, false },
        { 0, UINT64_C(1) << 32, UINT32_MAX, false },
        { IVSHMEM2_MAX_SIZE, 1 << 21, UINT64_MAX, true },
        { UINT64_MAX, 1, UINT64_MAX, false },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_cmpint(ivshmem2_check_mappable(cases[i].size, cases[i].spare,
                                                cases[i].max, &error), ==,
                        cases[i].ok);
        g_assert_true(!error == cases[i].ok);
        if (error) {
            g_autofree char *size = g_strdup_printf("%" PRIu64 " bytes",
                                                    cases[i].size);

            g_assert_nonnull(strstr(error->message, size));
            g_assert_nonnull(strstr(error->message, "smaller sections"));
        }
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/util/bits-edges", test_bits_edges);
    g_test_add_func("/ivshmem2/util/bits-random", test_bits_random);
    g_test_add_func("/ivshmem2/util/numbers", test_numbers);
    g_test_add_func("/ivshmem2/util/errno-in-error", test_errno_in_error);
    g_test_add_func("/ivshmem2/util/deadlines", test_deadlines);
    g_test_add_func("/ivshmem2/util/mappable", test_mappable);
    return g_test_run();
}
