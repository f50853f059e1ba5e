# SPDX-License-Identifier: Apache-2.0
"""Images made to do harm: oversized header fields, tables that point to themselves, names that reach out
(docs/threat-classes.md). Each is refused or served without a crash, a hang or unbounded memory."""

import struct

import pytest

from lib import images
from lib.program import StartError
from lib.qmp import QmpError
from lib.tools import libnbd, need, run

pytestmark = pytest.mark.sanitize
SIZE = 4 << 20
# Field name: offset and struct format in a qcow2 header (docs/interop/qcow2.txt of QEMU)
FIELDS = {
    'magic': (0, '>I'),
    'version': (4, '>I'),
    'backing_offset': (8, '>Q'),
    'backing_size': (16, '>I'),
    'cluster_bits': (20, '>I'),
    'size': (24, '>Q'),
    'crypt': (32, '>I'),
    'l1_size': (36, '>I'),
    'l1_offset': (40, '>Q'),
    'reftable_offset': (48, '>Q'),
    'reftable_clusters': (56, '>I'),
    'nb_snapshots': (60, '>I'),
    'snapshots_offset': (64, '>Q'),
    'incompatible': (72, '>Q'),
    'compatible': (80, '>Q'),
    'autoclear': (88, '>Q'),
    'refcount_order': (96, '>I'),
    'header_length': (100, '>I'),
    'compression': (104, '>B'),
}
VALUES = {
    '>B': (1, 2, 255),
    '>I': (0, 1, 3, 8, 9, 22, 63, 64, 1000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF),
    '>Q': (
        0,
        1,
        511,
        512,
        0x10000,
        0x30000,
        1 << 40,
        (1 << 56) - 512,
        1 << 62,
        1 << 63,
        (1 << 64) - 65536,
        (1 << 64) - 1,
    ),
}


@pytest.fixture
def image(tmp):
    need('qemu-img', 'qemu-io')
    path = tmp / 'image.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', path, SIZE)
    images.qemu_io(path, ['write -P 1 0 1M', 'write -P 2 3M 64k'])
    return path


def read_at(path, offset, layout):
    with open(path, 'rb') as file:
        file.seek(offset)
        return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def serve(daemon, path):
    return daemon(
        '--blockdev',
        f'qcow2,node-name=q,file.driver=file,file.filename={path}',
        '--export',
        'nbd,id=e,node-name=q,writable=on',
        nbd=True,
    )


def attack(served, path, writable=True):
    """Opens the image if it opens, uses all of it, and sees that the daemon lives; returns whether it opened."""
    nbd = libnbd()
    try:
        served.blockdev_add(
            driver='qcow2',
            node_name='q',
            read_only=not writable,
            file={'driver': 'file', 'filename': str(path), 'read-only': not writable},
        )
    except QmpError as error:
        assert error.desc
        assert served.cmd('query-named-block-nodes') == []
        return False
    try:
        served.export('q', writable=writable)
    except QmpError:
        served.cmd('blockdev-del', node_name='q')
        return True
    handle = served.connect('q', 'base:allocation')
    size = min(handle.get_size(), SIZE)
    for offset in range(0, size, 65536):
        for action in (
            lambda: handle.pread(min(65536, size - offset), offset),
            lambda: writable and handle.pwrite(b'w' * 100, offset),
            lambda: writable and handle.zero(min(4096, size - offset), offset),
            lambda: writable and handle.trim(min(65536, size - offset), offset),
        ):
            try:
                action()
            except nbd.Error:
                pass
    if size:
        try:
            handle.block_status(size, 0, lambda *_: 0)
        except nbd.Error:
            pass
    try:
        handle.shutdown()
    except nbd.Error:
        pass
    assert served.running(), f'crashed: {served.stderr()}'
    assert served.memory() < 700 << 20
    served.unexport('exp-q', mode='hard')
    served.cmd('blockdev-del', node_name='q')
    return True


