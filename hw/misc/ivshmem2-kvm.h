/*
 * ivshmem2: doorbells and interrupts that do not leave the kernel
 *
 * Shortcuts, and nothing but: the device does without them wherever KVM does
 * not offer them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_KVM_H
#define HW_MISC_IVSHMEM2_KVM_H

#include "hw/pci/msi.h"
#include "hw/pci/pci_device.h"
#include "qemu/event_notifier.h"

/* KVM aborts when it has no room for another one: not too many for all. */
#define IVSHMEM2_MAX_ALL_IOEVENTFDS     256

typedef struct Ivshmem2IoEventFd {
    uint32_t doorbell;          /* the value that rings it */
    EventNotifier notifier;
} Ivshmem2IoEventFd;

/* How a vector's interrupts get from its eventfd to the guest */
typedef enum Ivshmem2Delivery {
    IVSHMEM2_BY_QEMU,           /* as QEMU delivers any MSI */
    IVSHMEM2_BY_KVM,            /* an irqfd is attached to the eventfd */
    IVSHMEM2_BY_RELAY,          /* with ivshmem2_kvm_deliver() */
} Ivshmem2Delivery;

typedef struct Ivshmem2Irqfd {
    int virq;                   /* the vector's route, -1: none */
    MSIMessage msg;             /* where that leads to */
    Ivshmem2Delivery delivery;
    EventNotifier notifier;     /* what the irqfd is attached to */
} Ivshmem2Irqfd;

typedef struct Ivshmem2Kvm {
    PCIDevice *pdev;
    MemoryRegion *regs;
    Ivshmem2IoEventFd *ioeventfds;
    unsigned max_ioeventfds;
    unsigned n_ioeventfds;
    unsigned next_ioeventfd;    /* the oldest one, once all are in use */
    unsigned trapped;
    Ivshmem2Irqfd *irqfds;
    unsigned n_irqfds;
    bool no_irqfds;             /* KVM has refused one */
    bool warned;
} Ivshmem2Kvm;

/*
 * @ioeventfds: how many to use at most.  KVM looks them up one after the
 * other, so every one makes all of them a little slower.
 */
void ivshmem2_kvm_init(Ivshmem2Kvm *k, PCIDevice *pdev, MemoryRegion *regs,
                       unsigned vectors, unsigned ioeventfds);

/* Detach everything. */
void ivshmem2_kvm_exit(Ivshmem2Kvm *k);

/* QEMU has rung @doorbell by signalling @fd; perhaps KVM can next time. */
void ivshmem2_kvm_rung(Ivshmem2Kvm *k, uint32_t doorbell, int fd);

/* Could KVM deliver MSI-X interrupts on its own? */
bool ivshmem2_kvm_delivers(void);

/* How the interrupts of @vector are delivered now */
Ivshmem2Delivery ivshmem2_kvm_delivery(const Ivshmem2Kvm *k, unsigned vector);

/*
 * When this returns, the interrupts of @vector that arrive by @fd are
 * delivered as wanted, or else by QEMU.  Returns which of them it is.
 */
Ivshmem2Delivery ivshmem2_kvm_set_delivery(Ivshmem2Kvm *k, unsigned vector,
                                           Ivshmem2Delivery delivery, int fd);

/* Deliver an interrupt.  Does not need the big QEMU lock. */
void ivshmem2_kvm_deliver(Ivshmem2Kvm *k, unsigned vector);

#endif /* HW_MISC_IVSHMEM2_KVM_H */
