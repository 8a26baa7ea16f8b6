/*
 * libivshmem2: be a peer on an ivshmem2 link
 *
 * One API, two transports: from a program on the host through the server's
 * socket, or from a program in a Linux guest through VFIO on the PCI device.
 * Names in quotes are sections of the device specification, on which
 * docs/specs/ivshmem2.rst is based.
 *
 * Threads: a peer is used by one thread at a time; different peers may be
 * used by different threads at the same time.  Any thread may call these
 * functions at any time until the peer is closed, because they return
 * constants or only read shared memory: ivshmem2_peer_info(),
 * ivshmem2_peer_memory_note(), ivshmem2_peer_rw(), ivshmem2_peer_output(),
 * ivshmem2_peer_state_table(), ivshmem2_peer_state(), ivshmem2_peer_read(),
 * ivshmem2_peer_fd(), ivshmem2_peer_connection_fd().  After fork(), only one
 * of the two processes may go on to use the peer.
 *
 * Errors: functions that can fail take a GError ** as their last argument,
 * which may be NULL.  The domain is IVSHMEM2_ERROR, the code is an
 * Ivshmem2Error, the message names the cause.
 *
 * Ownership: all pointers that the library returns are its own and valid
 * until the peer is closed.  It keeps no pointer that it was given.  All its
 * descriptors are close-on-exec.
 *
 * Compatibility: within one SONAME, functions, codes and fields of structures
 * are added at the end, and none is changed or removed.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef LIBIVSHMEM2_H
#define LIBIVSHMEM2_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

G_BEGIN_DECLS

/* The version of this header; the build checks that meson.build agrees */
#define LIBIVSHMEM2_VERSION_MAJOR   1
#define LIBIVSHMEM2_VERSION_MINOR   0
#define LIBIVSHMEM2_VERSION_MICRO   0

/* Is this header of version @major.@minor.@micro or later? */
#define LIBIVSHMEM2_CHECK_VERSION(major, minor, micro)                      \
    (LIBIVSHMEM2_VERSION_MAJOR > (major) ||                                 \
     (LIBIVSHMEM2_VERSION_MAJOR == (major) &&                               \
      (LIBIVSHMEM2_VERSION_MINOR > (minor) ||                               \
       (LIBIVSHMEM2_VERSION_MINOR == (minor) &&                             \
        LIBIVSHMEM2_VERSION_MICRO >= (micro)))))

/* Errors */

#define IVSHMEM2_ERROR (ivshmem2_error_quark())
GQuark ivshmem2_error_quark(void);

typedef enum Ivshmem2Error {
    IVSHMEM2_ERROR_ARGUMENT     = 1,    /* the caller's argument is invalid */
    IVSHMEM2_ERROR_IO           = 2,    /* the system refused, with its text */
    IVSHMEM2_ERROR_TIMEOUT      = 3,    /* one side did not answer in time */
    IVSHMEM2_ERROR_CLOSED       = 4,    /* the server or the device is gone */
    IVSHMEM2_ERROR_PROTOCOL     = 5,    /* one side broke the protocol */

    /* The server refused; the message quotes what it said */
    IVSHMEM2_ERROR_REFUSED      = 16,   /* for a reason not in this list */
    IVSHMEM2_ERROR_VERSION      = 17,   /* no common version of the protocol */
    IVSHMEM2_ERROR_FULL         = 18,   /* all IDs are taken */
    IVSHMEM2_ERROR_ID_TAKEN     = 19,   /* the wanted ID is taken */
    IVSHMEM2_ERROR_ID_RANGE     = 20,   /* the link has no such ID */
    IVSHMEM2_ERROR_INTERRUPTS   = 21,   /* the link needs other interrupts */
    IVSHMEM2_ERROR_PERMISSION   = 22,   /* may not join, or not as this ID */
    IVSHMEM2_ERROR_SESSION      = 23,   /* the session cannot be resumed */
    IVSHMEM2_ERROR_LIMIT        = 24,   /* the server's limits are reached */
    IVSHMEM2_ERROR_SHUTDOWN     = 25,   /* the server is ending */
    /* Later versions add codes, which this one reports as REFUSED. */
} Ivshmem2Error;

