/*
 * Fuzzing ivshmem2: a server that is handed over a damaged link
 *
 * Input: which IDs have eventfds, then actions that change the record, the
 * descriptors or the options.  What is adopted in the end is a link that works,
 * and what is not adopted stays as it is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"
#include <sys/stat.h>
#include "link.h"

#define N_PEERS     4
#define N_VECTORS   2
#define MAX_HANDED  64

enum {
    OP_BYTE,                    /* of the record: offset, value */
    OP_WORD,                    /* the same, but four of them */
    OP_DROP,                    /* a descriptor */
    OP_DOUBLE,
    OP_REPLACE,                 /* by another kind */
    OP_EVENTFDS,                /* how those of an ID are used */
    OP_OPTION,                  /* which, value */
    N_OPS,
};

typedef struct Handed {
    int fds[MAX_HANDED];        /* the first one is the record, as it was */
    unsigned n;
    Ivshmem2LinkConfig config;
} Handed;

static void hand_over(Handed *h, int fd)
{
    if (h->n < MAX_HANDED) {
        h->fds[h->n] = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        g_assert_cmpint(h->fds[h->n], >=, 0);
        h->n++;
    }
}

static void keep_eventfds(Handed *h, Ivshmem2Link *link, uint32_t id)
{
    uint32_t numbers[N_VECTORS];

    g_assert_true(ivshmem2_link_make_eventfds(link, id, NULL));
    for (uint32_t i = 0; i < N_VECTORS; i++) {
        numbers[i] = ivshmem2_eventfd_number(link->eventfds[id][i]);
        hand_over(h, link->eventfds[id][i]);
    }
    g_assert_true(ivshmem2_record_set_eventfds(
        link->record, id, IVSHMEM2_EVENTFDS_KEPT, numbers, NULL));
}

static void make_link(FuzzInput *in, Handed *h)
{
    uint8_t ids = fuzz_u8(in);
    Ivshmem2Link *link;

    h->config = (Ivshmem2LinkConfig) {
        .max_peers = N_PEERS,
        .vectors = N_VECTORS,
        .rw_size = FUZZ_MEMORY_SIZE,
        .output_size = 4096,
    };
    link = ivshmem2_link_new(&h->config, NULL);
    g_assert_nonnull(link);
    hand_over(h, ivshmem2_record_fd(link->record));
    hand_over(h, link->memory_fds[0]);
    hand_over(h, link->memory_fds[1]);
    for (uint32_t id = 0; id < N_PEERS; id++) {
        hand_over(h, link->output_fds[id]);
        if (ids & 1 << id) {
            keep_eventfds(h, link, id);
            ivshmem2_record_set_use(ivshmem2_record_slot(link->record, id),
                                    IVSHMEM2_SLOT_OCCUPIED);
        }
    }
    ivshmem2_link_free(link);
}

static void damage(FuzzInput *in, Handed *h, size_t size)
{
    uint32_t offset = fuzz_u8(in) << 8;
    uint32_t value;
    struct stat st;

    offset |= fuzz_u8(in);
    value = size == 1 ? fuzz_u8(in) : fuzz_u32(in);
    if (h->n && fstat(h->fds[0], &st) == 0 && st.st_size > 4) {
        g_assert_cmpint(pwrite(h->fds[0], &value, size,
                               offset % (st.st_size - 4)), !=, 0);
    }
}

static void set_use(FuzzInput *in, Handed *h)
{
    uint8_t what = fuzz_u8(in);
    Ivshmem2Record *r = h->n ? ivshmem2_record_open(h->fds[0], NULL) : NULL;

    if (r) {
        uint32_t id = what % ivshmem2_record_shape(r)->welcome.max_peers;

        ivshmem2_record_set_eventfds(r, id, what >> 4, NULL, NULL);
        ivshmem2_record_steal_fd(r);
        ivshmem2_record_free(r);
    }
}

static void set_option(FuzzInput *in, Handed *h)
{
    uint8_t option = fuzz_u8(in);
    uint8_t value = fuzz_u8(in);

    switch (option % 6) {
    case 0:
        h->config.max_peers = value;
        break;
    case 1:
        h->config.vectors = value;
        break;
    case 2:
        h->config.rw_size = value * UINT64_C(4096);
        break;
    case 3:
        h->config.intx = value & 1;
        break;
    case 4:
        h->config.protocol = value << 8;
        break;
    default:
        h->config.pushes = value & 1;
    }
}

static void change_descriptor(FuzzInput *in, Handed *h, uint8_t op)
{
    unsigned i = h->n ? fuzz_u8(in) % h->n : 0;
    FuzzFd kind = fuzz_u8(in) % FUZZ_N_FDS;

    if (!h->n) {
        return;
    }
    switch (op) {
    case OP_DROP:
        ivshmem2_close(&h->fds[i]);
        h->fds[i] = h->fds[--h->n];
        break;
    case OP_DOUBLE:
        hand_over(h, h->fds[i]);
        break;
    default:
        ivshmem2_close(&h->fds[i]);
        h->fds[i] = fcntl(fuzz_fd(kind), F_DUPFD_CLOEXEC, 3);
        g_assert_cmpint(h->fds[i], >=, 0);
    }
}

static void act(FuzzInput *in, Handed *h)
{
    uint8_t op = fuzz_u8(in) % N_OPS;

    switch (op) {
    case OP_BYTE:
        damage(in, h, 1);
        break;
    case OP_WORD:
        damage(in, h, 4);
        break;
    case OP_EVENTFDS:
        set_use(in, h);
        break;
    case OP_OPTION:
        set_option(in, h);
        break;
    default:
        change_descriptor(in, h, op);
    }
}

/* Everything that a server does with it */
static void use(Ivshmem2Link *link)
{
    g_autoptr(GError) error = NULL;

    g_assert_true(link->adopted);
    g_assert_true(ivshmem2_welcome_check(&link->welcome, &error));
    for (uint32_t id = 0; id < link->welcome.max_peers; id++) {
        g_assert_cmpuint(ivshmem2_record_slot(link->record, id)->use, <=,
                         IVSHMEM2_SLOT_HELD);
        ivshmem2_link_clear_state(link, id);
        g_assert_true(ivshmem2_link_make_eventfds(link, id, &error));
        ivshmem2_link_drain(link, id);
        for (uint32_t i = 0; i < link->welcome.vectors; i++) {
            ivshmem2_link_signal(link, id, i);
            g_assert_cmpuint(ivshmem2_eventfd_drain(link->eventfds[id][i]), ==,
                             1);
        }
    }
    for (uint32_t i = 0; i < link->n_outputs; i++) {
        g_assert_true(ivshmem2_check_memfd(link->output_fds[i],
                                           link->welcome.output_size, true,
                                           "section", &error));
    }
}

void fuzz_adopt(FuzzInput *in)
{
    g_autoptr(GError) error = NULL;
    Ivshmem2Inherited inherited;
    Ivshmem2Link *link;
    Handed h = { 0 };
    unsigned before;

    make_link(in, &h);
    while (in->size) {
        act(in, &h);
    }
    before = fuzz_count_fds();
    ivshmem2_inherited_init_fds(&inherited, h.fds, h.n);
    ivshmem2_link_was_served(&inherited);
    link = ivshmem2_link_adopt(&h.config, &inherited, &error);
    if (link) {
        g_assert_no_error(error);
        use(link);
        ivshmem2_link_free(link);
    } else {
        g_assert_nonnull(error);
        g_assert_cmpuint(fuzz_count_fds(), ==, before);
    }
    ivshmem2_inherited_clear(&inherited);
    fuzz_settle();
}
