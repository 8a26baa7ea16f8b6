/*
 * ivshmem2: receiving interrupts ("Interrupt Control Register", "MSI-X
 * Capability")
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/epoll.h>
#include "qapi/error.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "hw/misc/ivshmem2-regs.h"
#include "hw/pci/msix.h"
#include "ivshmem2-irq.h"
#include "system/arch_init.h"
#include "system/kvm.h"
#include "trace.h"

/* At most so many arrivals are looked at with one system call. */
#define IVSHMEM2_EVENTS         64

/* Dropped in a row by the relay, until it takes them for a storm */
#define IVSHMEM2_STORM_DROPS    256

/* Enabling writes that QEMU sees, until KVM may have them again */
#define IVSHMEM2_TRAPPED_WRITES 64

/* The start of 1 MiB of messages that x86 processors take for interrupts */
#define IVSHMEM2_X86_MSI_ADDRESS 0xfee00000

/*
 * The mode
 */

static bool ivshmem2_one_shot(const Ivshmem2Irq *irq)
{
    return *irq->priv_control & IVSHMEM2_PRIV_ONE_SHOT;
}

/* Could the PCI function interrupt, if Interrupt Control says so? */
static bool ivshmem2_can_interrupt(const Ivshmem2Irq *irq)
{
    uint16_t command = pci_get_word(irq->pdev->config + PCI_COMMAND);

    if (irq->has_msix) {
        return msix_enabled(irq->pdev) && (command & PCI_COMMAND_MASTER);
    }
    return !(command & PCI_COMMAND_INTX_DISABLE);
}

/* An irqfd heeds neither bus mastering nor one-shot mode. */
static Ivshmem2IrqMode ivshmem2_irq_wanted_mode(const Ivshmem2Irq *irq)
{
    bool enabled = irq->control & IVSHMEM2_INT_ENABLE;
    bool running = runstate_is_running();
    bool irqfds = irq->use_irqfd && irq->has_msix && running &&
                  kvm_msi_via_irqfd_enabled();

    if (!ivshmem2_can_interrupt(irq)) {
        return IVSHMEM2_IRQ_OFF;
    }
    if (irqfds && ivshmem2_one_shot(irq) && !irq->refused && !irq->n_odd) {
        return enabled ? IVSHMEM2_IRQ_RELAY : IVSHMEM2_IRQ_RELAY_OFF;
    }
    if (!enabled) {
        return IVSHMEM2_IRQ_OFF;
    }
    if (!running) {
        return IVSHMEM2_IRQ_HELD;
    }
    return irqfds && !ivshmem2_one_shot(irq) ? IVSHMEM2_IRQ_KVM
                                             : IVSHMEM2_IRQ_QEMU;
}

/* X3: the guest wants interrupts. */
static bool ivshmem2_mode_receives(Ivshmem2IrqMode mode)
{
    return mode != IVSHMEM2_IRQ_OFF && mode != IVSHMEM2_IRQ_RELAY_OFF;
}

static bool ivshmem2_mode_relays(Ivshmem2IrqMode mode)
{
    return mode == IVSHMEM2_IRQ_RELAY || mode == IVSHMEM2_IRQ_RELAY_OFF;
}

/*
 * Has the guest enabled reception without QEMU?  To be called before anything
 * that depends on Interrupt Control, and by the relay after it has drained an
 * eventfd: a doorbell that was rung after the enabling write finds it here.
 */
static void ivshmem2_irq_look(Ivshmem2Irq *irq)
{
    if (!irq->enabling_by_kvm ||
        !event_notifier_test_and_clear(&irq->enabling)) {
        return;
    }
    qatomic_set(&irq->control, IVSHMEM2_INT_ENABLE);
    if (irq->mode == IVSHMEM2_IRQ_RELAY_OFF) {
        irq->mode = IVSHMEM2_IRQ_RELAY;
        trace_ivshmem2_reception_update(irq->id, true);
    }
}

/*
 * KVM's part
 */

static void ivshmem2_irq_refused(Ivshmem2Irq *irq, const char *what)
{
    irq->refused = true;
    warn_report_once_cond(&irq->warned, "ivshmem2: KVM refuses an %s, so QEMU "
                          "helps out, which is slower", what);
}

