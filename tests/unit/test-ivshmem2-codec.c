/*
 * ivshmem2 codec: encoding, decoding, and messages that break the protocol
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-util.h"
#include <dlfcn.h>
#include <stdarg.h>
#include <sys/syscall.h>

/* The expected bytes of one message of each type, as documented */

typedef struct Golden {
    Ivshmem2Msg msg;            /* host byte order */
    Ivshmem2Side from;
    size_t size;
    uint8_t bytes[sizeof(Ivshmem2Msg)];
} Golden;

static const Golden golden[] = {
    {
        .msg = {
            .hdr = { .type = IVSHMEM2_MSG_HELLO },
            .hello = {
                .magic = IVSHMEM2_MAGIC,
                .version_min = 1,
                .version_max = 0x0203,
                .features = IVSHMEM2_F_MSIX | IVSHMEM2_F_INTX,
                .vectors = 0x0405,
                .id = IVSHMEM2_ID_ANY,
                .session = { 0x51, 0x52, [15] = 0x5f },
                .vm_uuid = { 0x61, 0x62, [15] = 0x6f },
                .name = "vm-a",
            },
        },
        .from = IVSHMEM2_CLIENT,
        .size = 128,
        .bytes = {
            0x01, 0x00, 0x00, 0x00, 0x80, 0x00, 0x00, 0x00,
            'I', 'V', 'M', '2', 0x01, 0x00, 0x03, 0x02,
            0x03, 0x00, 0x00, 0x00, 0x05, 0x04, 0x00, 0x00,
            0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00,
            0x51, 0x52, [47] = 0x5f,
            0x61, 0x62, [63] = 0x6f,
            'v', 'm', '-', 'a',
        },
    }, {
        .msg = { .hdr = { .type = IVSHMEM2_MSG_STATE_CHANGED } },
        .from = IVSHMEM2_CLIENT,
        .size = 8,
        .bytes = { 0x02, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00 },
    }, {
        .msg = {
            .hdr = { .type = IVSHMEM2_MSG_RING },
            .target = { .id = 0x01020304, .vector = 0x05060708 },
        },
        .from = IVSHMEM2_CLIENT,
        .size = 16,
        .bytes = {
            0x03, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00,
            0x04, 0x03, 0x02, 0x01, 0x08, 0x07, 0x06, 0x05,
        },
    }, {
        .msg = {
            .hdr = { .type = IVSHMEM2_MSG_STATE_ANNOUNCED },
            .announcement = { .state = 0x01020304 },
        },
        .from = IVSHMEM2_CLIENT,
        .size = 16,
        .bytes = {
            0x04, 0x00, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00,
            0x04, 0x03, 0x02, 0x01, 0x00, 0x00, 0x00, 0x00,
        },
    }, {
        .msg = { .hdr = { .type = IVSHMEM2_MSG_GOODBYE } },
        .from = IVSHMEM2_CLIENT,
        .size = 8,
        .bytes = { 0x05, 0x00, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00 },
    }, {
        .msg = {
            .hdr = { .type = IVSHMEM2_MSG_WELCOME, .fds = 2 },
            .welcome = {
                .version = 1,
                .protocol = 0xc002,
                .features = IVSHMEM2_F_MSIX,
                .vectors = 2048,
                .id = 0xfffe,
                .max_peers = 65536,
                .page_size = 4096,
                .state_table_size = 0x40000,
                .rw_size = UINT64_C(0x180000000),
                .output_size = UINT64_C(0x0102030405060708),
                .session = { 0x71, 0x72, [15] = 0x7f },
            },
        },
        .from = IVSHMEM2_SERVER,
        .size = 72,
        .bytes = {
            0x01, 0x01, 0x02, 0x00, 0x48, 0x00, 0x00, 0x00,
            0x01, 0x00, 0x02, 0xc0, 0x01, 0x00, 0x00, 0x00,
            0x00, 0x08, 0x00, 0x00, 0xfe, 0xff, 0x00, 0x00,
            0x00, 0x00, 0x01, 0x00, 0x00, 0x10, 0x00, 0x00,
            0x00, 0x00, 0x04, 0x00, 0x00, 0x00, 0x00, 0x00,
            0x00, 0x00, 0x00, 0x80, 0x01, 0x00, 0x00, 0x00,
            0x08, 0x07, 0x06, 0x05, 0x04, 0x03, 0x02, 0x01,
            0x71, 0x72, [71] = 0x7f,
        },
    }, {
        .msg = {
            .hdr = { .type = IVSHMEM2_MSG_OUTPUTS, .fds = 16 },
            .outputs = { .first = 0x0130 },
        },
        .from = IVSHMEM2_SERVER,
        .size = 16,
        .bytes = {
            0x02, 0x01, 0x10, 0x00, 0x10, 0x00, 0x00, 0x00,
            0x30, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
        },
    }, {
        .msg = {
            .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = 3 },
            .eventfds = { .id = 0xabcd, .first = 0x10 },
        },
        .from = IVSHMEM2_SERVER,
        .size = 16,
        .bytes = {
            0x03, 0x01, 0x03, 0x00, 0x10, 0x00, 0x00, 0x00,
            0xcd, 0xab, 0x00, 0x00, 0x10, 0x00, 0x00, 0x00,
        },
    }, {
        .msg = { .hdr = { .type = IVSHMEM2_MSG_READY } },
        .from = IVSHMEM2_SERVER,
        .size = 8,
        .bytes = { 0x04, 0x01, 0x00, 0x00, 0x08, 0x00, 0x00, 0x00 },
    }, {
        .msg = {
            .hdr = { .type = IVSHMEM2_MSG_REFUSED },
            .refusal = { .code = IVSHMEM2_REFUSAL_ID_TAKEN, .text = "taken" },
        },
        .from = IVSHMEM2_SERVER,
        .size = 264,
        .bytes = {
            0x05, 0x01, 0x00, 0x00, 0x08, 0x01, 0x00, 0x00,
            0x04, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
            't', 'a', 'k', 'e', 'n',
        },
    },
};

