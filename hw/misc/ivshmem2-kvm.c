/*
 * ivshmem2: what the device asks KVM without the help of QEMU's own code
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "ivshmem2-kvm.h"
#include "system/kvm.h"

/* An address where nothing is */
#define IVSHMEM2_NOWHERE    (UINT64_MAX & -0x1000)

bool ivshmem2_kvm_accepts_ioeventfd(int fd)
{
    struct kvm_ioeventfd io = {
        .addr = IVSHMEM2_NOWHERE,
        .len = 4,
        .fd = fd,
    };

    if (kvm_vm_ioctl(kvm_state, KVM_IOEVENTFD, &io) < 0) {
        return false;
    }
    io.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
    return kvm_vm_ioctl(kvm_state, KVM_IOEVENTFD, &io) == 0;
}
