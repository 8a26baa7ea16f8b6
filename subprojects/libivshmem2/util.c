/*
 * libivshmem2 internals: errors, deadlines, numbers, limits
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#include <errno.h>
#include <inttypes.h>
#include <sys/resource.h>
#include "libivshmem2-util.h"

/* For any thread, which G_DEFINE_QUARK() is only if races do no harm. */
GQuark ivshmem2_error_quark(void)
{
    return g_quark_from_static_string("ivshmem2_error");
}

bool ivshmem2_fail(GError **error, Ivshmem2Error code, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_set_error_literal(error, IVSHMEM2_ERROR, code, text);
    return false;
}

bool ivshmem2_fail_errno(GError **error, const char *fmt, ...)
{
    int saved_errno = errno;
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    return ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "%s: %s", text,
                         g_strerror(saved_errno));
}

int64_t ivshmem2_deadline(int64_t timeout_us)
{
    return timeout_us < 0 ? -1 : g_get_monotonic_time() + timeout_us;
}

int ivshmem2_deadline_ms(int64_t deadline)
{
    int64_t left;

    if (deadline < 0) {
        return -1;
    }
    left = deadline - g_get_monotonic_time();
    return left <= 0 ? 0 : MIN((left + 999) / 1000, G_MAXINT);
}

bool ivshmem2_scan_number(const char *text, unsigned base, uint64_t *value,
                          const char **end)
{
    char *stop;

    if (!base) {
        bool hex = g_ascii_strncasecmp(text, "0x", 2) == 0;

        base = hex ? 16 : 10;
        text += hex ? 2 : 0;
    }
    /* g_ascii_strtoull() would take signs, spaces, and one more 0x. */
    if (!g_ascii_isxdigit(text[0]) || g_ascii_tolower(text[1]) == 'x') {
        return false;
    }
    errno = 0;
    *value = g_ascii_strtoull(text, &stop, base);
    *end = stop;
    return !errno && stop != text;
}

bool ivshmem2_parse_number(const char *what, const char *text, uint64_t min,
                           uint64_t max, uint64_t *value, GError **error)
{
    const char *end;
    uint64_t n;

    if (!ivshmem2_scan_number(text, 0, &n, &end) || *end || n < min ||
        n > max) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%s '%s' is not valid, it must be a number from "
                             "%" PRIu64 " to %" PRIu64, what, text, min, max);
    }
    *value = n;
    return true;
}

uint64_t ivshmem2_raise_file_limit(uint64_t wanted)
{
    struct rlimit limit;
    rlim_t hard;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
        return 0;
    }
    hard = limit.rlim_max;
    limit.rlim_max = MAX(hard, wanted);
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) {
        limit.rlim_max = hard;
        limit.rlim_cur = hard;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

bool ivshmem2_check_mappable(uint64_t size, uint64_t spare, uint64_t max,
                             GError **error)
{
    if (spare > max || size > max - spare) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "%" PRIu64 " bytes of shared memory are more "
                             "than this program can address: use a 64-bit "
                             "program, or a link with smaller sections", size);
    }
    return true;
}
