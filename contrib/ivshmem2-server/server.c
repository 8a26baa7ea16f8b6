/*
 * The server's side of the conversation, without the I/O
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <string.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "server.h"

typedef enum Phase {
    PHASE_HELLO,                /* HELLO is to come */
    PHASE_WELCOME,              /* these are to be sent */
    PHASE_OUTPUTS,
    PHASE_OWN_EVENTFDS,
    PHASE_OTHER_EVENTFDS,
    PHASE_READY,
    PHASE_PEER,                 /* the handshake is complete */
    PHASE_ERROR,                /* ERROR is to be sent */
    PHASE_OVER,
} Phase;

#define NO_UID ((uid_t)-1)

/* Neither client nor hold: the slot is free. */
typedef struct Slot {
    Ivshmem2Client *client;
    Ivshmem2Hold *hold;
    uint32_t last_state;        /* that the other peers were told about */
    uid_t uid;                  /* of the user whom it counts for */
} Slot;

/*
 * The interrupts that tell all peers but the source of a changed state.  One
 * round serves all changes: what happens during a round makes it go on for a
 * full turn from where it is, and that is as much as can be in arrears.
 */
typedef struct Broadcast {
    uint32_t next;              /* ID to look at */
    uint32_t left;              /* how many IDs are still to be looked at */
    uint32_t source;            /* or IVSHMEM2_ID_ANY: several */
} Broadcast;

struct Ivshmem2Server {
    Ivshmem2Link *link;
    const Ivshmem2ServerOps *ops;
    Slot *slots;
    Ivshmem2Bits free_ids;
    Ivshmem2Bits occupied_ids;
    GHashTable *ids_of_users;   /* uid -> how many IDs it has */
    uint32_t ids_per_user;
    Broadcast broadcast;
    bool warned;
    bool closing;
};

Ivshmem2Server *ivshmem2_server_new(Ivshmem2Link *link,
                                    const Ivshmem2ServerOps *ops)
{
    Ivshmem2Server *s = g_new0(Ivshmem2Server, 1);

    s->link = link;
    s->ops = ops;
    s->slots = g_new0(Slot, link->welcome.max_peers);
    s->ids_of_users = g_hash_table_new(NULL, NULL);
    s->ids_per_user = UINT32_MAX;
    ivshmem2_bits_init(&s->free_ids, link->welcome.max_peers);
    ivshmem2_bits_init(&s->occupied_ids, link->welcome.max_peers);
    for (uint32_t id = 0; id < link->welcome.max_peers; id++) {
        ivshmem2_bits_add(&s->free_ids, id);
        s->slots[id].uid = NO_UID;
    }
    return s;
}

void ivshmem2_server_limit_ids(Ivshmem2Server *s, uint32_t n)
{
    s->ids_per_user = n;
}

void ivshmem2_server_shutdown(Ivshmem2Server *s)
{
    s->closing = true;
}

void ivshmem2_server_free(Ivshmem2Server *s)
{
    for (uint32_t id = 0; id < s->link->welcome.max_peers; id++) {
        if (s->slots[id].hold) {
            s->ops->unhold(s->slots[id].hold);
        }
    }
    ivshmem2_bits_clear(&s->free_ids);
    ivshmem2_bits_clear(&s->occupied_ids);
    g_hash_table_unref(s->ids_of_users);
    g_free(s->slots);
    g_free(s);
}

/* State changes */

static void state_changed(Ivshmem2Server *s, uint32_t id)
{
    Broadcast *b = &s->broadcast;

    b->source = b->left && b->source != id ? IVSHMEM2_ID_ANY : id;
    b->left = s->link->welcome.max_peers;
}

