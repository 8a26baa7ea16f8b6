/*
 * ivshmem2 client session: the handshake, and its checks of the server's
 * messages
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-session-util.h"
#include <inttypes.h>

/* The good case */

static void test_handshake(Fixture *f, gconstpointer opaque)
{
    const uint8_t none[IVSHMEM2_UUID_SIZE] = { 0 };
    Ivshmem2Msg msg;
    void *memory;

    assert_says_nothing(f);
    ivshmem2_session_connected(f->s);
    assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
    g_assert_cmphex(msg.hello.magic, ==, IVSHMEM2_MAGIC);
    g_assert_cmpuint(msg.hello.version_min, ==, IVSHMEM2_VERSION_MIN);
    g_assert_cmpuint(msg.hello.version_max, ==, IVSHMEM2_VERSION_MAX);
    g_assert_cmpstr(msg.hello.name, ==, "test");
    g_assert_cmpuint(msg.hello.id, ==, IVSHMEM2_ID_ANY);
    g_assert_cmpmem(msg.hello.session, sizeof(none), none, sizeof(none));
    assert_says_nothing(f);

    go_to(f, AFTER_READY);
    g_assert_cmpmem(ivshmem2_session_info(f->s), sizeof(f->welcome),
                    &f->welcome, sizeof(f->welcome));
    for (uint32_t i = 0; i < N_VECTORS; i++) {
        g_assert_cmpint(ivshmem2_session_own_eventfd(f->s, i), >=, 0);
        assert_held(f, OWN_ID, i, ivshmem2_session_own_eventfd(f->s, i));
    }
    g_assert_cmpint(ivshmem2_session_own_eventfd(f->s, N_VECTORS), ==, -1);
    assert_not_held(f, 0, 0);
    g_assert_cmpint(ivshmem2_session_ring(f->s, N_PEERS, 0, NULL), ==,
                    IVSHMEM2_RING_NOBODY);
    memory = ivshmem2_session_map(f->s, NULL);
    g_assert_nonnull(memory);
    munmap(memory, ivshmem2_total_size(&f->welcome));
}

/* Do core dumps leave out the mapping at @address? */
static bool is_left_out(const void *address)
{
    g_autofree char *start = g_strdup_printf("\n%" PRIxPTR "-",
                                             (uintptr_t)address);
    g_autofree char *text = NULL;
    g_auto(GStrv) flags = NULL;
    const char *at;

    g_assert_true(g_file_get_contents("/proc/self/smaps", &text, NULL, NULL));
    at = strstr(text, start);
    g_assert_nonnull(at);
    at = strstr(at, "VmFlags:");
    g_assert_nonnull(at);
    flags = g_strsplit_set(at, "\n ", 64);
    for (unsigned i = 1; flags[i] && *flags[i]; i++) {
        if (!strcmp(flags[i], "dd")) {
            return true;
        }
    }
    return false;
}

/* The order and the access of the sections in memory */
static void test_map(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    uint64_t rw, own, other;
    char *memory;

    go_to(f, AFTER_READY);
    memory = ivshmem2_session_map(f->s, &error);
    g_assert_no_error(error);
    g_assert_cmpuint((uintptr_t)memory % (2 * 1024 * 1024), ==, 0);
    rw = ivshmem2_rw_offset(&f->welcome);
    other = ivshmem2_output_offset(&f->welcome, 0);
    own = ivshmem2_output_offset(&f->welcome, OWN_ID);
    g_assert_cmpuint(rw, ==, 4096);
    g_assert_cmpuint(other, ==, 4096 + 8192);
    g_assert_cmpuint(own, ==, 4096 + 8192 + 4096);
    g_assert_cmpuint(ivshmem2_total_size(&f->welcome), ==,
                     4096 + 8192 + N_PEERS * 4096);
    /* here, one file is behind all sections */
    memory[rw + 5] = 'x';
    g_assert_cmpint(memory[5], ==, 'x');
    g_assert_cmpint(memory[other + 5], ==, 'x');
    memory[own + 5] = 'y';
    g_assert_cmpint(memory[other + 5], ==, 'y');
    g_assert_true(is_left_out(memory));
    g_assert_true(is_left_out(memory + rw));
    g_assert_true(is_left_out(memory + other));
    g_assert_true(is_left_out(memory + own));
    /* the kernel refuses to write to read-only memory */
    g_assert_cmpint(pread(f->memory, memory + other, 1, 0), ==, -1);
    g_assert_cmpint(pread(f->memory, memory + own, 1, 0), ==, 1);
    munmap(memory, ivshmem2_total_size(&f->welcome));
}

