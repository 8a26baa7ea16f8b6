/*
 * Continuing the link of the server before this one
 *
 * Nothing is taken on trust but the record, which only servers write: every
 * other descriptor must be one that the record names.  Until all of them are
 * found, nothing is changed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "link-build.h"
#include "memfd.h"

typedef struct Adoption {
    Ivshmem2Link *link;
    GHashTable *files;          /* Ivshmem2FileId -> descriptor + 1 */
    GHashTable *eventfds;       /* number -> descriptor + 1 */
} Adoption;

/* Sorting: what was passed, by its identity */

static guint file_hash(gconstpointer key)
{
    const Ivshmem2FileId *id = key;

    return id->ino ^ id->dev;
}

static gboolean file_equal(gconstpointer a, gconstpointer b)
{
    return !memcmp(a, b, sizeof(Ivshmem2FileId));
}

static bool same(int a, int b, const char *what, GError **error)
{
    return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                         "descriptors %d and %d that the service manager "
                         "passed are the same %s", a, b, what);
}

static bool sort_files(Adoption *a, const GArray *fds, GError **error)
{
    for (guint i = 0; i < fds->len; i++) {
        int fd = g_array_index(fds, int, i);
        Ivshmem2FileId *id = g_new(Ivshmem2FileId, 1);
        int other;

        ivshmem2_file_id(fd, id);
        other = GPOINTER_TO_INT(g_hash_table_lookup(a->files, id)) - 1;
        g_hash_table_insert(a->files, id, GINT_TO_POINTER(fd + 1));
        if (other >= 0) {
            return same(other, fd, "memory file", error);
        }
    }
    return true;
}

static bool sort_eventfds(Adoption *a, const GArray *fds, GError **error)
{
    for (guint i = 0; i < fds->len; i++) {
        int fd = g_array_index(fds, int, i);
        gpointer number = GUINT_TO_POINTER(ivshmem2_eventfd_number(fd));
        int other;

        if (!number) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                                 "eventfds cannot be told from each other: "
                                 "/proc is not there, or Linux is older than "
                                 "5.2");
        }
        other = GPOINTER_TO_INT(g_hash_table_lookup(a->eventfds, number)) - 1;
        if (other >= 0) {
            return same(other, fd, "eventfd", error);
        }
        g_hash_table_insert(a->eventfds, number, GINT_TO_POINTER(fd + 1));
    }
    return true;
}

/* Options */

static void compare(GString *list, const char *option, bool hex,
                    uint64_t wanted, uint64_t has)
{
    if (wanted != has) {
        g_string_append_printf(list, hex ? "%s%s 0x%" PRIx64 " (it has 0x%"
                               PRIx64 ")" : "%s%s %" PRIu64 " (it has %" PRIu64
                               ")", list->len ? ", " : "", option, wanted, has);
    }
}

/* Is the record about a link as the configuration wants it? */
static bool check_shape(const Ivshmem2Link *link, GError **error)
{
    const Ivshmem2RecordShape *has = ivshmem2_record_shape(link->record);
    const Ivshmem2RecordShape wanted = ivshmem2_link_shape(link);
    const Ivshmem2Welcome *w = &wanted.welcome;
    const Ivshmem2Welcome *h = &has->welcome;
    g_autoptr(GString) list = g_string_new(NULL);

    compare(list, "--max-peers", false, w->max_peers, h->max_peers);
    compare(list, "--vectors", false, w->vectors, h->vectors);
    if (w->features != h->features) {
        g_string_append_printf(list, "%s%s", list->len ? ", " : "",
                               w->features == IVSHMEM2_F_INTX ?
                               "--intx (it has MSI-X)" :
                               "MSI-X (it has --intx)");
    }
    compare(list, "--rw-size", false, w->rw_size, h->rw_size);
    compare(list, "--output-size", false, w->output_size, h->output_size);
    compare(list, "--page-size", false, w->page_size, h->page_size);
    compare(list, "--huge-pages", false, wanted.huge_page_size,
            has->huge_page_size);
    compare(list, "--protocol", true, wanted.protocol, has->protocol);
    compare(list, "--backend-id", false, wanted.backend_id, has->backend_id);
    if (!list->len && w->state_table_size != h->state_table_size) {
        compare(list, "a State Table of", false, w->state_table_size,
                h->state_table_size);
    }
    return !list->len ||
           ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                         "these options do not fit it: %s", list->str);
}

/* Memory */

static bool missing(const char *what, GError **error)
{
    return ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                         "the %s is missing from what the service manager "
                         "passed (if it keeps too few descriptors, see "
                         "FileDescriptorStoreMax= of the service)", what);
}

