/*
 * The resources of a link: memory and eventfds
 *
 * They belong to the link's slots, not to the peers that occupy them at the
 * moment, so nothing here knows connections.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LINK_H
#define IVSHMEM2_LINK_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include "hw/misc/ivshmem2.h"
#include "record.h"
#include "store.h"

typedef struct Ivshmem2LinkConfig {
    uint32_t max_peers;
    uint32_t vectors;
    bool intx;
    uint64_t rw_size;           /* sizes are rounded up */
    uint64_t output_size;
    uint32_t page_size;         /* 0: the host's */
    uint16_t protocol;
    uint32_t backend_id;        /* for IVSHMEM2_PROTOCOL_VIRTIO and up */
    bool huge_pages;            /* for R/W section and output sections */
    uint64_t huge_page_size;    /* 0: the system's default */
    /* budget.h decides these: */
    bool pushes;                /* all eventfds to every peer, from the start */
    int fd_limit;               /* eventfds made later stay below; 0: none */
    Ivshmem2Store *store;       /* borrowed; NULL: the link ends with us */
} Ivshmem2LinkConfig;

/* The server reads all of it; only link.c changes it. */
typedef struct Ivshmem2Link {
    Ivshmem2Welcome welcome;    /* but for id and protocol */
    Ivshmem2LinkConfig config;
    int memory_fds[2];          /* as in WELCOME: State Table, R/W section */
    uint32_t *table;            /* State Table, little-endian; peers write */
    uint32_t n_outputs;
    int *output_fds;            /* open for reading and writing */
    int *output_read_fds;       /* open for reading only */
    int **eventfds;             /* of each ID: NULL, or one for each vector */
    Ivshmem2Record *record;
    bool adopted;               /* from a server before this one */
    GArray *spare_eventfds;     /* of int: kept, but nobody's yet */
    bool store_is_full;
} Ivshmem2Link;

/* Can there be such a link? */
bool ivshmem2_link_check(const Ivshmem2LinkConfig *config, GError **error);

/*
 * Check @config and make everything.  NULL with @error set on failure, and
 * then nothing is left behind.
 */
Ivshmem2Link *ivshmem2_link_new(const Ivshmem2LinkConfig *config,
                                GError **error);

/*
 * Continue the link of the server before this one with what it left.  Every
 * descriptor must be there and as it was, and @config must fit: otherwise this
 * fails, and all of them stay open and as they are.  After that they belong to
 * the link, also if the system refuses something then and this fails.
 */
Ivshmem2Link *ivshmem2_link_adopt(const Ivshmem2LinkConfig *config,
                                  Ivshmem2Inherited *in, GError **error);

/*
 * Did a server that began this link get so far that peers could join?  If it
 * did not, a new link loses nothing.
 */
bool ivshmem2_link_was_served(const Ivshmem2Inherited *in);

void ivshmem2_link_free(Ivshmem2Link *link);

/* The WELCOME of this link for the peer with @id */
void ivshmem2_link_welcome(const Ivshmem2Link *link, uint32_t id,
                           Ivshmem2Welcome *welcome);

/* Make the eventfds of @id unless they exist. */
bool ivshmem2_link_make_eventfds(Ivshmem2Link *link, uint32_t id,
                                 GError **error);

/* Signal @vector of @id if it exists. */
void ivshmem2_link_signal(Ivshmem2Link *link, uint32_t id, uint32_t vector);

/*
 * Did the eventfds of the last occupant of @id end with an earlier server?
 * Then nobody can resume as @id.
 */
bool ivshmem2_link_is_renewed(const Ivshmem2Link *link, uint32_t id);

/* Forget what was signalled to @id: it has a new occupant. */
void ivshmem2_link_drain(Ivshmem2Link *link, uint32_t id);

/*
 * State Table entries.  Every peer can write all of them, so the server cannot
 * rely on their values.
 */
uint32_t ivshmem2_link_state(const Ivshmem2Link *link, uint32_t id);

/* Set it to 0 before anything that follows; returns the old value. */
uint32_t ivshmem2_link_clear_state(Ivshmem2Link *link, uint32_t id);

#endif /* IVSHMEM2_LINK_H */
