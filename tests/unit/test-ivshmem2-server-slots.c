/*
 * ivshmem2-server: which ID a client gets, gives back, holds and resumes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-raw-client.h"
#include <sys/stat.h>
#include <sys/syscall.h>
#include "loop.h"
#include "process.h"

/* Processes */

/* A process that connects and then does nothing; *@fd: this end */
static pid_t start_process(int *fd)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    socklen_t len = sizeof(addr);
    int listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pid_t pid;

    /* the system chooses an abstract name */
    g_assert_cmpint(bind(listen_fd, (struct sockaddr *)&addr,
                         sizeof(addr.sun_family)), ==, 0);
    g_assert_cmpint(getsockname(listen_fd, (struct sockaddr *)&addr, &len),
                    ==, 0);
    g_assert_cmpint(listen(listen_fd, 1), ==, 0);
    pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        connect(socket(AF_UNIX, SOCK_STREAM, 0), (struct sockaddr *)&addr,
                len);
        pause();
        _exit(0);
    }
    *fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC);
    g_assert_cmpint(*fd, >=, 0);
    ivshmem2_close(&listen_fd);
    return pid;
}

static void end_process(pid_t pid)
{
    g_assert_cmpint(kill(pid, SIGKILL), ==, 0);
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
}

static void count_gone(void *opaque)
{
    ++*(unsigned *)opaque;
}

static void test_process(void)
{
    unsigned before = count_fds();
    Ivshmem2Timers timers = { .duration = 1000 };
    Ivshmem2Loop loop;

    g_assert_true(ivshmem2_loop_init(&loop, NULL));
    for (int how = 0; how < 3; how++) {
        Ivshmem2Process *p;
        unsigned gone = 0;
        int fd, no_socket = make_eventfd();
        pid_t pid = start_process(&fd);

        switch (how) {
        case 0:
            p = ivshmem2_process_open(fd, pid);
            break;
        case 1:
            /* no pidfd, so it is the pid that counts */
            p = ivshmem2_process_open(no_socket, pid);
            break;
        default:
            /* no pid: it is the time that counts */
            p = ivshmem2_process_open(fd, 0);
        }
        g_assert_nonnull(p);
        ivshmem2_process_watch(p, &loop, &timers, count_gone, &gone);
        g_usleep(5000);
        ivshmem2_loop_turn(&loop, 0, false);
        ivshmem2_timers_run(&timers);
        g_assert_cmpuint(gone, ==, how == 2);
        end_process(pid);
        g_usleep(5000);
        ivshmem2_loop_turn(&loop, 0, false);
        ivshmem2_timers_run(&timers);
        g_assert_cmpuint(gone, ==, 1);
        ivshmem2_process_free(p);
        g_assert_cmpint(ivshmem2_timers_next(&timers), ==, -1);
        if (how == 0) {
            g_assert_null(ivshmem2_process_open(fd, pid));
        }
        ivshmem2_close(&fd);
        ivshmem2_close(&no_socket);
    }
    ivshmem2_loop_clear(&loop);
    g_assert_cmpuint(count_fds(), ==, before);
}

/* Refusals */

static void test_refusals(void)
{
    Ivshmem2Msg hello;
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 2 --vectors 4");

    hello = make_hello(0);
    hello.hello.version_min = 2;
    hello.hello.version_max = 9;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_VERSION, "versions 2 to 9");
    hello.hello.version_min = 0;
    hello.hello.version_max = 0;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_VERSION, "this server 1 to 1");
    hello.hello.version_min = 3;
    hello.hello.version_max = 1;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_VERSION, "versions 3 to 1");

    hello = make_hello(0);
    hello.hello.vectors = 3;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_INTERRUPTS,
                   "needs MSI-X with 4 vectors, the peer offers 3");
    hello.hello.features = IVSHMEM2_F_INTX;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_INTERRUPTS,
                   "uses MSI-X, which the peer does not offer");

    client_refused_id(&s, 2, IVSHMEM2_REFUSAL_ID_RANGE,
                      "ID 2 is out of range, this link has 0 to 1");

    hello = make_hello(0);
    hello.hello.session[5] = 1;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_SESSION, "not of this server");

    hello = make_hello(1);
    strcpy(hello.hello.name, "vm-a");
    client_join_hello(&a, &s, &hello);
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_ID_TAKEN,
                      "ID 1 is taken by 'vm-a' (pid ");
    /* unknown versions and features are accepted */
    hello = make_hello(IVSHMEM2_ID_ANY);
    hello.hello.version_max = 500;
    hello.hello.features = UINT32_MAX;
    hello.hello.vectors = UINT32_MAX;
    client_join_hello(&b, &s, &hello);
    g_assert_cmpuint(b.welcome.id, ==, 0);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_FULL,
                      "the link is full: all 2 IDs are taken");
    client_leave(&b);
    /* unknown roles are not */
    hello = make_hello(IVSHMEM2_ID_ANY);
    hello.hello.role = 7;
    client_refused(&s, &hello, IVSHMEM2_REFUSAL_PROTOCOL,
                   "role 7 is not known, this server knows 0 (peer)");
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    client_leave(&b);
    client_leave(&a);
    server_end(&s);
}

