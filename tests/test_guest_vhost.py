# SPDX-License-Identifier: Apache-2.0
"""A Linux guest lives with vhost-user-blk disks: raw and qcow2, split and packed rings, one queue and four."""

import json
import re

import pytest

from lib import peers, vhost_guest
from lib.guest import Guest, start_or_skip
from lib.tools import need
from lib.vhost_guest import MIB

pytestmark = pytest.mark.guest

MEMORY = 768
GROWTH = 16 * MIB
LAYOUT = [('raw', 1), ('raw', 4), ('qcow2', 1), ('qcow2', 4)]
DISCARDED = (44 * MIB, 8 * MIB)  # see guest/vhost_disks.py


def life(tmp, daemon, disks, kernel, qemu):
    options = [option for disk in disks for option in disk.daemon_options()]
    backend = daemon(*options)
    guest = Guest(
        kernel=kernel,
        cpus=4,
        memory=MEMORY,
        qemu=qemu,
        disk_tools=True,
        files=[vhost_guest.CONTENT_MODULE],
        qemu_args=vhost_guest.shared_memory(MEMORY) + [option for disk in disks for option in disk.qemu_options()],
    )
    described = [disk.for_guest(block=512, **{'new-size': disk.size + GROWTH}) for disk in disks]
    with start_or_skip(guest, 'vhost_disks.py', [json.dumps(described)]) as machine:
        machine.wait_for('resize', 500)
        for disk in disks:
            backend.cmd('block_resize', node_name=disk.node, size=disk.size + GROWTH)
        machine.wait_for('unplug', 300)
        unplug(machine, disks)
        machine.wait_for('plug')
        machine.qmp.cmd_args('device_add', disks[0].device())
        machine.wait_for('unplug-again', 200)
        unplug(machine, disks[:1])
        for disk in disks:
            backend.unexport(disk.id)
            assert not disk.socket.exists()
        result = machine.finish(700)
    backend.quit()
    result.verify()
    sums = dict(re.findall(r'^sum (\S+) (\S+)$', result.output, re.MULTILINE))
    for disk in disks:
        disk.check()
        assert disk.content_sum(disk.size + GROWTH) == sums[disk.id], disk.id
        begin, size = DISCARDED
        assert any(o <= begin and o + n >= begin + size for o, n in disk.holes()), (disk.id, disk.holes())


def unplug(machine, disks):
    for disk in disks:
        machine.qmp.cmd('device_del', id=disk.id)
        machine.qmp.wait_event('DEVICE_DELETED', device=disk.id)
    machine.tell('unplugged')


def test_split_rings(tmp, daemon):
    """An older guest and an older QEMU."""
    need('qemu-system-x86_64', 'qemu-img')
    disks = vhost_guest.make_disks(tmp, [(kind, False, queues) for kind, queues in LAYOUT])
    life(tmp, daemon, disks, '6.1', None)


@pytest.mark.better
def test_packed_rings(tmp, daemon):
    """The newest of both, and serial numbers."""
    need('qemu-system-x86_64', 'qemu-img')
    disks = vhost_guest.make_disks(tmp, [(kind, True, queues) for kind, queues in LAYOUT])
    for disk in disks:
        disk.serial = f'granary-{disk.id}'
    life(tmp, daemon, disks, '7', peers.system_emulator())