static void make_fds(int *fds, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        fds[i] = make_eventfd();
    }
}

/* The first push, with as many descriptors as the message announces */
static int push_golden(Ivshmem2Decoder *d, const Golden *g, size_t len,
                       GError **error)
{
    int fds[IVSHMEM2_MAX_FDS];

    make_fds(fds, g->msg.hdr.fds);
    return ivshmem2_decoder_push_consume(d, g->bytes, len, fds,
                                         g->msg.hdr.fds, error);
}

static void test_golden(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(golden); i++) {
        Ivshmem2Msg msg = golden[i].msg;

        g_assert_cmpuint(ivshmem2_type_size(msg.hdr.type), ==,
                         golden[i].size);
        g_assert_nonnull(ivshmem2_type_name(msg.hdr.type));
        g_assert_cmpuint(ivshmem2_msg_encode(&msg), ==, golden[i].size);
        g_assert_cmpmem(&msg, golden[i].size, golden[i].bytes,
                        golden[i].size);
    }
    g_assert_null(ivshmem2_type_name(0));
    g_assert_null(ivshmem2_type_name(0x0006));
    g_assert_null(ivshmem2_type_name(0x0106));
}

static void assert_is_golden(Ivshmem2Decoder *d, const Golden *g)
{
    g_assert_true(ivshmem2_decoder_complete(d));
    g_assert_cmpuint(d->msg.hdr.size, ==, g->size);
    d->msg.hdr.size = 0;
    g_assert_cmpmem(&d->msg, g->size, &g->msg, g->size);
    g_assert_cmpuint(d->n_fds, ==, g->msg.hdr.fds);
}

