/*
 * ivshmem2-client: commands about the memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "client.h"
#include "libivshmem2-util.h"

#define DUMP_DEFAULT    256
/* Bytes in a line of a dump */
#define LINE            16
/* Bytes that are handled at a time: whole lines */
#define CHUNK           65536

typedef struct Section {
    const char *name;           /* as the user wrote it */
    char *data;
    uint64_t size;
    bool writable;
} Section;

static Status find_section(Client *c, const char *name, Section *s,
                           GError **error)
{
    const Ivshmem2PeerInfo *info = c->info;
    uint64_t id = info->id;

    s->name = name;
    s->writable = true;
    if (!strcmp(name, "state")) {
        s->data = (char *)ivshmem2_peer_state_table(c->peer);
        s->size = info->state_table_size;
        s->writable = false;
    } else if (!strcmp(name, "rw")) {
        s->data = ivshmem2_peer_rw(c->peer);
        s->size = info->rw_size;
    } else if (!strcmp(name, "output") || g_str_has_prefix(name, "output:")) {
        if (name[6] && !ivshmem2_parse_number("ID in SECTION", name + 7, 0,
                                              info->max_peers - 1, &id,
                                              error)) {
            return STATUS_USAGE;
        }
        s->data = ivshmem2_peer_output(c->peer, id);
        s->size = info->output_size;
        s->writable = id == info->id;
    } else {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT, "SECTION '%s' is none "
                      "of state, rw, output and output:ID", name);
        return STATUS_USAGE;
    }
    if (!s->size) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "this link has no %s section",
                      strcmp(name, "rw") == 0 ? "R/W" : "output");
        return STATUS_ERROR;
    }
    return STATUS_OK;
}

/* Turn data that is at @offset of a section into @text. */
typedef void Format(GString *text, uint64_t offset, const char *data,
                    size_t length);

static void format_raw(GString *text, uint64_t offset, const char *data,
                       size_t length)
{
    g_string_append_len(text, data, length);
}

static void format_hex(GString *text, uint64_t offset, const char *data,
                       size_t length)
{
    for (size_t i = 0; i < length; i++) {
        g_string_append_printf(text, "%02x", (uint8_t)data[i]);
    }
}

static void format_line(GString *text, uint64_t offset, const char *data,
                        size_t length)
{
    g_string_append_printf(text, "%08llx ", (unsigned long long)offset);
    for (size_t i = 0; i < LINE; i++) {
        if (i % 8 == 0) {
            g_string_append_c(text, ' ');
        }
        if (i < length) {
            g_string_append_printf(text, "%02x ", (uint8_t)data[i]);
        } else {
            g_string_append(text, "   ");
        }
    }
    g_string_append(text, " |");
    for (size_t i = 0; i < length; i++) {
        g_string_append_c(text, g_ascii_isprint(data[i]) ? data[i] : '.');
    }
    g_string_append(text, "|\n");
}

static void format_lines(GString *text, uint64_t offset, const char *data,
                         size_t length)
{
    for (size_t i = 0; i < length; i += LINE) {
        format_line(text, offset + i, data + i, MIN(LINE, length - i));
    }
}

/*
 * Append a range to @text as @format says, CHUNK bytes at a time.  With
 * @write, it goes to standard output instead, which may take any time.
 */
static Status show(Client *c, const Section *s, uint64_t offset,
                   uint64_t length, Format *format, GString *text, bool write,
                   GError **error)
{
    g_autofree char *buf = g_malloc(CHUNK);
    Status status = STATUS_OK;

    for (uint64_t i = 0; i < length && !status; i += CHUNK) {
        size_t n = MIN(CHUNK, length - i);

        /* on the host, this allocates nothing where nobody has written */
        if (!ivshmem2_peer_read(c->peer, s->data + offset + i, buf, n,
                                error)) {
            return STATUS_ERROR;
        }
        format(text, offset + i, buf, n);
        if (write) {
            status = write_out(c, text->str, text->len, error);
            g_string_truncate(text, 0);
        }
    }
    return status;
}

static Status print(Client *c, const Section *s, uint64_t offset,
                    uint64_t length, Format *format, GError **error)
{
    g_autoptr(GString) text = g_string_new(NULL);
    Json *json;
    Status status;

    if (!c->json) {
        return show(c, s, offset, length, format, text, true, error);
    }
    status = show(c, s, offset, length, format_hex, text, false, error);
    if (status) {
        return status;
    }
    json = json_new();
    json_string(json, "section", s->name);
    json_number(json, "offset", offset);
    json_number(json, "length", length);
    json_string(json, "hex", text->str);
    json_print(json);
    return STATUS_OK;
}

