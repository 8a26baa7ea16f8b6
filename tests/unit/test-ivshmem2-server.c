/*
 * ivshmem2-server: what clients are told, and what their doing causes
 *
 * With real connections to the real server; the clients of this process are
 * all of one process to the server, so others are forked where it matters.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-server-util.h"
#include <sys/ioctl.h>
#include <sys/stat.h>
#include "libivshmem2-transport.h"

/* A client that says what it is told to, and keeps all that it gets */

typedef struct Client {
    Ivshmem2Transport conn;
    Ivshmem2Welcome welcome;
    int memory[2];              /* State Table, R/W section */
    int *outputs;
    int **eventfds;             /* of each ID; NULL: not told */
    uint32_t *table;
    unsigned n_messages;        /* of the handshake */
} Client;

static void client_connect(Client *c, Server *s)
{
    *c = (Client) { .memory = { -1, -1 } };
    ivshmem2_transport_init_consume(&c->conn, server_connect(s),
                                    IVSHMEM2_SERVER);
}

/*
 * Connect as another user, with another group as well (unless 0).  The socket
 * is what counts, so this process need not be another one.
 */
static void client_connect_as(Client *c, Server *s, uid_t uid, gid_t gid)
{
    Server here = { .socket = (char *)"link.sock" };
    int cwd = open(".", O_PATH | O_CLOEXEC);

    *c = (Client) { .memory = { -1, -1 } };
    g_assert_cmpint(chdir(s->dir), ==, 0);
    g_assert_cmpint(!gid || setgroups(1, &gid) == 0, ==, true);
    g_assert_cmpint(uid == geteuid() || seteuid(uid) == 0, ==, true);
    ivshmem2_transport_init_consume(&c->conn, server_connect(&here),
                               IVSHMEM2_SERVER);
    g_assert_cmpint(seteuid(getuid()), ==, 0);
    g_assert_cmpint(!gid || setgroups(0, NULL) == 0, ==, true);
    g_assert_cmpint(fchdir(cwd), ==, 0);
    ivshmem2_close(&cwd);
}

static void free_fds(int *fds, uint32_t n)
{
    for (uint32_t i = 0; fds && i < n; i++) {
        ivshmem2_close(&fds[i]);
    }
    g_free(fds);
}

/* Close without a goodbye. */
static void client_close(Client *c)
{
    ivshmem2_transport_clear(&c->conn);
    if (c->table) {
        munmap(c->table, c->welcome.state_table_size);
    }
    ivshmem2_close(&c->memory[0]);
    ivshmem2_close(&c->memory[1]);
    free_fds(c->outputs, c->welcome.max_peers);
    for (uint32_t i = 0; c->eventfds && i < c->welcome.max_peers; i++) {
        free_fds(c->eventfds[i], c->welcome.vectors);
    }
    g_free(c->eventfds);
    *c = (Client) { .memory = { -1, -1 } };
    c->conn.fd = -1;
}

static void wait_for(int fd, short events)
{
    struct pollfd pfd = { .fd = fd, .events = events };

    g_assert_cmpint(poll(&pfd, 1, SOON_MS), ==, 1);
}

static void client_say(Client *c, const Ivshmem2Msg *msg)
{
    g_autoptr(GError) error = NULL;
    int ret = ivshmem2_transport_send(&c->conn, msg, NULL, &error);

    while (ret == 0) {
        wait_for(c->conn.fd, POLLOUT);
        ret = ivshmem2_transport_flush(&c->conn, &error);
    }
    g_assert_no_error(error);
}

static void client_say_type(Client *c, uint16_t type)
{
    client_say(c, &(Ivshmem2Msg) { .hdr.type = type });
}

static void client_say_target(Client *c, uint16_t type, uint32_t id,
                              uint32_t vector)
{
    client_say(c, &(Ivshmem2Msg) {
        .hdr.type = type, .target.id = id, .target.vector = vector,
    });
}

/* Returns the type of the next message, or 0 if the server closed. */
static uint16_t client_hear_any(Client *c)
{
    g_autoptr(GError) error = NULL;
    int ret;

    ivshmem2_decoder_reset(&c->conn.in);
    while ((ret = ivshmem2_transport_receive(&c->conn, &error)) == 0) {
        wait_for(c->conn.fd, POLLIN);
    }
    if (ret < 0) {
        g_assert_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_CLOSED);
        return 0;
    }
    return c->conn.in.msg.hdr.type;
}

static const Ivshmem2Msg *client_hear(Client *c, uint16_t type)
{
    uint16_t got = client_hear_any(c);

    if (got == IVSHMEM2_MSG_REFUSED && got != type) {
        g_test_message("REFUSED: %s", c->conn.in.msg.refusal.text);
    }
    g_assert_cmphex(got, ==, type);
    return &c->conn.in.msg;
}

/* An ERROR, and then the end */
static void client_hear_error(Client *c, uint32_t code, const char *text)
{
    const Ivshmem2Msg *msg = client_hear(c, IVSHMEM2_MSG_REFUSED);

    g_test_message("%s", msg->refusal.text);
    g_assert_cmpuint(msg->refusal.code, ==, code);
    assert_says_text(msg->refusal.text, text);
    g_assert_cmpuint(client_hear_any(c), ==, 0);
}

static Ivshmem2Msg make_hello(uint32_t id)
{
    return (Ivshmem2Msg) {
        .hdr.type = IVSHMEM2_MSG_HELLO,
        .hello = {
            .magic = IVSHMEM2_MAGIC,
            .version_min = IVSHMEM2_VERSION_MIN,
            .version_max = IVSHMEM2_VERSION_MAX,
            .features = IVSHMEM2_F_MSIX | IVSHMEM2_F_INTX,
            .vectors = IVSHMEM2_MAX_VECTORS,
            .id = id,
            .name = "test",
        },
    };
}

static void take_eventfds(Client *c)
{
    const Ivshmem2Eventfds *e = &c->conn.in.msg.eventfds;

    g_assert_cmpuint(e->id, <, c->welcome.max_peers);
    g_assert_cmpuint(e->first + c->conn.in.n_fds, <=, c->welcome.vectors);
    if (!c->eventfds[e->id]) {
        c->eventfds[e->id] = g_new(int, c->welcome.vectors);
        memset(c->eventfds[e->id], 0xff, c->welcome.vectors * sizeof(int));
    }
    for (unsigned i = 0; i < c->conn.in.n_fds; i++) {
        int *fd = &c->eventfds[e->id][e->first + i];

        g_assert_cmpint(*fd, ==, -1);
        *fd = ivshmem2_decoder_steal_fd(&c->conn.in, i);
        g_assert_true(ivshmem2_check_eventfd(*fd, NULL));
    }
}

static void take_welcome(Client *c)
{
    c->welcome = client_hear(c, IVSHMEM2_MSG_WELCOME)->welcome;
    g_assert_true(ivshmem2_welcome_check(&c->welcome, NULL));
    g_assert_cmpuint(c->conn.in.n_fds, ==, c->welcome.rw_size ? 2 : 1);
    for (unsigned i = 0; i < c->conn.in.n_fds; i++) {
        c->memory[i] = ivshmem2_decoder_steal_fd(&c->conn.in, i);
    }
    c->table = mmap(NULL, c->welcome.state_table_size,
                    PROT_READ | PROT_WRITE, MAP_SHARED, c->memory[0], 0);
    g_assert_true(c->table != MAP_FAILED);
    c->eventfds = g_new0(int *, c->welcome.max_peers);
}

static void take_outputs(Client *c)
{
    uint32_t n = 0;

    if (!c->welcome.output_size) {
        return;
    }
    c->outputs = g_new(int, c->welcome.max_peers);
    while (n < c->welcome.max_peers) {
        g_assert_cmpuint(client_hear(c, IVSHMEM2_MSG_OUTPUTS)->outputs.first,
                         ==, n);
        for (unsigned i = 0; i < c->conn.in.n_fds; i++) {
            c->outputs[n++] = ivshmem2_decoder_steal_fd(&c->conn.in, i);
        }
        c->n_messages++;
    }
}

/* The rest of the handshake after HELLO, checked by the order it must have */
static void client_complete(Client *c)
{
    uint32_t n = 0;

    take_welcome(c);
    take_outputs(c);
    while (n < c->welcome.vectors) {
        const Ivshmem2Msg *msg = client_hear(c, IVSHMEM2_MSG_EVENTFDS);

        g_assert_cmpuint(msg->eventfds.id, ==, c->welcome.id);
        g_assert_cmpuint(msg->eventfds.first, ==, n);
        n += c->conn.in.n_fds;
        take_eventfds(c);
    }
    while (client_hear_any(c) == IVSHMEM2_MSG_EVENTFDS) {
        take_eventfds(c);
        c->n_messages++;
    }
    g_assert_cmphex(c->conn.in.msg.hdr.type, ==, IVSHMEM2_MSG_READY);
}

static void client_join_hello(Client *c, Server *s, const Ivshmem2Msg *hello)
{
    client_connect(c, s);
    client_say(c, hello);
    client_complete(c);
}

static void client_join(Client *c, Server *s, uint32_t id)
{
    Ivshmem2Msg hello = make_hello(id);

    client_join_hello(c, s, &hello);
    if (id != IVSHMEM2_ID_ANY) {
        g_assert_cmpuint(c->welcome.id, ==, id);
    }
}

