/*
 * ivshmem2: the shared memory, as the guest sees it
 *
 * It is BAR 2, or at a fixed address.  QEMU would let it lie on top of RAM and
 * devices there, so this looks at what the machine has before.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "exec/address-spaces.h"
#include "hw/boards.h"
#include "hw/core/cpu.h"
#include "hw/mem/memory-device.h"
#include "hw/pci/pci_bus.h"
#include "hw/pci/pci_host.h"
#include "ivshmem2-kvm.h"
#include "ivshmem2-sections.h"
#include "qemu/log.h"
#include "qemu/units.h"
#include "system/kvm.h"

/* L6: past the last section */
static uint64_t ivshmem2_nothing_read(void *opaque, hwaddr addr, unsigned size)
{
    qemu_log_mask(LOG_GUEST_ERROR, "ivshmem2: %u-byte read at offset 0x%"
                  HWADDR_PRIx ", past the last section\n", size, addr);
    return 0;
}

static void ivshmem2_nothing_write(void *opaque, hwaddr addr, uint64_t value,
                                   unsigned size)
{
    qemu_log_mask(LOG_GUEST_ERROR, "ivshmem2: %u-byte write at offset 0x%"
                  HWADDR_PRIx ", past the last section\n", size, addr);
}

static const MemoryRegionOps ivshmem2_nothing_ops = {
    .read = ivshmem2_nothing_read,
    .write = ivshmem2_nothing_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = {
        .min_access_size = 1,
        .max_access_size = 8,
        .unaligned = true,
    },
    .impl = {
        .min_access_size = 1,
        .max_access_size = 8,
        .unaligned = true,
    },
};

static void ivshmem2_sections_add(Ivshmem2Sections *s, MemoryRegion *mr,
                                  const char *name, uint64_t offset,
                                  uint64_t size, uint8_t *memory,
                                  bool writable)
{
    if (size) {
        memory_region_init_ram_ptr(mr, memory_region_owner(&s->all), name,
                                   size, memory + offset);
        memory_region_set_readonly(mr, !writable);
        /* Not of this VM: reading it for a dump of the guest allocates it. */
        memory_region_set_nonvolatile(mr, true);
        memory_region_add_subregion(&s->all, offset, mr);
    }
}

void ivshmem2_sections_init(Ivshmem2Sections *s, Object *owner,
                            const Ivshmem2Welcome *info, uint8_t *memory,
                            uint64_t size)
{
    uint64_t outputs = ivshmem2_output_offset(info, 0);
    uint64_t own = ivshmem2_output_offset(info, info->id);
    uint64_t after = own + info->output_size;
    uint64_t end = ivshmem2_total_size(info);

    memory_region_init_io(&s->all, owner, &ivshmem2_nothing_ops, s,
                          "ivshmem2-memory", size);
    ivshmem2_sections_add(s, &s->state_table, "ivshmem2-state-table", 0,
                          info->state_table_size, memory, false);
    ivshmem2_sections_add(s, &s->rw, "ivshmem2-rw", ivshmem2_rw_offset(info),
                          info->rw_size, memory, true);
    ivshmem2_sections_add(s, &s->outputs_before, "ivshmem2-outputs-before",
                          outputs, own - outputs, memory, false);
    ivshmem2_sections_add(s, &s->output, "ivshmem2-output", own,
                          info->output_size, memory, true);
    ivshmem2_sections_add(s, &s->outputs_after, "ivshmem2-outputs-after",
                          after, end - after, memory, false);
}

/* Before QEMU 10.2, subregions keep their owner alive: the device. */
void ivshmem2_sections_exit(Ivshmem2Sections *s)
{
    MemoryRegion *sections[] = {
        &s->state_table, &s->rw, &s->outputs_before, &s->output,
        &s->outputs_after,
    };

    if (s->all.container == get_system_memory()) {
        memory_region_del_subregion(get_system_memory(), &s->all);
    }
    for (unsigned i = 0; i < ARRAY_SIZE(sections); i++) {
        if (sections[i]->container) {
            memory_region_del_subregion(&s->all, sections[i]);
        }
    }
}

/*
 * A fixed address
 */

/* Where the memory is to be, and why it cannot be there */
typedef struct Ivshmem2Place {
    uint64_t first;
    uint64_t last;
    Error **errp;
} Ivshmem2Place;

static bool ivshmem2_place_refuse(const Ivshmem2Place *place, const char *why)
{
    error_setg(place->errp, "the shared memory cannot be at base-address=0x%"
               PRIx64 ", up to 0x%" PRIx64 ": %s", place->first, place->last,
               why);
    error_append_hint(place->errp, "Choose an address outside of RAM, PCI "
                      "windows and other devices, which the monitor's 'info "
                      "mtree' lists.\n");
    return false;
}

static bool ivshmem2_place_avoid(const Ivshmem2Place *place, uint64_t start,
                                 uint64_t size, const char *what)
{
    g_autofree char *why = NULL;
    uint64_t last = start + MIN(size - 1, UINT64_MAX - start);

    if (!size || last < place->first || start > place->last) {
        return true;
    }
    why = g_strdup_printf("from 0x%" PRIx64 " to 0x%" PRIx64 " there is %s",
                          start, last, what);
    return ivshmem2_place_refuse(place, why);
}

