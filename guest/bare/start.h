/*
 * The interface between the privileged part of the bare-metal test guest and
 * the rest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef START_H
#define START_H

#include <stdint.h>

#define WATCH_WORDS     16

/* Memory that the handler of an interrupt copies; start.S knows the layout */
typedef struct Watch {
    uint32_t *source;
    uint64_t count;
    uint32_t words[WATCH_WORDS];
} Watch;

_Static_assert(sizeof(Watch) == 80, "WATCH_SIZE of start.S");

/* defined in start.S */
extern uint64_t gdt[];
extern uint64_t page_directories[];
extern char stubs[];
extern char watch_stubs[];
extern char trampoline[];
extern char kernel_stack[];

/* used by start.S */
extern uint64_t interrupts[256];
extern Watch watches[256];
extern uint64_t idt[256][2];
void setup_tables(void);
void fatal(uint64_t vector, const uint64_t *stack);
int main(void);
void second_main(void);

#endif /* START_H */
