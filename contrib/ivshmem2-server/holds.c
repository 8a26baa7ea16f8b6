/*
 * Slots that are held for processes which may still use them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "holds.h"
#include "libivshmem2-util.h"

struct Ivshmem2Hold {
    Ivshmem2Holds *holds;
    Ivshmem2Process *process;
    Ivshmem2Timer grace;
    uint32_t id;
};

static void process_gone(void *opaque)
{
    Ivshmem2Hold *h = opaque;

    ivshmem2_server_release(h->holds->server, h->id);
}

static void watch_process(Ivshmem2Hold *h)
{
    ivshmem2_process_watch(h->process, h->holds->loop, h->holds->quarantine,
                           process_gone, h);
}

static void grace_expired(Ivshmem2Timer *t)
{
    Ivshmem2Hold *h = IVSHMEM2_CONTAINER(t, Ivshmem2Hold, grace);

    if (!ivshmem2_process_is_visible(h->process)) {
        watch_process(h);
    }
    ivshmem2_server_end_grace(h->holds->server, h->id);
}

static Ivshmem2Hold *hold_new(Ivshmem2Holds *holds, uint32_t id,
                              Ivshmem2Process *p)
{
    Ivshmem2Hold *h = g_new0(Ivshmem2Hold, 1);

    h->holds = holds;
    h->process = p;
    h->id = id;
    ivshmem2_budget_charge_fds(holds->budget, 1);
    return h;
}

Ivshmem2Hold *ivshmem2_hold_new_consume(Ivshmem2Holds *holds, uint32_t id,
                                        Ivshmem2Process *p)
{
    Ivshmem2Hold *h = hold_new(holds, id, p);

    watch_process(h);
    return h;
}

Ivshmem2Hold *ivshmem2_hold_adopt(Ivshmem2Holds *holds, uint32_t id, pid_t pid,
                                  uint64_t start_time, bool grace)
{
    Ivshmem2Process *p = ivshmem2_process_find(pid, start_time);
    Ivshmem2Hold *h;

    if (!p) {
        return NULL;
    }
    h = hold_new(holds, id, p);
    if (grace) {
        ivshmem2_timer_start(&h->grace, &holds->grace, grace_expired);
    }
    if (!grace || ivshmem2_process_is_visible(p)) {
        watch_process(h);
    }
    return h;
}

void ivshmem2_hold_free(Ivshmem2Hold *h)
{
    ivshmem2_timer_stop(&h->grace);
    ivshmem2_budget_discharge_fds(h->holds->budget, 1);
    ivshmem2_process_free(h->process);
    g_free(h);
}

bool ivshmem2_hold_is_alive(const Ivshmem2Hold *h)
{
    return ivshmem2_process_is_alive(h->process);
}

bool ivshmem2_hold_is_ending(const Ivshmem2Hold *h)
{
    return ivshmem2_process_is_visible(h->process)
           ? ivshmem2_process_is_ending(h->process) : !h->grace.queue;
}

unsigned ivshmem2_hold_grace_left(const Ivshmem2Hold *h)
{
    int left = h->grace.queue ? ivshmem2_deadline_ms(h->grace.deadline) : 0;

    return (left + 999) / 1000;
}
