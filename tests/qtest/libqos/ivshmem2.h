/*
 * libqos driver for ivshmem2
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_LIBQOS_IVSHMEM2_H
#define TESTS_LIBQOS_IVSHMEM2_H

#include "hw/misc/ivshmem2-regs.h"
#include "libqos-malloc.h"
#include "pci.h"
#include "qgraph.h"

/* Slot and ID of the graph's device; its chardev has the same ID. */
#define QIVSHMEM2_SLOT      4
#define QIVSHMEM2_ID        "ivshmem2"

typedef struct QIvshmem2 {
    QOSGraphObject obj;
    QPCIDevice dev;
    QTestState *qts;
    QGuestAllocator *alloc;
    uint8_t cap;                /* vendor-specific capability */
    uint8_t msix_cap;           /* 0: none */
    unsigned vectors;

    bool ports;                 /* the registers are I/O ports */
    bool fixed;                 /* the memory is no BAR */

    /* addresses of the BARs, or where they are instead */
    uint64_t regs;
    uint64_t msix;
    uint64_t memory;
    uint64_t memory_size;

    /* from the vendor-specific capability */
    uint64_t state_table_size;
    uint64_t rw_size;
    uint64_t output_size;

    /* MSIs are memory writes: a dword of guest RAM for each vector */
    uint64_t messages;
} QIvshmem2;

/* For devices that the graph did not create */
void qivshmem2_init(QIvshmem2 *d, QPCIBus *bus, int devfn,
                    QGuestAllocator *alloc);

/*
 * Map the BARs, turn on memory space, bus mastering and MSI-X with all
 * vectors unmasked.  Interrupt Control stays as it is.  To be called again
 * after a reset.
 */
void qivshmem2_start(QIvshmem2 *d);

void qivshmem2_set_command(QIvshmem2 *d, uint16_t bit, bool on);
void qivshmem2_set_msix_flag(QIvshmem2 *d, uint16_t flag, bool on);
void qivshmem2_mask(QIvshmem2 *d, unsigned vector, bool masked);
void qivshmem2_set_one_shot(QIvshmem2 *d, bool on);

/* What a BAR reads after ~0 was written */
uint32_t qivshmem2_bar_mask(QIvshmem2 *d, int bar);

uint32_t qivshmem2_readl(QIvshmem2 *d, uint32_t reg);
void qivshmem2_writel(QIvshmem2 *d, uint32_t reg, uint32_t value);
uint32_t qivshmem2_id(QIvshmem2 *d);
void qivshmem2_set_state(QIvshmem2 *d, uint32_t state);
void qivshmem2_ring(QIvshmem2 *d, uint32_t target, uint32_t vector);

/* Interrupt Control: turn the reception of interrupts on and off. */
void qivshmem2_enable(QIvshmem2 *d);
void qivshmem2_disable(QIvshmem2 *d);

/* Returns whether an interrupt has arrived since the last call. */
bool qivshmem2_arrived(QIvshmem2 *d, unsigned vector);

/* Wait for one to arrive. */
void qivshmem2_wait(QIvshmem2 *d, unsigned vector);

/* Ring, and wait for the interrupt: earlier ones have arrived as well. */
void qivshmem2_expect_ring(QIvshmem2 *from, QIvshmem2 *to, unsigned vector);

/* An entry of the State Table as this guest sees it */
uint32_t qivshmem2_entry(QIvshmem2 *d, uint32_t id);

/* Addresses of sections */
uint64_t qivshmem2_rw(QIvshmem2 *d);
uint64_t qivshmem2_output(QIvshmem2 *d, uint32_t id);

#endif /* TESTS_LIBQOS_IVSHMEM2_H */