bool ivshmem2_server_broadcast(Ivshmem2Server *s, unsigned budget)
{
    Broadcast *b = &s->broadcast;
    uint32_t max = s->link->welcome.max_peers;
    int fds[16];
    size_t n = 0;

    while (b->left && budget) {
        size_t id = ivshmem2_bits_next(&s->occupied_ids, b->next);
        bool found = id != IVSHMEM2_BITS_NONE;
        uint32_t step = (found ? id + 1 : max) - b->next;

        if (step > b->left) {
            b->left = 0;
            break;
        }
        b->left -= step;
        b->next = (b->next + step) % max;
        if (found && id != b->source) {
            fds[n++] = s->link->eventfds[id][0];
            budget--;
        }
        if (n == G_N_ELEMENTS(fds)) {
            ivshmem2_eventfds_signal(fds, n);
            n = 0;
        }
    }
    ivshmem2_eventfds_signal(fds, n);
    return b->left;
}

/* A peer that is gone has state 0, and the others learn it. */
static void clear_state(Ivshmem2Server *s, uint32_t id)
{
    Slot *slot = &s->slots[id];
    uint32_t state = ivshmem2_link_clear_state(s->link, id);

    if (state || slot->last_state) {
        state_changed(s, id);
    }
    slot->last_state = 0;
}

/* Slots */

static uint32_t count_ids(const Ivshmem2Server *s, uid_t uid)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(s->ids_of_users,
                                                GUINT_TO_POINTER(uid)));
}

static void set_count(Ivshmem2Server *s, uid_t uid, uint32_t n)
{
    if (n) {
        g_hash_table_insert(s->ids_of_users, GUINT_TO_POINTER(uid),
                            GUINT_TO_POINTER(n));
    } else {
        g_hash_table_remove(s->ids_of_users, GUINT_TO_POINTER(uid));
    }
}

/* From now on it counts for @uid. */
static void set_slot_user(Ivshmem2Server *s, Slot *slot, uid_t uid)
{
    if (slot->uid != NO_UID) {
        set_count(s, slot->uid, count_ids(s, slot->uid) - 1);
    }
    if (uid != NO_UID) {
        set_count(s, uid, count_ids(s, uid) + 1);
    }
    slot->uid = uid;
}

static void free_slot(Ivshmem2Server *s, uint32_t id)
{
    /* The last occupant could write its entry as long as it lived. */
    clear_state(s, id);
    ivshmem2_link_drain(s->link, id);
    ivshmem2_bits_add(&s->free_ids, id);
    set_slot_user(s, &s->slots[id], NO_UID);
}

void ivshmem2_server_release(Ivshmem2Server *s, uint32_t id)
{
    Slot *slot = &s->slots[id];

    g_info("ID %u is free, '%s' (pid %d) is gone", id, slot->hold->name,
           slot->hold->pid);
    s->ops->unhold(slot->hold);
    slot->hold = NULL;
    free_slot(s, id);
}

/* @detached: it does not use the eventfds any more */
static void leave(Ivshmem2Client *c, bool detached)
{
    Ivshmem2Server *s = c->server;
    uint32_t id = c->id;
    Slot *slot = &s->slots[id];
    Ivshmem2Hold hold = { .id = id, .pid = c->pid };

    c->id = IVSHMEM2_ID_ANY;
    slot->client = NULL;
    ivshmem2_bits_remove(&s->occupied_ids, id);
    if (s->closing) {
        return;
    }
    clear_state(s, id);
    if (!detached) {
        memcpy(hold.name, c->name, sizeof(hold.name));
        slot->hold = s->ops->hold(c, &hold);
    }
    g_info("'%s' (pid %d) left ID %u%s", c->name, c->pid, id,
           slot->hold ? ", which is held while that process lives" : "");
    if (!slot->hold) {
        free_slot(s, id);
    }
}

static bool same_process(pid_t a, pid_t b)
{
    /*
     * A pid is given to another process only when the first one is gone, and
     * then that one has no claim any more.
     */
    return a && a == b;
}

/*
 * Can @c have the slot?  If it was its process's before, that stops here.
 * @code: of the refusal
 */
static bool claim_slot(Ivshmem2Client *c, uint32_t id, bool resume,
                       enum Ivshmem2RefusalCode code)
{
    Ivshmem2Server *s = c->server;
    Slot *slot = &s->slots[id];
    Ivshmem2Client *old = slot->client;

