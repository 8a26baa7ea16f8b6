/*
 * What a server leaves to its successor
 *
 * The file begins with the header, the slots and the files, which are mapped.
 * The numbers of the eventfds follow, which are read and written as they are
 * needed: on the largest links there is room for 134 million of them, most of
 * which is a hole.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "memfd.h"
#include "record.h"

/* To be counted up when anything in the file changes its place or meaning */
#define LAYOUT      1

static const char magic[16] = "ivshmem2 record";

typedef struct Header {
    char magic[sizeof(magic)];
    uint32_t layout;
    uint32_t served;
    uint32_t broadcast;
    uint32_t reserved;
    uint64_t size;              /* of the file */
    Ivshmem2RecordShape shape;
} Header;

G_STATIC_ASSERT(sizeof(Header) == 120);
G_STATIC_ASSERT(sizeof(Ivshmem2SlotRecord) == 112);
G_STATIC_ASSERT(sizeof(Ivshmem2FileId) == 16);

struct Ivshmem2Record {
    int fd;
    Header *header;             /* mapped, @mapped bytes */
    size_t mapped;
    Ivshmem2SlotRecord *slots;  /* there */
    Ivshmem2FileId *files;      /* there */
};

/* Layout */

static uint64_t slots_offset(void)
{
    return sizeof(Header);
}

static uint64_t files_offset(const Ivshmem2RecordShape *shape)
{
    return slots_offset() +
           (uint64_t)shape->welcome.max_peers * sizeof(Ivshmem2SlotRecord);
}

static uint64_t n_files(const Ivshmem2RecordShape *shape)
{
    return IVSHMEM2_FILE_OUTPUTS +
           (shape->welcome.output_size ? shape->welcome.max_peers : 0);
}

static uint64_t eventfds_offset(const Ivshmem2RecordShape *shape)
{
    return files_offset(shape) + n_files(shape) * sizeof(Ivshmem2FileId);
}

/* What the record says of the eventfds of an ID; the numbers follow */
typedef struct Row {
    uint32_t use;
    uint32_t renewed;
} Row;

static uint64_t row_size(const Ivshmem2RecordShape *shape)
{
    return sizeof(Row) + (uint64_t)shape->welcome.vectors * sizeof(uint32_t);
}

static uint64_t file_size(const Ivshmem2RecordShape *shape)
{
    return eventfds_offset(shape) + shape->welcome.max_peers * row_size(shape);
}

static uint64_t row_offset(const Ivshmem2Record *r, uint32_t id)
{
    const Ivshmem2RecordShape *shape = &r->header->shape;

    return eventfds_offset(shape) + id * row_size(shape);
}

static Row read_row(const Ivshmem2Record *r, uint32_t id)
{
    Row row;
    ssize_t len = pread(r->fd, &row, sizeof(row), row_offset(r, id));

    return len == sizeof(row) ? row : (Row) { 0 };
}

/* Making */

static bool map(Ivshmem2Record *r, const Ivshmem2RecordShape *shape,
                GError **error)
{
    void *p;

    r->mapped = eventfds_offset(shape);
    p = mmap(NULL, r->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, 0);
    if (p == MAP_FAILED) {
        return ivshmem2_fail_errno(error, "cannot map the record");
    }
    r->header = p;
    r->slots = (void *)((char *)p + slots_offset());
    r->files = (void *)((char *)p + files_offset(shape));
    return true;
}

Ivshmem2Record *ivshmem2_record_new(const Ivshmem2RecordShape *shape,
                                    GError **error)
{
    Ivshmem2Record *r = g_new0(Ivshmem2Record, 1);

    r->fd = ivshmem2_memfd_new(file_size(shape), S_IRUSR | S_IWUSR, 0,
                               "record", error);
    if (r->fd < 0 || !map(r, shape, error)) {
        ivshmem2_record_free(r);
        return NULL;
    }
    r->header->layout = LAYOUT;
    r->header->size = file_size(shape);
    r->header->shape = *shape;
    for (uint32_t id = 0; id < shape->welcome.max_peers; id++) {
        r->slots[id].uid = -1;
        r->slots[id].last_uid = -1;
    }
    memcpy(r->header->magic, magic, sizeof(magic));
    return r;
}

