"""The server of a soak, with or without its supervisor.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import re
import signal
import time
from pathlib import Path

from vm import Failure

START_TIMEOUT = 10

# Peers that do not come back in time: a device that was unplugged meanwhile
SUPERVISED = '--supervise', '--grace', 5

# Lines of its log that a soak causes
KILLED = (r'the server \(pid \d+\) was ended by signal 9',)
EXPECTED = r"runs as the server's user: the kernel does not keep such peers",

# What QEMU says without a server
BY_QEMU = (r'ivshmem2: peer \d+ goes on without its server',
           r'ivshmem2: peer \d+ is connected with its server again')


class Server:
    """A server, with a socket and a log"""

    def __init__(self, lab, supervised, *options):
        self.supervised = supervised
        self.process = lab.server(*(SUPERVISED if supervised else []),
                                  *options)
        self.socket = lab.socket()
        self.log_path = self.process.log
        self.log_read = 0
        self.stopped = False
        self.pid = self.serving()

    def serving(self):
        """Returns the process that serves the link."""
        pid = self.process.popen.pid
        if not self.supervised:
            return pid
        deadline = time.monotonic() + START_TIMEOUT
        while True:
            path = Path(f'/proc/{pid}/task/{pid}/children')
            children = path.read_text().split()
            if len(children) == 1:
                return int(children[0])
            if time.monotonic() > deadline:
                raise Failure(f'the supervisor has {len(children)} children '
                              'instead of 1')
            time.sleep(0.005)

    def roles(self):
        """name -> pid"""
        roles = {'the server': self.pid}
        if self.supervised:
            roles['the supervisor'] = self.process.popen.pid
        return roles

    def pids(self):
        return set(self.roles().values())

    @staticmethod
    def files(lab):
        return sorted(path.name for path in [lab.socket()])

    def stop(self):
        os.kill(self.pid, signal.SIGSTOP)
        self.stopped = True

    def resume(self):
        if self.stopped:
            os.kill(self.pid, signal.SIGCONT)
            self.stopped = False

    def successor(self):
        """Waits for the next process that serves."""
        before = self.pid
        self.stopped = False
        deadline = time.monotonic() + START_TIMEOUT
        while self.pid == before:
            if time.monotonic() > deadline:
                raise Failure('the supervisor starts no other server within '
                              f'{START_TIMEOUT} s')
            time.sleep(0.002)
            self.pid = self.serving()

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.successor()

    def upgrade(self):
        """SIGUSR2; the program is the same."""
        self.process.popen.send_signal(signal.SIGUSR2)
        self.successor()

    def take_away(self):
        """Kills the server, and lets the supervisor start no other."""
        self.process.popen.send_signal(signal.SIGSTOP)
        os.kill(self.pid, signal.SIGKILL)

    def give_back(self):
        self.process.popen.send_signal(signal.SIGCONT)
        self.successor()

    def explains(self, line):
        """May QEMU say this?"""
        return self.supervised and any(re.search(e, line) for e in BY_QEMU)

    def check(self):
        """It runs, and says nothing that is not expected."""
        status = self.process.popen.poll()
        if status is not None:
            raise Failure(f'the server ended with status {status}')
        with self.log_path.open('rb') as log:
            log.seek(self.log_read)
            text = log.read()
        end = text.rfind(b'\n') + 1
        self.log_read += end
        for line in text[:end].decode(errors='replace').splitlines():
            if ': info: ' in line or any(re.search(e, line) for e in (
                    *EXPECTED, *(KILLED if self.supervised else ()))):
                continue
            raise Failure(f'the server says: {line}')

    def unsettled(self, present):
        """All who are present are connected."""
        if not self.supervised:
            return []
        return [f'{actor} is not connected with the server'
                for actor in present if not actor.connected()]