    if (old && resume && same_process(old->pid, c->pid)) {
        ivshmem2_client_refuse(old, IVSHMEM2_REFUSAL_SESSION,
                               "this session was resumed by another "
                               "connection of the same process");
        s->ops->wake(old);
    } else if (old) {
        ivshmem2_client_refuse(c, code, "ID %u is taken by '%s' (pid %d)",
                               id, old->name, old->pid);
        return false;
    }
    if (slot->hold && same_process(slot->hold->pid, c->pid)) {
        s->ops->unhold(slot->hold);
        slot->hold = NULL;
    } else if (slot->hold && slot->hold->pid) {
        ivshmem2_client_refuse(c, code, "ID %u is held for '%s' (pid %d) as "
                               "long as that process lives", id,
                               slot->hold->name, slot->hold->pid);
        return false;
    } else if (slot->hold) {
        ivshmem2_client_refuse(c, code, "ID %u is held for a moment, because "
                               "'%s' left without a goodbye", id,
                               slot->hold->name);
        return false;
    }
    return true;
}

static bool may_take(Ivshmem2Client *c, uint32_t id)
{
    Ivshmem2Server *s = c->server;
    uint32_t n = count_ids(s, c->uid);

    if (!ivshmem2_ids_contain(c->ids, id)) {
        g_autofree char *ids = ivshmem2_ids_text(c->ids);

        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_PERMISSION, "the user with "
                               "uid %u may not take ID %u, but %s", c->uid,
                               id, ids);
        return false;
    }
    if (n >= s->ids_per_user && s->slots[id].uid != c->uid) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_LIMIT,
                               "the user with uid %u "
                               "has %u IDs already, and may not have more",
                               c->uid, n);
        return false;
    }
    return true;
}

static bool choose_free_id(Ivshmem2Client *c, uint32_t *id)
{
    Ivshmem2Server *s = c->server;
    size_t lowest = ivshmem2_ids_lowest(c->ids, &s->free_ids);
    g_autofree char *ids = NULL;

    if (lowest != IVSHMEM2_BITS_NONE) {
        *id = lowest;
        return may_take(c, *id);
    }
    if (c->ids) {
        ids = ivshmem2_ids_text(c->ids);
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_FULL,
                               "all IDs that the user "
                               "with uid %u may take (%s) are taken", c->uid,
                               ids);
    } else {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_FULL,
                               "the link is full: all "
                               "%u IDs are taken", s->link->welcome.max_peers);
    }
    return false;
}

static bool choose_id(Ivshmem2Client *c, const Ivshmem2Hello *hello,
                      uint32_t *id, bool *resume)
{
    static const uint8_t none[IVSHMEM2_UUID_SIZE];
    Ivshmem2Server *s = c->server;
    uint32_t max = s->link->welcome.max_peers;

    *resume = memcmp(hello->session, none, sizeof(none));
    if (*resume && memcmp(hello->session, s->link->welcome.session,
                          sizeof(none))) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_SESSION, "the session to "
                               "resume is not of this server, which may have "
                               "been started anew");
        return false;
    }
    if (!*resume && hello->id == IVSHMEM2_ID_ANY) {
        return choose_free_id(c, id);
    }
    if (hello->id >= max) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_ID_RANGE, "ID %u is out of "
                               "range, this link has 0 to %u", hello->id,
                               max - 1);
        return false;
    }
    *id = hello->id;
    return may_take(c, *id) &&
           claim_slot(c, *id, *resume, *resume ? IVSHMEM2_REFUSAL_SESSION
                                               : IVSHMEM2_REFUSAL_ID_TAKEN);
}

static void warn_of_uid(Ivshmem2Client *c)
{
    Ivshmem2Server *s = c->server;

    if (s->warned || !s->link->n_outputs ||
        (c->uid != geteuid() && c->uid != 0)) {
        return;
    }
    s->warned = true;
    g_warning("'%s' (pid %d) runs as %s: the kernel does not keep such peers "
              "from writing the output sections of others",
              c->name, c->pid,
              c->uid == geteuid() ? "the server's user" : "root");
}

