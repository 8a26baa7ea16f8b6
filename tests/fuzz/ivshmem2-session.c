/*
 * Fuzzing ivshmem2: a client or device whose server breaks the protocol
 *
 * The client's main loop must not close what the server sent and what is not
 * as it should be: that could wait for ever.  Nor must it write to eventfds.
 *
 * Input: the link, the client's HELLO and its system, and then the steps of
 * both sides.  The client receives after each step unless the input says
 * otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"
#include <sys/socket.h>
#include <sys/stat.h>
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"

/* The same as in session.c */
#define MAX_EVENTFDS    1024
#define MAX_ASKED       64

/* Written to memory once it is mapped */
#define MARK            0x4d41524b

typedef enum Op {
    OP_CONNECT,
    OP_DISCONNECT,
    OP_HANDSHAKE,               /* all of it, and correct */
    OP_WELCOME,
    OP_OUTPUTS,
    OP_EVENTFDS,
    OP_MANY_EVENTFDS,
    OP_READY,
    OP_REFUSED,
    OP_ANSWER,                  /* the oldest request */
    OP_BYTES,
    OP_REST,
    OP_RING,
    OP_STATE,
    OP_GOODBYE,
    OP_MAP,
    N_OPS,
} Op;

/* In the byte that has the operation */
#define READ_LATER      0x80

typedef struct Game {
    unsigned n_fds;             /* before */
    Ivshmem2Session *s;
    Ivshmem2Transport conn;     /* the client's end */
    FuzzEnd server;
    Ivshmem2Decoder said;       /* by the client */
    Ivshmem2Target asked[MAX_ASKED];
    unsigned n_asked;
    Ivshmem2Welcome truth;
    uint32_t next_output;
    uint32_t next_own;

    bool established;           /* from then on, these are constant: */
    Ivshmem2Welcome info;
    int *own_fds;
    void *memory;
} Game;

static const Ivshmem2Welcome truths[] = {
    { .features = IVSHMEM2_F_MSIX, .vectors = 2, .id = 1, .max_peers = 3,
      .state_table_size = 4096, .rw_size = 8192, .output_size = 4096 },
    { .features = IVSHMEM2_F_INTX, .vectors = 1, .id = 0, .max_peers = 2,
      .state_table_size = 4096 },
    { .features = IVSHMEM2_F_MSIX, .vectors = 18, .id = 17, .max_peers = 20,
      .state_table_size = 8192, .output_size = 65536 },
    { .features = IVSHMEM2_F_MSIX, .vectors = 40, .id = 65535,
      .max_peers = 65536, .state_table_size = 262144, .rw_size = 4096 },
};

/* True after all messages of the server */
static void check(Game *g)
{
    const Ivshmem2Welcome *info = ivshmem2_session_info(g->s);

    if (!g->established && ivshmem2_session_ready(g->s)) {
        g->established = true;
        g->info = *info;
        g->own_fds = g_new(int, info->vectors);
        for (uint32_t i = 0; i < info->vectors; i++) {
            g->own_fds[i] = ivshmem2_session_own_eventfd(g->s, i);
            g_assert_cmpint(fcntl(g->own_fds[i], F_GETFD), ==, FD_CLOEXEC);
        }
        g_assert_cmpint(ivshmem2_session_own_eventfd(g->s, info->vectors), ==,
                        -1);
        g_assert_true(ivshmem2_welcome_check(info, NULL));
    }
    if (g->established) {
        g_assert_cmpmem(info, sizeof(*info), &g->info, sizeof(g->info));
        for (uint32_t i = 0; i < info->vectors; i++) {
            g_assert_cmpint(ivshmem2_session_own_eventfd(g->s, i), ==,
                            g->own_fds[i]);
        }
    }
    if (g->memory) {
        g_assert_cmphex(((uint32_t *)g->memory)[g->info.id], ==, MARK);
    }
}

