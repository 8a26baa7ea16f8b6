/*
 * A client session and a server made by hand, for the tests of sessions
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-session-util.h"

void session_setup(Fixture *f, gconstpointer opaque)
{
    Ivshmem2Hello hello = {
        .features = IVSHMEM2_F_MSIX,
        .vectors = N_VECTORS,
        .id = IVSHMEM2_ID_ANY,
        .name = "test",
    };

    f->before = count_fds();
    f->memory = make_memory(65536, MEMORY_SEALS);
    f->memory_read_only = reopen_read_only(f->memory);
    f->event_fd = make_eventfd();
    f->s = ivshmem2_session_new(&hello);
    f->welcome = (Ivshmem2Welcome) {
        .version = 1,
        .protocol = 1,
        .features = IVSHMEM2_F_MSIX,
        .vectors = N_VECTORS,
        .id = OWN_ID,
        .max_peers = N_PEERS,
        .page_size = 4096,
        .state_table_size = 4096,
        .rw_size = 8192,
        .output_size = 4096,
        .session = { 1, 2, 3 },
    };
}

void session_teardown(Fixture *f, gconstpointer opaque)
{
    ivshmem2_session_free(f->s);
    ivshmem2_close(&f->memory);
    ivshmem2_close(&f->memory_read_only);
    ivshmem2_close(&f->event_fd);
    g_assert_cmpuint(count_fds(), ==, f->before);
}

bool tell(Fixture *f, Ivshmem2Msg msg, const int *fds, GError **error)
{
    int copies[IVSHMEM2_MAX_FDS];
    size_t n_fds = msg.hdr.fds;
    size_t len = ivshmem2_msg_encode(&msg);
    Ivshmem2Decoder d;
    int ret;

    for (size_t i = 0; i < n_fds; i++) {
        copies[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, 0);
        g_assert_cmpint(copies[i], >=, 0);
    }
    ivshmem2_decoder_init(&d, IVSHMEM2_SERVER);
    ret = ivshmem2_decoder_push_consume(&d, &msg, sizeof(msg.hdr), copies,
                                        n_fds, error);
    if (ret == 0) {
        ret = ivshmem2_decoder_push_consume(
            &d, (uint8_t *)&msg + sizeof(msg.hdr), len - sizeof(msg.hdr),
            NULL, 0, error);
    }
    g_assert_cmpint(ret, ==, 1);
    return ivshmem2_session_receive(f->s, &d, error);
}

bool tell_welcome(Fixture *f, GError **error)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_WELCOME,
                 .fds = f->welcome.rw_size ? 2 : 1 },
        .welcome = f->welcome,
    };
    const int fds[] = { f->memory, f->memory };

    return tell(f, msg, fds, error);
}

bool tell_outputs(Fixture *f, uint32_t first, unsigned n,
                  GError **error)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_OUTPUTS, .fds = n },
        .outputs = { .first = first },
    };
    int fds[IVSHMEM2_MAX_FDS] = { 0 };

    for (unsigned i = 0; i < n; i++) {
        fds[i] = first + i == OWN_ID ? f->memory : f->memory_read_only;
    }
    return tell(f, msg, fds, error);
}

bool tell_eventfds(Fixture *f, uint32_t id, uint32_t first, unsigned n,
                   GError **error)
{
    Ivshmem2Msg msg = {
        .hdr = { .type = IVSHMEM2_MSG_EVENTFDS, .fds = n },
        .eventfds = { .id = id, .first = first },
    };
    int fds[IVSHMEM2_MAX_FDS] = { 0 };

    for (unsigned i = 0; i < n; i++) {
        fds[i] = f->event_fd;
    }
    return tell(f, msg, fds, error);
}

bool tell_ready(Fixture *f, GError **error)
{
    return tell(f, (Ivshmem2Msg) { .hdr = { .type = IVSHMEM2_MSG_READY } },
                NULL,
                error);
}

void assert_says(Fixture *f, uint16_t type, Ivshmem2Msg *msg)
{
    g_assert_true(ivshmem2_session_has_next(f->s));
    g_assert_true(ivshmem2_session_next(f->s, msg));
    g_assert_cmpuint(msg->hdr.type, ==, type);
}

void assert_says_nothing(Fixture *f)
{
    Ivshmem2Msg msg;

    g_assert_false(ivshmem2_session_has_next(f->s));
    g_assert_false(ivshmem2_session_next(f->s, &msg));
}

void go_to(Fixture *f, Stage stage)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Msg msg;

    ivshmem2_session_connected(f->s);
    assert_says(f, IVSHMEM2_MSG_HELLO, &msg);
    if (stage >= AFTER_WELCOME) {
        tell_welcome(f, &error);
        g_assert_no_error(error);
    }
    if (stage >= AFTER_OUTPUTS && f->welcome.output_size) {
        tell_outputs(f, 0, 16, &error);
        g_assert_no_error(error);
        tell_outputs(f, 16, N_PEERS - 16, &error);
        g_assert_no_error(error);
    }
    if (stage >= AFTER_EVENTFDS) {
        tell_eventfds(f, OWN_ID, 0, 16, &error);
        g_assert_no_error(error);
        tell_eventfds(f, OWN_ID, 16, N_VECTORS - 16, &error);
        g_assert_no_error(error);
    }
    g_assert_false(ivshmem2_session_ready(f->s));
    assert_says_nothing(f);
    if (stage >= AFTER_READY) {
        tell_ready(f, &error);
        g_assert_no_error(error);
        g_assert_true(ivshmem2_session_ready(f->s));
    }
}

void assert_held(Fixture *f, uint32_t id, uint32_t vector, int fd)
{
    int held = -1;

    g_assert_cmpint(ivshmem2_session_ring(f->s, id, vector, &held), ==,
                    IVSHMEM2_RING_SIGNALLED);
    g_assert_cmpint(held, >=, 0);
    if (fd >= 0) {
        g_assert_cmpint(held, ==, fd);
    }
    g_assert_cmpuint(ivshmem2_eventfd_drain(held), >, 0);
}

void assert_not_held(Fixture *f, uint32_t id, uint32_t vector)
{
    int held = -1;

    g_assert_cmpint(ivshmem2_session_ring(f->s, id, vector, &held), ==,
                    IVSHMEM2_RING_REQUESTED);
    g_assert_cmpint(held, ==, -1);
}

void session_add(const char *name, const void *data, SessionTest *func)
{
    g_autofree char *path = g_strdup_printf("/ivshmem2/session/%s", name);

    g_test_add(path, Fixture, data, session_setup, func, session_teardown);
}
