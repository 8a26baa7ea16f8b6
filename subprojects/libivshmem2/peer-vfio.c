/*
 * libivshmem2: a peer in a Linux guest, through VFIO on the PCI device
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include "hw/misc/ivshmem2-regs.h"
#include "libivshmem2-core.h"
#include "libivshmem2-peer.h"
#include "libivshmem2-util.h"

/* Capabilities are dwords in 192 bytes, so a list cannot have more. */
#define MAX_CAPABILITIES    48

typedef struct VfioPeer {
    Ivshmem2Peer parent;
    char *address;
    int container;
    int group;
    int device;
    uint64_t config_offset;     /* of configuration space in @device */
    uint32_t *regs;             /* BAR 0, */
    size_t regs_size;
    bool has_ports;             /* or I/O ports, */
    off_t ports;                /* which are here in @device */
    uint64_t base_address;      /* of the memory, if it is no BAR */
    int request_fd;             /* readable: the kernel wants the device */
    bool removed;
    int *eventfds;
    uint32_t n_eventfds;
    Ivshmem2MemoryType wanted;  /* of memory */
} VfioPeer;

static char *sysfs(VfioPeer *p, const char *attribute)
{
    return g_build_filename("/sys/bus/pci/devices", p->address, attribute,
                            NULL);
}

/* Registers: aligned 32-bit accesses only */

static uint32_t reg_read(VfioPeer *p, unsigned reg)
{
    uint32_t value = 0;

    if (p->has_ports) {
        /* the kernel reads a port for this, which does not fail */
        return pread(p->device, &value, sizeof(value), p->ports + reg) ==
               sizeof(value) ? GUINT32_FROM_LE(value) : 0;
    }
    return GUINT32_FROM_LE(__atomic_load_n(&p->regs[reg / 4],
                                           __ATOMIC_SEQ_CST));
}

static bool reg_write(VfioPeer *p, unsigned reg, uint32_t value)
{
    /* what was written to memory before is visible before this write */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (p->has_ports) {
        value = GUINT32_TO_LE(value);
        return pwrite(p->device, &value, sizeof(value), p->ports + reg) ==
               sizeof(value);
    }
    __atomic_store_n(&p->regs[reg / 4], GUINT32_TO_LE(value),
                     __ATOMIC_RELEASE);
    return true;
}

static bool vfio_set_state(Ivshmem2Peer *peer, uint32_t state, GError **error)
{
    return reg_write((VfioPeer *)peer, IVSHMEM2_REG_STATE, state) ||
           ivshmem2_fail_errno(error, "cannot write the state");
}

static bool vfio_ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector,
                      GError **error)
{
    return reg_write((VfioPeer *)peer, IVSHMEM2_REG_DOORBELL,
                     target << IVSHMEM2_DOORBELL_TARGET_SHIFT | vector) ||
           ivshmem2_fail_errno(error, "cannot ring the doorbell");
}

/* Interrupts */

static bool set_irqs(VfioPeer *p, uint32_t index, uint32_t flags,
                     const int *fds, uint32_t n, GError **error)
{
    size_t size = sizeof(struct vfio_irq_set) + n * sizeof(int);
    g_autofree struct vfio_irq_set *set = g_malloc0(size);

    set->argsz = size;
    set->flags = flags;
    set->index = index;
    set->count = n;
    if (fds) {
        memcpy(set->data, fds, n * sizeof(int));
    }
    /* more than 0: the number of interrupts that would be possible */
    if (ioctl(p->device, VFIO_DEVICE_SET_IRQS, set) != 0) {
        return ivshmem2_fail_errno(error, "cannot set up %u interrupts", n);
    }
    return true;
}

static void vfio_taken(Ivshmem2Peer *peer, uint32_t vector)
{
    VfioPeer *p = (VfioPeer *)peer;

    if (!peer->info.msix) {
        /*
         * The kernel masks INTx on each interrupt, and loses pulses until
         * now.  That does no harm, because the caller looks at the memory
         * after this.
         */
        set_irqs(p, VFIO_PCI_INTX_IRQ_INDEX,
                 VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_UNMASK,
                 NULL, 1, NULL);
    }
}

static int vfio_service(Ivshmem2Peer *peer, GError **error)
{
    VfioPeer *p = (VfioPeer *)peer;

    p->removed = true;
    ivshmem2_fail(error, IVSHMEM2_ERROR_CLOSED, "%s is being removed",
                  p->address);
    return -1;
}

