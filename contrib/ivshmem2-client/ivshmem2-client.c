/*
 * ivshmem2-client: be a peer on an ivshmem2 link, from a shell
 *
 * The same program on the host, through the server's socket, and in a Linux
 * guest, through VFIO on the PCI device.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>
#include "client.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"

typedef struct CommandEntry {
    const char *name;
    const char *args;           /* for the help text */
    unsigned min_args;
    unsigned max_args;
    Command *run;
    const char *help;
} CommandEntry;

static Command cmd_shell;

static const CommandEntry commands[] = {
    { "info", "", 0, 0, cmd_info,
      "the constants of this link: IDs, vectors, sizes" },
    { "peers", "", 0, 0, cmd_peers,
      "all peers whose state is not 0, and this one" },
    { "ring", "ID [VECTOR]", 1, 2, cmd_ring,
      "interrupt a peer, --count times (1)" },
    { "state", "[VALUE]", 0, 1, cmd_state,
      "set the own state, keep it until --timeout or Ctrl-C" },
    { "wait", "", 0, 0, cmd_wait,
      "wait for --count interrupts (1), of --vector (any)" },
    { "watch", "", 0, 0, cmd_watch,
      "print interrupts and changes of states as they come" },
    { "read", "SECTION OFFSET LENGTH", 3, 3, cmd_read,
      "copy memory to standard output" },
    { "write", "SECTION OFFSET [DATA]", 2, 3, cmd_write,
      "copy DATA or standard input to memory" },
    { "dump", "SECTION [OFFSET [LENGTH]]", 1, 3, cmd_dump,
      "show memory as hexadecimal numbers and text" },
    { "ping", "ID", 1, 1, cmd_ping,
      "--count (10) round trips to a peer that runs pong" },
    { "pong", "", 0, 0, cmd_pong,
      "answer pings, --count of them (no limit)" },
    { "shell", "", 0, 0, cmd_shell,
      "as one peer, run commands from standard input" },
};

/* Options, unparsed */

static struct {
    char *socket;
    char *pci;
    char *id;
    char *name;
    char *state;
    char *memory;
    gboolean json;
    gboolean version;
} opt_link;

static struct {
    char *vector;
    char *timeout;
    char *count;
} opt_command;

static const GOptionEntry link_options[] = {
    { "socket", 's', 0, G_OPTION_ARG_FILENAME, &opt_link.socket,
      "Join from the host: the socket of ivshmem2-server", "PATH" },
    { "pci", 'p', 0, G_OPTION_ARG_STRING, &opt_link.pci,
      "Join from a guest: the PCI device, bound to vfio-pci", "ADDRESS" },
    { "id", 'i', 0, G_OPTION_ARG_STRING, &opt_link.id,
      "With --socket: the ID to ask for (default: any)", "N" },
    { "name", 'n', 0, G_OPTION_ARG_STRING, &opt_link.name,
      "With --socket: a name for the server's log", "NAME" },
    { "memory", 'm', 0, G_OPTION_ARG_STRING, &opt_link.memory,
      "With --pci: write-back, write-combining or uncached (default: best)",
      "TYPE" },
    { "state", 'S', 0, G_OPTION_ARG_STRING, &opt_link.state,
      "State to set on joining (default: 0, as on leaving)", "VALUE" },
    { "json", 'j', 0, G_OPTION_ARG_NONE, &opt_link.json,
      "Print JSON objects, each on one line", NULL },
    { "version", 0, 0, G_OPTION_ARG_NONE, &opt_link.version,
      "Print the version of libivshmem2 and of the protocol", NULL },
    { NULL }
};

static const GOptionEntry command_options[] = {
    { "vector", 'v', 0, G_OPTION_ARG_STRING, &opt_command.vector,
      "Interrupt vector (wait: any; ping and pong: 1 if there is one)", "N" },
    { "timeout", 't', 0, G_OPTION_ARG_STRING, &opt_command.timeout,
      "Stop waiting after this time (ping: 5 for each answer)", "SECONDS" },
    { "count", 'c', 0, G_OPTION_ARG_STRING, &opt_command.count,
      "Number of repetitions", "N" },
    { NULL }
};

