/*
 * The socket at which clients find the server, and the service manager
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LISTEN_H
#define IVSHMEM2_LISTEN_H

#include <glib.h>
#include <stdbool.h>
#include <sys/types.h>

typedef struct Ivshmem2Listener {
    int fd;
    char *path;                 /* of a socket that was made here, or NULL */
    dev_t dev;
    ino_t ino;
} Ivshmem2Listener;

/*
 * Listen at @path.  The socket of a dead server is replaced; if anything else
 * is there, this fails.  Nobody can connect before @mode and @gid (-1: the
 * process's) are set.
 */
bool ivshmem2_listen(Ivshmem2Listener *l, const char *path, mode_t mode,
                     gid_t gid, GError **error);

/*
 * Take the socket that a service manager passed (sd_listen_fds(3)); l->fd is
 * -1 if it passed none.
 */
bool ivshmem2_listen_inherited(Ivshmem2Listener *l, GError **error);

/* Close, and remove the socket's file if it is still this socket's. */
void ivshmem2_listen_end(Ivshmem2Listener *l);

/* Tell the service manager, if there is one (sd_notify(3)). */
void ivshmem2_notify(const char *state);

#endif /* IVSHMEM2_LISTEN_H */
