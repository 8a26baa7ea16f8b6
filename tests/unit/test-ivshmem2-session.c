/*
 * ivshmem2 client session: its messages, and its checks of the server's
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

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

static void setup(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Hello hello = {
        .features = IVSHMEM2_F_MSIX,
        .vectors = N_VECTORS,
        .id = IVSHMEM2_ID_ANY,
        .name = "test",
    };

    f->before = count_fds();
    f->memory = make_memory(65536, MEMORY_SEALS);
    f->memory_read_only = reopen_read_only(f->memory);
    f->event_fd = make_eventfd();
    f->s = ivshmem2_session_new(&hello);
    f->welcome = (Ivshmem2Welcome) {
        .version = 1,
        .protocol = 1,
        .features = IVSHMEM2_F_MSIX,
        .vectors = N_VECTORS,
        .id = OWN_ID,
        .max_peers = N_PEERS,
        .page_size = 4096,
        .state_table_size = 4096,
        .rw_size = 8192,
        .output_size = 4096,
        .session = { 1, 2, 3 },
    };
}

static void teardown(Fixture *f, gconstpointer opaque)
{
    ivshmem2_session_free(f->s);
    ivshmem2_close(&f->memory);
    ivshmem2_close(&f->memory_read_only);
    ivshmem2_close(&f->event_fd);
    g_assert_cmpuint(count_fds(), ==, f->before);
}

/* The server's part.  @fds are duplicated. */

static bool tell(Fixture *f, Ivshmem2Msg msg, const int *fds, GError **error)
{
    int copies[IVSHMEM2_MAX_FDS];
    size_t n_fds = msg.hdr.fds;
    size_t len = ivshmem2_msg_encode(&msg);
    Ivshmem2Decoder d;
    int ret;

    for (size_t i = 0; i < n_fds; i++) {
        copies[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        g_assert_cmpint(copies[i], >=, 0);
    }
    ivshmem2_decoder_init(&d, IVSHMEM2_SERVER);
    ret = ivshmem2_decoder_push_consume(&d, &msg, sizeof(msg.hdr), copies,
                                        n_fds, error);
    if (ret == 0) {
        ret = ivshmem2_decoder_push_consume(
            &d, (uint8_t *)&msg + sizeof(msg.hdr), len - sizeof(msg.hdr),
            NULL, 0, error);
    }
    g_assert_cmpint(ret, ==, 1);
    return ivshmem2_session_receive(f->s, &d, error);
}

static bool tell_welcome(Fixture *f, GError **error)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_WELCOME,
                 .fds = f->welcome.rw_size ? 2 : 1 },
        .welcome = f->welcome,
    };
    const int fds[] = { f->memory, f->memory };

    return tell(f, msg, fds, error);
}

static bool tell_outputs(Fixture *f, uint32_t first, unsigned n,
                         GError **error)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_OUTPUTS, .fds = n },
        .outputs = { .first = first },
    };
    int fds[IVSHMEM2_MAX_FDS] = { 0 };

    for (unsigned i = 0; i < n; i++) {
        fds[i] = first + i == OWN_ID ? f->memory : f->memory_read_only;
    }
    return tell(f, msg, fds, error);
}

static bool tell_eventfds(Fixture *f, uint32_t id, uint32_t first, unsigned n,
                          GError **error)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = n },
        .eventfds = { .id = id, .first = first },
    };
    int fds[IVSHMEM2_MAX_FDS] = { 0 };

    for (unsigned i = 0; i < n; i++) {
        fds[i] = f->event_fd;
    }
    return tell(f, msg, fds, error);
}

static bool tell_ready(Fixture *f, GError **error)
{
    return tell(f, (Ivshmem2Msg) { .hdr = { .type = IVSHMEM2_MSG_READY } },
                NULL,
                error);
}

