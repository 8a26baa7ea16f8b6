/*
 * ivshmem2: the properties of the device
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/visitor-impl.h"
#include "qemu/cutils.h"
#include "hw/qdev-properties.h"
#include "hw/qdev-properties-system.h"
#include "ivshmem2-device.h"

static void ivshmem2_get_peer_id(Object *obj, Visitor *v, const char *name,
                                 void *opaque, Error **errp)
{
    Ivshmem2State *s = IVSHMEM2(obj);
    g_autofree char *any = g_strdup("any");

    if (s->info.max_peers) {
        visit_type_uint32(v, name, &s->info.id, errp);
    } else if (s->wanted_id == IVSHMEM2_ID_ANY) {
        visit_type_str(v, name, &any, errp);
    } else {
        visit_type_uint32(v, name, &s->wanted_id, errp);
    }
}

/* A string from the command line, perhaps a number from QMP */
static bool ivshmem2_visit_id(Visitor *v, const char *name, char **text,
                              uint32_t *id, Error **errp)
{
    g_autofree GenericAlternate *alt = NULL;
    bool ok;

    if (!v->start_alternate) {
        /* as for -global, where everything is a string */
        return visit_type_str(v, name, text, errp);
    }
    if (!visit_start_alternate(v, name, &alt, sizeof(*alt), errp)) {
        return false;
    }
    ok = alt->type == QTYPE_QNUM ? visit_type_uint32(v, name, id, errp)
                                 : visit_type_str(v, name, text, errp);
    visit_end_alternate(v, (void **)&alt);
    return ok;
}

static void ivshmem2_set_peer_id(Object *obj, Visitor *v, const char *name,
                                 void *opaque, Error **errp)
{
    Ivshmem2State *s = IVSHMEM2(obj);
    g_autofree char *text = NULL;
    uint32_t id;

    if (DEVICE(s)->realized) {
        error_setg(errp, "the ID of a peer cannot change");
        return;
    }
    if (!ivshmem2_visit_id(v, name, &text, &id, errp)) {
        return;
    }
    if (text && !strcmp(text, "any")) {
        s->wanted_id = IVSHMEM2_ID_ANY;
        return;
    }
    if ((text && qemu_strtoui(text, NULL, 0, &id) < 0) ||
        id >= IVSHMEM2_MAX_PEERS) {
        error_setg(errp, "peer-id is 'any' or a number from 0 to %u",
                   IVSHMEM2_MAX_PEERS - 1);
        return;
    }
    s->wanted_id = id;
}

static const char *const ivshmem2_registers_names[] = {
    [IVSHMEM2_REGISTERS_MMIO] = "mmio",
    [IVSHMEM2_REGISTERS_IO] = "io",
};

static const QEnumLookup ivshmem2_registers_lookup = {
    .array = ivshmem2_registers_names,
    .size = ARRAY_SIZE(ivshmem2_registers_names),
};

static int ivshmem2_get_registers(Object *obj, Error **errp)
{
    return IVSHMEM2(obj)->registers;
}

static void ivshmem2_set_registers(Object *obj, int value, Error **errp)
{
    if (DEVICE(obj)->realized) {
        error_setg(errp, "the form of the registers cannot change");
        return;
    }
    IVSHMEM2(obj)->registers = value;
}

static void ivshmem2_get_base_address(Object *obj, Visitor *v,
                                      const char *name, void *opaque,
                                      Error **errp)
{
    /* 0 if there is none: that is where RAM or firmware is */
    visit_type_size(v, name, &IVSHMEM2(obj)->base_address, errp);
}

static void ivshmem2_set_base_address(Object *obj, Visitor *v,
                                      const char *name, void *opaque,
                                      Error **errp)
{
    Ivshmem2State *s = IVSHMEM2(obj);

    if (DEVICE(s)->realized) {
        error_setg(errp, "the address of the shared memory cannot change");
        return;
    }
    s->has_base_address = visit_type_size(v, name, &s->base_address, errp);
}

static bool ivshmem2_get_connected(Object *obj, Error **errp)
{
    Ivshmem2State *s = IVSHMEM2(obj);

    return ivshmem2_conn_is_ready(&s->conn);
}

static char *ivshmem2_get_connection_reason(Object *obj, Error **errp)
{
    return g_strdup(IVSHMEM2(obj)->conn.report.reason ?: "");
}

static const char *const ivshmem2_new_session_names[] = {
    [IVSHMEM2_NEW_SESSION_DETACH] = "detach",
    [IVSHMEM2_NEW_SESSION_REJOIN] = "rejoin",
};

static const QEnumLookup ivshmem2_new_session_lookup = {
    .array = ivshmem2_new_session_names,
    .size = ARRAY_SIZE(ivshmem2_new_session_names),
};

