# SPDX-License-Identifier: Apache-2.0
"""What has to hold after a hostile front end: the daemon lives, says what happened, holds nothing, and serves the next one."""

import contextlib
import os
import pathlib
import socket
import tempfile

from lib.daemon import BINARY, Daemon
from lib.tools import wait_until
from lib.vhostuser import Closed, Guest, Refused, Wire, export

NAME = 'victim'
NULL = 'null-co,node-name=n,size=1048576,read-zeroes=on'


class Victim:
    """A daemon with an export; `node` is what follows --blockdev, of a node called n."""

    def __init__(self, directory, node=NULL, **options):
        self.path = pathlib.Path(directory) / f's{Daemon.count}'
        options = {'writable': 'on'} | options
        self.served = Daemon(directory, BINARY).start(
            '--blockdev', node, *export(self.path, ident=NAME, **options)
        )
        self.queues = int(options.get('num_queues', 1))
        self.broken = False
        self.still_serves()  # so that whatever is allocated once has been
        self.before = self.held()

    @classmethod
    def shared(cls, node=NULL, **options):
        """For a module: a generator of a function that gives the same victim until one is broken."""
        victims = []

        def current():
            if not victims or victims[-1].broken:
                victims.append(cls(directory, node, **options))
            return victims[-1]

        with tempfile.TemporaryDirectory(prefix='gr-') as directory:
            yield current
            for victim in victims:
                if not victim.broken:
                    victim.served.cleanup()

    def held(self):
        """Descriptors by what they are, and mappings of memory that front ends have passed, while an idle client is there:
        when it is served everything of the one before is gone."""
        with Wire(self.path) as wire:
            wire.sync()
            pid, names = self.served.process.pid, []
            for entry in os.listdir(f'/proc/{pid}/fd'):
                with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                    names.append(os.readlink(f'/proc/{pid}/fd/{entry}').split(':')[0])
            with open(f'/proc/{pid}/maps', encoding='utf-8') as maps:
                return sorted(names), sum('memfd:' in line for line in maps)

    def wire(self, **options):
        wire = Wire(self.path)
        wire.negotiate(**options)
        return wire

    def guest(self, **options):
        return Guest(self.path, **options)

    def still_serves(self):
        with Guest(self.path, queues=self.queues, size=16) as guest:
            for queue in range(self.queues):
                assert guest.read(0, 4096, queue=queue) == bytes(4096)

    def log(self):
        return [line for line in self.served.stderr().splitlines() if NAME in line]

    def attack(self, wire, action, *arguments, ended=True):
        """Does it; `ended` says whether the connection has to end with a line in the log. If not it may."""
        lines = len(self.log())
        with wire:
            try:
                action(*arguments)
                if not ended:
                    self.catch_up(wire)
            except (Closed, Refused):
                pass
            if ended:
                assert wire.at_eof(), 'the connection was not ended'
                wait_until(lambda: len(self.log()) > lines, f'a line about {NAME}', deadline=10)

    @staticmethod
    def catch_up(wire):
        """Waits until all messages were looked at, of which some may not even be complete."""
        with contextlib.suppress(OSError):
            wire.sock.shutdown(socket.SHUT_WR)
        while True:  # until Closed
            for fd in wire.receive().fds:
                os.close(fd)

    def check(self):
        """After an attack. Whoever fails here is not used again."""
        try:
            assert self.served.running(), self.served.stderr()
            self.still_serves()
            assert self.held() == self.before
            assert len(self.served.cmd('query-block-exports')) == 1
        except BaseException:
            self.broken = True
            self.served.kill()
            print(self.served.stderr())
            raise
