/*
 * libivshmem2: the client's side of the protocol, without the I/O
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "libivshmem2-bits.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"

/* Requests that the server has not answered yet, at most */
#define MAX_IN_FLIGHT       64
/* Eventfds of others that are kept, at most; then the oldest is closed */
#define MAX_EVENTFDS        1024
/*
 * Links with more peers leave it to the server to interrupt all of them.
 * bench/signal.c: signalling 63 eventfds takes 42 us and 127 take 75 (to look
 * for those that need it, 2 more), while a virtual CPU stands still.  The way
 * by the server takes 65 us longer than a doorbell (bench/run), but costs the
 * virtual CPU one message.
 */
#define MAX_DIRECT_PEERS    64

typedef enum Phase {
    PHASE_OFF,                  /* no connection */
    PHASE_HELLO,                /* HELLO is to be sent */
    PHASE_WELCOME,              /* these expect the message of that name */
    PHASE_OUTPUTS,
    PHASE_EVENTFDS,
    PHASE_READY,                /* the handshake is complete */
} Phase;

struct Ivshmem2Session {
    Ivshmem2Hello hello;
    Ivshmem2Welcome info;
    Ivshmem2Welcome wanted;     /* max_peers not 0: the link's shape */
    Phase phase;
    bool established;           /* the first handshake is complete */
    uint32_t state;             /* of this peer, after the last change */
    bool say_changed;           /* the server is to interrupt the others */
    bool state_rung;            /* without it, all that we can reach know it */
    bool say_announced;         /* the server is to know what the others do */
    bool hold_zero;             /* but not yet that the state is 0 */
    bool say_goodbye;

    /* owned until mapped or, with keep_files, until the end */
    bool keep_files;
    int state_fd;
    int rw_fd;
    int *output_fds;
    uint32_t n_outputs;

    int *own_fds;
    uint32_t n_own;
    GHashTable *eventfds;       /* doorbell value of the target -> fd */
    GQueue eventfd_keys;        /* oldest first */
    GArray *state_fds;          /* those for vector 0, oldest first */

    Ivshmem2Bits waiting;       /* rings to be requested from the server */
    size_t last_asked;          /* the last one that was requested */
    uint32_t in_flight[MAX_IN_FLIGHT];  /* doorbell values, oldest first */
    unsigned in_flight_start;
    unsigned n_in_flight;
};

/* Pairs of ID and vector */

static size_t bit_of(const Ivshmem2Session *s, uint32_t id, uint32_t vector)
{
    return (size_t)id * s->info.vectors + vector;
}

/* As in the Doorbell register, which has room for every (ID, vector) */
static uint32_t key_of(uint32_t id, uint32_t vector)
{
    return id << 16 | vector;
}

/* Changes of states are told by vector 0. */
static bool is_for_states(uint32_t key)
{
    return !(key & 0xffff);
}

/* Life */

Ivshmem2Session *ivshmem2_session_new(const Ivshmem2Hello *hello)
{
    Ivshmem2Session *s = g_new0(Ivshmem2Session, 1);

    s->hello = *hello;
    s->hello.magic = IVSHMEM2_MAGIC;
    s->hello.version_min = IVSHMEM2_VERSION_MIN;
    s->hello.version_max = IVSHMEM2_VERSION_MAX;
    s->hello.role = IVSHMEM2_ROLE_PEER;
    memset(s->hello.session, 0, sizeof(s->hello.session));
    s->state_fd = -1;
    s->rw_fd = -1;
    s->eventfds = g_hash_table_new(NULL, NULL);
    s->state_fds = g_array_new(false, false, sizeof(int));
    ivshmem2_signals_prepare(NULL);
    g_queue_init(&s->eventfd_keys);
    return s;
}

Ivshmem2Session *ivshmem2_session_new_like(const Ivshmem2Session *old)
{
    Ivshmem2Session *s = ivshmem2_session_new(&old->hello);

    s->hello.id = old->info.id;
    s->wanted = old->info;
    s->keep_files = old->keep_files;
    return s;
}

static void close_all(int **fds, uint32_t *n)
{
    for (uint32_t i = 0; i < *n; i++) {
        ivshmem2_close(&(*fds)[i]);
    }
    g_clear_pointer(fds, g_free);
    *n = 0;
}

