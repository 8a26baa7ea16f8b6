/*
 * ivshmem2: doorbells that KVM rings
 *
 * With KVM, a doorbell can leave the guest through an ioeventfd, without an
 * exit to QEMU.  KVM looks them up one after the other, so only the (target,
 * vector) pairs that the guest really rings get one, up to a budget.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_DOORBELL_H
#define HW_MISC_IVSHMEM2_DOORBELL_H

#include "ivshmem2-ioeventfd.h"

/* To be used with the big QEMU lock. */
typedef struct Ivshmem2Doorbells {
    Ivshmem2IoEventFds *fds;
    uint32_t id;                /* of this peer, for traces */
    Ivshmem2IoEventFd *ioeventfds;
    unsigned max_ioeventfds;
    unsigned n_ioeventfds;
    unsigned next_ioeventfd;    /* the oldest one, once all are in use */
    unsigned trapped;           /* since then */
} Ivshmem2Doorbells;

/* @ioeventfds: how many to use at most. */
void ivshmem2_doorbells_init(Ivshmem2Doorbells *d, Ivshmem2IoEventFds *fds,
                             uint32_t id, unsigned ioeventfds);

/* From now on, QEMU sees all doorbells, until it has learnt some anew. */
void ivshmem2_doorbells_forget(Ivshmem2Doorbells *d);

/* Also without ivshmem2_doorbells_init() before. */
void ivshmem2_doorbells_exit(Ivshmem2Doorbells *d);

/*
 * QEMU has rung @doorbell by signalling @fd, which is borrowed.  Perhaps KVM
 * can do it next time.
 */
void ivshmem2_doorbells_rung(Ivshmem2Doorbells *d, uint32_t doorbell, int fd);

#endif /* HW_MISC_IVSHMEM2_DOORBELL_H */
