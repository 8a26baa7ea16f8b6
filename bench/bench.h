/*
 * Shared by the benchmarks
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BENCH_H
#define BENCH_H

#include <glib.h>
#include <stdlib.h>
#include <time.h>

/* Microseconds */
static inline double bench_clock(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static inline int bench_compare(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static inline double bench_rank(GArray *sorted, unsigned percent)
{
    guint i = MIN((guint64)sorted->len * percent / 100, sorted->len - 1);

    return sorted->len ? g_array_index(sorted, double, i) : 0;
}

/* Sort @times and print their distribution, as a member in JSON. */
static inline void bench_print(const char *name, GArray *times)
{
    qsort(times->data, times->len, sizeof(double), bench_compare);
    g_print("\"%s\": {\"count\": %u, \"p50\": %.3f, \"p99\": %.3f, "
            "\"max\": %.3f}", name, times->len, bench_rank(times, 50),
            bench_rank(times, 99), bench_rank(times, 100));
}

#endif /* BENCH_H */
