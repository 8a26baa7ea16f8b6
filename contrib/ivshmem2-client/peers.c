/*
 * ivshmem2-client: commands about peers: properties, states, interrupts
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdio.h>
#include <string.h>
#include "hw/misc/ivshmem2-regs.h"
#include "client.h"
#include "libivshmem2-util.h"

/* Doorbells that are rung between two looks for a signal */
#define SIGNAL_TURNS    1000

static const char *protocol_name(uint16_t protocol)
{
    if (protocol & IVSHMEM2_PROTOCOL_VIRTIO) {
        return protocol & IVSHMEM2_PROTOCOL_VIRTIO_BACK ? "virtio, back-end"
                                                        : "virtio, front-end";
    }
    switch (protocol) {
    case IVSHMEM2_PROTOCOL_UNDEFINED:
        return "undefined";
    case IVSHMEM2_PROTOCOL_NET:
        return "network";
    }
    return protocol >= 0x4000 ? "user-defined" : "reserved";
}

Status cmd_info(Client *c, char **args, GError **error)
{
    const Ivshmem2PeerInfo *i = c->info;
    const char *note = ivshmem2_peer_memory_note(c->peer);

    if (c->json) {
        Json *json = json_new();

        json_string(json, c->on_host ? "socket" : "pci", c->where);
        json_number(json, "id", i->id);
        json_number(json, "max_peers", i->max_peers);
        json_string(json, "interrupts", i->msix ? "msix" : "intx");
        json_number(json, "vectors", i->vectors);
        json_number(json, "enabled_vectors", i->enabled_vectors);
        json_number(json, "protocol", i->protocol);
        json_number(json, "state", ivshmem2_peer_state(c->peer, i->id));
        json_number(json, "state_table_size", i->state_table_size);
        json_number(json, "rw_size", i->rw_size);
        json_number(json, "output_size", i->output_size);
        json_string(json, "memory_type",
                    ivshmem2_memory_type_name(i->memory_type));
        json_string(json, "memory_note", note);
        json_bool(json, "connected", ivshmem2_peer_connected(c->peer));
        json_print(json);
        return STATUS_OK;
    }
    printf("%s %s%s\n", c->on_host ? "socket:         " : "PCI device:     ",
           c->where, ivshmem2_peer_connected(c->peer) ? "" : " (gone)");
    printf("ID:              %u\n", i->id);
    printf("maximum peers:   %u\n", i->max_peers);
    printf("interrupts:      %s, %u vector%s\n", i->msix ? "MSI-X" : "INTx",
           i->vectors, i->vectors == 1 ? "" : "s");
    if (i->enabled_vectors < i->vectors) {
        printf("                 only 0 to %u interrupt this peer, the guest "
               "has no room for more\n", i->enabled_vectors - 1);
    }
    printf("protocol type:   0x%04x (%s)\n", i->protocol,
           protocol_name(i->protocol));
    printf("state:           %u\n", ivshmem2_peer_state(c->peer, i->id));
    printf("State Table:     %u bytes\n", i->state_table_size);
    printf("R/W section:     %llu bytes\n", (unsigned long long)i->rw_size);
    printf("output sections: %u of %llu bytes\n",
           i->output_size ? i->max_peers : 0,
           (unsigned long long)i->output_size);
    printf("memory type:     %s%s%s%s\n",
           ivshmem2_memory_type_name(i->memory_type), *note ? " (" : "", note,
           *note ? ")" : "");
    return STATUS_OK;
}

Status cmd_peers(Client *c, char **args, GError **error)
{
    /* without a server, peers that die keep their state */
    bool connected = ivshmem2_peer_connected(c->peer);

    for (uint32_t id = 0; id < c->info->max_peers; id++) {
        uint32_t state = ivshmem2_peer_state(c->peer, id);
        bool self = id == c->info->id;

        if (!state && !self) {
            continue;
        }
        if (c->json) {
            Json *json = json_new();

            json_number(json, "id", id);
            json_number(json, "state", state);
            json_bool(json, "self", self);
            json_print(json);
        } else {
            printf("peer %u: state %u%s\n", id, state,
                   self ? " (this one)" :
                   connected ? "" : " (or dead: the server is gone)");
        }
    }
    return STATUS_OK;
}

/* A doorbell tells nothing about the target; its state does. */
static void print_rung(Client *c, uint32_t id, uint32_t vector, uint64_t count)
{
    uint32_t state = ivshmem2_peer_state(c->peer, id);
    bool pending = ivshmem2_peer_pending(c->peer);

    if (c->json) {
        Json *json = json_new();

        json_number(json, "target", id);
        json_number(json, "vector", vector);
        json_number(json, "count", count);
        json_bool(json, "pending", pending);
        json_number(json, "state", state);
        json_print(json);
    } else {
        printf("rang vector %u of peer %u%s%s\n", vector, id,
               pending ? " (peers that are not known are rung when the server "
               "is back)" : "",
               state || id == c->info->id ? "" :
               ", which is absent or has not set a state: its state is 0");
    }
}

