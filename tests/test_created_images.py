# SPDX-License-Identifier: Apache-2.0
"""Images made by blockdev-create open in the reference's tools, have what was asked for, and check clean."""

import json

import pytest

from lib import images
from lib.qmp import QmpError
from lib.tools import need

MIB = 1 << 20
OPTIONS = [
    {},
    {'version': 'v2'},
    {'version': 'v3', 'cluster-size': 512},
    {'cluster-size': 4096},
    {'cluster-size': 2 * MIB},
    {'refcount-bits': 1},
    {'refcount-bits': 2},
    {'refcount-bits': 8},
    {'refcount-bits': 64},
    {'lazy-refcounts': True},
    {'extended-l2': True},
    {'extended-l2': True, 'cluster-size': 16384},
    {'compression-type': 'zstd'},
    {'preallocation': 'metadata'},
    {'preallocation': 'falloc'},
    {'preallocation': 'full'},
    {'size': 0},
    {'size': 512},
    {'size': 1 << 40},
    {'cluster-size': 512, 'size': 64 * MIB, 'preallocation': 'metadata'},
    {'version': 'v2', 'cluster-size': 65536, 'size': 10 * MIB + 512},
]


def create_file(daemon, name, node):
    daemon.qmp.run_job(
        'create-file',
        'blockdev-create',
        options={'driver': 'file', 'filename': str(daemon.directory / name), 'size': 0},
    )
    daemon.blockdev_add(driver='file', node_name=node, filename=str(daemon.directory / name))


@pytest.mark.sanitize
@pytest.mark.parametrize(
    'options', OPTIONS, ids=[','.join(f'{k}={v}' for k, v in o.items()) or 'plain' for o in OPTIONS]
)
def test_created_image(options, daemon, tmp, rng):
    need('qemu-img')
    served = daemon(nbd=True)
    create_file(served, 'new.qcow2', 'file')
    size = options.get('size', 4 * MIB)
    served.qmp.run_job(
        'create', 'blockdev-create', options={'driver': 'qcow2', 'file': 'file', **options, 'size': size}
    )
    served.cmd('blockdev-del', node_name='file')
    path = tmp / 'new.qcow2'
    images.check(path)
    info = images.info(path)
    assert info['virtual-size'] == size and info['format'] == 'qcow2'
    assert info['cluster-size'] == options.get('cluster-size', 65536)
    specific = info['format-specific']['data']
    assert specific['compat'] == ('0.10' if options.get('version') == 'v2' else '1.1')
    if options.get('version') != 'v2':
        assert specific['refcount-bits'] == options.get('refcount-bits', 16)
        assert specific['lazy-refcounts'] == options.get('lazy-refcounts', False)
        assert specific['extended-l2'] == options.get('extended-l2', False)
    assert specific['compression-type'] == options.get('compression-type', 'zlib')
    if not size:
        return
    served.blockdev_add(driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)})
    served.export('q', writable=True)
    handle = served.connect('q')
    assert handle.get_size() == size
    data = rng.randbytes(min(size, 300000))
    handle.pwrite(data, size - len(data))
    assert handle.pread(len(data), size - len(data)) == data
    handle.shutdown()
    served.stop()
    images.check(path)


def test_created_with_backing_and_data_file(daemon, tmp, rng):
    need('qemu-img')
    content = images.fill_raw(tmp / 'base.img', rng, 4 * MIB)
    served = daemon()
    create_file(served, 'over.qcow2', 'over')
    served.qmp.run_job(
        'c1',
        'blockdev-create',
        options={
            'driver': 'qcow2',
            'file': 'over',
            'size': 4 * MIB,
            'backing-file': 'base.img',
            'backing-fmt': 'raw',
        },
    )
    create_file(served, 'ext.qcow2', 'ext')
    create_file(served, 'ext.data', 'data')
    served.qmp.run_job(
        'c2',
        'blockdev-create',
        options={
            'driver': 'qcow2',
            'file': 'ext',
            'data-file': 'data',
            'data-file-raw': True,
            'size': 4 * MIB,
        },
    )
    served.stop()
    images.check(tmp / 'over.qcow2')
    assert images.to_raw(tmp / 'over.qcow2') == content
    images.check(tmp / 'ext.qcow2')
    assert images.to_raw(tmp / 'ext.qcow2') == bytes(4 * MIB)


def test_failed_creation_leaves_a_job_with_its_error(daemon):
    served = daemon()
    with pytest.raises(QmpError, match='Could not create'):
        served.qmp.run_job(
            'j', 'blockdev-create', options={'driver': 'file', 'filename': '/missing/dir/x', 'size': 1}
        )
    assert served.cmd('query-jobs') == []


def test_job_events_in_order(daemon, tmp):
    served = daemon()
    served.cmd(
        'blockdev-create', job_id='j', options={'driver': 'file', 'filename': str(tmp / 'x'), 'size': 1}
    )
    served.qmp.wait_event('JOB_STATUS_CHANGE', id='j', status='concluded')
    served.cmd('job-dismiss', id='j')
    served.qmp.wait_event('JOB_STATUS_CHANGE', id='j', status='null')
    states = [json.loads(line)['data']['status'] for line in served.qmp.lines if b'JOB_STATUS_CHANGE' in line]
    assert states == ['created', 'running', 'waiting', 'pending', 'concluded', 'null']
