/*
 * The server's slots without sockets and real processes, and its successors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-slots-util.h"

/* Processes */

Process processes[N_PROCESSES];
Hold *holds[MAX_PEERS];

static void start_processes(void)
{
    static const Process started[N_PROCESSES] = {
        [OBSERVER] = { 10, 100, 1000 },
        [VICTIM] = { 11, 110, 1000 },
        [OTHER] = { 12, 120, 1000 },
        [FOREIGN] = { 13, 130, 1001 },
        [UNSEEN] = { 0, 0, 1000 },
        [HIDDEN] = { 14, 0, 1000 },
        [RECYCLED] = { 11, 111, 1000 },
    };

    memcpy(processes, started, sizeof(processes));
}

static void *hold_new(uint32_t id, const Process *p, bool grace)
{
    g_assert_null(holds[id]);
    holds[id] = g_new(Hold, 1);
    *holds[id] = (Hold) { id, p->pid ? p : NULL, grace };
    return holds[id];
}

static void *hold_slot(void *connection, uint32_t id)
{
    const Process *p = connection;

    return p->dead ? NULL : hold_new(id, p, false);
}

static void *adopt_slot(void *opaque, uint32_t id, pid_t pid,
                        uint64_t start_time, bool grace)
{
    g_assert_true(opaque == processes);
    if (!pid || !start_time) {
        return hold_new(id, &processes[UNSEEN], grace);
    }
    for (int i = 0; i < N_PROCESSES; i++) {
        const Process *p = &processes[i];

        if (!p->dead && p->pid == pid && p->start_time == start_time) {
            return hold_new(id, p, grace);
        }
    }
    return NULL;
}

static void unhold_slot(void *opaque)
{
    Hold *hold = opaque;

    g_assert_true(holds[hold->id] == hold);
    holds[hold->id] = NULL;
    g_free(hold);
}

static bool is_alive(void *connection)
{
    return !((Process *)connection)->dead;
}

static bool is_hold_alive(void *opaque)
{
    Hold *hold = opaque;

    return hold->process && !hold->process->dead;
}

static bool is_leaving(void *connection, bool process)
{
    return process && ((Process *)connection)->dead;
}

static bool is_hold_ending(void *opaque)
{
    Hold *hold = opaque;

    return hold->process ? hold->process->dead : !hold->grace;
}

static uint64_t start_time(void *connection)
{
    return ((Process *)connection)->start_time;
}

static unsigned grace_left(void *opaque)
{
    return ((Hold *)opaque)->grace ? GRACE_LEFT : 0;
}

static void wake(void *connection)
{
}

static const Ivshmem2ServerOps ops = {
    .slots.hold = hold_slot,
    .slots.adopt = adopt_slot,
    .slots.unhold = unhold_slot,
    .slots.is_alive = is_alive,
    .slots.is_hold_alive = is_hold_alive,
    .slots.is_leaving = is_leaving,
    .slots.is_hold_ending = is_hold_ending,
    .slots.start_time = start_time,
    .slots.grace_left = grace_left,
    .wake = wake,
};

/* Servers */

void start_server(Fixture *f)
{
    f->budget = ivshmem2_budget_new(&f->limits);
    f->server = ivshmem2_server_new(f->link, f->budget, &ops, processes);
}

void setup_with(Fixture *f, const Ivshmem2BudgetConfig *limits)
{
    const Ivshmem2LinkConfig config = {
        .max_peers = MAX_PEERS,
        .vectors = 1,
    };
    g_autoptr(GError) error = NULL;

    start_processes();
    *f = (Fixture) { .before = count_fds(), .limits = *limits };
    f->link = ivshmem2_link_new(&config, &error);
    g_assert_no_error(error);
    start_server(f);
}

void setup(Fixture *f)
{
    setup_with(f, &(Ivshmem2BudgetConfig) { 0 });
}

void leave(Fixture *f, uint32_t i)
{
    g_clear_pointer(&f->clients[i], ivshmem2_client_free);
}

