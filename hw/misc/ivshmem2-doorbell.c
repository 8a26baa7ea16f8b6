/*
 * ivshmem2: doorbells that KVM rings ("Doorbell Register")
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/misc/ivshmem2-regs.h"
#include "ivshmem2-doorbell.h"
#include "libivshmem2-core.h"
#include "system/kvm.h"
#include "trace.h"

/* Of all devices together, because they share KVM's room for them */
#define IVSHMEM2_MAX_ALL_IOEVENTFDS     256

/* With all ioeventfds in use, how many trapped doorbells replace one */
#define IVSHMEM2_TRAPS_PER_IOEVENTFD    256

static unsigned ivshmem2_all_ioeventfds;

void ivshmem2_doorbells_init(Ivshmem2Doorbells *d, Ivshmem2IoEventFds *fds,
                             uint32_t id, unsigned ioeventfds)
{
    *d = (Ivshmem2Doorbells) {
        .fds = fds,
        .id = id,
        .ioeventfds = g_new0(Ivshmem2IoEventFd, ioeventfds),
        .max_ioeventfds = kvm_enabled() ? ioeventfds : 0,
    };
}

static void ivshmem2_doorbells_del(Ivshmem2Doorbells *d, Ivshmem2IoEventFd *io)
{
    if (io->fd >= 0) {
        ivshmem2_ioeventfd_del(d->fds, io);
        ivshmem2_close(&io->fd);
        ivshmem2_all_ioeventfds--;
    }
}

void ivshmem2_doorbells_forget(Ivshmem2Doorbells *d)
{
    while (d->n_ioeventfds) {
        ivshmem2_doorbells_del(d, &d->ioeventfds[--d->n_ioeventfds]);
    }
    d->next_ioeventfd = 0;
}

void ivshmem2_doorbells_exit(Ivshmem2Doorbells *d)
{
    ivshmem2_doorbells_forget(d);
    g_clear_pointer(&d->ioeventfds, g_free);
    d->max_ioeventfds = 0;
}

/*
 * A doorbell was rung.
 */

/*
 * The ioeventfd to use next, or NULL.  QEMU does not see what KVM rings, so
 * the oldest one gives way.
 */
static Ivshmem2IoEventFd *ivshmem2_doorbells_get(Ivshmem2Doorbells *d)
{
    Ivshmem2IoEventFd *io;

    if (d->n_ioeventfds < d->max_ioeventfds) {
        return ivshmem2_all_ioeventfds < IVSHMEM2_MAX_ALL_IOEVENTFDS ?
               &d->ioeventfds[d->n_ioeventfds++] : NULL;
    }
    io = &d->ioeventfds[d->next_ioeventfd];
    d->next_ioeventfd = (d->next_ioeventfd + 1) % d->max_ioeventfds;
    ivshmem2_doorbells_del(d, io);
    return io;
}

void ivshmem2_doorbells_rung(Ivshmem2Doorbells *d, uint32_t doorbell, int fd)
{
    Ivshmem2IoEventFd *io;
    bool replace = d->n_ioeventfds == d->max_ioeventfds;
    int own_fd;

    if (!d->max_ioeventfds || !d->fds->visible) {
        return;
    }
    /*
     * With all in use, one gives way only now and then: what the guest rings
     * often is likely to be the doorbell that comes at such a moment.
     */
    if (replace && ++d->trapped % IVSHMEM2_TRAPS_PER_IOEVENTFD) {
        return;
    }
    for (unsigned i = 0; i < d->n_ioeventfds; i++) {
        if (d->ioeventfds[i].fd >= 0 && d->ioeventfds[i].value == doorbell) {
            return;
        }
    }
    /* The session may close its descriptor when it holds too many. */
    own_fd = qemu_dup(fd);
    if (own_fd < 0) {
        return;
    }
    io = ivshmem2_doorbells_get(d);
    if (!io) {
        close(own_fd);
        return;
    }
    io->fd = own_fd;
    if (ivshmem2_ioeventfd_add(d->fds, io, IVSHMEM2_REG_DOORBELL, doorbell)) {
        ivshmem2_all_ioeventfds++;
        trace_ivshmem2_ioeventfd_add(d->id, doorbell);
        return;
    }
    ivshmem2_close(&io->fd);
    if (!replace) {
        d->max_ioeventfds = --d->n_ioeventfds;
    }
}
