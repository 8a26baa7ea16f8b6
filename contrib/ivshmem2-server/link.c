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

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26
#endif

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* Memory */

static int create_memfd(const char *name, unsigned flags)
{
    /*
     * Systems can forbid memory files without MFD_NOEXEC_SEAL, which Linux
     * before 6.3 does not know.
     */
    int fd = memfd_create(name, flags | MFD_CLOEXEC | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL) {
        fd = memfd_create(name, flags | MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    return fd;
}

static bool no_huge_pages(uint64_t size, uint64_t page, GError **error)
{
    g_autofree char *path = g_strdup_printf(
        "/sys/kernel/mm/hugepages/hugepages-%" PRIu64 "kB/free_hugepages",
        page / 1024);
    g_autofree char *free_pages = NULL;

    g_file_get_contents(path, &free_pages, NULL, NULL);
    return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                         "%" PRIu64 " more huge pages of %" PRIu64 " KiB are "
                         "needed, the system has %s free (see "
                         "vm.nr_hugepages)", size / page, page / 1024,
                         free_pages ? g_strstrip(free_pages) : "none");
}

static bool size_memfd(const Ivshmem2Link *link, int fd, uint64_t size,
                       mode_t mode, bool huge, const char *what,
                       GError **error)
{
    if (ftruncate(fd, size) < 0) {
        return ivshmem2_fail_errno(error, "cannot make a %s of %" PRIu64
                                   " bytes", what, size);
    }
    /* If it had no pages yet, the first access could end in a SIGBUS. */
    if (huge && fallocate(fd, 0, 0, size) < 0) {
        return no_huge_pages(size, link->config.huge_page_size, error);
    }
    /*
     * A peer can reopen a descriptor by /proc/self/fd, also for writing if the
     * mode permits.
     */
    if (fchmod(fd, mode) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0) {
        return ivshmem2_fail_errno(error, "cannot seal the %s", what);
    }
    return true;
}

static int make_memfd(const Ivshmem2Link *link, uint64_t size, mode_t mode,
                      bool huge, const char *what, GError **error)
{
    unsigned flags = huge ? MFD_HUGETLB |
        (unsigned)__builtin_ctzll(link->config.huge_page_size)
        << MFD_HUGE_SHIFT : 0;
    int fd = create_memfd("ivshmem2", flags);

    if (fd < 0) {
        ivshmem2_fail_errno(error, "cannot create the %s", what);
        return -1;
    }
    if (!size_memfd(link, fd, size, mode, huge, what, error)) {
        ivshmem2_close(&fd);
    }
    return fd;
}

static bool make_outputs(Ivshmem2Link *link, GError **error)
{
    uint32_t max = link->welcome.max_peers;

    link->output_fds = g_new(int, max);
    link->output_read_fds = g_new(int, max);
    while (link->n_outputs < max) {
        uint32_t i = link->n_outputs;
        g_autofree char *path = NULL;
        int fd = make_memfd(link, link->welcome.output_size, S_IRUSR,
                            link->config.huge_pages, "output section", error);
        int read_fd;

        if (fd < 0) {
            return false;
        }
        path = g_strdup_printf("/proc/self/fd/%d", fd);
        read_fd = open(path, O_RDONLY | O_CLOEXEC);
        if (read_fd < 0) {
            ivshmem2_fail_errno(error,
                                "cannot open an output section read-only");
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

    link->memory_fds[0] = make_memfd(link, w->state_table_size,
                                     S_IRUSR | S_IWUSR, false, "State Table",
                                     error);
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
        link->memory_fds[1] = make_memfd(link, w->rw_size, S_IRUSR | S_IWUSR,
                                         link->config.huge_pages,
                                         "R/W section", error);
        if (link->memory_fds[1] < 0) {
            return false;
        }
    }
    return !w->output_size || make_outputs(link, error);
}

/* Configuration */

/* The size of huge pages that the configuration asks for */
static bool find_huge_page_size(Ivshmem2LinkConfig *config, GError **error)
{
    unsigned flags = MFD_HUGETLB;
    struct stat st;
    int fd;

    if (config->huge_page_size) {
        flags |= (unsigned)__builtin_ctzll(config->huge_page_size)
                 << MFD_HUGE_SHIFT;
    }
    fd = create_memfd("ivshmem2", flags);
    if (fd < 0) {
        return ivshmem2_fail_errno(error, "the system has no huge pages of "
                                   "%s (see /sys/kernel/mm/hugepages)",
                                   config->huge_page_size ?
                                   "this size" : "the default size");
    }
    if (fstat(fd, &st) == 0) {
        config->huge_page_size = st.st_blksize;
    }
    ivshmem2_close(&fd);
    return true;
}

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
        if (!find_huge_page_size(config, error)) {
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

static bool make_all(Ivshmem2Link *link, GError **error)
{
    const Ivshmem2Welcome *w = &link->welcome;

    if (!configure(link, error) || !make_session(link, error) ||
        !make_memory(link, error)) {
        return false;
    }
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