void ivshmem2_record_free(Ivshmem2Record *r)
{
    if (r) {
        if (r->header) {
            munmap(r->header, r->mapped);
        }
        ivshmem2_close(&r->fd);
        g_free(r);
    }
}

int ivshmem2_record_steal_fd(Ivshmem2Record *r)
{
    int fd = r->fd;

    r->fd = -1;
    return fd;
}

/* Checking */

static bool damaged(GError **error, const char *what)
{
    return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                         "the record is damaged: %s", what);
}

bool ivshmem2_record_recognize(int fd)
{
    char found[sizeof(magic)];
    int seals = fcntl(fd, F_GET_SEALS);

    /* Only memory files have seals, and these never keep a reader waiting. */
    return seals >= 0 &&
           pread(fd, found, sizeof(found), 0) == sizeof(found) &&
           !memcmp(found, magic, sizeof(found));
}

static bool check_header(int fd, Header *h, GError **error)
{
    g_autoptr(GError) why = NULL;
    struct stat st;

    if (!ivshmem2_check_memfd(fd, sizeof(*h), true, "record", error)) {
        return false;
    }
    if (fstat(fd, &st) < 0 || pread(fd, h, sizeof(*h), 0) != sizeof(*h)) {
        return ivshmem2_fail_errno(error, "cannot read the record");
    }
    if (memcmp(h->magic, magic, sizeof(magic))) {
        return damaged(error, "it does not begin as a record does");
    }
    if (h->layout != LAYOUT) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_VERSION,
                             "the record has layout %u, this server knows "
                             "layout %u", h->layout, LAYOUT);
    }
    if (!ivshmem2_welcome_check(&h->shape.welcome, &why)) {
        return damaged(error, why->message);
    }
    if (h->shape.protocol > UINT16_MAX || h->shape.welcome.id ||
        h->shape.welcome.protocol ||
        h->shape.huge_page_size > IVSHMEM2_MAX_SIZE ||
        h->shape.huge_page_size & (h->shape.huge_page_size - 1)) {
        return damaged(error, "protocol or page size are out of range");
    }
    if (h->size != file_size(&h->shape) || (uint64_t)st.st_size != h->size) {
        g_autofree char *text = g_strdup_printf(
            "it has %" PRIu64 " bytes, a link of this shape %" PRIu64,
            (uint64_t)st.st_size, file_size(&h->shape));

        return damaged(error, text);
    }
    if (h->served > 1 || h->broadcast > 1) {
        return damaged(error, "a flag is neither 0 nor 1");
    }
    return true;
}

static bool check_slots(const Ivshmem2Record *r, GError **error)
{
    for (uint32_t id = 0; id < r->header->shape.welcome.max_peers; id++) {
        const Ivshmem2SlotRecord *slot = &r->slots[id];
        Row row = read_row(r, id);

        if (slot->use > IVSHMEM2_SLOT_HELD || slot->pid < 0 ||
            slot->name[IVSHMEM2_NAME_SIZE - 1] ||
            row.use > IVSHMEM2_EVENTFDS_LOST || row.renewed > 1) {
            g_autofree char *text = g_strdup_printf(
                "what it says of ID %u is out of range", id);

            return damaged(error, text);
        }
    }
    return true;
}

Ivshmem2Record *ivshmem2_record_open(int fd, GError **error)
{
    Ivshmem2Record *r;
    Header h;

    if (!check_header(fd, &h, error)) {
        return NULL;
    }
    r = g_new0(Ivshmem2Record, 1);
    r->fd = fd;
    if (!map(r, &h.shape, error) || !check_slots(r, error)) {
        r->fd = -1;
        ivshmem2_record_free(r);
        return NULL;
    }
    return r;
}

/* Use */