void stop_server(Fixture *f)
{
    Ivshmem2SlotRecord before[MAX_PEERS];
    Ivshmem2SlotRecord *slots = ivshmem2_record_slot(f->link->record, 0);

    memcpy(before, slots, sizeof(before));
    ivshmem2_server_shutdown(f->server);
    for (uint32_t i = 0; i < MAX_PEERS; i++) {
        leave(f, i);
    }
    ivshmem2_server_free(f->server);
    ivshmem2_budget_free(f->budget);
    g_assert_cmpmem(slots, sizeof(before), before, sizeof(before));
}

void restart(Fixture *f)
{
    stop_server(f);
    f->link->adopted = true;
    start_server(f);
}

void teardown(Fixture *f)
{
    stop_server(f);
    ivshmem2_link_free(f->link);
    g_assert_cmpuint(count_fds(), ==, f->before);
}

/* Clients */

Ivshmem2Msg make_hello(const Fixture *f, uint32_t id, bool resume)
{
    Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_MSG_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = 1,
            .version_max = 1,
            .features = IVSHMEM2_F_MSIX,
            .vectors = 1,
            .id = id,
            .name = "vm1",
        },
    };

    if (resume) {
        memcpy(msg.hello.session, f->link->welcome.session,
               IVSHMEM2_UUID_SIZE);
    }
    return msg;
}

void listen_to_it(Ivshmem2Client *c, Ivshmem2Msg *last)
{
    const int *fds;

    while (ivshmem2_client_has_next(c)) {
        ivshmem2_client_next(c, last, &fds);
    }
}

uint32_t try_join(Fixture *f, uint32_t i, int process, uint32_t id,
                  bool resume, char **text)
{
    const Ivshmem2Msg msg = make_hello(f, id, resume);
    Process *p = &processes[process];
    Ivshmem2Msg last = { 0 };

    g_assert_null(f->clients[i]);
    f->clients[i] = ivshmem2_client_new(f->server, p->pid, p->uid, p);
    ivshmem2_client_receive(f->clients[i], &msg);
    listen_to_it(f->clients[i], &last);
    if (last.hdr.type == IVSHMEM2_MSG_READY) {
        return ivshmem2_client_id(f->clients[i]);
    }
    g_assert_cmphex(last.hdr.type, ==, IVSHMEM2_MSG_REFUSED);
    if (text) {
        *text = g_strdup(last.refusal.text);
    }
    leave(f, i);
    return IVSHMEM2_ID_ANY;
}

void join(Fixture *f, int process, uint32_t id, bool resume)
{
    g_assert_cmpuint(try_join(f, id, process, id, resume, NULL), ==, id);
}

void refused(Fixture *f, int process, uint32_t id, bool resume,
             const char *want)
{
    g_autofree char *text = NULL;

    g_assert_cmpuint(try_join(f, 3, process, id, resume, &text), ==,
                     IVSHMEM2_ID_ANY);
    g_assert_cmpstr(text, ==, want);
}

void say(Fixture *f, uint32_t i, uint16_t type)
{
    Ivshmem2Msg last;

    ivshmem2_client_receive(f->clients[i],
                            &(Ivshmem2Msg) { .hdr.type = type });
    listen_to_it(f->clients[i], &last);
}

void announce(Fixture *f, uint32_t id, uint32_t state)
{
    ivshmem2_client_receive(f->clients[id], &(Ivshmem2Msg) {
        .hdr.type = IVSHMEM2_MSG_STATE_ANNOUNCED,
        .announcement.state = state,
    });
}

void set_state(Fixture *f, uint32_t id, uint32_t state)
{
    f->link->table[id] = GUINT32_TO_LE(state);
}

uint32_t get_state(Fixture *f, uint32_t id)
{
    return ivshmem2_link_state(f->link, id);
}

void run_broadcast(Fixture *f)
{
    while (ivshmem2_server_broadcast(f->server, 100)) {
        continue;
    }
}

bool was_interrupted(Fixture *f, uint32_t id)
{
    run_broadcast(f);
    return ivshmem2_eventfd_drain(f->link->eventfds[id][0]);
}

void begin(Fixture *f)
{
    setup(f);
    join(f, OBSERVER, 0, !SESSION);
    join(f, VICTIM, 1, !SESSION);
    set_state(f, 1, 5);
    announce(f, 1, 5);
    run_broadcast(f);
    was_interrupted(f, 0);
}
