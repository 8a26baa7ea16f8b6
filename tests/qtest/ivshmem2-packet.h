/*
 * ivshmem2 tests: what a server sends, right or wrong
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_IVSHMEM2_PACKET_H
#define TESTS_IVSHMEM2_PACKET_H

#include "qemu/units.h"
#include "libivshmem2-core.h"
#include "ivshmem2-link.h"

/* The link that such a server claims to have */
#define TEST_PACKET_PEERS       2
#define TEST_PACKET_VECTORS     2
#define TEST_PACKET_SECTION     (4 * KiB)
#define TEST_PACKET_SEALS       (F_SEAL_SHRINK | F_SEAL_GROW)
#define TEST_PACKET_SESSION     "session of test"
/* More than a receiver takes from one message */
#define TEST_PACKET_MAX_FDS     32

/* The slot of devices that are connected to such servers */
#define TEST_PACKET_SLOT        5

/* A message to be sent */
typedef struct TestPacket {
    Ivshmem2Msg msg;            /* the payload, in host byte order */
    Ivshmem2Header hdr;
    size_t size;                /* bytes to be sent */
    int fds[TEST_PACKET_MAX_FDS];
    unsigned n_fds;
} TestPacket;

/* Descriptors that are closed by test_packet_close_all() */
int test_packet_keep(int fd);
int test_packet_memory(uint64_t size, int seals);
int test_packet_reopen(int fd, int mode);   /* O_RDONLY, O_WRONLY */
int test_packet_pipe(void);
int test_packet_eventfd(void);
void test_packet_close_all(void);

/*
 * A socket: the last process to close it waits for TEST_PACKET_LINGER_S, or
 * until test_packet_close_all().
 */
#define TEST_PACKET_LINGER_S    10
int test_packet_blocking(void);

/*
 * The messages of a handshake, with descriptors of their own.  Output
 * sections are only there on a link of TEST_PACKET_PEERS.
 */
TestPacket test_packet_welcome(uint32_t id, uint32_t max_peers);
TestPacket test_packet_outputs(uint32_t id);
TestPacket test_packet_eventfds(uint32_t id);

/* Set header and size to what is right for p->msg with its descriptors. */
void test_packet_finish(TestPacket *p);

Ivshmem2Msg test_packet_encode(const TestPacket *p);

/* Returns false if the receiver has closed the connection. */
bool test_packet_send(int fd, const void *buf, size_t size, const int *fds,
                      unsigned n_fds);

/*
 * The same, and the receiver is the last one to close those descriptors that
 * are from test_packet_blocking(): it is stopped until they are closed here.
 * Bytes @before are sent first.
 */
bool test_packet_send_last(int fd, const char *before, const void *buf,
                           size_t size, const int *fds, unsigned n_fds);

/* A socket that devices can connect to */
int test_packet_listen(TestLink *link);

/* Connect until @path's server has no room; returns how often that worked. */
int test_packet_fill_backlog(const char *path, int *fds, int max);

/* Properties of a device to be plugged */
QDict *test_packet_props(const char *peer_id, int timeout_ms);

/*
 * After failures, check that a device with a good server can be plugged, and
 * that QEMU has no more than @fds descriptors after its unplugging.
 */
void test_packet_plug_well(QPCIBus *bus, TestLink *link,
                           QGuestAllocator *alloc, unsigned fds);

#endif /* TESTS_IVSHMEM2_PACKET_H */