static bool ivshmem2_irq_is_x86(MSIMessage msg)
{
    return qemu_arch_available(QEMU_ARCH_I386) &&
           msg.address >> 20 == IVSHMEM2_X86_MSI_ADDRESS >> 20;
}

/*
 * A guest can write any message.  KVM refuses some of them, with the whole
 * routing table, and then QEMU aborts.  KVM also takes others for interrupts
 * that are writes to memory.
 */
static bool ivshmem2_irq_is_odd(MSIMessage msg)
{
    return qemu_arch_available(QEMU_ARCH_I386) ? !ivshmem2_irq_is_x86(msg)
                                               : msg.address >> 32;
}

static void ivshmem2_irq_set_odd(Ivshmem2Irq *irq, Ivshmem2Vector *v, bool odd)
{
    irq->n_odd += odd - v->odd;
    v->odd = odd;
}

/*
 * Changing routes is slow, so only when the guest has moved the vector.
 * Returns 0 or an errno as a negative number; -EINVAL: an IOMMU of the guest
 * has no entry for the message.
 */
static int ivshmem2_irq_set_route(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];
    MSIMessage msg = msix_get_message(irq->pdev, vector);
    KVMRouteChange c;
    int ret;

    if (v->virq < 0) {
        c = kvm_irqchip_begin_route_changes(kvm_state);
        ret = kvm_irqchip_add_msi_route(&c, vector, irq->pdev);
        if (ret < 0) {
            return ret;
        }
        v->virq = ret;
        kvm_irqchip_commit_route_changes(&c);
    } else if (msg.address != v->msg.address || msg.data != v->msg.data) {
        ret = kvm_irqchip_update_msi_route(kvm_state, v->virq, msg, irq->pdev);
        if (ret < 0) {
            return ret;
        }
        kvm_irqchip_commit_routes(kvm_state);
    }
    v->msg = msg;
    return 0;
}

static void ivshmem2_irq_release_route(Ivshmem2Vector *v)
{
    if (v->virq >= 0) {
        kvm_irqchip_release_virq(kvm_state, v->virq);
        v->virq = -1;
    }
}

static bool ivshmem2_irq_attach(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];
    int ret = ivshmem2_irq_set_route(irq, vector);

    if (ret == -EINVAL) {
        ivshmem2_irq_set_odd(irq, v, true);
        return false;
    }
    if (ret < 0) {
        ivshmem2_irq_refused(irq, "MSI route");
        return false;
    }
    if (kvm_irqchip_add_irqfd_notifier_gsi(kvm_state, &v->notifier, NULL,
                                           v->virq) < 0) {
        ivshmem2_irq_refused(irq, "irqfd");
        return false;
    }
    trace_ivshmem2_irqfd_attach(irq->id, vector);
    return true;
}

static void ivshmem2_irq_forget_notifier(Ivshmem2Vector *v)
{
    /* The eventfd that KVM looks at is the session's. */
    if (v->delivery == IVSHMEM2_BY_RELAY) {
        event_notifier_cleanup(&v->notifier);
    }
    v->delivery = IVSHMEM2_BY_QEMU;
}

static void ivshmem2_irq_detach(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];

    if (v->delivery != IVSHMEM2_BY_QEMU) {
        trace_ivshmem2_irqfd_detach(irq->id, vector);
        kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state, &v->notifier,
                                              v->virq);
        ivshmem2_irq_forget_notifier(v);
    }
}

/*
 * When this returns, the interrupts of @vector are delivered as wanted, or
 * by QEMU if KVM refuses.  What is in the eventfd already is not lost.
 */
static void ivshmem2_irq_set_delivery(Ivshmem2Irq *irq, uint32_t vector,
                                      Ivshmem2Delivery delivery)
{
    Ivshmem2Vector *v = &irq->vectors[vector];

    if (delivery == v->delivery &&
        (delivery == IVSHMEM2_BY_QEMU ||
         ivshmem2_irq_set_route(irq, vector) == 0)) {
        return;
    }
    ivshmem2_irq_detach(irq, vector);
    if (delivery == IVSHMEM2_BY_KVM) {
        event_notifier_init_fd(&v->notifier, v->eventfd);
    } else if (delivery == IVSHMEM2_BY_RELAY &&
               event_notifier_init(&v->notifier, false) < 0) {
        irq->refused = true;
        return;
    }
    v->delivery = delivery;
    if (delivery != IVSHMEM2_BY_QEMU && !ivshmem2_irq_attach(irq, vector)) {
        ivshmem2_irq_forget_notifier(v);
    }
}