/* The refusal arrives even if the server leaves messages unread. */
static void test_refusal_of_a_talker(void)
{
    Ivshmem2Msg hello = make_hello(7);
    Server s;
    Client c;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    for (int i = 0; i < 20; i++) {
        client_connect(&c, &s);
        client_say(&c, &hello);
        for (int n = 0; n < 100; n++) {
            g_autoptr(GError) error = NULL;

            ivshmem2_transport_send(&c.transport, &hello, NULL, &error);
        }
        client_hear_refusal(&c, IVSHMEM2_REFUSAL_ID_RANGE, "ID 7");
        client_close(&c);
    }
    server_end(&s);
}

static void test_lowest_id(void)
{
    Server s;
    Client c[4];

    server_init(&s);
    server_start(&s, "--max-peers 70");
    for (uint32_t i = 0; i < 4; i++) {
        client_join(&c[i], &s, IVSHMEM2_ID_ANY);
        g_assert_cmpuint(c[i].welcome.id, ==, i);
    }
    client_leave(&c[2]);
    client_leave(&c[1]);
    client_join(&c[1], &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(c[1].welcome.id, ==, 1);
    client_join(&c[2], &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(c[2].welcome.id, ==, 2);
    for (uint32_t i = 0; i < 4; i++) {
        client_leave(&c[i]);
    }
    server_end(&s);
}

/* Giving a slot back */

static void test_goodbye(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    client_join(&a, &s, 0);
    client_join(&b, &s, 1);
    ivshmem2_eventfd_signal(b.eventfds[0][0]);
    ivshmem2_eventfd_signal(b.eventfds[0][1]);
    client_leave(&a);
    /* another process gets the slot, without signals for the last owner */
    {
        Other o;

        other_start(&o, &s, 0, 0);
        g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[0][0]), ==, 0);
        g_assert_cmpuint(ivshmem2_eventfd_drain(b.eventfds[0][1]), ==, 0);
        other_end(&o, 0);
    }
    client_leave(&b);
    server_end(&s);
}

/* What was signalled before a peer joined is not for it. */
static void test_rung_before(void)
{
    Server s;
    Client a, b;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 3");
    client_join(&a, &s, 0);
    /* nobody had the ID yet */
    ivshmem2_eventfd_signal(a.eventfds[1][0]);
    client_join(&b, &s, 1);
    assert_quiet(&b);
    /* its last owner left */
    client_leave(&b);
    ivshmem2_eventfd_signal(a.eventfds[1][1]);
    client_join(&b, &s, 1);
    assert_quiet(&b);
    /* it was held for the same process */
    client_close(&b);
    ivshmem2_eventfd_signal(a.eventfds[1][1]);
    client_join(&b, &s, 1);
    assert_quiet(&b);
    client_leave(&b);
    /* it was held for another one */
    other_start(&o, &s, 1, 0);
    other_do(&o, ORDER_CLOSE);
    other_end(&o, 0);
    wait_until_free(&s, 1);
    ivshmem2_eventfd_signal(a.eventfds[1][1]);
    client_join(&b, &s, 1);
    assert_quiet(&b);
    /* and what comes later is */
    ivshmem2_eventfd_signal(a.eventfds[1][1]);
    assert_interrupted(&b, 1);
    client_leave(&b);
    client_leave(&a);
    server_end(&s);
}

