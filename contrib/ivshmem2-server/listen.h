/*
 * Where clients find the server, and who started it
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
    char *path;                 /* of a socket that we made, else NULL */
    dev_t dev;
    ino_t ino;
} Ivshmem2Listener;

/*
 * Listen at @path.  The file of a server that is dead is replaced, anything
 * else that is there stays.  Nobody can connect before @mode and @gid (-1:
 * the process's) are set.
 */
bool ivshmem2_listen(Ivshmem2Listener *l, const char *path, mode_t mode,
                     gid_t gid, GError **error);

/*
 * Take the socket that a service manager passed (sd_listen_fds(3)); l->fd is
 * -1 if it passed none.
 */
bool ivshmem2_listen_inherited(Ivshmem2Listener *l, GError **error);

/* Close, and remove the file if it is still ours. */
void ivshmem2_listen_end(Ivshmem2Listener *l);

/* Tell the service manager, if there is one (sd_notify(3)). */
void ivshmem2_notify(const char *state);

#endif /* IVSHMEM2_LISTEN_H */
