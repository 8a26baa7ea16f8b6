"""Servers, Linux guests and host peers, for the demo and the tests.

A Lab is a temporary directory and the processes that use it. When it ends,
for whatever reason, none of these is left.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import base64
import ctypes
import functools
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

TOP = Path(__file__).resolve().parent.parent
HERE = TOP / 'guest'

# Generous: emulated processors on a machine that has other things to do.
BOOT_TIMEOUT = 180
COMMAND_TIMEOUT = 60

# VFIO needs the IOMMU, and the serial line has room for what guest/init says.
KERNEL_OPTIONS = 'console=ttyS0 quiet loglevel=1 intel_iommu=on'


class Failure(Exception):
    """Something did not happen as it should, in words."""


class Refused(Failure):
    """A command of ivshmem2-client that ended with an error."""


class TimedOut(Failure):
    """A command of ivshmem2-client that gave up waiting."""


def environment():
    """What to run. The variables are those of qemu/env, with defaults."""
    build = Path(os.environ.get('BUILD', TOP / 'build'))
    tools = Path(os.environ.get('TOOLS_BUILD', build / 'tools')) / 'contrib'

    def path(variable, default):
        return Path(os.environ.get(variable, default))

    return SimpleNamespace(
        guest=path('GUEST', build / 'guest'),
        bare_guest=build / 'guest-bare',
        qemu=path('QTEST_QEMU_BINARY',
                  build / 'qemu-trixie/build/qemu-system-x86_64'),
        server=path('IVSHMEM2_SERVER',
                    tools / 'ivshmem2-server/ivshmem2-server'),
        client=path('IVSHMEM2_CLIENT',
                    tools / 'ivshmem2-client/ivshmem2-client'),
        bench=tools.parent / 'bench')


def end_with_parent():
    """In a child: end when the parent is gone, however it went."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


class Process:
    """A program that is ended for sure.

    Its output is read line by line, or goes to the file @log: who writes to a
    pipe that nobody reads comes to a halt.  With @err, its errors go to that
    file: where they would end up inside of a line otherwise.
    """

    def __init__(self, name, command, on_line=None, *, log=None, err=None,
                 env=None):
        self.name = name
        self.command = [str(word) for word in command]
        self.on_line = on_line
        self.output = b''           # not looked at yet
        self.lines = []             # looked at
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
            pass                    # its output will say why

    def tail(self):
        if self.log:
            lines = self.log.read_text(errors='replace').splitlines()
        else:
            lines = self.lines + [self.output.decode(errors='replace')]
        if self.err:
            lines += self.err.read_text(errors='replace').splitlines()
        return '\n'.join(lines[-20:])

    def line(self, timeout):
        """The next line, without its end."""
        deadline = time.monotonic() + timeout
        while b'\n' not in self.output:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failure(f'{self.name} says nothing for {timeout} s; '
                              f'before, it said:\n{self.tail()}')
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
        """Read up to a line that matches; returns the lines and the match."""
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
        """End it politely, then for sure."""
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
        self.info()                 # from here on it is a peer

    def start(self, command):
        """Begin a command; finish() gets its outcome."""
        self.process.send(command + '\n')

    def finish(self, timeout=COMMAND_TIMEOUT):
        """The objects that the command printed."""
        deadline = time.monotonic() + timeout
        objects = []
        while True:
            text = self.process.line(max(deadline - time.monotonic(), 0))
            if not text.startswith('{'):
                # a program that could not start, or a kernel message
                if text.startswith('ivshmem2-client: '):
                    raise Refused(text)
                continue
            item = json.loads(text)
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
    """A peer on the host: ivshmem2-client with the server's socket."""

    def leave(self):
        self.process.popen.stdin.close()
        return self.process.popen.wait(COMMAND_TIMEOUT)


class Load:
    """Many peers on the host: bench/load.c, which tells the commands."""

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
        raise Failure(f'{execute}: QEMU is gone')

    def close(self):
        self.file.close()
        self.socket.close()


