/*
 * ivshmem2-server under a watchdog: while clients do what makes a system call
 * wait, another one gets its answers, and the server ends when it is told to
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "ivshmem2-raw-client.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sys/syscall.h>

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS   83
#endif

/* The answers that are waited for, and the time between two of them */
#define PINGS           5
#define PING_INTERVAL   (G_USEC_PER_SEC / 10)

/* For one answer, and for the end: a stopped server never does either. */
#define ANSWER_MS       5000

/* Longer than the tests take */
#define LINGER_SECONDS  1000

/* More than the server lets wait for being closed */
#define MANY            70

typedef struct Watched {
    Server s;
    Client c;                   /* the one that needs answers, ID 0 */
} Watched;

typedef struct Case {
    const char *name;
    const char *options;
    unsigned n;                 /* attackers */
    int flags;                  /* of sendmsg() */
    bool joined;
    bool ignore_answers;
    bool kernel_takes_fds;      /* as before Linux 6.16 */
} Case;

/* A kernel on which the calls fail that @opaque, a Kernel, says */
typedef enum Kernel {
    KERNEL_TAKES_FDS = 1,
    KERNEL_WITHOUT_AIO = 2,
} Kernel;

static void restrict_kernel(void *opaque)
{
    Kernel kernel = *(Kernel *)opaque;
    bool fds = kernel == KERNEL_TAKES_FDS;
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, fds ? SYS_setsockopt : SYS_io_setup,
                 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS,
                 offsetof(struct seccomp_data, args[2]) +
                 (G_BYTE_ORDER == G_BIG_ENDIAN ? 4 : 0)),
        BPF_JUMP(BPF_JMP | (fds ? BPF_JEQ : BPF_JGE) | BPF_K,
                 fds ? SO_PASSRIGHTS : 0, 0, 1),
        BPF_STMT(BPF_RET | BPF_K,
                 SECCOMP_RET_ERRNO | (fds ? ENOPROTOOPT : EAGAIN)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { G_N_ELEMENTS(code), code };

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0) {
        _exit(99);
    }
}

static void watched_start(Watched *w, Kernel kernel, const char *options)
{
    g_auto(GStrv) argv = NULL;

    server_init(&w->s);
    argv = server_argv("", w->s.socket, options);
    w->s.pid = spawn(argv, kernel ? restrict_kernel : NULL, &kernel);
    wait_for_file(w->s.socket);
    client_join(&w->c, &w->s, 0);
}

/* The answer to a ring that reaches nobody comes at once. */
static void ping(Watched *w)
{
    int64_t start = g_get_monotonic_time();

    client_ring(&w->c, 3, 0);
    g_assert_cmpint(g_get_monotonic_time() - start, <, ANSWER_MS * 1000);
}

static void watched_end(Watched *w)
{
    int tries = ANSWER_MS / 10;
    int status;

    kill(w->s.pid, SIGTERM);
    while (waitpid(w->s.pid, &status, WNOHANG) == 0) {
        wait_a_little(&tries);
    }
    g_assert_cmpint(status, ==, 0);
    w->s.pid = 0;
    client_close(&w->c);
}

/* A connected socket whose close waits, as nobody reads what it has sent */
static int socket_that_lingers(int *other)
{
    struct linger linger = { .l_onoff = 1, .l_linger = LINGER_SECONDS };
    struct sockaddr_in addr = {
        .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof(addr);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    char block[65536] = { 0 };

    g_assert_cmpint(bind(listener, (struct sockaddr *)&addr, len), ==, 0);
    g_assert_cmpint(listen(listener, 1), ==, 0);
    getsockname(listener, (struct sockaddr *)&addr, &len);
    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, len), ==, 0);
    *other = accept(listener, NULL, NULL);
    ivshmem2_close(&listener);
    while (send(fd, block, sizeof(block), MSG_DONTWAIT) > 0) {
        continue;
    }
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
    return fd;
}

/* Send @msg with descriptor @fd.  Returns false if the kernel refuses. */
static bool send_descriptor(Client *c, Ivshmem2Msg *msg, int fd, int flags)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } space = { .bytes = { 0 } };
    struct iovec iov = { .iov_base = msg, .iov_len = ivshmem2_msg_encode(msg) };
    struct msghdr mh = {
        .msg_iov = &iov, .msg_iovlen = 1,
        .msg_control = &space, .msg_controllen = sizeof(space),
    };
    struct cmsghdr *cm = CMSG_FIRSTHDR(&mh);

    cm->cmsg_level = SOL_SOCKET;
    cm->cmsg_type = SCM_RIGHTS;
    cm->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cm), &fd, sizeof(fd));
    return sendmsg(c->transport.fd, &mh, flags | MSG_NOSIGNAL) >= 0 ||
           errno != EPERM;
}

