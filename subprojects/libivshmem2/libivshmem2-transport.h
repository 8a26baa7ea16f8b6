/*
 * libivshmem2 transport: messages with descriptors over a unix socket
 *
 * Nothing here waits.  The bounded out-queue is one message: its user makes
 * the next message, and takes further requests, only when that one is sent.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef LIBIVSHMEM2_TRANSPORT_H
#define LIBIVSHMEM2_TRANSPORT_H

#include "libivshmem2-core.h"

/*
 * Sockets.  A connected one of them may have descriptors of any kind in its
 * queue, and to close the last one of a file may take for ever.  So the server
 * neither receives nor closes descriptors: the kernel is told to refuse them
 * (ivshmem2_socket_refuse_fds(), also for a listening socket), and where it
 * does not, they stay in the queue, and a thread closes the socket.
 */
void ivshmem2_socket_refuse_fds(int fd);

/*
 * Receive some bytes and forget them.  Returns 1 if there may be more, 0 if
 * there are none now, -1 if nothing more can be received.
 */
int ivshmem2_socket_discard(int fd);

/*
 * End receiving.  Returns true if there may be descriptors in the queue: then
 * the socket is to be closed by ivshmem2_dispose().
 */
bool ivshmem2_socket_has_unread(int fd);

/* Close *@fd, a socket or -1, as is right for it. */
void ivshmem2_socket_close(int *fd);

typedef struct Ivshmem2Transport {
    int fd;                     /* owned */
    uint32_t out_size;          /* of the message being sent, 0: none */
    uint32_t out_done;
    Ivshmem2Msg out;            /* wire format */
    const int *out_fds;         /* borrowed; NULL once they are sent */
    unsigned n_out_fds;
    Ivshmem2Decoder in;
} Ivshmem2Transport;

/*
 * @fd: a connected unix stream socket, set to non-blocking here
 * @peer: the other side, whose messages are received
 */
void ivshmem2_transport_init_consume(Ivshmem2Transport *c, int fd,
                                     Ivshmem2Side peer);

/* Close the socket and all received descriptors that were not stolen. */
void ivshmem2_transport_clear(Ivshmem2Transport *c);

/*
 * Receive.  Returns 1 if c->in.msg is complete (call ivshmem2_decoder_reset()
 * on c->in, or ivshmem2_session_receive(), before the next call); 0 if there
 * is nothing more to read now; -1 with @error set if the connection is over:
 * IVSHMEM2_ERROR_CLOSED where the other side closed it between messages.
 */
int ivshmem2_transport_receive(Ivshmem2Transport *c, GError **error);

/* A message is still on its way: wait for the socket to be writable. */
bool ivshmem2_transport_is_sending(const Ivshmem2Transport *c);

/*
 * Too many descriptors of this user are on their way, not only to this peer:
 * try ivshmem2_transport_flush() again later, or cancel the message, or omit
 * its descriptors.
 */
#define IVSHMEM2_TRANSPORT_BUSY     2

/*
 * Send @msg (host byte order; only when nothing is being sent) with
 * msg->hdr.fds descriptors from @fds, which are borrowed until nothing is
 * being sent any more.  Returns 1 if all is sent, 0 if
 * ivshmem2_transport_flush() is needed when the socket is writable,
 * IVSHMEM2_TRANSPORT_BUSY (only for messages with descriptors), or -1 with
 * @error set if the connection is over.
 */
int ivshmem2_transport_send(Ivshmem2Transport *c, const Ivshmem2Msg *msg,
                            const int *fds, GError **error);

/* Go on sending; returns as ivshmem2_transport_send(). */
int ivshmem2_transport_flush(Ivshmem2Transport *c, GError **error);

/*
 * After IVSHMEM2_TRANSPORT_BUSY: do not send the message at all, or send it
 * without descriptors (EVENTFDS as an answer).
 */
void ivshmem2_transport_cancel(Ivshmem2Transport *c);
void ivshmem2_transport_omit_fds(Ivshmem2Transport *c);

#endif /* LIBIVSHMEM2_TRANSPORT_H */
