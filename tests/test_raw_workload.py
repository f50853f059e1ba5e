# SPDX-License-Identifier: Apache-2.0
"""Random workloads over raw files, with every aio method, with and without O_DIRECT, and through raw's window."""

import pytest

from lib.workload import Workload

SIZE = 4 << 20


@pytest.mark.sanitize
@pytest.mark.parametrize(
    'options',
    [
        'aio=threads',
        'aio=io_uring',
        'aio=native,cache.direct=on',
        'aio=threads,cache.direct=on',
        'aio=io_uring,cache.direct=on',
        'discard=unmap',
        'discard=unmap,detect-zeroes=unmap',
        'locking=off',
    ],
)
def test_raw_file(options, daemon, tmp, rng):
    path = tmp / 'raw.img'
    content = rng.randbytes(SIZE)
    path.write_bytes(content)
    served = daemon(
        '--blockdev',
        f'driver=file,node-name=f,filename={path},{options}',
        '--export',
        'nbd,id=e,node-name=f,writable=on',
        nbd=True,
    )
    handle = served.connect('f')
    work = Workload(handle, content, rng)
    work.run(rounds=40)
    work.compare_all()
    handle.shutdown()
    served.stop()
    assert path.read_bytes() == bytes(work.shadow)


def test_window_stays_inside(daemon, tmp, rng):
    """raw with offset and size never touches a byte outside of its window."""
    path = tmp / 'raw.img'
    content = rng.randbytes(SIZE)
    path.write_bytes(content)
    offset, size = 512 * 77, 512 * 4001
    served = daemon(
        '--blockdev',
        f'driver=raw,node-name=r,offset={offset},size={size},discard=unmap,file.driver=file,file.filename={path}',
        '--export',
        'nbd,id=e,node-name=r,writable=on',
        nbd=True,
    )
    handle = served.connect('r')
    assert handle.get_size() == size
    work = Workload(handle, content[offset : offset + size], rng)
    work.run(rounds=30)
    work.compare_all()
    handle.shutdown()
    served.stop()
    assert path.read_bytes() == content[:offset] + bytes(work.shadow) + content[offset + size :]
