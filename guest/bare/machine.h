/*
 * What the bare-metal test guest runs on: services of start.S, interrupts, and
 * the serial line
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MACHINE_H
#define MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "start.h"

/* For memory that an interrupt handler, a device or another machine changes */
#define LOAD(p)         __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define STORE(p, value) __atomic_store_n(p, value, __ATOMIC_RELEASE)

/* For apic_write() */
#define APIC_COMMAND    0x300
#define TO_OTHERS       0xc4000
#define INIT            0x500
#define STARTUP         0x600

/*
 * Services of start.S
 */

static inline void halt_unless(uint64_t *a, uint64_t a_was,
                               uint64_t *b, uint64_t b_was)
{
    asm volatile("ud2" : : "a" (0), "D" (a), "S" (a_was), "d" (b),
                 "c" (b_was) : "memory", "cc");
}

static inline uint32_t in(uint16_t port, unsigned size)
{
    uint32_t value = 1;

    asm volatile("ud2" : "+a" (value) : "d" (port), "c" (size)
                 : "memory", "cc");
    return value;
}

static inline void out(uint16_t port, unsigned size, uint32_t value)
{
    unsigned number = 2;

    asm volatile("ud2" : "+a" (number) : "d" (port), "c" (size), "D" (value)
                 : "memory", "cc");
}

static inline uint64_t read_msr(uint32_t number)
{
    uint64_t low = 3, high;

    asm volatile("ud2" : "+a" (low), "=d" (high) : "c" (number)
                 : "memory", "cc");
    return high << 32 | (uint32_t)low;
}

static inline void write_msr(uint32_t number, uint64_t value)
{
    unsigned service = 4;

    asm volatile("ud2" : "+a" (service) : "c" (number), "D" (value)
                 : "rdx", "memory", "cc");
}

static inline void flush_page_tables(void)
{
    unsigned service = 5;

    asm volatile("ud2" : "+a" (service) : : "memory", "cc");
}

/* The handler of a vector is its 16 bytes of code in this table. */
void set_handler(int vector, char *table);

void apic_write(uint32_t offset, uint32_t value);

/* Until then, there are none. */
void setup_interrupts(void);

void put_char(char c);
void put_text(const char *text);

/* Halt unless the vector's count is not @was any more, or a character came. */
void wait_for_interrupt(unsigned vector, uint64_t was);

/* Wait for a line; what does not fit in is lost. */
void get_line(char *line, size_t size);

/* Has the next line begun to arrive? Then the current program has to end. */
bool line_waits(void);

#endif /* MACHINE_H */
