# SPDX-License-Identifier: Apache-2.0
"""Internal snapshots against a model: random requests, snapshots made, deleted and gone back to, by the daemon and by
qemu-img in turn. Every snapshot keeps its contents, and the reference's check finds nothing."""


import pytest

from lib import images
from lib.images import MIB, Image, opts
from lib.qmp import QmpError
from lib.tools import libnbd, need, run
from lib.workload import Workload

KINDS = [
    Image('v3-512', opts(cluster_size=512), MIB),
    Image('v3-4096', opts(cluster_size=4096)),
    Image('v3-65536', opts(cluster_size=65536), 4 * MIB),
    Image('v3-2M', opts(cluster_size=2 * MIB), 8 * MIB),
    Image('v2-4096', opts(compat='0.10', cluster_size=4096)),
    *(Image(f'refcount-{bits}', opts(refcount_bits=bits, cluster_size=4096)) for bits in (2, 4, 8, 32, 64)),
    Image('refcount-1', opts(refcount_bits=1, cluster_size=4096), MIB),
    Image('refcount-64-512', opts(refcount_bits=64, cluster_size=512), MIB),
    Image('extended-16384', opts(extended_l2='on', cluster_size=16384), 4 * MIB),
    Image('extended-backing', opts(extended_l2='on'), backing='raw'),
    Image('backing-chain', opts(cluster_size=4096), backing='chain'),
    Image('backing-long', backing='qcow2', backing_size=4 * MIB),
    Image('compressed', opts(cluster_size=4096), compressed=True),
    Image('compressed-65536', compressed=True),
    Image('compressed-extended', opts(extended_l2='on'), compressed=True),
    Image('prealloc', opts(preallocation='metadata', cluster_size=65536)),
    Image('lazy', opts(lazy_refcounts='on')),
]


class Model:
    """An image with its snapshots, and what all of them must hold."""

    def __init__(self, path, rng):
        self.path = path
        self.rng = rng
        self.content = bytearray(images.to_raw(path))
        self.snapshots = {}
        self.made = 0

    def new_name(self):
        self.made += 1
        return f'{self.rng.choice("ab")}{self.made}'

    def any_name(self):
        return self.rng.choice(sorted(self.snapshots))

    def verify(self):
        images.check(self.path)
        assert images.to_raw(self.path) == bytes(self.content)
        raw = f'{self.path}.snapshot'
        for name, content in self.snapshots.items():
            run('qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', '-l', f'snapshot.name={name}', self.path, raw)
            with open(raw, 'rb') as file:
                # qemu-img shows as much of a snapshot as the disk has now.
                assert file.read() == content[: len(self.content)], f'snapshot {name}'

    def listed(self):
        return images.info(self.path).get('snapshots', [])

    def with_qemu_img(self):
        """One change by the reference."""
        if self.snapshots and self.rng.random() < 0.5:
            name = self.any_name()
            if self.rng.random() < 0.5:
                run('qemu-img', 'snapshot', '-a', name, self.path)
                self.content = bytearray(self.snapshots[name])
            else:
                run('qemu-img', 'snapshot', '-d', name, self.path)
                del self.snapshots[name]
        else:
            name = self.new_name()
            run('qemu-img', 'snapshot', '-c', name, self.path)
            self.snapshots[name] = bytes(self.content)


class Session:
    """The daemon serves the image; requests and snapshots alternate."""

    def __init__(self, daemon, model, options=''):
        self.model = model
        self.served = daemon(
            '--blockdev',
            f'driver=qcow2,node-name=q,discard=unmap,file.driver=file,file.filename={model.path}{options}',
            nbd=True,
        )
        self.connect()

    def connect(self):
        self.served.export('q', 'e', writable=True)
        self.handle = self.served.connect('q')
        self.work = Workload(self.handle, self.model.content, self.model.rng)

    def disconnect(self):
        self.model.content = self.work.shadow
        self.handle.shutdown()
        self.served.unexport('e', mode='hard')

    def stop(self):
        self.disconnect()
        self.served.stop()

    def create(self):
        name = self.model.new_name()
        self.served.cmd('blockdev-snapshot-internal-sync', device='q', name=name)
        self.model.snapshots[name] = bytes(self.work.shadow)

    def delete(self):
        name = self.model.any_name()
        info = self.served.cmd('blockdev-snapshot-delete-internal-sync', device='q', name=name)
        assert info['name'] == name
        del self.model.snapshots[name]

    def apply(self):
        name = self.model.any_name()
        self.disconnect()
        self.served.cmd('x-blockdev-snapshot-apply-internal', device='q', name=name)
        self.model.content = bytearray(self.model.snapshots[name])
        self.connect()
        self.work.compare_all()

    def step(self):
        self.work.run(rounds=self.model.rng.randrange(4))
        kind = self.model.rng.random()
        if not self.model.snapshots or kind < 0.5:
            self.create()
        elif kind < 0.75:
            self.delete()
        else:
            self.apply()


