/*
 * ivshmem2: the PCI device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_DEVICE_H
#define HW_MISC_IVSHMEM2_DEVICE_H

#include "hw/pci/pci_device.h"
#include "qemu/notify.h"
#include "qemu/stats64.h"
#include "system/runstate.h"
#include "ivshmem2-conn.h"
#include "ivshmem2-doorbell.h"
#include "ivshmem2-ioeventfd.h"
#include "ivshmem2-irq.h"
#include "ivshmem2-sections.h"

#define TYPE_IVSHMEM2 "ivshmem2"
OBJECT_DECLARE_SIMPLE_TYPE(Ivshmem2State, IVSHMEM2)

typedef enum Ivshmem2Registers {
    IVSHMEM2_REGISTERS_MMIO,
    IVSHMEM2_REGISTERS_IO,
} Ivshmem2Registers;

struct Ivshmem2State {
    PCIDevice parent_obj;

    /* properties */
    uint32_t wanted_id;
    uint32_t handshake_timeout_ms;
    OnOffAuto msix;
    uint8_t max_ioeventfds;
    Ivshmem2Registers registers;
    bool has_base_address;
    uint64_t base_address;

    Ivshmem2Conn conn;          /* its chr is a property, too */
    Ivshmem2Welcome info;       /* constant once realized */

    /* the shared memory, as mapped and as seen by the guest */
    uint8_t *memory;
    Ivshmem2Sections sections;

    /* registers */
    MemoryRegion regs;
    uint32_t state;

    Ivshmem2IoEventFds ioeventfds;
    Ivshmem2Doorbells doorbells;
    Stat64 sent;
    MemoryRegion msix_table;    /* in front of PCI core's */
    Ivshmem2Irq irq;            /* with properties */

    Error *migration_blocker;
    Notifier shutdown;
    VMChangeStateEntry *vm_change;
};

/* Write the state into the State Table at the start of @memory. */
void ivshmem2_publish_state(Ivshmem2State *s, uint8_t *memory);

/* For Ivshmem2ConnOps */
bool ivshmem2_rejoin(void *s, Ivshmem2Session *next, Error **errp);

/* Its properties, and where in a new device they are */
void ivshmem2_class_init_properties(ObjectClass *klass);
void ivshmem2_instance_init(Object *obj);

#endif /* HW_MISC_IVSHMEM2_DEVICE_H */