/*
 * Going to another mode
 */

/* Arrivals from before reception was turned on are gone for good (X3). */
static void ivshmem2_irq_drop_arrived(Ivshmem2Irq *irq)
{
    struct epoll_event events[IVSHMEM2_EVENTS];
    uint32_t seen = 0;
    int n;

    /* One round, so that a peer that goes on ringing does not keep us here */
    do {
        n = epoll_wait(irq->epoll_fd, events, ARRAY_SIZE(events), 0);
        for (int i = 0; i < n; i++) {
            uint32_t vector = events[i].data.u32;

            stat64_add(&irq->dropped,
                       ivshmem2_eventfd_drain(irq->vectors[vector].eventfd));
            trace_ivshmem2_interrupt_drop(irq->id, vector);
        }
        seen += MAX(n, 0);
    } while (n == ARRAY_SIZE(events) && seen < irq->n_vectors);
}

static void ivshmem2_irq_update_vector(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = vector };
    bool masked = msix_is_masked(irq->pdev, vector);
    Ivshmem2Delivery before = v->delivery;
    Ivshmem2Delivery delivery = IVSHMEM2_BY_QEMU;

    /* Odd until it is masked, so that the mode does not change to and fro */
    ivshmem2_irq_set_odd(irq, v, !masked && (v->odd || ivshmem2_irq_is_odd(
        msix_get_message(irq->pdev, vector))));
    if (masked || irq->mode != IVSHMEM2_IRQ_KVM) {
        v->in_a_row = 0;
    } else if (v->in_a_row >= irq->irqfd_after && !v->odd) {
        delivery = IVSHMEM2_BY_KVM;
    }
    /* The relay heeds the mask, so a vector can stay: changes are slow. */
    if (ivshmem2_mode_relays(irq->mode) && !v->odd &&
        (!masked || before == IVSHMEM2_BY_RELAY)) {
        delivery = IVSHMEM2_BY_RELAY;
    }
    if (delivery != before || !masked) {
        ivshmem2_irq_set_delivery(irq, vector, delivery);
    }
    if ((v->delivery == IVSHMEM2_BY_KVM) != (before == IVSHMEM2_BY_KVM)) {
        epoll_ctl(irq->epoll_fd, v->delivery == IVSHMEM2_BY_KVM ?
                  EPOLL_CTL_DEL : EPOLL_CTL_ADD, v->eventfd, &event);
    }
    if (masked) {
        set_bit(vector, irq->masked);
    } else {
        clear_bit(vector, irq->masked);
    }
}

static void ivshmem2_irq_eventfds_readable(void *opaque);

static void ivshmem2_irq_set_polling(Ivshmem2Irq *irq, bool polling)
{
    if (polling != irq->polling) {
        irq->polling = polling;
        qemu_set_fd_handler(irq->epoll_fd,
                            polling ? ivshmem2_irq_eventfds_readable : NULL,
                            NULL, irq);
    }
}

static void *ivshmem2_relay_thread(void *opaque);

static void ivshmem2_irq_start_relay(Ivshmem2Irq *irq)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = UINT32_MAX };

    if (irq->relay_started) {
        return;
    }
    if (event_notifier_init(&irq->relay_kick, false) < 0 ||
        epoll_ctl(irq->epoll_fd, EPOLL_CTL_ADD,
                  event_notifier_get_fd(&irq->relay_kick), &event) < 0) {
        event_notifier_cleanup(&irq->relay_kick);
        irq->refused = true;
        return;
    }
    irq->relay_started = true;
    qemu_thread_create(&irq->relay, "ivshmem2", ivshmem2_relay_thread, irq,
                       QEMU_THREAD_JOINABLE);
}

