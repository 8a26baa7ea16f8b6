/*
 * All slots of the largest link occupied at once, with the server's code but
 * without its I/O, because no process may have so many files open
 *
 * The slots share as many eventfds as the process may have.
 *
 * Usage: ivshmem2-core [PEERS].  Prints one line of JSON.  Times are
 * microseconds of processor time, so that other programs do not matter.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include "bench.h"
#include "daemon.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "log.h"
#include "server.h"

#define SAMPLE          1000    /* the first joins and the last ones */
#define RINGS           200000
#define BROADCASTS      20

typedef struct Core {
    Ivshmem2Link *link;
    Ivshmem2Budget *budget;
    Ivshmem2Server *server;
    Ivshmem2Client **clients;
    uint32_t n;
    int *fds;
    uint32_t n_fds;
} Core;

static double now(void)
{
    return bench_clock(CLOCK_PROCESS_CPUTIME_ID);
}

static void *hold_slot(void *connection, uint32_t id)
{
    return NULL;
}

static void unhold_slot(void *hold)
{
}

static uint64_t start_time(void *connection)
{
    return 0;
}

static void wake(void *connection)
{
}

static const Ivshmem2ServerOps ops = {
    .slots.hold = hold_slot,
    .slots.unhold = unhold_slot,
    .slots.start_time = start_time,
    .wake = wake,
};

static void make_eventfds(Core *core)
{
    uint32_t most = MIN(ivshmem2_raise_file_limit(0) - 64, core->n);

    core->fds = g_new(int, most);
    while (core->n_fds < most) {
        int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

        if (fd < 0) {
            break;
        }
        core->fds[core->n_fds++] = fd;
    }
}

static bool begin(Core *core, GError **error)
{
    const Ivshmem2LinkConfig config = {
        .max_peers = core->n,
        .vectors = 1,
    };

    core->link = ivshmem2_link_new(&config, error);
    if (!core->link) {
        return false;
    }
    for (uint32_t id = 0; id < core->n; id++) {
        core->link->eventfds[id] = g_new(int, 1);
        core->link->eventfds[id][0] = core->fds[id % core->n_fds];
    }
    core->budget = ivshmem2_budget_new(&(Ivshmem2BudgetConfig) { 0 });
    core->server = ivshmem2_server_new(core->link, core->budget, &ops,
                                       NULL);
    core->clients = g_new0(Ivshmem2Client *, core->n);
    return true;
}

static void end(Core *core)
{
    ivshmem2_server_free(core->server);
    ivshmem2_budget_free(core->budget);
    for (uint32_t id = 0; id < core->n; id++) {
        g_clear_pointer(&core->link->eventfds[id], g_free);
    }
    ivshmem2_link_free(core->link);
    g_free(core->clients);
}

static void tell_all(Ivshmem2Client *c)
{
    Ivshmem2Msg msg;
    const int *fds;

    while (ivshmem2_client_has_next(c)) {
        ivshmem2_client_next(c, &msg, &fds);
    }
}

static void say(Core *core, uint32_t i, const Ivshmem2Msg *msg)
{
    ivshmem2_client_receive(core->clients[i], msg);
    tell_all(core->clients[i]);
}

static void join(Core *core, uint32_t i)
{
    const Ivshmem2Msg hello = {
        .hdr.type = IVSHMEM2_MSG_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = IVSHMEM2_VERSION_MIN,
            .version_max = IVSHMEM2_VERSION_MAX,
            .features = IVSHMEM2_F_MSIX,
            .vectors = 1,
            .id = IVSHMEM2_ID_ANY,
            .name = "core",
        },
    };

    core->clients[i] = ivshmem2_client_new(core->server, 1, 1, NULL);
    say(core, i, &hello);
    if (!ivshmem2_client_is_ready(core->clients[i])) {
        g_error("peer %u cannot join", i);
    }
}

static void leave(Core *core, uint32_t i)
{
    say(core, i, &(Ivshmem2Msg) { .hdr.type = IVSHMEM2_MSG_GOODBYE });
    ivshmem2_client_free(core->clients[i]);
}