static void client_leave(Client *c)
{
    client_say_type(c, IVSHMEM2_MSG_GOODBYE);
    g_assert_cmpuint(client_hear_any(c), ==, 0);
    client_close(c);
}

/* Say @hello and be refused. */
static void client_refused(Server *s, const Ivshmem2Msg *hello,
                           uint32_t code, const char *text)
{
    Client c;

    client_connect(&c, s);
    client_say(&c, hello);
    client_hear_error(&c, code, text);
    client_close(&c);
}

static void client_refused_id(Server *s, uint32_t id, uint32_t code,
                              const char *text)
{
    Ivshmem2Msg hello = make_hello(id);

    client_refused(s, &hello, code, text);
}

/* All that was said before is handled when this is. */
static void client_sync(Client *c)
{
    client_say_target(c, IVSHMEM2_MSG_RING, UINT32_MAX, 0);
    client_hear(c, IVSHMEM2_MSG_EVENTFDS);
}

static void set_state(Client *c, uint32_t state)
{
    __atomic_store_n(&c->table[c->welcome.id], GUINT32_TO_LE(state),
                     __ATOMIC_RELEASE);
}

static uint32_t get_state(Client *c, uint32_t id)
{
    return GUINT32_FROM_LE(__atomic_load_n(&c->table[id], __ATOMIC_ACQUIRE));
}

static void change_state(Client *c, uint32_t state)
{
    set_state(c, state);
    client_say_type(c, IVSHMEM2_MSG_STATE_CHANGED);
}

static void assert_interrupted(Client *c, uint32_t vector)
{
    int fd = c->eventfds[c->welcome.id][vector];

    wait_for(fd, POLLIN);
    g_assert_cmpuint(ivshmem2_eventfd_drain(fd), >, 0);
}

static void assert_quiet(Client *c)
{
    for (uint32_t i = 0; i < c->welcome.vectors; i++) {
        g_assert_cmpuint(
            ivshmem2_eventfd_drain(c->eventfds[c->welcome.id][i]), ==, 0);
    }
}

/* Clients of another process */

typedef struct Other {
    pid_t pid;
    int fd;                     /* to give it orders */
} Other;

typedef enum Order {
    ORDER_CLOSE = 1,            /* its connection; it lives on */
    ORDER_JOIN,                 /* again */
    ORDER_EXIT,
} Order;

/* What the other process does; answers each order with the same byte */
static void other_run(Server *s, uint32_t id, uint32_t state, int fd)
{
    Client c;
    uint8_t order = ORDER_JOIN;

    do {
        switch (order) {
        case ORDER_JOIN:
            client_join(&c, s, id);
            set_state(&c, state);
            if (state) {
                client_say_type(&c, IVSHMEM2_MSG_STATE_CHANGED);
                client_sync(&c);
            }
            break;
        case ORDER_CLOSE:
            client_close(&c);
            break;
        }
        if (write(fd, &order, 1) != 1) {
            break;
        }
    } while (read(fd, &order, 1) == 1 && order != ORDER_EXIT);
}

/* Start a process that joins as @id with @state. */
static void other_start(Other *o, Server *s, uint32_t id, uint32_t state)
{
    pid_t parent = getpid();
    uint8_t byte;
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds),
                    ==, 0);
    o->pid = fork();
    g_assert_cmpint(o->pid, >=, 0);
    if (o->pid == 0) {
        die_with_parent(parent);
        close(fds[0]);
        other_run(s, id, state, fds[1]);
        _exit(0);
    }
    ivshmem2_close(&fds[1]);
    o->fd = fds[0];
    g_assert_cmpint(read(o->fd, &byte, 1), ==, 1);
}

static void other_do(Other *o, uint8_t order)
{
    g_assert_cmpint(write(o->fd, &order, 1), ==, 1);
    g_assert_cmpint(read(o->fd, &order, 1), ==, order != ORDER_EXIT);
}

static void other_end(Other *o, int sig)
{
    if (sig) {
        kill(o->pid, sig);
    } else {
        other_do(o, ORDER_EXIT);
    }
    g_assert_cmpint(waitpid(o->pid, NULL, 0), ==, o->pid);
    ivshmem2_close(&o->fd);
}

/* Resources */

static void assert_sealed(int fd, uint64_t size)
{
    struct stat st;

    g_assert_true(ivshmem2_check_memfd(fd, size, false, "section", NULL));
    g_assert_cmpint(fstat(fd, &st), ==, 0);
    g_assert_cmpuint(st.st_size, ==, size);
    g_assert_cmpint(ftruncate(fd, size + 4096), ==, -1);
    g_assert_cmpint(ftruncate(fd, 0), ==, -1);
    g_assert_cmpint(fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE), ==, -1);
}

static void test_memory(void)
{
    const uint32_t n_peers = 35;
    struct stat st;
    Server s;
    Client c;

    server_init(&s);
    server_start(&s, "--max-peers 35 --rw-size 5000 --output-size 1");
    client_join(&c, &s, 17);
    g_assert_cmpuint(c.welcome.version, ==, 1);
    g_assert_cmpuint(c.welcome.features, ==, IVSHMEM2_F_MSIX);
    g_assert_cmpuint(c.welcome.vectors, ==, 2);
    g_assert_cmpuint(c.welcome.max_peers, ==, n_peers);
    g_assert_cmpuint(c.welcome.page_size, ==, sysconf(_SC_PAGE_SIZE));
    g_assert_cmpuint(c.welcome.state_table_size, ==, c.welcome.page_size);
    g_assert_cmpuint(c.welcome.rw_size, ==,
                     5000 / c.welcome.page_size * c.welcome.page_size +
                     c.welcome.page_size);
    g_assert_cmpuint(c.welcome.output_size, ==, c.welcome.page_size);
    assert_sealed(c.memory[0], c.welcome.state_table_size);
    assert_sealed(c.memory[1], c.welcome.rw_size);
    for (uint32_t i = 0; i < n_peers; i++) {
        int mode = fcntl(c.outputs[i], F_GETFL) & O_ACCMODE;
        void *p;

        g_assert_cmpuint(get_state(&c, i), ==, 0);
        g_assert_cmpint(mode, ==, i == 17 ? O_RDWR : O_RDONLY);
        assert_sealed(c.outputs[i], c.welcome.output_size);
        g_assert_cmpint(fstat(c.outputs[i], &st), ==, 0);
        g_assert_cmphex(st.st_mode & 07777 & ~0400, ==, 0);
        p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, c.outputs[i],
                 0);
        g_assert_cmpint(p != MAP_FAILED, ==, i == 17);
        if (p != MAP_FAILED) {
            munmap(p, 4096);
        }
        p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, c.outputs[i], 0);
        g_assert_true(p != MAP_FAILED);
        g_assert_cmpint(mprotect(p, 4096, PROT_READ | PROT_WRITE), ==,
                        i == 17 ? 0 : -1);
        munmap(p, 4096);
    }
    /* everyone has the same memory */
    g_assert_cmpint(pwrite(c.outputs[17], "x", 1, 9), ==, 1);
    g_assert_cmpint(pwrite(c.memory[1], "y", 1, 8191), ==, 1);
    {
        Client d;
        char byte;

        client_join(&d, &s, 3);
        g_assert_cmpint(pread(d.outputs[17], &byte, 1, 9), ==, 1);
        g_assert_cmpint(byte, ==, 'x');
        g_assert_cmpint(pread(d.memory[1], &byte, 1, 8191), ==, 1);
        g_assert_cmpint(byte, ==, 'y');
        g_assert_cmpint(pwrite(d.outputs[17], "z", 1, 9), ==, -1);
        client_leave(&d);
    }
    /* and the next occupant finds what the last one left */
    client_leave(&c);
    client_join(&c, &s, 17);
    {
        char byte;

        g_assert_cmpint(pread(c.outputs[17], &byte, 1, 9), ==, 1);
        g_assert_cmpint(byte, ==, 'x');
    }
    client_leave(&c);
    server_end(&s);
}

static bool reopen(int fd, int flags)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    int again = open(path, flags | O_CLOEXEC);

    if (again < 0) {
        return false;
    }
    close(again);
    return true;
}

/* With descriptors of the link, as another user */
static int try_as_nobody(Client *c, uint32_t other)
{
    const uid_t nobody = 65534;

    if (setgroups(0, NULL) < 0 || setresgid(nobody, nobody, nobody) < 0 ||
        setresuid(nobody, nobody, nobody) < 0 ||
        prctl(PR_SET_DUMPABLE, 1) < 0) {
        return 1;
    }
    if (reopen(c->outputs[other], O_RDWR) ||
        reopen(c->outputs[other], O_WRONLY) ||
        reopen(c->memory[0], O_RDWR | O_TRUNC)) {
        return 2;
    }
    if (fchmod(c->outputs[other], 0666) == 0) {
        return 3;
    }
    if (write(c->outputs[other], "x", 1) >= 0) {
        return 4;
    }
    return 0;
}

