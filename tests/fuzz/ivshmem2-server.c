/*
 * Fuzzing ivshmem2: the server's bookkeeping, without sockets
 *
 * Slots, holds and broadcasts: many clients of a few processes that start and
 * end.  After every step, all slots are checked.
 *
 * Input: the link, how it ends, and then the steps.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "hw/misc/ivshmem2-regs.h"
#include "ivshmem2-fuzz.h"
#include "server.h"

#define N_CLIENTS       8
#define N_PROCESSES     4
#define MAX_PEERS       5
/* A client that behaves, in the first slot; its process does not end. */
#define HONEST          0

typedef enum Op {
    OP_CONNECT,
    OP_HELLO,
    OP_JOIN,                    /* a HELLO without a lie, and all answers */
    OP_STATE_CHANGED,
    OP_RING,
    OP_RING_FAR,                /* an ID that no link has */
    OP_GOODBYE,
    OP_SAY,                     /* any message there is */
    OP_LISTEN,
    OP_CLOSE,
    OP_REFUSE,
    OP_STATE,                   /* written to the State Table */
    OP_DIE,                     /* a process */
    OP_BROADCAST,
    N_OPS,
} Op;

typedef struct Player {
    Ivshmem2Client *c;
    bool open;
    unsigned process;
    uint32_t id;                /* where it may write its state */
    bool welcome;               /* was told so */
} Player;

/* A slot that its last occupant left without a goodbye */
typedef struct Hold {
    uint32_t id;
    pid_t pid;
} Hold;

typedef struct Game {
    Ivshmem2Link *link;
    Ivshmem2Budget *budget;
    Ivshmem2Server *server;
    uint32_t max_peers;
    Player players[N_CLIENTS];
    bool dead[N_PROCESSES];     /* or not started yet */
    Hold *holds[MAX_PEERS];
    /* of each slot, after the last step */
    const Player *occupants[MAX_PEERS];
    uint32_t states[MAX_PEERS];
    pid_t held_for[MAX_PEERS];  /* or -1 */
    bool owed[MAX_PEERS];       /* an interrupt by the broadcast */
} Game;

/* Only one game is played at a time, so the server's calls find it here. */
static Game *game;

static const Ivshmem2LinkConfig links[] = {
    { .max_peers = 2, .vectors = 1, .intx = true, .output_size = 4096 },
    { .max_peers = 3, .vectors = 17, .output_size = 4096,
      .pushes = true },
    { .max_peers = 5, .vectors = 2, .rw_size = 4096,
      .protocol = IVSHMEM2_PROTOCOL_VIRTIO, .backend_id = 1 },
};

/* Processes.  The server cannot see the last one. */

static pid_t pid_of(unsigned process)
{
    return process == N_PROCESSES - 1 ? 0 : 100 + process;
}

static void *hold_slot(void *connection, uint32_t id)
{
    Player *p = connection;
    Hold *hold;

    g_assert_null(game->holds[id]);
    g_assert_cmpint(ivshmem2_client_pid(p->c), ==, pid_of(p->process));
    if (game->dead[p->process]) {
        return NULL;
    }
    hold = g_new(Hold, 1);
    *hold = (Hold) { .id = id, .pid = pid_of(p->process) };
    game->holds[id] = hold;
    return hold;
}

static void unhold_slot(void *opaque)
{
    Hold *hold = opaque;

    g_assert_true(game->holds[hold->id] == hold);
    game->holds[hold->id] = NULL;
    g_free(hold);
}

static bool is_alive(void *connection)
{
    Player *p = connection;

    return !game->dead[p->process];
}

static bool is_hold_alive(void *hold)
{
    /* die() ends all holds */
    return true;
}

static void wake(void *connection)
{
    Player *p = connection;

    g_assert_true(p->open);
    g_assert_true(ivshmem2_client_has_next(p->c));
}

static const Ivshmem2ServerOps ops = {
    .hold = hold_slot,
    .unhold = unhold_slot,
    .is_alive = is_alive,
    .is_hold_alive = is_hold_alive,
    .wake = wake,
};

