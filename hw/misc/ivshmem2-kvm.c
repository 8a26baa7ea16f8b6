/*
 * ivshmem2: doorbells and interrupts that do not leave the kernel
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "hw/misc/ivshmem2-regs.h"
#include "hw/pci/msix.h"
#include "ivshmem2-kvm.h"
#include "system/kvm.h"
#include "trace.h"

/* With all ioeventfds in use, how many trapped doorbells replace one */
#define IVSHMEM2_TRAPS_PER_IOEVENTFD    256

/* An address where nothing is */
#define IVSHMEM2_NOWHERE                (UINT64_MAX & -0x1000)

static unsigned ivshmem2_all_ioeventfds;

static void ivshmem2_kvm_refused(Ivshmem2Kvm *k, const char *what)
{
    if (!k->warned) {
        k->warned = true;
        warn_report("ivshmem2: KVM refuses an %s, so QEMU helps out, which is "
                    "slower", what);
    }
}

void ivshmem2_kvm_init(Ivshmem2Kvm *k, PCIDevice *pdev, MemoryRegion *regs,
                       unsigned vectors, unsigned ioeventfds)
{
    k->pdev = pdev;
    k->regs = regs;
    k->max_ioeventfds = ioeventfds;
    k->ioeventfds = g_new0(Ivshmem2IoEventFd, ioeventfds);
    k->n_irqfds = vectors;
    k->irqfds = g_new0(Ivshmem2Irqfd, vectors);
    for (unsigned i = 0; i < vectors; i++) {
        k->irqfds[i].virq = -1;
    }
}

/* Doorbells */

static void ivshmem2_kvm_del_ioeventfd(Ivshmem2Kvm *k, Ivshmem2IoEventFd *io)
{
    memory_region_del_eventfd(k->regs, IVSHMEM2_REG_DOORBELL, 4, true,
                              io->doorbell, &io->notifier);
    event_notifier_cleanup(&io->notifier);
    ivshmem2_all_ioeventfds--;
}

/*
 * QEMU aborts when KVM refuses one that the memory core wants.  So ask before,
 * for an address where nothing is.
 */
static bool ivshmem2_kvm_has_room(int fd)
{
    struct kvm_ioeventfd io = {
        .addr = IVSHMEM2_NOWHERE,
        .len = 4,
        .fd = fd,
    };

    if (kvm_vm_ioctl(kvm_state, KVM_IOEVENTFD, &io) < 0) {
        return false;
    }
    io.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
    return kvm_vm_ioctl(kvm_state, KVM_IOEVENTFD, &io) == 0;
}

/*
 * The one to use next, or NULL.  Whom KVM rings is not seen here, so the
 * oldest gives way.
 */
static Ivshmem2IoEventFd *ivshmem2_kvm_get_ioeventfd(Ivshmem2Kvm *k, int fd)
{
    Ivshmem2IoEventFd *io;

    if (k->n_ioeventfds < k->max_ioeventfds) {
        if (ivshmem2_all_ioeventfds >= IVSHMEM2_MAX_ALL_IOEVENTFDS) {
            return NULL;
        }
        if (!ivshmem2_kvm_has_room(fd)) {
            ivshmem2_kvm_refused(k, "ioeventfd");
            k->max_ioeventfds = k->n_ioeventfds;
            return NULL;
        }
        return &k->ioeventfds[k->n_ioeventfds++];
    }
    io = &k->ioeventfds[k->next_ioeventfd];
    k->next_ioeventfd = (k->next_ioeventfd + 1) % k->max_ioeventfds;
    ivshmem2_kvm_del_ioeventfd(k, io);
    return io;
}

void ivshmem2_kvm_rung(Ivshmem2Kvm *k, uint32_t doorbell, int fd)
{
    Ivshmem2IoEventFd *io;
    int own_fd;

    if (!kvm_enabled() || !k->max_ioeventfds) {
        return;
    }
    /*
     * With all in use, one gives way only now and then: what the guest rings
     * often is likely to be the doorbell that comes at such a moment.
     */
    if (k->n_ioeventfds == k->max_ioeventfds &&
        ++k->trapped % IVSHMEM2_TRAPS_PER_IOEVENTFD) {
        return;
    }
    for (unsigned i = 0; i < k->n_ioeventfds; i++) {
        if (k->ioeventfds[i].doorbell == doorbell) {
            return;
        }
    }
    /* The session may close its descriptor when it holds too many. */
    own_fd = qemu_dup(fd);
    if (own_fd < 0) {
        return;
    }
    io = ivshmem2_kvm_get_ioeventfd(k, own_fd);
    if (!io) {
        close(own_fd);
        return;
    }
    event_notifier_init_fd(&io->notifier, own_fd);
    io->doorbell = doorbell;
    ivshmem2_all_ioeventfds++;
    memory_region_add_eventfd(k->regs, IVSHMEM2_REG_DOORBELL, 4, true,
                              doorbell, &io->notifier);
    trace_ivshmem2_ioeventfd_add(k->pdev->devfn, doorbell);
}

