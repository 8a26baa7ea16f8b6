/*
 * The supervisor: keeps the link's descriptors while servers come and go
 *
 * It starts the server as its child, and hands over to the next one what the
 * last one had it keep.  It never looks into anything that comes from peers.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SUPERVISE_H
#define IVSHMEM2_SUPERVISE_H

#include "options.h"

/* Is this process the server that a supervisor has started? */
bool ivshmem2_is_supervised(void);

/*
 * Supervise servers with the command line @argv until SIGTERM or SIGINT.
 * Returns this process's exit status; -1 with @error set if there is no server.
 */
int ivshmem2_supervise(const Ivshmem2Options *o, char **argv, GError **error);

#endif /* IVSHMEM2_SUPERVISE_H */