static void take_slot(Ivshmem2Client *c, uint32_t id, bool resume)
{
    Ivshmem2Server *s = c->server;
    Slot *slot = &s->slots[id];
    uint32_t state;

    slot->client = c;
    ivshmem2_bits_remove(&s->free_ids, id);
    ivshmem2_bits_add(&s->occupied_ids, id);
    set_slot_user(s, slot, c->uid);
    g_clear_pointer(&c->ids, g_array_unref);
    c->id = id;
    c->phase = PHASE_WELCOME;
    if (resume) {
        state = ivshmem2_link_state(s->link, id);
        if (state != slot->last_state) {
            slot->last_state = state;
            state_changed(s, id);
        }
    } else {
        clear_state(s, id);
    }
    g_info("'%s' (pid %d, uid %u) %s ID %u", c->name, c->pid, c->uid,
           resume ? "is back as" : "joins as", id);
    warn_of_uid(c);
}

/* Clients */

void ivshmem2_client_init(Ivshmem2Client *c, Ivshmem2Server *s, pid_t pid,
                          uid_t uid)
{
    memset(c, 0, sizeof(*c));
    c->server = s;
    c->pid = pid;
    c->uid = uid;
    c->id = IVSHMEM2_ID_ANY;
    c->phase = PHASE_HELLO;
}

void ivshmem2_client_restrict_consume(Ivshmem2Client *c, GArray *ids)
{
    c->ids = ids;
}

void ivshmem2_client_clear(Ivshmem2Client *c)
{
    if (c->id != IVSHMEM2_ID_ANY) {
        leave(c, false);
    }
    g_clear_pointer(&c->error_text, g_free);
    g_clear_pointer(&c->ids, g_array_unref);
    c->phase = PHASE_OVER;
}

void ivshmem2_client_refuse(Ivshmem2Client *c, enum Ivshmem2RefusalCode code,
                            const char *fmt, ...)
{
    va_list ap;

    if (ivshmem2_client_is_sent_away(c)) {
        return;
    }
    va_start(ap, fmt);
    c->error_text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    c->error_code = code;
    g_info("'%s' (pid %d, uid %u) is sent away: %s", c->name, c->pid, c->uid,
           c->error_text);
    if (c->id != IVSHMEM2_ID_ANY) {
        leave(c, false);
    }
    c->phase = PHASE_ERROR;
}

bool ivshmem2_client_is_ready(const Ivshmem2Client *c)
{
    return c->phase == PHASE_PEER;
}

bool ivshmem2_client_is_sent_away(const Ivshmem2Client *c)
{
    return c->phase == PHASE_ERROR || c->phase == PHASE_OVER;
}

bool ivshmem2_client_is_over(const Ivshmem2Client *c)
{
    return c->phase == PHASE_OVER;
}

/* What it says */

static bool check_interrupts(Ivshmem2Client *c, const Ivshmem2Hello *hello)
{
    const Ivshmem2Welcome *w = &c->server->link->welcome;
    const char *model = w->features == IVSHMEM2_F_MSIX ? "MSI-X" : "INTx";

    if (!(hello->features & w->features)) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_INTERRUPTS,
                               "this link uses %s, which the peer does not "
                               "offer", model);
        return false;
    }
    if (w->features == IVSHMEM2_F_MSIX && hello->vectors < w->vectors) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_INTERRUPTS,
                               "this link needs MSI-X with %u vectors, the "
                               "peer offers %u", w->vectors, hello->vectors);
        return false;
    }
    return true;
}

