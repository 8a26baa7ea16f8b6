/*
 * What the bare-metal test guest runs on: interrupts and the serial line
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "machine.h"

#define COM1            0x3f8
#define COM1_IRQ        4
#define COM1_VECTOR     0x20
#define SPURIOUS_VECTOR 0xff
#define APIC            0xfee00000ul
#define IOAPIC          0xfec00000ul

typedef struct __attribute__((packed)) TaskState {
    uint32_t reserved;
    uint64_t rsp0;
    uint8_t unused[92];
} TaskState;

uint64_t interrupts[256];               /* counted by start.S */
Watch watches[256];                     /* copied by start.S */
uint64_t idt[256][2];
static TaskState tss;

static uint64_t serial_seen;

/*
 * Interrupts
 */

void set_handler(int vector, char *table)
{
    uint64_t entry = (uint64_t)table + 16 * vector;

    /* 64-bit interrupt gate */
    STORE(&idt[vector][0], (entry & 0xffff) | 8 << 16 | 0x8eull << 40 |
                           (entry & 0xffff0000) << 32);
}

void setup_tables(void)
{
    uint64_t base = (uint64_t)&tss;

    for (int i = 0; i < 256; i++) {
        set_handler(i, stubs);
    }
    tss.rsp0 = (uint64_t)kernel_stack;
    gdt[5] = (sizeof(tss) - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 |
             (base & 0xff000000) << 32;
}

void apic_write(uint32_t offset, uint32_t value)
{
    STORE((uint32_t *)(APIC + offset), value);
}

static void ioapic_write(uint32_t index, uint32_t value)
{
    STORE((uint32_t *)IOAPIC, index);
    STORE((uint32_t *)(IOAPIC + 0x10), value);
}

void setup_interrupts(void)
{
    /* the local APIC, which also gets logical ID 1 */
    apic_write(0xe0, 0xffffffff);
    apic_write(0xd0, 1 << 24);
    apic_write(0x80, 0);
    apic_write(0xf0, 0x100 | SPURIOUS_VECTOR);
    /* the serial port: no FIFO, an interrupt for each character */
    ioapic_write(0x11 + 2 * COM1_IRQ, 0);
    ioapic_write(0x10 + 2 * COM1_IRQ, COM1_VECTOR);
    out(COM1 + 2, 1, 0);
    out(COM1 + 3, 1, 0x03);
    out(COM1 + 4, 1, 0x0b);
    out(COM1 + 1, 1, 0x01);
}

/*
 * Serial line
 */

void put_char(char c)
{
    while (!(in(COM1 + 5, 1) & 0x20)) {
        /* QEMU's serial port is ready unless its chardev is not read */
    }
    out(COM1, 1, c);
}

void put_text(const char *text)
{
    while (*text) {
        put_char(*text++);
    }
}

static bool char_waits(void)
{
    return in(COM1 + 5, 1) & 0x01;
}

void get_line(char *line, size_t size)
{
    size_t len = 0;
    char c;

    do {
        serial_seen = LOAD(&interrupts[COM1_VECTOR]);
        while (!char_waits()) {
            halt_unless(&interrupts[COM1_VECTOR], serial_seen,
                        &interrupts[COM1_VECTOR], serial_seen);
            serial_seen = LOAD(&interrupts[COM1_VECTOR]);
        }
        c = in(COM1, 1);
        if (len < size - 1 && c != '\n') {
            line[len++] = c;
        }
    } while (c != '\n');
    line[len] = '\0';
}

bool line_waits(void)
{
    uint64_t now = LOAD(&interrupts[COM1_VECTOR]);

    if (now == serial_seen) {
        return false;
    }
    if (char_waits()) {
        return true;
    }
    serial_seen = now;
    return false;
}

void wait_for_interrupt(unsigned vector, uint64_t was)
{
    halt_unless(&interrupts[vector], was,
                &interrupts[COM1_VECTOR], serial_seen);
}
