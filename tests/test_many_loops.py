# SPDX-License-Identifier: Apache-2.0
"""Exports of three kinds on one qcow2 node over two I/O threads, under verified load, while exports come and go and the
node moves from thread to thread."""

import concurrent.futures
import contextlib
import mmap
import os
import pathlib
import threading

import pytest

from lib import images
from lib.daemon import monitor_at
from lib.fusefile import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE, cleaned, fallocate, need_fuse
from lib.qmp import Qmp
from lib.tools import DEADLINE, libnbd, need, run, wait_until
from lib.vhostclient import Gone, VhostClient

CLUSTER = 4096
REGION = 1 << 20  # what one client works on; nobody else does
CLIENTS = 6
SIZE = (CLIENTS + 2) * REGION
SLOTS = 8  # requests at a time
KINDS = ('nbd', 'vhost-user-blk', 'fuse')
THREADS = ('t0', 't1')


# ---- Clients: each performs several requests at a time, (what, offset, data or length) ----


class NbdClient:
    """Two connections, so that both threads have one."""

    def __init__(self, stress, ident, rng):
        self.nbd, self.rng = libnbd(), rng
        self.handles = [stress.served.connect(ident) for _ in range(2)]

    def begin(self, requests):
        return [self._submit(self.rng.choice(self.handles), *request) for request in requests]

    def _submit(self, handle, what, offset, data):
        if what == 'read':
            buffer = self.nbd.Buffer(data)
            return handle, handle.aio_pread(buffer, offset), buffer
        if what == 'write':
            return handle, handle.aio_pwrite(self.nbd.Buffer.from_bytearray(bytearray(data)), offset), None
        if what == 'flush':
            return handle, handle.aio_flush(), None
        submit = handle.aio_zero if what == 'zero' else handle.aio_trim
        return handle, submit(data, offset), None

    def finish(self, started):
        try:
            for handle, cookie, _ in started:
                wait_until(
                    lambda: handle.aio_command_completed(cookie) or handle.poll(1000) and False, 'a reply'
                )
        except self.nbd.Error as error:
            raise Gone from error
        return [None if buffer is None else bytes(buffer.to_bytearray()) for _, _, buffer in started]

    def close(self):
        for handle in self.handles:
            with contextlib.suppress(self.nbd.Error):
                handle.shutdown()


class FuseClient:
    """Plain calls from a few threads, so that the kernel has several requests at a time."""

    def __init__(self, stress, ident, rng):
        self.fd = os.open(stress.path(ident), os.O_RDWR | (os.O_DIRECT if rng.random() < 0.7 else 0))
        self.pool = concurrent.futures.ThreadPoolExecutor(4)

    def begin(self, requests):
        return [self.pool.submit(self._call, *one) for one in requests]

    def _call(self, what, offset, data):
        if what == 'read':
            with mmap.mmap(-1, data) as buffer:
                assert os.preadv(self.fd, [buffer], offset) == data
                return buffer[:]
        if what == 'write':
            with mmap.mmap(-1, len(data)) as buffer:
                buffer[:] = data
                assert os.pwritev(self.fd, [buffer], offset) == len(data)
        elif what == 'flush':
            os.fsync(self.fd)
        elif what == 'zero':
            fallocate(self.fd, FALLOC_KEEP_SIZE | FALLOC_ZERO_RANGE, offset, data)
        else:
            fallocate(self.fd, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, offset, data)
        return None

    def finish(self, started):
        try:
            return [one.result(DEADLINE) for one in started]
        except OSError as error:
            raise Gone from error

    def close(self):
        self.pool.shutdown()
        with contextlib.suppress(OSError):  # says that the export has gone
            os.close(self.fd)


def vhost_client(stress, ident, rng):
    return VhostClient(stress.path(ident), rng, packed=rng.random() < 0.5)


CLIENT_CLASSES = {'nbd': NbdClient, 'vhost-user-blk': vhost_client, 'fuse': FuseClient}


# ---- What they do ----


