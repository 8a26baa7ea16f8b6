/*
 * Fuzzing ivshmem2 with LLVM's libFuzzer
 *
 * ivshmem2-fuzz TARGET [OPTION | FOLDER | INPUT]...
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "ivshmem2-fuzz.h"

static const FuzzTarget *target;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char **args = *argv;

    target = *argc > 1 ? fuzz_find_target(args[1]) : NULL;
    if (!target) {
        g_printerr("usage: %s TARGET ..., TARGET is one of\n", args[0]);
        for (target = fuzz_targets; target->name; target++) {
            g_printerr("    %s\n", target->name);
        }
        exit(1);
    }
    args[1] = args[0];
    (*argv)++;
    (*argc)--;
    fuzz_init();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    fuzz_run(target, data, size);
    return 0;
}
