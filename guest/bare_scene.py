"""A link with two peers that live, a bare-metal guest and a program on the
host, which look at what is left of others that do not.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import signal
import subprocess
import time

from bare_tests import PAGE, SECTION, output, same
from bare_vm import DOORBELL, IO, STATE, BareGuest, Peer, check, read, write
from vm import COMMAND_TIMEOUT, Failure

LINK = 'link'                       # the server
WITNESS, VICTIM, HOST = 0, 1, 2     # IDs
SLOT, VECTORS = 4, 2
STATE_ALIVE = 7
TEXT = 'mark'
MARK = int.from_bytes(TEXT.encode(), 'little')
# Seconds in which the others have to hear of an end that the kernel reports.
# It takes a thousandth of that; this is for a busy host.
SOON = 2
POWER_OFF = write(IO, 0x604, 0x2000, 2)     # of the pc machine


def until(condition, what):
    deadline = time.monotonic() + COMMAND_TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise Failure(f'{what}: not within {COMMAND_TIMEOUT} s')
        time.sleep(0.005)


def exit_status(process):
    try:
        return process.popen.wait(COMMAND_TIMEOUT)
    except subprocess.TimeoutExpired as error:
        raise Failure(f'{process.name} goes on') from error


def open_files(process):
    return len(os.listdir(f'/proc/{process.popen.pid}/fd'))


def joined(process, ready):
    """Waits until a peer has joined, or says why it has not."""
    def look():
        if process.popen.poll() is not None:
            raise Failure(f'exit status {exit_status(process)}: '
                          f'{process.tail()}')
        return ready()
    until(look, f'{process.name} has joined')


def kill(process):
    process.kill()


def stop_and_kill(process):
    process.kill(signal.SIGSTOP)
    kill(process)


def kill_and_wait(process):
    process.kill()
    exit_status(process)


def terminate(process):
    process.kill(signal.SIGTERM)
    exit_status(process)


class Scene:
    """Two peers that live, and others that do not"""

    def __init__(self, lab, accel, smp):
        self.lab = lab
        self.accel = accel
        self.smp = smp
        self.server = lab.server(
            '--max-peers', 4, '--vectors', VECTORS, '--rw-size', SECTION,
            '--output-size', SECTION, name=LINK)
        self.guest, self.witness = self.machine('witness', WITNESS)
        self.host = lab.host_peer('host', '--id', HOST, server=LINK)
        self.living = self.server, self.guest.process, self.host.process
        # Descriptors of an ID stay at the server after its first peer.
        for peer_id in VICTIM, HOST + 1:
            lab.host_peer('first', '--id', peer_id, server=LINK).leave()
        self.host.run(f'ring {VICTIM} 0')

    def machine(self, name, peer_id, *more, pick='path', ready=True):
        """A machine with a device; returns both."""
        link = f'path={self.lab.socket(LINK)}' if pick == 'path' else pick
        guest = BareGuest(
            self.lab, name, self.accel,
            '-chardev', f'socket,id=c,{link}', '-device',
            f'ivshmem2,id=dev{SLOT},addr={SLOT:x},chardev=c,peer-id={peer_id}',
            *more, smp=self.smp)
        peer = Peer(guest, SLOT, peer_id, VECTORS)
        if ready:
            guest.wait_ready()
            peer.setup()
        return guest, peer

    def victim(self, *more, **options):
        """A peer that has a state and has written its output section"""
        _, peer = self.machine('victim', VICTIM, *more, **options)
        self.show(peer)
        return peer

    def show(self, peer):
        peer.run(peer.state(STATE_ALIVE), write(2, output(peer), MARK))
        self.heard(STATE_ALIVE)

    def heard(self, state, peer_id=VICTIM):
        """One interrupt for each witness, after the state had changed"""
        w = self.witness
        w.run(w.take(), check(2, 4 * peer_id, state))
        same(self.host.run('wait --vector 0 --timeout 20')[0]['vector'], 0)
        same(self.host.states().get(peer_id, 0), state, 'state')

    def quiet(self):
        """No witness has been interrupted."""
        w = self.witness
        w.run(w.ring(w, 1), w.take(1))
        same(w.value(w.left()), 0, 'interrupts too many')
        same([event for event in self.host.run('watch --timeout 0')
              if event['event'] == 'interrupt'], [], 'interrupts too many')

    def ends(self, act, section=MARK, peer_id=VICTIM):
        """@act ends the peer that has this ID, or resets it."""
        w = self.witness
        self.quiet()
        w.start(w.take(), check(2, 4 * peer_id, 0))
        start = time.monotonic()
        act()
        w.finish()
        seconds = time.monotonic() - start
        print(f'# interrupted after {seconds * 1000:.1f} ms')
        same(self.host.run('wait --vector 0 --timeout 20')[0]['vector'], 0)
        same(self.host.states().get(peer_id, 0), 0, 'state')
        self.quiet()
        if section is not None:
            same(w.value(read(2, PAGE + SECTION * (1 + peer_id))), section,
                 'output section')
        if seconds > SOON:
            raise Failure('too late')

    def files(self):
        return [open_files(process) for process in self.living]

    def successor(self, before=None):
        """The next peer with the ID, after doorbells for the one before"""
        w = self.witness
        gone = Peer(None, 0, VICTIM, VECTORS)
        w.run(w.ring(gone, 0), w.ring(gone, 1))
        self.host.run(f'ring {VICTIM} 1')
        program = self.lab.host_peer('next', '--id', VICTIM, server=LINK)
        same(program.run('watch --timeout 0'), [], 'interrupts')
        same(program.leave(), 0, 'exit status')
        guest, peer = self.machine('successor', VICTIM)
        same(peer.run(read(0, STATE), read(2, 4 * VICTIM),
                      read(2, output(peer)), peer.left(0), peer.left(1)),
             [0, 0, MARK, 0, 0], 'what the successor finds')
        self.both_ways(peer)
        peer.start(POWER_OFF)
        same(exit_status(guest.process), 0, 'exit status')
        self.quiet()
        if before:
            until(lambda: self.files() == before, f'{before} open files')

    def both_ways(self, peer):
        """Doorbells between @peer and the witnesses"""
        w = self.witness
        for _ in range(3):
            w.run(w.ring(peer, 1))
            peer.run(peer.take(1), peer.ring(w, 1))
            w.run(w.take(1))
        self.host.run(f'ring {peer.id} 1')
        peer.run(peer.take(1), write(0, DOORBELL, HOST << 16 | 1))
        same(self.host.run('wait --vector 1 --timeout 20')[0]['vector'], 1)

    def sync(self):
        """After a failure: the witnesses' interrupts are forgotten."""
        for process in self.lab.processes[:]:
            if process not in self.living:
                process.kill(signal.SIGCONT)
                process.stop()
                self.lab.processes.remove(process)
        self.guest.sync()
        self.guest.run('forget')
        self.host.run('watch --timeout 0')