@pytest.mark.parametrize('field', FIELDS)
def test_header_field(field, image, daemon):
    """Each header field with extreme values, one after the other."""
    offset, layout = FIELDS[field]
    original = image.read_bytes()
    served = daemon(nbd=True)
    for value in VALUES[layout]:
        image.write_bytes(original)
        images.patch(image, offset, struct.pack(layout, value))
        attack(served, image)


@pytest.mark.parametrize('bits', [9, 12, 21])
def test_header_extensions(bits, image, daemon):
    """Extensions with lengths that lie, and an unterminated list of them."""
    served = daemon(nbd=True)
    length = read_at(image, 100, '>I')
    for extension in (
        struct.pack('>II', 0xE2792ACA, 0xFFFFFFFF),
        struct.pack('>II', 0x6803F857, 0xFFFFFFF8),
        struct.pack('>II', 0x44415441, 70000),
        struct.pack('>II', 0x12345678, 0) * 8000,
        struct.pack('>II', 0x23852875, 24) + b'\xff' * 24,
        struct.pack('>II', 0x0537BE77, 16) + b'\xff' * 16,
        struct.pack('>II', 0xE2792ACA, 5) + b'a\0b\xffc',
    ):
        images.patch(image, length, extension[: 65536 - length])
        images.patch(image, 20, struct.pack('>I', bits if bits != 12 else 16))
        attack(served, image, writable=False)
        images.patch(image, 20, struct.pack('>I', 16))


@pytest.mark.better  # the reference ends with a failed assertion
def test_self_referencing_tables(image, daemon):
    """L1 entries that point at the header, the L1 table, the refcount table; L2 entries that point at L2 tables."""
    served = daemon(nbd=True)
    original = image.read_bytes()
    l1 = read_at(image, 40, '>Q')
    reftable = read_at(image, 48, '>Q')
    l2 = read_at(image, l1, '>Q') & 0x00FFFFFFFFFFFE00
    refblock = read_at(image, reftable, '>Q')
    copied = 1 << 63
    for where in (0, l1, reftable, refblock, l2, 1 << 30, (1 << 56) - 65536, 512, 1):
        for at in (l1, l2, l2 + 8, reftable):
            for flags in (copied, 0):
                image.write_bytes(original)
                images.patch(image, at, struct.pack('>Q', where | (flags if at != reftable else 0)))
                attack(served, image)


def test_corruption_is_reported_as_an_event(image, daemon):
    """An L2 entry that points into metadata: the write is refused, the image marked corrupt, the event sent."""
    nbd = libnbd()
    l1 = read_at(image, 40, '>Q')
    l2 = read_at(image, l1, '>Q') & 0x00FFFFFFFFFFFE00
    images.patch(image, l2 + 8 * 20, struct.pack('>Q', (1 << 63) | l1))  # cluster 20 lies where the L1 table is
    served = serve(daemon, image)
    handle = served.connect('q')
    with pytest.raises(nbd.Error):
        handle.pwrite(b'x' * 512, 20 * 65536)
    event = served.qmp.wait_event('BLOCK_IMAGE_CORRUPTED')
    assert event['data']['fatal'] is True and event['data']['node-name'] == 'q'
    assert 'msg' in event['data']
    with pytest.raises(nbd.Error):
        handle.pwrite(b'x' * 512, 0)
    handle.shutdown()
    served.stop()
    assert read_at(image, 72, '>Q') & 2, 'the corrupt bit'


def test_compressed_cluster_descriptors(image, daemon):
    """Compressed clusters that lie about where they are and how long."""
    served = daemon(nbd=True)
    original = image.read_bytes()
    l1 = read_at(image, 40, '>Q')
    l2 = read_at(image, l1, '>Q') & 0x00FFFFFFFFFFFE00
    for entry in (
        1 << 62,
        (1 << 62) | 0x3FFFFFFFFFFFFFFF,
        (1 << 62) | (127 << 54) | 1,
        (1 << 62) | (1 << 40),
        (1 << 62) | (1 << 61) | (1 << 54) - 1,
        (3 << 62) | 0x50000,
        (1 << 62) | l2,
    ):
        image.write_bytes(original)
        images.patch(image, l2, struct.pack('>Q', entry))
        attack(served, image)


