/*
 * Peers and ivshmem2-client with a real server, for the tests of both
 *
 * The programs are those of IVSHMEM2_SERVER and IVSHMEM2_CLIENT.  Everything
 * that is expected is waited for up to SOON_MS.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_CLIENT_UTIL_H
#define IVSHMEM2_CLIENT_UTIL_H

#include "ivshmem2-server-util.h"
#include "libivshmem2.h"

/* A server with @options, words with one space between them */
void link_start(Server *l, const char *options);

/* Also after the server was killed or never started: see server_end(). */
void link_end(Server *l);

/* Peers of this process */

Ivshmem2Peer *join(Server *l, uint32_t id);

/* Joining fails with @code, and the message contains @what. */
void assert_refused(Server *l, uint32_t id, int code, const char *what);

/* Waiting for @only ends with the vector @expected. */
void assert_interrupt(Ivshmem2Peer *peer, int only, int expected);
void assert_silence(Ivshmem2Peer *peer);
void ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector);
void set_state(Ivshmem2Peer *peer, uint32_t state);

/* Wait until peer @id has this @state. */
void await_state(Ivshmem2Peer *peer, uint32_t id, uint32_t state);

/* The program */

/* For g_spawn functions: the child ends when the test ends or crashes. */
void end_with_parent(gpointer opaque);

/* @args: quoted as for a shell.  The caller closes the descriptors. */
GPid start_client(const char *args, int *in, int *out, int *err);

/* The same as peer 1 with state 1, which @other sees before this returns. */
GPid start_peer(Server *l, Ivshmem2Peer *other, const char *args, int *in,
                int *out, int *err);

/* All text until the end, and close @fd. */
char *read_all(int fd);

/* Read from @fd until there is @words. */
void await_words(int fd, const char *words);

/* It ends with the status @expected, and @fd has @words; closes @fd. */
void assert_end(GPid pid, int fd, int expected, const char *words);

typedef struct Run {
    int status;
    char *out;
    char *err;
} Run;

void run_clear(Run *r);
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Run, run_clear)

/* Run it to its end with @input. */
Run run_client(const char *input, const char *args);

/* On the link @l, it ends with @status and prints @out and @err. */
void assert_run(Server *l, const char *args, int status, const char *out,
                const char *err);

typedef struct ClientTest {
    const char *path;
    GTestFunc run;
} ClientTest;

/* Returns the exit status of a program with these tests. */
int client_tests_run(int argc, char **argv, const ClientTest *tests,
                     size_t n);

#endif /* IVSHMEM2_CLIENT_UTIL_H */