static bool vfio_connected(const Ivshmem2Peer *peer)
{
    const VfioPeer *p = (const VfioPeer *)peer;
    struct pollfd pfd = { .fd = p->request_fd, .events = POLLIN };

    return !p->removed && poll(&pfd, 1, 0) <= 0;
}

static bool vfio_read(const Ivshmem2Peer *peer, uint64_t offset, void *buf,
                      size_t length, GError **error)
{
    memcpy(buf, (const char *)peer->memory + offset, length);
    return true;
}

static bool make_eventfds(VfioPeer *p, uint32_t n, GError **error)
{
    p->eventfds = g_new(int, n);
    p->parent.eventfds = p->eventfds;
    while (p->n_eventfds < n) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

        if (fd < 0) {
            return ivshmem2_fail_errno(error, "cannot make an eventfd for "
                                       "each of %u vectors", n);
        }
        p->eventfds[p->n_eventfds++] = fd;
    }
    return true;
}

static bool enable_interrupts(VfioPeer *p, GError **error)
{
    const uint32_t flags = VFIO_IRQ_SET_DATA_EVENTFD |
                           VFIO_IRQ_SET_ACTION_TRIGGER;
    Ivshmem2PeerInfo *info = &p->parent.info;
    uint32_t index = info->msix ? VFIO_PCI_MSIX_IRQ_INDEX
                                : VFIO_PCI_INTX_IRQ_INDEX;
    uint32_t n = info->vectors;

    if (!make_eventfds(p, n, error)) {
        return false;
    }
    p->request_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->request_fd >= 0 &&
        set_irqs(p, VFIO_PCI_REQ_IRQ_INDEX, flags, &p->request_fd, 1, NULL)) {
        p->parent.service_fd = p->request_fd;
    }
    /* a processor has about 200 interrupts for all of its devices */
    while (n > 1 && !set_irqs(p, index, flags, p->eventfds, n, NULL)) {
        n /= 2;
    }
    info->enabled_vectors = n;
    return n > 1 || set_irqs(p, index, flags, p->eventfds, n, error);
}

/* Configuration space */

static bool config_access(VfioPeer *p, bool write, unsigned offset,
                          void *buf, size_t len, GError **error)
{
    off_t at = p->config_offset + offset;
    ssize_t ret = write ? pwrite(p->device, buf, len, at)
                        : pread(p->device, buf, len, at);

    if (ret != (ssize_t)len) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "cannot %s configuration space at 0x%x: %s",
                             write ? "write" : "read", offset,
                             ret < 0 ? g_strerror(errno) : "too short");
    }
    return true;
}

static bool config_read(VfioPeer *p, unsigned offset, uint32_t *value,
                        GError **error)
{
    if (!config_access(p, false, offset, value, sizeof(*value), error)) {
        return false;
    }
    *value = GUINT32_FROM_LE(*value);
    return true;
}

/* The dwords of the vendor capability */
static bool read_capability(VfioPeer *p, unsigned at, GError **error)
{
    Ivshmem2PeerInfo *info = &p->parent.info;
    uint32_t value[IVSHMEM2_CAP_SIZE / 4], base[2] = { 0, 0 };
    uint8_t control = 0;

    for (unsigned i = 0; i < G_N_ELEMENTS(value); i++) {
        if (!config_read(p, at + i * 4, &value[i], error)) {
            return false;
        }
    }
    if ((value[0] >> 16 & 0xff) < IVSHMEM2_CAP_SIZE) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the vendor capability has %u bytes instead of "
                             "%u", value[0] >> 16 & 0xff, IVSHMEM2_CAP_SIZE);
    }
    if ((value[0] >> 16 & 0xff) >= IVSHMEM2_CAP_SIZE_BASE &&
        (!config_read(p, at + IVSHMEM2_CAP_BASE_ADDRESS, &base[0], error) ||
         !config_read(p, at + IVSHMEM2_CAP_BASE_ADDRESS + 4, &base[1],
                      error))) {
        return false;
    }
    p->base_address = base[0] | (uint64_t)base[1] << 32;
    info->state_table_size = value[IVSHMEM2_CAP_STATE_TABLE_SIZE / 4];
    info->rw_size = value[IVSHMEM2_CAP_RW_SIZE / 4] |
                    (uint64_t)value[IVSHMEM2_CAP_RW_SIZE / 4 + 1] << 32;
    info->output_size = value[IVSHMEM2_CAP_OUTPUT_SIZE / 4] |
                    (uint64_t)value[IVSHMEM2_CAP_OUTPUT_SIZE / 4 + 1] << 32;
    /* the previous driver may have left one-shot mode on */
    return config_access(p, true, at + IVSHMEM2_CAP_PRIV_CONTROL, &control,
                         sizeof(control), error);
}

