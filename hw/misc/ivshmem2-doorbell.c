/*
 * ivshmem2: doorbells that KVM rings ("Doorbell Register")
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "hw/misc/ivshmem2-regs.h"
#include "ivshmem2-doorbell.h"
#include "ivshmem2-kvm.h"
#include "system/kvm.h"
#include "trace.h"

/* Of all devices together, because they share KVM's room for them */
#define IVSHMEM2_MAX_ALL_IOEVENTFDS     256

/* With all ioeventfds in use, how many trapped doorbells replace one */
#define IVSHMEM2_TRAPS_PER_IOEVENTFD    256

static unsigned ivshmem2_all_ioeventfds;

void ivshmem2_doorbells_init(Ivshmem2Doorbells *d, MemoryRegion *regs,
                             uint32_t id, unsigned ioeventfds)
{
    *d = (Ivshmem2Doorbells) {
        .regs = regs,
        .id = id,
        .ioeventfds = g_new0(Ivshmem2IoEventFd, ioeventfds),
        .max_ioeventfds = ioeventfds,
    };
}

static void ivshmem2_doorbells_del(Ivshmem2Doorbells *d, Ivshmem2IoEventFd *io)
{
    memory_region_del_eventfd(d->regs, IVSHMEM2_REG_DOORBELL, 4, true,
                              io->doorbell, &io->notifier);
    event_notifier_cleanup(&io->notifier);
    ivshmem2_all_ioeventfds--;
}

void ivshmem2_doorbells_exit(Ivshmem2Doorbells *d)
{
    while (d->n_ioeventfds) {
        ivshmem2_doorbells_del(d, &d->ioeventfds[--d->n_ioeventfds]);
    }
    g_clear_pointer(&d->ioeventfds, g_free);
    d->max_ioeventfds = 0;
}

/*
 * The ioeventfd to use next, or NULL.  QEMU does not see what KVM rings, so
 * the oldest one gives way.
 */
static Ivshmem2IoEventFd *ivshmem2_doorbells_get(Ivshmem2Doorbells *d, int fd)
{
    Ivshmem2IoEventFd *io;

    if (d->n_ioeventfds < d->max_ioeventfds) {
        if (ivshmem2_all_ioeventfds >= IVSHMEM2_MAX_ALL_IOEVENTFDS) {
            return NULL;
        }
        /* QEMU aborts when KVM refuses one that the memory core wants. */
        if (!ivshmem2_kvm_accepts_ioeventfd(fd)) {
            warn_report_once_cond(&d->warned, "ivshmem2: KVM refuses an "
                                  "ioeventfd, so QEMU helps out, which is "
                                  "slower");
            d->max_ioeventfds = d->n_ioeventfds;
            return NULL;
        }
        return &d->ioeventfds[d->n_ioeventfds++];
    }
    io = &d->ioeventfds[d->next_ioeventfd];
    d->next_ioeventfd = (d->next_ioeventfd + 1) % d->max_ioeventfds;
    ivshmem2_doorbells_del(d, io);
    return io;
}

void ivshmem2_doorbells_rung(Ivshmem2Doorbells *d, uint32_t doorbell, int fd)
{
    Ivshmem2IoEventFd *io;
    int own_fd;

    if (!kvm_enabled() || !d->max_ioeventfds) {
        return;
    }
    /*
     * With all in use, one gives way only now and then: what the guest rings
     * often is likely to be the doorbell that comes at such a moment.
     */
    if (d->n_ioeventfds == d->max_ioeventfds &&
        ++d->trapped % IVSHMEM2_TRAPS_PER_IOEVENTFD) {
        return;
    }
    for (unsigned i = 0; i < d->n_ioeventfds; i++) {
        if (d->ioeventfds[i].doorbell == doorbell) {
            return;
        }
    }
    /* The session may close its descriptor when it holds too many. */
    own_fd = qemu_dup(fd);
    if (own_fd < 0) {
        return;
    }
    io = ivshmem2_doorbells_get(d, own_fd);
    if (!io) {
        close(own_fd);
        return;
    }
    event_notifier_init_fd(&io->notifier, own_fd);
    io->doorbell = doorbell;
    ivshmem2_all_ioeventfds++;
    memory_region_add_eventfd(d->regs, IVSHMEM2_REG_DOORBELL, 4, true,
                              doorbell, &io->notifier);
    trace_ivshmem2_ioeventfd_add(d->id, doorbell);
}
