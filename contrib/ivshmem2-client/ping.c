/*
 * ivshmem2-client: round trips through memory and doorbells
 *
 * Each peer has a row of 32-bit little-endian entries, one for each peer: at
 * the end of its output section or, without output sections, one row after
 * the other at the end of the R/W section.  Peer i writes to j in entry j of
 * row i.  To ping j, peer i changes that entry and rings j; to answer, j
 * copies it to entry i of row j and rings i.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdio.h>
#include <stdlib.h>
#include "client.h"
#include "libivshmem2-util.h"

#define DEFAULT_COUNT           10
#define DEFAULT_TIMEOUT_US      (5 * G_USEC_PER_SEC)

static uint32_t *entry(Client *c, uint32_t row, uint32_t column)
{
    const Ivshmem2PeerInfo *info = c->info;
    size_t n = info->max_peers;
    char *output = ivshmem2_peer_output(c->peer, row);

    if (output) {
        return (uint32_t *)(output + info->output_size) - n + column;
    }
    return (uint32_t *)((char *)ivshmem2_peer_rw(c->peer) + info->rw_size) -
           n * (n - row) + column;
}

static uint32_t get(Client *c, uint32_t from, uint32_t to)
{
    return GUINT32_FROM_LE(__atomic_load_n(entry(c, from, to),
                                           __ATOMIC_ACQUIRE));
}

static void put(Client *c, uint32_t to, uint32_t value)
{
    __atomic_store_n(entry(c, c->info->id, to), GUINT32_TO_LE(value),
                     __ATOMIC_RELEASE);
}

static Status check_room(Client *c, GError **error)
{
    uint64_t row = c->info->max_peers * sizeof(uint32_t);
    bool outputs = c->info->output_size;
    uint64_t size = outputs ? c->info->output_size : c->info->rw_size;
    uint64_t needed = outputs ? row : row * c->info->max_peers;

    if (size < needed) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "with %u peers, ping and pong need %llu bytes of the %s "
                      "section, it has %llu", c->info->max_peers,
                      (unsigned long long)needed, outputs ? "output" : "R/W",
                      (unsigned long long)size);
        return STATUS_ERROR;
    }
    return STATUS_OK;
}

/* Changes of states also use vector 0, so prefer another one. */
static Status choose_vector(Client *c, uint32_t *vector, GError **error)
{
    if (!check_vector(c, error)) {
        return STATUS_USAGE;
    }
    *vector = c->set.vector >= 0 ? (uint32_t)c->set.vector :
              c->info->enabled_vectors > 1;
    return STATUS_OK;
}

typedef struct Ping {
    uint32_t target;
    uint32_t vector;
    uint32_t sequence;
    uint64_t interrupts;        /* on this vector */
} Ping;