/* Is it sealed, and open for what it is needed for? */
static bool is_memory(int fd, uint64_t size, bool writable)
{
    const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
    int has = fcntl(fd, F_GET_SEALS);
    int mode = fcntl(fd, F_GETFL) & O_ACCMODE;
    struct stat st;

    return has >= 0 && (has & seals) == seals && fstat(fd, &st) == 0 &&
           (uint64_t)st.st_size >= size &&
           (mode == O_RDWR || (!writable && mode == O_RDONLY));
}

/* May the session accept WELCOME? */
static bool is_welcome_believable(const Game *g, const Ivshmem2Decoder *d)
{
    const Ivshmem2Welcome *w = &d->msg.welcome;

    if (g->established) {
        return memcmp(w, &g->info, sizeof(g->info)) == 0;
    }
    return d->n_fds == 1 + (w->rw_size > 0) &&
           is_memory(d->fds[0], w->state_table_size, true) &&
           (!w->rw_size || is_memory(d->fds[1], w->rw_size, true));
}

/* May the session accept OUTPUTS? */
static bool are_outputs_believable(const Game *g, const Ivshmem2Decoder *d)
{
    const Ivshmem2Welcome *info = ivshmem2_session_info(g->s);

    for (unsigned i = 0; i < d->n_fds; i++) {
        if (!is_memory(d->fds[i], info->output_size,
                       d->msg.outputs.first + i == info->id)) {
            return false;
        }
    }
    return true;
}

static bool is_eventfd(int fd)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    char target[32] = "";

    return readlink(path, target, sizeof(target) - 1) > 0 &&
           strcmp(target, "anon_inode:[eventfd]") == 0;
}

static bool are_eventfds(const Ivshmem2Decoder *d)
{
    for (unsigned i = 0; i < d->n_fds; i++) {
        if (!is_eventfd(d->fds[i])) {
            return false;
        }
    }
    return true;
}

/* May the session accept the message that is in g->conn.in? */
static bool is_believable(const Game *g)
{
    const Ivshmem2Decoder *d = &g->conn.in;

    switch (d->msg.hdr.type) {
    case IVSHMEM2_MSG_WELCOME:
        return is_welcome_believable(g, d);
    case IVSHMEM2_MSG_OUTPUTS:
        return g->established || are_outputs_believable(g, d);
    case IVSHMEM2_MSG_EVENTFDS:
        return are_eventfds(d);
    default:
        return true;
    }
}

/* The client's part, as in peer-socket.c and in the device */

static bool say(Game *g, GError **error)
{
    Ivshmem2Msg msg;
    int ret = ivshmem2_transport_flush(&g->conn, error);

    while (ret == 1 && ivshmem2_session_next(g->s, &msg)) {
        ret = ivshmem2_transport_send(&g->conn, &msg, NULL, error);
    }
    return ret >= 0;
}

static bool listen_to_it(Game *g, GError **error)
{
    int ret;

    while ((ret = ivshmem2_transport_receive(&g->conn, error)) > 0) {
        bool believable = is_believable(g);

        if (!ivshmem2_session_receive(g->s, &g->conn.in, error)) {
            return false;
        }
        g_assert_true(believable);
        check(g);
    }
    return ret == 0;
}

static void hang_up(Game *g)
{
    ivshmem2_transport_clear(&g->conn);
    ivshmem2_session_disconnected(g->s);
}

static void disconnect(Game *g)
{
    if (g->conn.fd >= 0) {
        fuzz_enter();
        hang_up(g);
        fuzz_leave();
    }
    ivshmem2_close(&g->server.fd);
    g_assert_false(ivshmem2_session_ready(g->s));
}

/* A server accepts all messages of the client. */
static void hear(Game *g)
{
    g_autoptr(GError) error = NULL;
    uint8_t buf[sizeof(Ivshmem2Msg)];
    ssize_t len;

    while ((len = recv(g->server.fd, buf, ivshmem2_decoder_wants(&g->said),
                       MSG_DONTWAIT)) > 0) {
        int ret = ivshmem2_decoder_push_consume(&g->said, buf, len, NULL, 0,
                                                &error);

        g_assert_no_error(error);
        if (ret > 0) {
            if (g->said.msg.hdr.type == IVSHMEM2_MSG_RING &&
                g->n_asked < MAX_ASKED) {
                g->asked[g->n_asked++] = g->said.msg.target;
            }
            ivshmem2_decoder_reset(&g->said);
        }
    }
}

