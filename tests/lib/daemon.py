# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the daemon under test.

The program comes from GRANARY_DAEMON (default: build/compat/qemu-storage-daemon). Readiness is the pid
file, as the manual says: it is written when everything on the command line has been done. (The monitor's socket alone
tells nothing: the reference even crashes now and then when a client comes while it is still starting.)
"""

import os
import pathlib
import re
import signal
import subprocess

from lib.qmp import DEADLINE, Qmp
from lib.tools import TOP, wait_until

BINARY = os.environ.get('GRANARY_DAEMON', str(TOP / 'build' / 'compat' / 'qemu-storage-daemon'))
SANITIZER = re.compile(r'(ERROR|WARNING): \w*Sanitizer|runtime error:|AddressSanitizer|Assertion .* failed')


class StartError(Exception):
    """The daemon ended instead of becoming ready."""

    def __init__(self, daemon):
        self.exit_code = daemon.process.returncode
        self.stderr = daemon.stderr()
        super().__init__(f'exit {self.exit_code}: {self.stderr}')


class Daemon:
    """A running daemon with a monitor and, on request, an NBD server on a unix socket in its directory."""

    count = 0

    def __init__(self, directory, binary=BINARY, environment=None):
        Daemon.count += 1
        self.directory = pathlib.Path(directory)
        self.binary = str(binary)
        self.name = f'd{Daemon.count}'
        self.nbd_path = self.directory / f'{self.name}-nbd.sock'
        self.error_path = self.directory / f'{self.name}-stderr'
        self.output_path = self.directory / f'{self.name}-stdout'
        self.environment = dict(os.environ, **(environment or {}))
        self.process = None
        self.qmp = None
        self.awaited = False  # its end has been expected and seen

    def spawn(self, *args, pass_fds=(), prefix=(), **options):
        """Starts the program with exactly these arguments."""
        with open(self.error_path, 'wb') as err, open(self.output_path, 'wb') as out:
            self.process = subprocess.Popen(
                [*prefix, self.binary, *[str(a) for a in args]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.directory,
                env=self.environment,
                pass_fds=pass_fds,
                **options,
            )
        return self

    def start(self, *args, nbd=False, pass_fds=(), prefix=()):
        """Starts with a monitor in front of the arguments, waits for its greeting and negotiates."""
        path = self.directory / f'{self.name}-qmp.sock'
        pidfile = self.directory / f'{self.name}.pid'
        front = [
            '--pidfile',
            pidfile,
            '--chardev',
            f'socket,id=testqmp,path={path},server=on,wait=off',
            '--monitor',
            'chardev=testqmp',
        ]
        if nbd:
            front += ['--nbd-server', f'addr.type=unix,addr.path={self.nbd_path}']
        self.spawn(*front, *args, pass_fds=pass_fds, prefix=prefix)
        self.wait_ready(pidfile)
        self.qmp = Qmp.connect(path)
        return self

    def wait_ready(self, pidfile):
        """Waits until the pid file has been written; StartError when the program ends before."""

        def ready():
            ended = self.process.poll() is not None
            if pidfile.is_file() and pidfile.read_bytes().endswith(b'\n'):
                return True
            if ended:
                raise StartError(self)
            return False

        wait_until(ready, 'the pid file')

    def cmd(self, execute, **arguments):
        return self.qmp.cmd(execute, **arguments)

    def blockdev_add(self, **arguments):
        return self.cmd('blockdev-add', **arguments)

    def export(self, node, ident=None, kind='nbd', **arguments):
        return self.cmd('block-export-add', type=kind, id=ident or f'exp-{node}', node_name=node, **arguments)

    def uri(self, name=''):
        return f'nbd+unix:///{name}?socket={self.nbd_path}'

    def stderr(self):
        return self.error_path.read_text(errors='replace')

    def stdout(self):
        return self.output_path.read_text(errors='replace')

    def cpu_seconds(self):
        """User and system time of all threads so far."""
        fields = pathlib.Path(f'/proc/{self.process.pid}/stat').read_text().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def running(self):
        return self.process is not None and self.process.poll() is None

    def wait(self, exit_code=0, timeout=DEADLINE):
        """Waits for the end and checks the exit status and that no sanitizer has spoken."""
        code = self.process.wait(timeout)
        self.awaited = True
        if self.qmp:
            self.qmp.close()
            self.qmp = None
        text = self.stderr()
        assert not SANITIZER.search(text), text
        assert code == exit_code, f'exit status {code}, not {exit_code}: {text}'

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def stop(self, exit_code=0):
        """Orderly end by SIGTERM."""
        if self.running():
            self.signal()
        self.wait(exit_code)

    def quit(self):
        """Orderly end by the quit command; returns the events that came until the connection closed."""
        self.cmd('quit')
        events = self.qmp.drain()
        self.wait()
        return events

    def kill(self):
        """The end without mercy, for crash tests."""
        if self.running():
            self.process.kill()
        self.process.wait()
        self.awaited = True
        if self.qmp:
            self.qmp.close()
            self.qmp = None

    def cleanup(self):
        """End of a test: whatever still runs must end well."""
        if self.process is None:
            return
        if self.running():
            try:
                self.stop()
            finally:
                if self.running():
                    self.kill()
        elif not self.awaited:
            assert (
                self.process.returncode >= 0
            ), f'crashed with signal {-self.process.returncode}: {self.stderr()}'
        assert not SANITIZER.search(self.stderr()), self.stderr()
