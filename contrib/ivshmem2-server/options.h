/*
 * The command line
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_OPTIONS_H
#define IVSHMEM2_OPTIONS_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>
#include "budget.h"
#include "link.h"

typedef struct Ivshmem2Options {
    bool version;               /* only print the versions; the rest is unset */
    const char *log_level;
    const char *socket;         /* NULL: from the service manager */
    mode_t socket_mode;
    gid_t socket_group;         /* -1: the process's */
    const char *access;         /* file with the rules; NULL: none */
    Ivshmem2LinkConfig link;
    Ivshmem2BudgetConfig budget;
    uint32_t handshake_timeout; /* seconds */
    uint32_t grace;             /* seconds */
    bool supervise;             /* be the supervisor of a server */
    bool discard;               /* what an earlier server left */
} Ivshmem2Options;

/* Can be called once: the texts live as long as the process. */
bool ivshmem2_options_parse(Ivshmem2Options *o, int argc, char **argv,
                            GError **error);

#endif /* IVSHMEM2_OPTIONS_H */
