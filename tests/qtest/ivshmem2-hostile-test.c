/*
 * ivshmem2 tests: hostile servers
 *
 * A scripted server does one thing wrong at a time, while a device is plugged
 * into a running VM.  That has to fail with an error that names the cause,
 * leave nothing behind, and leave the VM able to plug a good device.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gstdio.h>
#include "qemu/module.h"
#include "ivshmem2-scripted.h"

/*
 * Plugging
 */

static void plug_badly(QPCIBus *bus, TestLink *link, const TestCase *script,
                       int timeout_ms, unsigned fds)
{
    TestServer *server = test_server_start(link, script, PEERS);
    g_autofree char *error =
        test_link_plug(bus->qts, "bad", link->socket, 0,
                       test_packet_props(script->peer_id, timeout_ms));

    g_test_message("%s, step %d, action %d: %s", script->name ?: "",
                   script->step, script->action, error ?: "plugged");
    g_assert_nonnull(error);
    g_assert_nonnull(strstr(error, script->error));
    test_server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

/* Each step of the handshake, with the same action */
static void plug_at_each_step(QPCIBus *bus, TestLink *link,
                              QGuestAllocator *alloc, TestStep first,
                              TestAction action, int timeout_ms,
                              const char *error)
{
    unsigned fds = test_link_count_fds(bus->qts);

    for (TestStep step = first; step < STEP_COUNT; step++) {
        TestCase script = { .step = step, .action = action, .error = error };

        plug_badly(bus, link, &script, timeout_ms, fds);
    }
    test_packet_plug_well(bus, link, alloc, fds);
}

static void test_close(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_ACCEPT, ACT_CLOSE, 60000,
                      "the server closed the connection");
}

static void test_cut(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_WELCOME, ACT_CUT_CLOSE, 60000,
                      "the server closed the connection");
}

static void test_garbage(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_WELCOME, ACT_BYTES, 60000,
                      "is it an ivshmem2 server?");
}

static void test_silence(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_ACCEPT, ACT_SILENCE, 200,
                      "not complete in time");
}

static void test_half_silence(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_at_each_step(obj, link, alloc, STEP_WELCOME, ACT_CUT_SILENCE, 200,
                      "not complete in time");
}

/* A server that sends the last message again and again, without a pause */
static void test_endless(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase script = {
        .step = STEP_READY, .action = ACT_ENDLESS,
        .error = "not complete in time",
    };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);

    plug_badly(bus, link, &script, 500, fds);
    test_packet_plug_well(bus, link, alloc, fds);
}

/*
 * Messages that are wrong
 */

/* The text is not terminated. */
static void change_type_long_error(TestPacket *p)
{
    test_server_refuse(p);
    memset(p->msg.refusal.text, 'x', sizeof(p->msg.refusal.text));
}

static void change_type_ready(TestPacket *p)
{
    p->msg.hdr.type = IVSHMEM2_MSG_READY;
    p->hdr = (Ivshmem2Header) { .type = IVSHMEM2_MSG_READY, .size = 8 };
    p->size = 8;
    p->n_fds = 0;
}

static void change_fds_0(TestPacket *p)
{
    p->hdr.fds = 0;
    p->n_fds = 0;
}

static void change_fds_surplus(TestPacket *p)
{
    p->fds[p->n_fds++] = p->fds[0];
}

static void change_fds_announced_surplus(TestPacket *p)
{
    change_fds_surplus(p);
    p->hdr.fds++;
}

static void change_fds_32(TestPacket *p)
{
    while (p->n_fds < 32) {
        p->fds[p->n_fds++] = p->fds[0];
    }
}

/* Descriptors that are no memory files */

static int make_null(void)
{
    return test_packet_keep(open("/dev/null", O_RDWR | O_CLOEXEC));
}

static int make_file(void)
{
    g_autofree char *path = NULL;
    int fd = test_packet_keep(g_file_open_tmp("iv2-XXXXXX", &path, NULL));

    g_unlink(path);
    g_assert_cmpint(ftruncate(fd, SECTION), ==, 0);
    return fd;
}