/* GOODBYE and close at once, with answers that the client never reads */
static void test_goodbye_and_close(void)
{
    unsigned n_fds;
    Server s;
    Other o;
    Client a;

    server_init(&s);
    server_start(&s, "--max-peers 2 --push-limit 0");
    client_join(&a, &s, 1);
    n_fds = server_count_fds(&s) - 1;
    client_leave(&a);
    for (int i = 0; i < 20; i++) {
        client_join(&a, &s, 1);
        for (int n = 0; n < 5 * i; n++) {
            client_say_target(&a, IVSHMEM2_MSG_RING, 1, 0);
        }
        client_say_type(&a, IVSHMEM2_MSG_GOODBYE);
        client_close(&a);
        server_wait_fds(&s, n_fds);
        /* another process would be refused if the slot were held */
        other_start(&o, &s, 1, 0);
        other_end(&o, 0);
        server_wait_fds(&s, n_fds);
    }
    server_end(&s);
}

/* GOODBYE in the middle of the handshake */
static void test_goodbye_early(void)
{
    Ivshmem2Msg hello = make_hello(1);
    unsigned n_fds;
    Client a;
    Server s;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 500 --output-size 4K");
    client_join(&a, &s, 1);
    n_fds = server_count_fds(&s) - 1;
    client_leave(&a);
    for (int i = 0; i < 10; i++) {
        client_connect(&a, &s);
        client_say(&a, &hello);
        client_hear(&a, IVSHMEM2_MSG_WELCOME);
        client_say_type(&a, IVSHMEM2_MSG_GOODBYE);
        client_close(&a);
        server_wait_fds(&s, n_fds);
        other_start(&o, &s, 1, 0);
        other_end(&o, SIGKILL);
        server_wait_fds(&s, n_fds);
    }
    server_end(&s);
}

static void test_hold(void)
{
    Server s;
    Client a, b;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 3");
    client_join(&a, &s, 0);
    other_start(&o, &s, 1, 4);
    assert_interrupted(&a, 0);
    other_do(&o, ORDER_CLOSE);
    /* its state is cleared at once */
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 0);
    /* but its slot is held */
    client_refused_id(&s, 1, IVSHMEM2_REFUSAL_ID_TAKEN,
                      "ID 1 is held for 'test' (pid ");
    client_join(&b, &s, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(b.welcome.id, ==, 2);
    client_refused_id(&s, IVSHMEM2_ID_ANY, IVSHMEM2_REFUSAL_FULL, "all 3");
    /* RING does not signal it */
    client_ring(&a, 1, 0);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.eventfds[1][0]), ==, 0);
    /* the same process may come back */
    other_do(&o, ORDER_JOIN);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 4);
    other_do(&o, ORDER_CLOSE);
    assert_interrupted(&a, 0);
    /* its death clears what it wrote while the slot was held */
    a.table[1] = GUINT32_TO_LE(8);
    ivshmem2_eventfd_signal(a.eventfds[1][1]);
    other_end(&o, SIGKILL);
    wait_until_free(&s, 1);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 1), ==, 0);
    g_assert_cmpuint(ivshmem2_eventfd_drain(a.eventfds[1][1]), ==, 0);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* No slot is held for a process that was killed. */
static void test_killed(void)
{
    Server s;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 2");
    for (int i = 0; i < 10; i++) {
        other_start(&o, &s, 1, 1);
        other_end(&o, SIGKILL);
        wait_until_free(&s, 1);
    }
    server_end(&s);
}

/* A server that cannot see the pids of its clients */
static void test_invisible_pid(void)
{
    Server s;
    Client a;

    server_init(&s);
    if (geteuid() != 0 || !have_program("unshare")) {
        g_test_skip("needs root and unshare(1)");
        server_end(&s);
        return;
    }
    server_start_with(&s, "unshare --pid --fork --kill-child ",
                      "--max-peers 2");
    client_join(&a, &s, 1);
    client_close(&a);
    /* a HELLO waits as long as that */
    client_join(&a, &s, 1);
    client_leave(&a);
    server_stop(&s, SIGKILL);
    g_unlink(s.socket);
    server_end(&s);
}

