# SPDX-License-Identifier: Apache-2.0
"""Starts and stops a reservation helper, and looks at its processes.

The program comes from GRANARY_PR_HELPER (default: build/compat/qemu-pr-helper, or beside GRANARY_DAEMON).
Only what a bare Python has: the differential test uses this inside the guest too.
"""

import os
import pathlib
import socket
import sys

from lib import prwire
from lib.program import Program, cpu_seconds, status, wait_until
from lib.prwire import Connection

COMPAT = pathlib.Path(__file__).resolve().parents[2] / 'build' / 'compat'
if 'GRANARY_DAEMON' in os.environ:
    COMPAT = pathlib.Path(os.environ['GRANARY_DAEMON']).parent
BINARY = os.environ.get('GRANARY_PR_HELPER', str(COMPAT / 'qemu-pr-helper'))
# A sanitizer's run-time does what the filter of system calls forbids.
SANITIZER_MARK = b'__asan_init'
# Passes descriptor argv[1] on as 3, 4, ... (argv[2] times), as a service manager does; argv[3]: LISTEN_PID.
ACTIVATE = """
import os, sys
for i in range(int(sys.argv[2])):
    os.dup2(int(sys.argv[1]), 3 + i)
os.environ['LISTEN_PID'] = sys.argv[3] or str(os.getpid())
os.environ['LISTEN_FDS'] = sys.argv[2]
os.execv(sys.argv[4], sys.argv[4:])
"""


def sanitized(binary):
    try:
        return SANITIZER_MARK in pathlib.Path(binary).read_bytes()
    except OSError:
        return False


def look(pid, what):
    """A line of the process' status; '' if it has just ended."""
    try:
        return status(pid)[what]
    except (FileNotFoundError, ProcessLookupError):
        return ''


def children(pid, among):
    return [child for child in among if look(child, 'PPid') == str(pid)]


def may_run():
    """Whether a helper that is started here has the capability that it needs (CAP_SYS_RAWIO)."""
    return bool(int(status('self')['CapEff'], 16) & 1 << 17)


def processes(word):
    """All living processes with that word among their arguments."""
    found, wanted = [], os.fsencode(str(word))
    for entry in os.listdir('/proc'):
        if not entry.isdigit():
            continue
        try:
            with open(f'/proc/{entry}/cmdline', 'rb') as file:
                if wanted in file.read().split(b'\0'):
                    found.append(int(entry))
        except OSError:
            continue
    return sorted(found)


def can_connect(path):
    """Whether somebody listens there."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(path))
            return True
    except OSError:
        return False


def greets(path):
    """Whether a helper accepts there and says hello."""
    try:
        with Connection(path, hello=False) as client:
            client.receive(4)
            return True
    except (OSError, prwire.Closed, prwire.Silent):
        return False


class PrHelper(Program):
    """A helper in a directory, with its socket there unless told otherwise."""

    letter = 'h'

    def __init__(self, directory, binary=None, environment=None):
        super().__init__(directory, binary or BINARY, environment)
        self.path = self.directory / f'{self.name}.sock'

    def command(self, *args):
        plain = ['--no-sandbox'] if sanitized(self.binary) else []
        return super().command(*plain, *args)

    def spawn(self, *args, descriptors=None, **options):
        """Starts the program with exactly these arguments; descriptors: its limit of open files."""

        def limit():
            import resource  # not in the smallest Python

            resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))

        return super().spawn(*args, preexec_fn=limit if descriptors else None, **options)

    def start(self, *args, **options):
        """Starts with a socket and waits until clients are greeted."""
        self.spawn('-k', self.path, *args, **options)
        self.wait_ready()
        return self

    def wait_ready(self):
        self.wait_for(lambda: greets(self.path), f'the socket {self.path}')

    def activate(self, *args, count=1, pid='', listening=True):
        """Starts with a listening socket already there, as a service manager does."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(self.path))
            if listening:
                sock.listen(16)
            prefix = [sys.executable, '-c', ACTIVATE, str(sock.fileno()), str(count), str(pid)]
            return self.spawn(*args, prefix=prefix, pass_fds=[sock.fileno()])

    def connect(self, **options):
        return Connection(self.path, **options)

    def pid(self):
        """The process that serves clients: the one that was started."""
        return self.process.pid

    def fds(self):
        """How many descriptors the serving process has open."""
        return len(os.listdir(f'/proc/{self.pid()}/fd'))

    def family(self):
        """All processes of this helper."""
        return processes(self.path)

    def keeper(self):
        """The process that keeps the privileges; None if there is none."""
        return next(iter(children(self.pid(), self.family())), None)

    def workers(self):
        return children(self.keeper(), self.family())

    def cpu_seconds(self):
        return sum(cpu_seconds(pid) for pid in self.family() or [self.pid()])

    def serves(self):
        """One whole conversation, on what no helper may reserve: the answer tells that it is there."""
        with open('/dev/null', 'rb+', buffering=0) as null, self.connect() as client:
            return client.command(prwire.pr_in(prwire.READ_KEYS), null).status == prwire.CHECK_CONDITION

    def wait_gone(self, what='all processes of the helper to end'):
        wait_until(lambda: not self.family(), what)