static bool parse_timeout(const char *text, int64_t *us, GError **error)
{
    char *end;
    double seconds = g_ascii_strtod(text, &end);

    if (!g_ascii_isdigit(text[0]) || *end || !(seconds <= 1e9)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--timeout '%s' is not valid, it must be a number "
                             "of seconds from 0 to 1000000000", text);
    }
    *us = seconds * G_USEC_PER_SEC;
    return true;
}

/* Turn opt_command into settings and clear it. */
static bool take_settings(Settings *set, GError **error)
{
    uint64_t number;
    bool ok = true;

    *set = (Settings) { .vector = -1, .timeout_us = -1, .count = -1 };
    if (opt_command.vector) {
        ok = ivshmem2_parse_number("--vector", opt_command.vector, 0,
                                   IVSHMEM2_MAX_VECTORS - 1, &number, error);
        set->vector = ok ? (int)number : -1;
    }
    if (ok && opt_command.timeout) {
        ok = parse_timeout(opt_command.timeout, &set->timeout_us, error);
    }
    if (ok && opt_command.count) {
        ok = ivshmem2_parse_number("--count", opt_command.count, 1, 100000000,
                                   &number, error);
        set->count = ok ? (int64_t)number : -1;
    }
    g_clear_pointer(&opt_command.vector, g_free);
    g_clear_pointer(&opt_command.timeout, g_free);
    g_clear_pointer(&opt_command.count, g_free);
    return ok;
}

/* The command that @words name; its number of arguments is checked. */
static const CommandEntry *find_command(char **words, GError **error)
{
    unsigned n = words ? g_strv_length(words) : 0;

    for (size_t i = 0; n && i < G_N_ELEMENTS(commands); i++) {
        const CommandEntry *e = &commands[i];

        if (strcmp(words[0], e->name)) {
            continue;
        }
        if (n - 1 < e->min_args || n - 1 > e->max_args) {
            ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                          "'%s' takes %s%s, see --help", e->name,
                          e->max_args ? "arguments " : "no arguments",
                          e->args);
            return NULL;
        }
        return e;
    }
    ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                  n ? "there is no command '%s', see --help" :
                  "say which command%s, see --help", n ? words[0] : "");
    return NULL;
}

/* Shell */

static char *next_line(Client *c, GString *input)
{
    for (;;) {
        char *newline = strchr(input->str, '\n');
        char buf[512];
        ssize_t len;

        if (newline) {
            char *line = g_strndup(input->str, newline - input->str);

            g_string_erase(input, 0, newline + 1 - input->str);
            return line;
        }
        if (!await_fd(c, STDIN_FILENO, POLLIN)) {
            end_interrupted(true, NULL);
            return NULL;
        }
        len = read(STDIN_FILENO, buf, sizeof(buf));
        if (len == 0 || (len < 0 && errno != EINTR)) {
            return NULL;
        }
        if (len > 0) {
            g_string_append_len(input, buf, len);
        }
    }
}

static Status run_line(Client *c, const char *line, GError **error)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);
    g_auto(GStrv) words = NULL;
    g_autofree char *whole = g_strconcat("shell ", line, NULL);
    const CommandEntry *e;

    g_option_context_add_main_entries(context, command_options, NULL);
    g_option_context_set_help_enabled(context, FALSE);
    if (!g_shell_parse_argv(whole, NULL, &words, error) ||
        !g_option_context_parse_strv(context, &words, error)) {
        return STATUS_USAGE;
    }
    if (!take_settings(&c->set, error)) {
        return STATUS_USAGE;
    }
    e = find_command(words + 1, error);
    if (!e) {
        return STATUS_USAGE;
    }
    if (e->run == cmd_shell) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT, "this is the shell");
        return STATUS_ERROR;
    }
    return e->run(c, words + 2, error);
}

