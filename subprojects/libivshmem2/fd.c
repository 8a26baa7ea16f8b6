/*
 * libivshmem2: descriptors that came from another process
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"

/* Eventfds signalled with one system call, at most */
#define SIGNALS     16

/* Eventfds that are looked at with one system call */
#define LOOKS       64

/* Results taken with one system call: all that the kernel keeps, on most */
#define RESULTS     128

/* Between two tries to have the kernel signal */
#define RETRY_INTERVAL      G_USEC_PER_SEC

/* Threads that signal where the kernel does not, and when one is stuck */
#define SIGNALLERS          4
#define STUCK_TIME          (G_USEC_PER_SEC / 50)

/* Eventfds that wait for these threads, at most */
#define MAX_WAITING         4096

void ivshmem2_close(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

/* Closing */

static gint n_disposals;

static gpointer close_queued(gpointer queue)
{
    for (;;) {
        int fd = GPOINTER_TO_INT(g_async_queue_pop(queue)) - 1;

        /* tells the thread sanitizer, which does not know GLib's queues */
        g_atomic_int_get(&n_disposals);
        close(fd);
        g_atomic_int_add(&n_disposals, -1);
    }
    return NULL;
}

/* Without a thread they stay open, until the next try to start one. */
static void start_closer(GAsyncQueue *queue)
{
    static gint started;
    GThread *thread;

    if (g_atomic_int_get(&started) ||
        !g_atomic_int_compare_and_exchange(&started, 0, 1)) {
        return;
    }
    thread = g_thread_try_new("ivshmem2-closer", close_queued, queue, NULL);
    if (thread) {
        g_thread_unref(thread);
    } else {
        g_atomic_int_set(&started, 0);
    }
}

/* Several threads may use the library: no lock, as one could wait for it. */
void ivshmem2_dispose(int *fd)
{
    static GAsyncQueue *queue;

    if (*fd < 0) {
        return;
    }
    g_atomic_int_inc(&n_disposals);
    if (g_once_init_enter(&queue)) {
        g_once_init_leave(&queue, g_async_queue_new());
    }
    start_closer(queue);
    /* 0 would be NULL, which is not for queues */
    g_async_queue_push(queue, GINT_TO_POINTER(*fd + 1));
    *fd = -1;
}

unsigned ivshmem2_disposals(void)
{
    return g_atomic_int_get(&n_disposals);
}

/* Checking */

bool ivshmem2_check_memfd(int fd, uint64_t size, bool writable,
                          const char *what, GError **error)
{
    const int want = F_SEAL_SHRINK | F_SEAL_GROW;
    int seals = fcntl(fd, F_GET_SEALS);
    int flags = fcntl(fd, F_GETFL);
    struct stat st;

    if (seals < 0 || flags < 0 || fstat(fd, &st) < 0) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the descriptor of the %s is not a memory file",
                             what);
    }
    if ((seals & want) != want) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the memory of the %s is not sealed against "
                             "shrinking and growing", what);
    }
    if (st.st_size < 0 || (uint64_t)st.st_size < size) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the memory of the %s has %lld bytes, too small "
                             "for %llu", what, (long long)st.st_size,
                             (unsigned long long)size);
    }
    flags &= O_ACCMODE;
    if (flags != O_RDWR && (writable || flags != O_RDONLY)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the memory of the %s is not open for %s", what,
                             writable ? "reading and writing" : "reading");
    }
    return true;
}

bool ivshmem2_check_eventfd(int fd, GError **error)
{
    g_autofree char *link = g_strdup_printf("/proc/self/fd/%d", fd);
    g_autofree char *target = g_file_read_link(link, NULL);
    struct stat st;

    /* Without /proc: an anonymous inode has no type, or is a regular file */
    if (target ? strcmp(target, "anon_inode:[eventfd]") != 0
        : fstat(fd, &st) < 0 || (st.st_mode & S_IFMT & ~S_IFREG) ||
          fcntl(fd, F_GET_SEALS) >= 0) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "a descriptor for interrupts is not an eventfd"
                             "%s%s", target ? " but " : "",
                             target ? target : "");
    }
    return true;
}

/* Signals */

/*
 * A write to a full counter waits.  Every process that holds the file can
 * fill the counter and clear O_NONBLOCK.  The kernel's own signals never wait:
 * here it signals the end of an asynchronous read that is too short to
 * succeed.  One system call does this for many eventfds.
 *
 * All users together may have fs.aio-max-nr of these, so the kernel may refuse
 * for a while.
 */
static aio_context_t kernel_context(void)
{
    static GMutex lock;
    static aio_context_t context;
    static gsize ready;
    static int64_t next_try;

    if (g_atomic_pointer_get(&ready)) {
        return context;
    }
    g_mutex_lock(&lock);
    if (!ready && g_get_monotonic_time() >= next_try) {
        if (syscall(SYS_io_setup, SIGNALS, &context) == 0) {
            g_atomic_pointer_set(&ready, 1);
        }
        next_try = g_get_monotonic_time() + RETRY_INTERVAL;
    }
    g_mutex_unlock(&lock);
    return g_atomic_pointer_get(&ready) ? context : 0;
}

bool ivshmem2_signals_prepare(GError **error)
{
    if (kernel_context()) {
        return true;
    }
    return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                         "the kernel has no asynchronous I/O for this process "
                         "(other processes may use all of fs.aio-max-nr): "
                         "interrupts are slower, and depend on threads");
}

