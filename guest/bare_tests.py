"""Tests with bare-metal guests: their machines, how they are run, and the
steps that more than one program needs.

They run under TCG and, where a small guest can use it, under KVM: then also
without ioeventfds, without irqfds, and with irqfds from the first interrupt
on. To show that an interrupt is not delivered, a test waits for a later one.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import fnmatch
import functools
import os
import sys
import time
import traceback
from pathlib import Path

from bare_vm import (
    BARS, CAP_MSIX, CONFIG, INT_CONTROL, IO, MSIX_ENABLE, MSIX_MASK, BareGuest,
    Peer, check, read, write)
from vm import COMMAND_TIMEOUT, Failure, Lab, enter_environment, no_kvm

MSIX, INTX = 'msix', 'intx'     # links
LARGE, SMALL = 'large', 'small'
PEERS, VECTORS = 32, 4
ALL, LARGE_TABLE = 65536, 0x40000
PAGE, SECTION = 4096, 65536
HOTPLUG_ID, REFUSED_ID, HOST_ID = 12, 13, 16
PROBE_TIMEOUT = 60

EXITS_PER_DOORBELL = 0.05
QUIET = 0.02                    # seconds

# The paths that interrupts can take: properties of the devices of two guests
PATHS = {'tcg': {'': ''},
         'kvm': {'': '', 'irqfd-at-once': 'x-irqfd-after=0,max-ioeventfds=2',
                 'no-ioeventfd': 'ioeventfd=off',
                 'no-irqfd': 'x-irqfd=off'}}
FIRST_SLOT, INTX_SLOT, HOTPLUG_SLOT, LARGE_SLOT = 4, 8, 9, 10


class Skip(Exception):
    """A test cannot be run here; the text is the reason."""


PAIR_TESTS = []         # with two devices, for each path
LAB_TESTS = []          # with all machines and links


def pair_test(function):
    PAIR_TESTS.append(function)
    return function


def lab_test(*accels):
    def register(function):
        LAB_TESTS.append((function, accels))
        return function
    return register


def same(actual, expected, what='this'):
    if actual != expected:
        raise Failure(f'{what} is {actual!r} instead of {expected!r}')


def nothing_left(peer):
    same(peer.run(*(peer.left(v) for v in range(peer.vectors))),
         [0] * peer.vectors, 'interrupts too many')


def output(peer, offset=0):
    return PAGE + SECTION + SECTION * peer.id + offset


def ready(*peers):
    for peer in peers:
        peer.setup()


def quiet(peer):
    """Waits until the device has looked at all doorbells that were rung.

    In one-shot mode under KVM, a thread of QEMU drops doorbells while
    reception is off, and the guest can enable it before the thread has come
    to the last ones."""
    before = None
    while True:
        now = [peer.property(f'interrupts-{what}')
               for what in ('received', 'dropped')]
        if now == before:
            return
        before = now
        time.sleep(QUIET)


def doorbells(a, b):
    ready(a, b)
    for x, y in (a, b), (b, a), (a, a):
        for vector in range(VECTORS):
            for _ in range(3):
                x.run(x.ring(y, vector))
                y.run(y.take(vector))
        nothing_left(a)
        nothing_left(b)


def pba_offset(peer):
    return peer.value(read(CONFIG, peer.capabilities[CAP_MSIX] + 8)) & ~7


def vector_mask(a, b):
    """Delivered once after unmasking, and not seen in the PBA"""
    ready(a, b)
    pba = pba_offset(a)
    for _ in range(3):
        a.run(a.mask(0))
        b.run(b.ring(a, 0), b.ring(a, 0), b.ring(a, 1))
        a.run(a.take(1))
        nothing_left(a)
        same(a.value(read(1, pba)), 0, 'PBA')
        a.run(a.mask(0, False), a.take(0))
        b.run(b.ring(a, 1))
        a.run(a.take(1))
        nothing_left(a)
    # interrupts that the mask holds back are dropped, too
    a.run(a.mask(0))
    b.run(b.ring(a, 0), b.ring(a, 1))
    a.run(a.take(1))
    a.run(a.enable(False), a.enable(), a.mask(0, False))
    b.run(b.ring(a, 1))
    a.run(a.take(1))
    nothing_left(a)


def ping_pong(a, b, rounds, *between, timeout=COMMAND_TIMEOUT):
    """Sequence numbers in the output sections; @between are functions of the
    ringing peer for steps before each doorbell. Returns when both have seen
    exactly one interrupt and the right number each time."""
    ready(a, b)
    more = {peer: [step(peer) for step in between] for peer in (a, b)}
    b.start(b.take(), check(2, output(a), '#'), *more[b],
            write(2, output(b), '#'), b.ring(a), repeat=rounds)
    a.run(write(2, output(a), '#'), *more[a], a.ring(b), a.take(),
          check(2, output(b), '#'), repeat=rounds, timeout=timeout)
    b.finish()
    nothing_left(a)
    nothing_left(b)


def ping_pongs(a, b):
    ping_pong(a, b, 2000)


def one_shot_transitions(a, b):
    """Changes between turning reception on and the one interrupt"""
    ready(a, b)
    a.run(a.one_shot())

    def one(vector, idt=None):
        b.run(b.ring(a, vector))
        taken(vector, idt)

    def taken(vector, idt=None):
        take = f'take {idt:x} 1' if idt else a.take(vector)
        same(a.run(take, read(0, INT_CONTROL)), [0], 'Interrupt Control')
        nothing_left(a)
        b.run(*(b.ring(a, v) for v in range(VECTORS)))      # dropped
        quiet(a)

    for off, on in ((a.bus_master(False), a.bus_master()),
                    (a.msix(0), a.msix()), (a.enable(False), a.enable())):
        a.run(a.enable(), off)
        b.run(*(b.ring(a, v) for v in range(VECTORS)))
        quiet(a)
        a.run(on)
        one(3)
    for mask, unmask in ((a.mask(2), a.mask(2, False)),
                         (a.msix(MSIX_ENABLE | MSIX_MASK), a.msix())):
        a.run(a.enable(), mask)
        b.run(b.ring(a, 2), b.ring(b, 0), b.take())
        nothing_left(a)
        same(a.value(read(0, INT_CONTROL)), 1, 'Interrupt Control')
        a.run(unmask)
        taken(2)
    elsewhere = a.idt(VECTORS)
    for idt in elsewhere, a.idt(1):
        a.run(a.mask(1), *a.route(1, idt), a.mask(1, False), a.enable())
        one(1, idt)
    a.run(a.enable())
    a.guest.qmp.command('stop')
    b.run(b.ring(a, 0))
    a.guest.qmp.command('cont')
    taken(0)
    b.start(b.ring(a, 1), repeat=0)
    a.run(a.enable(), a.take(1), repeat=100)
    b.stop()
    quiet(a)
    a.run(a.one_shot(False), a.enable(False), a.enable(), 'forget')
    b.run(b.ring(a, 2))
    a.run(a.take(2))
    nothing_left(a)


def one_shot_ping_pong(a, b):
    ready(a, b)
    ping_pong(a, b, 1, lambda peer: peer.one_shot())
    for peer in a, b:
        peer.run(peer.one_shot(), peer.enable())
    off = check(0, INT_CONTROL, 0)
    b.start(b.take(), off, b.enable(), check(2, output(a), '#'),
            write(2, output(b), '#'), b.ring(a), repeat=500)
    a.run(write(2, output(a), '#'), a.ring(b), a.take(), off, a.enable(),
          check(2, output(b), '#'), repeat=500)
    b.finish()
    nothing_left(a)
    nothing_left(b)


def files(guest):
    return len(os.listdir(f'/proc/{guest.process.popen.pid}/fd'))


def mappings(guest):
    """How many mappings of servers' memory QEMU has"""
    maps = Path(f'/proc/{guest.process.popen.pid}/maps').read_text()
    return maps.count('memfd:ivshmem2')


