/*
 * libivshmem2: messages with descriptors over a unix socket
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#include "libivshmem2-transport.h"
#include "libivshmem2-util.h"

#ifndef SO_PASSPIDFD
#define SO_PASSPIDFD    76
#endif
#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS   83
#endif

/* Instead of a number of bytes: descriptors are next in the queue */
#define FOREIGN_FDS     -2

/* Pieces of a closed connection that are read to see what is behind them */
#define MAX_DISCARDS    64

/*
 * Linux takes no more for one message (SCM_MAX_FD).  To receive with room for
 * fewer is to close the others here, however long that takes.
 */
#define MAX_FOREIGN_FDS 253

typedef union FdSpace {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * MAX_FOREIGN_FDS)];
} FdSpace;

void ivshmem2_socket_refuse_fds(int fd)
{
    const int off = 0;

    /* Linux 6.16 */
    setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof(off));
    /* Only descriptors are to make MSG_CTRUNC come. */
    setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &off, sizeof(off));
    setsockopt(fd, SOL_SOCKET, SO_PASSSEC, &off, sizeof(off));
    setsockopt(fd, SOL_SOCKET, SO_PASSPIDFD, &off, sizeof(off));
}

/*
 * Receive, but leave the descriptors of a client where they are: in the queue
 * of the socket.  To receive them, also without room for them, is to close
 * them here.  Returns the number of bytes, FOREIGN_FDS, or -1.
 */
static ssize_t receive_without_fds(int fd, void *buf, size_t size)
{
    struct iovec iov = { .iov_base = buf, .iov_len = size };
    struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
    ssize_t len;

    do {
        len = recvmsg(fd, &mh, MSG_PEEK | MSG_DONTWAIT);
    } while (len < 0 && errno == EINTR);
    if (len > 0 && (mh.msg_flags & MSG_CTRUNC)) {
        return FOREIGN_FDS;
    }
    /* exactly what was looked at: nothing that came later */
    return len > 0 ? recv(fd, buf, len, MSG_DONTWAIT) : len;
}

int ivshmem2_socket_discard(int fd)
{
    char buf[4096];
    ssize_t len = receive_without_fds(fd, buf, sizeof(buf));

    if (len > 0 || (len < 0 && errno == EINTR && len != FOREIGN_FDS)) {
        return 1;
    }
    return len == -1 && (errno == EAGAIN || errno == EWOULDBLOCK) ? 0 : -1;
}

bool ivshmem2_socket_has_unread(int fd)
{
    int bytes;

    /* After this nothing is added to the queue. */
    shutdown(fd, SHUT_RD);
    for (int i = 0; i < MAX_DISCARDS && ivshmem2_socket_discard(fd) > 0; i++) {
        continue;
    }
    return ioctl(fd, FIONREAD, &bytes) < 0 || bytes > 0;
}

void ivshmem2_socket_close(int *fd)
{
    if (*fd >= 0 && ivshmem2_socket_has_unread(*fd)) {
        ivshmem2_dispose(fd);
    }
    ivshmem2_close(fd);
}

void ivshmem2_transport_init_consume(Ivshmem2Transport *c, int fd,
                                     Ivshmem2Side peer)
{
    const int on = 1;

    memset(c, 0, sizeof(*c));
    c->fd = fd;
    /* urgent data would take its descriptors past the checks */
    setsockopt(fd, SOL_SOCKET, SO_OOBINLINE, &on, sizeof(on));
    if (peer == IVSHMEM2_CLIENT) {
        ivshmem2_socket_refuse_fds(fd);
    }
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    ivshmem2_decoder_init(&c->in, peer);
}

void ivshmem2_transport_clear(Ivshmem2Transport *c)
{
    ivshmem2_socket_close(&c->fd);
    ivshmem2_decoder_reset(&c->in);
    c->out_size = 0;
    c->out_fds = NULL;
}

/* Move the descriptors out of @mh; returns their number. */
static size_t take_fds(struct msghdr *mh, int *fds)
{
    size_t n = 0;

    for (struct cmsghdr *cm = CMSG_FIRSTHDR(mh); cm; cm = CMSG_NXTHDR(mh, cm)) {
        if (cm->cmsg_level == SOL_SOCKET && cm->cmsg_type == SCM_RIGHTS) {
            size_t here = (cm->cmsg_len - CMSG_LEN(0)) / sizeof(int);

            /* the control buffer has room for no more */
            here = MIN(here, MAX_FOREIGN_FDS - n);
            memcpy(fds + n, CMSG_DATA(cm), here * sizeof(int));
            n += here;
        }
    }
    return n;
}

