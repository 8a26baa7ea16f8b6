/*
 * The socket at which clients find the server
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
    bool kept;                  /* it outlives the server, so its file stays */
} Ivshmem2Listener;

/*
 * Listen at @path.  The socket of a dead server is replaced; if anything else
 * is there, this fails.  Nobody can connect before @mode and @gid (-1: the
 * process's) are set.
 */
bool ivshmem2_listen(Ivshmem2Listener *l, const char *path, mode_t mode,
                     gid_t gid, GError **error);

/*
 * Take @fd, a listening socket that a service manager passed.  @path must be
 * where it is, or NULL.
 */
bool ivshmem2_listen_inherited(Ivshmem2Listener *l, int fd, const char *path,
                               GError **error);

/*
 * The file at @path is that of the socket, which was made there, and is to be
 * removed with it.
 */
void ivshmem2_listen_own_file(Ivshmem2Listener *l, const char *path);

/*
 * Close, and remove the socket's file if it is still this socket's and the
 * socket is not kept.
 */
void ivshmem2_listen_end(Ivshmem2Listener *l);

#endif /* IVSHMEM2_LISTEN_H */
