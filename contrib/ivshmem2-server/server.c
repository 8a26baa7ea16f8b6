/*
 * The server's side of the protocol without the I/O
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include "libivshmem2-bits.h"
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
    PHASE_REFUSED,              /* REFUSED is to be sent */
    PHASE_OVER,
} Phase;

#define NO_UID ((uid_t)-1)
/* "" or ", VM " and a UUID */
#define VM_TEXT_SIZE 48

struct Ivshmem2Client {
    Ivshmem2Server *server;
    void *connection;           /* for ops */
    pid_t pid;                  /* of the process that connected; 0: unseen */
    uid_t uid;
    uint8_t phase;
    uint8_t refusal_code;
    bool has_answer;            /* about next_id and next_vector */
    uint32_t id;                /* or IVSHMEM2_ID_ANY: none */
    uint32_t next_id;           /* how far the handshake is */
    uint32_t next_vector;
    char *refusal_text;
    GArray *ids;                /* that it may take; see access.h */
    uint8_t vm_uuid[IVSHMEM2_UUID_SIZE];    /* zeros: none */
    char name[IVSHMEM2_NAME_SIZE];
};

/* A slot that its last occupant, which still lives, left without a goodbye */
typedef struct Hold {
    void *watch;                /* for ops->unhold() */
    pid_t pid;
    char name[IVSHMEM2_NAME_SIZE];
} Hold;

/* Neither client nor hold: the slot is free. */
typedef struct Slot {
    Ivshmem2Client *client;
    Hold *hold;
    uint32_t last_state;        /* that the other peers were told about */
    uid_t uid;                  /* of the user that it counts for, if any */
    uid_t last_uid;             /* of the last occupant */
} Slot;

/*
 * The interrupts that tell all peers but the source of a changed state.  One
 * round serves all changes: a change during a round extends it to a full one
 * from the current ID on, so there is never more than one round to do.
 */
typedef struct Broadcast {
    uint32_t next;              /* ID to look at */
    uint32_t left;              /* how many IDs are still to be looked at */
    uint32_t source;            /* or IVSHMEM2_ID_ANY: several */
} Broadcast;

struct Ivshmem2Server {
    Ivshmem2Link *link;
    Ivshmem2Budget *budget;
    const Ivshmem2ServerOps *ops;
    Slot *slots;
    Ivshmem2Bits free_ids;
    Ivshmem2Bits held_ids;
    Ivshmem2Bits occupied_ids;
    Broadcast broadcast;
    bool warned;
    bool closing;
};

Ivshmem2Server *ivshmem2_server_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                    const Ivshmem2ServerOps *ops)
{
    Ivshmem2Server *s = g_new0(Ivshmem2Server, 1);

    s->link = link;
    s->budget = budget;
    s->ops = ops;
    s->slots = g_new0(Slot, link->welcome.max_peers);
    ivshmem2_bits_init(&s->free_ids, link->welcome.max_peers);
    ivshmem2_bits_init(&s->held_ids, link->welcome.max_peers);
    ivshmem2_bits_init(&s->occupied_ids, link->welcome.max_peers);
    for (uint32_t id = 0; id < link->welcome.max_peers; id++) {
        ivshmem2_bits_add(&s->free_ids, id);
        s->slots[id].uid = NO_UID;
        s->slots[id].last_uid = NO_UID;
    }
    return s;
}

