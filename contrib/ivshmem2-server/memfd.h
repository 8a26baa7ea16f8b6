/*
 * Memory files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_MEMFD_H
#define IVSHMEM2_MEMFD_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * Make a memory file of @size bytes that cannot shrink or grow.
 * @huge_page_size: 0 for normal pages; huge ones are there from the start.
 * Returns -1 with @error set on failure; it names @what.
 */
int ivshmem2_memfd_new(uint64_t size, mode_t mode, uint64_t huge_page_size,
                       const char *what, GError **error);

/* Open @fd once more, only for reading. */
int ivshmem2_memfd_reopen(int fd, const char *what, GError **error);

/*
 * Find the size of the system's huge pages if *@size is 0.  Fails if there are
 * no huge pages of that size.
 */
bool ivshmem2_memfd_huge_page_size(uint64_t *size, GError **error);

#endif /* IVSHMEM2_MEMFD_H */