/* In two pieces, of the sizes that the decoder wants */
static void test_round_trip(void)
{
    unsigned before = count_fds();

    for (size_t i = 0; i < G_N_ELEMENTS(golden); i++) {
        const Golden *g = &golden[i];
        g_autoptr(GError) error = NULL;
        Ivshmem2Decoder d;
        int ret;

        ivshmem2_decoder_init(&d, g->from);
        g_assert_cmpuint(ivshmem2_decoder_wants(&d), ==, 8);
        ret = push_golden(&d, g, 8, &error);
        g_assert_no_error(error);
        if (g->size > 8) {
            g_assert_cmpint(ret, ==, 0);
            g_assert_false(ivshmem2_decoder_complete(&d));
            g_assert_cmpuint(ivshmem2_decoder_wants(&d), ==, g->size - 8);
            ret = ivshmem2_decoder_push_consume(&d, g->bytes + 8,
                                                g->size - 8, NULL, 0, &error);
            g_assert_no_error(error);
        }
        g_assert_cmpint(ret, ==, 1);
        assert_is_golden(&d, g);
        ivshmem2_decoder_reset(&d);
        g_assert_cmpuint(ivshmem2_decoder_wants(&d), ==, 8);
        g_assert_cmpuint(count_fds(), ==, before);
    }
}

static void test_byte_at_a_time(void)
{
    unsigned before = count_fds();

    for (size_t i = 0; i < G_N_ELEMENTS(golden); i++) {
        const Golden *g = &golden[i];
        g_autoptr(GError) error = NULL;
        Ivshmem2Decoder d;

        ivshmem2_decoder_init(&d, g->from);
        g_assert_cmpint(push_golden(&d, g, 1, &error), ==, 0);
        for (size_t at = 1; at < g->size; at++) {
            int ret = ivshmem2_decoder_push_consume(&d, g->bytes + at, 1,
                                                    NULL, 0, &error);

            g_assert_no_error(error);
            g_assert_cmpint(ret, ==, at == g->size - 1);
        }
        assert_is_golden(&d, g);
        ivshmem2_decoder_reset(&d);
    }
    g_assert_cmpuint(count_fds(), ==, before);
}

static void test_steal(void)
{
    const Golden *g = &golden[5];
    unsigned before = count_fds();
    Ivshmem2Decoder d;
    int fd;

    ivshmem2_decoder_init(&d, g->from);
    g_assert_cmpint(push_golden(&d, g, 8, NULL), ==, 0);
    g_assert_cmpint(ivshmem2_decoder_push_consume(&d, g->bytes + 8,
                                                  g->size - 8, NULL, 0, NULL),
                    ==, 1);
    fd = ivshmem2_decoder_steal_fd(&d, 1);
    ivshmem2_decoder_reset(&d);
    g_assert_cmpuint(count_fds(), ==, before + 1);
    ivshmem2_close(&fd);
    g_assert_cmpint(fd, ==, -1);
    g_assert_cmpuint(count_fds(), ==, before);
}

/* Lies */

typedef struct Lie {
    const char *name;
    Ivshmem2Side from;
    Ivshmem2Header hdr;
    size_t n_fds;               /* that come along */
    bool whole;                 /* not only the header tells it */
    const char *text;
} Lie;

