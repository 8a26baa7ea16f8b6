/*
 * Fuzzing ivshmem2 with LLVM's libFuzzer
 *
 * ivshmem2-fuzz --fuzz-target=TARGET [OPTION | FOLDER | INPUT]...
 *
 * As with QEMU's fuzzers, libFuzzer ignores the first option and passes it on
 * to the processes that it starts.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"

static const FuzzTarget *target;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    const char option[] = "--fuzz-target=";

    for (int i = 1; i < *argc; i++) {
        if (g_str_has_prefix((*argv)[i], option)) {
            target = fuzz_find_target((*argv)[i] + strlen(option));
        }
    }
    if (!target) {
        g_printerr("usage: %s %sTARGET ..., TARGET is one of\n", (*argv)[0],
                   option);
        for (target = fuzz_targets; target->name; target++) {
            g_printerr("    %s\n", target->name);
        }
        exit(1);
    }
    fuzz_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_run(target, data, size);
    return 0;
}
