/*
 * The command line
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <grp.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>
#include "hw/misc/ivshmem2-regs.h"
#include "libivshmem2-util.h"
#include "options.h"

#define DEFAULT_MAX_PEERS           16
#define DEFAULT_VECTORS             2
#define DEFAULT_HANDSHAKE_TIMEOUT   10
#define MAX_HANDSHAKE_TIMEOUT       3600
#define DEFAULT_GRACE               30
#define MAX_GRACE                   3600
#define DEFAULT_SOCKET_MODE         0660
#define DEFAULT_LOG_LEVEL           "info"

/* The options' texts, NULL where there is none */
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
    char *grace;
    gboolean supervise;
    gboolean discard;
    char *access;
    char *ids_per_user;
    gboolean bind_ids;
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
      "File mode of the socket (default 660)", "OCTAL" },
    { "socket-group", 0, 0, G_OPTION_ARG_STRING, &opt.socket_group,
      "Group of the socket", "NAME" },
    { "access", 0, 0, G_OPTION_ARG_FILENAME, &opt.access,
      "Rules: users that may connect, and their IDs (see below)", "FILE" },
    { "ids-per-user", 0, 0, G_OPTION_ARG_STRING, &opt.ids_per_user,
      "Most IDs that one user can have at a time (default: all)", "N" },
    { "bind-ids", 0, 0, G_OPTION_ARG_NONE, &opt.bind_ids,
      "An ID that a user had is never given to another user", NULL },
    { "max-peers", 'n', 0, G_OPTION_ARG_STRING, &opt.max_peers,
      "Most peers that the link can have, 2 to 65536 (default 16)", "N" },
    { "vectors", 'v', 0, G_OPTION_ARG_STRING, &opt.vectors,
      "MSI-X vectors of each peer, 1 to 2048 (default 2)", "N" },
    { "intx", 0, 0, G_OPTION_ARG_NONE, &opt.intx,
      "Use INTx instead of MSI-X, with one vector", NULL },
    { "rw-size", 'r', 0, G_OPTION_ARG_STRING, &opt.rw_size,
      "Size of the section that all peers can write (default 0)", "SIZE" },
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
      "Up to so many peers x vectors, a peer is sent all eventfds when it "
      "joins, otherwise on first use (default 256)", "N" },
    { "handshake-timeout", 0, 0, G_OPTION_ARG_STRING,
      &opt.handshake_timeout,
      "Time that a peer has to join (default 10)", "SECONDS" },
    { "grace", 0, 0, G_OPTION_ARG_STRING, &opt.grace,
      "Time that peers have to come back after the server was restarted "
      "(default 30)", "SECONDS" },
    { "supervise", 0, 0, G_OPTION_ARG_NONE, &opt.supervise,
      "Stay behind the server, keep the link if it dies, and start it again",
      NULL },
    { "discard", 0, 0, G_OPTION_ARG_NONE, &opt.discard,
      "Begin a new link, whatever an earlier server left", NULL },
    { "log-level", 'l', 0, G_OPTION_ARG_STRING, &opt.log_level,
      "error, warning, info or debug: log from here on (default info)",
      "LEVEL" },
    { "version", 0, 0, G_OPTION_ARG_NONE, &opt.version,
      "Print the version of the server and of the protocol", NULL },
    { NULL }
};

static const char help_head[] =
    "Connects virtual machines (-device ivshmem2) and host programs to one "
    "link:\nshared memory and interrupts.";

static const char help_tail[] =
    "SIZE is a number of bytes, with or without one of the suffixes K, M, G "
    "and T.\nSections are rounded up to pages.\n"
    "\n"
    "The right number of vectors depends on the guests' drivers. Most work "
    "with 2;\nsome need exactly 1, 3 or 4.\n"
    "\n"
    "The file of --access has a section for each rule. With --access, only "
    "users that\na rule names, or whose group it names, may connect (* is "
    "every user), and only\nwith IDs of their rules. On SIGHUP, the server "
    "reads the file again.\n"
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
    "With --supervise, SIGUSR2 upgrades the server: the program at the same "
    "path\ncontinues the link with the same options. With systemd, restart "
    "the service.\n"
    "\n"
    "Example: four peers, 1 MiB for all and 64 KiB for each\n"
    "  ivshmem2-server --socket /tmp/link.sock --max-peers 4 --rw-size 1M "
    "--output-size 64K\n"
    "  qemu-system-x86_64 ... -chardev socket,id=link,path=/tmp/link.sock \\\n"
    "      -device ivshmem2,chardev=link";