void ivshmem2_server_shutdown(Ivshmem2Server *s)
{
    s->closing = true;
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

/* A peer that is gone has state 0, and the others are told. */
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

/* From now on, it counts for the user with @uid. */
static void set_slot_user(Ivshmem2Server *s, Slot *slot, uid_t uid)
{
    if (slot->uid == uid) {
        return;
    }
    if (slot->uid != NO_UID) {
        ivshmem2_budget_discharge(s->budget, IVSHMEM2_SLOT, slot->uid);
    }
    if (uid != NO_UID) {
        ivshmem2_budget_charge(s->budget, IVSHMEM2_SLOT, uid);
    }
    slot->uid = uid;
}

static void end_hold(Ivshmem2Server *s, Slot *slot)
{
    ivshmem2_bits_remove(&s->held_ids, slot - s->slots);
    s->ops->unhold(slot->hold->watch);
    g_clear_pointer(&slot->hold, g_free);
}

static void free_slot(Ivshmem2Server *s, uint32_t id)
{
    /* The last occupant could write its entry as long as it lived. */
    clear_state(s, id);
    ivshmem2_bits_add(&s->free_ids, id);
    if (!ivshmem2_budget_binds_ids(s->budget)) {
        set_slot_user(s, &s->slots[id], NO_UID);
    }
}

void ivshmem2_server_release(Ivshmem2Server *s, uint32_t id)
{
    Slot *slot = &s->slots[id];

    g_info("ID %u is free, '%s' (pid %d) is gone", id, slot->hold->name,
           slot->hold->pid);
    end_hold(s, slot);
    free_slot(s, id);
}

void ivshmem2_server_free(Ivshmem2Server *s)
{
    for (uint32_t id = 0; id < s->link->welcome.max_peers; id++) {
        if (s->slots[id].hold) {
            end_hold(s, &s->slots[id]);
        }
        set_slot_user(s, &s->slots[id], NO_UID);
    }
    ivshmem2_bits_clear(&s->free_ids);
    ivshmem2_bits_clear(&s->held_ids);
    ivshmem2_bits_clear(&s->occupied_ids);
    g_free(s->slots);
    g_free(s);
}

/* @c left without a goodbye: keep its slot as long as its process lives. */
static void start_hold(Ivshmem2Client *c, uint32_t id)
{
    Ivshmem2Server *s = c->server;
    void *watch = s->ops->hold(c->connection, id);
    Hold *hold;

    if (watch) {
        hold = g_new(Hold, 1);
        hold->watch = watch;
        hold->pid = c->pid;
        memcpy(hold->name, c->name, sizeof(hold->name));
        s->slots[id].hold = hold;
        ivshmem2_bits_add(&s->held_ids, id);
    }
}

/* @detached: it does not use the eventfds any more */
static void leave(Ivshmem2Client *c, bool detached)
{
    Ivshmem2Server *s = c->server;
    uint32_t id = c->id;
    Slot *slot = &s->slots[id];

    c->id = IVSHMEM2_ID_ANY;
    slot->client = NULL;
    ivshmem2_bits_remove(&s->occupied_ids, id);
    if (s->closing) {
        return;
    }
    clear_state(s, id);
    if (!detached) {
        start_hold(c, id);
    }
    g_info("'%s' (pid %d) left ID %u%s", c->name, c->pid, id,
           slot->hold ? ", which is held while that process lives" : "");
    if (!slot->hold) {
        free_slot(s, id);
    }
}

/* Is @c of the process that occupies @slot, or that it is held for? */
static bool is_owner(const Ivshmem2Client *c, const Slot *slot)
{
    const Ivshmem2ServerOps *ops = c->server->ops;
    const Ivshmem2Client *old = slot->client;
    pid_t pid = old ? old->pid : slot->hold->pid;

    /*
     * Once a process is gone, its pid is given to others.  Two that live and
     * have the same pid are one.
     */
    return pid && pid == c->pid && slot->uid == c->uid &&
           ops->is_alive(c->connection) &&
           (old ? ops->is_alive(old->connection)
                : ops->is_hold_alive(slot->hold->watch));
}

/*
 * Can @c have the slot?  If an older connection of the same process has it, or
 * it is held for that process, this ends.  @code: of the refusal
 */
static bool claim_slot(Ivshmem2Client *c, uint32_t id, bool resume,
                       enum Ivshmem2RefusalCode code)
{
    Ivshmem2Server *s = c->server;
    Slot *slot = &s->slots[id];
    Ivshmem2Client *old = slot->client;

    if (old && resume && is_owner(c, slot)) {
        ivshmem2_client_refuse(old, IVSHMEM2_REFUSAL_SESSION,
                               "this session was resumed by another "
                               "connection of the same process");
        s->ops->wake(old->connection);
    } else if (old) {
        ivshmem2_client_refuse(c, code, "ID %u is taken by '%s' (pid %d)",
                               id, old->name, old->pid);
        return false;
    }
    if (slot->hold && is_owner(c, slot)) {
        end_hold(s, slot);
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

/* Did no other user have it?  Its processes may have kept descriptors. */
static bool is_clean(const Ivshmem2Client *c, const Slot *slot)
{
    return slot->last_uid == NO_UID || slot->last_uid == c->uid;
}

static bool may_take(Ivshmem2Client *c, uint32_t id)
{
    Ivshmem2Server *s = c->server;

    if (!ivshmem2_ids_contain(c->ids, id)) {
        g_autofree char *ids = ivshmem2_ids_text(c->ids);

        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_PERMISSION, "the user with "
                               "uid %u may not take ID %u, but %s", c->uid,
                               id, ids);
        return false;
    }
    if (ivshmem2_budget_binds_ids(s->budget) && !is_clean(c, &s->slots[id])) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_PERMISSION, "ID %u belongs "
                               "to the user with uid %u, which had it first "
                               "(--bind-ids)", id, s->slots[id].last_uid);
        return false;
    }
    if (s->slots[id].uid != c->uid &&
        !ivshmem2_budget_allows(s->budget, IVSHMEM2_SLOT, c->uid)) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_LIMIT, "the user with uid "
                               "%u has %u IDs already, and may not have more",
                               c->uid,
                               ivshmem2_budget_count(s->budget, IVSHMEM2_SLOT,
                                                     c->uid));
        return false;
    }
    return true;
}

