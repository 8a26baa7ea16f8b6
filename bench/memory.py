#!/usr/bin/python3
"""Measures how fast memcpy() writes and reads a section, beside the host's own.

- The bare-metal guest under KVM, with the memory types that a guest's page
  tables can ask for: it shows what this host's KVM and processor make of them.
- A program in a Linux guest, by each way of mapping the memory. Linux guests
  run under TCG, where types have no effect on the times, so what counts there
  is the type that the kernel gave.

Host and guest take turns; ratios are medians of ratios within a round.

Usage: bench/memory.py [--rounds N]

SPDX-License-Identifier: GPL-2.0-or-later
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / 'guest'))

# pylint: disable=wrong-import-position
from bare_vm import MEMORY, BareGuest, Peer  # noqa: E402
from vm import Failure, Lab, enter_environment, no_kvm  # noqa: E402

LINK = 'memory'
SIZE = 1 << 20                  # copied: fits the caches of most processors
PAGE = 4096                     # the R/W section's offset in BAR 2
COPIES = 300                    # by the bare-metal guest in a round
BUFFER = 16 << 20               # memory of that guest that nothing uses
MSR_PAT = 0x277
MSR_MTRR_DEFAULT, MSR_MTRR_FIRST = 0x2ff, 0x200
MTRRS = 8
MTRR_ON, MTRR_VALID, UNCACHED, WRITE_BACK = 0x800, 0x800, 0, 6
# Linux's PAT, so that the entries are what its page tables ask for
PAT = 0x0007040600070106
TYPES = {'write-back': 0, 'write-combining': 1, 'uncached': 3}
WAYS = 'mem', 'resource2_wc', 'resource2', 'vfio'
FILES = {'mem': '/dev/mem'}


def host(lab):
    """Returns GB/s of a program on the host."""
    text = subprocess.run([lab.env.bench / 'ivshmem2-memory', lab.socket(LINK),
                           str(SIZE), 'socket'], check=True, text=True,
                          capture_output=True).stdout
    return json.loads(text)


class Copier:
    """A bare-metal guest that copies"""

    def __init__(self, lab, accel='kvm'):
        self.guest = BareGuest(
            lab, 'copier', accel,
            '-chardev', f'socket,id=c,path={lab.socket(LINK)}',
            '-device', 'ivshmem2,id=dev4,addr=4,chardev=c')
        self.guest.wait_ready()
        self.peer = Peer(self.guest, 4, 0, 1)
        self.peer.run(self.peer.bus_master())
        self.ghz = self.calibrate()
        self.clear_mtrrs()
        # the first accesses let KVM and the host set up their page tables
        self.measure('write-back')

    def calibrate(self):
        """Ticks of the guest's clock in a nanosecond"""
        begin, before = self.guest.run('clock')[0], time.monotonic_ns()
        time.sleep(0.3)
        end, after = self.guest.run('clock')[0], time.monotonic_ns()
        return (end - begin) / (after - before)

    def clear_mtrrs(self):
        """Leaves the type to the page tables: the firmware says that PCI
        windows are uncached, which outweighs a write-back mapping."""
        self.peer.run(f'wrmsr {MSR_PAT:x} {PAT:x}')
        for i in range(MTRRS):
            self.peer.run(f'wrmsr {MSR_MTRR_FIRST + 2 * i + 1:x} 0')
        self.peer.run(f'wrmsr {MSR_MTRR_DEFAULT:x} {MTRR_ON | WRITE_BACK:x}')

    def set_type(self, name):
        """Maps with this type, and checks that the processor agrees."""
        self.peer.run(f'cache {TYPES[name]:x}')
        default, pat = (self.peer.value(f'rdmsr {msr:x}')
                        for msr in (MSR_MTRR_DEFAULT, MSR_PAT))
        masks = [self.peer.value(f'rdmsr {MSR_MTRR_FIRST + 2 * i + 1:x}')
                 for i in range(MTRRS)]
        if (default & 0xff != WRITE_BACK or pat != PAT or
                any(mask & MTRR_VALID for mask in masks)):
            raise Failure(f'memory types: default {default:#x}, PAT {pat:#x}, '
                          f'masks {masks}')

    def copy(self, source, target):
        """Returns GB/s from one (space, offset) to another."""
        self.peer.run('stamp', f'move {source[0]:x} {source[1]:x} '
                      f'{target[0]:x} {target[1]:x} {SIZE:x}', repeat=COPIES)
        _, median, *_ = self.peer.run('times')
        return SIZE / (median / self.ghz)

    def measure(self, name):
        self.set_type(name)
        section, own = (2, PAGE), (MEMORY, BUFFER)
        return {'write': self.copy(own, section),
                'read': self.copy(section, own)}


def bare(lab, rounds):
    """Returns name -> list of results: the host's and the guest's, by type."""
    copier = Copier(lab)
    results = {name: [] for name in ('host', *TYPES)}
    for _ in range(rounds):
        for name, values in results.items():
            values.append(host(lab) if name == 'host'
                          else copier.measure(name))
    copier.guest.kill()
    return results


def linux(lab, rounds):
    """Returns way -> list of results of a program in a Linux guest. Its
    firmware puts BAR 2 above 4 GiB, where the MTRRs say write-back."""
    guest = lab.guest('linux', (LINK, 'any'), memory='3G').wait_ready()
    results = {name: [] for name in ('host', *WAYS)}
    for _ in range(rounds):
        for name, values in results.items():
            values.append(host(lab) if name == 'host' else json.loads(
                guest.run(f'ivshmem2-memory {guest.addresses[0]} {SIZE} '
                          f'{name}')))
    guest.kill()
    return results


def measure(lab, rounds):
    lab.server('--max-peers', 4, '--rw-size', SIZE, name=LINK)
    return {'bare-metal guest, KVM': bare(lab, rounds),
            'Linux guest, TCG': linux(lab, min(rounds, 3))}


def lines_of(results):
    for name, rounds in results.items():
        row = f'  {FILES.get(name, name):16}'
        types = {t for r in rounds for t in r.get('types', [])}
        for key in 'write', 'read':
            values = [r[key] for r in rounds]
            ratio = statistics.median(
                v / h[key] for v, h in zip(values, results['host']))
            row += f'{statistics.median(values):9.2f}{ratio:8.2f}'
        yield row + ''.join(f'  {t}' for t in sorted(types))


def table(measured):
    lines = [f"{'memcpy, GB/s':18}{'write':>9}{'to host':>8}{'read':>9}"
             f"{'to host':>8}  type in the kernel's list"]
    for name, results in measured.items():
        lines += [name, *lines_of(results)]
    return '\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n', 1)[0])
    parser.add_argument('--rounds', type=int, default=7)
    args = parser.parse_args()
    enter_environment()
    if no_kvm():
        raise Failure(f'{no_kvm()} (there is nothing to compare without it)')
    with Lab() as lab:
        print(table(measure(lab, args.rounds)))
    return 0


if __name__ == '__main__':
    try:
        sys.exit(main())
    except Failure as problem:
        sys.exit(f'bench/memory.py: {problem}')