static void handle_hello(Ivshmem2Client *c, const Ivshmem2Hello *hello)
{
    g_autoptr(GError) error = NULL;
    uint32_t id;
    bool resume;

    memcpy(c->name, hello->name, sizeof(c->name));
    if (hello->version_max < IVSHMEM2_VERSION_MIN ||
        hello->version_min > IVSHMEM2_VERSION_MAX) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_VERSION, "the peer speaks "
                               "versions %u to %u, this server %u to %u",
                               hello->version_min, hello->version_max,
                               IVSHMEM2_VERSION_MIN, IVSHMEM2_VERSION_MAX);
        return;
    }
    if (hello->role != IVSHMEM2_ROLE_PEER) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_PROTOCOL, "role %u is not "
                               "known, this server knows %u (peer)",
                               hello->role, IVSHMEM2_ROLE_PEER);
        return;
    }
    if (!check_interrupts(c, hello) || !choose_id(c, hello, &id, &resume)) {
        return;
    }
    if (!ivshmem2_link_make_eventfds(c->server->link, id, &error)) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_LIMIT,
                               "the server is at its limits: %s",
                               error->message);
        return;
    }
    take_slot(c, id, resume);
}

static bool is_target(const Ivshmem2Server *s, const Ivshmem2Target *target)
{
    return target->id < s->link->welcome.max_peers &&
           target->vector < s->link->welcome.vectors;
}

/* The descriptor that was asked for, or NULL */
static const int *find_target(const Ivshmem2Client *c, uint32_t id,
                              uint32_t vector)
{
    const Ivshmem2Target target = { .id = id, .vector = vector };

    return is_target(c->server, &target) && c->server->link->eventfds[id]
           ? &c->server->link->eventfds[id][vector] : NULL;
}

static void handle_ring(Ivshmem2Client *c, const Ivshmem2Target *target)
{
    Ivshmem2Server *s = c->server;

    if (is_target(s, target) && s->slots[target->id].client) {
        ivshmem2_link_signal(s->link, target->id, target->vector);
    }
    c->next_id = target->id;
    c->next_vector = target->vector;
    c->has_answer = true;
}

void ivshmem2_client_receive(Ivshmem2Client *c, const Ivshmem2Msg *msg)
{
    bool hello = msg->hdr.type == IVSHMEM2_MSG_HELLO;

    if (c->phase == PHASE_HELLO && hello) {
        handle_hello(c, &msg->hello);
        return;
    }
    /* Whoever fails to start can say so in the middle of the handshake. */
    if (c->id != IVSHMEM2_ID_ANY && msg->hdr.type == IVSHMEM2_MSG_GOODBYE) {
        leave(c, true);
        c->phase = PHASE_OVER;
        return;
    }
    if (hello || c->phase != PHASE_PEER) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_PROTOCOL, "%s came %s",
                               ivshmem2_type_name(msg->hdr.type),
                               hello ? "twice" : "before HELLO");
        return;
    }
    switch (msg->hdr.type) {
    case IVSHMEM2_MSG_STATE_CHANGED:
        c->server->slots[c->id].last_state =
            ivshmem2_link_state(c->server->link, c->id);
        state_changed(c->server, c->id);
        break;
    case IVSHMEM2_MSG_RING:
        handle_ring(c, &msg->target);
        break;
    }
}

/* What it is told */

bool ivshmem2_client_has_next(const Ivshmem2Client *c)
{
    switch (c->phase) {
    case PHASE_HELLO:
    case PHASE_OVER:
        return false;
    case PHASE_PEER:
        return c->has_answer;
    default:
        return true;
    }
}

static void next_welcome(Ivshmem2Client *c, Ivshmem2Msg *msg,
                         const int **fds)
{
    Ivshmem2Link *link = c->server->link;

    msg->hdr.type = IVSHMEM2_MSG_WELCOME;
    msg->hdr.fds = link->welcome.rw_size ? 2 : 1;
    ivshmem2_link_welcome(link, c->id, &msg->welcome);
    *fds = link->memory_fds;
    c->next_id = 0;
    c->next_vector = 0;
    c->phase = link->n_outputs ? PHASE_OUTPUTS : PHASE_OWN_EVENTFDS;
}

