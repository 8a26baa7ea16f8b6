/*
 * libivshmem2: what a link looks like
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#include "libivshmem2-core.h"
#include "libivshmem2-util.h"

bool ivshmem2_welcome_check(const Ivshmem2Welcome *w, GError **error)
{
    uint64_t n = w->max_peers;
    uint64_t page = w->page_size;

    if (n < IVSHMEM2_MIN_PEERS || n > IVSHMEM2_MAX_PEERS) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the link has %u peers at most, but %u to %u are "
                             "possible", w->max_peers, IVSHMEM2_MIN_PEERS,
                             IVSHMEM2_MAX_PEERS);
    }
    if (w->id >= n) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "ID %u is out of range, the link has %u peers at "
                             "most", w->id, w->max_peers);
    }
    if (w->features != IVSHMEM2_F_MSIX && w->features != IVSHMEM2_F_INTX) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "interrupt features 0x%x are not exactly one of "
                             "MSI-X and INTx", w->features);
    }
    if (w->vectors < 1 || w->vectors > (w->features == IVSHMEM2_F_INTX ?
                                        1 : IVSHMEM2_MAX_VECTORS)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "%u vectors are not possible", w->vectors);
    }
    if (page < IVSHMEM2_MIN_PAGE_SIZE || page > IVSHMEM2_MAX_PAGE_SIZE ||
        page & (page - 1)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "page size %u is not possible", w->page_size);
    }
    if (w->state_table_size % page || w->rw_size % page ||
        w->output_size % page) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "section sizes are not multiples of the link's "
                             "page size %u", w->page_size);
    }
    if (w->state_table_size < n * sizeof(uint32_t)) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "a State Table of %u bytes is too small for %u "
                             "peers", w->state_table_size, w->max_peers);
    }
    if (w->output_size && n > IVSHMEM2_MAX_OUTPUTS) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "output sections for %u peers, %u are possible",
                             w->max_peers, IVSHMEM2_MAX_OUTPUTS);
    }
    if (w->rw_size > IVSHMEM2_MAX_SIZE ||
        w->output_size > IVSHMEM2_MAX_SIZE / n ||
        ivshmem2_total_size(w) > IVSHMEM2_MAX_SIZE) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_PROTOCOL,
                             "the sections are larger than %llu bytes "
                             "together",
                             (unsigned long long)IVSHMEM2_MAX_SIZE);
    }
    return true;
}

/* Everything but whose session it is, and the version spoken */
bool ivshmem2_welcome_check_shape(const Ivshmem2Welcome *w,
                                  const Ivshmem2Welcome *wanted,
                                  GError **error)
{
    const struct {
        const char *what;
        uint64_t is;
        uint64_t wanted;
    } values[] = {
        { "ID", w->id, wanted->id },
        { "maximum of peers", w->max_peers, wanted->max_peers },
        { "interrupt features", w->features, wanted->features },
        { "number of vectors", w->vectors, wanted->vectors },
        { "protocol type", w->protocol, wanted->protocol },
        { "page size", w->page_size, wanted->page_size },
        { "size of the State Table", w->state_table_size,
          wanted->state_table_size },
        { "size of the R/W section", w->rw_size, wanted->rw_size },
        { "size of output sections", w->output_size, wanted->output_size },
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(values); i++) {
        if (values[i].is != values[i].wanted) {
            return ivshmem2_fail(error, IVSHMEM2_ERROR_SESSION,
                                 "the new link differs from the old one: its "
                                 "%s is %llu instead of %llu", values[i].what,
                                 (unsigned long long)values[i].is,
                                 (unsigned long long)values[i].wanted);
        }
    }
    return true;
}

uint64_t ivshmem2_rw_offset(const Ivshmem2Welcome *w)
{
    return w->state_table_size;
}

uint64_t ivshmem2_output_offset(const Ivshmem2Welcome *w, uint32_t id)
{
    return w->state_table_size + w->rw_size + w->output_size * id;
}

uint64_t ivshmem2_total_size(const Ivshmem2Welcome *w)
{
    return ivshmem2_output_offset(w, w->max_peers);
}
