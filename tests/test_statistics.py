# SPDX-License-Identifier: Apache-2.0
"""query-blockstats shows true numbers for the traffic of exports."""

import pytest

from lib.tools import need, run

pytestmark = [pytest.mark.sanitize, pytest.mark.better]  # the reference counts nothing for exports


def stats(served, node):
    return next(
        entry for entry in served.cmd('query-blockstats', query_nodes=True) if entry['node-name'] == node
    )['stats']


@pytest.mark.parametrize('kind', ['null', 'raw', 'qcow2'])
def test_counts_known_traffic(kind, daemon, tmp):
    need('qemu-img')
    (tmp / 'raw.img').write_bytes(bytes(1 << 20))
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / 'q.qcow2', '1M')
    node = {
        'null': 'null-co,node-name=n,size=1048576',
        'raw': f'file,node-name=n,filename={tmp}/raw.img,discard=unmap',
        'qcow2': f'qcow2,node-name=n,file.driver=file,file.filename={tmp}/q.qcow2,discard=unmap',
    }[kind]
    served = daemon('--blockdev', node, '--export', 'nbd,id=e,node-name=n,writable=on', nbd=True)
    handle = served.connect('n')
    before = stats(served, 'n')
    for i in range(10):
        handle.pwrite(b'x' * 4096, i * 4096)
    for i in range(7):
        handle.pread(512, i * 512)
    for _ in range(3):
        handle.flush()
    handle.trim(65536, 65536)
    handle.zero(65536, 131072)
    after = stats(served, 'n')

    def grown(name):
        return after[name] - before[name]

    # zeroing counts as writing, as it does for the reference's guest devices
    assert grown('wr_operations') == 11 and grown('wr_bytes') == 40960 + 65536
    assert grown('rd_operations') == 7 and grown('rd_bytes') == 3584
    assert grown('flush_operations') == 3
    assert grown('unmap_operations') == 1 and grown('unmap_bytes') == 65536
    assert after['wr_highest_offset'] >= 40960
    assert after['failed_rd_operations'] == 0 and after['invalid_rd_operations'] == 0
    for name in ('rd_total_time_ns', 'wr_total_time_ns', 'flush_total_time_ns'):
        assert after[name] >= before[name] >= 0
    handle.shutdown()


def test_traffic_of_two_exports_adds_up(daemon):
    served = daemon(
        '--blockdev',
        'null-co,node-name=n,size=1048576',
        '--export',
        'nbd,id=a,node-name=n,writable=on',
        '--export',
        'nbd,id=b,node-name=n,name=b,writable=on',
        nbd=True,
    )
    for name, count in (('n', 5), ('b', 6)):
        handle = served.connect(name)
        for _ in range(count):
            handle.pread(1024, 0)
        handle.shutdown()
    assert stats(served, 'n')['rd_operations'] == 11
    assert stats(served, 'n')['rd_bytes'] == 11 * 1024


def test_other_nodes_stay_at_zero(daemon):
    served = daemon(
        '--blockdev',
        'null-co,node-name=n,size=1048576',
        '--blockdev',
        'null-co,node-name=idle',
        '--export',
        'nbd,id=a,node-name=n',
        nbd=True,
    )
    handle = served.connect('n')
    handle.pread(512, 0)
    assert stats(served, 'idle')['rd_operations'] == 0
    assert served.cmd('query-blockstats') == []
    handle.shutdown()
