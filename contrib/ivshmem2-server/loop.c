/*
 * An event loop: descriptors, timers that all take equally long, and the pace
 * of work that can wait
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <poll.h>
#include <sys/epoll.h>
#include <time.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "loop.h"

#define EVENTS_PER_TURN 64

/* Work of a microsecond counts for so many. */
#define PACE            3
/* Time that passed without work counts if it was not longer ago than this. */
#define PACE_MEMORY     (G_USEC_PER_SEC * 3 / 10)
/* How long other processes are left alone, and how long again and again */
#define QUIET_TIME      200
#define LONGEST_QUIET   10000

/* Rounding up to milliseconds does not matter from here on. */
#define LONG_WAIT       (G_USEC_PER_SEC / 10)

/* Of this thread: while others use its processor, it does no work. */
static int64_t processor_time(void)
{
    struct timespec t = { 0 };

    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * G_USEC_PER_SEC + t.tv_nsec / 1000;
}

/*
 * Leave the processor to other processes for a moment: one of them may have
 * waited for what was done.
 */
static void pace_yield(Ivshmem2Pace *p)
{
    p->quiet = ivshmem2_deadline(QUIET_TIME);
}

/* When to go on */
static int64_t pace_next(const Ivshmem2Pace *p)
{
    return MIN(MAX(p->next, p->quiet), p->next + LONGEST_QUIET);
}

static void pace_begin(Ivshmem2Pace *p, int64_t now)
{
    p->next = MAX(p->next, now - PACE_MEMORY);
    p->begun = processor_time();
}

static void pace_end(Ivshmem2Pace *p)
{
    p->next += PACE * (processor_time() - p->begun);
    if (p->next > g_get_monotonic_time()) {
        pace_yield(p);
    }
}

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

static void unpostpone(Ivshmem2Loop *loop, Ivshmem2Watch *w)
{
    if (w->node.data) {
        g_queue_unlink(&loop->postponed, &w->node);
        w->node.data = NULL;
    }
}

void ivshmem2_loop_modify(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd,
                          uint32_t events)
{
    struct epoll_event event = { .events = events, .data.ptr = w };

    unpostpone(loop, w);
    if (w->events != events) {
        w->events = events;
        epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, fd, &event);
    }
}

void ivshmem2_loop_postpone(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd)
{
    /* EPOLLHUP always comes, but with EPOLLET it does not stay */
    ivshmem2_loop_modify(loop, w, fd, EPOLLET);
    w->node.data = w;
    g_queue_push_tail_link(&loop->postponed, &w->node);
}

void ivshmem2_loop_remove(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd)
{
    unpostpone(loop, w);
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    w->ready = NULL;
}

void ivshmem2_loop_free_later(Ivshmem2Loop *loop, void *block)
{
    g_ptr_array_add(loop->dead, block);
}

/* epoll_wait() knows only milliseconds. */
static void wait_precisely(const Ivshmem2Loop *loop, int64_t deadline)
{
    struct pollfd pfd = { .fd = loop->epoll_fd, .events = POLLIN };
    int64_t left = deadline - g_get_monotonic_time();
    struct timespec time = { .tv_nsec = left * 1000 };

    if (deadline >= 0 && left > 0 && left < LONG_WAIT) {
        ppoll(&pfd, 1, &time, NULL);
    }
}

static bool has_work(const Ivshmem2Loop *loop, bool more)
{
    return more || loop->postponed.length;
}

void ivshmem2_loop_turn(Ivshmem2Loop *loop, int64_t deadline, bool more)
{
    struct epoll_event events[EVENTS_PER_TURN];
    int n;

    if (has_work(loop, more)) {
        int64_t next = pace_next(&loop->pace);

        deadline = deadline < 0 ? next : MIN(deadline, next);
    }
    wait_precisely(loop, deadline);
    n = epoll_wait(loop->epoll_fd, events, G_N_ELEMENTS(events),
                   ivshmem2_deadline_ms(deadline));
    for (int i = 0; i < n; i++) {
        Ivshmem2Watch *w = events[i].data.ptr;

        if (w->ready) {
            w->ready(w);
        }
    }
    g_ptr_array_set_size(loop->dead, 0);
    if (n > 0) {
        pace_yield(&loop->pace);
    }
}

bool ivshmem2_loop_begin_work(Ivshmem2Loop *loop, bool more)
{
    int64_t now = g_get_monotonic_time();

    if (!has_work(loop, more) || pace_next(&loop->pace) > now) {
        return false;
    }
    pace_begin(&loop->pace, now);
    return true;
}

void ivshmem2_loop_end_work(Ivshmem2Loop *loop)
{
    Ivshmem2Watch *w = g_queue_peek_head(&loop->postponed);

    if (w) {
        unpostpone(loop, w);
        w->ready(w);
    }
    pace_end(&loop->pace);
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