static void drop_memory(Ivshmem2Session *s)
{
    ivshmem2_close(&s->state_fd);
    ivshmem2_close(&s->rw_fd);
    close_all(&s->output_fds, &s->n_outputs);
}

static void drop_oldest_eventfd(Ivshmem2Session *s)
{
    gpointer key = g_queue_pop_head(&s->eventfd_keys);
    int fd = GPOINTER_TO_INT(g_hash_table_lookup(s->eventfds, key));

    g_hash_table_remove(s->eventfds, key);
    if (is_for_states(GPOINTER_TO_UINT(key))) {
        g_array_remove_index(s->state_fds, 0);
    }
    ivshmem2_close(&fd);
}

static void drop_all(Ivshmem2Session *s)
{
    drop_memory(s);
    close_all(&s->own_fds, &s->n_own);
    while (!g_queue_is_empty(&s->eventfd_keys)) {
        drop_oldest_eventfd(s);
    }
    ivshmem2_bits_clear(&s->waiting);
}

/* The last one to close a file of memory frees it, which takes its time. */
static void dispose_of_memory(Ivshmem2Session *s)
{
    ivshmem2_dispose(&s->state_fd);
    ivshmem2_dispose(&s->rw_fd);
    for (uint32_t i = 0; i < s->n_outputs; i++) {
        ivshmem2_dispose(&s->output_fds[i]);
    }
}

void ivshmem2_session_free(Ivshmem2Session *s)
{
    if (s) {
        dispose_of_memory(s);
        drop_all(s);
        g_hash_table_destroy(s->eventfds);
        g_array_free(s->state_fds, true);
        g_free(s);
    }
}

/* Can we interrupt all other peers without the server, and fast enough? */
static bool reaches_all(const Ivshmem2Session *s)
{
    return s->established && s->info.max_peers <= MAX_DIRECT_PEERS &&
           s->state_fds->len == s->info.max_peers - 1;
}

/*
 * The server has filled the counters of IDs that nobody has had yet.  Those of
 * other IDs that nobody has are signalled, too, and emptied in time.
 */
static void ring_for_state(const Ivshmem2Session *s)
{
    /* a peer that joins now sees the new state, or is interrupted */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    ivshmem2_eventfds_signal_if_room((const int *)s->state_fds->data,
                                     s->state_fds->len);
}

void ivshmem2_session_connected(Ivshmem2Session *s)
{
    ivshmem2_session_disconnected(s);
    if (s->established) {
        s->hello.id = s->info.id;
        memcpy(s->hello.session, s->info.session, sizeof(s->hello.session));
    }
    /* what changed without a connection was not announced */
    s->say_announced = reaches_all(s);
    s->phase = PHASE_HELLO;
}

/*
 * Without a server, interrupt the peers whose eventfds we hold.  The next
 * server is told all the same, because it may know more peers.
 */
static void ring_known_peers(Ivshmem2Session *s)
{
    if (s->say_changed && !s->state_rung) {
        s->state_rung = true;
        ring_for_state(s);
    }
}

void ivshmem2_session_disconnected(Ivshmem2Session *s)
{
    if (!s->established) {
        drop_all(s);
        memset(&s->info, 0, sizeof(s->info));
    }
    ring_known_peers(s);
    /* The server may have rung these or not.  Twice is better than never. */
    while (s->n_in_flight) {
        uint32_t key = s->in_flight[s->in_flight_start];

        ivshmem2_bits_add(&s->waiting, bit_of(s, key >> 16, key & 0xffff));
        s->in_flight_start = (s->in_flight_start + 1) % MAX_IN_FLIGHT;
        s->n_in_flight--;
    }
    s->phase = PHASE_OFF;
}

bool ivshmem2_session_ready(const Ivshmem2Session *s)
{
    return s->phase == PHASE_READY;
}

const Ivshmem2Welcome *ivshmem2_session_info(const Ivshmem2Session *s)
{
    return &s->info;
}

/* Messages of the server */

