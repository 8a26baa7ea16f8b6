"""What tests of server restarts need: a service manager that keeps
descriptors, and peers that look at what they are sent.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import array
import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import time

SOON = 20       # seconds; for what should happen at once
FDS_START = 3

HEADER = struct.Struct('<HHI')
HELLO = struct.Struct('<IHHIIII16s16s64s')
WELCOME = struct.Struct('<HHIIIIIIIQQ16s')
MAGIC = 0x324d5649
ANY = 0xffffffff
NO_SESSION = bytes(16)
MSG_HELLO, MSG_GOODBYE = 1, 5
MSG_WELCOME, MSG_OUTPUTS, MSG_EVENTFDS, MSG_READY, MSG_REFUSED = range(
    0x101, 0x106)


class Failure(Exception):
    """Something was not as it should be."""


def check(condition, words):
    if not condition:
        raise Failure(words)


def same(actual, expected, what='this'):
    if actual != expected:
        raise Failure(f'{what} is {actual!r} instead of {expected!r}')


def wait_until(condition, words, timeout=SOON):
    """Waits until it is true, and returns it."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise Failure(f'{words}: not within {timeout} s')
        time.sleep(0.01)


def identity(fd, pid='self'):
    """What is the same for all descriptors of one file or eventfd"""
    target = os.readlink(f'/proc/{pid}/fd/{fd}')
    if 'eventfd' in target:
        with open(f'/proc/{pid}/fdinfo/{fd}', encoding='ascii') as info:
            numbers = [line.split()[1] for line in info
                       if line.startswith('eventfd-id:')]
        return f'eventfd {numbers[0]}'
    found = os.stat(f'/proc/{pid}/fd/{fd}')
    return f'{target} {found.st_dev}:{found.st_ino}'


def descriptors(pid):
    """{number: identity} of a process"""
    found = {}
    for fd in os.listdir(f'/proc/{pid}/fd'):
        with contextlib.suppress(OSError):
            found[int(fd)] = identity(fd, pid)
    return found


def children(pid):
    with contextlib.suppress(OSError):
        with open(f'/proc/{pid}/task/{pid}/children', encoding='ascii') as f:
            return [int(word) for word in f.read().split()]
    return []


def is_running(pid):
    """Not a zombie either"""
    try:
        with open(f'/proc/{pid}/stat', encoding='utf-8') as stat:
            return stat.read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


class Refused(Failure):
    """The server's answer to HELLO"""


class Peer:
    """A connection to the server."""

    # pylint: disable=too-many-instance-attributes
    def __init__(self, path, peer_id=ANY, session=NO_SESSION):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(SOON)
        self.memory, self.outputs, self.eventfds, self.fds = [], {}, {}, []
        try:
            self.socket.connect(str(path))
            hello = HELLO.pack(MAGIC, 1, 1, 1, 2048, peer_id, 0, session,
                               bytes(16), b'restarts')
            self.socket.sendall(HEADER.pack(MSG_HELLO, 0, 8 + len(hello)) +
                                hello)
            while self.receive() != MSG_READY:
                pass
        except (Failure, OSError):
            self.close()
            raise

    def receive(self):
        """Receives and handles a message, and returns its type."""
        head, fds, _, _ = socket.recv_fds(self.socket, HEADER.size, 16)
        self.fds += fds
        if len(head) < HEADER.size:
            raise Failure('the server closed the connection')
        kind, count, size = HEADER.unpack(head)
        same(len(fds), count, 'descriptors of a message')
        body = b''
        while len(body) < size - HEADER.size:
            body += self.socket.recv(size - HEADER.size - len(body))
        if kind == MSG_WELCOME:
            values = WELCOME.unpack(body)
            self.vectors, self.id, self.session = (values[3], values[4],
                                                   values[11])
            self.memory = [identity(fd) for fd in fds]
            self.table = fds[0]
        elif kind == MSG_OUTPUTS:
            first = struct.unpack('<II', body)[0]
            for index, fd in enumerate(fds):
                self.outputs[first + index] = identity(fd)
        elif kind == MSG_EVENTFDS:
            peer, first = struct.unpack('<II', body)
            for index, fd in enumerate(fds):
                self.eventfds[peer, first + index] = identity(fd)
        elif kind == MSG_REFUSED:
            code = struct.unpack('<I', body[:4])[0]
            text = body[8:].rstrip(b'\0').decode()
            raise Refused(f'{code}: {text}')
        return kind

    def what(self):
        """All that must stay as it is"""
        own = [self.eventfds[self.id, i] for i in range(self.vectors)]
        return self.session, self.id, self.memory, self.outputs, own

    def close(self):
        self.socket.close()
        for fd in self.fds:
            os.close(fd)
        self.fds = []

    def resumed(self, path):
        """The same peer with a new connection; the old one is closed."""
        peer = Peer(path, self.id, self.session)
        try:
            same(peer.what(), self.what(), 'the resumed link')
            # the server decides whether it sends those of the others
            for key in peer.eventfds.keys() & self.eventfds.keys():
                same(peer.eventfds[key], self.eventfds[key], key)
        except Failure:
            peer.close()
            raise
        self.close()
        return peer


