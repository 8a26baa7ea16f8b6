/*
 * ivshmem2: what takes the place of ivshmem2-kvm.c without KVM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "ivshmem2-kvm.h"

bool ivshmem2_kvm_set_ioeventfd(int fd, bool port, hwaddr address,
                                uint32_t value, bool assign)
{
    return false;
}

bool ivshmem2_kvm_accepts_memory(hwaddr last)
{
    return true;
}