static void die(Game *g, unsigned process)
{
    g->dead[process] = true;
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (g->holds[id] && g->holds[id]->pid == pid_of(process)) {
            ivshmem2_server_release(g->server, id);
            g_assert_null(g->holds[id]);
        }
    }
}

/* Interrupts */

static bool was_interrupted(Game *g, uint32_t id)
{
    return g->link->eventfds[id] &&
           ivshmem2_eventfd_drain(g->link->eventfds[id][0]);
}

/* Interrupts from before do not count. */
static void owe_to_all_but(Game *g, uint32_t source)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (was_interrupted(g, id)) {
            g->owed[id] = false;
        }
        if (id != source) {
            g->owed[id] = g->occupants[id];
        }
    }
}

static void run_broadcast(Game *g, unsigned budget)
{
    if (ivshmem2_server_broadcast(g->server, budget)) {
        return;
    }
    for (uint32_t id = 0; id < g->max_peers; id++) {
        g_assert_true(!g->owed[id] || was_interrupted(g, id));
        g->owed[id] = false;
    }
}

/* Clients */

static void connect_it(Game *g, Player *p, unsigned process)
{
    if (!p->open) {
        g->dead[process] = false;
        p->open = true;
        p->process = process;
        p->id = IVSHMEM2_ID_ANY;
        p->welcome = false;
        p->c = ivshmem2_client_new(g->server, pid_of(process), 1000, p);
    }
}

static void listen_to_it(Game *g, Player *p, unsigned n)
{
    while (p->open && n-- && ivshmem2_client_has_next(p->c)) {
        Ivshmem2Msg msg;
        const int *fds;

        ivshmem2_client_next(p->c, &msg, &fds);
        g_assert_cmpuint(msg.hdr.fds, <=, IVSHMEM2_MAX_FDS);
        for (unsigned i = 0; i < msg.hdr.fds; i++) {
            g_assert_cmpint(fcntl(fds[i], F_GETFD), ==, FD_CLOEXEC);
        }
        switch (msg.hdr.type) {
        case IVSHMEM2_MSG_WELCOME:
            g_assert_false(p->welcome);
            g_assert_cmpuint(msg.welcome.id, ==, ivshmem2_client_id(p->c));
            p->welcome = true;
            p->id = ivshmem2_client_id(p->c);
            break;
        case IVSHMEM2_MSG_REFUSED:
            g_assert_true(ivshmem2_client_is_over(p->c));
            break;
        default:
            g_assert_true(p->welcome);
        }
    }
}

static void tell(Game *g, Player *p, const Ivshmem2Msg *msg)
{
    bool was_peer;
    uint32_t id;

    /* as the daemon does it */
    listen_to_it(g, p, UINT_MAX);
    if (!p->open || ivshmem2_client_is_over(p->c)) {
        return;
    }
    id = ivshmem2_client_id(p->c);
    was_peer = ivshmem2_client_is_ready(p->c);
    ivshmem2_client_receive(p->c, msg);
    if (was_peer && msg->hdr.type == IVSHMEM2_MSG_STATE_CHANGED) {
        owe_to_all_but(g, id);
    }
}

static void hello(Game *g, Player *p, FuzzInput *in)
{
    uint8_t how = fuzz_u8(in);
    Ivshmem2Msg msg = fuzz_hello(in, how, &g->link->welcome);

    if (how & 4) {
        msg.hello.session[0] ^= fuzz_u8(in);
    }
    if (how & 8) {
        msg.hello.version_min = fuzz_u8(in);
        msg.hello.version_max = fuzz_u8(in);
    }
    if (how & 16) {
        msg.hello.features = fuzz_u8(in);
        msg.hello.vectors = fuzz_u8(in);
    }
    fuzz_bytes(in, msg.hello.name, how >> 5);
    tell(g, p, &msg);
}

static void say_anything(Game *g, Player *p, FuzzInput *in)
{
    static const uint16_t types[] = {
        IVSHMEM2_MSG_HELLO, IVSHMEM2_MSG_STATE_CHANGED, IVSHMEM2_MSG_RING,
        IVSHMEM2_MSG_GOODBYE,
    };
    Ivshmem2Msg msg = {
        .hdr.type = types[fuzz_u8(in) % G_N_ELEMENTS(types)],
    };

    fuzz_bytes(in, &msg.hello, sizeof(msg.hello));
    msg.hello.name[sizeof(msg.hello.name) - 1] = 0;     /* by the codec */
    tell(g, p, &msg);
}

