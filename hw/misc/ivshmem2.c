/*
 * ivshmem2: the IVSHMEM v2 PCI device (110a:4106)
 *
 * The device specification is docs/specs/ivshmem2.rst; comments name its
 * chapters and, as "R5", the requirements of its conformance table.  What is
 * spoken with the server is in subprojects/libivshmem2, shared with the
 * server and with the programs that join a link from the host.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/epoll.h>
#include <sys/mman.h>
#include "qapi/error.h"
#include "qapi/visitor-impl.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/host-utils.h"
#include "qemu/lockable.h"
#include "qemu/log.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/thread.h"
#include "qemu/uuid.h"
#include "hw/misc/ivshmem2-regs.h"
#include "hw/pci/msi.h"
#include "hw/pci/msix.h"
#include "hw/pci/pci_device.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "migration/blocker.h"
#include "system/runstate.h"
#include "system/system.h"
#include "ivshmem2-kvm.h"
#include "ivshmem2-conn.h"
#include "trace.h"

#define TYPE_IVSHMEM2 "ivshmem2"
OBJECT_DECLARE_SIMPLE_TYPE(Ivshmem2State, IVSHMEM2)

/* The first capability: 4-byte aligned, so that it can be read as dwords */
#define IVSHMEM2_CAP_OFFSET     0x40

struct Ivshmem2State {
    PCIDevice parent_obj;

    /* properties */
    uint32_t wanted_id;
    uint32_t handshake_timeout_ms;
    OnOffAuto msix;
    bool use_ioeventfd;
    uint8_t max_ioeventfds;
    bool use_irqfd;
    uint8_t irqfd_after;

    Ivshmem2Conn conn;          /* its chr is a property, too */
    Ivshmem2Welcome info;       /* constant once realized */

    /* the shared memory, as mapped and as seen by the guest */
    uint8_t *memory;
    MemoryRegion memory_bar;
    MemoryRegion state_table;
    MemoryRegion rw;
    MemoryRegion outputs_before;
    MemoryRegion output;
    MemoryRegion outputs_after;

    /* registers */
    MemoryRegion regs;
    uint32_t int_control;
    uint32_t state;

    /*
     * Interrupts.  The relay is a thread that does without the big QEMU lock;
     * what it looks at changes with this lock held only.
     */
    QemuRecMutex lock;
    int epoll_fd;               /* of all own eventfds */
    bool receiving;             /* X3: the guest wants interrupts */
    bool polling;               /* the main loop looks at epoll_fd */
    unsigned long *masked;      /* vectors that the relay is to keep back */
    unsigned long *pending;     /* those that arrived while masked */
    Ivshmem2Kvm kvm;
    bool kernel_delivers;       /* KVM may, if the vector is not masked */
    uint8_t *in_a_row;          /* QEMU delivered to that vector */
    bool relaying;              /* the relay delivers what arrives */
    bool relay_started;
    bool relay_parked;
    bool relay_stop;
    QemuThread relay;
    QemuSemaphore relay_unpark;
    EventNotifier relay_kick;
    uint64_t sent;
    uint64_t received;
    uint64_t dropped;

    VMChangeStateEntry *vm_state_entry;
    Error *migration_blocker;
};

/*
 * Receiving interrupts ("Interrupt Control Register", "MSI-X Capability")
 */

static bool ivshmem2_has_msix(Ivshmem2State *s)
{
    return s->info.features == IVSHMEM2_F_MSIX;
}

static bool ivshmem2_one_shot(Ivshmem2State *s)
{
    return PCI_DEVICE(s)->config[IVSHMEM2_CAP_OFFSET +
                                 IVSHMEM2_CAP_PRIV_CONTROL] &
           IVSHMEM2_PRIV_ONE_SHOT;
}

/* Could the PCI function interrupt, if Interrupt Control says so? */
static bool ivshmem2_can_interrupt(Ivshmem2State *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);
    uint16_t command = pci_get_word(pdev->config + PCI_COMMAND);

    if (ivshmem2_has_msix(s)) {
        return msix_enabled(pdev) && (command & PCI_COMMAND_MASTER);
    }
    return !(command & PCI_COMMAND_INTX_DISABLE);
}