static const Lie lies[] = {
    { "version-1", IVSHMEM2_SERVER, { 0, 0, 0 }, 0, false,
      "this is an ivshmem version-1 server" },
    { "type-0", IVSHMEM2_CLIENT, { 0, 0, 8 }, 0, false, "unknown type 0x0" },
    { "type-client", IVSHMEM2_CLIENT, { 6, 0, 8 }, 0, false,
      "unknown type 0x6, is it an ivshmem2 client?" },
    { "type-server", IVSHMEM2_SERVER, { 0x106, 0, 8 }, 0, false,
      "is it an ivshmem2 server?" },
    { "direction-client", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_READY, 0, 8 }, 0,
      false, "READY, which is not its to send" },
    { "direction-server", IVSHMEM2_SERVER, { IVSHMEM2_MSG_GOODBYE, 0, 8 }, 0,
      false, "GOODBYE, which is not its to send" },
    { "size-0", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_HELLO, 0, 0 }, 0, false,
      "HELLO with size 0 instead of 128" },
    { "size-7", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_GOODBYE, 0, 7 }, 0, false,
      "GOODBYE with size 7 instead of 8" },
    { "size-short", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_RING, 0, 15 }, 0, false,
      "RING with size 15 instead of 16" },
    { "size-long", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_RING, 0, 17 }, 0, false,
      "RING with size 17 instead of 16" },
    { "size-huge", IVSHMEM2_SERVER, { IVSHMEM2_MSG_REFUSED, 0, UINT32_MAX }, 0,
      false, "REFUSED with size 4294967295" },
    { "fds-from-client", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_HELLO, 1, 128 }, 1,
      false, "1 descriptors with HELLO" },
    { "fds-none", IVSHMEM2_SERVER, { IVSHMEM2_MSG_WELCOME, 0, 72 }, 0, false,
      "0 descriptors with WELCOME" },
    { "fds-many", IVSHMEM2_SERVER, { IVSHMEM2_MSG_WELCOME, 3, 72 }, 3, false,
      "3 descriptors with WELCOME" },
    { "fds-17", IVSHMEM2_SERVER, { IVSHMEM2_MSG_EVENTFDS, 17, 16 }, 16, false,
      "17 descriptors with EVENTFDS" },
    { "fds-65535", IVSHMEM2_SERVER, { IVSHMEM2_MSG_OUTPUTS, 65535, 16 }, 16,
      false, "65535 descriptors with OUTPUTS" },
    { "fds-on-ready", IVSHMEM2_SERVER, { IVSHMEM2_MSG_READY, 1, 8 }, 1, false,
      "1 descriptors with READY" },
    { "fds-missing", IVSHMEM2_SERVER, { IVSHMEM2_MSG_OUTPUTS, 2, 16 }, 1, true,
      "announced 2: if the limit of open files" },
    { "fds-surplus", IVSHMEM2_SERVER, { IVSHMEM2_MSG_EVENTFDS, 1, 16 }, 2, true,
      "EVENTFDS came with 2 descriptors, but announced 1" },
    { "fds-hidden", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_RING, 0, 16 }, 1, true,
      "RING came with 1 descriptors, but announced 0" },
    { "magic", IVSHMEM2_CLIENT, { IVSHMEM2_MSG_HELLO, 0, 128 }, 0, true,
      "wrong magic 0x0" },
};

static void test_lie(gconstpointer opaque)
{
    const Lie *lie = opaque;
    unsigned before = count_fds();
    Ivshmem2Msg msg = {
        .hdr = {
            .type = GUINT16_TO_LE(lie->hdr.type),
            .fds = GUINT16_TO_LE(lie->hdr.fds),
            .size = GUINT32_TO_LE(lie->hdr.size),
        },
    };
    g_autoptr(GError) error = NULL;
    int fds[IVSHMEM2_MAX_FDS];
    Ivshmem2Decoder d;
    int ret;

    ivshmem2_decoder_init(&d, lie->from);
    make_fds(fds, lie->n_fds);
    ret = ivshmem2_decoder_push_consume(&d, &msg, sizeof(msg.hdr), fds,
                                        lie->n_fds, &error);
    if (lie->whole) {
        g_assert_no_error(error);
        g_assert_cmpint(ret, ==, 0);
        ret = ivshmem2_decoder_push_consume(
            &d, (uint8_t *)&msg + sizeof(msg.hdr),
            lie->hdr.size - sizeof(msg.hdr), NULL, 0, &error);
    }
    g_assert_cmpint(ret, ==, -1);
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, lie->text);
    ivshmem2_decoder_reset(&d);
    g_assert_cmpuint(count_fds(), ==, before);
}

static void test_fds_in_the_middle(void)
{
    const Golden *g = &golden[7];
    unsigned before = count_fds();

    /* after every byte but the first one */
    for (size_t at = 1; at < g->size; at++) {
        g_autoptr(GError) error = NULL;
        Ivshmem2Decoder d;
        int fds[3];

        ivshmem2_decoder_init(&d, g->from);
        for (size_t i = 0; i < at; i++) {
            g_assert_cmpint(ivshmem2_decoder_push_consume(&d, g->bytes + i, 1,
                                                          NULL, 0, &error),
                            ==, 0);
        }
        make_fds(fds, 3);
        g_assert_cmpint(ivshmem2_decoder_push_consume(&d, g->bytes + at, 1,
                                                      fds, 3, &error),
                        ==, -1);
        assert_error(error, IVSHMEM2_ERROR_PROTOCOL,
                     "in the middle of a message");
        ivshmem2_decoder_reset(&d);
        g_assert_cmpuint(count_fds(), ==, before);
    }
}

