/*
 * The resources of a link: memory and eventfds
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include "hw/misc/ivshmem2-regs.h"
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "link-build.h"
#include "memfd.h"

/* Memory */

static uint64_t huge_page_size(const Ivshmem2Link *link)
{
    return link->config.huge_pages ? link->config.huge_page_size : 0;
}

static bool make_outputs(Ivshmem2Link *link, GError **error)
{
    uint32_t max = link->welcome.max_peers;

    link->output_fds = g_new(int, max);
    link->output_read_fds = g_new(int, max);
    while (link->n_outputs < max) {
        uint32_t i = link->n_outputs;
        int fd = ivshmem2_memfd_new(link->welcome.output_size, S_IRUSR,
                                    huge_page_size(link), "output section",
                                    error);
        int read_fd;

        if (fd < 0) {
            return false;
        }
        read_fd = ivshmem2_memfd_reopen(fd, "output section", error);
        if (read_fd < 0) {
            ivshmem2_close(&fd);
            return false;
        }
        link->output_fds[i] = fd;
        link->output_read_fds[i] = read_fd;
        link->n_outputs++;
    }
    return true;
}

bool ivshmem2_link_map_table(Ivshmem2Link *link, GError **error)
{
    link->table = mmap(NULL, link->welcome.max_peers * sizeof(uint32_t),
                       PROT_READ | PROT_WRITE, MAP_SHARED,
                       link->memory_fds[0], 0);
    if (link->table == MAP_FAILED) {
        link->table = NULL;
        return ivshmem2_fail_errno(error, "cannot map the State Table");
    }
    return true;
}

static bool make_memory(Ivshmem2Link *link, GError **error)
{
    const Ivshmem2Welcome *w = &link->welcome;

    link->memory_fds[0] = ivshmem2_memfd_new(w->state_table_size,
                                             S_IRUSR | S_IWUSR, 0,
                                             "State Table", error);
    if (link->memory_fds[0] < 0) {
        return false;
    }
    if (!ivshmem2_link_map_table(link, error)) {
        return false;
    }
    if (w->rw_size) {
        link->memory_fds[1] = ivshmem2_memfd_new(w->rw_size, S_IRUSR | S_IWUSR,
                                                 huge_page_size(link),
                                                 "R/W section", error);
        if (link->memory_fds[1] < 0) {
            return false;
        }
    }
    return !w->output_size || make_outputs(link, error);
}

/* Configuration */

/*
 * Up to a multiple of @page.  Down where rounding up might overflow: that is
 * more than IVSHMEM2_MAX_SIZE either way.
 */
static uint64_t round_up(uint64_t size, uint64_t page)
{
    return size > IVSHMEM2_MAX_SIZE ? size / page * page
                                    : (size + page - 1) / page * page;
}

bool ivshmem2_link_configure(Ivshmem2Link *link, GError **error)
{
    Ivshmem2LinkConfig *config = &link->config;
    Ivshmem2Welcome *w = &link->welcome;
    uint64_t host_page = sysconf(_SC_PAGE_SIZE);
    uint64_t table_size = (uint64_t)config->max_peers * sizeof(uint32_t);
    uint64_t unit;

    if (!config->page_size) {
        config->page_size = host_page;
    }
    if (config->page_size < host_page) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                             "page size %u is smaller than this host's page "
                             "size %" PRIu64, config->page_size, host_page);
    }
    unit = config->page_size;
    if (config->huge_pages) {
        if (!ivshmem2_memfd_huge_page_size(&config->huge_page_size, error)) {
            return false;
        }
        unit = MAX(unit, config->huge_page_size);
    }
    *w = (Ivshmem2Welcome) {
        .version = IVSHMEM2_VERSION_MAX,
        .features = config->intx ? IVSHMEM2_F_INTX : IVSHMEM2_F_MSIX,
        .vectors = config->vectors,
        .max_peers = config->max_peers,
        .page_size = config->page_size,
        /* a multiple of the unit, so that the sections behind are aligned */
        .state_table_size = round_up(table_size, unit),
        .rw_size = round_up(config->rw_size, unit),
        .output_size = round_up(config->output_size, unit),
    };
    return ivshmem2_welcome_check(w, error);
}

bool ivshmem2_link_check(const Ivshmem2LinkConfig *config, GError **error)
{
    Ivshmem2Link link = { .config = *config };

    return ivshmem2_link_configure(&link, error);
}

