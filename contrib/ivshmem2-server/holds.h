/*
 * Slots that are held for processes which may still use them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_HOLDS_H
#define IVSHMEM2_HOLDS_H

#include "budget.h"
#include "loop.h"
#include "process.h"
#include "server.h"

/* Embedded in the daemon; what it points to is borrowed. */
typedef struct Ivshmem2Holds {
    Ivshmem2Server *server;     /* that is told of the ends */
    Ivshmem2Budget *budget;
    Ivshmem2Loop *loop;
    Ivshmem2Timers *quarantine; /* for processes that cannot be seen */
    Ivshmem2Timers grace;
} Ivshmem2Holds;

typedef struct Ivshmem2Hold Ivshmem2Hold;

/* Hold slot @id as long as @p lives, which becomes part of the hold. */
Ivshmem2Hold *ivshmem2_hold_new_consume(Ivshmem2Holds *holds, uint32_t id,
                                        Ivshmem2Process *p);

/*
 * For ivshmem2_process_find().  @grace: the server is told when the period of
 * grace is over; a process that cannot be seen is in quarantine only then.
 * NULL: the process is gone.
 */
Ivshmem2Hold *ivshmem2_hold_adopt(Ivshmem2Holds *holds, uint32_t id, pid_t pid,
                                  uint64_t start_time, bool grace);

void ivshmem2_hold_free(Ivshmem2Hold *h);

bool ivshmem2_hold_is_alive(const Ivshmem2Hold *h);

/* Will it end soon?  Its process was killed, or it is in quarantine. */
bool ivshmem2_hold_is_ending(const Ivshmem2Hold *h);

/* Seconds that are left of its period of grace, rounded up */
unsigned ivshmem2_hold_grace_left(const Ivshmem2Hold *h);

#endif /* IVSHMEM2_HOLDS_H */
