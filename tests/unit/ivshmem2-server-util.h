/*
 * A real ivshmem2-server for the tests that need one
 *
 * The program is that of IVSHMEM2_SERVER.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SERVER_UTIL_H
#define IVSHMEM2_SERVER_UTIL_H

#include "ivshmem2-util.h"
#include <glib/gstdio.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

/* Limit for what should happen at once, on a machine that is busy otherwise */
#define SOON_MS     20000
/* How long to watch that something does not happen */
#define NEVER_MS    100

typedef struct Server {
    char *dir;
    char *socket;
    pid_t pid;                  /* 0: not running */
    unsigned n_fds;             /* of this process, before */
} Server;

/* Users: three that nobody else uses if this is root, else this user */

uid_t test_uid(unsigned i);

#define SERVER_UID  test_uid(0)
#define USER_UID    test_uid(1)
#define OTHER_UID   test_uid(2)

/*
 * Be an ordinary user from now on, in the directory of @s: the socket can be
 * reached from there, whatever the permissions of the directories above.
 */
void become(Server *s, uid_t uid);

/* Processes */

bool have_program(const char *name);

/* Make sure that this child does not outlive its parent, the test. */
void die_with_parent(pid_t parent);

/* Start a program and do not wait for it.  @child is called in it before. */
pid_t spawn(char **argv, void (*child)(void *opaque), void *opaque);

/* Starting and stopping */

void server_init(Server *s);

/* The command line; @options: words with one space between them */
char **server_argv(const char *prefix, const char *socket,
                   const char *options);

void server_start(Server *s, const char *options);
void server_start_with(Server *s, const char *prefix, const char *options);

/* Start it as an ordinary user who may open @files.  All users can connect. */
void server_start_limited(Server *s, rlim_t files, const char *options);

typedef struct Limited {
    Server *server;
    rlim_t files;
    char **argv;
} Limited;

/* In a child, run a program with the limits of a Limited. */
void run_limited(void *opaque);

/* Send it @sig and return how it ended (see waitpid()). */
int server_stop(Server *s, int sig);

/* Stop it, and check that it ended well and left no file or descriptor. */
void server_end(Server *s);

/*
 * Start a server that should fail, and return its error message.  @child is
 * called in it before.
 */
char *server_fail_with(char **argv, GSpawnChildSetupFunc child, void *opaque);
char *server_fail(char **argv);

void assert_says_text(const char *text, const char *want);

/* Waiting and looking */

/* Wait 10 ms, at most until *@tries is 0, which starts at SOON_MS / 10. */
void wait_a_little(int *tries);
void wait_for_file(const char *path);
void wait_for_server(const char *path);

/* Descriptors that the server has open */
unsigned server_count_fds(Server *s);
void server_wait_fds(Server *s, unsigned n);

/* Connecting */

/* Returns -1 if nobody listens. */
int server_try_connect(Server *s);
int server_connect(Server *s);

/*
 * Send @data in one piece, and @n times the descriptor @passed with it.
 * Returns false if the kernel refuses this for the receiver (Linux 6.16).
 */
bool send_with_fds(int fd, const void *data, size_t len, int passed,
                   unsigned n);

#endif /* IVSHMEM2_SERVER_UTIL_H */
