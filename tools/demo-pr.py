#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""`make demo-pr`: shows persistent reservations in a guest with a SCSI disk and two paths to it.

What the guest shows (tools/demo-pr-guest.sh) comes over a serial line and is printed as it comes. When this
runs on a terminal, a shell in the guest follows.
"""

import contextlib
import os
import pathlib
import select
import shutil
import socket
import sys
import tempfile
import termios
import threading
import tty

TOP = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TOP / 'tests'))

from lib.debian import Unavailable, cache_folder  # noqa: E402
from lib.guest import Guest, GuestFailed  # noqa: E402

TERMINAL = '/dev/ttyS2'
ESCAPE = b'\x1d'  # Ctrl-]
NEXT = """
What next?

  make demo-pr                              on a terminal, this ends with a shell in the guest
  man docs/granary-pr.1                     the command
  man docs/granary-pr-helper.8              the helper, for your own machines
"""


class Run(threading.Thread):
    """The guest, from its start to its end."""

    def __init__(self, guest, arguments, timeout):
        super().__init__(daemon=True)
        self.guest, self.arguments, self.timeout = guest, arguments, timeout
        self.result = self.failure = None
        self.start()

    def run(self):
        try:
            self.result = self.guest.run(TOP / 'tools' / 'demo-pr-guest.sh', self.arguments, self.timeout)
        except (Unavailable, GuestFailed) as why:
            self.failure = str(why)
        except Exception as error:  # a thread has nobody who would catch it
            self.failure = repr(error)


def listening(path):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(1)
    return sock


def accepted(listener, thread):
    """The connection of the guest, or None when it has ended before."""
    listener.settimeout(0.2)
    while thread.is_alive():
        with contextlib.suppress(socket.timeout):
            return listener.accept()[0]
    return None


@contextlib.contextmanager
def raw_terminal(interactive):
    """Keys go to the guest as they are."""
    if not interactive:
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def relay(line, monitor, interactive):
    """Copies between serial line and terminal until the guest ends; true if it was ended from here."""
    escaped = False
    sources = [line, 0] if interactive else [line]
    while True:
        for source in select.select(sources, [], [])[0]:
            if source is line:
                data = line.recv(65536)
                if not data:
                    return escaped
                sys.stdout.buffer.write(data if interactive else data.replace(b'\r', b''))
                sys.stdout.buffer.flush()
                continue
            data = os.read(0, 4096)
            if not data:
                sources.remove(0)
            elif ESCAPE in data:
                escaped = True
                monitor.sendall(b'quit\n')
            else:
                line.sendall(data)


def show(build, folder, interactive):
    """Boots the guest and follows it to its end; the exit status."""
    serial, control = listening(folder / 'serial'), listening(folder / 'monitor')
    guest = Guest(
        'lio',
        programs=[
            (build / 'src' / 'pr-helper' / 'granary-pr-helper', '/usr/bin/granary-pr-helper'),
            (build / 'src' / 'pr-tool' / 'granary-pr', '/usr/bin/granary-pr'),
        ],
        qemu_args=[
            *('-chardev', f'socket,id=serial,path={folder}/serial'),
            *('-device', 'isa-serial,chardev=serial,index=2,irq=5'),
            *('-chardev', f'socket,id=control,path={folder}/monitor', '-mon', 'chardev=control'),
        ],
    )
    size = shutil.get_terminal_size()
    arguments = [TERMINAL, 'interactive' if interactive else 'once', size.lines, size.columns]
    running = Run(guest, arguments, 24 * 3600 if interactive else 300)
    monitor, line = accepted(control, running), accepted(serial, running)
    ended = False
    if line and monitor:
        with raw_terminal(interactive):
            ended = relay(line, monitor, interactive)
    running.join()
    if ended:
        return 0
    if running.failure:
        print(f'\nThe demo has failed: {running.failure}', file=sys.stderr)
        return 1
    if running.result.status:
        print(f'\nThe demo has failed.\n{running.result.output}', file=sys.stderr)
    return running.result.status


def main():
    build = (TOP / (sys.argv[1] if len(sys.argv) > 1 else 'build')).resolve()
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    print(f'Booting a guest. The first time, its parts are fetched into {cache_folder()}.', flush=True)
    if interactive:
        print('Ctrl-] ends it at any time.', flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix='gr-demo-') as folder:
            status = show(build, pathlib.Path(folder), interactive)
    except KeyboardInterrupt:
        return 130
    if status == 0:
        print(NEXT, end='')
    return status


if __name__ == '__main__':
    sys.exit(main())
