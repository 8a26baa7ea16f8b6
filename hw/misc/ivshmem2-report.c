/*
 * ivshmem2: what people and management programs are told of a connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/qapi-events-ivshmem2.h"
#include "qemu/error-report.h"
#include "qemu/timer.h"
#include "ivshmem2-report.h"

/*
 * Together with the line of a chardev that cannot connect, three lines in the
 * first seconds
 */
#define MAX_LOSSES      2

void ivshmem2_report_init(Ivshmem2Report *r, DeviceState *dev, uint32_t id)
{
    r->dev = dev;
    r->id = id;
    r->status = IVSHMEM2_CONNECTION_STATUS_CONNECTED;
    r->losses = 0;
}

void ivshmem2_report_exit(Ivshmem2Report *r)
{
    g_clear_pointer(&r->reason, g_free);
    g_clear_pointer(&r->said, g_free);
}

static void ivshmem2_report_status(Ivshmem2Report *r,
                                   Ivshmem2ConnectionStatus status)
{
    g_autofree char *path = object_get_canonical_path(OBJECT(r->dev));

    r->status = status;
    qapi_event_send_ivshmem2_connection(r->dev->id, path, r->id, status,
                                        r->reason);
}

static bool ivshmem2_report_is_connected(const Ivshmem2Report *r)
{
    return r->status == IVSHMEM2_CONNECTION_STATUS_CONNECTED ||
           r->status == IVSHMEM2_CONNECTION_STATUS_REJOINED;
}

void ivshmem2_report_loss(Ivshmem2Report *r, bool refused, const char *reason)
{
    int64_t now = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    g_free(r->reason);
    r->reason = g_strdup(reason);
    if (refused && r->status != IVSHMEM2_CONNECTION_STATUS_REFUSED) {
        ivshmem2_report_status(r, IVSHMEM2_CONNECTION_STATUS_REFUSED);
    } else if (!refused && ivshmem2_report_is_connected(r)) {
        ivshmem2_report_status(r, IVSHMEM2_CONNECTION_STATUS_DISCONNECTED);
    }
    if ((r->losses >= MAX_LOSSES && now - r->last_ms < r->again_ms) ||
        !g_strcmp0(r->said, reason)) {
        return;
    }
    r->losses++;
    r->last_ms = now;
    g_free(r->said);
    r->said = g_strdup(reason);
    warn_report("ivshmem2: peer %u goes on without its server: %s", r->id,
                reason);
}

static void ivshmem2_report_say_return(Ivshmem2Report *r)
{
    bool rejoined = r->status == IVSHMEM2_CONNECTION_STATUS_REJOINED;

    g_clear_pointer(&r->said, g_free);
    info_report("ivshmem2: peer %u %s", r->id, rejoined ?
                "has joined the session of another server, with other memory" :
                "is connected with its server again");
}

void ivshmem2_report_return(Ivshmem2Report *r, Ivshmem2ConnectionStatus how)
{
    g_clear_pointer(&r->reason, g_free);
    ivshmem2_report_status(r, how);
    /* that it is lost again must still fit in */
    if (r->said && r->losses < MAX_LOSSES) {
        ivshmem2_report_say_return(r);
    }
}

void ivshmem2_report_settled(Ivshmem2Report *r)
{
    if (r->said) {
        ivshmem2_report_say_return(r);
    }
    r->losses = 0;
}
