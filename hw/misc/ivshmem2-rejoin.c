/*
 * ivshmem2: going over to the session of another server
 *
 * To the guest it is as if all other peers had left and all memory had been
 * zeroed; the device and its configuration stay.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/mman.h>
#include "qapi/error.h"
#include "ivshmem2-device.h"
#include "trace.h"

/*
 * Map the new memory somewhere else.  It may be that this fails, and the guest
 * is to find its state there from the start.
 */
static bool ivshmem2_rejoin_try(Ivshmem2State *s, Ivshmem2Session *next,
                                GError **err)
{
    uint8_t *memory = ivshmem2_session_map(next, err);

    if (!memory) {
        return false;
    }
    ivshmem2_publish_state(s, memory);
    munmap(memory, ivshmem2_total_size(&s->info));
    return true;
}

/* At the same addresses: QEMU's memory regions and KVM see no change. */
static bool ivshmem2_rejoin_map(Ivshmem2State *s, Ivshmem2Session *next,
                                GError **err)
{
    if (!ivshmem2_rejoin_try(s, next, err)) {
        return false;
    }
    if (!ivshmem2_session_map_over(next, s->memory, err)) {
        ivshmem2_session_map_over(s->conn.session, s->memory, NULL);
        return false;
    }
    return true;
}

bool ivshmem2_rejoin(void *opaque, Ivshmem2Session *next, Error **errp)
{
    Ivshmem2State *s = opaque;
    g_autoptr(GError) err = NULL;

    if (!ivshmem2_irq_add_session(&s->irq, next, errp)) {
        return false;
    }
    /* From here on, processors that ring wait for the big lock. */
    ivshmem2_doorbells_forget(&s->doorbells);
    if (!ivshmem2_rejoin_map(s, next, &err)) {
        ivshmem2_irq_del_session(&s->irq, next, s->info.vectors);
        error_setg(errp, "%s", err->message);
        return false;
    }
    ivshmem2_irq_switch_session(&s->irq, next);
    s->info = *ivshmem2_session_info(next);
    trace_ivshmem2_device_rejoin(s->info.id);
    if (s->state) {
        ivshmem2_session_state_changed(next, s->state);
    }
    /* The states of all others have changed. */
    ivshmem2_eventfd_signal(ivshmem2_session_own_eventfd(next, 0));
    return true;
}