static int ivshmem2_get_new_session(Object *obj, Error **errp)
{
    return IVSHMEM2(obj)->conn.new_session;
}

static void ivshmem2_set_new_session(Object *obj, int value, Error **errp)
{
    if (DEVICE(obj)->realized) {
        error_setg(errp, "new-session cannot change after the device has "
                   "joined");
        return;
    }
    IVSHMEM2(obj)->conn.new_session = value;
}

static void ivshmem2_get_counter(Object *obj, Visitor *v, const char *name,
                                 void *opaque, Error **errp)
{
    uint64_t value = stat64_get(opaque);

    visit_type_uint64(v, name, &value, errp);
}

static void ivshmem2_add_counter(Object *obj, const char *name,
                                 Stat64 *counter)
{
    object_property_add(obj, name, "uint64", ivshmem2_get_counter, NULL, NULL,
                        counter);
}

void ivshmem2_instance_init(Object *obj)
{
    Ivshmem2State *s = IVSHMEM2(obj);

    s->wanted_id = IVSHMEM2_ID_ANY;
    object_property_add_uint32_ptr(obj, "max-peers", &s->info.max_peers,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint32_ptr(obj, "vectors", &s->info.vectors,
                                   OBJ_PROP_FLAG_READ);
    object_property_add_uint16_ptr(obj, "protocol", &s->info.protocol,
                                   OBJ_PROP_FLAG_READ);
    ivshmem2_add_counter(obj, "interrupts-sent", &s->sent);
    ivshmem2_add_counter(obj, "interrupts-received", &s->irq.received);
    ivshmem2_add_counter(obj, "interrupts-dropped", &s->irq.dropped);
}

static const Property ivshmem2_properties[] = {
    DEFINE_PROP_CHR("chardev", Ivshmem2State, conn.chr),
    DEFINE_PROP_ON_OFF_AUTO("msix", Ivshmem2State, msix, ON_OFF_AUTO_AUTO),
    DEFINE_PROP_BOOL("ioeventfd", Ivshmem2State, irq.use_ioeventfd, true),
    DEFINE_PROP_UINT8("max-ioeventfds", Ivshmem2State, max_ioeventfds, 32),
    DEFINE_PROP_BOOL("x-irqfd", Ivshmem2State, irq.use_irqfd, true),
    /*
     * Giving a vector to KVM and taking it back can cost milliseconds.  After
     * this many interrupts in a row, the guest is unlikely to write Interrupt
     * Control or the mask all the time.
     */
    DEFINE_PROP_UINT8("x-irqfd-after", Ivshmem2State, irq.irqfd_after, 64),
    DEFINE_PROP_UINT32("handshake-timeout-ms", Ivshmem2State,
                       handshake_timeout_ms, 0),
    DEFINE_PROP_UINT32("x-slowest-reconnect-ms", Ivshmem2State,
                       conn.slowest_reconnect_ms, 60000),
    /* Once an hour, what a server refuses for another reason is news. */
    DEFINE_PROP_UINT32("x-report-again-ms", Ivshmem2State,
                       conn.report.again_ms, 60 * 60 * 1000),
};

void ivshmem2_class_init_properties(ObjectClass *klass)
{
    device_class_set_props(DEVICE_CLASS(klass), ivshmem2_properties);
    object_class_property_add(klass, "peer-id", "uint32|any",
                              ivshmem2_get_peer_id, ivshmem2_set_peer_id,
                              NULL, NULL);
    object_class_property_set_description(klass, "peer-id",
                                          "ID on the link, or 'any'");
    object_class_property_add_enum(klass, "registers", "mmio|io",
                                   &ivshmem2_registers_lookup,
                                   ivshmem2_get_registers,
                                   ivshmem2_set_registers);
    object_class_property_set_description(klass, "registers",
                                          "BAR 0 is memory or I/O ports");
    object_class_property_add(klass, "base-address", "size",
                              ivshmem2_get_base_address,
                              ivshmem2_set_base_address, NULL, NULL);
    object_class_property_set_description(klass, "base-address",
                                          "of the shared memory, instead of "
                                          "BAR 2");
    object_class_property_add_bool(klass, "connected",
                                   ivshmem2_get_connected, NULL);
    object_class_property_add_str(klass, "connection-reason",
                                  ivshmem2_get_connection_reason, NULL);
    object_class_property_set_description(klass, "connection-reason",
                                          "why the device is not connected");
    object_class_property_add_enum(klass, "new-session", "detach|rejoin",
                                   &ivshmem2_new_session_lookup,
                                   ivshmem2_get_new_session,
                                   ivshmem2_set_new_session);
    object_class_property_set_description(klass, "new-session",
                                          "what to do if the server has "
                                          "another session");
}
