/*
 * An event loop: descriptors, timers that all take equally long, and the pace
 * of work that can wait
 *
 * Watches and timers are embedded in the structures that they belong to, so
 * that neither needs memory of its own, and callbacks find that structure by
 * IVSHMEM2_CONTAINER().
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LOOP_H
#define IVSHMEM2_LOOP_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The structure of @type whose @member is at @ptr */
#define IVSHMEM2_CONTAINER(ptr, type, member) \
    ((type *)((char *)(ptr) - offsetof(type, member)))

typedef struct Ivshmem2Watch Ivshmem2Watch;
typedef struct Ivshmem2Timer Ivshmem2Timer;

struct Ivshmem2Watch {
    void (*ready)(Ivshmem2Watch *w);
    uint32_t events;            /* EPOLL* that it waits for */
    GList node;                 /* with data: it is postponed */
};

/*
 * The pace of work that others need not wait for, such as that for a client
 * that sends more messages than it is served at once.  It gets a third of a
 * processor's time, and time that was not needed before, up to a limit.  So the
 * server sleeps more than it works: it is there at once when something happens,
 * and the scheduler prefers it to processes that do not sleep.
 *
 * All zeros: nothing was done yet.  Times are microseconds.
 */
typedef struct Ivshmem2Pace {
    int64_t next;               /* the share permits more at this time */
    int64_t quiet;              /* but it is put off until then if possible */
    int64_t begun;              /* processor time */
} Ivshmem2Pace;

typedef struct Ivshmem2Loop {
    int epoll_fd;
    GPtrArray *dead;            /* to be freed after the turn */
    GQueue postponed;           /* watches */
    Ivshmem2Pace pace;
} Ivshmem2Loop;

bool ivshmem2_loop_init(Ivshmem2Loop *loop, GError **error);
void ivshmem2_loop_clear(Ivshmem2Loop *loop);

bool ivshmem2_loop_add(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd,
                       uint32_t events, GError **error);
void ivshmem2_loop_modify(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd,
                          uint32_t events);

/*
 * w->ready() is called when there is time, until the next
 * ivshmem2_loop_modify().  The only event that is still reported, once, is that
 * the connection ended.
 */
void ivshmem2_loop_postpone(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd);

/* Before @fd is closed.  w->ready() is not called any more. */
void ivshmem2_loop_remove(Ivshmem2Loop *loop, Ivshmem2Watch *w, int fd);

/*
 * g_free() @block, which contains a removed watch, when no event that epoll has
 * reported can refer to the watch any more.
 */
void ivshmem2_loop_free_later(Ivshmem2Loop *loop, void *block);

/*
 * Wait for events until @deadline (-1: for ever), and call their watches.
 * @more: not only postponed watches are work that can wait.
 */
void ivshmem2_loop_turn(Ivshmem2Loop *loop, int64_t deadline, bool more);

/*
 * Is there work that can wait, and time for a piece of it?  If so, do the
 * @more, and end: this calls the watch that was postponed first.
 */
bool ivshmem2_loop_begin_work(Ivshmem2Loop *loop, bool more);
void ivshmem2_loop_end_work(Ivshmem2Loop *loop);

/* All zeros: not running */
struct Ivshmem2Timer {
    void (*expired)(Ivshmem2Timer *t);
    int64_t deadline;
    GList node;
    GQueue *queue;
};

/* Timers of one duration expire in the order in which they were started. */
typedef struct Ivshmem2Timers {
    GQueue queue;
    int64_t duration;           /* microseconds */
} Ivshmem2Timers;

/* (Re-)start. */
void ivshmem2_timer_start(Ivshmem2Timer *t, Ivshmem2Timers *timers,
                          void (*expired)(Ivshmem2Timer *t));
void ivshmem2_timer_stop(Ivshmem2Timer *t);

/* The next deadline, or -1 */
int64_t ivshmem2_timers_next(const Ivshmem2Timers *timers);

/* Call the timers that have expired. */
void ivshmem2_timers_run(Ivshmem2Timers *timers);

#endif /* IVSHMEM2_LOOP_H */
