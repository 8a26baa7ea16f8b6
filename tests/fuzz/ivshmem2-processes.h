/*
 * Fuzzing ivshmem2: processes, users and time that are not real
 *
 * The system calls by which a server asks for them are answered here.  When a
 * process has ended, the next one has its pid.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_PROCESSES_H
#define IVSHMEM2_PROCESSES_H

#include "ivshmem2-fuzz.h"

/* The first and the last ones are normal; the server sees less of others. */
#define FUZZ_N_PROCESSES    7

/* The process that has this one's user */
#define FUZZ_OWN_USER       0

/* The process that connected, and its user */
typedef struct FuzzIdentity {
    uint8_t process;
    uint8_t user;
    uint16_t generation;        /* how many had its pid before */
} FuzzIdentity;

/* None lives. */
void fuzz_processes_begin(void);

/* For g_get_monotonic_time() */
void fuzz_pass_time(int64_t us);

/* Unless it lives */
void fuzz_process_start(unsigned process);
/* Unless it does not live */
void fuzz_process_end(unsigned process);
uint16_t fuzz_process_generation(unsigned process);
bool fuzz_process_lives(const FuzzIdentity *who);

/* Can the server watch it? */
bool fuzz_process_has_pidfd(unsigned process);

/*
 * To the server they are one.  Where it has only the pid, another process that
 * has it later is the same, if the user is.
 */
bool fuzz_is_same_process(const FuzzIdentity *a, const FuzzIdentity *b);

#endif /* IVSHMEM2_PROCESSES_H */
