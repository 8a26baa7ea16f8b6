/*
 * ivshmem2: receiving interrupts
 *
 * From the eventfds of the device's own vectors to the guest: Interrupt
 * Control, one-shot mode, MSI-X masks, and the ways by which an interrupt gets
 * to the guest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_IRQ_H
#define HW_MISC_IVSHMEM2_IRQ_H

#include "hw/pci/msi.h"
#include "hw/pci/pci_device.h"
#include "ivshmem2-ioeventfd.h"
#include "libivshmem2-core.h"
#include "qemu/event_notifier.h"
#include "qemu/stats64.h"
#include "qemu/thread.h"
#include "system/runstate.h"

/* Where the eventfds are looked at */
typedef enum Ivshmem2IrqMode {
    /* Reception is off (X3).  Arrivals are dropped when it is turned on. */
    IVSHMEM2_IRQ_OFF,
    /* Reception is on, but the virtual machine is stopped.  Arrivals wait. */
    IVSHMEM2_IRQ_HELD,
    /* The main loop delivers. */
    IVSHMEM2_IRQ_QEMU,
    /* The kernel delivers vectors that are busy, the main loop the others. */
    IVSHMEM2_IRQ_KVM,
    /*
     * A thread of the device, the relay, delivers.  In one-shot mode QEMU has
     * to look at each interrupt, but the main loop may be busy, and an
     * interrupt that takes its way costs more.
     */
    IVSHMEM2_IRQ_RELAY,
    /*
     * Reception is off, as it is after each interrupt in one-shot mode, and
     * the vectors stay with the relay.  Perhaps the guest has enabled it
     * without QEMU: see @enabling.
     */
    IVSHMEM2_IRQ_RELAY_OFF,
} Ivshmem2IrqMode;

/* How the interrupts of a vector get from its eventfd to the guest */
typedef enum Ivshmem2Delivery {
    IVSHMEM2_BY_QEMU,           /* as QEMU delivers any interrupt */
    IVSHMEM2_BY_KVM,            /* an irqfd is attached to the eventfd */
    IVSHMEM2_BY_RELAY,          /* the relay signals an irqfd of its own */
} Ivshmem2Delivery;

typedef struct Ivshmem2Vector {
    int eventfd;                /* borrowed */
    Ivshmem2Delivery delivery;
    EventNotifier notifier;     /* the irqfd is attached to this */
    int virq;                   /* the vector's route, -1: none */
    MSIMessage msg;             /* where the route leads */
    uint8_t in_a_row;           /* delivered by QEMU since the last change */
    bool odd;                   /* its message is not for KVM */
} Ivshmem2Vector;

/*
 * All functions but the relay's run with the big QEMU lock.  @lock protects
 * what the relay shares with them; it is taken after the big lock.  Nothing
 * that can reach guest memory is called with it, because a guest can make
 * an MSI message a write to a register of this device.
 */
typedef struct Ivshmem2Irq {
    PCIDevice *pdev;
    const uint8_t *priv_control; /* in configuration space */
    uint32_t id;                /* of this peer, for traces */
    bool has_msix;
    bool use_irqfd;             /* property */
    uint8_t irqfd_after;        /* property */
    bool use_ioeventfd;         /* property */
    Ivshmem2IoEventFds *fds;
    VMChangeStateEntry *vm_state_entry;
    int epoll_fd;               /* eventfds but those that KVM delivers */
    bool polling;               /* the main loop looks at epoll_fd */
    unsigned long *writes;      /* messages to be sent by: */
    QEMUBH *send_writes;
    bool refused;               /* an irqfd cannot be had, no relay */
    bool warned;

    QemuMutex lock;
    Ivshmem2IrqMode mode;
    uint32_t control;           /* Interrupt Control; atomic */
    uint32_t n_vectors;
    Ivshmem2Vector *vectors;
    unsigned long *masked;      /* as the relay sees the vectors' masks */
    unsigned long *pending;     /* vectors that arrived while masked */
    uint32_t n_odd;             /* unmasked vectors that are odd */
    bool relay_stop;
    QemuCond relay_wake;        /* what the relay waits for has changed */
    EventNotifier enabling;     /* KVM has seen a write that enables */
    Ivshmem2IoEventFd enabling_io;
    bool has_enabling;
    bool enabling_by_kvm;       /* the relay looks at @enabling */
    unsigned drops;             /* by the relay, since the last delivery */

    QEMUBH *storm_bh;
    bool trapping;              /* QEMU has to see enabling writes */
    unsigned trapped;           /* since then */

    bool relay_started;
    QemuThread relay;
    EventNotifier relay_kick;   /* wakes it up in epoll_wait() */

    Stat64 received;
    Stat64 dropped;
} Ivshmem2Irq;

/*
 * @session: its eventfds are borrowed until ivshmem2_irq_exit().
 * @priv_control: Privileged Control in the vendor capability.
 * @fds: for Interrupt Control; need not be initialized yet.
 */
bool ivshmem2_irq_init(Ivshmem2Irq *irq, PCIDevice *pdev,
                       Ivshmem2Session *session, const uint8_t *priv_control,
                       Ivshmem2IoEventFds *fds, Error **errp);

/*
 * MSI-X may be gone already.  Without effect unless ivshmem2_irq_init() was
 * called.
 */
void ivshmem2_irq_exit(Ivshmem2Irq *irq);

/*
 * Going over to another session, in two steps: its eventfds are polled beside
 * the others, which can fail and then has no effect; then they take the place
 * of the others.  To give up in between, delete those of the first @vectors.
 */
bool ivshmem2_irq_add_session(Ivshmem2Irq *irq, Ivshmem2Session *session,
                              Error **errp);
void ivshmem2_irq_del_session(Ivshmem2Irq *irq, Ivshmem2Session *session,
                              uint32_t vectors);
void ivshmem2_irq_switch_session(Ivshmem2Irq *irq, Ivshmem2Session *session);

/* Interrupt Control becomes 0. */
void ivshmem2_irq_reset(Ivshmem2Irq *irq);

/* Interrupt Control register */
uint32_t ivshmem2_irq_get_control(Ivshmem2Irq *irq);
void ivshmem2_irq_set_control(Ivshmem2Irq *irq, uint32_t value);

/*
 * Before something that may turn reception off: interrupts that were rung
 * before must not get lost only because the main loop has not come to them
 * yet (G3).
 */
void ivshmem2_irq_flush(Ivshmem2Irq *irq);

/* Whatever the mode depends on may have changed. */
void ivshmem2_irq_update(Ivshmem2Irq *irq);

/* The MSI-X mask of a vector has changed. */
void ivshmem2_irq_vector_unmasked(Ivshmem2Irq *irq, uint32_t vector);
void ivshmem2_irq_vector_masked(Ivshmem2Irq *irq, uint32_t vector);

/*
 * Around each write to the MSI-X message of a vector.  Between the two, KVM
 * does not know the vector: QEMU hands KVM the messages of all vectors with
 * routes whenever a guest's IOMMU invalidates its interrupt entries.
 */
void ivshmem2_irq_begin_message(Ivshmem2Irq *irq, uint32_t vector);
void ivshmem2_irq_end_message(Ivshmem2Irq *irq, uint32_t vector);

#endif /* HW_MISC_IVSHMEM2_IRQ_H */
