# SPDX-License-Identifier: Apache-2.0
"""What the options about discarding do to the file, beside the reference that does the same: which clusters stay mapped,
where, and which space goes back to the host."""

import json
import os

import pytest

from lib.differential import reference
from lib.tools import libnbd, need, run

CLUSTER = 64 << 10
CLUSTERS = 32
SIZE = CLUSTERS * CLUSTER
SHAPES = {'v3': '', 'v2': 'compat=0.10', 'extended': 'extended_l2=on'}


def places(path):
    """(kind, place in the file) of each cluster of the disk."""
    told = json.loads(run('qemu-img', 'map', '--output=json', path).stdout)
    found = []
    for at in range(0, SIZE, CLUSTER):
        (one,) = [e for e in told if e['start'] <= at < e['start'] + e['length']]
        offset = one['offset'] + at - one['start'] if 'offset' in one else None
        found.append(('zero' if one['zero'] else 'data' if one['data'] else 'none', offset))
    return found


def is_hole(path, offset, length=CLUSTER):
    """Nothing of the range is stored."""
    with open(path, 'rb') as file:
        if offset >= os.fstat(file.fileno()).st_size:
            return True
        try:
            return os.lseek(file.fileno(), offset, os.SEEK_DATA) >= offset + length
        except OSError:
            return True


def fingerprint(path, before):
    """What has become of each cluster that was mapped before."""
    state = []
    for (kind, now), (_, then) in zip(places(path), before):
        state.append((kind, 'same place' if now == then else 'no place' if now is None else 'moved', is_hole(path, then)))
    return state


class Session:
    """The image in a program, exported."""

    def __init__(self, daemon, program, path, options):
        self.served = daemon(nbd=True, **program)
        image = {'driver': 'file', 'filename': str(path), 'discard': 'unmap'}
        self.served.cmd('blockdev-add', node_name='n', driver='qcow2', file=image, **options)
        self.handle = None
        self.connect()

    def connect(self):
        self.served.export('n', 'e', writable=True)
        self.handle = self.served.connect('n')

    def disconnect(self):
        self.handle.flush()
        self.handle.shutdown()
        self.served.unexport('e', mode='hard')

    def write(self, first, count, value):
        for i in range(first, first + count):
            self.handle.pwrite(bytes([value]) * CLUSTER, i * CLUSTER)

    def stop(self):
        self.disconnect()
        self.served.stop()


def outcome(daemon, tmp, shape, options, work):
    """Of both programs."""
    libnbd()
    need('qemu-img', 'qemu-io')
    results = []
    for i, program in enumerate(({}, reference().options())):
        path = tmp / f'image{i}'
        text = ['-o', SHAPES[shape]] if SHAPES[shape] else []
        run('qemu-img', 'create', '-q', '-f', 'qcow2', *text, path, SIZE)
        run('qemu-io', '-f', 'qcow2', '-c', f'write -P 1 0 {SIZE}', path)
        before = places(path)
        session = Session(daemon, program, path, {'discard': 'unmap', **options})
        work(session)
        session.stop()
        run('qemu-img', 'check', '-q', path)
        content = run('qemu-io', '-f', 'qcow2', '-c', f'read -v 0 {SIZE}', path).stdout
        results.append((fingerprint(path, before), content[: content.rfind(b'read ')]))
    assert results[0] == results[1]
    return results[0][0]


def discards(session):
    session.handle.trim(8 * CLUSTER, 4 * CLUSTER)
    session.handle.trim(2 * CLUSTER + 1024, 20 * CLUSTER - 512)  # two whole ones


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('request_passed', [None, True, False])
@pytest.mark.parametrize('no_unref', [False, True])
def test_discarded_clusters(no_unref, request_passed, shape, daemon, tmp):
    if no_unref and shape == 'v2':
        pytest.skip('version 2 cannot keep discarded clusters')
    options = {'discard_no_unref': no_unref}
    if request_passed is not None:
        options['pass_discard_request'] = request_passed
    state = outcome(daemon, tmp, shape, options, discards)
    gone = set(range(4, 12)) | {20, 21}
    for i, (kind, where, hole) in enumerate(state):
        if i not in gone:
            assert (kind, where, hole) == ('data', 'same place', False)
        else:
            assert (kind, where) == ('zero', 'same place' if no_unref else 'no place')
            assert hole == (request_passed is not False)