/* What arrived while nobody wanted it is gone for good (X3). */
static void ivshmem2_drop_arrived(Ivshmem2State *s)
{
    struct epoll_event events[64];
    uint32_t seen = 0;
    int n;

    /* One round: whoever goes on ringing does not keep us here. */
    do {
        n = epoll_wait(s->epoll_fd, events, ARRAY_SIZE(events), 0);
        for (int i = 0; i < n; i++) {
            uint32_t vector = events[i].data.u32;

            s->dropped += ivshmem2_eventfd_drain(
                ivshmem2_session_own_eventfd(s->conn.session, vector));
            trace_ivshmem2_interrupt_drop(s->info.id, vector);
        }
        seen += MAX(n, 0);
    } while (n == ARRAY_SIZE(events) && seen < s->info.vectors);
}

/*
 * Who delivers @vector: KVM on its own while it can, or when the relay says
 * so, else QEMU.
 */
static void ivshmem2_update_vector(Ivshmem2State *s, uint32_t vector)
{
    int fd = ivshmem2_session_own_eventfd(s->conn.session, vector);
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = vector };
    bool masked = msix_is_masked(PCI_DEVICE(s), vector);
    Ivshmem2Delivery before = ivshmem2_kvm_delivery(&s->kvm, vector);
    Ivshmem2Delivery by = IVSHMEM2_BY_QEMU;

    if (masked || !s->kernel_delivers) {
        s->in_a_row[vector] = 0;
    } else if (s->in_a_row[vector] >= s->irqfd_after) {
        by = IVSHMEM2_BY_KVM;
    }
    /* The relay heeds the mask, so it can stay: changes are slow. */
    if (s->relaying && (!masked || before == IVSHMEM2_BY_RELAY)) {
        by = IVSHMEM2_BY_RELAY;
    }
    /* Whoever it is looks at what is in the eventfd already. */
    if (by != before || !masked) {
        by = ivshmem2_kvm_set_delivery(&s->kvm, vector, by, fd);
    }
    if ((by == IVSHMEM2_BY_KVM) != (before == IVSHMEM2_BY_KVM)) {
        epoll_ctl(s->epoll_fd, by == IVSHMEM2_BY_KVM ?
                  EPOLL_CTL_DEL : EPOLL_CTL_ADD, fd, &event);
    }
    if (masked) {
        set_bit(vector, s->masked);
    } else {
        clear_bit(vector, s->masked);
    }
}

static void ivshmem2_update_vectors(Ivshmem2State *s)
{
    for (uint32_t i = 0; i < s->info.vectors; i++) {
        ivshmem2_update_vector(s, i);
    }
}

static void ivshmem2_eventfds_readable(void *opaque);
static void *ivshmem2_relay_thread(void *opaque);

static void ivshmem2_set_polling(Ivshmem2State *s, bool polling)
{
    if (polling != s->polling) {
        s->polling = polling;
        qemu_set_fd_handler(s->epoll_fd,
                            polling ? ivshmem2_eventfds_readable : NULL,
                            NULL, s);
    }
}

static void ivshmem2_set_receiving(Ivshmem2State *s, bool receiving)
{
    trace_ivshmem2_reception_update(s->info.id, receiving);
    s->receiving = receiving;
    bitmap_zero(s->pending, s->info.vectors);
    if (receiving) {
        ivshmem2_drop_arrived(s);
    }
}

static void ivshmem2_unpark_relay(Ivshmem2State *s)
{
    if (s->relay_parked) {
        s->relay_parked = false;
        qemu_sem_post(&s->relay_unpark);
    }
}

static void ivshmem2_start_relay(Ivshmem2State *s)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = UINT32_MAX };

    if (s->relay_started) {
        return;
    }
    s->relay_started = true;
    qemu_sem_init(&s->relay_unpark, 0);
    event_notifier_init(&s->relay_kick, false);
    epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD,
              event_notifier_get_fd(&s->relay_kick), &event);
    qemu_thread_create(&s->relay, "ivshmem2", ivshmem2_relay_thread, s,
                       QEMU_THREAD_JOINABLE);
}

