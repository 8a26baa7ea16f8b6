/*
 * Fuzzing ivshmem2: what the targets have in common
 *
 * A target takes bytes for a program of what somebody hostile does, runs it,
 * and aborts where a promise is broken.  It depends on nothing but the bytes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_FUZZ_H
#define IVSHMEM2_FUZZ_H

#include "../unit/ivshmem2-util.h"

/* Longer inputs are not tried. */
#define FUZZ_MAX_INPUT      4096

/* The bytes that are left; what is read beyond them is 0. */
typedef struct FuzzInput {
    const uint8_t *data;
    size_t size;
} FuzzInput;

typedef struct FuzzTarget {
    const char *name;           /* also of the folder with its corpus */
    void (*run)(FuzzInput *in);
} FuzzTarget;

/* Ends with one without a name */
extern const FuzzTarget fuzz_targets[];

void fuzz_codec(FuzzInput *in);
void fuzz_daemon(FuzzInput *in);
void fuzz_server(FuzzInput *in);
void fuzz_session(FuzzInput *in);

/* Once, before any target runs */
void fuzz_init(void);

const FuzzTarget *fuzz_find_target(const char *name);

/* Run @target, and see that it leaves no descriptor behind. */
void fuzz_run(const FuzzTarget *target, const uint8_t *data, size_t size);

uint8_t fuzz_u8(FuzzInput *in);
uint32_t fuzz_u32(FuzzInput *in);

/* Up to @size bytes; returns how many. */
size_t fuzz_bytes(FuzzInput *in, void *buf, size_t size);

/* As count_fds(), but fast. */
unsigned fuzz_count_fds(void);

/* What a hostile peer may send where something else is expected */
typedef enum FuzzFd {
    FUZZ_FD_EVENTFD,
    FUZZ_FD_MEMORY,             /* sealed, FUZZ_MEMORY_SIZE bytes */
    FUZZ_FD_READ_ONLY,          /* the same, open for reading only */
    FUZZ_FD_HUGE,               /* sealed, more bytes than any link has */
    FUZZ_FD_UNSEALED,
    FUZZ_FD_SOCKET,
    FUZZ_FD_PIPE,
    FUZZ_FD_FILE,
    FUZZ_N_FDS,
} FuzzFd;

#define FUZZ_MEMORY_SIZE    (1024 * 1024)

int fuzz_fd(FuzzFd kind);

/* One end of a connection whose other end is tested */
typedef struct FuzzEnd {
    int fd;                     /* non-blocking; -1: not open */
    uint8_t rest[sizeof(Ivshmem2Msg)];  /* of a message that was cut */
    size_t n_rest;
} FuzzEnd;

/*
 * Send @msg (host byte order) with descriptors @fds as far as the socket takes
 * it and @in does not want it otherwise: other bytes, other descriptors, a part
 * of it.
 */
void fuzz_send(FuzzInput *in, FuzzEnd *end, const Ivshmem2Msg *msg,
               const int *fds);

/*
 * A HELLO as it should be.  @how: bit 0 set: the ID is of @in's choice, bit 1
 * set: it resumes a session on the link of @welcome.
 */
Ivshmem2Msg fuzz_hello(FuzzInput *in, uint8_t how,
                       const Ivshmem2Welcome *welcome);

/* What was left of a message that was cut */
void fuzz_send_rest(FuzzEnd *end);

/* Bytes of @in's choice */
void fuzz_send_bytes(FuzzInput *in, FuzzEnd *end);

/* What libFuzzer calls */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* IVSHMEM2_FUZZ_H */
