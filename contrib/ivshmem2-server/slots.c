/*
 * The slots of a link
 *
 * A server can be killed between any two stores, so the record is written in
 * this order:
 *
 * - Before a state is cleared or forgotten, the record says that a broadcast
 *   is unfinished.  So if the server does not come to interrupt the others, its
 *   successor does.
 * - A slot is occupied only when everything else about its occupant is written,
 *   and free as soon as nobody can use it.
 * - A process that has a slot already cannot be taken for another one: its
 *   start time is unknown while its pid changes.
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

/* Looks at processes on behalf of one client that asks for any slot */
#define MOST_LOOKS 4

/*
 * Occupied: occupant, or hold if the one of an earlier server may come back.
 * Held: hold.
 */
typedef struct Slot {
    Ivshmem2SlotRecord *record;
    Ivshmem2Occupant *occupant;
    void *hold;                 /* for ops->unhold() */
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
    Ivshmem2Bits held_ids;      /* also those with a period of grace */
    Ivshmem2Bits taken_ids;     /* occupied or held */
    Broadcast broadcast;
    bool closing;
};

G_DEFINE_QUARK(ivshmem2_refusal_quark, ivshmem2_refusal)

void ivshmem2_slots_shutdown(Ivshmem2Slots *s)
{
    s->closing = true;
}

bool ivshmem2_slots_is_present(const Ivshmem2Slots *s, uint32_t id)
{
    return s->slots[id].record->use == IVSHMEM2_SLOT_OCCUPIED;
}

static bool in_grace(const Slot *slot)
{
    return slot->hold && slot->record->use == IVSHMEM2_SLOT_OCCUPIED;
}

/* Can it be told from other processes? */
static bool is_known(const Ivshmem2SlotRecord *r)
{
    return r->pid && r->start_time;
}

/* State changes */

static void start_broadcast(Ivshmem2Slots *s, uint32_t source)
{
    Broadcast *b = &s->broadcast;

    ivshmem2_record_set_broadcast(s->link->record, true);
    b->source = b->left && b->source != source ? IVSHMEM2_ID_ANY : source;
    b->left = s->n;
}

void ivshmem2_slots_state_changed(Ivshmem2Slots *s, uint32_t id)
{
    start_broadcast(s, id);
    s->slots[id].record->last_state = ivshmem2_link_state(s->link, id);
}

void ivshmem2_slots_state_announced(Ivshmem2Slots *s, uint32_t id,
                                    uint32_t state)
{
    /* The entry may have changed again, and nobody been told. */
    s->slots[id].record->last_state = state;
}

