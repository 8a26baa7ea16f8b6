/*
 * ivshmem2: what takes the place of ivshmem2-kvm.c without KVM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "ivshmem2-kvm.h"

void ivshmem2_kvm_init(Ivshmem2Kvm *k, PCIDevice *pdev, MemoryRegion *regs,
                       unsigned vectors, unsigned ioeventfds)
{
}

void ivshmem2_kvm_exit(Ivshmem2Kvm *k)
{
}

void ivshmem2_kvm_rung(Ivshmem2Kvm *k, uint32_t doorbell, int fd)
{
}

bool ivshmem2_kvm_delivers(void)
{
    return false;
}

Ivshmem2Delivery ivshmem2_kvm_delivery(const Ivshmem2Kvm *k, unsigned vector)
{
    return IVSHMEM2_BY_QEMU;
}

Ivshmem2Delivery ivshmem2_kvm_set_delivery(Ivshmem2Kvm *k, unsigned vector,
                                           Ivshmem2Delivery delivery, int fd)
{
    return IVSHMEM2_BY_QEMU;
}

void ivshmem2_kvm_deliver(Ivshmem2Kvm *k, unsigned vector)
{
}