/* A random UUID, as in RFC 9562 */
static bool make_session(Ivshmem2Link *link, GError **error)
{
    uint8_t *uuid = link->welcome.session;

    if (getrandom(uuid, IVSHMEM2_UUID_SIZE, 0) != IVSHMEM2_UUID_SIZE) {
        return ivshmem2_fail_errno(error,
                                   "no random numbers for the session UUID");
    }
    uuid[6] = (uuid[6] & 0x0f) | 0x40;
    uuid[8] = (uuid[8] & 0x3f) | 0x80;
    return true;
}

/* Keeping: what a successor needs, in the order in which it is kept */

Ivshmem2RecordShape ivshmem2_link_shape(const Ivshmem2Link *link)
{
    return (Ivshmem2RecordShape) {
        .welcome = link->welcome,
        .huge_page_size = huge_page_size(link),
        .protocol = link->config.protocol,
        .backend_id = link->config.backend_id,
    };
}

static bool make_record(Ivshmem2Link *link, GError **error)
{
    Ivshmem2RecordShape shape = ivshmem2_link_shape(link);

    link->record = ivshmem2_record_new(&shape, error);
    return link->record;
}

/* What the record says of the memory files */
static void record_files(Ivshmem2Link *link)
{
    for (uint32_t i = 0; i < G_N_ELEMENTS(link->memory_fds); i++) {
        ivshmem2_file_id(link->memory_fds[i],
                         ivshmem2_record_file(link->record, i));
    }
    for (uint32_t i = 0; i < link->n_outputs; i++) {
        ivshmem2_file_id(link->output_fds[i],
                         ivshmem2_record_file(link->record,
                                              IVSHMEM2_FILE_OUTPUTS + i));
    }
}

static bool keep(Ivshmem2Link *link, const char *name, const int *fds,
                 size_t n, GError **error)
{
    Ivshmem2Store *store = link->config.store;

    return ivshmem2_store_put(store, name, fds, n) == n ||
           ivshmem2_fail_errno(error, "%s does not take the link's descriptors",
                               ivshmem2_store_keeper(store));
}

/* All or nothing: with a part of them, no successor could start. */
static bool keep_memory(Ivshmem2Link *link, GError **error)
{
    Ivshmem2Store *store = link->config.store;
    size_t room = ivshmem2_store_room(store);
    size_t rw = link->welcome.rw_size != 0;
    int record_fd = ivshmem2_record_fd(link->record);

    if (!room) {
        link->config.store = NULL;
        return true;
    }
    if (room < 2 + rw + link->n_outputs) {
        g_warning("%s keeps %zu descriptors, but the link's memory needs %zu: "
                  "the link ends with this server (see "
                  "FileDescriptorStoreMax= of the service)",
                  ivshmem2_store_keeper(store), room,
                  2 + rw + link->n_outputs);
        link->config.store = NULL;
        return true;
    }
    return keep(link, IVSHMEM2_STORE_RECORD, &record_fd, 1, error) &&
           keep(link, IVSHMEM2_STORE_STATE_TABLE, &link->memory_fds[0], 1,
                error) &&
           keep(link, IVSHMEM2_STORE_RW, &link->memory_fds[1], rw, error) &&
           keep(link, IVSHMEM2_STORE_OUTPUTS, link->output_fds,
                link->n_outputs, error);
}

/* Life */

bool ivshmem2_link_complete(Ivshmem2Link *link, GError **error)
{
    for (uint32_t id = 0; link->config.pushes && id < link->welcome.max_peers;
         id++) {
        if (link->eventfds[id]) {
            continue;
        }
        if (!ivshmem2_link_make_eventfds(link, id, error)) {
            return false;
        }
        /*
         * Until somebody gets the ID, changes of states pass it over.  This
         * does not wait, because nobody else has the eventfd yet.
         */
        eventfd_write(link->eventfds[id][0], UINT64_MAX - 1);
    }
    return true;
}

static bool make_all(Ivshmem2Link *link, GError **error)
{
    if (!ivshmem2_link_configure(link, error) || !make_session(link, error) ||
        !make_record(link, error) || !make_memory(link, error)) {
        return false;
    }
    link->eventfds = g_new0(int *, link->welcome.max_peers);
    record_files(link);
    if (!keep_memory(link, error) || !ivshmem2_link_complete(link, error)) {
        return false;
    }
    ivshmem2_record_set_served(link->record);
    return true;
}

