/*
 * The log: GLib's messages, to stderr, from a level on
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LOG_H
#define IVSHMEM2_LOG_H

#include <stdbool.h>

/* "error", "warning", "info" or "debug"; false if it is none of these */
bool ivshmem2_log_start(const char *level);

#endif /* IVSHMEM2_LOG_H */
