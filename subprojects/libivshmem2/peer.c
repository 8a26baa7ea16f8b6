/*
 * libivshmem2: the part of a peer that is the same on host and guest
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "libivshmem2-peer.h"
#include "libivshmem2-util.h"

/* Event data of service_fd, where eventfds have their vector */
#define SERVICE     UINT32_MAX

Ivshmem2Peer *ivshmem2_peer_new(size_t size, const Ivshmem2PeerOps *ops)
{
    Ivshmem2Peer *peer = g_malloc0(size);

    peer->ops = ops;
    peer->service_fd = -1;
    peer->epoll_fd = -1;
    return peer;
}

static bool watch_fd(Ivshmem2Peer *peer, int fd, uint32_t what, GError **error)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = what };

    if (epoll_ctl(peer->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        return ivshmem2_fail_errno(error, "cannot wait for interrupts");
    }
    return true;
}

bool ivshmem2_peer_complete(Ivshmem2Peer *peer, GError **error)
{
    peer->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (peer->epoll_fd < 0) {
        return ivshmem2_fail_errno(error, "cannot wait for interrupts");
    }
    for (uint32_t i = 0; i < peer->info.enabled_vectors; i++) {
        if (!watch_fd(peer, peer->eventfds[i], i, error)) {
            return false;
        }
    }
    return peer->service_fd < 0 ||
           watch_fd(peer, peer->service_fd, SERVICE, error);
}

void ivshmem2_peer_close(Ivshmem2Peer *peer)
{
    if (peer) {
        peer->ops->close(peer);
        ivshmem2_close(&peer->epoll_fd);
        if (peer->memory) {
            munmap(peer->memory, peer->memory_size);
        }
        g_free(peer->memory_note);
        g_free(peer);
    }
}

const Ivshmem2PeerInfo *ivshmem2_peer_info(const Ivshmem2Peer *peer)
{
    return &peer->info;
}

bool ivshmem2_peer_connected(const Ivshmem2Peer *peer)
{
    return peer->ops->connected(peer);
}

bool ivshmem2_peer_pending(const Ivshmem2Peer *peer)
{
    return peer->ops->pending && peer->ops->pending(peer);
}

Ivshmem2Event ivshmem2_peer_event(Ivshmem2Peer *peer, GError **reason)
{
    if (reason) {
        *reason = NULL;
    }
    return peer->ops->event ? peer->ops->event(peer, reason)
                            : IVSHMEM2_EVENT_NONE;
}

int ivshmem2_peer_connection_fd(const Ivshmem2Peer *peer)
{
    return peer->ops->event ? peer->service_fd : -1;
}

const char *ivshmem2_peer_memory_note(const Ivshmem2Peer *peer)
{
    return peer->memory_note ? peer->memory_note : "";
}

void *ivshmem2_peer_rw(const Ivshmem2Peer *peer)
{
    return peer->info.rw_size ?
           (char *)peer->memory + peer->info.state_table_size : NULL;
}

void *ivshmem2_peer_output(const Ivshmem2Peer *peer, uint32_t id)
{
    const Ivshmem2PeerInfo *info = &peer->info;

    if (!info->output_size || id >= info->max_peers) {
        return NULL;
    }
    return (char *)peer->memory + info->state_table_size + info->rw_size +
           info->output_size * id;
}

const void *ivshmem2_peer_state_table(const Ivshmem2Peer *peer)
{
    return peer->memory;
}

uint32_t ivshmem2_peer_state(const Ivshmem2Peer *peer, uint32_t id)
{
    const uint32_t *table = peer->memory;

    if (id >= peer->info.max_peers) {
        return 0;
    }
    /* what the peer wrote before it set this state is visible afterwards */
    return GUINT32_FROM_LE(__atomic_load_n(&table[id], __ATOMIC_ACQUIRE));
}

bool ivshmem2_peer_read(const Ivshmem2Peer *peer, const void *from, void *buf,
                        size_t length, GError **error)
{
    /* too large for addresses below the memory */
    size_t offset = (uintptr_t)from - (uintptr_t)peer->memory;

    if (offset > peer->memory_size || length > peer->memory_size - offset) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%zu bytes at %p are not in the shared memory of "
                             "%zu bytes at %p", length, from,
                             peer->memory_size, peer->memory);
    }
    return peer->ops->read(peer, offset, buf, length, error);
}

bool ivshmem2_peer_set_state(Ivshmem2Peer *peer, uint32_t state,
                             GError **error)
{
    return peer->ops->set_state(peer, state, error);
}

bool ivshmem2_peer_ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector,
                        GError **error)
{
    const Ivshmem2PeerInfo *info = &peer->info;

    if (target >= info->max_peers || vector >= info->vectors) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "there is no vector %u at peer %u: the link has "
                             "IDs 0 to %u with vectors 0 to %u", vector,
                             target, info->max_peers - 1, info->vectors - 1);
    }
    return peer->ops->ring(peer, target, vector, error);
}

/*
 * Wait for the eventfd of @only (-1: of any vector) and for service_fd.
 * Returns like poll(), with the vector or SERVICE in @what.
 */
static int wait_once(Ivshmem2Peer *peer, int only, int timeout_ms,
                     uint32_t *what)
{
    struct epoll_event event;
    int ret;

    if (only < 0) {
        ret = epoll_wait(peer->epoll_fd, &event, 1, timeout_ms);
        *what = ret > 0 ? event.data.u32 : 0;
    } else {
        struct pollfd pfds[2] = {
            { .fd = peer->eventfds[only], .events = POLLIN },
            { .fd = peer->service_fd, .events = POLLIN },
        };

        ret = poll(pfds, 2, timeout_ms);
        *what = ret > 0 && pfds[1].revents ? SERVICE : (uint32_t)only;
    }
    return ret;
}

int ivshmem2_peer_wait(Ivshmem2Peer *peer, int only, int *vector,
                       int timeout_ms, GError **error)
{
    int64_t deadline = ivshmem2_deadline((int64_t)timeout_ms * 1000);
    uint32_t what;
    int ret;

    if (only < -1 || only >= (int)peer->info.enabled_vectors) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "there is no vector %d that interrupts this peer, it "
                      "has 0 to %u", only, peer->info.enabled_vectors - 1);
        return -1;
    }
    do {
        ret = wait_once(peer, only, ivshmem2_deadline_ms(deadline), &what);
        if (ret < 0 && errno != EINTR) {
            ivshmem2_fail_errno(error, "cannot wait for interrupts");
            return -1;
        }
        if (ret > 0 && what == SERVICE) {
            int outcome = peer->ops->service(peer, error);

            if (outcome) {
                return outcome;
            }
        } else if (ret > 0 && ivshmem2_eventfd_drain(peer->eventfds[what])) {
            if (peer->ops->taken) {
                peer->ops->taken(peer, what);
            }
            if (vector) {
                *vector = what;
            }
            return 1;
        }
        /* empty eventfds and a busy server must not extend the wait */
    } while (ret && ivshmem2_deadline_ms(deadline));
    return 0;
}

int ivshmem2_peer_fd(const Ivshmem2Peer *peer)
{
    return peer->epoll_fd;
}