/*
 * Make room for more reads; the results of the last ones do not matter.  The
 * kernel has room for many, so this is done when it has none any more, and
 * most signals need one system call.
 */
static bool make_room(aio_context_t context)
{
    struct io_event events[RESULTS];

    return syscall(SYS_io_getevents, context, 0, RESULTS, events, NULL) > 0;
}

/* Returns the number of eventfds that were signalled. */
static size_t signal_by_kernel(const int *fds, size_t n)
{
    aio_context_t context = kernel_context();
    struct iocb iocbs[SIGNALS];
    struct iocb *list[SIGNALS];
    long done;

    if (!context) {
        return 0;
    }
    n = MIN(n, SIGNALS);
    for (size_t i = 0; i < n; i++) {
        iocbs[i] = (struct iocb) {
            .aio_lio_opcode = IOCB_CMD_PREAD,
            .aio_fildes = fds[i],
            .aio_flags = IOCB_FLAG_RESFD,
            .aio_resfd = fds[i],
        };
        list[i] = &iocbs[i];
    }
    do {
        done = syscall(SYS_io_submit, context, n, list);
    } while (done < 0 && errno == EAGAIN && make_room(context));
    return MAX(done, 0);
}

/* Writes that are being made */
static GMutex writes_lock;
static struct {
    int fd;
    int64_t since;
    bool busy;
} writes[SIGNALLERS];

static size_t write_begin(int fd)
{
    size_t i = 0;

    g_mutex_lock(&writes_lock);
    while (writes[i].busy) {
        i++;
    }
    writes[i].busy = true;
    writes[i].fd = fd;
    writes[i].since = g_get_monotonic_time();
    g_mutex_unlock(&writes_lock);
    return i;
}

static void write_end(size_t i)
{
    g_mutex_lock(&writes_lock);
    writes[i].busy = false;
    g_mutex_unlock(&writes_lock);
}

/*
 * A full counter is left as it is: it is readable already, and wakes its
 * owner up anyway.
 */
static void signal_by_write(gpointer data, gpointer opaque)
{
    int fd = GPOINTER_TO_INT(data) - 1;
    struct pollfd pfd = { .fd = fd, .events = POLLOUT };
    uint64_t one = 1;

    if (poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLOUT)) {
        size_t i = write_begin(fd);

        while (write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {
            continue;
        }
        write_end(i);
    }
    close(fd);
}

/*
 * Its owner has filled the counter at the wrong moment.  After this the write
 * completes, and the eventfd is readable as before.
 */
static void end_stuck_writes(void)
{
    int64_t now = g_get_monotonic_time();

    g_mutex_lock(&writes_lock);
    for (size_t i = 0; i < SIGNALLERS; i++) {
        if (writes[i].busy && now - writes[i].since > STUCK_TIME) {
            ivshmem2_eventfd_drain(writes[i].fd);
        }
    }
    g_mutex_unlock(&writes_lock);
}

/* For systems without asynchronous I/O: a thread may wait, the caller not. */
static void signal_by_thread(int fd)
{
    static GThreadPool *pool;
    static gsize made;
    int copy;

    if (g_once_init_enter(&made)) {
        pool = g_thread_pool_new(signal_by_write, NULL, SIGNALLERS, FALSE,
                                 NULL);
        g_once_init_leave(&made, 1);
    }
    end_stuck_writes();
    if (g_thread_pool_unprocessed(pool) >= MAX_WAITING) {
        return;
    }
    /* the caller may close its own before the write */
    copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy >= 0) {
        /* if no thread can be started now, the next push starts one */
        g_thread_pool_push(pool, GINT_TO_POINTER(copy + 1), NULL);
    }
}

void ivshmem2_eventfds_signal(const int *fds, size_t n)
{
    while (n) {
        size_t done = signal_by_kernel(fds, n);

        if (!done) {
            signal_by_thread(*fds);
            done = 1;
        }
        fds += done;
        n -= done;
    }
}

static void signal_if_room(const int *fds, size_t n)
{
    struct pollfd looks[LOOKS];
    int found[LOOKS];
    size_t n_found = 0;

    for (size_t i = 0; i < n; i++) {
        looks[i] = (struct pollfd) { .fd = fds[i], .events = POLLOUT };
    }
    if (poll(looks, n, 0) < 0) {
        ivshmem2_eventfds_signal(fds, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        if (looks[i].revents & POLLOUT) {
            found[n_found++] = fds[i];
        }
    }
    ivshmem2_eventfds_signal(found, n_found);
}

void ivshmem2_eventfds_signal_if_room(const int *fds, size_t n)
{
    for (size_t i = 0; i < n; i += LOOKS) {
        signal_if_room(fds + i, MIN(n - i, LOOKS));
    }
}

void ivshmem2_eventfd_signal(int fd)
{
    ivshmem2_eventfds_signal(&fd, 1);
}

uint64_t ivshmem2_eventfd_drain(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLIN };
    uint64_t count = 0;
    struct iovec iov = { .iov_base = &count, .iov_len = sizeof(count) };
    ssize_t len;

    do {
        len = preadv2(fd, &iov, 1, -1, RWF_NOWAIT);
    } while (len < 0 && errno == EINTR);
    if (len < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
        /* Linux before 5.12 */
        if (poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLIN)) {
            len = read(fd, &count, sizeof(count));
        }
    }
    return len == sizeof(count) ? count : 0;
}
