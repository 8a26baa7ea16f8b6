/*
 * ivshmem2: the IVSHMEM v2 PCI device (110a:4106)
 *
 * This is the PCI function: configuration space, registers, memory.
 * Properties are in ivshmem2-props.c.  Interrupts are received by
 * ivshmem2-irq.c, doorbells that KVM rings are in ivshmem2-doorbell.c, the
 * connection with the server is in ivshmem2-conn.c, the protocol in
 * subprojects/libivshmem2.
 *
 * Comments name the chapters of docs/specs/ivshmem2.rst and, as "R5", the
 * requirements of its conformance table.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qapi/error.h"
#include "exec/address-spaces.h"
#include "exec/translation-block.h"
#include "qemu/error-report.h"
#include "qemu/host-utils.h"
#include "qemu/log.h"
#include "qemu/madvise.h"
#include "qemu/module.h"
#include "qemu/range.h"
#include "qemu/uuid.h"
#include "hw/core/cpu.h"
#include "hw/misc/ivshmem2-regs.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "migration/blocker.h"
#include "system/runstate-action.h"
#include "system/system.h"
#include "system/tcg.h"
#include "ivshmem2-device.h"
#include "ivshmem2-kvm.h"
#include "trace.h"

/* The first capability: 4-byte aligned, so that it can be read as dwords */
#define IVSHMEM2_CAP_OFFSET     0x40
/* Advanced Features: a guest resets this function alone */
#define IVSHMEM2_AF_OFFSET      (IVSHMEM2_CAP_OFFSET + IVSHMEM2_CAP_SIZE_BASE)

/* How long a device waits for its server, unless the user says it */
#define IVSHMEM2_COLD_PLUG_MS   5000
#define IVSHMEM2_HOT_PLUG_MS    125     /* the guest stands still */

/*
 * Registers ("Register Region")
 */

void ivshmem2_publish_state(Ivshmem2State *s, uint8_t *memory)
{
    uint32_t *table = (uint32_t *)memory;

    qatomic_store_release(&table[s->info.id], cpu_to_le32(s->state));
}

static void ivshmem2_set_state(Ivshmem2State *s, uint32_t state)
{
    trace_ivshmem2_state_write(s->info.id, state);
    if (state == s->state) {
        return;
    }
    s->state = state;
    ivshmem2_publish_state(s, s->memory);
    ivshmem2_session_state_changed(s->conn.session, s->state);
    ivshmem2_conn_pump(&s->conn);
}

static void ivshmem2_ring(Ivshmem2State *s, uint32_t doorbell)
{
    uint32_t target = doorbell >> IVSHMEM2_DOORBELL_TARGET_SHIFT;
    uint32_t vector = doorbell & IVSHMEM2_DOORBELL_VECTOR;
    Ivshmem2Ring how;
    int fd;

    /* R7: what the CPU wrote before is visible before the interrupt. */
    smp_mb();
    how = ivshmem2_session_ring(s->conn.session, target, vector, &fd);
    trace_ivshmem2_doorbell_ring(s->info.id, target, vector, how);
    switch (how) {
    case IVSHMEM2_RING_NOBODY:
        qemu_log_mask(LOG_GUEST_ERROR, "ivshmem2: doorbell 0x%08x: the link "
                      "has no peer %u with vector %u\n", doorbell, target,
                      vector);
        return;
    case IVSHMEM2_RING_SIGNALLED:
        ivshmem2_doorbells_rung(&s->doorbells, doorbell, fd);
        break;
    case IVSHMEM2_RING_REQUESTED:
        ivshmem2_conn_pump(&s->conn);
        break;
    }
    stat64_add(&s->sent, 1);
}

/*
 * R2: aligned 32-bit accesses only.  None after the device is unplugged: one
 * processor may have waited for the big lock while another one did that.
 */
static bool ivshmem2_access_ok(Ivshmem2State *s, hwaddr addr, unsigned size,
                               const char *what)
{
    if (!s->conn.session) {
        return false;
    }
    if (size == 4 && addr % 4 == 0) {
        return true;
    }
    qemu_log_mask(LOG_GUEST_ERROR, "ivshmem2: %u-byte %s at offset 0x%"
                  HWADDR_PRIx " of the registers\n", size, what, addr);
    return false;
}

