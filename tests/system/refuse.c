/*
 * Preloaded into QEMU, makes KVM refuse resources
 *
 * With REFUSE=WHAT:N in the environment, N of them can be had at a time; WHAT
 * is irqfd, ioeventfd or route.  With REFUSE=far:N, there cannot be memory at
 * addresses of more than N bits.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <linux/kvm.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* Routes of the interrupt controllers' lines, which always exist */
#define LINES   24

static long left(const char *what)
{
    const char *refuse = getenv("REFUSE");
    size_t n = strlen(what);

    return refuse && !strncmp(refuse, what, n) && refuse[n] == ':' ?
           atol(refuse + n + 1) : -1;
}

/* Negative *@n: no limit */
static int refused(long *n, int gives_back)
{
    if (*n < 0) {
        return 0;
    }
    if (gives_back) {
        ++*n;
    } else if (*n == 0) {
        errno = ENOSPC;
        return 1;
    } else {
        --*n;
    }
    return 0;
}

int ioctl(int fd, unsigned long request, ...)
{
    static long irqfds, ioeventfds, routes, bits;
    static int (*next)(int, unsigned long, void *);
    va_list ap;
    void *arg;

    va_start(ap, request);
    arg = va_arg(ap, void *);
    va_end(ap);
    if (!next) {
        next = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
        irqfds = left("irqfd");
        ioeventfds = left("ioeventfd");
        routes = left("route");
        bits = left("far");
    }
    if (request == KVM_IRQFD) {
        struct kvm_irqfd *irqfd = arg;

        if (refused(&irqfds, irqfd->flags & KVM_IRQFD_FLAG_DEASSIGN)) {
            return -1;
        }
    } else if (request == KVM_IOEVENTFD) {
        struct kvm_ioeventfd *io = arg;

        if (refused(&ioeventfds, io->flags & KVM_IOEVENTFD_FLAG_DEASSIGN)) {
            return -1;
        }
    } else if (request == KVM_SET_USER_MEMORY_REGION && bits > 0) {
        struct kvm_userspace_memory_region *region = arg;

        if (region->guest_phys_addr >> bits) {
            errno = EINVAL;
            return -1;
        }
    } else if (request == KVM_CHECK_EXTENSION &&
               (long)arg == KVM_CAP_IRQ_ROUTING && routes >= 0) {
        return LINES + routes + 1;
    }
    return next(fd, request, arg);
}