static uint64_t ivshmem2_get_address(Object *host, const char *name)
{
    return object_property_find(host, name) ?
        object_property_get_uint(host, name, NULL) : 0;
}

/* On PCs, everything that is not RAM leads to PCI; the windows are these. */
static bool ivshmem2_place_avoid_holes(const Ivshmem2Place *place,
                                       Object *host)
{
    uint64_t low = ivshmem2_get_address(host, "below-4g-mem-size");
    uint64_t start = ivshmem2_get_address(host, "pci-hole64-start");
    uint64_t end = ivshmem2_get_address(host, "pci-hole64-end");

    return (!low || ivshmem2_place_avoid(place, low, 4 * GiB - low,
                                         "a window of the PCI bus, with "
                                         "chipset and firmware")) &&
           (end <= start || ivshmem2_place_avoid(place, start, end - start,
                                                 "a window of the PCI bus"));
}

static bool ivshmem2_is_part_of(const MemoryRegion *mr,
                                const MemoryRegion *whole)
{
    while (mr && mr != whole) {
        mr = mr->container;
    }
    return mr;
}

static int ivshmem2_place_avoid_bridge(Object *obj, void *opaque)
{
    const Ivshmem2Place *place = opaque;
    Object *host = object_dynamic_cast(obj, TYPE_PCI_HOST_BRIDGE);
    PCIBus *bus = host ? PCI_HOST_BRIDGE(host)->bus : NULL;
    MemoryRegion *mr;

    if (!bus) {
        return 0;
    }
    if (!ivshmem2_place_avoid_holes(place, host)) {
        return 1;
    }
    QTAILQ_FOREACH(mr, &get_system_memory()->subregions, subregions_link) {
        if (mr->enabled && mr->alias &&
            ivshmem2_is_part_of(bus->address_space_mem, mr->alias) &&
            !ivshmem2_place_avoid(place, mr->addr, memory_region_size(mr),
                                  "a window of the PCI bus")) {
            return 1;
        }
    }
    return 0;
}

static bool ivshmem2_place_avoid_mapped(const Ivshmem2Place *place)
{
    MemoryRegionSection found = memory_region_find(
        get_system_memory(), place->first, place->last - place->first + 1);
    g_autofree char *owner = NULL;
    g_autofree char *what = NULL;
    bool ok;

    if (!found.mr) {
        return true;
    }
    owner = memory_region_owner(found.mr) ?
        object_get_canonical_path(memory_region_owner(found.mr)) : NULL;
    what = g_strdup_printf("'%s'%s%s", memory_region_name(found.mr),
                           owner ? " of " : "", owner ?: "");
    ok = ivshmem2_place_avoid(place, found.offset_within_address_space,
                              int128_get64(found.size), what);
    memory_region_unref(found.mr);
    return ok;
}

/* Not every kind of processor says its limit. */
static bool ivshmem2_place_is_addressable(const Ivshmem2Place *place)
{
    Object *cpu = OBJECT(first_cpu);
    g_autofree char *why = NULL;
    unsigned bits = 0;

    if (cpu && object_property_find(cpu, "phys-bits")) {
        bits = object_property_get_uint(cpu, "phys-bits", NULL);
    }
    if (bits && bits < 64 && place->last >> bits) {
        why = g_strdup_printf("the processor's physical addresses have %u "
                              "bits", bits);
        return ivshmem2_place_refuse(place, why);
    }
    if (!ivshmem2_kvm_accepts_memory(place->last)) {
        return ivshmem2_place_refuse(place, "KVM takes no memory there, past "
                                     "the addresses of the host's processors");
    }
    return true;
}

bool ivshmem2_sections_place(Ivshmem2Sections *s, uint64_t address,
                             uint32_t page_size, Error **errp)
{
    ERRP_GUARD();
    DeviceMemoryState *hotplug = MACHINE(qdev_get_machine())->device_memory;
    uint64_t size = memory_region_size(&s->all);
    Ivshmem2Place place = {
        .first = address,
        .last = address + size - 1,
        .errp = errp,
    };

    if (address % page_size) {
        error_setg(errp, "base-address=0x%" PRIx64 " is no multiple of the "
                   "link's page size, 0x%x", address, page_size);
        return false;
    }
    if (address > UINT64_MAX - size) {
        error_setg(errp, "base-address=0x%" PRIx64 ": the shared memory of 0x%"
                   PRIx64 " bytes would not end below 2^64", address, size);
        return false;
    }
    if ((hotplug && !ivshmem2_place_avoid(&place, hotplug->base,
                                          memory_region_size(&hotplug->mr),
                                          "room for RAM to be plugged in")) ||
        !ivshmem2_place_avoid_mapped(&place) ||
        object_child_foreach_recursive(qdev_get_machine(),
                                       ivshmem2_place_avoid_bridge, &place) ||
        !ivshmem2_place_is_addressable(&place)) {
        return false;
    }
    memory_region_add_subregion(get_system_memory(), address, &s->all);
    return true;
}