static void test_other_user(void)
{
    Server s;
    Client c;
    int status;
    pid_t pid;

    if (geteuid() != 0) {
        g_test_skip("only root can become another user");
        return;
    }
    server_init(&s);
    server_start(&s, "--max-peers 4 --output-size 4K");
    client_join(&c, &s, 1);
    pid = fork();
    if (pid == 0) {
        _exit(try_as_nobody(&c, 2));
    }
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFEXITED(status));
    g_assert_cmpint(WEXITSTATUS(status), ==, 0);
    client_leave(&c);
    server_end(&s);
}

static void test_large_memory(void)
{
    const uint64_t size = UINT64_C(6) << 30;
    struct stat st;
    char byte = 0;
    Server s;
    Client c;

    server_init(&s);
    server_start(&s, "--max-peers 2 --rw-size 6G");
    client_join(&c, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(c.welcome.rw_size, ==, size);
    assert_sealed(c.memory[1], size);
    g_assert_cmpint(pwrite(c.memory[1], "e", 1, size - 1), ==, 1);
    g_assert_cmpint(pread(c.memory[1], &byte, 1, size - 1), ==, 1);
    g_assert_cmpint(byte, ==, 'e');
    g_assert_cmpint(fstat(c.memory[1], &st), ==, 0);
    g_assert_cmpuint(st.st_blocks * 512, <, 1 << 20);
    client_leave(&c);
    server_end(&s);
}

/* Sizes of the sections for the options given */
static void test_sizes(void)
{
    static const struct {
        const char *options;
        uint32_t page, table;
        uint64_t rw, output;
    } cases[] = {
        { "", 4096, 4096, 0, 0 },
        { "--rw-size 1", 4096, 4096, 4096, 0 },
        { "--rw-size 4096", 4096, 4096, 4096, 0 },
        { "--rw-size 4097 --output-size 8k", 4096, 4096, 8192, 8192 },
        { "--page-size 64K", 65536, 65536, 0, 0 },
        { "--page-size 64K --rw-size 1 --output-size 64K", 65536, 65536,
          65536, 65536 },
        { "--max-peers 1025 --rw-size 3m", 4096, 8192, 3 << 20, 0 },
        { "--max-peers 65536 --vectors 1", 4096, 262144, 0, 0 },
        { "--rw-size 1T", 4096, 4096, UINT64_C(1) << 40, 0 },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Server s;
        Client c;

        if (cases[i].page % sysconf(_SC_PAGE_SIZE)) {
            continue;
        }
        server_init(&s);
        server_start(&s, cases[i].options);
        client_join(&c, &s, 0);
        g_assert_cmpuint(c.welcome.page_size, ==, cases[i].page);
        g_assert_cmpuint(c.welcome.state_table_size, ==, cases[i].table);
        g_assert_cmpuint(c.welcome.rw_size, ==, cases[i].rw);
        g_assert_cmpuint(c.welcome.output_size, ==, cases[i].output);
        client_leave(&c);
        server_end(&s);
    }
}

/* Which eventfds the handshake brings */
static void test_pushed_eventfds(void)
{
    static const struct {
        const char *options;
        bool all;
    } cases[] = {
        { "--max-peers 4 --vectors 18", true },
        { "--max-peers 4 --vectors 64", true },
        { "--max-peers 4 --vectors 65", false },
        { "--max-peers 4 --vectors 2 --push-limit 8", true },
        { "--max-peers 4 --vectors 2 --push-limit 7", false },
        { "--max-peers 4 --vectors 2048", false },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Server s;
        Client c;

        server_init(&s);
        server_start(&s, cases[i].options);
        client_join(&c, &s, 2);
        for (uint32_t id = 0; id < 4; id++) {
            g_assert_cmpint(c.eventfds[id] != NULL, ==,
                            id == 2 || cases[i].all);
            for (uint32_t v = 0; c.eventfds[id] && v < c.welcome.vectors;
                 v++) {
                g_assert_cmpint(c.eventfds[id][v], >=, 0);
            }
        }
        client_leave(&c);
        server_end(&s);
    }
}

/* Every (ID, vector) has an eventfd of its own, the same for all. */
static void test_eventfds(void)
{
    Server s;
    Client c[3];

    server_init(&s);
    server_start(&s, "--max-peers 3 --vectors 17");
    for (uint32_t i = 0; i < 3; i++) {
        client_join(&c[i], &s, i);
    }
    for (uint32_t from = 0; from < 3; from++) {
        for (uint32_t to = 0; to < 3; to++) {
            for (uint32_t vector = 0; vector < 17; vector++) {
                ivshmem2_eventfd_signal(c[from].eventfds[to][vector]);
                assert_interrupted(&c[to], vector);
                for (uint32_t i = 0; i < 3; i++) {
                    assert_quiet(&c[i]);
                }
            }
        }
    }
    for (uint32_t i = 0; i < 3; i++) {
        client_leave(&c[i]);
    }
    server_end(&s);
}

static void test_large_link(void)
{
    Server s;
    Client low, high;

    server_init(&s);
    server_start(&s, "--max-peers 65536 --vectors 1");
    client_join(&high, &s, 65535);
    client_join(&low, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(low.welcome.id, ==, 0);
    g_assert_cmpuint(low.welcome.state_table_size, ==, 256 * 1024);
    g_assert_cmpuint(low.n_messages + high.n_messages, ==, 0);
    client_say_target(&low, IVSHMEM2_MSG_RING, 65535, 0);
    g_assert_cmpuint(client_hear(&low, IVSHMEM2_MSG_EVENTFDS)->eventfds.id, ==,
                     65535);
    g_assert_cmpuint(low.conn.in.n_fds, ==, 1);
    assert_interrupted(&high, 0);
    /* nobody was ever there */
    client_say_target(&low, IVSHMEM2_MSG_RING, 40000, 0);
    g_assert_cmpuint(client_hear(&low, IVSHMEM2_MSG_EVENTFDS)->eventfds.id, ==,
                     40000);
    g_assert_cmpuint(low.conn.in.n_fds, ==, 0);
    change_state(&high, 77);
    assert_interrupted(&low, 0);
    g_assert_cmpuint(get_state(&low, 65535), ==, 77);
    client_leave(&high);
    assert_interrupted(&low, 0);
    g_assert_cmpuint(get_state(&low, 65535), ==, 0);
    client_leave(&low);
    server_end(&s);
}

static void test_protocol_type(void)
{
    static const struct {
        const char *options;
        uint16_t types[3];
    } cases[] = {
        { "", { 0, 0, 0 } },
        { "--protocol 1", { 1, 1, 1 } },
        { "--protocol 0x7fff", { 0x7fff, 0x7fff, 0x7fff } },
        { "--protocol 0x8002", { 0xc002, 0x8002, 0x8002 } },
        { "--protocol 0xC002", { 0xc002, 0x8002, 0x8002 } },
        { "--protocol 0xffff --backend-id 2", { 0xbfff, 0xbfff, 0xffff } },
    };

    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        Server s;

        server_init(&s);
        server_start(&s, cases[i].options);
        for (uint32_t id = 0; id < 3; id++) {
            Client c;

            client_join(&c, &s, id);
            g_assert_cmphex(c.welcome.protocol, ==, cases[i].types[id]);
            client_leave(&c);
        }
        server_end(&s);
    }
}

static void test_intx(void)
{
    Ivshmem2Msg hello = make_hello(0);
    Server s;
    Client c;

    server_init(&s);
    server_start(&s, "--intx --max-peers 4");
    hello.hello.features = IVSHMEM2_F_INTX;
    hello.hello.vectors = 1;
    client_join_hello(&c, &s, &hello);
    g_assert_cmpuint(c.welcome.features, ==, IVSHMEM2_F_INTX);
    g_assert_cmpuint(c.welcome.vectors, ==, 1);
    hello.hello.features = IVSHMEM2_F_MSIX;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_INTERRUPTS,
                   "this link uses INTx");
    client_leave(&c);
    server_end(&s);
}

/* Refusals */

static void test_refusals(void)
{
    Ivshmem2Msg hello;
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 2 --vectors 4");

    hello = make_hello(0);
    hello.hello.version_min = 2;
    hello.hello.version_max = 9;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_VERSION, "versions 2 to 9");
    hello.hello.version_min = 0;
    hello.hello.version_max = 0;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_VERSION, "this server 1 to 1");
    hello.hello.version_min = 3;
    hello.hello.version_max = 1;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_VERSION, "versions 3 to 1");

    hello = make_hello(0);
    hello.hello.vectors = 3;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_INTERRUPTS,
                   "needs MSI-X with 4 vectors, the peer offers 3");
    hello.hello.features = IVSHMEM2_F_INTX;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_INTERRUPTS,
                   "uses MSI-X, which the peer does not offer");

    client_refused_id(&s, 2, IVSHMEM2_REFUSAL_ID_RANGE,
                      "ID 2 is out of range, this link has 0 to 1");

    hello = make_hello(0);
    hello.hello.session[5] = 1;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_SESSION, "not of this server");

    hello = make_hello(1);
    strcpy(hello.hello.name, "vm-a");
    client_join_hello(&a, &s, &hello);
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_ID_TAKEN,
                      "ID 1 is taken by 'vm-a' (pid ");
    /* versions and features that are not known yet do not matter */
    hello = make_hello(IVSHMEM2_ID_ANY);
    hello.hello.version_max = 500;
    hello.hello.features = UINT32_MAX;
    hello.hello.vectors = UINT32_MAX;
    client_join_hello(&b, &s, &hello);
    g_assert_cmpuint(b.welcome.id, ==, 0);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_FULL,
                      "the link is full: all 2 IDs are taken");
    client_leave(&b);
    /* but roles do */
    hello = make_hello(IVSHMEM2_ID_ANY);
    hello.hello.role = 7;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_PROTOCOL,
                   "role 7 is not known, this server knows 0 (peer)");
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    client_leave(&b);
    client_leave(&a);
    server_end(&s);
}

