# SPDX-License-Identifier: Apache-2.0
"""A qcow2 node over two I/O threads with 64 requests in flight, that share clusters or lie in neighbouring ones, while
somebody else resizes the disk, makes and deletes snapshots, and opens the image again with other options."""

import threading

import pytest

from lib import images
from lib.tools import DEADLINE, need, run
from lib.vhostclient import VhostClient

pytestmark = pytest.mark.sanitize

CLUSTER = 2048
SECTOR = 512
TABLE = CLUSTER // 8 * CLUSTER  # bytes for which one L2 table stands
TABLES = 256
SIZE = TABLES * TABLE
SLOTS = 64  # requests in flight; each slot has one
SHARING = CLUSTER // SECTOR  # slots that share clusters: each has a sector of every one
SHARED = 6  # clusters of such a group, followed by one that each slot has for itself
GROUP = (SHARED + SHARING) * CLUSTER
ROUNDS = 100


class Slot:
    """What one request after the other works on, and what is there."""

    def __init__(self, index, rng):
        self.rng = rng
        start = index // SHARING * GROUP
        own = index % SHARING
        self.sectors = [start + i * CLUSTER + own * SECTOR for i in range(SHARED)]
        self.own = start + (SHARED + own) * CLUSTER
        self.cluster = self.own
        self.content = {}

    def move(self):
        """The cluster of one's own is mapped by another table from now on."""
        self.cluster = self.own + self.rng.randrange(TABLES) * TABLE

    def expected(self, offset, count):
        return b''.join(self.content.get(at, bytes(SECTOR)) for at in range(offset, offset + count, SECTOR))

    def note(self, offset, data):
        for at in range(0, len(data), SECTOR):
            self.content[offset + at] = data[at : at + SECTOR]

    def draw(self):
        """A request: (what, offset, data or length)"""
        if self.rng.random() < 0.2:
            self.move()
        what = self.rng.choices(('write', 'read', 'zero', 'trim', 'flush'), (8, 4, 2, 2, 0.3))[0]
        offset, count = self.cluster, CLUSTER
        if what != 'trim':
            first = self.rng.randrange(SHARING)
            offset, count = offset + first * SECTOR, self.rng.randint(1, SHARING - first) * SECTOR
            if self.rng.random() < 0.6:
                offset, count = self.rng.choice(self.sectors), SECTOR
        return what, offset, self.rng.randbytes(count) if what == 'write' else count

    def end(self, request, brought):
        what, offset, data = request
        if what == 'read':
            assert brought == self.expected(offset, data), f'{data} bytes at {offset:#x}'
        elif what != 'flush':
            self.note(offset, data if what == 'write' else bytes(data))


def load(client, slots, rng):
    """A request of every slot at once."""
    requests = [(slot, slot.draw()) for slot in slots]
    rng.shuffle(requests)
    brought = client.finish(client.begin([request for _, request in requests]))
    for (slot, request), data in zip(requests, brought):
        slot.end(request, data)


def compare_all(client, slots):
    for slot in slots:
        places = [('read', at, SECTOR) for at in slot.content]
        for i in range(0, len(places), SLOTS):
            some = places[i : i + SLOTS]
            for place, data in zip(some, client.finish(client.begin(some))):
                slot.end(place, data)


def options(rng):
    return {
        'driver': 'qcow2',
        'node-name': 'n',
        'file': 'f',
        'discard': 'unmap',
        'lazy-refcounts': rng.random() < 0.3,
        'pass-discard-other': rng.random() < 0.5,
        'discard-no-unref': rng.random() < 0.3,
        'l2-cache-entry-size': rng.choice((512, CLUSTER)),
        'l2-cache-size': rng.choice((4096, 1 << 20)),
    }


class Disturber(threading.Thread):
    """Resizes to sizes for which the L1 table has to grow, now and then back, makes snapshots, and reopens."""

    def __init__(self, qmp, rng):
        super().__init__()
        self.qmp, self.rng = qmp, rng
        self.over, self.changes, self.problem = threading.Event(), 0, None
        self.size, self.snapshots = SIZE, []

    def resize(self):
        size = SIZE + (self.changes * 8 * TABLE if self.rng.random() < 0.8 else 0)
        self.size = max(size, self.size) if self.snapshots else size  # an image with snapshots does not shrink
        self.qmp.cmd('block_resize', node_name='n', size=self.size)

    def reopen(self):
        self.qmp.cmd('blockdev-reopen', options=[options(self.rng)])

    def snapshot(self):
        if len(self.snapshots) < 3:
            self.snapshots.append(f's{self.changes}')
            self.qmp.cmd('blockdev-snapshot-internal-sync', device='n', name=self.snapshots[-1])
        else:
            name = self.snapshots.pop(self.rng.randrange(3))
            self.qmp.cmd('blockdev-snapshot-delete-internal-sync', device='n', name=name)

    def run(self):
        try:
            while not self.over.is_set():
                self.rng.choices((self.resize, self.reopen, self.snapshot), (5, 3, 2))[0]()
                self.changes += 1
        except Exception as problem:
            self.problem = problem


def test_requests_resizes_snapshots_and_reopenings(daemon, tmp, rng):
    need('qemu-img')
    image, path = tmp / 'n.qcow2', tmp / 'e'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'cluster_size={CLUSTER}', image, str(SIZE))
    served = daemon('--object', 'iothread,id=t0', '--object', 'iothread,id=t1')
    served.blockdev_add(driver='file', node_name='f', filename=str(image))
    served.qmp.cmd_args('blockdev-add', options(rng))
    served.cmd(
        'block-export-add',
        type='vhost-user-blk',
        id='e',
        node_name='n',
        writable=True,
        addr={'type': 'unix', 'path': str(path)},
        num_queues=2,
        iothread=['t0', 't1'],
    )
    slots = [Slot(i, images.seeded(rng)) for i in range(SLOTS)]
    client = VhostClient(path, images.seeded(rng), packed=rng.random() < 0.5, size=256)
    disturber = Disturber(served.qmp, images.seeded(rng))
    disturber.start()
    try:
        rounds = 0
        while disturber.is_alive() and (rounds < ROUNDS or disturber.changes < 30):
            load(client, slots, rng)
            rounds += 1
    finally:
        disturber.over.set()
        disturber.join(DEADLINE)
    assert disturber.problem is None, disturber.problem
    compare_all(client, slots)
    client.close()
    served.stop()
    images.check(image)
