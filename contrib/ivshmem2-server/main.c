/*
 * ivshmem2-server: connects the peers of one ivshmem2 link
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "daemon.h"
#include "hw/misc/ivshmem2-regs.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "listen.h"
#include "log.h"

#define DEFAULT_MAX_PEERS           16
#define DEFAULT_VECTORS             2
#define DEFAULT_HANDSHAKE_TIMEOUT   10
#define MAX_HANDSHAKE_TIMEOUT       3600
#define MAX_PUSH_LIMIT              65536
#define DEFAULT_SOCKET_MODE         0660

/* The texts that the user gave, or NULL */
static struct {
    char *socket;
    char *socket_mode;
    char *socket_group;
    char *max_peers;
    char *vectors;
    gboolean intx;
    char *rw_size;
    char *output_size;
    char *page_size;
    char *protocol;
    char *backend_id;
    gboolean huge_pages;
    char *huge_page_size;
    char *push_limit;
    char *handshake_timeout;
    char *access;
    char *ids_per_user;
    char *log_level;
    gboolean version;
} opt;

static gboolean parse_huge_pages(const char *name, const char *value,
                                 gpointer opaque, GError **error)
{
    opt.huge_pages = true;
    g_free(opt.huge_page_size);
    opt.huge_page_size = g_strdup(value);
    return true;
}

static const GOptionEntry entries[] = {
    { "socket", 's', 0, G_OPTION_ARG_FILENAME, &opt.socket,
      "Listen at this path", "PATH" },
    { "socket-mode", 0, 0, G_OPTION_ARG_STRING, &opt.socket_mode,
      "Who can reach the socket, as file mode (default 660)", "OCTAL" },
    { "socket-group", 0, 0, G_OPTION_ARG_STRING, &opt.socket_group,
      "The group that owns the socket", "NAME" },
    { "access", 0, 0, G_OPTION_ARG_FILENAME, &opt.access,
      "Who may connect, and take which IDs (see below)", "FILE" },
    { "ids-per-user", 0, 0, G_OPTION_ARG_STRING, &opt.ids_per_user,
      "How many IDs one user can have at a time (default: all)", "N" },
    { "max-peers", 'n', 0, G_OPTION_ARG_STRING, &opt.max_peers,
      "How many peers there can be, 2 to 65536 (default 16)", "N" },
    { "vectors", 'v', 0, G_OPTION_ARG_STRING, &opt.vectors,
      "MSI-X vectors of each peer, 1 to 2048 (default 2)", "N" },
    { "intx", 0, 0, G_OPTION_ARG_NONE, &opt.intx,
      "Use INTx instead of MSI-X, with one vector", NULL },
    { "rw-size", 'r', 0, G_OPTION_ARG_STRING, &opt.rw_size,
      "Size of the section that all can write (default 0)", "SIZE" },
    { "output-size", 'o', 0, G_OPTION_ARG_STRING, &opt.output_size,
      "Size of each peer's output section (default 0)", "SIZE" },
    { "protocol", 'p', 0, G_OPTION_ARG_STRING, &opt.protocol,
      "Protocol type, 0 to 0xffff (default 0)", "TYPE" },
    { "backend-id", 0, 0, G_OPTION_ARG_STRING, &opt.backend_id,
      "ID of the back-end, for protocol types from 0x8000 on (default 0)",
      "ID" },
    { "page-size", 0, 0, G_OPTION_ARG_STRING, &opt.page_size,
      "Page size of the link, up to 64K (default: the host's)", "SIZE" },
    { "huge-pages", 0, G_OPTION_FLAG_OPTIONAL_ARG, G_OPTION_ARG_CALLBACK,
      parse_huge_pages, "Use huge pages, of this size if given", "SIZE" },
    { "push-limit", 0, 0, G_OPTION_ARG_STRING, &opt.push_limit,
      "Links of up to this many peers x vectors tell joiners all eventfds "
      "at once, larger ones on first use (default 256)", "N" },
    { "handshake-timeout", 0, 0, G_OPTION_ARG_STRING,
      &opt.handshake_timeout,
      "How long joining may take (default 10)", "SECONDS" },
    { "log-level", 'l', 0, G_OPTION_ARG_STRING, &opt.log_level,
      "error, warning, info or debug (default info)", "LEVEL" },
    { "version", 0, 0, G_OPTION_ARG_NONE, &opt.version,
      "Say what this server speaks", NULL },
    { NULL }
};