static void assert_says(Fixture *f, uint16_t type, Ivshmem2Msg *msg)
{
    g_assert_true(ivshmem2_session_has_next(f->s));
    g_assert_true(ivshmem2_session_next(f->s, msg));
    g_assert_cmpuint(msg->hdr.type, ==, type);
}

static void assert_says_nothing(Fixture *f)
{
    Ivshmem2Msg msg;

    g_assert_false(ivshmem2_session_has_next(f->s));
    g_assert_false(ivshmem2_session_next(f->s, &msg));
}

/* How far a handshake goes */
typedef enum Stage {
    AFTER_HELLO,
    AFTER_WELCOME,
    AFTER_OUTPUTS,
    AFTER_EVENTFDS,
    AFTER_READY,
} Stage;

static void go_to(Fixture *f, Stage stage)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;

    ivshmem2_session_connected(f->s);
    assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
    if (stage >= AFTER_WELCOME) {
        tell_welcome(f, &error);
        g_assert_no_error(error);
    }
    if (stage >= AFTER_OUTPUTS && f->welcome.output_size) {
        tell_outputs(f, 0, 16, &error);
        g_assert_no_error(error);
        tell_outputs(f, 16, N_PEERS - 16, &error);
        g_assert_no_error(error);
    }
    if (stage >= AFTER_EVENTFDS) {
        tell_eventfds(f, OWN_ID, 0, 16, &error);
        g_assert_no_error(error);
        tell_eventfds(f, OWN_ID, 16, N_VECTORS - 16, &error);
        g_assert_no_error(error);
    }
    g_assert_false(ivshmem2_session_ready(f->s));
    assert_says_nothing(f);
    if (stage >= AFTER_READY) {
        tell_ready(f, &error);
        g_assert_no_error(error);
        g_assert_true(ivshmem2_session_ready(f->s));
    }
}