/* See to it that the eventfds are looked at where the mode says. */
static void ivshmem2_irq_watch(Ivshmem2Irq *irq)
{
    switch (irq->mode) {
    case IVSHMEM2_IRQ_HELD:
        ivshmem2_irq_set_polling(irq, false);
        break;
    case IVSHMEM2_IRQ_QEMU:
    case IVSHMEM2_IRQ_KVM:
        ivshmem2_irq_set_polling(irq, true);
        break;
    case IVSHMEM2_IRQ_RELAY:
        ivshmem2_irq_set_polling(irq, false);
        qemu_cond_signal(&irq->relay_wake);
        break;
    case IVSHMEM2_IRQ_OFF:
    case IVSHMEM2_IRQ_RELAY_OFF:
        /*
         * Guests toggle reception often, so polling ends only when it finds
         * an arrival that is not wanted.  A storm of doorbells costs nothing
         * while reception is off, but for the first one.
         */
        break;
    }
}

/* Does not need the big lock to turn reception off where QEMU delivers. */
static void ivshmem2_irq_go_to(Ivshmem2Irq *irq, Ivshmem2IrqMode mode)
{
    Ivshmem2IrqMode old = irq->mode;
    bool receives = ivshmem2_mode_receives(mode);

    if (mode == old) {
        return;
    }
    irq->mode = mode;
    if (receives != ivshmem2_mode_receives(old)) {
        trace_ivshmem2_reception_update(irq->id, receives);
        bitmap_zero(irq->pending, irq->n_vectors);
        /* before KVM sees them */
        if (receives) {
            bitmap_zero(irq->writes, irq->n_vectors);
            ivshmem2_irq_drop_arrived(irq);
        }
    }
    if (ivshmem2_mode_relays(mode)) {
        ivshmem2_irq_start_relay(irq);
    }
    if (ivshmem2_mode_relays(mode) != ivshmem2_mode_relays(old) ||
        mode == IVSHMEM2_IRQ_KVM || old == IVSHMEM2_IRQ_KVM) {
        for (uint32_t i = 0; i < irq->n_vectors; i++) {
            ivshmem2_irq_update_vector(irq, i);
        }
    }
    ivshmem2_irq_watch(irq);
}

/*
 * Enabling reception without QEMU
 *
 * In one-shot mode a guest writes Interrupt Control after each interrupt.  KVM
 * takes these writes by an ioeventfd, and the relay looks whether there was
 * one when a doorbell arrives (tests/system/one-shot.pml).
 */

/* For some time, QEMU has to see the enabling writes. */
static void ivshmem2_irq_trap_enabling(Ivshmem2Irq *irq)
{
    irq->trapping = true;
    irq->trapped = 0;
}

static void ivshmem2_irq_add_enabling(Ivshmem2Irq *irq)
{
    irq->enabling_io.fd = event_notifier_get_fd(&irq->enabling);
    if (!ivshmem2_ioeventfd_add(irq->fds, &irq->enabling_io,
                                IVSHMEM2_REG_INT_CONTROL,
                                IVSHMEM2_INT_ENABLE)) {
        ivshmem2_irq_trap_enabling(irq);
        return;
    }
    trace_ivshmem2_enabling_attach(irq->id);
    QEMU_LOCK_GUARD(&irq->lock);
    irq->enabling_by_kvm = true;
    irq->drops = 0;
    qemu_cond_signal(&irq->relay_wake);
}

static void ivshmem2_irq_del_enabling(Ivshmem2Irq *irq)
{
    ivshmem2_ioeventfd_del(irq->fds, &irq->enabling_io);
    trace_ivshmem2_enabling_detach(irq->id);
    QEMU_LOCK_GUARD(&irq->lock);
    ivshmem2_irq_look(irq);
    irq->enabling_by_kvm = false;
}

/* Does the relay look at enabling writes, if Interrupt Control says so? */
static bool ivshmem2_irq_wants_enabling(Ivshmem2Irq *irq)
{
    QEMU_LOCK_GUARD(&irq->lock);
    return irq->has_enabling && !irq->trapping &&
           ivshmem2_mode_relays(ivshmem2_irq_wanted_mode(irq));
}

