/*
 * The process at the other end of a connection: who it is, and its end
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_PROCESS_H
#define IVSHMEM2_PROCESS_H

#include <sys/types.h>
#include "loop.h"

typedef struct Ivshmem2Process Ivshmem2Process;

/*
 * The process that connected the unix socket @fd, which is @pid according to
 * SO_PEERCRED; 0: a process that this one cannot see.  Returns NULL if it is
 * gone, also if another process has its pid now: Linux knows the process as
 * long as the socket is open.  (Before 6.5, it knows only the pid.)
 */
Ivshmem2Process *ivshmem2_process_open(int fd, pid_t pid);

/*
 * The process with @pid that ivshmem2_process_start_time() said @start_time of,
 * maybe in another program.  Returns NULL if it is gone.  If either of them is
 * 0, it cannot be seen.
 */
Ivshmem2Process *ivshmem2_process_find(pid_t pid, uint64_t start_time);

/* When it started, see proc_pid_stat(5); 0: cannot be seen, or is gone */
uint64_t ivshmem2_process_start_time(const Ivshmem2Process *p);

/* @p, not another process that has its pid now; one without pid is not. */
bool ivshmem2_process_is_alive(const Ivshmem2Process *p);

/* It was killed, for example, but may still have open files. */
bool ivshmem2_process_is_ending(const Ivshmem2Process *p);

/* There is a way to know whether it lives. */
bool ivshmem2_process_is_visible(const Ivshmem2Process *p);

/*
 * Call @gone with @opaque, once, when the process is gone.  @loop reports that
 * if the system provides a pidfd.  Otherwise @timers, which must run, have the
 * pid looked at each time; a process without visible pid counts as gone the
 * first time.
 */
void ivshmem2_process_watch(Ivshmem2Process *p, Ivshmem2Loop *loop,
                            Ivshmem2Timers *timers,
                            void (*gone)(void *opaque), void *opaque);

/* Also in @gone.  If it is watched, that ends. */
void ivshmem2_process_free(Ivshmem2Process *p);

/*
 * The groups of the process that connected @fd: @gid, which SO_PEERCRED says,
 * and the supplementary ones.  g_free() them.
 */
gid_t *ivshmem2_process_groups(int fd, gid_t gid, size_t *n);

#endif /* IVSHMEM2_PROCESS_H */
