/*
 * Accepting connections, as long as there are descriptors for them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include "accept.h"
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"

/* Fairness, see daemon.c */
#define ACCEPTS_PER_TURN        4

/* Between two warnings that no connection can be accepted */
#define COMPLAINT_INTERVAL      (10 * G_USEC_PER_SEC)

static void listen_again(Ivshmem2Acceptor *a)
{
    ivshmem2_timer_stop(&a->pause);
    ivshmem2_loop_modify(a->loop, &a->watch, a->fd, EPOLLIN);
}

void ivshmem2_acceptor_resume(Ivshmem2Acceptor *a)
{
    if (a->pause.queue) {
        listen_again(a);
    }
}

static void pause_expired(Ivshmem2Timer *t)
{
    listen_again(IVSHMEM2_CONTAINER(t, Ivshmem2Acceptor, pause));
}

void ivshmem2_acceptor_complain(Ivshmem2Acceptor *a, const char *why)
{
    if (!ivshmem2_deadline_ms(a->next_complaint)) {
        g_warning("cannot accept a connection: %s", why);
        a->next_complaint = ivshmem2_deadline(COMPLAINT_INTERVAL);
    }
}

/* Accepting failed and would fail again at once: wait. */
static void listen_later(Ivshmem2Acceptor *a)
{
    ivshmem2_acceptor_complain(a, g_strerror(errno));
    ivshmem2_timer_start(&a->pause, a->pauses, pause_expired);
    ivshmem2_loop_modify(a->loop, &a->watch, a->fd, 0);
}

static void listen_ready(Ivshmem2Watch *w)
{
    Ivshmem2Acceptor *a = IVSHMEM2_CONTAINER(w, Ivshmem2Acceptor, watch);

    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(a->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
                errno == ENOMEM) {
                listen_later(a);
            }
            return;
        }
        a->take(a, fd);
    }
}

bool ivshmem2_acceptor_start(Ivshmem2Acceptor *a, GError **error)
{
    ivshmem2_socket_refuse_fds(a->fd);
    a->watch.ready = listen_ready;
    return ivshmem2_loop_add(a->loop, &a->watch, a->fd, EPOLLIN, error);
}