class Guest:
    """A Linux guest with a shell on its serial line."""

    def __init__(self, lab, name, devices):
        self.name = name
        self.qmp_path = lab.path / f'{name}.qmp'
        self.addresses = []
        self.marks = 0
        self.in_client = False
        # its serial line is its standard output
        self.process = lab.start(name, self.command(lab, devices),
                                 err=lab.path / f'{name}.err')
        self.qmp = None

    def command(self, lab, devices):
        # VFIO wants interrupts to be remapped.
        return [lab.env.qemu, '-name', self.name,
                '-nodefaults', '-no-user-config',
                '-display', 'none', '-machine', 'q35', '-accel', 'tcg',
                '-cpu', 'qemu64,-cx16', '-m', '256',
                '-kernel', lab.env.guest / 'vmlinuz',
                '-initrd', lab.initramfs,
                '-append', f'{KERNEL_OPTIONS} driven',
                '-serial', 'stdio',
                '-qmp', f'unix:{self.qmp_path},server=on,wait=off',
                '-device', 'intel-iommu,intremap=on', *devices]

    def plug(self, name, server, peer_id, bus):
        """Plug another device in; it becomes the last one."""
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
        """Ask the guest to give it back, and wait until it has."""
        self.qmp.command('device_del', id=name)
        self.leave_client()
        self.addresses = self.await_devices(len(self.addresses) - 1)
        deadline = time.monotonic() + COMMAND_TIMEOUT
        while True:
            try:
                # QEMU lets go of it a little later than the guest
                self.qmp.command('chardev-remove', id=f'link-{name}')
                return
            except Failure:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def await_devices(self, count):
        """The addresses of the ivshmem2 devices, when there are so many."""
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
        """Wait until it has booted."""
        _, match = self.process.expect(r'^guest is ready:(.*)$', BOOT_TIMEOUT)
        self.addresses = match[1].split()
        self.in_client = False
        if not self.qmp:
            self.qmp = Qmp(self.qmp_path)
        self.run('true')            # the shell has said its welcome
        return self

    def try_run(self, command, timeout=COMMAND_TIMEOUT):
        """Run a shell command; returns its status and its output."""
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
        """Become a peer by the device with this index."""
        self.leave_client()
        if device >= len(self.addresses):
            raise Failure(f'{self.name} sees no ivshmem2 device')
        self.process.send(f'ivshmem2-client --pci {self.addresses[device]} '
                          f'--json {options} shell\n')
        self.in_client = True
        return Client(self.process)

    def leave_client(self):
        """Ctrl-C ends the client, whatever it is doing."""
        while self.in_client:
            self.process.send('\x03')
            self.in_client = False
            # the shell may have been interrupted instead
            self.in_client = self.try_run('true')[0] != 0

    def reset(self):
        """Reset the machine, as its button does, and wait for it."""
        self.qmp.command('system_reset')
        return self.wait_ready()

    def kill(self):
        """The virtual machine is gone from one moment to the next."""
        self.process.kill()
        self.process.popen.wait()

    def save_counts(self, folder):
        """What a client for "make coverage" has counted would end here."""
        text = self.run('tar -cz $(find / -xdev -name "*.gcda") 2> /dev/null'
                        ' | base64')
        (folder / f'{self.name}.tgz').write_bytes(base64.b64decode(text))

    def power_off(self):
        """Returns QEMU's exit status."""
        self.leave_client()
        if 'COVERAGE' in os.environ:
            self.save_counts(Path(os.environ['COVERAGE']))
        self.process.send('poweroff -f\n')
        return self.process.popen.wait(COMMAND_TIMEOUT)


class Lab:
    """Use it with "with"."""

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
        """The initial RAM disk of Linux guests, made if need be."""
        if not (self.env.guest / 'vmlinuz').exists():
            raise Failure(f'{self.env.guest}/vmlinuz is missing, run '
                          '"make guest"')
        path = self.env.guest / 'initramfs'
        subprocess.run([HERE / 'initramfs', path], check=True)
        return path

    def __enter__(self):
        for sig in signal.SIGTERM, signal.SIGHUP:
            signal.signal(sig, lambda number, frame: sys.exit(128 + number))
        self.path = Path(tempfile.mkdtemp(prefix='ivshmem2-'))
        return self

    def __exit__(self, *exc):
        for sig in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
            signal.signal(sig, signal.SIG_IGN)
        # the server last: it is to see the others go
        for process in reversed(self.processes):
            process.stop()
        shutil.rmtree(self.path, ignore_errors=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(self, name, command, **more):
        on_line = self.on_line and (lambda text: self.on_line(name, text))
        process = Process(name, command, on_line, **more)
        self.processes.append(process)
        return process

    def server(self, *options, name='server'):
        """Start a server; returns its process when it listens."""
        path = self.socket(name)
        process = self.start(name, [self.env.server, '--socket', path,
                                    *options], log=self.path / f'{name}.log')
        deadline = time.monotonic() + COMMAND_TIMEOUT
        while not path.is_socket():
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

    def guest(self, name, *peers, options=()):
        """Start a guest with a device for each of @peers: (server, ID)."""
        devices = [*options]
        for number, (server, peer_id) in enumerate(peers):
            devices += ['-chardev',
                        f'socket,id=link{number},path={self.socket(server)}',
                        '-device', f'ivshmem2,chardev=link{number},'
                        f'peer-id={peer_id}']
        return Guest(self, name, devices)

    def load(self, name, *options, server='server'):
        return Load(self.start(name, [self.env.bench / 'ivshmem2-load',
                                      self.socket(server), *options]))

    def host_peer(self, name, *options, server='server'):
        return HostPeer(self.start(name, [
            self.env.client, '--socket', self.socket(server), '--json',
            '--name', name, *options, 'shell']))