/* Interrupts */

bool ivshmem2_kvm_delivers(void)
{
    return kvm_msi_via_irqfd_enabled();
}

/* Changing routes is slow, so only when the guest has moved the vector */
static bool ivshmem2_kvm_set_route(Ivshmem2Kvm *k, unsigned vector)
{
    Ivshmem2Irqfd *irqfd = &k->irqfds[vector];
    MSIMessage msg = msix_get_message(k->pdev, vector);
    KVMRouteChange c;

    if (irqfd->virq < 0) {
        c = kvm_irqchip_begin_route_changes(kvm_state);
        irqfd->virq = kvm_irqchip_add_msi_route(&c, vector, k->pdev);
        if (irqfd->virq < 0) {
            return false;
        }
        kvm_irqchip_commit_route_changes(&c);
    } else if (msg.address != irqfd->msg.address ||
               msg.data != irqfd->msg.data) {
        if (kvm_irqchip_update_msi_route(kvm_state, irqfd->virq, msg,
                                         k->pdev) < 0) {
            return false;
        }
        kvm_irqchip_commit_routes(kvm_state);
    }
    irqfd->msg = msg;
    return true;
}

static bool ivshmem2_kvm_attach(Ivshmem2Kvm *k, unsigned vector)
{
    Ivshmem2Irqfd *irqfd = &k->irqfds[vector];

    if (!ivshmem2_kvm_set_route(k, vector)) {
        ivshmem2_kvm_refused(k, "MSI route");
        k->no_irqfds = true;
        return false;
    }
    if (kvm_irqchip_add_irqfd_notifier_gsi(kvm_state, &irqfd->notifier, NULL,
                                           irqfd->virq) < 0) {
        ivshmem2_kvm_refused(k, "irqfd");
        k->no_irqfds = true;
        return false;
    }
    trace_ivshmem2_irqfd_attach(k->pdev->devfn, vector);
    return true;
}

Ivshmem2Delivery ivshmem2_kvm_delivery(const Ivshmem2Kvm *k, unsigned vector)
{
    return k->irqfds[vector].delivery;
}

static void ivshmem2_kvm_end_delivery(Ivshmem2Irqfd *irqfd)
{
    /* what KVM delivers comes by the session's eventfd, that is borrowed */
    if (irqfd->delivery == IVSHMEM2_BY_RELAY) {
        event_notifier_cleanup(&irqfd->notifier);
    }
    irqfd->delivery = IVSHMEM2_BY_QEMU;
}

Ivshmem2Delivery ivshmem2_kvm_set_delivery(Ivshmem2Kvm *k, unsigned vector,
                                           Ivshmem2Delivery delivery, int fd)
{
    Ivshmem2Irqfd *irqfd = &k->irqfds[vector];

    if (delivery == irqfd->delivery && (delivery == IVSHMEM2_BY_QEMU ||
                                        ivshmem2_kvm_set_route(k, vector))) {
        return delivery;
    }
    if (irqfd->delivery != IVSHMEM2_BY_QEMU) {
        trace_ivshmem2_irqfd_detach(k->pdev->devfn, vector);
        kvm_irqchip_remove_irqfd_notifier_gsi(kvm_state, &irqfd->notifier,
                                              irqfd->virq);
        ivshmem2_kvm_end_delivery(irqfd);
    }
    if (delivery == IVSHMEM2_BY_KVM) {
        event_notifier_init_fd(&irqfd->notifier, fd);
    } else if (delivery == IVSHMEM2_BY_RELAY &&
               event_notifier_init(&irqfd->notifier, false) < 0) {
        k->no_irqfds = true;
        return IVSHMEM2_BY_QEMU;
    }
    irqfd->delivery = delivery;
    if (delivery != IVSHMEM2_BY_QEMU && !ivshmem2_kvm_attach(k, vector)) {
        ivshmem2_kvm_end_delivery(irqfd);
    }
    return irqfd->delivery;
}

void ivshmem2_kvm_deliver(Ivshmem2Kvm *k, unsigned vector)
{
    event_notifier_set(&k->irqfds[vector].notifier);
}

void ivshmem2_kvm_exit(Ivshmem2Kvm *k)
{
    while (k->n_ioeventfds) {
        ivshmem2_kvm_del_ioeventfd(k, &k->ioeventfds[--k->n_ioeventfds]);
    }
    for (unsigned i = 0; i < k->n_irqfds; i++) {
        if (k->irqfds[i].virq >= 0) {
            kvm_irqchip_release_virq(kvm_state, k->irqfds[i].virq);
        }
    }
    g_clear_pointer(&k->irqfds, g_free);
    k->n_irqfds = 0;
    g_clear_pointer(&k->ioeventfds, g_free);
}