static void ivshmem2_set_relaying(Ivshmem2State *s, bool relaying)
{
    s->relaying = relaying;
    ivshmem2_update_vectors(s);
    if (relaying && s->kvm.no_irqfds) {
        /* It cannot do without any of them. */
        s->relaying = false;
        ivshmem2_update_vectors(s);
    }
    if (s->relaying) {
        ivshmem2_start_relay(s);
    }
}

/* To be called whenever what it looks at may have changed. */
static void ivshmem2_update_reception(Ivshmem2State *s)
{
    QEMU_LOCK_GUARD(&s->lock);
    bool can_interrupt = ivshmem2_can_interrupt(s);
    bool receiving = can_interrupt && (s->int_control & IVSHMEM2_INT_ENABLE);
    bool running = runstate_is_running();
    /* It does not check bus mastering, and knows nothing of one-shot mode. */
    bool use_irqfd = running && can_interrupt && s->use_irqfd &&
                     ivshmem2_has_msix(s) && ivshmem2_kvm_delivers();
    bool kernel_delivers = use_irqfd && receiving && !ivshmem2_one_shot(s);
    bool relaying = use_irqfd && ivshmem2_one_shot(s) && !s->kvm.no_irqfds;

    if (s->kernel_delivers && !kernel_delivers) {
        s->kernel_delivers = false;
        ivshmem2_update_vectors(s);
    }
    if (relaying != s->relaying) {
        ivshmem2_set_relaying(s, relaying);
    }
    if (receiving != s->receiving) {
        ivshmem2_set_receiving(s, receiving);
    }
    if (kernel_delivers && !s->kernel_delivers) {
        s->kernel_delivers = true;
        ivshmem2_update_vectors(s);
    }
    /*
     * Guests toggle reception often, so polling ends only when it finds
     * something that nobody wants.  A storm of doorbells costs nothing while
     * reception is disabled, but for the first one.
     */
    if (receiving || !running || s->relaying) {
        ivshmem2_set_polling(s, running && !s->relaying);
    }
    if (receiving && s->relaying) {
        ivshmem2_unpark_relay(s);
    }
}

static void ivshmem2_deliver(Ivshmem2State *s, uint32_t vector)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    if (!s->receiving) {
        s->dropped++;
        trace_ivshmem2_interrupt_drop(s->info.id, vector);
        return;
    }
    if (ivshmem2_has_msix(s) && (s->relaying ? test_bit(vector, s->masked)
                                 : msix_is_masked(pdev, vector))) {
        /* Kept here and not in the PBA, which always reads 0 (X3). */
        set_bit(vector, s->pending);
        return;
    }
    s->received++;
    trace_ivshmem2_interrupt_deliver(s->info.id, vector);
    /* first: with the interrupt, the guest may look at it */
    if (ivshmem2_one_shot(s)) {
        s->int_control &= ~IVSHMEM2_INT_ENABLE;
        ivshmem2_set_receiving(s, false);
    }
    if (s->relaying) {
        ivshmem2_kvm_deliver(&s->kvm, vector);
    } else if (ivshmem2_has_msix(s)) {
        msix_notify(pdev, vector);
        if (s->in_a_row[vector] < s->irqfd_after) {
            s->in_a_row[vector]++;
            ivshmem2_update_vector(s, vector);
        }
    } else {
        /* A pulse: nobody acknowledges it (G10). */
        pci_irq_assert(pdev);
        pci_irq_deassert(pdev);
    }
}

static void ivshmem2_deliver_events(Ivshmem2State *s,
                                    const struct epoll_event *events, int n)
{
    for (int i = 0; i < n && s->receiving; i++) {
        uint32_t vector = events[i].data.u32;
        int fd = ivshmem2_session_own_eventfd(s->conn.session, vector);

        if (ivshmem2_eventfd_drain(fd)) {
            ivshmem2_deliver(s, vector);
        }
    }
}

/* Deliver some of what has arrived, and return how much that was. */
static unsigned ivshmem2_deliver_arrived(Ivshmem2State *s)
{
    struct epoll_event events[64];
    int n = epoll_wait(s->epoll_fd, events, ARRAY_SIZE(events), 0);

    ivshmem2_deliver_events(s, events, n);
    return MAX(n, 0);
}

