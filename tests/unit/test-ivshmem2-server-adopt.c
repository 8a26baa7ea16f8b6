/*
 * ivshmem2-server's modules: the record, and taking over a link
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-manager-util.h"

/* Taking over */

static void test_adopt(void)
{
    uint8_t session[IVSHMEM2_UUID_SIZE];
    Manager m;
    Ivshmem2Link *link;

    manager_init(&m, 100);
    link = make_link(&m);
    g_assert_false(link->adopted);
    g_assert_cmpuint(m.kept->len, ==, N_MEMORY);
    g_assert_true(ivshmem2_link_make_eventfds(link, 2, NULL));
    g_assert_cmpuint(manager_read(&m), ==, 1);
    g_assert_cmpuint(m.kept->len, ==, N_MEMORY + N_VECTORS);
    link->table[2] = GUINT32_TO_LE(17);
    ivshmem2_record_slot(link->record, 2)->pid = 77;
    ivshmem2_link_signal(link, 2, 1);
    memcpy(session, link->welcome.session, sizeof(session));
    ivshmem2_link_free(link);
    close_store(&m);

    /* again and again, and with more eventfds each time */
    for (uint32_t i = 0; i < 3; i++) {
        uint32_t id = i < 2 ? i : 3;

        open_store(&m, 100);
        link = must_adopt(&m);
        g_assert_cmpmem(session, sizeof(session), link->welcome.session,
                        sizeof(session));
        assert_same_link(&m, link);
        assert_same_eventfds(&m, link, 2, AT_EVENTFDS);
        g_assert_null(link->eventfds[id]);
        g_assert_cmpuint(ivshmem2_link_state(link, 2), ==, 17);
        g_assert_cmpint(ivshmem2_record_slot(link->record, 2)->pid, ==, 77);
        g_assert_cmpuint(ivshmem2_store_room(m.store), ==,
                         100 - m.kept->len);
        g_assert_true(ivshmem2_link_make_eventfds(link, id, NULL));
        ivshmem2_link_free(link);
        close_store(&m);
        g_assert_cmpuint(m.kept->len, ==, N_MEMORY + (2 + i) * N_VECTORS);
    }
    /* what was signalled meanwhile is still there */
    g_assert_cmpuint(ivshmem2_eventfd_drain(kept(&m, AT_EVENTFDS + 1)), ==, 1);
    manager_clear(&m);
}

/* Options that are not of the link's shape apply. */
static void test_pushes(void)
{
    Manager m;
    Ivshmem2Link *link;

    manager_init(&m, 100);
    link = make_link(&m);
    g_assert_true(ivshmem2_link_make_eventfds(link, 2, NULL));
    ivshmem2_link_free(link);
    close_store(&m);
    open_store(&m, 100);
    m.config.pushes = true;
    link = must_adopt(&m);
    assert_same_eventfds(&m, link, 2, AT_EVENTFDS);
    g_assert_cmpuint(m.kept->len, ==, N_MEMORY + N_PEERS * N_VECTORS);
    for (uint32_t id = 0; id < N_PEERS; id++) {
        g_assert_nonnull(link->eventfds[id]);
    }
    ivshmem2_link_free(link);
    close_store(&m);
    open_store(&m, 100);
    m.config.pushes = false;
    link = must_adopt(&m);
    assert_same_eventfds(&m, link, 2, AT_EVENTFDS);
    g_assert_nonnull(link->eventfds[3]);
    ivshmem2_link_free(link);
    manager_clear(&m);
}

/* The largest links are mostly holes. */
static void test_large(void)
{
    Manager m;
    Ivshmem2Link *link;
    struct stat st;

    manager_init(&m, 10000);
    m.config.max_peers = IVSHMEM2_MAX_PEERS;
    m.config.vectors = IVSHMEM2_MAX_VECTORS;
    m.config.output_size = 0;
    for (int i = 0; i < 2; i++) {
        link = i ? must_adopt(&m) : make_link(&m);
        g_assert_true(ivshmem2_link_make_eventfds(link, IVSHMEM2_MAX_PEERS - 1,
                                                  NULL));
        g_assert_cmpint(fstat(ivshmem2_record_fd(link->record), &st), ==, 0);
        g_assert_cmpint(st.st_size, >, 500 * 1024 * 1024);
        g_assert_cmpint(st.st_blocks * 512, <, 16 * 1024 * 1024);
        ivshmem2_link_free(link);
        manager_read(&m);
        g_assert_cmpuint(m.kept->len, ==, 3 + IVSHMEM2_MAX_VECTORS);
    }
    manager_clear(&m);
}

