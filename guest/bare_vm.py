"""Virtual machines with the bare-metal guest, and the devices that it drives.

A command to the guest is a list of steps (see guest/bare/main.c). Functions
and methods that have the name of a step return its text, for BareGuest.run().

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import subprocess

from vm import BOOT_TIMEOUT, COMMAND_TIMEOUT, HERE, TCG_SMP, Failure, Qmp

# Address spaces; lower numbers are those of BARs.
CONFIG, IO, MEMORY = 6, 7, 8

# On some hosts KVM reports arch-capabilities although guests cannot have it.
CPU = {'tcg': 'qemu64', 'kvm': 'host,-arch-capabilities'}

SMP = {'tcg': TCG_SMP, 'kvm': '1'}

# PCI
COMMAND = 4
COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER, COMMAND_NO_INTX = 1, 2, 4, 0x400
BARS = 0x10
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3c
CAP_VENDOR, CAP_MSIX, CAP_AF = 9, 0x11, 0x13
MSIX_ENABLE, MSIX_MASK = 0x8000, 0x4000

# ivshmem2 (include/hw/misc/ivshmem2-regs.h)
ID, MAX_PEERS, INT_CONTROL, DOORBELL, STATE = 0, 4, 8, 0xc, 0x10
PRIV_CONTROL = 3
CAP_LENGTH, CAP_BASE_ADDRESS, CAP_SIZE_BASE = 2, 0x18, 0x20

# Memory without a BAR has to be here, where the guest maps it.
HIGH_MEMORY = 8 << 30

IOAPIC = 0xfec00000
MSI_PHYSICAL = 0xfee00000       # the processor with APIC ID 0
MSI_LOGICAL = 0xfee0100c        # the processor with logical ID 1


def read(space, offset, size=4):
    return f'read {space:x} {offset:x} {size:x}'


def number(value):
    """A value for a step; '#' is the number of the repetition."""
    return value if value == '#' else f'{value:x}'


def write(space, offset, value, size=4):
    return f'write {space:x} {offset:x} {size:x} {number(value)}'


def check(space, offset, value, size=4):
    return f'check {space:x} {offset:x} {size:x} {number(value)}'


class BareGuest:
    """A virtual machine; commands are sent over its serial line."""

    def __init__(self, lab, name, accel, *devices, env=None, smp=None):
        """@smp: QEMU's option; the steps for the second processor need 2."""
        self.name = name
        self.slot = None            # of the device that steps are for
        self.marks = 0
        self.qmp_path = lab.path / f'{name}.qmp'
        self.process = lab.start(name, [
            lab.env.qemu, '-nodefaults', '-no-user-config',
            '-display', 'none', '-machine', 'pc', '-accel', accel,
            '-cpu', CPU[accel], '-smp', smp or SMP[accel], '-m', '32',
            '-name', name,
            '-kernel', self.kernel(lab), '-serial', 'stdio',
            '-qmp', f'unix:{self.qmp_path},server=on,wait=off', *devices],
            err=lab.path / f'{name}.err', env=env)

    @staticmethod
    def kernel(lab):
        subprocess.run([HERE / 'bare/build', lab.env.bare_guest], check=True)
        return lab.env.bare_guest

    @functools.cached_property
    def qmp(self):
        return Qmp(self.qmp_path)

    def wait_ready(self, timeout=BOOT_TIMEOUT):
        self.process.expect('^ready$', timeout)
        self.slot = None
        return self

    def start(self, *steps, repeat=1):
        """Begins to do the steps; finish() waits for the end."""
        words = ' ; '.join((f'repeat {repeat:x}', *steps))
        self.process.send(words + '\n')

    def finish(self, timeout=COMMAND_TIMEOUT):
        """Returns the values that the last repetition has read."""
        try:
            text = self.process.line(timeout)
        except Failure:
            # An empty line makes the guest stop and say at which step it is.
            self.process.send('\n')
            text = self.process.line(timeout)
        if not text.startswith('ok'):
            self.sync()
            raise Failure(f'{self.name}: {text}')
        return [int(word, 16) for word in text.split()[1:]]

    def sync(self):
        """Stops the guest's steps and skips its answers to them."""
        self.marks += 1
        self.process.send(f'\nsay {self.marks:x}\n')
        self.process.expect(f'^ok {self.marks:x}$', COMMAND_TIMEOUT)

    def run(self, *steps, repeat=1, timeout=COMMAND_TIMEOUT):
        self.start(*steps, repeat=repeat)
        return self.finish(timeout)

    def reset(self):
        """Begins a reset of the machine; wait_ready() waits for its end."""
        self.qmp.command('system_reset')

    def kill(self):
        self.process.kill()
        self.process.popen.wait()

    def power_off(self):
        """Powers off; returns QEMU's exit status."""
        self.start(write(IO, 0x604, 0x2000, 2))
        return self.process.popen.wait(COMMAND_TIMEOUT)