bool ivshmem2_slots_broadcast(Ivshmem2Slots *s, unsigned budget)
{
    Broadcast *b = &s->broadcast;
    bool begun = b->left;
    int fds[16];
    size_t n = 0;

    while (b->left && budget) {
        size_t id = ivshmem2_bits_next(&s->taken_ids, b->next);
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
    if (n) {
        ivshmem2_eventfds_signal(fds, n);
    }
    if (begun && !b->left) {
        ivshmem2_record_set_broadcast(s->link->record, false);
    }
    return b->left;
}

/* A peer that is gone has state 0, and the others are told. */
static void clear_state(Ivshmem2Slots *s, uint32_t id)
{
    Ivshmem2SlotRecord *r = s->slots[id].record;
    Broadcast before = s->broadcast;
    uint32_t state;

    start_broadcast(s, id);
    state = ivshmem2_link_clear_state(s->link, id);
    if (!state && !r->last_state) {
        s->broadcast = before;
        ivshmem2_record_set_broadcast(s->link->record, before.left);
    }
    r->last_state = 0;
}

/* Giving slots back */

/* From now on, it counts for the user with @uid. */
static void set_user(Ivshmem2Slots *s, Slot *slot, uid_t uid)
{
    Ivshmem2SlotRecord *r = slot->record;

    if (r->uid == uid) {
        return;
    }
    if (r->uid != NO_UID) {
        ivshmem2_budget_discharge(s->budget, IVSHMEM2_SLOT, r->uid);
    }
    if (uid != NO_UID) {
        ivshmem2_budget_charge(s->budget, IVSHMEM2_SLOT, uid);
    }
    r->uid = uid;
}

/* @slot is held from now on. */
static void set_hold(Ivshmem2Slots *s, Slot *slot, void *hold)
{
    slot->hold = hold;
    ivshmem2_bits_add(&s->held_ids, slot - s->slots);
    ivshmem2_bits_add(&s->taken_ids, slot - s->slots);
}

static void end_hold(Ivshmem2Slots *s, Slot *slot)
{
    ivshmem2_bits_remove(&s->held_ids, slot - s->slots);
    ivshmem2_bits_remove(&s->taken_ids, slot - s->slots);
    s->ops->unhold(slot->hold);
    slot->hold = NULL;
}

static void free_slot(Ivshmem2Slots *s, uint32_t id)
{
    Slot *slot = &s->slots[id];

    /* The last occupant could write its entry as long as it lived. */
    clear_state(s, id);
    ivshmem2_record_set_use(slot->record, IVSHMEM2_SLOT_FREE);
    ivshmem2_bits_add(&s->free_ids, id);
    if (!ivshmem2_budget_binds_ids(s->budget)) {
        set_user(s, slot, NO_UID);
    }
}

void ivshmem2_slots_release(Ivshmem2Slots *s, uint32_t id)
{
    Slot *slot = &s->slots[id];

    g_info("ID %u is free, '%s' (pid %d) is gone", id, slot->record->name,
           slot->record->pid);
    end_hold(s, slot);
    free_slot(s, id);
}

void ivshmem2_slots_end_grace(Ivshmem2Slots *s, uint32_t id)
{
    Ivshmem2SlotRecord *r = s->slots[id].record;

    g_info("'%s' (pid %d) did not come back as ID %u in time", r->name, r->pid,
           id);
    clear_state(s, id);
    ivshmem2_record_set_use(r, IVSHMEM2_SLOT_HELD);
}

void ivshmem2_slots_leave(Ivshmem2Slots *s, Ivshmem2Occupant *o, bool detached)
{
    uint32_t id = o->id;
    Slot *slot = &s->slots[id];
    void *hold = NULL;

    o->id = IVSHMEM2_ID_ANY;
    slot->occupant = NULL;
    ivshmem2_bits_remove(&s->taken_ids, id);
    if (s->closing) {
        return;
    }
    clear_state(s, id);
    if (!detached) {
        hold = s->ops->hold(o->connection, id);
    }
    g_info("'%s' (pid %d) left ID %u%s", o->name, o->pid, id,
           hold ? ", which is held while that process lives" : "");
    if (hold) {
        ivshmem2_record_set_use(slot->record, IVSHMEM2_SLOT_HELD);
        set_hold(s, slot, hold);
    } else {
        free_slot(s, id);
    }
}

/* Life */

/* The user of a slot that nobody has counts only if IDs are bound. */
static void adopt_user(Ivshmem2Slots *s, Slot *slot)
{
    Ivshmem2SlotRecord *r = slot->record;

    if (r->use == IVSHMEM2_SLOT_FREE) {
        r->uid = ivshmem2_budget_binds_ids(s->budget) ? r->last_uid : NO_UID;
    }
    if (r->uid != NO_UID) {
        ivshmem2_budget_charge(s->budget, IVSHMEM2_SLOT, r->uid);
    }
}

/*
 * On links where peers need the server to tell the others, a change since the
 * end of the predecessor is told at once: perhaps the peer has left.
 */
static void adopt_state(Ivshmem2Slots *s, uint32_t id)
{
    if (!s->link->config.pushes && in_grace(&s->slots[id]) &&
        ivshmem2_link_state(s->link, id) != s->slots[id].record->last_state) {
        ivshmem2_slots_state_changed(s, id);
    }
}

/* As the record says.  Returns whether it is in use. */
static bool adopt_slot(Ivshmem2Slots *s, uint32_t id, void *opaque)
{
    Slot *slot = &s->slots[id];
    Ivshmem2SlotRecord *r = slot->record;
    void *hold = NULL;

    adopt_user(s, slot);
    if (r->use != IVSHMEM2_SLOT_FREE) {
        hold = s->ops->adopt(opaque, id, r->pid, r->start_time,
                             r->use == IVSHMEM2_SLOT_OCCUPIED);
    }
    if (hold) {
        set_hold(s, slot, hold);
        adopt_state(s, id);
    } else {
        free_slot(s, id);
    }
    return hold;
}

static void adopt(Ivshmem2Slots *s, void *opaque)
{
    uint32_t n = 0;

    if (ivshmem2_record_broadcast(s->link->record)) {
        start_broadcast(s, IVSHMEM2_ID_ANY);
    }
    for (uint32_t id = 0; id < s->n; id++) {
        n += adopt_slot(s, id, opaque);
    }
    g_info("took over from an earlier server, %u IDs are in use", n);
}

Ivshmem2Slots *ivshmem2_slots_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                  const Ivshmem2SlotOps *ops, void *opaque)
{
    Ivshmem2Slots *s = g_new0(Ivshmem2Slots, 1);

    s->link = link;
    s->budget = budget;
    s->ops = ops;
    s->n = link->welcome.max_peers;
    s->slots = g_new0(Slot, s->n);
    ivshmem2_bits_init(&s->free_ids, s->n);
    ivshmem2_bits_init(&s->held_ids, s->n);
    ivshmem2_bits_init(&s->taken_ids, s->n);
    for (uint32_t id = 0; id < s->n; id++) {
        s->slots[id].record = ivshmem2_record_slot(link->record, id);
        if (!link->adopted) {
            ivshmem2_bits_add(&s->free_ids, id);
        }
    }
    if (link->adopted) {
        adopt(s, opaque);
    }
    return s;
}

