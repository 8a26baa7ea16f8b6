/*
 * libivshmem2: how a program in a Linux guest maps the memory of the device
 *
 * VFIO maps memory uncached.  Two other ways give a better type, where the
 * kernel lets the program use them.  Memory at a fixed address, which is in no
 * BAR, can be mapped by /dev/mem only.
 *
 * SPDX-License-Identifier: BSD-2-Clause
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "hw/misc/ivshmem2-regs.h"
#include "libivshmem2-core.h"
#include "libivshmem2-peer.h"
#include "libivshmem2-util.h"

/* What x86 kernels map, and with which type */
#define KERNEL_LIST     "/sys/kernel/debug/x86/pat_memtype_list"

static const char *const names[] = {
    [IVSHMEM2_MEMORY_BEST] = "best",
    [IVSHMEM2_MEMORY_WRITE_BACK] = "write-back",
    [IVSHMEM2_MEMORY_WRITE_COMBINING] = "write-combining",
    [IVSHMEM2_MEMORY_UNCACHED] = "uncached",
};

const char *ivshmem2_memory_type_name(Ivshmem2MemoryType type)
{
    return (unsigned)type < G_N_ELEMENTS(names) ? names[type] : NULL;
}

/* A way to map the memory; the others are tried if it does not give @type. */
typedef struct Way {
    Ivshmem2MemoryType type;
    const char *file;
    bool needs_list;            /* the kernel may give less, and not say so */
} Way;

static const Way ways[] = {
    { IVSHMEM2_MEMORY_WRITE_BACK, "/dev/mem", true },
    { IVSHMEM2_MEMORY_WRITE_COMBINING, "resource2_wc", false },
};

/* The physical address of BAR 2 */
static bool find_address(const char *folder, uint64_t *address, GError **error)
{
    g_autofree char *path = g_build_filename(folder, "resource", NULL);
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    if (!g_file_get_contents(path, &text, NULL, error)) {
        return false;
    }
    lines = g_strsplit(text, "\n", IVSHMEM2_BAR_MEMORY + 2);
    if (g_strv_length(lines) <= IVSHMEM2_BAR_MEMORY ||
        sscanf(lines[IVSHMEM2_BAR_MEMORY], "%" SCNx64, address) != 1 ||
        !*address) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "%s has no address of BAR %u", path,
                             IVSHMEM2_BAR_MEMORY);
    }
    return true;
}

/* In the kernel's words, the type in which @address is mapped, or NULL */
static char *kernel_type(uint64_t address, GError **error)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    if (!g_file_get_contents(KERNEL_LIST, &text, NULL, error)) {
        return NULL;
    }
    lines = g_strsplit(text, "\n", -1);
    for (char **line = lines; *line; line++) {
        uint64_t from, to;
        char type[32];

        if (sscanf(*line, "PAT: [mem 0x%" SCNx64 "-0x%" SCNx64 "] %31s",
                   &from, &to, type) == 3 && address >= from &&
            address < to) {
            return g_strdup(type);
        }
    }
    ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "%s does not have 0x%" PRIx64,
                  KERNEL_LIST, address);
    return NULL;
}

static void *map_file(const char *path, uint64_t offset, size_t size,
                      GError **error)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    void *map;

    if (fd < 0) {
        ivshmem2_fail_errno(error, "cannot open %s", path);
        return NULL;
    }
    map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    if (map == MAP_FAILED) {
        ivshmem2_fail_errno(error, "cannot map %s", path);
        map = NULL;
    }
    ivshmem2_close(&fd);
    return map;
}

/* Has the kernel mapped @address as @way promises? */
static bool check_type(const Way *way, uint64_t address, GError **error)
{
    g_autoptr(GError) reason = NULL;
    g_autofree char *type = kernel_type(address, &reason);

    if (!type && way->needs_list) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                             "cannot tell what %s gives: %s", way->file,
                             reason->message);
    }
    if (type && strcmp(type, names[way->type])) {
        return ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "%s gives %s",
                             way->file, type);
    }
    return true;
}

static void *try_way(const Way *way, const char *folder, size_t size,
                     GError **error)
{
    bool absolute = g_path_is_absolute(way->file);
    g_autofree char *path = absolute ? g_strdup(way->file) :
                            g_build_filename(folder, way->file, NULL);
    uint64_t address;
    void *map;

    /* where it would be of no use, nothing is mapped */
    if (way->needs_list && !g_file_test(KERNEL_LIST, G_FILE_TEST_EXISTS)) {
        ivshmem2_fail(error, IVSHMEM2_ERROR_IO,
                      "cannot tell what %s gives, without %s", way->file,
                      KERNEL_LIST);
        return NULL;
    }
    if (!find_address(folder, &address, error)) {
        return NULL;
    }
    map = map_file(path, absolute ? address : 0, size, error);
    if (map && !check_type(way, address, error)) {
        munmap(map, size);
        map = NULL;
    }
    return map;
}

void *ivshmem2_map_device(const char *folder, size_t size,
                          Ivshmem2MemoryType *type, char **note)
{
    g_autoptr(GString) text = g_string_new(NULL);
    Ivshmem2MemoryType wanted = *type;
    void *map = NULL;

    for (size_t i = 0; !map && i < G_N_ELEMENTS(ways); i++) {
        g_autoptr(GError) reason = NULL;

        if (wanted != IVSHMEM2_MEMORY_BEST && wanted != ways[i].type) {
            continue;
        }
        map = try_way(&ways[i], folder, size, &reason);
        if (map) {
            *type = ways[i].type;
        } else {
            g_string_append_printf(text, "%snot %s: %s", text->len ? "; " : "",
                                   names[ways[i].type], reason->message);
        }
    }
    *note = g_string_free(g_steal_pointer(&text), FALSE);
    return map;
}

void *ivshmem2_map_fixed(uint64_t address, size_t size,
                         Ivshmem2MemoryType *type, char **note, GError **error)
{
    g_autoptr(GError) reason = NULL;
    g_autofree char *text = NULL;
    Ivshmem2MemoryType wanted = *type;
    void *map = map_file("/dev/mem", address, size, error);

    if (!map) {
        g_prefix_error(error, "memory is at the fixed address 0x%" PRIx64
                       ", and a program ", address);
        return NULL;
    }
    text = kernel_type(address, &reason);
    *type = g_strcmp0(text, names[IVSHMEM2_MEMORY_WRITE_BACK]) == 0 ?
            IVSHMEM2_MEMORY_WRITE_BACK : IVSHMEM2_MEMORY_UNCACHED;
    if (wanted != IVSHMEM2_MEMORY_BEST && wanted != *type) {
        munmap(map, size);
        ivshmem2_fail(error, IVSHMEM2_ERROR_IO, "memory is not %s: it is at "
                      "the fixed address 0x%" PRIx64 ", where /dev/mem gives "
                      "%s", names[wanted], address,
                      text ? text : "what cannot be told");
        return NULL;
    }
    *note = *type == IVSHMEM2_MEMORY_WRITE_BACK ? NULL :
            text ? g_strdup_printf("/dev/mem gives %s", text) :
            g_strdup_printf("cannot tell what /dev/mem gives: %s",
                            reason->message);
    return map;
}