def mmio_exits(guest):
    results = guest.qmp.command('query-stats', target='vcpu', providers=[
        {'provider': 'kvm', 'names': ['mmio_exits']}])
    return sum(result['stats'][0]['value'] for result in results)


def unplugged(guest):
    """The device is gone when nothing of it uses its chardev"""
    deadline = time.monotonic() + COMMAND_TIMEOUT
    while True:
        try:
            guest.qmp.command('chardev-remove', id='hot')
            return
        except Failure:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def place(peer):
    """Give the BARs of a device addresses, as firmware would do it."""
    peer.run(*(write(CONFIG, BARS + 4 * bar, address) for bar, address in (
        (0, 0xd0000000), (1, 0xd0010000), (2, 0xd0800000), (3, 0))))
    peer.guest.slot = None
    peer.setup()


def plug(s, guest, peer_id, link=MSIX, vectors=VECTORS):
    """Hot-plug a device, in QEMU and in the guest"""
    guest.qmp.command('chardev-add', id='hot', backend={
        'type': 'socket', 'data': {
            'server': False, 'addr': {'type': 'unix', 'data': {
                'path': str(s.lab.socket(link))}}}})
    peer = Peer(guest, HOTPLUG_SLOT, peer_id, vectors)
    guest.qmp.command('device_add', driver='ivshmem2', id=peer.name,
                      chardev='hot', addr=f'{HOTPLUG_SLOT}', **{
                          'peer-id': peer_id})
    place(peer)
    return peer


def eject(guest, peer, *more):
    """Do what an operating system would do through ACPI; @more: steps"""
    peer.run(write(IO, 0xae08, 1 << HOTPLUG_SLOT), *more)
    unplugged(guest)


