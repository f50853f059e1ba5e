# SPDX-License-Identifier: Apache-2.0
"""Random writes, zeroing, discards and flushes over the image matrix keep a shadow copy equal byte for byte, and the
reference's check finds the image clean afterwards."""

import pytest

from lib import images
from lib.tools import need
from lib.workload import Workload

MATRIX = images.matrix()


@pytest.mark.parametrize('image', MATRIX, ids=[image.name for image in MATRIX])
def test_shadow_copy_stays_equal(image, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = images.make(image, tmp, rng)
    content = images.to_raw(path)
    options = rng.choice(
        (
            '',
            ',discard=unmap,file.discard=unmap',
            ',discard=unmap',
            ',detect-zeroes=on',
            ',discard=unmap,detect-zeroes=unmap',
        )
    )
    served = daemon(
        '--blockdev',
        f'driver=qcow2,node-name=q,file.driver=file,file.filename={path}{options}',
        '--export',
        'nbd,id=e,node-name=q,writable=on',
        nbd=True,
    )
    handle = served.connect('q')
    work = Workload(handle, content, rng, grain=rng.choice((1, 512, 4096)))
    work.run(rounds=40)
    work.compare_all()
    handle.shutdown()
    served.stop()
    images.check(path)
    assert images.to_raw(path) == bytes(
        work.shadow
    ), 'the reference reads something else from the image afterwards'


@pytest.mark.sanitize
@pytest.mark.parametrize(
    'name', ['v3-65536', 'v2-4096', 'extended-65536', 'backing-chain', 'data-file', 'refcount-1-tiny']
)
def test_restarts_in_between(name, daemon, tmp, rng):
    """The same with the daemon restarted between rounds, so that everything is read back from the file."""
    need('qemu-img', 'qemu-io')
    image = next(image for image in MATRIX if image.name == name)
    path = images.make(image, tmp, rng)
    content = images.to_raw(path)
    for _ in range(4):
        served = daemon(
            '--blockdev',
            f'driver=qcow2,node-name=q,discard=unmap,file.driver=file,file.filename={path}',
            '--export',
            'nbd,id=e,node-name=q,writable=on',
            nbd=True,
        )
        handle = served.connect('q')
        work = Workload(handle, content, rng)
        work.compare_all()
        work.run(rounds=10)
        content = work.shadow
        handle.shutdown()
        served.stop()
        images.check(path)