/* Does a new session's @w fit what we asked for, and this host? */
static bool check_new_session(const Ivshmem2Session *s,
                              const Ivshmem2Welcome *w, GError **error)
{
    long page_size = sysconf(_SC_PAGE_SIZE);

    if (s->wanted.max_peers &&
        !ivshmem2_welcome_check_shape(w, &s->wanted, error)) {
        return false;
    }
    if (s->hello.id != IVSHMEM2_ID_ANY && s->hello.id != w->id) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the server gave us ID %u instead of %u", w->id,
                             s->hello.id);
    }
    if (!(w->features & s->hello.features) ||
        (w->features == IVSHMEM2_F_MSIX && w->vectors > s->hello.vectors)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the server requires %u vectors of %s, which we "
                             "did not offer", w->vectors,
                             w->features == IVSHMEM2_F_MSIX ? "MSI-X"
                                                            : "INTx");
    }
    if (w->page_size % page_size) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the link's page size %u is smaller than this "
                             "host's page size %ld", w->page_size, page_size);
    }
    return true;
}

/* Take the memory that came with WELCOME. */
static bool take_memory(Ivshmem2Session *s, Ivshmem2Decoder *d,
                        GError **error)
{
    const Ivshmem2Welcome *w = &d->msg.welcome;

    if (d->n_fds != (w->rw_size ? 2 : 1)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "WELCOME came with %u descriptors instead of %u",
                             d->n_fds, w->rw_size ? 2 : 1);
    }
    if (!ivshmem2_check_memfd(d->fds[0], w->state_table_size, true,
                              "State Table", error) ||
        (w->rw_size && !ivshmem2_check_memfd(d->fds[1], w->rw_size, true,
                                             "R/W section", error))) {
        return false;
    }
    s->state_fd = ivshmem2_decoder_steal_fd(d, 0);
    if (w->rw_size) {
        s->rw_fd = ivshmem2_decoder_steal_fd(d, 1);
    }
    return true;
}

static bool handle_welcome(Ivshmem2Session *s, Ivshmem2Decoder *d,
                           GError **error)
{
    const Ivshmem2Welcome *w = &d->msg.welcome;

    d->msg.welcome.reserved = 0;
    if (w->version < s->hello.version_min ||
        w->version > s->hello.version_max) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the server wants to speak version %u, we "
                             "offered %u to %u", w->version,
                             s->hello.version_min, s->hello.version_max);
    }
    if (!ivshmem2_welcome_check(w, error)) {
        g_prefix_error(error, "WELCOME makes no sense: ");
        return false;
    }
    if (s->established) {
        /* We hold all resources already, and they must be the same. */
        if (memcmp(w, &s->info, sizeof(*w))) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                                 "the resumed session is not what it was");
        }
    } else {
        if (!check_new_session(s, w, error) || !take_memory(s, d, error)) {
            return false;
        }
        s->info = *w;
        s->own_fds = g_new(int, w->vectors);
        if (w->output_size) {
            s->output_fds = g_new(int, w->max_peers);
        }
        ivshmem2_bits_init(&s->waiting, (size_t)w->max_peers * w->vectors);
    }
    s->phase = w->output_size ? PHASE_OUTPUTS : PHASE_EVENTFDS;
    return true;
}

static bool handle_outputs(Ivshmem2Session *s, Ivshmem2Decoder *d,
                           GError **error)
{
    uint32_t first = d->msg.outputs.first;

    if (s->established) {
        return true;
    }
    if (first != s->n_outputs || d->n_fds > s->info.max_peers - first) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "OUTPUTS is about sections %u to %u, but %u to "
                             "%u are still missing", first,
                             first + d->n_fds - 1, s->n_outputs,
                             s->info.max_peers - 1);
    }
    for (unsigned i = 0; i < d->n_fds; i++) {
        g_autofree char *what = g_strdup_printf("output section %u",
                                                first + i);

        if (!ivshmem2_check_memfd(d->fds[i], s->info.output_size,
                                  first + i == s->info.id, what, error)) {
            return false;
        }
        s->output_fds[s->n_outputs++] = ivshmem2_decoder_steal_fd(d, i);
    }
    if (s->n_outputs == s->info.max_peers) {
        s->phase = PHASE_EVENTFDS;
    }
    return true;
}

