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
#include "ivshmem2-fuzz.h"
#include <poll.h>
#include "server.h"

#define N_CLIENTS       8
#define N_PROCESSES     4
#define N_USERS         2
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
    OP_RELEASE,                 /* what is held for processes that ended */
    OP_SIGNAL,                  /* an eventfd, without the server */
    OP_AIO,                     /* others use it up, or not any more */
    OP_RESTART,                 /* the server; some clients are back at once */
    OP_END_GRACE,               /* of a slot whose occupant did not come back */
    N_OPS,
} Op;

/* The process and the user behind a connection */
typedef struct Identity {
    unsigned process;
    unsigned generation;        /* how many had its pid before */
    unsigned user;
} Identity;

typedef struct Player {
    Ivshmem2Client *c;
    bool open;
    Identity who;
    unsigned ids;               /* a bit for each one that it may take */
    uint32_t id;                /* where it may write its state */
    bool welcome;               /* was told so */
    bool resumes;               /* a session */
} Player;

/*
 * A slot that its last occupant left without a goodbye, or may come back to
 * after the server was killed
 */
typedef struct Hold {
    uint32_t id;
    Identity who;
    bool grace;
    bool unseen;                /* the server cannot tell who it is */
} Hold;

typedef struct Game {
    Ivshmem2Link *link;
    Ivshmem2BudgetConfig limits;
    Ivshmem2Budget *budget;
    Ivshmem2Server *server;
    uint32_t max_peers;
    Player players[N_CLIENTS];
    bool dead[N_PROCESSES];     /* or not started yet */
    unsigned generations[N_PROCESSES];
    Hold *holds[MAX_PEERS];
    /* of each slot, after the last step */
    const Player *occupants[MAX_PEERS];
    uint32_t states[MAX_PEERS];
    bool held[MAX_PEERS];
    Hold held_for[MAX_PEERS];
    unsigned users[MAX_PEERS];  /* a bit for each one that had it */
    unsigned last_users[MAX_PEERS];     /* the bit of the last one, or 0 */
    bool owed[MAX_PEERS];       /* an interrupt by the broadcast */
    uint32_t known[MAX_PEERS];  /* its last announced state */
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

/* The honest one is of a user of its own. */
static uid_t uid_of(const Identity *who)
{
    return who->process == HONEST ? 999 : 1000 + who->user;
}

static bool lives(const Identity *who)
{
    return !game->dead[who->process] &&
           who->generation == game->generations[who->process];
}

/* May @new have what @old has or had?  Only if they are one, and live. */
static bool is_same(const Identity *old, const Identity *new)
{
    return old->process == new->process && pid_of(new->process) &&
           old->generation == new->generation && old->user == new->user &&
           lives(new);
}

static void *hold_slot(void *connection, uint32_t id)
{
    Player *p = connection;
    Hold *hold;

    g_assert_null(game->holds[id]);
    g_assert_cmpint(ivshmem2_client_pid(p->c), ==, pid_of(p->who.process));
    if (!lives(&p->who)) {
        return NULL;
    }
    hold = g_new(Hold, 1);
    *hold = (Hold) {
        .id = id, .who = p->who, .unseen = !pid_of(p->who.process),
    };
    game->holds[id] = hold;
    return hold;
}

/* Who has the slot in the model? */
static const Identity *find_owner(uint32_t id)
{
    return game->occupants[id] ? &game->occupants[id]->who
                               : &game->held_for[id].who;
}

static void *adopt_slot(void *opaque, uint32_t id, pid_t pid,
                        uint64_t start_time, bool grace)
{
    const Identity *who = find_owner(id);
    Hold *hold;

    g_assert_true(opaque == game);
    g_assert_null(game->holds[id]);
    g_assert_true(game->held[id] || game->occupants[id]);
    g_assert_cmpint(grace, ==, !game->held[id] || game->held_for[id].grace);
    g_assert_cmpint(pid, ==, pid_of(who->process));
    g_assert_true(!start_time || start_time == 1 + who->generation);
    if (pid && start_time && !lives(who)) {
        return NULL;
    }
    hold = g_new(Hold, 1);
    *hold = (Hold) {
        .id = id, .who = *who, .grace = grace, .unseen = !pid || !start_time,
    };
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

    return lives(&p->who);
}

static bool is_hold_alive(void *opaque)
{
    Hold *hold = opaque;

    return !hold->unseen && lives(&hold->who);
}

static unsigned grace_left(void *opaque)
{
    return ((Hold *)opaque)->grace;
}

static uint64_t start_time(void *connection)
{
    Player *p = connection;

    return lives(&p->who) ? 1 + p->who.generation : 0;
}

static void wake(void *connection)
{
    Player *p = connection;

    g_assert_true(p->open);
    g_assert_true(ivshmem2_client_has_next(p->c));
}

static const Ivshmem2ServerOps ops = {
    .slots.hold = hold_slot,
    .slots.adopt = adopt_slot,
    .slots.unhold = unhold_slot,
    .slots.is_alive = is_alive,
    .slots.is_hold_alive = is_hold_alive,
    .slots.start_time = start_time,
    .slots.grace_left = grace_left,
    .wake = wake,
};

/* The server learns of ends some time later, or it waits if there is no pid. */
static void release(Game *g)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        const Hold *hold = g->holds[id];

        if (hold && (hold->unseen ? !hold->grace : !lives(&hold->who))) {
            ivshmem2_server_release(g->server, id);
            g_assert_null(g->holds[id]);
        }
    }
}

