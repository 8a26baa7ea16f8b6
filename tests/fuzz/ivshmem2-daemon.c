/*
 * Fuzzing ivshmem2: the whole server, through its socket
 *
 * Its clients are real connections.  Time and the clients' processes and users
 * are not real: the system calls by which the server asks for them are answered
 * here.  Processes end, others get their pids, connections outlive the process
 * that made them, and descriptors that clients send cannot be closed as long as
 * the server's main loop runs.  A model knows which process owns an ID.
 *
 * Input: the link and its limits, and then the steps.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-processes.h"
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include "daemon.h"
#include "libivshmem2-transport.h"

#define N_CLIENTS       7
#define N_USERS         4
#define MAX_PEERS       4
/* A client that behaves, in the first slot; its process does not end. */
#define HONEST          FUZZ_OWN_USER
/* A client that comes at the end, in the last place; nobody has its process. */
#define NEWCOMER        (N_CLIENTS - 1)
#define NEW_PROCESS     (FUZZ_N_PROCESSES - 1)
/* Connections that wait to be accepted */
#define BACKLOG         16
#define HANDSHAKE_TIMEOUT   10
/* More than the server needs to handle everything that was sent */
#define MANY_TURNS      1000

typedef enum Op {
    OP_CONNECT,
    OP_JOIN,                    /* connect and HELLO, without a lie */
    OP_HELLO,
    OP_STATE_CHANGED,
    OP_RING,
    OP_RING_FAR,                /* an ID that no link has */
    OP_GOODBYE,
    OP_FLOOD,                   /* with rings */
    OP_BYTES,
    OP_REST,
    OP_READ,
    OP_SHUTDOWN,                /* one direction */
    OP_CLOSE,
    OP_STATE,                   /* written to the State Table */
    OP_DIE,                     /* a process */
    OP_WAIT,
    OP_TURN,
    OP_PASS_ON,                 /* a process ends, its connections do not */
    OP_RULES,                   /* who may connect, from now on */
    OP_SYSTEM,                  /* what it can do, from now on */
    OP_FILL,                    /* an own eventfd, to the brim */
    N_OPS,
} Op;

/* In the byte that has the operation */
#define TURN_LATER      0x80

/* A process that has an ID, for certain */
typedef struct Owner {
    bool known;
    FuzzIdentity who;
} Owner;

typedef struct Player {
    FuzzEnd end;
    Ivshmem2Transport conn;     /* the same, for receiving */
    FuzzIdentity who;
    int64_t since;
    uint32_t id;                /* as the server said in WELCOME */
    unsigned rules;             /* a bit for each in force since it spoke */
    bool placed;                /* WELCOME was there */
    bool ready;                 /* READY came */
    bool over;                  /* REFUSED came */
    bool deaf;                  /* it shut down receiving */
    unsigned answers;
} Player;

typedef struct Game {
    Ivshmem2Link *link;
    Ivshmem2BudgetConfig limits;
    Ivshmem2Budget *budget;
    Ivshmem2Daemon *daemon;
    struct sockaddr_un addr;
    socklen_t addr_len;
    Player players[N_CLIENTS];
    unsigned rule;
    bool blocked;               /* descriptors of clients cannot be closed */
    Owner owners[MAX_PEERS];
    GArray *muddled;            /* identities that may give IDs back */
} Game;

static const Ivshmem2LinkConfig links[] = {
    { .max_peers = 3, .vectors = 2, .rw_size = 4096, .output_size = 4096,
      .pushes = true },
    { .max_peers = 2, .vectors = 1, .intx = true },
    { .max_peers = 4, .vectors = 20, .output_size = 4096 },
};

static const struct {
    const char *text;           /* of the file; NULL: no rules */
    unsigned ids[N_USERS];      /* what each user may take, by the model */
} rules[] = {
    { NULL, { ~0U, ~0U, ~0U, ~0U } },
    { "[a]\nusers=1000,1001\nids=1\n[b]\nusers=1002\nids=*\n",
      { 1 << 1, 1 << 1, ~0U, 0 } },
    { "[a]\nusers=1003\nids=*\n[b]\nusers=1000\nids=1\n",
      { 1 << 1, 0, 0, ~0U } },
    { "[a]\nusers=2000\nids=*\n", { 0, 0, 0, 0 } },
};

static Game *game;

/* The model: who owns an ID */

