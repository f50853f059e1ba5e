# SPDX-License-Identifier: Apache-2.0
"""The limits of the snapshot table: how many, how large, how long their texts and extra data. Both programs refuse the same."""

import pathlib
import shutil
import struct

import pytest

from lib import images
from lib.differential import reference
from lib.qmp import QmpError
from lib.tools import need, run

CLUSTER = 65536
MIB = 1 << 20
EXTRA = struct.pack('>QQQ', 0, 0, (1 << 64) - 1)  # VM state, size of the disk, no count of instructions
TOO_MANY = (1 << 16) + 1
TABLE = 64 * MIB


def entry(ident, name, extra=EXTRA):
    """A snapshot of a disk without any bytes: its L1 table is empty, too. A date, as none is no valid one."""
    data = struct.pack('>QIHHIIQII', 0, 0, len(ident), len(name), 1, 0, 0, 0, len(extra)) + extra + ident + name
    return data + bytes(-len(data) % 8)


def make(path, entries):
    """An image of a disk without bytes, with these snapshots and the refcounts of their table."""
    need('qemu-img')
    run('qemu-img', 'create', '-q', '-f', 'qcow2', path, 0)
    data = bytearray(path.read_bytes())
    data += bytes(-len(data) % CLUSTER)
    start, table = len(data), b''.join(entries)
    data += table + bytes(-len(table) % CLUSTER)
    (reftable,) = struct.unpack_from('>Q', data, 48)
    (block,) = struct.unpack_from('>Q', data, reftable)
    for cluster in range(start // CLUSTER, len(data) // CLUSTER):
        struct.pack_into('>H', data, block + 2 * cluster, 1)
    struct.pack_into('>IQ', data, 60, len(entries), start)
    path.write_bytes(data)
    return path


def many(count):
    return [entry(b'%d' % (i + 1), b'n%d' % i) for i in range(count)]


def full(left):
    """Large entries until so many bytes are left of what a table may have."""
    large = entry(b'i' * 65535, b'n' * 65535, EXTRA + bytes(1000))
    entries = [large] * ((TABLE - left) // len(large))
    texts = TABLE - left - len(large) * len(entries) - len(entry(b'', b''))
    return entries + [entry(b'k' * (texts // 2), b'x' * (texts - texts // 2))]


def answer(function, *args, **options):
    try:
        function(*args, **options)
    except QmpError as error:
        return str(error)
    return None


def open_image(served, path):
    return answer(
        served.blockdev_add, driver='qcow2', node_name='q', file={'driver': 'file', 'filename': str(path)}
    )


def count(path):
    return struct.unpack('>I', path.read_bytes()[60:64])[0]


def take(served, name):
    return answer(served.cmd, 'blockdev-snapshot-internal-sync', device='q', name=name)


def each(daemon, path):
    """(program, its own copy of the image)"""
    for i, served in enumerate((daemon(), daemon(**reference().options()))):
        yield served, pathlib.Path(shutil.copy(path, f'{path}.{i}'))


@pytest.mark.parametrize(
    'entries,text',
    [
        (many(TOO_MANY), 'Snapshot table too large'),
        (full(0) + [entry(b'2', b'y')], 'Snapshot table is too big'),
        ([entry(b'1', b'a', bytes(1032))], 'Too much extra metadata in snapshot table entry 0'),
    ],
    ids=['number', 'size', 'extra'],
)
def test_what_is_beyond_is_not_opened(entries, text, daemon, tmp):
    path = make(tmp / 'image', entries)
    answers = [open_image(served, copy) for served, copy in each(daemon, path)]
    assert text in answers[0]
    assert answers[0].replace(f'{path}.0', '') == answers[1].replace(f'{path}.1', '')


@pytest.mark.parametrize(
    'entries,which,more',
    [
        (many(TOO_MANY - 2), {'name': 'n0'}, 1),
        (full(0), {'id': 'i' * 65535}, 0),
        (full(72), {'id': 'i' * 65535}, 1),
    ],
    ids=['number', 'size', 'size-1'],
)
def test_at_the_limit_no_more_is_made(entries, which, more, daemon, tmp):
    """The image stays as it was; a snapshot that is deleted makes room for another one."""
    path = make(tmp / 'image', entries)
    answers = []
    for served, copy in each(daemon, path):
        assert open_image(served, copy) is None
        answers.append([take(served, f'm{i}') for i in range(3)])
        served.stop()
        assert count(copy) == len(entries) + more
    assert answers[0] == answers[1]
    assert [error is None for error in answers[0]] == [i < more for i in range(3)]
    path = tmp / 'image.0'
    served = daemon()
    assert open_image(served, path) is None
    served.cmd('blockdev-snapshot-delete-internal-sync', device='q', **which)
    assert take(served, 'z') is None
    served.stop()
    assert count(path) == len(entries) + more
    images.check(path)


def test_longest_texts_and_extra_data_are_kept(daemon, tmp):
    """What the format allows is there after others were made and deleted."""
    long = entry(b'i' * 65535, b'n' * 65535, EXTRA + bytes(range(256)) * 3 + b'u' * 232)
    path = make(tmp / 'image', [long, entry(b'1', b'a')])
    served = daemon()
    assert open_image(served, path) is None
    assert take(served, 'b') is None
    served.cmd('blockdev-snapshot-delete-internal-sync', device='q', name='a')
    assert take(served, 'x' * 255) is None
    assert 'is longer than 255 bytes' in take(served, 'y' * 256)
    served.stop()
    images.check(path)
    assert long[40:] in path.read_bytes()
    assert [len(one['name']) for one in images.info(path)['snapshots']] == [255, 1, 255]  # of the first, qemu-img shows no more