static bool read_config(VfioPeer *p, GError **error)
{
    uint32_t value, at;
    int left = MAX_CAPABILITIES;

    if (!config_read(p, PCI_CLASS_REVISION, &value, error)) {
        return false;
    }
    p->parent.info.protocol = value >> 8 & 0xffff;
    if (!config_read(p, PCI_CAPABILITY_LIST, &at, error)) {
        return false;
    }
    for (at &= 0xfc; at && left--; at = value >> 8 & 0xfc) {
        if (!config_read(p, at, &value, error)) {
            return false;
        }
        if ((value & 0xff) == PCI_CAP_ID_VNDR) {
            return read_capability(p, at, error);
        }
    }
    return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                         "the device has no vendor capability");
}

static bool enable_bars_and_master(VfioPeer *p, GError **error)
{
    uint16_t command;

    if (!config_access(p, false, PCI_COMMAND, &command, sizeof(command),
                       error)) {
        return false;
    }
    command |= GUINT16_TO_LE(PCI_COMMAND_IO | PCI_COMMAND_MEMORY |
                             PCI_COMMAND_MASTER);
    return config_access(p, true, PCI_COMMAND, &command, sizeof(command),
                         error);
}

/* Regions */

static bool region_info(VfioPeer *p, uint32_t index,
                        struct vfio_region_info *region, GError **error)
{
    memset(region, 0, sizeof(*region));
    region->argsz = sizeof(*region);
    region->index = index;
    if (ioctl(p->device, VFIO_DEVICE_GET_REGION_INFO, region) < 0) {
        return ivshmem2_fail_errno(error, "cannot ask for region %u", index);
    }
    return true;
}

/* Map @size bytes of a BAR, or all of it if @size is 0. */
static void *map_bar(VfioPeer *p, unsigned bar, uint64_t size, size_t *mapped,
                     GError **error)
{
    struct vfio_region_info region;
    void *map;

    if (!region_info(p, VFIO_PCI_BAR0_REGION_INDEX + bar, &region, error)) {
        return NULL;
    }
    if (!region.size || region.size < size ||
        !(region.flags & VFIO_REGION_INFO_FLAG_MMAP)) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                      "BAR %u of %llu bytes cannot be mapped (%llu needed); "
                      "the kernel's log may say why", bar,
                      (unsigned long long)region.size,
                      (unsigned long long)size);
        return NULL;
    }
    size = size ? size : region.size;
    if (!ivshmem2_check_mappable(size, 0, SIZE_MAX, error)) {
        return NULL;
    }
    *mapped = size;
    map = mmap(NULL, *mapped, PROT_READ | PROT_WRITE, MAP_SHARED, p->device,
               region.offset);
    if (map == MAP_FAILED) {
        ivshmem2_fail_errno(error, "cannot map BAR %u", bar);
        return NULL;
    }
    return map;
}

/* The registers are memory, or I/O ports, which the kernel accesses. */
static bool find_regs(VfioPeer *p, GError **error)
{
    struct vfio_region_info region;
    uint32_t bar;

    if (!config_read(p, PCI_BASE_ADDRESS_0 + 4 * IVSHMEM2_BAR_REGS, &bar,
                     error)) {
        return false;
    }
    if (!(bar & PCI_BASE_ADDRESS_SPACE_IO)) {
        p->regs = map_bar(p, IVSHMEM2_BAR_REGS, 0, &p->regs_size, error);
        return p->regs;
    }
    if (!region_info(p, VFIO_PCI_BAR0_REGION_INDEX + IVSHMEM2_BAR_REGS,
                     &region, error)) {
        return false;
    }
    if (region.size < IVSHMEM2_REGS_SIZE_IO) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "BAR %u has no I/O ports, the kernel's log may "
                             "say why", IVSHMEM2_BAR_REGS);
    }
    p->has_ports = true;
    p->ports = region.offset;
    return true;
}

