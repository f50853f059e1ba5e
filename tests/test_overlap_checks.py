# SPDX-License-Identifier: Apache-2.0
"""A write that would go where the image keeps a structure of its own is refused, the image marked corrupt and the event
sent: which structures are protected, and the words, are the reference's."""

import shutil

import pytest

from lib import images
from lib.differential import reference
from lib.qcow2damage import COPIED, OFFSET, Damage
from lib.tools import libnbd, need, run

CLUSTER = 4096
GUEST = 40 * CLUSTER
# All that an entry can point to: offset 0, the header, means that there is no cluster.
STRUCTURES = {
    'active-l1': 'active L1 table',
    'active-l2': 'active L2 table',
    'refcount-table': 'refcount table',
    'refcount-block': 'refcount block',
    'snapshot-table': 'snapshot table',
    'inactive-l1': 'inactive L1 table',
    'inactive-l2': 'inactive L2 table',
}
CONSTANT = {'active-l1', 'refcount-table', 'snapshot-table'}
CACHED = CONSTANT | {'active-l2', 'refcount-block', 'inactive-l1'}


@pytest.fixture
def image(tmp, rng):
    """An image with a snapshot, and where its structures are."""
    need('qemu-img', 'qemu-io')
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'cluster_size={CLUSTER}', path, '1M')
    images.qemu_io(path, ['write -P 1 0 256k'])
    run('qemu-img', 'snapshot', '-c', 's', path)
    images.qemu_io(path, ['write -P 2 0 256k'])
    one = Damage(path, rng)
    snapshot_l1 = one.get('>Q', one.snapshots[0])
    places = {
        'active-l1': one.l1[0],
        'active-l2': one.get('>Q', one.l1[0]) & OFFSET,
        'refcount-table': one.reftable[0],
        'refcount-block': one.get('>Q', one.reftable[0]),
        'snapshot-table': one.snapshots[0],
        'inactive-l1': snapshot_l1,
        'inactive-l2': one.get('>Q', snapshot_l1) & OFFSET,
    }
    return path, places


def aim(path, places, name, rng):
    """The guest's cluster lies in the structure."""
    one = Damage(path, rng)
    one.put('>Q', places['active-l2'] + 8 * (GUEST // CLUSTER), COPIED | places[name] // CLUSTER * CLUSTER)
    one.save()


def attempt(daemon, path, check, **options):
    """What happens to a write: None, or the event's data; checks that the image is out of use then."""
    nbd = libnbd()
    served = daemon('--object', 'iothread,id=unused', nbd=True, **options)
    served.blockdev_add(
        driver='qcow2', node_name='q', overlap_check=check, file={'driver': 'file', 'filename': str(path)}
    )
    served.export('q', writable=True)
    handle = served.connect('q')
    try:
        handle.pwrite(b'x' * CLUSTER, GUEST)
        data = None
    except nbd.Error:
        data = served.qmp.wait_event('BLOCK_IMAGE_CORRUPTED')['data']
        with pytest.raises(nbd.Error):
            handle.pwrite(b'x', 0)
        assert not [event for event in served.qmp.events if event['event'] == 'BLOCK_IMAGE_CORRUPTED']
    handle.shutdown()
    served.stop()
    if data:
        served = daemon(**options)
        error = served.qmp.error(
            'blockdev-add', driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)}
        )
        data['reopen'] = error.desc
        served.blockdev_add(
            driver='qcow2', node_name='q', read_only=True, file={'driver': 'file', 'filename': str(path)}
        )
        served.stop()
    return data


@pytest.mark.parametrize('name', STRUCTURES)
@pytest.mark.parametrize('template', ['constant', 'cached', 'all'])
def test_templates(name, template, image, daemon, tmp, rng):
    path, places = image
    aim(path, places, name, rng)
    other = tmp / 'other.qcow2'
    shutil.copy(path, other)
    mine = attempt(daemon, path, template)
    protected = {'constant': CONSTANT, 'cached': CACHED, 'all': set(STRUCTURES)}[template]
    assert (mine is not None) == (name in protected)
    if mine:
        assert mine['fatal'] and mine['node-name'] == 'q' and mine['msg'].endswith(f'(overlaps with {STRUCTURES[name]})')
    assert attempt(daemon, other, template, **reference().options()) == mine


@pytest.mark.parametrize('name', ['inactive-l1', 'inactive-l2', 'active-l2', 'snapshot-table'])
@pytest.mark.parametrize('template, on', [('none', True), ('all', False)])
def test_single_flags(name, template, on, image, daemon, rng):
    path, places = image
    aim(path, places, name, rng)
    assert (attempt(daemon, path, {'template': template, name: on}) is not None) == on


def test_sound_image_is_written_under_all_checks(image, daemon):
    """Also while snapshots come and go: what was a snapshot's table is the disk's alone afterwards."""
    path, _ = image
    served = daemon(nbd=True)
    served.blockdev_add(
        driver='qcow2', node_name='q', overlap_check='all', file={'driver': 'file', 'filename': str(path)}
    )
    served.export('q', writable=True)
    handle = served.connect('q')
    for turn in range(6):
        for at in range(0, 1 << 20, 3 * CLUSTER):
            handle.pwrite(bytes([turn]) * CLUSTER, at)
        if turn % 2 == 0:
            served.cmd('blockdev-snapshot-internal-sync', device='q', name=f's{turn}')
        else:
            served.cmd('blockdev-snapshot-delete-internal-sync', device='q', name=f's{turn - 1}')
    handle.flush()
    handle.shutdown()
    served.stop()
    images.check(path)


def test_end_of_a_long_snapshot_table(image, daemon, tmp, rng):
    """Entries are longer than their fixed part."""
    path, places = image
    for i in range(16):
        run('qemu-img', 'snapshot', '-c', f'{i}'.ljust(250, 'x'), path)
    one = Damage(path, rng)
    places['active-l2'] = one.get('>Q', one.l1[0]) & OFFSET
    places['end'] = one.snapshots[0] + CLUSTER
    aim(path, places, 'end', rng)
    other = shutil.copy(path, tmp / 'other.qcow2')
    mine = attempt(daemon, path, 'constant')
    assert mine and mine['msg'].endswith('(overlaps with snapshot table)')
    assert attempt(daemon, other, 'constant', **reference().options()) == mine