/* The text of a refusal arrives although what the client said is unread. */
static void test_refusal_of_a_talker(void)
{
    Ivshmem2Msg hello = make_hello(7);
    Server s;
    Client c;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    for (int i = 0; i < 20; i++) {
        client_connect(&c, &s);
        client_say(&c, &hello);
        for (int n = 0; n < 100; n++) {
            g_autoptr(GError) error = NULL;

            ivshmem2_transport_send(&c.conn, &hello, NULL, &error);
        }
        client_hear_error(&c, IVSHMEM2_REFUSAL_ID_RANGE, "ID 7");
        client_close(&c);
    }
    server_end(&s);
}

static void test_lowest_id(void)
{
    Server s;
    Client c[4];

    server_init(&s);
    server_start(&s, "--max-peers 70");
    for (uint32_t i = 0; i < 4; i++) {
        client_join(&c[i], &s, IVSHMEM2_ID_ANY);
        g_assert_cmpuint(c[i].welcome.id, ==, i);
    }
    client_leave(&c[2]);
    client_leave(&c[1]);
    client_join(&c[1], &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(c[1].welcome.id, ==, 1);
    client_join(&c[2], &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(c[2].welcome.id, ==, 2);
    for (uint32_t i = 0; i < 4; i++) {
        client_leave(&c[i]);
    }
    server_end(&s);
}

/* Rings and state changes */

static void test_ring(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 4 --vectors 3 --push-limit 0");
    client_join(&a, &s, 0);
    client_join(&b, &s, 1);

    client_say_target(&a, IVSHMEM2_MSG_RING, 1, 2);
    g_assert_cmpuint(client_hear(&a, IVSHMEM2_MSG_EVENTFDS)->eventfds.first, ==,
                     2);
    g_assert_cmpuint(a.conn.in.n_fds, ==, 1);
    g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[1][2]), ==, 1);
    assert_quiet(&b);
    /* the descriptor is the right one */
    ivshmem2_eventfd_signal(a.conn.in.fds[0]);
    g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[1][2]), ==, 1);

    /* oneself */
    client_say_target(&a, IVSHMEM2_MSG_RING, 0, 1);
    client_hear(&a, IVSHMEM2_MSG_EVENTFDS);
    g_assert_cmpuint(a.conn.in.n_fds, ==, 1);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.eventfds[0][1]), ==, 1);

    /* nobody there, or no such thing */
    for (uint32_t i = 0; i < 4; i++) {
        static const uint32_t targets[][2] = {
            { 2, 0 }, { 4, 0 }, { 1, 3 }, { UINT32_MAX, UINT32_MAX },
        };
        const Ivshmem2Msg *msg;

        client_say_target(&a, IVSHMEM2_MSG_RING, targets[i][0], targets[i][1]);
        msg = client_hear(&a, IVSHMEM2_MSG_EVENTFDS);
        g_assert_cmpuint(msg->eventfds.id, ==, targets[i][0]);
        g_assert_cmpuint(msg->eventfds.first, ==, targets[i][1]);
        g_assert_cmpuint(a.conn.in.n_fds, ==, 0);
    }
    /* somebody was, but nobody is: the descriptor, but no signal */
    client_leave(&b);
    client_say_target(&a, IVSHMEM2_MSG_RING, 1, 0);
    client_hear(&a, IVSHMEM2_MSG_EVENTFDS);
    g_assert_cmpuint(a.conn.in.n_fds, ==, 1);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.conn.in.fds[0]), ==, 0);
    client_leave(&a);
    server_end(&s);
}

static void test_state_changed(void)
{
    Server s;
    Client c[4];

    server_init(&s);
    server_start(&s, "--max-peers 8 --vectors 2");
    for (uint32_t i = 0; i < 4; i++) {
        client_join(&c[i], &s, 2 * i);
    }
    for (uint32_t i = 0; i < 4; i++) {
        change_state(&c[i], 0x12345678);
        client_sync(&c[i]);
        for (uint32_t j = 0; j < 4; j++) {
            if (j != i) {
                assert_interrupted(&c[j], 0);
            }
            assert_quiet(&c[j]);
        }
    }
    for (uint32_t i = 0; i < 4; i++) {
        client_leave(&c[i]);
    }
    server_end(&s);
}

/* The other peers learn of a death by the table, and by an interrupt. */
static void test_death(void)
{
    Server s;
    Client a;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    other_start(&o, &s, 2, 5);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 2), ==, 5);
    other_end(&o, SIGKILL);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 2), ==, 0);

    /* it had no state, so nobody cares */
    other_start(&o, &s, 2, 0);
    other_end(&o, SIGKILL);
    client_sync(&a);
    g_usleep(NEVER_MS * 1000);
    assert_quiet(&a);
    client_leave(&a);
    server_end(&s);
}

/* What was announced last counts as well as what is in the table. */
static void test_last_state(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);

    client_join(&b, &s, 1);
    change_state(&b, 9);
    client_sync(&b);
    assert_interrupted(&a, 0);
    set_state(&b, 0);
    client_leave(&b);
    assert_interrupted(&a, 0);

    client_join(&b, &s, 1);
    set_state(&b, 9);
    client_leave(&b);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 0);

    client_join(&b, &s, 1);
    client_leave(&b);
    client_sync(&a);
    assert_quiet(&a);
    client_leave(&a);
    server_end(&s);
}

/* Letting go of a slot */

static void test_goodbye(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    client_join(&a, &s, 0);
    client_join(&b, &s, 1);
    ivshmem2_eventfd_signal(b.eventfds[0][0]);
    ivshmem2_eventfd_signal(b.eventfds[0][1]);
    client_leave(&a);
    /* another process gets it, and nothing that was meant for the last one */
    {
        Other o;

        other_start(&o, &s, 0, 0);
        g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[0][0]), ==, 0);
        g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[0][1]), ==, 0);
        other_end(&o, 0);
    }
    client_leave(&b);
    server_end(&s);
}

/* Until the server knows of all that happened, and holds nothing for it */
static void wait_for_fds(Server *s, unsigned n)
{
    int tries = SOON_MS / 10;

    while (server_count_fds(s) != n) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(10000);
    }
}

/* In the same breath as the close, and with answers that nobody will read */
static void test_goodbye_and_close(void)
{
    unsigned n_fds;
    Server s;
    Other o;
    Client a;

    server_init(&s);
    server_start(&s, "--max-peers 2 --push-limit 0");
    client_join(&a, &s, 1);
    n_fds = server_count_fds(&s) - 1;
    client_leave(&a);
    for (int i = 0; i < 20; i++) {
        client_join(&a, &s, 1);
        for (int n = 0; n < 5 * i; n++) {
            client_say_target(&a, IVSHMEM2_MSG_RING, 1, 0);
        }
        client_say_type(&a, IVSHMEM2_MSG_GOODBYE);
        client_close(&a);
        wait_for_fds(&s, n_fds);
        /* of another process, so it would be refused if the slot were held */
        other_start(&o, &s, 1, 0);
        other_end(&o, 0);
        wait_for_fds(&s, n_fds);
    }
    server_end(&s);
}

/* In the middle of the handshake */
static void test_goodbye_early(void)
{
    Ivshmem2Msg hello = make_hello(1);
    unsigned n_fds;
    Client a;
    Server s;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 500 --output-size 4K");
    client_join(&a, &s, 1);
    n_fds = server_count_fds(&s) - 1;
    client_leave(&a);
    for (int i = 0; i < 10; i++) {
        client_connect(&a, &s);
        client_say(&a, &hello);
        client_hear(&a, IVSHMEM2_MSG_WELCOME);
        client_say_type(&a, IVSHMEM2_MSG_GOODBYE);
        client_close(&a);
        wait_for_fds(&s, n_fds);
        other_start(&o, &s, 1, 0);
        other_end(&o, SIGKILL);
        wait_for_fds(&s, n_fds);
    }
    server_end(&s);
}

/*
 * Until no connection has the slot, nor another process; what this process had
 * to do with it is over then as well.
 */
static void wait_until_free(Server *s, uint32_t id)
{
    Ivshmem2Msg hello = make_hello(id);

    for (int tries = SOON_MS / 10; ; tries--) {
        Client c;
        uint16_t type;
        uint32_t code;

        client_connect(&c, s);
        client_say(&c, &hello);
        type = client_hear_any(&c);
        if (type == IVSHMEM2_MSG_WELCOME) {
            client_say_type(&c, IVSHMEM2_MSG_GOODBYE);
            while (client_hear_any(&c)) {
                continue;
            }
            client_close(&c);
            return;
        }
        code = c.conn.in.msg.refusal.code;
        g_assert_true(code == IVSHMEM2_REFUSAL_ID_TAKEN ||
                      code == IVSHMEM2_REFUSAL_PERMISSION ||
                      code == IVSHMEM2_REFUSAL_LIMIT);
        client_close(&c);
        g_assert_cmpint(tries, >, 0);
        g_usleep(10000);
    }
}

