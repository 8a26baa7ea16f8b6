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
#include <linux/fuse.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

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
    char *rules;                /* the file of --access, or NULL */
    int64_t idle;               /* the longest answer before, in us */
    int64_t longest;            /* and while the server is attacked */
} Watched;

typedef struct Case {
    const char *name;
    const char *options;
    unsigned n;                 /* attackers */
    int flags;                  /* of sendmsg() */
    bool joined;
    bool no_access;             /* attackers are of users without access */
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

/* The answer to a ring that reaches nobody comes at once. */
static void ping(Watched *w)
{
    int64_t start = g_get_monotonic_time();

    client_ring(&w->c, 3, 0);
    start = g_get_monotonic_time() - start;
    g_assert_cmpint(start, <, ANSWER_MS * 1000);
    w->longest = MAX(w->longest, start);
}

static void ping_for_a_while(Watched *w)
{
    for (int i = 0; i < PINGS; i++) {
        g_usleep(PING_INTERVAL);
        ping(w);
    }
}

/* @access: only for the user of this process */
static void watched_start(Watched *w, Kernel kernel, const char *options,
                          bool access)
{
    g_autofree char *rules = g_strdup_printf("[one]\nusers = %u\n",
                                             geteuid());
    g_autofree char *all = NULL;
    g_auto(GStrv) argv = NULL;

    server_init(&w->s);
    g_assert_cmpint(chmod(w->s.dir, 0711), ==, 0);
    w->longest = 0;
    w->rules = access ? g_build_filename(w->s.dir, "rules", NULL) : NULL;
    if (access) {
        g_assert_true(g_file_set_contents(w->rules, rules, -1, NULL));
    }
    all = g_strdup_printf("--socket-mode 666 %s%s%s", options,
                          access ? " --access " : "",
                          access ? w->rules : "");
    argv = server_argv("", w->s.socket, all);
    w->s.pid = spawn(argv, kernel ? restrict_kernel : NULL, &kernel);
    wait_for_file(w->s.socket);
    client_join(&w->c, &w->s, 0);
    ping_for_a_while(w);
    w->idle = w->longest;
    w->longest = 0;
}

/* @release: called as soon as the server has done what it does at its end */
static void watched_stop(Watched *w, void (*release)(void *opaque),
                             void *opaque)
{
    int64_t start = g_get_monotonic_time();
    int tries = ANSWER_MS;
    int status;

    kill(w->s.pid, SIGTERM);
    while (g_file_test(w->s.socket, G_FILE_TEST_EXISTS)) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(1000);
    }
    if (release) {
        release(opaque);
    }
    while (waitpid(w->s.pid, &status, WNOHANG) == 0) {
        g_assert_cmpint(tries--, >, 0);
        g_usleep(1000);
    }
    g_test_message("longest answer %.1f ms (before the attack %.1f ms), "
                   "SIGTERM to end %.1f ms", w->longest / 1e3,
                   w->idle / 1e3, (g_get_monotonic_time() - start) / 1e3);
    g_assert_cmpint(status, ==, 0);
    w->s.pid = 0;
}

static void watched_clear(Watched *w)
{
    client_close(&w->c);
    if (w->rules) {
        g_unlink(w->rules);
        g_clear_pointer(&w->rules, g_free);
    }
    server_end(&w->s);
}

static void watched_end(Watched *w)
{
    watched_stop(w, NULL, NULL);
    watched_clear(w);
}

/* Attackers are of two other users, if they can be. */
static void connect_attacker(Client *c, Server *s, unsigned i)
{
    client_connect_as(c, s, i % 2 ? USER_UID : OTHER_UID, 0);
}

static void join_attacker(Client *c, Server *s, unsigned i)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);

    connect_attacker(c, s, i);
    client_say(c, &hello);
    client_complete(c);
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