/* Mapping closes the files, unless they are to be read. */
static void test_read(Fixture *f, gconstpointer opaque)
{
    const uint64_t total = ivshmem2_total_size(&f->welcome);
    const uint64_t rw = ivshmem2_rw_offset(&f->welcome);
    const unsigned files = 2 + N_PEERS;
    g_autoptr(GError) error = NULL;
    unsigned before = count_fds();
    bool keep = opaque;
    uint8_t *memory;
    uint8_t bytes[4];

    if (keep) {
        ivshmem2_session_keep_files(f->s);
    }
    go_to(f, AFTER_READY);
    g_assert_cmpuint(count_fds(), ==, before + files + N_VECTORS);
    memory = ivshmem2_session_map(f->s, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(count_fds(), ==,
                     before + (keep ? files : 0) + N_VECTORS);
    memcpy(memory + rw + f->welcome.rw_size - 2, "ab", 2);
    memcpy(memory, "cd", 2);
    if (keep) {
        g_assert_true(ivshmem2_session_read(f->s, rw + f->welcome.rw_size - 2,
                                            bytes, sizeof(bytes), &error));
        /* here, one file is behind all sections */
        g_assert_cmpmem(bytes, sizeof(bytes), "abcd", sizeof(bytes));
        g_assert_true(ivshmem2_session_read(f->s, total, bytes, 0, &error));
    } else {
        g_assert_false(ivshmem2_session_read(f->s, rw, bytes, 1, &error));
        assert_error(error, IVSHMEM2_ERROR_ARGUMENT, "KEEP_FILES");
    }
    munmap(memory, total);
    /* the files are kept for a resumed session, too */
    ivshmem2_session_disconnected(f->s);
    g_assert_cmpuint(count_fds(), ==,
                     before + (keep ? files : 0) + N_VECTORS);
}

static void test_small(Fixture *f, gconstpointer opaque)
{
    f->welcome.rw_size = 0;
    f->welcome.output_size = 0;
    go_to(f, AFTER_READY);
    g_assert_cmpuint(ivshmem2_total_size(ivshmem2_session_info(f->s)), ==,
                     4096);
}

/* A bad WELCOME */

typedef struct BadWelcome {
    const char *name;
    size_t offset;
    size_t size;
    uint64_t value;
    const char *text;
} BadWelcome;

#define BAD(name, field, value, text) \
    { name, offsetof(Ivshmem2Welcome, field), \
      sizeof(((Ivshmem2Welcome *)NULL)->field), value, text }

static const BadWelcome bad_welcomes[] = {
    BAD("version-0", version, 0, "wants to speak version 0"),
    BAD("version-2", version, 2, "wants to speak version 2"),
    BAD("features-0", features, 0, "not exactly one"),
    BAD("features-both", features, 3, "not exactly one"),
    BAD("features-other", features, 4, "not exactly one"),
    BAD("intx", features, IVSHMEM2_F_INTX, "18 vectors"),
    BAD("vectors-0", vectors, 0, "0 vectors"),
    BAD("vectors-2049", vectors, 2049, "2049 vectors"),
    BAD("vectors-not-offered", vectors, N_VECTORS + 1,
      "requires 19 vectors of MSI-X"),
    BAD("id-range", id, N_PEERS, "ID 20 is out of range"),
    BAD("max-peers-1", max_peers, 1, "1 peers at most"),
    BAD("max-peers-65537", max_peers, 65537, "65537 peers at most"),
    BAD("page-size-0", page_size, 0, "page size 0"),
    BAD("page-size-odd", page_size, 4097, "page size 4097"),
    BAD("page-size-2048", page_size, 2048, "page size 2048"),
    BAD("page-size-128K", page_size, 131072, "page size 131072"),
    BAD("page-size-other", page_size, 16384, "not multiples"),
    BAD("state-table-0", state_table_size, 0, "State Table of 0 bytes"),
    BAD("state-table-odd", state_table_size, 4097, "not multiples"),
    BAD("state-table-large", state_table_size, 131072,
      "State Table has 65536 bytes, too small for 131072"),
    BAD("rw-odd", rw_size, 1, "not multiples"),
    BAD("rw-huge", rw_size, UINT64_MAX - 4095, "larger than"),
    BAD("rw-large", rw_size, 1 << 20, "R/W section has 65536 bytes"),
    BAD("rw-0", rw_size, 0, "2 descriptors instead of 1"),
    BAD("output-odd", output_size, 4098, "not multiples"),
    BAD("output-overflow", output_size, UINT64_C(1) << 62,
      "larger than"),
};

static void set_field(void *field, size_t size, uint64_t value)
{
    switch (size) {
    case sizeof(uint16_t):
        *(uint16_t *)field = value;
        break;
    case sizeof(uint32_t):
        *(uint32_t *)field = value;
        break;
    default:
        *(uint64_t *)field = value;
    }
}

static void test_bad_welcome(Fixture *f, gconstpointer opaque)
{
    const BadWelcome *bad = opaque;
    Ivshmem2Msg msg = { .hdr = { .type = IVSHMEM2_MSG_WELCOME, .fds = 2 } };
    const int fds[] = { f->memory, f->memory };
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_HELLO);
    set_field((char *)&f->welcome + bad->offset, bad->size, bad->value);
    msg.welcome = f->welcome;
    g_assert_false(tell(f, msg, fds, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, bad->text);
    /* and the session takes nothing from it */
    g_assert_cmpuint(ivshmem2_session_info(f->s)->max_peers, ==, 0);
}

static void test_other_id(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Hello hello = {
        .features = IVSHMEM2_F_MSIX, .vectors = N_VECTORS, .id = 7,
    };
    g_autoptr(GError) error = NULL;

    ivshmem2_session_free(f->s);
    f->s = ivshmem2_session_new(&hello);
    go_to(f, AFTER_HELLO);
    g_assert_false(tell_welcome(f, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "ID 1 instead of 7");
}

static void test_too_many_outputs(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_HELLO);
    f->welcome.max_peers = IVSHMEM2_MAX_OUTPUTS + 1;
    f->welcome.state_table_size = 65536;
    g_assert_false(tell_welcome(f, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL,
                 "output sections for 4097 peers");
}

/* Descriptors of the wrong kind */

static void test_bad_memory(Fixture *f, gconstpointer opaque)
{
    int unsealed = make_memory(65536, 0);
    int small = make_memory(4096, MEMORY_SEALS);
    struct {
        int fds[2];
        const char *text;
    } cases[] = {
        { { unsealed, f->memory }, "State Table is not sealed" },
        { { f->memory, unsealed }, "R/W section is not sealed" },
        { { f->event_fd, f->memory }, "State Table is not a memory file" },
        { { f->memory, f->event_fd }, "R/W section is not a memory file" },
        { { f->memory_read_only, f->memory },
          "State Table is not open for reading and writing" },
        { { f->memory, f->memory_read_only },
          "R/W section is not open for reading and writing" },
        { { f->memory, small },
          "R/W section has 4096 bytes, too small for 8192" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Ivshmem2Msg msg = {
            .hdr = { .type = IVSHMEM2_MSG_WELCOME, .fds = 2 },
            .welcome = f->welcome,
        };
        g_autoptr(GError) error = NULL;

        go_to(f, AFTER_HELLO);
        g_assert_false(tell(f, msg, cases[i].fds, &error));
        assert_error(error, IVSHMEM2_ERROR_PROTOCOL, cases[i].text);
        ivshmem2_session_disconnected(f->s);
    }
    ivshmem2_close(&unsealed);
    ivshmem2_close(&small);
}

static void test_bad_output(Fixture *f, gconstpointer opaque)
{
    int unsealed = make_memory(65536, 0);
    struct {
        uint32_t id;
        int fd;
        const char *text;
    } cases[] = {
        { 0, unsealed, "output section 0 is not sealed" },
        { 0, f->event_fd, "output section 0 is not a memory file" },
        { 1, f->memory_read_only,
          "output section 1 is not open for reading and writing" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Ivshmem2Msg msg = {
            .hdr = { .type = IVSHMEM2_MSG_OUTPUTS, .fds = cases[i].id + 1 },
        };
        int fds[] = { f->memory_read_only, f->memory };
        g_autoptr(GError) error = NULL;

        go_to(f, AFTER_WELCOME);
        fds[cases[i].id] = cases[i].fd;
        g_assert_false(tell(f, msg, fds, &error));
        assert_error(error, IVSHMEM2_ERROR_PROTOCOL, cases[i].text);
    }
    ivshmem2_close(&unsealed);
}

static void test_bad_eventfd(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = 2 },
        .eventfds = { .id = OWN_ID },
    };
    const int fds[] = { f->event_fd, f->memory };
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_OUTPUTS);
    g_assert_false(tell(f, msg, fds, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not an eventfd");
}

/* Each message at each stage: only the expected ones are accepted */
static void test_order(Fixture *f, gconstpointer opaque)
{
    static const struct {
        Stage stage;
        uint16_t type;
        bool ok;
    } steps[] = {
        { AFTER_HELLO, IVSHMEM2_MSG_WELCOME, true },
        { AFTER_HELLO, IVSHMEM2_MSG_OUTPUTS, false },
        { AFTER_HELLO, IVSHMEM2_MSG_EVENTFDS, false },
        { AFTER_HELLO, IVSHMEM2_MSG_READY, false },
        { AFTER_WELCOME, IVSHMEM2_MSG_WELCOME, false },
        { AFTER_WELCOME, IVSHMEM2_MSG_OUTPUTS, true },
        { AFTER_WELCOME, IVSHMEM2_MSG_EVENTFDS, false },
        { AFTER_WELCOME, IVSHMEM2_MSG_READY, false },
        { AFTER_OUTPUTS, IVSHMEM2_MSG_WELCOME, false },
        { AFTER_OUTPUTS, IVSHMEM2_MSG_OUTPUTS, false },
        { AFTER_OUTPUTS, IVSHMEM2_MSG_EVENTFDS, true },
        { AFTER_OUTPUTS, IVSHMEM2_MSG_READY, false },
        { AFTER_EVENTFDS, IVSHMEM2_MSG_WELCOME, false },
        { AFTER_EVENTFDS, IVSHMEM2_MSG_OUTPUTS, false },
        { AFTER_EVENTFDS, IVSHMEM2_MSG_READY, true },
        { AFTER_READY, IVSHMEM2_MSG_WELCOME, false },
        { AFTER_READY, IVSHMEM2_MSG_OUTPUTS, false },
        { AFTER_READY, IVSHMEM2_MSG_READY, false },
        { AFTER_READY, IVSHMEM2_MSG_EVENTFDS, false },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        g_autoptr(GError) error = NULL;
        bool ok = false;
        Fixture own;

        session_setup(&own, NULL);
        go_to(&own, steps[i].stage);
        switch (steps[i].type) {
        case IVSHMEM2_MSG_WELCOME:
            ok = tell_welcome(&own, &error);
            break;
        case IVSHMEM2_MSG_OUTPUTS:
            ok = tell_outputs(&own, 0, 1, &error);
            break;
        case IVSHMEM2_MSG_EVENTFDS:
            ok = tell_eventfds(&own, OWN_ID, 0, 1, &error);
            break;
        case IVSHMEM2_MSG_READY:
            ok = tell_ready(&own, &error);
            break;
        }
        g_test_message("stage %d, type 0x%x: %s", steps[i].stage,
                       steps[i].type, error ? error->message : "fine");
        g_assert_cmpint(ok, ==, steps[i].ok);
        if (!ok) {
            g_assert_error(error, IVSHMEM2_ERROR,
                           IVSHMEM2_ERROR_PROTOCOL);
        }
        session_teardown(&own, NULL);
    }
}

/* Sections and eventfds must come in order, and no more than are missing. */
static void test_counting(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_WELCOME);
    g_assert_false(tell_outputs(f, 1, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "sections 1 to 1");
    g_assert_true(tell_outputs(f, 0, 16, &error));
    g_assert_false(tell_outputs(f, 16, 5, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "sections 16 to 20");
    g_assert_true(tell_outputs(f, 16, 4, &error));
    g_assert_false(tell_eventfds(f, OWN_ID, 1, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "missing from 0 on");
    g_assert_false(tell_eventfds(f, 0, 0, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "missing from 0 on");
    g_assert_false(tell_eventfds(f, OWN_ID, 0, 0, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "missing from 0 on");
    g_assert_true(tell_eventfds(f, OWN_ID, 0, 16, &error));
    g_assert_false(tell_ready(f, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "before all 18");
    g_assert_false(tell_eventfds(f, OWN_ID, 16, 3, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "vectors from 16");
    g_assert_false(tell_eventfds(f, N_PEERS, 0, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "about peer 20");
    g_assert_false(tell_eventfds(f, OWN_ID, UINT32_MAX, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "vectors from 42949");
    g_assert_true(tell_eventfds(f, OWN_ID, 16, 2, &error));
    g_assert_true(tell_eventfds(f, 0, 0, 16, &error));
    g_assert_true(tell_ready(f, &error));
    assert_held(f, 0, 15, -1);
    assert_not_held(f, 0, 16);
}

static void test_refusal(Fixture *f, gconstpointer opaque)
{
    static const struct {
        uint32_t code;
        int error;
    } codes[] = {
        { IVSHMEM2_REFUSAL_PROTOCOL, IVSHMEM2_ERROR_PROTOCOL },
        { IVSHMEM2_REFUSAL_VERSION, IVSHMEM2_ERROR_VERSION },
        { IVSHMEM2_REFUSAL_FULL, IVSHMEM2_ERROR_FULL },
        { IVSHMEM2_REFUSAL_ID_TAKEN, IVSHMEM2_ERROR_ID_TAKEN },
        { IVSHMEM2_REFUSAL_ID_RANGE, IVSHMEM2_ERROR_ID_RANGE },
        { IVSHMEM2_REFUSAL_INTERRUPTS, IVSHMEM2_ERROR_INTERRUPTS },
        { IVSHMEM2_REFUSAL_PERMISSION, IVSHMEM2_ERROR_PERMISSION },
        { IVSHMEM2_REFUSAL_SESSION, IVSHMEM2_ERROR_SESSION },
        { IVSHMEM2_REFUSAL_LIMIT, IVSHMEM2_ERROR_LIMIT },
        { IVSHMEM2_REFUSAL_TIMEOUT, IVSHMEM2_ERROR_TIMEOUT },
        { IVSHMEM2_REFUSAL_SHUTDOWN, IVSHMEM2_ERROR_SHUTDOWN },
        { 0, IVSHMEM2_ERROR_REFUSED },
        { IVSHMEM2_REFUSAL_SHUTDOWN + 1, IVSHMEM2_ERROR_REFUSED },
        { UINT32_MAX, IVSHMEM2_ERROR_REFUSED },
    };
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_REFUSED },
        .refusal = { .code = IVSHMEM2_REFUSAL_FULL, .text = "no room" },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(codes); i++) {
        g_autoptr(GError) error = NULL;

        go_to(f, AFTER_HELLO);
        msg.refusal.code = codes[i].code;
        g_assert_false(tell(f, msg, NULL, &error));
        assert_error(error, codes[i].error, "the server says: no room");
        ivshmem2_session_disconnected(f->s);
    }
    msg.refusal.code = IVSHMEM2_REFUSAL_FULL;
    for (Stage stage = AFTER_HELLO; stage <= AFTER_READY; stage++) {
        g_autoptr(GError) error = NULL;

        go_to(f, stage);
        g_assert_false(tell(f, msg, NULL, &error));
        assert_error(error, IVSHMEM2_ERROR_FULL, "no room");
        ivshmem2_session_disconnected(f->s);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    session_add("handshake", NULL, test_handshake);
    session_add("map", NULL, test_map);
    session_add("read", "keep", test_read);
    session_add("read-closed", NULL, test_read);
    session_add("small", NULL, test_small);
    for (size_t i = 0; i < G_N_ELEMENTS(bad_welcomes); i++) {
        g_autofree char *name = g_strdup_printf("bad-welcome/%s",
                                                bad_welcomes[i].name);

        session_add(name, &bad_welcomes[i], test_bad_welcome);
    }
    session_add("other-id", NULL, test_other_id);
    session_add("too-many-outputs", NULL, test_too_many_outputs);
    session_add("bad-memory", NULL, test_bad_memory);
    session_add("bad-output", NULL, test_bad_output);
    session_add("bad-eventfd", NULL, test_bad_eventfd);
    session_add("order", NULL, test_order);
    session_add("counting", NULL, test_counting);
    session_add("refusal", NULL, test_refusal);
    return g_test_run();
}