static void keep_eventfd(Ivshmem2Session *s, uint32_t key, int fd)
{
    gpointer k = GUINT_TO_POINTER(key);

    if (g_hash_table_contains(s->eventfds, k)) {
        ivshmem2_close(&fd);
        return;
    }
    if (g_queue_get_length(&s->eventfd_keys) >= MAX_EVENTFDS) {
        drop_oldest_eventfd(s);
    }
    g_hash_table_insert(s->eventfds, k, GINT_TO_POINTER(fd));
    g_queue_push_tail(&s->eventfd_keys, k);
    if (is_for_states(key)) {
        g_array_append_val(s->state_fds, fd);
    }
}

static bool check_eventfds(Ivshmem2Session *s, Ivshmem2Decoder *d,
                           GError **error)
{
    const Ivshmem2Eventfds *e = &d->msg.eventfds;

    if (e->id >= s->info.max_peers || e->first >= s->info.vectors ||
        d->n_fds > s->info.vectors - e->first) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "EVENTFDS is about peer %u, vectors from %u, but "
                             "the link has %u peers with %u vectors", e->id,
                             e->first, s->info.max_peers, s->info.vectors);
    }
    for (unsigned i = 0; i < d->n_fds; i++) {
        if (!ivshmem2_check_eventfd(d->fds[i], error)) {
            return false;
        }
    }
    return true;
}

/* During the handshake: first all of our own, in order, then any others */
static bool handle_pushed_eventfds(Ivshmem2Session *s, Ivshmem2Decoder *d,
                                   GError **error)
{
    const Ivshmem2Eventfds *e = &d->msg.eventfds;

    if (!check_eventfds(s, d, error)) {
        return false;
    }
    if (s->established) {
        return true;
    }
    if (s->n_own < s->info.vectors &&
        (e->id != s->info.id || e->first != s->n_own || !d->n_fds)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "EVENTFDS is about peer %u, vectors from %u, but "
                             "our own are missing from %u on", e->id, e->first,
                             s->n_own);
    }
    for (unsigned i = 0; i < d->n_fds; i++) {
        if (s->n_own < s->info.vectors) {
            s->own_fds[s->n_own++] = ivshmem2_decoder_steal_fd(d, i);
        } else if (e->id != s->info.id) {
            keep_eventfd(s, key_of(e->id, e->first + i),
                         ivshmem2_decoder_steal_fd(d, i));
        }
    }
    return true;
}

/* After the handshake: the answer to our oldest request */
static bool handle_answer(Ivshmem2Session *s, Ivshmem2Decoder *d,
                          GError **error)
{
    const Ivshmem2Eventfds *e = &d->msg.eventfds;

    if (!check_eventfds(s, d, error)) {
        return false;
    }
    if (!s->n_in_flight || d->n_fds > 1 ||
        s->in_flight[s->in_flight_start] != key_of(e->id, e->first)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "EVENTFDS for vector %u of peer %u answers "
                             "nothing that we asked", e->first, e->id);
    }
    s->in_flight_start = (s->in_flight_start + 1) % MAX_IN_FLIGHT;
    s->n_in_flight--;
    if (d->n_fds) {
        keep_eventfd(s, key_of(e->id, e->first),
                     ivshmem2_decoder_steal_fd(d, 0));
        if (ivshmem2_bits_remove(&s->waiting, bit_of(s, e->id, e->first))) {
            ivshmem2_session_ring(s, e->id, e->first, NULL);
        }
    }
    return true;
}

static bool handle_ready(Ivshmem2Session *s, GError **error)
{
    if (!s->established && s->n_own < s->info.vectors) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "READY came before all %u eventfds of our own",
                             s->info.vectors);
    }
    s->established = true;
    s->phase = PHASE_READY;
    return true;
}

