# SPDX-License-Identifier: Apache-2.0
"""The export vduse-blk with a driver that the test plays, over vhost-vdpa in a guest: split rings of all kinds, memory that changes,
broken rules, and daemons that are killed."""

import pytest

from lib.daemon import BINARY
from lib.guest import Guest, run_or_skip
from lib.tools import TOP

pytestmark = pytest.mark.guest


def test_driver_of_our_own():
    guest = Guest(
        kernel='6.12',
        cpus=2,
        disk_tools=True,
        programs=[(BINARY, '/usr/bin/qemu-storage-daemon')],
        files=[(TOP / 'tests/lib/qmp.py', '/lab/lib/qmp.py')],
    )
    run_or_skip(guest, 'vduse_vhost.py', timeout=600).verify()