static ssize_t receive_message(Ivshmem2Transport *c, struct msghdr *mh)
{
    if (c->in.from == IVSHMEM2_CLIENT) {
        mh->msg_controllen = 0;
        return receive_without_fds(c->fd, mh->msg_iov->iov_base,
                                   mh->msg_iov->iov_len);
    }
    return recvmsg(c->fd, mh, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
}

static int receive_some(Ivshmem2Transport *c, GError **error)
{
    uint8_t buf[sizeof(Ivshmem2Msg)];
    int fds[MAX_FOREIGN_FDS];
    FdSpace space;
    struct iovec iov = {
        .iov_base = buf,
        .iov_len = ivshmem2_decoder_wants(&c->in),
    };
    struct msghdr mh = {
        .msg_iov = &iov,
        .msg_iovlen = 1,
        .msg_control = &space,
        .msg_controllen = sizeof(space),
    };
    ssize_t len;
    size_t n_fds;

    do {
        len = receive_message(c, &mh);
    } while (len == -1 && errno == EINTR);
    if (len == FOREIGN_FDS) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                      "descriptors came, but messages of clients have none");
        return -1;
    }
    if (len < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
        return 0;
    }
    if (len < 0) {
        ivshmem2_fail_errno(error, "cannot receive");
        return -1;
    }
    n_fds = take_fds(&mh, fds);
    if (mh.msg_flags & MSG_CTRUNC) {
        for (size_t i = 0; i < n_fds; i++) {
            ivshmem2_dispose(&fds[i]);
        }
        ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                      "descriptors were lost: more than this process may "
                      "have open");
        return -1;
    }
    if (len == 0) {
        ivshmem2_fail(error, c->in.have ? IVSHMEM2_ERROR_PROTOCOL
                                        : IVSHMEM2_ERROR_CLOSED,
                      "the other side closed the connection%s",
                      c->in.have ? " in the middle of a message" : "");
        return -1;
    }
    if (ivshmem2_decoder_push_consume(&c->in, buf, len, fds, n_fds,
                                      error) < 0) {
        return -1;
    }
    return 1;
}

int ivshmem2_transport_receive(Ivshmem2Transport *c, GError **error)
{
    int ret;

    do {
        ret = receive_some(c, error);
    } while (ret > 0 && !ivshmem2_decoder_complete(&c->in));
    return ret;
}

bool ivshmem2_transport_is_sending(const Ivshmem2Transport *c)
{
    return c->out_size;
}

int ivshmem2_transport_send(Ivshmem2Transport *c, const Ivshmem2Msg *msg,
                            const int *fds, GError **error)
{
    c->out = *msg;
    c->out_fds = msg->hdr.fds ? fds : NULL;
    c->n_out_fds = msg->hdr.fds;
    c->out_size = ivshmem2_msg_encode(&c->out);
    c->out_done = 0;
    return ivshmem2_transport_flush(c, error);
}

int ivshmem2_transport_flush(Ivshmem2Transport *c, GError **error)
{
    while (c->out_size) {
        FdSpace space = { .bytes = { 0 } };
        struct iovec iov = {
            .iov_base = (uint8_t *)&c->out + c->out_done,
            .iov_len = c->out_size - c->out_done,
        };
        struct msghdr mh = { .msg_iov = &iov, .msg_iovlen = 1 };
        ssize_t len;

        if (c->out_fds) {
            size_t bytes = c->n_out_fds * sizeof(int);

            mh.msg_control = &space;
            mh.msg_controllen = CMSG_SPACE(bytes);
            CMSG_FIRSTHDR(&mh)->cmsg_level = SOL_SOCKET;
            CMSG_FIRSTHDR(&mh)->cmsg_type = SCM_RIGHTS;
            CMSG_FIRSTHDR(&mh)->cmsg_len = CMSG_LEN(bytes);
            memcpy(CMSG_DATA(CMSG_FIRSTHDR(&mh)), c->out_fds, bytes);
        }
        len = sendmsg(c->fd, &mh, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (len < 0 && errno == EINTR) {
            continue;
        }
        if (len < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            return 0;
        }
        if (len < 0 && errno == ETOOMANYREFS) {
            return IVSHMEM2_TRANSPORT_BUSY;
        }
        if (len < 0) {
            ivshmem2_fail_errno(error, "cannot send");
            return -1;
        }
        c->out_fds = NULL;
        c->out_done += len;
        if (c->out_done == c->out_size) {
            c->out_size = 0;
        }
    }
    return 1;
}

void ivshmem2_transport_cancel(Ivshmem2Transport *c)
{
    c->out_size = 0;
    c->out_fds = NULL;
}

void ivshmem2_transport_omit_fds(Ivshmem2Transport *c)
{
    c->out.hdr.fds = 0;
    c->out_fds = NULL;
}