/* What must not be adopted */

typedef struct BadSet {
    void (*change)(Manager *m);
    const char *text;
} BadSet;

static void replace(Manager *m, guint i, int fd)
{
    ivshmem2_close(&g_array_index(m->kept, int, i));
    g_array_index(m->kept, int, i) = fd;
}

static void drop_record(Manager *m)
{
    drop(m, AT_RECORD);
}

static void drop_all_but_table(Manager *m)
{
    int fd = fcntl(kept(m, AT_TABLE), F_DUPFD_CLOEXEC, 3);

    while (m->kept->len) {
        drop(m, 0);
    }
    add(m, fd);
}

static void drop_table(Manager *m)
{
    drop(m, AT_TABLE);
}

static void drop_rw(Manager *m)
{
    drop(m, AT_RW);
}

static void drop_output(Manager *m)
{
    drop(m, AT_OUTPUTS + 2);
}

static void drop_eventfd(Manager *m)
{
    drop(m, AT_EVENTFDS + 1);
}

static void drop_eventfds(Manager *m)
{
    drop(m, AT_EVENTFDS);
    drop(m, AT_EVENTFDS);
}

static void add_pipe(Manager *m)
{
    int fds[2];

    g_assert_cmpint(pipe(fds), ==, 0);
    add(m, fds[0]);
    ivshmem2_close(&fds[1]);
}

static void add_memory(Manager *m)
{
    add(m, make_memory(4096, MEMORY_SEALS));
}