static void test_fds_too_many(void)
{
    unsigned before = count_fds();
    g_autoptr(GError) error = NULL;
    int fds[IVSHMEM2_MAX_FDS + 4];
    Ivshmem2Decoder d;

    ivshmem2_decoder_init(&d, IVSHMEM2_SERVER);
    make_fds(fds, G_N_ELEMENTS(fds));
    g_assert_cmpint(ivshmem2_decoder_push_consume(&d, "\x03", 1, fds,
                                                  G_N_ELEMENTS(fds), &error),
                    ==, -1);
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "too many descriptors");
    ivshmem2_decoder_reset(&d);
    g_assert_cmpuint(count_fds(), ==, before);
}

/* An error of the caller, not of the other side */
static void test_surplus_bytes(void)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Decoder d;

    ivshmem2_decoder_init(&d, IVSHMEM2_CLIENT);
    g_assert_cmpint(ivshmem2_decoder_push_consume(&d, golden[0].bytes, 9,
                                                  NULL, 0, &error), ==, -1);
    assert_error(error, IVSHMEM2_ERROR_ARGUMENT, "more bytes");
    ivshmem2_decoder_reset(&d);
}

/* Text */

static void test_set_text(void)
{
    char text[8];

    memset(text, 'x', sizeof(text));
    ivshmem2_set_text(text, sizeof(text), "ab");
    g_assert_cmpmem(text, sizeof(text), "ab\0\0\0\0\0\0", 8);
    ivshmem2_set_text(text, sizeof(text), "abcdefghij");
    g_assert_cmpmem(text, sizeof(text), "abcdefg\0", 8);
    ivshmem2_set_text(text, sizeof(text), "a\n\033\x7f\xc3\xa4");
    g_assert_cmpstr(text, ==, "a?????");
    ivshmem2_set_text(text, sizeof(text), "");
    g_assert_cmpstr(text, ==, "");
}

/* Names and texts of the other side are printable and terminated. */
static void test_sanitize(void)
{
    struct {
        Ivshmem2Msg msg;
        Ivshmem2Side from;
    } cases[] = {
        { .msg = { .hdr = { .type = IVSHMEM2_MSG_HELLO },
                   .hello = { .magic = IVSHMEM2_MAGIC } },
          .from = IVSHMEM2_CLIENT },
        { .msg = { .hdr = { .type = IVSHMEM2_MSG_REFUSED } },
          .from = IVSHMEM2_SERVER },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Ivshmem2Msg *msg = &cases[i].msg;
        bool hello = msg->hdr.type == IVSHMEM2_MSG_HELLO;
        size_t size = hello ? IVSHMEM2_NAME_SIZE : IVSHMEM2_TEXT_SIZE;
        char *text = hello ? msg->hello.name : msg->refusal.text;
        g_autoptr(GError) error = NULL;
        Ivshmem2Decoder d;
        size_t len;

        memset(text, 'a', size);
        memcpy(text, "\033[2J\n", 5);
        len = ivshmem2_msg_encode(msg);
        ivshmem2_decoder_init(&d, cases[i].from);
        ivshmem2_decoder_push_consume(&d, msg, 8, NULL, 0, &error);
        g_assert_no_error(error);
        ivshmem2_decoder_push_consume(&d, (uint8_t *)msg + 8, len - 8, NULL,
                                      0, &error);
        g_assert_no_error(error);
        text = hello ? d.msg.hello.name : d.msg.refusal.text;
        g_assert_cmpmem(text, 6, "?[2J?a", 6);
        g_assert_cmpuint(strnlen(text, size), ==, size - 1);
    }
}

/* Descriptors from the other side */

