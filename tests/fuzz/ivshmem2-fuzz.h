/*
 * Fuzzing ivshmem2: shared by the targets
 *
 * A target interprets bytes as actions of a hostile client or server, carries
 * them out, and aborts if a guarantee is broken.  It depends on nothing but the
 * bytes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_FUZZ_H
#define IVSHMEM2_FUZZ_H

#include "../unit/ivshmem2-util.h"

/* Longer inputs are not tried. */
#define FUZZ_MAX_INPUT      4096

/* The remaining bytes; reading beyond their end returns 0. */
typedef struct FuzzInput {
    const uint8_t *data;
    size_t size;
} FuzzInput;

typedef struct FuzzTarget {
    const char *name;           /* also the name of its corpus's folder */
    void (*run)(FuzzInput *in);
    unsigned n_mutations;       /* inputs that take some seconds */
} FuzzTarget;

/* The last one has no name. */
extern const FuzzTarget fuzz_targets[];

void fuzz_adopt(FuzzInput *in);
void fuzz_codec(FuzzInput *in);
void fuzz_daemon(FuzzInput *in);
void fuzz_server(FuzzInput *in);
void fuzz_session(FuzzInput *in);

/* Once, before any target runs */
void fuzz_init(void);

const FuzzTarget *fuzz_find_target(const char *name);

/* Run @target and check that it leaves no descriptor open. */
void fuzz_run(const FuzzTarget *target, const uint8_t *data, size_t size);

uint8_t fuzz_u8(FuzzInput *in);
uint32_t fuzz_u32(FuzzInput *in);

/* Take up to @size bytes; returns their number. */
size_t fuzz_bytes(FuzzInput *in, void *buf, size_t size);

/* The same as count_fds(), but faster */
unsigned fuzz_count_fds(void);

/* How the system behaves; all zeros before each run */
typedef struct FuzzSystem {
    bool no_aio;                /* others have used up fs.aio-max-nr */
    bool no_passrights;         /* Linux before 6.16 */
    int (*pidfd_open)(pid_t pid);   /* or NULL: as it is */
} FuzzSystem;

extern FuzzSystem fuzz_system;

void fuzz_system_begin(void);

/* Nothing that was tracked is open any more. */
void fuzz_system_end(void);

/*
 * Code under test runs in its main loop.  Until it leaves, nothing can be
 * closed by the thread that closes what others sent, and the main loop itself
 * must not close it either, nor write to an eventfd.
 */
void fuzz_enter(void);
void fuzz_leave(void);

/* The same for longer: what the thread closes now does not come to an end. */
void fuzz_block(void);
void fuzz_unblock(void);

/* Wait until all threads have done their work, but for what is blocked. */
void fuzz_settle(void);

/*
 * Returns a descriptor to be sent and closed: it is noticed when the receiver
 * closes it.  -1 if there are too many.
 */
int fuzz_make_tracked(void);

/* The number of those that are not closed, for which there is another one */
unsigned fuzz_count_tracked(void);

/* Descriptors that a hostile peer may send in place of others */
typedef enum FuzzFd {
    FUZZ_FD_EVENTFD,
    FUZZ_FD_MEMORY,             /* sealed, FUZZ_MEMORY_SIZE bytes */
    FUZZ_FD_READ_ONLY,          /* the same, open for reading only */
    FUZZ_FD_HUGE,               /* sealed, larger than any link */
    FUZZ_FD_UNSEALED,
    FUZZ_FD_SOCKET,
    FUZZ_FD_PIPE,
    FUZZ_FD_FILE,
    FUZZ_FD_SMALL,              /* sealed, one page */
    FUZZ_FD_EMPTY,              /* sealed, 0 bytes */
    FUZZ_FD_WRITE_ONLY,         /* FUZZ_FD_MEMORY, open for writing only */
    FUZZ_N_FDS,
    /* in fuzz_send(): new, and tracked */
    FUZZ_FD_TRACKED = FUZZ_N_FDS,
    FUZZ_N_KINDS,
} FuzzFd;

#define FUZZ_MEMORY_SIZE    (1024 * 1024)

int fuzz_fd(FuzzFd kind);

/* One end of a connection; the other end is under test */
typedef struct FuzzEnd {
    int fd;                     /* non-blocking; -1: not open */
    uint8_t rest[sizeof(Ivshmem2Msg)];  /* of a message that was cut */
    size_t n_rest;
} FuzzEnd;

/*
 * Send @msg (host byte order) with descriptors @fds, as much as the socket
 * takes.  @in may change bytes and descriptors, and cut the message.
 */
void fuzz_send(FuzzInput *in, FuzzEnd *end, const Ivshmem2Msg *msg,
               const int *fds);

/*
 * A correct HELLO.  @how: bit 0: @in chooses the ID, bit 1: resume the session
 * of @welcome.
 */
Ivshmem2Msg fuzz_hello(FuzzInput *in, uint8_t how,
                       const Ivshmem2Welcome *welcome);

/* Send the rest of a message that was cut. */
void fuzz_send_rest(FuzzEnd *end);

/* Send bytes of @in. */
void fuzz_send_bytes(FuzzInput *in, FuzzEnd *end);

/* Called by libFuzzer */
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif /* IVSHMEM2_FUZZ_H */