class Program:
    """A process whose standard error can be read."""

    def __init__(self, command, log, **options):
        self.log = log
        with open(log, 'ab') as err:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                [str(word) for word in command], stderr=err,
                stdin=subprocess.DEVNULL, **options)
        self.pid = self.process.pid

    def text(self):
        return self.log.read_text(encoding='utf-8')

    def says(self, text):
        """Waits for it in the log."""
        wait_until(lambda: text in self.text(),
                   f'"{text}" in the log ({self.text()})')

    def ends(self, sig=None):
        """Waits for its end, and returns its exit status."""
        if sig:
            self.process.send_signal(sig)
        return self.process.wait(SOON)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Manager:
    """A service manager that keeps descriptors, like systemd: it answers
    nothing, and passes what it has to the next server."""

    def __init__(self, folder, command, room=60000, passed=()):
        self.command, self.room, self.folder = command, room, folder
        self.passed = list(passed)      # descriptors of a socket unit
        # without a file, servers of all users can reach it
        self.path = f'@ivshmem2-restarts-{os.getpid()}-{id(self)}'
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path.replace('@', '\0'))
        self.kept, self.notes = [], []  # (name, descriptor); other messages
        self.program = None

    def read(self, wait=0):
        """Does what the server wants."""
        while select.select([self.socket], [], [], wait)[0]:
            wait = 0
            data, control, _, _ = self.socket.recvmsg(
                4096, socket.CMSG_SPACE(253 * 4))
            fds = array.array('i')
            for _, _, part in control:
                fds.frombytes(part[:len(part) // 4 * 4])
            lines = dict(line.split('=', 1)
                         for line in data.decode().split('\n'))
            if 'FDSTORE' in lines:
                same(lines['FDPOLL'], '0', 'FDPOLL')
                self.kept += [(lines['FDNAME'], fd) for fd in fds]
            elif 'FDSTOREREMOVE' in lines:
                self.remove(lines['FDNAME'])
            else:
                self.notes.append(data.decode())

    def remove(self, name):
        for entry in [e for e in self.kept if e[0] == name]:
            os.close(entry[1])
            self.kept.remove(entry)

    def start(self, *options, ready=True, drop=None, uid=None):
        """Starts a server, which is passed all but what has the name drop."""
        entries = [('socket', fd) for fd in self.passed]
        entries += [entry for entry in self.kept if entry[0] != drop]
        fds = [fd for _, fd in entries]
        wrapper = ('import os, sys, fcntl\n'
                   'fds = [int(f) for f in sys.argv[1].split(",") if f]\n'
                   'high = [fcntl.fcntl(f, fcntl.F_DUPFD, 3 + 2 * len(fds) +'
                   ' max(fds)) for f in fds]\n'
                   'for i, f in enumerate(high): os.dup2(f, 3 + i)\n'
                   'os.closerange(3 + len(fds), 4096)\n'
                   'os.environ["LISTEN_PID"] = str(os.getpid())\n'
                   'os.environ["LISTEN_FDS"] = str(len(fds))\n'
                   # a user may not reach the program's folder
                   'program = os.open(sys.argv[3], os.O_RDONLY | '
                   'os.O_CLOEXEC)\n'
                   'if sys.argv[2]: os.setresuid(*[int(sys.argv[2])] * 3)\n'
                   'os.execve(program, sys.argv[3:], os.environ)\n')
        env = dict(os.environ, NOTIFY_SOCKET=str(self.path),
                   FDSTORE=str(self.room),
                   LISTEN_FDNAMES=':'.join(name for name, _ in entries))
        self.notes = []
        self.program = Program(
            ['python3', '-c', wrapper, ','.join(map(str, fds)),
             '' if uid is None else uid, *self.command, *options],
            self.folder / 'log', pass_fds=fds, env=env)
        if ready:
            wait_until(lambda: self.read(0.05) or 'READY=1' in self.notes or
                       not is_running(self.program.pid), 'ready')
            check('READY=1' in self.notes, self.program.text())
        return self.program

    def end(self, sig=signal.SIGTERM):
        """Ends the server; what it had kept stays."""
        status = self.program.ends(sig)
        self.read()
        return status

    def close(self):
        if self.program:
            self.program.kill()
        for _, fd in self.kept:
            os.close(fd)
        self.kept = []
        self.socket.close()
