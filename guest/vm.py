"""Servers, Linux guests and host peers, for the demo and the tests.

A Lab is a temporary directory and the processes that use it. When a Lab ends,
for whatever reason, it ends the processes and removes the directory.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP / 'scripts'))

# how to end comes first
# pylint: disable=wrong-import-position,wrong-import-order
import ending                           # noqa: E402
import atexit
import base64
import ctypes
import functools
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import time
from types import SimpleNamespace

HERE = TOP / 'guest'

# Seconds: enough for emulated processors on a busy host
BOOT_TIMEOUT = 180
COMMAND_TIMEOUT = 60

# If only one processor is possible, QEMU's emulation leaves out the memory
# barriers of the guest, which peers in other processes rely on.
TCG_SMP = '1,maxcpus=2'

# VFIO needs the IOMMU. The kernel writes only emergencies to the serial line,
# which the output of guest/init and of the shell needs. On a busy host, the
# kernel must not panic because the timer of an emulated processor is late.
KERNEL_OPTIONS = ('console=ttyS0 quiet loglevel=1 intel_iommu=on '
                  'no_timer_check')


class Failure(Exception):
    """The message says what did not happen as it should."""


def no_kvm():
    """Returns why KVM cannot be used and what to do, or ''."""
    if not os.path.exists('/dev/kvm'):
        return ('no KVM: /dev/kvm does not exist; enable virtualization in the '
                'firmware or, in a virtual machine, nested virtualization')
    if not os.access('/dev/kvm', os.R_OK | os.W_OK):
        return ('no access to KVM: add yourself to the group kvm '
                '("adduser USER kvm") and log in again')
    return ''


class Refused(Failure):
    """A command of ivshmem2-client that ended with an error."""


class TimedOut(Failure):
    """A command of ivshmem2-client whose timeout expired."""


def enter_environment():
    """Restarts the program with the variables of scripts/env, if it has been
    started without them."""
    if 'QEMU_BUILD' not in os.environ:
        env = str(TOP / 'scripts/env')
        os.execv(env, [env, *sys.argv])


def environment():
    """The paths of what was built, from the variables of scripts/env."""
    def path(variable):
        return Path(os.environ[variable])

    return SimpleNamespace(
        guest=path('GUEST'),
        bare_guest=path('BUILD') / 'guest-bare',
        qemu=path('QTEST_QEMU_BINARY'),
        server=path('IVSHMEM2_SERVER'),
        client=path('IVSHMEM2_CLIENT'),
        soak_peer=path('TOOLS_BUILD') / 'ivshmem2-soak-peer',
        bench=path('TOOLS_BUILD') / 'bench')


def end_with_parent():
    """In a child: lets the kernel kill it when the parent ends."""
    ending.disturbed()
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Process:
    """A child process that does not outlive this program.

    Its output is read line by line. For a program whose output nobody reads,
    it goes to the file @log instead: a full pipe would block the program.
    With @err, standard error goes to that file. Otherwise it is part of the
    output, and may appear in the middle of a line.
    """

    def __init__(self, name, command, on_line=None, *, log=None, err=None,
                 env=None):
        self.name = name
        self.command = [str(word) for word in command]
        self.on_line = on_line
        self.output = b''           # received, not yet returned
        self.lines = []             # returned by line()
        self.log = log
        self.err = err
        with (open(log or os.devnull, 'wb') as file,
              open(err or os.devnull, 'wb') as err_file):
            # pylint: disable=consider-using-with,subprocess-popen-preexec-fn
            self.popen = subprocess.Popen(
                self.command, stdin=subprocess.PIPE,
                stdout=file if log else subprocess.PIPE,
                stderr=err_file if err else subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
                preexec_fn=end_with_parent)
        if not log:
            os.set_blocking(self.popen.stdout.fileno(), False)

    def send(self, text):
        try:
            self.popen.stdin.write(text.encode())
            self.popen.stdin.flush()
        except BrokenPipeError:
            pass                    # the reason will be in its output

    def tail(self):
        if self.log:
            lines = self.log.read_text(errors='replace').splitlines()
        else:
            lines = self.lines + [self.output.decode(errors='replace')]
        if self.err:
            lines += self.err.read_text(errors='replace').splitlines()
        return '\n'.join(lines[-20:])

    def line(self, timeout):
        """Returns the next line, without its end."""
        deadline = time.monotonic() + timeout
        while b'\n' not in self.output:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failure(f'{self.name}: no line within {timeout} s, '
                              f'after:\n{self.tail()}')
            if not select.select([self.popen.stdout], [], [], left)[0]:
                continue
            data = self.popen.stdout.read()
            if data == b'':
                raise Failure(f'{self.name} ended with status '
                              f'{self.popen.wait()}:\n{self.tail()}')
            self.output += data or b''
        line, _, self.output = self.output.partition(b'\n')
        text = line.decode(errors='replace').rstrip('\r')
        self.lines.append(text)
        if self.on_line:
            self.on_line(text)
        return text

    def expect(self, pattern, timeout):
        """Reads up to a line that matches; returns the lines before it, and
        the match."""
        lines = []
        deadline = time.monotonic() + timeout
        while True:
            text = self.line(max(deadline - time.monotonic(), 0))
            match = re.search(pattern, text)
            if match:
                return lines, match
            lines.append(text)

    def kill(self, sig=signal.SIGKILL):
        try:
            os.killpg(self.popen.pid, sig)
        except ProcessLookupError:
            pass

    def stop(self, timeout=5):
        """Asks it to end, and kills it after @timeout seconds."""
        self.kill(signal.SIGTERM)
        try:
            self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            pass
        self.kill()
        status = self.popen.wait()
        if not self.log:
            self.popen.stdout.close()
        try:
            self.popen.stdin.close()
        except BrokenPipeError:
            pass
        return status


class Client:
    """ivshmem2-client's shell, on the host or in a guest."""

    def __init__(self, process):
        self.process = process
        self.info()                 # waits until it is a peer

    def start(self, command):
        """Begins a command; finish() returns its result."""
        self.process.send(command + '\n')

    def finish(self, timeout=COMMAND_TIMEOUT):
        """Returns the objects that the command printed."""
        deadline = time.monotonic() + timeout
        objects = []
        while True:
            text = self.process.line(max(deadline - time.monotonic(), 0))
            if not text.startswith('{'):
                # the client did not start, or the kernel wrote a message
                if text.startswith('ivshmem2-client: '):
                    raise Refused(text)
                continue
            item = json.loads(text)
            if item.get('event') in ('disconnected', 'connected', 'refused'):
                continue            # it can come at any time
            if 'result' not in item:
                objects.append(item)
            elif item['result'] == 'ok':
                return objects
            elif item['result'] == 'timeout':
                raise TimedOut(item.get('text', 'timeout'))
            else:
                raise Refused(item['text'])

    def run(self, command, timeout=COMMAND_TIMEOUT):
        self.start(command)
        return self.finish(timeout)

    def info(self):
        return self.run('info')[0]

    def states(self):
        return {peer['id']: peer['state'] for peer in self.run('peers')}

    def text(self, section, length, offset=0):
        item = self.run(f'read {section} {offset} {length}')[0]
        return bytes.fromhex(item['hex']).decode(errors='replace').rstrip('\0')