static void ring(Game *g, Player *p, FuzzInput *in, uint32_t first_id)
{
    Ivshmem2Msg msg = { .hdr.type = IVSHMEM2_MSG_RING };

    msg.target.id = first_id + fuzz_u8(in);
    msg.target.vector = fuzz_u8(in);
    if (msg.target.id == 0xff) {
        msg.target.id = fuzz_u32(in);
        msg.target.vector = fuzz_u32(in);
    }
    tell(g, p, &msg);
    if (msg.target.id < MAX_PEERS && !msg.target.vector) {
        g->owed[msg.target.id] = false;     /* cannot be told apart */
    }
}

static void close_it(Game *g, Player *p)
{
    if (p->open) {
        ivshmem2_client_free(p->c);
        p->open = false;
    }
}

/*
 * A process can write the entry of its slot as long as it lives and nobody
 * else has the slot.
 */
static void write_state(Game *g, Player *p, uint32_t state)
{
    bool held = p->id < g->max_peers && g->holds[p->id] &&
                g->holds[p->id]->pid == pid_of(p->process);

    if (p->id != IVSHMEM2_ID_ANY && !g->dead[p->process] &&
        (held || (p->open && ivshmem2_client_id(p->c) == p->id))) {
        g->link->table[p->id] = GUINT32_TO_LE(state);
    }
}

static const Player *find_occupant(const Game *g, uint32_t id)
{
    const Player *found = NULL;

    for (unsigned i = 0; i < N_CLIENTS; i++) {
        const Player *p = &g->players[i];

        if (p->open && ivshmem2_client_id(p->c) == id) {
            g_assert_null(found);
            found = p;
        }
    }
    return found;
}

/* Invariants */
static void check(Game *g)
{
    const Player *honest = &g->players[HONEST];

    for (uint32_t id = 0; id < g->max_peers; id++) {
        const Player *before = g->occupants[id];

        g->occupants[id] = find_occupant(g, id);
        if (g->occupants[id] != before) {
            /* what is held is only for its process */
            g_assert_true(!g->occupants[id] || g->held_for[id] < 0 ||
                          g->held_for[id] ==
                          pid_of(g->occupants[id]->process));
            g->owed[id] = false;
            if (g->states[id]) {
                owe_to_all_but(g, id);
            }
        }
    }
    for (uint32_t id = 0; id < g->max_peers; id++) {
        g->states[id] = ivshmem2_link_state(g->link, id);
        g->held_for[id] = g->holds[id] ? g->holds[id]->pid : -1;
        g_assert_true(!g->occupants[id] || !g->holds[id]);
        g_assert_true(g->occupants[id] || g->holds[id] || !g->states[id]);
    }
    g_assert_true(g->occupants[0] == honest);
    g_assert_true(ivshmem2_client_is_ready(honest->c));
}

/* The honest one rings itself. */
static void check_honest(Game *g)
{
    Player *honest = &g->players[HONEST];
    Ivshmem2Msg msg = { .hdr.type = IVSHMEM2_MSG_RING };
    const int *fds;

    was_interrupted(g, 0);
    tell(g, honest, &msg);
    g_assert_true(was_interrupted(g, 0));
    g_assert_true(ivshmem2_client_has_next(honest->c));
    ivshmem2_client_next(honest->c, &msg, &fds);
    g_assert_cmpuint(msg.hdr.type, ==, IVSHMEM2_MSG_EVENTFDS);
    g_assert_cmpuint(msg.hdr.fds, ==, 1);
    g_assert_cmpint(fds[0], ==, g->link->eventfds[0][0]);
}

static bool has_hold(const Game *g, pid_t pid)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (g->holds[id] && g->holds[id]->pid == pid) {
            return true;
        }
    }
    return false;
}