Ivshmem2Link *ivshmem2_link_alloc(const Ivshmem2LinkConfig *config)
{
    Ivshmem2Link *link = g_new0(Ivshmem2Link, 1);

    link->config = *config;
    link->memory_fds[0] = -1;
    link->memory_fds[1] = -1;
    link->spare_eventfds = g_array_new(FALSE, FALSE, sizeof(int));
    return link;
}

Ivshmem2Link *ivshmem2_link_new(const Ivshmem2LinkConfig *config,
                                GError **error)
{
    Ivshmem2Link *link = ivshmem2_link_alloc(config);

    if (!make_all(link, error)) {
        ivshmem2_link_free(link);
        return NULL;
    }
    return link;
}

static void free_eventfds(int *fds, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        ivshmem2_close(&fds[i]);
    }
    g_free(fds);
}

void ivshmem2_link_free(Ivshmem2Link *link)
{
    if (!link) {
        return;
    }
    if (link->table) {
        munmap(link->table, link->welcome.max_peers * sizeof(uint32_t));
    }
    ivshmem2_close(&link->memory_fds[0]);
    ivshmem2_close(&link->memory_fds[1]);
    for (uint32_t i = 0; i < link->n_outputs; i++) {
        ivshmem2_close(&link->output_fds[i]);
        ivshmem2_close(&link->output_read_fds[i]);
    }
    g_free(link->output_fds);
    g_free(link->output_read_fds);
    for (uint32_t id = 0; link->eventfds && id < link->welcome.max_peers;
         id++) {
        if (link->eventfds[id]) {
            free_eventfds(link->eventfds[id], link->welcome.vectors);
        }
    }
    g_free(link->eventfds);
    for (guint i = 0; i < link->spare_eventfds->len; i++) {
        ivshmem2_close(&g_array_index(link->spare_eventfds, int, i));
    }
    g_array_unref(link->spare_eventfds);
    ivshmem2_record_free(link->record);
    g_free(link);
}

void ivshmem2_link_welcome(const Ivshmem2Link *link, uint32_t id,
                           Ivshmem2Welcome *welcome)
{
    uint16_t protocol = link->config.protocol;

    if (protocol & IVSHMEM2_PROTOCOL_VIRTIO) {
        protocol &= ~IVSHMEM2_PROTOCOL_VIRTIO_BACK;
        if (id == link->config.backend_id) {
            protocol |= IVSHMEM2_PROTOCOL_VIRTIO_BACK;
        }
    }
    *welcome = link->welcome;
    welcome->id = id;
    welcome->protocol = protocol;
}

/* Eventfds */

/* Make those of @fds that come after the first @have. */
static bool make_eventfds(const Ivshmem2Link *link, uint32_t id, int *fds,
                          uint32_t have, GError **error)
{
    uint32_t n = link->welcome.vectors;
    int limit = link->config.fd_limit;

    for (uint32_t i = have; i < n; i++) {
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (limit && fds[i] >= limit) {
            ivshmem2_close(&fds[i]);
            errno = EMFILE;
        }
        if (fds[i] < 0) {
            ivshmem2_fail_errno(error, "cannot create %u eventfds for ID %u",
                                n, id);
            while (i-- > have) {
                ivshmem2_close(&fds[i]);
            }
            return false;
        }
    }
    return true;
}

/*
 * Have those after @have kept, too.  If not all of them are taken, the others
 * end here, and those that are kept are spare ones.
 */
static bool keep_eventfds(Ivshmem2Link *link, uint32_t id, int *fds,
                          uint32_t have, GError **error)
{
    uint32_t n = link->welcome.vectors;
    size_t done;

    if (!ivshmem2_record_set_eventfds(link->record, id,
                                      IVSHMEM2_EVENTFDS_MAKING, NULL,
                                      error)) {
        done = 0;
    } else {
        done = ivshmem2_store_put(link->config.store, IVSHMEM2_STORE_EVENTFDS,
                                  fds + have, n - have);
        if (have + done == n) {
            return true;
        }
        ivshmem2_fail_errno(error, "%s takes no descriptors at the moment",
                            ivshmem2_store_keeper(link->config.store));
    }
    for (uint32_t i = have + done; i < n; i++) {
        ivshmem2_close(&fds[i]);
    }
    g_array_append_vals(link->spare_eventfds, fds, have + done);
    if (!link->spare_eventfds->len) {
        ivshmem2_record_set_eventfds(link->record, id, IVSHMEM2_EVENTFDS_NONE,
                                     NULL, NULL);
    }
    return false;
}