static uint64_t ivshmem2_regs_read(void *opaque, hwaddr addr, unsigned size)
{
    Ivshmem2State *s = opaque;
    uint32_t value = 0;

    if (!ivshmem2_access_ok(s, addr, size, "read")) {
        return 0;
    }
    switch (addr) {
    case IVSHMEM2_REG_ID:
        value = s->info.id;
        break;
    case IVSHMEM2_REG_MAX_PEERS:
        value = s->info.max_peers;
        break;
    case IVSHMEM2_REG_INT_CONTROL:
        value = ivshmem2_irq_get_control(&s->irq);
        break;
    case IVSHMEM2_REG_DOORBELL:
        break;
    case IVSHMEM2_REG_STATE:
        value = s->state;
        break;
    default:
        qemu_log_mask(LOG_GUEST_ERROR, "ivshmem2: read at offset 0x%"
                      HWADDR_PRIx ", where no register is\n", addr);
        break;
    }
    trace_ivshmem2_register_read(s->info.id, addr, value);
    return value;
}

static void ivshmem2_write_int_control(Ivshmem2State *s, uint32_t value)
{
    if (value & ~IVSHMEM2_INT_ENABLE) {
        qemu_log_mask(LOG_GUEST_ERROR, "ivshmem2: reserved bits in 0x%08x "
                      "written to Interrupt Control\n", value);
    }
    ivshmem2_irq_set_control(&s->irq, value);
}

static void ivshmem2_regs_write(void *opaque, hwaddr addr, uint64_t value,
                                unsigned size)
{
    Ivshmem2State *s = opaque;

    if (!ivshmem2_access_ok(s, addr, size, "write")) {
        return;
    }
    trace_ivshmem2_register_write(s->info.id, addr, value);
    switch (addr) {
    case IVSHMEM2_REG_INT_CONTROL:
        ivshmem2_write_int_control(s, value);
        break;
    case IVSHMEM2_REG_DOORBELL:
        ivshmem2_ring(s, value);
        break;
    case IVSHMEM2_REG_STATE:
        ivshmem2_set_state(s, value);
        break;
    default:
        qemu_log_mask(LOG_GUEST_ERROR, "ivshmem2: write of 0x%08x at offset "
                      "0x%" HWADDR_PRIx ", where nothing can be written\n",
                      (uint32_t)value, addr);
        break;
    }
}