/* Every code of the server has a code of ours, because programs act on it. */
static Ivshmem2Error refusal_error(uint32_t code)
{
    switch (code) {
    case IVSHMEM2_REFUSAL_PROTOCOL:
        return IVSHMEM2_ERROR_PROTOCOL;
    case IVSHMEM2_REFUSAL_VERSION:
        return IVSHMEM2_ERROR_VERSION;
    case IVSHMEM2_REFUSAL_FULL:
        return IVSHMEM2_ERROR_FULL;
    case IVSHMEM2_REFUSAL_ID_TAKEN:
        return IVSHMEM2_ERROR_ID_TAKEN;
    case IVSHMEM2_REFUSAL_ID_RANGE:
        return IVSHMEM2_ERROR_ID_RANGE;
    case IVSHMEM2_REFUSAL_INTERRUPTS:
        return IVSHMEM2_ERROR_INTERRUPTS;
    case IVSHMEM2_REFUSAL_PERMISSION:
        return IVSHMEM2_ERROR_PERMISSION;
    case IVSHMEM2_REFUSAL_SESSION:
        return IVSHMEM2_ERROR_SESSION;
    case IVSHMEM2_REFUSAL_LIMIT:
        return IVSHMEM2_ERROR_LIMIT;
    case IVSHMEM2_REFUSAL_TIMEOUT:
        return IVSHMEM2_ERROR_TIMEOUT;
    case IVSHMEM2_REFUSAL_SHUTDOWN:
        return IVSHMEM2_ERROR_SHUTDOWN;
    default:
        return IVSHMEM2_ERROR_REFUSED;
    }
}

static bool out_of_order(const Ivshmem2Decoder *d, GError **error)
{
    return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                         "%s came out of order",
                         ivshmem2_type_name(d->msg.hdr.type));
}

static bool receive(Ivshmem2Session *s, Ivshmem2Decoder *d, GError **error)
{
    switch (d->msg.hdr.type) {
    case IVSHMEM2_MSG_WELCOME:
        return s->phase == PHASE_WELCOME ? handle_welcome(s, d, error)
                                         : out_of_order(d, error);
    case IVSHMEM2_MSG_OUTPUTS:
        return s->phase == PHASE_OUTPUTS ? handle_outputs(s, d, error)
                                         : out_of_order(d, error);
    case IVSHMEM2_MSG_EVENTFDS:
        if (s->phase == PHASE_READY) {
            return handle_answer(s, d, error);
        }
        /* a resumed session ignores the sections */
        if (s->phase == PHASE_OUTPUTS && s->established) {
            s->phase = PHASE_EVENTFDS;
        }
        return s->phase == PHASE_EVENTFDS ?
               handle_pushed_eventfds(s, d, error) : out_of_order(d, error);
    case IVSHMEM2_MSG_READY:
        return s->phase == PHASE_EVENTFDS ? handle_ready(s, error)
                                          : out_of_order(d, error);
    case IVSHMEM2_MSG_REFUSED:
        return ivshmem2_fail(error, refusal_error(d->msg.refusal.code),
                             "the server says: %s", d->msg.refusal.text);
    }
    return out_of_order(d, error);
}

bool ivshmem2_session_receive(Ivshmem2Session *s, Ivshmem2Decoder *d,
                              GError **error)
{
    bool ok = receive(s, d, error);

    ivshmem2_decoder_reset(d);
    return ok;
}

/* Messages to the server */

static bool announces(const Ivshmem2Session *s)
{
    return s->say_announced && (s->state || !s->hold_zero);
}

bool ivshmem2_session_holds_zero(const Ivshmem2Session *s)
{
    return s->phase == PHASE_READY && s->say_announced && !s->state;
}

void ivshmem2_session_hold_zero(Ivshmem2Session *s, bool hold)
{
    s->hold_zero = hold;
}

bool ivshmem2_session_has_next(const Ivshmem2Session *s)
{
    return s->phase == PHASE_HELLO ||
           (s->phase > PHASE_HELLO && s->say_goodbye) ||
           (s->phase == PHASE_READY &&
            (s->say_changed || announces(s) ||
             (s->n_in_flight < MAX_IN_FLIGHT && s->waiting.n_set)));
}

/* Round robin: a pair that is added again and again delays no other one. */
static size_t take_next_waiting(Ivshmem2Session *s)
{
    size_t bit = ivshmem2_bits_next(&s->waiting, s->last_asked + 1);

    if (bit == IVSHMEM2_BITS_NONE) {
        bit = ivshmem2_bits_next(&s->waiting, 0);
    }
    ivshmem2_bits_remove(&s->waiting, bit);
    s->last_asked = bit;
    return bit;
}

