/*
 * What the programs that measure have in common
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BENCH_H
#define BENCH_H

#include <glib.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

/* Microseconds */
static inline double bench_clock(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

/* As many open files as this process may have; returns how many. */
static inline rlim_t bench_raise_fd_limit(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
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

/* Print what @times (sorted here) are like, as a member in JSON. */
static inline void bench_print(const char *name, GArray *times)
{
    qsort(times->data, times->len, sizeof(double), bench_compare);
    g_print("\"%s\": {\"count\": %u, \"p50\": %.3f, \"p99\": %.3f, "
            "\"max\": %.3f}", name, times->len, bench_rank(times, 50),
            bench_rank(times, 99), bench_rank(times, 100));
}

#endif /* BENCH_H */