/* All accesses are valid, so that none of them raises an abort. */
static const MemoryRegionOps ivshmem2_regs_ops = {
    .read = ivshmem2_regs_read,
    .write = ivshmem2_regs_write,
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

/*
 * Joining the link
 */

/*
 * The session was resumed after a lost connection.  A server that believed the
 * peer gone has zeroed its entry, and told the others; one that was only away
 * has not, and there is nothing to tell.
 */
static void ivshmem2_resumed(void *opaque)
{
    Ivshmem2State *s = opaque;
    uint32_t *table = (uint32_t *)s->memory;

    if (qatomic_read(&table[s->info.id]) != cpu_to_le32(s->state)) {
        ivshmem2_publish_state(s, s->memory);
        ivshmem2_session_state_changed(s->conn.session, s->state);
    }
}

static const Ivshmem2ConnOps ivshmem2_conn_ops = {
    .resumed = ivshmem2_resumed,
    .rejoin = ivshmem2_rejoin,
};

static void ivshmem2_init_hello(Ivshmem2State *s, Ivshmem2Hello *hello)
{
    const char *name = qemu_get_vm_name() ?: DEVICE(s)->id ?: "";

    memset(hello, 0, sizeof(*hello));
    hello->id = s->wanted_id;
    hello->vectors = IVSHMEM2_MAX_VECTORS;
    if (s->msix != ON_OFF_AUTO_OFF && msi_nonbroken) {
        hello->features |= IVSHMEM2_F_MSIX;
    }
    if (s->msix != ON_OFF_AUTO_ON) {
        hello->features |= IVSHMEM2_F_INTX;
    }
    if (qemu_uuid_set) {
        memcpy(hello->vm_uuid, qemu_uuid.data, sizeof(hello->vm_uuid));
    }
    ivshmem2_set_text(hello->name, sizeof(hello->name), name);
}

static bool ivshmem2_join(Ivshmem2State *s, Error **errp)
{
    g_autoptr(GError) err = NULL;
    bool hotplug = DEVICE(s)->hotplugged;
    Ivshmem2ConnJoin join = {
        .timeout_ms = s->handshake_timeout_ms ?:
            hotplug ? IVSHMEM2_HOT_PLUG_MS : IVSHMEM2_COLD_PLUG_MS,
        /* then the guest does not wait */
        .later_ms = s->handshake_timeout_ms ?: IVSHMEM2_COLD_PLUG_MS,
        .await_server = !hotplug || s->handshake_timeout_ms,
    };

    if (s->msix == ON_OFF_AUTO_ON && !msi_nonbroken) {
        error_setg(errp, "msix=on, but this machine has no MSI-X");
        return false;
    }
    ivshmem2_init_hello(s, &join.hello);
    if (!ivshmem2_conn_join(&s->conn, &join, DEVICE(s), &ivshmem2_conn_ops,
                            errp)) {
        return false;
    }
    s->memory = ivshmem2_session_map(s->conn.session, &err);
    if (!s->memory) {
        error_setg(errp, "%s", err->message);
        return false;
    }
    s->info = *ivshmem2_session_info(s->conn.session);
    /* The same for QEMU's core dumps */
    qemu_madvise(s->memory, ivshmem2_total_size(&s->info),
                 QEMU_MADV_DONTDUMP);
    return true;
}

/*
 * PCI function ("Configuration Space Registers")
 */

static bool ivshmem2_is_function_reset(uint32_t address, uint32_t value,
                                       int len)
{
    uint32_t control = IVSHMEM2_AF_OFFSET + PCI_AF_CTRL;

    return range_covers_byte(address, len, control) &&
           value >> (control - address) * 8 & PCI_AF_CTRL_FLR;
}

static bool ivshmem2_memory_fits(Ivshmem2State *s)
{
    pcibus_t address = pci_get_bar_addr(PCI_DEVICE(s), IVSHMEM2_BAR_MEMORY);

    return address == PCI_BAR_UNMAPPED || ivshmem2_kvm_accepts_memory(
        address + memory_region_size(&s->sections.all) - 1);
}

static void ivshmem2_write_config(PCIDevice *pdev, uint32_t address,
                                  uint32_t value, int len)
{
    Ivshmem2State *s = IVSHMEM2(pdev);

    ivshmem2_irq_flush(&s->irq);
    if (!s->has_base_address &&
        (range_covers_byte(address, len, PCI_COMMAND) ||
         ranges_overlap(address, len, PCI_BASE_ADDRESS_0 +
                        4 * IVSHMEM2_BAR_MEMORY, 8))) {
        /* Where there cannot be memory, there is nothing. */
        memory_region_transaction_begin();
        pci_default_write_config(pdev, address, value, len);
        memory_region_set_enabled(&s->sections.all,
                                  ivshmem2_memory_fits(s));
        memory_region_transaction_commit();
    } else {
        pci_default_write_config(pdev, address, value, len);
    }
    if (ivshmem2_is_function_reset(address, value, len)) {
        pci_device_reset(pdev);
    }
    ivshmem2_irq_update(&s->irq);
}

static int ivshmem2_vector_unmasked(PCIDevice *pdev, unsigned vector,
                                    MSIMessage msg)
{
    ivshmem2_irq_vector_unmasked(&IVSHMEM2(pdev)->irq, vector);
    return 0;
}

static void ivshmem2_vector_masked(PCIDevice *pdev, unsigned vector)
{
    ivshmem2_irq_vector_masked(&IVSHMEM2(pdev)->irq, vector);
}

static uint64_t ivshmem2_msix_table_read(void *opaque, hwaddr addr,
                                         unsigned size)
{
    Ivshmem2State *s = opaque;
    uint64_t value = 0;

    /* Otherwise unplugged while the processor waited for the big lock */
    if (msix_present(PCI_DEVICE(s))) {
        memory_region_dispatch_read(&PCI_DEVICE(s)->msix_table_mmio, addr,
                                    &value, size_memop(size) | MO_LE,
                                    MEMTXATTRS_UNSPECIFIED);
    }
    return value;
}

static void ivshmem2_msix_table_write(void *opaque, hwaddr addr,
                                      uint64_t value, unsigned size)
{
    Ivshmem2State *s = opaque;
    uint32_t vector = addr / PCI_MSIX_ENTRY_SIZE;
    bool message = addr % PCI_MSIX_ENTRY_SIZE < PCI_MSIX_ENTRY_VECTOR_CTRL;

    if (!msix_present(PCI_DEVICE(s))) {
        return;
    }
    if (message) {
        ivshmem2_irq_begin_message(&s->irq, vector);
    }
    memory_region_dispatch_write(&PCI_DEVICE(s)->msix_table_mmio, addr, value,
                                 size_memop(size) | MO_LE,
                                 MEMTXATTRS_UNSPECIFIED);
    if (message) {
        ivshmem2_irq_end_message(&s->irq, vector);
    }
}

/* The same accesses as to PCI core's table */
static const MemoryRegionOps ivshmem2_msix_table_ops = {
    .read = ivshmem2_msix_table_read,
    .write = ivshmem2_msix_table_write,
    .endianness = DEVICE_LITTLE_ENDIAN,
    .valid = {
        .min_access_size = 4,
        .max_access_size = 8,
    },
    .impl = {
        .min_access_size = 4,
        .max_access_size = 4,
    },
};

static bool ivshmem2_init_msix(Ivshmem2State *s, Error **errp)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    if (msix_init_exclusive_bar(pdev, s->info.vectors, IVSHMEM2_BAR_MSIX,
                                errp) < 0) {
        return false;
    }
    for (uint32_t i = 0; i < s->info.vectors; i++) {
        msix_vector_use(pdev, i);
    }
    msix_set_vector_notifiers(pdev, ivshmem2_vector_unmasked,
                              ivshmem2_vector_masked, NULL);
    memory_region_init_io(&s->msix_table, OBJECT(s), &ivshmem2_msix_table_ops,
                          s, "ivshmem2-msix-table",
                          s->info.vectors * PCI_MSIX_ENTRY_SIZE);
    /* It only passes accesses on, to a region with a guard of its own. */
    s->msix_table.disable_reentrancy_guard = true;
    memory_region_add_subregion_overlap(&pdev->msix_exclusive_bar, 0,
                                        &s->msix_table, 1);
    return true;
}