static void test_hold(void)
{
    Server s;
    Client a, b;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 3");
    client_join(&a, &s, 0);
    other_start(&o, &s, 1, 4);
    assert_interrupted(&a, 0);
    other_do(&o, ORDER_CLOSE);
    /* it is gone at once as far as states go */
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 0);
    /* but the slot is not for others */
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_ID_TAKEN,
                      "ID 1 is held for 'test' (pid ");
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(b.welcome.id, ==, 2);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_FULL, "all 3");
    /* nor is it rung */
    client_say_target(&a, IVSHMEM2_MSG_RING, 1, 0);
    client_hear(&a, IVSHMEM2_MSG_EVENTFDS);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.eventfds[1][0]), ==, 0);
    /* the same process may come back */
    other_do(&o, ORDER_JOIN);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 4);
    other_do(&o, ORDER_CLOSE);
    assert_interrupted(&a, 0);
    /* what it writes meanwhile does not outlive it */
    a.table[1] = GUINT32_TO_LE(8);
    ivshmem2_eventfd_signal(a.eventfds[1][1]);
    other_end(&o, SIGKILL);
    wait_until_free(&s, 1);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 0);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.eventfds[1][1]), ==, 0);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* A killed process cannot hold anything, whoever still has its descriptors. */
static void test_killed(void)
{
    Server s;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    for (int i = 0; i < 10; i++) {
        other_start(&o, &s, 1, 1);
        other_end(&o, SIGKILL);
        wait_until_free(&s, 1);
    }
    server_end(&s);
}

/* A server that cannot see the pids of its clients */
static void test_invisible_pid(void)
{
    Server s;
    Client a;

    server_init(&s);
    if (geteuid() != 0 || !have_program("unshare")) {
        g_test_skip("needs root and unshare(1)");
        server_end(&s);
        return;
    }
    server_start_with(&s, "unshare --pid --fork --kill-child ",
                      "--max-peers 2");
    client_join(&a, &s, 1);
    client_close(&a);
    wait_until_free(&s, 1);
    server_stop(&s, SIGKILL);
    g_unlink(s.socket);
    server_end(&s);
}

/* Resuming */

static Ivshmem2Msg make_resume(const Client *c)
{
    Ivshmem2Msg hello = make_hello(c->welcome.id);

    memcpy(hello.hello.session, c->welcome.session, IVSHMEM2_UUID_SIZE);
    return hello;
}

static void test_resume(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a, b, c;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    client_join(&b, &s, 2);
    resume = make_resume(&b);
    change_state(&b, 6);
    client_sync(&b);
    assert_interrupted(&a, 0);

    /* after the connection was lost; the state was written meanwhile */
    ivshmem2_transport_clear(&b.conn);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 2), ==, 0);
    set_state(&b, 7);
    client_join_hello(&c, &s, &resume);
    g_assert_cmpmem(&c.welcome, sizeof(c.welcome), &b.welcome,
                    sizeof(b.welcome));
    g_assert_cmpuint(get_state(&a, 2), ==, 7);
    assert_interrupted(&a, 0);
    /* the eventfds are the same, and nothing in them is lost */
    ivshmem2_eventfd_signal(b.eventfds[2][1]);
    assert_interrupted(&c, 1);
    client_close(&b);

    /* while the old connection seems to stand */
    client_join_hello(&b, &s, &resume);
    client_hear_error(&c, IVSHMEM2_REFUSAL_SESSION, "resumed by another");
    client_close(&c);
    client_sync(&b);

    /* after a goodbye: the slot is free, and any peer may have it */
    client_leave(&b);
    client_join_hello(&b, &s, &resume);
    client_leave(&b);
    client_leave(&a);
    server_end(&s);
}

static void test_resume_refused(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    resume = make_resume(&a);
    /* of another process, connected or not */
    other_start(&o, &s, 2, 0);
    resume.hello.id = 2;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "ID 2 is taken by");
    other_do(&o, ORDER_CLOSE);
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "ID 2 is held for");
    other_do(&o, ORDER_JOIN);
    other_end(&o, 0);
    resume.hello.id = IVSHMEM2_ID_ANY;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_ID_RANGE, "out of range");
    resume = make_resume(&a);
    resume.hello.session[0] ^= 1;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "started anew");
    client_sync(&a);
    client_leave(&a);

    /* the same link of a server that was started anew */
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    server_start(&s, "--max-peers 4");
    resume.hello.session[0] ^= 1;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "started anew");
    server_end(&s);
}

static void test_shutdown(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    client_join(&b, &s, 1);
    change_state(&a, 3);
    client_sync(&a);
    assert_interrupted(&b, 0);
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    client_hear_error(&a, IVSHMEM2_REFUSAL_SHUTDOWN, "the server ends");
    client_hear_error(&b, IVSHMEM2_REFUSAL_SHUTDOWN, "the server ends");
    /* the peers do without it */
    g_assert_cmpuint(get_state(&b, 0), ==, 3);
    assert_quiet(&b);
    ivshmem2_eventfd_signal(b.eventfds[0][1]);
    assert_interrupted(&a, 1);
    client_close(&a);
    client_close(&b);
    server_end(&s);
}

/* Hostile clients */

/* An honest peer that was there before, and still is */
typedef struct Witness {
    Server s;
    Client c;
    unsigned n_fds;             /* of the server */
} Witness;

static void witness_start(Witness *w, const char *options)
{
    server_init(&w->s);
    server_start(&w->s, options);
    client_join(&w->c, &w->s, 0);
    w->n_fds = server_count_fds(&w->s);
}

/* All is as it was before the others came. */
static void witness_end(Witness *w)
{
    Client d;

    client_sync(&w->c);
    assert_quiet(&w->c);
    wait_for_fds(&w->s, w->n_fds);
    client_join(&d, &w->s, 1);
    client_say_target(&d, IVSHMEM2_MSG_RING, 0, 0);
    client_hear(&d, IVSHMEM2_MSG_EVENTFDS);
    assert_interrupted(&w->c, 0);
    client_leave(&d);
    client_leave(&w->c);
    server_end(&w->s);
}

typedef struct Nonsense {
    const char *name;
    const char *bytes;
    size_t len;
    const char *text;           /* NULL: the connection is just closed */
} Nonsense;

#define NONSENSE(name, bytes, text) { name, bytes, sizeof(bytes) - 1, text }

static const Nonsense nonsense[] = {
    NONSENSE("nothing", "", NULL),
    NONSENSE("a-byte", "\1", "in the middle"),
    NONSENSE("half-a-hello", "\1\0\0\0\x80\0\0\0IVM2", "in the middle"),
    NONSENSE("http", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "unknown type"),
    NONSENSE("zeros", "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", "unknown type 0x0"),
    NONSENSE("size-0", "\1\0\0\0\0\0\0\0", "HELLO with size 0"),
    NONSENSE("size-max", "\1\0\0\0\xff\xff\xff\xff", "size 4294967295"),
    NONSENSE("announced-fds", "\1\0\7\0\x80\0\0\0", "7 descriptors"),
    NONSENSE("server-message", "\4\1\0\0\x8\0\0\0", "not its to send"),
    NONSENSE("state-first", "\2\0\0\0\x8\0\0\0", "before HELLO"),
    NONSENSE("ring-first", "\3\0\0\0\x10\0\0\0\0\0\0\0\0\0\0\0",
             "RING came before HELLO"),
    NONSENSE("goodbye-first", "\5\0\0\0\x8\0\0\0", "before HELLO"),
};

static void test_nonsense(gconstpointer opaque)
{
    const Nonsense *n = opaque;
    Witness w;
    Client c;

    witness_start(&w, "--max-peers 4");
    client_connect(&c, &w.s);
    g_assert_cmpint(send(c.conn.fd, n->bytes, n->len, 0), ==, n->len);
    shutdown(c.conn.fd, SHUT_WR);
    if (n->text) {
        client_hear_error(&c, IVSHMEM2_REFUSAL_PROTOCOL, n->text);
    } else {
        g_assert_cmpuint(client_hear_any(&c), ==, 0);
    }
    client_close(&c);
    witness_end(&w);
}

/* From a peer that had joined */
static void test_late_nonsense(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Witness w;
    Client c;

    witness_start(&w, "--max-peers 4");
    client_join(&c, &w.s, 1);
    client_say(&c, &hello);
    client_hear_error(&c, IVSHMEM2_REFUSAL_PROTOCOL, "HELLO came twice");
    client_close(&c);

    client_join(&c, &w.s, 1);
    change_state(&c, 1);
    client_sync(&c);
    assert_interrupted(&w.c, 0);
    g_assert_cmpint(send(c.conn.fd, "\xff\xff\0\0\0\0\0\0", 8, 0), ==, 8);
    client_hear_error(&c, IVSHMEM2_REFUSAL_PROTOCOL, "unknown type 0xffff");
    client_close(&c);
    /* its state went with it */
    assert_interrupted(&w.c, 0);
    g_assert_cmpuint(get_state(&w.c, 1), ==, 0);
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* Descriptors that nobody asked for */
static void test_surplus_fds(void)
{
    Witness w;

    witness_start(&w, "--max-peers 4");
    for (int n = 1; n <= 64; n *= 2) {
        union {
            struct cmsghdr align;
            char bytes[CMSG_SPACE(sizeof(int) * 64)];
        } space = { .bytes = { 0 } };
        Ivshmem2Msg hello = make_hello(1);
        struct iovec iov = { .iov_base = &hello };
        struct msghdr mh = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = &space,
            .msg_controllen = CMSG_SPACE(n * sizeof(int)),
        };
        Client c;

        iov.iov_len = ivshmem2_msg_encode(&hello);
        CMSG_FIRSTHDR(&mh)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&mh)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&mh)->cmsg_len = CMSG_LEN(n * sizeof(int));
        for (int i = 0; i < n; i++) {
            ((int *)CMSG_DATA(CMSG_FIRSTHDR(&mh)))[i] = w.c.memory[0];
        }
        client_connect(&c, &w.s);
        g_assert_cmpint(sendmsg(c.conn.fd, &mh, 0), ==, iov.iov_len);
        client_hear_error(&c, IVSHMEM2_REFUSAL_PROTOCOL,
                          n > 16 ? "descriptors were lost" : "descriptors");
        client_close(&c);
    }
    witness_end(&w);
}

