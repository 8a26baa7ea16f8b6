/*
 * The lower bound: round trips between two processes by eventfds alone
 *
 * Usage: eventfd COUNT.  Prints the times in nanoseconds, one a line.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void run_on(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET(cpu % (int)sysconf(_SC_NPROCESSORS_ONLN), &set);
    sched_setaffinity(0, sizeof(set), &set);
}

static int64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static void wait_for(int fd)
{
    uint64_t value;

    if (read(fd, &value, sizeof(value)) != sizeof(value)) {
        perror("read");
        exit(1);
    }
}

static void signal_to(int fd)
{
    uint64_t one = 1;

    if (write(fd, &one, sizeof(one)) != sizeof(one)) {
        perror("write");
        exit(1);
    }
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0;
    int ping = eventfd(0, EFD_CLOEXEC);
    int pong = eventfd(0, EFD_CLOEXEC);
    int64_t before;
    pid_t child;

    if (count < 1 || ping < 0 || pong < 0) {
        fprintf(stderr, "usage: eventfd COUNT\n");
        return 2;
    }
    child = fork();
    run_on(child != 0);
    if (!child) {
        for (int i = 0; i < count; i++) {
            wait_for(ping);
            signal_to(pong);
        }
        return 0;
    }
    for (int i = 0; i < count; i++) {
        before = now();
        signal_to(ping);
        wait_for(pong);
        printf("%" PRId64 "\n", now() - before);
    }
    waitpid(child, NULL, 0);
    return 0;
}