/* Joining and leaving */

/* A peer of a link */
typedef struct Ivshmem2Peer Ivshmem2Peer;

/* Ivshmem2SocketOptions.id: the server chooses a free ID */
#define IVSHMEM2_PEER_ID_ANY        UINT32_C(0xffffffff)

/* Ivshmem2SocketOptions.flags: what ivshmem2_peer_read() needs on the host */
#define IVSHMEM2_SOCKET_KEEP_FILES  UINT64_C(1)
/* ivshmem2_peer_wait() also returns when ivshmem2_peer_event() has an event */
#define IVSHMEM2_SOCKET_EVENTS      UINT64_C(2)

/*
 * Always initialize it with IVSHMEM2_SOCKET_OPTIONS_INIT, then set the fields
 * that matter.  Later versions append fields: @size tells the library which
 * ones the program knows, and all others have their defaults.  A library that
 * is older than the program's header refuses fields that it does not know.
 */
typedef struct Ivshmem2SocketOptions {
    size_t size;                /* of this structure, set by the initializer */
    /* For the server's log, or NULL.  Cut at 63 bytes. */
    const char *name;
    uint32_t id;                /* wanted ID, or IVSHMEM2_PEER_ID_ANY */
    /* For connecting and the handshake together; -1: no limit */
    int32_t timeout_ms;
    uint64_t flags;             /* IVSHMEM2_SOCKET_..., or 0 */
    /*
     * See "Losing the server".  The pause between attempts to resume starts at
     * resume_ms, at least 1, and doubles up to resume_slowest_ms.
     * resume_ms -1: do not resume.
     */
    int32_t resume_ms;
    int32_t resume_slowest_ms;
} Ivshmem2SocketOptions;

#define IVSHMEM2_SOCKET_OPTIONS_INIT                                        \
    { sizeof(Ivshmem2SocketOptions), NULL, IVSHMEM2_PEER_ID_ANY, 5000, 0,   \
      100, 5000 }

/*
 * Join a link from the host.
 *
 * @path: of the server's unix socket, no longer than the system allows for
 *     such addresses (107 bytes).  To resume, the peer connects to the same
 *     path again, also after the program has changed its directory.
 * @options: or NULL for the defaults
 *
 * The process needs four descriptors, and those for the eventfds that the
 * server hands out when a peer joins, and resumes: raise RLIMIT_NOFILE before
 * where a link has many peers and vectors.  With IVSHMEM2_SOCKET_KEEP_FILES it
 * needs two more and, with output sections, one for each possible peer, until
 * the peer is closed.
 *
 * Returns the peer, to be released with ivshmem2_peer_close(), or NULL with
 * @error set: ARGUMENT (@path is too long, @options are not initialized), IO,
 * TIMEOUT, CLOSED, PROTOCOL, or one of the server's refusals.
 */
Ivshmem2Peer *ivshmem2_peer_open_socket(const char *path,
                                        const Ivshmem2SocketOptions *options,
                                        GError **error);

/*
 * Join a link from a Linux guest, by driving its PCI device.
 *
 * @address: of the device, as "0000:00:04.0", where the domain may be left
 *     out.  The device must be bound to vfio-pci, with an IOMMU.
 *
 * Sets the device's state to 0, turns one-shot mode off, and enables
 * interrupts with all vectors of the device or as many as the guest's
 * processors have room for ("Interrupt Control Register", "MSI-X
 * Capability").
 *
 * Returns the peer, to be released with ivshmem2_peer_close(), or NULL with
 * @error set: ARGUMENT (no such device, or none of this kind), IO (the
 * message may have several lines that say how to set the guest up), PROTOCOL
 * (the device's registers contradict each other).
 */
Ivshmem2Peer *ivshmem2_peer_open_pci(const char *address, GError **error);

/*
 * How a program sees shared memory.  It is the type that the guest's kernel
 * gave; the host's processor decides what becomes of it (see "Memory types" in
 * the user guide).
 */