static void test_byte_at_a_time(void)
{
    Ivshmem2Msg hello = make_hello(1);
    size_t len = ivshmem2_msg_encode(&hello);
    Witness w;
    Client c;

    witness_start(&w, "--max-peers 4");
    client_connect(&c, &w.s);
    for (size_t i = 0; i < len; i++) {
        g_assert_cmpint(send(c.conn.fd, (char *)&hello + i, 1, 0), ==, 1);
        if (i % 16 == 0) {
            client_sync(&w.c);
        }
    }
    client_complete(&c);
    client_leave(&c);
    witness_end(&w);
}

/* Those that say nothing, or stop in the middle */
static void test_timeout(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Witness w;
    Client silent, half, deaf;

    witness_start(&w, "--max-peers 400 --output-size 4K --push-limit 800 "
                  "--handshake-timeout 1");
    client_connect(&silent, &w.s);
    client_connect(&half, &w.s);
    g_assert_cmpint(send(half.conn.fd, "\1\0", 2, 0), ==, 2);
    client_connect(&deaf, &w.s);
    client_say(&deaf, &hello);
    wait_for(deaf.conn.fd, POLLIN);
    client_hear_error(&silent, IVSHMEM2_REFUSAL_TIMEOUT, "after 1 seconds");
    client_hear_error(&half, IVSHMEM2_REFUSAL_TIMEOUT, "after 1 seconds");
    client_close(&silent);
    client_close(&half);
    /* what did not fit cannot be said */
    wait_for_fds(&w.s, w.n_fds + 1);
    client_hear(&deaf, IVSHMEM2_MSG_WELCOME);
    client_close(&deaf);
    client_sync(&w.c);
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* A peer that never reads what it asks for */
static void test_stalled(void)
{
    Ivshmem2Msg ring = {
        .hdr.type = IVSHMEM2_MSG_RING, .target = { .id = 1, .vector = 0 },
    };
    Witness w;
    Client c[20];

    witness_start(&w, "--max-peers 40");
    for (size_t i = 0; i < G_N_ELEMENTS(c); i++) {
        g_autoptr(GError) error = NULL;
        unsigned n = 0;

        client_join(&c[i], &w.s, IVSHMEM2_ID_ANY);
        /* until neither it nor the kernel takes any more */
        for (int quiet = 0; quiet < 3; ) {
            int ret = ivshmem2_transport_is_sending(&c[i].conn)
                      ? ivshmem2_transport_flush(&c[i].conn, &error)
                      : ivshmem2_transport_send(&c[i].conn, &ring, NULL,
                                                &error);

            g_assert_no_error(error);
            quiet = ret ? 0 : quiet + 1;
            n += ret;
            if (!ret) {
                client_sync(&w.c);
            }
        }
        g_assert_cmpuint(n, >, 0);
    }
    client_sync(&w.c);
    for (size_t i = 0; i < G_N_ELEMENTS(c); i++) {
        client_close(&c[i]);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(c); i++) {
        wait_until_free(&w.s, i + 1);
    }
    witness_end(&w);
}

/* Many that come and go at every stage */
static void test_deaths(void)
{
    Ivshmem2Msg hello = make_hello(1);
    size_t len = ivshmem2_msg_encode(&hello);
    Witness w;

    witness_start(&w, "--max-peers 100 --output-size 4K");
    for (size_t i = 0; i < 200; i++) {
        Client c;

        client_connect(&c, &w.s);
        g_assert_cmpint(send(c.conn.fd, &hello, MIN(i, len), 0), ==,
                        MIN(i, len));
        for (size_t n = len; n < i; n++) {
            if (n % 10 == 0) {
                client_hear_any(&c);
            }
        }
        client_close(&c);
        wait_for_fds(&w.s, w.n_fds + (i >= len));
    }
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/*
 * More than the server may have open files: 100, of which it keeps 25 to tell
 * those who come too late
 */
static void file_limit(const char *options)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);
    GPtrArray *peers = g_ptr_array_new_with_free_func(g_free);
    uint16_t type;
    Client first;
    Server s;

    server_init(&s);
    server_start_limited(&s, 100, options);
    client_join(&first, &s, IVSHMEM2_ID_ANY);
    do {
        Client *c = g_new(Client, 1);

        client_connect(c, &s);
        g_ptr_array_add(peers, c);
        client_say(c, &hello);
        do {
            type = client_hear_any(c);
        } while (type != IVSHMEM2_MSG_READY && type != IVSHMEM2_MSG_REFUSED);
        if (type == IVSHMEM2_MSG_REFUSED) {
            g_test_message("%s", c->conn.in.msg.refusal.text);
            g_assert_cmpuint(c->conn.in.msg.refusal.code, ==,
                             IVSHMEM2_REFUSAL_LIMIT);
            assert_says_text(c->conn.in.msg.refusal.text, "open");
            g_assert_cmpuint(server_count_fds(&s), <, 85);
        }
        ivshmem2_decoder_reset(&c->conn.in);
    } while (type != IVSHMEM2_MSG_REFUSED);
    /* those who are there go on, also when still more come */
    for (int i = 0; i < 200; i++) {
        Client *c = g_new(Client, 1);

        client_connect(c, &s);
        g_ptr_array_add(peers, c);
    }
    client_sync(&first);
    /* and when they are gone there is room again */
    for (guint i = 0; i < peers->len; i++) {
        client_close(g_ptr_array_index(peers, i));
    }
    g_ptr_array_unref(peers);
    client_sync(&first);
    wait_until_free(&s, 1);
    client_leave(&first);
    server_end(&s);
}

static void test_file_limit(void)
{
    /* what grows: connections; both; eventfds above all */
    file_limit("--max-peers 60 --vectors 1");
    file_limit("--max-peers 2000 --vectors 2");
    file_limit("--max-peers 2000 --vectors 20");
}

/* Half of every message, and then the end */
static void test_cut_messages(void)
{
    static const uint16_t types[] = {
        IVSHMEM2_MSG_HELLO, IVSHMEM2_MSG_STATE_CHANGED, IVSHMEM2_MSG_RING,
        IVSHMEM2_MSG_GOODBYE,
    };
    Witness w;

    witness_start(&w, "--max-peers 4");
    for (size_t i = 0; i < G_N_ELEMENTS(types); i++) {
        for (size_t n = 1; n < ivshmem2_type_size(types[i]); n += 3) {
            Ivshmem2Msg msg = make_hello(1);
            Client c;

            if (types[i] == IVSHMEM2_MSG_HELLO) {
                client_connect(&c, &w.s);
            } else {
                client_join(&c, &w.s, 1);
                msg = (Ivshmem2Msg) { .hdr.type = types[i] };
            }
            ivshmem2_msg_encode(&msg);
            g_assert_cmpint(send(c.conn.fd, &msg, n, 0), ==, n);
            client_close(&c);
            wait_for_fds(&w.s, w.n_fds + (i > 0));
        }
    }
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* Who closes one direction loses the connection, and that is all. */
static void test_half_close(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Witness w;

    witness_start(&w, "--max-peers 4");
    for (int how = SHUT_RD; how <= SHUT_RDWR; how++) {
        Client c;

        client_connect(&c, &w.s);
        client_say(&c, &hello);
        shutdown(c.conn.fd, how);
        wait_for_fds(&w.s, w.n_fds + 1);
        client_close(&c);

        client_join(&c, &w.s, 1);
        client_say_target(&c, IVSHMEM2_MSG_RING, 1, 0);
        shutdown(c.conn.fd, how);
        if (how == SHUT_RD) {
            client_say_target(&c, IVSHMEM2_MSG_RING, 1, 0);
        }
        wait_for_fds(&w.s, w.n_fds + 1);
        client_close(&c);
    }
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* Limits */

/* Say HELLO and nothing more, and read nothing. */
static void stall_as(Client *c, Server *s, uid_t uid)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);

    client_connect_as(c, s, uid, 0);
    client_say(c, &hello);
}

/* Bytes that were sent to it, and that it has not read */
static int count_unread(Client *c)
{
    int bytes;

    g_assert_cmpint(ioctl(c->conn.fd, FIONREAD, &bytes), ==, 0);
    return bytes;
}