static void next_ring(Ivshmem2Session *s, Ivshmem2Msg *msg)
{
    size_t bit = take_next_waiting(s);
    uint32_t id = bit / s->info.vectors;
    uint32_t vector = bit % s->info.vectors;
    unsigned end = (s->in_flight_start + s->n_in_flight) % MAX_IN_FLIGHT;

    s->in_flight[end] = key_of(id, vector);
    s->n_in_flight++;
    msg->hdr.type = IVSHMEM2_MSG_RING;
    msg->target.id = id;
    msg->target.vector = vector;
}

/* The server announces what it finds in the table, so one of them suffices. */
static void next_state(Ivshmem2Session *s, Ivshmem2Msg *msg)
{
    if (s->say_changed) {
        msg->hdr.type = IVSHMEM2_MSG_STATE_CHANGED;
    } else {
        msg->hdr.type = IVSHMEM2_MSG_STATE_ANNOUNCED;
        msg->announcement.state = s->state;
    }
    s->say_changed = false;
    s->say_announced = false;
}

bool ivshmem2_session_next(Ivshmem2Session *s, Ivshmem2Msg *msg)
{
    if (!ivshmem2_session_has_next(s)) {
        return false;
    }
    memset(msg, 0, sizeof(*msg));
    if (s->phase == PHASE_HELLO) {
        msg->hdr.type = IVSHMEM2_MSG_HELLO;
        msg->hello = s->hello;
        s->phase = PHASE_WELCOME;
    } else if ((s->say_changed || announces(s)) && s->phase == PHASE_READY) {
        next_state(s, msg);
    } else if (s->say_goodbye) {
        msg->hdr.type = IVSHMEM2_MSG_GOODBYE;
        s->say_goodbye = false;
    } else {
        next_ring(s, msg);
    }
    return true;
}

int ivshmem2_session_own_eventfd(const Ivshmem2Session *s, uint32_t vector)
{
    return vector < s->n_own ? s->own_fds[vector] : -1;
}

/* The eventfd of @vector at @id if we hold it, else -1 */
static int find_eventfd(const Ivshmem2Session *s, uint32_t id, uint32_t vector)
{
    gpointer fd;

    if (id == s->info.id) {
        return ivshmem2_session_own_eventfd(s, vector);
    }
    if (!g_hash_table_lookup_extended(s->eventfds,
                                      GUINT_TO_POINTER(key_of(id, vector)),
                                      NULL, &fd)) {
        return -1;
    }
    return GPOINTER_TO_INT(fd);
}

Ivshmem2Ring ivshmem2_session_ring(Ivshmem2Session *s, uint32_t id,
                                   uint32_t vector, int *fd)
{
    int event_fd;

    if (!s->established || id >= s->info.max_peers ||
        vector >= s->info.vectors) {
        return IVSHMEM2_RING_NOBODY;
    }
    event_fd = find_eventfd(s, id, vector);
    if (event_fd < 0) {
        ivshmem2_bits_add(&s->waiting, bit_of(s, id, vector));
        return IVSHMEM2_RING_REQUESTED;
    }
    ivshmem2_eventfd_signal(event_fd);
    if (fd) {
        *fd = event_fd;
    }
    return IVSHMEM2_RING_SIGNALLED;
}

/*
 * The server is told after the others are, so that it tells them of the end of
 * a peer that died in between.  All that it needs for this is whether they know
 * a state that is not 0.
 */
void ivshmem2_session_state_changed(Ivshmem2Session *s, uint32_t state)
{
    if (reaches_all(s)) {
        ring_for_state(s);
        s->say_announced |= !state != !s->state;
    } else {
        s->say_changed = true;
        s->state_rung = false;
        /* a handshake can take as long as the server likes */
        if (s->phase != PHASE_READY) {
            ring_known_peers(s);
        }
    }
    s->state = state;
}

void ivshmem2_session_goodbye(Ivshmem2Session *s)
{
    s->say_goodbye = true;
}

/* Memory */

static size_t block_size(int fd)
{
    struct stat st;

    /* the page size of the file, e.g. a huge page */
    return fd >= 0 && fstat(fd, &st) == 0 ? st.st_blksize : 0;
}

