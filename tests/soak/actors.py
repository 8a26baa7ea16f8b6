"""The peers of a soak: programs on the host, and bare-metal guests.

An Actor is asked for something, or told to begin it (start) and asked later
whether it is done (finish). What it should have done is in its attributes.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import select
import signal
import time

from bare_vm import (
    BARS, CONFIG, DOORBELL, IO, STATE, BareGuest, Peer, write)
from vm import Failure

# The link: vector 0 is for state changes, vector 1 + ID for each sender.
MAX_PEERS, VECTORS = 15, 16
PAGE, RW, OUTPUT = 4096, 65536, 32768
SHARE = RW // (MAX_PEERS + 1)   # what each peer fills of the R/W section
FILLED = 1024                   # and from where on its output section

# How programs on the host end
WAYS = 'goodbye', 'end of input', 'SIGKILL', 'SIGSTOP, SIGKILL'

ANSWER_TIMEOUT = 30
JOIN_TIMEOUT = 30
END_TIMEOUT = 15
SLOT, HOT_SLOT = 4, 9
PER_LINE = 4                    # vectors that a line of steps sets up
HOT_BARS = 0xd0000000, 0xd0010000, 0xd0800000, 0
EJECT = 0xae08                  # a port of QEMU's ACPI


def await_end(process):
    """Returns its exit status."""
    popen = process.popen
    fd = os.pidfd_open(popen.pid)
    ended = select.select([fd], [], [], END_TIMEOUT)[0]
    os.close(fd)
    if not ended:
        raise Failure(f'{process.name} does not end')
    return popen.wait()


def output_at(peer_id):
    return PAGE + RW + OUTPUT * peer_id


def share_at(peer_id):
    return SHARE * peer_id


class Actor:
    """What both kinds have in common"""

    def __init__(self, name):
        self.name = name
        self.id = None
        self.process = None
        self.present = False        # on the link
        self.stopped = False        # by SIGSTOP
        self.busy = None            # (target, last number) of a storm
        self.state = 0

    def __repr__(self):
        return self.name

    def able(self):
        """Can it be asked for something?"""
        return self.present and not self.stopped and not self.busy

    def stop(self):
        self.process.kill(signal.SIGSTOP)
        self.stopped = True

    def resume(self):
        self.process.kill(signal.SIGCONT)
        self.stopped = False

    def gone(self):
        self.present = self.stopped = False
        self.busy = None
        self.state = 0


class Host(Actor):
    """A program on the host (peer.c)"""

    def __init__(self, name, world):
        super().__init__(name)
        self.world = world

    def start_join(self, peer_id='any'):
        program = self.world.program
        self.process = self.world.lab.start(self.name, [
            program, self.world.socket, self.name, peer_id])

    def finish_join(self):
        text = self.process.line(JOIN_TIMEOUT)
        if not text.startswith('ready '):
            raise Failure(f'{self.name} cannot join: {text}')
        self.id = int(text.split()[1])
        self.present = True

    def start(self, *words):
        self.process.send(' '.join(map(str, words)) + '\n')

    def finish(self):
        text = self.process.line(ANSWER_TIMEOUT)
        if not text.startswith('ok'):
            raise Failure(f'{self.name}: {text}')
        return [int(word) for word in text.split()[1:]]

    def run(self, *words):
        self.start(*words)
        return self.finish()

    def start_send(self, target, first, last):
        self.start('send', target.id, first, last)

    def send(self, target, first, last):
        self.start_send(target, first, last)
        self.finish()

    def set_state(self, value):
        self.run('state', value)
        self.state = value

    def fill(self, value):
        self.run('fill', value, FILLED, share_at(self.id))

    def seen(self):
        values = self.run('seen')
        return values[:MAX_PEERS], values[MAX_PEERS:]

    def ended(self):
        """Forgets the process, which has ended."""
        self.process.stop()
        self.world.lab.processes.remove(self.process)
        self.gone()

    def connected(self):
        return self.run('connected') == [1]

    def start_end(self, how):
        """Begins to end, in one of WAYS; finish_end() waits for it."""
        if how == 'goodbye':
            self.start('leave')
        elif how == 'end of input':
            self.process.popen.stdin.close()
        else:
            if how == 'SIGSTOP, SIGKILL':
                self.stop()
            self.process.kill()

    def finish_end(self, how):
        if how == 'goodbye':
            self.finish()
        status = await_end(self.process)
        self.ended()
        if status and 'SIGKILL' not in how:
            raise Failure(f'{self.name} ended with status {status}')

    def end(self, how):
        self.start_end(how)
        self.finish_end(how)


class Guest(Actor):
    """The device of a virtual machine, plugged in from the start or later"""

    def __init__(self, name, world, number, properties='', hot=False):
        super().__init__(name)
        self.world = world
        self.id = number
        self.properties = properties
        self.hot = hot
        self.vm = None
        self.peer = None
        self.paused = False         # by QMP
        self.masked = False         # all vectors

    def able(self):
        return super().able() and not self.paused

    def gone(self):
        super().gone()
        self.masked = False

    def start_vm(self):
        """Starts QEMU; wait_vm() waits for the guest."""
        devices = ['-chardev', f'socket,id=link,path={self.world.socket},'
                   'reconnect-ms=100']
        if not self.hot:
            devices += ['-device', f'ivshmem2,id=dev{SLOT},addr={SLOT:x},'
                        f'chardev=link,peer-id={self.id}{self.properties}']
        self.vm = BareGuest(self.world.lab, self.name, self.world.accel,
                            *([] if self.hot else devices))
        self.process = self.vm.process

    def wait_vm(self):
        self.vm.wait_ready()
        self.vm.qmp.command('query-status')
        self.peer = Peer(self.vm, HOT_SLOT if self.hot else SLOT, self.id,
                         VECTORS)
        if not self.hot:
            self.appear()

    def appear(self):
        """The device is there: set it up."""
        self.setup()
        self.present = True

    def setup(self):
        """Turns all on, and has the handlers of interrupts look."""
        peer = self.peer
        peer.run(peer.enable(False), peer.bus_master())
        for first in range(0, VECTORS, PER_LINE):
            peer.run(*(step for v in range(first, first + PER_LINE)
                       for step in (*peer.route(v), peer.mask(v, False))))
        peer.run(peer.msix(), peer.enable())
        peer.run(f'watch {peer.idt(0):x} 2 0 {MAX_PEERS:x}', *(
            f'watch {peer.idt(1 + n):x} 2 {output_at(n) + 4 * self.id:x} 1'
            for n in range(MAX_PEERS)))

    def start_send(self, target, first, last):
        word = output_at(self.id) + 4 * target.id
        bell = target.id << 16 | 1 + self.id
        if first == 1:
            self.peer.start(write(2, word, '#'), write(0, DOORBELL, bell),
                            repeat=last)
        else:
            self.peer.start(*(step for n in range(first, last + 1) for step in
                              (write(2, word, n), write(0, DOORBELL, bell))))

    def finish(self):
        return self.peer.finish(ANSWER_TIMEOUT)

    def send(self, target, first, last):
        self.start_send(target, first, last)
        self.finish()

    def set_state(self, value):
        self.peer.run(write(0, STATE, value))
        self.state = value

    def fill(self, value):
        start = output_at(self.id) + FILLED
        self.peer.run(f'fill 2 {start:x} {(OUTPUT - FILLED) // 8:x} {value:x}',
                      f'fill 2 {PAGE + share_at(self.id):x} {SHARE // 8:x} '
                      f'{value:x}')

    def trespass(self, other_id, value):
        """Writes where it must have no effect."""
        self.peer.run(write(2, output_at(other_id) + FILLED, value, 8),
                      write(2, output_at(other_id) + 4 * self.id, value),
                      write(2, 4 * other_id, value),
                      write(2, 4 * self.id, value),
                      write(2, output_at(MAX_PEERS), value))

    def seen(self):
        values = self.peer.run(*(f'seen {self.peer.idt(v):x}'
                                 for v in range(VECTORS)))
        return values[:MAX_PEERS], values[MAX_PEERS:]

    def connected(self):
        return self.peer.property('connected')

    def mask(self, on):
        self.peer.run(*(self.peer.mask(v, on) for v in range(VECTORS)))
        self.masked = on

    def reset(self):
        """Resets the machine, and sets the device up again."""
        plugged = self.present
        self.gone()
        self.vm.reset()
        self.vm.wait_ready()
        self.vm.sync()              # the rest of a line may still arrive
        if plugged:
            self.appear()

    def pause(self, on):
        self.vm.qmp.command('stop' if on else 'cont')
        self.paused = on

    def plug(self):
        qmp = self.vm.qmp
        qmp.command('chardev-add', id='hot', backend={
            'type': 'socket', 'data': {
                'server': False, 'reconnect-ms': 100, 'addr': {
                    'type': 'unix', 'data': {
                        'path': str(self.world.socket)}}}})
        qmp.command('device_add', driver='ivshmem2', id=self.peer.name,
                    chardev='hot', addr=f'{HOT_SLOT}', **{
                        'peer-id': self.id,
                        'handshake-timeout-ms': 1000 * JOIN_TIMEOUT})
        self.vm.run(f'device {HOT_SLOT:x}', *(
            write(CONFIG, BARS + 4 * bar, address)
            for bar, address in enumerate(HOT_BARS)))
        self.vm.slot = None
        self.appear()

    def unplug(self):
        """With a goodbye, as an operating system would through ACPI"""
        qmp = self.vm.qmp
        qmp.command('device_del', id=self.peer.name)
        self.vm.run(write(IO, EJECT, 1 << HOT_SLOT))
        deadline = time.monotonic() + ANSWER_TIMEOUT
        while True:
            try:
                qmp.command('chardev-remove', id='hot')
                break
            except Failure:
                # the device has it for a while
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        self.gone()

    def kill(self):
        self.process.kill()
        await_end(self.process)
        if 'qmp' in vars(self.vm):
            self.vm.qmp.close()
        self.process.stop()
        self.world.lab.processes.remove(self.process)
        self.vm.qmp_path.unlink(missing_ok=True)
        self.vm = self.peer = None
        self.paused = False
        self.gone()
