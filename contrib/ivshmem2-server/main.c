/*
 * ivshmem2-server: connects the peers of one ivshmem2 link
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include "daemon.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "listen.h"
#include "log.h"
#include "options.h"
#include "supervise.h"

/* Rules */

/* *@access is NULL if there is no file with rules. */
static bool load_access(const Ivshmem2Options *o, Ivshmem2Access **access,
                        GError **error)
{
    *access = o->access ? ivshmem2_access_load(o->access, o->link.max_peers,
                                               error) : NULL;
    return !o->access || *access;
}

/* If there is a mistake in the new rules, the old ones stay. */
static void reload_access(const Ivshmem2Options *o, Ivshmem2Access **access)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Access *new_access;

    if (load_access(o, &new_access, &error)) {
        ivshmem2_access_free(*access);
        *access = new_access;
        g_info("the new rules apply to connections from now on");
    } else {
        g_warning("the rules stay as they were: %s", error->message);
    }
}

/* The link */

/* Everything that a server works with */
typedef struct Server {
    Ivshmem2Options *options;
    Ivshmem2Access *access;
    Ivshmem2Store *store;
    Ivshmem2Inherited inherited;
    Ivshmem2Listener listener;
    Ivshmem2Link *link;
    sigset_t signals;
} Server;

/* Go on with what the server before this one left, if it left anything. */
static bool adopt_link(Server *s, GError **error)
{
    const Ivshmem2LinkConfig *config = &s->options->link;
    Ivshmem2Inherited *in = &s->inherited;

    if (!ivshmem2_inherited_has_link(in)) {
        return true;
    }
    if (s->options->discard || !ivshmem2_link_was_served(in)) {
        g_info("discarding what an earlier server left");
        ivshmem2_store_forget(s->store);
        ivshmem2_inherited_discard(in);
        return true;
    }
    s->link = ivshmem2_link_adopt(config, in, error);
    if (!s->link) {
        g_prefix_error(error, "cannot continue the link that was handed over "
                       "(--discard would begin a new one, without the peers "
                       "of this one): ");
    }
    return s->link;
}

static bool make_link(Server *s, GError **error)
{
    if (!s->link) {
        s->link = ivshmem2_link_new(&s->options->link, error);
        if (!s->link) {
            g_prefix_error(error, "cannot make the link: ");
        }
    }
    return s->link;
}

/* The socket */

static bool listen_anew(Server *s, GError **error)
{
    const Ivshmem2Options *o = s->options;

    if (!o->socket) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--socket PATH is missing, and the service manager "
                             "passed no socket");
    }
    return ivshmem2_listen(&s->listener, o->socket, o->socket_mode,
                           o->socket_group, error);
}

static bool get_socket(Server *s, GError **error)
{
    int fd = s->inherited.listen_fd;

    if (fd < 0) {
        return listen_anew(s, error);
    }
    s->inherited.listen_fd = -1;
    return ivshmem2_listen_inherited(&s->listener, fd, s->options->socket,
                                     error);
}

/* A service manager has those that it passed. */
static void keep_socket(Server *s)
{
    s->listener.kept = ivshmem2_store_put(s->link->config.store,
                                          IVSHMEM2_STORE_LISTEN,
                                          &s->listener.fd, 1) == 1;
}

/* Life */

static void refuse_upgrade(const Server *s)
{
    if (ivshmem2_store_is_supervisor(s->store)) {
        g_warning("to upgrade this server, send SIGUSR2 to its supervisor, "
                  "process %d", getppid());
    } else {
        g_warning("this server has no supervisor that could upgrade it: "
                  "restart its service, or start it with --supervise");
    }
}

/* SIGHUP has the rules read again; without rules it ends the server. */
static bool run(Server *s, Ivshmem2Daemon *daemon, GError **error)
{
    for (;;) {
        int sig;

        ivshmem2_daemon_set_access(daemon, s->access);
        sig = ivshmem2_daemon_run(daemon, &s->signals, error);
        if (sig == SIGUSR2) {
            refuse_upgrade(s);
        } else if (sig == SIGHUP && s->access) {
            reload_access(s->options, &s->access);
        } else {
            return sig > 0;
        }
    }
}

