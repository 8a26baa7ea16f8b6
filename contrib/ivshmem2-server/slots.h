/*
 * The slots of a link: who has them, who may have them, and what the other
 * peers are told when their states change
 *
 * The client that asks for a slot, or occupies it, is called occupant here:
 * nothing here knows the messages that it is sent.
 *
 * The link's record says who has which slot, and is the only place that does,
 * so that the successor of a server that was killed knows it as well.  What is
 * written there makes sense after each single store; see slots.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef IVSHMEM2_SLOTS_H
#define IVSHMEM2_SLOTS_H

#include <sys/types.h>
#include "access.h"
#include "budget.h"
#include "link.h"

typedef struct Ivshmem2Slots Ivshmem2Slots;

/* Embedded in the client.  id is IVSHMEM2_ID_ANY as long as it has no slot. */
typedef struct Ivshmem2Occupant {
    void *connection;           /* for ops */
    uint32_t id;
    pid_t pid;                  /* of the process that connected; 0: unseen */
    uid_t uid;
    GArray *ids;                /* that it may take; see access.h */
    uint8_t vm_uuid[IVSHMEM2_UUID_SIZE];    /* zeros: none */
    char name[IVSHMEM2_NAME_SIZE];
} Ivshmem2Occupant;

/*
 * Calls to the I/O about the processes behind slots.  @connection is that of
 * the occupant.
 */
typedef struct Ivshmem2SlotOps {
    /*
     * The client left slot @id without a goodbye.  It may still use the
     * eventfds, so nobody else gets the slot before its process is gone: watch
     * that process, and call ivshmem2_slots_release() then.  Returns what to
     * pass to unhold(), or NULL if the process is gone already.
     */
    void *(*hold)(void *connection, uint32_t id);
    /*
     * The same for what an earlier server says about the process: @pid and
     * start_time().  If either is 0, the process cannot be seen.  @grace: its
     * client may come back; call ivshmem2_slots_end_grace() when it had the
     * time for that.  @opaque is that of ivshmem2_slots_new().
     */
    void *(*adopt)(void *opaque, uint32_t id, pid_t pid, uint64_t start_time,
                   bool grace);
    /* The process need not be watched any more; frees @hold. */
    void (*unhold)(void *hold);
    /*
     * Does the process live that had the client's pid when it connected, or
     * the one that is watched?  Another one that has this pid now does not
     * count.
     */
    bool (*is_alive)(void *connection);
    bool (*is_hold_alive)(void *hold);
    /*
     * Has the client closed the connection?  @process: or is its process
     * ending?  This takes some system calls.
     */
    bool (*is_leaving)(void *connection, bool process);
    /* Will ivshmem2_slots_release() be called soon? */
    bool (*is_hold_ending)(void *hold);
    /* When the process started; 0: unknown */
    uint64_t (*start_time)(void *connection);
    /* Seconds that are left of the grace */
    unsigned (*grace_left)(void *hold);
} Ivshmem2SlotOps;

/* What a client gets that asks for a slot */
typedef struct Ivshmem2Claim {
    uint32_t id;
    bool resume;                /* a session */
    Ivshmem2Occupant *old;      /* that has to leave first, or NULL */
} Ivshmem2Claim;

/* Errors are refusals: their codes are enum Ivshmem2RefusalCode. */
#define IVSHMEM2_REFUSAL (ivshmem2_refusal_quark())
GQuark ivshmem2_refusal_quark(void);

/*
 * @link and @budget are borrowed; @opaque is for ops->adopt().  If the link was
 * adopted, slots that were in use are held: those that were occupied with a
 * period of grace, in which they count as occupied, and their states stay.
 */
Ivshmem2Slots *ivshmem2_slots_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                  const Ivshmem2SlotOps *ops, void *opaque);

/*
 * From here on, slots stay as they are when their occupants leave: the peers
 * continue without the server.
 */
void ivshmem2_slots_shutdown(Ivshmem2Slots *s);

/* All occupants must have left.  The record stays as it is. */
void ivshmem2_slots_free(Ivshmem2Slots *s);

/*
 * Find the slot for a client that says @hello.  Returns false with @refusal if
 * it gets none.
 */
bool ivshmem2_slots_claim(Ivshmem2Slots *s, const Ivshmem2Occupant *o,
                          const Ivshmem2Hello *hello, Ivshmem2Claim *claim,
                          GError **refusal);

/* @o occupies it from now on.  claim->old must have left. */
void ivshmem2_slots_take(Ivshmem2Slots *s, Ivshmem2Occupant *o,
                         const Ivshmem2Claim *claim);

/* @detached: it does not use the eventfds any more */
void ivshmem2_slots_leave(Ivshmem2Slots *s, Ivshmem2Occupant *o,
                          bool detached);

/* The process that slot @id was held for is gone.  Calls ops->unhold(). */
void ivshmem2_slots_release(Ivshmem2Slots *s, uint32_t id);

/* The occupant before did not come back: from now on, it is gone. */
void ivshmem2_slots_end_grace(Ivshmem2Slots *s, uint32_t id);

/*
 * Will the slot that @hello asks for, or with a free choice one of all if none
 * is free, soon be given back?  @connections: some were closed by their
 * clients, so look for these.  @processes: look for those that are ending, too.
 */
bool ivshmem2_slots_must_wait(const Ivshmem2Slots *s,
                              const Ivshmem2Occupant *o,
                              const Ivshmem2Hello *hello, bool connections,
                              bool processes);

/* Is there a peer with this ID?  One that may come back counts. */
bool ivshmem2_slots_is_present(const Ivshmem2Slots *s, uint32_t id);

/* The peer with this ID has changed its state: the others are interrupted. */
void ivshmem2_slots_state_changed(Ivshmem2Slots *s, uint32_t id);

/* It has interrupted the others itself because of this @state. */
void ivshmem2_slots_state_announced(Ivshmem2Slots *s, uint32_t id,
                                    uint32_t state);

/*
 * Go on interrupting peers because of changed states, @budget of them at
 * most.  Returns true if there is more to do.
 */
bool ivshmem2_slots_broadcast(Ivshmem2Slots *s, unsigned budget);

#endif /* IVSHMEM2_SLOTS_H */
