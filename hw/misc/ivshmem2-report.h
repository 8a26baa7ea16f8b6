/*
 * ivshmem2: what people and management programs are told of a connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_MISC_IVSHMEM2_REPORT_H
#define HW_MISC_IVSHMEM2_REPORT_H

#include "hw/qdev-core.h"
#include "qapi/qapi-types-ivshmem2.h"

/*
 * A QMP event for each change of the status.  Lines of QEMU's output without a
 * flood from a server that comes and goes, or refuses: two about losses until
 * a connection is settled, then one in @again_ms; the last line is true.
 */
typedef struct Ivshmem2Report {
    uint32_t again_ms;          /* a line is due again; a property */
    DeviceState *dev;
    uint32_t id;                /* of this peer */
    Ivshmem2ConnectionStatus status;
    char *reason;               /* why it is not connected, or NULL */
    char *said;                 /* the last line, if it is about a loss */
    unsigned losses;            /* lines since a connection was settled */
    int64_t last_ms;            /* when the last of them was */
} Ivshmem2Report;

/* The device has joined. */
void ivshmem2_report_init(Ivshmem2Report *r, DeviceState *dev, uint32_t id);
void ivshmem2_report_exit(Ivshmem2Report *r);

/* @refused: a server has told us @reason before there was a connection. */
void ivshmem2_report_loss(Ivshmem2Report *r, bool refused, const char *reason);

/* IVSHMEM2_CONNECTION_STATUS_CONNECTED or _REJOINED */
void ivshmem2_report_return(Ivshmem2Report *r, Ivshmem2ConnectionStatus how);

/* The connection has lasted for a while. */
void ivshmem2_report_settled(Ivshmem2Report *r);

#endif /* HW_MISC_IVSHMEM2_REPORT_H */
