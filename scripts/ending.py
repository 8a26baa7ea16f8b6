"""How programs end on SIGINT, SIGTERM and SIGHUP: with exit status 128 plus the
number of the signal, without a traceback, and leaving no temporary folder.

Importing this module is enough. Import it first: until then Python answers
SIGINT with a traceback.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import signal
import sys


SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def end(number, _):
    # make passes SIGTERM on, so a process of its group gets it twice: only
    # the first one counts, or it would interrupt the cleaning up.
    for each in SIGNALS:
        signal.signal(each, lambda *_: None)
    sys.exit(128 + number)


for sig in SIGNALS:
    # A signal that is ignored, as under nohup, stays ignored.
    if signal.getsignal(sig) != signal.SIG_IGN:
        signal.signal(sig, end)


# pylint: disable=wrong-import-position # these take time
import atexit                           # noqa: E402
import contextlib                       # noqa: E402
import shutil                           # noqa: E402
import tempfile                         # noqa: E402
import time                             # noqa: E402
from pathlib import Path                # noqa: E402


@contextlib.contextmanager
def undisturbed():
    """A context in which no signal ends the program. Child processes inherit
    this: they have to call disturbed() before they run another program."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def disturbed():
    """Ends what undisturbed() began, in a child process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def temporary_folder(prefix):
    """Makes a temporary folder, which is removed at exit at the latest."""
    with undisturbed():
        path = Path(tempfile.mkdtemp(prefix=prefix))
        atexit.register(remove_folder, path)
    return path


def remove_folder(path):
    """Removes it, even if a process that was just killed still adds files."""
    for _ in range(50):
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            break
        time.sleep(0.02)