/* Interrupts */

static bool was_interrupted(Game *g, uint32_t id)
{
    fuzz_settle();
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
            g->owed[id] = g->occupants[id] ||
                          (g->holds[id] && g->holds[id]->grace);
        }
    }
}

static void run_broadcast(Game *g, unsigned budget)
{
    bool more;

    fuzz_enter();
    more = ivshmem2_server_broadcast(g->server, budget);
    fuzz_leave();
    if (more) {
        return;
    }
    for (uint32_t id = 0; id < g->max_peers; id++) {
        g_assert_true(!g->owed[id] || was_interrupted(g, id));
        g->owed[id] = false;
    }
}

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
        p->c = ivshmem2_client_new(g->server, pid_of(process), uid_of(&p->who),
                                   p);
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
        owe_to_all_but(g, id);
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
    empty = msg.target.id < g->max_peers && !g->occupants[msg.target.id];
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
                is_same(&g->holds[p->id]->who, &p->who);

    if (p->id != IVSHMEM2_ID_ANY && lives(&p->who) &&
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

/* May @now have what was held? */
static bool may_come_back(const Hold *hold, const Player *now)
{
    return is_same(&hold->who, &now->who) ||
           (hold->grace && hold->unseen && now->resumes &&
            uid_of(&hold->who) == uid_of(&now->who));
}

/* @now has the slot that @before had in the last step; either may be NULL. */
static void check_change(Game *g, uint32_t id, const Player *before,
                         const Player *now)
{
    bool back = now && now->resumes && g->held[id] && g->held_for[id].grace;

    if (now) {
        /* what others have, or what is held for them, cannot be taken */
        g_assert_true(!before || is_same(&before->who, &now->who));
        g_assert_true(!g->held[id] || may_come_back(&g->held_for[id], now));
        g_assert_true(now->ids >> id & 1);
        g->last_users[id] = 1U << now->who.user;
        g->users[id] |= g->last_users[id];
    }
    if (back) {
        /* an interrupt that it missed is still owed */
        if (g->known[id] != ivshmem2_link_state(g->link, id)) {
            owe_to_all_but(g, id);
        }
    } else {
        g->owed[id] = false;
        if (g->states[id] || g->known[id]) {
            owe_to_all_but(g, id);
        }
    }
    /* of one that resumes, or 0 */
    g->known[id] = ivshmem2_link_state(g->link, id);
}

/* IDs that count for the user, but for that of the honest one */
static unsigned count_ids(const Game *g, unsigned user)
{
    unsigned n = 0;

    for (uint32_t id = HONEST + 1; id < g->max_peers; id++) {
        n += (g->limits.bind_ids && g->users[id] == 1U << user) ||
             (g->occupants[id] && g->occupants[id]->who.user == user) ||
             (g->holds[id] && g->holds[id]->who.user == user);
    }
    return n;
}

static void check_limits(const Game *g)
{
    for (unsigned user = 0; user < N_USERS; user++) {
        g_assert_true(!g->limits.ids_per_user ||
                      count_ids(g, user) <= g->limits.ids_per_user);
    }
    for (uint32_t id = 0; g->limits.bind_ids && id < g->max_peers; id++) {
        /* no more than one bit */
        g_assert_cmphex(g->users[id] & (g->users[id] - 1), ==, 0);
    }
}

/* Invariants */
static void check(Game *g)
{
    const Player *honest = &g->players[HONEST];

    for (uint32_t id = 0; id < g->max_peers; id++) {
        const Player *before = g->occupants[id];

        g->occupants[id] = find_occupant(g, id);
        if (g->occupants[id] != before) {
            check_change(g, id, before, g->occupants[id]);
        }
    }
    check_limits(g);
    for (uint32_t id = 0; id < g->max_peers; id++) {
        g->states[id] = ivshmem2_link_state(g->link, id);
        g->held[id] = g->holds[id];
        if (g->held[id]) {
            g->held_for[id] = *g->holds[id];
        }
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

static bool has_hold(const Game *g, const Player *p)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (g->holds[id] && !g->holds[id]->unseen &&
            is_same(&g->holds[id]->who, &p->who) &&
            (p->ids >> id & 1)) {
            return true;
        }
    }
    return false;
}

/* Is there a free slot that no other user had? */
static bool has_clean(const Game *g, const Player *p)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (!g->occupants[id] && !g->holds[id] && (p->ids >> id & 1) &&
            !(g->users[id] & ~(1U << p->who.user))) {
            return true;
        }
    }
    return false;
}