static bool ivshmem2_init_capabilities(Ivshmem2State *s, Error **errp)
{
    PCIDevice *pdev = PCI_DEVICE(s);
    uint8_t *cap = pdev->config + IVSHMEM2_CAP_OFFSET;
    uint8_t *af = pdev->config + IVSHMEM2_AF_OFFSET;
    uint8_t size = s->has_base_address ? IVSHMEM2_CAP_SIZE_BASE
                                       : IVSHMEM2_CAP_SIZE;

    /* PCI core would keep guest writes at offsets without a register. */
    memset(pdev->wmask + PCI_CONFIG_HEADER_SIZE, 0,
           pci_config_size(pdev) - PCI_CONFIG_HEADER_SIZE);
    if (pci_add_capability(pdev, PCI_CAP_ID_AF, IVSHMEM2_AF_OFFSET,
                           PCI_CAP_AF_SIZEOF, errp) < 0 ||
        pci_add_capability(pdev, PCI_CAP_ID_VNDR, IVSHMEM2_CAP_OFFSET, size,
                           errp) < 0) {
        return false;
    }
    af[PCI_AF_LENGTH] = PCI_CAP_AF_SIZEOF;
    af[PCI_AF_CAP] = PCI_AF_CAP_TP | PCI_AF_CAP_FLR;

    cap[IVSHMEM2_CAP_LENGTH] = size;
    pdev->wmask[IVSHMEM2_CAP_OFFSET + IVSHMEM2_CAP_PRIV_CONTROL] =
        IVSHMEM2_PRIV_ONE_SHOT;
    pci_set_long(cap + IVSHMEM2_CAP_STATE_TABLE_SIZE,
                 s->info.state_table_size);
    pci_set_quad(cap + IVSHMEM2_CAP_RW_SIZE, s->info.rw_size);
    pci_set_quad(cap + IVSHMEM2_CAP_OUTPUT_SIZE, s->info.output_size);
    if (s->has_base_address) {
        pci_set_quad(cap + IVSHMEM2_CAP_BASE_ADDRESS, s->base_address);
    }

    if (s->info.features != IVSHMEM2_F_MSIX) {
        pci_config_set_interrupt_pin(pdev->config, 1);
        return true;
    }
    return ivshmem2_init_msix(s, errp);
}

static void ivshmem2_init_config(Ivshmem2State *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    pci_config_set_class(pdev->config, IVSHMEM2_PCI_BASE_CLASS << 8 |
                         s->info.protocol >> 8);
    pci_config_set_prog_interface(pdev->config, s->info.protocol & 0xff);
    pci_set_word(pdev->wmask + PCI_COMMAND, PCI_COMMAND_MEMORY |
                 PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE |
                 (s->registers == IVSHMEM2_REGISTERS_IO ? PCI_COMMAND_IO : 0));
}