static bool is_muddled(const Game *g, const FuzzIdentity *who)
{
    for (guint i = 0; i < g->muddled->len; i++) {
        if (memcmp(&g_array_index(g->muddled, FuzzIdentity, i), who,
                   sizeof(*who)) == 0) {
            return true;
        }
    }
    return false;
}

/* A connection of @who may say goodbye, be sent away or resume a session. */
static void muddle(Game *g, const FuzzIdentity *who)
{
    if (!is_muddled(g, who)) {
        g_array_append_val(g->muddled, *who);
    }
    for (uint32_t id = 0; id < MAX_PEERS; id++) {
        if (memcmp(&g->owners[id].who, who, sizeof(*who)) == 0) {
            g->owners[id].known = false;
        }
    }
}

/*
 * An owner is one as long as it lives and the server sees it, or has a
 * connection.
 */
static void check_owner(Game *g, uint32_t id)
{
    Owner *o = &g->owners[id];
    bool keeps = fuzz_process_lives(&o->who) &&
                 fuzz_process_has_pidfd(o->who.process);

    for (unsigned i = 0; i < N_CLIENTS && !keeps; i++) {
        keeps = g->players[i].conn.fd >= 0 && g->players[i].ready &&
                g->players[i].id == id &&
                memcmp(&g->players[i].who, &o->who, sizeof(o->who)) == 0;
    }
    o->known &= keeps;
}

static void check_owners(Game *g)
{
    for (uint32_t id = 0; id < MAX_PEERS; id++) {
        check_owner(g, id);
    }
}

/* READY came.  If it came late, the server may have sent the client away. */
static void own(Game *g, const Player *p)
{
    int64_t late = p->since + HANDSHAKE_TIMEOUT * G_USEC_PER_SEC;

    if (!is_muddled(g, &p->who) && g_get_monotonic_time() < late) {
        g->owners[p->id].known = true;
        g->owners[p->id].who = p->who;
    }
}

/* @p got @id in this turn. */
static void check_placed(Game *g, const Player *p, uint32_t id)
{
    unsigned ids = 0;

    g_assert_cmpuint(id, <, g->link->welcome.max_peers);
    g_assert_true(!g->owners[id].known ||
                  fuzz_is_same_process(&g->owners[id].who, &p->who));
    g->owners[id].known = false;        /* until @p is ready */
    for (size_t i = 0; i < G_N_ELEMENTS(rules) && p->who.user < N_USERS; i++) {
        ids |= p->rules >> i & 1 ? rules[i].ids[p->who.user] : 0;
    }
    g_assert_true(p->who.user >= N_USERS || (ids >> id & 1));
}

/* Is the first answer there?  It stays where it is. */
static void look_for_welcome(Game *g, Player *p)
{
    Ivshmem2Msg msg;
    ssize_t size = ivshmem2_type_size(IVSHMEM2_MSG_WELCOME);

    if (p->placed || !p->rules || p->conn.fd < 0 ||
        recv(p->conn.fd, &msg, size, MSG_PEEK | MSG_DONTWAIT) != size ||
        GUINT16_FROM_LE(msg.hdr.type) != IVSHMEM2_MSG_WELCOME) {
        return;
    }
    p->placed = true;
    check_placed(g, p, GUINT32_FROM_LE(msg.welcome.id));
}

static void turn(Game *g)
{
    fuzz_enter();
    ivshmem2_daemon_turn(g->daemon, false);
    fuzz_leave();
    fuzz_settle();
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        look_for_welcome(g, &g->players[i]);
    }
}

/* From now on, @p may be what the server knows as a client. */
static void speak(Game *g, Player *p, bool odd)
{
    p->rules |= p->rules ? 0 : 1U << g->rule;
    if (odd) {
        muddle(g, &p->who);
    }
}

/* fuzz_send() */
static void send_it(Game *g, Player *p, FuzzInput *in, const Ivshmem2Msg *msg)
{
    bool lies = in->size && in->data[0];

    speak(g, p, lies || (msg->hdr.type == IVSHMEM2_MSG_HELLO
                         ? p->rules : !p->ready) ||
                msg->hdr.type == IVSHMEM2_MSG_GOODBYE);
    fuzz_send(in, &p->end, msg, NULL);
}

