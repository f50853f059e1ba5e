# SPDX-License-Identifier: Apache-2.0
"""Lazy refcounts: an image is dirty from its first allocation until it is closed; whoever finds a dirty one and may write
repairs it, whatever program has left it."""

import subprocess

import pytest

from lib import images
from lib.tools import need, run

SIZE = 8 << 20
DIRTY = 1


def incompatible(path):
    with open(path, 'rb') as file:
        file.seek(72)
        return int.from_bytes(file.read(8), 'big')


@pytest.fixture(params=['lazy', 'option', 'snapshot', 'extended'])
def image(request, tmp):
    """The image and the options to open it with."""
    need('qemu-img', 'qemu-io')
    path = tmp / 'image.qcow2'
    options = {'lazy': 'lazy_refcounts=on', 'snapshot': 'lazy_refcounts=on,cluster_size=4096', 'option': 'compat=1.1'}
    run(
        'qemu-img', 'create', '-q', '-f', 'qcow2', '-o',
        options.get(request.param, 'extended_l2=on,lazy_refcounts=on'), path, SIZE,
    )  # fmt: skip
    images.qemu_io(path, ['write -P 7 1M 64k'])
    if request.param == 'snapshot':
        run('qemu-img', 'snapshot', '-c', 's', path)
    return path, ',lazy-refcounts=on' if request.param == 'option' else ''


def serve(daemon, image):
    path, options = image
    served = daemon(
        '--blockdev', f'qcow2,node-name=q,file.driver=file,file.filename={path}{options}',
        '--export', 'nbd,id=e,node-name=q,writable=on',
        nbd=True,
    )  # fmt: skip
    handle = served.connect('q')
    return served, handle


def test_clean_end(image, daemon):
    path = image[0]
    served, handle = serve(daemon, image)
    assert handle.pread(4096, 1 << 20) == b'\7' * 4096
    assert incompatible(path) & DIRTY == 0, 'nothing was allocated yet'
    handle.pwrite(b'x' * 200000, 3 << 20)
    assert incompatible(path) & DIRTY
    assert served.cmd('query-named-block-nodes', flat=True)[0]['image']['dirty-flag'] is True
    handle.flush()
    assert incompatible(path) & DIRTY, 'refcounts wait for the end'
    handle.shutdown()
    served.stop()
    assert incompatible(path) & DIRTY == 0
    images.check(path)
    assert images.to_raw(path)[3 << 20 :][:200000] == b'x' * 200000


def test_killed(image, daemon):
    """What a daemon that was killed leaves is dirty; the next one repairs it, one that only reads does not."""
    path = image[0]
    served, handle = serve(daemon, image)
    handle.pwrite(b'x' * 200000, 3 << 20)
    handle.pwrite(b'y' * 100, 1 << 20)
    handle.flush()
    served.kill()
    before = path.read_bytes()
    assert incompatible(path) & DIRTY
    reader = daemon('--blockdev', f'qcow2,node-name=q,read-only=on,file.driver=file,file.filename={path}')
    reader.stop()
    assert path.read_bytes() == before
    served, handle = serve(daemon, image)
    assert incompatible(path) & DIRTY == 0
    assert handle.pread(200000, 3 << 20) == b'x' * 200000
    assert handle.pread(200, 1 << 20) == b'y' * 100 + b'\7' * 100
    handle.pwrite(b'z' * 100000, 5 << 20)
    handle.shutdown()
    served.stop()
    assert incompatible(path) & DIRTY == 0
    images.check(path)


def test_left_dirty_by_the_reference(image, daemon):
    path, options = image
    done = subprocess.run(
        ['qemu-io', '-c', 'write -P 9 2M 1M', '-c', 'flush', '-c', 'abort', '--image-opts',
         f'driver=qcow2,file.filename={path}{options}'],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert done.returncode < 0 and incompatible(path) & DIRTY
    served, handle = serve(daemon, image)
    assert incompatible(path) & DIRTY == 0
    assert handle.pread(1 << 20, 2 << 20) == b'\x09' * (1 << 20)
    handle.shutdown()
    served.stop()
    images.check(path)