static void wait_for_unread(Client *c, int want)
{
    int tries = SOON_MS / 10;

    while (count_unread(c) < want) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(10000);
    }
}

static void hear_timeout(Client *c)
{
    uint16_t type;

    do {
        type = client_hear_any(c);
    } while (type && type != IVSHMEM2_MSG_REFUSED);
    g_assert_cmphex(type, ==, IVSHMEM2_MSG_REFUSED);
    g_assert_cmpuint(c->conn.in.msg.refusal.code, ==, IVSHMEM2_REFUSAL_TIMEOUT);
    client_close(c);
}

/*
 * What was sent and not received counts for the server's user, which may have
 * 300 descriptors of that kind; each of these would take 75 if it could.
 */
static void test_stalled_joiners(void)
{
    const int handshake = 72 + 3 * 16;
    Server s;
    Client a, b, c[40];

    if (geteuid() != 0) {
        g_test_skip("only root can become another user");
        return;
    }
    server_init(&s);
    server_start_limited(&s, 300, "--max-peers 50 --vectors 1 "
                         "--output-size 4K --handshake-timeout 3600");
    client_join(&a, &s, IVSHMEM2_ID_ANY);
    for (size_t i = 0; i < G_N_ELEMENTS(c); i++) {
        stall_as(&c[i], &s, USER_UID);
    }
    /* WELCOME, and outputs 0, 1, and 2 to 17: as many as two messages hold */
    wait_for_unread(&c[0], handshake);
    /* neither those who are there nor those who come notice */
    for (int i = 0; i < 10; i++) {
        client_join(&b, &s, IVSHMEM2_ID_ANY);
        client_say_target(&b, IVSHMEM2_MSG_RING, a.welcome.id, 0);
        client_hear(&b, IVSHMEM2_MSG_EVENTFDS);
        g_assert_cmpuint(b.conn.in.n_fds, ==, 1);
        assert_interrupted(&a, 0);
        client_leave(&b);
    }
    g_assert_cmpint(count_unread(&c[0]), ==, handshake);
    /* the others get their turn as soon as there is room for them */
    for (size_t i = 0; i < G_N_ELEMENTS(c); i++) {
        client_complete(&c[i]);
        client_leave(&c[i]);
    }
    client_leave(&a);
    server_end(&s);
}

/* Two of a user can join at once; who waits for them is not late itself. */
static void test_turns(void)
{
    Server s;
    Client a, b, c;

    server_init(&s);
    server_start_limited(&s, 300, "--max-peers 50 --output-size 4K "
                         "--handshake-timeout 1");
    stall_as(&a, &s, geteuid());
    stall_as(&b, &s, geteuid());
    client_join(&c, &s, IVSHMEM2_ID_ANY);
    hear_timeout(&a);
    hear_timeout(&b);
    /* who gives up while it waits has said nothing */
    stall_as(&a, &s, geteuid());
    stall_as(&b, &s, geteuid());
    client_leave(&c);
    stall_as(&c, &s, geteuid());
    g_usleep(NEVER_MS * 1000);
    client_close(&c);
    client_complete(&a);
    client_complete(&b);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* The handshake is complete when the client has read it. */
static void test_unread_handshake(void)
{
    const int handshake = 72 + 16 + 16 + 8;
    const int refusal = 264;
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 2 --vectors 1 --handshake-timeout 1");
    /* all of it fits in the socket's buffer */
    stall_as(&a, &s, geteuid());
    /* this one even asks for more */
    stall_as(&b, &s, geteuid());
    client_say_target(&b, IVSHMEM2_MSG_RING, 1, 0);
    wait_for_unread(&a, handshake + refusal);
    wait_for_unread(&b, handshake + refusal);
    hear_timeout(&a);
    hear_timeout(&b);
    wait_until_free(&s, 0);
    wait_until_free(&s, 1);

    /* who reads it after all is answered */
    stall_as(&a, &s, geteuid());
    client_say_target(&a, IVSHMEM2_MSG_RING, 1, 0);
    g_usleep(NEVER_MS * 1000);
    client_complete(&a);
    client_hear(&a, IVSHMEM2_MSG_EVENTFDS);
    /* and who has nothing to say may stay */
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    g_usleep(1200 * 1000);
    client_sync(&a);
    client_sync(&b);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* As many descriptors in flight as the server is allowed, by its user */
static void fill_flight(Server *s, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * 100)];
    } space = { .bytes = { 0 } };
    struct iovec iov = { .iov_base = &space, .iov_len = 1 };
    struct msghdr mh = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &space,
        .msg_controllen = sizeof(space),
    };
    int fds[2];

    become(s, SERVER_UID);
    g_assert_cmpint(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), ==, 0);
    CMSG_FIRSTHDR(&mh)->cmsg_level = SOL_SOCKET;
    CMSG_FIRSTHDR(&mh)->cmsg_type = SCM_RIGHTS;
    CMSG_FIRSTHDR(&mh)->cmsg_len = CMSG_LEN(100 * sizeof(int));
    for (int i = 0; i < 100; i++) {
        ((int *)CMSG_DATA(CMSG_FIRSTHDR(&mh)))[i] = fds[0];
    }
    for (int i = 0; i < 3; i++) {
        g_assert_cmpint(sendmsg(fds[0], &mh, 0), ==, 1);
    }
    g_assert_cmpint(write(fd, "", 1), ==, 1);
    pause();
}

static pid_t start_to_fill(Server *s)
{
    pid_t parent = getpid();
    pid_t pid;
    int fds[2];
    char byte;

    g_assert_cmpint(pipe(fds), ==, 0);
    pid = fork();
    if (pid == 0) {
        die_with_parent(parent);
        fill_flight(s, fds[1]);
    }
    close(fds[1]);
    g_assert_cmpint(read(fds[0], &byte, 1), ==, 1);
    close(fds[0]);
    return pid;
}

static void end_filling(pid_t pid)
{
    kill(pid, SIGKILL);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
}

static void assert_nothing_comes(Client *c)
{
    struct pollfd pfd = { .fd = c->conn.fd, .events = POLLIN };

    g_assert_cmpint(poll(&pfd, 1, NEVER_MS), ==, 0);
}

/* Another program of the server's user keeps it from sending descriptors. */
static void test_flight_limit(void)
{
    Server s;
    Client a, b, c;
    pid_t pid;

    server_init(&s);
    server_start_limited(&s, 100, "--max-peers 4 --push-limit 0 "
                         "--handshake-timeout 1");
    client_join(&a, &s, 0);
    pid = start_to_fill(&s);
    /* those who are there go on, through the server if need be */
    for (int i = 0; i < 3; i++) {
        client_say_target(&a, IVSHMEM2_MSG_RING, 0, 1);
        g_assert_cmpuint(client_hear(&a, IVSHMEM2_MSG_EVENTFDS)->eventfds.id,
                         ==, 0);
        g_assert_cmpuint(a.conn.in.n_fds, ==, 0);
        assert_interrupted(&a, 1);
    }
    /* others wait, and are told if it takes too long */
    stall_as(&b, &s, geteuid());
    hear_timeout(&b);
    stall_as(&b, &s, geteuid());
    assert_nothing_comes(&b);
    stall_as(&c, &s, geteuid());
    client_close(&c);
    end_filling(pid);
    client_complete(&b);
    client_say_target(&b, IVSHMEM2_MSG_RING, 0, 1);
    client_hear(&b, IVSHMEM2_MSG_EVENTFDS);
    g_assert_cmpuint(b.conn.in.n_fds, ==, 1);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* Connections that say nothing leave room for other users. */
static void test_silent_flood(void)
{
    unsigned told = 0, closed = 0;
    Server s;
    Client a, silent[300];

    if (geteuid() != 0) {
        g_test_skip("only root can become another user");
        return;
    }
    server_init(&s);
    server_start_limited(&s, 100, "--max-peers 16 --handshake-timeout 3600");
    for (size_t i = 0; i < G_N_ELEMENTS(silent); i++) {
        client_connect_as(&silent[i], &s, USER_UID, 0);
    }
    for (int i = 0; i < 8; i++) {
        client_join(&a, &s, IVSHMEM2_ID_ANY);
        client_leave(&a);
        stall_as(&a, &s, OTHER_UID);
        client_complete(&a);
        client_leave(&a);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(silent); i++) {
        struct pollfd pfd = { .fd = silent[i].conn.fd, .events = POLLIN };

        if (poll(&pfd, 1, 0) == 1) {
            if (client_hear_any(&silent[i])) {
                g_assert_cmpuint(silent[i].conn.in.msg.refusal.code, ==,
                                 IVSHMEM2_REFUSAL_LIMIT);
                assert_says_text(silent[i].conn.in.msg.refusal.text,
                                 "that have not joined");
                told++;
            } else {
                closed++;
            }
        }
        client_close(&silent[i]);
    }
    g_assert_cmpuint(told, >, 0);
    g_assert_cmpuint(closed, >, 200);
    client_join(&a, &s, IVSHMEM2_ID_ANY);
    client_leave(&a);
    server_end(&s);
}

static void refused_as(Server *s, uid_t uid, uint32_t id, uint32_t code,
                       const char *text)
{
    Ivshmem2Msg hello = make_hello(id);
    Client c;

    client_connect_as(&c, s, uid, 0);
    client_say(&c, &hello);
    client_hear_error(&c, code, text);
    client_close(&c);
}

static void join_as(Client *c, Server *s, uid_t uid, gid_t gid, uint32_t id)
{
    Ivshmem2Msg hello = make_hello(id);

    client_connect_as(c, s, uid, gid);
    client_say(c, &hello);
    client_complete(c);
}

/* One user cannot take all IDs, and not by leaving without a goodbye either */
static void test_ids_per_user(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a, b, c;

    server_init(&s);
    server_start(&s, "--max-peers 4 --ids-per-user 2 --socket-mode 666");
    chmod(s.dir, 0711);
    client_join(&a, &s, 0);
    client_join(&b, &s, 3);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_LIMIT,
                      "has 2 IDs already");
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_LIMIT, "has 2 IDs already");
    /* it is held, and only for who had it */
    resume = make_resume(&a);
    client_close(&a);
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_LIMIT, "has 2 IDs already");
    client_join_hello(&a, &s, &resume);
    /* while the connection seems to stand */
    client_join_hello(&c, &s, &resume);
    client_close(&a);
    client_leave(&b);
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(b.welcome.id, ==, 1);
    if (geteuid() == 0) {
        join_as(&a, &s, USER_UID, 0, IVSHMEM2_ID_ANY);
        g_assert_cmpuint(a.welcome.id, ==, 2);
        client_leave(&a);
    }
    client_leave(&b);
    client_leave(&c);
    server_end(&s);
}

