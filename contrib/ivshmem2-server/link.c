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
#include "link.h"
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

static bool make_memory(Ivshmem2Link *link, GError **error)
{
    const Ivshmem2Welcome *w = &link->welcome;

    link->memory_fds[0] = ivshmem2_memfd_new(w->state_table_size,
                                             S_IRUSR | S_IWUSR, 0,
                                             "State Table", error);
    if (link->memory_fds[0] < 0) {
        return false;
    }
    link->table = mmap(NULL, w->max_peers * sizeof(uint32_t),
                       PROT_READ | PROT_WRITE, MAP_SHARED,
                       link->memory_fds[0], 0);
    if (link->table == MAP_FAILED) {
        link->table = NULL;
        return ivshmem2_fail_errno(error, "cannot map the State Table");
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

static bool configure(Ivshmem2Link *link, GError **error)
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

    return configure(&link, error);
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

/* Life */

static bool make_record(Ivshmem2Link *link, GError **error)
{
    Ivshmem2RecordShape shape = {
        .welcome = link->welcome,
        .huge_page_size = huge_page_size(link),
        .protocol = link->config.protocol,
        .backend_id = link->config.backend_id,
    };

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

static bool make_all(Ivshmem2Link *link, GError **error)
{
    const Ivshmem2Welcome *w = &link->welcome;

    if (!configure(link, error) || !make_session(link, error) ||
        !make_record(link, error) || !make_memory(link, error)) {
        return false;
    }
    record_files(link);
    link->eventfds = g_new0(int *, w->max_peers);
    for (uint32_t id = 0; link->config.pushes && id < w->max_peers; id++) {
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

Ivshmem2Link *ivshmem2_link_new(const Ivshmem2LinkConfig *config,
                                GError **error)
{
    Ivshmem2Link *link = g_new0(Ivshmem2Link, 1);

    link->config = *config;
    link->memory_fds[0] = -1;
    link->memory_fds[1] = -1;
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

bool ivshmem2_link_make_eventfds(Ivshmem2Link *link, uint32_t id,
                                 GError **error)
{
    uint32_t n = link->welcome.vectors;
    int limit = link->config.fd_limit;
    int *fds;

    if (link->eventfds[id]) {
        return true;
    }
    fds = g_new(int, n);
    for (uint32_t i = 0; i < n; i++) {
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (limit && fds[i] >= limit) {
            ivshmem2_close(&fds[i]);
            errno = EMFILE;
        }
        if (fds[i] < 0) {
            ivshmem2_fail_errno(error, "cannot create %u eventfds for ID %u",
                                n, id);
            free_eventfds(fds, i);
            return false;
        }
    }
    link->eventfds[id] = fds;
    return true;
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
