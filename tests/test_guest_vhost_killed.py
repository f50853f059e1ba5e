# SPDX-License-Identifier: Apache-2.0
"""A guest under load does not notice more than a pause when its daemon ends and is started again, time after time: it is
killed, or now and then told to end."""

import json
import re

import pytest

from lib import peers, vhost_guest
from lib.guest import Guest, start_or_skip
from lib.tools import need, wait_until

pytestmark = pytest.mark.guest

MEMORY = 768
ENDS = ['kill'] * 20 + ['stop'] * 3
# Requests that a daemon serves before its end: some end in the middle of the negotiation with the front end.
LIVES = (0, 1, 2, 10, 100, 400, 1500)
LAYOUT = [('qcow2', False, 1), ('qcow2', True, 4)]


def served(backend, disks):
    """Requests that each disk has seen in this life of the daemon."""
    stats = {entry['node-name']: entry['stats'] for entry in backend.cmd('query-blockstats', query_nodes=True)}
    return [stats[disk.node]['wr_operations'] + stats[disk.node]['rd_operations'] for disk in disks]


@pytest.mark.better
def test_twenty_kills_and_three_restarts_under_load(tmp, daemon, rng):
    need('qemu-system-x86_64', 'qemu-img')
    disks = vhost_guest.make_disks(tmp, LAYOUT)
    options = [option for disk in disks for option in disk.daemon_options()]
    backend = daemon(*options)
    guest = Guest(
        cpus=4,
        memory=MEMORY,
        qemu=peers.system_emulator(),
        disk_tools=True,
        files=[vhost_guest.CONTENT_MODULE],
        qemu_args=vhost_guest.shared_memory(MEMORY) + [option for disk in disks for option in disk.qemu_options()],
    )
    with start_or_skip(guest, 'vhost_load.py', [json.dumps([disk.for_guest() for disk in disks])]) as machine:
        machine.wait_for('load', 200)
        for end in rng.sample(ENDS, len(ENDS)):
            least = rng.choice(LIVES)
            wait_until(lambda: min(served(backend, disks)) >= least, f'{least} requests on each disk', 100)
            getattr(backend, end)()
            backend = daemon(*options)
        wait_until(lambda: min(served(backend, disks)) >= max(LIVES), 'the guest goes on', 100)
        machine.tell('enough')
        result = machine.finish(900)
    backend.quit()
    result.verify()
    sums = dict(re.findall(r'^sum (\S+) (\S+)$', result.output, re.MULTILINE))
    for disk in disks:
        disk.check(leaks_allowed=True)  # clusters of writes that had not been answered
        assert disk.content_sum(disk.size) == sums[disk.id], disk.id