class Region:
    """A part of the disk, what it has to hold, and a load on it."""

    def __init__(self, index, content, rng):
        self.start, self.content, self.rng = index * REGION, bytearray(content), rng

    def load(self, client):
        """Some requests at once, none of which overlap; what they bring is checked."""
        requests = [self._request(slot) for slot in range(SLOTS)]
        self.rng.shuffle(requests)
        brought = client.finish(client.begin(requests))
        for (what, offset, count), data in zip(requests, brought):
            if what == 'read':
                self.compare(offset, data, count)
            elif what != 'flush':
                self.note(what, offset, count)

    def rewrite(self, client):
        self.content[:] = self.rng.randbytes(REGION)
        step = REGION // SLOTS
        client.finish(
            client.begin(
                [('write', self.start + i, bytes(self.content[i : i + step])) for i in range(0, REGION, step)]
            )
        )

    def compare_all(self, client):
        for i in range(0, REGION, REGION // 4):
            (data,) = client.finish(client.begin([('read', self.start + i, REGION // 4)]))
            self.compare(self.start + i, data, REGION // 4)

    def writes(self):
        """Requests whose fate nobody learns."""
        return [('write', self.start + i * CLUSTER, bytes(CLUSTER)) for i in range(0, REGION // CLUSTER, 16)]

    def note(self, what, offset, data):
        data = data if what == 'write' else bytes(data)
        self.content[offset - self.start : offset - self.start + len(data)] = data

    def compare(self, offset, data, count):
        wanted = self.content[offset - self.start : offset - self.start + count]
        if data != wanted:
            wrong = next(i for i in range(count) if data[i] != wanted[i])
            raise AssertionError(
                f'byte {offset + wrong:#x} of {offset:#x}+{count:#x} holds {data[wrong:wrong + 16]}..., '
                f'not {bytes(wanted[wrong:wrong + 16])}...'
            )

    def _request(self, slot):
        what = self.rng.choices(('read', 'write', 'zero', 'trim', 'flush'), (5, 6, 1, 2, 1))[0]
        unit = CLUSTER if what == 'trim' else 512
        units = REGION // SLOTS // unit
        first = self.rng.randrange(units)
        count = self.rng.randint(1, min(units - first, 16 * CLUSTER // unit))
        offset = self.start + slot * (REGION // SLOTS) + first * unit
        return what, offset, self.rng.randbytes(count * unit) if what == 'write' else count * unit


class Stress:
    """The daemon, what was exported so far, and whether something went wrong."""

    def __init__(self, served, directory, rounds):
        self.served, self.directory, self.rounds = served, directory, rounds
        self.changed, self.begun, self.done, self.over = threading.Condition(), 0, 0, False

    def path(self, ident):
        return self.directory / ident

    def monitor(self, index):
        return Qmp.connect(self.directory / f'm{index}.sock')

    def add(self, qmp, kind, ident, **options):
        path = str(self.path(ident))
        if kind == 'nbd':
            own = {'name': ident}
        elif kind == 'fuse':
            pathlib.Path(path).touch()
            own = {'mountpoint': path}
        else:
            own = {'addr': {'type': 'unix', 'path': path}, 'num_queues': 2}
        qmp.cmd('block-export-add', type=kind, id=ident, node_name='n', writable=True, **own, **options)

    @staticmethod
    def remove(qmp, ident):
        qmp.cmd('block-export-del', id=ident, mode='hard')
        qmp.wait_event('BLOCK_EXPORT_DELETED', id=ident)

    def next_round(self):
        """The number of a new round, or None when there were enough."""
        with self.changed:
            if self.over or self.begun == self.rounds:
                return None
            self.begun += 1
            return self.begun

    def tell(self, done=0, over=False):
        with self.changed:
            self.done += done
            self.over |= over
            self.changed.notify_all()

    def wait_for(self, done):
        with self.changed:
            assert self.changed.wait_for(lambda: self.over or self.done >= done, DEADLINE), 'no round ends'


@contextlib.contextmanager
def using(stress, kind, ident, rng):
    client = CLIENT_CLASSES[kind](stress, ident, rng)
    try:
        yield client
    finally:
        client.close()


def stay(stress, kind, region):
    """A client of an export that is there from the beginning to the end."""
    try:
        with using(stress, kind, f'stays-{kind}', region.rng) as client:
            while not stress.over:
                region.load(client)
            region.compare_all(client)
    finally:
        stress.tell(over=True)


def come_and_go(stress, index, region):
    """One export after the other, each with a client; some are removed while it has requests in flight."""
    qmp, known, rng = stress.monitor(index), True, region.rng
    try:
        while number := stress.next_round():
            kind, ident = KINDS[number % 3], f'e{number}'
            threads = rng.choice((None, 't0', 't1', ['t0', 't1'], ['t1', 't0']))
            stress.add(qmp, kind, ident, **({'iothread': threads} if threads else {}))
            with using(stress, kind, ident, rng) as client:
                if not known:
                    region.rewrite(client)
                for _ in range(rng.randint(1, 3)):
                    region.load(client)
                known = rng.random() < 0.75
                if not known:
                    started = client.begin(region.writes())
                    stress.remove(qmp, ident)
                    with contextlib.suppress(Gone):
                        client.finish(started)
            if known:
                stress.remove(qmp, ident)
            stress.tell(done=1)
        if not known:
            with using(stress, 'nbd', 'stays-nbd', rng) as client:
                region.rewrite(client)
    except BaseException:
        stress.tell(over=True)
        raise
    finally:
        qmp.close()


def disturb(stress, rng):
    """Everything else that can happen to a node in use."""
    qmp = stress.served.qmp
    while not stress.over and stress.done < stress.rounds:
        done = stress.done
        qmp.cmd('x-blockdev-set-iothread', node_name='n', iothread=rng.choice((*THREADS, None)), force=True)
        qmp.cmd('query-blockstats', query_nodes=True)
        assert len(qmp.cmd('query-block-exports')) >= len(KINDS)
        stress.wait_for(min(done + 4, stress.rounds))


def descriptors(served):
    return len(os.listdir(f'/proc/{served.process.pid}/fd'))


def make_disk(directory, rng):
    """A chain of two, so that there are clusters of every kind; returns path and contents."""
    base, top, content = directory / 'base.raw', directory / 'top.qcow2', rng.randbytes(SIZE)
    base.write_bytes(content)
    options = f'cluster_size={CLUSTER},size={SIZE}'
    run('qemu-img', 'create', '-q', '-f', 'qcow2', '-o', options, '-b', base, '-F', 'raw', top)
    return top, content


def serve(daemon, directory, top):
    return daemon(
        *(word for i in range(CLIENTS) for word in monitor_at(directory / f'm{i}.sock', f'm{i}')),
        *('--object', 'iothread,id=t0', '--object', 'iothread,id=t1'),
        *('--blockdev', f'qcow2,node-name=n,discard=unmap,file.driver=file,file.filename={top}'),
        nbd=True,
    )


def run_all(stress, regions):
    """Three clients stay, three come and go; raises what went wrong first."""
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        staying = [pool.submit(stay, stress, kind, region) for kind, region in zip(KINDS, regions)]
        going = [pool.submit(come_and_go, stress, i, region) for i, region in enumerate(regions[len(KINDS) :])]
        try:
            disturb(stress, regions[-1].rng)
            concurrent.futures.wait(going)
        finally:
            stress.tell(over=True)
        for one in (*going, *staying):
            one.result()


def stress_test(daemon, tmp, rng, rounds):
    need('qemu-img')
    need_fuse()
    libnbd()
    top, content = make_disk(tmp, rng)
    served = serve(daemon, tmp, top)
    stress = Stress(served, tmp, rounds)
    regions = [Region(i, content[i * REGION : (i + 1) * REGION], images.seeded(rng)) for i in range(CLIENTS)]
    with cleaned(
        *(stress.path(f'stays-{kind}') for kind in KINDS), *(stress.path(f'e{i}') for i in range(rounds + 1))
    ):
        before = None
        for _ in range(2):  # the first time, what is kept for later is made
            for kind in KINDS:
                stress.add(served.qmp, kind, f'stays-{kind}', iothread=[*THREADS])
                with using(stress, kind, f'stays-{kind}', rng) as client:
                    regions[0].load(client)
            if before is None:
                for kind in KINDS:
                    stress.remove(served.qmp, f'stays-{kind}')
                before = descriptors(served)
        run_all(stress, regions)
        assert stress.done == rounds
        for kind in KINDS:
            stress.remove(served.qmp, f'stays-{kind}')
        wait_until(lambda: descriptors(served) <= before, f'{before} descriptors and no more')
    served.stop()
    images.check(top)
    for region in regions:
        content = content[: region.start] + region.content + content[region.start + REGION :]
    assert images.to_raw(top) == content


def test_exports_come_and_go(daemon, tmp, rng):
    stress_test(daemon, tmp, rng, 200)


@pytest.mark.sanitize
def test_some_exports_come_and_go(daemon, tmp, rng):
    stress_test(daemon, tmp, rng, 24)