int ivshmem2_record_fd(const Ivshmem2Record *r)
{
    return r->fd;
}

const Ivshmem2RecordShape *ivshmem2_record_shape(const Ivshmem2Record *r)
{
    return &r->header->shape;
}

Ivshmem2SlotRecord *ivshmem2_record_slot(Ivshmem2Record *r, uint32_t id)
{
    return &r->slots[id];
}

void ivshmem2_record_set_use(Ivshmem2SlotRecord *slot,
                             enum Ivshmem2SlotUse use)
{
    __atomic_store_n(&slot->use, use, __ATOMIC_RELEASE);
}

void ivshmem2_record_set_broadcast(Ivshmem2Record *r, bool unfinished)
{
    __atomic_store_n(&r->header->broadcast, unfinished, __ATOMIC_RELEASE);
}

bool ivshmem2_record_broadcast(const Ivshmem2Record *r)
{
    return r->header->broadcast;
}

void ivshmem2_record_set_served(Ivshmem2Record *r)
{
    __atomic_store_n(&r->header->served, 1, __ATOMIC_RELEASE);
}

bool ivshmem2_record_served(const Ivshmem2Record *r)
{
    return r->header->served;
}

/* Identities */

Ivshmem2FileId *ivshmem2_record_file(Ivshmem2Record *r, uint32_t index)
{
    return &r->files[index];
}

bool ivshmem2_file_id(int fd, Ivshmem2FileId *id)
{
    struct stat st;
    bool ok = fstat(fd, &st) == 0;

    *id = (Ivshmem2FileId) {
        .dev = ok ? st.st_dev : 0,
        .ino = ok ? st.st_ino : 0,
    };
    return ok;
}

uint32_t ivshmem2_eventfd_number(int fd)
{
    static const char key[] = "\neventfd-id:";
    g_autofree char *path = g_strdup_printf("/proc/self/fdinfo/%d", fd);
    g_autofree char *text = NULL;
    const char *at, *end;
    uint64_t number;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return 0;
    }
    at = strstr(text, key);
    if (!at) {
        return 0;
    }
    for (at += strlen(key); *at == ' '; at++) {
        continue;
    }
    return ivshmem2_scan_number(at, 10, &number, &end) && number < UINT32_MAX
           ? number + 1 : 0;
}

static bool write_row(Ivshmem2Record *r, uint32_t id, size_t offset,
                      const void *value, size_t size, GError **error)
{
    return pwrite(r->fd, value, size, row_offset(r, id) + offset) ==
           (ssize_t)size ||
           ivshmem2_fail_errno(error, "cannot write to the record");
}

bool ivshmem2_record_set_eventfds(Ivshmem2Record *r, uint32_t id,
                                  enum Ivshmem2EventfdsUse use,
                                  const uint32_t *numbers, GError **error)
{
    size_t size = r->header->shape.welcome.vectors * sizeof(*numbers);
    uint32_t value = use;

    return (!numbers ||
            write_row(r, id, sizeof(Row), numbers, size, error)) &&
           write_row(r, id, offsetof(Row, use), &value, sizeof(value), error);
}

bool ivshmem2_record_set_renewed(Ivshmem2Record *r, uint32_t id, bool renewed,
                                 GError **error)
{
    uint32_t value = renewed;

    return write_row(r, id, offsetof(Row, renewed), &value, sizeof(value),
                     error);
}

bool ivshmem2_record_renewed(const Ivshmem2Record *r, uint32_t id)
{
    return read_row(r, id).renewed;
}

enum Ivshmem2EventfdsUse ivshmem2_record_eventfds(const Ivshmem2Record *r,
                                                  uint32_t id,
                                                  uint32_t *numbers)
{
    size_t size = r->header->shape.welcome.vectors * sizeof(*numbers);

    if (numbers &&
        pread(r->fd, numbers, size, row_offset(r, id) + sizeof(Row)) !=
        (ssize_t)size) {
        return IVSHMEM2_EVENTFDS_NONE;
    }
    return read_row(r, id).use;
}