static void converse(Game *g)
{
    g_autoptr(GError) error = NULL;
    bool ok;

    if (g->conn.fd < 0) {
        return;
    }
    fuzz_enter();
    ok = say(g, NULL) && listen_to_it(g, &error) && say(g, NULL);
    if (!ok) {
        hang_up(g);
    }
    fuzz_leave();
    if (ok) {
        hear(g);
    } else {
        disconnect(g);
    }
    if (error) {
        g_assert_cmpuint(error->domain, ==, IVSHMEM2_ERROR);
    }
    /* or it could have too many files open */
    fuzz_settle();
}

static void connect_it(Game *g)
{
    int fds[2];

    disconnect(g);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    ivshmem2_transport_init_consume(&g->conn, fds[0], IVSHMEM2_SERVER);
    ivshmem2_decoder_init(&g->said, IVSHMEM2_CLIENT);
    g->server.fd = fds[1];
    g->server.n_rest = 0;
    g->n_asked = 0;
    g->next_output = 0;
    g->next_own = 0;
    ivshmem2_session_connected(g->s);
}

/* Could the session be mapped where addresses have 32 bits? */
static void check_small_host(const Game *g)
{
    const uint64_t spare = 2 * 1024 * 1024;
    uint64_t size = ivshmem2_total_size(&g->info);

    g_assert_cmpint(ivshmem2_check_mappable(size, spare, UINT32_MAX, NULL), ==,
                    size <= UINT32_MAX - spare);
}

static void map_memory(Game *g)
{
    g_autoptr(GError) error = NULL;

    if (!g->established || g->memory) {
        return;
    }
    check_small_host(g);
    g->memory = ivshmem2_session_map(g->s, &error);
    if (g->memory) {
        ((uint32_t *)g->memory)[g->info.id] = MARK;
    } else {
        g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_IO);
    }
}

/* The server's part */

static void tell_welcome(Game *g, FuzzInput *in)
{
    Ivshmem2Msg msg = {
        .hdr.type = IVSHMEM2_MSG_WELCOME,
        .welcome = g->truth,
    };
    Ivshmem2Welcome *w = &msg.welcome;
    const int fds[] = { fuzz_fd(FUZZ_FD_MEMORY), fuzz_fd(FUZZ_FD_MEMORY) };
    uint8_t what = fuzz_u8(in);
    uint32_t value = what ? fuzz_u32(in) : 0;
    unsigned shift = what >> 4 << 2;

    switch (what & 15) {
    case 1:
        w->version = value;
        break;
    case 2:
        w->protocol = value;
        break;
    case 3:
        w->features = value;
        break;
    case 4:
        w->vectors = value;
        break;
    case 5:
        w->id = value;
        break;
    case 6:
        w->max_peers = value;
        break;
    case 7:
        w->page_size = value;
        break;
    case 8:
        w->state_table_size = value;
        break;
    case 9:
        w->rw_size = (uint64_t)value << shift;
        break;
    case 10:
        w->output_size = (uint64_t)value << shift;
        break;
    case 11:
        w->session[shift >> 2] ^= value;
        break;
    }
    msg.hdr.fds = w->rw_size ? 2 : 1;
    fuzz_send(in, &g->server, &msg, fds);
}

static void tell_outputs(Game *g, FuzzInput *in, uint32_t first, unsigned n)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_OUTPUTS, .fds = n },
        .outputs.first = first,
    };
    int fds[IVSHMEM2_MAX_FDS];

    for (unsigned i = 0; i < n; i++) {
        fds[i] = fuzz_fd(first + i == g->truth.id ? FUZZ_FD_MEMORY
                                                  : FUZZ_FD_READ_ONLY);
    }
    g->next_output = first + n;
    fuzz_send(in, &g->server, &msg, fds);
}

