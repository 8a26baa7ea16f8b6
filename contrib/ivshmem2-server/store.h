/*
 * Descriptors that outlive the server: what a service manager passes at the
 * start, and what it keeps for the next server
 *
 * The service manager is systemd or another one with the same protocol
 * (sd_listen_fds(3), sd_notify(3)), or the server's own supervisor.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_STORE_H
#define IVSHMEM2_STORE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>

/* The first descriptor that a service manager passes */
#define IVSHMEM2_LISTEN_FDS_START   3

/* The supervisor tells the server which descriptor leads to it. */
#define IVSHMEM2_SUPERVISOR_ENV     "IVSHMEM2_SUPERVISOR"

/* As many descriptors as Linux lets one message carry */
#define IVSHMEM2_STORE_FDS          253

/* Names in the store.  Those of eventfds are short as there are many. */
#define IVSHMEM2_STORE_LISTEN       "listen"
#define IVSHMEM2_STORE_RECORD       "record"
#define IVSHMEM2_STORE_STATE_TABLE  "state-table"
#define IVSHMEM2_STORE_RW           "rw"
#define IVSHMEM2_STORE_OUTPUTS      "outputs"
#define IVSHMEM2_STORE_EVENTFDS     "e"

/*
 * What was passed, by what it is: names and order do not count.  All zeros
 * must be initialized by one of the first two functions.
 */
typedef struct Ivshmem2Inherited {
    int listen_fd;              /* or -1 */
    int record_fd;              /* or -1 */
    GArray *files;              /* of int: other memory files */
    GArray *eventfds;           /* of int */
    GArray *others;             /* of int: surplus */
} Ivshmem2Inherited;

/* Take what the environment announces, and clear the environment. */
void ivshmem2_inherited_init(Ivshmem2Inherited *in);

/* Take @fds instead. */
void ivshmem2_inherited_init_fds(Ivshmem2Inherited *in, const int *fds,
                                 size_t n);

/* Is there more than a listening socket? */
bool ivshmem2_inherited_has_link(const Ivshmem2Inherited *in);

/* Fails if there is anything that no server leaves. */
bool ivshmem2_inherited_check(const Ivshmem2Inherited *in, GError **error);

/* Close everything but the listening socket, without waiting. */
void ivshmem2_inherited_discard(Ivshmem2Inherited *in);

/* Close everything. */
void ivshmem2_inherited_clear(Ivshmem2Inherited *in);

/* "descriptor 9 that ... passed is surplus: @fd is a pipe"; returns false */
bool ivshmem2_inherited_surplus(int fd, GError **error);

typedef struct Ivshmem2Store Ivshmem2Store;

/*
 * The service manager of the environment, which is cleared.  It may be one
 * that keeps nothing, or there may be none.  NULL with @error set on failure.
 */
Ivshmem2Store *ivshmem2_store_open(GError **error);
void ivshmem2_store_close(Ivshmem2Store *s);

/*
 * How many more descriptors it keeps.  In all functions from here on, @s may
 * be NULL: nobody keeps anything.
 */
size_t ivshmem2_store_room(const Ivshmem2Store *s);

/* It has kept @n of them since before this start. */
void ivshmem2_store_count(Ivshmem2Store *s, size_t n);

/*
 * From here on, nothing here waits: before that, the manager has some seconds
 * to take a message.
 */
void ivshmem2_store_started(Ivshmem2Store *s);

/*
 * Have @n descriptors kept.  Returns how many it took, the first ones of
 * @fds; if these are not all, errno says why.
 */
size_t ivshmem2_store_put(Ivshmem2Store *s, const char *name, const int *fds,
                          size_t n);

/* Have everything forgotten that a server keeps, but for a socket. */
void ivshmem2_store_forget(Ivshmem2Store *s);

/* Tell the manager, e.g. "READY=1". */
void ivshmem2_store_notify(Ivshmem2Store *s, const char *state);

/* "the supervisor", or "the service manager" */
const char *ivshmem2_store_keeper(const Ivshmem2Store *s);

/* Is it the server's own supervisor? */
bool ivshmem2_store_is_supervisor(const Ivshmem2Store *s);

#endif /* IVSHMEM2_STORE_H */