static void set_rules(Game *g, unsigned rule)
{
    static Ivshmem2Access *loaded[G_N_ELEMENTS(rules)];

    if (rules[rule].text && !loaded[rule]) {
        int fd = make_memory(0, 0);
        g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);

        g_assert_cmpint(pwrite(fd, rules[rule].text, strlen(rules[rule].text),
                               0), >, 0);
        loaded[rule] = ivshmem2_access_load(path, 2, NULL);
        g_assert_nonnull(loaded[rule]);
        ivshmem2_close(&fd);
    }
    g->rule = rule;
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        g->players[i].rules |= g->players[i].rules ? 1U << rule : 0;
    }
    fuzz_enter();
    ivshmem2_daemon_set_access(g->daemon, loaded[rule]);
    fuzz_leave();
}

/* Clients */

static int connect_socket(Game *g, const FuzzIdentity *who)
{
    static unsigned count;
    struct sockaddr_un own = { .sun_family = AF_UNIX };
    int len = snprintf(own.sun_path + 1, sizeof(own.sun_path) - 1,
                       "ivshmem2-fuzz-%d-%u", getpid(), count++);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    g_assert_cmpint(fd, >=, 0);
    memcpy(&own.sun_path[1 + len], who, sizeof(*who));
    len += offsetof(struct sockaddr_un, sun_path) + 1 + sizeof(*who);
    g_assert_cmpint(bind(fd, (struct sockaddr *)&own, len), ==, 0);
    if (connect(fd, (struct sockaddr *)&g->addr, g->addr_len) < 0) {
        ivshmem2_close(&fd);        /* the backlog is full */
    }
    return fd;
}

static void close_it(Player *p)
{
    ivshmem2_transport_clear(&p->conn);
    p->end.fd = -1;
    p->id = IVSHMEM2_ID_ANY;
}

static void connect_it(Game *g, Player *p, unsigned process, unsigned user)
{
    fuzz_process_start(process);
    close_it(p);
    check_owners(g);
    *p = (Player) {
        .who = {
            .process = process,
            .user = user,
            .generation = fuzz_process_generation(process),
        },
        .since = g_get_monotonic_time(),
        .id = IVSHMEM2_ID_ANY,
    };
    p->end.fd = connect_socket(g, &p->who);
    ivshmem2_transport_init_consume(&p->conn, p->end.fd, IVSHMEM2_SERVER);
}

/* Process and user are chosen by @choice; by default some have the same one. */
static void connect_any(Game *g, Player *p, uint8_t choice)
{
    unsigned process = 1 + choice % (NEW_PROCESS - 1);

    connect_it(g, p, process,
               (process + choice / (NEW_PROCESS - 1)) % N_USERS);
}

/* Is the server's message allowed at this point? */
static void check_said(Player *p)
{
    const Ivshmem2Decoder *d = &p->conn.in;

    g_assert_false(p->over);
    for (unsigned i = 0; i < d->n_fds; i++) {
        g_assert_cmpint(fcntl(d->fds[i], F_GETFD), ==, FD_CLOEXEC);
    }
    switch (d->msg.hdr.type) {
    case IVSHMEM2_MSG_WELCOME:
        g_assert_cmpuint(p->id, ==, IVSHMEM2_ID_ANY);
        g_assert_true(ivshmem2_welcome_check(&d->msg.welcome, NULL));
        p->id = d->msg.welcome.id;
        break;
    case IVSHMEM2_MSG_READY:
        g_assert_cmpuint(p->id, !=, IVSHMEM2_ID_ANY);
        g_assert_false(p->ready);
        p->ready = true;
        own(game, p);
        break;
    case IVSHMEM2_MSG_REFUSED:
        p->over = true;
        p->id = IVSHMEM2_ID_ANY;
        break;
    default:
        g_assert_cmpuint(p->id, !=, IVSHMEM2_ID_ANY);
        p->answers += p->ready;
    }
}

/* Not by the thread that closes what comes from strangers, which may wait */
static void forget_message(Player *p)
{
    Ivshmem2Decoder *d = &p->conn.in;

    for (unsigned i = 0; i < d->n_fds; i++) {
        ivshmem2_close(&d->fds[i]);
    }
    ivshmem2_decoder_reset(d);
}