void ivshmem2_slots_free(Ivshmem2Slots *s)
{
    for (uint32_t id = 0; id < s->n; id++) {
        uid_t uid = s->slots[id].record->uid;

        if (s->slots[id].hold) {
            end_hold(s, &s->slots[id]);
        }
        if (uid != NO_UID) {
            ivshmem2_budget_discharge(s->budget, IVSHMEM2_SLOT, uid);
        }
    }
    ivshmem2_bits_clear(&s->free_ids);
    ivshmem2_bits_clear(&s->held_ids);
    ivshmem2_bits_clear(&s->taken_ids);
    g_free(s->slots);
    g_free(s);
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

/*
 * Is @o of the process that occupies @slot, or that it is held for?  In the
 * period of grace, a process that cannot be seen is the one of the same user
 * that knows the session.
 */
static bool is_owner(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                     const Slot *slot, bool resume)
{
    const Ivshmem2SlotRecord *r = slot->record;

    if (r->uid != o->uid) {
        return false;
    }
    if (in_grace(slot) && !is_known(r)) {
        return resume;
    }
    /*
     * Once a process is gone, its pid is given to others.  Two that live and
     * have the same pid are one.
     */
    return r->pid && r->pid == o->pid && s->ops->is_alive(o->connection) &&
           (slot->occupant ? s->ops->is_alive(slot->occupant->connection)
                           : s->ops->is_hold_alive(slot->hold));
}

static bool refuse_taken(const Ivshmem2Slots *s, const Ivshmem2Claim *claim,
                         GError **refusal)
{
    const Slot *slot = &s->slots[claim->id];
    const Ivshmem2SlotRecord *r = slot->record;
    enum Ivshmem2RefusalCode code = claim->resume ? IVSHMEM2_REFUSAL_SESSION
                                                  : IVSHMEM2_REFUSAL_ID_TAKEN;

    if (slot->occupant) {
        return refuse(refusal, code, "ID %u is taken by '%s' (pid %d)",
                      claim->id, r->name, r->pid);
    }
    if (in_grace(slot) && is_known(r)) {
        return refuse(refusal, code, "ID %u is held for '%s' (pid %d) until it "
                      "comes back, %u s at most, and as long as that process "
                      "lives", claim->id, r->name, r->pid,
                      s->ops->grace_left(slot->hold));
    }
    if (in_grace(slot)) {
        return refuse(refusal, code, "ID %u is held for '%s' until it comes "
                      "back, %u s at most", claim->id, r->name,
                      s->ops->grace_left(slot->hold));
    }
    return r->pid
        ? refuse(refusal, code, "ID %u is held for '%s' (pid %d) as long as "
                 "that process lives", claim->id, r->name, r->pid)
        : refuse(refusal, code, "ID %u is held for a moment, because '%s' "
                 "left without a goodbye", claim->id, r->name);
}

/*
 * Can @o have the slot?  If an older connection of the same process has it, or
 * it is held for that process, this ends.
 */
static bool check_owner(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                        Ivshmem2Claim *claim, GError **refusal)
{
    const Slot *slot = &s->slots[claim->id];

    if (slot->occupant && claim->resume && is_owner(s, o, slot, true)) {
        claim->old = slot->occupant;
        return true;
    }
    return !(slot->occupant ||
             (slot->hold && !is_owner(s, o, slot, claim->resume))) ||
           refuse_taken(s, claim, refusal);
}

/* Did no other user have it?  Its processes may have kept descriptors. */
static bool is_clean(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                     const Slot *slot)
{
    return slot->record->last_uid == NO_UID || slot->record->last_uid == o->uid;
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
                      id, slot->record->last_uid);
    }
    if (slot->record->uid != o->uid &&
        !ivshmem2_budget_allows(s->budget, IVSHMEM2_SLOT, o->uid)) {
        return refuse(refusal, IVSHMEM2_REFUSAL_LIMIT, "the user with uid %u "
                      "has %u IDs already, and may not have more", o->uid,
                      ivshmem2_budget_count(s->budget, IVSHMEM2_SLOT, o->uid));
    }
    return true;
}

/* Is it held for the process of @o, but no client of it will come back? */
static bool is_left_by(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                       const Slot *slot)
{
    return !in_grace(slot) && is_owner(s, o, slot, false);
}