def test_random_damage(image, daemon, rng):
    """Random bytes in the metadata; a short fuzzing of the whole path."""
    served = daemon(nbd=True)
    original = image.read_bytes()
    for _ in range(40):
        data = bytearray(original)
        for _ in range(rng.choice((1, 3, 20))):
            at = rng.choice((rng.randrange(112), rng.randrange(65536 * 5)))
            data[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        image.write_bytes(data)
        attack(served, image)


def test_truncated_images(image, daemon):
    served = daemon(nbd=True)
    original = image.read_bytes()
    for length in (
        0,
        1,
        3,
        4,
        71,
        72,
        103,
        104,
        111,
        512,
        65535,
        65536,
        65537,
        131072,
        196608,
        262144,
        len(original) - 65536,
        len(original) - 1,
    ):
        image.write_bytes(original[:length])
        attack(served, image, writable=False)


def set_backing(path, name):
    data = name.encode()
    images.patch(path, 1024, data)
    images.patch(path, 8, struct.pack('>QI', 1024, len(data)))


@pytest.mark.better
@pytest.mark.parametrize(
    'name',
    [
        'json:{"driver":"file","filename":"/etc/hostname"}',
        'nbd://127.0.0.1:1/x',
        'nbd:unix:/tmp/x',
        'json:{"driver":"null-co"}',
        'http://127.0.0.1/x',
        'fat:/etc',
        'ssh://root@127.0.0.1/x',
        'blkdebug::/etc/hostname',
    ],
    ids=['json', 'nbd uri', 'nbd', 'json null', 'http', 'fat', 'ssh', 'blkdebug'],
)
def test_backing_names_are_plain_paths(name, image, daemon):
    """A name inside an image never opens a protocol: it is a file of that name, which does not exist."""
    set_backing(image, name)
    with pytest.raises(StartError) as caught:
        daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={image}')
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    'name', ['x' * 1023, '../' * 300, 'a\nb', '\x01\x02'], ids=['long', 'deep', 'newline', 'control']
)
def test_backing_names_that_do_not_exist(name, image, daemon):
    set_backing(image, name)
    with pytest.raises(StartError) as caught:
        daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={image}')
    assert caught.value.exit_code == 1


@pytest.mark.better  # the reference does not end
def test_backing_chain_that_loops(image, daemon):
    """An image whose backing file is itself, and a longer loop."""
    run('qemu-img', 'rebase', '-u', '-b', 'image.qcow2', '-F', 'qcow2', image, cwd=image.parent)
    with pytest.raises(StartError):
        daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={image},read-only=on')
    other = image.with_name('other.qcow2')
    run(
        'qemu-img',
        'create',
        '-q',
        '-u',
        '-f',
        'qcow2',
        '-b',
        'image.qcow2',
        '-F',
        'qcow2',
        other,
        '1M',
        cwd=image.parent,
    )
    run('qemu-img', 'rebase', '-u', '-b', 'other.qcow2', '-F', 'qcow2', image, cwd=image.parent)
    with pytest.raises(StartError):
        daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={image},read-only=on')


def test_huge_virtual_size(image, daemon, tmp):
    """The largest image that the format allows is served without allocating for it."""
    path = tmp / 'huge.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', path, 1 << 50)
    served = serve(daemon, path)
    handle = served.connect('q')
    end = (1 << 50) - 4096
    handle.pwrite(b'end of the world' * 256, end)
    assert handle.pread(16, end) == b'end of the world'
    handle.zero(1 << 31, 1 << 40)
    assert served.memory() < 300 << 20
    handle.shutdown()