class Peer:
    """An ivshmem2 device in a bare-metal guest."""

    def __init__(self, guest, slot, peer_id, vectors):
        self.guest = guest
        self.slot = slot
        self.id = peer_id
        self.vectors = vectors
        self.name = f'dev{slot}'    # its ID in QEMU

    def start(self, *steps, repeat=1):
        if self.guest.slot != self.slot:
            self.guest.run(f'device {self.slot:x}')
            self.guest.slot = self.slot
            if self.base:
                self.guest.run(f'place 2 {self.base:x}')
        self.guest.start(*steps, repeat=repeat)

    def finish(self, timeout=COMMAND_TIMEOUT):
        return self.guest.finish(timeout)

    def run(self, *steps, repeat=1, timeout=COMMAND_TIMEOUT):
        self.start(*steps, repeat=repeat)
        return self.finish(timeout)

    def reset_function(self):
        """A function level reset; the BARs are then where they were."""
        control = self.capabilities[CAP_AF] + 4
        bars = self.run(*(read(CONFIG, BARS + 4 * bar) for bar in range(4)))
        self.run(write(CONFIG, control, 1, 1),
                 *(write(CONFIG, BARS + 4 * bar, address)
                   for bar, address in enumerate(bars)),
                 write(CONFIG, COMMAND, COMMAND_MEMORY, 2))

    def stop(self):
        """Stops steps that are repeated forever."""
        self.guest.sync()

    def value(self, step):
        """Returns the value that this step reads."""
        return self.run(step)[0]

    def property(self, name):
        return self.guest.qmp.command(
            'qom-get', path=f'/machine/peripheral/{self.name}', property=name)

    @functools.cached_property
    def capabilities(self):
        """ID -> offset in the configuration space"""
        found = {}
        offset = self.value(read(CONFIG, CAPABILITIES, 1))
        while offset:
            cap, following = self.run(read(CONFIG, offset, 1),
                                      read(CONFIG, offset + 1, 1))
            if cap in found or offset % 4:
                raise Failure(f'capability {cap:#x} at {offset:#x}')
            found[cap] = offset
            offset = following
        return found

    @functools.cached_property
    def base(self):
        """The fixed address of the memory, or 0"""
        cap = self.capabilities.get(CAP_VENDOR)
        if (not cap or
                self.value(read(CONFIG, cap + CAP_LENGTH, 1)) < CAP_SIZE_BASE):
            return 0
        low, high = self.run(read(CONFIG, cap + CAP_BASE_ADDRESS),
                             read(CONFIG, cap + CAP_BASE_ADDRESS + 4))
        return high << 32 | low

    # Steps

    @staticmethod
    def enable(on=True):
        return write(0, INT_CONTROL, int(on))

    @staticmethod
    def spin(space=0, offset=INT_CONTROL, value=1):
        """The second processor writes, over and over, until 'rest'."""
        return f'spin {space:x} {offset:x} {value:x}'

    @staticmethod
    def state(value):
        return write(0, STATE, value)

    @staticmethod
    def ring(target, vector=0):
        return write(0, DOORBELL, target.id << 16 | vector)

    @staticmethod
    def sweep(count, vector=0):
        """Rings @count peers from ID 0 on."""
        return f'sweep 0 {DOORBELL:x} {vector:x} 10000 {count:x}'

    def idt(self, vector):
        """The processor's vector for a vector of the device."""
        return 0x30 + 8 * self.slot + vector

    def take(self, vector=0, count=1):
        return f'take {self.idt(vector):x} {count:x}'

    def left(self, vector=0):
        return f'left {self.idt(vector):x}'

    def await_value(self, offset, value, vector=0):
        """Takes interrupts until the memory has this value."""
        return (f'await {self.idt(vector):x} 2 {offset:x} 4 {number(value)}')

    def bus_master(self, on=True):
        """Also registers in I/O ports, and memory"""
        return write(CONFIG, COMMAND, COMMAND_IO | COMMAND_MEMORY |
                     (COMMAND_MASTER if on else 0), 2)

    def one_shot(self, on=True):
        return write(CONFIG, self.capabilities[CAP_VENDOR] + PRIV_CONTROL,
                     int(on), 1)

    def msix(self, value=MSIX_ENABLE):
        return write(CONFIG, self.capabilities[CAP_MSIX] + 2, value, 2)

    def mask(self, vector, on=True):
        return write(1, 16 * vector + 12, int(on))

    def route(self, vector, idt=None, address=MSI_PHYSICAL):
        """Three steps that set the MSI message of a vector."""
        idt = self.idt(vector) if idt is None else idt
        return (write(1, 16 * vector, address), write(1, 16 * vector + 4, 0),
                write(1, 16 * vector + 8, idt))

    def setup(self, *more):
        """Turns everything on, unmasks, and forgets earlier interrupts."""
        self.run(self.enable(False), self.bus_master(), self.one_shot(False))
        for vector in range(self.vectors):
            self.run(*self.route(vector), self.mask(vector, False))
        self.run(self.msix(), self.enable(), 'forget', *more)

    def setup_intx(self):
        """The same with INTx; the I/O APIC's input is edge-triggered."""
        self.run(self.enable(False), self.one_shot(False),
                 write(CONFIG, COMMAND, COMMAND_IO | COMMAND_MEMORY, 2))
        pin = self.value(read(CONFIG, INTERRUPT_LINE, 1))
        self.run(write(MEMORY, IOAPIC, 0x11 + 2 * pin),
                 write(MEMORY, IOAPIC + 0x10, 0),
                 write(MEMORY, IOAPIC, 0x10 + 2 * pin),
                 write(MEMORY, IOAPIC + 0x10, self.idt(0)),
                 self.enable(), 'forget')
