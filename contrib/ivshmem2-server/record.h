/*
 * What a server leaves to its successor: a file in memory that outlives it,
 * with the shape of the link, the identities of its descriptors, and who has
 * which slot
 *
 * Only the server writes it.  It may be killed at any time, so whatever is
 * read here by a successor must make sense after each single store.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_RECORD_H
#define IVSHMEM2_RECORD_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>
#include "hw/misc/ivshmem2.h"

typedef struct Ivshmem2Record Ivshmem2Record;

enum Ivshmem2SlotUse {
    IVSHMEM2_SLOT_FREE      = 0,
    IVSHMEM2_SLOT_OCCUPIED  = 1,    /* by a client */
    IVSHMEM2_SLOT_HELD      = 2,    /* its last occupant may still use it */
};

/* One for each ID.  All zeros but for the UIDs: never used */
typedef struct Ivshmem2SlotRecord {
    uint32_t use;               /* enum Ivshmem2SlotUse; see set_use() */
    uint32_t last_state;        /* that the other peers were told about */
    uint32_t uid;               /* of the user that it counts for, or -1 */
    uint32_t last_uid;          /* of the last occupant, or -1 */
    /* of the occupant, or of the one that it is held for: */
    int32_t pid;                /* 0: cannot be seen */
    uint32_t reserved;
    uint64_t start_time;        /* of that process, see proc_pid_stat(5) */
    uint8_t vm_uuid[IVSHMEM2_UUID_SIZE];
    char name[IVSHMEM2_NAME_SIZE];
} Ivshmem2SlotRecord;

/* The record's entry for @id, in the mapped file.  Lives as long as @r. */
Ivshmem2SlotRecord *ivshmem2_record_slot(Ivshmem2Record *r, uint32_t id);

/* Change slot->use, after everything else that is written about that slot. */
void ivshmem2_record_set_use(Ivshmem2SlotRecord *slot,
                             enum Ivshmem2SlotUse use);

/* Are there peers that have not been interrupted for a changed state yet? */
void ivshmem2_record_set_broadcast(Ivshmem2Record *r, bool unfinished);
bool ivshmem2_record_broadcast(const Ivshmem2Record *r);

/* What never changes.  Sections that do not exist have size 0. */
typedef struct Ivshmem2RecordShape {
    Ivshmem2Welcome welcome;    /* but for id and protocol */
    uint64_t huge_page_size;    /* 0: no huge pages */
    uint32_t protocol;
    uint32_t backend_id;
} Ivshmem2RecordShape;

/* Identifies a memory file. */
typedef struct Ivshmem2FileId {
    uint64_t dev;
    uint64_t ino;
} Ivshmem2FileId;

/* The memory files: these, then each output section */
enum {
    IVSHMEM2_FILE_STATE_TABLE,
    IVSHMEM2_FILE_RW,
    IVSHMEM2_FILE_OUTPUTS,
};

/* The eventfds of an ID */
enum Ivshmem2EventfdsUse {
    IVSHMEM2_EVENTFDS_NONE      = 0,
    IVSHMEM2_EVENTFDS_MAKING    = 1,    /* some may be kept, no peer has one */
    IVSHMEM2_EVENTFDS_KEPT      = 2,    /* by what keeps the record, too */
    IVSHMEM2_EVENTFDS_LOST      = 3,    /* they end with the server */
};

/* NULL with @error set on failure */
Ivshmem2Record *ivshmem2_record_new(const Ivshmem2RecordShape *shape,
                                    GError **error);

/* Check and use an existing record.  On success, @fd belongs to it. */
Ivshmem2Record *ivshmem2_record_open(int fd, GError **error);
void ivshmem2_record_free(Ivshmem2Record *r);

/* Before ivshmem2_record_free(), which would close it */
int ivshmem2_record_steal_fd(Ivshmem2Record *r);

/* Is @fd a record?  It may be a damaged one. */
bool ivshmem2_record_recognize(int fd);

int ivshmem2_record_fd(const Ivshmem2Record *r);
const Ivshmem2RecordShape *ivshmem2_record_shape(const Ivshmem2Record *r);

/* From here on there may be peers: what belongs to the link is complete. */
void ivshmem2_record_set_served(Ivshmem2Record *r);
bool ivshmem2_record_served(const Ivshmem2Record *r);

/* @index: IVSHMEM2_FILE_*, up to _OUTPUTS + the highest ID */
Ivshmem2FileId *ivshmem2_record_file(Ivshmem2Record *r, uint32_t index);

/* Identify @fd; false if this is not possible. */
bool ivshmem2_file_id(int fd, Ivshmem2FileId *id);

/*
 * The kernel's number of an eventfd plus 1, which no other eventfd has at the
 * same time; 0 if it has none (Linux before 5.2), or if @fd is no eventfd.
 */
uint32_t ivshmem2_eventfd_number(int fd);

/* @numbers, one for each vector: as above; NULL leaves them as they are. */
bool ivshmem2_record_set_eventfds(Ivshmem2Record *r, uint32_t id,
                                  enum Ivshmem2EventfdsUse use,
                                  const uint32_t *numbers, GError **error);

/*
 * Are they others than those that the last occupant had, because these ended
 * with a server?
 */
bool ivshmem2_record_set_renewed(Ivshmem2Record *r, uint32_t id, bool renewed,
                                 GError **error);
bool ivshmem2_record_renewed(const Ivshmem2Record *r, uint32_t id);

/* Returns their use, and gets their numbers unless @numbers is NULL. */
enum Ivshmem2EventfdsUse ivshmem2_record_eventfds(const Ivshmem2Record *r,
                                                  uint32_t id,
                                                  uint32_t *numbers);

#endif /* IVSHMEM2_RECORD_H */
