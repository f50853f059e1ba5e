# SPDX-License-Identifier: Apache-2.0
"""Both back ends of the loop, io_uring and epoll with worker threads, do the same work (GRANARY_LOOP chooses)."""

import os

import pytest

from lib import images
from lib.images import Image, opts
from lib.tools import need, need_io_uring, run
from lib.workload import Workload

BACKENDS = ['epoll', 'io_uring']


@pytest.fixture(autouse=True)
def kernel_has_backend(request):
    if getattr(request.node, 'callspec', None) and request.node.callspec.params.get('backend') == 'io_uring':
        need_io_uring()


def uring_descriptors(served):
    base = f'/proc/{served.process.pid}/fd'
    links = []
    for fd in os.listdir(base):
        try:
            links.append(os.readlink(f'{base}/{fd}'))
        except OSError:
            pass
    return [link for link in links if 'io_uring' in link]


@pytest.mark.better
@pytest.mark.parametrize('backend', BACKENDS)
def test_the_choice_is_real(backend, daemon):
    served = daemon('--object', 'iothread,id=t', environment={'GRANARY_LOOP': backend})
    assert bool(uring_descriptors(served)) == (backend == 'io_uring')


@pytest.mark.better
def test_unknown_back_end_is_named(daemon):
    served = daemon(environment={'GRANARY_LOOP': 'select'})
    assert "GRANARY_LOOP: 'select' is neither 'epoll' nor 'io_uring'" in served.stderr()


@pytest.mark.sanitize
@pytest.mark.parametrize('backend', BACKENDS)
@pytest.mark.parametrize('iothread', [False, True], ids=['main', 'iothread'])
def test_workload(backend, iothread, daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    path = images.make(Image('w', opts(cluster_size=4096), backing='raw'), tmp, rng)
    content = images.to_raw(path)
    raw = rng.randbytes(1 << 20)
    (tmp / 'raw.img').write_bytes(raw)
    thread = ',iothread=t' if iothread else ''
    served = daemon(
        '--object',
        'iothread,id=t',
        '--blockdev',
        f'qcow2,node-name=q,discard=unmap,file.driver=file,file.filename={path}',
        '--blockdev',
        f'file,node-name=f,filename={tmp}/raw.img',
        '--export',
        f'nbd,id=q,node-name=q,writable=on{thread}',
        '--export',
        f'nbd,id=f,node-name=f,writable=on{thread}',
        nbd=True,
        environment={'GRANARY_LOOP': backend},
    )
    loads = []
    for name, data in (('q', content), ('f', raw)):
        handle = served.connect(name)
        loads.append(Workload(handle, data, rng))
    for _ in range(20):
        for load in loads:
            load.run(rounds=1)
    for load in loads:
        load.compare_all()
        load.handle.shutdown()
    served.stop()
    images.check(path)
    assert (tmp / 'raw.img').read_bytes() == bytes(loads[1].shadow)


@pytest.mark.parametrize('backend', BACKENDS)
def test_clients(backend, daemon, tmp, rng):
    need('nbdcopy', 'qemu-img')
    content = images.fill_raw(tmp / 'raw.img', rng, 4 << 20)
    run('qemu-img', 'create', '-q', '-f', 'qcow2', tmp / 'q.qcow2', '4M')
    served = daemon(
        '--blockdev',
        f'qcow2,node-name=q,file.driver=file,file.filename={tmp}/q.qcow2',
        '--export',
        'nbd,id=q,node-name=q,writable=on',
        nbd=True,
        environment={'GRANARY_LOOP': backend},
    )
    run('nbdcopy', '--flush', tmp / 'raw.img', served.uri('q'))
    run('nbdcopy', served.uri('q'), tmp / 'copy.img')
    assert (tmp / 'copy.img').read_bytes() == content
    served.stop()
    images.check(tmp / 'q.qcow2')


@pytest.mark.parametrize('backend', BACKENDS)
def test_qmp_and_jobs(backend, daemon, tmp):
    served = daemon(environment={'GRANARY_LOOP': backend})
    for i in range(10):
        served.qmp.run_job(
            f'j{i}',
            'blockdev-create',
            options={'driver': 'file', 'filename': str(tmp / 'x'), 'size': 4096 * i},
        )
        assert (tmp / 'x').stat().st_size == 4096 * i
    assert [event['event'] for event in served.quit() if event['event'] != 'JOB_STATUS_CHANGE'] == []
