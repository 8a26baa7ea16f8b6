/*
 * The log: GLib's messages, to stderr, from a level on
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <glib.h>
#include <stdio.h>
#include <string.h>
#include "log.h"

static const struct {
    const char *name;
    GLogLevelFlags levels;
    int priority;               /* as in syslog(3) */
} levels[] = {
    { "error", G_LOG_LEVEL_ERROR | G_LOG_LEVEL_CRITICAL, 3 },
    { "warning", G_LOG_LEVEL_WARNING, 4 },
    { "info", G_LOG_LEVEL_MESSAGE | G_LOG_LEVEL_INFO, 6 },
    { "debug", G_LOG_LEVEL_DEBUG, 7 },
};

/* Clients can cause messages as often as they like; this limits them. */
#define LINES_PER_SECOND    200

static size_t highest;
static bool journal;

static void write_line(size_t level, const char *text)
{
    if (journal) {
        fprintf(stderr, "<%d>%s\n", levels[level].priority, text);
    } else {
        fprintf(stderr, "ivshmem2-server: %s: %s\n", levels[level].name, text);
    }
}

static bool is_too_much(size_t level)
{
    static int64_t since;
    static unsigned n;
    int64_t now = g_get_monotonic_time();

    if (highest == G_N_ELEMENTS(levels) - 1) {
        /* for debugging, all of it is needed */
        return false;
    }
    if (now - since >= G_USEC_PER_SEC) {
        if (n > LINES_PER_SECOND) {
            g_autofree char *text = g_strdup_printf(
                "%u messages were left out", n - LINES_PER_SECOND);

            write_line(level, text);
        }
        since = now;
        n = 0;
    }
    return n++ >= LINES_PER_SECOND;
}

static GLogWriterOutput write_log(GLogLevelFlags level,
                                  const GLogField *fields, gsize n_fields,
                                  gpointer opaque)
{
    size_t i = 0;

    while (i < G_N_ELEMENTS(levels) && !(levels[i].levels & level)) {
        i++;
    }
    if (i > highest || is_too_much(i)) {
        return G_LOG_WRITER_HANDLED;
    }
    for (gsize f = 0; f < n_fields; f++) {
        if (!strcmp(fields[f].key, "MESSAGE")) {
            write_line(i, fields[f].value);
        }
    }
    return G_LOG_WRITER_HANDLED;
}

bool ivshmem2_log_start(const char *level)
{
    for (size_t i = 0; i < G_N_ELEMENTS(levels); i++) {
        if (!strcmp(level, levels[i].name)) {
            highest = i;
            journal = g_getenv("JOURNAL_STREAM");
            g_log_set_writer_func(write_log, NULL, NULL);
            return true;
        }
    }
    return false;
}