/* For programs that drive the shell: how the command ended */
static void print_result(Client *c, Status status, const GError *error)
{
    const char *result = status == STATUS_OK ? "ok" :
                         status == STATUS_TIMEOUT ? "timeout" : "error";

    if (c->json) {
        Json *json = json_new();

        json_string(json, "result", result);
        if (error) {
            json_string(json, "text", error->message);
        }
        json_print(json);
    } else {
        printf("%s%s%s\n", result, error ? ": " : "",
               error ? error->message : "");
    }
}

static Status cmd_shell(Client *c, char **args, GError **error)
{
    g_autoptr(GString) input = g_string_new(NULL);
    char *line;

    c->in_shell = true;
    while ((line = next_line(c, input))) {
        g_strstrip(line);
        if (line[0] && line[0] != '#') {
            g_autoptr(GError) local = NULL;
            Status status;

            check_server(c);
            status = run_line(c, line, &local);
            print_result(c, status, local);
        }
        g_free(line);
    }
    return STATUS_OK;
}

/* Start and end */

static int make_signal_fd(void)
{
    sigset_t set;

    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGHUP);
    /* the reader of our output is gone: leave in order then, too */
    sigaddset(&set, SIGPIPE);
    sigprocmask(SIG_BLOCK, &set, NULL);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

static bool parse_memory(Ivshmem2MemoryType *memory, GError **error)
{
    const char *name;
    int i = IVSHMEM2_MEMORY_BEST;

    while (opt_link.memory && (name = ivshmem2_memory_type_name(i)) &&
           strcmp(opt_link.memory, name)) {
        i++;
    }
    *memory = i;
    if (!ivshmem2_memory_type_name(i)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--memory '%s' is none of best, write-back, "
                             "write-combining and uncached", opt_link.memory);
    }
    return true;
}

/* Check the options that say what to join, and parse their values. */
static bool check_link(Ivshmem2SocketOptions *o, Ivshmem2MemoryType *memory,
                       uint64_t *state, GError **error)
{
    uint64_t id;

    if (!opt_link.socket == !opt_link.pci) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "one of --socket and --pci is needed, see "
                             "--help");
    }
    if (opt_link.pci && (opt_link.id || opt_link.name)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--id and --name go with --socket; in a guest "
                             "the device has its ID already");
    }
    if (opt_link.socket && opt_link.memory) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--memory goes with --pci; on the host, memory "
                             "is always write-back");
    }
    if (!parse_memory(memory, error)) {
        return false;
    }
    if (opt_link.id) {
        if (!ivshmem2_parse_number("--id", opt_link.id, 0,
                                   IVSHMEM2_MAX_PEERS - 1, &id, error)) {
            return false;
        }
        o->id = id;
    }
    return !opt_link.state || ivshmem2_parse_number("--state", opt_link.state,
                                                    0, UINT32_MAX, state,
                                                    error);
}

static Status join(Client *c, GError **error)
{
    Ivshmem2SocketOptions o = IVSHMEM2_SOCKET_OPTIONS_INIT;
    Ivshmem2MemoryType memory = IVSHMEM2_MEMORY_BEST;
    uint64_t state = 0;

    if (!check_link(&o, &memory, &state, error)) {
        return STATUS_USAGE;
    }
    o.name = opt_link.name ? opt_link.name : "ivshmem2-client";
    o.flags = IVSHMEM2_SOCKET_KEEP_FILES | IVSHMEM2_SOCKET_EVENTS;
    c->on_host = opt_link.socket;
    c->where = c->on_host ? opt_link.socket : opt_link.pci;
    c->json = opt_link.json;
    c->peer = c->on_host ? ivshmem2_peer_open_socket(c->where, &o, error)
                         : ivshmem2_peer_open_pci_mapped(c->where, memory,
                                                         error);
    if (!c->peer) {
        return STATUS_ERROR;
    }
    c->info = ivshmem2_peer_info(c->peer);
    return ivshmem2_peer_set_state(c->peer, state, error) ? STATUS_OK
                                                          : STATUS_ERROR;
}