/* A server with access rules: @fmt has places for USER_UID and OTHER_UID. */
static void start_with_rules(Server *s, const char *options, const char *fmt,
                             unsigned user, unsigned other)
{
    g_autofree char *path = NULL;
    g_autofree char *all = NULL;
    g_auto(GStrv) parts = g_strsplit(fmt, "@", -1);
    g_autofree char *text = g_strdup_printf("%s%u%s%u%s", parts[0], user,
                                            parts[1], other, parts[2]);

    server_init(s);
    path = g_build_filename(s->dir, "rules", NULL);
    g_assert_true(g_file_set_contents(path, text, -1, NULL));
    g_assert_cmpint(chmod(s->dir, 0711), ==, 0);
    all = g_strdup_printf("--socket-mode 666 --access %s %s", path, options);
    server_start(s, all);
    g_unlink(path);
}

static void test_access(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a, b;

    start_with_rules(&s, "--max-peers 8",
                     "[some]\nusers = @, 4242\nids = 5, 2-3\n"
                     "[others]\ngroups = @\nids = 1\n", geteuid(), 4243);
    client_refused_id(&s, 0, IVSHMEM2_REFUSAL_PERMISSION, "may not take ID 0, "
                      "but 5, 2-3");
    client_refused_id(&s, 8, IVSHMEM2_REFUSAL_ID_RANGE, "ID 8 is out of range");
    client_join(&a, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(a.welcome.id, ==, 2);
    resume = make_resume(&a);
    resume.hello.id = 1;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_PERMISSION,
                   "may not take ID 1");
    client_join(&b, &s, 5);
    client_leave(&b);
    client_leave(&a);
    /* the lowest one first, and when all are taken that is the end */
    for (uint32_t id = 2; id < 6; id += id) {
        client_join(&a, &s, 3);
        client_join(&b, &s, IVSHMEM2_ID_ANY);
        g_assert_cmpuint(b.welcome.id, ==, 2);
        client_leave(&b);
        client_leave(&a);
    }
    {
        Client all[3];

        for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
            client_join(&all[i], &s, IVSHMEM2_ID_ANY);
        }
        g_assert_cmpuint(all[2].welcome.id, ==, 5);
        client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_FULL,
                          "may take "
                          "(5, 2-3) are taken");
        for (size_t i = 0; i < G_N_ELEMENTS(all); i++) {
            client_leave(&all[i]);
        }
    }
    server_end(&s);
}

/* New rules on SIGHUP, if there is nothing wrong with them */
static void test_access_reload(void)
{
    static const char *const rules[] = {
        "[a]\nusers=*\nids=0\n", "[a]\nusers=*\nids=1\n",
        "[a]\nusers=*\nids=99\n", "[a]\nusers=*\nids=3\n",
    };
    g_autofree char *path = NULL;
    g_autofree char *options = NULL;
    Client first;
    Server s;

    server_init(&s);
    path = g_build_filename(s.dir, "rules", NULL);
    options = g_strdup_printf("--max-peers 4 --access %s", path);
    g_assert_true(g_file_set_contents(path, rules[0], -1, NULL));
    server_start(&s, options);
    client_join(&first, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(first.welcome.id, ==, 0);
    for (uint32_t i = 1; i < G_N_ELEMENTS(rules); i++) {
        g_assert_true(g_file_set_contents(path, rules[i], -1, NULL));
        kill(s.pid, SIGHUP);
        if (i == 2) {
            g_usleep(NEVER_MS * 1000);
            client_refused_id(&s, 2, IVSHMEM2_REFUSAL_PERMISSION, "but 1");
        } else {
            wait_until_free(&s, i);
        }
    }
    /* who has joined stays */
    client_sync(&first);
    client_leave(&first);
    g_unlink(path);
    server_end(&s);
}

static void test_no_access(void)
{
    Server s;

    start_with_rules(&s, "--max-peers 4",
                     "[rule]\nusers = @\n[rule 2]\nusers = @\n",
                     getuid() + 10000, getuid() + 20000);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_PERMISSION,
                      "may not connect");
    server_end(&s);
}

static void test_access_of_others(void)
{
    const gid_t group = 54321;
    Server s;
    Client a, b, c;

    if (geteuid() != 0) {
        g_test_skip("only root can become another user");
        return;
    }
    start_with_rules(&s, "--max-peers 8",
                     "[one]\nusers=@\nids=0-1\n"
                     "[group]\ngroups=54321\nids=4-5\n"
                     "[other]\nusers=@\nids=1;6\n", USER_UID, OTHER_UID);
    join_as(&a, &s, USER_UID, 0, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(a.welcome.id, ==, 0);
    /* nobody gives ID 0 to others, who even may have more than one rule */
    join_as(&b, &s, OTHER_UID, group, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(b.welcome.id, ==, 1);
    join_as(&c, &s, OTHER_UID, group, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(c.welcome.id, ==, 4);
    client_leave(&c);
    join_as(&c, &s, SERVER_UID, group, 5);
    client_leave(&c);
    refused_as(&s, OTHER_UID, 4, IVSHMEM2_REFUSAL_PERMISSION,
               "may not take ID 4");
    refused_as(&s, USER_UID, 6, IVSHMEM2_REFUSAL_PERMISSION, "but 0-1");
    refused_as(&s, SERVER_UID, 0, IVSHMEM2_REFUSAL_PERMISSION,
               "may not connect");
    /* rules are for root as well */
    refused_as(&s, 0, 0, IVSHMEM2_REFUSAL_PERMISSION, "may not connect");
    client_leave(&b);
    client_leave(&a);
    server_end(&s);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*func)(void);
    } tests[] = {
        { "memory", test_memory },
        { "other-user", test_other_user },
        { "large-memory", test_large_memory },
        { "sizes", test_sizes },
        { "pushed-eventfds", test_pushed_eventfds },
        { "eventfds", test_eventfds },
        { "large-link", test_large_link },
        { "protocol-type", test_protocol_type },
        { "intx", test_intx },
        { "refusals", test_refusals },
        { "refusal-of-a-talker", test_refusal_of_a_talker },
        { "lowest-id", test_lowest_id },
        { "ring", test_ring },
        { "state-changed", test_state_changed },
        { "death", test_death },
        { "last-state", test_last_state },
        { "goodbye", test_goodbye },
        { "goodbye-and-close", test_goodbye_and_close },
        { "goodbye-early", test_goodbye_early },
        { "hold", test_hold },
        { "killed", test_killed },
        { "invisible-pid", test_invisible_pid },
        { "resume", test_resume },
        { "resume-refused", test_resume_refused },
        { "shutdown", test_shutdown },
        { "late-nonsense", test_late_nonsense },
        { "surplus-fds", test_surplus_fds },
        { "byte-at-a-time", test_byte_at_a_time },
        { "timeout", test_timeout },
        { "stalled", test_stalled },
        { "deaths", test_deaths },
        { "file-limit", test_file_limit },
        { "cut-messages", test_cut_messages },
        { "half-close", test_half_close },
        { "stalled-joiners", test_stalled_joiners },
        { "turns", test_turns },
        { "unread-handshake", test_unread_handshake },
        { "flight-limit", test_flight_limit },
        { "silent-flood", test_silent_flood },
        { "ids-per-user", test_ids_per_user },
        { "access", test_access },
        { "access-reload", test_access_reload },
        { "no-access", test_no_access },
        { "access-of-others", test_access_of_others },
    };

    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < G_N_ELEMENTS(tests); i++) {
        g_autofree char *name = g_strdup_printf("/ivshmem2/server/%s",
                                                tests[i].name);

        g_test_add_func(name, tests[i].func);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(nonsense); i++) {
        g_autofree char *name =
            g_strdup_printf("/ivshmem2/server/nonsense/%s", nonsense[i].name);

        g_test_add_data_func(name, &nonsense[i], test_nonsense);
    }
    return g_test_run();
}
