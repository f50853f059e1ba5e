# SPDX-License-Identifier: Apache-2.0
"""Every integer of a qcow2 image at the edges of what it may be: Granary refuses what the reference refuses, in its words;
what both open, they read alike, and whatever the reference's check finds fault with, Granary's does too. Memory stays bounded."""

import re
import struct
import subprocess

import pytest

from lib import images
from lib.daemon import Daemon
from lib.differential import reference
from lib.qmp import QmpClosed, QmpError
from lib.tools import libnbd, need, run

CLUSTER = 4096
SIZE = 1 << 20
MOST_MEMORY = 400 << 20
HEADER_V2 = 'magic:I version:I backing_offset:Q backing_size:I cluster_bits:I size:Q crypt:I l1_size:I l1_offset:Q'.split()
HEADER_V2 += 'reftable_offset:Q reftable_clusters:I snapshots:I snapshots_offset:Q'.split()
HEADER_V3 = 'incompatible:Q compatible:Q autoclear:Q refcount_order:I header_length:I compression:B'.split()
SNAPSHOT = 'l1_offset:Q l1_size:I id_size:H name_size:H seconds:I nanoseconds:I clock:Q vm_size:I extra_size:I'.split()
SNAPSHOT += ['extra_vm_size:Q', 'extra_disk_size:Q', 'extra_icount:Q']
DIRECTORY = 'table_offset:Q table_size:I flags:I type:B granularity:B name_size:H extra_size:I'.split()
BITMAPS_EXTENSION = 'magic:I length:I count:I reserved:I directory_size:Q directory_offset:Q'.split()
CRYPTO_EXTENSION = 'magic:I length:I offset:Q bytes:Q'.split()
# Where a number has a limit of its own: the limit, and what may be on either side of it is tried, too.
LIMITS = {
    'backing_offset': [112, CLUSTER],
    'backing_size': [15, 1023],
    'cluster_bits': [9, 14, 21],
    'size': [512, 1 << 31, 1 << 50, (1 << 63) - 65535],
    'l1_size': [(32 << 20) // 8, 2],
    'reftable_clusters': [(8 << 20) // CLUSTER],
    'snapshots': [2, 65536],
    'header_length': [72, 104, 112, CLUSTER],
    'refcount_order': [6],
    'extra_size': [16, 24, 1024],
    'id_size': [1],
    'count': [2, 65535],
    'directory_size': [64 << 20, 1024 * 65535],
    'table_size': [1, (512 << 20) // CLUSTER, 0x8000000],
    'granularity': [9, 31, 63],
    'name_size': [1023],
    'flags': [2, 4],
    'length': [16, 24, CLUSTER],
    'bytes': [32 << 20],
}
KINDS = {
    'v2': ['-o', 'compat=0.10,cluster_size=4096'],
    'v3': ['-o', 'cluster_size=4096'],
    'wide': ['-o', 'cluster_size=4096,refcount_bits=64'],
    'extended': ['-o', 'cluster_size=16384,extended_l2=on'],
    'crypt': [
        '--object',
        'secret,id=s,data=x',
        '-o',
        'cluster_size=4096,encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10',
    ],
}


def number(data, at, layout):
    return struct.unpack_from('>' + layout, data, at)[0]


def lay_out(prefix, fields, at):
    """(name, offset, layout) of fields that follow each other."""
    places = []
    for field in fields:
        name, layout = field.split(':')
        places.append((f'{prefix}.{name}', at, layout))
        at += struct.calcsize(layout)
    return places


def extensions(data):
    """(magic, offset) of the extensions."""
    at = number(data, 100, 'I') if number(data, 4, 'I') > 2 else 72
    while number(data, at, 'I'):
        yield number(data, at, 'I'), at
        at += 8 + (number(data, at + 4, 'I') + 7) // 8 * 8


def words(prefix, at, count):
    return [(f'{prefix}[{i}]', at + 8 * i, 'Q') for i in range(count)]


OFFSET = 0x00FFFFFFFFFFFE00


def find_places(data):
    """All numbers of an image, by name."""
    places = lay_out('header', HEADER_V2 + (HEADER_V3 if number(data, 4, 'I') > 2 else []), 0)
    known = {0x23852875: ('bitmaps', BITMAPS_EXTENSION), 0x0537BE77: ('crypto', CRYPTO_EXTENSION)}
    for magic, at in extensions(data):
        name, fields = known.get(magic, (f'extension {magic:x}', ['magic:I', 'length:I']))
        places += lay_out(name, fields, at)
        if magic == 0x23852875:
            directory = number(data, at + 24, 'Q')
            places += lay_out('directory', DIRECTORY, directory)
            places += words('bitmap table', number(data, directory, 'Q'), 1)
    l1, table = number(data, 40, 'Q'), number(data, 48, 'Q')
    entries = words('l2', number(data, l1, 'Q') & OFFSET, 4)
    if number(data, 4, 'I') > 2 and number(data, 72, 'Q') & 16:  # each entry has two words
        entries = [(name.replace('l2', 'subclusters') if i % 2 else name, *rest) for i, (name, *rest) in enumerate(entries)]
    places += words('l1', l1, 2) + entries
    compressed = [w for w in words('compressed', number(data, l1, 'Q') & OFFSET, 512) if number(data, w[1], 'Q') >> 62 == 1]
    places += compressed[:1] + words('refcount table', table, 2) + words('refcounts', number(data, table, 'Q'), 2)
    if number(data, 60, 'I'):
        snapshot = number(data, 64, 'Q')
        extra = number(data, snapshot + 36, 'I')
        places += lay_out('snapshot', SNAPSHOT[: 9 + extra // 8], snapshot) + words('snapshot l1', number(data, snapshot, 'Q'), 1)
    return places


def values(name, layout, old, size):
    """What to try in a number: the ends of its width, its neighbours, each bit's end, its limits, places in the file."""
    top = (1 << 8 * struct.calcsize(layout)) - 1
    tried = {0, 1, 2, top - 1, top, top >> 1, (top >> 1) + 1, old - 1, old + 1, old ^ 512}
    for limit in LIMITS.get(name.split('.')[-1], []):
        tried |= {limit - 1, limit, limit + 1}
    if layout == 'Q':
        tried |= {old + CLUSTER, size, size - CLUSTER, size + CLUSTER, size + 1, (1 << 56) - CLUSTER, 1 << 56}
        tried |= {1 << 62, (1 << 63) - CLUSTER, (1 << 64) - CLUSTER, old ^ 1 << 61, old ^ 1 << 62, old ^ 1 << 63}
    return sorted(value for value in tried if 0 <= value <= top and value != old)


def make(kind, path):
    options = KINDS[kind]
    images.create_encrypted('-f', 'qcow2', *options, path, SIZE)
    if kind == 'crypt':
        return
    images.qemu_io(path, ['write -P 1 0 64k', 'write -c -P 2 128k 16k', 'write -P 3 900k 10k'])
    if kind != 'v2':
        run('qemu-img', 'bitmap', '--add', path, 'first')
        run('qemu-img', 'bitmap', '--add', '-g', '512', path, 'second')
    for name in 'one', 'two':
        run('qemu-img', 'snapshot', '-c', name, path)
    images.qemu_io(path, ['write -P 4 4k 4k'])


# Field, Granary's answer, the reference's: where they differ on purpose.
ALLOWED = [
    # The reference notes in the image that bitmaps are in use when it opens it, Granary before the first change.
    ('.*', r'\[.*', "Can't update bitmap directory"),
    # It finds the refcounts damaged then, and has given the image up before anything is read.
    ('header.reftable_offset|refcount table', r'\[', r'\[\d+, None'),
    # A subcluster that cannot be makes the others of its cluster unreadable.
    ('subclusters', r'\[', r'\[\d+, None'),
    # Offsets and lengths that cannot be are refused before anything is read, and each entry before the next one is looked at.
    ('bitmaps.directory_offset', 'bitmaps_ext: invalid bitmap directory offset', 'Failed to read|Bitmap extra data'),
    ('directory.table_offset', "Bitmap 'first' doesn't satisfy", 'Could not read bitmap_table'),
    ('directory.name_size', "Bitmap '' doesn't satisfy", 'Bitmap extra data is not supported'),
    ('directory.extra_size', 'Broken bitmap directory', 'Bitmap extra data is not supported'),
    # A name with a zero in it cannot be told to anybody.
    ('directory.name_size', "Bitmap 'first' doesn't satisfy", r'\['),
    # Data that is not in the file: to the reference nothing is dirty.
    ('directory.table_offset|bitmap table', "Could not read bitmap 'first' from image: Input/output error", r'\['),
    # The reference notices later, or adds and begins again at zero.
    ('header.size', 'Image is too big', "Bitmap 'first' doesn't satisfy|Could not refresh total sector count"),
    ('crypto.offset', 'Encryption header of .* is too large', 'Volume is not in LUKS format|Could not read encryption header'),
    ('crypto.bytes', 'Volume is not in LUKS format|Missing CRYPTO header', 'Request for data outside of extension header'),
    # No LUKS header is as large.
    ('crypto.bytes', 'Encryption header of .* is too large', r'\['),
    # It is not written to while there are errors that no repair could mend.
    ('header.incompatible', 'Could not repair dirty image', r'\['),
    # Without a password the reference does not check.
    ('header.crypt', 'the check finds nothing', 'None'),
]


def is_allowed(name, value, mine, theirs):
    return any(
        re.fullmatch(field, re.sub(r'\[.*', '', name)) and re.match(a, str(mine)) and re.match(b, str(theirs))
        for field, a, b in ALLOWED
    )


def alike(mine, theirs):
    """Not judged: what the reference says after it has died, or has closed the connection because a piece cannot be read."""
    if theirs is None or not isinstance(mine, list) or not isinstance(theirs, list):
        return theirs is None or mine == theirs
    judged = theirs.index(None) + 1 if None in theirs else len(theirs)
    return mine[:judged] == theirs[:judged]


class Side:
    """A daemon that comes again when it has died."""

    def __init__(self, start):
        self.start = start
        self.served = None
        self.died = 0

    def node(self, path, read_only):
        node = {'driver': 'qcow2', 'node-name': 'q', 'read-only': read_only, 'discard': 'unmap'}
        node['file'] = {'driver': 'file', 'filename': str(path)}
        return node | ({'encrypt': {'format': 'luks', 'key-secret': 's'}} if path.name == 'crypt' else {})

    def contents(self):
        """The size, and what some pieces begin with: bytes, or None where they cannot be read."""
        self.served.export('q', name='x')
        handle = self.served.connect('x')
        found = [handle.get_size()]
        for at in 0, 4096, 128 << 10, 132 << 10, 512 << 10, 900 << 10:
            try:
                found.append(bytes(handle.pread(4096, at)[:2]) if at + 4096 <= found[0] else b'')
            except libnbd().Error:
                found.append(None)
        try:
            handle.shutdown()
        except libnbd().Error:  # it has died
            pass
        self.served.unexport('exp-q', mode='hard')
        return found

    def open(self, path, read_only):
        """The error, or what is in it; None: it has died."""
        if self.served is None or not self.served.running():
            self.served = self.start()
        try:
            self.served.cmd('blockdev-add', **self.node(path, read_only))
            found = self.contents()
            self.served.cmd('blockdev-del', **{'node-name': 'q'})
            return found
        except QmpError as error:
            return error.desc
        except (QmpClosed, OSError):
            self.died += 1
            self.served = None
            return None


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    need('qemu-img', 'qemu-io')
    directory = tmp_path_factory.mktemp('originals')
    for kind in KINDS:
        make(kind, directory / kind)
    return directory


@pytest.fixture
def sides(daemon, tmp):
    """Granary, and the reference."""
    peer = reference()
    secret = ('--object', 'secret,id=s,data=x')
    started = []

    def start_reference():
        started.append(Daemon(tmp, **peer.options()))  # which may die of an assertion
        return started[-1].start(*secret, nbd=True)

    yield Side(lambda: daemon(*secret, nbd=True)), Side(start_reference)
    for one in started:
        one.kill()


def faults(path):
    """Whether the reference's check finds fault, or cannot look."""
    command = ['qemu-img', 'check', '--output=json', '-f', 'qcow2', str(path)]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False).returncode != 0


def finds_fault(side, path):
    image = side.node(path, True)
    del image['node-name']
    try:
        found = side.served.cmd('x-blockdev-check', image=image, fix='none')
    except QmpError:
        return True
    return any(found.get(what) for what in ('corruptions', 'leaks', 'check-errors'))


# Kinds of images, and the numbers in them that are not the same as those of another kind.
GROUPS = [
    *(('v3', group) for group in ('header', 'tables', 'snapshots', 'bitmaps')),
    *(('v2', group) for group in ('header', 'tables', 'snapshots')),
    *(('extended', group) for group in ('header', 'extensions', 'tables')),
    ('wide', 'tables'),
    ('crypt', 'extensions'),
]


def group_of(name):
    for group, starts in (
        ('header', ('header',)),
        ('snapshots', ('snapshot',)),
        ('bitmaps', ('bitmap', 'directory')),
        ('tables', ('l1', 'l2', 'refcount', 'compressed')),
    ):
        if name.startswith(starts):
            return group
    return 'extensions'


@pytest.mark.parametrize(('kind', 'group'), GROUPS)
def test_numbers_at_their_edges(kind, group, originals, sides, tmp):
    original = (originals / kind).read_bytes()
    path, differences = tmp / kind, []
    ours, theirs = sides
    places = [place for place in find_places(original) if group_of(place[0]) == group]
    assert places
    for name, at, layout in places:
        for value in values(name, layout, number(original, at, layout), len(original)):
            data = bytearray(original)
            struct.pack_into('>' + layout, data, at, value)
            for read_only in (True, False):
                path.write_bytes(data)
                mine = ours.open(path, read_only)
                path.write_bytes(data)
                other = theirs.open(path, read_only)
                if mine is None or not alike(mine, other):
                    differences.append((name, hex(value), mine, other))
            path.write_bytes(data)
            if kind != 'crypt' and faults(path) and not finds_fault(ours, path):
                differences.append((name, hex(value), 'the check finds nothing', None))
    assert ours.served.memory('VmHWM') < MOST_MEMORY
    assert not ours.died
    unexpected = [one for one in differences if not is_allowed(*one)]
    assert not unexpected, '\n'.join(map(str, unexpected))