static void tell_eventfds(Game *g, FuzzInput *in, uint32_t id, uint32_t first,
                          unsigned n)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = n },
        .eventfds = { .id = id, .first = first },
    };
    int fds[IVSHMEM2_MAX_FDS];

    for (unsigned i = 0; i < n; i++) {
        fds[i] = fuzz_fd(FUZZ_FD_EVENTFD);
    }
    if (id == g->truth.id) {
        g->next_own = first + n;
    }
    fuzz_send(in, &g->server, &msg, fds);
}

static void tell(Game *g, FuzzInput *in, uint16_t type)
{
    Ivshmem2Msg msg = { .hdr.type = type };

    if (type == IVSHMEM2_MSG_REFUSED) {
        msg.refusal.code = fuzz_u8(in);
        fuzz_bytes(in, msg.refusal.text,
                   fuzz_u8(in) % (sizeof(msg.refusal.text) + 1));
    }
    fuzz_send(in, &g->server, &msg, NULL);
}

static void tell_all_outputs(Game *g, FuzzInput *in)
{
    while (g->truth.output_size && g->next_output < g->truth.max_peers) {
        tell_outputs(g, in, g->next_output,
                     MIN(g->truth.max_peers - g->next_output,
                         IVSHMEM2_MAX_FDS));
    }
}

static void handshake(Game *g)
{
    FuzzInput none = { .size = 0 };

    connect_it(g);
    tell_welcome(g, &none);
    tell_all_outputs(g, &none);
    while (g->next_own < g->truth.vectors) {
        tell_eventfds(g, &none, g->truth.id, g->next_own,
                      MIN(g->truth.vectors - g->next_own, IVSHMEM2_MAX_FDS));
    }
    tell(g, &none, IVSHMEM2_MSG_READY);
}

/* More than the client keeps, if the input does it often enough */
static void tell_many_eventfds(Game *g, FuzzInput *in)
{
    FuzzInput none = { .size = 0 };
    uint32_t id = fuzz_u8(in);
    unsigned n = 1 + fuzz_u8(in) % 32;

    for (unsigned i = 0; i < n; i++) {
        tell_eventfds(g, &none, id + i, 0,
                      MIN(g->truth.vectors, IVSHMEM2_MAX_FDS));
        converse(g);
    }
}

static void answer(Game *g, FuzzInput *in)
{
    if (g->n_asked) {
        Ivshmem2Target target = g->asked[0];

        g->n_asked--;
        memmove(g->asked, g->asked + 1, g->n_asked * sizeof(g->asked[0]));
        tell_eventfds(g, in, target.id, target.vector, fuzz_u8(in) & 1);
    }
}

/* No more than a link of this size needs, plus the eventfds of others */
static void check_fds(Game *g)
{
    const Ivshmem2Welcome *info = ivshmem2_session_info(g->s);
    unsigned most = 2 + info->vectors + MAX_EVENTFDS;

    if (!g->memory) {
        most += 2 + (info->output_size ? info->max_peers : 0);
    }
    if (g->conn.fd >= 0) {
        most += IVSHMEM2_MAX_FDS;
    }
    g_assert_cmpuint(fuzz_count_fds() - g->n_fds, <=, most);
}

static void client_rings(Game *g, FuzzInput *in)
{
    uint32_t id = fuzz_u8(in) ? fuzz_u32(in) : g->info.id;
    uint32_t vector = fuzz_u8(in);
    int fd = -1;
    Ivshmem2Ring ret;

    fuzz_enter();
    ret = ivshmem2_session_ring(g->s, id, vector, &fd);
    fuzz_leave();
    g_assert_true(fd == -1 || fcntl(fd, F_GETFD) == FD_CLOEXEC);
    if (!g->established || id >= g->info.max_peers ||
        vector >= g->info.vectors) {
        g_assert_cmpint(ret, ==, IVSHMEM2_RING_NOBODY);
        g_assert_cmpint(fd, ==, -1);
    } else {
        g_assert_cmpint(ret, ==, fd >= 0 ? IVSHMEM2_RING_SIGNALLED
                                         : IVSHMEM2_RING_REQUESTED);
        if (id == g->info.id) {
            g_assert_cmpint(fd, ==, g->own_fds[vector]);
        }
    }
}

