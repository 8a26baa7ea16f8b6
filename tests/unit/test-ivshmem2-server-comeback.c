/*
 * ivshmem2-server: peers and servers that are killed, and those that come after
 * them
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"
#include <sys/ptrace.h>
#include "daemon.h"
#include "listen.h"
#include "process.h"

#define LONG_GRACE  3600

/* Processes */

/* Have @pid stop where it ends, with all its files open. */
static bool stop_at_exit(pid_t pid)
{
    return ptrace(PTRACE_SEIZE, pid, NULL, PTRACE_O_TRACEEXIT) == 0;
}

/* Kill it.  It does not end before continue_exit(). */
static void kill_and_stop(pid_t pid)
{
    int status;

    g_assert_cmpint(kill(pid, SIGKILL), ==, 0);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFSTOPPED(status));
}

static void continue_exit(pid_t pid)
{
    int status;

    g_assert_cmpint(ptrace(PTRACE_CONT, pid, NULL, NULL), ==, 0);
    g_assert_cmpint(waitpid(pid, &status, 0), ==, pid);
    g_assert_true(WIFSIGNALED(status));
}

/* A process that does nothing */
static pid_t start_process(void)
{
    pid_t parent = getpid();
    pid_t pid = fork();

    if (pid == 0) {
        die_with_parent(parent);
        pause();
        _exit(0);
    }
    return pid;
}

static void test_find(void)
{
    unsigned before = count_fds();
    pid_t pid = start_process();
    int none = make_eventfd();
    Ivshmem2Process *p = ivshmem2_process_open(none, pid);
    uint64_t start = ivshmem2_process_start_time(p);

    g_assert_cmpuint(start, >, 0);
    ivshmem2_process_free(p);
    /* not another process that has the pid */
    g_assert_null(ivshmem2_process_find(pid, start - 1));
    p = ivshmem2_process_find(pid, start);
    g_assert_true(ivshmem2_process_is_visible(p));
    g_assert_true(ivshmem2_process_is_alive(p));
    g_assert_false(ivshmem2_process_is_ending(p));
    kill(pid, SIGSTOP);
    g_assert_false(ivshmem2_process_is_ending(p));
    if (stop_at_exit(pid)) {
        kill_and_stop(pid);
        g_assert_true(ivshmem2_process_is_alive(p));
        g_assert_true(ivshmem2_process_is_ending(p));
        continue_exit(pid);
    } else {
        g_test_skip("the system forbids ptrace()");
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
    }
    g_assert_false(ivshmem2_process_is_alive(p));
    g_assert_true(ivshmem2_process_is_ending(p));
    g_assert_cmpuint(ivshmem2_process_start_time(p), ==, 0);
    g_assert_null(ivshmem2_process_find(pid, start));
    ivshmem2_process_free(p);
    /* nothing is known of these */
    for (int i = 0; i < 2; i++) {
        p = ivshmem2_process_find(i ? getpid() : 0, i ? 0 : start);
        g_assert_false(ivshmem2_process_is_visible(p));
        g_assert_false(ivshmem2_process_is_alive(p));
        g_assert_false(ivshmem2_process_is_ending(p));
        ivshmem2_process_free(p);
    }
    ivshmem2_close(&none);
    g_assert_cmpuint(count_fds(), ==, before);
}

/* IDs of processes that end */

static void assert_no_answer(Client *c)
{
    struct pollfd pfd = { .fd = c->transport.fd, .events = POLLIN };

    g_assert_cmpint(poll(&pfd, 1, NEVER_MS), ==, 0);
}

/*
 * Its process was killed and has not closed anything yet, or has closed its
 * connection only: another one waits for the ID.
 */
static void test_wait_for_end(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Server s;
    Client c;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    for (int held = 0; held < 2; held++) {
        other_start(&o, &s, 1, 4);
        if (held) {
            other_do(&o, ORDER_CLOSE);
        }
        if (!stop_at_exit(o.pid)) {
            g_test_skip("the system forbids ptrace()");
            other_end(&o, SIGKILL);
            break;
        }
        kill_and_stop(o.pid);
        client_connect(&c, &s);
        client_say(&c, &hello);
        assert_no_answer(&c);
        continue_exit(o.pid);
        client_complete(&c);
        client_leave(&c);
        ivshmem2_close(&o.fd);

        /* but not for ever */
        other_start(&o, &s, 1, 4);
        if (held) {
            other_do(&o, ORDER_CLOSE);
        }
        g_assert_true(stop_at_exit(o.pid));
        kill_and_stop(o.pid);
        client_refused_id(&s, 1, IVSHMEM2_REFUSAL_ID_TAKEN,
                          held ? "ID 1 is held for 'test' (pid " :
                          "ID 1 is taken by 'test' (pid ");
        continue_exit(o.pid);
        ivshmem2_close(&o.fd);
        wait_until_free(&s, 1);
    }
    server_end(&s);
}

