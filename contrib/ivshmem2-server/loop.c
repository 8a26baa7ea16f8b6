/*
 * An event loop: descriptors, and timers that all take equally long
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <sys/epoll.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "loop.h"

#define EVENTS_PER_TURN 64

bool ivshmem2_loop_init(Ivshmem2Loop *loop, GError **error)
{
    loop->dead = g_ptr_array_new_with_free_func(g_free);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0) {
        return ivshmem2_fail_errno(error, "cannot create an epoll instance");
    }
    return true;
}

void ivshmem2_loop_clear(Ivshmem2Loop *loop)
{
    ivshmem2_close(&loop->epoll_fd);
    g_clear_pointer(&loop->dead, g_ptr_array_unref);
}

bool ivshmem2_loop_add(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd,
                       uint32_t events, GError **error)
{
    struct epoll_event event = { .events = events, .data.ptr = w };

    w->events = events;
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        return ivshmem2_fail_errno(error, "cannot watch a descriptor");
    }
    return true;
}

void ivshmem2_loop_modify(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd,
                          uint32_t events)
{
    struct epoll_event event = { .events = events, .data.ptr = w };

    if (w->events != events) {
        w->events = events;
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, fd, &event);
    }
}

void ivshmem2_loop_remove(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd)
{
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    w->ready = NULL;
}

void ivshmem2_loop_free_later(Ivshmem2Loop *loop, void *block)
{
    g_ptr_array_add(loop->dead, block);
}

void ivshmem2_loop_turn(Ivshmem2Loop *loop, int64_t deadline)
{
    struct epoll_event events[EVENTS_PER_TURN];
    int n = epoll_wait(loop->epoll_fd, events, G_N_ELEMENTS(events),
                       ivshmem2_deadline_ms(deadline));

    for (int i = 0; i < n; i++) {
        Ivshmem2Watch *w = events[i].data.ptr;

        if (w->ready) {
            w->ready(w);
        }
    }
    g_ptr_array_set_size(loop->dead, 0);
}

void ivshmem2_timer_start(Ivshmem2Timer *t, Ivshmem2Timers *timers,
                          void (*expired)(Ivshmem2Timer *t))
{
    ivshmem2_timer_stop(t);
    t->expired = expired;
    t->deadline = ivshmem2_deadline(timers->duration);
    t->queue = &timers->queue;
    t->node.data = t;
    g_queue_push_tail_link(t->queue, &t->node);
}

void ivshmem2_timer_stop(Ivshmem2Timer *t)
{
    if (t->queue) {
        g_queue_unlink(t->queue, &t->node);
        t->queue = NULL;
    }
}

int64_t ivshmem2_timers_next(const Ivshmem2Timers *timers)
{
    Ivshmem2Timer *t = timers->queue.head ? timers->queue.head->data : NULL;

    return t ? t->deadline : -1;
}

void ivshmem2_timers_run(Ivshmem2Timers *timers)
{
    int64_t now = g_get_monotonic_time();
    int64_t next;

    while ((next = ivshmem2_timers_next(timers)) >= 0 && next <= now) {
        Ivshmem2Timer *t = timers->queue.head->data;

        ivshmem2_timer_stop(t);
        t->expired(t);
    }
}
