/*
 * ivshmem2-client: numbers, events and JSON
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include "client.h"

/* How long a signal may have to wait */
#define SIGNAL_MS   200

G_DEFINE_QUARK(client_error_quark, client_error)

bool parse_number(const char *what, const char *text, uint64_t min,
                  uint64_t max, uint64_t *value, GError **error)
{
    bool hex = g_ascii_strncasecmp(text, "0x", 2) == 0;
    const char *digits = hex ? text + 2 : text;
    char *end = NULL;

    errno = 0;
    /* g_ascii_strtoull() takes signs and spaces, which are no numbers here */
    if (g_ascii_isxdigit(digits[0])) {
        *value = g_ascii_strtoull(digits, &end, hex ? 16 : 10);
    }
    if (!end || *end || end == digits || errno || *value < min ||
        *value > max) {
        g_set_error(error, CLIENT_ERROR, STATUS_USAGE,
                    "%s '%s' is not a number from %llu to %llu", what, text,
                    (unsigned long long)min, (unsigned long long)max);
        return false;
    }
    return true;
}

bool check_vector(const Client *c, GError **error)
{
    if (c->set.vector >= (int)c->info->enabled_vectors) {
        g_set_error(error, CLIENT_ERROR, STATUS_USAGE, "--vector '%d' is not "
                    "a number from 0 to %u", c->set.vector,
                    c->info->enabled_vectors - 1);
        return false;
    }
    return true;
}

Status failed(GError **error, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;

    va_start(ap, fmt);
    text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_set_error_literal(error, CLIENT_ERROR, STATUS_ERROR, text);
    return STATUS_ERROR;
}

/* Events */

gint64 deadline_of(const Client *c)
{
    return c->set.timeout_us < 0 ? -1 :
           g_get_monotonic_time() + c->set.timeout_us;
}

static int ms_until(gint64 deadline)
{
    gint64 left;

    if (deadline < 0) {
        return -1;
    }
    left = (deadline - g_get_monotonic_time() + 999) / 1000;
    return CLAMP(left, 0, G_MAXINT);
}

Event next_event(Client *c, gint64 deadline, int *vector, GError **error)
{
    int only = *vector;

    for (;;) {
        struct pollfd pfds[2] = {
            { .fd = c->signal_fd, .events = POLLIN },
            { .fd = ivshmem2_peer_fd(c->peer), .events = POLLIN },
        };
        int left = ms_until(deadline);
        int ret;

        /*
         * The peer's descriptor is ready for any vector.  For a single one,
         * wait in the library, but not so long that a signal has to wait.
         */
        if (poll(pfds, only < 0 ? 2 : 1, only < 0 ? left : 0) < 0 &&
            errno != EINTR) {
            failed(error, "cannot wait: %s", g_strerror(errno));
            return EVENT_ERROR;
        }
        if (pfds[0].revents) {
            return EVENT_SIGNAL;
        }
        *vector = only;
        ret = ivshmem2_peer_wait(c->peer, vector, only < 0 ? 0 :
                                 left < 0 ? SIGNAL_MS : MIN(left, SIGNAL_MS),
                                 error);
        if (ret) {
            return ret < 0 ? EVENT_ERROR : EVENT_INTERRUPT;
        }
        if (!left) {
            return EVENT_TIMEOUT;
        }
    }
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
