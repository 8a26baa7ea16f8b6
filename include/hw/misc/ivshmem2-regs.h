/*
 * ivshmem2 guest ABI: PCI identity, registers and the vendor capability
 *
 * Names and numbers of the IVSHMEM v2 device specification, see
 * docs/specs/ivshmem2.rst.  For the device, its tests and guest code.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef HW_MISC_IVSHMEM2_REGS_H
#define HW_MISC_IVSHMEM2_REGS_H

/* "Configuration Space Registers" */
#define IVSHMEM2_PCI_VENDOR_ID          0x110a
#define IVSHMEM2_PCI_DEVICE_ID          0x4106
#define IVSHMEM2_PCI_BASE_CLASS         0xff
#define IVSHMEM2_BAR_REGS               0
#define IVSHMEM2_BAR_MSIX               1
#define IVSHMEM2_BAR_MEMORY             2

/* "Vendor Specific Capability (ID 09h)", offsets from its start */
#define IVSHMEM2_CAP_LENGTH             0x02
#define IVSHMEM2_CAP_PRIV_CONTROL       0x03
#define   IVSHMEM2_PRIV_ONE_SHOT        0x01
#define IVSHMEM2_CAP_STATE_TABLE_SIZE   0x04
#define IVSHMEM2_CAP_RW_SIZE            0x08
#define IVSHMEM2_CAP_OUTPUT_SIZE        0x10
#define IVSHMEM2_CAP_SIZE               0x18
/* Without BAR 2 */
#define IVSHMEM2_CAP_BASE_ADDRESS       0x18
#define IVSHMEM2_CAP_SIZE_BASE          0x20

/* "Register Region", 32-bit registers in BAR 0: memory or I/O ports */
#define IVSHMEM2_REGS_SIZE_IO           0x20
#define IVSHMEM2_REG_ID                 0x00
#define IVSHMEM2_REG_MAX_PEERS          0x04
#define IVSHMEM2_REG_INT_CONTROL        0x08
#define   IVSHMEM2_INT_ENABLE           0x00000001
#define IVSHMEM2_REG_DOORBELL           0x0c
#define   IVSHMEM2_DOORBELL_VECTOR      0x0000ffff
#define   IVSHMEM2_DOORBELL_TARGET_SHIFT 16
#define IVSHMEM2_REG_STATE              0x10

/* "Protocols" */
#define IVSHMEM2_PROTOCOL_UNDEFINED     0x0000
#define IVSHMEM2_PROTOCOL_NET           0x0001
#define IVSHMEM2_PROTOCOL_VIRTIO        0x8000
#define IVSHMEM2_PROTOCOL_VIRTIO_BACK   0x4000

#endif /* HW_MISC_IVSHMEM2_REGS_H */