void ivshmem2_irq_update(Ivshmem2Irq *irq)
{
    /* First: in other modes nobody looks. */
    if (irq->enabling_by_kvm && !ivshmem2_irq_wants_enabling(irq)) {
        ivshmem2_irq_del_enabling(irq);
    }
    WITH_QEMU_LOCK_GUARD(&irq->lock) {
        ivshmem2_irq_look(irq);
        ivshmem2_irq_go_to(irq, ivshmem2_irq_wanted_mode(irq));
        /* The relay needs every irqfd: if one cannot be, another mode. */
        ivshmem2_irq_go_to(irq, ivshmem2_irq_wanted_mode(irq));
    }
    if (!irq->enabling_by_kvm && ivshmem2_irq_wants_enabling(irq)) {
        ivshmem2_irq_add_enabling(irq);
    }
}

/*
 * A storm of doorbells must not keep the relay busy.  When QEMU sees the
 * enabling writes, the relay need not look at doorbells before one comes.
 */
static void ivshmem2_irq_storm(void *opaque)
{
    Ivshmem2Irq *irq = opaque;

    ivshmem2_irq_trap_enabling(irq);
    ivshmem2_irq_update(irq);
}

static void ivshmem2_irq_vm_state_changed(void *opaque, bool running,
                                          RunState state)
{
    ivshmem2_irq_update(opaque);
}

/*
 * Delivery
 */

/* The relay cannot ask PCI core, which needs the big lock. */
static bool ivshmem2_irq_is_masked(Ivshmem2Irq *irq, uint32_t vector)
{
    return irq->has_msix && (irq->mode == IVSHMEM2_IRQ_RELAY ?
                             test_bit(vector, irq->masked) :
                             msix_is_masked(irq->pdev, vector));
}

/*
 * Reception is on, and @vector was interrupted.  Returns whether the caller
 * has to notify the guest, which takes the big lock and must be done without
 * irq->lock.
 */
static bool ivshmem2_irq_accept(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2IrqMode mode = irq->mode;

    if (ivshmem2_irq_is_masked(irq, vector)) {
        /* Kept here and not in the PBA, which always reads 0 (X3). */
        set_bit(vector, irq->pending);
        return false;
    }
    stat64_add(&irq->received, 1);
    trace_ivshmem2_interrupt_deliver(irq->id, vector);
    /* First: the guest may look at it with the interrupt. */
    if (mode == IVSHMEM2_IRQ_RELAY || ivshmem2_one_shot(irq)) {
        qatomic_set(&irq->control, 0);
        ivshmem2_irq_go_to(irq, mode == IVSHMEM2_IRQ_RELAY ?
                           IVSHMEM2_IRQ_RELAY_OFF : IVSHMEM2_IRQ_OFF);
    }
    if (mode == IVSHMEM2_IRQ_RELAY) {
        event_notifier_set(&irq->vectors[vector].notifier);
        return false;
    }
    return true;
}

/* Take what has arrived at @vector's eventfd. */
static bool ivshmem2_irq_take(Ivshmem2Irq *irq, uint32_t vector)
{
    uint64_t arrived;

    if (irq->mode == IVSHMEM2_IRQ_OFF) {
        return false;
    }
    arrived = ivshmem2_eventfd_drain(irq->vectors[vector].eventfd);
    if (!arrived) {
        return false;
    }
    ivshmem2_irq_look(irq);
    if (ivshmem2_mode_receives(irq->mode)) {
        irq->drops = 0;
        return ivshmem2_irq_accept(irq, vector);
    }
    stat64_add(&irq->dropped, arrived);
    trace_ivshmem2_interrupt_drop(irq->id, vector);
    if (irq->enabling_by_kvm && ++irq->drops == IVSHMEM2_STORM_DROPS) {
        qemu_bh_schedule(irq->storm_bh);
    }
    return false;
}

/*
 * A message that is not for an interrupt controller may write anywhere: to a
 * register that unplugs this device, or to this device's MSI-X table, whose
 * next entry then does the same.
 */
