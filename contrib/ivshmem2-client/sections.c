/*
 * ivshmem2-client: commands about the memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "client.h"
#include "libivshmem2-util.h"

#define DUMP_DEFAULT    256
/* Bytes that are handled at a time */
#define CHUNK           65536

typedef struct Section {
    const char *name;           /* as the user wrote it */
    char *data;
    uint64_t size;
    bool writable;
    bool has_holes;             /* see can_see_holes() */
} Section;

/*
 * Reading a page that nobody has written allocates it.  On the host, mincore()
 * tells which pages those are, if no page of this process is swapped out,
 * because it takes such pages for missing ones.
 */
static bool can_see_holes(const Client *c)
{
    g_autofree char *text = NULL;
    const char *swap;

    if (!c->on_host ||
        !g_file_get_contents("/proc/self/smaps_rollup", &text, NULL, NULL)) {
        return false;
    }
    swap = strstr(text, "\nSwap:");
    return swap && g_ascii_strtoull(swap + strlen("\nSwap:"), NULL, 10) == 0;
}

static bool is_hole(const Section *s, char *page, size_t page_size)
{
    unsigned char resident;

    return s->has_holes && mincore(page, page_size, &resident) == 0 &&
           !(resident & 1);
}

/* Copy data of a section without allocating memory for it. */
static void fetch(const Section *s, uint64_t offset, char *buf, size_t length)
{
    const size_t page_size = sysconf(_SC_PAGE_SIZE);

    while (length) {
        char *from = s->data + offset;
        size_t in_page = (uintptr_t)from % page_size;
        size_t n = MIN(length, page_size - in_page);

        if (is_hole(s, from - in_page, page_size)) {
            memset(buf, 0, n);
        } else {
            memcpy(buf, from, n);
        }
        buf += n;
        offset += n;
        length -= n;
    }
}

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
    s->has_holes = can_see_holes(c);
    return STATUS_OK;
}

static void print_json(const Section *s, uint64_t offset, uint64_t length)
{
    Json *json = json_new();
    GString *hex = g_string_new(NULL);
    char buf[512];

    for (uint64_t i = 0; i < length; i += sizeof(buf)) {
        size_t n = MIN(sizeof(buf), length - i);

        fetch(s, offset + i, buf, n);
        for (size_t j = 0; j < n; j++) {
            g_string_append_printf(hex, "%02x", (uint8_t)buf[j]);
        }
    }
    json_string(json, "section", s->name);
    json_number(json, "offset", offset);
    json_number(json, "length", length);
    json_string(json, "hex", hex->str);
    json_print(json);
    g_string_free(hex, TRUE);
}

static Status write_stdout(const Section *s, uint64_t offset, uint64_t length,
                           GError **error)
{
    g_autofree char *buf = g_malloc(CHUNK);
    bool ok = true;

    for (uint64_t i = 0; ok && i < length; i += CHUNK) {
        size_t n = MIN(CHUNK, length - i);

        fetch(s, offset + i, buf, n);
        ok = fwrite(buf, 1, n, stdout) == n;
    }
    if (!ok || fflush(stdout)) {
        ivshmem2_fail_errno(error, "cannot write to standard output");
        return STATUS_ERROR;
    }
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
    if (c->json) {
        print_json(&s, offset, length);
        return STATUS_OK;
    }
    return write_stdout(&s, offset, length, error);
}

static void print_line(const Section *s, uint64_t offset, uint64_t length)
{
    char bytes[16];

    fetch(s, offset, bytes, length);
    printf("%08llx ", (unsigned long long)offset);
    for (unsigned i = 0; i < sizeof(bytes); i++) {
        if (i % 8 == 0) {
            putchar(' ');
        }
        if (i < length) {
            printf("%02x ", (uint8_t)bytes[i]);
        } else {
            fputs("   ", stdout);
        }
    }
    fputs(" |", stdout);
    for (unsigned i = 0; i < length; i++) {
        putchar(g_ascii_isprint(bytes[i]) ? bytes[i] : '.');
    }
    puts("|");
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
    if (c->json) {
        print_json(&s, offset, length);
        return STATUS_OK;
    }
    for (uint64_t i = 0; i < length; i += 16) {
        print_line(&s, offset + i, MIN(16, length - i));
    }
    return STATUS_OK;
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
        ssize_t len = read(STDIN_FILENO, buf, CHUNK);

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
