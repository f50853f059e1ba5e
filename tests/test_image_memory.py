# SPDX-License-Identifier: Apache-2.0
"""Memory that large images take: what is opened costs its L1 table, what is checked far less than a word for each cluster."""

import pytest

from lib.tools import need, run

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ('cluster', 'size', 'limit'),
    [(64 * KIB, 8 * TIB, 8 * MIB), (512, 128 * GIB, 64 * MIB), (2 * MIB, 64 * 1024 * TIB, 8 * MIB)],
    ids=['8 TiB', 'largest with small clusters', 'enormous'],
)
def test_opening(cluster, size, limit, daemon, tmp):
    need('qemu-img')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', f'cluster_size={cluster}', tmp / 'image', size)
    served = daemon()
    before = served.memory('VmHWM')
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(tmp / 'image')})
    assert served.memory('VmHWM') - before < limit


def test_a_chain_of_a_hundred(daemon, tmp):
    need('qemu-img')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / '0', GIB)
    for i in range(1, 100):
        layer = ('-u', '-f', 'qcow2', '-b', f'{i - 1}', '-F', 'qcow2')
        run('qemu-img', 'create', '-q', *layer, tmp / str(i), GIB)
    served = daemon()
    before = served.memory('VmHWM')
    served.blockdev_add(
        driver='qcow2', node_name='q', read_only=True, file={'driver': 'file', 'filename': str(tmp / '99')}
    )
    assert served.memory('VmHWM') - before < 12 * MIB


def test_checking(daemon, tmp):
    """Each of four million clusters is in use."""
    need('qemu-img')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', tmp / 'image', 256 * GIB)
    served = daemon()
    before = served.memory('VmHWM')
    image = {'driver': 'qcow2', 'file': {'driver': 'file', 'filename': str(tmp / 'image')}}
    found = served.cmd('x-blockdev-check', image=image, fix='none')
    assert found['allocated-clusters'] == 256 * GIB // (64 * KIB) and found['check-errors'] == 0
    assert not found.get('leaks') and not found.get('corruptions')
    assert served.memory('VmHWM') - before < 16 * MIB