/* Those that the record can name, and that the store has room for */
static bool can_keep(Ivshmem2Link *link)
{
    Ivshmem2Store *store = link->config.store;
    uint64_t room = (uint64_t)ivshmem2_store_room(store) +
                    link->spare_eventfds->len;

    if (room >= link->welcome.vectors) {
        return true;
    }
    if (store && !link->store_is_full) {
        g_warning("%s has no room for more descriptors: peers that join from "
                  "now on cannot continue after a restart of the server (see "
                  "FileDescriptorStoreMax= of the service)",
                  ivshmem2_store_keeper(store));
        link->store_is_full = true;
    }
    return false;
}

static uint32_t take_spare_eventfds(Ivshmem2Link *link, int *fds, uint32_t n)
{
    GArray *spare = link->spare_eventfds;
    uint32_t have = MIN(n, spare->len);

    if (have) {
        memcpy(fds, spare->data, have * sizeof(int));
        g_array_remove_range(spare, 0, have);
    }
    return have;
}

/* Returns false if one has no number. */
static bool number_eventfds(const int *fds, uint32_t *numbers, uint32_t n)
{
    bool all = true;

    for (uint32_t i = 0; i < n; i++) {
        numbers[i] = ivshmem2_eventfd_number(fds[i]);
        all = all && numbers[i];
    }
    return all;
}

/* The record has the last word: until then no peer may have them. */
static bool record_eventfds(Ivshmem2Link *link, uint32_t id, int *fds,
                            const uint32_t *numbers, bool kept, GError **error)
{
    uint32_t n = link->welcome.vectors;

    if (ivshmem2_record_set_eventfds(link->record, id,
                                     kept ? IVSHMEM2_EVENTFDS_KEPT
                                          : IVSHMEM2_EVENTFDS_LOST,
                                     kept ? numbers : NULL, error)) {
        return true;
    }
    if (kept) {
        g_array_append_vals(link->spare_eventfds, fds, n);
    }
    for (uint32_t i = 0; !kept && i < n; i++) {
        ivshmem2_close(&fds[i]);
    }
    return false;
}

static bool make_recorded(Ivshmem2Link *link, uint32_t id, int *fds,
                          GError **error)
{
    uint32_t n = link->welcome.vectors;
    g_autofree uint32_t *numbers = g_new0(uint32_t, n);
    bool kept = can_keep(link);
    uint32_t have = kept ? take_spare_eventfds(link, fds, n) : 0;

    if (!make_eventfds(link, id, fds, have, error)) {
        g_array_append_vals(link->spare_eventfds, fds, have);
        return false;
    }
    /* Linux before 5.2 has no numbers, and so no way to find them again. */
    kept = kept && number_eventfds(fds, numbers, n);
    return (!kept || keep_eventfds(link, id, fds, have, error)) &&
           record_eventfds(link, id, fds, numbers, kept, error);
}

bool ivshmem2_link_make_eventfds(Ivshmem2Link *link, uint32_t id,
                                 GError **error)
{
    int *fds;

    if (link->eventfds[id]) {
        return true;
    }
    fds = g_new(int, link->welcome.vectors);
    if (!make_recorded(link, id, fds, error)) {
        g_free(fds);
        return false;
    }
    link->eventfds[id] = fds;
    return true;
}

bool ivshmem2_link_is_renewed(const Ivshmem2Link *link, uint32_t id)
{
    return ivshmem2_record_renewed(link->record, id);
}

void ivshmem2_link_signal(Ivshmem2Link *link, uint32_t id, uint32_t vector)
{
    if (link->eventfds[id] && vector < link->welcome.vectors) {
        ivshmem2_eventfd_signal(link->eventfds[id][vector]);
    }
}

void ivshmem2_link_drain(Ivshmem2Link *link, uint32_t id)
{
    for (uint32_t i = 0; link->eventfds[id] && i < link->welcome.vectors;
         i++) {
        ivshmem2_eventfd_drain(link->eventfds[id][i]);
    }
    if (ivshmem2_link_is_renewed(link, id)) {
        ivshmem2_record_set_renewed(link->record, id, false, NULL);
    }
}

/* State Table */

uint32_t ivshmem2_link_state(const Ivshmem2Link *link, uint32_t id)
{
    return GUINT32_FROM_LE(__atomic_load_n(&link->table[id],
                                           __ATOMIC_ACQUIRE));
}

uint32_t ivshmem2_link_clear_state(Ivshmem2Link *link, uint32_t id)
{
    return GUINT32_FROM_LE(__atomic_exchange_n(&link->table[id], 0,
                                               __ATOMIC_ACQ_REL));
}