@pytest.mark.parametrize('no_unref', [False, True])
def test_kept_clusters_are_used_again(no_unref, daemon, tmp):
    """In their place, which others may have taken otherwise."""

    def work(session):
        discards(session)
        session.handle.flush()
        session.write(8, 2, 7)
        session.write(4, 2, 8)

    state = outcome(daemon, tmp, 'v3', {'discard_no_unref': no_unref}, work)
    kept = [where == 'same place' for _, where, _ in state]
    assert all(kept[i] for i in (4, 5, 8, 9)) or not no_unref


@pytest.mark.parametrize('discard', ['ignore', 'unmap'])
@pytest.mark.parametrize('unmap', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_zeroed_clusters(shape, unmap, discard, daemon, tmp):
    nbd = libnbd()

    def work(session):
        flags = 0 if unmap else nbd.CMD_FLAG_NO_HOLE
        session.handle.zero(8 * CLUSTER, 4 * CLUSTER, flags)
        session.handle.zero(CLUSTER + 4096, 20 * CLUSTER, flags)

    outcome(daemon, tmp, shape, {'discard': discard}, work)


@pytest.mark.parametrize('detect', ['off', 'on', 'unmap'])
@pytest.mark.parametrize('shape', SHAPES)
def test_detected_zeroes(shape, detect, daemon, tmp):
    def work(session):
        session.write(4, 8, 0)
        session.handle.pwrite(bytes(2 * CLUSTER) + b'x' * 512 + bytes(512), 20 * CLUSTER)

    state = outcome(daemon, tmp, shape, {'detect_zeroes': detect}, work)
    if shape != 'v2':
        for kind, where, hole in state[4:12]:
            assert (kind == 'zero') == (detect != 'off')
            assert (where == 'no place') == (detect == 'unmap')
            assert hole == (detect == 'unmap')


@pytest.mark.parametrize('passed', [None, True, False])
@pytest.mark.parametrize('shape', SHAPES)
def test_clusters_of_a_deleted_snapshot(shape, passed, daemon, tmp):
    """The disk has moved away from them."""

    def work(session):
        session.disconnect()
        session.served.cmd('blockdev-snapshot-internal-sync', device='n', name='s')
        session.connect()
        session.write(4, 8, 7)
        session.disconnect()
        session.served.cmd('blockdev-snapshot-delete-internal-sync', device='n', name='s')
        session.connect()

    options = {} if passed is None else {'pass_discard_snapshot': passed}
    state = outcome(daemon, tmp, shape, options, work)
    for i, (kind, where, hole) in enumerate(state):
        moved = i in range(4, 12)
        assert (kind, where) == ('data', 'moved' if moved else 'same place')
        assert hole == (moved and passed is not False)


@pytest.mark.parametrize('passed', [None, True, False])
def test_old_table_after_growth(passed, daemon, tmp):
    """Neither guest data nor a snapshot: the L1 table of a disk that has become too large for it."""
    libnbd()
    need('qemu-img', 'qemu-io')
    holes = []
    for i, program in enumerate(({}, reference().options())):
        path = tmp / f'image{i}'
        run('qemu-img', 'create', '-q', '-f', 'qcow2', path, SIZE)
        run('qemu-io', '-f', 'qcow2', '-c', f'write -P 1 0 {SIZE}', path)
        old = int.from_bytes(path.read_bytes()[40:48], 'big')
        options = {} if passed is None else {'pass_discard_other': passed}
        session = Session(daemon, program, path, options)
        session.disconnect()
        session.served.cmd('block_resize', node_name='n', size=8 << 40)
        session.connect()
        session.stop()
        run('qemu-img', 'check', '-q', path)
        assert int.from_bytes(path.read_bytes()[40:48], 'big') != old
        holes.append(is_hole(path, old, 4096))
    assert holes == [bool(passed)] * 2


@pytest.mark.parametrize('passed', [True, False])
def test_cropped_clusters_go_back_to_the_host(passed, daemon, tmp):
    """Whatever the options say."""

    def work(session):
        session.disconnect()
        for size in (SIZE // 2, SIZE):
            session.served.cmd('block_resize', node_name='n', size=size)
        session.connect()

    options = {'pass_discard_request': passed, 'pass_discard_other': passed}
    state = outcome(daemon, tmp, 'v3', options, work)
    assert state[CLUSTERS // 2 :] == [('zero', 'no place', True)] * (CLUSTERS // 2)