/* The value stays if the option was not given: @text is NULL then. */
static bool parse_u32(const char *option, const char *text, uint32_t min,
                      uint32_t max, uint32_t *value, GError **error)
{
    uint64_t n = *value;
    bool ok = !text || ivshmem2_parse_number(option, text, min, max, &n,
                                             error);

    *value = n;
    return ok;
}

static bool scan_size(const char *text, uint64_t *value)
{
    static const char suffixes[] = "KMGT";
    const char *suffix, *end;
    unsigned shift = 0;

    if (!ivshmem2_scan_number(text, 10, value, &end)) {
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
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%s '%s' is not valid, it must be a size from 0 "
                             "to %" PRIu64 "T, with or without a suffix K, M, "
                             "G or T", option, text, IVSHMEM2_MAX_SIZE >> 40);
    }
    return true;
}

static bool parse_page_size(Ivshmem2Options *o, GError **error)
{
    uint64_t min = MAX(sysconf(_SC_PAGE_SIZE), IVSHMEM2_MIN_PAGE_SIZE);
    uint64_t size = 0;

    if (opt.page_size) {
        if (!scan_size(opt.page_size, &size) || size < min ||
            size > IVSHMEM2_MAX_PAGE_SIZE || (size & (size - 1))) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                                 "--page-size '%s' is not valid, it must be a "
                                 "power of two from %" PRIu64 "K to %dK",
                                 opt.page_size, min / 1024,
                                 IVSHMEM2_MAX_PAGE_SIZE / 1024);
        }
        o->link.page_size = size;
    }
    return true;
}

static bool parse_huge_page_size(Ivshmem2Options *o, GError **error)
{
    const char *text = opt.huge_page_size;
    uint64_t size = 0;

    if (text && (!scan_size(text, &size) || !size || (size & (size - 1)) ||
                 size > IVSHMEM2_MAX_SIZE)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--huge-pages '%s' is not valid, it must be a "
                             "power of two, like 2M", text);
    }
    o->link.huge_pages = opt.huge_pages;
    o->link.huge_page_size = size;
    return true;
}

static bool parse_interrupts(Ivshmem2Options *o, GError **error)
{
    o->link.intx = opt.intx;
    if (!parse_u32("--vectors", opt.vectors, 1, IVSHMEM2_MAX_VECTORS,
                   &o->link.vectors, error)) {
        return false;
    }
    if (opt.intx) {
        if (opt.vectors && o->link.vectors != 1) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                                 "--vectors '%s' does not go with --intx, "
                                 "which has 1", opt.vectors);
        }
        o->link.vectors = 1;
    }
    return true;
}

static bool parse_protocol(Ivshmem2Options *o, GError **error)
{
    uint32_t protocol = 0;

    if (!parse_u32("--protocol", opt.protocol, 0, UINT16_MAX, &protocol,
                   error) ||
        !parse_u32("--backend-id", opt.backend_id, 0,
                   o->link.max_peers - 1, &o->link.backend_id,
                   error)) {
        return false;
    }
    if (opt.backend_id && !(protocol & IVSHMEM2_PROTOCOL_VIRTIO)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--backend-id '%s' needs a --protocol from 0x%x "
                             "to 0xffff, others have no back-end",
                             opt.backend_id, IVSHMEM2_PROTOCOL_VIRTIO);
    }
    o->link.protocol = protocol;
    return true;
}

