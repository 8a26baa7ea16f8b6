/*
 * The slots of a link
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <stdio.h>
#include <string.h>
#include "libivshmem2-bits.h"
#include "libivshmem2-core.h"
#include "slots.h"

#define NO_UID ((uid_t)-1)
/* "" or ", VM " and a UUID */
#define VM_TEXT_SIZE 48

/* A slot that its last occupant, which still lives, left without a goodbye */
typedef struct Hold {
    void *watch;                /* for ops->unhold() */
    pid_t pid;
    char name[IVSHMEM2_NAME_SIZE];
} Hold;

/* Neither occupant nor hold: the slot is free. */
typedef struct Slot {
    Ivshmem2Occupant *occupant;
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

struct Ivshmem2Slots {
    Ivshmem2Link *link;
    Ivshmem2Budget *budget;
    const Ivshmem2SlotOps *ops;
    uint32_t n;
    Slot *slots;
    Ivshmem2Bits free_ids;
    Ivshmem2Bits held_ids;
    Ivshmem2Bits occupied_ids;
    Broadcast broadcast;
    bool closing;
};

G_DEFINE_QUARK(ivshmem2_refusal_quark, ivshmem2_refusal)

Ivshmem2Slots *ivshmem2_slots_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                  const Ivshmem2SlotOps *ops)
{
    Ivshmem2Slots *s = g_new0(Ivshmem2Slots, 1);

    s->link = link;
    s->budget = budget;
    s->ops = ops;
    s->n = link->welcome.max_peers;
    s->slots = g_new0(Slot, s->n);
    ivshmem2_bits_init(&s->free_ids, s->n);
    ivshmem2_bits_init(&s->held_ids, s->n);
    ivshmem2_bits_init(&s->occupied_ids, s->n);
    for (uint32_t id = 0; id < s->n; id++) {
        ivshmem2_bits_add(&s->free_ids, id);
        s->slots[id].uid = NO_UID;
        s->slots[id].last_uid = NO_UID;
    }
    return s;
}

void ivshmem2_slots_shutdown(Ivshmem2Slots *s)
{
    s->closing = true;
}

bool ivshmem2_slots_is_occupied(const Ivshmem2Slots *s, uint32_t id)
{
    return s->slots[id].occupant;
}

/* State changes */

static void start_broadcast(Ivshmem2Slots *s, uint32_t source)
{
    Broadcast *b = &s->broadcast;

    b->source = b->left && b->source != source ? IVSHMEM2_ID_ANY : source;
    b->left = s->n;
}

void ivshmem2_slots_state_changed(Ivshmem2Slots *s, uint32_t id)
{
    s->slots[id].last_state = ivshmem2_link_state(s->link, id);
    start_broadcast(s, id);
}

void ivshmem2_slots_state_announced(Ivshmem2Slots *s, uint32_t id,
                                    uint32_t state)
{
    /* The entry may have changed again, and nobody been told. */
    s->slots[id].last_state = state;
}