typedef enum Ivshmem2MemoryType {
    /* To be asked for only: the first of the others that can be had */
    IVSHMEM2_MEMORY_BEST            = 0,
    /* Like all other memory.  On the host, it always is. */
    IVSHMEM2_MEMORY_WRITE_BACK      = 1,
    /*
     * Fast to write, slow to read, and not in order: put a full fence
     * (__atomic_thread_fence(__ATOMIC_SEQ_CST)) between data and the word that
     * says that it is complete, on both sides.  ivshmem2_peer_ring() and
     * ivshmem2_peer_set_state() have one.  Atomic operations that read and
     * write (add, exchange) do not work on all processors.
     */
    IVSHMEM2_MEMORY_WRITE_COMBINING = 2,
    /*
     * In order, slow.  Such atomic operations do not work on all processors;
     * on Arm, neither do accesses that are not aligned, nor memcpy().
     */
    IVSHMEM2_MEMORY_UNCACHED        = 3,
} Ivshmem2MemoryType;

/* "write-back" and so on; NULL if @type is none of them.  Any thread. */
const char *ivshmem2_memory_type_name(Ivshmem2MemoryType type);

/*
 * The same as ivshmem2_peer_open_pci(), which asks for the best type, but with
 * memory of this @type or not at all.
 *
 * WRITE_BACK maps it by /dev/mem, which needs CAP_SYS_RAWIO, a kernel that is
 * not locked down, and its list of memory types (debugfs), WRITE_COMBINING by
 * resource2_wc in sysfs, UNCACHED by VFIO.
 *
 * Further errors: IO (the message says why the kernel does not give this
 * type), ARGUMENT (@type is none).
 */
Ivshmem2Peer *ivshmem2_peer_open_pci_mapped(const char *address,
                                            Ivshmem2MemoryType type,
                                            GError **error);

/*
 * Leave the link: set the state to 0 ("State Register"), tell the server, and
 * release the peer and all its memory and descriptors.  Takes a second at
 * most where the server does not answer, and does not wait without a
 * connection.  @peer may be NULL.
 */
void ivshmem2_peer_close(Ivshmem2Peer *peer);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(Ivshmem2Peer, ivshmem2_peer_close)

/*
 * What stays the same while a peer is on its link ("Configuration Space
 * Registers").  Only the library makes such structures; later versions append
 * fields.
 */
typedef struct Ivshmem2PeerInfo {
    uint32_t id;                /* of this peer ("ID Register") */
    uint32_t max_peers;         /* IDs are below ("Maximum Peers Register") */
    uint32_t vectors;           /* of every peer */
    /*
     * Only vectors below this can interrupt this peer: all of them, unless
     * the guest's processors lack room.
     */
    uint32_t enabled_vectors;
    bool msix;                  /* MSI-X, else INTx */
    uint16_t protocol;          /* protocol type of this peer ("Protocols") */
    uint32_t state_table_size;  /* bytes */
    uint64_t rw_size;           /* bytes; 0: no R/W section */
    uint64_t output_size;       /* bytes of each output section; 0: none */
    Ivshmem2MemoryType memory_type;     /* as this program sees it */
} Ivshmem2PeerInfo;

/* The properties of @peer and of its link.  Never NULL.  Any thread. */
const Ivshmem2PeerInfo *ivshmem2_peer_info(const Ivshmem2Peer *peer);