static const TestCase header_cases[] = {
    CASE(WELCOME, type_unknown, FIELD(hdr.type, 0x7777), "unknown type 0x7777"),
    CASE(WELCOME, type_mine, FIELD(hdr.type, IVSHMEM2_MSG_RING),
         "server sent RING, which is not its to send"),
    CASE(WELCOME, type_ready, CALL(change_type_ready),
         "READY came out of order"),
    CASE(WELCOME, size_0, FIELD(hdr.size, 0),
         "WELCOME with size 0 instead of 72"),
    CASE(WELCOME, size_8, FIELD(hdr.size, 8),
         "WELCOME with size 8 instead of 72"),
    CASE(WELCOME, size_more, FIELD(hdr.size, 73),
         "WELCOME with size 73 instead of 72"),
    CASE(WELCOME, size_huge, FIELD(hdr.size, 0xfffffff8),
         "WELCOME with size 4294967288 instead of 72"),
    CASE(OUTPUTS, type_unknown, FIELD(hdr.type, 0x7777), "unknown type 0x7777"),
    CASE(OUTPUTS, type_ready, CALL(change_type_ready),
         "READY came out of order"),
    CASE(OUTPUTS, size_huge, FIELD(hdr.size, 0xfffffff8),
         "OUTPUTS with size 4294967288 instead of 16"),
    CASE(EVENTFDS, type_unknown, FIELD(hdr.type, 0x7777),
         "unknown type 0x7777"),
    CASE(EVENTFDS, type_outputs, FIELD(hdr.type, IVSHMEM2_MSG_OUTPUTS),
         "OUTPUTS came out of order"),
    CASE(EVENTFDS, type_ready, CALL(change_type_ready),
         "READY came before all 2 eventfds"),
    CASE(EVENTFDS, size_0, FIELD(hdr.size, 0),
         "EVENTFDS with size 0 instead of 16"),
    CASE(READY, type_unknown, FIELD(hdr.type, 0x7777), "unknown type 0x7777"),
    CASE(READY, type_outputs, FIELD(hdr.type, IVSHMEM2_MSG_OUTPUTS),
         "OUTPUTS with size 8 instead of 16"),
    CASE(READY, size_more, FIELD(hdr.size, 9),
         "READY with size 9 instead of 8"),
};

static const TestCase refusal_cases[] = {
    CASE(WELCOME, type_error, CALL(test_server_refuse),
         "the server says: no room?[31m for you?"),
    CASE(OUTPUTS, type_error, CALL(test_server_refuse),
         "the server says: no room?[31m for you?"),
    CASE(EVENTFDS, type_error, CALL(test_server_refuse),
         "the server says: no room?[31m for you?"),
    CASE(READY, type_error, CALL(test_server_refuse),
         "the server says: no room?[31m for you?"),
    CASE(WELCOME, type_long_error, CALL(change_type_long_error),
         "the server says: xxxxxx"),
};