/* On a full link with a free choice, too */
static void test_wait_for_any(void)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);
    Server s;
    Client a, c;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    client_join(&a, &s, 0);
    other_start(&o, &s, 1, 4);
    if (stop_at_exit(o.pid)) {
        kill_and_stop(o.pid);
        client_connect(&c, &s);
        client_say(&c, &hello);
        assert_no_answer(&c);
        continue_exit(o.pid);
        client_complete(&c);
        g_assert_cmpuint(c.welcome.id, ==, 1);
        client_leave(&c);
        ivshmem2_close(&o.fd);
    } else {
        g_test_skip("the system forbids ptrace()");
        other_end(&o, SIGKILL);
    }
    client_leave(&a);
    server_end(&s);
}

/* Microseconds until another process is refused ID 1 */
static int64_t time_of_refusal(Server *s)
{
    int64_t start = g_get_monotonic_time();

    client_refused_id(s, 1, IVSHMEM2_REFUSAL_ID_TAKEN, "ID 1 is ");
    return g_get_monotonic_time() - start;
}

/* The ID of a process that lives is refused at once. */
static void test_no_wait(void)
{
    Server s;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    other_start(&o, &s, 1, 4);
    for (int how = 0; how < 3; how++) {
        int64_t best = INT64_MAX;

        if (how == 1) {
            other_do(&o, ORDER_CLOSE);
        } else if (how == 2) {
            kill(o.pid, SIGSTOP);
        }
        /* this test may have to wait for a processor */
        for (int i = 0; i < 5; i++) {
            best = MIN(best, time_of_refusal(&s));
        }
        g_assert_cmpint(best, <, G_USEC_PER_SEC / 10);
    }
    other_end(&o, SIGKILL);
    server_end(&s);
}

/* Killed and started anew as fast as possible */
static void test_fast_restarts(void)
{
    Server s;
    Other o[2];

    server_init(&s);
    server_start(&s, "--max-peers 2");
    other_start(&o[0], &s, 1, 1);
    for (int i = 0; i < 100; i++) {
        Other *old = &o[i % 2];

        g_assert_cmpint(kill(old->pid, SIGKILL), ==, 0);
        /* fails if it is refused */
        other_start(&o[!(i % 2)], &s, 1, 1);
        g_assert_cmpint(waitpid(old->pid, NULL, 0), ==, old->pid);
        ivshmem2_close(&old->fd);
    }
    other_end(&o[0], SIGKILL);
    server_end(&s);
}

/* Servers: their link is kept by this process, as a service manager does it. */

typedef struct Keeper {
    Server s;
    Ivshmem2Listener listener;
    Ivshmem2Link *link;
} Keeper;

static void run_server(Keeper *k, unsigned grace)
{
    Ivshmem2Budget *budget = ivshmem2_budget_new(&(Ivshmem2BudgetConfig) { 0 });
    Ivshmem2Daemon *d;
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    d = ivshmem2_daemon_new(k->link, budget, k->listener.fd, 10, grace, NULL);
    if (d) {
        ivshmem2_daemon_run(d, &signals, NULL);
        ivshmem2_daemon_free(d);
    }
    ivshmem2_budget_free(budget);
    _exit(!d);
}

/* If one ran before, this is its successor. */
static void keeper_start(Keeper *k, unsigned grace)
{
    pid_t parent = getpid();

    k->s.pid = fork();
    g_assert_cmpint(k->s.pid, >=, 0);
    if (k->s.pid == 0) {
        die_with_parent(parent);
        run_server(k, grace);
    }
    k->link->adopted = true;
}

static void keeper_init(Keeper *k)
{
    const Ivshmem2LinkConfig config = {
        .max_peers = 3,
        .vectors = 2,
        .pushes = true,
    };
    g_autoptr(GError) error = NULL;

    server_init(&k->s);
    k->link = ivshmem2_link_new(&config, &error);
    g_assert_no_error(error);
    ivshmem2_listen(&k->listener, k->s.socket, 0600, -1, &error);
    g_assert_no_error(error);
    keeper_start(k, 1);
}

static void keeper_end(Keeper *k)
{
    g_assert_cmpint(server_stop(&k->s, SIGTERM), ==, 0);
    ivshmem2_listen_end(&k->listener);
    ivshmem2_link_free(k->link);
    server_end(&k->s);
}

/* Otherwise a successor would interrupt all again. */
static void wait_for_broadcast(Keeper *k)
{
    int tries = SOON_MS / 10;

    while (ivshmem2_record_broadcast(k->link->record)) {
        wait_a_little(&tries);
    }
}

