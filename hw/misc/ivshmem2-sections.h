/*
 * ivshmem2: the shared memory, as the guest sees it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_SECTIONS_H
#define HW_MISC_IVSHMEM2_SECTIONS_H

#include "exec/memory.h"
#include "libivshmem2-core.h"

/* To be used with the big QEMU lock. */
typedef struct Ivshmem2Sections {
    MemoryRegion all;           /* BAR 2, or what is at the fixed address */
    MemoryRegion state_table;
    MemoryRegion rw;
    MemoryRegion outputs_before;
    MemoryRegion output;
    MemoryRegion outputs_after;
} Ivshmem2Sections;

/* @memory: of the sections that @info describes; it belongs to @owner. */
void ivshmem2_sections_init(Ivshmem2Sections *s, Object *owner,
                            const Ivshmem2Welcome *info, uint8_t *memory,
                            uint64_t size);

/*
 * Put them at a guest-physical address, which no guest can change.  Fails if
 * there cannot be memory, or already is something else; the error says what.
 */
bool ivshmem2_sections_place(Ivshmem2Sections *s, uint64_t address,
                             uint32_t page_size, Error **errp);

/* Also without the others before */
void ivshmem2_sections_exit(Ivshmem2Sections *s);

#endif /* HW_MISC_IVSHMEM2_SECTIONS_H */