/* R1: a page of its own, so that it can be handed to user space */
static void ivshmem2_init_regs(Ivshmem2State *s)
{
    bool io = s->registers == IVSHMEM2_REGISTERS_IO;

    memory_region_init_io(&s->regs, OBJECT(s), &ivshmem2_regs_ops, s,
                          "ivshmem2-regs",
                          io ? IVSHMEM2_REGS_SIZE_IO : s->info.page_size);
    pci_register_bar(PCI_DEVICE(s), IVSHMEM2_BAR_REGS,
                     io ? PCI_BASE_ADDRESS_SPACE_IO
                        : PCI_BASE_ADDRESS_SPACE_MEMORY, &s->regs);
}

static bool ivshmem2_init_memory(Ivshmem2State *s, Error **errp)
{
    uint64_t size = ivshmem2_total_size(&s->info);

    if (s->has_base_address) {
        ivshmem2_sections_init(&s->sections, OBJECT(s), &s->info, s->memory,
                               size);
        return ivshmem2_sections_place(&s->sections, s->base_address,
                                       s->info.page_size, errp);
    }
    ivshmem2_sections_init(&s->sections, OBJECT(s), &s->info, s->memory,
                           pow2ceil(size));
    pci_register_bar(PCI_DEVICE(s), IVSHMEM2_BAR_MEMORY,
                     PCI_BASE_ADDRESS_SPACE_MEMORY |
                     PCI_BASE_ADDRESS_MEM_PREFETCH |
                     PCI_BASE_ADDRESS_MEM_TYPE_64, &s->sections.all);
    return true;
}

/*
 * The end of QEMU
 */

/* No guest runs, and none is going to. */
static void ivshmem2_goodbye(Ivshmem2State *s)
{
    ivshmem2_irq_reset(&s->irq);
    ivshmem2_set_state(s, 0);
    ivshmem2_doorbells_exit(&s->doorbells);
    ivshmem2_conn_goodbye(&s->conn);
}

static void ivshmem2_vm_changed(void *opaque, bool running, RunState state)
{
    if (!running && state == RUN_STATE_SHUTDOWN &&
        shutdown_action != SHUTDOWN_ACTION_PAUSE) {
        ivshmem2_goodbye(opaque);
    }
}

/* A machine that runs says goodbye when it has been stopped. */
static void ivshmem2_shutdown(Notifier *n, void *opaque)
{
    if (!runstate_is_running() && shutdown_action != SHUTDOWN_ACTION_PAUSE) {
        ivshmem2_goodbye(container_of(n, Ivshmem2State, shutdown));
    }
}

/* Undo ivshmem2_realize(), also when it failed: PCI core does not. */
static void ivshmem2_unrealize(Ivshmem2State *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    if (msix_present(pdev)) {
        memory_region_del_subregion(&pdev->msix_exclusive_bar, &s->msix_table);
        if (pdev->msix_vector_use_notifier) {
            msix_unset_vector_notifiers(pdev);
        }
        msix_uninit_exclusive_bar(pdev);
    }
    if (s->vm_change) {
        qemu_del_vm_change_state_handler(s->vm_change);
        notifier_remove(&s->shutdown);
        s->vm_change = NULL;
    }
    ivshmem2_sections_exit(&s->sections);
    ivshmem2_doorbells_exit(&s->doorbells);
    ivshmem2_irq_exit(&s->irq);
    ivshmem2_ioeventfds_exit(&s->ioeventfds);
    ivshmem2_conn_leave(&s->conn);
    migrate_del_blocker(&s->migration_blocker);
}

/*
 * TCG does not know of other peers: if only one processor can run at a time,
 * atomic instructions are plain loads and stores to it.  On x86, they are what
 * guests use as memory barriers.
 */
static void ivshmem2_check_tcg(void)
{
    if (tcg_enabled() && first_cpu && !(first_cpu->tcg_cflags & CF_PARALLEL)) {
        warn_report_once("ivshmem2: with one possible processor, TCG emulates "
                         "neither atomic instructions nor all memory barriers "
                         "towards other peers; use -smp 1,maxcpus=2 or more, "
                         "without thread=single and icount");
    }
}

