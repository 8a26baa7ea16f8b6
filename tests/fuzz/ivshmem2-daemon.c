/*
 * Fuzzing ivshmem2: the whole server, through its socket
 *
 * Its clients are real connections.  Time and the clients' processes are not
 * real: the system calls by which the server asks for them are answered here.
 *
 * Input: the link and its limits, and then the steps.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include "daemon.h"
#include "libivshmem2-transport.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

#define N_CLIENTS       6
#define N_PROCESSES     6
/* A client that behaves, in the first slot; its process does not end. */
#define HONEST          0
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
    N_OPS,
} Op;

/* In the byte that has the operation */
#define TURN_LATER      0x80

typedef enum Kind {
    KIND_NORMAL,                /* with pid and pidfd */
    KIND_NO_PIDFD,              /* the system has no descriptor left */
    KIND_OLD_LINUX,             /* without SO_PEERPIDFD */
    KIND_INVISIBLE,             /* without pid, as in another namespace */
} Kind;

typedef struct Process {
    bool alive;
    int exit_fd;                /* stands for its pidfd */
} Process;

typedef struct Player {
    FuzzEnd end;
    Ivshmem2Transport conn;     /* the same, for receiving */
    unsigned process;
    uint32_t id;                /* as the server said in WELCOME */
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
    Process processes[N_PROCESSES];
} Game;

static const Kind kinds[N_PROCESSES] = {
    KIND_NORMAL, KIND_NORMAL, KIND_NORMAL,
    KIND_NO_PIDFD, KIND_OLD_LINUX, KIND_INVISIBLE,
};

static const Ivshmem2LinkConfig links[] = {
    { .max_peers = 3, .vectors = 2, .rw_size = 4096, .output_size = 4096,
      .pushes = true },
    { .max_peers = 2, .vectors = 1, .intx = true },
    { .max_peers = 4, .vectors = 20, .output_size = 4096 },
};

static Game *game;
static int64_t now;

/* The system */

gint64 g_get_monotonic_time(void)
{
    return now;
}

/* No such process can exist; kill() knows that, too. */
static pid_t pid_of(unsigned process)
{
    return kinds[process] == KIND_INVISIBLE ? 0 : 0x40000000 + process;
}

/* Some processes are of the same user, but not the first ones. */
static uid_t uid_of(unsigned process)
{
    return process == HONEST ? getuid() : 1000 + process % 4;
}

/* Clients have addresses that end in their process. */
static unsigned process_of(int fd)
{
    struct sockaddr_un addr;
    socklen_t len = sizeof(addr);
    uint8_t process;

    g_assert_cmpint(getpeername(fd, (struct sockaddr *)&addr, &len), ==, 0);
    process = ((uint8_t *)&addr)[len - 1];
    g_assert_cmpuint(process, <, N_PROCESSES);
    return process;
}

static int get_cred(unsigned process, struct ucred *cred)
{
    cred->pid = pid_of(process);
    cred->uid = uid_of(process);
    cred->gid = cred->uid;
    return 0;
}

static int get_pidfd(unsigned process, int *pidfd)
{
    const Process *p = &game->processes[process];

    *pidfd = -1;
    if (kinds[process] == KIND_OLD_LINUX) {
        errno = ENOPROTOOPT;
    } else if (!p->alive) {
        errno = ESRCH;
    } else if (kinds[process] == KIND_NO_PIDFD) {
        errno = EMFILE;
    } else {
        *pidfd = fcntl(p->exit_fd, F_DUPFD_CLOEXEC, 0);
    }
    return *pidfd < 0 ? -1 : 0;
}

int getsockopt(int fd, int level, int name, void *value, socklen_t *len)
{
    if (level == SOL_SOCKET && name == SO_PEERCRED) {
        return get_cred(process_of(fd), value);
    }
    if (level == SOL_SOCKET && name == SO_PEERPIDFD) {
        return get_pidfd(process_of(fd), value);
    }
    return syscall(SYS_getsockopt, fd, level, name, value, len);
}

static void start_process(Process *p)
{
    if (!p->alive) {
        p->alive = true;
        p->exit_fd = make_eventfd();
    }
}

/* Its pidfds stay readable. */
static void end_process(Process *p)
{
    if (p->alive) {
        p->alive = false;
        ivshmem2_eventfd_signal(p->exit_fd);
        ivshmem2_close(&p->exit_fd);
    }
}

/* Clients */

