/*
 * ivshmem2-server: clients that break the protocol, stall or vanish
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"

/* A peer that behaves, and must not be affected by those that do not */
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

/* Of the other clients nothing is left, and the server still works. */
static void witness_end(Witness *w)
{
    Client d;

    client_sync(&w->c);
    assert_quiet(&w->c);
    server_wait_fds(&w->s, w->n_fds);
    client_join(&d, &w->s, 1);
    client_ring(&d, 0, 0);
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
    g_assert_cmpint(send(c.transport.fd, n->bytes, n->len, 0), ==, n->len);
    shutdown(c.transport.fd, SHUT_WR);
    if (n->text) {
        client_hear_refusal(&c, IVSHMEM2_REFUSAL_PROTOCOL, n->text);
    } else {
        g_assert_cmpuint(client_hear_any(&c), ==, 0);
    }
    client_close(&c);
    witness_end(&w);
}

/* From a peer that has joined */
static void test_late_nonsense(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Witness w;
    Client c;

    witness_start(&w, "--max-peers 4");
    client_join(&c, &w.s, 1);
    client_say(&c, &hello);
    client_hear_refusal(&c, IVSHMEM2_REFUSAL_PROTOCOL, "HELLO came twice");
    client_close(&c);

    client_join(&c, &w.s, 1);
    change_state(&c, 1);
    client_sync(&c);
    assert_interrupted(&w.c, 0);
    g_assert_cmpint(send(c.transport.fd, "\xff\xff\0\0\0\0\0\0", 8, 0), ==, 8);
    client_hear_refusal(&c, IVSHMEM2_REFUSAL_PROTOCOL, "unknown type 0xffff");
    client_close(&c);
    /* its state is cleared */
    assert_interrupted(&w.c, 0);
    g_assert_cmpuint(get_state(&w.c, 1), ==, 0);
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* Descriptors with a message that must not have any */
static void test_surplus_fds(void)
{
    Witness w;

    witness_start(&w, "--max-peers 4");
    for (int n = 1; n <= 64; n *= 2) {
        Ivshmem2Msg hello = make_hello(1);
        size_t len = ivshmem2_msg_encode(&hello);
        Client c;

        client_connect(&c, &w.s);
        if (send_with_fds(c.transport.fd, &hello, len, w.c.memory[0], n)) {
            /* the end may be ECONNRESET, as not all was read */
            client_hear(&c, IVSHMEM2_MSG_REFUSED);
        }
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
        g_assert_cmpint(send(c.transport.fd, (char *)&hello + i, 1, 0), ==, 1);
        if (i % 16 == 0) {
            client_sync(&w.c);
        }
    }
    client_complete(&c);
    client_leave(&c);
    witness_end(&w);
}

/* Clients that say nothing, stop in the middle, or do not read */
static void test_timeout(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Witness w;
    Client silent, half, deaf;

    witness_start(&w, "--max-peers 400 --output-size 4K --push-limit 800 "
                  "--handshake-timeout 1");
    client_connect(&silent, &w.s);
    client_connect(&half, &w.s);
    g_assert_cmpint(send(half.transport.fd, "\1\0", 2, 0), ==, 2);
    client_connect(&deaf, &w.s);
    client_say(&deaf, &hello);
    wait_for(deaf.transport.fd, POLLIN);
    client_hear_refusal(&silent, IVSHMEM2_REFUSAL_TIMEOUT, "after 1 seconds");
    client_hear_refusal(&half, IVSHMEM2_REFUSAL_TIMEOUT, "after 1 seconds");
    client_close(&silent);
    client_close(&half);
    /* its socket is full, so it cannot be told */
    server_wait_fds(&w.s, w.n_fds + 1);
    client_hear(&deaf, IVSHMEM2_MSG_WELCOME);
    client_close(&deaf);
    client_sync(&w.c);
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* Peers that never read the answers to their requests */
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
        /* until neither the server nor the kernel takes any more */
        for (int quiet = 0; quiet < 3; ) {
            int ret = ivshmem2_transport_is_sending(&c[i].transport)
                      ? ivshmem2_transport_flush(&c[i].transport, &error)
                      : ivshmem2_transport_send(&c[i].transport, &ring, NULL,
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

/* Clients that vanish at every stage of the handshake */
static void test_deaths(void)
{
    Ivshmem2Msg hello = make_hello(1);
    size_t len = ivshmem2_msg_encode(&hello);
    Witness w;

    witness_start(&w, "--max-peers 100 --output-size 4K");
    for (size_t i = 0; i < 200; i++) {
        Client c;

        client_connect(&c, &w.s);
        g_assert_cmpint(send(c.transport.fd, &hello, MIN(i, len), 0), ==,
                        MIN(i, len));
        /* a HELLO of a client that is gone already would be ignored */
        if (i >= len) {
            client_hear_any(&c);
        }
        for (size_t n = len; n < i; n++) {
            if (n % 10 == 0) {
                client_hear_any(&c);
            }
        }
        client_close(&c);
        server_wait_fds(&w.s, w.n_fds + (i >= len));
    }
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* Clients that vanish in the middle of each message */
static void test_cut_messages(void)
{
    static const uint16_t types[] = {
        IVSHMEM2_MSG_HELLO, IVSHMEM2_MSG_STATE_CHANGED, IVSHMEM2_MSG_RING,
        IVSHMEM2_MSG_STATE_ANNOUNCED, IVSHMEM2_MSG_GOODBYE,
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
            g_assert_cmpint(send(c.transport.fd, &msg, n, 0), ==, n);
            client_close(&c);
            server_wait_fds(&w.s, w.n_fds + (i > 0));
        }
    }
    wait_until_free(&w.s, 1);
    witness_end(&w);
}

/* To close one direction ends the connection, and affects no other. */
static void test_half_close(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Witness w;

    witness_start(&w, "--max-peers 4");
    for (int how = SHUT_RD; how <= SHUT_RDWR; how++) {
        Client c;

        client_connect(&c, &w.s);
        client_say(&c, &hello);
        if (how == SHUT_RDWR) {
            /* a HELLO of a client that is gone already would be ignored */
            client_hear_any(&c);
        }
        shutdown(c.transport.fd, how);
        server_wait_fds(&w.s, w.n_fds + 1);
        client_close(&c);
        wait_until_free(&w.s, 1);

        client_join(&c, &w.s, 1);
        client_say_target(&c, IVSHMEM2_MSG_RING, 1, 0);
        shutdown(c.transport.fd, how);
        if (how == SHUT_RD) {
            client_say_target(&c, IVSHMEM2_MSG_RING, 1, 0);
        }
        server_wait_fds(&w.s, w.n_fds + 1);
        client_close(&c);
        wait_until_free(&w.s, 1);
    }
    witness_end(&w);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/ivshmem2/server/late-nonsense", test_late_nonsense);
    g_test_add_func("/ivshmem2/server/surplus-fds", test_surplus_fds);
    g_test_add_func("/ivshmem2/server/byte-at-a-time", test_byte_at_a_time);
    g_test_add_func("/ivshmem2/server/timeout", test_timeout);
    g_test_add_func("/ivshmem2/server/stalled", test_stalled);
    g_test_add_func("/ivshmem2/server/deaths", test_deaths);
    g_test_add_func("/ivshmem2/server/cut-messages", test_cut_messages);
    g_test_add_func("/ivshmem2/server/half-close", test_half_close);
    for (size_t i = 0; i < G_N_ELEMENTS(nonsense); i++) {
        g_autofree char *name =
            g_strdup_printf("/ivshmem2/server/nonsense/%s", nonsense[i].name);

        g_test_add_data_func(name, &nonsense[i], test_nonsense);
    }
    return g_test_run();
}