/* The size of all sections, or 0 if it is impossible */
static uint64_t sections_size(const Ivshmem2PeerInfo *info)
{
    if (info->max_peers < IVSHMEM2_MIN_PEERS ||
        info->max_peers > IVSHMEM2_MAX_PEERS || info->id >= info->max_peers ||
        info->state_table_size < info->max_peers * sizeof(uint32_t) ||
        info->rw_size > IVSHMEM2_MAX_SIZE ||
        info->output_size > IVSHMEM2_MAX_SIZE / info->max_peers) {
        return 0;
    }
    return info->state_table_size + info->rw_size +
           info->output_size * info->max_peers;
}

static bool count_vectors(VfioPeer *p, GError **error)
{
    struct vfio_irq_info irq = {
        .argsz = sizeof(irq),
        .index = VFIO_PCI_MSIX_IRQ_INDEX,
    };

    if (ioctl(p->device, VFIO_DEVICE_GET_IRQ_INFO, &irq) < 0) {
        return ivshmem2_fail_errno(error, "cannot ask for interrupts");
    }
    p->parent.info.msix = irq.count > 0;
    if (p->parent.info.msix) {
        p->parent.info.vectors = irq.count;
        return true;
    }
    irq.index = VFIO_PCI_INTX_IRQ_INDEX;
    if (ioctl(p->device, VFIO_DEVICE_GET_IRQ_INFO, &irq) < 0 || !irq.count) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the device has neither MSI-X nor INTx");
    }
    p->parent.info.vectors = 1;
    return true;
}

/*
 * vfio-pci reads the Interrupt Status bit to find out whether an INTx
 * interrupt came from its device.  This device never sets that bit.
 */
static bool check_intx(VfioPeer *p, GError **error)
{
    g_autofree char *value = NULL;

    if (!p->parent.info.msix &&
        g_file_get_contents("/sys/module/vfio_pci/parameters/nointxmask",
                            &value, NULL, NULL) && value[0] != 'Y') {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "the device uses INTx, and vfio-pci would not "
                             "see its interrupts; load the module again with\n"
                             "  modprobe -r vfio-pci\n"
                             "  modprobe vfio-pci nointxmask=1");
    }
    return true;
}

/*
 * Mapping BAR 2 by VFIO claims it, and gives it a type: after that, the kernel
 * refuses other ways or gives them the same type.  So VFIO comes last.
 */
static bool map_memory(VfioPeer *p, GError **error)
{
    Ivshmem2Peer *peer = &p->parent;
    g_autofree char *folder = sysfs(p, NULL);
    uint64_t size = sections_size(&peer->info);

    if (!ivshmem2_check_mappable(size, 0, SIZE_MAX, error)) {
        return false;
    }
    peer->memory_size = size;
    peer->info.memory_type = p->wanted;
    if (p->base_address) {
        peer->memory = ivshmem2_map_fixed(p->base_address, size,
                                          &peer->info.memory_type,
                                          &peer->memory_note, error);
        return peer->memory;
    }
    peer->memory = ivshmem2_map_device(folder, size, &peer->info.memory_type,
                                       &peer->memory_note);
    if (peer->memory) {
        return true;
    }
    if (p->wanted != IVSHMEM2_MEMORY_BEST &&
        p->wanted != IVSHMEM2_MEMORY_UNCACHED) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "memory is %s",
                             peer->memory_note);
    }
    peer->info.memory_type = IVSHMEM2_MEMORY_UNCACHED;
    peer->memory = map_bar(p, IVSHMEM2_BAR_MEMORY, size, &peer->memory_size,
                           error);
    return peer->memory;
}

/* Opening the device */

static unsigned sysfs_number(VfioPeer *p, const char *attribute)
{
    g_autofree char *path = sysfs(p, attribute);
    g_autofree char *text = NULL;
    const char *end;
    uint64_t number;

    if (!g_file_get_contents(path, &text, NULL, NULL) ||
        !ivshmem2_scan_number(text, 0, &number, &end)) {
        return 0;
    }
    return number;
}

