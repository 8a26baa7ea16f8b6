/*
 * libivshmem2: encoding and decoding messages
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#include <string.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"

typedef struct MsgType {
    uint16_t type;
    const char *name;
    uint8_t from;               /* Ivshmem2Side */
    uint8_t min_fds;
    uint8_t max_fds;
    uint16_t payload;
    const char *widths;         /* of the integers that the payload has first */
} MsgType;

#define MSG_TYPE(name, from, min_fds, max_fds, payload, widths)    \
    { IVSHMEM2_MSG_##name, #name, IVSHMEM2_##from, min_fds, max_fds, \
      payload, widths },

static const MsgType msg_types[] = { IVSHMEM2_MESSAGES(MSG_TYPE) };

static const MsgType *find_type(uint16_t type)
{
    for (size_t i = 0; i < G_N_ELEMENTS(msg_types); i++) {
        if (msg_types[i].type == type) {
            return &msg_types[i];
        }
    }
    return NULL;
}

const char *ivshmem2_type_name(uint16_t type)
{
    const MsgType *t = find_type(type);

    return t ? t->name : NULL;
}

size_t ivshmem2_type_size(uint16_t type)
{
    const MsgType *t = find_type(type);

    return sizeof(Ivshmem2Header) + (t ? t->payload : 0);
}

/* Swapping is the same in both directions. */
static void swap_header(Ivshmem2Header *hdr)
{
    hdr->type = GUINT16_FROM_LE(hdr->type);
    hdr->fds = GUINT16_FROM_LE(hdr->fds);
    hdr->size = GUINT32_FROM_LE(hdr->size);
}

static void swap_payload(Ivshmem2Msg *msg, const MsgType *t)
{
    uint8_t *p = (uint8_t *)msg + sizeof(msg->hdr);

    for (const char *width = t->widths; *width; p += *width++ - '0') {
        uint16_t v16;
        uint32_t v32;
        uint64_t v64;

        switch (*width) {
        case '2':
            memcpy(&v16, p, sizeof(v16));
            v16 = GUINT16_FROM_LE(v16);
            memcpy(p, &v16, sizeof(v16));
            break;
        case '4':
            memcpy(&v32, p, sizeof(v32));
            v32 = GUINT32_FROM_LE(v32);
            memcpy(p, &v32, sizeof(v32));
            break;
        case '8':
            memcpy(&v64, p, sizeof(v64));
            v64 = GUINT64_FROM_LE(v64);
            memcpy(p, &v64, sizeof(v64));
            break;
        }
    }
}

size_t ivshmem2_msg_encode(Ivshmem2Msg *msg)
{
    const MsgType *t = find_type(msg->hdr.type);
    size_t size = sizeof(msg->hdr) + t->payload;

    msg->hdr.size = size;
    swap_payload(msg, t);
    swap_header(&msg->hdr);
    return size;
}

void ivshmem2_set_text(char *dst, size_t size, const char *src)
{
    size_t i;

    memset(dst, 0, size);
    for (i = 0; i < size - 1 && src[i]; i++) {
        dst[i] = g_ascii_isprint(src[i]) ? src[i] : '?';
    }
}

void ivshmem2_decoder_init(Ivshmem2Decoder *d, Ivshmem2Side from)
{
    memset(d, 0, sizeof(*d));
    d->from = from;
}

size_t ivshmem2_decoder_wants(const Ivshmem2Decoder *d)
{
    if (d->have < sizeof(d->msg.hdr)) {
        return sizeof(d->msg.hdr) - d->have;
    }
    return d->msg.hdr.size - d->have;
}

bool ivshmem2_decoder_complete(const Ivshmem2Decoder *d)
{
    return d->have >= sizeof(d->msg.hdr) && d->have == d->msg.hdr.size;
}