static void next_outputs(Ivshmem2Client *c, Ivshmem2Msg *msg,
                         const int **fds)
{
    Ivshmem2Link *link = c->server->link;
    uint32_t first = c->next_id;
    uint32_t n;

    if (first == c->id) {
        *fds = &link->output_fds[first];
        n = 1;
    } else {
        *fds = &link->output_read_fds[first];
        n = (first < c->id ? c->id : link->n_outputs) - first;
        n = MIN(n, IVSHMEM2_MAX_FDS);
    }
    msg->hdr.type = IVSHMEM2_MSG_OUTPUTS;
    msg->hdr.fds = n;
    msg->outputs.first = first;
    c->next_id += n;
    if (c->next_id == link->n_outputs) {
        c->next_id = 0;
        c->phase = PHASE_OWN_EVENTFDS;
    }
}

/* Returns true if that were the last ones of @id. */
static bool next_eventfds(Ivshmem2Client *c, uint32_t id, Ivshmem2Msg *msg,
                          const int **fds)
{
    Ivshmem2Link *link = c->server->link;
    uint32_t first = c->next_vector;
    uint32_t n = MIN(link->welcome.vectors - first, IVSHMEM2_MAX_FDS);

    msg->hdr.type = IVSHMEM2_MSG_EVENTFDS;
    msg->hdr.fds = n;
    msg->eventfds.id = id;
    msg->eventfds.first = first;
    *fds = &link->eventfds[id][first];
    c->next_vector = (first + n) % link->welcome.vectors;
    return !c->next_vector;
}

static void next_other_eventfds(Ivshmem2Client *c, Ivshmem2Msg *msg,
                                const int **fds)
{
    uint32_t max = c->server->link->welcome.max_peers;

    if (c->next_id == c->id) {
        c->next_id++;
    }
    if (next_eventfds(c, c->next_id, msg, fds)) {
        c->next_id++;
    }
    if (c->next_id + (c->next_id == c->id) >= max) {
        c->phase = PHASE_READY;
    }
}

static void next_answer(Ivshmem2Client *c, Ivshmem2Msg *msg,
                        const int **fds)
{
    const int *fd = find_target(c, c->next_id, c->next_vector);

    msg->hdr.type = IVSHMEM2_MSG_EVENTFDS;
    msg->hdr.fds = fd ? 1 : 0;
    msg->eventfds.id = c->next_id;
    msg->eventfds.first = c->next_vector;
    *fds = fd;
    c->has_answer = false;
}

static void next_error(Ivshmem2Client *c, Ivshmem2Msg *msg)
{
    msg->hdr.type = IVSHMEM2_MSG_REFUSED;
    msg->refusal.code = c->error_code;
    ivshmem2_set_text(msg->refusal.text, sizeof(msg->refusal.text),
                      c->error_text);
    g_clear_pointer(&c->error_text, g_free);
    c->phase = PHASE_OVER;
}

void ivshmem2_client_next(Ivshmem2Client *c, Ivshmem2Msg *msg,
                          const int **fds)
{
    memset(msg, 0, sizeof(*msg));
    *fds = NULL;
    switch (c->phase) {
    case PHASE_WELCOME:
        next_welcome(c, msg, fds);
        break;
    case PHASE_OUTPUTS:
        next_outputs(c, msg, fds);
        break;
    case PHASE_OWN_EVENTFDS:
        if (next_eventfds(c, c->id, msg, fds)) {
            c->phase = c->server->link->pushes ? PHASE_OTHER_EVENTFDS
                                               : PHASE_READY;
        }
        break;
    case PHASE_OTHER_EVENTFDS:
        next_other_eventfds(c, msg, fds);
        break;
    case PHASE_READY:
        msg->hdr.type = IVSHMEM2_MSG_READY;
        c->phase = PHASE_PEER;
        break;
    case PHASE_PEER:
        next_answer(c, msg, fds);
        break;
    case PHASE_ERROR:
        next_error(c, msg);
        break;
    }
}