def test_unknown_incompatible_bit_is_refused_by_name(image, daemon):
    """The feature name table of the image names the unknown bit."""
    length = read_at(image, 100, '>I')
    images.patch(
        image,
        length,
        struct.pack('>II', 0x6803F857, 48) + struct.pack('>BB46s', 0, 40, b'time travel') + bytes(8),
    )
    images.patch(image, 72, struct.pack('>Q', 1 << 40))
    with pytest.raises(StartError, match='time travel'):
        daemon('--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={image}')


def test_unknown_autoclear_bits_are_cleared_on_writing(image, daemon):
    images.patch(image, 88, struct.pack('>Q', 1 << 20))
    served = daemon('--blockdev', f'qcow2,node-name=q,read-only=on,file.driver=file,file.filename={image}')
    served.stop()
    assert read_at(image, 88, '>Q') == 1 << 20
    served = serve(daemon, image)
    handle = served.connect('q')
    handle.pwrite(b'x', 0)
    handle.shutdown()
    served.stop()
    assert read_at(image, 88, '>Q') == 0


def test_long_backing_chain_works(image, daemon, tmp):
    """A chain as long as careful users have them is no attack."""
    below = 'image.qcow2'
    for i in range(60):
        run(
            'qemu-img',
            'create',
            '-q',
            '-u',
            '-f',
            'qcow2',
            '-b',
            below,
            '-F',
            'qcow2',
            f'layer{i}',
            SIZE,
            cwd=tmp,
        )
        below = f'layer{i}'
    served = daemon(
        '--blockdev',
        f'qcow2,node-name=q,file.driver=file,file.filename={tmp}/{below}',
        '--export',
        'nbd,id=e,node-name=q',
        nbd=True,
    )
    handle = served.connect('q')
    assert handle.pread(4096, 0) == b'\1' * 4096
    assert handle.pread(4096, 3 << 20) == b'\2' * 4096
    handle.shutdown()


def test_refcount_table_that_names_one_block_for_all(image, daemon):
    """Such a table has no end of free clusters that are all the same ones: writing is refused, the rest works."""
    nbd = libnbd()
    table = read_at(image, 48, '>Q')
    block = read_at(image, table, '>Q')
    images.patch(image, table, struct.pack('>Q', block) * (65536 // 8))
    served = serve(daemon, image)
    handle = served.connect('q')
    assert handle.pread(65536, 0) == b'\1' * 65536
    with pytest.raises(nbd.Error) as refused:
        handle.pwrite(b'x' * 65536, 2 << 20)
    assert refused.value.errno == 'EIO'
    assert served.qmp.wait_event('BLOCK_IMAGE_CORRUPTED')['data']['fatal'] is True
    handle.shutdown()
    served.stop()
    assert served.stderr().count('corrupt:') == 1
    reader = daemon(
        '--blockdev',
        f'qcow2,node-name=q,read-only=on,file.driver=file,file.filename={image},file.read-only=on',
        '--export',
        'nbd,id=e,node-name=q',
        nbd=True,
    )
    handle = reader.connect('q')
    assert handle.pread(65536, 3 << 20) == b'\2' * 65536
    handle.shutdown()
    reader.stop()


def test_one_report_of_corruption(image, daemon):
    """Standard error has one line about it, in the words that those who watch for it look for."""
    nbd = libnbd()
    l1 = read_at(image, 40, '>Q')
    l2 = read_at(image, l1, '>Q') & 0x00FFFFFFFFFFFE00
    images.patch(image, l2 + 8 * 20, struct.pack('>Q', (1 << 63) | l1))
    served = serve(daemon, image)
    handle = served.connect('q')
    for _ in range(2):
        with pytest.raises(nbd.Error):
            handle.pwrite(b'x' * 512, 20 * 65536)
    handle.shutdown()
    served.stop()
    lines = [line for line in served.stderr().splitlines() if 'corrupt' in line]
    assert lines == [
        'qcow2: Marking image as corrupt: Preventing invalid write on metadata (overlaps with active L1 table); '
        'further corruption events will be suppressed'
    ]
