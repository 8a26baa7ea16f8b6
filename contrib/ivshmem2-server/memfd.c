/*
 * Memory files
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "libivshmem2-core.h"
#include "libivshmem2-util.h"
#include "memfd.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MFD_HUGE_SHIFT
#define MFD_HUGE_SHIFT 26
#endif

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static int create(unsigned flags)
{
    /*
     * Systems can forbid memory files without MFD_NOEXEC_SEAL, which Linux
     * before 6.3 does not know.
     */
    int fd = memfd_create("ivshmem2", flags | MFD_CLOEXEC | MFD_NOEXEC_SEAL);

    if (fd < 0 && errno == EINVAL) {
        fd = memfd_create("ivshmem2", flags | MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    return fd;
}

static unsigned huge_flags(uint64_t page)
{
    return MFD_HUGETLB |
           (page ? (unsigned)__builtin_ctzll(page) << MFD_HUGE_SHIFT : 0);
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

static bool set_up(int fd, uint64_t size, mode_t mode, uint64_t huge_page_size,
                   const char *what, GError **error)
{
    if (ftruncate(fd, size) < 0) {
        return ivshmem2_fail_errno(error, "cannot make a %s of %" PRIu64
                                   " bytes", what, size);
    }
    /* If it had no pages yet, the first access could end in a SIGBUS. */
    if (huge_page_size && fallocate(fd, 0, 0, size) < 0) {
        return no_huge_pages(size, huge_page_size, error);
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

int ivshmem2_memfd_new(uint64_t size, mode_t mode, uint64_t huge_page_size,
                       const char *what, GError **error)
{
    int fd = create(huge_page_size ? huge_flags(huge_page_size) : 0);

    if (fd < 0) {
        ivshmem2_fail_errno(error, "cannot create the %s", what);
        return -1;
    }
    if (!set_up(fd, size, mode, huge_page_size, what, error)) {
        ivshmem2_close(&fd);
    }
    return fd;
}

int ivshmem2_memfd_reopen(int fd, const char *what, GError **error)
{
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    int read_fd = open(path, O_RDONLY | O_CLOEXEC);

    if (read_fd < 0) {
        ivshmem2_fail_errno(error, "cannot open an %s read-only%s", what,
                            errno != EACCES ? "" : " (it belongs to the user "
                            "of the server that made it, and only a server of "
                            "the same user can continue)");
    }
    return read_fd;
}

bool ivshmem2_memfd_huge_page_size(uint64_t *size, GError **error)
{
    struct stat st;
    int fd = create(huge_flags(*size));

    if (fd < 0) {
        return ivshmem2_fail_errno(error, "the system has no huge pages of "
                                   "%s (see /sys/kernel/mm/hugepages)",
                                   *size ? "this size" : "the default size");
    }
    if (fstat(fd, &st) == 0) {
        *size = st.st_blksize;
    }
    ivshmem2_close(&fd);
    return true;
}
