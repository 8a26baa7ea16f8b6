/*
 * libivshmem2 internals: what the two transports of the client API share
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef LIBIVSHMEM2_PEER_H
#define LIBIVSHMEM2_PEER_H

#include <sys/un.h>
#include "libivshmem2.h"

/*
 * A transport.  The arguments are checked already.  Each transport has a
 * structure of its own that starts with Ivshmem2Peer.
 */
typedef struct Ivshmem2PeerOps {
    bool (*set_state)(Ivshmem2Peer *peer, uint32_t state, GError **error);
    bool (*ring)(Ivshmem2Peer *peer, uint32_t target, uint32_t vector,
                 GError **error);
    /* An interrupt was taken from the eventfd of @vector. */
    void (*taken)(Ivshmem2Peer *peer, uint32_t vector);
    /*
     * peer->service_fd is ready.  Returns 0, or what ivshmem2_peer_wait() is
     * to return: 2, or -1 with @error set if the link is gone.
     */
    int (*service)(Ivshmem2Peer *peer, GError **error);
    bool (*connected)(const Ivshmem2Peer *peer);
    /* The functions of these names; NULL: never anything, none */
    bool (*pending)(const Ivshmem2Peer *peer);
    Ivshmem2Event (*event)(Ivshmem2Peer *peer, GError **reason);
    /* Copy bytes of the memory, from @offset on, to @buf. */
    bool (*read)(const Ivshmem2Peer *peer, uint64_t offset, void *buf,
                 size_t length, GError **error);
    /*
     * Set the state to 0, say goodbye, and release the transport's own
     * resources; epoll_fd, memory and the structure are left to peer.c.
     */
    void (*close)(Ivshmem2Peer *peer);
} Ivshmem2PeerOps;

struct Ivshmem2Peer {
    const Ivshmem2PeerOps *ops;
    Ivshmem2PeerInfo info;
    void *memory;               /* all sections in order; peer.c unmaps it */
    size_t memory_size;
    char *memory_note;          /* see ivshmem2_peer_memory_note() */
    int *eventfds;              /* of info.enabled_vectors, borrowed */
    int service_fd;             /* borrowed; -1: none */
    int epoll_fd;               /* eventfds and service_fd */
};

/*
 * Allocate @size bytes that start with an Ivshmem2Peer, to be released with
 * ivshmem2_peer_close(), also when it is not complete yet.
 */
Ivshmem2Peer *ivshmem2_peer_new(size_t size, const Ivshmem2PeerOps *ops);

/*
 * Every field of @peer but epoll_fd is set: make it ready for
 * ivshmem2_peer_wait().
 */
bool ivshmem2_peer_complete(Ivshmem2Peer *peer, GError **error);

/*
 * Map @size bytes of the memory of the device that has this @folder in sysfs,
 * in the ways that are better than VFIO, best first.  *@type is the wanted
 * type and becomes the one that the memory has.  *@note, to be freed, says
 * which ways failed and why.  Returns NULL if all did.
 */
void *ivshmem2_map_device(const char *folder, size_t size,
                          Ivshmem2MemoryType *type, char **note);

/*
 * The same for memory at a fixed physical @address.  Where it cannot be told,
 * the type is UNCACHED, which asks most of the program.  Returns NULL with
 * @error set if it cannot be mapped, or not as the wanted type.
 */
void *ivshmem2_map_fixed(uint64_t address, size_t size,
                         Ivshmem2MemoryType *type, char **note, GError **error);

/* Bytes of a socket's path that the system allows */
#define IVSHMEM2_MAX_SOCKET_PATH    \
    (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)

/*
 * Connect to the server's socket @path.  Waits until @deadline for a server
 * that does not accept; 0: does not wait.  Returns a descriptor, or -errno.
 */
int ivshmem2_connect(const char *path, int64_t deadline);

/* Set @error to why ivshmem2_connect() failed, and what to do about it. */
void ivshmem2_fail_connect(const char *path, int cause, GError **error);

#endif /* LIBIVSHMEM2_PEER_H */