/* Does it count for this user already? */
static bool is_own(const Ivshmem2Client *c, const Slot *slot)
{
    return slot->uid == c->uid;
}

/* The lowest ID in @set that @c may take and that @suits it */
static size_t find_id(const Ivshmem2Client *c, const Ivshmem2Bits *set,
                      bool (*suits)(const Ivshmem2Client *c, const Slot *slot))
{
    size_t id = ivshmem2_bits_next(set, 0);

    while (id != IVSHMEM2_BITS_NONE &&
           !(ivshmem2_ids_contain(c->ids, id) &&
             suits(c, &c->server->slots[id]))) {
        id = ivshmem2_bits_next(set, id + 1);
    }
    return id;
}

/*
 * Prefer an ID that is held for the same process, which would fill the link
 * if it took a new one each time, then one that counts for the user anyway,
 * then one that no other user had.
 */
static size_t find_any_id(const Ivshmem2Client *c)
{
    Ivshmem2Server *s = c->server;
    size_t best = find_id(c, &s->held_ids, is_owner);

    if (best == IVSHMEM2_BITS_NONE && ivshmem2_budget_binds_ids(s->budget)) {
        best = find_id(c, &s->free_ids, is_own);
    }
    if (best == IVSHMEM2_BITS_NONE) {
        best = find_id(c, &s->free_ids, is_clean);
    }
    if (best == IVSHMEM2_BITS_NONE && !ivshmem2_budget_binds_ids(s->budget)) {
        best = ivshmem2_ids_lowest(c->ids, &s->free_ids);
    }
    return best;
}

