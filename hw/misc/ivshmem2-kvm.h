/*
 * ivshmem2: what the device asks KVM without the help of QEMU's own code
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_KVM_H
#define HW_MISC_IVSHMEM2_KVM_H

#include "exec/hwaddr.h"

/*
 * Have KVM signal eventfd @fd when the guest writes @value, 32 bits in little
 * endian, to @address, which is a @port or in memory, or no longer.  Returns
 * whether KVM does so.
 */
bool ivshmem2_kvm_set_ioeventfd(int fd, bool port, hwaddr address,
                                uint32_t value, bool assign);

/*
 * Can there be memory up to @last, its last byte?  Guests can move memory to
 * addresses that KVM refuses, and users can ask for one; then QEMU ends.
 */
bool ivshmem2_kvm_accepts_memory(hwaddr last);

#endif /* HW_MISC_IVSHMEM2_KVM_H */