static int connect_socket(Game *g, unsigned process)
{
    static unsigned count;
    struct sockaddr_un own = { .sun_family = AF_UNIX };
    int len = snprintf(own.sun_path + 1, sizeof(own.sun_path) - 1,
                       "ivshmem2-fuzz-%d-%u", getpid(), count++);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    g_assert_cmpint(fd, >=, 0);
    own.sun_path[1 + len] = process;
    g_assert_cmpint(bind(fd, (struct sockaddr *)&own,
                         offsetof(struct sockaddr_un, sun_path) + 2 + len),
                    ==, 0);
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

static void connect_it(Game *g, Player *p, unsigned process)
{
    start_process(&g->processes[process]);
    close_it(p);
    *p = (Player) {
        .end.fd = connect_socket(g, process),
        .process = process,
        .id = IVSHMEM2_ID_ANY,
    };
    ivshmem2_transport_init_consume(&p->conn, p->end.fd, IVSHMEM2_SERVER);
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

static void listen_to_it(Player *p, unsigned n)
{
    while (n-- && p->conn.fd >= 0) {
        g_autoptr(GError) error = NULL;
        int ret = ivshmem2_transport_receive(&p->conn, &error);

        if (ret == 0) {
            break;
        } else if (ret > 0) {
            check_said(p);
            ivshmem2_decoder_reset(&p->conn.in);
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

    ivshmem2_set_text(msg.hello.name, sizeof(msg.hello.name), "player");
    fuzz_send(in, &p->end, &msg, NULL);
}

static void tell(Player *p, FuzzInput *in, uint16_t type)
{
    Ivshmem2Msg msg = { .hdr.type = type };

    fuzz_send(in, &p->end, &msg, NULL);
}

static void ring(Player *p, FuzzInput *in, uint32_t first_id)
{
    Ivshmem2Msg msg = { .hdr.type = IVSHMEM2_MSG_RING };

    msg.target.id = first_id + fuzz_u8(in);
    msg.target.vector = fuzz_u8(in);
    fuzz_send(in, &p->end, &msg, NULL);
}

static void die(Game *g, unsigned process)
{
    end_process(&g->processes[process]);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        if (g->players[i].process == process) {
            close_it(&g->players[i]);
        }
    }
}

static void shut_down(Player *p, int how)
{
    p->deaf |= how != SHUT_WR;
    shutdown(p->end.fd, how);
}

static void step(Game *g, FuzzInput *in, Op op)
{
    Player *p = &g->players[1 + fuzz_u8(in) % (N_CLIENTS - 1)];
    FuzzInput none = { .size = 0 };

    switch (op) {
    case OP_CONNECT:
        connect_it(g, p, 1 + fuzz_u8(in) % (N_PROCESSES - 1));
        break;
    case OP_JOIN:
        connect_it(g, p, 1 + fuzz_u8(in) % (N_PROCESSES - 1));
        hello(g, p, &none);
        break;
    case OP_HELLO:
        hello(g, p, in);
        break;
    case OP_STATE_CHANGED:
        tell(p, in, IVSHMEM2_MSG_STATE_CHANGED);
        break;
    case OP_RING:
        ring(p, in, 0);
        break;
    case OP_RING_FAR:
        ring(p, in, IVSHMEM2_MAX_PEERS);
        break;
    case OP_GOODBYE:
        tell(p, in, IVSHMEM2_MSG_GOODBYE);
        break;
    case OP_FLOOD:
        for (unsigned n = fuzz_u8(in); n; n--) {
            tell(p, &none, IVSHMEM2_MSG_RING);
        }
        break;
    case OP_BYTES:
        fuzz_send_bytes(in, &p->end);
        break;
    case OP_REST:
        fuzz_send_rest(&p->end);
        break;
    case OP_READ:
        listen_to_it(p, 1 + fuzz_u8(in));
        break;
    case OP_SHUTDOWN:
        shut_down(p, fuzz_u8(in) % 3);
        break;
    case OP_CLOSE:
        close_it(p);
        break;
    case OP_STATE:
        if (p->id < g->link->welcome.max_peers) {
            g->link->table[p->id] = GUINT32_TO_LE(fuzz_u8(in));
        }
        break;
    case OP_DIE:
        die(g, 1 + fuzz_u8(in) % (N_PROCESSES - 1));
        break;
    case OP_WAIT:
        now += fuzz_u8(in) % 16 * G_USEC_PER_SEC;
        break;
    case OP_TURN:
        break;
    default:
        g_assert_not_reached();
    }
}

/* A client that behaves */

static void join(Game *g, Player *p, unsigned process, uint8_t id)
{
    const uint8_t bytes[] = { 1, id };
    FuzzInput in = { .data = bytes, .size = sizeof(bytes) };

    connect_it(g, p, process);
    hello(g, p, &in);
    for (int i = 0; i < MANY_TURNS && !p->ready; i++) {
        ivshmem2_daemon_turn(g->daemon, false);
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

    tell(honest, &none, IVSHMEM2_MSG_RING);
    for (int i = 0; i < MANY_TURNS && honest->answers == before; i++) {
        ivshmem2_daemon_turn(g->daemon, false);
        listen_to_it(honest, UINT_MAX);
    }
    g_assert_cmpuint(honest->answers, ==, before + 1);
    g_assert_cmpuint(ivshmem2_eventfd_drain(g->link->eventfds[0][0]), >, 0);
}

static bool has_hung_up(int fd)
{
    struct pollfd pfd = { .fd = fd };

    return poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLHUP);
}

static void check_ids(const Game *g)
{
    for (unsigned process = 0; process < N_PROCESSES; process++) {
        unsigned n = 0;

        for (unsigned i = 0; i < N_CLIENTS; i++) {
            const Player *p = &g->players[i];

            n += p->conn.fd >= 0 && p->id != IVSHMEM2_ID_ANY &&
                 uid_of(p->process) == uid_of(process);
        }
        g_assert_true(!g->limits.ids_per_user || n <= g->limits.ids_per_user);
    }
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        for (unsigned j = 0; j < i; j++) {
            g_assert_true(g->players[i].id != g->players[j].id ||
                          g->players[i].id == IVSHMEM2_ID_ANY);
        }
    }
}

/* After a while, clients that are not peers have been disconnected. */
static void check_time(Game *g)
{
    /* even if they are accepted one by one */
    for (int i = 0; i < 2 * BACKLOG; i++) {
        now += 20 * G_USEC_PER_SEC;
        ivshmem2_daemon_turn(g->daemon, false);
    }
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        Player *p = &g->players[i];
        bool gone = p->conn.fd < 0 || p->deaf || has_hung_up(p->conn.fd);

        /* to be a peer may mean that READY does not fit the socket yet */
        listen_to_it(p, UINT_MAX);
        ivshmem2_daemon_turn(g->daemon, false);
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
    for (unsigned i = 0; i < N_PROCESSES; i++) {
        if (i != HONEST) {
            end_process(&g->processes[i]);
        }
    }
    for (int i = 0; i < MANY_TURNS && count_other_fds(g) != n_fds; i++) {
        now += G_USEC_PER_SEC;
        ivshmem2_daemon_turn(g->daemon, false);
    }
    g_assert_cmpuint(count_other_fds(g), ==, n_fds);
    now += 2 * G_USEC_PER_SEC;          /* quarantine */
    ivshmem2_daemon_turn(g->daemon, false);
    for (uint32_t id = 1; id < g->link->welcome.max_peers; id++) {
        join(g, &g->players[id], id, id);
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
    g.link = ivshmem2_link_new(&links[choice % G_N_ELEMENTS(links)], NULL);
    g_assert_nonnull(g.link);
    g.budget = ivshmem2_budget_new(&g.limits);
    g.daemon = ivshmem2_daemon_new(g.link, g.budget, listen_fd,
                                   HANDSHAKE_TIMEOUT, NULL);
    g_assert_nonnull(g.daemon);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        g.players[i].conn.fd = -1;
        close_it(&g.players[i]);
    }
    join(&g, &g.players[HONEST], HONEST, 0);
    n_fds = count_other_fds(&g);
    while (in->size) {
        uint8_t op = fuzz_u8(in);

        step(&g, in, (op & ~TURN_LATER) % N_OPS);
        if (!(op & TURN_LATER)) {
            ivshmem2_daemon_turn(g.daemon, false);
        }
    }
    check_honest(&g);
    check_time(&g);
    check_empty(&g, n_fds);
    check_honest(&g);

    ivshmem2_daemon_free(g.daemon);
    ivshmem2_budget_free(g.budget);
    for (unsigned i = 0; i < N_CLIENTS; i++) {
        listen_to_it(&g.players[i], UINT_MAX);
        g_assert_cmpint(g.players[i].conn.fd, ==, -1);
    }
    for (unsigned i = 0; i < N_PROCESSES; i++) {
        end_process(&g.processes[i]);
    }
    ivshmem2_close(&listen_fd);
    ivshmem2_link_free(g.link);
}
