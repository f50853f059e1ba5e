# SPDX-License-Identifier: Apache-2.0
"""Every kind of qcow2 image that qemu-img makes reads byte-identical to the reference."""

import pytest

from lib import images
from lib.tools import need

MATRIX = images.matrix()


def test_the_matrix_is_large_enough():
    assert len(MATRIX) >= 40
    assert len({image.name for image in MATRIX}) == len(MATRIX)


@pytest.mark.parametrize('image', MATRIX, ids=[image.name for image in MATRIX])
def test_reads_like_the_reference(image, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = images.make(image, tmp, rng)
    expected = images.to_raw(path)
    served = daemon(
        '--blockdev',
        f'driver=qcow2,node-name=q,read-only=on,file.driver=file,file.filename={path}',
        '--export',
        'nbd,id=e,node-name=q',
        nbd=True,
    )
    handle = served.connect('q')
    assert handle.get_size() == len(expected)
    step = rng.choice((65536, 512 * 7, 1 << 20))
    for offset in range(0, len(expected), step):
        count = min(step, len(expected) - offset)
        assert (
            handle.pread(count, offset) == expected[offset : offset + count]
        ), f'differs in {count} bytes at {offset}'
    for _ in range(50):
        offset = rng.randrange(len(expected))
        count = min(rng.randrange(1, 5000), len(expected) - offset)
        assert (
            handle.pread(count, offset) == expected[offset : offset + count]
        ), f'differs in {count} bytes at {offset}'
    handle.shutdown()