static void ring(Core *core, uint32_t from, uint32_t to)
{
    const Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_MSG_RING,
        .target.id = to,
    };

    say(core, from, &msg);
}

static double join_all(Core *core, double *first, double *last)
{
    double begun = now();
    double before = begun;

    for (uint32_t i = 0; i < core->n; i++) {
        if (i == core->n - SAMPLE) {
            before = now();
        }
        join(core, i);
        if (i == SAMPLE - 1) {
            *first = (now() - begun) / SAMPLE;
        }
    }
    *last = (now() - before) / SAMPLE;
    return (now() - begun) / core->n;
}

static double ring_many(Core *core)
{
    double before = now();

    for (uint32_t i = 0; i < RINGS; i++) {
        ring(core, i * 7919 % core->n, i * 104729 % core->n);
    }
    return (now() - before) / RINGS;
}

static void change_state(Core *core, uint32_t i)
{
    say(core, i, &(Ivshmem2Msg) { .hdr.type = IVSHMEM2_MSG_STATE_CHANGED });
}

static double broadcast(Core *core, uint32_t source)
{
    double before = now();

    change_state(core, source);
    while (ivshmem2_server_broadcast(core->server,
                                     IVSHMEM2_INTERRUPTS_PER_TURN)) {
        continue;
    }
    return (now() - before) / core->n;
}

/*
 * In turns like those of the daemon: the time from the arrival of a ring, and
 * of a peer that leaves and joins, until they are handled
 */
static void stalls(Core *core, GArray *times)
{
    double arrived = now();

    for (uint32_t round = 0; round < BROADCASTS; round++) {
        bool more = true;

        change_state(core, round);
        while (more) {
            double t;

            ring(core, 1, 2);
            leave(core, core->n - 1);
            join(core, core->n - 1);
            t = now() - arrived;
            g_array_append_val(times, t);
            /* in the worst case, the next ones arrive when a turn begins */
            arrived = now();
            more = ivshmem2_server_broadcast(core->server,
                                             IVSHMEM2_INTERRUPTS_PER_TURN);
        }
    }
}

static double leave_all(Core *core)
{
    double before = now();

    for (uint32_t i = 0; i < core->n; i++) {
        leave(core, i);
    }
    return (now() - before) / core->n;
}

int main(int argc, char **argv)
{
    Core core = { .n = IVSHMEM2_MAX_PEERS };
    g_autoptr(GArray) broadcasts = g_array_new(false, false, sizeof(double));
    g_autoptr(GArray) waits = g_array_new(false, false, sizeof(double));
    g_autoptr(GError) error = NULL;
    double all, first = 0, last = 0;
    uint64_t n;

    if (argc > 1) {
        if (!ivshmem2_parse_number("PEERS", argv[1], 2 * SAMPLE,
                                   IVSHMEM2_MAX_PEERS, &n, &error)) {
            fprintf(stderr, "ivshmem2-core: %s\n", error->message);
            return 2;
        }
        core.n = n;
    }
    ivshmem2_log_start("warning");
    make_eventfds(&core);
    if (!begin(&core, &error)) {
        fprintf(stderr, "ivshmem2-core: %s\n", error->message);
        return 1;
    }
    all = join_all(&core, &first, &last);
    g_print("{\"peers\": %u, \"eventfds\": %u, \"join\": %.3f, "
            "\"first\": %.3f, \"last\": %.3f, ", core.n, core.n_fds, all,
            first, last);
    g_print("\"ring\": %.3f, ", ring_many(&core));
    for (uint32_t i = 0; i < BROADCASTS; i++) {
        double each = broadcast(&core, i);

        g_array_append_val(broadcasts, each);
    }
    bench_print("broadcast", broadcasts);
    stalls(&core, waits);
    g_print(", ");
    bench_print("wait", waits);
    g_print(", \"leave\": %.3f}\n", leave_all(&core));
    end(&core);
    return 0;
}