static bool check_header(Ivshmem2Decoder *d, GError **error)
{
    const Ivshmem2Header *hdr = &d->msg.hdr;
    const MsgType *t = find_type(hdr->type);
    const char *sender = d->from == IVSHMEM2_SERVER ? "server" : "client";

    if (!hdr->type && !hdr->fds && !hdr->size && d->from == IVSHMEM2_SERVER) {
        /* the version number with which it begins */
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "this is an ivshmem version-1 server, an "
                             "ivshmem2-server is needed");
    }
    if (!t) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "%s sent a message of unknown type 0x%x, is it "
                             "an ivshmem2 %s?", sender, hdr->type, sender);
    }
    if (t->from != d->from) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "%s sent %s, which is not its to send", sender,
                             t->name);
    }
    if (hdr->size != sizeof(*hdr) + t->payload) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "%s sent %s with size %u instead of %zu", sender,
                             t->name, hdr->size, sizeof(*hdr) + t->payload);
    }
    if (hdr->fds < t->min_fds || hdr->fds > t->max_fds) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "%s announced %u descriptors with %s, %u to %u "
                             "are right", sender, hdr->fds, t->name,
                             t->min_fds, t->max_fds);
    }
    return true;
}

/* Text from the other side is printed in logs and on terminals. */
static void sanitize_text(char *text, size_t size)
{
    g_autofree char *copy = g_strndup(text, size);

    ivshmem2_set_text(text, size, copy);
}

static bool check_message(Ivshmem2Decoder *d, GError **error)
{
    Ivshmem2Msg *msg = &d->msg;
    const MsgType *t = find_type(msg->hdr.type);

    if (d->n_fds < msg->hdr.fds) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "%s came with %u descriptors, but announced %u: "
                             "if the limit of open files (RLIMIT_NOFILE, "
                             "ulimit -n) is too low here, raise it",
                             t->name, d->n_fds, msg->hdr.fds);
    }
    if (d->n_fds != msg->hdr.fds) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "%s came with %u descriptors, but announced %u",
                             t->name, d->n_fds, msg->hdr.fds);
    }
    swap_payload(msg, t);
    switch (msg->hdr.type) {
    case IVSHMEM2_MSG_HELLO:
        if (msg->hello.magic != IVSHMEM2_MAGIC) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                                 "HELLO has the wrong magic 0x%x",
                                 msg->hello.magic);
        }
        sanitize_text(msg->hello.name, sizeof(msg->hello.name));
        break;
    case IVSHMEM2_MSG_REFUSED:
        sanitize_text(msg->refusal.text, sizeof(msg->refusal.text));
        break;
    }
    return true;
}

static void push_fds(Ivshmem2Decoder *d, const int *fds, size_t n_fds)
{
    for (size_t i = 0; i < n_fds; i++) {
        int fd = fds[i];

        if (d->n_fds < IVSHMEM2_MAX_FDS) {
            d->fds[d->n_fds++] = fd;
        } else {
            ivshmem2_dispose(&fd);
        }
    }
}

int ivshmem2_decoder_push_consume(Ivshmem2Decoder *d, const void *buf,
                                  size_t len, const int *fds, size_t n_fds,
                                  GError **error)
{
    bool in_header = d->have < sizeof(d->msg.hdr);
    bool misplaced = n_fds && d->have;

    push_fds(d, fds, n_fds);
    if (misplaced || n_fds > IVSHMEM2_MAX_FDS) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL, misplaced ?
                      "descriptors came in the middle of a message" :
                      "too many descriptors came with one message");
        return -1;
    }
    if (len > ivshmem2_decoder_wants(d)) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "more bytes than the message lacks");
        return -1;
    }
    memcpy((uint8_t *)&d->msg + d->have, buf, len);
    d->have += len;
    if (d->have < sizeof(d->msg.hdr)) {
        return 0;
    }
    if (in_header) {
        swap_header(&d->msg.hdr);
        if (!check_header(d, error)) {
            return -1;
        }
    }
    if (!ivshmem2_decoder_complete(d)) {
        return 0;
    }
    return check_message(d, error) ? 1 : -1;
}

int ivshmem2_decoder_steal_fd(Ivshmem2Decoder *d, unsigned i)
{
    int fd = d->fds[i];

    d->fds[i] = -1;
    return fd;
}

void ivshmem2_decoder_reset(Ivshmem2Decoder *d)
{
    for (unsigned i = 0; i < d->n_fds; i++) {
        ivshmem2_dispose(&d->fds[i]);
    }
    d->n_fds = 0;
    d->have = 0;
}
