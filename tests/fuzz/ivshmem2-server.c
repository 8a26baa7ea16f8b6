/*
 * Fuzzing ivshmem2: the server's bookkeeping, without sockets
 *
 * Slots, holds and broadcasts: many clients of a few processes that start and
 * end, after which another process has the pid, and of two users.  Connections
 * can outlive the process that made them.  Servers are killed, and the next one
 * adopts the link.  After every step, all slots are compared with a model of
 * who owns them.
 *
 * Input: the link, its limits and how it ends, and then the steps.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "hw/misc/ivshmem2-regs.h"
#include "ivshmem2-model.h"
#include <poll.h>

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
    OP_RELEASE,                 /* what is held for processes that ended */
    OP_SIGNAL,                  /* an eventfd, without the server */
    OP_AIO,                     /* others use it up, or not any more */
    OP_RESTART,                 /* the server; some clients are back at once */
    OP_END_GRACE,               /* of a slot whose occupant did not come back */
    N_OPS,
} Op;

static const Ivshmem2LinkConfig links[] = {
    { .max_peers = 2, .vectors = 1, .intx = true, .output_size = 4096 },
    { .max_peers = 3, .vectors = 17, .output_size = 4096,
      .pushes = true },
    { .max_peers = 5, .vectors = 2, .rw_size = 4096,
      .protocol = IVSHMEM2_PROTOCOL_VIRTIO, .backend_id = 1 },
};

/* Clients */

static void restrict_it(Player *p, unsigned ids)
{
    GArray *ranges = g_array_new(false, false, sizeof(Ivshmem2IdRange));

    for (uint32_t id = 0; id < MAX_PEERS; id++) {
        Ivshmem2IdRange range = { id, id };

        if (ids >> id & 1) {
            g_array_append_val(ranges, range);
        }
    }
    p->ids = ids;
    ivshmem2_client_restrict_consume(p->c, ranges);
}

static void connect_it(Game *g, Player *p, unsigned process, unsigned user)
{
    if (!p->open) {
        g->generations[process] += g->dead[process];
        g->dead[process] = false;
        *p = (Player) {
            .open = true,
            .who = {
                .process = process,
                .generation = g->generations[process],
                .user = user,
            },
            .ids = UINT_MAX,
            .id = IVSHMEM2_ID_ANY,
        };
        p->c = ivshmem2_client_new(g->server, model_pid(process),
                                   model_uid(&p->who), p);
    }
}