static void ivshmem2_realize(PCIDevice *pdev, Error **errp)
{
    ERRP_GUARD();
    Ivshmem2State *s = IVSHMEM2(pdev);
    g_autofree char *path = object_get_canonical_path(OBJECT(pdev));
    AddressSpace *as = s->registers == IVSHMEM2_REGISTERS_IO
        ? ivshmem2_ports_space(pdev) : &address_space_memory;

    if (!as) {
        error_setg(errp, "registers=io, but the PCI bus of this machine has "
                   "no I/O space; use registers=mmio");
        return;
    }
    error_setg(&s->migration_blocker, "ivshmem2 device '%s' cannot be migrated "
               "or saved: unplug it, migrate, and plug it in with the same "
               "peer-id", pdev->qdev.id ?: path);
    if (migrate_add_blocker(&s->migration_blocker, errp) < 0) {
        return;
    }
    if (!ivshmem2_join(s, errp) ||
        !ivshmem2_irq_init(&s->irq, pdev, s->conn.session,
                           pdev->config + IVSHMEM2_CAP_OFFSET +
                           IVSHMEM2_CAP_PRIV_CONTROL, &s->ioeventfds, errp) ||
        !ivshmem2_init_capabilities(s, errp) ||
        !ivshmem2_init_memory(s, errp)) {
        ivshmem2_unrealize(s);
        return;
    }
    ivshmem2_check_tcg();
    ivshmem2_init_config(s);
    ivshmem2_init_regs(s);
    ivshmem2_ioeventfds_init(&s->ioeventfds, &s->regs, as);
    ivshmem2_doorbells_init(&s->doorbells, &s->ioeventfds, s->info.id,
                            s->irq.use_ioeventfd ? s->max_ioeventfds : 0);
    s->vm_change = qemu_add_vm_change_state_handler(ivshmem2_vm_changed, s);
    s->shutdown.notify = ivshmem2_shutdown;
    qemu_register_shutdown_notifier(&s->shutdown);
    trace_ivshmem2_device_realize(s->info.id, s->info.max_peers,
                                  s->info.vectors);
}

static void ivshmem2_exit(PCIDevice *pdev)
{
    Ivshmem2State *s = IVSHMEM2(pdev);

    ivshmem2_irq_reset(&s->irq);
    ivshmem2_set_state(s, 0);
    trace_ivshmem2_device_exit(s->info.id);
    ivshmem2_unrealize(s);
}

/* G6: no interrupts first, then the state */
static void ivshmem2_reset_hold(Object *obj, ResetType type)
{
    Ivshmem2State *s = IVSHMEM2(obj);
    uint8_t *config = PCI_DEVICE(s)->config;

    trace_ivshmem2_device_reset(s->info.id);
    config[IVSHMEM2_CAP_OFFSET + IVSHMEM2_CAP_PRIV_CONTROL] = 0;
    ivshmem2_irq_reset(&s->irq);
    ivshmem2_set_state(s, 0);
}

/*
 * Type
 */

static void ivshmem2_instance_finalize(Object *obj)
{
    Ivshmem2State *s = IVSHMEM2(obj);

    /* The memory regions are gone, so the guest cannot reach this any more. */
    if (s->memory) {
        munmap(s->memory, ivshmem2_total_size(&s->info));
    }
}

static void ivshmem2_class_init(ObjectClass *klass, void *data)
{
    DeviceClass *dc = DEVICE_CLASS(klass);
    PCIDeviceClass *k = PCI_DEVICE_CLASS(klass);
    ResettableClass *rc = RESETTABLE_CLASS(klass);

    k->realize = ivshmem2_realize;
    k->exit = ivshmem2_exit;
    k->config_write = ivshmem2_write_config;
    k->vendor_id = IVSHMEM2_PCI_VENDOR_ID;
    k->device_id = IVSHMEM2_PCI_DEVICE_ID;
    k->class_id = IVSHMEM2_PCI_BASE_CLASS << 8;
    rc->phases.hold = ivshmem2_reset_hold;
    dc->desc = "Inter-VM shared memory, version 2";
    set_bit(DEVICE_CATEGORY_MISC, dc->categories);
    ivshmem2_class_init_properties(klass);
}

static const TypeInfo ivshmem2_types[] = {
    {
        .name = TYPE_IVSHMEM2,
        .parent = TYPE_PCI_DEVICE,
        .instance_size = sizeof(Ivshmem2State),
        .instance_init = ivshmem2_instance_init,
        .instance_finalize = ivshmem2_instance_finalize,
        .class_init = ivshmem2_class_init,
        .interfaces = (InterfaceInfo[]) {
            { INTERFACE_CONVENTIONAL_PCI_DEVICE },
            { }
        },
    },
};

DEFINE_TYPES(ivshmem2_types)