/* One round trip, in microseconds to *@us */
static Status round_trip(Client *c, Ping *p, double *us, GError **error)
{
    int64_t start = g_get_monotonic_time();
    int64_t deadline = ivshmem2_deadline(c->set.timeout_us);

    put(c, p->target, ++p->sequence);
    if (!ivshmem2_peer_ring(c->peer, p->target, p->vector, error)) {
        return STATUS_ERROR;
    }
    for (;;) {
        switch (next_event(c, deadline, p->vector, NULL, error)) {
        case EVENT_INTERRUPT:
            p->interrupts++;
            if (get(c, p->target, c->info->id) == p->sequence) {
                *us = g_get_monotonic_time() - start;
                return STATUS_OK;
            }
            break;
        case EVENT_TIMEOUT:
            ivshmem2_fail(error, IVSHMEM2_ERROR_TIMEOUT,
                          get(c, p->target, c->info->id) == p->sequence ?
                          "peer %u answered, but its interrupt did not "
                          "arrive" :
                          "peer %u does not answer; does 'pong' run there?",
                          p->target);
            return STATUS_TIMEOUT;
        case EVENT_SIGNAL:
            return end_interrupted(false, error);
        case EVENT_ERROR:
            return STATUS_ERROR;
        }
    }
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static void print_ping(Client *c, const Ping *p, double *us, size_t n)
{
    qsort(us, n, sizeof(*us), compare);
    if (c->json) {
        Json *json = json_new();

        json_number(json, "target", p->target);
        json_number(json, "vector", p->vector);
        json_number(json, "count", n);
        json_number(json, "interrupts", p->interrupts);
        json_decimal(json, "min_us", us[0]);
        json_decimal(json, "median_us", us[n / 2]);
        json_decimal(json, "max_us", us[n - 1]);
        json_print(json);
    } else {
        printf("%zu round trips to peer %u with %llu interrupts, in "
               "microseconds: min %.0f, median %.0f, max %.0f\n", n,
               p->target, (unsigned long long)p->interrupts, us[0],
               us[n / 2], us[n - 1]);
    }
}

Status cmd_ping(Client *c, char **args, GError **error)
{
    int64_t n = c->set.count < 0 ? DEFAULT_COUNT : c->set.count;
    g_autofree double *us = g_new(double, n);
    Ping p = { .sequence = g_random_int() };
    uint64_t target;
    Status status;

    if (!ivshmem2_parse_number("ID", args[0], 0, c->info->max_peers - 1,
                               &target, error)) {
        return STATUS_USAGE;
    }
    p.target = target;
    status = check_room(c, error);
    status = status ? status : choose_vector(c, &p.vector, error);
    if (status) {
        return status;
    }
    if (p.target == c->info->id) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "ID %u is this peer itself", p.target);
        return STATUS_ERROR;
    }
    if (c->set.timeout_us < 0) {
        c->set.timeout_us = DEFAULT_TIMEOUT_US;
    }
    /* only interrupts of answers must be counted, so take earlier ones */
    while (next_event(c, 0, p.vector, NULL, error) == EVENT_INTERRUPT) {
        continue;
    }
    for (int64_t i = 0; i < n && !status; i++) {
        status = round_trip(c, &p, &us[i], error);
    }
    if (status) {
        /* take the ping back, because a peer could take it for an answer */
        put(c, p.target, get(c, p.target, c->info->id));
        return status;
    }
    print_ping(c, &p, us, n);
    if (p.vector && p.interrupts != (uint64_t)n) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                      "%llu interrupts arrived for %llu answers",
                      (unsigned long long)p.interrupts,
                      (unsigned long long)n);
        return STATUS_ERROR;
    }
    return STATUS_OK;
}

/* Answer all peers whose entry has changed. */
static Status answer(Client *c, uint32_t vector, uint64_t *answers,
                     GError **error)
{
    for (uint32_t id = 0; id < c->info->max_peers; id++) {
        uint32_t said = get(c, id, c->info->id);

        if (id != c->info->id && said != get(c, c->info->id, id)) {
            put(c, id, said);
            if (!ivshmem2_peer_ring(c->peer, id, vector, error)) {
                return STATUS_ERROR;
            }
            ++*answers;
        }
    }
    return STATUS_OK;
}

Status cmd_pong(Client *c, char **args, GError **error)
{
    int64_t deadline = ivshmem2_deadline(c->set.timeout_us);
    uint64_t wanted = c->set.count < 0 ? UINT64_MAX : (uint64_t)c->set.count;
    uint64_t answers = 0;
    Event event = EVENT_INTERRUPT;
    uint32_t vector;
    Status status = check_room(c, error);

    status = status ? status : choose_vector(c, &vector, error);
    /* a peer may have rung before we joined */
    while (!status && event == EVENT_INTERRUPT) {
        status = answer(c, vector, &answers, error);
        if (!status && answers < wanted) {
            event = next_event(c, deadline, -1, NULL, error);
        } else {
            break;
        }
    }
    if (status || event == EVENT_ERROR) {
        return status ? status : STATUS_ERROR;
    }
    if (c->json) {
        Json *json = json_new();

        json_number(json, "answers", answers);
        json_print(json);
    } else {
        printf("%llu answers\n", (unsigned long long)answers);
    }
    if (event == EVENT_SIGNAL) {
        return end_interrupted(wanted == UINT64_MAX, error);
    }
    return event == EVENT_TIMEOUT && wanted != UINT64_MAX ?
           end_timeout(error) : STATUS_OK;
}
