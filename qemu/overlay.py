"""What this project adds to a QEMU tree.

A topic is one file of qemu/hooks. It consists of the commit message of its
patch, of lines "Files: PATTERN..." that name our files of this topic (which
have the same paths here and in QEMU), and of the patch to QEMU's own files.
"Append: FILE TARGET" appends a file of qemu/hooks to a file of QEMU. No other
files of this repository get into a QEMU tree.

A port is a sed script, qemu/ports/VERSION.sed. It adapts our C files to QEMU
trees of that version and newer.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
HOOKS = TOP / 'qemu/hooks'
PORTS = TOP / 'qemu/ports'


class Topic:
    """One file of qemu/hooks."""

    def __init__(self, path):
        self.path = path
        text = path.read_text()
        head, patch = re.split(r'^---\n', text, maxsplit=1, flags=re.M)
        self.patch = recount(patch)
        self.append = re.findall(r'^Append: (\S+) (\S+)$', head, re.M)
        patterns = ' '.join(re.findall(r'^Files: (.*)$', head, re.M)).split()
        self.files = set()
        for pattern in patterns:
            found = [f for f in sorted(TOP.glob(pattern)) if f.is_file()
                     and not f.name.endswith('~')]
            if not found:
                sys.exit(f'{path}: there is no {pattern}')
            self.files |= {str(f.relative_to(TOP)) for f in found}
        self.message = re.sub(r'^(Files|Append): .*\n', '', head,
                              flags=re.M).strip() + '\n'
        self.targets = set(re.findall(r'^--- a/(\S+)', self.patch, re.M))
        self.targets |= {target for _, target in self.append}


def recount(patch):
    """Corrects the line counts of a patch, which may be edited by hand."""
    def header(match):
        first = [line[:1] for line in match[2].splitlines()]
        start = re.match(r'@@ -(\d+)', match[1])[1]
        return (f"@@ -{start},{len(first) - first.count('+')} "
                f"+{start},{len(first) - first.count('-')} @@\n{match[2]}")
    return re.sub(r'^(@@ .*)\n((?:(?!--- a/|@@ ).*\n)*)', header, patch,
                  flags=re.M)


def topics():
    return [Topic(path) for path in sorted(HOOKS.glob('*.patch'))]


@functools.cache
def our_files():
    return {path for topic in topics() for path in topic.files}


def our_paths(text):
    """Messages of compilers and programs of a QEMU build name a copy of our
    file; returns the text with the paths that these files have here."""
    return re.sub(r'\.\./src/([\w./+-]+)', lambda match:
                  str(TOP / match[1]) if match[1] in our_files() else match[0],
                  text)


def version(text):
    return [int(number) for number in re.findall(r'\d+', text)]


class Overlay:
    """The changes that topics make to a pristine tree."""

    def __init__(self, pristine):
        self.pristine = Path(pristine)
        tree = version((self.pristine / 'VERSION').read_text())
        self.ports = [port for port in sorted(PORTS.glob('*.sed'))
                      if version(port.stem) <= tree]
        self.files = {}     # path -> content
        self.links = {}     # path -> target of the symbolic link

    def original(self, path):
        if path in self.files:
            return self.files[path]
        return (self.pristine / path).read_bytes()

    def add(self, topic):
        """Adds a topic and returns the paths it changes."""
        with tempfile.TemporaryDirectory() as stage:
            for path in topic.targets:
                target = Path(stage, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.original(path))
            for source, target in topic.append:
                with Path(stage, target).open('ab') as out:
                    out.write((HOOKS / source).read_bytes())
            if topic.patch.strip():
                done = subprocess.run(
                    ['patch', '-p1', '--no-backup-if-mismatch', '-r-'],
                    cwd=stage, input=topic.patch, text=True,
                    capture_output=True, check=False)
                if done.returncode:
                    sys.exit(f'{topic.path} does not apply to '
                             f'{self.pristine}:\n{done.stdout}')
            for path in topic.targets:
                self.files[path] = Path(stage, path).read_bytes()
        for path in sorted(topic.files):
            if (TOP / path).is_symlink():
                self.links[path] = os.readlink(TOP / path)
            else:
                self.files[path] = self.port(path)
        return topic.targets | topic.files

    def port(self, path):
        content = (TOP / path).read_bytes()
        if path.endswith(('.c', '.h')):
            for port in self.ports:
                content = subprocess.run(['sed', '-E', '-f', port],
                                         input=content, capture_output=True,
                                         check=True).stdout
        return content

    def put(self, path, tree):
        """Writes one of our paths into a tree, if it differs there."""
        target = tree / path
        link = self.links.get(path)
        if link:
            if target.is_symlink() and os.readlink(target) == link:
                return
        elif (target.is_file() and not target.is_symlink()
              and target.read_bytes() == self.files[path]):
            return
        make_room(target)
        if link:
            target.symlink_to(link)
        else:
            target.write_bytes(self.files[path])
            ours = TOP / path
            shutil.copymode(ours if ours.exists() else self.pristine / path,
                            target)


def make_room(target):
    """Makes the folder of a new file, and removes an old file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
