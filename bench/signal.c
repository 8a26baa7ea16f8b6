/*
 * What it costs to signal eventfds without ever waiting
 *
 * Prints nanoseconds: of a plain write(), which may wait; of one signal; and
 * of one call for many eventfds, as a State write on a small link does it.
 * Somebody listens to all of them, as KVM and relays do.  All take turns, and
 * medians are printed.
 *
 * Usage: ivshmem2-signal [ROUNDS]
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include "bench.h"
#include "libivshmem2-core.h"

#define MAX_FDS     1024
/* Eventfds that are signalled between two looks at the clock */
#define SIGNALS     4096

static int fds[MAX_FDS];

static void by_write(unsigned n)
{
    const uint64_t one = 1;

    for (unsigned i = 0; i < n; i++) {
        if (write(fds[i], &one, sizeof(one)) != sizeof(one)) {
            g_error("cannot write to an eventfd");
        }
    }
}

static void by_signal(unsigned n)
{
    ivshmem2_eventfds_signal(fds, n);
}

static const struct {
    const char *name;
    void (*run)(unsigned n);
    unsigned n;
} ways[] = {
    { "write()", by_write, 1 },
    { "signal", by_signal, 1 },
    { "signals", by_signal, 4 },
    { "signals", by_signal, 16 },
    { "signals", by_signal, 32 },
    { "signals", by_signal, 63 },
    { "signals", by_signal, 127 },
    { "signals", by_signal, 255 },
    { "signals", by_signal, 1023 },
};

static void make_eventfds(void)
{
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);

    for (unsigned i = 0; i < MAX_FDS; i++) {
        struct epoll_event event = { .events = EPOLLIN | EPOLLET };

        fds[i] = eventfd(0, EFD_CLOEXEC);
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fds[i], &event) < 0) {
            g_error("cannot listen to an eventfd (see ulimit -n)");
        }
    }
}

int main(int argc, char **argv)
{
    unsigned rounds = argc > 1 ? MAX(atoi(argv[1]), 1) : 50;
    GArray *times[G_N_ELEMENTS(ways)];

    make_eventfds();
    for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
        times[i] = g_array_new(false, false, sizeof(double));
    }
    for (unsigned round = 0; round < rounds; round++) {
        for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
            unsigned calls = MAX(SIGNALS / ways[i].n, 1);
            double before = bench_clock(CLOCK_MONOTONIC);
            double each;

            for (unsigned call = 0; call < calls; call++) {
                ways[i].run(ways[i].n);
            }
            each = (bench_clock(CLOCK_MONOTONIC) - before) * 1000 / calls;
            g_array_append_val(times[i], each);
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(ways); i++) {
        double median;

        qsort(times[i]->data, times[i]->len, sizeof(double), bench_compare);
        median = bench_rank(times[i], 50);
        g_print("%-8s %4u: %8.0f ns, %6.0f each\n", ways[i].name, ways[i].n,
                median, median / ways[i].n);
        g_array_free(times[i], true);
    }
    return 0;
}
