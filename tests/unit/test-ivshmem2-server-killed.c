/*
 * ivshmem2-server's slots: a server is killed between any two stores, and
 * another one makes sense of what it left
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-slots-util.h"
#include <stdio.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

/* A state that the others know from the victim itself */
#define ANNOUNCED   7

typedef struct Snapshot {
    Ivshmem2SlotRecord slots[MAX_PEERS];
    uint32_t table[MAX_PEERS];
    bool broadcast;
} Snapshot;

static void take_snapshot(Fixture *f, Snapshot *s)
{
    memset(s, 0, sizeof(*s));
    memcpy(s->slots, ivshmem2_record_slot(f->link->record, 0),
           sizeof(s->slots));
    memcpy(s->table, f->link->table, sizeof(s->table));
    s->broadcast = ivshmem2_record_broadcast(f->link->record);
}

static void restore_snapshot(Fixture *f, const Snapshot *s)
{
    memcpy(ivshmem2_record_slot(f->link->record, 0), s->slots,
           sizeof(s->slots));
    memcpy(f->link->table, s->table, sizeof(s->table));
    ivshmem2_record_set_broadcast(f->link->record, s->broadcast);
}

/*
 * Have a child do @step, one instruction after the other.  Returns what was in
 * the shared memory whenever it had changed; NULL if the system forbids this.
 */
static GArray *trace(Fixture *f, void (*step)(Fixture *f))
{
    GArray *all = g_array_new(false, false, sizeof(Snapshot));
    Snapshot now, last;
    int status;
    pid_t pid;

    take_snapshot(f, &last);
    g_array_append_val(all, last);
    pid = fork();
    if (pid == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0) {
            _exit(77);
        }
        raise(SIGSTOP);
        step(f);
        _exit(0);
    }
    while (waitpid(pid, &status, 0) == pid && WIFSTOPPED(status)) {
        take_snapshot(f, &now);
        if (memcmp(&now, &last, sizeof(now))) {
            g_array_append_val(all, now);
            last = now;
        }
        g_assert_true(WSTOPSIG(status) == SIGTRAP ||
                      WSTOPSIG(status) == SIGSTOP);
        g_assert_cmpint(ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL), ==, 0);
    }
    /* this process's server knows nothing of it */
    restore_snapshot(f, &g_array_index(all, Snapshot, 0));
    g_assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status)) {
        g_assert_cmpint(WEXITSTATUS(status), ==, 77);
        g_clear_pointer(&all, g_array_unref);
    }
    return all;
}

static void step_join(Fixture *f)
{
    try_join(f, 1, VICTIM, 1, false, NULL);
}

static void step_close(Fixture *f)
{
    leave(f, 1);
}

static void step_goodbye(Fixture *f)
{
    ivshmem2_client_receive(f->clients[1], &(Ivshmem2Msg) {
                            .hdr.type = IVSHMEM2_MSG_GOODBYE });
}

/* Also from another connection of the same process */
static void step_resume(Fixture *f)
{
    try_join(f, 2, VICTIM, 1, true, NULL);
}

static void step_end_grace(Fixture *f)
{
    ivshmem2_server_end_grace(f->server, 1);
}

static void step_release(Fixture *f)
{
    ivshmem2_server_release(f->server, 1);
}

static void step_change(Fixture *f)
{
    set_state(f, 1, 9);
    say(f, 1, IVSHMEM2_MSG_STATE_CHANGED);
}

static void step_announce(Fixture *f)
{
    set_state(f, 1, ANNOUNCED);
    announce(f, 1, ANNOUNCED);
}

static void step_adopt(Fixture *f)
{
    memset(holds, 0, sizeof(holds));
    start_server(f);
}

typedef enum Before {
    NOBODY,
    AFTER_OTHER,                /* which said goodbye */
    OCCUPIED,
    UNANNOUNCED,                /* the server was not told of its state yet */
    HELD,
    GRACE,
    GRACE_UNSEEN,               /* of a process that cannot be seen */
    GRACE_HIDDEN,               /* but for its pid */
    GRACE_CHANGED,              /* the state was written meanwhile */
} Before;

typedef struct Step {
    void (*step)(Fixture *f);
    const char *name;
    Before before;
    bool nothing;               /* is to be written */
    bool gives_back;            /* the victim does not claim the slot after */
    bool dead;                  /* the victim, during the step */
} Step;

static const Step steps[] = {
    { .step = step_join, .name = "join", .before = NOBODY },
    { .step = step_join, .name = "join-after-another", .before = AFTER_OTHER },
    { .step = step_join, .name = "join-again", .before = HELD },
    { .step = step_join, .name = "join-in-grace", .before = GRACE },
    { .step = step_close, .name = "close", .before = OCCUPIED },
    { .step = step_close, .name = "close-unannounced", .before = UNANNOUNCED },
    { .step = step_close, .name = "close-by-end",
      .before = OCCUPIED, .dead = true },
    { .step = step_goodbye, .name = "goodbye",
      .before = OCCUPIED, .gives_back = true },
    { .step = step_resume, .name = "resume", .before = HELD },
    { .step = step_resume, .name = "resume-while-connected",
      .before = OCCUPIED },
    { .step = step_resume, .name = "resume-in-grace", .before = GRACE,
      .nothing = true },
    { .step = step_resume, .name = "resume-in-grace-unseen",
      .before = GRACE_UNSEEN },
    { .step = step_resume, .name = "resume-in-grace-hidden",
      .before = GRACE_HIDDEN },
    { .step = step_resume, .name = "resume-in-grace-changed",
      .before = GRACE_CHANGED },
    { .step = step_end_grace, .name = "end-of-grace", .before = GRACE },
    { .step = step_release, .name = "release", .before = HELD, .dead = true },
    { .step = step_release, .name = "release-in-grace",
      .before = GRACE, .dead = true },
    { .step = step_change, .name = "state-changed", .before = OCCUPIED },
    { .step = step_announce, .name = "state-announced", .before = OCCUPIED },
    { .step = step_adopt, .name = "adopt", .before = GRACE },
    { .step = step_adopt, .name = "adopt-of-the-gone",
      .before = GRACE, .dead = true },
};