static void attack(Watched *w, const Case *t, unsigned i, int *other)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);
    Ivshmem2Msg ring = { .hdr.type = IVSHMEM2_MSG_RING };
    int fd = socket_that_lingers(other);
    struct linger off = { 0 };
    Client c;

    if (t->joined) {
        join_attacker(&c, &w->s, i);
    } else {
        connect_attacker(&c, &w->s, i);
    }
    if (t->no_access) {
        assert_says_text(client_hear(&c, IVSHMEM2_MSG_REFUSED)->refusal.text,
                         "may not connect");
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
        if (!t->ignore_answers && !t->no_access) {
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

    if (t->no_access && geteuid() != 0) {
        g_test_skip("only root can become a user without access");
        return;
    }
    watched_start(&w, t->kernel_takes_fds ? KERNEL_TAKES_FDS : 0, t->options,
                  t->no_access);
    for (unsigned i = 0; i < t->n; i++) {
        attack(&w, t, i, &others[i]);
        ping(&w);
    }
    ping_for_a_while(&w);
    watched_stop(&w, NULL, NULL);
    for (unsigned i = 0; i < t->n; i++) {
        ivshmem2_close(&others[i]);
    }
    watched_clear(&w);
}

/*
 * A FUSE file.  The last reference to an open one waits until all that was
 * written to it by other references has got to the program that serves it,
 * also if no process has it as a descriptor any more.
 */

#define FUSE_FILE_SIZE  4096

typedef struct Fuse {
    char *path;                 /* of the file, in a mount namespace */
    pid_t pid;                  /* of the program that serves it */
} Fuse;

static void fuse_answer(int fd, uint64_t unique, int error, const void *data,
                        size_t size)
{
    struct fuse_out_header out = {
        .len = sizeof(out) + size, .unique = unique, .error = error,
    };
    struct iovec iov[] = {
        { .iov_base = &out, .iov_len = sizeof(out) },
        { .iov_base = (void *)data, .iov_len = size },
    };

    if (writev(fd, iov, G_N_ELEMENTS(iov)) < 0) {
        _exit(1);
    }
}

/* Answer all requests but those to write. */
static void fuse_serve(int fd)
{
    const struct fuse_init_out init = {
        .major = FUSE_KERNEL_VERSION, .minor = 31,
        .flags = FUSE_WRITEBACK_CACHE, .max_write = FUSE_FILE_SIZE,
    };
    const struct fuse_attr_out attr = {
        .attr = {
            .ino = 1, .mode = S_IFREG | 0666, .nlink = 1,
            .size = FUSE_FILE_SIZE,
        },
    };
    const struct fuse_open_out opened = { .fh = 1 };
    char buf[FUSE_MIN_READ_BUFFER * 2];
    char page[FUSE_FILE_SIZE] = { 0 };
    struct fuse_in_header in;

    while (read(fd, buf, sizeof(buf)) > 0) {
        memcpy(&in, buf, sizeof(in));
        switch (in.opcode) {
        case FUSE_INIT:
            fuse_answer(fd, in.unique, 0, &init, sizeof(init));
            break;
        case FUSE_GETATTR:
        case FUSE_SETATTR:
            fuse_answer(fd, in.unique, 0, &attr, sizeof(attr));
            break;
        case FUSE_OPEN:
            fuse_answer(fd, in.unique, 0, &opened, sizeof(opened));
            break;
        case FUSE_READ:
            fuse_answer(fd, in.unique, 0, page, sizeof(page));
            break;
        case FUSE_WRITE:
            break;
        default:
            fuse_answer(fd, in.unique, -ENOSYS, NULL, 0);
        }
    }
}

/* Returns false, with the test skipped, if this system has no FUSE. */
static bool fuse_start(Fuse *f, const char *dir)
{
    g_autofree char *options = NULL;
    pid_t parent = getpid();
    int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);

    if (fd < 0 || unshare(CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0) {
        g_test_skip(fd < 0 ? "there is no /dev/fuse that this user may open"
                           : "this user may not mount file systems");
        ivshmem2_close(&fd);
        return false;
    }
    f->path = g_build_filename(dir, "fuse", NULL);
    options = g_strdup_printf("fd=%d,rootmode=%o,user_id=%u,group_id=%u", fd,
                              S_IFREG | 0666, geteuid(), getegid());
    g_assert_true(g_file_set_contents(f->path, "", 0, NULL));
    if (mount("ivshmem2", f->path, "fuse", 0, options) < 0) {
        g_test_skip("this user may not mount FUSE file systems");
        g_unlink(f->path);
        g_clear_pointer(&f->path, g_free);
        ivshmem2_close(&fd);
        return false;
    }
    f->pid = fork();
    if (f->pid == 0) {
        die_with_parent(parent);
        fuse_serve(fd);
        _exit(0);
    }
    ivshmem2_close(&fd);
    return true;
}

/* Now nobody serves the file, and all that wait for it go on. */
static void fuse_end(void *opaque)
{
    Fuse *f = opaque;

    kill(f->pid, SIGKILL);
    g_assert_cmpint(waitpid(f->pid, NULL, 0), ==, f->pid);
    g_assert_cmpint(umount2(f->path, MNT_DETACH), ==, 0);
    g_assert_cmpint(g_unlink(f->path), ==, 0);
    g_clear_pointer(&f->path, g_free);
}

/*
 * In a process of its own, as its end waits as well: send the file so that the
 * server has the last reference, and then write to the file by another one.
 * Returns false if the kernel refuses to send it.
 */
static bool fuse_send(Watched *w, const Fuse *f, unsigned i)
{
    Ivshmem2Msg hello = make_hello(IVSHMEM2_ID_ANY);
    int fd = open(f->path, O_RDWR | O_CLOEXEC);
    int other = open(f->path, O_RDWR | O_CLOEXEC);
    char *page = mmap(NULL, FUSE_FILE_SIZE, PROT_READ | PROT_WRITE,
                      MAP_SHARED, other, 0);
    Client c;
    bool sent;

    g_assert_true(fd >= 0 && other >= 0 && page != MAP_FAILED);
    g_assert_cmpint(ftruncate(fd, FUSE_FILE_SIZE), ==, 0);
    g_assert_cmpint(__atomic_load_n(page, __ATOMIC_RELAXED), ==, 0);
    connect_attacker(&c, &w->s, i);
    kill(w->s.pid, SIGSTOP);
    sent = send_descriptor(&c, &hello, fd, 0);
    close(fd);
    __atomic_store_n(page, 1, __ATOMIC_RELAXED);
    kill(w->s.pid, SIGCONT);
    return sent;
}

static pid_t fuse_attack(Watched *w, const Fuse *f, unsigned i, bool *sent)
{
    pid_t parent = getpid();
    int fds[2];
    pid_t pid;

    g_assert_cmpint(pipe2(fds, O_CLOEXEC), ==, 0);
    pid = fork();
    if (pid == 0) {
        die_with_parent(parent);
        *sent = fuse_send(w, f, i);
        g_assert_cmpint(write(fds[1], sent, sizeof(*sent)), ==, sizeof(*sent));
        pause();
    }
    ivshmem2_close(&fds[1]);
    g_assert_cmpint(read(fds[0], sent, sizeof(*sent)), ==, sizeof(*sent));
    ivshmem2_close(&fds[0]);
    return pid;
}

static void test_fuse(gconstpointer opaque)
{
    const Case *t = opaque;
    pid_t pids[4];
    bool sent;
    Watched w;
    Fuse f;

    watched_start(&w, t->kernel_takes_fds ? KERNEL_TAKES_FDS : 0, t->options,
                  false);
    if (!fuse_start(&f, w.s.dir)) {
        watched_end(&w);
        return;
    }
    for (unsigned i = 0; i < t->n; i++) {
        pids[i] = fuse_attack(&w, &f, i, &sent);
        g_assert_true(sent || !t->kernel_takes_fds);
        ping(&w);
    }
    ping_for_a_while(&w);
    /*
     * If the server has such files, the kernel ends its process when they are
     * closed.  But the server itself does not wait for that.
     */
    watched_stop(&w, fuse_end, &f);
    for (unsigned i = 0; i < t->n; i++) {
        kill(pids[i], SIGKILL);
        g_assert_cmpint(waitpid(pids[i], NULL, 0), ==, pids[i]);
    }
    watched_clear(&w);
}

/* Peers leave as many requests behind as the kernel takes, all at once. */
static void test_closed(void)
{
    const Ivshmem2Msg ring = { .hdr.type = IVSHMEM2_MSG_RING };
    Client c[60];
    Watched w;

    watched_start(&w, 0, "--max-peers 100", false);
    for (unsigned i = 0; i < G_N_ELEMENTS(c); i++) {
        join_attacker(&c[i], &w.s, i);
    }
    kill(w.s.pid, SIGSTOP);
    for (unsigned i = 0; i < G_N_ELEMENTS(c); i++) {
        while (ivshmem2_transport_send(&c[i].transport, &ring, NULL,
                                       NULL) > 0) {
            continue;
        }
        client_close(&c[i]);
    }
    kill(w.s.pid, SIGCONT);
    ping(&w);
    ping_for_a_while(&w);
    watched_end(&w);
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

    watched_start(&w, KERNEL_WITHOUT_AIO, "--max-peers 4", false);
    join_attacker(&c, &w.s, 0);
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
    { "no-access", "--max-peers 100", .n = 3, .no_access = true },
    { "old-kernel/no-access", "--max-peers 100", .n = 3, .no_access = true,
      .kernel_takes_fds = true },
};

static const Case fuse_cases[] = {
    { "fuse", "--max-peers 100", .n = 1 },
    { "old-kernel/fuse", "--max-peers 100", .n = 1, .kernel_takes_fds = true },
};

static void add_tests(const Case *c, size_t n, GTestDataFunc test)
{
    for (size_t i = 0; i < n; i++) {
        g_autofree char *name = g_strdup_printf(
            "/ivshmem2/server-watchdog/descriptor/%s", c[i].name);

        g_test_add_data_func(name, &c[i], test);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGPIPE, SIG_IGN);
    add_tests(cases, G_N_ELEMENTS(cases), test_descriptor);
    add_tests(fuse_cases, G_N_ELEMENTS(fuse_cases), test_fuse);
    g_test_add_func("/ivshmem2/server-watchdog/closed", test_closed);
    g_test_add_func("/ivshmem2/server-watchdog/full-eventfd",
                    test_full_eventfd);
    return g_test_run();
}