static const TestCase welcome_cases[] = {
    CASE(WELCOME, version_0, FIELD(msg.welcome.version, 0), "version 0"),
    CASE(WELCOME, version_2, FIELD(msg.welcome.version, 2), "version 2"),
    CASE(WELCOME, peers_1, FIELD(msg.welcome.max_peers, 1),
         "the link has 1 peers"),
    CASE(WELCOME, peers_65537, FIELD(msg.welcome.max_peers, 65537),
         "the link has 65537 peers"),
    CASE(WELCOME, peers_max, FIELD(msg.welcome.max_peers, UINT32_MAX),
         "the link has 4294967295 peers"),
    CASE(WELCOME, peers_2048, FIELD(msg.welcome.max_peers, 2048),
         "too small for 2048 peers"),
    CASE(WELCOME, id_2, FIELD(msg.welcome.id, 2), "ID 2 is out of range"),
    CASE(WELCOME, id_max, FIELD(msg.welcome.id, UINT32_MAX),
         "ID 4294967295 is out of range"),
    CASE(WELCOME, another_id, FIELD(msg.welcome.id, 0),
         "the server gave us ID 0 instead of 1", .peer_id = "1"),
    CASE(WELCOME, features_0, FIELD(msg.welcome.features, 0),
         "interrupt features 0x0"),
    CASE(WELCOME, features_both,
         FIELD(msg.welcome.features, IVSHMEM2_F_INTERRUPTS),
         "interrupt features 0x3"),
    CASE(WELCOME, features_intx, FIELD(msg.welcome.features, IVSHMEM2_F_INTX),
         "2 vectors are not possible"),
    CASE(WELCOME, vectors_0, FIELD(msg.welcome.vectors, 0),
         "0 vectors are not possible"),
    CASE(WELCOME, vectors_2049, FIELD(msg.welcome.vectors, 2049),
         "2049 vectors are not possible"),
    CASE(WELCOME, page_0, FIELD(msg.welcome.page_size, 0), "page size 0"),
    CASE(WELCOME, page_2k, FIELD(msg.welcome.page_size, 2 * KiB),
         "page size 2048"),
    CASE(WELCOME, page_odd, FIELD(msg.welcome.page_size, 4097),
         "page size 4097"),
    CASE(WELCOME, page_128k, FIELD(msg.welcome.page_size, 128 * KiB),
         "page size 131072"),
    CASE(WELCOME, table_0, FIELD(msg.welcome.state_table_size, 0),
         "State Table of 0 bytes"),
    CASE(WELCOME, table_odd, FIELD(msg.welcome.state_table_size, SECTION + 8),
         "not multiples of the link's page size"),
    CASE(WELCOME, rw_odd, FIELD(msg.welcome.rw_size, SECTION + 1),
         "not multiples of the link's page size"),
    CASE(WELCOME, rw_max, FIELD(msg.welcome.rw_size, -SECTION),
         "the sections are larger than"),
    CASE(WELCOME, output_max, FIELD(msg.welcome.output_size, UINT64_C(1) << 63),
         "the sections are larger than"),
};