static void ivshmem2_irq_send_writes(void *opaque)
{
    Ivshmem2Irq *irq = opaque;
    PCIDevice *pdev = irq->pdev;

    object_ref(OBJECT(pdev));
    for (uint32_t i = 0; irq->vectors && i < irq->n_vectors; i++) {
        if (!test_and_clear_bit(i, irq->writes)) {
            continue;
        }
        if (!msix_is_masked(pdev, i)) {
            msix_notify(pdev, i);
        } else {
            /* Meanwhile it was masked, or reception was turned off. */
            QEMU_LOCK_GUARD(&irq->lock);
            if (ivshmem2_mode_receives(irq->mode)) {
                set_bit(i, irq->pending);
            }
        }
    }
    object_unref(OBJECT(pdev));
}

static void ivshmem2_irq_notify(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];

    if (!irq->has_msix) {
        /* A pulse: no guest acknowledges it (G10). */
        pci_irq_assert(irq->pdev);
        pci_irq_deassert(irq->pdev);
        return;
    }
    if (!ivshmem2_irq_is_x86(msix_get_message(irq->pdev, vector))) {
        set_bit(vector, irq->writes);
        qemu_bh_schedule(irq->send_writes);
    } else {
        msix_notify(irq->pdev, vector);
    }
    QEMU_LOCK_GUARD(&irq->lock);
    if (irq->mode == IVSHMEM2_IRQ_KVM && v->in_a_row < irq->irqfd_after) {
        v->in_a_row++;
        ivshmem2_irq_update_vector(irq, vector);
    }
}

/* Deliver some of what has arrived, and return how much that was. */
static unsigned ivshmem2_irq_deliver_arrived(Ivshmem2Irq *irq)
{
    struct epoll_event events[IVSHMEM2_EVENTS];
    int n = epoll_wait(irq->epoll_fd, events, ARRAY_SIZE(events), 0);

    for (int i = 0; i < n; i++) {
        uint32_t vector = events[i].data.u32;
        bool notify = false;

        WITH_QEMU_LOCK_GUARD(&irq->lock) {
            notify = ivshmem2_irq_take(irq, vector);
        }
        if (notify) {
            ivshmem2_irq_notify(irq, vector);
        }
    }
    return MAX(n, 0);
}

static void ivshmem2_irq_eventfds_readable(void *opaque)
{
    Ivshmem2Irq *irq = opaque;
    bool receives = false;

    WITH_QEMU_LOCK_GUARD(&irq->lock) {
        receives = ivshmem2_mode_receives(irq->mode);
    }
    if (receives) {
        ivshmem2_irq_deliver_arrived(irq);
    } else {
        ivshmem2_irq_set_polling(irq, false);
    }
}

/* Is there anything to deliver now?  What arrives in HELD mode has to wait. */
static bool ivshmem2_irq_delivers(Ivshmem2Irq *irq)
{
    QEMU_LOCK_GUARD(&irq->lock);
    ivshmem2_irq_look(irq);
    return ivshmem2_mode_receives(irq->mode) &&
           irq->mode != IVSHMEM2_IRQ_HELD;
}

void ivshmem2_irq_flush(Ivshmem2Irq *irq)
{
    uint32_t seen = 0;

    /* One round, so that a peer that goes on ringing does not keep us here */
    while (seen < irq->n_vectors && ivshmem2_irq_delivers(irq)) {
        unsigned n = ivshmem2_irq_deliver_arrived(irq);

        if (!n) {
            break;
        }
        seen += n;
    }
}

/* The mask or the message of @vector has changed. */
static void ivshmem2_irq_vector_changed(Ivshmem2Irq *irq, uint32_t vector)
{
    bool other_mode = false;
    bool notify = false;

    WITH_QEMU_LOCK_GUARD(&irq->lock) {
        uint32_t n_odd = irq->n_odd;

        ivshmem2_irq_update_vector(irq, vector);
        other_mode = irq->n_odd != n_odd ||
                     (ivshmem2_mode_relays(irq->mode) && irq->refused);
    }
    if (other_mode) {
        ivshmem2_irq_update(irq);
    }
    WITH_QEMU_LOCK_GUARD(&irq->lock) {
        if (!test_bit(vector, irq->masked) &&
            test_and_clear_bit(vector, irq->pending)) {
            notify = ivshmem2_irq_accept(irq, vector);
        }
    }
    if (notify) {
        ivshmem2_irq_notify(irq, vector);
    }
}

