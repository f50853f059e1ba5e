# SPDX-License-Identifier: Apache-2.0
"""The export vduse-blk in a guest: the daemon serves a disk of the guest's own kernel (Debian's 6.1 has no VDUSE)."""

import pytest

from lib import peers, vhost_guest
from lib.daemon import BINARY
from lib.guest import Guest, run_or_skip
from lib.tools import TOP, need

pytestmark = pytest.mark.guest


@pytest.mark.better
@pytest.mark.parametrize('kernel', ['6.12', '7'])
def test_disk_on_the_vdpa_bus(kernel):
    need('qemu-img')
    guest = Guest(
        kernel=kernel,
        cpus=2,
        memory=1024,
        qemu=peers.system_emulator(),
        disk_tools=True,
        programs=[(BINARY, '/usr/bin/qemu-storage-daemon'), 'qemu-img:/usr/bin/qemu-img'],
        files=[vhost_guest.CONTENT_MODULE, (TOP / 'tests/lib/qmp.py', '/lab/lib/qmp.py')],
    )
    run_or_skip(guest, 'vduse.py', timeout=600).verify()