/* Must come before a message that says to unbind the device's driver. */
static bool check_identity(VfioPeer *p, GError **error)
{
    unsigned vendor = sysfs_number(p, "vendor");
    unsigned device = sysfs_number(p, "device");

    if (vendor != IVSHMEM2_PCI_VENDOR_ID ||
        device != IVSHMEM2_PCI_DEVICE_ID) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "this is a device %04x:%04x, not %04x:%04x",
                             vendor, device, IVSHMEM2_PCI_VENDOR_ID,
                             IVSHMEM2_PCI_DEVICE_ID);
    }
    return true;
}

static bool fail_not_bound(VfioPeer *p, GError **error)
{
    const char *a = p->address;

    return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
        "the device is not bound to vfio-pci; bind it with\n"
        "  modprobe vfio-pci\n"
        "  echo %s > /sys/bus/pci/devices/%s/driver/unbind"
        "  # if it has a driver\n"
        "  echo vfio-pci > /sys/bus/pci/devices/%s/driver_override\n"
        "  echo %s > /sys/bus/pci/drivers_probe", a, a, a, a);
}

/* What to do about a group that open() refuses with @cause */
static const char *group_hint(int cause)
{
    switch (cause) {
    case EBUSY:
        return ", another program uses the device";
    case EACCES:
        return ", its owner or root may use the device";
    case ENOENT:
        return ", does the virtual machine have an IOMMU?  vfio's mode "
               "without one does not suffice";
    default:
        return "";
    }
}

static bool open_group(VfioPeer *p, GError **error)
{
    g_autofree char *driver_path = sysfs(p, "driver");
    g_autofree char *driver = g_file_read_link(driver_path, NULL);
    g_autofree char *group_path = sysfs(p, "iommu_group");
    g_autofree char *group = g_file_read_link(group_path, NULL);
    g_autofree char *number = NULL;
    g_autofree char *path = NULL;

    /* first, because without an IOMMU vfio-pci refuses the device */
    if (!group) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "the device is in no IOMMU group; the virtual "
                             "machine needs an IOMMU that its kernel uses, "
                             "e.g. QEMU with\n"
                             "  -machine q35 -device intel-iommu,intremap=on\n"
                             "and intel_iommu=on on the kernel's command "
                             "line");
    }
    if (!driver || !g_str_has_suffix(driver, "/vfio-pci")) {
        return fail_not_bound(p, error);
    }
    number = g_path_get_basename(group);
    path = g_strdup_printf("/dev/vfio/%s", number);
    p->group = open(path, O_RDWR | O_CLOEXEC);
    if (p->group < 0) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "cannot open %s: %s%s",
                             path, g_strerror(errno), group_hint(errno));
    }
    return true;
}

static bool open_device(VfioPeer *p, GError **error)
{
    struct vfio_group_status status = { .argsz = sizeof(status) };

    if (!open_group(p, error)) {
        return false;
    }
    if (ioctl(p->group, VFIO_GROUP_GET_STATUS, &status) < 0 ||
        !(status.flags & VFIO_GROUP_FLAGS_VIABLE)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "not all devices of the IOMMU group are bound to "
                             "vfio-pci, see /sys/bus/pci/devices/%s/"
                             "iommu_group/devices", p->address);
    }
    p->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
    if (p->container < 0) {
        return ivshmem2_fail_errno(error, "cannot open /dev/vfio/vfio");
    }
    if (ioctl(p->group, VFIO_GROUP_SET_CONTAINER, &p->container) < 0 ||
        ioctl(p->container, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU) < 0) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "cannot use the IOMMU: %s; is the module "
                             "vfio_iommu_type1 loaded, and does the IOMMU "
                             "remap interrupts (intel-iommu,intremap=on)?",
                             g_strerror(errno));
    }
    p->device = ioctl(p->group, VFIO_GROUP_GET_DEVICE_FD, p->address);
    if (p->device < 0) {
        return ivshmem2_fail_errno(error, "cannot get the device from its "
                                   "IOMMU group");
    }
    return true;
}