static void listen_to_it(Player *p, unsigned n)
{
    while (n-- && p->conn.fd >= 0) {
        g_autoptr(GError) error = NULL;
        int ret = ivshmem2_transport_receive(&p->conn, &error);

        if (ret == 0) {
            break;
        } else if (ret > 0) {
            check_said(p);
            forget_message(p);
        } else {
            g_assert_cmpint(error->code, !=, IVSHMEM2_ERROR_PROTOCOL);
            close_it(p);
        }
    }
}

static void hello(Game *g, Player *p, FuzzInput *in)
{
    uint8_t how = fuzz_u8(in);
    Ivshmem2Msg msg = fuzz_hello(in, how, &g->link->welcome);

    if (how & 2) {
        muddle(g, &p->who);
    }
    ivshmem2_set_text(msg.hello.name, sizeof(msg.hello.name), "player");
    send_it(g, p, in, &msg);
}

static void tell(Game *g, Player *p, FuzzInput *in, uint16_t type)
{
    send_it(g, p, in, &(Ivshmem2Msg) { .hdr.type = type });
}

static void ring(Game *g, Player *p, FuzzInput *in, uint32_t first_id)
{
    Ivshmem2Msg msg = { .hdr.type = IVSHMEM2_MSG_RING };

    msg.target.id = first_id + fuzz_u8(in);
    msg.target.vector = fuzz_u8(in);
    send_it(g, p, in, &msg);
}

static void flood(Game *g, Player *p, unsigned n)
{
    FuzzInput none = { .size = 0 };

    while (n--) {
        tell(g, p, &none, IVSHMEM2_MSG_RING);
    }
}

static void die(Game *g, unsigned process)
{
    uint16_t generation = fuzz_process_generation(process);

    fuzz_process_end(process);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        Player *p = &g->players[i];

        if (p->who.process == process && p->who.generation == generation) {
            close_it(p);
        }
    }
    check_owners(g);
}

static void shut_down(Game *g, Player *p, int how)
{
    muddle(g, &p->who);
    p->deaf |= how != SHUT_WR;
    shutdown(p->end.fd, how);
}

static void block(Game *g, bool blocked)
{
    if (blocked != g->blocked) {
        g->blocked = blocked;
        blocked ? fuzz_block() : fuzz_unblock();
    }
}

static void set_system(Game *g, uint8_t what)
{
    fuzz_settle();
    fuzz_system.no_aio = what & 1;
    fuzz_system.no_passrights = !(what & 2);
    block(g, what & 4);
}

/* Its own process can do that, and make writes to it wait. */
static void fill(const Game *g, const Player *p, uint32_t vector)
{
    const uint64_t most = UINT64_MAX - 1;
    int fd;

    if (p->ready && p->id < g->link->welcome.max_peers &&
        fuzz_process_lives(&p->who)) {
        fuzz_settle();
        fd = g->link->eventfds[p->id][vector % g->link->welcome.vectors];
        ivshmem2_eventfd_drain(fd);
        g_assert_cmpint(write(fd, &most, sizeof(most)), ==, sizeof(most));
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    }
}

/* What is not done by one client */
static void change_world(Game *g, FuzzInput *in, Op op)
{
    switch (op) {
    case OP_DIE:
        die(g, 1 + fuzz_u8(in) % (NEW_PROCESS - 1));
        break;
    case OP_WAIT:
        fuzz_pass_time(fuzz_u8(in) % 16 * G_USEC_PER_SEC);
        break;
    case OP_TURN:
        break;
    case OP_PASS_ON:
        fuzz_process_end(1 + fuzz_u8(in) % (NEW_PROCESS - 1));
        check_owners(g);
        break;
    case OP_RULES:
        set_rules(g, fuzz_u8(in) % G_N_ELEMENTS(rules));
        break;
    case OP_SYSTEM:
        set_system(g, fuzz_u8(in));
        break;
    default:
        g_assert_not_reached();
    }
}

