# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the daemon under test.

The program comes from GRANARY_DAEMON (default: build/compat/qemu-storage-daemon). Readiness is the pid
file, as the manual says: it is written when everything on the command line has been done. (The monitor's socket alone
tells nothing: the reference even crashes now and then when a client comes while it is still starting.)
"""

import os

from lib.program import DEADLINE, SANITIZER, Program, StartError, cpu_seconds  # noqa: F401
from lib.qmp import Qmp
from lib.tools import TOP

BINARY = os.environ.get('GRANARY_DAEMON', str(TOP / 'build' / 'compat' / 'qemu-storage-daemon'))


class Daemon(Program):
    """A running daemon with a monitor and, on request, an NBD server on a unix socket in its directory."""

    letter = 'd'

    def __init__(self, directory, binary=BINARY, environment=None):
        super().__init__(directory, binary, environment)
        self.nbd_path = self.directory / f'{self.name}-nbd.sock'
        self.qmp = None

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
        self.wait_for(lambda: pidfile.is_file() and pidfile.read_bytes().endswith(b'\n'), 'the pid file')

    def cmd(self, execute, **arguments):
        return self.qmp.cmd(execute, **arguments)

    def blockdev_add(self, **arguments):
        return self.cmd('blockdev-add', **arguments)

    def export(self, node, ident=None, kind='nbd', **arguments):
        return self.cmd('block-export-add', type=kind, id=ident or f'exp-{node}', node_name=node, **arguments)

    def uri(self, name=''):
        return f'nbd+unix:///{name}?socket={self.nbd_path}'

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def wait(self, exit_code=0, timeout=DEADLINE):
        try:
            super().wait(exit_code, timeout)
        finally:
            if not self.running():
                self.disconnect()

    def disconnect(self):
        if self.qmp:
            self.qmp.close()
            self.qmp = None

    def quit(self):
        """Orderly end by the quit command; returns the events that came until the connection closed."""
        self.cmd('quit')
        events = self.qmp.drain()
        self.wait()
        return events

    def kill(self):
        super().kill()
        self.disconnect()
