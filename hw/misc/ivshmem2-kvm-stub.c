/*
 * ivshmem2: what takes the place of ivshmem2-kvm.c without KVM
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "ivshmem2-kvm.h"

bool ivshmem2_kvm_accepts_ioeventfd(int fd)
{
    return false;
}