/* The session holds the eventfd of @vector at @id: @fd, or any if it is -1. */
static void assert_held(Fixture *f, uint32_t id, uint32_t vector, int fd)
{
    int held = -1;

    g_assert_cmpint(ivshmem2_session_ring(f->s, id, vector, &held), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpint(held, >=, 0);
    if (fd >= 0) {
        g_assert_cmpint(held, ==, fd);
    }
    g_assert_cmpuint(ivshmem2_eventfd_drain(held), >, 0);
}

/* The session does not hold it, and asks the server to ring. */
static void assert_not_held(Fixture *f, uint32_t id, uint32_t vector)
{
    int held = -1;

    g_assert_cmpint(ivshmem2_session_ring(f->s, id, vector, &held), ==,
                    IVSHMEM2_RING_REQUESTED);
    g_assert_cmpint(held, ==, -1);
}

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
    /* the kernel refuses to write to read-only memory */
    g_assert_cmpint(pread(f->memory, memory + other, 1, 0), ==, -1);
    g_assert_cmpint(pread(f->memory, memory + own, 1, 0), ==, 1);
    munmap(memory, ivshmem2_total_size(&f->welcome));
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

        setup(&own, NULL);
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
        teardown(&own, NULL);
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

/* Rings and other requests */

static void assert_rings(Fixture *f, uint32_t id, uint32_t vector)
{
    Ivshmem2Msg msg;

    assert_says(f, IVSHMEM2_MSG_RING, &msg);
    g_assert_cmpuint(msg.target.id, ==, id);
    g_assert_cmpuint(msg.target.vector, ==, vector);
}

static void test_ring(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(ivshmem2_session_ring(f->s, 0, 0, NULL), ==,
                    IVSHMEM2_RING_NOBODY);
    go_to(f, AFTER_READY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, N_PEERS, 0, NULL), ==,
                    IVSHMEM2_RING_NOBODY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, 0, N_VECTORS, NULL), ==,
                    IVSHMEM2_RING_NOBODY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, UINT32_MAX, UINT32_MAX, NULL),
                    ==, IVSHMEM2_RING_NOBODY);
    g_assert_cmpint(ivshmem2_session_ring(f->s, OWN_ID, 0, NULL), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 1);
    assert_says_nothing(f);

    /* waiting requests coalesce */
    for (int i = 0; i < 1000; i++) {
        g_assert_cmpint(ivshmem2_session_ring(f->s, 5, 3, NULL), ==,
                        IVSHMEM2_RING_REQUESTED);
    }
    assert_rings(f, 5, 3);
    assert_says_nothing(f);
    /* a ring while the answer is on its way is not lost */
    g_assert_cmpint(ivshmem2_session_ring(f->s, 5, 3, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);
    g_assert_true(tell_eventfds(f, 5, 3, 1, &error));
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 1);
    assert_says_nothing(f);
    /* and now the session holds the eventfd */
    g_assert_cmpint(ivshmem2_session_ring(f->s, 5, 3, NULL), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpuint(ivshmem2_eventfd_drain(f->event_fd), ==, 1);

    /* a target that does not exist */
    g_assert_cmpint(ivshmem2_session_ring(f->s, 6, 0, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);
    assert_rings(f, 6, 0);
    g_assert_true(tell_eventfds(f, 6, 0, 0, &error));
    assert_says_nothing(f);
    g_assert_cmpint(ivshmem2_session_ring(f->s, 6, 0, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);
    assert_rings(f, 6, 0);
}

/* The number of unanswered requests is limited, however fast a guest rings. */
static void test_in_flight(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;
    unsigned n = 0;

    go_to(f, AFTER_READY);
    for (uint32_t id = 2; id < N_PEERS; id++) {
        for (uint32_t vector = 0; vector < N_VECTORS; vector++) {
            ivshmem2_session_ring(f->s, id, vector, NULL);
        }
    }
    while (ivshmem2_session_next(f->s, &msg)) {
        n++;
    }
    g_assert_cmpuint(n, ==, 64);
    /* other messages are still sent */
    ivshmem2_session_state_changed(f->s);
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_says_nothing(f);
    /* one answer, one request */
    g_assert_true(tell_eventfds(f, 2, 0, 1, &error));
    assert_says(f, IVSHMEM2_MSG_RING, &msg);
    assert_says_nothing(f);
    while (n < (N_PEERS - 2) * N_VECTORS) {
        g_assert_true(tell_eventfds(f, 2 + (n - 63) / N_VECTORS,
                                    (n - 63) % N_VECTORS, 0, &error));
        n++;
        g_assert_cmpint(ivshmem2_session_next(f->s, &msg), ==,
                        n < (N_PEERS - 2) * N_VECTORS);
    }
}

/* Targets that are rung all the time do not delay others. */
static void test_turns(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg, old[64] = { 0 };
    const uint32_t last = N_PEERS - 1;
    unsigned turns = 0;

    go_to(f, AFTER_READY);
    do {
        /* no target exists, so the server is asked each time */
        for (uint32_t id = 2; id < last; id++) {
            for (uint32_t vector = 0; vector < N_VECTORS; vector++) {
                ivshmem2_session_ring(f->s, id, vector, NULL);
            }
        }
        if (turns == 100) {
            ivshmem2_session_ring(f->s, last, 0, NULL);
            ivshmem2_session_ring(f->s, 0, 0, NULL);
        }
        if (turns >= 64) {
            g_assert_true(tell_eventfds(f, old[turns % 64].target.id,
                                        old[turns % 64].target.vector, 0,
                                        &error));
        }
        assert_says(f, IVSHMEM2_MSG_RING, &msg);
        old[turns++ % 64] = msg;
        g_assert_cmpuint(turns, <, 2 * N_PEERS * N_VECTORS);
    } while (msg.target.id);
    /* the other late target had its turn before */
    for (int i = 0; i < 64 && msg.target.id != last; i++) {
        msg = old[i];
    }
    g_assert_cmpuint(msg.target.id, ==, last);
}

static void test_bad_answers(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_READY);
    g_assert_false(tell_eventfds(f, 5, 0, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "answers nothing");
    ivshmem2_session_ring(f->s, 5, 0, NULL);
    ivshmem2_session_ring(f->s, 6, 1, NULL);
    assert_rings(f, 5, 0);
    assert_rings(f, 6, 1);
    g_assert_false(tell_eventfds(f, 6, 1, 1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "answers nothing");
    g_assert_false(tell_eventfds(f, 5, 0, 2, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "answers nothing");
    g_assert_false(tell_eventfds(f, N_PEERS, 0, 0, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "about peer 20");
    g_assert_true(tell_eventfds(f, 5, 0, 1, &error));
    g_assert_true(tell_eventfds(f, 6, 1, 0, &error));
}

/* The number of eventfds of others is limited; the oldest is closed first */
static void test_eviction(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    unsigned before, kept = 0;
    Ivshmem2Msg msg;

    f->welcome.max_peers = 2000;
    f->welcome.vectors = 1;
    f->welcome.state_table_size = 8192;
    f->welcome.output_size = 0;
    ivshmem2_session_connected(f->s);
    assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
    g_assert_true(tell_welcome(f, &error));
    g_assert_true(tell_eventfds(f, OWN_ID, 0, 1, &error));
    g_assert_true(tell_ready(f, &error));
    before = count_fds();
    for (uint32_t id = 2; id < 2000; id++) {
        ivshmem2_session_ring(f->s, id, 0, NULL);
        assert_rings(f, id, 0);
        g_assert_true(tell_eventfds(f, id, 0, 1, &error));
    }
    g_assert_cmpuint(count_fds(), ==, before + 1024);
    for (uint32_t id = 2; id < 2000; id++) {
        kept += ivshmem2_session_ring(f->s, id, 0, NULL) ==
                IVSHMEM2_RING_SIGNALLED;
    }
    g_assert_cmpuint(kept, ==, 1024);
    /* an evicted one is requested from the server again */
    assert_not_held(f, 2, 0);
    assert_held(f, 1999, 0, -1);
}

static void test_goodbye(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Msg msg;

    go_to(f, AFTER_READY);
    ivshmem2_session_goodbye(f->s);
    ivshmem2_session_state_changed(f->s);
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_says(f, IVSHMEM2_MSG_GOODBYE, &msg);
    assert_says_nothing(f);
}

/* Losing the connection */

static void test_lost_early(Fixture *f, gconstpointer opaque)
{
    const uint8_t none[IVSHMEM2_UUID_SIZE] = { 0 };
    unsigned before = count_fds();

    for (Stage stage = AFTER_HELLO; stage < AFTER_READY; stage++) {
        Ivshmem2Msg msg;

        go_to(f, stage);
        ivshmem2_session_disconnected(f->s);
        g_assert_cmpuint(count_fds(), ==, before);
        assert_says_nothing(f);
        /* there is nothing to resume */
        ivshmem2_session_connected(f->s);
        assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
        g_assert_cmpuint(msg.hello.id, ==, IVSHMEM2_ID_ANY);
        g_assert_cmpmem(msg.hello.session, sizeof(none), none, sizeof(none));
    }
}

static void test_resume(Fixture *f, gconstpointer opaque)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;
    unsigned fds;
    int own;

    go_to(f, AFTER_READY);
    own = ivshmem2_session_own_eventfd(f->s, 0);
    fds = count_fds();
    ivshmem2_session_ring(f->s, 5, 0, NULL);
    ivshmem2_session_ring(f->s, 6, 0, NULL);
    assert_rings(f, 5, 0);
    ivshmem2_session_state_changed(f->s);
    ivshmem2_session_disconnected(f->s);

    /* rings go on without a connection */
    g_assert_false(ivshmem2_session_ready(f->s));
    assert_says_nothing(f);
    g_assert_cmpint(ivshmem2_session_ring(f->s, OWN_ID, 0, NULL), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpint(ivshmem2_session_ring(f->s, 7, 0, NULL), ==,
                    IVSHMEM2_RING_REQUESTED);

    ivshmem2_session_connected(f->s);
    assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
    g_assert_cmpuint(msg.hello.id, ==, OWN_ID);
    g_assert_cmpmem(msg.hello.session, IVSHMEM2_UUID_SIZE,
                    f->welcome.session, IVSHMEM2_UUID_SIZE);
    tell_welcome(f, &error);
    tell_outputs(f, 0, 16, &error);
    tell_outputs(f, 16, 4, &error);
    tell_eventfds(f, OWN_ID, 0, 16, &error);
    tell_eventfds(f, OWN_ID, 16, 2, &error);
    tell_ready(f, &error);
    g_assert_no_error(error);
    /* the descriptors are the same as before */
    g_assert_cmpint(ivshmem2_session_own_eventfd(f->s, 0), ==, own);
    g_assert_cmpuint(count_fds(), ==, fds);
    /* unanswered requests are sent again, and none is lost */
    assert_says(f, IVSHMEM2_MSG_STATE_CHANGED, &msg);
    assert_rings(f, 6, 0);
    assert_rings(f, 7, 0);
    assert_rings(f, 5, 0);
    assert_says_nothing(f);
}

static void test_resume_other(Fixture *f, gconstpointer opaque)
{
    const size_t offsets[] = {
        offsetof(Ivshmem2Welcome, id), offsetof(Ivshmem2Welcome, protocol),
        offsetof(Ivshmem2Welcome, session),
    };
    g_autoptr(GError) error = NULL;

    go_to(f, AFTER_READY);
    for (size_t i = 0; i < G_N_ELEMENTS(offsets); i++) {
        Ivshmem2Welcome welcome = f->welcome;
        Ivshmem2Msg msg;

        ivshmem2_session_disconnected(f->s);
        ivshmem2_session_connected(f->s);
        assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
        *((uint8_t *)&f->welcome + offsets[i]) ^= 2;
        g_assert_false(tell_welcome(f, &error));
        assert_error(error, IVSHMEM2_ERROR_PROTOCOL,
                     "not what it was");
        f->welcome = welcome;
    }
}

typedef void TestFunc(Fixture *f, gconstpointer opaque);

static void add(const char *name, const void *data, TestFunc *func)
{
    g_autofree char *path = g_strdup_printf("/ivshmem2/session/%s", name);

    g_test_add(path, Fixture, data, setup, func, teardown);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add("handshake", NULL, test_handshake);
    add("map", NULL, test_map);
    add("small", NULL, test_small);
    for (size_t i = 0; i < G_N_ELEMENTS(bad_welcomes); i++) {
        g_autofree char *name = g_strdup_printf("bad-welcome/%s",
                                                bad_welcomes[i].name);

        add(name, &bad_welcomes[i], test_bad_welcome);
    }
    add("other-id", NULL, test_other_id);
    add("too-many-outputs", NULL, test_too_many_outputs);
    add("bad-memory", NULL, test_bad_memory);
    add("bad-output", NULL, test_bad_output);
    add("bad-eventfd", NULL, test_bad_eventfd);
    add("order", NULL, test_order);
    add("counting", NULL, test_counting);
    add("refusal", NULL, test_refusal);
    add("ring", NULL, test_ring);
    add("in-flight", NULL, test_in_flight);
    add("turns", NULL, test_turns);
    add("bad-answers", NULL, test_bad_answers);
    add("eviction", NULL, test_eviction);
    add("goodbye", NULL, test_goodbye);
    add("lost-early", NULL, test_lost_early);
    add("resume", NULL, test_resume);
    add("resume-other", NULL, test_resume_other);
    return g_test_run();
}
