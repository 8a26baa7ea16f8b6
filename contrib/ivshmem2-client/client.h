/*
 * ivshmem2-client: what its files share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_CLIENT_H
#define IVSHMEM2_CLIENT_H

#include "libivshmem2.h"

/* Exit statuses, as the help text says */
typedef enum Status {
    STATUS_OK = 0,
    STATUS_ERROR = 1,
    STATUS_USAGE = 2,
    STATUS_TIMEOUT = 3,
} Status;

#define CLIENT_ERROR (client_error_quark())
GQuark client_error_quark(void);

/* What the options of one command say */
typedef struct Settings {
    int vector;                 /* -1: not given */
    gint64 timeout_us;          /* -1: for ever */
    int64_t count;              /* -1: not given */
} Settings;

typedef struct Client {
    Ivshmem2Peer *peer;
    const Ivshmem2Info *info;
    const char *where;          /* socket path or PCI address */
    bool on_host;
    bool json;
    bool in_shell;
    int signal_fd;              /* readable: somebody wants us to end */
    Settings set;
} Client;

/*
 * Commands: @args are the words after the command's name, as many as its
 * entry in the table allows.  STATUS_ERROR and STATUS_USAGE come with @error.
 */
typedef Status Command(Client *c, char **args, GError **error);

Command cmd_info, cmd_peers, cmd_ring, cmd_state, cmd_wait, cmd_watch;
Command cmd_read, cmd_write, cmd_dump;
Command cmd_ping, cmd_pong;

/*
 * Parse decimal or 0x... @text.  @what names it in the error, which also has
 * the range.
 */
bool parse_number(const char *what, const char *text, uint64_t min,
                  uint64_t max, uint64_t *value, GError **error);

/* Can the vector that the user gave, if any, interrupt this peer? */
bool check_vector(const Client *c, GError **error);

/* Set @error and return STATUS_ERROR. */
Status failed(GError **error, const char *fmt, ...) G_GNUC_PRINTF(2, 3);

/* When a command that starts now is to give up; -1: never */
gint64 deadline_of(const Client *c);

typedef enum Event {
    EVENT_INTERRUPT,
    EVENT_TIMEOUT,
    EVENT_SIGNAL,
    EVENT_ERROR,
} Event;

/*
 * Wait for an interrupt of *@vector (-1: of any), or for the end.  The vector
 * is put into *@vector.
 */
Event next_event(Client *c, gint64 deadline, int *vector, GError **error);

/*
 * Output: an object for JSON, one line each.  @json is used up.
 */
typedef struct Json Json;
Json *json_new(void);
void json_number(Json *json, const char *key, uint64_t value);
void json_decimal(Json *json, const char *key, double value);
void json_bool(Json *json, const char *key, bool value);
void json_string(Json *json, const char *key, const char *value);
void json_print(Json *json);

#endif /* IVSHMEM2_CLIENT_H */