/*
 * Losing the server
 *
 * A peer on the host outlives its server.  Without a connection, memory, this
 * peer's interrupts and the doorbells of peers that are known go on working,
 * and state changes interrupt those peers only.  What needs the server is kept
 * until there is one: each doorbell once, however often it is rung, and whether
 * the state has changed.
 *
 * Meanwhile the peer tries to resume: to connect again with the same session
 * and the same ID, after which all is as before.  The first attempt is made at
 * once, the next one after 0.1 seconds; then the pause doubles up to 5 seconds,
 * and is 12 times as long, a minute, after a refusal that will hardly change:
 * by a server of another session for example, which has other memory.  Then the
 * peer goes on alone; to share the new memory, close it and join anew.
 * Ivshmem2SocketOptions has these times.  An attempt may take timeout_ms, and
 * twice as long after each one that was too slow, up to 12 times; so long at
 * once where a server has not read anything yet.
 *
 * All this happens in the calls of ivshmem2_peer_wait(),
 * ivshmem2_peer_event(), ivshmem2_peer_ring() and ivshmem2_peer_set_state(),
 * which do not wait for it, so a program that calls none of them does not
 * resume; the descriptors are readable when there is something to do.
 * The server accepts only the process that joined: after fork(), if that one
 * still lives, the child cannot resume.
 */

/*
 * Is there a connection with the server (host) or the device (guest)?  Looks
 * at it, and does not wait.  While a peer tries to resume there is none.
 */
bool ivshmem2_peer_connected(const Ivshmem2Peer *peer);

/*
 * Do doorbells that only the server can ring wait for it (host), because there
 * is no connection or because it does not read?  In the second case they may be
 * other messages.  If the server never takes them, nobody is interrupted.
 */
bool ivshmem2_peer_pending(const Ivshmem2Peer *peer);

/* What happened to the connection with the server.  Later versions add some. */
typedef enum Ivshmem2Event {
    IVSHMEM2_EVENT_NONE         = 0,
    /* The connection is gone, for this reason. */
    IVSHMEM2_EVENT_DISCONNECTED = 1,
    /* The peer has resumed. */
    IVSHMEM2_EVENT_CONNECTED    = 2,
    /*
     * An attempt to resume failed for this reason, which may last: the server
     * refused it, is none, or cannot be reached.  Only once for each code until
     * the peer has resumed.
     */
    IVSHMEM2_EVENT_REFUSED      = 3,
} Ivshmem2Event;

/*
 * Go on with the conversation with the server, without waiting, and take the
 * oldest event.
 *
 * @reason: where to put why, as an error to be freed with g_error_free(), with
 *     DISCONNECTED and REFUSED; else NULL is put there.  @reason may be NULL.
 *     The codes are those of Ivshmem2Error: CLOSED and IO where the server has
 *     died, SHUTDOWN where it has ended in order, SESSION from a server of
 *     another session, or when another connection of this process has resumed
 *     this session.
 *
 * Returns the event, or NONE.  DISCONNECTED replaces events that have not been
 * taken, so there are never many.  In a guest, there are none.
 */
Ivshmem2Event ivshmem2_peer_event(Ivshmem2Peer *peer, GError **reason);

/*
 * A descriptor that is readable (POLLIN) while ivshmem2_peer_event() has
 * something to do and, with IVSHMEM2_SOCKET_EVENTS, while there is an event.
 * It is for programs that wait for the connection only: ivshmem2_peer_fd() is
 * readable then, too.  Owned by @peer: do nothing but wait for it.  -1 in a
 * guest.  Any thread.
 */
int ivshmem2_peer_connection_fd(const Ivshmem2Peer *peer);

/*
 * Memory ("Shared Memory Region Layout")
 *
 * Pages that nobody has written take no memory.  To read one through a pointer
 * allocates it, until the server and all peers have ended;
 * ivshmem2_peer_read() on the host does not.  On the host, core dumps of the
 * process leave the memory out; madvise() with MADV_DODUMP puts it in again.
 */

/*
 * Why Ivshmem2PeerInfo.memory_type is no better, in words for the user, or ""
 * if it is the best one, or the one that was asked for.  Lives as long as
 * @peer.  Any thread.
 */
const char *ivshmem2_peer_memory_note(const Ivshmem2Peer *peer);

/*
 * The R/W section, of Ivshmem2PeerInfo.rw_size bytes, or NULL if the link has
 * none.  Other peers change it at any time: read what they write with atomic
 * accesses, or after an interrupt or a state that says that it is complete.
 * Any thread.
 */
void *ivshmem2_peer_rw(const Ivshmem2Peer *peer);

