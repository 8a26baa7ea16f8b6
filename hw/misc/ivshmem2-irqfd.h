/*
 * ivshmem2: interrupts that KVM delivers, and those that it must not
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_IRQFD_H
#define HW_MISC_IVSHMEM2_IRQFD_H

#include "ivshmem2-irq.h"

/* With the big QEMU lock and irq->lock, except ivshmem2_irq_is_x86() */

bool ivshmem2_irq_is_x86(MSIMessage msg);

/*
 * A guest can write any message.  KVM refuses some of them, with the whole
 * routing table, and then QEMU aborts.  KVM also takes others for interrupts
 * that are writes to memory.
 */
bool ivshmem2_irq_is_odd(MSIMessage msg);
void ivshmem2_irq_set_odd(Ivshmem2Irq *irq, Ivshmem2Vector *v, bool odd);

/*
 * When this returns, the interrupts of @vector are delivered as wanted, or
 * by QEMU if KVM refuses.  What is in the eventfd already is not lost.
 */
void ivshmem2_irq_set_delivery(Ivshmem2Irq *irq, uint32_t vector,
                               Ivshmem2Delivery delivery);
void ivshmem2_irq_detach(Ivshmem2Irq *irq, uint32_t vector);
void ivshmem2_irq_release_route(Ivshmem2Vector *v);

#endif /* HW_MISC_IVSHMEM2_IRQFD_H */
