# SPDX-License-Identifier: Apache-2.0
"""Compressed clusters: written through the filter `compress`, alone and among other requests, and read by the reference;
written by the reference and read in parts."""


import pytest

from lib import images
from lib.tools import libnbd, need, output, run
from lib.workload import Workload

MIB = 1 << 20
SHAPES = [
    ('zlib', 512, {}),
    ('zlib', 4096, {'compat': '0.10'}),
    ('zlib', 65536, {}),
    ('zlib', 65536, {'refcount_bits': '1'}),
    ('zlib', 2 * MIB, {}),
    ('zlib', 65536, {'extended_l2': 'on'}),
    ('zstd', 4096, {}),
    ('zstd', 65536, {}),
    ('zstd', 2 * MIB, {'extended_l2': 'on'}),
]
IDS = ['-'.join([kind, str(cluster), *more]) for kind, cluster, more in SHAPES]


HALF = bytes(i & 15 for i in range(256))


def compressible(rng, length, kinds=5):
    """Pieces that compress well, badly and, with all kinds, not at all."""
    data = bytearray()
    while len(data) < length:
        piece = rng.choice((512, 4096, 50000))
        kind = rng.randrange(kinds)
        if kind == 0:
            data += bytes(piece)
        elif kind == 1:
            data += rng.randbytes(piece).translate(HALF)
        elif kind < 4:
            data += rng.randbytes(64) * (piece // 64)
        else:
            data += rng.randbytes(piece)
    return bytes(data[:length])


def create(path, kind, cluster, more, size):
    options = {'cluster_size': cluster, **more}
    if kind != 'zlib':
        options['compression_type'] = kind
    text = ','.join(f'{key}={value}' for key, value in options.items())
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', text, path, size)


def serve(daemon, path, *more, discard='unmap'):
    return daemon(
        '--blockdev',
        f'file,node-name=f,filename={path},discard={discard}',
        '--blockdev',
        f'qcow2,node-name=q,file=f,discard={discard}',
        '--blockdev',
        f'compress,node-name=c,file=q,discard={discard}',
        '--export',
        'nbd,id=e,node-name=c,writable=on',
        *more,
        nbd=True,
    )


def used_by_compressed(path):
    done = output('qemu-img', 'check', '-f', 'qcow2', path)
    return ' 0.00% compressed' not in done and 'compressed clusters' in done


@pytest.mark.parametrize(('kind', 'cluster', 'more'), SHAPES, ids=IDS)
def test_any_requests(kind, cluster, more, daemon, tmp, rng):
    """Requests of all sizes beside each other, the ones with parts of clusters among them; then the same contents for the
    reference, for the node below, and after a restart."""
    nbd = libnbd()
    need('qemu-img', 'qemu-io')
    path, size = tmp / 'a.qcow2', 16 * MIB if cluster > MIB else 4 * MIB
    create(path, kind, cluster, more, size)
    served = serve(daemon, path, '--export', 'nbd,id=plain,node-name=q')
    handle = nbd.NBD()
    handle.set_strict_mode(handle.get_strict_mode() & ~nbd.STRICT_ALIGN)
    handle.connect_uri(served.uri('c'))
    if cluster <= 65536:  # what the protocol can say
        assert handle.get_block_size(nbd.SIZE_MINIMUM) == cluster
    work = Workload(handle, bytes(size), rng, largest=min(8 * cluster, 300000))
    work.grain = 512
    rng.randbytes = lambda length, rng=rng.__class__(rng.random()): compressible(rng, length)
    work.run(rounds=30)
    work.grain, work.largest = cluster, min(64 * cluster, 2 * MIB)
    work.run(rounds=10)
    work.compare_all()
    below = served.connect('q')
    assert below.pread(MIB, 0) == work.shadow[:MIB]
    below.shutdown()
    handle.shutdown()
    served.stop()
    images.check(path)
    assert used_by_compressed(path)
    assert images.to_raw(path) == bytes(work.shadow)
    served = serve(daemon, path)
    handle = served.connect('c')
    work.handle = handle
    work.compare_all()
    handle.shutdown()
    served.stop()


@pytest.mark.parametrize('tool', ['qemu-img', 'nbdcopy'])
@pytest.mark.parametrize('kind', ['zlib', 'zstd'])
def test_conversion(kind, tool, daemon, tmp, rng):
    """A copy through the filter is as the reference's conversion, and no larger."""
    need('qemu-img', 'nbdcopy')
    source, path, other = tmp / 'source', tmp / 'a.qcow2', tmp / 'b.qcow2'
    source.write_bytes(compressible(rng, 16 * MIB - 3 * 65536, kinds=4) + bytes(3 * 65536))
    create(path, kind, 65536, {}, 16 * MIB)
    served = serve(daemon, path)
    if tool == 'qemu-img':
        # -S: without it, holes cut requests within clusters, which are then written twice
        run('qemu-img', 'convert', '-n', '-S', '64k', '-f', 'raw', '-O', 'raw', source, served.uri('c'))
    else:
        run('nbdcopy', source, served.uri('c'))
    served.stop()
    images.check(path)
    assert images.to_raw(path) == source.read_bytes()
    options = ['-o', f'compression_type={kind}']
    run('qemu-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow2', *options, source, other)
    assert path.stat().st_size <= other.stat().st_size + 65536


@pytest.mark.parametrize('kind', ['zlib', 'zstd'])
def test_parts_of_clusters(kind, daemon, tmp, rng):
    """What the reference has compressed, in small reads beside each other: forwards, backwards, at random, twice."""
    nbd = libnbd()
    need('qemu-img')
    source, path = tmp / 'source', tmp / 'a.qcow2'
    content = compressible(rng, 8 * MIB)
    source.write_bytes(content)
    options = ['-o', f'compression_type={kind}']
    run('qemu-img', 'convert', '-c', '-f', 'raw', '-O', 'qcow2', *options, source, path)
    served = daemon(
        '--blockdev',
        f'qcow2,node-name=q,read-only=on,file.driver=file,file.filename={path}',
        '--export',
        'nbd,id=e,node-name=q',
        nbd=True,
    )
    handle = served.connect('q')
    work = Workload(handle, content, rng)
    forwards = [(at, at + 4096) for at in range(0, 2 * MIB, 4096)]
    backwards = [(at, at + 12288) for at in range(4 * MIB, 2 * MIB, -12288)]
    chance = [(at, min(at + rng.choice((1, 512, 70000)), 8 * MIB)) for at in rng.sample(range(8 * MIB), 400)]
    for ranges in (forwards, backwards, chance, chance[::-1]):
        for first in range(0, len(ranges), 16):
            reads = [(at, nbd.Buffer(end - at)) for at, end in ranges[first : first + 16]]
            work.wait([handle.aio_pread(buffer, at) for at, buffer in reads])
            for at, buffer in reads:
                work.compare(at, buffer.to_bytearray())
    handle.shutdown()
    served.stop()


def test_external_data_file(daemon, tmp):
    """Has no place for compressed clusters: opens, as with the reference, and refuses writes."""
    nbd = libnbd()
    need('qemu-img')
    path = tmp / 'a.qcow2'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'data_file={tmp / "data"}', path, MIB)
    served = serve(daemon, path)
    handle = served.connect('c')
    with pytest.raises(nbd.Error):
        handle.pwrite(b'x' * 65536, 0)
    assert handle.pread(65536, 0) == bytes(65536)
    handle.zero(65536, 0)
    handle.shutdown()
    served.stop()
    images.check(path)