/* Returns the state of the victim that the observer was told about. */
static uint32_t prepare(Fixture *f, const Step *step)
{
    setup(f);
    join(f, OBSERVER, 0, !SESSION);
    if (step->before == NOBODY || step->before == AFTER_OTHER) {
        if (step->before == AFTER_OTHER) {
            join(f, OTHER, 1, !SESSION);
            say(f, 1, IVSHMEM2_MSG_GOODBYE);
            leave(f, 1);
        }
        was_interrupted(f, 0);
        return 0;
    }
    join(f, step->before == GRACE_UNSEEN ? UNSEEN :
         step->before == GRACE_HIDDEN ? HIDDEN : VICTIM, 1, !SESSION);
    set_state(f, 1, 5);
    if (step->before != UNANNOUNCED) {
        announce(f, 1, 5);
    }
    if (step->before == HELD) {
        leave(f, 1);
    }
    if (step->before >= GRACE) {
        restart(f);
    }
    if (step->before == GRACE_CHANGED) {
        set_state(f, 1, 6);
    }
    was_interrupted(f, 0);
    return step->before == HELD ? 0 : 5;
}

/* A server that finds this; @dead: the victim is gone */
static void check_successor(Fixture *f, const Step *step, const Snapshot *s,
                            bool dead, uint32_t told)
{
    bool claimed = s->slots[1].use != IVSHMEM2_SLOT_FREE;

    memset(holds, 0, sizeof(holds));
    processes[VICTIM].dead = dead;
    restore_snapshot(f, s);
    ivshmem2_link_drain(f->link, 0);
    f->link->adopted = true;
    start_server(f);
    if (dead && holds[1] && !holds[1]->process) {
        ivshmem2_server_end_grace(f->server, 1);
        ivshmem2_server_release(f->server, 1);
    }
    if (dead) {
        g_assert_cmpuint(get_state(f, 1), ==, 0);
    } else if (claimed && !step->gives_back) {
        /* the slot of a process that lives is not given to another one */
        g_assert_cmpuint(try_join(f, 3, FOREIGN, 1, false, NULL), ==,
                         IVSHMEM2_ID_ANY);
        g_assert_cmpuint(try_join(f, 3, FOREIGN, 1, true, NULL), ==,
                         IVSHMEM2_ID_ANY);
        join(f, VICTIM, 1, SESSION);
    } else if (claimed) {
        join(f, VICTIM, 1, !SESSION);
    }
    if (get_state(f, 1) != told && get_state(f, 1) != ANNOUNCED) {
        g_assert_true(was_interrupted(f, 0));
    }
    if (dead) {
        /* nothing is lost */
        join(f, OTHER, 1, !SESSION);
    }
    stop_server(f);
}

/* A slot that was taken before the step, or not by the victim alone */
static bool is_claimed_throughout(const Step *step)
{
    return step->before >= OCCUPIED && !step->gives_back && !step->dead;
}

static void test_killed_in(gconstpointer opaque)
{
    const Step *step = opaque;
    g_autoptr(GArray) all = NULL;
    uint32_t told;
    Fixture f;

    told = prepare(&f, step);
    processes[VICTIM].dead = step->dead;
    if (step->step == step_adopt) {
        stop_server(&f);
    }
    all = trace(&f, step->step);
    if (step->step != step_adopt) {
        stop_server(&f);
    }
    if (!all) {
        g_test_skip("the system forbids ptrace()");
    }
    g_assert_true(!all || (all->len == 1) == step->nothing);
    for (guint i = 0; all && i < all->len; i++) {
        const Snapshot *s = &g_array_index(all, Snapshot, i);

        /* An ID that is not occupied has no state. */
        g_assert_true(s->slots[1].use == IVSHMEM2_SLOT_OCCUPIED ||
                      !s->table[1]);
        if (is_claimed_throughout(step)) {
            g_assert_cmpuint(s->slots[1].use, !=, IVSHMEM2_SLOT_FREE);
        }
        check_successor(&f, step, s, true, told);
        if (!step->dead) {
            check_successor(&f, step, s, false, told);
        }
    }
    ivshmem2_link_free(f.link);
    g_assert_cmpuint(count_fds(), ==, f.before);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    if (g_getenv("ASAN_OPTIONS")) {
        printf("1..0 # SKIP with a sanitizer there are too many steps\n");
        return 0;
    }
    for (size_t i = 0; i < G_N_ELEMENTS(steps); i++) {
        g_autofree char *path = g_strconcat("/ivshmem2/server-killed/",
                                            steps[i].name, NULL);

        g_test_add_data_func(path, &steps[i], test_killed_in);
    }
    return g_test_run();
}