static const char help_head[] =
    "Connects virtual machines (-device ivshmem2) and host programs to one "
    "link:\nshared memory and interrupts.";

static const char help_tail[] =
    "SIZE is a number of bytes, or has one of the suffixes K, M, G and T. "
    "Sections are\nrounded up to pages.\n"
    "\n"
    "How many vectors are right depends on the guests' drivers. Most work "
    "with 2; some\nwant exactly 1, 3 or 4.\n"
    "\n"
    "The file of --access has a section for each rule. If it is given, only "
    "those\nconnect whom a rule names by user or by group (* is everybody), "
    "and they get\nonly IDs of their rules. SIGHUP has the file read again.\n"
    "  [database]\n"
    "  users = alice, 1001\n"
    "  ids = 0-1\n"
    "  [virtual machines]\n"
    "  groups = kvm\n"
    "  ids = 2-15\n"
    "\n"
    "Without --socket, the server takes its socket from the service manager "
    "(socket\nactivation).\n"
    "\n"
    "Example: four peers, 1 MiB for all and 64 KiB for each\n"
    "  ivshmem2-server --socket /tmp/link.sock --max-peers 4 --rw-size 1M "
    "--output-size 64K\n"
    "  qemu-system-x86_64 ... -chardev socket,id=link,path=/tmp/link.sock \\\n"
    "      -device ivshmem2,chardev=link";

typedef struct Config {
    Ivshmem2LinkConfig link;
    Ivshmem2DaemonConfig daemon;
    Ivshmem2Access *access;
    uint64_t socket_mode;
    gid_t socket_group;
} Config;

/* Options */

#define fail(error, ...) \
    ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT, __VA_ARGS__)

/* A number at the start of @text, and what follows it */
static bool scan_number(const char *text, unsigned base, uint64_t *value,
                        char **end)
{
    /* no sign, no space */
    if (!g_ascii_isxdigit(text[0])) {
        return false;
    }
    errno = 0;
    *value = g_ascii_strtoull(text, end, base);
    return !errno && *end != text;
}

/* Leaves @value alone if @text is NULL. */
static bool parse_number(const char *option, const char *text, uint64_t min,
                         uint64_t max, uint64_t *value, GError **error)
{
    bool hex = text && text[0] == '0' && g_ascii_tolower(text[1]) == 'x';
    uint64_t n;
    char *end;

    if (!text) {
        return true;
    }
    if (!scan_number(text, hex ? 16 : 10, &n, &end) || *end || n < min ||
        n > max) {
        return fail(error, "%s '%s' is not valid, it must be a number from "
                    "%" PRIu64 " to %" PRIu64, option, text, min, max);
    }
    *value = n;
    return true;
}

static bool parse_u32(const char *option, const char *text, uint32_t min,
                      uint32_t max, uint32_t *value, GError **error)
{
    uint64_t n = *value;
    bool ok = parse_number(option, text, min, max, &n, error);

    *value = n;
    return ok;
}

static bool scan_size(const char *text, uint64_t *value)
{
    static const char suffixes[] = "KMGT";
    const char *suffix;
    char *end;
    unsigned shift = 0;

    if (!scan_number(text, 10, value, &end)) {
        return false;
    }
    if (*end) {
        suffix = strchr(suffixes, g_ascii_toupper(*end));
        if (!suffix || end[1]) {
            return false;
        }
        shift = 10 * (suffix - suffixes + 1);
    }
    if (*value > UINT64_MAX >> shift) {
        return false;
    }
    *value <<= shift;
    return true;
}