static const TestCase descriptor_cases[] = {
    CASE(WELCOME, fds_0, CALL(change_fds_0), "announced 0 descriptors"),
    CASE(WELCOME, fds_17, FIELD(hdr.fds, 17), "announced 17 descriptors"),
    CASE(WELCOME, fds_none_came, FIELD(n_fds, 0), "came with 0 descriptors"),
    CASE(WELCOME, fds_missing, FIELD(n_fds, 1), "came with 1 descriptors"),
    CASE(WELCOME, fds_surplus, CALL(change_fds_surplus),
         "came with 3 descriptors"),
    CASE(WELCOME, fds_announced_surplus, CALL(change_fds_announced_surplus),
         "announced 3 descriptors"),
    CASE(WELCOME, fds_32, CALL(change_fds_32), "WELCOME"),
    CASE(WELCOME, rw_0, FIELD(msg.welcome.rw_size, 0),
         "came with 2 descriptors instead of 1"),
    CASE(WELCOME, fd0_pipe, FD(0, test_packet_pipe),
         "State Table is not a memory file"),
    CASE(WELCOME, fd0_null, FD(0, make_null),
         "State Table is not a memory file"),
    CASE(WELCOME, fd0_file, FD(0, make_file), "State Table"),
    CASE(WELCOME, fd0_eventfd, FD(0, test_packet_eventfd),
         "State Table is not a memory file"),
    CASE(WELCOME, fd0_unsealed, MEMORY(0, SECTION, 0, O_RDWR),
         "State Table is not sealed"),
    CASE(WELCOME, fd0_may_shrink, MEMORY(0, SECTION, F_SEAL_GROW, O_RDWR),
         "State Table is not sealed"),
    CASE(WELCOME, fd0_may_grow, MEMORY(0, SECTION, F_SEAL_SHRINK, O_RDWR),
         "State Table is not sealed"),
    CASE(WELCOME, fd0_small, MEMORY(0, SECTION - 1, SEALS, O_RDWR),
         "State Table has 4095 bytes, too small"),
    CASE(WELCOME, table_large, FIELD(msg.welcome.state_table_size, 8 * KiB),
         "State Table has 4096 bytes, too small"),
    CASE(WELCOME, fd0_read_only, MEMORY(0, SECTION, SEALS, O_RDONLY),
         "State Table is not open for reading and writing"),
    CASE(WELCOME, fd1_pipe, FD(1, test_packet_pipe),
         "R/W section is not a memory file"),
    CASE(WELCOME, fd1_unsealed, MEMORY(1, SECTION, 0, O_RDWR),
         "R/W section is not sealed"),
    CASE(WELCOME, fd1_small, MEMORY(1, 0, SEALS, O_RDWR),
         "R/W section has 0 bytes, too small"),
    CASE(WELCOME, rw_large, FIELD(msg.welcome.rw_size, 1 * GiB),
         "R/W section has 4096 bytes, too small"),
    CASE(WELCOME, fd1_read_only, MEMORY(1, SECTION, SEALS, O_RDONLY),
         "R/W section is not open for reading and writing"),
    CASE(OUTPUTS, fds_0, CALL(change_fds_0), "announced 0 descriptors"),
    CASE(OUTPUTS, fds_missing, FIELD(n_fds, 1), "came with 1 descriptors"),
    CASE(OUTPUTS, fds_surplus, CALL(change_fds_surplus),
         "came with 3 descriptors"),
    CASE(OUTPUTS, fds_announced_surplus, CALL(change_fds_announced_surplus),
         "OUTPUTS is about sections 0 to 2"),
    CASE(OUTPUTS, first_1, FIELD(msg.outputs.first, 1),
         "OUTPUTS is about sections 1 to 2"),
    CASE(OUTPUTS, first_max, FIELD(msg.outputs.first, UINT32_MAX),
         "OUTPUTS is about sections"),
    CASE(OUTPUTS, fd0_pipe, FD(0, test_packet_pipe),
         "output section 0 is not a memory file"),
    CASE(OUTPUTS, fd0_unsealed, MEMORY(0, SECTION, 0, O_RDWR),
         "output section 0 is not sealed"),
    CASE(OUTPUTS, fd0_small, MEMORY(0, SECTION - 1, SEALS, O_RDWR),
         "output section 0 has 4095 bytes, too small"),
    CASE(OUTPUTS, fd0_read_only, MEMORY(0, SECTION, SEALS, O_RDONLY),
         "output section 0 is not open for reading and writing"),
    CASE(OUTPUTS, fd0_write_only, MEMORY(0, SECTION, SEALS, O_WRONLY),
         "output section 0 is not open for reading and writing"),
    CASE(OUTPUTS, fd1_unsealed, MEMORY(1, SECTION, 0, O_RDWR),
         "output section 1 is not sealed"),
    CASE(OUTPUTS, fd1_small, MEMORY(1, 0, SEALS, O_RDWR),
         "output section 1 has 0 bytes, too small"),
    CASE(WELCOME, output_large, FIELD(msg.welcome.output_size, 8 * KiB),
         "output section 0 has 4096 bytes"),
    CASE(EVENTFDS, fds_0, CALL(change_fds_0), "our own are missing from 0 on"),
    CASE(EVENTFDS, fds_none_came, FIELD(n_fds, 0), "came with 0 descriptors"),
    CASE(EVENTFDS, fds_missing, FIELD(n_fds, 1), "came with 1 descriptors"),
    CASE(EVENTFDS, fds_surplus, CALL(change_fds_surplus),
         "came with 3 descriptors"),
    CASE(EVENTFDS, fds_announced_surplus, CALL(change_fds_announced_surplus),
         "the link has 2 peers with 2"),
    CASE(EVENTFDS, fds_32, CALL(change_fds_32), "EVENTFDS"),
    CASE(EVENTFDS, eventfds_first_1, FIELD(msg.eventfds.first, 1),
         "EVENTFDS is about peer 0"),
    CASE(EVENTFDS, eventfds_first_max, FIELD(msg.eventfds.first, UINT32_MAX),
         "EVENTFDS is about peer 0"),
    CASE(EVENTFDS, eventfds_id_1, FIELD(msg.eventfds.id, 1),
         "EVENTFDS is about peer 1"),
    CASE(EVENTFDS, eventfds_id_2, FIELD(msg.eventfds.id, 2),
         "EVENTFDS is about peer 2"),
    CASE(EVENTFDS, fd0_pipe, FD(0, test_packet_pipe), "not an eventfd"),
    CASE(EVENTFDS, fd0_memory, MEMORY(0, SECTION, SEALS, O_RDWR),
         "not an eventfd"),
    CASE(EVENTFDS, fd0_null, FD(0, make_null), "not an eventfd"),
    CASE(EVENTFDS, fd1_unsealed, MEMORY(1, SECTION, 0, O_RDWR),
         "not an eventfd"),
    CASE(READY, fds_surplus, CALL(change_fds_surplus),
         "READY came with 1 descriptors"),
    CASE(WELCOME, split, .action = ACT_SPLIT,
         "descriptors came in the middle of a message"),
    CASE(EVENTFDS, split, .action = ACT_SPLIT,
         "descriptors came in the middle of a message"),
};