/* Is it held for the process of @o in any way? */
static bool is_held_for(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                        const Slot *slot)
{
    return is_owner(s, o, slot, false);
}

/* Does it count for this user already? */
static bool is_own(const Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                   const Slot *slot)
{
    return slot->record->uid == o->uid;
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
 * then one that no other user had.  Another client of that process may come
 * back to an ID in its period of grace, so such a one comes last.
 */
static size_t find_any_id(const Ivshmem2Slots *s, const Ivshmem2Occupant *o)
{
    size_t best = find_id(s, o, &s->held_ids, is_left_by);

    if (best == IVSHMEM2_BITS_NONE && ivshmem2_budget_binds_ids(s->budget)) {
        best = find_id(s, o, &s->free_ids, is_own);
    }
    if (best == IVSHMEM2_BITS_NONE) {
        best = find_id(s, o, &s->free_ids, is_clean);
    }
    if (best == IVSHMEM2_BITS_NONE && !ivshmem2_budget_binds_ids(s->budget)) {
        best = ivshmem2_ids_lowest(o->ids, &s->free_ids);
    }
    if (best == IVSHMEM2_BITS_NONE) {
        best = find_id(s, o, &s->held_ids, is_held_for);
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
    if (claim->resume && ivshmem2_link_is_renewed(s->link, hello->id)) {
        return refuse(refusal, IVSHMEM2_REFUSAL_SESSION, "the eventfds of ID "
                      "%u ended with the server before this one: the session "
                      "cannot be resumed, join anew", hello->id);
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

static bool is_ending(const Ivshmem2Slots *s, const Slot *slot, bool processes)
{
    return slot->occupant
           ? s->ops->is_leaving(slot->occupant->connection, processes)
           : processes && s->ops->is_hold_ending(slot->hold);
}

bool ivshmem2_slots_must_wait(const Ivshmem2Slots *s,
                              const Ivshmem2Occupant *o,
                              const Ivshmem2Hello *hello, bool connections,
                              bool processes)
{
    bool any = hello->id == IVSHMEM2_ID_ANY;
    size_t id = any ? 0 : hello->id;
    size_t end = any ? s->n : id + 1;
    unsigned looks = processes ? MOST_LOOKS : 0;

    if (any && find_any_id(s, o) != IVSHMEM2_BITS_NONE) {
        return false;
    }
    while ((connections || looks) &&
           (id = ivshmem2_bits_next(&s->taken_ids, id)) < end) {
        if (is_ending(s, &s->slots[id], looks)) {
            return true;
        }
        looks -= looks > 0;
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
                  slot->record->last_uid);
    }
    describe_vm(o, vm);
    g_info("'%s' (pid %d, uid %u%s) %s ID %u", o->name, o->pid, o->uid, vm,
           claim->resume ? "is back as" : "joins as", claim->id);
}

/* A server that comes later finds @o by this. */
static void identify(const Ivshmem2Slots *s, Ivshmem2SlotRecord *r,
                     const Ivshmem2Occupant *o)
{
    uint64_t start_time = s->ops->start_time(o->connection);

    if (r->use == IVSHMEM2_SLOT_FREE || r->pid != o->pid) {
        __atomic_store_n(&r->start_time, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&r->pid, o->pid, __ATOMIC_SEQ_CST);
    }
    if (start_time) {
        __atomic_store_n(&r->start_time, start_time, __ATOMIC_SEQ_CST);
    }
    memcpy(r->vm_uuid, o->vm_uuid, sizeof(r->vm_uuid));
    memcpy(r->name, o->name, sizeof(r->name));
}

void ivshmem2_slots_take(Ivshmem2Slots *s, Ivshmem2Occupant *o,
                         const Ivshmem2Claim *claim)
{
    uint32_t id = claim->id;
    Slot *slot = &s->slots[id];
    Ivshmem2SlotRecord *r = slot->record;

    log_user(s, o, claim);
    if (slot->hold) {
        end_hold(s, slot);
    }
    slot->occupant = o;
    o->id = id;
    ivshmem2_bits_remove(&s->free_ids, id);
    ivshmem2_bits_add(&s->taken_ids, id);
    identify(s, r, o);
    set_user(s, slot, o->uid);
    r->last_uid = o->uid;
    if (!claim->resume) {
        clear_state(s, id);
        /* others can signal an ID at any time, also while it is free */
        ivshmem2_link_drain(s->link, id);
    } else if (r->last_state != ivshmem2_link_state(s->link, id)) {
        ivshmem2_slots_state_changed(s, id);
    }
    ivshmem2_record_set_use(r, IVSHMEM2_SLOT_OCCUPIED);
}