static bool parse_size(const char *option, const char *text, uint64_t *value,
                       GError **error)
{
    if (text && (!scan_size(text, value) || *value > IVSHMEM2_MAX_SIZE)) {
        return fail(error, "%s '%s' is not valid, it must be a size from 0 to "
                    "%" PRIu64 "T, with or without a suffix K, M, G or T",
                    option, text, IVSHMEM2_MAX_SIZE >> 40);
    }
    return true;
}

static bool parse_page_size(Config *config, GError **error)
{
    uint64_t min = MAX(sysconf(_SC_PAGE_SIZE), IVSHMEM2_MIN_PAGE_SIZE);
    uint64_t size = 0;

    if (opt.page_size) {
        if (!scan_size(opt.page_size, &size) || size < min ||
            size > IVSHMEM2_MAX_PAGE_SIZE || (size & (size - 1))) {
            return fail(error, "--page-size '%s' is not valid, it must be a "
                        "power of two from %" PRIu64 "K to %dK", opt.page_size,
                        min / 1024, IVSHMEM2_MAX_PAGE_SIZE / 1024);
        }
        config->link.page_size = size;
    }
    return true;
}

static bool parse_huge_page_size(Config *config, GError **error)
{
    const char *text = opt.huge_page_size;
    uint64_t size = 0;

    if (text && (!scan_size(text, &size) || !size || (size & (size - 1)) ||
                 size > IVSHMEM2_MAX_SIZE)) {
        return fail(error, "--huge-pages '%s' is not valid, it must be a power "
                    "of two, like 2M", text);
    }
    config->link.huge_pages = opt.huge_pages;
    config->link.huge_page_size = size;
    return true;
}

static bool parse_interrupts(Config *config, GError **error)
{
    config->link.intx = opt.intx;
    if (!parse_u32("--vectors", opt.vectors, 1, IVSHMEM2_MAX_VECTORS,
                   &config->link.vectors, error)) {
        return false;
    }
    if (opt.intx) {
        if (opt.vectors && config->link.vectors != 1) {
            return fail(error, "--vectors '%s' does not go with --intx, which "
                        "has 1", opt.vectors);
        }
        config->link.vectors = 1;
    }
    return true;
}

static bool parse_protocol(Config *config, GError **error)
{
    uint32_t protocol = 0;

    if (!parse_u32("--protocol", opt.protocol, 0, UINT16_MAX, &protocol,
                   error) ||
        !parse_u32("--backend-id", opt.backend_id, 0,
                   config->link.max_peers - 1, &config->link.backend_id,
                   error)) {
        return false;
    }
    if (opt.backend_id && !(protocol & IVSHMEM2_PROTOCOL_VIRTIO)) {
        return fail(error, "--backend-id '%s' needs a --protocol from 0x%x to "
                    "0xffff, others have no back-end", opt.backend_id,
                    IVSHMEM2_PROTOCOL_VIRTIO);
    }
    config->link.protocol = protocol;
    return true;
}

static bool parse_socket(Config *config, GError **error)
{
    struct group *group;
    char *end;

    if (!opt.socket && (opt.socket_mode || opt.socket_group)) {
        return fail(error, "%s needs --socket",
                    opt.socket_mode ? "--socket-mode" : "--socket-group");
    }
    if (opt.socket_mode &&
        (!scan_number(opt.socket_mode, 8, &config->socket_mode, &end) ||
         *end || config->socket_mode > 0777)) {
        return fail(error, "--socket-mode '%s' is not valid, it must be an "
                    "octal number from 0 to 777", opt.socket_mode);
    }
    if (opt.socket_group) {
        group = getgrnam(opt.socket_group);
        if (!group) {
            return fail(error, "--socket-group '%s' is not valid, there is no "
                        "such group", opt.socket_group);
        }
        config->socket_group = group->gr_gid;
    }
    return true;
}

