/*
 * A manager that keeps descriptors for servers, in this process
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-manager-util.h"

const Ivshmem2LinkConfig default_config = {
    .max_peers = N_PEERS,
    .vectors = N_VECTORS,
    .rw_size = 8192,
    .output_size = 4096,
    .protocol = 0x8001,
    .backend_id = 1,
};

static void set_number(const char *name, int n)
{
    g_autofree char *text = g_strdup_printf("%d", n);

    g_setenv(name, text, TRUE);
}

void open_store(Manager *m, unsigned room)
{
    g_autoptr(GError) error = NULL;
    int fds[2];

    g_assert_cmpint(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0,
                               fds), ==, 0);
    m->fd = fds[0];
    set_number(IVSHMEM2_SUPERVISOR_ENV, fds[1]);
    set_number("FDSTORE", room);
    m->store = ivshmem2_store_open(&error);
    g_assert_no_error(error);
    g_assert_null(g_getenv(IVSHMEM2_SUPERVISOR_ENV));
    m->config.store = m->store;
}

void manager_init(Manager *m, unsigned room)
{
    *m = (Manager) {
        .before = count_fds(),
        .kept = g_array_new(FALSE, FALSE, sizeof(int)),
        .config = default_config,
    };
    open_store(m, room);
}

unsigned manager_read(Manager *m)
{
    union {
        struct cmsghdr align;
        char buf[CMSG_SPACE(IVSHMEM2_STORE_FDS * sizeof(int))];
    } control;
    unsigned n = 0;

    for (;;) {
        char text[100];
        struct iovec iov = { .iov_base = text, .iov_len = sizeof(text) };
        struct msghdr msg = {
            .msg_iov = &iov,
            .msg_iovlen = 1,
            .msg_control = control.buf,
            .msg_controllen = sizeof(control.buf),
        };
        ssize_t len = recvmsg(m->fd, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);

        if (len <= 0) {
            return n;
        }
        n++;
        g_assert_false(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC));
        if (c) {
            g_array_append_vals(m->kept, CMSG_DATA(c),
                                (c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            g_assert_nonnull(memmem(text, len, "FDSTORE=1\n", 10));
            g_assert_nonnull(memmem(text, len, "FDPOLL=0", 8));
        }
    }
}

void close_store(Manager *m)
{
    manager_read(m);
    g_clear_pointer(&m->store, ivshmem2_store_close);
    m->config.store = NULL;
    ivshmem2_close(&m->fd);
}

void manager_clear(Manager *m)
{
    if (m->store) {
        close_store(m);
    }
    for (guint i = 0; i < m->kept->len; i++) {
        ivshmem2_close(&g_array_index(m->kept, int, i));
    }
    g_array_unref(m->kept);
    g_assert_cmpuint(count_fds(), ==, m->before);
}

int kept(Manager *m, guint i)
{
    g_assert_cmpuint(i, <, m->kept->len);
    return g_array_index(m->kept, int, i);
}

Ivshmem2Link *make_link(Manager *m)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Link *link = ivshmem2_link_new(&m->config, &error);

    g_assert_no_error(error);
    manager_read(m);
    return link;
}

void pass(Manager *m, Ivshmem2Inherited *in)
{
    g_autofree int *fds = g_new(int, m->kept->len);

    for (guint i = 0; i < m->kept->len; i++) {
        fds[i] = fcntl(kept(m, m->kept->len - 1 - i), F_DUPFD_CLOEXEC, 3);
        g_assert_cmpint(fds[i], >=, 0);
    }
    ivshmem2_inherited_init_fds(in, fds, m->kept->len);
}

Ivshmem2Link *adopt(Manager *m, GError **error)
{
    Ivshmem2Inherited in;
    Ivshmem2Link *link;

    pass(m, &in);
    g_assert_true(ivshmem2_inherited_has_link(&in));
    link = ivshmem2_link_adopt(&m->config, &in, error);
    if (link) {
        g_assert_true(link->adopted);
        g_assert_false(ivshmem2_inherited_has_link(&in));
    }
    ivshmem2_inherited_clear(&in);
    if (m->store) {
        manager_read(m);
    }
    return link;
}

Ivshmem2Link *must_adopt(Manager *m)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Link *link = adopt(m, &error);

    g_assert_no_error(error);
    return link;
}

void must_not_adopt(Manager *m, const char *text)
{
    g_autofree char *copy = NULL;
    g_autofree char *now = NULL;
    g_autoptr(GError) error = NULL;
    struct stat st;
    unsigned before = count_fds();
    unsigned n = m->kept->len;
    int record = n ? kept(m, AT_RECORD) : -1;

    if (fstat(record, &st) == 0) {
        copy = g_malloc0(st.st_size);
        now = g_malloc0(st.st_size);
        pread(record, copy, st.st_size, 0);
    }
    g_assert_null(adopt(m, &error));
    g_assert_nonnull(error);
    if (!strstr(error->message, text)) {
        g_test_message("%s, not %s", error->message, text);
    }
    g_assert_nonnull(strstr(error->message, text));
    if (copy) {
        pread(record, now, st.st_size, 0);
        g_assert_cmpmem(copy, st.st_size, now, st.st_size);
    }
    g_assert_cmpuint(m->kept->len, ==, n);
    g_assert_cmpuint(count_fds(), ==, before);
}

static void assert_same_file(int a, int b)
{
    Ivshmem2FileId x, y;

    g_assert_true(ivshmem2_file_id(a, &x) && ivshmem2_file_id(b, &y));
    g_assert_cmpmem(&x, sizeof(x), &y, sizeof(y));
}

void assert_same_link(Manager *m, const Ivshmem2Link *link)
{
    g_assert_cmpint(link->memory_fds[0], >=, 0);
    assert_same_file(kept(m, AT_TABLE), link->memory_fds[0]);
    assert_same_file(kept(m, AT_RW), link->memory_fds[1]);
    for (uint32_t id = 0; id < N_PEERS; id++) {
        assert_same_file(kept(m, AT_OUTPUTS + id), link->output_fds[id]);
        assert_same_file(kept(m, AT_OUTPUTS + id), link->output_read_fds[id]);
        g_assert_cmpint(fcntl(link->output_read_fds[id], F_GETFL) & O_ACCMODE,
                        ==, O_RDONLY);
    }
}

void assert_same_eventfds(Manager *m, const Ivshmem2Link *link,
                          uint32_t id, guint at)
{
    for (uint32_t i = 0; i < N_VECTORS; i++) {
        g_assert_cmpuint(ivshmem2_eventfd_number(link->eventfds[id][i]), ==,
                         ivshmem2_eventfd_number(kept(m, at + i)));
    }
}

void drop(Manager *m, guint i)
{
    ivshmem2_close(&g_array_index(m->kept, int, i));
    g_array_remove_index(m->kept, i);
}

void add_eventfd(Manager *m)
{
    add(m, make_eventfd());
}

void add(Manager *m, int fd)
{
    g_assert_cmpint(fd, >=, 0);
    g_array_append_val(m->kept, fd);
}

void make_kept_link(Manager *m)
{
    Ivshmem2Link *link;

    manager_init(m, 100);
    link = make_link(m);
    g_assert_true(ivshmem2_link_make_eventfds(link, 3, NULL));
    ivshmem2_link_free(link);
    close_store(m);
}