/* A process of one user keeps its descriptors: no other user gets the ID. */
static void test_bound_ids(void)
{
    Ivshmem2Msg any = make_hello(IVSHMEM2_ID_ANY);
    Ivshmem2Msg first = make_hello(0);
    Server s;
    Client a, b, c;

    server_init(&s);
    if (geteuid() != 0) {
        g_test_skip("only root can become two users");
        server_end(&s);
        return;
    }
    server_start(&s, "--max-peers 2 --output-size 4K --bind-ids "
                 "--socket-mode 666");
    g_assert_cmpint(chmod(s.dir, 0711), ==, 0);
    client_join_as(&a, &s, USER_UID, 0, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(a.welcome.id, ==, 0);
    client_say_type(&a, IVSHMEM2_MSG_GOODBYE);
    g_assert_cmpuint(client_hear_any(&a), ==, 0);
    /* the former occupant can write, but not to another user's section */
    client_join_as(&b, &s, OTHER_UID, 0, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(b.welcome.id, ==, 1);
    g_assert_cmpint(pwrite(a.outputs[0], "evil", 4, 0), ==, 4);
    g_assert_cmpint(pwrite(a.outputs[1], "evil", 4, 0), ==, -1);
    client_close(&a);

    /* nobody has ID 0, and it is for its user only */
    client_connect_as(&c, &s, OTHER_UID, 0);
    client_say(&c, &first);
    client_hear_refusal(&c, IVSHMEM2_REFUSAL_PERMISSION, "ID 0 belongs to");
    client_close(&c);
    client_connect_as(&c, &s, OTHER_UID, 0);
    client_say(&c, &any);
    client_hear_refusal(&c, IVSHMEM2_REFUSAL_FULL, "--bind-ids");
    client_close(&c);
    client_join_as(&a, &s, USER_UID, 0, IVSHMEM2_ID_ANY);
    g_assert_cmpuint(a.welcome.id, ==, 0);
    client_leave(&a);
    client_leave(&b);
    server_end(&s);
}

/* Resuming */

static void test_resume(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a, b, c;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    client_join(&b, &s, 2);
    resume = make_resume(&b);
    change_state(&b, 6);
    client_sync(&b);
    assert_interrupted(&a, 0);

    /* after the connection was lost, and the state changed meanwhile */
    ivshmem2_transport_clear(&b.transport);
    assert_interrupted(&a, 0);
    g_assert_cmpuint(get_state(&a, 2), ==, 0);
    set_state(&b, 7);
    client_join_hello(&c, &s, &resume);
    g_assert_cmpmem(&c.welcome, sizeof(c.welcome), &b.welcome,
                    sizeof(b.welcome));
    g_assert_cmpuint(get_state(&a, 2), ==, 7);
    assert_interrupted(&a, 0);
    /* the eventfds are the same, and nothing in them is lost */
    ivshmem2_eventfd_signal(b.eventfds[2][1]);
    assert_interrupted(&c, 1);
    client_close(&b);

    /* while the server believes the old connection to be alive */
    client_join_hello(&b, &s, &resume);
    client_hear_refusal(&c, IVSHMEM2_REFUSAL_SESSION, "resumed by another");
    client_close(&c);
    client_sync(&b);

    /* after GOODBYE, the slot is free and any peer may have it */
    client_leave(&b);
    client_join_hello(&b, &s, &resume);
    client_leave(&b);
    client_leave(&a);
    server_end(&s);
}

static void test_resume_refused(void)
{
    Ivshmem2Msg resume;
    Server s;
    Client a;
    Other o;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    resume = make_resume(&a);
    /* the slot of another process, connected or not */
    other_start(&o, &s, 2, 0);
    resume.hello.id = 2;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "ID 2 is taken by");
    other_do(&o, ORDER_CLOSE);
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "ID 2 is held for");
    other_do(&o, ORDER_JOIN);
    other_end(&o, 0);
    resume.hello.id = IVSHMEM2_ID_ANY;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_ID_RANGE, "out of range");
    resume = make_resume(&a);
    resume.hello.session[0] ^= 1;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "started anew");
    client_sync(&a);
    client_leave(&a);

    /* the same link of a server that was started anew */
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    server_start(&s, "--max-peers 4");
    resume.hello.session[0] ^= 1;
    client_refused(&s, &resume, IVSHMEM2_REFUSAL_SESSION, "started anew");
    server_end(&s);
}

/* fork(); 0 or the pid that the child is to have.  -1: that is impossible. */
static pid_t fork_as(pid_t pid)
{
    struct {
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack,
                 stack_size, tls, set_tid, set_tid_size;
    } args = {
        .exit_signal = SIGCHLD,
        .set_tid = pid ? (uintptr_t)&pid : 0,
        .set_tid_size = pid ? 1 : 0,
    };

    return syscall(SYS_clone3, &args, sizeof(args));
}