def narrow(image):
    """How many snapshots the refcounts have room for."""
    return (1 << image.options.get('refcount_bits', 16)) - 2 if image.options.get('refcount_bits', 16) < 4 else 12


@pytest.mark.parametrize('image', KINDS, ids=[image.name for image in KINDS])
def test_against_model(image, daemon, tmp, rng):
    libnbd()
    need('qemu-img', 'qemu-io')
    model = Model(images.make(image, tmp, rng), rng)
    for _ in range(3):
        session = Session(daemon, model)
        for _ in range(6):
            if len(model.snapshots) > narrow(image) - 2 and model.snapshots:
                session.delete()
            elif narrow(image) > 1:
                session.step()
        if narrow(image) == 0:
            with pytest.raises(QmpError, match='refcounts of 1 bits cannot count'):
                session.create()
        session.work.run(rounds=2)
        session.work.compare_all()
        session.stop()
        model.verify()
        if narrow(image) > 1:
            model.with_qemu_img()
            model.verify()
    assert {one['name'] for one in model.listed()} == set(model.snapshots)


def snapshot_image(tmp):
    """A small image with data and two snapshots; with the place of the table."""
    path = tmp / 's.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=4096', path, '1M')
    images.qemu_io(path, ['write -P 1 0 64k'])
    run('qemu-img', 'snapshot', '-c', 'one', path)
    images.qemu_io(path, ['write -P 2 32k 64k'])
    run('qemu-img', 'snapshot', '-c', 'two', path)
    return path, int.from_bytes(path.read_bytes()[64:72], 'big')


def test_broken_table(daemon, tmp):
    """An image whose snapshot table cannot be is not opened."""
    path, table = snapshot_image(tmp)
    images.patch(path, table + 36, (4096).to_bytes(4, 'big'))
    served = daemon()
    with pytest.raises(QmpError, match='Too much extra metadata in snapshot table entry 0'):
        served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})


@pytest.mark.parametrize(
    'at, data, text',
    [
        (0, ((1 << 62) + 512).to_bytes(8, 'big'), 'Snapshot L1 table offset invalid'),
        (0, (0xFFFFFFFFFFFFF000).to_bytes(8, 'big'), 'Snapshot L1 table offset invalid'),
        (8, (1 << 31).to_bytes(4, 'big'), 'Snapshot L1 table too large'),
    ],
)
def test_broken_l1_tables(at, data, text, daemon, tmp):
    """As with the reference, the image can be used, but its snapshots cannot be changed."""
    path, table = snapshot_image(tmp)
    images.patch(path, table + at, data)
    served = daemon(nbd=True)
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})
    for command in ('blockdev-snapshot-delete-internal-sync', 'x-blockdev-snapshot-apply-internal'):
        with pytest.raises(QmpError, match=text):
            served.cmd(command, device='q', name='one')
    served.export('q', writable=True)
    handle = served.connect('q')
    handle.pwrite(b'3' * 100000, 16384)
    assert handle.pread(200000, 0) == b'\1' * 16384 + b'3' * 100000 + bytes(83616)
    handle.shutdown()
    served.stop()


def test_snapshot_of_free_clusters(daemon, tmp):
    """A snapshot that refers to what the refcounts call free is neither deleted nor applied; the image stays whole."""
    path, table = snapshot_image(tmp)
    data = path.read_bytes()
    l1 = int.from_bytes(data[table : table + 8], 'big')
    images.patch(path, l1, (len(data) + 40960 & ~4095).to_bytes(8, 'big'))
    before = images.to_raw(path)
    served = daemon()
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})
    for command in ('blockdev-snapshot-delete-internal-sync', 'x-blockdev-snapshot-apply-internal'):
        with pytest.raises(QmpError, match='Input/output error'):
            served.cmd(command, device='q', name='one')
    served.cmd('blockdev-snapshot-delete-internal-sync', device='q', name='two')
    served.stop()
    assert images.to_raw(path) == before


