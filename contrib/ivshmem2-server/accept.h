/*
 * Accepting connections, as long as there are descriptors for them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_ACCEPT_H
#define IVSHMEM2_ACCEPT_H

#include "loop.h"

typedef struct Ivshmem2Acceptor Ivshmem2Acceptor;

/* Embedded in the daemon; what it points to is borrowed. */
struct Ivshmem2Acceptor {
    Ivshmem2Loop *loop;
    Ivshmem2Timers *pauses;     /* between two tries if accepting fails */
    int fd;                     /* listening unix stream socket */
    void (*take)(Ivshmem2Acceptor *a, int fd);
    /* set by accept.c: */
    Ivshmem2Watch watch;
    Ivshmem2Timer pause;        /* running: no descriptors to accept with */
    int64_t next_complaint;
};

bool ivshmem2_acceptor_start(Ivshmem2Acceptor *a, GError **error);

/* A descriptor is free now: end the pause, if there is one. */
void ivshmem2_acceptor_resume(Ivshmem2Acceptor *a);

/* Log that no connection can be accepted, but not too often. */
void ivshmem2_acceptor_complain(Ivshmem2Acceptor *a, const char *why);

#endif /* IVSHMEM2_ACCEPT_H */