/* Returns -1 with @error set if it is not there, or not as it should be. */
static int find_file(Adoption *a, uint32_t index, uint64_t size,
                     const char *what, GError **error)
{
    const Ivshmem2FileId *id = ivshmem2_record_file(a->link->record, index);
    int fd = GPOINTER_TO_INT(g_hash_table_lookup(a->files, id)) - 1;
    struct stat st;

    if (fd < 0) {
        missing(what, error);
        return -1;
    }
    if (!ivshmem2_check_memfd(fd, size, true, what, error)) {
        return -1;
    }
    if (fstat(fd, &st) < 0 || (uint64_t)st.st_size != size) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_ARGUMENT,
                      "the memory of the %s has %lld bytes, not %" PRIu64,
                      what, (long long)st.st_size, size);
        return -1;
    }
    g_hash_table_remove(a->files, id);
    return fd;
}

static bool find_outputs(Adoption *a, GError **error)
{
    Ivshmem2Link *link = a->link;
    uint32_t max = link->welcome.max_peers;

    link->output_fds = g_new(int, max);
    link->output_read_fds = g_new(int, max);
    while (link->n_outputs < max) {
        uint32_t id = link->n_outputs;
        g_autofree char *what = g_strdup_printf("output section of ID %u", id);
        int fd = find_file(a, IVSHMEM2_FILE_OUTPUTS + id,
                           link->welcome.output_size, what, error);
        int read_fd = fd < 0 ? -1 : ivshmem2_memfd_reopen(fd, "output section",
                                                          error);

        if (read_fd < 0) {
            return false;
        }
        link->output_fds[id] = fd;
        link->output_read_fds[id] = read_fd;
        link->n_outputs++;
    }
    return true;
}

static bool find_memory(Adoption *a, GError **error)
{
    Ivshmem2Link *link = a->link;
    const Ivshmem2Welcome *w = &link->welcome;

    link->memory_fds[0] = find_file(a, IVSHMEM2_FILE_STATE_TABLE,
                                    w->state_table_size, "State Table", error);
    if (link->memory_fds[0] < 0) {
        return false;
    }
    if (w->rw_size) {
        link->memory_fds[1] = find_file(a, IVSHMEM2_FILE_RW, w->rw_size,
                                        "R/W section", error);
        if (link->memory_fds[1] < 0) {
            return false;
        }
    }
    return !w->output_size || find_outputs(a, error);
}

/* Eventfds */

static bool find_eventfds_of(Adoption *a, uint32_t id, uint32_t *numbers,
                             GError **error)
{
    Ivshmem2Link *link = a->link;
    uint32_t n = link->welcome.vectors;
    int *fds = g_new(int, n);

    link->eventfds[id] = fds;
    ivshmem2_record_eventfds(link->record, id, numbers);
    for (uint32_t i = 0; i < n; i++) {
        gpointer number = GUINT_TO_POINTER(numbers[i]);

        fds[i] = GPOINTER_TO_INT(g_hash_table_lookup(a->eventfds, number)) - 1;
        if (fds[i] < 0) {
            g_autofree char *what = g_strdup_printf(
                "eventfd for vector %u of ID %u", i, id);

            return missing(what, error);
        }
        g_hash_table_remove(a->eventfds, number);
    }
    return true;
}

/*
 * Those that were being made when the server ended may have been kept already.
 * No peer has them, so it does not matter which is which.
 */
static void find_spare_eventfds(Adoption *a, uint64_t n_making)
{
    GHashTableIter iter;
    gpointer fd;

    if (g_hash_table_size(a->eventfds) >
        n_making * a->link->welcome.vectors) {
        return;
    }
    g_hash_table_iter_init(&iter, a->eventfds);
    while (g_hash_table_iter_next(&iter, NULL, &fd)) {
        int spare = GPOINTER_TO_INT(fd) - 1;

        g_array_append_val(a->link->spare_eventfds, spare);
        g_hash_table_iter_remove(&iter);
    }
}

static bool find_eventfds(Adoption *a, GError **error)
{
    Ivshmem2Link *link = a->link;
    g_autofree uint32_t *numbers = g_new(uint32_t, link->welcome.vectors);
    uint64_t n_making = 0;

    link->eventfds = g_new0(int *, link->welcome.max_peers);
    for (uint32_t id = 0; id < link->welcome.max_peers; id++) {
        enum Ivshmem2EventfdsUse use = ivshmem2_record_eventfds(link->record,
                                                                id, NULL);

        n_making += use == IVSHMEM2_EVENTFDS_MAKING;
        if (use == IVSHMEM2_EVENTFDS_KEPT &&
            !find_eventfds_of(a, id, numbers, error)) {
            return false;
        }
    }
    find_spare_eventfds(a, n_making);
    return true;
}

/* What is left has no place. */
static bool check_surplus(const Adoption *a, GError **error)
{
    GHashTable *tables[] = { a->files, a->eventfds };

    for (size_t i = 0; i < G_N_ELEMENTS(tables); i++) {
        GHashTableIter iter;
        gpointer fd;

        g_hash_table_iter_init(&iter, tables[i]);
        if (g_hash_table_iter_next(&iter, NULL, &fd)) {
            return ivshmem2_inherited_surplus(GPOINTER_TO_INT(fd) - 1, error);
        }
    }
    return true;
}

