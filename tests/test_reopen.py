# SPDX-License-Identifier: Apache-2.0
"""blockdev-reopen under load: nodes get other options, other backing files and filters below them while clients of an
export on two I/O threads read and write; a command that fails changes nothing."""

import shutil
import threading

import pytest

from lib import images
from lib.images import seeded
from lib.qmp import QmpError
from lib.tools import libnbd, run
from lib.workload import Workload

pytestmark = pytest.mark.sanitize

REGION = 1 << 20
CLIENTS = 3
SIZE = CLIENTS * REGION
REOPENINGS = 100


class Graph:
    """A qcow2 image q over a file f, or over the raw filter w of f, with one of two equal backing images (b0, b1)."""

    def __init__(self, served, tmp, rng):
        self.served, self.rng, self.image = served, rng, tmp / 'q.qcow2'
        base = tmp / 'b0.qcow2'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', base, str(SIZE))
        images.write_some(base, rng, SIZE)
        self.content = images.to_raw(base)
        shutil.copy(base, tmp / 'b1.qcow2')
        run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4k', '-b', base, '-F', 'qcow2', self.image)
        for i in (0, 1):
            child = {'driver': 'file', 'filename': str(tmp / f'b{i}.qcow2')}
            served.blockdev_add(driver='qcow2', node_name=f'b{i}', file=child, read_only=True)
        self.f = {'driver': 'file', 'filename': str(self.image), 'node-name': 'f'}
        self.w = {'driver': 'raw', 'file': 'f', 'node-name': 'w'}
        served.cmd('blockdev-add', **self.f)
        served.cmd('blockdev-add', **self.w)
        self.q = {'driver': 'qcow2', 'node-name': 'q', 'file': 'f', 'backing': 'b0'}
        served.cmd('blockdev-add', **self.q)

    def other_options(self):
        """Of q: any of those that can change."""
        rng = self.rng
        options = {
            'backing': rng.choice(('b0', 'b1')),
            'file': rng.choice(('f', 'w')),
            'lazy-refcounts': rng.random() < 0.2,
            'discard': rng.choice(('ignore', 'unmap')),
            'detect-zeroes': rng.choice(('off', 'on')),
            'pass-discard-request': rng.random() < 0.5,
            'pass-discard-other': rng.random() < 0.5,
            'pass-discard-snapshot': rng.random() < 0.5,
            'discard-no-unref': rng.random() < 0.3,
            'overlap-check': rng.choice(('none', 'constant', 'cached', 'all')),
            'l2-cache-entry-size': rng.choice((512, 1024, 4096)),
            'cache-size': rng.choice((4096, 16384, 1 << 20)),
            'cache-clean-interval': rng.choice((0, 1, 600)),
            'cache': {'direct': rng.random() < 0.5, 'no-flush': rng.random() < 0.5},
        }
        required = {key: options.pop(key) for key in ('backing', 'file')}
        kept = rng.sample(sorted(options), rng.randrange(len(options) + 1))
        return {**self.q, **required, **{key: options[key] for key in kept}}

    def reopen(self):
        elements = [self.other_options()]
        if self.rng.random() < 0.5:
            elements.append({**self.f, 'cache': {'direct': self.rng.random() < 0.5}})
        if self.rng.random() < 0.3:
            elements.append({**self.w, 'detect-zeroes': self.rng.choice(('off', 'on'))})
        self.rng.shuffle(elements)
        self.served.cmd('blockdev-reopen', options=elements)

    def fail(self):
        """A transaction whose last element cannot be."""
        broken = self.rng.choice(
            (
                {**self.f, 'filename': 'other'},
                {**self.f, 'read-only': True},
                {**self.q, 'backing': 'q'},
                {**self.q, 'l2-cache-entry-size': 1000},
                {**self.w, 'offset': 1 << 40},
                {'driver': 'qcow2', 'node-name': 'b0', 'file': 'w', 'backing': None},
            )
        )
        before = self.state()
        with pytest.raises(QmpError):
            self.served.cmd('blockdev-reopen', options=[self.other_options(), broken])
        assert self.state() == before

    def state(self):
        """What options and permissions lead to."""
        shown = ('node-name', 'ro', 'file', 'cache', 'detect_zeroes', 'backing_file', 'active')
        nodes = [
            [node.get(key) for key in shown] for node in self.served.cmd('query-named-block-nodes', flat=True)
        ]
        graph = self.served.cmd('x-debug-query-block-graph')
        names = {node['id']: node['name'] for node in graph['nodes']}
        edges = [
            (names[e['parent']], names[e['child']], e['name'], sorted(e['perm']), sorted(e['shared-perm']))
            for e in graph['edges']
        ]
        return nodes, sorted(edges)


class Client(threading.Thread):
    """Works on a region of its own until it is told to stop."""

    def __init__(self, uri, index, content, rng, enough):
        super().__init__()
        self.handle = libnbd().NBD()
        self.handle.connect_uri(uri)
        start = index * REGION
        self.load = Workload(
            self.handle, content[start : start + REGION], rng, grain=512, largest=30000, base=start
        )
        self.enough, self.error = enough, None

    def run(self):
        try:
            while not self.enough.is_set():
                self.load.run(1)
            self.load.compare_all()
        except Exception as error:  # pylint: disable=broad-except
            self.error = error


def test_reopening_under_load(daemon, tmp, rng):
    served = daemon('--object', 'iothread,id=t0', '--object', 'iothread,id=t1', nbd=True)
    graph = Graph(served, tmp, rng)
    served.export('q', 'e', name='e', writable=True, iothread=['t0', 't1'])
    enough = threading.Event()
    clients = [Client(served.uri('e'), i, graph.content, seeded(rng), enough) for i in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        for i in range(REOPENINGS):
            graph.reopen()
            if i % 5 == 0:
                graph.fail()
    finally:
        enough.set()
        for client in clients:
            client.join()
    assert [client.error for client in clients] == [None] * CLIENTS
    served.unexport('e', mode='hard')
    served.quit()
    images.check(graph.image)
    assert images.to_raw(graph.image) == b''.join(bytes(client.load.shadow) for client in clients)


def test_writer_becomes_reader_and_writer_again(daemon, tmp, rng):
    """Turning read-only writes everything out: another program may use the image at once."""
    served = daemon(nbd=True)
    graph = Graph(served, tmp, rng)
    for i in range(3):
        served.export('q', 'e', name='e', writable=True)
        handle = served.connect('e')
        load = Workload(handle, graph.content, seeded(rng))
        load.run(5)
        with pytest.raises(QmpError, match="Read-only block node 'q' cannot support read-write users"):
            served.cmd('blockdev-reopen', options=[{**graph.q, 'read-only': True}])
        load.run(2)
        handle.shutdown()
        served.unexport('e', mode='hard')
        served.cmd(
            'blockdev-reopen', options=[{**graph.q, 'read-only': True}, {**graph.f, 'read-only': True}]
        )
        images.check(graph.image)
        graph.content = bytes(load.shadow)
        assert images.to_raw(graph.image) == graph.content, f'round {i}'
        order = [dict(graph.f), dict(graph.q)]
        rng.shuffle(order)
        served.cmd('blockdev-reopen', options=order)