static void attack(Watched *w, const Case *t, int *other)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);
    Ivshmem2Msg ring = { .hdr.type = IVSHMEM2_MSG_RING };
    int fd = socket_that_lingers(other);
    struct linger off = { 0 };
    Client c;

    if (t->joined) {
        client_join(&c, &w->s, IVSHMEM2_ID_ANY);
    } else {
        client_connect(&c, &w->s);
    }
    /* the last one is to be with the server */
    kill(w->s.pid, SIGSTOP);
    if (!send_descriptor(&c, t->joined ? &ring : &hello, fd, t->flags)) {
        /* so this is the only one, and its close must not wait */
        g_assert_false(t->kernel_takes_fds);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof(off));
        close(fd);
        kill(w->s.pid, SIGCONT);
    } else {
        close(fd);
        kill(w->s.pid, SIGCONT);
        if (!t->ignore_answers) {
            /* the end may be ECONNRESET, as not all was read */
            assert_says_text(
                client_hear(&c, IVSHMEM2_MSG_REFUSED)->refusal.text,
                "descriptors came");
        }
    }
    client_close(&c);
}

static void test_descriptor(gconstpointer opaque)
{
    const Case *t = opaque;
    int others[MANY];
    Watched w;

    watched_start(&w, t->kernel_takes_fds ? KERNEL_TAKES_FDS : 0, t->options);
    for (unsigned i = 0; i < t->n; i++) {
        attack(&w, t, &others[i]);
        ping(&w);
    }
    for (int i = 0; i < PINGS; i++) {
        g_usleep(PING_INTERVAL);
        ping(&w);
    }
    watched_end(&w);
    for (unsigned i = 0; i < t->n; i++) {
        ivshmem2_close(&others[i]);
    }
    server_end(&w.s);
}

typedef struct Filler {
    int fd;
    gint answers;               /* that the server has given */
    gint writing;
    gint stop;
    gint stopped;
} Filler;

/* Fills its own eventfd as the server looks at it, and leaves it full. */
static gpointer fill(gpointer opaque)
{
    Filler *f = opaque;
    uint64_t most = UINT64_MAX - 1;

    fcntl(f->fd, F_SETFL, 0);
    while (!g_atomic_int_get(&f->stop)) {
        gint answers = g_atomic_int_get(&f->answers);

        ivshmem2_eventfd_drain(f->fd);
        for (int i = g_random_int_range(0, 2000); i; i--) {
            g_atomic_int_get(&f->stop);
        }
        g_atomic_int_set(&f->writing, 1);
        g_assert_cmpint(write(f->fd, &most, sizeof(most)), ==, sizeof(most));
        g_atomic_int_set(&f->writing, 0);
        while (g_atomic_int_get(&f->answers) == answers &&
               !g_atomic_int_get(&f->stop)) {
            continue;
        }
    }
    g_atomic_int_set(&f->stopped, 1);
    return NULL;
}

/* The server was faster: let the filler try again. */
static gpointer empty(gpointer opaque)
{
    Filler *f = opaque;

    while (!g_atomic_int_get(&f->stopped)) {
        if (g_atomic_int_get(&f->writing)) {
            ivshmem2_eventfd_drain(f->fd);
        }
        g_usleep(100);
    }
    return NULL;
}

static void test_full_eventfd(void)
{
    int64_t end = g_get_monotonic_time() + 3 * G_USEC_PER_SEC;
    GThread *threads[2];
    Watched w;
    Client c;
    Filler f = { 0 };

    watched_start(&w, KERNEL_WITHOUT_AIO, "--max-peers 4");
    client_join(&c, &w.s, 1);
    f.fd = c.eventfds[1][0];
    threads[0] = g_thread_new("fill", fill, &f);
    threads[1] = g_thread_new("empty", empty, &f);
    while (g_get_monotonic_time() < end) {
        for (int i = 0; i < 100; i++) {
            client_ring(&w.c, 1, 0);
            g_atomic_int_inc(&f.answers);
        }
        ping(&w);
    }
    g_atomic_int_set(&f.stop, 1);
    g_thread_join(threads[0]);
    g_thread_join(threads[1]);
    /* interrupts still arrive */
    for (int i = 0; i < 10; i++) {
        client_ring(&c, 0, 0);
        assert_interrupted(&w.c, 0);
    }
    client_close(&c);
    watched_end(&w);
    server_end(&w.s);
}

static const Case cases[] = {
    { "hello", "--max-peers 100", .n = 1 },
    { "joined", "--max-peers 100", .n = 1, .joined = true },
    { "old-kernel/hello", "--max-peers 100", .n = 1,
      .kernel_takes_fds = true },
    { "old-kernel/joined", "--max-peers 100", .n = 2, .joined = true,
      .kernel_takes_fds = true },
    { "old-kernel/no-answer", "--max-peers 100", .n = 3,
      .ignore_answers = true, .kernel_takes_fds = true },
    { "old-kernel/urgent", "--max-peers 100", .n = 1, .flags = MSG_OOB,
      .ignore_answers = true, .kernel_takes_fds = true },
    { "old-kernel/many", "--max-peers 100", .n = MANY,
      .kernel_takes_fds = true },
};

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (size_t i = 0; i < G_N_ELEMENTS(cases); i++) {
        g_autofree char *name = g_strdup_printf(
            "/ivshmem2/server-watchdog/descriptor/%s", cases[i].name);

        g_test_add_data_func(name, &cases[i], test_descriptor);
    }
    g_test_add_func("/ivshmem2/server-watchdog/full-eventfd",
                    test_full_eventfd);
    return g_test_run();
}