class HostPeer(Client):
    """A peer on the host: ivshmem2-client, connected to a server."""

    def leave(self):
        self.process.popen.stdin.close()
        return self.process.popen.wait(COMMAND_TIMEOUT)


class Load:
    """Many peers on the host; bench/load.c describes the commands."""

    def __init__(self, process):
        self.process = process

    def start(self, *words):
        self.process.send(' '.join(map(str, words)) + '\n')

    def finish(self):
        text = self.process.line(2 * COMMAND_TIMEOUT)
        if not text.startswith('{'):
            raise Failure(text)
        return json.loads(text)

    def run(self, *words):
        self.start(*words)
        return self.finish()


class Qmp:
    """A connection to QEMU's monitor."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(COMMAND_TIMEOUT)
        self.socket.connect(str(path))
        self.file = self.socket.makefile('rw')
        self.file.readline()
        self.command('qmp_capabilities')

    def command(self, execute, **arguments):
        json.dump({'execute': execute, 'arguments': arguments}, self.file)
        self.file.write('\n')
        self.file.flush()
        for text in self.file:
            reply = json.loads(text)
            if 'error' in reply:
                raise Failure(f"{execute}: {reply['error']['desc']}")
            if 'return' in reply:
                return reply['return']
        raise Failure(f'{execute}: QEMU closed its monitor')

    def close(self):
        self.file.close()
        self.socket.close()


class Guest:
    """A Linux guest with a shell on its serial line."""

    def __init__(self, lab, name, devices, memory, kernel):
        self.name = name
        self.qmp_path = lab.path / f'{name}.qmp'
        self.addresses = []
        self.marks = 0
        self.in_client = False
        # Standard output is the serial line.
        self.process = lab.start(name, self.command(lab, devices, memory,
                                                    kernel),
                                 err=lab.path / f'{name}.err')
        self.qmp = None

    def command(self, lab, devices, memory, kernel):
        # VFIO requires interrupt remapping.
        return [lab.env.qemu, '-name', self.name,
                '-nodefaults', '-no-user-config',
                '-display', 'none', '-machine', 'q35', '-accel', 'tcg',
                '-cpu', 'qemu64,-cx16', '-smp', TCG_SMP, '-m', memory,
                '-kernel', lab.env.guest / 'vmlinuz',
                '-initrd', lab.initramfs,
                '-append', f'{KERNEL_OPTIONS} {kernel} driven',
                '-serial', 'stdio',
                '-qmp', f'unix:{self.qmp_path},server=on,wait=off',
                '-device', 'intel-iommu,intremap=on', *devices]

    def plug(self, name, server, peer_id, bus):
        """Plugs in another device; its index is the highest."""
        self.leave_client()
        self.qmp.command('chardev-add', id=f'link-{name}', backend={
            'type': 'socket', 'data': {'server': False, 'addr': {
                'type': 'unix', 'data': {'path': str(server)}}}})
        self.qmp.command('device_add', driver='ivshmem2', id=name, bus=bus,
                         chardev=f'link-{name}', **{'peer-id': str(peer_id)})
        address = self.await_devices(len(self.addresses) + 1)[-1]
        self.run(f'echo vfio-pci > /sys/bus/pci/devices/{address}/'
                 'driver_override; '
                 f'echo {address} > /sys/bus/pci/drivers_probe')
        self.addresses.append(address)

    def unplug(self, name):
        """Unplugs a device, and waits until guest and QEMU released it."""
        self.qmp.command('device_del', id=name)
        self.leave_client()
        self.addresses = self.await_devices(len(self.addresses) - 1)
        deadline = time.monotonic() + COMMAND_TIMEOUT
        while True:
            try:
                # QEMU releases the chardev some time after the guest
                self.qmp.command('chardev-remove', id=f'link-{name}')
                return
            except Failure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def await_devices(self, count):
        """Waits until the guest sees so many ivshmem2 devices; returns their
        addresses."""
        deadline = time.monotonic() + COMMAND_TIMEOUT
        while True:
            found = self.run('cd /sys/bus/pci/devices; grep -l 0x4106 '
                             '*/device; true').split()
            if len(found) == count:
                return [path.split('/')[0] for path in found]
            if time.monotonic() > deadline:
                raise Failure(f'{self.name} has {len(found)} devices instead '
                              f'of {count}')
            time.sleep(0.2)

    def wait_ready(self):
        """Waits until it has booted."""
        # UEFI leaves a line that is not complete.
        _, match = self.process.expect(r'guest is ready:(.*)$', BOOT_TIMEOUT)
        self.addresses = match[1].split()
        self.in_client = False
        if not self.qmp:
            self.qmp = Qmp(self.qmp_path)
        self.run('true')            # skips the first output of the shell
        return self

    def try_run(self, command, timeout=COMMAND_TIMEOUT):
        """Runs a shell command; returns its status and its output."""
        self.leave_client()
        self.marks += 1
        self.process.send(f'{command}\necho "@@{self.marks} $?"\n')
        lines, match = self.process.expect(rf'^(.*)@@{self.marks} (\d+)$',
                                           timeout)
        return int(match[2]), '\n'.join(lines + [match[1]]).strip()

    def run(self, command, timeout=COMMAND_TIMEOUT):
        status, output = self.try_run(command, timeout)
        if status:
            raise Failure(f"{self.name}: '{command}' failed with status "
                          f'{status}:\n{output}')
        return output

    def client(self, device=0, options=''):
        """Starts ivshmem2-client with the device of this index."""
        self.leave_client()
        if device >= len(self.addresses):
            raise Failure(f'{self.name} sees no ivshmem2 device')
        self.process.send(f'ivshmem2-client --pci {self.addresses[device]} '
                          f'--json {options} shell\n')
        self.in_client = True
        return Client(self.process)

    def leave_client(self):
        """Interrupts the client, which ends it in any state."""
        while self.in_client:
            self.process.send('\x03')
            self.in_client = False
            # If the client had not started yet, Ctrl-C hit the shell.
            self.in_client = self.try_run('true')[0] != 0

    def reset(self):
        """Resets the machine, and waits until it has booted."""
        self.qmp.command('system_reset')
        return self.wait_ready()

    def kill(self):
        """Kills QEMU, without a warning to guest or server."""
        self.process.kill()
        self.process.popen.wait()

    def save_counts(self, folder):
        """Copies the coverage counts out, which power off would delete."""
        text = self.run('tar -cz $(find / -xdev -name "*.gcda") 2> /dev/null'
                        ' | base64')
        (folder / f'{self.name}.tgz').write_bytes(base64.b64decode(text))

    def power_off(self):
        """Powers off; returns QEMU's exit status."""
        self.leave_client()
        if 'COVERAGE' in os.environ:
            self.save_counts(Path(os.environ['COVERAGE']))
        self.process.send('poweroff -f\n')
        return self.process.popen.wait(COMMAND_TIMEOUT)