static bool choose_any_id(Ivshmem2Client *c, uint32_t *id)
{
    Ivshmem2Server *s = c->server;
    const char *bound = ivshmem2_budget_binds_ids(s->budget)
                        ? ", or belong to other users (--bind-ids)" : "";
    size_t best = find_any_id(c);
    g_autofree char *ids = NULL;

    if (best != IVSHMEM2_BITS_NONE) {
        *id = best;
        return may_take(c, *id) &&
               claim_slot(c, *id, false, IVSHMEM2_REFUSAL_ID_TAKEN);
    }
    if (c->ids) {
        ids = ivshmem2_ids_text(c->ids);
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_FULL, "all IDs that the "
                               "user with uid %u may take (%s) are taken%s",
                               c->uid, ids, bound);
    } else {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_FULL, "the link is full: "
                               "all %u IDs are taken%s",
                               s->link->welcome.max_peers, bound);
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
        return choose_any_id(c, id);
    }
    if (hello->id >= max) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_ID_RANGE, "ID %u is out of "
                               "range, this link has 0 to %u", hello->id,
                               max - 1);
        return false;
    }
    *id = hello->id;
    if (*resume && ivshmem2_link_is_renewed(s->link, *id)) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_SESSION, "the eventfds of "
                               "ID %u ended with the server before this one: "
                               "the session cannot be resumed, join anew",
                               *id);
        return false;
    }
    return may_take(c, *id) &&
           claim_slot(c, *id, *resume, *resume ? IVSHMEM2_REFUSAL_SESSION
                                               : IVSHMEM2_REFUSAL_ID_TAKEN);
}

bool ivshmem2_client_waits(const Ivshmem2Client *c, const Ivshmem2Hello *hello,
                           bool (*closing)(void *connection))
{
    const Ivshmem2Server *s = c->server;
    bool any = hello->id == IVSHMEM2_ID_ANY;
    size_t id = any ? 0 : hello->id;
    size_t end = any ? s->link->welcome.max_peers : id + 1;

    if (c->phase != PHASE_HELLO ||
        (any && find_any_id(c) != IVSHMEM2_BITS_NONE)) {
        return false;
    }
    while ((id = ivshmem2_bits_next(&s->occupied_ids, id)) < end) {
        if (closing(s->slots[id].client->connection)) {
            return true;
        }
        id++;
    }
    return false;
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

/* For the log: ", VM 123e4567-..." of a virtual machine, else empty */
static void describe_vm(const Ivshmem2Client *c, char text[VM_TEXT_SIZE])
{
    static const uint8_t none[IVSHMEM2_UUID_SIZE];
    const uint8_t *u = c->vm_uuid;

    text[0] = 0;
    if (memcmp(u, none, sizeof(none))) {
        snprintf(text, VM_TEXT_SIZE, ", VM %02x%02x%02x%02x-%02x%02x-%02x%02x-"
                 "%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3],
                 u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12],
                 u[13], u[14], u[15]);
    }
}

static void take_slot(Ivshmem2Client *c, uint32_t id, bool resume)
{
    Ivshmem2Server *s = c->server;
    Slot *slot = &s->slots[id];
    char vm[VM_TEXT_SIZE];
    uint32_t state;

    if (!is_clean(c, slot)) {
        g_warning("'%s' (pid %d, uid %u) gets ID %u, which the user with uid "
                  "%u had: processes of that user may have kept descriptors "
                  "for it", c->name, c->pid, c->uid, id, slot->last_uid);
    }
    slot->client = c;
    slot->last_uid = c->uid;
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
        /* others can signal an ID at any time, also while it is free */
        ivshmem2_link_drain(s->link, id);
    }
    describe_vm(c, vm);
    g_info("'%s' (pid %d, uid %u%s) %s ID %u", c->name, c->pid, c->uid, vm,
           resume ? "is back as" : "joins as", id);
    warn_of_uid(c);
}

/* Clients */

Ivshmem2Client *ivshmem2_client_new(Ivshmem2Server *s, pid_t pid, uid_t uid,
                                    void *connection)
{
    Ivshmem2Client *c = g_new0(Ivshmem2Client, 1);

    c->server = s;
    c->connection = connection;
    c->pid = pid;
    c->uid = uid;
    c->id = IVSHMEM2_ID_ANY;
    c->phase = PHASE_HELLO;
    return c;
}

void ivshmem2_client_restrict_consume(Ivshmem2Client *c, GArray *ids)
{
    g_clear_pointer(&c->ids, g_array_unref);
    c->ids = ids;
}