static bool parse_socket(Ivshmem2Options *o, GError **error)
{
    struct group *group;
    uint64_t mode;
    const char *end;

    if (!opt.socket && (opt.socket_mode || opt.socket_group)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%s needs --socket", opt.socket_mode ?
                             "--socket-mode" : "--socket-group");
    }
    if (opt.socket && opt.socket[0] == '@' &&
        (opt.socket_mode || opt.socket_group)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "%s is not possible with the abstract socket %s, "
                             "which has no permissions: use --access",
                             opt.socket_mode ? "--socket-mode"
                             : "--socket-group", opt.socket);
    }
    if (opt.socket_mode) {
        if (!ivshmem2_scan_number(opt.socket_mode, 8, &mode, &end) || *end ||
            mode > 0777) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                                 "--socket-mode '%s' is not valid, it must be "
                                 "an octal number from 0 to 777",
                                 opt.socket_mode);
        }
        o->socket_mode = mode;
    }
    if (opt.socket_group) {
        group = getgrnam(opt.socket_group);
        if (!group) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                                 "--socket-group '%s' is not valid, there is "
                                 "no such group", opt.socket_group);
        }
        o->socket_group = group->gr_gid;
    }
    return true;
}

static bool parse_restart(Ivshmem2Options *o, GError **error)
{
    if (opt.supervise && opt.discard) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--discard does not go with --supervise: end the "
                             "supervisor and start it again for a new link");
    }
    return parse_u32("--grace", opt.grace, 0, MAX_GRACE, &o->grace, error);
}

static bool parse_values(Ivshmem2Options *o, GError **error)
{
    if (!parse_u32("--max-peers", opt.max_peers, IVSHMEM2_MIN_PEERS,
                   IVSHMEM2_MAX_PEERS, &o->link.max_peers, error) ||
        !parse_interrupts(o, error) ||
        !parse_size("--rw-size", opt.rw_size, &o->link.rw_size, error) ||
        !parse_size("--output-size", opt.output_size, &o->link.output_size,
                    error) ||
        !parse_page_size(o, error) || !parse_huge_page_size(o, error) ||
        !parse_protocol(o, error) ||
        !parse_u32("--push-limit", opt.push_limit, 0, IVSHMEM2_MAX_PUSH_LIMIT,
                   &o->budget.push_limit, error) ||
        !parse_u32("--handshake-timeout", opt.handshake_timeout, 1,
                   MAX_HANDSHAKE_TIMEOUT, &o->handshake_timeout, error) ||
        !parse_restart(o, error) ||
        !parse_u32("--ids-per-user", opt.ids_per_user, 1, IVSHMEM2_MAX_PEERS,
                   &o->budget.ids_per_user, error) ||
        !parse_socket(o, error)) {
        return false;
    }
    if (o->link.output_size && o->link.max_peers > IVSHMEM2_MAX_OUTPUTS) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--output-size '%s' does not go with --max-peers "
                             "'%s': output sections are possible for up to %u "
                             "peers", opt.output_size, opt.max_peers,
                             IVSHMEM2_MAX_OUTPUTS);
    }
    if (!ivshmem2_link_check(&o->link, error)) {
        g_prefix_error(error, "there can be no such link: ");
        return false;
    }
    return true;
}

static bool parse_command_line(int argc, char **argv, GError **error)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);

    g_option_context_set_summary(context, help_head);
    g_option_context_set_description(context, help_tail);
    g_option_context_add_main_entries(context, entries, NULL);
    if (!g_option_context_parse(context, &argc, &argv, error)) {
        return false;
    }
    if (argc > 1) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "'%s' is not an option", argv[1]);
    }
    return true;
}

bool ivshmem2_options_parse(Ivshmem2Options *o, int argc, char **argv,
                            GError **error)
{
    if (!parse_command_line(argc, argv, error)) {
        return false;
    }
    *o = (Ivshmem2Options) {
        .version = opt.version,
        .log_level = opt.log_level ? opt.log_level : DEFAULT_LOG_LEVEL,
        .socket = opt.socket,
        .socket_mode = DEFAULT_SOCKET_MODE,
        .socket_group = -1,
        .access = opt.access,
        .link = {
            .max_peers = DEFAULT_MAX_PEERS,
            .vectors = DEFAULT_VECTORS,
        },
        .budget = {
            .push_limit = IVSHMEM2_PUSH_LIMIT,
            .bind_ids = opt.bind_ids,
        },
        .handshake_timeout = DEFAULT_HANDSHAKE_TIMEOUT,
        .grace = DEFAULT_GRACE,
        .supervise = opt.supervise,
        .discard = opt.discard,
    };
    return o->version || parse_values(o, error);
}
