/*
 * libivshmem2: be a peer on an ivshmem2 link
 *
 * One API, two transports: from a program on the host through the server's
 * socket, or from a program in a Linux guest through VFIO on the PCI device.
 * The sections named are those of the device specification, see
 * docs/specs/ivshmem2.rst.
 *
 * A peer is used by one thread at a time.  Functions that return bool return
 * false with @error set on failure.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef LIBIVSHMEM2_H
#define LIBIVSHMEM2_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "libivshmem2-core.h"

typedef struct Ivshmem2Peer Ivshmem2Peer;

/* What is constant while one is a peer ("Configuration Space Registers") */
typedef struct Ivshmem2Info {
    uint32_t id;                /* ID register */
    uint32_t max_peers;         /* Maximum Peers register */
    uint32_t vectors;           /* of every peer */
    /*
     * The first ones of our own that can interrupt us: all of them, unless
     * the guest's processors have no room for so many.
     */
    uint32_t enabled_vectors;
    bool msix;                  /* MSI-X, else INTx */
    uint16_t protocol;          /* protocol type of this peer */
    uint32_t state_table_size;  /* bytes */
    uint64_t rw_size;           /* bytes, 0: no R/W section */
    uint64_t output_size;       /* bytes of each output section, 0: none */
} Ivshmem2Info;

typedef struct Ivshmem2SocketOptions {
    uint32_t id;                /* wanted ID or IVSHMEM2_ID_ANY */
    const char *name;           /* for the server's log, or NULL */
    unsigned timeout_ms;        /* for connecting and the handshake */
} Ivshmem2SocketOptions;

#define IVSHMEM2_SOCKET_OPTIONS_INIT \
    { .id = IVSHMEM2_ID_ANY, .name = NULL, .timeout_ms = 5000 }

/*
 * Join the link of the server that listens at @path, within
 * options->timeout_ms.  @options may be NULL for the defaults.
 */
Ivshmem2Peer *ivshmem2_peer_open_socket(const char *path,
                                        const Ivshmem2SocketOptions *options,
                                        GError **error);

/*
 * Drive the PCI device at @address ("0000:00:04.0", the domain may be left
 * out), which must be bound to vfio-pci, with an IOMMU.  Interrupts are
 * enabled with all vectors of the device, or as many as there is room for.
 */
Ivshmem2Peer *ivshmem2_peer_open_pci(const char *address, GError **error);

/* State 0, goodbye, and everything released.  @peer may be NULL. */
void ivshmem2_peer_close(Ivshmem2Peer *peer);

const Ivshmem2Info *ivshmem2_peer_info(const Ivshmem2Peer *peer);

/*
 * Is the server (host) or the device (guest) still there?  Without a server,
 * memory and the doorbells of peers that are known go on, and state changes
 * interrupt those peers only.
 */
bool ivshmem2_peer_connected(const Ivshmem2Peer *peer);

/*
 * R/W section ("Shared Memory Region Layout"), NULL if there is none.  The
 * other peers change it at any time: read what they write with atomic
 * accesses or after an interrupt or a state that says it is there.
 */
void *ivshmem2_peer_rw(const Ivshmem2Peer *peer);

/*
 * Output section of peer @id, NULL if there is none.  Only the own one may be
 * written: elsewhere the host sends SIGSEGV, and in a guest writes vanish.
 */
void *ivshmem2_peer_output(const Ivshmem2Peer *peer, uint32_t id);

/* The whole State Table: little-endian entries, never to be written */
const void *ivshmem2_peer_state_table(const Ivshmem2Peer *peer);

/* State Table entry of peer @id; 0 if there is no such ID. */
uint32_t ivshmem2_peer_state(const Ivshmem2Peer *peer, uint32_t id);

/*
 * State register: set the own state and, if it differs from the previous
 * one, interrupt the other peers with vector 0.
 */
bool ivshmem2_peer_set_state(Ivshmem2Peer *peer, uint32_t state,
                             GError **error);

/*
 * Doorbell register: interrupt @vector of peer @target.  Ringing a target
 * that is not there is no error; one that cannot exist on this link is.
 */
bool ivshmem2_peer_ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector,
                        GError **error);

/*
 * Wait until one of our vectors was interrupted, for @timeout_ms at most (-1:
 * for ever, 0: only look).  *@vector: the only one to look at, or -1 for any.
 * Returns 1 and the vector in *@vector, which is not interrupted any more;
 * 0 after the time; -1 with @error set if the link is gone.  Interrupts of
 * one vector that come before they are waited for become one.
 *
 * A host peer without a server waits on: the others can still ring it.
 */
int ivshmem2_peer_wait(Ivshmem2Peer *peer, int *vector, int timeout_ms,
                       GError **error);

/*
 * For programs with a main loop of their own: a descriptor, owned by @peer,
 * that is readable when ivshmem2_peer_wait() has something to do.
 */
int ivshmem2_peer_fd(const Ivshmem2Peer *peer);

#endif /* LIBIVSHMEM2_H */