def test_reopening_with_another_child(daemon, tmp):
    """An image with clusters of the same size takes its place; others are refused, and the old one stays."""
    need('qemu-img')
    create(tmp / 'same.qcow2', 'zstd', 65536, {}, MIB)
    create(tmp / 'other.qcow2', 'zlib', 4096, {}, MIB)
    (tmp / 'raw').write_bytes(bytes(MIB))
    path = tmp / 'a.qcow2'
    create(path, 'zlib', 65536, {}, MIB)
    served = serve(daemon, path)
    for name in ('same', 'other'):
        served.blockdev_add(
            driver='qcow2', node_name=name, file={'driver': 'file', 'filename': str(tmp / f'{name}.qcow2')}
        )
    served.blockdev_add(driver='file', node_name='raw', filename=str(tmp / 'raw'))
    handle = served.connect('c')
    handle.pwrite(b'a' * 65536, 0)
    for name, message in (
        ('raw', 'Compression is not supported for underlying format: file'),
        ('other', 'compresses clusters of 65536 bytes'),
    ):
        options = {'driver': 'compress', 'node-name': 'c', 'file': name}
        assert message in served.qmp.error('blockdev-reopen', options=[options]).desc
        assert handle.pread(65536, 0) == b'a' * 65536
    served.cmd('blockdev-reopen', options=[{'driver': 'compress', 'node-name': 'c', 'file': 'same'}])
    assert handle.pread(65536, 0) == bytes(65536)
    handle.pwrite(b'b' * 65536, 0)
    handle.shutdown()
    served.stop()
    for name, byte in ((path, b'a'), (tmp / 'same.qcow2', b'b')):
        images.check(name)
        assert used_by_compressed(name)
        assert images.to_raw(name)[:65536] == byte * 65536


def test_size_below_changes(daemon, tmp, rng):
    """The filter has the size that its child has been given meanwhile, and compresses up to the new end."""
    need('qemu-img')
    path = tmp / 'image'
    create(path, 'zlib', 65536, {}, MIB)
    served = serve(daemon, path)
    content = b''
    for size in (3 * MIB, 2 * MIB, 4 * MIB):
        served.unexport('e', mode='hard')
        served.cmd('block_resize', node_name='q', size=size)
        served.export('c', 'e', writable=True)
        handle = served.connect('c')
        assert handle.get_size() == size
        assert handle.pread(size, 0) == (content + bytes(size))[:size]
        content = compressible(rng, size, 4)
        handle.pwrite(content, 0)
        assert handle.pread(size, 0) == content
        handle.shutdown()
    served.stop()
    images.check(path)
    assert images.to_raw(path) == content
