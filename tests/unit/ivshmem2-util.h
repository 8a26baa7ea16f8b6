/*
 * Shared by the unit tests of ivshmem2
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_UTIL_H
#define IVSHMEM2_UTIL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>
#include "libivshmem2-core.h"

#define MEMORY_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Descriptors that this process has open, but for those being closed */
static inline unsigned count_fds(void)
{
    unsigned n = 0;
    GDir *dir;

    while (ivshmem2_disposals()) {
        g_usleep(100);
    }
    dir = g_dir_open("/proc/self/fd", 0, NULL);
    g_assert_nonnull(dir);
    while (g_dir_read_name(dir)) {
        n++;
    }
    g_dir_close(dir);
    return n;
}

static inline int make_memory(uint64_t size, int seals)
{
    int fd = memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, size), ==, 0);
    if (seals) {
        g_assert_cmpint(fcntl(fd, F_ADD_SEALS, seals), ==, 0);
    }
    return fd;
}

/* The same file, open for reading only */
static inline int reopen_read_only(int fd)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    int read_fd = open(path, O_RDONLY | O_CLOEXEC);

    g_assert_cmpint(read_fd, >=, 0);
    return read_fd;
}

static inline int make_eventfd(void)
{
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    g_assert_cmpint(fd, >=, 0);
    return fd;
}

/* @error has the domain IVSHMEM2_ERROR, code @want, and contains @text. */
#define assert_error(error, want, text) do {                            \
        g_assert_error(error, IVSHMEM2_ERROR, want);                    \
        if (!strstr((error)->message, text)) {                          \
            g_test_message("%s", (error)->message);                     \
        }                                                               \
        g_assert_nonnull(strstr((error)->message, text));               \
        g_clear_error(&(error));                                        \
    } while (0)

#endif /* IVSHMEM2_UTIL_H */