/*
 * Have a child connect and pass its connection to this process.  Unless it is
 * to @stay, it ends then.  Returns its pid.
 */
static pid_t client_connect_by_child(Client *c, Server *s, pid_t pid,
                                     bool stay)
{
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    pid_t parent = getpid();
    pid_t child;
    int fds[2];
    char byte;

    g_strlcpy(addr.sun_path, s->socket, sizeof(addr.sun_path));
    g_assert_cmpint(pipe2(fds, O_CLOEXEC), ==, 0);
    child = fork_as(pid);
    if (child == 0) {
        die_with_parent(parent);
        if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) == 0 &&
            write(fds[1], "", 1) == 1 && stay) {
            pause();
        }
        _exit(0);
    }
    ivshmem2_close(&fds[1]);
    if (child > 0) {
        g_assert_cmpint(read(fds[0], &byte, 1), ==, 1);
        *c = (Client) { .memory = { -1, -1 } };
        ivshmem2_transport_init_consume(&c->transport, fd, IVSHMEM2_SERVER);
        if (!stay) {
            g_assert_cmpint(waitpid(child, NULL, 0), ==, child);
        }
    } else {
        ivshmem2_close(&fd);
    }
    ivshmem2_close(&fds[0]);
    return child;
}

/* A process does not inherit the claims of another one that had its pid. */
static void test_resume_with_recycled_pid(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Ivshmem2Msg resume;
    Client a, b;
    pid_t pid;
    Server s;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    pid = client_connect_by_child(&a, &s, 0, false);
    g_assert_cmpint(pid, >, 0);
    client_say(&a, &hello);
    client_complete(&a);
    resume = make_resume(&a);
    if (client_connect_by_child(&b, &s, pid, true) == pid) {
        client_say(&b, &resume);
        client_hear_refusal(&b, IVSHMEM2_REFUSAL_SESSION, "ID 1 is taken by");
        client_close(&b);
        client_sync(&a);
        kill(pid, SIGKILL);
        g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    } else {
        g_test_skip("only root can choose the pid of a process");
    }
    client_leave(&a);
    server_end(&s);
}

/*
 * A stopped server has not read yet that the peer left, nor what it sent
 * before; another process asks for the slot meanwhile, and gets it.
 */
static void test_goodbye_to_a_stopped_server(void)
{
    static const int before[] = { 0, 1, 10, 100 };
    Ivshmem2Msg hello = make_hello(1);
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 3");
    for (size_t i = 0; i < G_N_ELEMENTS(before); i++) {
        client_join(&a, &s, 1);
        g_assert_cmpint(kill(s.pid, SIGSTOP), ==, 0);
        for (int n = 0; n < before[i]; n++) {
            client_say_target(&a, IVSHMEM2_MSG_RING, 0, 0);
        }
        client_say_type(&a, IVSHMEM2_MSG_GOODBYE);
        client_close(&a);
        client_connect_by_child(&b, &s, 0, false);
        client_say(&b, &hello);
        g_assert_cmpint(kill(s.pid, SIGCONT), ==, 0);
        client_complete(&b);
        client_leave(&b);
    }
    server_end(&s);
}

/* Nobody is there any more to have the slot, although the process lives. */
static void test_hello_and_close(void)
{
    Ivshmem2Msg hello = make_hello(1);
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 3");
    g_assert_cmpint(kill(s.pid, SIGSTOP), ==, 0);
    client_connect(&a, &s);
    client_say(&a, &hello);
    client_close(&a);
    client_connect_by_child(&b, &s, 0, false);
    client_say(&b, &hello);
    g_assert_cmpint(kill(s.pid, SIGCONT), ==, 0);
    client_complete(&b);
    client_leave(&b);
    server_end(&s);
}

/* As many requests as the kernel takes: a goodbye has no room any more. */
static void fill_socket(Client *c)
{
    const Ivshmem2Msg ring = { .hdr.type = IVSHMEM2_MSG_RING };
    const Ivshmem2Msg goodbye = { .hdr.type = IVSHMEM2_MSG_GOODBYE };

    while (ivshmem2_transport_send(&c->transport, &ring, NULL, NULL) > 0) {
        continue;
    }
    g_assert_cmpint(ivshmem2_transport_send(&c->transport, &goodbye, NULL,
                                            NULL), ==, 0);
}

