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

/* Set @error, with a text as by printf().  Always returns false. */
bool ivshmem2_fail(GError **error, Ivshmem2Error code, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

/* The same with IVSHMEM2_ERROR_IO; ": " and the text of errno are added. */
bool ivshmem2_fail_errno(GError **error, const char *fmt, ...)
    G_GNUC_PRINTF(2, 3);

/*
 * Deadlines are in microseconds of g_get_monotonic_time(); -1 is never.
 * @timeout_us: from now; negative: never.
 */
int64_t ivshmem2_deadline(int64_t timeout_us);

/*
 * Milliseconds until @deadline as poll() takes them: rounded up, 0 if it is
 * over, -1 for never.
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
 * @text as a whole is a decimal or hexadecimal number from @min to @max.
 * Else, @error names @what, @text and the range, and *@value stays.
 */
bool ivshmem2_parse_number(const char *what, const char *text, uint64_t min,
                           uint64_t max, uint64_t *value, GError **error);

/*
 * Raise the limit of open files (RLIMIT_NOFILE) as far as the hard limit
 * allows, and that one to @wanted where it is lower and the system permits.
 * Returns the limit that applies then; 0 if it cannot be read.
 */
uint64_t ivshmem2_raise_file_limit(uint64_t wanted);

#endif /* LIBIVSHMEM2_UTIL_H */