void ivshmem2_irq_vector_unmasked(Ivshmem2Irq *irq, uint32_t vector)
{
    ivshmem2_irq_vector_changed(irq, vector);
}

void ivshmem2_irq_vector_masked(Ivshmem2Irq *irq, uint32_t vector)
{
    ivshmem2_irq_vector_changed(irq, vector);
}

void ivshmem2_irq_begin_message(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];

    QEMU_LOCK_GUARD(&irq->lock);
    ivshmem2_irq_detach(irq, vector);
    ivshmem2_irq_release_route(v);
    ivshmem2_irq_set_odd(irq, v, false);
    /* until ivshmem2_irq_end_message() */
    set_bit(vector, irq->masked);
}

void ivshmem2_irq_end_message(Ivshmem2Irq *irq, uint32_t vector)
{
    ivshmem2_irq_vector_changed(irq, vector);
}

/*
 * The relay
 */

/* Otherwise it waits until QEMU has seen the enabling write. */
static bool ivshmem2_relay_looks(const Ivshmem2Irq *irq)
{
    return irq->mode == IVSHMEM2_IRQ_RELAY ||
           (irq->mode == IVSHMEM2_IRQ_RELAY_OFF && irq->enabling_by_kvm);
}

static void *ivshmem2_relay_thread(void *opaque)
{
    Ivshmem2Irq *irq = opaque;
    struct epoll_event events[IVSHMEM2_EVENTS];
    bool stop = false;

    while (!stop) {
        int n = epoll_wait(irq->epoll_fd, events, ARRAY_SIZE(events), -1);

        QEMU_LOCK_GUARD(&irq->lock);
        for (int i = 0; i < n && ivshmem2_relay_looks(irq) &&
             !irq->relay_stop; i++) {
            ivshmem2_irq_take(irq, events[i].data.u32);
        }
        while (!ivshmem2_relay_looks(irq) && !irq->relay_stop) {
            qemu_cond_wait(&irq->relay_wake, &irq->lock);
        }
        stop = irq->relay_stop;
    }
    return NULL;
}

static void ivshmem2_irq_stop_relay(Ivshmem2Irq *irq)
{
    if (!irq->relay_started) {
        return;
    }
    WITH_QEMU_LOCK_GUARD(&irq->lock) {
        irq->relay_stop = true;
        event_notifier_set(&irq->relay_kick);
        qemu_cond_signal(&irq->relay_wake);
    }
    qemu_thread_join(&irq->relay);
    event_notifier_cleanup(&irq->relay_kick);
    irq->relay_started = false;
    irq->relay_stop = false;
}

/*
 * Interrupt Control register
 */

uint32_t ivshmem2_irq_get_control(Ivshmem2Irq *irq)
{
    QEMU_LOCK_GUARD(&irq->lock);
    ivshmem2_irq_look(irq);
    return qatomic_read(&irq->control);
}

/* Also undoes an enabling write that only KVM has seen. */
static void ivshmem2_irq_disable(Ivshmem2Irq *irq)
{
    WITH_QEMU_LOCK_GUARD(&irq->lock) {
        ivshmem2_irq_look(irq);
        qatomic_set(&irq->control, 0);
    }
    ivshmem2_irq_update(irq);
}

static void ivshmem2_irq_enable(Ivshmem2Irq *irq)
{
    /*
     * KVM did not have the ioeventfd when the guest wrote, or does not take
     * the write.  Until now, another processor may have enabled reception
     * without QEMU, so that nothing may be dropped.
     */
    if (irq->enabling_by_kvm) {
        event_notifier_set(&irq->enabling);
        return;
    }
    WITH_QEMU_LOCK_GUARD(&irq->lock) {
        qatomic_set(&irq->control, IVSHMEM2_INT_ENABLE);
    }
    if (irq->trapping && ++irq->trapped == IVSHMEM2_TRAPPED_WRITES) {
        irq->trapping = false;
    }
    ivshmem2_irq_update(irq);
}

void ivshmem2_irq_set_control(Ivshmem2Irq *irq, uint32_t value)
{
    if (value & IVSHMEM2_INT_ENABLE) {
        ivshmem2_irq_enable(irq);
    } else {
        ivshmem2_irq_flush(irq);
        ivshmem2_irq_disable(irq);
    }
}

