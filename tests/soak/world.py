"""A link with its peers, what they have done, and what must be true of it.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import re
import struct
import time
from collections import Counter
from pathlib import Path

from actors import (
    FILLED, MAX_PEERS, OUTPUT, RW, SHARE, VECTORS, Guest, Host, share_at)
from raw import map_link
from server import Server
from vm import Failure

HOSTS = 5
FLOODER_ID = MAX_PEERS - 1
SETTLE_TIMEOUT = 20
PAUSE = 0.01

EVENTFD, PIDFD = 'anon_inode:[eventfd]', 'anon_inode:[pidfd]'

# Eventfds that QEMU makes when they are first used, and then keeps: for its
# own vectors with KVM and, unless they are pushed, those of the peers that it
# rings and tells of its state
KEPT = {True: VECTORS, False: VECTORS + 2 * MAX_PEERS}

# The paths that interrupts take: properties of the guests' devices
PROPERTIES = '', ',x-irqfd-after=0,max-ioeventfds=2', ''


class Finding(Failure):
    """Something is wrong with what is tested."""


def numbers(row):
    return ', '.join(f'{what} {count}' for what, count in sorted(row.items()))


class World:
    """The link and its peers, and what they did"""

    def __init__(self, lab, accel, *, push, supervised):
        self.lab = lab
        self.accel = accel
        self.program = lab.env.soak_peer
        self.server = Server(lab, supervised, '--max-peers', MAX_PEERS,
                             '--vectors', VECTORS, '--rw-size', RW,
                             '--output-size', OUTPUT, '--push-limit',
                             256 if push else 0)
        self.push = push
        self.socket = self.server.socket
        self.table, self.rw, *self.outputs = map_link(self.socket, VECTORS)
        self.guests = [Guest(f'vm{n}', self, n, properties, hot=n == 2)
                       for n, properties in enumerate(PROPERTIES)]
        self.hosts = [Host(f'host{n}', self) for n in range(HOSTS)]
        for host in self.hosts:
            host.id = len(self.guests) + self.hosts.index(host)
        self.crowd = []             # peers that come and go within a step
        self.flooder = None
        # By ID: what memory has, whoever wrote it. None: anything
        self.words = [[0] * MAX_PEERS for _ in range(MAX_PEERS)]
        self.fills = [0] * MAX_PEERS
        self.owed = {}              # (sender's ID, target's) -> number
        self.lives = 0              # peers that came and went
        self.baseline = {}          # pid -> census

    # Actors that are there

    def actors(self):
        return [*self.guests, *self.hosts, *self.crowd]

    def present(self):
        return [actor for actor in self.actors() if actor.present]

    def able(self):
        return [actor for actor in self.actors() if actor.able()]

    def free_ids(self):
        return MAX_PEERS - len(self.present()) - bool(self.flooder)

    # What they do, and what follows from it

    def sent(self, sender, target, number):
        self.words[sender.id][target.id] = number
        if target.present:
            self.owed[sender.id, target.id] = number

    def deaf(self, target):
        """Doorbells to @target are no longer owed."""
        self.owed = {pair: number for pair, number in self.owed.items()
                     if pair[1] != target.id}

    def dumb(self, sender):
        """The doorbells of @sender need not arrive any more."""
        if sender.busy:
            self.words[sender.id][sender.busy[0]] = None
        self.owed = {pair: number for pair, number in self.owed.items()
                     if pair[0] != sender.id}

    def leaves(self, actor):
        """To be called before it does."""
        self.deaf(actor)
        self.dumb(actor)
        self.lives += actor.present

    def filled(self, actor, value):
        self.fills[actor.id] = value

    def finish_storm(self, actor):
        target_id, last = actor.busy
        actor.finish()
        actor.busy = None
        self.words[actor.id][target_id] = last

    # What must be true at any time

    def check(self):
        """After each step"""
        for guest in self.guests:
            if guest.vm and guest.process.popen.poll() is not None:
                raise Finding(f'QEMU of {guest} ended with status '
                              f'{guest.process.popen.wait()}')
        for host in self.hosts:
            if host.present and host.process.popen.poll() is not None:
                raise Finding(f'{host} ended with status '
                              f'{host.process.popen.wait()}')
        self.server.check()
        self.check_memory()
        for actor in self.present():
            state = self.states()[actor.id]
            late = actor.stopped and self.server.supervised and not state
            if state != actor.state and not late:
                raise Finding(f'the state of {actor} (ID {actor.id}) is '
                              f'{state} in the table, but it wrote '
                              f'{actor.state}')
        self.check_messages()

    def states(self):
        return struct.unpack_from(f'<{MAX_PEERS}I', self.table)

    def check_memory(self):
        end = self.table[4 * MAX_PEERS:]
        if end.strip(b'\0'):
            raise Finding('bytes behind the State Table changed')
        if self.rw[share_at(MAX_PEERS):].strip(b'\0'):
            raise Finding("bytes of the R/W section that are nobody's changed")
        writers = {actor.id: actor for actor in self.present() if actor.busy}
        for peer_id, value in enumerate(self.fills):
            word = struct.pack('<Q', value)
            share = share_at(peer_id)
            self.compare(self.rw, share, word * (SHARE // 8),
                         f'the share of ID {peer_id} of the R/W section')
            output = self.outputs[peer_id]
            what = f'the output section of ID {peer_id}'
            self.compare(output, FILLED, word * ((OUTPUT - FILLED) // 8), what)
            busy = writers.get(peer_id)
            for target, number in enumerate(self.words[peer_id]):
                if number is None or busy and busy.busy[0] == target:
                    continue
                self.compare(output, 4 * target, struct.pack('<I', number),
                             what)
            self.compare(output, 4 * MAX_PEERS,
                         bytes(FILLED - 4 * MAX_PEERS), what)

    @staticmethod
    def compare(memory, start, wanted, what):
        found = memory[start:start + len(wanted)]
        if found != wanted:
            at = next(i for i, (a, b) in enumerate(zip(found, wanted))
                      if a != b) & ~7
            raise Finding(f'{what} changed: at {start + at:#x}, there is '
                          f'{found[at:at + 8].hex()} instead of '
                          f'{wanted[at:at + 8].hex()}')

    def check_messages(self):
        """QEMU and the programs have nothing to say."""
        for guest in self.guests:
            if not guest.vm:
                continue
            for line in guest.process.err.read_text().splitlines():
                if not self.server.explains(line):
                    raise Finding(f'QEMU of {guest} says: {line}')

    # What must become true

    def resume_all(self):
        """Lets everything run again, and ends storms."""
        self.server.resume()
        for guest in self.guests:
            if guest.vm and guest.stopped:
                guest.resume()
            if guest.vm and guest.paused:
                guest.pause(False)
        for host in self.hosts:
            if host.stopped:
                host.resume()
        for actor in self.present():
            if actor.busy:
                self.finish_storm(actor)
        for guest in self.guests:
            if guest.masked:
                guest.mask(False)

    def settle(self):
        """Lets everything run, and waits until all is as it should be."""
        self.resume_all()
        self.check()
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while True:
            self.check()
            wrong = self.unsettled()
            if not wrong:
                return
            if time.monotonic() > deadline:
                raise Finding(f'{SETTLE_TIMEOUT} s after all was quiet:\n' +
                              '\n'.join(wrong))
            time.sleep(PAUSE)

    def unsettled(self):
        """Returns what is not as it should be, in words."""
        wrong = []
        wanted = [0] * MAX_PEERS
        names = {actor.id: actor for actor in self.present()}
        for actor in self.present():
            wanted[actor.id] = actor.state
        states = self.states()
        for peer_id, (found, state) in enumerate(zip(states, wanted)):
            if found != state:
                wrong.append(f'the state of ID {peer_id} '
                             f'({names.get(peer_id, "absent")}) is {found} '
                             f'instead of {state}')
        for actor in self.present():
            known, seen = actor.seen()
            for peer_id, (found, state) in enumerate(zip(known, states)):
                if found != state and peer_id != actor.id:
                    wrong.append(f'{actor} was not interrupted: it knows '
                                 f'state {found} of ID {peer_id} instead of '
                                 f'{state}')
            for (sender, target), number in self.owed.items():
                if target == actor.id and seen[sender] != number:
                    wrong.append(
                        f'a doorbell is lost: {actor} has seen '
                        f'{seen[sender]} from {names.get(sender, sender)} '
                        f'instead of {number}')
        return wrong + self.server.unsettled(self.present())

    # What must not grow

    def census(self, pid):
        """What a process has: descriptors by kind, mappings, threads"""
        found = Counter()
        folder = Path(f'/proc/{pid}')
        for fd in (folder / 'fd').iterdir():
            try:
                kind = os.readlink(fd)
            except FileNotFoundError:
                continue
            kind = re.sub(r':\[\d+\]$', '', kind)
            kind = re.sub(r'^/memfd:(\S+) .*', r'memory \1', kind)
            if not kind.startswith('/'):
                found[kind] += 1
            else:
                found['file'] += 1
        maps = (folder / 'maps').read_text()
        found['mapping'] = maps.count('memfd:ivshmem2')
        return found

    def others(self):
        """Processes that have our folder in their command line, and are
        none of those that should be there"""
        known = {actor.process.popen.pid for actor in
                 [*self.guests, *self.hosts] if actor.process and
                 actor.process.popen.poll() is None}
        known |= self.server.pids()
        found = []
        for path in Path('/proc').glob('[0-9]*/cmdline'):
            try:
                words = path.read_bytes().split(b'\0')
            except OSError:
                continue
            if int(path.parent.name) not in known and any(
                    word.startswith(bytes(self.lab.path)) for word in words):
                found.append(f'{path.parent.name} '
                             f'({b" ".join(words[:3]).decode()})')
        return found

    def files(self):
        return sorted(path.name for path in self.lab.path.iterdir()
                      if not re.search(r'\.(log|err|qmp)$', path.name))

    def grown(self):
        """Returns what there is more of than before, in words."""
        wrong = [f'there is another process: {text}'
                 for text in self.others()]
        kept = self.server.files(self.lab)
        if self.files() != kept:
            wrong.append(f'the folder has {self.files()} instead of {kept}')
        for guest in self.guests:
            if guest.vm:
                wrong += self.compared(guest.process.popen.pid,
                                       f'QEMU of {guest}',
                                       {EVENTFD: KEPT[self.push]})
        # A machine that was unplugged without a server keeps its ID.
        held = len(self.guests) if self.server.supervised else 0
        for name, pid in self.server.roles().items():
            wrong += self.compared(pid, name, {PIDFD: held})
        return wrong

    def compared(self, pid, name, grace):
        """With what it had; a server is compared with its predecessors."""
        now = self.census(pid)
        key = name if pid in self.server.pids() else pid
        more = now - Counter(self.baseline.setdefault(key, now)) - Counter(
            grace)
        return [f'{name} has more than before: {numbers(more)} (all: '
                f'{numbers(now)})'] if more else []

    def check_leaks(self):
        """When only the guests are there"""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while True:
            wrong = self.grown()
            if not wrong:
                return
            if time.monotonic() > deadline:
                raise Finding('\n'.join(wrong))
            time.sleep(PAUSE)