static bool map_section(void *base, uint64_t offset, uint64_t size, int fd,
                        bool writable, const char *what, GError **error)
{
    if (size && mmap((char *)base + offset, size,
                     PROT_READ | (writable ? PROT_WRITE : 0),
                     MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        return ivshmem2_fail_errno(error, "cannot map the %s of %llu bytes",
                                   what, (unsigned long long)size);
    }
    return true;
}

static bool map_sections(Ivshmem2Session *s, void *base, GError **error)
{
    const Ivshmem2Welcome *w = &s->info;

    if (!map_section(base, 0, w->state_table_size, s->state_fd, true,
                     "State Table", error) ||
        !map_section(base, ivshmem2_rw_offset(w), w->rw_size, s->rw_fd, true,
                     "R/W section", error)) {
        return false;
    }
    for (uint32_t i = 0; i < s->n_outputs; i++) {
        if (!map_section(base, ivshmem2_output_offset(w, i), w->output_size,
                         s->output_fds[i], i == w->id, "output section",
                         error)) {
            return false;
        }
    }
    return true;
}

void ivshmem2_session_keep_files(Ivshmem2Session *s)
{
    s->keep_files = true;
}

void *ivshmem2_session_map(Ivshmem2Session *s, GError **error)
{
    uint64_t total = ivshmem2_total_size(&s->info);
    size_t align = 2 * 1024 * 1024;
    char *area, *base;
    size_t size;

    align = MAX(align, block_size(s->rw_fd));
    align = MAX(align, s->n_outputs ? block_size(s->output_fds[0]) : 0);
    if (!ivshmem2_check_mappable(total, align, SIZE_MAX, error)) {
        return NULL;
    }
    size = total;
    area = mmap(NULL, size + align, PROT_NONE,
                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) {
        ivshmem2_fail_errno(error, "cannot reserve %zu bytes of address space",
                            size);
        return NULL;
    }
    base = area + (align - (uintptr_t)area % align) % align;
    if (base > area) {
        munmap(area, base - area);
    }
    munmap(base + size, align - (base - area));
    if (!map_sections(s, base, error)) {
        munmap(base, size);
        return NULL;
    }
    /* dumping memory that nobody has written would allocate it */
    madvise(base, size, MADV_DONTDUMP);
    if (!s->keep_files) {
        drop_memory(s);
    }
    return base;
}

bool ivshmem2_session_map_over(Ivshmem2Session *s, void *base, GError **error)
{
    if (!map_sections(s, base, error)) {
        return false;
    }
    madvise(base, ivshmem2_total_size(&s->info), MADV_DONTDUMP);
    return true;
}

/*
 * The file behind @offset of the memory.  *@offset becomes the one in the
 * file, *@left the number of bytes of its section from there on.
 */
static int find_file(const Ivshmem2Session *s, uint64_t *offset,
                     uint64_t *left)
{
    const Ivshmem2Welcome *w = &s->info;
    uint64_t outputs = ivshmem2_output_offset(w, 0);
    uint32_t id;

    if (*offset < w->state_table_size) {
        *left = w->state_table_size - *offset;
        return s->state_fd;
    }
    if (*offset < outputs) {
        *left = outputs - *offset;
        *offset -= ivshmem2_rw_offset(w);
        return s->rw_fd;
    }
    id = (*offset - outputs) / w->output_size;
    *offset -= ivshmem2_output_offset(w, id);
    *left = w->output_size - *offset;
    return s->output_fds[id];
}

bool ivshmem2_session_read(const Ivshmem2Session *s, uint64_t offset,
                           void *buf, size_t length, GError **error)
{
    if (s->state_fd < 0) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "the descriptors of the sections are closed: "
                             "reading needs the flag "
                             "IVSHMEM2_SOCKET_KEEP_FILES");
    }
    for (size_t done = 0; done < length; ) {
        uint64_t at = offset + done;
        uint64_t left;
        int fd = find_file(s, &at, &left);
        ssize_t ret = pread(fd, (char *)buf + done, MIN(left, length - done),
                            at);

        if (ret > 0) {
            done += ret;
        } else if (ret == 0 || errno != EINTR) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                                 "cannot read shared memory: %s",
                                 ret ? g_strerror(errno) : "it ended early");
        }
    }
    return true;
}
