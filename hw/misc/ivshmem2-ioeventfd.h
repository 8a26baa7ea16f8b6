/*
 * ivshmem2: register writes that KVM takes
 *
 * The ioeventfds are not those of the memory core: it ends QEMU if KVM refuses
 * one, and when a guest moves one device's register onto another's, it adds
 * the new ioeventfds before it removes the old ones, which KVM refuses.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_IOEVENTFD_H
#define HW_MISC_IVSHMEM2_IOEVENTFD_H

#include "exec/memory.h"
#include "hw/pci/pci_device.h"
#include "qemu/queue.h"

typedef struct Ivshmem2IoEventFd {
    uint32_t offset;            /* of the register */
    uint32_t value;             /* that signals @fd */
    int fd;                     /* borrowed */
    bool attached;              /* KVM has it */
    QLIST_ENTRY(Ivshmem2IoEventFd) next;
} Ivshmem2IoEventFd;

/* To be used with the big QEMU lock. */
typedef struct Ivshmem2IoEventFds {
    MemoryRegion *regs;
    bool ports;                 /* they are I/O ports */
    MemoryListener listener;
    bool visible;               /* the registers, to the guest */
    hwaddr address;             /* where they are then */
    bool warned;                /* that KVM refuses one */
    QLIST_HEAD(, Ivshmem2IoEventFd) all;
} Ivshmem2IoEventFds;

/*
 * Where the I/O ports of @pdev's PCI bus are: other processors than x86 see
 * them in memory.  Returns NULL if they are nowhere.
 */
AddressSpace *ivshmem2_ports_space(PCIDevice *pdev);

/* @regs: the registers' region, somewhere in @as.  Does nothing without KVM. */
void ivshmem2_ioeventfds_init(Ivshmem2IoEventFds *fds, MemoryRegion *regs,
                              AddressSpace *as);

/*
 * All ioeventfds have to be deleted before.  Also without
 * ivshmem2_ioeventfds_init() before.
 */
void ivshmem2_ioeventfds_exit(Ivshmem2IoEventFds *fds);

/*
 * From now on, KVM signals io->fd when the guest writes @value, 32 bits in
 * little endian, to the register at @offset.  Returns false if KVM refuses,
 * or the register cannot be seen; then @io is not added.  Later, KVM may
 * refuse when the guest has moved the registers: then QEMU sees the writes.
 */
bool ivshmem2_ioeventfd_add(Ivshmem2IoEventFds *fds, Ivshmem2IoEventFd *io,
                            uint32_t offset, uint32_t value);
void ivshmem2_ioeventfd_del(Ivshmem2IoEventFds *fds, Ivshmem2IoEventFd *io);

#endif /* HW_MISC_IVSHMEM2_IOEVENTFD_H */