static void plug_cases(QPCIBus *bus, TestLink *link, QGuestAllocator *alloc,
                       const TestCase *cases, int n)
{
    unsigned fds = test_link_count_fds(bus->qts);

    for (int i = 0; i < n; i++) {
        plug_badly(bus, link, &cases[i], 60000, fds);
    }
    test_packet_plug_well(bus, link, alloc, fds);
}

static void test_headers(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, header_cases, ARRAY_SIZE(header_cases));
}

static void test_refusals(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, refusal_cases, ARRAY_SIZE(refusal_cases));
}

static void test_welcome(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, welcome_cases, ARRAY_SIZE(welcome_cases));
}

static void test_descriptors(void *obj, void *link, QGuestAllocator *alloc)
{
    plug_cases(obj, link, alloc, descriptor_cases,
               ARRAY_SIZE(descriptor_cases));
}

/* The server of ivshmem version 1 begins with three numbers of 64 bits. */
static void change_version_1(TestPacket *p)
{
    memset(&p->msg, 0, sizeof(p->msg));
    p->msg.hdr.type = IVSHMEM2_MSG_WELCOME;
    p->hdr = (Ivshmem2Header) {};
    p->fds[0] = test_packet_memory(4 * MiB, 0);
    p->n_fds = 1;
    p->size = 24;
}

static void test_version_1(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase script =
        CASE(WELCOME, version_1, CALL(change_version_1),
             "this is an ivshmem version-1 server");

    plug_cases(obj, link, alloc, &script, 1);
}

/* A slow server is accepted, as long as the handshake is complete in time. */
static void test_trickle(void *obj, void *link, QGuestAllocator *alloc)
{
    static const TestCase script = {
        .action = ACT_TRICKLE, .step = STEP_COUNT,
    };
    QPCIBus *bus = obj;
    unsigned fds = test_link_count_fds(bus->qts);
    TestServer *server = test_server_start(link, &script, PEERS);

    g_assert_null(test_link_plug(bus->qts, "slow",
                                 ((TestLink *)link)->socket, 0,
                                 test_packet_props(NULL, 60000)));
    g_assert_true(test_link_get_bool(bus->qts, "slow", "connected"));
    test_link_unplug(bus->qts, "slow", SLOT);
    test_server_stop(server);
    test_link_wait_fds(bus->qts, fds);
}

static void register_ivshmem2_hostile_test(void)
{
    static const struct {
        const char *name;
        QOSTestFunc function;
    } tests[] = {
        { "ivshmem2/hostile/close", test_close },
        { "ivshmem2/hostile/cut", test_cut },
        { "ivshmem2/hostile/garbage", test_garbage },
        { "ivshmem2/hostile/silence", test_silence },
        { "ivshmem2/hostile/half-silence", test_half_silence },
        { "ivshmem2/hostile/endless", test_endless },
        { "ivshmem2/hostile/trickle", test_trickle },
        { "ivshmem2/hostile/version-1", test_version_1 },
        { "ivshmem2/hostile/headers", test_headers },
        { "ivshmem2/hostile/refusals", test_refusals },
        { "ivshmem2/hostile/welcome", test_welcome },
        { "ivshmem2/hostile/descriptors", test_descriptors },
    };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        test_link_add(tests[i].name, "pci-bus", tests[i].function, NULL);
    }
}

libqos_init(register_ivshmem2_hostile_test);
