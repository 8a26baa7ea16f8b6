/*
 * The server's side of the protocol without the I/O
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <string.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "loop.h"
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

struct Ivshmem2Client {
    Ivshmem2Server *server;
    Ivshmem2Occupant self;
    uint8_t phase;
    uint8_t refusal_code;
    bool has_answer;            /* about next_id and next_vector */
    uint32_t next_id;           /* how far the handshake is */
    uint32_t next_vector;
    char *refusal_text;
};

struct Ivshmem2Server {
    Ivshmem2Link *link;
    Ivshmem2Budget *budget;
    const Ivshmem2ServerOps *ops;
    Ivshmem2Slots *slots;
    bool warned;
};

Ivshmem2Server *ivshmem2_server_new(Ivshmem2Link *link, Ivshmem2Budget *budget,
                                    const Ivshmem2ServerOps *ops,
                                    void *opaque)
{
    Ivshmem2Server *s = g_new0(Ivshmem2Server, 1);

    s->link = link;
    s->budget = budget;
    s->ops = ops;
    s->slots = ivshmem2_slots_new(link, budget, &ops->slots, opaque);
    return s;
}

void ivshmem2_server_shutdown(Ivshmem2Server *s)
{
    ivshmem2_slots_shutdown(s->slots);
}

void ivshmem2_server_free(Ivshmem2Server *s)
{
    ivshmem2_slots_free(s->slots);
    g_free(s);
}

void ivshmem2_server_release(Ivshmem2Server *s, uint32_t id)
{
    ivshmem2_slots_release(s->slots, id);
}

void ivshmem2_server_end_grace(Ivshmem2Server *s, uint32_t id)
{
    ivshmem2_slots_end_grace(s->slots, id);
}

bool ivshmem2_server_broadcast(Ivshmem2Server *s, unsigned budget)
{
    return ivshmem2_slots_broadcast(s->slots, budget);
}

/* Clients */

Ivshmem2Client *ivshmem2_client_new(Ivshmem2Server *s, pid_t pid, uid_t uid,
                                    void *connection)
{
    Ivshmem2Client *c = g_new0(Ivshmem2Client, 1);

    c->server = s;
    c->self.connection = connection;
    c->self.pid = pid;
    c->self.uid = uid;
    c->self.id = IVSHMEM2_ID_ANY;
    c->phase = PHASE_HELLO;
    return c;
}

void ivshmem2_client_restrict_consume(Ivshmem2Client *c, GArray *ids)
{
    g_clear_pointer(&c->self.ids, g_array_unref);
    c->self.ids = ids;
}

void ivshmem2_client_free(Ivshmem2Client *c)
{
    if (c->self.id != IVSHMEM2_ID_ANY) {
        ivshmem2_slots_leave(c->server->slots, &c->self, false);
    }
    g_clear_pointer(&c->self.ids, g_array_unref);
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
    g_info("'%s' (pid %d, uid %u) is sent away: %s", c->self.name,
           c->self.pid, c->self.uid, c->refusal_text);
    if (c->self.id != IVSHMEM2_ID_ANY) {
        ivshmem2_slots_leave(c->server->slots, &c->self, false);
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
    return c->self.id;
}

const char *ivshmem2_client_name(const Ivshmem2Client *c)
{
    return c->self.name;
}

pid_t ivshmem2_client_pid(const Ivshmem2Client *c)
{
    return c->self.pid;
}

bool ivshmem2_client_waits(const Ivshmem2Client *c, const Ivshmem2Hello *hello,
                           bool connections, bool processes)
{
    return c->phase == PHASE_HELLO &&
           ivshmem2_slots_must_wait(c->server->slots, &c->self, hello,
                                    connections, processes);
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

static void warn_of_uid(Ivshmem2Client *c)
{
    Ivshmem2Server *s = c->server;

    if (s->warned || !s->link->n_outputs ||
        (c->self.uid != geteuid() && c->self.uid != 0)) {
        return;
    }
    s->warned = true;
    g_warning("'%s' (pid %d) runs as %s: the kernel does not keep such peers "
              "from writing the output sections of others",
              c->self.name, c->self.pid,
              c->self.uid == geteuid() ? "the server's user" : "root");
}

/* It takes the slot from an older connection of the same process. */
static void take_slot(Ivshmem2Client *c, const Ivshmem2Claim *claim)
{
    Ivshmem2Server *s = c->server;

    if (claim->old) {
        Ivshmem2Client *old = IVSHMEM2_CONTAINER(claim->old, Ivshmem2Client,
                                                 self);

        ivshmem2_client_refuse(old, IVSHMEM2_REFUSAL_SESSION,
                               "this session was resumed by another "
                               "connection of the same process");
        s->ops->wake(old->self.connection);
    }
    if (provide_eventfds(c, claim->id)) {
        ivshmem2_slots_take(s->slots, &c->self, claim);
        g_clear_pointer(&c->self.ids, g_array_unref);
        c->phase = PHASE_WELCOME;
        warn_of_uid(c);
    }
}

static void handle_hello(Ivshmem2Client *c, const Ivshmem2Hello *hello)
{
    g_autoptr(GError) refusal = NULL;
    Ivshmem2Claim claim;

    memcpy(c->self.name, hello->name, sizeof(c->self.name));
    memcpy(c->self.vm_uuid, hello->vm_uuid, sizeof(c->self.vm_uuid));
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
    if (!check_interrupts(c, hello)) {
        return;
    }
    if (ivshmem2_slots_claim(c->server->slots, &c->self, hello, &claim,
                             &refusal)) {
        take_slot(c, &claim);
    } else {
        ivshmem2_client_refuse(c, refusal->code, "%s", refusal->message);
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

    if (is_target(s, target) &&
        ivshmem2_slots_is_present(s->slots, target->id)) {
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
    if (c->self.id != IVSHMEM2_ID_ANY &&
        msg->hdr.type == IVSHMEM2_MSG_GOODBYE) {
        ivshmem2_slots_leave(c->server->slots, &c->self, true);
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
        ivshmem2_slots_state_changed(c->server->slots, c->self.id);
        break;
    case IVSHMEM2_MSG_STATE_ANNOUNCED:
        ivshmem2_slots_state_announced(c->server->slots, c->self.id,
                                       msg->announcement.state);
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
    ivshmem2_link_welcome(link, c->self.id, &msg->welcome);
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

    if (first == c->self.id) {
        *fds = &link->output_fds[first];
        n = 1;
    } else {
        *fds = &link->output_read_fds[first];
        n = (first < c->self.id ? c->self.id : link->n_outputs) - first;
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

    if (c->next_id == c->self.id) {
        c->next_id++;
    }
    if (next_eventfds(c, c->next_id, msg, fds)) {
        c->next_id++;
    }
    if (c->next_id + (c->next_id == c->self.id) >= max) {
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
        if (next_eventfds(c, c->self.id, msg, fds)) {
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
