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

#include "hw/pci/pci_device.h"

typedef struct Ivshmem2IoEventFd {
    uint32_t doorbell;          /* the value that rings it */
    int fd;
    bool attached;              /* KVM has it */
} Ivshmem2IoEventFd;

/*
 * To be used with the big QEMU lock.
 *
 * The ioeventfds are not those of the memory core: it ends QEMU if KVM refuses
 * one, and when a guest moves one device's register onto another's, it adds
 * the new ioeventfds before it removes the old ones, which KVM refuses.
 */
typedef struct Ivshmem2Doorbells {
    MemoryRegion *regs;
    uint32_t id;                /* of this peer, for traces */
    MemoryListener listener;
    bool visible;               /* the register, to the guest */
    hwaddr address;             /* where it is then */
    Ivshmem2IoEventFd *ioeventfds;
    unsigned max_ioeventfds;
    unsigned n_ioeventfds;
    unsigned next_ioeventfd;    /* the oldest one, once all are in use */
    unsigned trapped;           /* since then */
    bool warned;
} Ivshmem2Doorbells;

/*
 * @regs: the region with the Doorbell register.
 * @ioeventfds: how many to use at most.
 */
void ivshmem2_doorbells_init(Ivshmem2Doorbells *d, MemoryRegion *regs,
                             uint32_t id, unsigned ioeventfds);

/* Also without ivshmem2_doorbells_init() before. */
void ivshmem2_doorbells_exit(Ivshmem2Doorbells *d);

/*
 * QEMU has rung @doorbell by signalling @fd, which is borrowed.  Perhaps KVM
 * can do it next time.
 */
void ivshmem2_doorbells_rung(Ivshmem2Doorbells *d, uint32_t doorbell, int fd);

#endif /* HW_MISC_IVSHMEM2_DOORBELL_H */