Status cmd_read(Client *c, char **args, GError **error)
{
    Section s;
    uint64_t offset, length;
    Status status = find_section(c, args[0], &s, error);

    if (status) {
        return status;
    }
    if (!ivshmem2_parse_number("OFFSET", args[1], 0, s.size, &offset, error) ||
        !ivshmem2_parse_number("LENGTH", args[2], 0, s.size - offset, &length,
                               error)) {
        return STATUS_USAGE;
    }
    return print(c, &s, offset, length, format_raw, error);
}

Status cmd_dump(Client *c, char **args, GError **error)
{
    Section s;
    uint64_t offset = 0, length;
    Status status = find_section(c, args[0], &s, error);

    if (status) {
        return status;
    }
    if (args[1] && !ivshmem2_parse_number("OFFSET", args[1], 0, s.size,
                                          &offset, error)) {
        return STATUS_USAGE;
    }
    length = MIN(DUMP_DEFAULT, s.size - offset);
    if (args[1] && args[2] && !ivshmem2_parse_number("LENGTH", args[2], 0,
                                                     s.size - offset, &length,
                                                     error)) {
        return STATUS_USAGE;
    }
    return print(c, &s, offset, length, format_lines, error);
}

/* In a guest, forbidden writes must have no effect: see whether it is so. */
static Status try_write(const Section *s, uint64_t offset, const char *data,
                        size_t length, GError **error)
{
    g_autofree char *before = g_memdup2(s->data + offset, length);

    memcpy(s->data + offset, data, length);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (s->writable || !length) {
        return STATUS_OK;
    }
    if (!memcmp(s->data + offset, before, length)) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "tried to write section '%s', but its data is "
                      "unchanged: this peer may only read it", s->name);
    } else {
        ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                      "tried to write section '%s', which this peer may only "
                      "read, AND ITS DATA CHANGED", s->name);
    }
    return STATUS_ERROR;
}

static Status write_chunk(Client *c, const Section *s, uint64_t offset,
                          const char *data, size_t length, GError **error)
{
    if (length > s->size - offset) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "%zu bytes at offset %llu do not fit section '%s' of "
                      "%llu bytes", length, (unsigned long long)offset,
                      s->name, (unsigned long long)s->size);
        return STATUS_ERROR;
    }
    if (!s->writable && c->on_host) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "section '%s' is mapped read-only: this peer may only "
                      "read it", s->name);
        return STATUS_ERROR;
    }
    return try_write(s, offset, data, length, error);
}

static Status write_stdin(Client *c, const Section *s, uint64_t offset,
                          uint64_t *total, GError **error)
{
    g_autofree char *buf = g_malloc(CHUNK);
    Status status = STATUS_OK;

    while (!status) {
        ssize_t len;

        if (!await_fd(c, STDIN_FILENO, POLLIN)) {
            return end_interrupted(false, error);
        }
        len = read(STDIN_FILENO, buf, CHUNK);
        if (len < 0 && errno != EINTR) {
            ivshmem2_fail_errno(error, "cannot read standard input");
            return STATUS_ERROR;
        }
        if (len == 0) {
            break;
        }
        if (len > 0) {
            status = write_chunk(c, s, offset + *total, buf, len, error);
            *total += len;
        }
    }
    return status;
}

Status cmd_write(Client *c, char **args, GError **error)
{
    Section s;
    uint64_t offset, total = 0;
    Status status = find_section(c, args[0], &s, error);

    if (status) {
        return status;
    }
    if (!ivshmem2_parse_number("OFFSET", args[1], 0, s.size, &offset, error)) {
        return STATUS_USAGE;
    }
    if (args[2]) {
        total = strlen(args[2]);
        status = write_chunk(c, &s, offset, args[2], total, error);
    } else if (c->in_shell) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "the shell's write needs DATA");
        return STATUS_USAGE;
    } else {
        status = write_stdin(c, &s, offset, &total, error);
    }
    if (status) {
        return status;
    }
    if (c->json) {
        Json *json = json_new();

        json_string(json, "section", s.name);
        json_number(json, "offset", offset);
        json_number(json, "length", total);
        json_print(json);
    } else {
        printf("wrote %llu bytes\n", (unsigned long long)total);
    }
    return STATUS_OK;
}