Status cmd_ring(Client *c, char **args, GError **error)
{
    uint64_t id, vector = 0;
    int64_t count = c->set.count < 0 ? 1 : c->set.count;

    if (!ivshmem2_parse_number("ID", args[0], 0, c->info->max_peers - 1, &id,
                               error) ||
        (args[1] && !ivshmem2_parse_number("VECTOR", args[1], 0,
                                           c->info->vectors - 1, &vector,
                                           error))) {
        return STATUS_USAGE;
    }
    for (int64_t i = 0; i < count; i++) {
        if (i % SIGNAL_TURNS == SIGNAL_TURNS - 1 && signalled(c)) {
            return end_interrupted(false, error);
        }
        if (!ivshmem2_peer_ring(c->peer, id, vector, error)) {
            return STATUS_ERROR;
        }
    }
    print_rung(c, id, vector, count);
    return STATUS_OK;
}

static void print_state(Client *c)
{
    uint32_t state = ivshmem2_peer_state(c->peer, c->info->id);

    if (c->json) {
        Json *json = json_new();

        json_number(json, "id", c->info->id);
        json_number(json, "state", state);
        json_print(json);
    } else {
        printf("state %u\n", state);
    }
}

Status cmd_state(Client *c, char **args, GError **error)
{
    int64_t deadline = ivshmem2_deadline(c->set.timeout_us);
    uint64_t state;
    Event event;

    if (args[0]) {
        if (!ivshmem2_parse_number("VALUE", args[0], 0, UINT32_MAX, &state,
                                   error)) {
            return STATUS_USAGE;
        }
        if (!ivshmem2_peer_set_state(c->peer, state, error)) {
            return STATUS_ERROR;
        }
    }
    print_state(c);
    if (!args[0] || c->in_shell) {
        return STATUS_OK;
    }
    /* leaving makes the state 0 again */
    do {
        event = next_event(c, deadline, -1, NULL, error);
    } while (event == EVENT_INTERRUPT);
    if (event == EVENT_SIGNAL) {
        return end_interrupted(true, error);
    }
    return event == EVENT_ERROR ? STATUS_ERROR : STATUS_OK;
}

static void print_interrupt(Client *c, int vector)
{
    if (c->json) {
        Json *json = json_new();

        json_string(json, "event", "interrupt");
        json_number(json, "vector", vector);
        json_print(json);
    } else {
        printf("interrupt on vector %d\n", vector);
    }
}

Status cmd_wait(Client *c, char **args, GError **error)
{
    int64_t deadline = ivshmem2_deadline(c->set.timeout_us);
    int64_t left = c->set.count < 0 ? 1 : c->set.count;
    int vector;

    if (!check_vector(c, error)) {
        return STATUS_USAGE;
    }
    while (left > 0) {
        switch (next_event(c, deadline, c->set.vector, &vector, error)) {
        case EVENT_INTERRUPT:
            print_interrupt(c, vector);
            left--;
            break;
        case EVENT_TIMEOUT:
            return end_timeout(error);
        case EVENT_SIGNAL:
            return end_interrupted(false, error);
        case EVENT_ERROR:
            return STATUS_ERROR;
        }
    }
    return STATUS_OK;
}

/* Print the differences between the State Table and @seen; update @seen. */
static void print_state_changes(Client *c, uint32_t *seen)
{
    for (uint32_t id = 0; id < c->info->max_peers; id++) {
        uint32_t state = ivshmem2_peer_state(c->peer, id);

        if (state == seen[id]) {
            continue;
        }
        if (c->json) {
            Json *json = json_new();

            json_string(json, "event", "state");
            json_number(json, "id", id);
            json_number(json, "old", seen[id]);
            json_number(json, "state", state);
            json_print(json);
        } else {
            printf("peer %u: state %u, was %u\n", id, state, seen[id]);
        }
        seen[id] = state;
    }
}

Status cmd_watch(Client *c, char **args, GError **error)
{
    g_autofree uint32_t *seen = g_new0(uint32_t, c->info->max_peers);
    int64_t deadline = ivshmem2_deadline(c->set.timeout_us);
    int64_t left = c->set.count;
    int vector;

    print_state_changes(c, seen);
    while (left) {
        switch (next_event(c, deadline, -1, &vector, error)) {
        case EVENT_INTERRUPT:
            print_interrupt(c, vector);
            print_state_changes(c, seen);
            left -= left > 0;
            break;
        case EVENT_ERROR:
            return STATUS_ERROR;
        case EVENT_SIGNAL:
            return end_interrupted(left < 0, error);
        case EVENT_TIMEOUT:
            return left < 0 ? STATUS_OK : end_timeout(error);
        }
    }
    return STATUS_OK;
}