/* With any ID, unless it has joined before */
static void join(Game *g, Player *p)
{
    FuzzInput none = { .size = 0 };
    bool was_peer = ivshmem2_client_id(p->c) != IVSHMEM2_ID_ANY;
    bool held = has_hold(g, p);
    bool clean = has_clean(g, p);
    uint32_t id;

    hello(g, p, &none);
    id = ivshmem2_client_id(p->c);
    if (!was_peer && id != IVSHMEM2_ID_ANY) {
        /* what check() saw last is what was before */
        if (held) {
            g_assert_true(g->held[id] &&
                          is_same(&g->held_for[id].who, &p->who));
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
    g->server = ivshmem2_server_new(g->link, g->budget, &ops, g);
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

/* Slots of processes that are gone are free now, and of others held. */
static void check_adoption(Game *g)
{
    for (uint32_t id = 0; id < g->max_peers; id++) {
        bool used = g->occupants[id] || g->held[id];

        g->occupants[id] = NULL;
        if (g->holds[id]) {
            g_assert_true(used);
            g_assert_cmpuint(ivshmem2_link_state(g->link, id), ==,
                             g->states[id]);
            g->held_for[id] = *g->holds[id];
        } else {
            g_assert_cmpuint(ivshmem2_link_state(g->link, id), ==, 0);
        }
        g->held[id] = g->holds[id];
    }
    for (uint32_t id = 0; id < g->max_peers; id++) {
        if (!g->holds[id]) {
            g->owed[id] = false;
            if (g->states[id] || g->known[id]) {
                owe_to_all_but(g, id);
            }
            g->known[id] = 0;
        }
    }
}

/* A bit of @back for each client that is back at once; the honest one is. */
static void restart(Game *g, unsigned back)
{
    bool had_slot[N_CLIENTS];

    for (unsigned i = 0; i < N_CLIENTS; i++) {
        const Player *p = &g->players[i];

        had_slot[i] = p->open && p->welcome && lives(&p->who) &&
                      ivshmem2_client_id(p->c) == p->id;
    }
    stop_server(g);
    g->link->adopted = true;
    start_server(g);
    check_adoption(g);
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
            owe_to_all_but(g, id);
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
        run_broadcast(g, fuzz_u8(in));
        break;
    case OP_RELEASE:
        release(g);
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
    release(g);
    check(g);
    for (uint32_t id = 1; id < g->max_peers; id++) {
        const uint8_t bytes[] = { 1, id };
        FuzzInput in = { .data = bytes, .size = sizeof(bytes) };
        Player *p = &g->players[id];

        unsigned user = id % N_USERS;
        unsigned before = g->limits.bind_ids ? g->users[id] : 0;
        bool expected = !(before & ~(1U << user)) &&
                        (before || !g->limits.ids_per_user ||
                         count_ids(g, user) < g->limits.ids_per_user);

        connect_it(g, p, 1, user);
        hello(g, p, &in);
        listen_to_it(g, p, UINT_MAX);
        g_assert_cmpint(ivshmem2_client_is_ready(p->c), ==, expected);
        check(g);
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

    game = &g;
    g.link = ivshmem2_link_new(&config, NULL);
    g_assert_nonnull(g.link);
    start_server(&g);
    connect_it(&g, &g.players[HONEST], HONEST, 0);
    join(&g, &g.players[HONEST]);
    check(&g);
    while (in->size) {
        step(&g, in, fuzz_u8(in) % N_OPS);
        check(&g);
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