bool ivshmem2_slots_broadcast(Ivshmem2Slots *s, unsigned budget)
{
    Broadcast *b = &s->broadcast;
    int fds[16];
    size_t n = 0;

    while (b->left && budget) {
        size_t id = ivshmem2_bits_next(&s->occupied_ids, b->next);
        bool found = id != IVSHMEM2_BITS_NONE;
        uint32_t step = (found ? id + 1 : s->n) - b->next;

        if (step > b->left) {
            b->left = 0;
            break;
        }
        b->left -= step;
        b->next = (b->next + step) % s->n;
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
static void clear_state(Ivshmem2Slots *s, uint32_t id)
{
    Slot *slot = &s->slots[id];
    uint32_t state = ivshmem2_link_clear_state(s->link, id);

    if (state || slot->last_state) {
        start_broadcast(s, id);
    }
    slot->last_state = 0;
}

/* Giving slots back */

/* From now on, it counts for the user with @uid. */
static void set_user(Ivshmem2Slots *s, Slot *slot, uid_t uid)
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

static void end_hold(Ivshmem2Slots *s, Slot *slot)
{
    ivshmem2_bits_remove(&s->held_ids, slot - s->slots);
    s->ops->unhold(slot->hold->watch);
    g_clear_pointer(&slot->hold, g_free);
}

static void free_slot(Ivshmem2Slots *s, uint32_t id)
{
    /* The last occupant could write its entry as long as it lived. */
    clear_state(s, id);
    ivshmem2_bits_add(&s->free_ids, id);
    if (!ivshmem2_budget_binds_ids(s->budget)) {
        set_user(s, &s->slots[id], NO_UID);
    }
}

void ivshmem2_slots_release(Ivshmem2Slots *s, uint32_t id)
{
    Slot *slot = &s->slots[id];

    g_info("ID %u is free, '%s' (pid %d) is gone", id, slot->hold->name,
           slot->hold->pid);
    end_hold(s, slot);
    free_slot(s, id);
}

void ivshmem2_slots_free(Ivshmem2Slots *s)
{
    for (uint32_t id = 0; id < s->n; id++) {
        if (s->slots[id].hold) {
            end_hold(s, &s->slots[id]);
        }
        set_user(s, &s->slots[id], NO_UID);
    }
    ivshmem2_bits_clear(&s->free_ids);
    ivshmem2_bits_clear(&s->held_ids);
    ivshmem2_bits_clear(&s->occupied_ids);
    g_free(s->slots);
    g_free(s);
}

/* @o left without a goodbye: keep its slot as long as its process lives. */
static void start_hold(Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                       uint32_t id)
{
    void *watch = s->ops->hold(o->connection, id);
    Hold *hold;

    if (watch) {
        hold = g_new(Hold, 1);
        hold->watch = watch;
        hold->pid = o->pid;
        memcpy(hold->name, o->name, sizeof(hold->name));
        s->slots[id].hold = hold;
        ivshmem2_bits_add(&s->held_ids, id);
    }
}

void ivshmem2_slots_leave(Ivshmem2Slots *s, Ivshmem2Occupant *o, bool detached)
{
    uint32_t id = o->id;
    Slot *slot = &s->slots[id];

    o->id = IVSHMEM2_ID_ANY;
    slot->occupant = NULL;
    ivshmem2_bits_remove(&s->occupied_ids, id);
    if (s->closing) {
        return;
    }
    clear_state(s, id);
    if (!detached) {
        start_hold(s, o, id);
    }
    g_info("'%s' (pid %d) left ID %u%s", o->name, o->pid, id,
           slot->hold ? ", which is held while that process lives" : "");
    if (!slot->hold) {
        free_slot(s, id);
    }
}

/* Choosing a slot */

static bool refuse(GError **refusal, enum Ivshmem2RefusalCode code,
                   const char *fmt, ...) G_GNUC_PRINTF(3, 4);

static bool refuse(GError **refusal, enum Ivshmem2RefusalCode code,
                   const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    *refusal = g_error_new_valist(IVSHMEM2_REFUSAL, code, fmt, ap);
    va_end(ap);
    return false;
}

/* Is @o of the process that occupies @slot, or that it is held for? */
static bool is_owner(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                     const Slot *slot)
{
    const Ivshmem2Occupant *old = slot->occupant;
    pid_t pid = old ? old->pid : slot->hold->pid;

    /*
     * Once a process is gone, its pid is given to others.  Two that live and
     * have the same pid are one.
     */
    return pid && pid == o->pid && slot->uid == o->uid &&
           s->ops->is_alive(o->connection) &&
           (old ? s->ops->is_alive(old->connection)
                : s->ops->is_hold_alive(slot->hold->watch));
}

/*
 * Can @o have the slot?  If an older connection of the same process has it, or
 * it is held for that process, this ends.
 */
static bool check_owner(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                        Ivshmem2Claim *claim, GError **refusal)
{
    const Slot *slot = &s->slots[claim->id];
    const Ivshmem2Occupant *old = slot->occupant;
    const Hold *hold = slot->hold;
    enum Ivshmem2RefusalCode code = claim->resume ? IVSHMEM2_REFUSAL_SESSION
                                                  : IVSHMEM2_REFUSAL_ID_TAKEN;

    if (old && claim->resume && is_owner(s, o, slot)) {
        claim->old = slot->occupant;
    } else if (old) {
        return refuse(refusal, code, "ID %u is taken by '%s' (pid %d)",
                      claim->id, old->name, old->pid);
    } else if (hold && !is_owner(s, o, slot)) {
        return hold->pid
            ? refuse(refusal, code, "ID %u is held for '%s' (pid %d) as long "
                     "as that process lives", claim->id, hold->name,
                     hold->pid)
            : refuse(refusal, code, "ID %u is held for a moment, because '%s' "
                     "left without a goodbye", claim->id, hold->name);
    }
    return true;
}

/* Did no other user have it?  Its processes may have kept descriptors. */
static bool is_clean(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                     const Slot *slot)
{
    return slot->last_uid == NO_UID || slot->last_uid == o->uid;
}

static bool check_user(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                       uint32_t id, GError **refusal)
{
    const Slot *slot = &s->slots[id];

    if (!ivshmem2_ids_contain(o->ids, id)) {
        g_autofree char *ids = ivshmem2_ids_text(o->ids);

        return refuse(refusal, IVSHMEM2_REFUSAL_PERMISSION, "the user with uid "
                      "%u may not take ID %u, but %s", o->uid, id, ids);
    }
    if (ivshmem2_budget_binds_ids(s->budget) && !is_clean(s, o, slot)) {
        return refuse(refusal, IVSHMEM2_REFUSAL_PERMISSION, "ID %u belongs to "
                      "the user with uid %u, which had it first (--bind-ids)",
                      id, slot->last_uid);
    }
    if (slot->uid != o->uid &&
        !ivshmem2_budget_allows(s->budget, IVSHMEM2_SLOT, o->uid)) {
        return refuse(refusal, IVSHMEM2_REFUSAL_LIMIT, "the user with uid %u "
                      "has %u IDs already, and may not have more", o->uid,
                      ivshmem2_budget_count(s->budget, IVSHMEM2_SLOT, o->uid));
    }
    return true;
}

/* Does it count for this user already? */
static bool is_own(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                   const Slot *slot)
{
    return slot->uid == o->uid;
}

/* The lowest ID in @set that @o may take and that @suits it */
static size_t find_id(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                      const Ivshmem2Bits *set,
                      bool (*suits)(const Ivshmem2Slots *s,
                                    const Ivshmem2Occupant *o,
                                    const Slot *slot))
{
    size_t id = ivshmem2_bits_next(set, 0);

    while (id != IVSHMEM2_BITS_NONE &&
           !(ivshmem2_ids_contain(o->ids, id) && suits(s, o, &s->slots[id]))) {
        id = ivshmem2_bits_next(set, id + 1);
    }
    return id;
}

/*
 * Prefer an ID that is held for the same process, which would fill the link
 * if it took a new one each time, then one that counts for the user anyway,
 * then one that no other user had.
 */
static size_t find_any_id(const Ivshmem2Slots *s, const Ivshmem2Occupant *o)
{
    size_t best = find_id(s, o, &s->held_ids, is_owner);

    if (best == IVSHMEM2_BITS_NONE && ivshmem2_budget_binds_ids(s->budget)) {
        best = find_id(s, o, &s->free_ids, is_own);
    }
    if (best == IVSHMEM2_BITS_NONE) {
        best = find_id(s, o, &s->free_ids, is_clean);
    }
    if (best == IVSHMEM2_BITS_NONE && !ivshmem2_budget_binds_ids(s->budget)) {
        best = ivshmem2_ids_lowest(o->ids, &s->free_ids);
    }
    return best;
}

static bool choose_any_id(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                          uint32_t *id, GError **refusal)
{
    const char *bound = ivshmem2_budget_binds_ids(s->budget)
                        ? ", or belong to other users (--bind-ids)" : "";
    size_t best = find_any_id(s, o);
    g_autofree char *ids = NULL;

    if (best != IVSHMEM2_BITS_NONE) {
        *id = best;
        return true;
    }
    if (o->ids) {
        ids = ivshmem2_ids_text(o->ids);
        return refuse(refusal, IVSHMEM2_REFUSAL_FULL, "all IDs that the user "
                      "with uid %u may take (%s) are taken%s", o->uid, ids,
                      bound);
    }
    return refuse(refusal, IVSHMEM2_REFUSAL_FULL,
                  "the link is full: all %u IDs are taken%s", s->n, bound);
}

static bool choose_id(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                      const Ivshmem2Hello *hello, Ivshmem2Claim *claim,
                      GError **refusal)
{
    static const uint8_t none[IVSHMEM2_UUID_SIZE];

    claim->resume = memcmp(hello->session, none, sizeof(none));
    claim->id = hello->id;
    if (claim->resume && memcmp(hello->session, s->link->welcome.session,
                                sizeof(none))) {
        return refuse(refusal, IVSHMEM2_REFUSAL_SESSION, "the session to "
                      "resume is not of this server, which may have been "
                      "started anew");
    }
    if (!claim->resume && hello->id == IVSHMEM2_ID_ANY) {
        return choose_any_id(s, o, &claim->id, refusal);
    }
    if (hello->id >= s->n) {
        return refuse(refusal, IVSHMEM2_REFUSAL_ID_RANGE, "ID %u is out of "
                      "range, this link has 0 to %u", hello->id, s->n - 1);
    }
    return true;
}

bool ivshmem2_slots_claim(Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                          const Ivshmem2Hello *hello, Ivshmem2Claim *claim,
                          GError **refusal)
{
    claim->old = NULL;
    return choose_id(s, o, hello, claim, refusal) &&
           check_user(s, o, claim->id, refusal) &&
           check_owner(s, o, claim, refusal);
}

bool ivshmem2_slots_must_wait(const Ivshmem2Slots *s,
                              const Ivshmem2Occupant *o,
                              const Ivshmem2Hello *hello,
                              bool (*closing)(void *connection))
{
    bool any = hello->id == IVSHMEM2_ID_ANY;
    size_t id = any ? 0 : hello->id;
    size_t end = any ? s->n : id + 1;

    if (any && find_any_id(s, o) != IVSHMEM2_BITS_NONE) {
        return false;
    }
    while ((id = ivshmem2_bits_next(&s->occupied_ids, id)) < end) {
        if (closing(s->slots[id].occupant->connection)) {
            return true;
        }
        id++;
    }
    return false;
}

/* Taking a slot */

/* For the log: ", VM 123e4567-..." of a virtual machine, else empty */
static void describe_vm(const Ivshmem2Occupant *o, char text[VM_TEXT_SIZE])
{
    static const uint8_t none[IVSHMEM2_UUID_SIZE];
    const uint8_t *u = o->vm_uuid;

    text[0] = 0;
    if (memcmp(u, none, sizeof(none))) {
        snprintf(text, VM_TEXT_SIZE, ", VM %02x%02x%02x%02x-%02x%02x-%02x%02x-"
                 "%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3],
                 u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12],
                 u[13], u[14], u[15]);
    }
}

static void log_user(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                     const Ivshmem2Claim *claim)
{
    const Slot *slot = &s->slots[claim->id];
    char vm[VM_TEXT_SIZE];

    if (!is_clean(s, o, slot)) {
        g_warning("'%s' (pid %d, uid %u) gets ID %u, which the user with uid "
                  "%u had: processes of that user may have kept descriptors "
                  "for it", o->name, o->pid, o->uid, claim->id,
                  slot->last_uid);
    }
    describe_vm(o, vm);
    g_info("'%s' (pid %d, uid %u%s) %s ID %u", o->name, o->pid, o->uid, vm,
           claim->resume ? "is back as" : "joins as", claim->id);
}

void ivshmem2_slots_take(Ivshmem2Slots *s, Ivshmem2Occupant *o,
                         const Ivshmem2Claim *claim)
{
    uint32_t id = claim->id;
    Slot *slot = &s->slots[id];

    log_user(s, o, claim);
    if (slot->hold) {
        end_hold(s, slot);
    }
    slot->occupant = o;
    slot->last_uid = o->uid;
    o->id = id;
    ivshmem2_bits_remove(&s->free_ids, id);
    ivshmem2_bits_add(&s->occupied_ids, id);
    set_user(s, slot, o->uid);
    if (!claim->resume) {
        clear_state(s, id);
        /* others can signal an ID at any time, also while it is free */
        ivshmem2_link_drain(s->link, id);
    } else if (slot->last_state != ivshmem2_link_state(s->link, id)) {
        ivshmem2_slots_state_changed(s, id);
    }
}