/*
 * The peer could not say goodbye to a stopped server.  The slot is free as
 * soon as the peer's process has ended, and held before.
 */
static void test_no_room_for_goodbye(void)
{
    Ivshmem2Msg hello = make_hello(1);
    pid_t parent = getpid();
    Server s;
    Client a, b;
    pid_t pid;

    server_init(&s);
    server_start(&s, "--max-peers 3");
    pid = fork();
    if (pid == 0) {
        die_with_parent(parent);
        client_join(&a, &s, 1);
        kill(s.pid, SIGSTOP);
        fill_socket(&a);
        _exit(0);
    }
    g_assert_cmpint(waitpid(pid, NULL, 0), ==, pid);
    client_connect_by_child(&b, &s, 0, false);
    client_say(&b, &hello);
    g_assert_cmpint(kill(s.pid, SIGCONT), ==, 0);
    client_complete(&b);
    client_leave(&b);

    client_join(&a, &s, 1);
    g_assert_cmpint(kill(s.pid, SIGSTOP), ==, 0);
    fill_socket(&a);
    client_close(&a);
    client_connect_by_child(&b, &s, 0, false);
    client_say(&b, &hello);
    g_assert_cmpint(kill(s.pid, SIGCONT), ==, 0);
    client_hear_refusal(&b, IVSHMEM2_REFUSAL_ID_TAKEN, "ID 1 is held for");
    client_close(&b);
    server_end(&s);
}

static void test_shutdown(void)
{
    Server s;
    Client a, b;

    server_init(&s);
    server_start(&s, "--max-peers 4");
    client_join(&a, &s, 0);
    client_join(&b, &s, 1);
    change_state(&a, 3);
    client_sync(&a);
    assert_interrupted(&b, 0);
    g_assert_cmpint(server_stop(&s, SIGTERM), ==, 0);
    client_hear_refusal(&a, IVSHMEM2_REFUSAL_SHUTDOWN, "the server ends");
    client_hear_refusal(&b, IVSHMEM2_REFUSAL_SHUTDOWN, "the server ends");
    /* the peers work without the server */
    g_assert_cmpuint(get_state(&b, 0), ==, 3);
    assert_quiet(&b);
    ivshmem2_eventfd_signal(b.eventfds[0][1]);
    assert_interrupted(&a, 1);
    client_close(&a);
    client_close(&b);
    server_end(&s);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    g_test_add_func("/ivshmem2/server/process", test_process);
    g_test_add_func("/ivshmem2/server/refusals", test_refusals);
    g_test_add_func("/ivshmem2/server/refusal-of-a-talker",
                    test_refusal_of_a_talker);
    g_test_add_func("/ivshmem2/server/lowest-id", test_lowest_id);
    g_test_add_func("/ivshmem2/server/goodbye", test_goodbye);
    g_test_add_func("/ivshmem2/server/rung-before", test_rung_before);
    g_test_add_func("/ivshmem2/server/goodbye-and-close",
                    test_goodbye_and_close);
    g_test_add_func("/ivshmem2/server/goodbye-early", test_goodbye_early);
    g_test_add_func("/ivshmem2/server/goodbye-to-a-stopped-server",
                    test_goodbye_to_a_stopped_server);
    g_test_add_func("/ivshmem2/server/hello-and-close", test_hello_and_close);
    g_test_add_func("/ivshmem2/server/no-room-for-goodbye",
                    test_no_room_for_goodbye);
    g_test_add_func("/ivshmem2/server/hold", test_hold);
    g_test_add_func("/ivshmem2/server/killed", test_killed);
    g_test_add_func("/ivshmem2/server/invisible-pid", test_invisible_pid);
    g_test_add_func("/ivshmem2/server/bound-ids", test_bound_ids);
    g_test_add_func("/ivshmem2/server/resume", test_resume);
    g_test_add_func("/ivshmem2/server/resume-refused", test_resume_refused);
    g_test_add_func("/ivshmem2/server/resume-with-recycled-pid",
                    test_resume_with_recycled_pid);
    g_test_add_func("/ivshmem2/server/shutdown", test_shutdown);
    return g_test_run();
}