static void test_check_memory(void)
{
    g_autoptr(GError) error = NULL;
    int fd = make_memory(8192, MEMORY_SEALS);
    int read_fd = reopen_read_only(fd);
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    int write_fd = open(path, O_WRONLY | O_CLOEXEC);
    int unsealed = make_memory(8192, 0);
    int half_sealed = make_memory(8192, F_SEAL_SHRINK);
    int event_fd = make_eventfd();
    int file_fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int closed = -1;

    g_assert_true(ivshmem2_check_memfd(fd, 8192, true, "x", &error));
    g_assert_true(ivshmem2_check_memfd(fd, 1, false, "x", &error));
    g_assert_true(ivshmem2_check_memfd(read_fd, 8192, false, "x", &error));
    g_assert_no_error(error);

    g_assert_false(ivshmem2_check_memfd(read_fd, 8192, true, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL,
                 "x is not open for reading and writing");
    g_assert_false(ivshmem2_check_memfd(write_fd, 8192, false, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not open for reading");
    g_assert_false(ivshmem2_check_memfd(fd, 8193, true, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL,
                 "has 8192 bytes, too small for 8193");
    g_assert_false(ivshmem2_check_memfd(fd, UINT64_MAX, true, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "too small");
    g_assert_false(ivshmem2_check_memfd(unsealed, 8192, true, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not sealed");
    g_assert_false(ivshmem2_check_memfd(half_sealed, 8192, true, "x",
                                        &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not sealed");
    g_assert_false(ivshmem2_check_memfd(event_fd, 8192, true, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not a memory file");
    g_assert_false(ivshmem2_check_memfd(file_fd, 1, false, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not a memory file");
    g_assert_false(ivshmem2_check_memfd(closed, 1, false, "x", &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not a memory file");

    ivshmem2_close(&fd);
    ivshmem2_close(&read_fd);
    ivshmem2_close(&write_fd);
    ivshmem2_close(&unsealed);
    ivshmem2_close(&half_sealed);
    ivshmem2_close(&event_fd);
    ivshmem2_close(&file_fd);
}

static void test_check_eventfd(void)
{
    g_autoptr(GError) error = NULL;
    int fd = make_eventfd();
    int memory = make_memory(4096, MEMORY_SEALS);
    int pipes[2];

    g_assert_cmpint(pipe2(pipes, O_CLOEXEC), ==, 0);
    g_assert_true(ivshmem2_check_eventfd(fd, &error));
    g_assert_no_error(error);
    g_assert_false(ivshmem2_check_eventfd(memory, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not an eventfd");
    g_assert_false(ivshmem2_check_eventfd(pipes[0], &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not an eventfd");
    g_assert_false(ivshmem2_check_eventfd(-1, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "not an eventfd");
    ivshmem2_close(&fd);
    ivshmem2_close(&memory);
    ivshmem2_close(&pipes[0]);
    ivshmem2_close(&pipes[1]);
}

/* Neither waits, even if another process made the file blocking. */
static void test_eventfd(void)
{
    const uint64_t full = UINT64_MAX - 1;
    int fd = make_eventfd();

    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), ==, 0);
    ivshmem2_eventfd_signal(fd);
    ivshmem2_eventfd_signal(fd);
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), ==, 2);
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), ==, 0);

    g_assert_cmpint(fcntl(fd, F_SETFL, 0), ==, 0);
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), ==, 0);
    g_assert_cmpint(write(fd, &full, sizeof(full)), ==, sizeof(full));
    /* any number of signals: the counter stays readable */
    for (int i = 0; i < 100; i++) {
        ivshmem2_eventfd_signal(fd);
    }
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), >=, full);
    ivshmem2_eventfd_signal(fd);
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), ==, 1);
    ivshmem2_close(&fd);
    ivshmem2_eventfd_signal(fd);
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), ==, 0);
}

/* How many threads signal how often */
#define SIGNALLERS      4
#define SIGNALS         5000

static gint n_collected;

/*
 * This takes the place of the C library's, and like that one it passes on six
 * arguments, of which callers may not have given all.
 */
__attribute__((no_sanitize_address))
long syscall(long number, ...)
{
    static long (*next)(long number, ...);
    long a[6];
    va_list ap;

    va_start(ap, number);
    for (size_t i = 0; i < G_N_ELEMENTS(a); i++) {
        a[i] = va_arg(ap, long);
    }
    va_end(ap);
    if (number == SYS_io_getevents) {
        g_atomic_int_inc(&n_collected);
    }
    if (!g_atomic_pointer_get(&next)) {
        g_atomic_pointer_set(&next, (long (*)(long, ...))
                             dlsym(RTLD_NEXT, "syscall"));
    }
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static gpointer signal_often(gpointer fd)
{
    for (int i = 0; i < SIGNALS; i++) {
        ivshmem2_eventfd_signal(GPOINTER_TO_INT(fd));
    }
    return NULL;
}

/*
 * The kernel has room for some signals, which is made anew when there is none.
 * Most signals are one system call, and none gets lost.
 */
static void test_eventfd_room(void)
{
    const unsigned wanted = SIGNALLERS * SIGNALS;
    GThread *threads[SIGNALLERS];
    int fd = make_eventfd();
    uint64_t n = 0;

    g_atomic_int_set(&n_collected, 0);
    for (int i = 0; i < SIGNALLERS; i++) {
        threads[i] = g_thread_new("signals", signal_often,
                                  GINT_TO_POINTER(fd));
    }
    for (int i = 0; i < SIGNALLERS; i++) {
        g_thread_join(threads[i]);
    }
    /* those that found no room at the wrong moment are left to threads */
    for (int i = 0; i < 2000 && n < wanted; i++) {
        n += ivshmem2_eventfd_drain(fd);
        g_usleep(n < wanted ? 5000 : 0);
    }
    g_assert_cmpuint(n, ==, wanted);
    g_assert_cmpint(g_atomic_int_get(&n_collected), <, wanted / 4);
    ivshmem2_close(&fd);
}

/* Each of them once, even with descriptors between them that fail */
static void test_eventfds(void)
{
    int fds[100];

    for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
        fds[i] = make_eventfd();
    }
    ivshmem2_close(&fds[0]);
    ivshmem2_close(&fds[20]);
    ivshmem2_close(&fds[21]);
    ivshmem2_close(&fds[99]);
    for (size_t n = 0; n <= G_N_ELEMENTS(fds); n++) {
        ivshmem2_eventfds_signal(fds, n);
        for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
            g_assert_cmpuint(ivshmem2_eventfd_drain(fds[i]), ==,
                             i < n && fds[i] >= 0);
        }
    }
    for (size_t i = 0; i < G_N_ELEMENTS(fds); i++) {
        ivshmem2_close(&fds[i]);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/codec/golden", test_golden);
    g_test_add_func("/ivshmem2/codec/round-trip", test_round_trip);
    g_test_add_func("/ivshmem2/codec/byte-at-a-time", test_byte_at_a_time);
    g_test_add_func("/ivshmem2/codec/steal", test_steal);
    for (size_t i = 0; i < G_N_ELEMENTS(lies); i++) {
        g_autofree char *name = g_strdup_printf("/ivshmem2/codec/lie/%s",
                                                lies[i].name);

        g_test_add_data_func(name, &lies[i], test_lie);
    }
    g_test_add_func("/ivshmem2/codec/fds-in-the-middle",
                    test_fds_in_the_middle);
    g_test_add_func("/ivshmem2/codec/fds-too-many", test_fds_too_many);
    g_test_add_func("/ivshmem2/codec/surplus-bytes", test_surplus_bytes);
    g_test_add_func("/ivshmem2/codec/set-text", test_set_text);
    g_test_add_func("/ivshmem2/codec/sanitize", test_sanitize);
    g_test_add_func("/ivshmem2/codec/check-memory", test_check_memory);
    g_test_add_func("/ivshmem2/codec/check-eventfd", test_check_eventfd);
    g_test_add_func("/ivshmem2/codec/eventfd", test_eventfd);
    g_test_add_func("/ivshmem2/codec/eventfds", test_eventfds);
    g_test_add_func("/ivshmem2/codec/eventfd-room", test_eventfd_room);
    return g_test_run();
}
