/*
 * libivshmem2 internals: what the device, the server and the client library
 * share
 *
 * Codec and session do no I/O: they take bytes and descriptors, and say what
 * to send.  Names in quotes are chapters of docs/interop/ivshmem2.rst.
 *
 * Ownership of descriptors is in the names: _consume takes those passed in,
 * also when it fails; _steal gives the caller what it must close.  Everything
 * else borrows.  Not installed: programs include libivshmem2.h.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef LIBIVSHMEM2_CORE_H
#define LIBIVSHMEM2_CORE_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "hw/misc/ivshmem2.h"
#include "libivshmem2.h"     /* its errors */

/*
 * Codec ("Messages")
 */

typedef enum Ivshmem2Side {
    IVSHMEM2_CLIENT,
    IVSHMEM2_SERVER,
} Ivshmem2Side;

/* The type's name, e.g. "WELCOME", or NULL if there is no such type. */
const char *ivshmem2_type_name(uint16_t type);

/* Size of a whole message of a valid type, header included. */
size_t ivshmem2_type_size(uint16_t type);

/*
 * Turn @msg, in host byte order, into wire format in place.  hdr.type and,
 * for messages that carry descriptors, hdr.fds must be set; hdr.size is
 * filled in.  Returns the number of bytes to send.
 */
size_t ivshmem2_msg_encode(Ivshmem2Msg *msg);

/*
 * Copy @src to the fixed-size text field @dst, NUL-padded, cut at @size - 1
 * bytes, with everything but printable ASCII replaced by '?'.
 */
void ivshmem2_set_text(char *dst, size_t size, const char *src);

/*
 * A message being received.  Read exactly ivshmem2_decoder_wants() bytes or
 * less at a time, so that no read runs into the next message and its
 * descriptors, and push them together with the descriptors that came along.
 */
typedef struct Ivshmem2Decoder {
    Ivshmem2Msg msg;            /* host byte order once complete */
    uint32_t have;              /* bytes of it */
    int fds[IVSHMEM2_MAX_FDS];
    uint8_t n_fds;
    uint8_t from;               /* Ivshmem2Side whose messages these are */
} Ivshmem2Decoder;

void ivshmem2_decoder_init(Ivshmem2Decoder *d, Ivshmem2Side from);

/*
 * Bytes that the current message still lacks, as far as is known: up to the
 * end of the header, then up to the end of the message.
 */
size_t ivshmem2_decoder_wants(const Ivshmem2Decoder *d);

/* d->msg is complete; reset before the next push. */
bool ivshmem2_decoder_complete(const Ivshmem2Decoder *d);

/*
 * Push @len bytes (at most what it wants) and @n_fds descriptors.
 * Returns 1 if d->msg is complete (its payload checked as far as one message
 * can be), 0 if more is needed, -1 with @error set if the stream cannot be
 * trusted any more.
 */
int ivshmem2_decoder_push_consume(Ivshmem2Decoder *d, const void *buf,
                                  size_t len, const int *fds, size_t n_fds,
                                  GError **error);

/* Take descriptor @i of the complete message. */
int ivshmem2_decoder_steal_fd(Ivshmem2Decoder *d, unsigned i);

/* Forget the message, dispose of what was not stolen, be ready for the next. */
void ivshmem2_decoder_reset(Ivshmem2Decoder *d);

/*
 * Descriptors ("Shared memory", "Eventfds")
 */

/* Close descriptor *@fd unless it is -1, and set it to -1. */
void ivshmem2_close(int *fd);

/*
 * The same for a descriptor that another process sent and that is not known to
 * be what it should be, or for a socket that may have such descriptors in its
 * queue.  To close a socket or a file of a file system in user space may take
 * as long as another process likes, so a thread does it.
 */
void ivshmem2_dispose(int *fd);

/* Descriptors that the thread has not closed yet */
unsigned ivshmem2_disposals(void);

/*
 * Is @fd a memory file of at least @size bytes that cannot shrink or grow,
 * open for reading, and for writing too if @writable?
 */
bool ivshmem2_check_memfd(int fd, uint64_t size, bool writable,
                          const char *what, GError **error);

bool ivshmem2_check_eventfd(int fd, GError **error);

/*
 * Take from the kernel what signals need, which it may refuse later.  Without
 * it signals work, too, but slower.  Returns false with @error set if it
 * refuses now; then signals try again once in a while.
 */
bool ivshmem2_signals_prepare(GError **error);

/*
 * Make an eventfd readable.  Does not wait, not even for a counter that
 * another process has filled to its limit: that one is readable already.
 */
void ivshmem2_eventfd_signal(int fd);

/* The same for @n of them, with fewer system calls. */
void ivshmem2_eventfds_signal(const int *fds, size_t n);

/*
 * The same, but pass over counters that have no room: they would wake up their
 * owners anyway.  Much faster where there are many of them.
 */
void ivshmem2_eventfds_signal_if_room(const int *fds, size_t n);

/*
 * Take what is in the counter; 0 if nothing.  Does not wait, even if the file
 * is not O_NONBLOCK (every process that holds the file can change that).
 */
uint64_t ivshmem2_eventfd_drain(int fd);

/*
 * Layout ("Shared memory"): offsets from the start of the shared memory, in
 * bytes.
 */
bool ivshmem2_welcome_check(const Ivshmem2Welcome *w, GError **error);