static void step(Game *g, FuzzInput *in, Op op)
{
    Player *p = &g->players[1 + fuzz_u8(in) % (NEWCOMER - 1)];
    FuzzInput none = { .size = 0 };

    switch (op) {
    case OP_CONNECT:
        connect_any(g, p, fuzz_u8(in));
        break;
    case OP_JOIN:
        connect_any(g, p, fuzz_u8(in));
        hello(g, p, &none);
        break;
    case OP_HELLO:
        hello(g, p, in);
        break;
    case OP_STATE_CHANGED:
        tell(g, p, in, IVSHMEM2_MSG_STATE_CHANGED);
        break;
    case OP_RING:
        ring(g, p, in, 0);
        break;
    case OP_RING_FAR:
        ring(g, p, in, IVSHMEM2_MAX_PEERS);
        break;
    case OP_GOODBYE:
        tell(g, p, in, IVSHMEM2_MSG_GOODBYE);
        break;
    case OP_FLOOD:
        flood(g, p, fuzz_u8(in));
        break;
    case OP_BYTES:
        speak(g, p, true);
        fuzz_send_bytes(in, &p->end);
        break;
    case OP_REST:
        fuzz_send_rest(&p->end);
        break;
    case OP_READ:
        listen_to_it(p, 1 + fuzz_u8(in));
        break;
    case OP_SHUTDOWN:
        shut_down(g, p, fuzz_u8(in) % 3);
        break;
    case OP_CLOSE:
        close_it(p);
        check_owners(g);
        break;
    case OP_STATE:
        if (p->id < g->link->welcome.max_peers) {
            g->link->table[p->id] = GUINT32_TO_LE(fuzz_u8(in));
        }
        break;
    case OP_FILL:
        fill(g, p, fuzz_u8(in));
        break;
    default:
        change_world(g, in, op);
    }
}

/* A client that behaves */

static void join(Game *g, Player *p, unsigned process, unsigned user,
                 uint8_t id)
{
    const uint8_t bytes[] = { 1, id };
    FuzzInput in = { .data = bytes, .size = sizeof(bytes) };

    connect_it(g, p, process, user);
    hello(g, p, &in);
    for (int i = 0; i < MANY_TURNS && !p->ready; i++) {
        turn(g);
        listen_to_it(p, UINT_MAX);
    }
    g_assert_true(p->ready);
    g_assert_cmpuint(p->id, ==, id);
    g_assert_cmpuint(g->link->table[id], ==, 0);
}

static void check_honest(Game *g)
{
    Player *honest = &g->players[HONEST];
    unsigned before = honest->answers;
    FuzzInput none = { .size = 0 };

    tell(g, honest, &none, IVSHMEM2_MSG_RING);
    for (int i = 0; i < MANY_TURNS && honest->answers == before; i++) {
        turn(g);
        listen_to_it(honest, UINT_MAX);
    }
    g_assert_cmpuint(honest->answers, ==, before + 1);
    fuzz_settle();
    g_assert_cmpuint(ivshmem2_eventfd_drain(g->link->eventfds[0][0]), >, 0);
}

/*
 * However many connections are idle or stalled, another user's client gets an
 * answer before long.
 */
static void check_newcomer(Game *g)
{
    Player *p = &g->players[NEWCOMER];
    FuzzInput none = { .size = 0 };

    set_rules(g, 0);
    do {
        turn(g);
        connect_it(g, p, NEW_PROCESS, N_USERS);
    } while (p->conn.fd < 0);
    hello(g, p, &none);
    for (int i = 0; i < 2 * HANDSHAKE_TIMEOUT && !p->ready && !p->over; i++) {
        fuzz_pass_time(G_USEC_PER_SEC);
        turn(g);
        turn(g);
        listen_to_it(p, UINT_MAX);
    }
    g_assert_true(p->ready || p->over);
}

static bool has_hung_up(int fd)
{
    struct pollfd pfd = { .fd = fd };

    return poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLHUP);
}

static void check_ids(const Game *g)
{
    unsigned n[N_USERS + 1] = { 0 };

    for (unsigned i = HONEST + 1; i < N_CLIENTS; i++) {
        const Player *p = &g->players[i];

        n[p->who.user] += p->conn.fd >= 0 && p->id != IVSHMEM2_ID_ANY;
        for (unsigned j = 0; j < i; j++) {
            g_assert_true(p->id != g->players[j].id ||
                          p->id == IVSHMEM2_ID_ANY);
        }
    }
    for (unsigned user = 0; user <= N_USERS; user++) {
        g_assert_true(!g->limits.ids_per_user ||
                      n[user] <= g->limits.ids_per_user);
    }
}

