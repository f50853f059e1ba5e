# SPDX-License-Identifier: Apache-2.0
"""Starts and stops the daemon under test.

The program comes from GRANARY_DAEMON (default: build/compat/qemu-storage-daemon). Readiness is the pid
file, as the manual says: it is written when everything on the command line has been done.

The monitor is on a connected socket that the program inherits: even after its pid file the reference may still be
attaching a listening socket to the monitor; a client that comes then is greeted twice, and a part of what it has sent
is lost.
"""

import os
import pathlib
import socket
from signal import SIGTERM

from lib.program import DEADLINE, Program, cpu_seconds
from lib.qmp import Qmp
from lib.tools import TOP, libnbd

BINARY = os.environ.get('GRANARY_DAEMON', str(TOP / 'build' / 'compat' / 'qemu-storage-daemon'))


def monitor_at(path, ident='listening'):
    """Arguments for one more monitor, which listens and takes one client after the other."""
    return ('--chardev', f'socket,id={ident},path={path},server=on,wait=off', '--monitor', f'chardev={ident}')


class Daemon(Program):
    """A running daemon with a monitor and, on request, an NBD server on a unix socket in its directory."""

    letter = 'd'

    def __init__(self, directory, binary=BINARY, environment=None):
        super().__init__(directory, binary, environment)
        self.nbd_path = self.directory / f'{self.name}-nbd.sock'
        self.qmp = None
        self.is_ours = os.path.realpath(binary) == os.path.realpath(BINARY)

    def start(self, *args, nbd=False, pass_fds=(), prefix=()):
        """Starts with a monitor in front of the arguments, waits for its greeting and negotiates."""
        pidfile = self.directory / f'{self.name}.pid'
        front = ['--pidfile', pidfile]
        if nbd:
            front += ['--nbd-server', f'addr.type=unix,addr.path={self.nbd_path}']
        monitor = self.spawn_with_monitor(*front, *args, pass_fds=pass_fds, prefix=prefix)
        self.wait_ready(pidfile)
        self.qmp = Qmp.over(monitor)
        return self

    def spawn_with_monitor(self, *args, pass_fds=(), **options):
        """Starts the program with a monitor in front of the arguments; returns its socket."""
        ours, theirs = socket.socketpair()
        with theirs:
            chardev = f'socket,id=testqmp,fd={theirs.fileno()}'
            self.spawn(
                '--chardev',
                chardev,
                '--monitor',
                'chardev=testqmp',
                *args,
                pass_fds=(*pass_fds, theirs.fileno()),
                **options,
            )
        return ours

    def wait_ready(self, pidfile):
        self.wait_for(lambda: pidfile.is_file() and pidfile.read_bytes().endswith(b'\n'), 'the pid file')

    def reconnect(self, path, **options):
        """From now on through the monitor that listens there."""
        self.disconnect()
        self.qmp = Qmp.connect(path, **options)

    def cmd(self, execute, **arguments):
        return self.qmp.cmd(execute, **arguments)

    def blockdev_add(self, **arguments):
        return self.cmd('blockdev-add', **arguments)

    def node(self, name):
        """What the daemon says of a node."""
        (found,) = [node for node in self.cmd('query-named-block-nodes', flat=True) if node.get('node-name') == name]
        return found

    def export(self, node, ident=None, kind='nbd', **arguments):
        return self.cmd('block-export-add', type=kind, id=ident or f'exp-{node}', node_name=node, **arguments)

    def unexport(self, ident, **options):
        """Ends an export, and waits until it is gone."""
        self.cmd('block-export-del', id=ident, **options)
        self.qmp.wait_event('BLOCK_EXPORT_DELETED', id=ident)

    def uri(self, name=''):
        return f'nbd+unix:///{name}?socket={self.nbd_path}'

    def connect(self, name='', *contexts):
        """A client of the NBD export, by libnbd."""
        handle = libnbd().NBD()
        for context in contexts:
            handle.add_meta_context(context)
        handle.connect_uri(self.uri(name))
        return handle

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def thread_times(self):
        """CPU nanoseconds of each thread by id."""
        return {
            int(task.name): int((task / 'schedstat').read_text().split()[0])
            for task in pathlib.Path(f'/proc/{self.process.pid}/task').iterdir()
        }

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

    def stop(self, number=SIGTERM, exit_code=0):
        """Orderly end; of the reference by a command, because it sometimes goes to sleep over a signal."""
        if self.is_ours or not self.qmp:
            super().stop(number, exit_code)
        else:
            self.quit()

    def kill(self):
        super().kill()
        self.disconnect()