static void join(Game *g, Player *p)
{
    FuzzInput none = { .size = 0 };
    pid_t pid = pid_of(p->process);
    bool prefers = pid && has_hold(g, pid) &&
                   ivshmem2_client_id(p->c) == IVSHMEM2_ID_ANY;
    uint32_t id;

    hello(g, p, &none);
    id = ivshmem2_client_id(p->c);
    g_assert_true(!prefers || id == IVSHMEM2_ID_ANY ||
                  g->held_for[id] == pid);
    listen_to_it(g, p, UINT_MAX);
}

static void step(Game *g, FuzzInput *in, Op op)
{
    /* not the honest one, and not its process */
    Player *p = &g->players[1 + fuzz_u8(in) % (N_CLIENTS - 1)];

    switch (op) {
    case OP_CONNECT:
        connect_it(g, p, 1 + fuzz_u8(in) % (N_PROCESSES - 1));
        break;
    case OP_HELLO:
        hello(g, p, in);
        break;
    case OP_JOIN:
        connect_it(g, p, 1 + fuzz_u8(in) % (N_PROCESSES - 1));
        join(g, p);
        break;
    case OP_STATE_CHANGED:
        tell(g, p, &(Ivshmem2Msg) { .hdr.type = IVSHMEM2_MSG_STATE_CHANGED });
        break;
    case OP_RING:
        ring(g, p, in, 0);
        break;
    case OP_RING_FAR:
        ring(g, p, in, IVSHMEM2_MAX_PEERS);
        break;
    case OP_GOODBYE:
        tell(g, p, &(Ivshmem2Msg) { .hdr.type = IVSHMEM2_MSG_GOODBYE });
        break;
    case OP_SAY:
        say_anything(g, p, in);
        break;
    case OP_LISTEN:
        listen_to_it(g, p, 1 + fuzz_u8(in));
        break;
    case OP_CLOSE:
        close_it(g, p);
        break;
    case OP_REFUSE:
        if (p->open) {
            ivshmem2_client_refuse(p->c, IVSHMEM2_REFUSAL_TIMEOUT, "too late");
        }
        break;
    case OP_STATE:
        write_state(g, p, fuzz_u8(in));
        break;
    case OP_DIE:
        die(g, 1 + fuzz_u8(in) % (N_PROCESSES - 1));
        break;
    case OP_BROADCAST:
        run_broadcast(g, fuzz_u8(in));
        break;
    default:
        g_assert_not_reached();
    }
}

/* Without the other clients, all slots are free and 0, and can be taken. */
static void check_empty(Game *g)
{
    for (unsigned i = HONEST + 1; i < N_CLIENTS; i++) {
        close_it(g, &g->players[i]);
    }
    for (unsigned i = HONEST + 1; i < N_PROCESSES; i++) {
        die(g, i);
    }
    check(g);
    for (uint32_t id = 1; id < g->max_peers; id++) {
        Player *p = &g->players[id];

        connect_it(g, p, 1);
        join(g, p);
        g_assert_true(ivshmem2_client_is_ready(p->c));
        g_assert_cmpuint(ivshmem2_client_id(p->c), ==, id);
    }
}

void fuzz_server(FuzzInput *in)
{
    Ivshmem2LinkConfig config = links[fuzz_u8(in) % G_N_ELEMENTS(links)];
    bool shutdown = fuzz_u8(in) & 1;
    Game g = { .max_peers = config.max_peers };

    game = &g;
    g.link = ivshmem2_link_new(&config, NULL);
    g_assert_nonnull(g.link);
    g.budget = ivshmem2_budget_new(&(Ivshmem2BudgetConfig) { 0 });
    g.server = ivshmem2_server_new(g.link, g.budget, &ops);
    memset(g.held_for, 0xff, sizeof(g.held_for));
    connect_it(&g, &g.players[HONEST], HONEST);
    join(&g, &g.players[HONEST]);
    while (in->size) {
        step(&g, in, fuzz_u8(in) % N_OPS);
        check(&g);
    }
    check_honest(&g);
    if (shutdown) {
        ivshmem2_server_shutdown(g.server);
    } else {
        check_empty(&g);
    }
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        close_it(&g, &g.players[i]);
    }
    ivshmem2_server_free(g.server);
    ivshmem2_budget_free(g.budget);
    ivshmem2_link_free(g.link);
}
