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

void ivshmem2_close(int *fd)
{
    if (*fd >= 0) {
        close(*fd);
        *fd = -1;
    }
}

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

/*
 * A write to a full counter waits.  Every process that holds the file can
 * fill the counter and clear O_NONBLOCK.  The kernel's own signals never wait:
 * here it signals the end of an asynchronous read that is too short to
 * succeed.  One system call does this for many eventfds.  Returns the number
 * of eventfds that were signalled.
 */
static size_t signal_by_kernel(const int *fds, size_t n)
{
    static aio_context_t context;
    static gsize tried;
    struct iocb iocbs[SIGNALS];
    struct iocb *list[SIGNALS];
    struct io_event events[SIGNALS];
    long done;

    if (g_once_init_enter(&tried)) {
        syscall(SYS_io_setup, SIGNALS, &context);
        g_once_init_leave(&tried, 1);
    }
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
    done = syscall(SYS_io_submit, context, n, list);
    if (done <= 0) {
        return 0;
    }
    /* make room for the next reads; the results of these do not matter */
    syscall(SYS_io_getevents, context, 0, done, events, NULL);
    return done;
}

/*
 * For systems without asynchronous I/O.  A full counter is left as it is: it
 * is readable already, and wakes its owner up anyway.
 */
static void signal_by_write(int fd)
{
    struct pollfd pfd = { .fd = fd, .events = POLLOUT };
    uint64_t one = 1;

    while (poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLOUT) &&
           write(fd, &one, sizeof(one)) < 0 && errno == EINTR) {
        continue;
    }
}

void ivshmem2_eventfds_signal(const int *fds, size_t n)
{
    while (n) {
        size_t done = signal_by_kernel(fds, n);

        if (!done) {
            signal_by_write(*fds);
            done = 1;
        }
        fds += done;
        n -= done;
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
