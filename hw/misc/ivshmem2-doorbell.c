/*
 * ivshmem2: doorbells that KVM rings ("Doorbell Register")
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "exec/address-spaces.h"
#include "hw/misc/ivshmem2-regs.h"
#include "ivshmem2-doorbell.h"
#include "ivshmem2-kvm.h"
#include "libivshmem2-core.h"
#include "system/kvm.h"
#include "trace.h"

/* Of all devices together, because they share KVM's room for them */
#define IVSHMEM2_MAX_ALL_IOEVENTFDS     256

/* With all ioeventfds in use, how many trapped doorbells replace one */
#define IVSHMEM2_TRAPS_PER_IOEVENTFD    256

static unsigned ivshmem2_all_ioeventfds;

/*
 * KVM's part
 */

static bool ivshmem2_doorbells_attach(Ivshmem2Doorbells *d,
                                      Ivshmem2IoEventFd *io)
{
    io->attached = ivshmem2_kvm_set_ioeventfd(io->fd, d->address,
                                              io->doorbell, true);
    return io->attached;
}

static void ivshmem2_doorbells_detach(Ivshmem2Doorbells *d,
                                      Ivshmem2IoEventFd *io)
{
    if (io->attached) {
        ivshmem2_kvm_set_ioeventfd(io->fd, d->address, io->doorbell, false);
        io->attached = false;
    }
}

/*
 * Where the guest has the register.  It can move it anywhere, also onto that
 * of another device, which then has ioeventfds of the same address and value.
 */

static bool ivshmem2_doorbells_covers(const Ivshmem2Doorbells *d,
                                      const MemoryRegionSection *section)
{
    hwaddr start = section->offset_within_region;
    hwaddr size = int128_get64(section->size);

    return section->mr == d->regs && start <= IVSHMEM2_REG_DOORBELL &&
           start + size >= IVSHMEM2_REG_DOORBELL + 4;
}

/* Before anything else appears in its place */
static void ivshmem2_doorbells_region_del(MemoryListener *listener,
                                          MemoryRegionSection *section)
{
    Ivshmem2Doorbells *d = container_of(listener, Ivshmem2Doorbells, listener);

    if (ivshmem2_doorbells_covers(d, section)) {
        for (unsigned i = 0; i < d->n_ioeventfds; i++) {
            ivshmem2_doorbells_detach(d, &d->ioeventfds[i]);
        }
        d->visible = false;
    }
}

static void ivshmem2_doorbells_region_add(MemoryListener *listener,
                                          MemoryRegionSection *section)
{
    Ivshmem2Doorbells *d = container_of(listener, Ivshmem2Doorbells, listener);

    if (ivshmem2_doorbells_covers(d, section)) {
        d->address = section->offset_within_address_space +
                     (IVSHMEM2_REG_DOORBELL - section->offset_within_region);
        d->visible = true;
    }
}

/* When what was in its place has disappeared */
static void ivshmem2_doorbells_commit(MemoryListener *listener)
{
    Ivshmem2Doorbells *d = container_of(listener, Ivshmem2Doorbells, listener);

    for (unsigned i = 0; d->visible && i < d->n_ioeventfds; i++) {
        if (!d->ioeventfds[i].attached) {
            /* If KVM refuses, these doorbells come to QEMU. */
            ivshmem2_doorbells_attach(d, &d->ioeventfds[i]);
        }
    }
}

/*
 * Life
 */

void ivshmem2_doorbells_init(Ivshmem2Doorbells *d, MemoryRegion *regs,
                             uint32_t id, unsigned ioeventfds)
{
    *d = (Ivshmem2Doorbells) {
        .regs = regs,
        .id = id,
        .listener = {
            .name = "ivshmem2",
            .region_add = ivshmem2_doorbells_region_add,
            .region_del = ivshmem2_doorbells_region_del,
            .commit = ivshmem2_doorbells_commit,
        },
        .ioeventfds = g_new0(Ivshmem2IoEventFd, ioeventfds),
        .max_ioeventfds = kvm_enabled() ? ioeventfds : 0,
    };
    if (d->max_ioeventfds) {
        memory_listener_register(&d->listener, &address_space_memory);
    }
}

static void ivshmem2_doorbells_del(Ivshmem2Doorbells *d, Ivshmem2IoEventFd *io)
{
    ivshmem2_doorbells_detach(d, io);
    ivshmem2_close(&io->fd);
    ivshmem2_all_ioeventfds--;
}

void ivshmem2_doorbells_exit(Ivshmem2Doorbells *d)
{
    /* Without effect if it is not registered */
    memory_listener_unregister(&d->listener);
    while (d->n_ioeventfds) {
        ivshmem2_doorbells_del(d, &d->ioeventfds[--d->n_ioeventfds]);
    }
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

static void ivshmem2_doorbells_refused(Ivshmem2Doorbells *d)
{
    warn_report_once_cond(&d->warned, "ivshmem2: KVM refuses an ioeventfd, so "
                          "QEMU helps out, which is slower");
    ivshmem2_doorbells_del(d, &d->ioeventfds[--d->n_ioeventfds]);
    d->max_ioeventfds = d->n_ioeventfds;
}

void ivshmem2_doorbells_rung(Ivshmem2Doorbells *d, uint32_t doorbell, int fd)
{
    Ivshmem2IoEventFd *io;
    bool replace = d->n_ioeventfds == d->max_ioeventfds;
    int own_fd;

    if (!d->max_ioeventfds || !d->visible) {
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
        if (d->ioeventfds[i].doorbell == doorbell) {
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
    ivshmem2_all_ioeventfds++;
    io->fd = own_fd;
    io->doorbell = doorbell;
    if (ivshmem2_doorbells_attach(d, io)) {
        trace_ivshmem2_ioeventfd_add(d->id, doorbell);
    } else if (!replace) {
        ivshmem2_doorbells_refused(d);
    }
}
