/*
 * ivshmem2-client: shared by its files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_CLIENT_H
#define IVSHMEM2_CLIENT_H

#include "libivshmem2.h"

/* Exit statuses, see the help text */
typedef enum Status {
    STATUS_OK = 0,
    STATUS_ERROR = 1,
    STATUS_USAGE = 2,
    STATUS_TIMEOUT = 3,
} Status;

/* The options of one command */
typedef struct Settings {
    int vector;                 /* -1: not given */
    int64_t timeout_us;         /* -1: no limit */
    int64_t count;              /* -1: not given */
} Settings;

typedef struct Client {
    Ivshmem2Peer *peer;
    const Ivshmem2PeerInfo *info;
    const char *where;          /* socket path or PCI address */
    bool on_host;
    bool json;
    bool in_shell;
    int signal_fd;              /* readable: a signal tells us to end */
    Settings set;
} Client;

/*
 * Commands: @args are the words after the command's name; their number is as
 * the command's entry in the table allows.  With STATUS_ERROR and
 * STATUS_USAGE, @error is set.
 */
typedef Status Command(Client *c, char **args, GError **error);

Command cmd_info, cmd_peers, cmd_ring, cmd_state, cmd_wait, cmd_watch;
Command cmd_read, cmd_write, cmd_dump;
Command cmd_ping, cmd_pong;

/*
 * Go on with the conversation with the server, and tell the user whether it is
 * gone or back.  Does not wait.
 */
void check_server(Client *c);

/* Can the vector that the user gave, if any, interrupt this peer? */
bool check_vector(const Client *c, GError **error);

typedef enum Event {
    EVENT_INTERRUPT,
    EVENT_TIMEOUT,
    EVENT_SIGNAL,
    EVENT_ERROR,
} Event;

/*
 * Wait for an interrupt of the vector @only (-1: of any vector), but not
 * longer than until @deadline (see ivshmem2_deadline()).  With
 * EVENT_INTERRUPT, *@vector (@vector may be NULL) is the vector; with
 * EVENT_ERROR, @error is set.
 */
Event next_event(Client *c, int64_t deadline, int only, int *vector,
                 GError **error);

/* Did a signal come that ends this program? */
bool signalled(const Client *c);

/*
 * Wait until @fd is ready for one of @events (see poll()), or returns an
 * error.  Meanwhile, check_server().  Returns false if a signal came first.
 */
bool await_fd(Client *c, int fd, short events);

/*
 * Write to standard output, after what is in the buffer of stdout, as long as
 * no signal comes: a reader may not read, and a section may be large.
 */
Status write_out(Client *c, const char *data, size_t length, GError **error);

/* The status of a command whose --timeout is over, with @error set */
Status end_timeout(GError **error);

/*
 * The status of a command that a signal ended: success if it is how the
 * command usually ends, else a failure with @error set.
 */
Status end_interrupted(bool usual, GError **error);

/* Output: JSON objects, each on a line of its own */
typedef struct Json Json;
Json *json_new(void);
void json_number(Json *json, const char *key, uint64_t value);
void json_decimal(Json *json, const char *key, double value);
void json_bool(Json *json, const char *key, bool value);
void json_string(Json *json, const char *key, const char *value);
/* Prints and frees @json. */
void json_print(Json *json);

#endif /* IVSHMEM2_CLIENT_H */