static bool parse_access(Config *config, GError **error)
{
    if (opt.access) {
        config->access = ivshmem2_access_load(opt.access,
                                              config->link.max_peers, error);
    }
    return !opt.access || config->access;
}

/* With a mistake in it, the old rules stay. */
static void reload_access(Config *config)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Access *old = config->access;

    if (parse_access(config, &error)) {
        ivshmem2_access_free(old);
        g_info("the new rules are for those who come from now on");
    } else {
        config->access = old;
        g_warning("the rules stay as they were: %s", error->message);
    }
}

static bool parse_config(Config *config, GError **error)
{
    uint32_t timeout = DEFAULT_HANDSHAKE_TIMEOUT;

    *config = (Config) {
        .link = {
            .max_peers = DEFAULT_MAX_PEERS,
            .vectors = DEFAULT_VECTORS,
            .push_limit = IVSHMEM2_PUSH_LIMIT,
        },
        .socket_mode = DEFAULT_SOCKET_MODE,
        .socket_group = -1,
    };
    if (!parse_u32("--max-peers", opt.max_peers, IVSHMEM2_MIN_PEERS,
                   IVSHMEM2_MAX_PEERS, &config->link.max_peers, error) ||
        !parse_interrupts(config, error) ||
        !parse_size("--rw-size", opt.rw_size, &config->link.rw_size, error) ||
        !parse_size("--output-size", opt.output_size,
                    &config->link.output_size, error) ||
        !parse_page_size(config, error) ||
        !parse_huge_page_size(config, error) ||
        !parse_protocol(config, error) ||
        !parse_u32("--push-limit", opt.push_limit, 0, MAX_PUSH_LIMIT,
                   &config->link.push_limit, error) ||
        !parse_u32("--handshake-timeout", opt.handshake_timeout, 1,
                   MAX_HANDSHAKE_TIMEOUT, &timeout, error) ||
        !parse_u32("--ids-per-user", opt.ids_per_user, 1, IVSHMEM2_MAX_PEERS,
                   &config->daemon.ids_per_user, error) ||
        !parse_socket(config, error) || !parse_access(config, error)) {
        return false;
    }
    if (config->link.output_size &&
        config->link.max_peers > IVSHMEM2_MAX_OUTPUTS) {
        return fail(error, "--output-size '%s' does not go with --max-peers "
                    "'%s': output sections are possible for up to %u peers",
                    opt.output_size, opt.max_peers, IVSHMEM2_MAX_OUTPUTS);
    }
    config->daemon.handshake_timeout = timeout;
    if (!ivshmem2_link_check(&config->link, error)) {
        g_prefix_error(error, "there can be no such link: ");
        return false;
    }
    return true;
}

/* Limits */

/* How many files may be open at once if @peers of the possible ones join? */
static uint64_t needed_fds(const Config *config, uint64_t peers)
{
    /* the socket, epoll, signals, stderr and the like */
    const uint64_t others = 16;
    const Ivshmem2LinkConfig *link = &config->link;
    uint64_t missing = link->max_peers - peers;
    uint64_t fds = ivshmem2_link_max_fds(link);

    if (ivshmem2_link_pushes(link)) {
        /* joiners are to leave as many to others as they take */
        fds += peers;
    } else {
        fds -= missing * link->vectors;
    }
    return others + IVSHMEM2_FD_RESERVE + peers + fds;
}

