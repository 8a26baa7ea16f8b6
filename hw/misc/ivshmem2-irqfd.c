/*
 * ivshmem2: interrupts that KVM delivers, and those that it must not
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/epoll.h>
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "hw/pci/msix.h"
#include "ivshmem2-irqfd.h"
#include "system/arch_init.h"
#include "system/kvm.h"
#include "trace.h"

/* The start of 1 MiB of messages that x86 processors take for interrupts */
#define IVSHMEM2_X86_MSI_ADDRESS 0xfee00000

static void ivshmem2_irq_refused(Ivshmem2Irq *irq, const char *what)
{
    irq->refused = true;
    warn_report_once_cond(&irq->warned, "ivshmem2: KVM refuses an %s, so QEMU "
                          "helps out, which is slower", what);
}

bool ivshmem2_irq_is_x86(MSIMessage msg)
{
    return qemu_arch_available(QEMU_ARCH_I386) &&
           msg.address >> 20 == IVSHMEM2_X86_MSI_ADDRESS >> 20;
}

bool ivshmem2_irq_is_odd(MSIMessage msg)
{
    return qemu_arch_available(QEMU_ARCH_I386) ? !ivshmem2_irq_is_x86(msg)
                                               : msg.address >> 32;
}

void ivshmem2_irq_set_odd(Ivshmem2Irq *irq, Ivshmem2Vector *v, bool odd)
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

void ivshmem2_irq_release_route(Ivshmem2Vector *v)
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

/* Is it not KVM that looks at the vector's eventfd? */
static void ivshmem2_irq_set_polled(Ivshmem2Irq *irq, uint32_t vector,
                                    bool polled)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = vector };

    epoll_ctl(irq->epoll_fd, polled ? EPOLL_CTL_ADD : EPOLL_CTL_DEL,
              irq->vectors[vector].eventfd, &event);
}

static void ivshmem2_irq_forget_notifier(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];

    /* The eventfd that KVM looks at is the session's. */
    if (v->delivery == IVSHMEM2_BY_RELAY) {
        event_notifier_cleanup(&v->notifier);
    } else if (v->delivery == IVSHMEM2_BY_KVM) {
        ivshmem2_irq_set_polled(irq, vector, true);
    }
    v->delivery = IVSHMEM2_BY_QEMU;
}

void ivshmem2_irq_detach(Ivshmem2Irq *irq, uint32_t vector)
{
    Ivshmem2Vector *v = &irq->vectors[vector];

    if (v->delivery != IVSHMEM2_BY_QEMU) {
        trace_ivshmem2_irqfd_detach(irq->id, vector);
        kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state, &v->notifier,
                                              v->virq);
        ivshmem2_irq_forget_notifier(irq, vector);
    }
}

void ivshmem2_irq_set_delivery(Ivshmem2Irq *irq, uint32_t vector,
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
        ivshmem2_irq_set_polled(irq, vector, false);
    } else if (delivery == IVSHMEM2_BY_RELAY &&
               event_notifier_init(&v->notifier, false) < 0) {
        irq->refused = true;
        return;
    }
    v->delivery = delivery;
    if (delivery != IVSHMEM2_BY_QEMU && !ivshmem2_irq_attach(irq, vector)) {
        ivshmem2_irq_forget_notifier(irq, vector);
    }
}

/*
 * The eventfds of another session
 */

static bool ivshmem2_irq_add_eventfd(Ivshmem2Irq *irq, uint32_t vector, int fd)
{
    struct epoll_event event = { .events = EPOLLIN, .data.u32 = vector };

    return epoll_ctl(irq->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

bool ivshmem2_irq_add_session(Ivshmem2Irq *irq, Ivshmem2Session *session,
                              Error **errp)
{
    for (uint32_t i = 0; i < irq->n_vectors; i++) {
        if (!ivshmem2_irq_add_eventfd(irq, i, ivshmem2_session_own_eventfd(
                                          session, i))) {
            error_setg_errno(errp, errno, "cannot poll the eventfd of "
                             "vector %u", i);
            ivshmem2_irq_del_session(irq, session, i);
            return false;
        }
    }
    return true;
}

void ivshmem2_irq_del_session(Ivshmem2Irq *irq, Ivshmem2Session *session,
                              uint32_t vectors)
{
    for (uint32_t i = 0; i < vectors; i++) {
        epoll_ctl(irq->epoll_fd, EPOLL_CTL_DEL,
                  ivshmem2_session_own_eventfd(session, i), NULL);
    }
}

/* From now on, @fd interrupts @vector, and so does what has arrived before. */
static void ivshmem2_irq_switch_vector(Ivshmem2Irq *irq, uint32_t vector,
                                       int fd)
{
    Ivshmem2Vector *v = &irq->vectors[vector];
    bool by_kvm = v->delivery == IVSHMEM2_BY_KVM;

    if (by_kvm) {
        ivshmem2_irq_set_delivery(irq, vector, IVSHMEM2_BY_QEMU);
    }
    ivshmem2_irq_set_polled(irq, vector, false);
    if (ivshmem2_eventfd_drain(v->eventfd)) {
        ivshmem2_eventfd_signal(fd);
    }
    v->eventfd = fd;
    if (by_kvm) {
        ivshmem2_irq_set_delivery(irq, vector, IVSHMEM2_BY_KVM);
    }
}

void ivshmem2_irq_switch_session(Ivshmem2Irq *irq, Ivshmem2Session *session)
{
    QEMU_LOCK_GUARD(&irq->lock);
    for (uint32_t i = 0; i < irq->n_vectors; i++) {
        ivshmem2_irq_switch_vector(irq, i,
                                   ivshmem2_session_own_eventfd(session, i));
    }
}
