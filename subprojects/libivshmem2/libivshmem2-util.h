/*
 * libivshmem2 internals: errors, deadlines, numbers, limits
 *
 * For the library, the server, the client and the device.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef LIBIVSHMEM2_UTIL_H
#define LIBIVSHMEM2_UTIL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include "libivshmem2.h"

/* Set @error with a message made as by printf().  Always returns false. */
bool ivshmem2_fail(GError **error, Ivshmem2Error code, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

/* The same with IVSHMEM2_ERROR_IO, and ": " and errno's text at the end. */
bool ivshmem2_fail_errno(GError **error, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

/*
 * The deadline in @timeout_us microseconds, in microseconds as of
 * g_get_monotonic_time(); -1, which means never, if @timeout_us is negative.
 */
int64_t ivshmem2_deadline(int64_t timeout_us);

/*
 * Milliseconds until @deadline as poll() takes them: rounded up, 0 if the
 * deadline has passed, -1 for never.
 */
int ivshmem2_deadline_ms(int64_t deadline);

/*
 * A number at the start of @text in @base (0: decimal, or hexadecimal after
 * 0x), without sign and space.  *@end is the rest of @text.  Returns false if
 * there is no number or if it does not fit.
 */
bool ivshmem2_scan_number(const char *text, unsigned base, uint64_t *value,
                          const char **end);

/*
 * Parse @text as a whole: a decimal or, after 0x, hexadecimal number from @min
 * to @max.  If it is none, returns false, leaves *@value as it is, and sets
 * @error, which names @what, @text and the range.
 */
bool ivshmem2_parse_number(const char *what, const char *text, uint64_t min,
                           uint64_t max, uint64_t *value, GError **error);

/*
 * Raise the soft limit of open files (RLIMIT_NOFILE) to the hard limit.  If
 * the hard limit is below @wanted, raise it first if the system permits.
 * Returns the resulting soft limit; 0 if it cannot be read.
 */
uint64_t ivshmem2_raise_file_limit(uint64_t wanted);

/*
 * Can @size bytes of shared memory, and @spare ones to align them, be mapped
 * by a program with addresses up to @max (normally SIZE_MAX)?  If not, set
 * @error and return false.
 */
bool ivshmem2_check_mappable(uint64_t size, uint64_t spare, uint64_t max,
                             GError **error);

#endif /* LIBIVSHMEM2_UTIL_H */