/* Process, user and IDs are chosen by @choice. */
static void connect_any(Game *g, Player *p, uint8_t choice)
{
    static const unsigned ids[] = { UINT_MAX, UINT_MAX, 1 << 1, 5 << 1 };
    unsigned process = choice % (N_PROCESSES - 1);
    unsigned user = choice / (N_PROCESSES - 1) % N_USERS;
    unsigned rule = choice / (N_PROCESSES - 1) / N_USERS;

    if (!p->open) {
        connect_it(g, p, 1 + process, user);
        if (ids[rule % G_N_ELEMENTS(ids)] != UINT_MAX) {
            restrict_it(p, ids[rule % G_N_ELEMENTS(ids)]);
        }
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
    fuzz_enter();
    ivshmem2_client_receive(p->c, msg);
    fuzz_leave();
    if (was_peer && msg->hdr.type == IVSHMEM2_MSG_STATE_CHANGED) {
        model_owe(g, id);
        g->known[id] = ivshmem2_link_state(g->link, id);
    } else if (was_peer && msg->hdr.type == IVSHMEM2_MSG_STATE_ANNOUNCED) {
        g->known[id] = msg->announcement.state;
    }
}

/* A bit for each of the first vectors of @id that is signalled */
static uint64_t signalled(const Game *g, uint32_t id)
{
    uint64_t bits = 0;

    fuzz_settle();
    for (uint32_t i = 0; g->link->eventfds[id] && i < g->link->welcome.vectors;
         i++) {
        struct pollfd pfd = { .fd = g->link->eventfds[id][i],
                              .events = POLLIN };

        bits |= (uint64_t)(poll(&pfd, 1, 0) == 1) << i;
    }
    return bits;
}

/*
 * HELLO.  What was signalled before is not for a peer that is new, and is not
 * lost for one that resumes its session.
 */
static void greet(Game *g, Player *p, const Ivshmem2Msg *msg)
{
    static const uint8_t none[IVSHMEM2_UUID_SIZE];
    bool resumes = memcmp(msg->hello.session, none, sizeof(none));
    uint64_t before[MAX_PEERS];
    uint32_t old_id, id;

    if (!p->open) {
        return;
    }
    p->resumes = resumes;
    old_id = ivshmem2_client_id(p->c);
    for (id = 0; id < g->max_peers; id++) {
        before[id] = signalled(g, id);
    }
    tell(g, p, msg);
    id = ivshmem2_client_id(p->c);
    if (old_id == IVSHMEM2_ID_ANY && id != IVSHMEM2_ID_ANY) {
        g_assert_cmphex(signalled(g, id), ==, resumes ? before[id] : 0);
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
    greet(g, p, &msg);
}

static void say_anything(Game *g, Player *p, FuzzInput *in)
{
    static const uint16_t types[] = {
        IVSHMEM2_MSG_HELLO, IVSHMEM2_MSG_STATE_CHANGED, IVSHMEM2_MSG_RING,
        IVSHMEM2_MSG_GOODBYE, IVSHMEM2_MSG_STATE_ANNOUNCED,
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
    uint64_t before;
    bool empty;

    msg.target.id = first_id + fuzz_u8(in);
    msg.target.vector = fuzz_u8(in);
    if (msg.target.id == 0xff) {
        msg.target.id = fuzz_u32(in);
        msg.target.vector = fuzz_u32(in);
    }
    empty = msg.target.id < g->max_peers && !g->occupants[msg.target.id] &&
            !(g->holds[msg.target.id] && g->holds[msg.target.id]->grace);
    before = empty ? signalled(g, msg.target.id) : 0;
    tell(g, p, &msg);
    /* nobody is there */
    g_assert_true(!empty || signalled(g, msg.target.id) == before);
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
                model_is_same(&g->holds[p->id]->who, &p->who);

    if (p->id != IVSHMEM2_ID_ANY && model_lives(&p->who) &&
        (held || (p->open && ivshmem2_client_id(p->c) == p->id))) {
        g->link->table[p->id] = GUINT32_TO_LE(state);
    }
}

/* The honest one rings itself. */
static void check_honest(Game *g)
{
    Player *honest = &g->players[HONEST];
    Ivshmem2Msg msg = { .hdr.type = IVSHMEM2_MSG_RING };
    const int *fds;

    model_interrupted(g, 0);
    tell(g, honest, &msg);
    g_assert_true(model_interrupted(g, 0));
    g_assert_true(ivshmem2_client_has_next(honest->c));
    ivshmem2_client_next(honest->c, &msg, &fds);
    g_assert_cmpuint(msg.hdr.type, ==, IVSHMEM2_MSG_EVENTFDS);
    g_assert_cmpuint(msg.hdr.fds, ==, 1);
    g_assert_cmpint(fds[0], ==, g->link->eventfds[0][0]);
}

/* With any ID, unless it has joined before */
static void join(Game *g, Player *p)
{
    FuzzInput none = { .size = 0 };
    bool was_peer = ivshmem2_client_id(p->c) != IVSHMEM2_ID_ANY;
    bool held = model_has_hold(g, p);
    bool clean = model_has_clean(g, p);
    uint32_t id;

    hello(g, p, &none);
    id = ivshmem2_client_id(p->c);
    if (!was_peer && id != IVSHMEM2_ID_ANY) {
        /* what model_check() saw last is what was before */
        if (held) {
            g_assert_true(g->held[id] &&
                          model_is_same(&g->held_for[id].who, &p->who));
        } else if (clean) {
            g_assert_false(g->last_users[id] & ~(1U << p->who.user));
        }
    }
    listen_to_it(g, p, UINT_MAX);
}

/* Restarts */

/* @p had a slot when the server was killed, and comes back. */
static void come_back(Game *g, Player *p)
{
    Ivshmem2Msg msg = fuzz_hello(&(FuzzInput) { .size = 0 }, 2,
                                 &g->link->welcome);
    uint32_t id = p->id;

    msg.hello.id = id;
    connect_it(g, p, p->who.process, p->who.user);
    greet(g, p, &msg);
    g_assert_cmpuint(ivshmem2_client_id(p->c), ==, id);
    listen_to_it(g, p, UINT_MAX);
    g_assert_true(ivshmem2_client_is_ready(p->c));
}

static void start_server(Game *g)
{
    g->budget = ivshmem2_budget_new(&g->limits);
    g->server = ivshmem2_server_new(g->link, g->budget, &model_ops, g);
}

/* All that it leaves to the next one is in the link. */
static void stop_server(Game *g)
{
    ivshmem2_server_shutdown(g->server);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        close_it(g, &g->players[i]);
    }
    ivshmem2_server_free(g->server);
    ivshmem2_budget_free(g->budget);
}

/* A bit of @back for each client that is back at once; the honest one is. */
static void restart(Game *g, unsigned back)
{
    bool had_slot[N_CLIENTS];

    for (unsigned i = 0; i < N_CLIENTS; i++) {
        const Player *p = &g->players[i];

        had_slot[i] = p->open && p->welcome && model_lives(&p->who) &&
                      ivshmem2_client_id(p->c) == p->id;
    }
    stop_server(g);
    g->link->adopted = true;
    start_server(g);
    model_check_adoption(g);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        if (had_slot[i] && (i == HONEST || (back >> i & 1))) {
            come_back(g, &g->players[i]);
        }
    }
}

static void end_grace(Game *g, uint32_t id)
{
    if (id < g->max_peers && g->holds[id] && g->holds[id]->grace) {
        bool tell = ivshmem2_link_state(g->link, id) || g->known[id];

        g->holds[id]->grace = false;
        ivshmem2_server_end_grace(g->server, id);
        g_assert_cmpuint(ivshmem2_link_state(g->link, id), ==, 0);
        g->owed[id] = false;
        g->known[id] = 0;
        if (tell) {
            model_owe(g, id);
        }
    }
}

static void signal_eventfd(Game *g, uint32_t id, uint32_t vector)
{
    if (id < g->max_peers) {
        ivshmem2_link_signal(g->link, id, vector % g->link->welcome.vectors);
    }
}

/* What is not done by one client */
static void change_world(Game *g, FuzzInput *in, Op op)
{
    uint32_t id;

    switch (op) {
    case OP_DIE:
        g->dead[1 + fuzz_u8(in) % (N_PROCESSES - 1)] = true;
        break;
    case OP_BROADCAST:
        model_broadcast(g, fuzz_u8(in));
        break;
    case OP_RELEASE:
        model_release(g);
        break;
    case OP_SIGNAL:
        id = fuzz_u8(in);
        signal_eventfd(g, id, fuzz_u8(in));
        break;
    case OP_RESTART:
        restart(g, fuzz_u8(in));
        break;
    case OP_END_GRACE:
        end_grace(g, fuzz_u8(in));
        break;
    case OP_AIO:
        fuzz_system.no_aio = fuzz_u8(in) & 1;
        break;
    default:
        g_assert_not_reached();
    }
}

static void step(Game *g, FuzzInput *in, Op op)
{
    /* not the honest one, and not its process */
    Player *p = &g->players[1 + fuzz_u8(in) % (N_CLIENTS - 1)];

    switch (op) {
    case OP_CONNECT:
        connect_any(g, p, fuzz_u8(in));
        break;
    case OP_HELLO:
        hello(g, p, in);
        break;
    case OP_JOIN:
        connect_any(g, p, fuzz_u8(in));
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
    default:
        change_world(g, in, op);
    }
}

/* Without the other clients, all slots are free and 0, and can be taken. */
static void check_empty(Game *g)
{
    for (unsigned i = HONEST + 1; i < N_CLIENTS; i++) {
        close_it(g, &g->players[i]);
    }
    for (unsigned i = HONEST + 1; i < N_PROCESSES; i++) {
        g->dead[i] = true;
    }
    for (uint32_t id = 1; id < g->max_peers; id++) {
        end_grace(g, id);
    }
    model_release(g);
    model_check(g);
    for (uint32_t id = 1; id < g->max_peers; id++) {
        const uint8_t bytes[] = { 1, id };
        FuzzInput in = { .data = bytes, .size = sizeof(bytes) };
        Player *p = &g->players[id];

        unsigned user = id % N_USERS;
        unsigned before = g->limits.bind_ids ? g->users[id] : 0;
        bool expected = !(before & ~(1U << user)) &&
                        (before || !g->limits.ids_per_user ||
                         model_count_ids(g, user) < g->limits.ids_per_user);

        connect_it(g, p, 1, user);
        hello(g, p, &in);
        listen_to_it(g, p, UINT_MAX);
        g_assert_cmpint(ivshmem2_client_is_ready(p->c), ==, expected);
        model_check(g);
    }
}

void fuzz_server(FuzzInput *in)
{
    Ivshmem2LinkConfig config = links[fuzz_u8(in) % G_N_ELEMENTS(links)];
    uint8_t choice = fuzz_u8(in);
    bool shutdown = choice & 1;
    Game g = {
        .max_peers = config.max_peers,
        .limits.ids_per_user = choice >> 1 & 3,
        .limits.bind_ids = choice >> 3 & 1,
    };

    model_game = &g;
    g.link = ivshmem2_link_new(&config, NULL);
    g_assert_nonnull(g.link);
    start_server(&g);
    connect_it(&g, &g.players[HONEST], HONEST, 0);
    join(&g, &g.players[HONEST]);
    model_check(&g);
    while (in->size) {
        step(&g, in, fuzz_u8(in) % N_OPS);
        model_check(&g);
    }
    check_honest(&g);
    if (!shutdown) {
        check_empty(&g);
        for (unsigned i = 0; i < N_CLIENTS; i++) {
            close_it(&g, &g.players[i]);
        }
    }
    stop_server(&g);
    ivshmem2_link_free(g.link);
}
