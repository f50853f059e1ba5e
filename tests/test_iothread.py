# SPDX-License-Identifier: Apache-2.0
"""Exports in iothreads: the work happens there, nodes can be shared, everything ends well."""

import os

import pytest

from lib import images
from lib.images import Image, opts
from lib.tools import libnbd, need, wait_until
from lib.workload import Workload

pytestmark = pytest.mark.sanitize


def test_work_happens_in_the_iothread(daemon):
    nbd = libnbd()
    served = daemon(
        '--object',
        'iothread,id=t',
        '--blockdev',
        'null-co,node-name=n,size=1073741824',
        '--export',
        'nbd,id=e,node-name=n,iothread=t,writable=on',
        nbd=True,
    )
    handle = served.connect('n')
    main = served.process.pid
    before = served.thread_times()
    for _ in range(20):
        cookies = [handle.aio_pread(nbd.Buffer(1 << 20), i << 20) for i in range(16)]
        for cookie in cookies:
            while not handle.aio_command_completed(cookie):
                handle.poll(-1)
    after = served.thread_times()
    used = {task: after[task] - before.get(task, 0) for task in after}
    others = sum(ticks for task, ticks in used.items() if task != main)
    assert others > used[main], used
    handle.shutdown()


def test_exports_in_different_threads(daemon, tmp, rng):
    need('qemu-img', 'qemu-io')
    args, loads = [], []
    for i in range(3):
        path = images.make(Image(f'q{i}', opts(cluster_size=4096 << i)), tmp, rng)
        args += [
            '--object',
            f'iothread,id=t{i}',
            '--blockdev',
            f'qcow2,node-name=q{i},discard=unmap,file.driver=file,file.filename={path}',
            '--export',
            f'nbd,id=e{i},node-name=q{i},writable=on,iothread=t{i}',
        ]
        loads.append((path, images.to_raw(path)))
    served = daemon(*args, nbd=True)
    works = []
    for i, (_, content) in enumerate(loads):
        handle = served.connect(f'q{i}')
        works.append(Workload(handle, content, rng))
    for _ in range(15):
        for work in works:
            work.run(rounds=1)
    for work in works:
        work.compare_all()
        work.handle.shutdown()
    served.stop()
    for path, _ in loads:
        images.check(path)


def test_two_exports_of_one_node_with_different_threads(daemon, rng):
    """Two iothreads are asked for one node: both exports work, wherever it ends up."""
    served = daemon(
        '--object',
        'iothread,id=a',
        '--object',
        'iothread,id=b',
        '--blockdev',
        'null-co,node-name=n,size=1048576',
        nbd=True,
    )
    served.export('n', 'e1', iothread='a', writable=True)
    served.export('n', 'e2', name='second', iothread='b', writable=True)
    handles = []
    for name in ('n', 'second'):
        handle = served.connect(name)
        handles.append(handle)
    for _ in range(50):
        for handle in handles:
            handle.pwrite(b'x' * 512, 512 * rng.randrange(2000))
    for handle in handles:
        handle.shutdown()


def test_come_and_go(daemon, rng):
    """Exports and clients come and go while another export of the same thread works."""
    nbd = libnbd()
    served = daemon(
        '--object',
        'iothread,id=t',
        '--blockdev',
        'null-co,node-name=a,size=1048576',
        '--blockdev',
        'null-co,node-name=b,size=1048576,read-zeroes=on',
        nbd=True,
    )
    served.export('b', iothread='t', writable=True)
    steady = served.connect('b')
    for i in range(20):
        flying = [steady.aio_pread(nbd.Buffer(4096), 4096 * k) for k in range(16)]
        served.export('a', f'e{i}', iothread='t', writable=True)
        handle = served.connect('a')
        handle.pwrite(b'x' * 100, rng.randrange(1000))
        if i % 2:
            handle.shutdown()
            del handle
        served.unexport(f'e{i}', mode='hard')
        for cookie in flying:
            while not steady.aio_command_completed(cookie):
                steady.poll(-1)
    steady.shutdown()


def test_iothread_in_use_at_the_end(daemon):
    nbd = libnbd()
    served = daemon(
        '--object',
        'iothread,id=t',
        '--blockdev',
        'null-aio,node-name=n,size=1048576,latency-ns=1000000',
        '--export',
        'nbd,id=e,node-name=n,iothread=t',
        nbd=True,
    )
    handle = served.connect('n')
    for i in range(16):
        handle.aio_pread(nbd.Buffer(4096), 4096 * i)
    served.quit()