static void ivshmem2_eventfds_readable(void *opaque)
{
    Ivshmem2State *s = opaque;

    QEMU_LOCK_GUARD(&s->lock);
    if (s->receiving) {
        ivshmem2_deliver_arrived(s);
    } else {
        ivshmem2_set_polling(s, false);
    }
}

/*
 * The relay: in one-shot mode somebody has to look at each interrupt, but it
 * need not be the main loop, which may be busy, and everything in it costs.
 */
static void *ivshmem2_relay_thread(void *opaque)
{
    Ivshmem2State *s = opaque;
    struct epoll_event events[64];
    bool stop = false;

    while (!stop) {
        int n = epoll_wait(s->epoll_fd, events, ARRAY_SIZE(events), -1);
        bool park;

        WITH_QEMU_LOCK_GUARD(&s->lock) {
            stop = s->relay_stop;
            park = !stop && !(s->relaying && s->receiving);
            if (!park) {
                ivshmem2_deliver_events(s, events, n);
            }
            s->relay_parked = park;
        }
        if (park) {
            qemu_sem_wait(&s->relay_unpark);
        }
    }
    return NULL;
}

static void ivshmem2_stop_relay(Ivshmem2State *s)
{
    if (!s->relay_started) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        s->relay_stop = true;
        event_notifier_set(&s->relay_kick);
        ivshmem2_unpark_relay(s);
    }
    qemu_thread_join(&s->relay);
    event_notifier_cleanup(&s->relay_kick);
    qemu_sem_destroy(&s->relay_unpark);
    s->relay_started = false;
    s->relay_stop = false;
}

/*
 * The guest is about to disable reception.  What was rung before must not
 * get lost only because the main loop has not come to it yet (G3).
 */
static void ivshmem2_flush_arrived(Ivshmem2State *s)
{
    uint32_t seen = 0;

    /* One round: whoever goes on ringing does not keep us here. */
    while (s->receiving && (s->polling || s->relaying) &&
           seen < s->info.vectors) {
        unsigned n = ivshmem2_deliver_arrived(s);

        if (!n) {
            break;
        }
        seen += n;
    }
}

static int ivshmem2_vector_unmasked(PCIDevice *pdev, unsigned vector,
                                    MSIMessage msg)
{
    Ivshmem2State *s = IVSHMEM2(pdev);

    QEMU_LOCK_GUARD(&s->lock);
    ivshmem2_update_vector(s, vector);
    if (s->relaying && s->kvm.no_irqfds) {
        ivshmem2_update_reception(s);
    }
    if (test_and_clear_bit(vector, s->pending)) {
        ivshmem2_deliver(s, vector);
    }
    return 0;
}

static void ivshmem2_vector_masked(PCIDevice *pdev, unsigned vector)
{
    Ivshmem2State *s = IVSHMEM2(pdev);

    QEMU_LOCK_GUARD(&s->lock);
    ivshmem2_update_vector(s, vector);
}

static void ivshmem2_vm_state_changed(void *opaque, bool running,
                                      RunState state)
{
    ivshmem2_update_reception(opaque);
}

/*
 * Registers ("Register Region")
 */

static void ivshmem2_publish_state(Ivshmem2State *s)
{
    uint32_t *table = (uint32_t *)s->memory;

    qatomic_store_release(&table[s->info.id], cpu_to_le32(s->state));
}

static void ivshmem2_set_state(Ivshmem2State *s, uint32_t state)
{
    trace_ivshmem2_state_write(s->info.id, state);
    if (state == s->state) {
        return;
    }
    s->state = state;
    ivshmem2_publish_state(s);
    ivshmem2_session_state_changed(s->conn.session);
    ivshmem2_conn_pump(&s->conn);
}

static void ivshmem2_ring(Ivshmem2State *s, uint32_t doorbell)
{
    uint32_t target = doorbell >> IVSHMEM2_DOORBELL_TARGET_SHIFT;
    uint32_t vector = doorbell & IVSHMEM2_DOORBELL_VECTOR;
    Ivshmem2Ring how;
    int fd;

    /* R7: what the CPU wrote before is to be seen before the interrupt */
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
        ivshmem2_kvm_rung(&s->kvm, doorbell, fd);
        break;
    case IVSHMEM2_RING_REQUESTED:
        ivshmem2_conn_pump(&s->conn);
        break;
    }
    s->sent++;
}