static bool open_peer(VfioPeer *p, GError **error)
{
    Ivshmem2Peer *peer = &p->parent;
    struct vfio_region_info config;

    if (!check_identity(p, error) || !open_device(p, error) ||
        !region_info(p, VFIO_PCI_CONFIG_REGION_INDEX, &config, error)) {
        return false;
    }
    p->config_offset = config.offset;
    if (!read_config(p, error) || !enable_bars_and_master(p, error) ||
        !count_vectors(p, error) || !check_intx(p, error)) {
        return false;
    }
    if (!find_regs(p, error)) {
        return false;
    }
    /* the previous driver may have been killed */
    reg_write(p, IVSHMEM2_REG_INT_CONTROL, 0);
    reg_write(p, IVSHMEM2_REG_STATE, 0);
    peer->info.id = reg_read(p, IVSHMEM2_REG_ID);
    peer->info.max_peers = reg_read(p, IVSHMEM2_REG_MAX_PEERS);
    if (!sections_size(&peer->info)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "registers and capability contradict each other: "
                             "ID %u of %u, State Table of %u bytes",
                             peer->info.id, peer->info.max_peers,
                             peer->info.state_table_size);
    }
    if (!map_memory(p, error) || !enable_interrupts(p, error) ||
        !ivshmem2_peer_complete(peer, error)) {
        return false;
    }
    reg_write(p, IVSHMEM2_REG_INT_CONTROL, IVSHMEM2_INT_ENABLE);
    return true;
}

static void vfio_close(Ivshmem2Peer *peer)
{
    VfioPeer *p = (VfioPeer *)peer;

    if (p->regs || p->has_ports) {
        reg_write(p, IVSHMEM2_REG_INT_CONTROL, 0);
        vfio_set_state(peer, 0, NULL);
    }
    if (p->regs) {
        munmap(p->regs, p->regs_size);
    }
    /* closing the device disables its interrupts */
    ivshmem2_close(&p->device);
    ivshmem2_close(&p->group);
    ivshmem2_close(&p->container);
    ivshmem2_close(&p->request_fd);
    while (p->n_eventfds) {
        ivshmem2_close(&p->eventfds[--p->n_eventfds]);
    }
    g_free(p->eventfds);
    g_free(p->address);
}

static const Ivshmem2PeerOps vfio_ops = {
    .set_state = vfio_set_state,
    .ring = vfio_ring,
    .taken = vfio_taken,
    .service = vfio_service,
    .connected = vfio_connected,
    .read = vfio_read,
    .close = vfio_close,
};

/* @address as the kernel spells it ("0000:00:04.0"), or NULL if invalid */
static char *parse_address(const char *address)
{
    unsigned domain = 0, bus, slot, function;
    int end = 0;

    if ((sscanf(address, "%x:%x:%x.%x%n", &domain, &bus, &slot, &function,
                &end) != 4 || address[end])) {
        domain = 0;
        end = 0;
        if (sscanf(address, "%x:%x.%x%n", &bus, &slot, &function, &end) != 3 ||
            address[end]) {
            return NULL;
        }
    }
    if (bus > 0xff || slot > 0x1f || function > 7) {
        return NULL;
    }
    return g_strdup_printf("%04x:%02x:%02x.%x", domain, bus, slot, function);
}

Ivshmem2Peer *ivshmem2_peer_open_pci_mapped(const char *address,
                                            Ivshmem2MemoryType type,
                                            GError **error)
{
    g_autofree char *full = parse_address(address);
    g_autofree char *path = NULL;
    VfioPeer *p;

    if (!ivshmem2_memory_type_name(type)) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "there is no memory type %d", type);
        return NULL;
    }
    path = full ? g_strdup_printf("/sys/bus/pci/devices/%s", full) : NULL;
    if (!full || !g_file_test(path, G_FILE_TEST_EXISTS)) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "%s '%s', 'lspci -d %04x:%04x' lists the devices of "
                      "this kind",
                      full ? "there is no PCI device" : "invalid PCI address",
                      address, IVSHMEM2_PCI_VENDOR_ID, IVSHMEM2_PCI_DEVICE_ID);
        return NULL;
    }
    p = (VfioPeer *)ivshmem2_peer_new(sizeof(*p), &vfio_ops);
    p->address = g_steal_pointer(&full);
    p->container = -1;
    p->group = -1;
    p->device = -1;
    p->request_fd = -1;
    p->wanted = type;
    if (!open_peer(p, error)) {
        g_prefix_error(error, "%s: ", p->address);
        ivshmem2_peer_close(&p->parent);
        return NULL;
    }
    return &p->parent;
}

Ivshmem2Peer *ivshmem2_peer_open_pci(const char *address, GError **error)
{
    return ivshmem2_peer_open_pci_mapped(address, IVSHMEM2_MEMORY_BEST, error);
}
