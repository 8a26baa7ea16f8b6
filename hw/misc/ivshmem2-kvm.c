/*
 * ivshmem2: what the device asks KVM without the help of QEMU's own code,
 * which ends QEMU when KVM refuses
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "ivshmem2-kvm.h"
#include "system/arch_init.h"
#include "system/kvm.h"

bool ivshmem2_kvm_set_ioeventfd(int fd, bool port, hwaddr address,
                                uint32_t value, bool assign)
{
    struct kvm_ioeventfd io = {
        .datamatch = cpu_to_le32(value),
        .addr = address,
        .len = 4,
        .fd = fd,
        .flags = KVM_IOEVENTFD_FLAG_DATAMATCH |
                 (port ? KVM_IOEVENTFD_FLAG_PIO : 0) |
                 (assign ? 0 : KVM_IOEVENTFD_FLAG_DEASSIGN),
    };

    return kvm_vm_ioctl(kvm_state, KVM_IOEVENTFD, &io) == 0;
}

/*
 * KVM knows the limit, which is not that of the guest's processor, but does
 * not tell it.  So put a page there for a moment, in a slot that QEMU does not
 * use: it takes the lowest ones first.
 */
static bool ivshmem2_kvm_try_memory(hwaddr address, size_t size)
{
    void *page = qemu_memalign(size, size);
    struct kvm_userspace_memory_region region = {
        .slot = kvm_vm_check_extension(kvm_state, KVM_CAP_NR_MEMSLOTS) - 1,
        .flags = KVM_MEM_READONLY,
        .guest_phys_addr = address,
        .memory_size = size,
        .userspace_addr = (uintptr_t)page,
    };
    int ret;

    memset(page, 0, size);
    ret = kvm_vm_ioctl(kvm_state, KVM_SET_USER_MEMORY_REGION, &region);
    if (ret == 0) {
        region.memory_size = 0;
        kvm_vm_ioctl(kvm_state, KVM_SET_USER_MEMORY_REGION, &region);
    }
    qemu_vfree(page);
    /* There is memory already. */
    return ret == 0 || ret == -EEXIST;
}

bool ivshmem2_kvm_accepts_memory(hwaddr last)
{
    static hwaddr accepted = 4 * GiB - 1;
    size_t size = qemu_real_host_page_size();

    /* Others refuse this for other reasons. */
    if (!kvm_enabled() ||
        !qemu_arch_available(QEMU_ARCH_I386 | QEMU_ARCH_ARM) ||
        last <= accepted) {
        return true;
    }
    if (!ivshmem2_kvm_try_memory(QEMU_ALIGN_DOWN(last, size), size)) {
        return false;
    }
    accepted = last;
    return true;
}
