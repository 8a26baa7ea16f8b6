/*
 * How a link is put together, for link.c and adopt.c
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_LINK_BUILD_H
#define IVSHMEM2_LINK_BUILD_H

#include "link.h"

/* A link without anything; no descriptor is open. */
Ivshmem2Link *ivshmem2_link_alloc(const Ivshmem2LinkConfig *config);

/* The shape that the configuration asks for */
bool ivshmem2_link_configure(Ivshmem2Link *link, GError **error);

/* What the record has to say about that */
Ivshmem2RecordShape ivshmem2_link_shape(const Ivshmem2Link *link);

bool ivshmem2_link_map_table(Ivshmem2Link *link, GError **error);

/* Make the eventfds that must be there from the start and are not. */
bool ivshmem2_link_complete(Ivshmem2Link *link, GError **error);

#endif /* IVSHMEM2_LINK_BUILD_H */