void ivshmem2_irq_reset(Ivshmem2Irq *irq)
{
    ivshmem2_irq_disable(irq);
}

/*
 * Life
 */

static bool ivshmem2_irq_init_vectors(Ivshmem2Irq *irq,
                                      Ivshmem2Session *session, Error **errp)
{
    irq->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (irq->epoll_fd < 0) {
        error_setg_errno(errp, errno, "cannot create an epoll descriptor");
        return false;
    }
    for (uint32_t i = 0; i < irq->n_vectors; i++) {
        struct epoll_event event = { .events = EPOLLIN, .data.u32 = i };
        Ivshmem2Vector *v = &irq->vectors[i];

        v->virq = -1;
        v->eventfd = ivshmem2_session_own_eventfd(session, i);
        if (epoll_ctl(irq->epoll_fd, EPOLL_CTL_ADD, v->eventfd, &event) < 0) {
            error_setg_errno(errp, errno, "cannot poll the eventfd of "
                             "vector %u", i);
            return false;
        }
    }
    return true;
}

bool ivshmem2_irq_init(Ivshmem2Irq *irq, PCIDevice *pdev,
                       Ivshmem2Session *session, const uint8_t *priv_control,
                       Ivshmem2IoEventFds *fds, Error **errp)
{
    const Ivshmem2Welcome *w = ivshmem2_session_info(session);

    irq->pdev = pdev;
    irq->priv_control = priv_control;
    irq->fds = fds;
    irq->id = w->id;
    irq->has_msix = w->features == IVSHMEM2_F_MSIX;
    irq->mode = IVSHMEM2_IRQ_OFF;
    irq->control = 0;
    irq->refused = false;
    irq->trapping = false;
    irq->drops = 0;
    irq->n_vectors = w->vectors;
    irq->vectors = g_new0(Ivshmem2Vector, w->vectors);
    irq->masked = bitmap_new(w->vectors);
    irq->pending = bitmap_new(w->vectors);
    irq->writes = bitmap_new(w->vectors);
    irq->send_writes = qemu_bh_new(ivshmem2_irq_send_writes, irq);
    qemu_mutex_init(&irq->lock);
    qemu_cond_init(&irq->relay_wake);
    irq->storm_bh = qemu_bh_new_guarded(ivshmem2_irq_storm, irq,
                                        &DEVICE(pdev)->mem_reentrancy_guard);
    if (!ivshmem2_irq_init_vectors(irq, session, errp)) {
        ivshmem2_irq_exit(irq);
        return false;
    }
    irq->has_enabling = irq->use_ioeventfd && irq->use_irqfd &&
                        kvm_msi_via_irqfd_enabled() &&
                        event_notifier_init(&irq->enabling, false) == 0;
    irq->vm_state_entry =
        qemu_add_vm_change_state_handler(ivshmem2_irq_vm_state_changed, irq);
    return true;
}

void ivshmem2_irq_exit(Ivshmem2Irq *irq)
{
    if (!irq->vectors) {
        return;
    }
    g_clear_pointer(&irq->vm_state_entry, qemu_del_vm_change_state_handler);
    if (irq->enabling_by_kvm) {
        ivshmem2_irq_del_enabling(irq);
    }
    ivshmem2_irq_stop_relay(irq);
    ivshmem2_irq_set_polling(irq, false);
    g_clear_pointer(&irq->storm_bh, qemu_bh_delete);
    if (irq->has_enabling) {
        event_notifier_cleanup(&irq->enabling);
        irq->has_enabling = false;
    }
    for (uint32_t i = 0; i < irq->n_vectors; i++) {
        ivshmem2_irq_detach(irq, i);
        ivshmem2_irq_release_route(&irq->vectors[i]);
    }
    g_clear_pointer(&irq->send_writes, qemu_bh_delete);
    ivshmem2_close(&irq->epoll_fd);
    qemu_cond_destroy(&irq->relay_wake);
    qemu_mutex_destroy(&irq->lock);
    g_clear_pointer(&irq->masked, g_free);
    g_clear_pointer(&irq->pending, g_free);
    g_clear_pointer(&irq->writes, g_free);
    g_clear_pointer(&irq->vectors, g_free);
}
