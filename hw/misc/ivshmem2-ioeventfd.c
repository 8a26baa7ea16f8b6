/*
 * ivshmem2: register writes that KVM takes
 *
 * The guest can move the registers anywhere, also onto those of another
 * device, which then has ioeventfds of the same address and value.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "exec/address-spaces.h"
#include "hw/pci/pci_bus.h"
#include "ivshmem2-ioeventfd.h"
#include "ivshmem2-kvm.h"
#include "system/arch_init.h"
#include "system/kvm.h"

AddressSpace *ivshmem2_ports_space(PCIDevice *pdev)
{
    MemoryRegion *mr = pci_device_root_bus(pdev)->address_space_io;

    for (; mr; mr = mr->container) {
        if (mr == get_system_io() && qemu_arch_available(QEMU_ARCH_I386)) {
            return &address_space_io;
        }
        if (mr == get_system_memory() || mr->mapped_via_alias) {
            return &address_space_memory;
        }
    }
    return NULL;
}

static bool ivshmem2_ioeventfd_attach(Ivshmem2IoEventFds *fds,
                                      Ivshmem2IoEventFd *io)
{
    io->attached = ivshmem2_kvm_set_ioeventfd(io->fd, fds->ports,
                                              fds->address + io->offset,
                                              io->value, true);
    return io->attached;
}

static void ivshmem2_ioeventfd_detach(Ivshmem2IoEventFds *fds,
                                      Ivshmem2IoEventFd *io)
{
    if (io->attached) {
        ivshmem2_kvm_set_ioeventfd(io->fd, fds->ports,
                                   fds->address + io->offset, io->value,
                                   false);
        io->attached = false;
    }
}

/*
 * Where the guest has the registers.  They are in one piece, or not to be
 * seen completely, and then QEMU does without.
 */
static bool ivshmem2_ioeventfds_are_in(const Ivshmem2IoEventFds *fds,
                                       const MemoryRegionSection *section)
{
    return section->mr == fds->regs && !section->offset_within_region &&
           int128_eq(section->size, int128_make64(
               memory_region_size(fds->regs)));
}

/* Before anything else appears in its place */
static void ivshmem2_ioeventfds_region_del(MemoryListener *listener,
                                           MemoryRegionSection *section)
{
    Ivshmem2IoEventFds *fds = container_of(listener, Ivshmem2IoEventFds,
                                           listener);
    Ivshmem2IoEventFd *io;

    if (ivshmem2_ioeventfds_are_in(fds, section)) {
        QLIST_FOREACH(io, &fds->all, next) {
            ivshmem2_ioeventfd_detach(fds, io);
        }
        fds->visible = false;
    }
}

static void ivshmem2_ioeventfds_region_add(MemoryListener *listener,
                                           MemoryRegionSection *section)
{
    Ivshmem2IoEventFds *fds = container_of(listener, Ivshmem2IoEventFds,
                                           listener);

    if (ivshmem2_ioeventfds_are_in(fds, section)) {
        fds->address = section->offset_within_address_space;
        fds->visible = true;
    }
}

/* When what was in its place has disappeared */
static void ivshmem2_ioeventfds_commit(MemoryListener *listener)
{
    Ivshmem2IoEventFds *fds = container_of(listener, Ivshmem2IoEventFds,
                                           listener);
    Ivshmem2IoEventFd *io;

    if (fds->visible) {
        QLIST_FOREACH(io, &fds->all, next) {
            if (!io->attached) {
                ivshmem2_ioeventfd_attach(fds, io);
            }
        }
    }
}

void ivshmem2_ioeventfds_init(Ivshmem2IoEventFds *fds, MemoryRegion *regs,
                              AddressSpace *as)
{
    *fds = (Ivshmem2IoEventFds) {
        .regs = regs,
        .ports = as == &address_space_io,
        .listener = {
            .name = "ivshmem2",
            .region_add = ivshmem2_ioeventfds_region_add,
            .region_del = ivshmem2_ioeventfds_region_del,
            .commit = ivshmem2_ioeventfds_commit,
        },
    };
    if (kvm_enabled()) {
        memory_listener_register(&fds->listener, as);
    }
}

void ivshmem2_ioeventfds_exit(Ivshmem2IoEventFds *fds)
{
    /* Without effect if it is not registered */
    memory_listener_unregister(&fds->listener);
    fds->visible = false;
}

bool ivshmem2_ioeventfd_add(Ivshmem2IoEventFds *fds, Ivshmem2IoEventFd *io,
                            uint32_t offset, uint32_t value)
{
    if (!fds->visible) {
        return false;
    }
    io->offset = offset;
    io->value = value;
    if (!ivshmem2_ioeventfd_attach(fds, io)) {
        warn_report_once_cond(&fds->warned, "ivshmem2: KVM refuses an "
                              "ioeventfd, so QEMU helps out, which is slower");
        return false;
    }
    QLIST_INSERT_HEAD(&fds->all, io, next);
    return true;
}

void ivshmem2_ioeventfd_del(Ivshmem2IoEventFds *fds, Ivshmem2IoEventFd *io)
{
    ivshmem2_ioeventfd_detach(fds, io);
    QLIST_REMOVE(io, next);
}