/*
 * The output section of peer @id, of Ivshmem2PeerInfo.output_size bytes, or
 * NULL if there is none.  Only the own one may be written: on the host,
 * writing to another one raises SIGSEGV; in a guest, the write has no effect.
 * Any thread.
 */
void *ivshmem2_peer_output(const Ivshmem2Peer *peer, uint32_t id);

/*
 * The State Table ("State Table"), of Ivshmem2PeerInfo.state_table_size
 * bytes: little-endian entries of 32 bits, never to be written.  Never NULL.
 * Any thread.
 */
const void *ivshmem2_peer_state_table(const Ivshmem2Peer *peer);

/*
 * The State Table entry of peer @id; 0 if the link has no such ID.  What that
 * peer wrote to memory before it set this state is visible afterwards.  Any
 * thread.
 */
uint32_t ivshmem2_peer_state(const Ivshmem2Peer *peer, uint32_t id);

/*
 * Copy @length bytes of shared memory to @buf.  @from points into the memory
 * that the functions above return; the bytes may be in several sections.  On
 * the host, this allocates no memory for pages that nobody has written, which
 * read as zeros, and takes a system call.  In a guest, it is memcpy() and
 * allocates them.  Bytes that others change meanwhile may be old or new.  Any
 * thread.
 *
 * Returns true; or false with @error set: ARGUMENT (not all of the bytes are
 * shared memory of @peer; host: @peer was opened without
 * IVSHMEM2_SOCKET_KEEP_FILES), IO.
 */
bool ivshmem2_peer_read(const Ivshmem2Peer *peer, const void *from, void *buf,
                        size_t length, GError **error);

/* States and interrupts */

/*
 * Set the own state and, if it differs from the previous one, interrupt the
 * other peers with vector 0 ("State Register").  Does not wait.
 *
 * Returns true; or false with @error set, which no transport does today.
 */
bool ivshmem2_peer_set_state(Ivshmem2Peer *peer, uint32_t state,
                             GError **error);

/*
 * Interrupt peer @target with @vector ("Doorbell Register").  What was written
 * to memory before is visible to that peer when it is interrupted.  Does not
 * wait.  It is no error if nobody uses the ID @target at the moment.
 *
 * On the host, the server rings peers that are not known yet.  If there is no
 * connection, it does so after this peer has resumed; ivshmem2_peer_pending()
 * tells.
 *
 * Returns true; or false with @error set: ARGUMENT (the link has no such ID or
 * vector), CLOSED (host: only the server can ring, and this peer does not
 * resume, or was refused.  The doorbell is kept all the same).
 */
bool ivshmem2_peer_ring(Ivshmem2Peer *peer, uint32_t target, uint32_t vector,
                        GError **error);

/*
 * Wait until this peer is interrupted ("Interrupt Control Register").  Several
 * interrupts of one vector before this call count as one.
 *
 * @only: the vector to wait for, below Ivshmem2PeerInfo.enabled_vectors;
 *     others remain to be waited for.  -1: any vector.
 * @vector: where to put the vector that was interrupted, or NULL
 * @timeout_ms: milliseconds; 0: do not wait, -1: no limit
 *
 * This is also what keeps a host peer's conversation with its server going.
 * Without a server it waits on, because other peers can still ring.
 *
 * Returns 1 if there was an interrupt, which is taken with that; 0 if the time
 * is over; 2, only with IVSHMEM2_SOCKET_EVENTS, if there is an event to be
 * taken with ivshmem2_peer_event(); -1 with @error set: ARGUMENT (@only is out
 * of range), IO, CLOSED (guest: the device is being removed).
 */
int ivshmem2_peer_wait(Ivshmem2Peer *peer, int only, int *vector,
                       int timeout_ms, GError **error);

/*
 * For programs with a main loop of their own: a descriptor that is readable
 * (POLLIN) while ivshmem2_peer_wait() with @only -1 has something to do.
 * Owned by @peer: do nothing but wait for it.  Any thread.
 */
int ivshmem2_peer_fd(const Ivshmem2Peer *peer);

G_END_DECLS

#endif /* LIBIVSHMEM2_H */
