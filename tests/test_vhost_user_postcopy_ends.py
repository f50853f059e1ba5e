# SPDX-License-Identifier: Apache-2.0
"""Postcopy that does not come to its end: nobody waits for pages of a client that has gone or is to go."""

import ctypes
import os
import select
import struct

import pytest

from lib.vhostuser import IN, Guest, Msg, Proto, Request, Wire, export
from lib.virtqueue import PAGE

pytestmark = [pytest.mark.better, pytest.mark.sanitize]
CONTENT = bytes(range(1, 256)) * 4113
PUNCH_HOLE_KEEP_SIZE = 3
libc = ctypes.CDLL(None, use_errno=True)


class Migrating(Guest):
    """Tells of its memory as QEMU does on the side that a guest migrates to, and never brings a page."""

    def connect(self, path=None, **_):
        self.wire = Wire(path or self.path)
        self.features, self.protocol = self.wire.negotiate(self.protocol_mask, self.features_mask)
        if not self.protocol & Proto.PAGEFAULT:
            pytest.skip('no userfaultfd for this user')
        (self.faults,) = self.wire.ask(Msg.POSTCOPY_ADVISE).fds
        self.wire.tell(Msg.POSTCOPY_LISTEN)
        (region,) = self.memory.regions
        table = struct.pack('<II', 1, 0) + region.description()
        assert len(self.wire.ask(Msg.SET_MEM_TABLE, table, [region.fd]).payload) == len(table)
        self.wire.send(Msg.SET_MEM_TABLE, bytes(8))  # now faults may come
        self.start(self.queues[0])

    def hold_a_queue(self):
        """A read into a page that is still on its way."""
        request = self.submit(Request(IN, 0, in_bytes=4 * PAGE), kick=False)
        buffer = max(request.buffers, key=lambda one: one.bytes)
        at = ctypes.c_long(buffer.guest + PAGE - 1 & ~(PAGE - 1))
        (region,) = self.memory.regions
        assert libc.fallocate(region.fd, PUNCH_HOLE_KEEP_SIZE, at, ctypes.c_long(PAGE)) == 0
        self.kick(request.queue)
        assert select.select([self.faults], [], [], 30)[0]

    def close(self):
        os.close(self.faults)
        super().close()


@pytest.fixture
def served(daemon, tmp):
    (tmp / 'image').write_bytes(CONTENT[: 1 << 20])
    return daemon('--blockdev', f'file,node-name=n,filename={tmp}/image', *export(tmp / 's'))


@pytest.mark.parametrize('stops', [False, True])
def test_the_client_goes(stops, served, tmp):
    """But keeps the userfaultfd. Its queue may be about to stop."""
    guest = Migrating(tmp / 's')
    guest.hold_a_queue()
    if stops:
        guest.wire.send(Msg.GET_VRING_BASE, struct.pack('<II', 0, 0))
    guest.disconnect()
    with Guest(tmp / 's') as other:
        assert other.read(0, 512) == CONTENT[:512]
    guest.close()


@pytest.mark.parametrize('stops', [False, True])
def test_the_export_goes(stops, served, tmp):
    with Migrating(tmp / 's') as guest:
        guest.hold_a_queue()
        if stops:
            guest.wire.send(Msg.GET_VRING_BASE, struct.pack('<II', 0, 0))
        served.cmd('block-export-del', id='e')
        assert served.cmd('query-block-exports') == []


def test_the_daemon_goes(served, tmp):
    with Migrating(tmp / 's') as guest:
        guest.hold_a_queue()
        served.cmd('quit')
        assert served.process.wait(30) == 0
