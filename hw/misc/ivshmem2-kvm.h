/*
 * ivshmem2: what the device asks KVM without the help of QEMU's own code
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_KVM_H
#define HW_MISC_IVSHMEM2_KVM_H

/* Has KVM room for one more ioeventfd?  @fd: any eventfd */
bool ivshmem2_kvm_accepts_ioeventfd(int fd);

#endif /* HW_MISC_IVSHMEM2_KVM_H */