/* After a while, clients that are not peers have been disconnected. */
static void check_time(Game *g)
{
    /* even if they are accepted one by one */
    for (int i = 0; i < 2 * BACKLOG; i++) {
        fuzz_pass_time(20 * G_USEC_PER_SEC);
        turn(g);
    }
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        Player *p = &g->players[i];
        bool gone = p->conn.fd < 0 || p->deaf || has_hung_up(p->conn.fd);

        /* to be a peer may mean that READY does not fit the socket yet */
        listen_to_it(p, UINT_MAX);
        turn(g);
        listen_to_it(p, UINT_MAX);
        g_assert_true(p->ready || gone);
    }
    check_ids(g);
}

/* All of them that are not the link's */
static unsigned count_other_fds(const Game *g)
{
    unsigned n = fuzz_count_fds();

    for (uint32_t id = 0; id < g->link->welcome.max_peers; id++) {
        n -= g->link->eventfds[id] ? g->link->welcome.vectors : 0;
    }
    return n;
}

/* Without the other clients, all is as before, and all slots can be taken. */
static void check_empty(Game *g, unsigned n_fds)
{
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        if (i != HONEST) {
            close_it(&g->players[i]);
        }
    }
    for (unsigned i = 0; i < FUZZ_N_PROCESSES; i++) {
        if (i != HONEST) {
            fuzz_process_end(i);
        }
    }
    for (int i = 0; i < MANY_TURNS && count_other_fds(g) != n_fds; i++) {
        fuzz_pass_time(G_USEC_PER_SEC);
        turn(g);
    }
    g_assert_cmpuint(count_other_fds(g), ==, n_fds);
    fuzz_pass_time(2 * G_USEC_PER_SEC);      /* quarantine */
    turn(g);
    for (uint32_t id = 1; id < g->link->welcome.max_peers; id++) {
        join(g, &g->players[id], id, id % N_USERS, id);
    }
}

/* The game */

static int listen_socket(Game *g)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    g_assert_cmpint(fd, >=, 0);
    g->addr.sun_family = AF_UNIX;
    g->addr_len = sizeof(g->addr);
    /* the system chooses a name that is no file's */
    g_assert_cmpint(bind(fd, (struct sockaddr *)&g->addr,
                         sizeof(g->addr.sun_family)), ==, 0);
    g_assert_cmpint(getsockname(fd, (struct sockaddr *)&g->addr,
                                &g->addr_len), ==, 0);
    g_assert_cmpint(listen(fd, BACKLOG), ==, 0);
    return fd;
}

void fuzz_daemon(FuzzInput *in)
{
    uint8_t choice = fuzz_u8(in);
    Game g = {
        .limits.ids_per_user = choice / G_N_ELEMENTS(links) % 3,
    };
    int listen_fd = listen_socket(&g);
    unsigned n_fds;

    game = &g;
    fuzz_processes_begin();
    set_system(&g, choice / G_N_ELEMENTS(links) / 3);
    g.muddled = g_array_new(false, false, sizeof(FuzzIdentity));
    g.link = ivshmem2_link_new(&links[choice % G_N_ELEMENTS(links)], NULL);
    g_assert_nonnull(g.link);
    g.budget = ivshmem2_budget_new(&g.limits);
    g.daemon = ivshmem2_daemon_new(g.link, g.budget, listen_fd,
                                   HANDSHAKE_TIMEOUT, 0, NULL);
    g_assert_nonnull(g.daemon);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        g.players[i].conn.fd = -1;
        close_it(&g.players[i]);
    }
    join(&g, &g.players[HONEST], HONEST, N_USERS, 0);
    n_fds = count_other_fds(&g);
    while (in->size) {
        uint8_t op = fuzz_u8(in);

        step(&g, in, (op & ~TURN_LATER) % N_OPS);
        if (!(op & TURN_LATER)) {
            turn(&g);
        }
    }
    check_honest(&g);
    check_newcomer(&g);
    block(&g, false);
    check_time(&g);
    check_empty(&g, n_fds);
    check_honest(&g);

    fuzz_enter();
    ivshmem2_daemon_free(g.daemon);
    fuzz_leave();
    ivshmem2_budget_free(g.budget);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        listen_to_it(&g.players[i], UINT_MAX);
        g_assert_cmpint(g.players[i].conn.fd, ==, -1);
    }
    for (unsigned i = 0; i < FUZZ_N_PROCESSES; i++) {
        fuzz_process_end(i);
    }
    ivshmem2_close(&listen_fd);
    ivshmem2_link_free(g.link);
    g_array_unref(g.muddled);
}
