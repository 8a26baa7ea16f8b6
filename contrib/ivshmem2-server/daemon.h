/*
 * The server's I/O: the listening socket and the connections
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_DAEMON_H
#define IVSHMEM2_DAEMON_H

#include <signal.h>
#include "access.h"
#include "budget.h"
#include "link.h"

/*
 * Fairness: a broadcast may send so many interrupts in a turn, which takes
 * about 10 microseconds.  A client that wants a doorbell to be rung waits for
 * all that the others do in a turn.
 */
#define IVSHMEM2_INTERRUPTS_PER_TURN    32

typedef struct Ivshmem2Daemon Ivshmem2Daemon;

/*
 * @link, @budget, and @listen_fd, a listening unix stream socket, are borrowed.
 * @handshake_timeout, @grace: seconds.  A slot that was occupied when the
 * server before this one ended waits for its process during @grace.
 */
Ivshmem2Daemon *ivshmem2_daemon_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                    int listen_fd, unsigned handshake_timeout,
                                    unsigned grace, GError **error);

/* Tell all clients that the server goes away, and close everything. */
void ivshmem2_daemon_free(Ivshmem2Daemon *d);

/* The rules for connections from now on; borrowed.  NULL: all IDs for all */
void ivshmem2_daemon_set_access(Ivshmem2Daemon *d,
                                const Ivshmem2Access *access);

/*
 * Serve until one of @signals, which must be blocked, arrives.  Returns its
 * number, or -1 with @error set on failure.  Can be called again.
 */
int ivshmem2_daemon_run(Ivshmem2Daemon *d, const sigset_t *signals,
                        GError **error);

/* Handle the events that are pending; if @wait, wait for some first. */
void ivshmem2_daemon_turn(Ivshmem2Daemon *d, bool wait);

#endif /* IVSHMEM2_DAEMON_H */