/* Returns the limit. */
static uint64_t raise_fd_limit(const Config *config)
{
    struct rlimit limit;
    rlim_t hard;

    if (getrlimit(RLIMIT_NOFILE, &limit) < 0) {
        return 0;
    }
    hard = limit.rlim_max;
    limit.rlim_max = MAX(hard, needed_fds(config, config->link.max_peers));
    limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) {
        limit.rlim_max = hard;
        limit.rlim_cur = hard;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    getrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

static void set_fd_limit(Config *config)
{
    uint64_t limit = raise_fd_limit(config);
    uint64_t reserve = MIN(IVSHMEM2_FD_RESERVE, limit / 4);
    uint64_t base = needed_fds(config, 0);
    uint64_t each = needed_fds(config, 1) - base;
    uint64_t need = needed_fds(config, config->link.max_peers);

    config->daemon.fd_limit = MIN(limit - reserve, G_MAXINT);
    config->link.fd_limit = config->daemon.fd_limit;
    if (limit && need > limit) {
        g_warning("the limit of %" PRIu64 " open files (RLIMIT_NOFILE) is "
                  "enough for about %" PRIu64 " peers, all %u need %" PRIu64,
                  limit, limit > base ? (limit - base) / each : 0,
                  config->link.max_peers, need);
    }
}

/* Life */

/* SIGHUP is for the rules, if there are any. */
static bool run(Config *config, Ivshmem2Daemon *daemon,
                const sigset_t *signals, GError **error)
{
    for (;;) {
        int sig;

        ivshmem2_daemon_set_access(daemon, config->access);
        sig = ivshmem2_daemon_run(daemon, signals, error);
        if (sig != SIGHUP || !config->access) {
            return sig > 0;
        }
        reload_access(config);
    }
}

static bool serve(Config *config, Ivshmem2Listener *listener,
                  const sigset_t *signals, GError **error)
{
    Ivshmem2Link *link = ivshmem2_link_new(&config->link, error);
    Ivshmem2Daemon *daemon;
    bool ok = false;

    if (!link) {
        g_prefix_error(error, "cannot make the link: ");
        return false;
    }
    daemon = ivshmem2_daemon_new(link, listener->fd, &config->daemon, error);
    if (daemon) {
        g_info("ready for %u peers with %u vectors%s%s",
               link->welcome.max_peers, link->welcome.vectors,
               listener->path ? " at " : "",
               listener->path ? listener->path : "");
        ivshmem2_notify("READY=1");
        ok = run(config, daemon, signals, error);
        ivshmem2_notify("STOPPING=1");
        ivshmem2_daemon_free(daemon);
    }
    ivshmem2_link_free(link);
    return ok;
}

static bool start(Config *config, GError **error)
{
    Ivshmem2Listener listener;
    sigset_t signals;
    bool ok;

    if (!ivshmem2_listen_inherited(&listener, error)) {
        return false;
    }
    if (listener.fd >= 0 && opt.socket) {
        return fail(error, "--socket '%s' is not needed: the service manager "
                    "passed a socket already", opt.socket);
    }
    if (listener.fd < 0 && !opt.socket) {
        return fail(error, "where to listen? --socket PATH is missing");
    }
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGHUP);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    set_fd_limit(config);
    if (listener.fd < 0 &&
        !ivshmem2_listen(&listener, opt.socket, config->socket_mode,
                         config->socket_group, error)) {
        return false;
    }
    ok = serve(config, &listener, &signals, error);
    ivshmem2_listen_end(&listener);
    return ok;
}

static bool parse_command_line(int *argc, char ***argv, GError **error)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);

    g_option_context_set_summary(context, help_head);
    g_option_context_set_description(context, help_tail);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, argc, argv, error)) {
        return false;
    }
    if (*argc > 1) {
        return fail(error, "'%s' is no option", (*argv)[1]);
    }
    return true;
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    Config config = { .access = NULL };
    bool ok = parse_command_line(&argc, &argv, &error);

    if (ok && opt.version) {
        g_print("ivshmem2-server, protocol versions %u to %u\n",
                IVSHMEM2_VERSION_MIN, IVSHMEM2_VERSION_MAX);
        return EXIT_SUCCESS;
    }
    if (ok && !ivshmem2_log_start(opt.log_level ? opt.log_level : "info")) {
        ok = fail(&error, "--log-level '%s' is not valid, it must be error, "
                  "warning, info or debug", opt.log_level);
    }
    ok = ok && parse_config(&config, &error) && start(&config, &error);
    if (!ok) {
        g_printerr("ivshmem2-server: %s\n", error->message);
    }
    ivshmem2_access_free(config.access);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
