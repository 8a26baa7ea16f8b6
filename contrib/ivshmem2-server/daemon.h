/*
 * The server's I/O: connections and processes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_DAEMON_H
#define IVSHMEM2_DAEMON_H

#include <signal.h>
#include "access.h"
#include "link.h"

/*
 * Descriptors with numbers in the highest part of what is allowed are used to
 * tell the joiner too many why it cannot join.
 */
#define IVSHMEM2_FD_RESERVE     32

/*
 * Fairness: what one of them may take before the others are looked at is
 * little, because whoever wants a doorbell to be rung waits for all of it.
 * This much of a broadcast takes about 10 microseconds.
 */
#define IVSHMEM2_INTERRUPTS_PER_TURN    32

typedef struct Ivshmem2DaemonConfig {
    unsigned handshake_timeout; /* seconds */
    int fd_limit;               /* descriptors have lower numbers; 0: any */
    uint32_t ids_per_user;      /* 0: any */
} Ivshmem2DaemonConfig;

typedef struct Ivshmem2Daemon Ivshmem2Daemon;

/*
 * @link is borrowed.  @listen_fd, a listening unix stream socket, is borrowed
 * as well.
 */
Ivshmem2Daemon *ivshmem2_daemon_new(Ivshmem2Link *link, int listen_fd,
                                    const Ivshmem2DaemonConfig *config,
                                    GError **error);

/* Tell all clients that the server goes away, and close everything. */
void ivshmem2_daemon_free(Ivshmem2Daemon *d);

/* What is asked of those who come from now on; borrowed */
void ivshmem2_daemon_set_access(Ivshmem2Daemon *d,
                                const Ivshmem2Access *access);

/*
 * Serve until one of @signals, which must be blocked, arrives.  Returns its
 * number, or -1 with @error set on failure.  Can be called again.
 */
int ivshmem2_daemon_run(Ivshmem2Daemon *d, const sigset_t *signals,
                        GError **error);

/* Do what is to be done now, after waiting for it if @wait. */
void ivshmem2_daemon_turn(Ivshmem2Daemon *d, bool wait);

#endif /* IVSHMEM2_DAEMON_H */