static GOptionContext *make_context(void)
{
    GOptionContext *context = g_option_context_new("COMMAND [ARGUMENT...]");
    g_autoptr(GString) text = g_string_new("Commands:\n");

    for (size_t i = 0; i < G_N_ELEMENTS(commands); i++) {
        const CommandEntry *e = &commands[i];
        g_autofree char *usage = g_strdup_printf("%s %s", e->name, e->args);

        g_string_append_printf(text, "  %-31s %s\n", usage, e->help);
    }
    g_string_append(text,
        "\n"
        "SECTION is 'state' (State Table), 'rw' (R/W section), 'output' (this "
        "peer's\noutput section) or 'output:ID'.  Numbers are decimal or "
        "0x...\n"
        "\n"
        "ping and pong use the last 4 x peers bytes of each output section "
        "or, without\noutput sections, the last 4 x peers x peers bytes of "
        "the R/W section.\n"
        "\n"
        "The shell prints 'ok', 'timeout: TEXT' or 'error: TEXT' after each "
        "command.\n"
        "\n"
        "Exit status: 0 success, 1 failure, 2 wrong usage, 3 timeout.  A "
        "signal ends state,\nshell, and without --count watch and pong with "
        "0, other commands with 1.\n"
        "\n"
        "Examples:\n"
        "  ivshmem2-client --socket /tmp/ivshmem2.sock info\n"
        "  ivshmem2-client --socket /tmp/ivshmem2.sock --state 1 watch\n"
        "  ivshmem2-client --pci 0000:00:04.0 ring 2\n"
        "  echo hello | ivshmem2-client --pci 0000:00:04.0 write output 0");
    g_option_context_set_summary(context, "Be a peer on an ivshmem2 link: "
        "from the host (--socket) or from a Linux guest (--pci).");
    g_option_context_set_description(context, text->str);
    g_option_context_add_main_entries(context, link_options, NULL);
    g_option_context_add_main_entries(context, command_options, NULL);
    return context;
}

static Status run(Client *c, char ***words, GError **error)
{
    g_autoptr(GOptionContext) context = make_context();
    const CommandEntry *e;
    Status status;

    if (!g_option_context_parse_strv(context, words, error) ||
        !take_settings(&c->set, error)) {
        return STATUS_USAGE;
    }
    if (opt_link.version) {
        printf("ivshmem2-client %d.%d.%d, protocol versions %u to %u\n",
               LIBIVSHMEM2_VERSION_MAJOR, LIBIVSHMEM2_VERSION_MINOR,
               LIBIVSHMEM2_VERSION_MICRO, IVSHMEM2_VERSION_MIN,
               IVSHMEM2_VERSION_MAX);
        return STATUS_OK;
    }
    e = find_command(*words + 1, error);
    if (!e) {
        return STATUS_USAGE;
    }
    status = join(c, error);
    return status ? status : e->run(c, *words + 2, error);
}

int main(int argc, char **argv)
{
    g_auto(GStrv) words = g_strdupv(argv);
    g_autoptr(GError) error = NULL;
    Client c = { .signal_fd = -1 };
    Status status;

    /* a link may have more eventfds than a shell's limit allows */
    ivshmem2_raise_file_limit(0);
    setvbuf(stdout, NULL, _IOLBF, 0);
    c.signal_fd = make_signal_fd();
    status = run(&c, &words, &error);
    if (error) {
        fprintf(stderr, "ivshmem2-client: %s\n", error->message);
        if (g_error_matches(error, IVSHMEM2_ERROR, IVSHMEM2_ERROR_TIMEOUT)) {
            status = STATUS_TIMEOUT;
        }
    }
    ivshmem2_peer_close(c.peer);
    ivshmem2_close(&c.signal_fd);
    g_free(opt_link.socket);
    g_free(opt_link.pci);
    g_free(opt_link.id);
    g_free(opt_link.name);
    g_free(opt_link.state);
    g_free(opt_link.memory);
    return status;
}
