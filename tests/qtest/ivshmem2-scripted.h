/*
 * ivshmem2 tests: a server that does one thing wrong
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_IVSHMEM2_SCRIPTED_H
#define TESTS_IVSHMEM2_SCRIPTED_H

#include "ivshmem2-packet.h"

/* The names of that file, shorter */
#define SEALS       TEST_PACKET_SEALS
#define SLOT        TEST_PACKET_SLOT
#define PEERS       TEST_PACKET_PEERS
#define VECTORS     TEST_PACKET_VECTORS
#define SECTION     TEST_PACKET_SECTION

/* accept(), and the messages of a handshake */
typedef enum TestStep {
    STEP_ACCEPT,
    STEP_WELCOME,
    STEP_OUTPUTS,
    STEP_EVENTFDS,
    STEP_READY,
    STEP_COUNT,
} TestStep;

typedef enum TestAction {
    ACT_NOTHING,        /* a good server */
    ACT_CLOSE,
    ACT_SILENCE,
    ACT_CUT_CLOSE,      /* close in the middle of the message */
    ACT_CUT_SILENCE,
    ACT_FIELD,          /* give a field of the message another value */
    ACT_FD,             /* put another descriptor in its place */
    ACT_MEMORY,         /* the same, with other memory */
    ACT_CALL,           /* call a function that changes the message */
    ACT_BYTES,          /* send no ivshmem2 message */
    ACT_BLOCK,          /* closing the message's descriptors waits */
    ACT_BLOCK_UNREAD,   /* the same, after what ends the connection */
    ACT_SPLIT,          /* descriptors come with the second half */
    ACT_TRICKLE,        /* all messages, byte by byte */
    ACT_ENDLESS,        /* the message before this one, again and again */
} TestAction;

typedef struct TestCase {
    const char *name;
    TestStep step;
    TestAction action;
    size_t offset;              /* ACT_FIELD: of the field in a TestPacket */
    uint64_t size;              /* of the field, or of the memory */
    uint64_t value;             /* ACT_FIELD */
    unsigned index;             /* ACT_FD, ACT_MEMORY: of the descriptor */
    int (*make_fd)(void);       /* ACT_FD */
    int seals;                  /* ACT_MEMORY */
    int mode;                   /* ACT_MEMORY: O_RDWR, O_RDONLY, O_WRONLY */
    void (*call)(TestPacket *p);    /* ACT_CALL */
    const char *error;          /* words of the device's error */
    const char *peer_id;
} TestCase;

/* With @push, links have at most so many other peers. */
#define TEST_SERVER_OTHERS  8

typedef struct TestServer {
    TestLink *link;
    const TestCase *script;
    uint32_t max_peers;
    bool keep;                  /* keep the connection, once it is ready */
    bool resumes;               /* the last HELLO had our session */
    bool push;                  /* send the eventfds of all other peers, too */
    int listen_fd;
    int stop_fd;                /* eventfd */
    int fd;                     /* the connection that is ready */
    int eventfds[VECTORS];
    int others[TEST_SERVER_OTHERS]; /* with @push: vector 0 of IDs 1 ... */
    int table;                  /* the first State Table that was sent, or 0 */
    TestPacket last;
    GThread *thread;
} TestServer;

/*
 * A case: the message of @step is sent with a change, and the device's error
 * says @words.  A change is one of those below, or another action.
 */
#define CASE(step_, what, change, words, ...)                           \
    { .name = #step_ " " #what, .step = STEP_ ## step_, change,         \
      .error = words, ## __VA_ARGS__ }

#define FIELD(field, number)                                            \
    .action = ACT_FIELD, .offset = offsetof(TestPacket, field),         \
    .size = sizeof_field(TestPacket, field), .value = number

#define FD(i, function)                                                 \
    .action = ACT_FD, .index = i, .make_fd = function

#define MEMORY(i, bytes, memory_seals, access_mode)                     \
    .action = ACT_MEMORY, .index = i, .size = bytes,                    \
    .seals = memory_seals, .mode = access_mode

#define CALL(function)                                                  \
    .action = ACT_CALL, .call = function

/* A good server, without a @script; then it keeps the first connection. */
TestServer *test_server_start(TestLink *link, const TestCase *script,
                              uint32_t max_peers);
void test_server_stop(TestServer *s);

/* Wait for a complete handshake; from then on, the test is the server. */
void test_server_take(TestServer *s);

/* Start the thread (again), which accepts connections and follows the script */
void test_server_accept(TestServer *s);
void *test_server_thread(void *s);

/* Send @p as the script says; false if this ends the connection. */
bool test_server_say(TestServer *s, int fd, TestStep step, TestPacket *p);

/* Until the device hangs up, or the test is over */
void test_server_wait_closed(TestServer *s, int fd);

/* For ACT_CALL: a message REFUSED instead */
void test_server_refuse(TestPacket *p);

#endif /* TESTS_IVSHMEM2_SCRIPTED_H */