/* Does @w promise the same place on the same kind of link as @wanted? */
bool ivshmem2_welcome_check_shape(const Ivshmem2Welcome *w,
                                  const Ivshmem2Welcome *wanted,
                                  GError **error);
uint64_t ivshmem2_rw_offset(const Ivshmem2Welcome *w);
uint64_t ivshmem2_output_offset(const Ivshmem2Welcome *w, uint32_t id);
uint64_t ivshmem2_total_size(const Ivshmem2Welcome *w);

/*
 * A client's session ("Communication"): the handshake, the eventfds, and the
 * requests that wait for the server.
 */
typedef struct Ivshmem2Session Ivshmem2Session;

/*
 * @hello: what to tell the server.  magic, versions and session are filled
 * in; the other fields are the caller's.
 */
Ivshmem2Session *ivshmem2_session_new(const Ivshmem2Hello *hello);
void ivshmem2_session_free(Ivshmem2Session *s);

/*
 * A session that joins anew, with the ID of @old, a link of the same shape; the
 * WELCOME of any other link is an error.  @old is not changed.
 */
Ivshmem2Session *ivshmem2_session_new_like(const Ivshmem2Session *old);

/* A connection was made: say HELLO, and resume if there was one before. */
void ivshmem2_session_connected(Ivshmem2Session *s);

/* The connection is gone; eventfds and waiting requests are kept. */
void ivshmem2_session_disconnected(Ivshmem2Session *s);

/*
 * Handle the complete message in @d and reset @d.  Returns false with @error
 * set if the connection is to be closed.
 */
bool ivshmem2_session_receive(Ivshmem2Session *s, Ivshmem2Decoder *d,
                              GError **error);

/* Is there a message to send?  If so, it is in @msg, in host byte order. */
bool ivshmem2_session_next(Ivshmem2Session *s, Ivshmem2Msg *msg);

/*
 * The caller may hold back the announcement that the state is 0, as long as the
 * socket is not almost empty.  So there is always room to announce another one.
 */
void ivshmem2_session_hold_zero(Ivshmem2Session *s, bool hold);

/* Is there such an announcement to be sent, or held back? */
bool ivshmem2_session_holds_zero(const Ivshmem2Session *s);

/* Would ivshmem2_session_next() return true? */
bool ivshmem2_session_has_next(const Ivshmem2Session *s);

/* The handshake is complete and the connection stands. */
bool ivshmem2_session_ready(const Ivshmem2Session *s);

/* The server's WELCOME; all zeros before the first one. */
const Ivshmem2Welcome *ivshmem2_session_info(const Ivshmem2Session *s);

/*
 * Before ivshmem2_session_map(): keep the descriptors of the sections, which
 * it would close, for ivshmem2_session_read().
 */
void ivshmem2_session_keep_files(Ivshmem2Session *s);

/*
 * Once, after the first handshake: map all sections in their order, the ones
 * of others read-only, at a multiple of the largest page size in use and of
 * 2 MiB.  Core dumps leave them out.  Returns the start of
 * ivshmem2_total_size() bytes; NULL with @error set on failure.  Unmap it with
 * munmap().
 */
void *ivshmem2_session_map(Ivshmem2Session *s, GError **error);

/*
 * The same at @base, which ivshmem2_session_map() has returned for a session of
 * the same shape, and over its memory.  The descriptors must have been kept.
 * If this fails, some sections may have been mapped.
 */
bool ivshmem2_session_map_over(Ivshmem2Session *s, void *base, GError **error);

/*
 * Copy @length bytes at @offset of the mapped memory, which must be inside of
 * it, to @buf.  Memory that nobody has written is read as zeros and, other
 * than through a mapping, stays unallocated.  Returns false with @error set
 * if the descriptors were not kept, or if the system refuses.
 */
bool ivshmem2_session_read(const Ivshmem2Session *s, uint64_t offset,
                           void *buf, size_t length, GError **error);

/* Our eventfd for @vector. */
int ivshmem2_session_own_eventfd(const Ivshmem2Session *s, uint32_t vector);

typedef enum Ivshmem2Ring {
    IVSHMEM2_RING_NOBODY,       /* no such ID or vector on this link */
    IVSHMEM2_RING_SIGNALLED,    /* by the eventfd */
    IVSHMEM2_RING_REQUESTED,    /* the server will be asked */
} Ivshmem2Ring;

/*
 * Ring @vector at @id.  Never fails, waits or grows memory.  With
 * IVSHMEM2_RING_SIGNALLED, *@fd (@fd may be NULL) is the eventfd that was
 * signalled, borrowed until the next call that takes the session.
 */
Ivshmem2Ring ivshmem2_session_ring(Ivshmem2Session *s, uint32_t id,
                                   uint32_t vector, int *fd);

/*
 * The own State Table entry changed to @state: have the other peers
 * interrupted.  On small links this happens at once, by their eventfds.  On
 * large ones the server does it, for which there is a message to send; without
 * a connection, those peers are interrupted whose eventfds the session holds.
 */
void ivshmem2_session_state_changed(Ivshmem2Session *s, uint32_t state);

/*
 * Tell the server that our eventfds are not in use any more.  This may be
 * sent in the middle of the handshake, too.
 */
void ivshmem2_session_goodbye(Ivshmem2Session *s);

#endif /* LIBIVSHMEM2_CORE_H */