static void add_socket(Manager *m)
{
    add(m, socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

static void add_file(Manager *m)
{
    add(m, open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
}

static void add_record(Manager *m)
{
    Ivshmem2LinkConfig config = default_config;
    Ivshmem2Link *link = ivshmem2_link_new(&config, NULL);

    add(m, fcntl(ivshmem2_record_fd(link->record), F_DUPFD_CLOEXEC, 3));
    ivshmem2_link_free(link);
}

static void double_rw(Manager *m)
{
    add(m, fcntl(kept(m, AT_RW), F_DUPFD_CLOEXEC, 3));
}

static void double_eventfd(Manager *m)
{
    add(m, fcntl(kept(m, AT_EVENTFDS), F_DUPFD_CLOEXEC, 3));
}

static void double_record(Manager *m)
{
    add(m, fcntl(kept(m, AT_RECORD), F_DUPFD_CLOEXEC, 3));
}

/* In place of what was there, and the record says that it is right. */
static void forge(Manager *m, guint i, uint32_t index, int fd)
{
    Ivshmem2Record *r = ivshmem2_record_open(kept(m, AT_RECORD), NULL);

    g_assert_nonnull(r);
    replace(m, i, fd);
    ivshmem2_file_id(fd, ivshmem2_record_file(r, index));
    ivshmem2_record_steal_fd(r);
    ivshmem2_record_free(r);
}

static void unsealed_table(Manager *m)
{
    forge(m, AT_TABLE, IVSHMEM2_FILE_STATE_TABLE, make_memory(4096, 0));
}

static void shrinkable_rw(Manager *m)
{
    forge(m, AT_RW, IVSHMEM2_FILE_RW, make_memory(8192, F_SEAL_GROW));
}

static void small_rw(Manager *m)
{
    forge(m, AT_RW, IVSHMEM2_FILE_RW, make_memory(4096, MEMORY_SEALS));
}

static void large_output(Manager *m)
{
    forge(m, AT_OUTPUTS + 3, IVSHMEM2_FILE_OUTPUTS + 3,
          make_memory(12288, MEMORY_SEALS));
}

static void read_only_rw(Manager *m)
{
    replace(m, AT_RW, reopen_read_only(kept(m, AT_RW)));
}

static void read_only_record(Manager *m)
{
    replace(m, AT_RECORD, reopen_read_only(kept(m, AT_RECORD)));
}

static void swapped_eventfds(Manager *m)
{
    /* an eventfd of the right type, but not this one */
    replace(m, AT_EVENTFDS, make_eventfd());
}

static const BadSet bad_sets[] = {
    { drop_record, "the record of the link is missing" },
    { drop_all_but_table, "the record of the link is missing" },
    { drop_table, "the State Table is missing" },
    { drop_rw, "the R/W section is missing" },
    { drop_output, "the output section of ID 2 is missing" },
    { drop_eventfd, "the eventfd for vector 1 of ID 3 is missing" },
    { drop_eventfds, "the eventfd for vector 0 of ID 3 is missing" },
    { add_pipe, "is surplus, the server takes no pipe:[" },
    { add_memory, "is surplus, the server takes no /memfd:test" },
    { add_eventfd, "is surplus, the server takes no anon_inode:[eventfd]" },
    { add_socket, "is surplus, the server takes no socket:[" },
    { add_file, "is surplus, the server takes no /" },
    { add_record, "missing" },
    { double_rw, "are the same memory file" },
    { double_eventfd, "are the same eventfd" },
    { double_record, "is surplus" },
    { unsealed_table, "State Table is not sealed" },
    { shrinkable_rw, "R/W section is not sealed" },
    { small_rw, "R/W section has 4096 bytes" },
    { large_output, "output section of ID 3 has 12288 bytes, not 4096" },
    { read_only_rw, "R/W section is not open for reading and writing" },
    { read_only_record, "record is not open for reading and writing" },
    { swapped_eventfds, "the eventfd for vector 0 of ID 3 is missing" },
};

static void test_bad_sets(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(bad_sets); i++) {
        Manager m;

        make_kept_link(&m);
        bad_sets[i].change(&m);
        must_not_adopt(&m, bad_sets[i].text);
        manager_clear(&m);
    }
}

typedef struct BadOption {
    Ivshmem2LinkConfig config;
    const char *text;
} BadOption;

#define CONFIG(peers, vecs, rw, output, page, type, backend)            \
    { .max_peers = peers, .vectors = vecs, .rw_size = rw,               \
      .output_size = output, .page_size = page, .protocol = type,       \
      .backend_id = backend, .intx = (vecs) == 1 }

static const BadOption bad_options[] = {
    { CONFIG(8, 2, 8192, 4096, 4096, 0x8001, 1), "--max-peers 8 (it has 4)" },
    { CONFIG(4, 3, 8192, 4096, 4096, 0x8001, 1), "--vectors 3 (it has 2)" },
    { CONFIG(4, 1, 8192, 4096, 4096, 0x8001, 1),
      "--vectors 1 (it has 2), --intx (it has MSI-X)" },
    { CONFIG(4, 2, 0, 4096, 4096, 0x8001, 1), "--rw-size 0 (it has 8192)" },
    { CONFIG(4, 2, 8192, 4097, 4096, 0x8001, 1),
      "--output-size 8192 (it has 4096)" },
    { CONFIG(4, 2, 8192, 4096, 65536, 0x8001, 1),
      "--page-size 65536 (it has 4096)" },
    { CONFIG(4, 2, 8192, 4096, 4096, 0x8002, 1),
      "--protocol 0x8002 (it has 0x8001)" },
    { CONFIG(4, 2, 8192, 4096, 4096, 0x8001, 3), "--backend-id 3 (it has 1)" },
    { CONFIG(5, 2, 8192, 4096, 4096, 0x8001, 3),
      "--max-peers 5 (it has 4), --backend-id 3 (it has 1)" },
};

static void test_bad_options(void)
{
    Ivshmem2Link *link;
    Manager m;

    make_kept_link(&m);
    for (size_t i = 0; i < G_N_ELEMENTS(bad_options); i++) {
        m.config = bad_options[i].config;
        must_not_adopt(&m, bad_options[i].text);
    }
    /* what rounds up to the same is the same */
    m.config = default_config;
    m.config.rw_size = 8000;
    link = must_adopt(&m);
    ivshmem2_link_free(link);
    manager_clear(&m);
}

/* The record */

typedef struct Damage {
    int64_t offset;             /* negative: from the end */
    uint32_t value;
    const char *text;
} Damage;

static const Damage damages[] = {
    { 0, 0, "the record of the link is missing" },
    { 16, 2, "the record has layout 2, this server knows layout 1" },
    { 16, 0, "the record has layout 0, this server knows layout 1" },
    { 20, 2, "a flag is neither 0 nor 1" },
    { 24, 0x100, "a flag is neither 0 nor 1" },
    { 32, 4096, "the record is damaged: it has" },
    { 36, 1, "the record is damaged: it has" },
    { 40 + 4, 3, "interrupt features" },
    { 40 + 8, 3, "the record is damaged: it has" },
    { 40 + 8, 0, "0 vectors" },
    { 40 + 8, 0xffffffff, "4294967295 vectors" },
    { 40 + 12, 1, "out of range" },
    { 40 + 16, 0xffffffff, "4294967295 peers" },
    { 40 + 16, 1, "1 peers" },
    { 40 + 20, 3, "page size 3" },
    { 40 + 24, 0, "State Table" },
    { 40 + 32, 1, "multiples" },
    { 40 + 36, 0xffffffff, "the record is damaged" },
    { 40 + 44, 0xffffffff, "the record is damaged" },
    { 104, 3, "out of range" },
    { 112, 0x10000, "out of range" },
    { 120, 3, "what it says of ID 0 is out of range" },
    { 120 + 16, 0x80000000, "what it says of ID 0 is out of range" },
    { 120 + 112 + 108, 0x61616161, "what it says of ID 1 is out of range" },
    { -(8 + N_VECTORS * 4), 4, "what it says of ID 3 is out of range" },
    { -(4 + N_VECTORS * 4), 2, "what it says of ID 3 is out of range" },
    { -4, 0xffffffff, "the eventfd for vector 1 of ID 3 is missing" },
    { -4, 0, "the eventfd for vector 1 of ID 3 is missing" },
};

static void test_damages(void)
{
    for (size_t i = 0; i < G_N_ELEMENTS(damages); i++) {
        int64_t offset = damages[i].offset;
        struct stat st;
        Manager m;

        make_kept_link(&m);
        g_assert_cmpint(fstat(kept(&m, AT_RECORD), &st), ==, 0);
        offset += offset < 0 ? st.st_size : 0;
        g_assert_cmpint(pwrite(kept(&m, AT_RECORD), &damages[i].value, 4,
                               offset), ==, 4);
        must_not_adopt(&m, damages[i].text);
        manager_clear(&m);
    }
}

/* A file of another size, and files that are none */
static void test_no_records(void)
{
    g_autoptr(GError) error = NULL;
    Manager m;
    int fds[2];
    int fd;

    make_kept_link(&m);
    fd = make_memory(64, MEMORY_SEALS);
    g_assert_false(ivshmem2_record_recognize(fd));
    pwrite(fd, "ivshmem2 record\0\1", 17, 0);
    g_assert_true(ivshmem2_record_recognize(fd));
    g_assert_null(ivshmem2_record_open(fd, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "record has 64 bytes");
    ivshmem2_close(&fd);
    fd = make_memory(1024 * 1024, MEMORY_SEALS);
    g_assert_null(ivshmem2_record_open(fd, &error));
    assert_error(error, IVSHMEM2_ERROR_PROTOCOL, "does not begin as a record");
    ivshmem2_close(&fd);
    g_assert_cmpint(pipe(fds), ==, 0);
    g_assert_false(ivshmem2_record_recognize(fds[0]));
    ivshmem2_close(&fds[0]);
    ivshmem2_close(&fds[1]);
    manager_clear(&m);
}

/* A server that ended before anybody could join leaves nothing of value. */
static void test_unserved(void)
{
    const uint32_t zero = 0;
    Ivshmem2Inherited in;
    Manager m;

    make_kept_link(&m);
    pass(&m, &in);
    g_assert_true(ivshmem2_link_was_served(&in));
    ivshmem2_inherited_clear(&in);
    pwrite(kept(&m, AT_RECORD), &zero, sizeof(zero), 20);
    pass(&m, &in);
    g_assert_false(ivshmem2_link_was_served(&in));
    g_assert_cmpint(in.record_fd, >=, 0);
    ivshmem2_inherited_discard(&in);
    g_assert_false(ivshmem2_inherited_has_link(&in));
    /* but one without a record may be what is left of a link with peers */
    g_assert_true(ivshmem2_link_was_served(&in));
    ivshmem2_inherited_clear(&in);
    manager_clear(&m);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/ivshmem2/server-adopt/adopt", test_adopt);
    g_test_add_func("/ivshmem2/server-adopt/pushes", test_pushes);
    g_test_add_func("/ivshmem2/server-adopt/large", test_large);
    g_test_add_func("/ivshmem2/server-adopt/bad-sets", test_bad_sets);
    g_test_add_func("/ivshmem2/server-adopt/bad-options", test_bad_options);
    g_test_add_func("/ivshmem2/server-adopt/damages", test_damages);
    g_test_add_func("/ivshmem2/server-adopt/no-records", test_no_records);
    g_test_add_func("/ivshmem2/server-adopt/unserved", test_unserved);
    return g_test_run();
}
