"""A client that speaks the protocol itself (docs/interop/ivshmem2.rst), and
badly where that is wanted.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import mmap
import os
import socket
import struct
import time

from vm import Failure

HEADER = struct.Struct('<HHI')
HELLO, RING, GOODBYE = 1, 3, 5
WELCOME, OUTPUTS, READY, REFUSED = 0x101, 0x102, 0x104, 0x105
MAGIC = 0x324d5649
ANY = 0xffffffff
TIMEOUT = 20
MAX_FDS = 16


def message(kind, payload=b''):
    return HEADER.pack(kind, 0, HEADER.size + len(payload)) + payload


def hello(peer_id, vectors):
    return message(HELLO, struct.pack(
        '<IHHIIII16s16s64s', MAGIC, 1, 1, 1, vectors, peer_id, 0, b'', b'',
        b'raw'))


class RawClient:
    """A connection to a server"""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(str(path))

    def close(self):
        self.socket.close()

    def exactly(self, count, fds):
        data = b''
        while len(data) < count:
            part, more, _, _ = socket.recv_fds(self.socket, count - len(data),
                                               MAX_FDS)
            fds += more
            if not part:
                raise Failure('the server closed the connection')
            data += part
        return data

    def receive(self):
        """Returns type, payload and descriptors of a message."""
        fds = []
        kind, _, length = HEADER.unpack(self.exactly(HEADER.size, fds))
        payload = self.exactly(length - HEADER.size, fds)
        if kind == REFUSED:
            raise Failure(f'refused: {payload[8:].rstrip(bytes(1)).decode()}')
        return kind, payload, fds

    def join(self, peer_id, vectors):
        """Joins; returns the descriptors of the table, of the R/W section and
        of all output sections."""
        kept = []
        self.socket.sendall(hello(peer_id, vectors))
        while True:
            kind, _, fds = self.receive()
            if kind in (WELCOME, OUTPUTS):
                kept += fds
            else:
                for fd in fds:
                    os.close(fd)
            if kind == READY:
                return kept

    def leave(self):
        self.socket.sendall(message(GOODBYE))
        while self.socket.recv(4096):
            pass
        self.close()

    def flood(self, target, vectors, seconds):
        """Sends RING and reads no answers until nothing more fits into the
        socket, or for so long. Returns how many it has sent."""
        self.socket.setblocking(False)
        deadline = time.monotonic() + seconds
        sent = 0
        rest = b''
        while time.monotonic() < deadline:
            rest = rest or message(RING, struct.pack('<II', target,
                                                     sent % vectors))
            try:
                rest = rest[self.socket.send(rest):]
                sent += not rest
            except BlockingIOError:
                time.sleep(seconds / 10)
                try:
                    rest = rest[self.socket.send(rest):]
                except BlockingIOError:
                    break
        return sent


def map_link(path, vectors):
    """Joins for a moment; returns the link's memory: table, R/W section and
    output sections, as maps to read."""
    client = RawClient(path)
    maps = []
    for fd in client.join(ANY, vectors):
        maps.append(mmap.mmap(fd, os.fstat(fd).st_size, mmap.MAP_SHARED,
                              mmap.PROT_READ))
        os.close(fd)
    client.leave()
    return maps
