/*
 * ivshmem2-server: what clients are given: memory, eventfds, the kind of link
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"
#include <sys/stat.h>

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
    /* all peers have the same memory */
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
    /* and the next owner of the ID finds what the last one left */
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

/* Returns 0 if another user gains nothing from the link's descriptors. */
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

/* The handshake brings all eventfds if there are few of them. */
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
    g_assert_cmpuint(client_ring(&low, 65535, 0)->eventfds.id, ==, 65535);
    g_assert_cmpuint(low.transport.in.n_fds, ==, 1);
    assert_interrupted(&high, 0);
    /* no peer has had this ID */
    g_assert_cmpuint(client_ring(&low, 40000, 0)->eventfds.id, ==, 40000);
    g_assert_cmpuint(low.transport.in.n_fds, ==, 0);
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

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/ivshmem2/server/memory", test_memory);
    g_test_add_func("/ivshmem2/server/other-user", test_other_user);
    g_test_add_func("/ivshmem2/server/large-memory", test_large_memory);
    g_test_add_func("/ivshmem2/server/sizes", test_sizes);
    g_test_add_func("/ivshmem2/server/pushed-eventfds", test_pushed_eventfds);
    g_test_add_func("/ivshmem2/server/eventfds", test_eventfds);
    g_test_add_func("/ivshmem2/server/large-link", test_large_link);
    g_test_add_func("/ivshmem2/server/protocol-type", test_protocol_type);
    g_test_add_func("/ivshmem2/server/intx", test_intx);
    return g_test_run();
}