def test_threads_end_with_their_object(daemon):
    """Other threads, such as workers for blocking calls, may come at the same time."""
    served = daemon()

    def threads():
        return len(os.listdir(f'/proc/{served.process.pid}/task'))

    for i in range(8):
        served.cmd('object-add', qom_type='iothread', id=f't{i}')
    peak = threads()
    assert peak >= 9
    for i in range(8):
        served.cmd('object-del', id=f't{i}')
    wait_until(lambda: threads() <= peak - 4, 'the threads to end')


def cpu_of(served):
    """CPU nanoseconds of each iothread by its object's id."""
    times = served.thread_times()
    return {info['id']: times[info['thread-id']] for info in served.cmd('query-iothreads')}


def test_connections_spread_over_a_list(daemon, rng):
    served = daemon(
        '--object',
        'iothread,id=a',
        '--object',
        'iothread,id=b',
        '--blockdev',
        'null-co,node-name=n,size=1073741824',
        '--export',
        'nbd,id=e,node-name=n,iothread.0=a,iothread.1=b,writable=on',
        nbd=True,
    )
    handles = [served.connect('n') for _ in range(2)]
    before = cpu_of(served)
    for _ in range(200):
        for handle in handles:
            handle.pread(1 << 20, rng.randrange(1000) << 20)
    after = cpu_of(served)
    used = [after[name] - before[name] for name in 'ab']
    assert min(used) > max(used) / 10, used
    for handle in handles:
        handle.shutdown()


@pytest.mark.parametrize('kind', ['raw', 'qcow2'])
def test_many_connections_on_many_threads(kind, daemon, tmp, rng):
    """Connections on three loops change one node; each its own part of it."""
    need('qemu-img')
    size = 24 << 20
    if kind == 'qcow2':
        path = images.make(Image('q', opts(cluster_size=4096), size), tmp, rng)
        content = images.to_raw(path)
    else:
        path = tmp / 'raw'
        content = rng.randbytes(size)
        path.write_bytes(content)
    objects = [word for name in 'abc' for word in ('--object', f'iothread,id={name}')]
    served = daemon(
        *objects,
        '--blockdev',
        f'{kind},node-name=n,discard=unmap,file.driver=file,file.filename={path}',
        nbd=True,
    )
    served.export('n', iothread=['a', 'b', 'c'], writable=True)
    share = size // 6
    works = []
    for i in range(6):
        handle = served.connect('n')
        works.append(Workload(handle, content[i * share : (i + 1) * share], rng, base=i * share))
    for _ in range(10):
        for work, started in [(work, work.begin()) for work in works]:
            work.finish(started)
    for work in works:
        work.compare_all()
        work.handle.shutdown()
    served.stop()
    if kind == 'qcow2':
        images.check(path)


def test_the_node_moves_under_its_clients(daemon, tmp, rng):
    need('qemu-img')
    path = images.make(Image('q', opts(), 8 << 20), tmp, rng)
    content = images.to_raw(path)
    served = daemon(
        '--object',
        'iothread,id=a',
        '--object',
        'iothread,id=b',
        '--blockdev',
        f'qcow2,node-name=n,discard=unmap,file.driver=file,file.filename={path}',
        nbd=True,
    )
    served.export('n', 'e', iothread='a', writable=True)
    handle = served.connect('n')
    work = Workload(handle, content, rng)
    for thread in ('b', None, 'a', 'b') * 3:
        work.run(rounds=1)
        served.cmd('x-blockdev-set-iothread', node_name='n', iothread=thread, force=True)
    work.compare_all()
    served.cmd('object-del', id='a')
    served.cmd('object-del', id='b')
    work.run(rounds=1)
    work.compare_all()
    handle.shutdown()
    served.stop()
    images.check(path)


@pytest.mark.better
def test_lists_that_make_no_sense(daemon):
    served = daemon('--object', 'iothread,id=a', '--blockdev', 'null-co,node-name=n', nbd=True)

    def refusal(**options):
        return served.qmp.error('block-export-add', type='nbd', id='e', node_name='n', **options).desc

    assert refusal(iothread=[]) == "The list of iothreads of export 'e' is empty"
    assert refusal(iothread=['a', 'b']) == 'iothread "b" not found'
    assert (
        refusal(iothread=['a'], fixed_iothread=True)
        == "'fixed-iothread' cannot be used with a list of iothreads"
    )
    served.export('n', 'e', iothread=['a', 'a'])
