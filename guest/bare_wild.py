"""A bare-metal guest that keeps no rules, and its machine.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import random

from bare_tests import FIRST_SLOT, VECTORS
from bare_vm import (
    BARS, CAP_MSIX, CAP_VENDOR, COMMAND, COMMAND_MASTER, COMMAND_MEMORY,
    CONFIG, DOORBELL, INT_CONTROL, IO, MEMORY, MSIX_ENABLE, MSIX_MASK,
    MSI_PHYSICAL, PRIV_CONTROL, BareGuest, read, write)

UNUSED_RAM = 24 << 20           # in a bare guest

# Of the Intel IOMMU: Global Command, Set Interrupt Remap Table Pointer
IOMMU_COMMAND = 0xfed90018
SET_ROOT = 1 << 24

WILD_ROUNDS, WILD_LINES = 3, 20


def odd_guest(s, name, *devices):
    """A machine whose KVM refuses some messages"""
    return BareGuest(
        s.lab, name, s.accel, '-machine', 'q35,kernel-irqchip=split',
        '-device', 'intel-iommu,intremap=on', *devices).wait_ready()


class Wild:
    """A guest that keeps no rules, except that it lets its own program
    live: no message and no BAR goes to memory that the program uses, and no
    message tells the processor more than an interrupt."""

    SLOTS = FIRST_SLOT, FIRST_SLOT + 1
    COMMANDS = 0, COMMAND_MEMORY, COMMAND_MASTER, 6, 6, 6

    def __init__(self, guest, peers, seed):
        self.guest = guest
        self.peers = peers
        self.random = random.Random(seed)
        self.bars = [[peer.value(read(CONFIG, BARS + 4 * bar)) & ~15
                      for bar in range(3)] for peer in peers]

    def config(self, peer, offset, value, size):
        return (write(IO, 0xcf8, 1 << 31 | peer.slot << 11 | offset & 0xfc),
                write(IO, 0xcfc + offset % 4, value, size))

    def place(self):
        """Where registers, tables, memory or nothing is"""
        r = self.random
        return r.choice((
            r.choice(r.choice(self.bars)), r.choice(r.choice(self.bars)),
            UNUSED_RAM + r.randrange(4 << 20) // 4096 * 4096,
            0, 0xffffffff, 0xe0000000))

    def message(self):
        """Address, upper half, data; as a message may also write the data
        of another one, or its address, that is never one of RAM"""
        r = self.random
        data = r.randrange(0x8000, 0x10000) << 16 | r.randrange(2) << 8 | \
            r.randrange(0x30, 0xf0)
        high = r.choice((0, 0, 1, 1 << r.randrange(32), 0xffffffff))
        offset = r.choice((0, 4, 8, 12, 16, r.randrange(64)))
        return r.choice((
            (MSI_PHYSICAL | r.choice((0, 1, 8, 12, 16)), high, data),
            (MSI_PHYSICAL, 0, data), (MSI_PHYSICAL, 0, data),
            (self.place() | offset, high, data)))

    def action(self):
        r = self.random
        peer, other = r.choice(self.peers), r.choice(self.peers)
        regs, table, _ = self.bars[self.peers.index(peer)]
        entry = table + 16 * r.randrange(VECTORS)
        kind = r.randrange(10)
        if kind < 2:
            address, high, data = self.message()
            return (write(MEMORY, entry, address),
                    write(MEMORY, entry + 4, high),
                    write(MEMORY, entry + 8, data),
                    write(MEMORY, entry + 12, r.randrange(4) == 0))
        if kind == 2:
            return (write(MEMORY, entry + r.choice((0, 4)),
                          r.choice((0, 1, MSI_PHYSICAL))),)
        if kind == 3:
            return (write(MEMORY, entry + 12, r.randrange(2)),)
        if kind < 6:
            return (write(MEMORY, regs + DOORBELL, other.id << 16 |
                          r.randrange(VECTORS + 1)),)
        if kind == 6:
            # a message's data, if the MSI-X table is there now
            return (write(MEMORY, regs + INT_CONTROL,
                          0x80 | (r.randrange(4) > 0)),)
        if kind == 7:
            return self.config(peer, BARS + 4 * r.randrange(4),
                               self.place(), 4)
        if kind == 8:
            return r.choice((
                self.config(peer, COMMAND, r.choice(self.COMMANDS), 2),
                self.config(peer, peer.capabilities[CAP_VENDOR] +
                            PRIV_CONTROL, r.randrange(2), 1),
                self.config(peer, peer.capabilities[CAP_MSIX] + 2,
                            r.choice((0, MSIX_ENABLE, MSIX_ENABLE,
                                      MSIX_ENABLE | MSIX_MASK)), 2)))
        return (write(MEMORY, IOMMU_COMMAND, SET_ROOT),)

    def mend(self):
        """Steps that put the BARs back where they were"""
        for peer in self.peers:
            self.guest.run(*self.config(peer, COMMAND, 0, 2))
        for peer, bars in zip(self.peers, self.bars):
            self.guest.run(
                *(step for bar, address in enumerate((*bars, 0))
                  for step in self.config(peer, BARS + 4 * bar, address, 4)),
                *self.config(peer, COMMAND, COMMAND_MEMORY, 2))
            peer.run(peer.msix(0))
        self.guest.slot = None

    def act(self):
        steps = []
        while len(steps) < 20:
            steps += self.action()
        self.guest.run(*steps)
