/*
 * Fuzzing ivshmem2: any bytes, in any pieces, with any number of descriptors
 *
 * Input: the side that sends, how its descriptors and bytes are divided, and
 * the bytes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"

enum {
    FROM_SERVER     = 1 << 0,
    WRONG_FDS       = 1 << 1,   /* not as many as announced */
    FDS_ANYWHERE    = 1 << 2,
    STEAL_FDS       = 1 << 3,
};

/* The result of decoding a stream */
typedef struct Outcome {
    unsigned messages;
    uint32_t hash;              /* of all messages */
    uint64_t bytes;             /* of all messages */
    char *error;
} Outcome;

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1103515245 + 12345;
    return *seed >> 16;
}

/* Text is made printable, everything else must stay as it is. */
static void make_printable(Ivshmem2Msg *wire, uint16_t type)
{
    char text[IVSHMEM2_TEXT_SIZE + 1] = { 0 };

    if (type == IVSHMEM2_MSG_HELLO) {
        memcpy(text, wire->hello.name, IVSHMEM2_NAME_SIZE);
        ivshmem2_set_text(wire->hello.name, IVSHMEM2_NAME_SIZE, text);
    } else if (type == IVSHMEM2_MSG_REFUSED) {
        memcpy(text, wire->refusal.text, IVSHMEM2_TEXT_SIZE);
        ivshmem2_set_text(wire->refusal.text, IVSHMEM2_TEXT_SIZE, text);
    }
}

/* @wire: the bytes of the message in @d */
static void check_message(const Ivshmem2Decoder *d, const uint8_t *wire,
                          Outcome *o)
{
    uint16_t type = d->msg.hdr.type;
    size_t size = ivshmem2_type_size(type);
    Ivshmem2Msg again = d->msg;
    Ivshmem2Msg want;

    g_assert_true(ivshmem2_decoder_complete(d));
    g_assert_nonnull(ivshmem2_type_name(type));
    g_assert_cmpint(type >= IVSHMEM2_MSG_WELCOME, ==,
                    d->from == IVSHMEM2_SERVER);
    g_assert_cmpuint(d->msg.hdr.size, ==, size);
    g_assert_cmpuint(d->msg.hdr.fds, ==, d->n_fds);
    memcpy(&want, wire, size);
    make_printable(&want, type);
    g_assert_cmpuint(ivshmem2_msg_encode(&again), ==, size);
    g_assert_cmpmem(&again, size, &want, size);

    o->messages++;
    o->bytes += size;
    for (size_t i = 0; i < size; i++) {
        o->hash = o->hash * 31 + ((uint8_t *)&again)[i];
    }
}

static size_t choose_n_fds(const FuzzInput *in, uint8_t mode, bool first,
                           uint32_t *seed)
{
    uint16_t announced;

    if (first && !(mode & WRONG_FDS) && in->size >= sizeof(Ivshmem2Header)) {
        memcpy(&announced, in->data + offsetof(Ivshmem2Header, fds),
               sizeof(announced));
        return MIN(GUINT16_FROM_LE(announced), IVSHMEM2_MAX_FDS + 1);
    }
    if (first ? mode & WRONG_FDS : mode & FDS_ANYWHERE) {
        return next_random(seed) % (IVSHMEM2_MAX_FDS + 2);
    }
    return 0;
}

/* @cut: in random pieces, else in pieces that are as large as possible */
static Outcome decode(FuzzInput in, uint8_t mode, bool cut, uint32_t seed)
{
    uint32_t fd_seed = seed;
    Outcome o = { 0 };
    Ivshmem2Decoder d;
    const uint8_t *start = in.data;
    int ret = 0;

    ivshmem2_decoder_init(&d, mode & FROM_SERVER ? IVSHMEM2_SERVER
                                                 : IVSHMEM2_CLIENT);
    while (in.size && ret >= 0) {
        g_autoptr(GError) error = NULL;
        size_t wants = ivshmem2_decoder_wants(&d);
        size_t len = MIN(wants, in.size);
        size_t n_fds = choose_n_fds(&in, mode, in.data == start, &fd_seed);
        int fds[IVSHMEM2_MAX_FDS + 2];

        g_assert_cmpuint(wants, >, 0);
        g_assert_cmpuint(wants, <=, sizeof(Ivshmem2Msg));
        if (cut) {
            len = 1 + next_random(&seed) % len;
        }
        for (size_t i = 0; i < n_fds; i++) {
            fds[i] = fcntl(fuzz_fd(FUZZ_FD_EVENTFD), F_DUPFD_CLOEXEC, 0);
            g_assert_cmpint(fds[i], >=, 0);
        }
        ret = ivshmem2_decoder_push_consume(&d, in.data, len, fds, n_fds,
                                            &error);
        g_assert_cmpint(ret < 0, ==, error != NULL);
        in.data += len;
        in.size -= len;
        if (ret > 0) {
            check_message(&d, start, &o);
            if (mode & STEAL_FDS && d.n_fds) {
                int fd = ivshmem2_decoder_steal_fd(&d, d.n_fds - 1);

                g_assert_cmpint(fd, >=, 0);
                ivshmem2_close(&fd);
            }
            ivshmem2_decoder_reset(&d);
            start = in.data;
        } else if (ret < 0) {
            g_assert_cmpint(error->code, ==, IVSHMEM2_ERROR_PROTOCOL);
            o.error = g_strdup(error->message);
        }
    }
    ivshmem2_decoder_reset(&d);
    g_assert_cmpuint(ivshmem2_decoder_wants(&d), ==, sizeof(Ivshmem2Header));
    return o;
}

void fuzz_codec(FuzzInput *in)
{
    uint8_t mode = fuzz_u8(in);
    uint8_t seed = fuzz_u8(in);
    Outcome whole = decode(*in, mode, false, seed);
    Outcome pieces = decode(*in, mode, true, seed);

    g_assert_cmpuint(whole.bytes, <=, in->size);
    /* the sizes of the pieces make no difference */
    if (!(mode & FDS_ANYWHERE)) {
        g_assert_cmpuint(pieces.messages, ==, whole.messages);
        g_assert_cmpuint(pieces.hash, ==, whole.hash);
        g_assert_cmpstr(pieces.error, ==, whole.error);
    }
    g_free(whole.error);
    g_free(pieces.error);
}
