/*
 * A manager that keeps descriptors for servers, in this process
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_MANAGER_UTIL_H
#define IVSHMEM2_MANAGER_UTIL_H

#include "ivshmem2-util.h"
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include "link.h"
#include "memfd.h"

#define N_PEERS     4
#define N_VECTORS   2

/* The record, the State Table, the R/W section, the output sections */
#define N_MEMORY    (3 + N_PEERS)

/* Where they are in the order in which they are kept */
#define AT_RECORD   0
#define AT_TABLE    1
#define AT_RW       2
#define AT_OUTPUTS  3
#define AT_EVENTFDS N_MEMORY

typedef struct Manager {
    unsigned before;            /* descriptors of this process */
    int fd;
    int server_fd;              /* the other end */
    GArray *kept;               /* of int */
    Ivshmem2Store *store;
    Ivshmem2LinkConfig config;
} Manager;

extern const Ivshmem2LinkConfig default_config;

void manager_init(Manager *m, unsigned room);

/* Keep what the server sent.  Returns the number of messages. */
unsigned manager_read(Manager *m);

void close_store(Manager *m);

/* A store for one server, which keeps @room descriptors */
void open_store(Manager *m, unsigned room);

void manager_clear(Manager *m);

int kept(Manager *m, guint i);

Ivshmem2Link *make_link(Manager *m);

/* What a successor is passed: copies, in reversed order */
void pass(Manager *m, Ivshmem2Inherited *in);

Ivshmem2Link *adopt(Manager *m, GError **error);

Ivshmem2Link *must_adopt(Manager *m);

/* It fails with @text, and everything is as it was. */
void must_not_adopt(Manager *m, const char *text);

/* The link is what was kept: in the order of AT_*. */
void assert_same_link(Manager *m, const Ivshmem2Link *link);

void assert_same_eventfds(Manager *m, const Ivshmem2Link *link,
                          uint32_t id, guint at);

void drop(Manager *m, guint i);

void add_eventfd(Manager *m);

void add(Manager *m, int fd);

/* A link of whose eventfds only those of ID 3 were made */
void make_kept_link(Manager *m);

#endif /* IVSHMEM2_MANAGER_UTIL_H */