/* What its user does with the client */
static void use_session(Game *g, FuzzInput *in, Op op)
{
    switch (op) {
    case OP_RING:
        client_rings(g, in);
        break;
    case OP_STATE:
        fuzz_enter();
        ivshmem2_session_state_changed(g->s);
        fuzz_leave();
        break;
    case OP_GOODBYE:
        ivshmem2_session_goodbye(g->s);
        break;
    case OP_MAP:
        map_memory(g);
        break;
    default:
        g_assert_not_reached();
    }
}

static void step(Game *g, FuzzInput *in, Op op)
{
    uint32_t id, first;

    switch (op) {
    case OP_CONNECT:
        connect_it(g);
        break;
    case OP_DISCONNECT:
        disconnect(g);
        break;
    case OP_HANDSHAKE:
        handshake(g);
        break;
    case OP_WELCOME:
        tell_welcome(g, in);
        break;
    case OP_OUTPUTS:
        first = g->next_output + fuzz_u8(in);
        tell_outputs(g, in, first, fuzz_u8(in) % (IVSHMEM2_MAX_FDS + 1));
        break;
    case OP_EVENTFDS:
        id = fuzz_u8(in) ? fuzz_u32(in) : g->truth.id;
        first = (id == g->truth.id ? g->next_own : 0) + fuzz_u8(in);
        tell_eventfds(g, in, id, first,
                      fuzz_u8(in) % (IVSHMEM2_MAX_FDS + 1));
        break;
    case OP_MANY_EVENTFDS:
        tell_many_eventfds(g, in);
        break;
    case OP_READY:
        tell(g, in, IVSHMEM2_MSG_READY);
        break;
    case OP_REFUSED:
        tell(g, in, IVSHMEM2_MSG_REFUSED);
        break;
    case OP_ANSWER:
        answer(g, in);
        break;
    case OP_BYTES:
        fuzz_send_bytes(in, &g->server);
        break;
    case OP_REST:
        fuzz_send_rest(&g->server);
        break;
    default:
        use_session(g, in, op);
    }
}

void fuzz_session(FuzzInput *in)
{
    Game g = {
        .n_fds = fuzz_count_fds(),
        .conn.fd = -1,
        .server.fd = -1,
        .truth = truths[fuzz_u8(in) % G_N_ELEMENTS(truths)],
    };
    uint8_t offer = fuzz_u8(in);
    Ivshmem2Hello hello = {
        .features = offer & 3 ? offer & 3 : IVSHMEM2_F_INTERRUPTS,
        .vectors = offer & 4 ? 1 : IVSHMEM2_MAX_VECTORS,
        .id = offer & 8 ? 1 : IVSHMEM2_ID_ANY,
    };

    fuzz_system.no_aio = offer & 16;
    g.truth.version = IVSHMEM2_VERSION_MAX;
    g.truth.page_size = 4096;
    g.truth.session[0] = 1;
    g.s = ivshmem2_session_new(&hello);
    while (in->size) {
        uint8_t op = fuzz_u8(in);

        step(&g, in, (op & ~READ_LATER) % N_OPS);
        if (!(op & READ_LATER)) {
            converse(&g);
            check(&g);
        }
    }
    converse(&g);
    check(&g);
    check_fds(&g);
    if (g.memory) {
        munmap(g.memory, ivshmem2_total_size(&g.info));
    }
    disconnect(&g);
    ivshmem2_session_free(g.s);
    g_free(g.own_fds);
}