void ivshmem2_client_free(Ivshmem2Client *c)
{
    if (c->id != IVSHMEM2_ID_ANY) {
        leave(c, false);
    }
    g_clear_pointer(&c->ids, g_array_unref);
    g_free(c->refusal_text);
    g_free(c);
}

void ivshmem2_client_refuse(Ivshmem2Client *c, enum Ivshmem2RefusalCode code,
                            const char *fmt, ...)
{
    va_list ap;

    if (ivshmem2_client_is_sent_away(c)) {
        return;
    }
    va_start(ap, fmt);
    c->refusal_text = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    c->refusal_code = code;
    g_info("'%s' (pid %d, uid %u) is sent away: %s", c->name, c->pid, c->uid,
           c->refusal_text);
    if (c->id != IVSHMEM2_ID_ANY) {
        leave(c, false);
    }
    c->phase = PHASE_REFUSED;
}

bool ivshmem2_client_is_ready(const Ivshmem2Client *c)
{
    return c->phase == PHASE_PEER;
}

bool ivshmem2_client_is_sent_away(const Ivshmem2Client *c)
{
    return c->phase == PHASE_REFUSED || c->phase == PHASE_OVER;
}

bool ivshmem2_client_is_over(const Ivshmem2Client *c)
{
    return c->phase == PHASE_OVER;
}

uint32_t ivshmem2_client_id(const Ivshmem2Client *c)
{
    return c->id;
}

const char *ivshmem2_client_name(const Ivshmem2Client *c)
{
    return c->name;
}

pid_t ivshmem2_client_pid(const Ivshmem2Client *c)
{
    return c->pid;
}

/* Messages from a client */

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

/* Make the eventfds of @id unless it was occupied before. */
static bool provide_eventfds(Ivshmem2Client *c, uint32_t id)
{
    Ivshmem2Server *s = c->server;
    g_autoptr(GError) error = NULL;

    if (s->link->eventfds[id]) {
        return true;
    }
    if (!ivshmem2_link_make_eventfds(s->link, id, &error)) {
        ivshmem2_client_refuse(c, IVSHMEM2_REFUSAL_LIMIT,
                               "the server is at its limits: %s",
                               error->message);
        return false;
    }
    ivshmem2_budget_charge_fds(s->budget, s->link->welcome.vectors);
    return true;
}

static void handle_hello(Ivshmem2Client *c, const Ivshmem2Hello *hello)
{
    uint32_t id;
    bool resume;

    memcpy(c->name, hello->name, sizeof(c->name));
    memcpy(c->vm_uuid, hello->vm_uuid, sizeof(c->vm_uuid));
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
    if (check_interrupts(c, hello) && choose_id(c, hello, &id, &resume) &&
        provide_eventfds(c, id)) {
        take_slot(c, id, resume);
    }
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
    /* A client that fails to start can say so during the handshake. */
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
    case IVSHMEM2_MSG_STATE_ANNOUNCED:
        /* The entry may have changed again, and nobody been told. */
        c->server->slots[c->id].last_state = msg->announcement.state;
        break;
    case IVSHMEM2_MSG_RING:
        handle_ring(c, &msg->target);
        break;
    }
}

/* Messages to a client */

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

/* Returns true if these were the last ones of @id. */
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

static void next_refusal(Ivshmem2Client *c, Ivshmem2Msg *msg)
{
    msg->hdr.type = IVSHMEM2_MSG_REFUSED;
    msg->refusal.code = c->refusal_code;
    ivshmem2_set_text(msg->refusal.text, sizeof(msg->refusal.text),
                      c->refusal_text);
    g_clear_pointer(&c->refusal_text, g_free);
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
            c->phase = c->server->link->config.pushes ? PHASE_OTHER_EVENTFDS
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
    case PHASE_REFUSED:
        next_refusal(c, msg);
        break;
    }
}
