"""The server of version 1 from QEMU's tree, to compare with.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import subprocess
import time
from pathlib import Path

SERVER = 'contrib/ivshmem-server/ivshmem-server'
MEMORY = '1M'


def build():
    subprocess.run(['ninja', '-C', os.environ['QEMU_BUILD'], '--quiet', SERVER],
                   check=True, stdout=subprocess.DEVNULL)


def start(lab, name, vectors):
    """Starts a server; returns its process as soon as it listens."""
    path = lab.socket(name)
    process = lab.start('ivshmem-server', [
        Path(os.environ['QEMU_BUILD'], SERVER), '-F', '-S', path,
        '-p', lab.path / f'{name}.pid', '-m', lab.path, '-l', MEMORY,
        '-n', vectors],
        log=lab.path / f'{name}.log')
    while not path.exists():
        time.sleep(0.02)
    return process
