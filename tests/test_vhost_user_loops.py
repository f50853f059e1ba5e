# SPDX-License-Identifier: Apache-2.0
"""Queues of one export on several loops: the same answers and the same image, while nodes, loops and exports change.

Guest memory is not used twice here: that a front end may do so once it has seen an answer is an order that ThreadSanitizer, which looks at
one process, cannot see.
"""

import pytest

from lib import images
from lib.images import Image, opts
from lib.tools import need
from lib.vhostload import Load
from lib.vhostuser import Guest
from lib.virtqueue import Memory

pytestmark = [pytest.mark.better, pytest.mark.sanitize]
MIB = 1 << 20
THREADS = ('--object', 'iothread,id=a', '--object', 'iothread,id=b')
rings = pytest.mark.parametrize('packed', [False, True], ids=['split', 'packed'])


def memory():
    whole = Memory.plain(64 * MIB)
    whole.recycles = False
    return whole


@pytest.fixture
def work(daemon, tmp, rng, guests):
    """Starts a daemon with an image of a kind; returns it with a guest of four queues and its load."""

    def factory(kind, iothread=('a', 'b'), **options):
        if kind == 'raw':
            path, node = tmp / 'image', f'file,node-name=n,filename={tmp}/image'
            content = images.fill_raw(path, rng, 2 * MIB)
        else:
            need('qemu-img', 'qemu-io')
            backing = 'raw' if kind == 'backing' else ''
            path = images.make(Image(kind, opts(cluster_size=4096), backing=backing), tmp, rng)
            node = f'qcow2,node-name=n,discard=unmap,file.driver=file,file.filename={path}'
            content = images.to_raw(path)
        served = daemon(*THREADS, '--blockdev', node)
        add(served, tmp / 's', iothread=list(iothread))
        guest = guests(tmp / 's', queues=4, memory=memory(), **options)
        return served, path, Load(guest, content, rng, most=16)

    return factory


def add(served, path, ident='e', **options):
    address = {'type': 'unix', 'path': str(path)}
    options = {'num_queues': 4, 'writable': True, 'addr': address} | options
    served.cmd('block-export-add', type='vhost-user-blk', id=ident, node_name='n', **options)


def end(served, path, load):
    """Everything is compared, through the guest and in the image."""
    load.compare_all()
    load.guest.disconnect()
    served.quit()
    if path.suffix == '.qcow2':
        images.check(path)
        load.compare(images.to_raw(path))
    else:
        load.compare(path.read_bytes())


@rings
@pytest.mark.parametrize('kind', ['raw', 'qcow2', 'backing'])
def test_two_loops(kind, packed, work):
    served, path, load = work(kind, packed=packed)
    load.run(500, depth=64)
    end(served, path, load)


@pytest.mark.parametrize('kind', ['raw', 'qcow2'])
def test_the_node_moves_under_load(kind, work):
    """To other loops and back; the export goes with it."""
    served, path, load = work(kind)
    for i in range(12):
        load.run(15)
        served.cmd('x-blockdev-set-iothread', node_name='n', iothread=('a', 'b', None)[i % 3], force=True)
        load.run(15)
    end(served, path, load)


@pytest.mark.parametrize('kind', ['raw', 'qcow2'])
def test_other_exports_come_and_go(kind, work, tmp):
    """With clients of their own on the same node, and a resize now and then."""
    served, path, load = work(kind)
    for i in range(10):
        load.run(15)
        add(served, tmp / 't', 'f', iothread=['b', 'a'] if i % 2 else 'b')
        with Guest(tmp / 't', queues=4, memory=memory()) as other:
            for queue in range(4):
                other.read(8 * queue, 4096, queue=queue)
            load.run(10)
            served.cmd('block-export-del', id='f')
            assert other.wire.at_eof()
        served.qmp.wait_event('BLOCK_EXPORT_DELETED', id='f')
        served.cmd('block_resize', node_name='n', size=(4 if i % 2 == 0 else 3) * MIB)
    load.compare_all()


@rings
def test_queues_stop_and_start(packed, work):
    served, path, load = work('raw', packed=packed)
    guest = load.guest
    for i in range(30):
        load.run(10)
        queue = guest.queues[i % 4]
        guest.start(queue, guest.stop(queue))
    end(served, path, load)


@rings
def test_killed_and_resumed(packed, work, tmp, daemon):
    """The next daemon has one loop less, or more."""
    served, path, load = work('qcow2', packed=packed, inflight=True)
    for i in range(5):
        for _ in range(30):
            load.step()
        served.kill()
        served = daemon(
            *THREADS, '--blockdev', f'qcow2,node-name=n,discard=unmap,file.driver=file,file.filename={path}'
        )
        add(served, tmp / 's', iothread=['a', 'b'][: 1 + i % 2])
        load.guest.reconnect()
    load.compare_all()
    load.guest.disconnect()
    served.quit()
    images.check(path, leaks_allowed=True)
    load.compare(images.to_raw(path))