def listens(path):
    """Does a server listen there? A socket that is bound may not yet."""
    return any(line.endswith(f' {path}') and ' 00010000 ' in line
               for line in Path('/proc/net/unix').read_text().splitlines())


class Lab:
    """A context manager: a directory, and processes that use it."""

    def __init__(self, on_line=None):
        self.env = environment()
        self.on_line = on_line      # called with a process's name and a line
        self.path = None
        self.processes = []
        for path in self.env.qemu, self.env.server, self.env.client:
            if not os.access(path, os.X_OK):
                raise Failure(f'{path} is missing, run "make qemu tools"')

    @functools.cached_property
    def initramfs(self):
        """The path of the initial RAM disk, which is built if necessary."""
        if not (self.env.guest / 'vmlinuz').exists():
            raise Failure(f'{self.env.guest}/vmlinuz is missing, run '
                          '"make guest"')
        path = self.env.guest / 'initramfs'
        subprocess.run([HERE / 'initramfs', path], check=True)
        return path

    def __enter__(self):
        self.path = ending.temporary_folder('ivshmem2-')
        # A signal can come between here and the with statement.
        atexit.register(self.end)
        return self

    def __exit__(self, *exc):
        self.end()
        atexit.unregister(self.end)

    def end(self):
        with ending.undisturbed():
            # The server last, so that it sees the others leave
            while self.processes:
                self.processes.pop().stop()
            ending.remove_folder(self.path)

    def start(self, name, command, **more):
        on_line = self.on_line and (lambda text: self.on_line(name, text))
        with ending.undisturbed():
            process = Process(name, command, on_line, **more)
            self.processes.append(process)
        return process

    def server(self, *options, name='server'):
        """Starts a server; returns its process as soon as it listens."""
        path = self.socket(name)
        process = self.start(name, [self.env.server, '--socket', path,
                                    *options], log=self.path / f'{name}.log')
        deadline = time.monotonic() + COMMAND_TIMEOUT
        while not listens(path):
            if process.popen.poll() is not None:
                raise Failure(f'{shlex.join(process.command)} ended with '
                              f'status {process.popen.wait()}:\n'
                              f'{process.tail()}')
            if time.monotonic() > deadline:
                raise Failure(f'{name} does not listen')
            time.sleep(0.02)
        return process

    def socket(self, server='server'):
        return self.path / f'{server}.sock'

    def guest(self, name, *peers, options=(), memory='256', kernel=''):
        """Starts a guest with a device for each of @peers: (server, ID).

        @options are QEMU's, @memory is its size as QEMU takes it, and @kernel
        goes to the kernel's command line."""
        devices = [*options]
        for number, (server, peer_id) in enumerate(peers):
            devices += ['-chardev',
                        f'socket,id=link{number},path={self.socket(server)}',
                        '-device', f'ivshmem2,chardev=link{number},'
                        f'peer-id={peer_id}']
        return Guest(self, name, devices, memory, kernel)

    def load(self, name, *options, server='server'):
        return Load(self.start(name, [self.env.bench / 'ivshmem2-load',
                                      self.socket(server), *options]))

    def host_peer(self, name, *options, server='server'):
        return HostPeer(self.start(name, [
            self.env.client, '--socket', self.socket(server), '--json',
            '--name', name, *options, 'shell']))
