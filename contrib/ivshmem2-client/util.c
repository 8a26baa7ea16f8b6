/*
 * ivshmem2-client: waiting for events, and JSON
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "client.h"
#include "libivshmem2-util.h"

bool check_vector(const Client *c, GError **error)
{
    if (c->set.vector >= (int)c->info->enabled_vectors) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--vector '%d' is not valid, it must be a number "
                             "from 0 to %u", c->set.vector,
                             c->info->enabled_vectors - 1);
    }
    return true;
}

/* Signals are noticed within this time */
#define LOOK_MS     200

/* Events */

static void print_connection(Client *c, const char *event,
                             const GError *reason, const char *text)
{
    if (c->json) {
        Json *json = json_new();

        json_string(json, "event", event);
        if (reason) {
            json_number(json, "code", reason->code);
            json_string(json, "reason", reason->message);
        }
        json_print(json);
    } else {
        fprintf(stderr, "ivshmem2-client: %s%s%s%s\n", text,
                reason ? " (" : "", reason ? reason->message : "",
                reason ? ")" : "");
    }
}

void check_server(Client *c)
{
    for (;;) {
        g_autoptr(GError) reason = NULL;

        switch (ivshmem2_peer_event(c->peer, &reason)) {
        case IVSHMEM2_EVENT_NONE:
            return;
        case IVSHMEM2_EVENT_DISCONNECTED:
            print_connection(c, "disconnected", reason,
                             "the server is gone; memory and the doorbells of "
                             "peers that are known go on working");
            break;
        case IVSHMEM2_EVENT_CONNECTED:
            print_connection(c, "connected", NULL, "the server is back");
            break;
        case IVSHMEM2_EVENT_REFUSED:
            print_connection(c, "refused", reason,
                             g_error_matches(reason, IVSHMEM2_ERROR,
                                             IVSHMEM2_ERROR_SESSION) ?
                             "a server of another session is there, whose "
                             "memory only new clients share; this one goes on "
                             "alone" :
                             "cannot resume; goes on alone and tries again");
            break;
        }
    }
}

Event next_event(Client *c, int64_t deadline, int only, int *vector,
                 GError **error)
{
    for (;;) {
        struct pollfd pfds[2] = {
            { .fd = c->signal_fd, .events = POLLIN },
            { .fd = ivshmem2_peer_fd(c->peer), .events = POLLIN },
        };
        int left = ivshmem2_deadline_ms(deadline);
        int ret;

        check_server(c);
        /*
         * The peer's descriptor is ready for any vector.  For a single one,
         * wait in the library, in short turns, to notice signals.
         */
        if (poll(pfds, only < 0 ? 2 : 1, only < 0 ? left : 0) < 0 &&
            errno != EINTR) {
            ivshmem2_fail_errno(error, "cannot wait");
            return EVENT_ERROR;
        }
        if (pfds[0].revents) {
            return EVENT_SIGNAL;
        }
        ret = ivshmem2_peer_wait(c->peer, only, vector, only < 0 ? 0 :
                                 left < 0 ? LOOK_MS : MIN(left, LOOK_MS),
                                 error);
        if (ret == 1 || ret < 0) {
            return ret < 0 ? EVENT_ERROR : EVENT_INTERRUPT;
        }
        /* 2: check_server() takes it */
        if (!ret && !left) {
            return EVENT_TIMEOUT;
        }
    }
}

bool await_fd(Client *c, int fd, short events)
{
    struct pollfd pfds[3] = {
        { .fd = c->signal_fd, .events = POLLIN },
        { .fd = fd, .events = events },
        { .fd = ivshmem2_peer_connection_fd(c->peer), .events = POLLIN },
    };

    do {
        check_server(c);
        while (poll(pfds, 3, -1) < 0 && errno == EINTR) {
            continue;
        }
    } while (!pfds[0].revents && !pfds[1].revents);
    return !pfds[0].revents;
}

Status write_out(Client *c, const char *data, size_t length, GError **error)
{
    bool ok = fflush(stdout) == 0;

    while (ok && length) {
        ssize_t ret;

        if (!await_fd(c, STDOUT_FILENO, POLLOUT)) {
            return end_interrupted(false, error);
        }
        /* a pipe that is ready takes so much without waiting */
        ret = write(STDOUT_FILENO, data, MIN(length, PIPE_BUF));
        ok = ret >= 0 || errno == EINTR || errno == EAGAIN;
        data += MAX(ret, 0);
        length -= MAX(ret, 0);
    }
    if (!ok) {
        ivshmem2_fail_errno(error, "cannot write to standard output");
    }
    return ok ? STATUS_OK : STATUS_ERROR;
}

bool signalled(const Client *c)
{
    struct pollfd pfd = { .fd = c->signal_fd, .events = POLLIN };

    return poll(&pfd, 1, 0) > 0;
}

Status end_timeout(GError **error)
{
    ivshmem2_fail(error, IVSHMEM2_ERROR_TIMEOUT,
                  "stopped waiting, because --timeout is over");
    return STATUS_TIMEOUT;
}

Status end_interrupted(bool usual, GError **error)
{
    if (usual) {
        fprintf(stderr, "ivshmem2-client: ended by a signal\n");
        return STATUS_OK;
    }
    ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "interrupted by a signal");
    return STATUS_ERROR;
}

/* JSON */

struct Json {
    GString *text;
};

Json *json_new(void)
{
    Json *json = g_new(Json, 1);

    json->text = g_string_new("{");
    return json;
}

static void add_string(Json *json, const char *value)
{
    g_autofree char *valid = g_utf8_make_valid(value, -1);

    g_string_append_c(json->text, '"');
    for (const char *p = valid; *p; p++) {
        if (*p == '"' || *p == '\\') {
            g_string_append_printf(json->text, "\\%c", *p);
        } else if ((unsigned char)*p < 0x20) {
            g_string_append_printf(json->text, "\\u%04x", *p);
        } else {
            g_string_append_c(json->text, *p);
        }
    }
    g_string_append_c(json->text, '"');
}

static void add_key(Json *json, const char *key)
{
    if (json->text->len > 1) {
        g_string_append(json->text, ", ");
    }
    add_string(json, key);
    g_string_append(json->text, ": ");
}

void json_number(Json *json, const char *key, uint64_t value)
{
    add_key(json, key);
    g_string_append_printf(json->text, "%llu", (unsigned long long)value);
}

void json_decimal(Json *json, const char *key, double value)
{
    add_key(json, key);
    g_string_append_printf(json->text, "%.1f", value);
}

void json_bool(Json *json, const char *key, bool value)
{
    add_key(json, key);
    g_string_append(json->text, value ? "true" : "false");
}

void json_string(Json *json, const char *key, const char *value)
{
    add_key(json, key);
    add_string(json, value);
}

void json_print(Json *json)
{
    printf("%s}\n", json->text->str);
    g_string_free(json->text, TRUE);
    g_free(json);
}