class Setup:
    """Three machines with one accelerator, started on first use"""

    def __init__(self, lab, accel, smp):
        self.lab = lab
        self.accel = accel
        self.smp = smp

    @functools.cached_property
    def guests(self):
        self.lab.server('--max-peers', PEERS, '--vectors', VECTORS,
                        '--rw-size', SECTION, '--output-size', SECTION,
                        '--protocol', '0x4711', name=MSIX)
        self.lab.server('--max-peers', 4, '--intx', '--rw-size', SECTION,
                        name=INTX)
        for link, peers in (LARGE, ALL), (SMALL, 2):
            self.lab.server('--max-peers', peers, '--vectors', 2,
                            '--rw-size', SECTION, name=link)
        guests = [self.start(number) for number in range(3)]
        for guest in guests:
            guest.wait_ready()
        return guests

    def device(self, link, slot, peer_id, more):
        """QEMU's options for one device"""
        return ('-chardev',
                f'socket,id=link{slot},path={self.lab.socket(link)}',
                '-device', f'ivshmem2,id=dev{slot},addr={slot:x},'
                f'chardev=link{slot},peer-id={peer_id}' +
                (more and f',{more}'))

    def start(self, number):
        options, peers = [], []

        def add(link, slot, peer_id, vectors, more=''):
            options.extend(self.device(link, slot, peer_id, more))
            peers.append((slot, peer_id, vectors))

        paths = PATHS[self.accel] if number < 2 else {'': ''}
        for index, more in enumerate(paths.values()):
            add(MSIX, FIRST_SLOT + index, 3 * index + number, VECTORS, more)
        add(INTX, INTX_SLOT, number, 1)
        add(LARGE, LARGE_SLOT, ALL - 1 - number, 2)
        guest = BareGuest(self.lab, f'vm{number}', self.accel, *options,
                          smp=self.smp)
        *msix, guest.intx, guest.large = (Peer(guest, *peer) for peer in peers)
        guest.peers = dict(zip(paths, msix))
        return guest

    def sync(self):
        """After a failure, make the remaining machines ready again."""
        for guest in self.guests:
            try:
                guest.qmp.command('cont')
                guest.sync()
            except (Failure, OSError):
                pass

    def pair(self, path):
        return [guest.peers[path] for guest in self.guests[:2]]


def why_not(accel, lab):
    """Returns why this accelerator cannot be used, or ''."""
    if accel == 'tcg':
        return ''
    if no_kvm():
        return no_kvm()
    guest = BareGuest(lab, 'probe', accel)
    try:
        guest.wait_ready(PROBE_TIMEOUT).run('forget')
        return ''
    except Failure:
        return 'a small guest does not run under KVM here'
    finally:
        guest.process.stop()


class Program:
    """The tests that a program has registered, and with what they run"""

    def __init__(self, prefix='bare', paths=None, setup=Setup, wants=None):
        self.prefix = prefix        # of the tests' names
        self.paths = paths or PATHS
        self.setup = setup
        self.wants = wants          # (kind, function) -> bool, pair tests

    def tests(self, accel, pattern):
        """Yields (name, function of a Setup), in the order to run them."""
        found = []
        for path in self.paths[accel]:
            kind = f'{accel}-{path}' if path else accel
            for function in PAIR_TESTS:
                if not self.wants or self.wants(kind, function):
                    found.append((kind, function.__name__,
                                  lambda setup, f=function, p=path:
                                  f(*setup.pair(p))))
        for function, accels in LAB_TESTS:
            if accel in accels:
                found.append((accel, function.__name__, function))
        for kind, name, function in found:
            name = f"/ivshmem2/{self.prefix}/{kind}/{name.replace('_', '-')}"
            if fnmatch.fnmatchcase(name, pattern):
                yield name, function

    def run(self, accel, todo, number, smp):
        """Run @todo, numbered from @number on. Returns whether all passed."""
        passed = True
        with Lab() as lab:
            skip = why_not(accel, lab)
            setup = self.setup(lab, accel, smp)
            for number, (name, function) in enumerate(todo, number):
                if skip:
                    report(number, f'{name} # SKIP {skip}')
                    continue
                try:
                    function(setup)
                    report(number, name)
                except Skip as reason:
                    report(number, f'{name} # SKIP {reason}')
                except (Failure, OSError, LookupError, ValueError):
                    passed = False
                    report(number, name, traceback.format_exc())
                    setup.sync()
            if not passed:
                for process in lab.processes:
                    print('# ' + f'[{process.name}]\n{process.tail()}'.replace(
                        '\n', '\n# '), flush=True)
        return passed

    def run_all(self, smp):
        enter_environment()
        pattern = sys.argv[1] if len(sys.argv) > 1 else '*'
        todo = {accel: list(self.tests(accel, pattern))
                for accel in self.paths}
        print(f'1..{sum(map(len, todo.values()))}', flush=True)
        passed, number = True, 1
        for accel, some in todo.items():
            passed = (not some or self.run(accel, some, number, smp)) and \
                passed
            number += len(some)
        return 0 if passed else 1


def report(number, name, problem=None):
    print(f"{'not ok' if problem else 'ok'} {number} {name}", flush=True)
    for line in (problem or '').splitlines():
        print(f'# {line}', flush=True)


def main(smp=None, program=None):
    """Runs the tests that the program has registered; the first argument is a
    pattern for their names. @smp: see BareGuest."""
    try:
        sys.exit((program or Program()).run_all(smp))
    except Failure as problem_at_start:
        sys.exit(f'Bail out! {problem_at_start}')