/* R2: aligned 32-bit accesses only */
static bool ivshmem2_access_ok(hwaddr addr, unsigned size, const char *what)
{
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

    if (!ivshmem2_access_ok(addr, size, "read")) {
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
        value = qatomic_read(&s->int_control);
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
    QEMU_LOCK_GUARD(&s->lock);
    if (!(value & IVSHMEM2_INT_ENABLE)) {
        ivshmem2_flush_arrived(s);
    }
    s->int_control = value & IVSHMEM2_INT_ENABLE;
    ivshmem2_update_reception(s);
}

static void ivshmem2_regs_write(void *opaque, hwaddr addr, uint64_t value,
                                unsigned size)
{
    Ivshmem2State *s = opaque;

    if (!ivshmem2_access_ok(addr, size, "write")) {
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

/* Every access comes here, so that none of them raises an abort. */
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

/* L6: what lies past the last section */
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

/*
 * Joining the link
 */

/* The session was resumed after a lost connection. */
static void ivshmem2_resumed(void *opaque)
{
    Ivshmem2State *s = opaque;

    /* The server zeroes the entry of a peer that it believes gone. */
    ivshmem2_publish_state(s);
    if (s->state) {
        ivshmem2_session_state_changed(s->conn.session);
    }
}

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
    Ivshmem2Hello hello;

    if (s->msix == ON_OFF_AUTO_ON && !msi_nonbroken) {
        error_setg(errp, "msix=on, but this machine has no MSI-X");
        return false;
    }
    ivshmem2_init_hello(s, &hello);
    if (!ivshmem2_conn_join(&s->conn, &hello, s->handshake_timeout_ms,
                            &DEVICE(s)->mem_reentrancy_guard,
                            ivshmem2_resumed, s, errp)) {
        return false;
    }
    s->memory = ivshmem2_session_map(s->conn.session, &err);
    if (!s->memory) {
        error_setg(errp, "%s", err->message);
        return false;
    }
    s->info = *ivshmem2_session_info(s->conn.session);
    return true;
}

/*
 * PCI function ("Configuration Space Registers")
 */

static void ivshmem2_write_config(PCIDevice *pdev, uint32_t address,
                                  uint32_t value, int len)
{
    Ivshmem2State *s = IVSHMEM2(pdev);

    QEMU_LOCK_GUARD(&s->lock);
    ivshmem2_flush_arrived(s);
    pci_default_write_config(pdev, address, value, len);
    ivshmem2_update_reception(s);
}

static bool ivshmem2_init_capabilities(Ivshmem2State *s, Error **errp)
{
    PCIDevice *pdev = PCI_DEVICE(s);
    uint8_t *cap = pdev->config + IVSHMEM2_CAP_OFFSET;

    /* PCI core would keep what the guest writes where there is nothing. */
    memset(pdev->wmask + PCI_CONFIG_HEADER_SIZE, 0,
           pci_config_size(pdev) - PCI_CONFIG_HEADER_SIZE);
    if (pci_add_capability(pdev, PCI_CAP_ID_VNDR, IVSHMEM2_CAP_OFFSET,
                           IVSHMEM2_CAP_SIZE, errp) < 0) {
        return false;
    }
    cap[IVSHMEM2_CAP_LENGTH] = IVSHMEM2_CAP_SIZE;
    pdev->wmask[IVSHMEM2_CAP_OFFSET + IVSHMEM2_CAP_PRIV_CONTROL] =
        IVSHMEM2_PRIV_ONE_SHOT;
    pci_set_long(cap + IVSHMEM2_CAP_STATE_TABLE_SIZE,
                 s->info.state_table_size);
    pci_set_quad(cap + IVSHMEM2_CAP_RW_SIZE, s->info.rw_size);
    pci_set_quad(cap + IVSHMEM2_CAP_OUTPUT_SIZE, s->info.output_size);

    if (!ivshmem2_has_msix(s)) {
        pci_config_set_interrupt_pin(pdev->config, 1);
        return true;
    }
    if (msix_init_exclusive_bar(pdev, s->info.vectors, IVSHMEM2_BAR_MSIX,
                                errp) < 0) {
        return false;
    }
    for (uint32_t i = 0; i < s->info.vectors; i++) {
        msix_vector_use(pdev, i);
    }
    msix_set_vector_notifiers(pdev, ivshmem2_vector_unmasked,
                              ivshmem2_vector_masked, NULL);
    return true;
}

static void ivshmem2_init_config(Ivshmem2State *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    pci_config_set_class(pdev->config, IVSHMEM2_PCI_BASE_CLASS << 8 |
                         s->info.protocol >> 8);
    pci_config_set_prog_interface(pdev->config, s->info.protocol & 0xff);
    pci_set_word(pdev->wmask + PCI_COMMAND, PCI_COMMAND_MEMORY |
                 PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
}

static void ivshmem2_init_section(Ivshmem2State *s, MemoryRegion *mr,
                                  const char *name, uint64_t offset,
                                  uint64_t size, bool writable)
{
    if (size) {
        memory_region_init_ram_ptr(mr, OBJECT(s), name, size,
                                   s->memory + offset);
        memory_region_set_readonly(mr, !writable);
        memory_region_add_subregion(&s->memory_bar, offset, mr);
    }
}

static void ivshmem2_init_bars(Ivshmem2State *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);
    const Ivshmem2Welcome *w = &s->info;
    uint64_t outputs = ivshmem2_output_offset(w, 0);
    uint64_t own = ivshmem2_output_offset(w, w->id);
    uint64_t after = own + w->output_size;
    uint64_t end = ivshmem2_total_size(w);

    /* R1: a page of its own, so that it can be handed to user space */
    memory_region_init_io(&s->regs, OBJECT(s), &ivshmem2_regs_ops, s,
                          "ivshmem2-regs", w->page_size);
    pci_register_bar(pdev, IVSHMEM2_BAR_REGS, PCI_BASE_ADDRESS_SPACE_MEMORY,
                     &s->regs);

    memory_region_init_io(&s->memory_bar, OBJECT(s), &ivshmem2_nothing_ops, s,
                          "ivshmem2-memory", pow2ceil(end));
    ivshmem2_init_section(s, &s->state_table, "ivshmem2-state-table",
                          0, w->state_table_size, false);
    ivshmem2_init_section(s, &s->rw, "ivshmem2-rw",
                          ivshmem2_rw_offset(w), w->rw_size, true);
    ivshmem2_init_section(s, &s->outputs_before, "ivshmem2-outputs-before",
                          outputs, own - outputs, false);
    ivshmem2_init_section(s, &s->output, "ivshmem2-output",
                          own, w->output_size, true);
    ivshmem2_init_section(s, &s->outputs_after, "ivshmem2-outputs-after",
                          after, end - after, false);
    pci_register_bar(pdev, IVSHMEM2_BAR_MEMORY,
                     PCI_BASE_ADDRESS_SPACE_MEMORY |
                     PCI_BASE_ADDRESS_MEM_PREFETCH |
                     PCI_BASE_ADDRESS_MEM_TYPE_64, &s->memory_bar);
}

/* Before QEMU 10.2 they would keep their owner alive, which is this device. */
static void ivshmem2_remove_sections(Ivshmem2State *s)
{
    MemoryRegion *sections[] = {
        &s->state_table, &s->rw, &s->outputs_before, &s->output,
        &s->outputs_after,
    };

    for (unsigned i = 0; i < ARRAY_SIZE(sections); i++) {
        if (sections[i]->container) {
            memory_region_del_subregion(&s->memory_bar, sections[i]);
        }
    }
}

static bool ivshmem2_init_interrupts(Ivshmem2State *s, Error **errp)
{
    s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (s->epoll_fd < 0) {
        error_setg_errno(errp, errno, "cannot create an epoll descriptor");
        return false;
    }
    for (uint32_t i = 0; i < s->info.vectors; i++) {
        int fd = ivshmem2_session_own_eventfd(s->conn.session, i);
        struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };

        if (epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
            error_setg_errno(errp, errno, "cannot poll the eventfd of "
                             "vector %u", i);
            return false;
        }
    }
    s->masked = bitmap_new(s->info.vectors);
    s->pending = bitmap_new(s->info.vectors);
    s->in_a_row = g_new0(uint8_t, s->info.vectors);
    ivshmem2_kvm_init(&s->kvm, PCI_DEVICE(s), &s->regs, s->info.vectors,
                      s->use_ioeventfd ? s->max_ioeventfds : 0);
    return true;
}

/* Undo ivshmem2_realize(), also half of it: PCI core does not. */
static void ivshmem2_unrealize(Ivshmem2State *s)
{
    PCIDevice *pdev = PCI_DEVICE(s);

    g_clear_pointer(&s->vm_state_entry, qemu_del_vm_change_state_handler);
    ivshmem2_stop_relay(s);
    ivshmem2_set_polling(s, false);
    s->receiving = false;
    if (s->kernel_delivers || s->relaying) {
        s->kernel_delivers = false;
        s->relaying = false;
        ivshmem2_update_vectors(s);
    }
    if (msix_present(pdev)) {
        if (pdev->msix_vector_use_notifier) {
            msix_unset_vector_notifiers(pdev);
        }
        msix_uninit_exclusive_bar(pdev);
    }
    ivshmem2_remove_sections(s);
    ivshmem2_kvm_exit(&s->kvm);
    ivshmem2_conn_leave(&s->conn);
    ivshmem2_close(&s->epoll_fd);
    g_clear_pointer(&s->masked, g_free);
    g_clear_pointer(&s->pending, g_free);
    g_clear_pointer(&s->in_a_row, g_free);
    migrate_del_blocker(&s->migration_blocker);
}

static void ivshmem2_realize(PCIDevice *pdev, Error **errp)
{
    ERRP_GUARD();
    Ivshmem2State *s = IVSHMEM2(pdev);

    error_setg(&s->migration_blocker, "ivshmem2 devices cannot be migrated: "
               "unplug the device, migrate, and plug it in again");
    if (migrate_add_blocker(&s->migration_blocker, errp) < 0) {
        return;
    }
    if (!ivshmem2_join(s, errp) || !ivshmem2_init_interrupts(s, errp) ||
        !ivshmem2_init_capabilities(s, errp)) {
        ivshmem2_unrealize(s);
        return;
    }
    ivshmem2_init_config(s);
    ivshmem2_init_bars(s);
    s->vm_state_entry =
        qemu_add_vm_change_state_handler(ivshmem2_vm_state_changed, s);
    trace_ivshmem2_device_realize(s->info.id, s->info.max_peers,
                                  s->info.vectors);
}

static void ivshmem2_exit(PCIDevice *pdev)
{
    Ivshmem2State *s = IVSHMEM2(pdev);

    WITH_QEMU_LOCK_GUARD(&s->lock) {
        s->int_control = 0;
        ivshmem2_update_reception(s);
    }
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
    WITH_QEMU_LOCK_GUARD(&s->lock) {
        s->int_control = 0;
        config[IVSHMEM2_CAP_OFFSET + IVSHMEM2_CAP_PRIV_CONTROL] = 0;
        ivshmem2_update_reception(s);
    }
    ivshmem2_set_state(s, 0);
}

/*
 * Properties
 */

static void ivshmem2_get_peer_id(Object *obj, Visitor *v, const char *name,
                                 void *opaque, Error **errp)
{
    Ivshmem2State *s = IVSHMEM2(obj);
    g_autofree char *any = g_strdup("any");

    if (s->info.max_peers) {
        visit_type_uint32(v, name, &s->info.id, errp);
    } else if (s->wanted_id == IVSHMEM2_ID_ANY) {
        visit_type_str(v, name, &any, errp);
    } else {
        visit_type_uint32(v, name, &s->wanted_id, errp);
    }
}

/* A string from the command line, perhaps a number from QMP */
static bool ivshmem2_visit_id(Visitor *v, const char *name, char **text,
                              uint32_t *id, Error **errp)
{
    g_autofree GenericAlternate *alt = NULL;
    bool ok;

    if (!v->start_alternate) {
        /* as for -global, where everything is a string */
        return visit_type_str(v, name, text, errp);
    }
    if (!visit_start_alternate(v, name, &alt, sizeof(*alt), errp)) {
        return false;
    }
    ok = alt->type == QTYPE_QNUM ? visit_type_uint32(v, name, id, errp)
                                 : visit_type_str(v, name, text, errp);
    visit_end_alternate(v, (void **)&alt);
    return ok;
}

static void ivshmem2_set_peer_id(Object *obj, Visitor *v, const char *name,
                                 void *opaque, Error **errp)
{
    Ivshmem2State *s = IVSHMEM2(obj);
    g_autofree char *text = NULL;
    uint32_t id;

    if (DEVICE(s)->realized) {
        error_setg(errp, "the ID of a peer cannot change");
        return;
    }
    if (!ivshmem2_visit_id(v, name, &text, &id, errp)) {
        return;
    }
    if (text && !strcmp(text, "any")) {
        s->wanted_id = IVSHMEM2_ID_ANY;
        return;
    }
    if ((text && qemu_strtoui(text, NULL, 0, &id) < 0) ||
        id >= IVSHMEM2_MAX_PEERS) {
        error_setg(errp, "peer-id is 'any' or a number from 0 to %u",
                   IVSHMEM2_MAX_PEERS - 1);
        return;
    }
    s->wanted_id = id;
}

static bool ivshmem2_get_connected(Object *obj, Error **errp)
{
    Ivshmem2State *s = IVSHMEM2(obj);

    return s->conn.session && ivshmem2_session_ready(s->conn.session);
}

static void ivshmem2_instance_init(Object *obj)
{
    Ivshmem2State *s = IVSHMEM2(obj);

    s->wanted_id = IVSHMEM2_ID_ANY;
    s->epoll_fd = -1;
    qemu_rec_mutex_init(&s->lock);
    object_property_add_uint32_ptr(obj, "max-peers", &s->info.max_peers,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint32_ptr(obj, "vectors", &s->info.vectors,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint16_ptr(obj, "protocol", &s->info.protocol,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint64_ptr(obj, "interrupts-sent", &s->sent,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint64_ptr(obj, "interrupts-received", &s->received,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint64_ptr(obj, "interrupts-dropped", &s->dropped,
                                   OBJ_PROP_FLAG_READ);
}

static void ivshmem2_instance_finalize(Object *obj)
{
    Ivshmem2State *s = IVSHMEM2(obj);

    qemu_rec_mutex_destroy(&s->lock);
    /* The memory regions are gone, so nobody looks at this any more. */
    if (s->memory) {
        munmap(s->memory, ivshmem2_total_size(&s->info));
    }
}

static const Property ivshmem2_properties[] = {
    DEFINE_PROP_CHR("chardev", Ivshmem2State, conn.chr),
    DEFINE_PROP_ON_OFF_AUTO("msix", Ivshmem2State, msix, ON_OFF_AUTO_AUTO),
    DEFINE_PROP_BOOL("ioeventfd", Ivshmem2State, use_ioeventfd, true),
    DEFINE_PROP_UINT8("max-ioeventfds", Ivshmem2State, max_ioeventfds, 32),
    DEFINE_PROP_BOOL("x-irqfd", Ivshmem2State, use_irqfd, true),
    /*
     * Giving a vector to KVM and taking it back can cost milliseconds.  So
     * many interrupts in a row tell that the guest does not use Interrupt
     * Control or the mask all the time.
     */
    DEFINE_PROP_UINT8("x-irqfd-after", Ivshmem2State, irqfd_after, 64),
    DEFINE_PROP_UINT32("handshake-timeout-ms", Ivshmem2State,
                       handshake_timeout_ms, 5000),
};

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
    device_class_set_props(dc, ivshmem2_properties);
    object_class_property_add(klass, "peer-id", "uint32|any",
                              ivshmem2_get_peer_id, ivshmem2_set_peer_id,
                              NULL, NULL);
    object_class_property_set_description(klass, "peer-id",
                                          "ID on the conn, or 'any'");
    object_class_property_add_bool(klass, "connected",
                                   ivshmem2_get_connected, NULL);
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