static void keeper_restart(Keeper *k, unsigned grace)
{
    server_stop(&k->s, SIGKILL);
    keeper_start(k, grace);
}

/* Come back with what @c knows of the session. */
static void resume(Client *c, Server *s)
{
    Ivshmem2Msg hello = make_resume(c);
    Ivshmem2Welcome welcome = c->welcome;

    client_close(c);
    client_join_hello(c, s, &hello);
    g_assert_cmpmem(&c->welcome, sizeof(welcome), &welcome, sizeof(welcome));
}

static void test_back(void)
{
    Keeper k;
    Client a, b;

    keeper_init(&k);
    client_join(&a, &k.s, 0);
    client_join(&b, &k.s, 1);
    change_state(&b, 5);
    client_sync(&b);
    assert_interrupted(&a, 0);
    wait_for_broadcast(&k);
    for (int i = 0; i < 5; i++) {
        keeper_restart(&k, LONG_GRACE);
        ivshmem2_eventfd_signal(b.eventfds[0][1]);
        resume(&b, &k.s);
        resume(&a, &k.s);
        /* no state is lost, no doorbell either, and nobody is disturbed */
        assert_interrupted(&a, 1);
        assert_quiet(&a);
        assert_quiet(&b);
        g_assert_cmpuint(get_state(&a, 1), ==, 5);
    }
    /* a message that the server did not read */
    kill(k.s.pid, SIGSTOP);
    change_state(&b, 6);
    keeper_restart(&k, LONG_GRACE);
    resume(&b, &k.s);
    g_assert_cmpuint(get_state(&a, 1), ==, 6);
    assert_interrupted(&a, 0);
    client_leave(&b);
    resume(&a, &k.s);
    client_leave(&a);
    keeper_end(&k);
}

/* Peers die while there is no server, or in the period of grace. */
static void test_gone(void)
{
    Keeper k;
    Client a;
    Other o;

    keeper_init(&k);
    client_join(&a, &k.s, 0);
    for (int later = 0; later < 2; later++) {
        other_start(&o, &k.s, 1, 4);
        assert_interrupted(&a, 0);
        wait_for_broadcast(&k);
        server_stop(&k.s, SIGKILL);
        if (!later) {
            other_end(&o, SIGKILL);
        }
        g_assert_cmpuint(get_state(&a, 1), ==, 4);
        keeper_start(&k, LONG_GRACE);
        if (later) {
            client_refused_id(&k.s, 1, IVSHMEM2_REFUSAL_ID_TAKEN,
                              "until it comes back, 3600 s at most, and as "
                              "long as that process lives");
            assert_quiet(&a);
            other_end(&o, SIGKILL);
        }
        assert_interrupted(&a, 0);
        g_assert_cmpuint(get_state(&a, 1), ==, 0);
        resume(&a, &k.s);
        wait_until_free(&k.s, 1);
    }
    client_leave(&a);
    keeper_end(&k);
}

static void test_grace(void)
{
    unsigned n_fds;
    Keeper k;
    Client a;
    Other o;

    keeper_init(&k);
    client_join(&a, &k.s, 0);
    other_start(&o, &k.s, 1, 4);
    assert_interrupted(&a, 0);
    keeper_restart(&k, 1);
    resume(&a, &k.s);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 0);
    client_refused_id(&k.s, 1, IVSHMEM2_REFUSAL_ID_TAKEN, "as long as that "
                      "process lives");
    /* for the servers to come as well: a hold costs a descriptor */
    keeper_restart(&k, 0);
    resume(&a, &k.s);
    n_fds = server_count_fds(&k.s);
    other_do(&o, ORDER_CLOSE);
    other_do(&o, ORDER_JOIN);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 4);
    server_wait_fds(&k.s, n_fds);
    other_end(&o, SIGKILL);
    assert_interrupted(&a, 0);
    wait_until_free(&k.s, 1);
    server_wait_fds(&k.s, n_fds - 1);
    client_leave(&a);
    keeper_end(&k);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/ivshmem2/server-comeback/find", test_find);
    g_test_add_func("/ivshmem2/server-comeback/wait-for-end",
                    test_wait_for_end);
    g_test_add_func("/ivshmem2/server-comeback/wait-for-any",
                    test_wait_for_any);
    g_test_add_func("/ivshmem2/server-comeback/no-wait", test_no_wait);
    g_test_add_func("/ivshmem2/server-comeback/fast-restarts",
                    test_fast_restarts);
    g_test_add_func("/ivshmem2/server-comeback/back", test_back);
    g_test_add_func("/ivshmem2/server-comeback/gone", test_gone);
    g_test_add_func("/ivshmem2/server-comeback/grace", test_grace);
    return g_test_run();
}