def test_unknown_extra_data_is_kept(daemon, tmp):
    """What others have put into the entry of one snapshot survives the making and deleting of others."""
    path, table = snapshot_image(tmp)
    data = bytearray(path.read_bytes())
    second = table + (40 + 24 + 1 + 3 + 7) // 8 * 8
    entry = bytearray(data[second : second + 40 + 24 + 1 + 3])
    entry[36:40] = (24 + 13).to_bytes(4, 'big')
    entry[40:48] = (0x123456789A).to_bytes(8, 'big')
    entry[56:64] = (77).to_bytes(8, 'big')
    entry[64:64] = b'unknown bytes'
    images.patch(path, second, bytes(entry))
    served = daemon()
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})
    served.cmd('blockdev-snapshot-internal-sync', device='q', name='three')
    served.cmd('blockdev-snapshot-delete-internal-sync', device='q', name='one')
    shown = next(n for n in served.cmd('query-named-block-nodes') if n.get('node-name') == 'q')['image']
    served.stop()
    info = images.info(path)
    assert shown['snapshots'] == info['snapshots']
    assert [(s['name'], s['vm-state-size'], s.get('icount')) for s in info['snapshots']] == [
        ('two', 0x123456789A, 77),
        ('three', 0, None),
    ]
    assert bytes(entry[40:]) in path.read_bytes()
    images.check(path)


@pytest.mark.parametrize('cluster', [512, 4096, 65536])
def test_disk_shrinks_under_snapshots(cluster, daemon, tmp, rng):
    """What is cut off stays in the snapshots, and is zeroes where the disk grows again."""
    libnbd()
    need('qemu-img', 'qemu-io')
    path = tmp / 's.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'cluster_size={cluster}', path, '2M')
    model = Model(path, rng)
    session = Session(daemon, model)
    session.work.run(rounds=8)
    session.create()
    session.work.run(rounds=3)
    session.create()
    session.disconnect()
    session.served.cmd('block_resize', node_name='q', size=MIB // 2 + 512)
    session.served.cmd('block_resize', node_name='q', size=2 * MIB)
    model.content[MIB // 2 + 512 :] = bytes(2 * MIB - MIB // 2 - 512)
    session.connect()
    session.work.compare_all()
    session.work.run(rounds=3)
    session.disconnect()
    session.served.cmd('block_resize', node_name='q', size=MIB)
    del model.content[MIB:]
    for name in sorted(model.snapshots):
        session.served.cmd('x-blockdev-snapshot-apply-internal', device='q', name=name)
        model.content = bytearray(model.snapshots[name])
        session.connect()
        session.work.compare_all()
        session.disconnect()
    session.served.stop()
    model.verify()


def test_raw_data_file_ends_with_the_disk(daemon, tmp):
    need('qemu-img', 'qemu-io')
    path = tmp / 's.qcow2'
    options = 'data_file=s.raw,data_file_raw=on'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, path, '2M', cwd=tmp)
    images.qemu_io(path, ['write -P 7 0 2M'])
    served = daemon()
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})
    for size in (MIB, 3 * MIB):
        served.cmd('block_resize', node_name='q', size=size)
        assert (tmp / 's.raw').stat().st_size == size
    served.stop()
    images.check(path)
    assert images.to_raw(path) == (tmp / 's.raw').read_bytes() == b'\7' * MIB + bytes(2 * MIB)


def test_sizes_and_writers(daemon, tmp):
    """A snapshot brings its size back; a writer is in the way."""
    libnbd()
    path = tmp / 's.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', path, '1M')
    images.qemu_io(path, ['write -P 1 0 1M'])
    served = daemon(nbd=True)
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})
    served.cmd('blockdev-snapshot-internal-sync', device='q', name='small')
    served.cmd('block_resize', node_name='q', size=3 * MIB)
    served.cmd('blockdev-snapshot-internal-sync', device='q', name='large')
    served.export('q', 'w', writable=True)
    with pytest.raises(QmpError, match="'write' are both required"):
        served.cmd('x-blockdev-snapshot-apply-internal', device='q', name='small')
    served.unexport('w')
    served.cmd('block-dirty-bitmap-add', node='q', name='b')
    with pytest.raises(QmpError, match='Device has active dirty bitmaps'):
        served.cmd('x-blockdev-snapshot-apply-internal', device='q', name='small')
    served.cmd('block-dirty-bitmap-remove', node='q', name='b')
    with pytest.raises(QmpError, match="Snapshot with id 'null' and name 'none' does not exist on device 'q'"):
        served.cmd('x-blockdev-snapshot-apply-internal', device='q', name='none')

    def size():
        return next(n for n in served.cmd('query-named-block-nodes') if n.get('node-name') == 'q')['image'][
            'virtual-size'
        ]

    for name, expected in (('small', MIB), ('large', 3 * MIB), ('small', MIB)):
        served.cmd('x-blockdev-snapshot-apply-internal', device='q', name=name)
        assert size() == expected
    served.stop()
    images.check(path)
    assert images.to_raw(path) == b'\1' * MIB