static bool serve(Server *s, GError **error)
{
    g_autoptr(GError) warning = NULL;
    const Ivshmem2Options *o = s->options;
    Ivshmem2Budget *budget = ivshmem2_budget_new(&o->budget);
    Ivshmem2Daemon *daemon;
    bool ok = false;

    if (!ivshmem2_signals_prepare(&warning)) {
        g_warning("%s", warning->message);
    }
    daemon = ivshmem2_daemon_new(s->link, budget, s->listener.fd,
                                 o->handshake_timeout, o->grace, error);
    if (daemon) {
        g_info("%s for %u peers with %u vectors%s%s%s",
               s->link->adopted ? "ready to go on" : "ready",
               s->link->welcome.max_peers, s->link->welcome.vectors,
               o->socket ? " at " : "", o->socket ? o->socket : "",
               o->budget.bind_ids ? ", each ID stays with the user that has "
               "it first" : "");
        ivshmem2_store_notify(s->store, "READY=1");
        ivshmem2_store_started(s->store);
        ok = run(s, daemon, error);
        ivshmem2_store_notify(s->store, "STOPPING=1");
        ivshmem2_daemon_free(daemon);
    }
    ivshmem2_budget_free(budget);
    return ok;
}

static void block_signals(sigset_t *signals)
{
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGHUP);
    sigaddset(signals, SIGUSR2);
    sigprocmask(SIG_BLOCK, signals, NULL);
}

/*
 * Nothing is made before it is certain that what was handed over is complete,
 * and no memory before it is certain that nobody else listens at the path.
 */
static bool start_server(Server *s, GError **error)
{
    bool passed;

    s->store = ivshmem2_store_open(error);
    if (!s->store) {
        return false;
    }
    block_signals(&s->signals);
    ivshmem2_budget_plan(&s->options->budget, &s->options->link);
    s->options->link.store = s->store;
    if (!adopt_link(s, error)) {
        return false;
    }
    passed = s->inherited.listen_fd >= 0;
    if (!get_socket(s, error) || !make_link(s, error)) {
        return false;
    }
    if (!passed) {
        keep_socket(s);
    }
    return serve(s, error);
}

static bool start(Ivshmem2Options *o, GError **error)
{
    Server s = { .options = o, .listener.fd = -1 };
    bool ok;

    ivshmem2_inherited_init(&s.inherited);
    ok = load_access(o, &s.access, error) && start_server(&s, error);
    ivshmem2_listen_end(&s.listener);
    ivshmem2_link_free(s.link);
    ivshmem2_access_free(s.access);
    ivshmem2_inherited_clear(&s.inherited);
    ivshmem2_store_close(s.store);
    return ok;
}

static bool start_log(const Ivshmem2Options *o, GError **error)
{
    return ivshmem2_log_start(o->log_level) ||
           ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                         "--log-level '%s' is not valid, it must be error, "
                         "warning, info or debug", o->log_level);
}

int main(int argc, char **argv)
{
    g_autoptr(GError) error = NULL;
    g_auto(GStrv) args = g_strdupv(argv);
    Ivshmem2Options options;
    int status = -1;
    bool ok = ivshmem2_options_parse(&options, argc, argv, &error);

    if (ok && options.version) {
        g_print("ivshmem2-server %d.%d.%d, protocol versions %u to %u\n",
                LIBIVSHMEM2_VERSION_MAJOR, LIBIVSHMEM2_VERSION_MINOR,
                LIBIVSHMEM2_VERSION_MICRO, IVSHMEM2_VERSION_MIN,
                IVSHMEM2_VERSION_MAX);
        return EXIT_SUCCESS;
    }
    ok = ok && start_log(&options, &error);
    if (ok && options.supervise && !ivshmem2_is_supervised()) {
        status = ivshmem2_supervise(&options, args, &error);
    } else if (ok && start(&options, &error)) {
        status = EXIT_SUCCESS;
    }
    if (status < 0) {
        g_printerr("ivshmem2-server: %s\n", error->message);
    }
    return status < 0 ? EXIT_FAILURE : status;
}