/* Taking over: from here on the record changes */

/*
 * The eventfds of @id ended with the server before this one, so its peer has
 * to begin anew.  Can be repeated if it is interrupted at any point.
 */
static bool lose_eventfds(Ivshmem2Link *link, uint32_t id, GError **error)
{
    Ivshmem2SlotRecord *slot = ivshmem2_record_slot(link->record, id);

    if (!ivshmem2_record_set_renewed(link->record, id, true, error)) {
        return false;
    }
    if (ivshmem2_link_state(link, id) || slot->last_state) {
        ivshmem2_record_set_broadcast(link->record, true);
    }
    ivshmem2_link_clear_state(link, id);
    slot->last_state = 0;
    if (slot->use != IVSHMEM2_SLOT_FREE) {
        g_warning("'%s' (pid %d) cannot go on as ID %u: its eventfds were not "
                  "kept", slot->name, slot->pid, id);
    }
    ivshmem2_record_set_use(slot, IVSHMEM2_SLOT_FREE);
    return ivshmem2_record_set_eventfds(link->record, id,
                                        IVSHMEM2_EVENTFDS_NONE, NULL, error);
}

static bool take_over(Ivshmem2Link *link, GError **error)
{
    for (uint32_t id = 0; id < link->welcome.max_peers; id++) {
        enum Ivshmem2EventfdsUse use = ivshmem2_record_eventfds(link->record,
                                                                id, NULL);
        bool ok = true;

        if (use == IVSHMEM2_EVENTFDS_LOST) {
            ok = lose_eventfds(link, id, error);
        } else if (use == IVSHMEM2_EVENTFDS_MAKING &&
                   !link->spare_eventfds->len) {
            ok = ivshmem2_record_set_eventfds(link->record, id,
                                              IVSHMEM2_EVENTFDS_NONE, NULL,
                                              error);
        }
        if (!ok) {
            return false;
        }
    }
    return ivshmem2_link_complete(link, error);
}

/* The link gives back what it would close, which was not its own. */
static void give_back(Ivshmem2Link *link)
{
    link->memory_fds[0] = -1;
    link->memory_fds[1] = -1;
    for (uint32_t i = 0; i < link->n_outputs; i++) {
        ivshmem2_close(&link->output_read_fds[i]);
    }
    link->n_outputs = 0;
    for (uint32_t id = 0; link->eventfds && id < link->welcome.max_peers;
         id++) {
        g_clear_pointer(&link->eventfds[id], g_free);
    }
    g_array_set_size(link->spare_eventfds, 0);
    if (link->record) {
        ivshmem2_record_steal_fd(link->record);
    }
}

static bool find_all(Adoption *a, const Ivshmem2Inherited *in, GError **error)
{
    Ivshmem2Link *link = a->link;

    if (!ivshmem2_inherited_check(in, error)) {
        return false;
    }
    if (in->record_fd < 0) {
        return missing("record of the link", error);
    }
    if (!ivshmem2_link_configure(link, error)) {
        return false;
    }
    link->record = ivshmem2_record_open(in->record_fd, error);
    if (!link->record || !check_shape(link, error)) {
        return false;
    }
    link->welcome = ivshmem2_record_shape(link->record)->welcome;
    return sort_files(a, in->files, error) &&
           sort_eventfds(a, in->eventfds, error) &&
           find_memory(a, error) && find_eventfds(a, error) &&
           check_surplus(a, error) && ivshmem2_link_map_table(link, error);
}

bool ivshmem2_link_was_served(const Ivshmem2Inherited *in)
{
    Ivshmem2Record *r = in->record_fd < 0 ? NULL
                        : ivshmem2_record_open(in->record_fd, NULL);
    bool served = !r || ivshmem2_record_served(r);

    if (r) {
        ivshmem2_record_steal_fd(r);
        ivshmem2_record_free(r);
    }
    return served;
}

Ivshmem2Link *ivshmem2_link_adopt(const Ivshmem2LinkConfig *config,
                                  Ivshmem2Inherited *in, GError **error)
{
    Adoption a = {
        .link = ivshmem2_link_alloc(config),
        .files = g_hash_table_new_full(file_hash, file_equal, g_free, NULL),
        .eventfds = g_hash_table_new(NULL, NULL),
    };
    size_t n = 1 + in->files->len + in->eventfds->len;
    bool found = find_all(&a, in, error);
    bool ok = found;

    g_hash_table_unref(a.files);
    g_hash_table_unref(a.eventfds);
    if (found) {
        in->record_fd = -1;
        g_array_set_size(in->files, 0);
        g_array_set_size(in->eventfds, 0);
        ivshmem2_store_count(config->store, n);
        a.link->adopted = true;
        ok = take_over(a.link, error);
    } else {
        give_back(a.link);
    }
    if (!ok) {
        ivshmem2_link_free(a.link);
        return NULL;
    }
    return a.link;
}
