/*
 * A client session and a server made by hand, for the tests of sessions
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SESSION_UTIL_H
#define IVSHMEM2_SESSION_UTIL_H

#include "ivshmem2-util.h"

#define N_PEERS     20
#define N_VECTORS   18
#define OWN_ID      1

typedef struct Fixture {
    unsigned before;
    Ivshmem2Session *s;
    Ivshmem2Welcome welcome;
    int memory;                 /* as large as any section, sealed */
    int memory_read_only;
    int event_fd;
} Fixture;

void session_setup(Fixture *f, gconstpointer opaque);

/* The session has to close all that it was given. */
void session_teardown(Fixture *f, gconstpointer opaque);

typedef void SessionTest(Fixture *f, gconstpointer opaque);

/* Add a test with a fixture of its own. */
void session_add(const char *name, const void *data, SessionTest *func);

/* What the server says: does the session accept it?  @fds are duplicated. */

bool tell(Fixture *f, Ivshmem2Msg msg, const int *fds, GError **error);
bool tell_welcome(Fixture *f, GError **error);
bool tell_outputs(Fixture *f, uint32_t first, unsigned n, GError **error);
bool tell_eventfds(Fixture *f, uint32_t id, uint32_t first, unsigned n,
                   GError **error);
bool tell_ready(Fixture *f, GError **error);

/* What the session says */

void assert_says(Fixture *f, uint16_t type, Ivshmem2Msg *msg);
void assert_says_nothing(Fixture *f);

/* How far a handshake goes */
typedef enum Stage {
    AFTER_HELLO,
    AFTER_WELCOME,
    AFTER_OUTPUTS,
    AFTER_EVENTFDS,
    AFTER_READY,
} Stage;

void go_to(Fixture *f, Stage stage);

/* The session holds the eventfd of @vector at @id: @fd, or any if it is -1. */
void assert_held(Fixture *f, uint32_t id, uint32_t vector, int fd);

/* The session does not hold it, and asks the server to ring. */
void assert_not_held(Fixture *f, uint32_t id, uint32_t vector);

#endif /* IVSHMEM2_SESSION_UTIL_H */
