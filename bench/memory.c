/*
 * Maps the shared memory in one way after the other, says which type the
 * kernel gave each of them, and measures how fast memcpy() is
 *
 * Usage: ivshmem2-memory ADDRESS|SOCKET SIZE WAY...
 *
 * Copies SIZE bytes of the R/W section, at least once; SIZE 0 only maps.  Keeps
 * all mappings until the end.  Prints a line of JSON for each way:
 *
 *   socket       on the host
 *   best, vfio   in a guest, by the library; vfio is its last resort
 *   resource2, resource2_wc
 *                a file of the device in sysfs
 *   mem, mem-sync
 *                /dev/mem without and with O_SYNC
 *   hold         no way: wait until standard input ends
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bench.h"
#include "libivshmem2.h"

#define LIST        "/sys/kernel/debug/x86/pat_memtype_list"
#define ROUNDS      15
#define RW_OFFSET   4096        /* in BAR 2, with a State Table of a page */

/* BAR 2 of a guest's device */
typedef struct Bar {
    char *folder;
    uint64_t address;
    uint64_t size;
} Bar;

static bool find_bar(Bar *bar, const char *device)
{
    g_autofree char *path = NULL;
    g_autofree char *text = NULL;
    uint64_t last;

    bar->folder = g_build_filename("/sys/bus/pci/devices", device, NULL);
    path = g_build_filename(bar->folder, "resource", NULL);
    if (!g_file_get_contents(path, &text, NULL, NULL) ||
        sscanf(text, "%*[^\n] %*[^\n] %" SCNx64 " %" SCNx64, &bar->address,
               &last) != 2) {
        return false;
    }
    bar->size = last - bar->address + 1;
    return true;
}

/* The types in which the kernel's list has the BAR; it should be only one. */
static void print_types(const Bar *bar)
{
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;
    const char *comma = "";

    if (!bar->folder || !g_file_get_contents(LIST, &text, NULL, NULL)) {
        return;
    }
    lines = g_strsplit(text, "\n", -1);
    g_print(", \"types\": [");
    for (char **line = lines; *line; line++) {
        uint64_t from, to;
        char type[32];

        if (sscanf(*line, "PAT: [mem 0x%" SCNx64 "-0x%" SCNx64 "] %31s", &from,
                   &to, type) == 3 && bar->address >= from &&
            bar->address < to) {
            g_print("%s\"%s\"", comma, type);
            comma = ", ";
        }
    }
    g_print("]");
}

static void *map_file(const Bar *bar, const char *way)
{
    bool mem = g_str_has_prefix(way, "mem");
    g_autofree char *path = mem ? g_strdup("/dev/mem")
                                : g_build_filename(bar->folder, way, NULL);
    int fd = open(path, O_RDWR | (strcmp(way, "mem-sync") ? 0 : O_SYNC));
    char *map = fd < 0 ? MAP_FAILED :
                mmap(NULL, bar->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
                     mem ? bar->address : 0);

    if (map == MAP_FAILED) {
        g_print(", \"error\": \"%s\"", g_strerror(errno));
        return NULL;
    }
    return map + RW_OFFSET;
}

/* The peer is left to the end of the process, like all mappings. */
static void *join(const char *where, const char *way)
{
    GError *error = NULL;
    Ivshmem2Peer *peer;

    if (!strcmp(way, "socket")) {
        peer = ivshmem2_peer_open_socket(where, NULL, &error);
    } else {
        peer = ivshmem2_peer_open_pci_mapped(where, strcmp(way, "vfio") ?
                                             IVSHMEM2_MEMORY_BEST :
                                             IVSHMEM2_MEMORY_UNCACHED, &error);
    }
    if (!peer) {
        fprintf(stderr, "ivshmem2-memory: %s\n", error->message);
        exit(1);
    }
    g_print(", \"library\": \"%s\"", ivshmem2_memory_type_name(
                ivshmem2_peer_info(peer)->memory_type));
    return ivshmem2_peer_rw(peer);
}

/* Print the median in GB/s. */
static void measure(const char *name, void *to, const void *from, size_t size)
{
    g_autoptr(GArray) times = g_array_new(false, false, sizeof(double));

    for (int i = 0; i < ROUNDS; i++) {
        double before = bench_clock(CLOCK_MONOTONIC), time;

        memcpy(to, from, size);
        /* do not leave out or delay what nobody reads */
        __asm__ volatile("" : : : "memory");
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
        time = bench_clock(CLOCK_MONOTONIC) - before;
        g_array_append_val(times, time);
    }
    qsort(times->data, times->len, sizeof(double), bench_compare);
    g_print(", \"%s\": %.4f", name, size / bench_rank(times, 50) / 1000);
}

int main(int argc, char **argv)
{
    Bar bar = { 0 };
    g_autofree char *copy = NULL;
    size_t size;

    if (argc < 4) {
        fprintf(stderr, "usage: ivshmem2-memory ADDRESS|SOCKET SIZE WAY...\n");
        return 2;
    }
    size = g_ascii_strtoull(argv[2], NULL, 0);
    copy = g_malloc(size + 1);
    memset(copy, 1, size);
    if (strcmp(argv[3], "socket") && !find_bar(&bar, argv[1])) {
        fprintf(stderr, "ivshmem2-memory: no BAR 2 at %s\n", argv[1]);
        return 1;
    }
    for (int i = 3; i < argc; i++) {
        const char *way = argv[i];
        bool library = !strcmp(way, "socket") || !strcmp(way, "best") ||
                       !strcmp(way, "vfio");
        void *memory;

        if (!strcmp(way, "hold")) {
            getchar();
            continue;
        }
        g_print("{\"way\": \"%s\"", way);
        memory = library ? join(argv[1], way) : map_file(&bar, way);
        if (memory) {
            /* VFIO maps a page when it is first accessed */
            *(volatile char *)memory;
            print_types(&bar);
        }
        if (memory && size) {
            measure("write", memory, copy, size);
            measure("read", copy, memory, size);
        }
        g_print("}\n");
    }
    g_free(bar.folder);
    return 0;
}
