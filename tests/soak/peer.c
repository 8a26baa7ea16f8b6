/*
 * A peer on the host, for tests/system/soak
 *
 * Usage: ivshmem2-soak-peer SOCKET NAME ID
 *
 * ID is a number or "any".  Says "ready ID", then does commands, which are
 * lines of standard input; numbers are decimal.  Each is answered by a line,
 * "ok" and what follows below, or "error" and the reason.
 *
 *   send TARGET FIRST LAST   for each of these numbers: put it into the word
 *                            for TARGET in the own output section, then ring
 *                            TARGET with vector 1 + own ID
 *   state VALUE
 *   fill VALUE START RW      fill the own output section from START on, and
 *                            from RW on a share of the R/W section, with a
 *                            64-bit word
 *   seen                     what interrupts have shown: of each ID, the state
 *                            and the number that it sent to this peer
 *   connected                1 or 0
 *   leave                    with a goodbye, and end; so does the end of input
 *
 * The states are looked at after an interrupt with vector 0, and the number of
 * a sender after one with its vector; both once when this peer starts.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "libivshmem2.h"

#define MAX_LINE    256

static Ivshmem2Peer *peer;
static const Ivshmem2PeerInfo *info;
static uint32_t *states, *numbers;

/* A command returns false with @error set. */
typedef bool Run(const uint64_t *args, GString *answer, GError **error);

typedef struct Command {
    const char *name;
    int n_args;
    Run *run;
} Command;

static bool run_send(const uint64_t *args, GString *answer, GError **error)
{
    uint32_t *word = ivshmem2_peer_output(peer, info->id);

    for (uint64_t n = args[1]; n <= args[2]; n++) {
        __atomic_store_n(&word[args[0]], (uint32_t)n, __ATOMIC_RELEASE);
        if (!ivshmem2_peer_ring(peer, args[0], 1 + info->id, error)) {
            return false;
        }
    }
    return true;
}

static bool run_state(const uint64_t *args, GString *answer, GError **error)
{
    return ivshmem2_peer_set_state(peer, args[0], error);
}

static void fill(void *start, size_t size, uint64_t value)
{
    for (size_t i = 0; i < size / sizeof(value); i++) {
        ((uint64_t *)start)[i] = value;
    }
}

static bool run_fill(const uint64_t *args, GString *answer, GError **error)
{
    fill((char *)ivshmem2_peer_output(peer, info->id) + args[1],
         info->output_size - args[1], args[0]);
    fill((char *)ivshmem2_peer_rw(peer) + args[2],
         info->rw_size / (info->max_peers + 1), args[0]);
    return true;
}

static bool run_seen(const uint64_t *args, GString *answer, GError **error)
{
    for (uint32_t id = 0; id < info->max_peers; id++) {
        g_string_append_printf(answer, " %" PRIu32, states[id]);
    }
    for (uint32_t id = 0; id < info->max_peers; id++) {
        g_string_append_printf(answer, " %" PRIu32, numbers[id]);
    }
    return true;
}

static bool run_connected(const uint64_t *args, GString *answer,
                          GError **error)
{
    g_string_append_printf(answer, " %d", ivshmem2_peer_connected(peer));
    return true;
}

static bool run_leave(const uint64_t *args, GString *answer, GError **error)
{
    ivshmem2_peer_close(peer);
    peer = NULL;
    return true;
}

static const Command commands[] = {
    { "send", 3, run_send },
    { "state", 1, run_state },
    { "fill", 3, run_fill },
    { "seen", 0, run_seen },
    { "connected", 0, run_connected },
    { "leave", 0, run_leave },
};

static bool run_line(const char *line, GString *answer, GError **error)
{
    g_auto(GStrv) words = g_strsplit(line, " ", -1);
    uint64_t args[3] = { 0 };

    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        const Command *c = &commands[i];

        if (words[0] && !strcmp(words[0], c->name) &&
            (int)g_strv_length(words) == 1 + c->n_args) {
            for (int a = 0; a < c->n_args; a++) {
                args[a] = g_ascii_strtoull(words[1 + a], NULL, 10);
            }
            return c->run(args, answer, error);
        }
    }
    g_set_error(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_ARGUMENT,
                "no such command");
    return false;
}

static void answer_line(const char *line)
{
    g_autoptr(GString) answer = g_string_new("ok");
    g_autoptr(GError) error = NULL;

    if (run_line(line, answer, &error)) {
        printf("%s\n", answer->str);
    } else {
        printf("error %s\n", error->message);
    }
    fflush(stdout);
}

static void look(int vector)
{
    if (vector == 0) {
        for (uint32_t id = 0; id < info->max_peers; id++) {
            states[id] = ivshmem2_peer_state(peer, id);
        }
    } else if (vector <= (int)info->max_peers) {
        const uint32_t *word = ivshmem2_peer_output(peer, vector - 1);

        numbers[vector - 1] = __atomic_load_n(&word[info->id],
                                              __ATOMIC_ACQUIRE);
    }
}

static bool take_interrupts(void)
{
    g_autoptr(GError) error = NULL;
    int vector, result;

    while ((result = ivshmem2_peer_wait(peer, -1, &vector, 0, &error)) > 0) {
        look(vector);
    }
    if (result < 0) {
        printf("error wait: %s\n", error->message);
        return false;
    }
    return true;
}

/* Returns at the end of input, or after "leave". */
static bool serve(void)
{
    char line[MAX_LINE];
    size_t length = 0;

    while (peer) {
        struct pollfd fds[] = {
            { .fd = STDIN_FILENO, .events = POLLIN },
            { .fd = ivshmem2_peer_fd(peer), .events = POLLIN },
        };

        if (poll(fds, 2, -1) < 0 && errno != EINTR) {
            return false;
        }
        if (fds[1].revents && !take_interrupts()) {
            return false;
        }
        if (fds[0].revents) {
            if (length == sizeof(line) - 1 ||
                read(STDIN_FILENO, &line[length], 1) != 1) {
                break;
            }
            if (line[length] == '\n') {
                line[length] = '\0';
                answer_line(line);
                length = 0;
            } else {
                length++;
            }
        }
    }
    ivshmem2_peer_close(peer);
    return true;
}

int main(int argc, char **argv)
{
    Ivshmem2SocketOptions options = IVSHMEM2_SOCKET_OPTIONS_INIT;
    g_autoptr(GError) error = NULL;
    bool ok;

    if (argc != 4) {
        fprintf(stderr, "Usage: ivshmem2-soak-peer SOCKET NAME ID\n");
        return 2;
    }
    options.name = argv[2];
    options.timeout_ms = 20000;
    if (strcmp(argv[3], "any")) {
        options.id = g_ascii_strtoull(argv[3], NULL, 10);
    }
    peer = ivshmem2_peer_open_socket(argv[1], &options, &error);
    if (!peer) {
        printf("error %s\n", error->message);
        return 1;
    }
    info = ivshmem2_peer_info(peer);
    states = g_new0(uint32_t, info->max_peers);
    numbers = g_new0(uint32_t, info->max_peers);
    for (int vector = 0; vector <= (int)info->max_peers; vector++) {
        look(vector);
    }
    printf("ready %" PRIu32 "\n", info->id);
    fflush(stdout);
    ok = serve();
    g_free(states);
    g_free(numbers);
    return ok ? 0 : 1;
}
