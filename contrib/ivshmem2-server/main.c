/*
 * ivshmem2-server: connects the peers of one ivshmem2 link
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <signal.h>
#include <stdlib.h>
#include "daemon.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "listen.h"
#include "log.h"
#include "options.h"

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

/* Life */

/* SIGHUP has the rules read again; without rules it ends the server. */
static bool run(const Ivshmem2Options *o, Ivshmem2Daemon *daemon,
                Ivshmem2Access **access, const sigset_t *signals,
                GError **error)
{
    for (;;) {
        int sig;

        ivshmem2_daemon_set_access(daemon, *access);
        sig = ivshmem2_daemon_run(daemon, signals, error);
        if (sig != SIGHUP || !*access) {
            return sig > 0;
        }
        reload_access(o, access);
    }
}

static bool serve(const Ivshmem2Options *o, Ivshmem2Listener *listener,
                  Ivshmem2Access **access, const sigset_t *signals,
                  GError **error)
{
    g_autoptr(GError) warning = NULL;
    Ivshmem2Link *link = ivshmem2_link_new(&o->link, error);
    Ivshmem2Budget *budget;
    Ivshmem2Daemon *daemon;
    bool ok = false;

    if (!link) {
        g_prefix_error(error, "cannot make the link: ");
        return false;
    }
    if (!ivshmem2_signals_prepare(&warning)) {
        g_warning("%s", warning->message);
    }
    budget = ivshmem2_budget_new(&o->budget);
    daemon = ivshmem2_daemon_new(link, budget, listener->fd,
                                 o->handshake_timeout, o->grace, error);
    if (daemon) {
        g_info("ready for %u peers with %u vectors%s%s%s",
               link->welcome.max_peers, link->welcome.vectors,
               listener->path ? " at " : "",
               listener->path ? listener->path : "",
               o->budget.bind_ids ? ", each ID stays with the user that has "
               "it first" : "");
        ivshmem2_notify("READY=1");
        ok = run(o, daemon, access, signals, error);
        ivshmem2_notify("STOPPING=1");
        ivshmem2_daemon_free(daemon);
    }
    ivshmem2_budget_free(budget);
    ivshmem2_link_free(link);
    return ok;
}

static void block_signals(sigset_t *signals)
{
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(signals);
    sigaddset(signals, SIGTERM);
    sigaddset(signals, SIGINT);
    sigaddset(signals, SIGHUP);
    sigprocmask(SIG_BLOCK, signals, NULL);
}

static bool start(Ivshmem2Options *o, Ivshmem2Access **access, GError **error)
{
    Ivshmem2Listener listener;
    sigset_t signals;
    bool ok;

    if (!ivshmem2_listen_inherited(&listener, error)) {
        return false;
    }
    if (listener.fd >= 0 && o->socket) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--socket '%s' is not needed: the service manager "
                             "passed a socket already", o->socket);
    }
    if (listener.fd < 0 && !o->socket) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "--socket PATH is missing, and the service manager "
                             "passed no socket");
    }
    block_signals(&signals);
    ivshmem2_budget_plan(&o->budget, &o->link);
    if (listener.fd < 0 &&
        !ivshmem2_listen(&listener, o->socket, o->socket_mode,
                         o->socket_group, error)) {
        return false;
    }
    ok = serve(o, &listener, access, &signals, error);
    ivshmem2_listen_end(&listener);
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
    Ivshmem2Options options;
    Ivshmem2Access *access = NULL;
    bool ok = ivshmem2_options_parse(&options, argc, argv, &error);

    if (ok && options.version) {
        g_print("ivshmem2-server %d.%d.%d, protocol versions %u to %u\n",
                LIBIVSHMEM2_VERSION_MAJOR, LIBIVSHMEM2_VERSION_MINOR,
                LIBIVSHMEM2_VERSION_MICRO, IVSHMEM2_VERSION_MIN,
                IVSHMEM2_VERSION_MAX);
        return EXIT_SUCCESS;
    }
    ok = ok && start_log(&options, &error) &&
         load_access(&options, &access, &error) &&
         start(&options, &access, &error);
    if (!ok) {
        g_printerr("ivshmem2-server: %s\n", error->message);
    }
    ivshmem2_access_free(access);
    return ok ? EXIT_SUCCESS : EXIT_FAILURE;
}
